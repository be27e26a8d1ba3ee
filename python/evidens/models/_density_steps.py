"""Draws step by step: `Stepwise`, for the densities that have an order, and their states."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidens import ops
from evidens.models._density_state import evaluating, seed_of


class StepState:
    """Where a draw of `start` and `step` stands.

    A step moves the numbers on where they lie, so a state is good for one step: go on with the one
    that came back.  `copy` branches off.

    Attributes:
        rows: n.
        done: whether nothing is left to draw.
        position: what the next step draws: a feature, or (row, column) of a pixel; with several
            orders (n,), each row's own feature.  None when done.
        x: (n, *shape) so far, NaN where nothing is known or drawn: what ``start(x=...)`` takes.
        log_prob: (n,) of what the last step returned, given all before it, nats.
    """

    def __init__(
        self, model: Any, parts: list[Any], x: Tensor, stops: list[int], as_array: bool
    ) -> None:
        self.rows = len(x)
        self._model, self._parts, self._x, self._stops = model, parts, x, stops
        self._as_array, self._taken, self._spent = as_array, 0, False
        self._watched = _weights(model)

    @property
    def done(self) -> bool:
        """Whether nothing is left to draw."""
        return self._taken == len(self._stops)

    @property
    def position(self) -> Any:
        """What the next step draws."""
        if self.done:
            return None
        places = [part.at_place(self._stops[self._taken]) for part in self._parts]
        if len(places) == 1:
            return places[0]
        features = torch.empty(self.rows, dtype=torch.int64, device=self._x.device)
        for part, place in zip(self._parts, places):
            features[part.rows] = place
        return features.cpu().numpy() if self._as_array else features

    @property
    def x(self) -> Any:
        """What is known or drawn so far."""
        x = self._current()._x
        return x.cpu().numpy().copy() if self._as_array else x.to(self._model.dtype, copy=True)

    @property
    def log_prob(self) -> Any:
        """(n,) of what the last step returned, given all before it, nats."""
        if not self._current()._taken:
            raise ValueError(f"{self._name}: log_prob is that of the last step, and none was taken")
        result = torch.empty(self.rows, dtype=self._model.dtype, device=self._x.device)
        with torch.no_grad():
            for part in self._parts:
                result[part.rows] = part.log_prob()
        return result.cpu().numpy() if self._as_array else result

    def copy(self) -> StepState:
        """The same state once more, to go on from here in two ways."""
        other = copy.copy(self._current())
        other._x = self._x.clone()
        other._parts = [part.copy() for part in self._parts]
        return other

    def __repr__(self) -> str:
        where = "spent" if self._spent else f"{self._taken} of {len(self._stops)} steps"
        return f"StepState({self._name}, {self.rows} rows, {where})"

    @property
    def _name(self) -> str:
        return type(self._model).__name__

    def _current(self) -> StepState:
        if self._spent:
            raise ValueError(
                f"{self._name}: this state has been stepped on already; go on with the state that "
                "the step returned, or branch off before with state.copy()"
            )
        return self

    def _changed(self) -> bool:
        return any(
            own.get(name) is not t or t._version != version or t.data_ptr() != place
            for own, name, t, version, place in self._watched
        )


class Stepwise:
    """`start` and `step` beside the `sample` of a model; all are the same work and the same draws.

    A subclass says in ``_parts`` what stands behind the steps.
    """

    def start(
        self: Any,
        n: int | None = None,
        context: Any = None,
        y: Any = None,
        *,
        x: Any = None,
        random_state: Any = None,
    ) -> StepState:
        """The beginning of a draw that `step` continues, one feature or pixel at a time.

        Args:
            n: number of rows; None: those of x, else 1.
            context, y: as in `sample`; with x a model with classes needs y.
            x: (n, *shape), array-like or tensor, NaN where a number is to be drawn: what is known.
                Steps pass over what is known in all rows.
            random_state: as in `sample`, whose draws the steps make, bit for bit.

        Returns:
            The state before the first step; what its attributes say is in `StepState`.

        Raises:
            ValueError: as `sample`; x of another number of rows than n, infinities, levels out of
                range.
        """
        name = type(self).__name__
        if x is None:
            n = 1 if n is None else n
            condition, seed = self._of_draws(n, context, y, random_state)
            given = torch.full((n, *self.shape), math.nan, dtype=torch.float64, device=self.device)
            known = seen = None
            missing = given.isnan()
            as_array = isinstance(self._as_asked(given[:0, :0], context, y), np.ndarray)
        else:
            given, missing, condition = self._of_gaps(x, context, y)
            if n is not None and n != len(given):
                raise ValueError(f"{name}: x must have n = {n} rows, got {len(given)}")
            seed = seed_of(random_state)
            as_array = not isinstance(x, Tensor)
            known = ~missing
            seen = self.standard(self._noisy(given, 0, 0))[0].to(self.dtype)
            given = given.double().masked_fill(missing, math.nan)
        with torch.no_grad(), evaluating(self):
            parts = self._parts(len(given), condition, seed, known, seen)
        wanted = [part.wanted(missing) for part in parts]
        stops = torch.stack(wanted).any(0).nonzero()[:, 0].tolist()
        if len(given) == 0:
            stops = list(range(len(wanted[0])))
        return StepState(self, parts, given, stops, as_array)

    def step(self: Any, state: StepState, value: Any = None) -> tuple[Any, StepState]:
        """Draws the next feature or pixel.

        Args:
            state: what `start` or the step before returned; it is spent by the step.
            value: what comes instead of a draw: (n,), for pixels (n, C), or one number for all
                rows; NaN where a number is to be drawn, or was known from the start.

        Returns:
            The values, (n,) or (n, C), of the type that `sample` returns, and the state after them.

        Raises:
            ValueError: nothing is left to draw, the state is spent or another model's, the weights
                have changed since, a value of another batch size or one that cannot be.
            TypeError: something that is no state.
        """
        name = type(self).__name__
        if not isinstance(state, StepState):
            raise TypeError(
                f"{name}.step: state must come from {name}.start or step, got "
                f"{type(state).__name__}"
            )
        if state._model is not self:
            raise ValueError(
                f"{name}.step: this state belongs to another model, a {state._name}; step with "
                "that one, or start a draw of this one"
            )
        state._current()
        if state.done:
            raise ValueError(
                f"{name}.step: nothing is left to draw after {len(state._stops)} steps; state.x "
                "has it all, start begins another draw"
            )
        if state._changed():
            raise ValueError(
                f"{name}.step: the weights have changed since start, and the state holds sums over "
                "the old ones; start again, with x=state.x to go on from here"
            )
        part = state._parts[0]
        given = None if value is None else self._step_value(value, (state.rows, *part.each))
        after = copy.copy(state)
        after._taken, state._spent = state._taken + 1, True
        result = torch.empty((state.rows, *part.each), dtype=torch.float64, device=state._x.device)
        with torch.no_grad():
            for part in state._parts:
                own = None if given is None else given[part.rows]
                result[part.rows] = part.go(state._stops[state._taken], own, state._x)
        if self.levels is not None:
            drawn = result.to(torch.int64)
        else:
            drawn = result if state._as_array else result.to(self.dtype)
        return drawn.cpu().numpy() if state._as_array else drawn, after

    def _step_value(self: Any, value: Any, shape: tuple[int, ...]) -> Tensor:
        """A value of one step, float64, checked."""
        name = type(self).__name__
        found = torch.as_tensor(value).detach().to(self.device, torch.float64)
        if found.ndim == 0:
            found = found.expand(shape)
        if tuple(found.shape) != shape:
            raise ValueError(
                f"{name}.step: value must have shape {shape} for a state of {shape[0]} rows, got "
                f"{tuple(found.shape)}; a state keeps the batch that it began with"
            )
        bad = ~self._possible(found)
        if bad.any():
            want = "finite" if self.levels is None else f"integers from 0 to {self.levels - 1}"
            raise ValueError(
                f"{name}.step: value must be {want}, or NaN to draw, got {found[bad][0].item()}"
            )
        return found


class FeatureSteps:
    """Rows whose features come in one order.

    Args:
        model: with ``standard``, ``_noisy`` and ``_step_terms``.
        rows: numbers of these rows, or a slice.
        state: of the op.
        order: features by place.
    """

    each: tuple[int, ...] = ()

    def __init__(self, model: Any, rows: Any, state: ops.MadeState, order: list[int]) -> None:
        self.model, self.rows, self.state, self.order = model, rows, state, order
        self.feature, self.z = -1, torch.empty(0)

    def at_place(self, place: int) -> int:
        """The feature there."""
        return self.order[place]

    def wanted(self, missing: Tensor) -> Tensor:
        """Whether a row lacks the feature of each place."""
        return missing[self.rows].any(0)[self.order]

    def go(self, place: int, value: Tensor | None, x: Tensor) -> Tensor:
        """On to a place and past it; what is there, in float64."""
        while self.state.place < place:
            _, self.state = ops.made_step(self.state)
        f = self.feature = self.order[place]
        one, raw = self.standard(), value
        if value is not None:
            noise = self.model._noisy(torch.zeros_like(x), 0, 0)[self.rows, f]
            value = one((value + noise)[:, None])[0][:, 0]
        self.z, self.state = ops.made_step(self.state, value)
        found: Tensor = one.inverse(self.z.double()[:, None])[:, 0]
        if self.model.levels is not None:
            found = found.floor().clamp(0, self.model.levels - 1)
        result: Tensor = torch.where(x[self.rows, f].isnan(), found, x[self.rows, f])
        if raw is not None:
            result = torch.where(raw.isnan(), result, raw)
        x[self.rows, f] = result
        return result

    def log_prob(self) -> Tensor:
        """Of the last feature, given those before it."""
        z = self.z[:, None]
        one = self.standard()
        terms = self.model._step_terms(self.state.parameters[:, None], z)[:, 0]
        result: Tensor = terms + one(one.inverse(z.double()))[1].to(terms.dtype)
        return result

    def standard(self) -> Any:
        """What standardises the last feature alone."""
        every = self.model.standard
        one = copy.copy(every)
        one.numbers = 1
        if every.location.numel() > 1:
            at = slice(self.feature, self.feature + 1)
            shared = ("location", "scale", "circular")
            one._buffers = {
                name: b[at] if name in shared and b is not None else b
                for name, b in every._buffers.items()
            }
        return one

    def copy(self) -> FeatureSteps:
        """The same again, on its own way."""
        other = copy.copy(self)
        other.state = self.state.copy()
        return other


class PixelSteps:
    """Images, pixel by pixel."""

    rows = slice(None)

    def __init__(self, model: Any, state: ops.PixelState) -> None:
        self.model, self.state, self.each = model, state, (model.shape[0],)
        self.level = torch.empty(0)

    def at_place(self, place: int) -> tuple[int, int]:
        """(row, column) of the pixel there."""
        return divmod(place, self.model.shape[2])

    def wanted(self, missing: Tensor) -> Tensor:
        """Whether an image lacks a level of each pixel."""
        return missing.any(1).any(0).flatten()

    def go(self, place: int, value: Tensor | None, x: Tensor) -> Tensor:
        """On to a pixel and past it; its levels, in float64."""
        while self.state.place < place:
            _, self.state = ops.pixelcnn_step(self.state)
        self.level, self.state = ops.pixelcnn_step(self.state, value)
        row, column = self.at_place(place)
        x[:, :, row, column] = self.level.double()
        return self.level.double()

    def log_prob(self) -> Tensor:
        """Of the last pixel, given those before it."""
        params = self.state.parameters[:, :, None, None]
        terms = self.model._terms(params, self.level[:, :, None, None])
        return terms.flatten(1).sum(1)

    def copy(self) -> PixelSteps:
        """The same again, on its own way."""
        other = copy.copy(self)
        other.state = self.state.copy()
        return other


def _weights(model: Any) -> list[tuple[dict[str, Any], str, Tensor, int, int]]:
    """Where the tensors of a model stand, and as what."""
    return [
        (own, name, t, t._version, t.data_ptr())
        for module in model.modules()
        for own in (module._parameters, module._buffers)
        for name, t in own.items()
        if t is not None
    ]
