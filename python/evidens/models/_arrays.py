"""Arrays in, arrays out; tensors in, tensors out: what passes between users and ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from evidens._native import all_finite
from evidens.ops._checks import readable

# Elements in one piece of work whose temporaries are as large as the piece: 8 MB in float64.
PIECE = 1 << 20

F = TypeVar("F", bound=Callable[..., Any])


class _Writable:
    """The same memory, declared writable: torch warns about arrays that are not."""

    def __init__(self, array: np.ndarray) -> None:
        self.owner = array
        self.__array_interface__ = {
            **array.__array_interface__,
            "data": (array.__array_interface__["data"][0], False),
        }


def to_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor, without a copy where torch can address it; never written to."""
    if min(array.strides, default=0) < 0 or not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array)


def keeps_features(method: F) -> F:
    """Make a method that fails before it has set parameters leave the names of the features."""
    names = ("n_features_in_", "feature_names_in_")

    @wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: getattr(self, name) for name in names if hasattr(self, name)}
        means = getattr(self, "means_", None)
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            if getattr(self, "means_", None) is means:
                for name in names:
                    vars(self).pop(name, None)
                vars(self).update(before)
            raise

    return cast(F, wrapped)


def rows_of(model: Any, X: Any, *, reset: bool = False) -> Tensor:
    """Rows as a floating tensor (N, D), without a copy where it can be; NaN and inf pass.

    Args:
        model: the estimator; gets ``n_features_in_`` (and names) with ``reset``, is asked for them
            without.
        X: array-like, data frame or tensor.
        reset: X is what the model is fitted to.

    Raises:
        ValueError: not two-dimensional, no rows, no features, or another number of features.
        TypeError: sparse, or not numbers.
    """
    if not isinstance(X, Tensor):
        X = validate_data(
            model, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=False
        )
        return to_tensor(X)
    check_rows(model, X, reset=reset)
    return X if X.is_floating_point() else X.double()


def check_rows(model: Any, X: Tensor, *, reset: bool, one: str = "row") -> None:
    """What `validate_data` checks of an array, of a tensor (N, D); its values are not looked at.

    Args:
        model: the estimator; gets ``n_features_in_`` with ``reset``.
        X: the rows.
        reset: X is what the model is fitted to.
        one: what a row is called.

    Raises:
        ValueError: not two-dimensional, no rows, no features, complex, or another number of
            features than in `fit`.
    """
    name = type(model).__name__
    if X.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got {X.ndim}D tensor of shape {tuple(X.shape)} instead. Reshape "
            f"it with x[:, None] if it has one feature or x[None] if it is one {one}."
        )
    for count, what in zip(X.shape, ("sample", "feature")):
        if count == 0:
            raise ValueError(
                f"Found tensor with 0 {what}(s) (shape={tuple(X.shape)}) while a minimum of 1 is "
                f"required by {name}."
            )
    if X.is_complex():
        raise ValueError("Complex data not supported")
    if X.is_meta:
        raise ValueError(
            f"X is a tensor on the meta device, which holds no values; {name} needs rows "
            "that lie in memory (x.to_empty allocates, it fills nothing in)"
        )
    if reset:
        model.n_features_in_ = X.shape[1]
        vars(model).pop("feature_names_in_", None)
    elif getattr(model, "n_features_in_", X.shape[1]) != X.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} features, but {name} is expecting {model.n_features_in_} "
            "features as input."
        )


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The widest of the dtypes, and at least float32."""
    result = torch.float32
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result


def pieces(
    x: Tensor, dtype: torch.dtype, columns: int = 0, whole: bool = True
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows in ``dtype``, each row contiguous: all at once if that needs no copy.

    Args:
        x: (N, D).
        dtype: what the op computes in.
        columns: width of the temporaries that a row brings with it, if wider than the row.
        whole: False cuts into pieces even where no copy is needed.
    """
    if whole and x.dtype == dtype and x.stride(1) == 1:
        yield slice(0, len(x)), x
        return
    step = max(1, PIECE // max(columns, x.shape[1]))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, x[rows].to(dtype).contiguous()


def has_missing(x: Tensor) -> bool:
    """Whether a value is NaN; reads x once and holds nothing of its size.

    Raises:
        ValueError: a value is infinite.
    """
    missing = False
    few = x.numel() <= PIECE
    plain = type(x) is Tensor and x.is_cpu and x.dtype is torch.float64 and readable()
    if few and plain and all_finite(x):  # no call of torch: half the time, where there are few
        return False
    for piece in (x,) if few else (part for _, part in pieces(x, x.dtype, whole=False)):
        if math.isfinite(piece.sum()):
            continue
        if piece.isinf().any():
            name = str(x.dtype).removeprefix("torch.")
            raise ValueError(
                f"Input X contains infinity or a value too large for dtype('{name}'). NaN is read "
                "as a missing value; infinity has no meaning here: remove or clip those entries."
            )
        missing = missing or bool(piece.isnan().any())
    return missing


def returned(result: Tensor, X: Any) -> Any:
    """``result`` in the container in which X came."""
    return result if isinstance(X, Tensor) else result.numpy()
