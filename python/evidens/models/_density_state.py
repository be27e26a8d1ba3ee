"""`DensityState`: what a learned density is made of, which learning and queries stand on."""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evidens import ops
from evidens.models._arrays import returned
from evidens.models._density_input import check_finite, check_rows, contexts, label_numbers, rows
from evidens.models._density_scaling import Standardize
from evidens.models._persistence import PersistentModule

# Numbers that a row brings with it, per feature, in pieces of a query.
PIECE, PER_FEATURE = 1 << 21, 32
# Steps of the Philox stream of a draw.
LATENT, CLASS, NOISE = range(3)
# Modes belong to modules, which threads share.
_MODES = threading.Lock()


class DensityState(PersistentModule, nn.Module):
    """Network, standardisation and classes; the methods stand in subclasses.

    Args:
        shape: of one row.
        layers: the network.
        standard: what rows and contexts go through first.
        context: K, features of the context.
        classes: number of classes; 0 for a density that knows none.
        levels: L of rows of integers 0 .. L - 1; None: rows are any numbers.
        settings: arguments of the constructor, for `save` and to start afresh.
        renewable: whether these build the same network again.
    """

    class_weight: Tensor
    class_codes: Tensor | None

    #: Labels of the classes, sorted; numbers before `fit`, None without classes.
    classes_: np.ndarray | None

    def __init__(
        self,
        shape: Sequence[int],
        layers: nn.Module,
        standard: Standardize,
        *,
        context: int,
        classes: int,
        levels: int | None,
        settings: dict[str, Any],
        renewable: bool = True,
    ) -> None:
        super().__init__()
        self.shape, self.settings, self._renewable = tuple(shape), settings, renewable
        self.context, self.classes, self.levels = context, classes, levels
        self.standard, self.layers = standard, layers
        self.register_buffer("class_weight", torch.ones(classes, dtype=torch.float64))
        self.register_buffer("class_codes", None, persistent=False)
        self.classes_ = np.arange(classes) if classes else None
        self.fitted_to_tensors_: bool | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_of: tuple[torch.dtype, torch.device] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "classes_":
            # Once more as a tensor: torch.compile does not look into arrays.
            numbers = value is not None and value.dtype.kind in "iufb"
            self.class_codes = torch.as_tensor(value).to(self.device) if numbers else None

    # --- what torch asks -------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DensityState:
        counts = self.class_weight  # stay float64: float32 stops counting at 2^24 rows
        super()._apply(fn, recurse)
        self.class_weight = counts.to(self.class_weight.device)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        shown = ", ".join(
            f"{name}={value!r}"
            for name, value in self.settings.items()
            if name not in defaults or value != _plain(defaults[name].default)
        )
        count = sum(p.numel() for p in self.parameters())
        state = "not fitted" if self.fitted_to_tensors_ is None else "fitted"
        return f"{type(self).__name__}({shown})  # {count:,} parameters, {state}"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.standard.location.device

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in: float32, or float64 after `double`."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    @property
    def density_kind_(self) -> str:
        """``"exact"``: `log_prob` is the logarithm of the density itself."""
        return "exact"

    @property
    def features(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)

    # --- densities -------------------------------------------------------------------------------

    def _query(self, what: Callable[..., Tensor], x: Any, context: Any, y: Any) -> Any:
        """``what(x, context, labels, first row)``: of a tensor at once, of an array in pieces."""
        self._check_dtype()
        data = rows(self, x)
        c = contexts(self, context, len(data))
        labels = label_numbers(self, y, len(data))
        if isinstance(x, Tensor):
            return what(data, c, labels, 0)
        check_rows(self, data)
        if c is not None:
            check_finite(self, c, "context")
        size = max(1, PIECE // (PER_FEATURE * max(8, self.features) * max(1, self.classes)))
        parts = []
        with torch.no_grad(), evaluating(self):
            for i in range(0, max(1, len(data)), size):
                at = slice(i, i + size)
                piece = (None if t is None else t[at] for t in (data, c, labels))
                parts.append(what(*piece, i))
        return returned(torch.cat(parts).cpu(), x)

    def _check_dtype(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{type(self).__name__}: the model computes in float32 or float64, and its weights "
                f"are {self.dtype}; call .float(), and use torch.autocast for half precision"
            )

    def _noisy(self, x: Tensor, first: int, seed: int) -> Tensor:
        """Rows for the density, from row ``first`` on, with noise of a seed where it has any."""
        return x

    def _jittered(self, x: Tensor) -> Tensor:
        """Rows for a training step, with torch's noise."""
        return x

    def _given_label(self, x: Tensor, context: Tensor | None, labels: Tensor | None) -> Tensor:
        """Log p(x | label), (N,), differentiable."""
        raise NotImplementedError

    def _density(
        self, x: Tensor, context: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Log p(x | label), or the mixture over the classes where there is no label."""
        if self.classes and labels is None:
            return self._class_terms(x, context).logsumexp(1)
        return self._given_label(x, context, labels)

    def _class_log_prob(self) -> Tensor:
        """Log p(c), (classes,) float64; -inf for a class that no row had, where one had any."""
        weight = self.class_weight
        total = weight.sum()
        return torch.where(total > 0, weight / total, 1 / self.classes).log()

    def _class_terms(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``log p(c) + log p(x | c)``, (N, classes)."""
        n, k = x.shape[0], self.classes
        every = x[:, None].expand(n, k, *self.shape).reshape(n * k, *self.shape)
        if context is not None:
            context = context[:, None].expand(n, k, -1).reshape(n * k, -1)
        labels = torch.arange(k, device=x.device).repeat(n)
        terms = self._density(every, context, labels).view(n, k)
        return terms + self._class_log_prob().to(terms.dtype)

    def _labels_of_draws(self, y: Any, n: int, seed: int) -> Tensor | None:
        """Places of the labels of n draws; drawn by their frequency where y is None."""
        labels = label_numbers(self, y, n)
        if not self.classes or labels is not None:
            return labels
        u = ops.philox_uniform(seed, CLASS, n, 1, torch.float64, device=self.device)
        edges = self._class_log_prob().exp().cumsum(0)
        return torch.searchsorted(edges[:-1].contiguous(), u[:, 0] * edges[-1], right=True)

    def _condition(self, context: Tensor | None, labels: Tensor | None) -> Tensor | None:
        """What the conditioners are told: the standardised context and the class."""
        parts = []
        if context is not None:
            parts.append(self.standard.condition(context))
        if labels is not None:
            parts.append(labels[:, None] == torch.arange(self.classes, device=labels.device))
        return torch.cat([p.to(self.dtype) for p in parts], 1) if parts else None


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode when the last thread has left."""
    own = vars(module)
    with _MODES:
        inside, training = own.get("_evaluating", (0, []))
        if inside == 0:
            training = [m for m in module.modules() if m.training]
            for m in training:
                m.training = False
        own["_evaluating"] = inside + 1, training
    try:
        yield
    finally:
        with _MODES:
            inside, training = own.pop("_evaluating")
            if inside > 1:
                own["_evaluating"] = inside - 1, training
            else:
                for m in training:
                    m.training = True


def seed_of(random_state: Any) -> int:
    """A seed from a seed, a generator of NumPy or torch, or torch's own.

    Raises:
        TypeError: something else.
    """
    if random_state is None or isinstance(random_state, torch.Generator):
        device = "cpu" if random_state is None else random_state.device
        top = (1 << 63) - 1
        return int(torch.randint(top, (), generator=random_state, device=device))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(1 << 31))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(1 << 63))
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        return int(random_state)
    raise TypeError(
        "random_state: expected None, an integer or a generator of NumPy or torch, got "
        f"{type(random_state).__name__}"
    )


def _plain(value: Any) -> Any:
    """As in a file: JSON knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def check_sizes(
    model: str,
    shape: Sequence[int],
    context: int,
    classes: int,
    dequantize: int | None,
    logit: float | None,
    **more: int,
) -> None:
    """Refuses sizes out of range; ``more`` are at least 1.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    for name, value, least in (
        *(("size of a row", size, 1) for size in shape),
        ("context", context, 0),
        ("classes", classes, 0),
        ("dequantize", 2 if dequantize is None else dequantize, 2),
        *((name, value, 1) for name, value in more.items()),
    ):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(
                f"{model}: {name} must be an integer of at least {least}, got {value!r}"
            )
    if logit is not None and not 0 < logit < 0.5:
        raise ValueError(f"{model}: logit must be between 0 and 0.5, got {logit!r}")


def widths(model: str, hidden: Any) -> list[int]:
    """The widths of hidden layers, as JSON knows them.

    Raises:
        ValueError: they are not integers of at least 1 in a sequence.
    """
    listed = isinstance(hidden, Sequence | np.ndarray) and not isinstance(hidden, str)
    if not listed or any(
        isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in hidden
    ):
        raise ValueError(
            f"{model}: hidden must be a sequence of integers of at least 1, as (64, 64), got "
            f"{hidden!r}"
        )
    return [int(size) for size in hidden]
