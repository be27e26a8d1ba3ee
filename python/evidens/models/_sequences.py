"""The sequences of one fit or query: frames in one array, their lengths, or chunks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from evidens.models._arrays import check_rows, has_missing, to_tensor, working_dtype
from evidens.models._ranks import Ranks
from evidens.models._rows import Rows, _unwrap, chunks_of, weights_of
from evidens.ops._hmm_arguments import equal_lengths

# Log-densities of a block, 64 MB of float64; and on a device.
BLOCK = 1 << 23
DEVICE_BLOCK = 1 << 27
# The kernel takes sequences side by side in SIMD lanes; so many fill them at every width.
LANES = 48
# Lengths in a list, of which it is faster to see in Python that they are equal.
FEW = 4096

_PLAIN = (np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.int64))


@dataclass
class Block:
    """Some whole sequences, one behind the other.

    Attributes:
        x: frames (n, D).
        lengths: (B,) int64 on the host.
        rows: their place among all frames.
        weight: (B,) of the sequences; None for 1.
        labels: (n,) int64, -1 where the state is not known; None for -1.
        total: sum of the weights of the sequences.
        frames: sum of the weights of the frames.
        each: how many frames every sequence has; None where they differ.
    """

    x: Tensor
    lengths: Tensor
    rows: slice
    weight: Tensor | None = None
    labels: Tensor | None = None
    total: float = 0.0
    frames: float = 0.0
    each: int | None = None

    def run(self, op: Callable[..., Any], log_obs: Tensor, p: Any, **more: Any) -> Any:
        """An op on log-densities (n, K): padded where that is possible, which is faster."""
        if self.each is None:
            return op(log_obs, p.start, p.transition, offsets=self.offsets, **more)
        padded = log_obs.reshape(-1, self.each, log_obs.shape[1])
        return op(padded, p.start, p.transition, **more)

    @cached_property
    def offsets(self) -> Tensor:
        """(B + 1,) int64, beside x: where each sequence begins, and n."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0)).to(self.x.device)

    @property
    def where(self) -> tuple[Tensor, Tensor, Tensor]:
        """Beside x, (B,) each: where each sequence begins, its length, and again where."""
        if self.each is not None:
            x = self.x
            return equal_lengths(x.shape[0] // self.each, self.each, x.device)
        starts = self.offsets[:-1].contiguous()
        return starts, self.lengths.to(self.x.device), starts

    @property
    def frame_weight(self) -> Tensor | None:
        """(n,): the weight of its sequence for every frame."""
        if self.weight is None:
            return None
        return self.weight.repeat_interleave(self.lengths.to(self.weight.device))


def frames_of(model: Any, X: Any, *, reset: bool = False) -> Tensor:
    """Frames as a floating tensor (N, D); NaN passes, infinities do not.

    Args:
        model: the estimator; gets ``n_features_in_`` (and names) with ``reset``.
        X: array-like, data frame or tensor; what is not float32 becomes float64.
        reset: X is what the model is fitted to.

    Raises:
        ValueError: not two-dimensional, no frames, no features, another number of features than in
            `fit`, or values that the emissions of the model do not have.
    """
    X = model._columns(X)
    if type(X) is np.ndarray and X.dtype in _PLAIN and X.ndim == 2 and X.size:
        # What validate_data would let pass, at a tenth of its time.
        known, d = vars(model), X.shape[1]
        if "feature_names_in_" not in known:
            if reset:
                model.n_features_in_ = d
            if known.get("n_features_in_", d) == d:
                whole = X.dtype.kind == "i"
                x = to_tensor(X.astype(np.float64) if whole else X)
                model._check_frames(x, whole, reset)
                return x
    if not isinstance(X, Tensor):
        X = validate_data(model, X, reset=reset, dtype="numeric", ensure_all_finite=False)
        whole = X.dtype.kind in "iub"
        if X.dtype.kind != "f" or X.dtype.itemsize not in (4, 8):
            X = X.astype(np.float64)
        x = to_tensor(X)
    else:
        check_rows(model, X, reset=reset, one="frame")
        whole = not X.is_floating_point()
        # Kernels read memory: there a lazily negated tensor has other numbers.
        x = (X.double() if whole else X.to(working_dtype(X.dtype))).resolve_neg()
    model._check_frames(x, whole, reset)
    return x


def lengths_of(lengths: Any, count: int) -> tuple[Tensor, int | None]:
    """Lengths (B,) int64 on the host, and the length where all are equal (and not 0), else None.

    ``lengths`` None is one sequence of all ``count`` frames.

    Raises:
        ValueError: not integers, negative, or another sum than ``count``.
    """
    if lengths is None:
        return torch.tensor([count], device="cpu"), count or None
    batch = len(lengths) if type(lengths) is list else 0
    if 0 < batch <= FEW and set(map(type, lengths)) == {int}:
        each = lengths[0]
        if each > 0 and each * batch == count and lengths.count(each) == batch:
            return _equal(batch, each), each
    given = _lengths(lengths)
    if int(given.sum()) != count:
        raise ValueError(f"lengths array {lengths} doesn't sum to {count} samples")
    return given, _each(given, count)


@lru_cache(64)
def _equal(batch: int, each: int) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be saved for a backward pass
        return torch.full((batch,), each, device="cpu")


def _each(lengths: Tensor, count: int) -> int | None:
    """The length of every sequence, of ``count`` frames together; None where they differ."""
    least = int(lengths.amin()) if lengths.shape[0] else 0
    # They are equal where their sum is what that of the least would be.
    return least if least > 0 and least * lengths.shape[0] == count else None


def _lengths(lengths: Any) -> Tensor:
    array = lengths.detach().cpu().numpy() if isinstance(lengths, Tensor) else np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"lengths: expected a list of integers, one for each sequence, got {lengths!r}"
        )
    if array.size and (least := int(array.min())) < 0:
        raise ValueError(f"lengths: expected non-negative integers, got {least}")
    return torch.from_numpy(array.astype(np.int64))


