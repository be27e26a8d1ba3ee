"""The rows of one fit: an array, a tensor or chunks of them, with their weights and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from evidens.models._arrays import has_missing, pieces, rows_of, to_tensor, working_dtype
from evidens.models._ranks import Ranks

# Samplers with a new order on each pass.
_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

Block = tuple[Tensor, Tensor | None, Tensor | None]


def chunks_of(X: Any) -> Callable[[], Iterable[Any]] | None:
    """What gives the chunks of X afresh, or None where X is one array-like.

    Raises:
        TypeError: X can be read once only.
        ValueError: X is shuffled anew on each pass.
    """
    for loader in (X, getattr(X, "batch_sampler", None)):
        if isinstance(getattr(loader, "sampler", None), _RANDOM):
            raise ValueError(
                f"X is a {type(X).__name__} that gives its rows in another order on each pass, and "
                "fit reads them several times: pass shuffle=False (or a sampler with a fixed order)"
            )
    if callable(X):
        return lambda: map(_unwrap, X())
    if hasattr(X, "shape") or hasattr(X, "__array__") or hasattr(X, "__dataframe__"):
        return None
    if isinstance(X, list | tuple):
        is_array = len(X) == 0 or getattr(X[0], "ndim", 0) != 2
        return None if is_array else lambda: X
    if not hasattr(X, "__iter__") or isinstance(X, str | bytes | dict):
        return None
    if iter(X) is X:
        raise TypeError(
            f"X is a {type(X).__name__}, which can be read only once, and fit reads the rows "
            "several times. Pass a list of 2-D arrays, an object whose iter() starts again, or a "
            "function that returns a new iterator; or call partial_fit with each chunk."
        )
    return lambda: map(_unwrap, X)


class Rows:
    """The rows of this process, ready for any number of passes.

    Args:
        model: the estimator, for names and numbers of features.
        X: array-like (N, D), tensor, or chunks of them (see `chunks_of`).
        sample_weight: (N,), None for 1.
        labels: (N,) in -1..K-1, None for -1.
        n_components: K.
        ranks: the process group.
        reset: X defines the number of features.

    Raises:
        ValueError: whatever is wrong with X, the weights or the labels.
    """

    def __init__(
        self,
        model: Any,
        X: Any,
        sample_weight: Any,
        labels: Any,
        *,
        n_components: int,
        ranks: Ranks,
        reset: bool = True,
    ) -> None:
        self.model, self.ranks = model, ranks
        self._top: Tensor | None = None  # the first rows of the first chunk
        self.is_tensor = isinstance(X, Tensor)
        error: Exception | None = None
        try:
            self._read(X, reset)
            self.sample_weight = self._weights(sample_weight)
            self.labels = self._labels(labels, n_components)
        except Exception as e:
            error = e
        ranks.agree(error)
        self._look()

    def _read(self, X: Any, reset: bool) -> None:
        chunks = chunks_of(X)
        if chunks is None:
            x = rows_of(self.model, X, reset=reset).detach()
            self.in_memory: Tensor | None = x
            self._chunks: Callable[[], Iterable[Any]] = lambda: (x,)
            first: Any = x
        else:
            self.in_memory, self._chunks = None, chunks
            first = next(iter(chunks()), None)
            if first is None:
                raise ValueError("X gives no chunk: expected at least one 2-D array")
            self.is_tensor = isinstance(first, Tensor)
            first = rows_of(self.model, first, reset=reset)
        self.dtype, self.device = working_dtype(first.dtype), first.device
        self.count = 0
        self.missing = False
        for x in self._tensors():
            if has_missing(x):
                self.missing = True
            self.count += len(x)

    def _tensors(self) -> Iterator[Tensor]:
        if self.in_memory is not None:
            yield self.in_memory
            return
        for i, chunk in enumerate(self._chunks()):
            x = rows_of(self.model, chunk).detach().to(self.device)
            if i == 0:
                self._check_order(x[:16].nan_to_num())
            yield x

    def _check_order(self, top: Tensor) -> None:
        """The first rows are those of the first pass."""
        if self._top is None:
            self._top = top.clone()
        elif not torch.equal(self._top, top):
            raise ValueError(
                "X gives other rows first than on the first pass: the chunks must come in the same "
                "order each time, with the same rows"
            )

    def _weights(self, sample_weight: Any) -> Tensor | None:
        if sample_weight is None:
            return None
        return weights_of(sample_weight, self.count, self.device, self.dtype)

    def _labels(self, labels: Any, k: int) -> Tensor | None:
        if labels is None:
            return None
        given = _vector(labels, "labels", self.count)
        result = given.to(torch.int64)
        bad = (result < -1) | (result >= k) | (result != given)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"labels: expected integers from -1 (unknown) to n_components - 1 = {k - 1}, got "
                f"{given[row].item()} at row {row}"
            )
        return result.to(self.device)

    def _look(self) -> None:
        """What all processes together have."""
        ranks, weight = self.ranks, self.sample_weight
        self.used = None if weight is None else weight.nonzero()[:, 0]
        used = self.count if self.used is None else len(self.used)
        self.offset, self.total_used = ranks.before(used)
        _, self.total_count = ranks.before(self.count)
        # Rows and their weight: the mean weight of a row is the unit of the M step.
        total = self.count if weight is None else weight.sum(dtype=torch.float64)
        self.total_weight = ranks.total(float(total))
        if self.total_weight == 0:
            raise ValueError(
                "sample_weight: all weights are zero, so there is no row to fit to"
                if self.count
                else "X has no rows"
            )
        self.unit = self.total_weight / self.total_used
        self.missing = ranks.total(self.missing) > 0

    @cached_property
    def column_means(self) -> Tensor | None:
        """(D,) float64, of the observed entries; None where nothing is missing.

        Raises:
            ValueError: a feature is missing everywhere.
        """
        if not self.missing:
            return None
        sums = torch.zeros(2, self.n_features, dtype=torch.float64, device=self.device)
        for x, weight, _ in self.blocks(whole=False):
            w = torch.ones((), device=x.device) if weight is None else weight[:, None]
            seen = ~x.isnan()
            sums[0] += torch.where(seen, x * w, 0).sum(0, dtype=torch.float64)
            sums[1] += (seen * w).sum(0, dtype=torch.float64)
        value, seen_weight = self.ranks.sum(sums)
        if (seen_weight == 0).any():
            j = int((seen_weight == 0).nonzero()[0])
            raise ValueError(
                f"X: feature {j} has no observed value in any row (all NaN), so nothing can be "
                "learned about it: drop that column"
            )
        return value / seen_weight

    @property
    def n_features(self) -> int:
        return int(self.model.n_features_in_)

    def blocks(self, columns: int = 0, whole: bool = True) -> Iterator[Block]:
        """One pass: ``(x, sample_weight, labels)``, contiguous and in one dtype.

        Args:
            columns: width of the temporaries that a row brings with it.
            whole: False cuts an array into pieces even where it could be used as it stands.

        Raises:
            ValueError: another number of rows than in the first pass.
        """
        start = 0
        for chunk in self._tensors():
            for rows, x in pieces(chunk, self.dtype, columns, whole):
                place = slice(start + rows.start, start + rows.stop)
                yield (
                    x,
                    None if self.sample_weight is None else self.sample_weight[place],
                    None if self.labels is None else self.labels[place],
                )
            start += len(chunk)
        if start != self.count:
            raise ValueError(
                f"X gave {self.count} rows on the first pass and {start} on a later one: every "
                "pass must give the same rows in the same order"
            )

    def filled(self, x: Tensor) -> Tensor:
        """Rows for the start: column means where a value is missing."""
        if self.column_means is None:
            return x
        return torch.where(x.isnan(), self.column_means.to(x.dtype), x)

    def take(self, index: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Rows and weights, by number among those of weight > 0 of all processes; NaN is filled."""
        wanted = torch.from_numpy(np.asarray(index, dtype=np.int64)) - self.offset
        used = self.count if self.used is None else len(self.used)
        mine = (wanted >= 0) & (wanted < used)
        place = wanted.where(mine, torch.tensor(0)).to(self.device)
        mine = mine.to(self.device)
        if self.used is not None and used:
            place = self.used[place]
        x = torch.zeros(len(place), self.n_features, dtype=self.dtype, device=self.device)
        start = 0
        for chunk in self._tensors():
            here = mine & (place >= start) & (place < start + len(chunk))
            x[here] = self.filled(chunk[place[here] - start].to(self.dtype))
            start += len(chunk)
        x = self.ranks.sum(x)
        if self.sample_weight is None:
            return x, None
        weight = self.sample_weight[place] if self.count else x.new_zeros(len(place))
        return x, self.ranks.sum(torch.where(mine, weight, 0))


