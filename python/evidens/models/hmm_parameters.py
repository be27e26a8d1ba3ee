"""Parameters of a hidden Markov model, and the small arithmetic of its M step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from evidens.models._arrays import to_tensor

# A state of less weight was not visited; it is rounding.
UNVISITED = 10 * float(np.finfo(float).eps)

# So few numbers are added up in Python sooner than by a call of torch.
FEW = 64

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class HMMParameters:
    """One model: tensors of one dtype on one device.

    Attributes:
        start: (K,), summing to 1.
        transition: (K, K), rows summing to 1; row i leads from state i.
        emission: what the family makes of its own parameters; has ``to``.
    """

    start: Tensor
    transition: Tensor
    emission: Any

    def to(self, *args: Any) -> HMMParameters:
        """The same model in another dtype or on another device."""
        same = {self.start.device, self.start.dtype, self.transition.dtype, dtype_of(self.emission)}
        if same.issuperset(args) and len(same) == 2:
            return self
        return HMMParameters(
            self.start.to(*args), self.transition.to(*args), self.emission.to(*args)
        )

    def copied(self) -> HMMParameters:
        """The same model in contiguous memory of its own."""
        return HMMParameters(_copy(self.start), _copy(self.transition), _clone(self.emission))


def _copy(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def _clone(emission: Any) -> Any:
    """A copy of a tensor, or of a dataclass of tensors."""
    if isinstance(emission, Tensor):
        return _copy(emission)
    tensors = {n: _copy(v) for n, v in vars(emission).items() if isinstance(v, Tensor)}
    return replace(emission, **tensors)


def tensor(value: Any) -> Tensor:
    """A parameter as a floating tensor, without a copy where it can be."""
    if isinstance(value, Tensor):
        value = value.resolve_neg()  # kernels read memory
    else:
        value = to_tensor(np.asarray(value))
    return value if value.dtype in (torch.float32, torch.float64) else value.double()


def added(t: Tensor) -> float:
    """The sum of a vector, in float64."""
    if t.is_cpu and t.shape[0] <= FEW:
        return sum(t.tolist())
    return float(t.sum(dtype=torch.float64))


def host(value: Any) -> np.ndarray:
    """A parameter as an array."""
    if isinstance(value, Tensor):
        return value.detach().cpu().resolve_neg().numpy()
    return np.asarray(value)


def smallest(dtype: torch.dtype) -> float:
    """The least positive number of a type, a subnormal one."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps


def dtype_of(emission: Any) -> torch.dtype:
    """Of a tensor, or of the means of Gaussians."""
    return getattr(emission, "means", emission).dtype


def restores(method: F) -> F:
    """Make a method that fails leave the model as it was."""

    @wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast(F, wrapped)


def finite(value: Any, name: str) -> np.ndarray:
    """A prior or its weight as a float64 array.

    Raises:
        ValueError: NaN or infinity, which would be all that the parameters keep of the data.
    """
    array = np.asarray(host(value), dtype=np.float64)
    if not np.isfinite(array).all():
        wrong = value if array.ndim == 0 else array[~np.isfinite(array)][0]
        raise ValueError(f"{name}: expected finite numbers, got {wrong}")
    return array


def greatest(value: Any, name: str) -> float:
    """The greatest of some finite numbers, often one.

    Raises:
        ValueError: NaN or infinity.
    """
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return float(np.max(finite(value, name)))


def spread(value: Any, shape: tuple[int, ...], name: str) -> Any:
    """A prior for an array of this shape: a number, or an array that broadcasts to it.

    A vector with one value for each state goes along the first axis if it does not fit the last.

    Raises:
        ValueError: another shape, NaN or infinity.
    """
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    array = finite(value, name)
    if array.ndim == 0:
        return float(array)
    try:
        np.broadcast_to(array, shape)
    except ValueError:
        if array.shape != shape[:1]:
            raise ValueError(
                f"{name}: expected a number or an array that broadcasts to {shape}, got shape "
                f"{array.shape}"
            ) from None
        return array.reshape(-1, *[1] * (len(shape) - 1))
    return array


def shares(counts: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that sum to 1, and which had no sum (..., ) and are the old ones."""
    total = counts.sum(-1, keepdims=True)
    empty = total <= 0
    if empty.any():
        return np.where(empty, old, counts / np.where(empty, 1, total)), empty[..., 0]
    return counts / total, empty[..., 0]