def split(lengths: Tensor, limit: int) -> list[tuple[slice, slice]]:
    """Cut sequences into runs of about ``limit`` frames: ``(frames, sequences)`` of each run.

    Runs of many sequences are multiples of `LANES`, and a small rest goes along with the last.
    """
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    edges, result, first = ends.numpy(), [], 0
    while first < len(lengths):
        last = int(np.searchsorted(edges, edges[first] + limit, side="right")) - 1
        last = max(last, first + 1)
        if last < len(lengths) and last - first >= LANES:
            last -= (last - first) % LANES
            if len(lengths) - last < LANES // 2 or int(edges[-1] - edges[last]) <= limit // 8:
                last = len(lengths)
        result.append((slice(int(edges[first]), int(edges[last])), slice(first, last)))
        first = last
    return result


def blocks_of(
    x: Tensor, lengths: Tensor, columns: int, *, each: int | None = None, whole: bool = False
) -> Iterator[tuple[Block, slice]]:
    """Frames in blocks of bounded size, each with the slice of its sequences.

    Args:
        x: frames (n, D).
        lengths: (B,) int64 on the host.
        columns: numbers that the work holds for each frame.
        each: the length of all sequences, where it is known that they are equal.
        whole: one block, whatever its size.
    """
    count, limit = x.shape[0], (DEVICE_BLOCK if x.is_cuda else BLOCK) // max(columns, x.shape[1])
    if count <= limit or whole:
        each = each or _each(lengths, count)
        yield Block(x, lengths, slice(0, count), each=each), slice(0, lengths.shape[0])
        return
    for rows, sequences in split(lengths, max(1, limit)):
        own = lengths[sequences]
        each = _each(own, rows.stop - rows.start)
        yield Block(x[rows], own, rows, each=each), sequences


