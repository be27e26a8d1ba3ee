"""Arguments of the hidden Markov model ops: both layouts become one, and every check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks

__all__ = [
    "arguments",
    "equal_lengths",
    "first_steps",
    "has_values",
    "inside",
    "is_plain",
    "matching",
]

_C = torch._C
_is_compiling = torch.compiler.is_compiling

# starts, lengths and first transitions of B sequences of T frames each, by (B, T, device).
_Where = tuple[Tensor, Tensor, Tensor]
_regular: dict[tuple[int, int, torch.device], _Where] = {}
_MOST_REGULAR, _MOST_SEQUENCES, _FEW = 64, 4096, 64


def is_plain() -> bool:
    """Whether tensors hold values now, and nobody records what is done with them."""
    return not (
        _is_compiling()
        or _C._len_torch_dispatch_stack()
        or _C._are_functorch_transforms_active()
        or _C._get_tracing_state()
    )


def equal_lengths(batch: int, time: int, device: torch.device) -> _Where:
    """B sequences of T frames each; kept from call to call, three small tensors cost 5 us."""
    key = (batch, time, device)
    plain = is_plain()
    if plain and (known := _regular.get(key)) is not None:
        return known
    # An inference tensor could not be saved for a backward pass later.
    with torch.inference_mode(False):
        index = torch.arange(batch, device=device)
        lengths = torch.full((batch,), time, dtype=torch.int64, device=device)
        found = index * time, lengths, index * max(time - 1, 0)
    if plain and batch <= _MOST_SEQUENCES:
        if device.type == "cuda":
            # What a CUDA graph records has no values yet, and its memory is used again.
            if torch.cuda.is_current_stream_capturing():
                return found
            torch.cuda.synchronize(device)  # other streams will read these
        if len(_regular) >= _MOST_REGULAR:
            for _, _, used in _regular:
                if used.type == "cuda":
                    torch.cuda.synchronize(used)  # other streams may still read them
            _regular.clear()
        _regular[key] = found
    return found


def has_values(t: Tensor) -> bool:
    return not (_is_compiling() or t.is_meta or _C._len_torch_dispatch_stack())


def _index(
    op: str, name: str, t: Tensor, frames: Tensor, letters: str, size: int | None, of: str
) -> None:
    """Refuses lengths or offsets that are no int64 tensor of their size beside the frames."""
    if not isinstance(t, Tensor):
        raise TypeError(
            f"evidens.{op}: {name} must be an int64 tensor, got {type(t).__name__}. "
            f"Convert with torch.as_tensor({name})."
        )
    if t.dtype is not torch.int64 or t.device != frames.device:
        raise TypeError(
            f"evidens.{op}: {name} must be int64 on {frames.device}, got {t.dtype} on {t.device}. "
            f"Convert with {name}.to({of}.device, torch.int64)."
        )
    if t.ndim != 1 or t.shape[0] == 0 if size is None else t.shape != (size,):
        want = "at least one entry" if size is None else f"({size},)"
        raise ValueError(
            f"evidens.{op}: {name} must have shape {letters} = {want} for "
            f"{of} {tuple(frames.shape)}, got {tuple(t.shape)}"
        )


def _range(t: Tensor) -> tuple[int, int]:
    """Least and greatest entry; of a few by way of a list, which is 5 us faster."""
    if t.is_cpu and t.shape[0] <= _FEW:
        values = t.tolist()
        return min(values), max(values)
    low, high = t.aminmax()
    return int(low), int(high)


def _padded_where(op: str, frames: Tensor, lengths: Tensor, of: str) -> _Where:
    batch, time, _ = frames.shape
    _index(op, "lengths", lengths, frames, "(B,)", batch, of)
    starts, _, first = equal_lengths(batch, time, frames.device)
    if not has_values(lengths):
        # Values are known when the op runs: it refuses a negative length.
        return starts, torch.where((lengths >= 0) & (lengths <= time), lengths, -1), first
    if batch:
        low, high = _range(lengths)
        if low < 0 or high > time:
            raise ValueError(
                f"evidens.{op}: lengths must lie in 0 .. T = {time}, got values from {low} to "
                f"{high}; lengths count frames, positions of a packed layout are offsets"
            )
    return starts, lengths, first


def _packed_where(op: str, frames: Tensor, offsets: Tensor, varies: bool, of: str) -> _Where:
    n = frames.shape[0]
    _index(op, "offsets", offsets, frames, "(B + 1,)", None, of)
    starts, lengths = offsets[:-1], offsets.diff()
    if not has_values(offsets):
        right = (offsets[0] == 0) & (offsets[-1] == n) & (lengths >= 0).all()
        lengths = torch.where(right, lengths, -1)
    else:
        ends = int(offsets[0]), int(offsets[-1])
        rises = lengths.shape[0] == 0 or _range(lengths)[0] >= 0
        if not rises or ends != (0, n):
            what = f"from {ends[0]} to {ends[1]}" if rises else "that fall"
            raise ValueError(
                f"evidens.{op}: offsets must begin with 0, never fall and end with N = {n}, got "
                f"offsets {what}; torch.cat((zeros, lengths)).cumsum(0) makes them from lengths"
            )
    if not varies and not _is_compiling():  # which wants three tensors
        return starts, lengths, starts  # nobody reads the third
    return starts, lengths, first_steps(lengths)


def first_steps(lengths: Tensor) -> Tensor:
    """The first of the steps (frame, next frame) of each packed sequence among those of all."""
    steps = (lengths - 1).clamp(min=0)
    return steps.cumsum(0) - steps


def matching(
    op: str,
    name: str,
    t: Tensor,
    frames: Tensor,
    shapes: tuple[tuple[str, tuple], ...],
    of: str = "log_obs",
) -> None:
    """Refuses an argument of another shape than each of ``shapes``, or another dtype or device."""
    if t.shape != shapes[0][1] and not any(t.shape == shape for _, shape in shapes[1:]):
        want = " or ".join(f"{letters} = {tuple(shape)}" for letters, shape in shapes)
        raise ValueError(
            f"evidens.{op}: {name} must have shape {want} for {of} {tuple(frames.shape)}, "
            f"got {tuple(t.shape)}"
        )
    checks.alike(op, name, t, frames, of)


_Inner = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def arguments(
    op: str,
    frames: Tensor,
    initial: Tensor,
    transition: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    states: int | None = None,
) -> _Inner:
    """The arguments of the inner ops, after every check but those of `inside`.

    ``frames`` are log_obs; or, where the number of ``states`` is given, values x with emissions of
    their own and one transition matrix.
    """
    of, letter = ("log_obs", "K") if states is None else ("x", "D")
    frames, initial, transition = checks.widen(
        op, (of, frames), ("initial", initial), ("transition", transition)
    )
    checks.floating(op, of, frames)
    ndim = frames.ndim
    if (ndim != 3 and ndim != 2) or frames.shape[-1] == 0:
        raise ValueError(
            f"evidens.{op}: expected {of} padded (B, T, {letter}) or packed (N, {letter}) with at "
            f"least one {'state' if states is None else 'feature'}, got {tuple(frames.shape)}"
        )
    k = frames.shape[-1] if states is None else states
    varying: tuple[str, tuple[int, ...]]
    if ndim == 3:
        if offsets is not None:
            raise ValueError(
                f"evidens.{op}: offsets belong to a packed {of} (N, {letter}), got a padded one "
                f"{tuple(frames.shape)}; pass lengths instead"
            )
        batch, time = frames.shape[:2]
        if lengths is None:
            where = equal_lengths(batch, time, frames.device)
        else:
            where = _padded_where(op, frames, lengths, of)
        varying = "(B, T - 1, K, K)", (batch, max(time - 1, 0), k, k)
    else:
        if lengths is not None:
            raise ValueError(
                f"evidens.{op}: lengths belong to a padded {of} (B, T, {letter}), got a packed one "
                f"{tuple(frames.shape)}; pass offsets instead"
            )
        n = frames.shape[0]
        if offsets is None:
            batch, where = 1, equal_lengths(1, n, frames.device)
            steps = max(n - 1, 0)
        else:
            where = _packed_where(op, frames, offsets, transition.ndim == 3, of)
            batch = offsets.shape[0] - 1
            steps = n
            if transition.ndim == 3:
                # Tracing sees no values: there, `inside` finds what is missing.
                steps = n - int((where[1] > 0).sum()) if has_values(offsets) else len(transition)
        varying = "(N - number of sequences that have frames, K, K)", (steps, k, k)
    dtype, device = frames.dtype, frames.device
    if initial.shape != (k,) or initial.dtype is not dtype or initial.device != device:
        shapes = ("(K,)", (k,)), ("(B, K)", (batch, k))
        matching(op, "initial", initial, frames, shapes, of)
    if transition.shape != (k, k) or transition.dtype is not dtype or transition.device != device:
        wanted = (("(K, K)", (k, k)), varying)[: 2 if states is None else 1]
        matching(op, "transition", transition, frames, wanted, of)
    if ndim == 3:
        frames = frames.reshape(-1, frames.shape[-1])
        if transition.ndim == 4:
            transition = transition.reshape(-1, k, k)
    return frames, initial, transition, *where


# --- before a kernel ------------------------------------------------------------------------------


def _lie_inside(starts: Tensor, lengths: Tensor, first: Tensor, n: int, steps: int | None) -> bool:
    if _is_compiling():  # the reference, traced: torch checks what it indexes
        return True
    if starts.is_cpu and starts.shape[0] <= _FEW:
        return all(
            c >= 0 and s >= 0 and s + c <= n and (steps is None or c < 2 or 0 <= f <= steps - c + 1)
            for s, c, f in zip(starts.tolist(), lengths.tolist(), first.tolist())
        )
    fits = (lengths >= 0) & (starts >= 0) & (starts + lengths <= n)
    if steps is not None:
        fits &= (lengths < 2) | ((first >= 0) & (first + lengths - 1 <= steps))
    return bool(fits.all())


def inside(name: str, function: Any) -> Any:
    """Before any kernel: contiguous arguments, and sequences that lie inside of them."""

    def call(
        frames: Tensor,
        initial: Tensor,
        transition: Tensor,
        starts: Tensor,
        lengths: Tensor,
        first: Tensor,
        *more: Any,
    ) -> Any:
        batch, n = lengths.shape[0], frames.shape[0]
        known = None
        if batch and n % batch == 0:
            known = _regular.get((batch, n // batch, frames.device))
        if known is None or known[0] is not starts or known[1] is not lengths:
            steps = transition.shape[0] if transition.ndim == 3 else None
            if not _lie_inside(starts, lengths, first, n, steps):
                raise ValueError(
                    f"evidens.{name}: lengths must lie in 0 .. T, offsets must begin with 0, "
                    f"never fall and end with N = {n}, and a transition that varies needs one "
                    "matrix for each pair of consecutive frames; some sequence breaks this"
                )
        return function(
            frames.contiguous(),
            initial.contiguous(),
            transition.contiguous(),
            starts.contiguous(),
            lengths.contiguous(),
            first.contiguous(),
            *[m.contiguous() if isinstance(m, Tensor) else m for m in more],
        )

    return call
