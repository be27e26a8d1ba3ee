"""The rows that a machine reads: arrays, data frames, tensors and sparse matrices, by batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils.validation import validate_data
from torch import Tensor

from evidens.models._arrays import PIECE, check_rows, to_tensor, working_dtype
from evidens.models._rows import weights_of


class RBMRows:
    """Rows (N, D) in one dtype, dense a batch at a time.

    Args:
        model: the estimator, for names and numbers of features.
        X: array-like, data frame, tensor or sparse matrix.
        reset: X is what the model is fitted to.
        missing: NaN is read, as a missing value.

    Raises:
        ValueError: wrong shapes, infinities, NaN that is not asked for.
    """

    def __init__(self, model: Any, X: Any, *, reset: bool = False, missing: bool = False) -> None:
        self.is_tensor = isinstance(X, Tensor)
        self.sparse: Any = None
        self.dense: Tensor | None = None
        if isinstance(X, Tensor):
            x = X.detach()
            check_rows(model, x, reset=reset)
            x = x if x.layout == torch.strided else self._dense(x)
            self.dense, self.device = x, x.device
            self.dtype = working_dtype(x.dtype) if x.is_floating_point() else torch.float64
            self._finite(x, missing)
        else:
            x = validate_data(
                model,
                X,
                accept_sparse="csr",
                reset=reset,
                dtype=[np.float64, np.float32],
                ensure_all_finite="allow-nan" if missing else True,
            )
            self.device = torch.device("cpu")
            self.dtype = torch.float32 if x.dtype == np.float32 else torch.float64
            if issparse(x):
                self.sparse = x
            else:
                self.dense = to_tensor(x)
        self.shape = tuple(x.shape)
        self.one = 1.0  # what a weight of 1 has become, see `weights`

    @staticmethod
    def _dense(x: Tensor) -> Tensor:
        """A sparse tensor with what it does not store."""
        return x.to_dense()

    @staticmethod
    def _finite(x: Tensor, missing: bool) -> None:
        if not x.is_floating_point() or math.isfinite(x.sum()):
            return
        for name, there in (("infinity", x.isinf()), ("NaN", x.isnan())):
            if there.any() and not (missing and name == "NaN"):
                row, column = there.nonzero()[0].tolist()
                raise ValueError(f"Input X contains {name}, at row {row}, column {column}.")

    def __len__(self) -> int:
        return int(self.shape[0])

    def take(self, at: slice | Tensor) -> Tensor:
        """Some rows, (n, D) contiguous."""
        if self.sparse is not None:
            which = at if isinstance(at, slice) else at.numpy()
            return torch.from_numpy(self.sparse[which].toarray()).to(self.dtype)
        assert self.dense is not None
        where = at if isinstance(at, slice) else at.to(self.device)
        return self.dense[where].to(self.dtype).contiguous()

    def pieces(self, columns: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """All rows, as many at a time as their temporaries of so many columns allow."""
        step = max(1, PIECE // max(1, columns, self.shape[1]))
        for start in range(0, len(self), step):
            at = slice(start, min(start + step, len(self)))
            yield at, self.take(at)

    def values(self) -> Iterator[Tensor]:
        """Everything that stands in X, in pieces; of a sparse matrix what is not zero."""
        if self.sparse is not None:
            yield torch.from_numpy(self.sparse.data)
            return
        for _, x in self.pieces():
            yield x

    def column_means(self, weight: Tensor | None) -> Tensor:
        """(D,) float64."""
        if self.sparse is not None:
            weights = np.ones(len(self)) if weight is None else weight.double().numpy()
            return torch.from_numpy(np.asarray(weights @ self.sparse / weights.sum())).double()
        total = torch.zeros(self.shape[1], dtype=torch.float64, device=self.device)
        for at, x in self.pieces():
            x = x if weight is None else x * weight[at, None]
            total += x.sum(0, dtype=torch.float64)
        return total / (len(self) if weight is None else weight.sum(dtype=torch.float64))


def batches(count: int, size: int, order: Tensor | None) -> Iterator[slice | Tensor]:
    """Rows by batches, as they stand or in an order."""
    for start in range(0, count, size):
        at = slice(start, min(start + size, count))
        yield at if order is None else order[at]


def weights(sample_weight: Any, rows: RBMRows) -> Tensor | None:
    """(N,) weights times ``rows.one``, a power of two that puts the largest between 1/2 and 1.

    Raises:
        ValueError: another shape, negative, not finite, or all zero.
    """
    if sample_weight is None:
        return None
    weight = weights_of(sample_weight, len(rows), rows.device, torch.float64)
    if not weight.any():
        raise ValueError("sample_weight: all weights are zero, so there is no row to fit to")
    # Of 1e-40 or 1e38 float32 resolves no sums.
    rows.one = 2.0 ** min(1000, -math.frexp(float(weight.max()))[1])
    return (weight * rows.one).to(rows.dtype)


def class_numbers(labels: Any, count: int, classes: np.ndarray | None) -> tuple[Any, Any]:
    """Sorted classes, and (N,) places among them, -1 where the label is -1.

    Args:
        labels: (N,) labels; -1 is unknown.
        count: N.
        classes: the known ones; None takes those of ``labels``.

    Raises:
        ValueError: another shape, a label that is not among the classes, no label at all.
    """
    given = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if given.shape != (count,):
        raise ValueError(
            f"labels: expected one label for each of the {count} rows, shape ({count},), got "
            f"shape {given.shape}"
        )
    if given.dtype.kind not in "iufb":
        raise ValueError(
            f"labels: expected integers with -1 for unknown, got dtype {given.dtype}; "
            "sklearn.preprocessing.LabelEncoder makes them of names"
        )
    bad = (given != np.round(given)) | (np.abs(given.astype(np.float64)) >= 2.0**63)
    if bad.any():
        row = int(bad.nonzero()[0][0])
        raise ValueError(
            f"labels: expected integers of 64 bits with -1 for unknown, got {given[row]} at row "
            f"{row}; fractions, NaN and infinities name no class"
        )
    given = given.astype(np.int64)
    known = given != -1
    if classes is None:
        classes = np.unique(given[known])
        if len(classes) < 2:
            raise ValueError(
                f"labels: expected at least two classes, got {len(classes)}: {classes.tolist()}; "
                "leave labels out to fit without classes"
            )
    place = np.searchsorted(classes, given).clip(max=len(classes) - 1)
    bad = known & (classes[place] != given)
    if bad.any():
        row = int(bad.nonzero()[0][0])
        raise ValueError(
            f"labels: expected one of {classes.tolist()} or -1 for unknown, got {given[row]} at "
            f"row {row}"
        )
    return classes, torch.from_numpy(np.where(known, place, -1))


def warn_of_range(rows: RBMRows, low: float, name: str) -> None:
    """Says once where values are no means of two-valued units; scikit-learn takes them as well."""
    for x in rows.values():
        if x.numel() and (x.min() < low or x.max() > 1):
            bad = x[(x < low) | (x > 1)][0].item()
            warnings.warn(
                f"{name}: X holds {bad:g}; expected states or means of units, from {low:g} to 1. "
                "What is learned from other numbers is no density of them: scale them "
                "(sklearn.preprocessing.MinMaxScaler) or use GaussianRBM.",
                UserWarning,
                stacklevel=4,  # fit or partial_fit
            )
            return