def holds_integers(X: Any) -> bool:
    """Whether an array or a tensor holds integers or booleans."""
    dtype = getattr(X, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return not (dtype.is_floating_point or dtype.is_complex)
    return getattr(dtype, "kind", "f") in "iub"


def _pairs(X: Any) -> Callable[[], Iterable[Any]] | None:
    """What gives the chunks of X afresh, or None where X is one array-like."""
    if isinstance(X, list | tuple) and len(X) and isinstance(X[0], tuple) and len(X[0]) == 2:
        if getattr(X[0][0], "ndim", 0) == 2:
            return lambda: X
    return chunks_of(X)


def _parts(item: Any) -> tuple[Any, Any]:
    """A chunk: frames and their lengths."""
    if isinstance(item, tuple) and len(item) == 2 and getattr(item[0], "ndim", 0) == 2:
        return item
    return _unwrap(item), None


class Sequences(Rows):
    """The sequences of this process, ready for any number of passes.

    Args:
        model: the estimator.
        X: array-like (N, D), tensor, or chunks of whole sequences: arrays, each one sequence if
            ``lengths`` is None, or pairs of an array and the lengths in it.
        lengths: (B,) integers; None for one sequence in each array.
        sample_weight: (B,), one for each sequence; None for 1.
        labels: (N,) in -1..K-1, one for each frame; None for -1.
        n_components: K.
        columns: numbers that the E step holds for each frame; None for K.
        ranks: the process group.
        reset: X defines the number of features.

    Raises:
        ValueError: whatever is wrong with X, the lengths, the weights or the labels.
    """

    def __init__(
        self,
        model: Any,
        X: Any,
        lengths: Any,
        sample_weight: Any,
        labels: Any,
        *,
        n_components: int,
        ranks: Ranks,
        columns: int | None = None,
        reset: bool = True,
    ) -> None:
        self._given, self.columns = lengths, columns or n_components
        self._plan: list[tuple[Block, slice]] | None = None
        super().__init__(
            model,
            X,
            sample_weight,
            labels,
            n_components=n_components,
            ranks=ranks,
            reset=reset,
        )
        weight = self.sequence_weight
        own = len(self.lengths) if weight is None else weight.sum(dtype=torch.float64)
        self.total_sequences = ranks.total(float(own))

    def _read(self, X: Any, reset: bool) -> None:
        chunks = _pairs(X)
        if chunks is None:
            x = frames_of(self.model, X, reset=reset).detach()
            lengths = self._given
            if lengths is not None and len(x) != (n := getattr(X, "shape", (len(x),))[0]):
                lengths = np.asarray(lengths) * (
                    len(x) // n
                )  # symbols that came in several columns
            self.lengths, _ = lengths_of(lengths, len(x))
            self.in_memory: Tensor | None = x
            self._counts = [len(x)]
            self.dtype, self.device, self.count = x.dtype, x.device, len(x)
            self.missing, self.integers = has_missing(x), holds_integers(X)
            return
        self.in_memory, self._chunks = None, chunks
        self._counts, self._whole = [], [0]
        given = None if self._given is None else _lengths(self._given)
        found: list[Tensor] = []
        self.count, self.missing, taken = 0, False, 0
        for item in chunks():
            part, own = _parts(item)
            if not self._counts:
                self.is_tensor, self.integers = isinstance(part, Tensor), holds_integers(part)
            x = frames_of(self.model, part, reset=reset and not self._counts).detach()
            if not self._counts:
                self.dtype, self.device = x.dtype, x.device
                self._check_order(x[:16].nan_to_num())
            if given is None:
                here, _ = lengths_of(own, len(x))
            else:
                ends = given[taken:].cumsum(0)
                stop = int((ends <= len(x)).sum())
                here = given[taken : taken + stop]
                taken += stop
                if int(here.sum()) != len(x):
                    raise ValueError(
                        f"lengths: chunk {len(self._counts)} of X ends, after {len(x)} frames, "
                        "inside a sequence; a chunk holds whole sequences"
                    )
            self.missing = has_missing(x) or self.missing
            self._counts.append(len(x))
            found.append(here)
            self.count += len(x)
        if not self._counts:
            raise ValueError("X gives no chunk: expected at least one 2-D array")
        if given is not None and taken < len(given):
            raise ValueError(f"lengths array {self._given} doesn't sum to {self.count} samples")
        self.lengths = torch.cat(found)
        self._chunk_lengths = found

    def _tensors(self) -> Iterator[Tensor]:
        if self.in_memory is not None:
            yield self.in_memory
            return
        number = -1
        for number, item in enumerate(self._chunks()):
            x = frames_of(self.model, _parts(item)[0]).detach().to(self.device)
            if number == 0:
                self._check_order(x[:16].nan_to_num())
            if number >= len(self._counts) or len(x) != self._counts[number]:
                break
            yield x
        else:
            if number + 1 == len(self._counts):
                return
        raise ValueError(
            f"X gave {self.count} rows on the first pass and others on a later one: every pass "
            "must give the same rows in the same order"
        )

    def _weights(self, sample_weight: Any) -> Tensor | None:
        self.sequence_weight: Tensor | None = None
        if sample_weight is None:
            return None
        count = len(self.lengths)
        weight = weights_of(sample_weight, count, self.device, self.dtype, "sequence", "for")
        self.sequence_weight = weight
        return weight.repeat_interleave(self.lengths.to(self.device))

    def sequences(self) -> Iterator[Block]:
        """One pass, in blocks of whole sequences that suit the cache.

        Raises:
            ValueError: other frames than in the first pass.
        """
        if self.in_memory is not None:
            if self._plan is None:
                self._plan = list(blocks_of(self.in_memory, self.lengths, self.columns))
                for block, place in self._plan:
                    self._complete(block, place, 0)
            for block, _ in self._plan:
                yield block
            return
        frames = sequences = 0
        for x, lengths in self._gathered():
            for block, place in blocks_of(x, lengths, self.columns):
                self._complete(
                    block, slice(place.start + sequences, place.stop + sequences), frames
                )
                yield block
            frames += len(x)
            sequences += len(lengths)

    def take_labels(self, index: np.ndarray) -> Tensor | None:
        """Labels, by number among the frames of weight > 0 of all processes, if there are any."""
        if not self.ranks.total(self.labels is not None):
            return None
        labels = self.labels
        if labels is None:
            labels = torch.full((self.count,), -1, device=self.device)
        labels = labels if self.used is None else labels[self.used]
        wanted = torch.from_numpy(np.asarray(index, dtype=np.int64)) - self.offset
        mine = (wanted >= 0) & (wanted < len(labels))
        result = torch.zeros(len(wanted), dtype=torch.int64)
        result[mine] = labels.cpu()[wanted[mine]]
        return self.ranks.sum(result)

    def _complete(self, block: Block, sequences: slice, frames: int) -> None:
        """Add weights and labels."""
        block.rows = slice(block.rows.start + frames, block.rows.stop + frames)
        if block.x.stride(1) != 1 or block.x.dtype != self.dtype:
            block.x = block.x.to(self.dtype).contiguous()
        if self.sequence_weight is not None:
            block.weight = self.sequence_weight[sequences].to(self.dtype)
            block.total = float(block.weight.sum(dtype=torch.float64))
            lengths = block.lengths.to(block.weight.device)
            block.frames = float(block.weight.double() @ lengths.double())
        else:
            block.total, block.frames = float(len(block.lengths)), float(len(block.x))
        if self.labels is not None:
            labels = self.labels[block.rows]
            block.labels = labels if bool((labels >= 0).any()) else None

    def _gathered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks, small ones put together."""
        limit, held = max(1, BLOCK // self.columns), 0
        parts: list[tuple[Tensor, Tensor]] = []
        for x, lengths in zip(self._tensors(), self._chunk_lengths):
            parts.append((x.to(self.dtype), lengths))
            held += len(x)
            if held >= limit:
                yield torch.cat([x for x, _ in parts]), torch.cat([n for _, n in parts])
                parts, held = [], 0
        if parts:
            yield torch.cat([x for x, _ in parts]), torch.cat([n for _, n in parts])
