"""What the samplers that go step by step share: states, and what makes a state useless."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from evidens.ops import _checks as checks


class Cache(Protocol):
    """What a network has computed so far; one class for each backend."""

    x: Tensor
    known: Tensor
    values: Tensor
    parameters: Tensor

    def step(self) -> None:
        """Computes what the next place needs, and draws it where it is not known."""

    def copy(self) -> Any:
        """The same again, in tensors of its own."""


def given(
    like: Tensor, known: Tensor | None, values: Tensor | None, missing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What is known so far, ``missing`` elsewhere, and own copies of mask and values."""
    if known is None or values is None:
        return torch.full_like(like, missing), torch.zeros_like(like, dtype=torch.bool), like
    rows = torch.contiguous_format
    known, values = known.clone(memory_format=rows), values.clone(memory_format=rows)
    return torch.where(known, values, missing).contiguous(), known, values


class Watch:
    """Tensors that must stay as they are."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._seen = [(t, t.data_ptr(), _version(t)) for t in tensors]

    def changed(self) -> bool:
        """Whether one was written to, or holds other memory than it did."""
        return any(
            _version(t) != version or t.data_ptr() != place for t, place, version in self._seen
        )


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


class State:
    """Where a draw stands that goes step by step.

    A step moves the numbers on where they lie, so a state is good for one step: go on with the one
    that came back.  `copy` branches off.

    Attributes:
        rows: N.
        place: how many steps were taken.
        places: how many there are.
    """

    def __init__(self, op: str, cache: Cache, watch: Watch, places: int, place: int = 0) -> None:
        self._op, self._cache, self._watch = op, cache, watch
        self.places, self.place, self._spent = places, place, False
        self.rows = len(cache.x)

    @property
    def done(self) -> bool:
        """Whether nothing is left to draw."""
        return self.place == self.places

    @property
    def x(self) -> Tensor:
        """What is drawn or known so far, in the shape of a whole draw."""
        return self._current()._cache.x.clone()

    @property
    def parameters(self) -> Tensor:
        """(N, P) what the network said of what the last step drew; NaN before the first step."""
        return self._current()._cache.parameters.clone()

    def copy(self) -> Any:
        """The same state once more, to go on from here in two ways."""
        other = object.__new__(type(self))
        other.__dict__ = dict(self._current().__dict__)
        other._cache = self._cache.copy()
        return other

    def __repr__(self) -> str:
        where = "spent" if self._spent else f"{self.place} of {self.places} steps"
        return f"{type(self).__name__}({self.rows} rows, {where})"

    def _current(self) -> State:
        if self._spent:
            raise ValueError(
                f"evidens.{self._op}_step: this state has been stepped on already; go on with the "
                f"state that the step returned, or branch off before with state.copy()"
            )
        return self

    def _next(self) -> Any:
        """The state after the next place, which is about to be computed."""
        self._spent = True
        other = object.__new__(type(self))
        other.__dict__ = self.__dict__ | {"place": self.place + 1, "_spent": False}
        return other


def starting(op: str) -> None:
    """Refuses what cannot follow a state from call to call."""
    if not checks.readable():
        raise RuntimeError(
            f"evidens.{op}: a draw step by step keeps a state, which torch.compile and torch.func "
            f"cannot follow; call evidens.ops.{op.removesuffix('_start')}_sample there"
        )


def check(op: str, state: Any, kind: type[State]) -> None:
    """Refuses a state that no step can be taken from."""
    if not isinstance(state, kind):
        raise TypeError(
            f"evidens.{op}_step: state must come from {op}_start or {op}_step, got "
            f"{type(state).__name__}"
        )
    state._current()
    if state.done:
        raise ValueError(
            f"evidens.{op}_step: nothing is left to draw after {state.places} steps; state.x has "
            f"it all, {op}_start begins another draw"
        )
    if state._watch.changed():
        raise ValueError(
            f"evidens.{op}_step: the weights, biases or contexts have changed since {op}_start; "
            "the state holds sums over the old ones: start again, with known= and values= from "
            "state.x to go on from here"
        )


def check_value(op: str, value: Any, shape: tuple[int, ...], letters: str, levels: int) -> Tensor:
    """A value that is given instead of a draw; NaN: draw.  ``levels`` > 0: of 0 .. levels - 1."""
    if not isinstance(value, Tensor) or value.dtype is torch.bool or value.is_complex():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"evidens.{op}_step: value must be a tensor of numbers or None, got {got}")
    if tuple(value.shape) != shape:
        raise ValueError(
            f"evidens.{op}_step: value must have shape {letters} = {shape} for a state of "
            f"{shape[0]} rows, got {tuple(value.shape)}; a state keeps the batch that it began with"
        )
    if levels:
        bad = ~((value >= 0) & (value < levels) & (value == value.floor()) | value.isnan())
        if bad.any():
            raise ValueError(
                f"evidens.{op}_step: value must hold levels 0 .. {levels - 1}, or NaN to draw, got "
                f"{value[bad][0].item()}"
            )
    return value