def weights_of(
    sample_weight: Any,
    count: int,
    device: torch.device,
    dtype: torch.dtype,
    one: str = "row",
    at: str = "at",
) -> Tensor:
    """(N,) weights, non-negative and finite in ``dtype``; ``one`` is what has a weight.

    Raises:
        ValueError: another shape, a negative weight, NaN, infinity, or too large for ``dtype``.
        TypeError: not numbers.
    """
    weight = _vector(sample_weight, "sample_weight", count, f"{one}s").double().resolve_neg()
    bad = ~(weight.isfinite() & (weight >= 0))
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"sample_weight: expected non-negative finite weights, got {weight[i].item()} {at} "
            f"{one} {i}. Negative values and NaN have no meaning; a weight of 0 leaves a {one} out."
        )
    weight = weight.to(device, dtype)
    if not weight.isfinite().all():
        raise ValueError(f"sample_weight: a weight does not fit into {dtype}; scale them")
    return weight


def _unwrap(chunk: Any) -> Any:
    """A torch DataLoader gives each batch of a TensorDataset as a list of one tensor."""
    if isinstance(chunk, list | tuple) and len(chunk) == 1 and isinstance(chunk[0], Tensor):
        return chunk[0]
    return chunk


def _vector(value: Any, name: str, count: int, of: str = "rows") -> Tensor:
    """(N,) numbers."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
        value = to_tensor(array if array.dtype.kind != "u" else array.astype(np.int64))
    value = value.detach()
    if value.shape != (count,):
        raise ValueError(
            f"{name}: expected one value for each of the {count} {of}, shape ({count},), got shape "
            f"{tuple(value.shape)}"
        )
    return value
