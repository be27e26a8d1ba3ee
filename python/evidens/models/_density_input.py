"""What may be passed to a learned density: rows, contexts and labels, as arrays or tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidens.models._arrays import to_tensor
from evidens.models._rows import weights_of
from evidens.ops._checks import readable


@dataclass
class Batch:
    """Rows on the device of the model, with all that belongs to them."""

    x: Tensor  # (N, *shape), floating
    context: Tensor | None  # (N, K), floating
    labels: Tensor | None  # (N,) int64 in -1 .. classes - 1; -1 is unlabelled
    weight: Tensor | None = None  # (N,) float64, mean 1
    unit: float = 1.0  # what a weight of 1 was for the user
    number: Tensor | None = None  # (N,) int64, of each row among those that the user gave

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor | slice) -> Batch:
        """Some of the rows."""
        c, labels, weight, number = (
            None if t is None else t[index]
            for t in (self.context, self.labels, self.weight, self.number)
        )
        return Batch(self.x[index], c, labels, weight, self.unit, number)


def training_rows(
    model: Any, X: Any, y: Any, context: Any, sample_weight: Any, name: str = "X"
) -> Batch:
    """Everything that `fit` gets, checked; rows of weight 0 are left out.

    Raises:
        ValueError: naming the argument, what was expected and what came.
        TypeError: something is not a number.
    """
    x = rows(model, X, name)
    if len(x) == 0:
        raise _error(model, f"{name} must have at least one row, got shape {tuple(x.shape)}")
    c = contexts(model, context, len(x), f"context of {name}" if name != "X" else "context")
    batch = Batch(x.detach(), None if c is None else c.detach(), None)
    batch.number = torch.arange(len(x), device=x.device)
    if sample_weight is not None:
        weight = weights_of(sample_weight, len(x), x.device, torch.float64)
        used = weight.nonzero()[:, 0]
        if len(used) == 0:
            raise _error(model, "sample_weight is zero everywhere: there is no row to fit to")
        batch.unit = float(weight[used].mean())
        batch.weight = weight / batch.unit
        if len(used) < len(x):
            batch, y = batch.take(used), _used_labels(y, used, len(x))
    batch.labels = label_numbers(model, y, len(batch), unlabelled=True)
    check_rows(model, batch.x, name)
    if batch.context is not None:
        check_finite(model, batch.context, "context")
    return batch


def rows(model: Any, X: Any, name: str = "X") -> Tensor:
    """(N, *shape), floating, on the device of the model; values are not looked at."""
    x = _numbers(model, X, name)
    shape = tuple(model.shape)
    if tuple(x.shape[1:]) == shape and x.ndim == len(shape) + 1:
        return x
    if x.ndim == 2 and x.shape[1] == math.prod(shape):
        return x.reshape(-1, *shape)
    want = f"(N, {', '.join(map(str, shape))})"
    if len(shape) > 1:
        want += f" or (N, {math.prod(shape)})"
    hint = ""
    if x.ndim == 1:
        hint = ". Reshape it with X[:, None] if it has one feature or X[None] if it is one row"
    raise _error(model, f"{name} must have shape {want}, got {tuple(x.shape)}{hint}")


def check_rows(model: Any, x: Tensor, name: str = "X") -> None:
    """No NaN, no infinity; integers in range where the model is one of integers.

    Raises:
        ValueError: saying where.
    """
    check_finite(model, x, name)
    levels = model.levels
    if levels is None:
        return
    bad = (x != x.floor()) | (x < 0) | (x >= levels)
    if bad.any():
        place = [int(i) for i in bad.nonzero()[0]]
        raise _error(
            model,
            f"{name} must hold integers from 0 to {levels - 1}, got {x[tuple(place)].item()} at "
            f"{place}",
        )


def contexts(model: Any, context: Any, n: int, name: str = "context") -> Tensor | None:
    """(N, K), floating; one row stands for all."""
    if context is None:
        if model.context:
            raise _error(
                model, f"{name} must have shape (N, {model.context}), got None: pass context="
            )
        return None
    if not model.context:
        raise _error(model, f"{name} must be None, since the model has context=0")
    c = _numbers(model, context, name)
    if c.ndim == 0:
        c = c[None]
    if c.ndim == 1:
        c = c[:, None] if model.context == 1 and len(c) == n else c[None]
    if c.ndim != 2 or c.shape[1] != model.context or (c.shape[0] != n and c.shape[0] != 1):
        raise _error(
            model,
            f"{name} must have shape ({n}, {model.context}) or be one row, got {tuple(c.shape)}",
        )
    return c.expand(n, -1)


def label_numbers(
    model: Any, y: Any, n: int, *, unlabelled: bool = False, name: str = "y"
) -> Tensor | None:
    """(N,) int64, the place of every label in ``classes_``; -1 for no label."""
    if y is None:
        return None
    if not model.classes:
        raise _error(model, f"{name} must be None, since the model has classes=0")
    device = model.device
    values = y if isinstance(y, Tensor) else _label_array(model, y)
    if values.ndim == 0:
        values = values.expand(n) if isinstance(values, Tensor) else np.repeat(values, n)
    if tuple(values.shape) != (n,):
        raise _error(
            model,
            f"{name} must be one label or have shape ({n},), got {tuple(values.shape)}",
        )
    if isinstance(values, Tensor):
        codes = model.class_codes
        if codes is None:
            raise _error(model, f"{name}: labels are strings; pass them as an array")
        values = values.detach().to(device)
        same = values[:, None] == codes
        number = torch.where(same.any(1), same.int().argmax(1), -1)
        allowed = number >= 0
        if unlabelled and values.dtype is not torch.bool:
            allowed = allowed | (values == -1)
        if readable() and not allowed.all():
            _unknown(model, name, values[~allowed][0])
        return number
    known = model.classes_
    if n and (values.dtype.kind == "U") != (known.dtype.kind == "U"):
        _unknown(model, name, values[0])
    if n == 0:
        return torch.zeros(0, dtype=torch.int64, device=device)
    place = np.searchsorted(known, values).clip(max=len(known) - 1)
    found = known[place] == values
    allowed = found | (values == _no_label(values)) if unlabelled else found
    if not np.all(allowed):
        _unknown(model, name, values[~allowed][0])
    return torch.from_numpy(np.where(found, place, -1).astype(np.int64)).to(device)


def class_labels(model: Any, y: Any, n: int, sample_weight: Any = None) -> np.ndarray:
    """The sorted classes that the labels of `fit` show, where a row has a weight; -1 is none."""
    if y is None:
        raise _error(model, f"y must hold the labels of the {n} rows, since classes is not 0")
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else _label_array(model, y)
    if values.shape != (n,):
        raise _error(model, f"y must have shape ({n},), got {values.shape}")
    if sample_weight is not None:
        used = weights_of(sample_weight, n, torch.device("cpu"), torch.float64) > 0
        values = _label_array(model, values[used.numpy()])
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        raise _error(model, "y must hold labels: integers or strings, got fractions or NaN")
    if values.dtype.kind == "f":
        values = values.astype(np.int64)
    seen = np.unique(values)
    seen = seen[seen != _no_label(seen)]
    if values.dtype.kind in "iu":
        if len(seen) and seen[0] >= 0 and seen[-1] < model.classes:
            return np.arange(model.classes)
    if len(seen) != model.classes:
        raise _error(
            model,
            f"y must hold {model.classes} labels, as many as classes (integers from 0 to "
            f"{model.classes - 1} may be absent), got {len(seen)}: {seen[:10].tolist()}",
        )
    return seen


def _label_array(model: Any, y: Any) -> np.ndarray:
    """Labels as an array of numbers or of strings; what pandas keeps as objects is one of these."""
    values = np.asarray(y)
    if values.dtype.kind == "O":
        entries = values.ravel().tolist()
        text = any(isinstance(v, str) for v in entries)
        if all(isinstance(v, str | int | float | np.number) for v in entries):
            values = np.array([str(v) for v in entries] if text else entries).reshape(values.shape)
    if values.dtype.kind not in "iufbU":
        raise _error(model, f"y must hold labels: integers or strings, got {values.dtype}")
    return values


def _no_label(values: np.ndarray) -> Any:
    """What stands for no label: -1, which is text among strings."""
    return "-1" if values.dtype.kind == "U" else -1


def _used_labels(y: Any, used: Tensor, n: int) -> Any:
    """Labels of the rows that have a weight."""
    if y is None or np.ndim(y) != 1 or len(y) != n:
        return y
    return y[used.to(y.device)] if isinstance(y, Tensor) else np.asarray(y)[used.cpu().numpy()]


def _numbers(model: Any, value: Any, name: str) -> Tensor:
    """A floating tensor on the device of the model."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{type(model).__name__}: {name} must be real, got {value.dtype}")
        if value.device != model.device:
            raise _error(
                model, f"{name} is on {value.device} and the model on {model.device}: move one"
            )
        if value.dtype in (torch.float16, torch.bfloat16):
            return value.float()
        return value if value.is_floating_point() else value.to(torch.float64)
    if hasattr(value, "toarray"):
        raise TypeError(f"{type(model).__name__}: {name} is sparse; pass {name}.toarray()")
    array = np.asarray(value)
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{type(model).__name__}: {name} must hold numbers, got objects ({error})"
            ) from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{type(model).__name__}: {name} must hold numbers, got {array.dtype}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    return to_tensor(array).to(model.device)


def check_finite(model: Any, x: Tensor, name: str) -> None:
    """No NaN and no infinity.

    Raises:
        ValueError: saying where.
    """
    bad = ~x.isfinite()
    if bad.any():
        places = bad.nonzero()
        place = [int(i) for i in places[0]]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise _error(
            model,
            f"{name} must be finite, got {x[tuple(place)].item()} at {place}{more}. It has no "
            "missing values: drop or impute these rows, or give them sample_weight 0 in fit",
        )


def _unknown(model: Any, name: str, value: Any) -> None:
    value = value.item() if hasattr(value, "item") else value
    raise _error(model, f"{name} must hold labels of {model.classes_.tolist()}, got {value!r}")


def _error(model: Any, text: str) -> ValueError:
    return ValueError(f"{type(model).__name__}: {text}")
