"""Arguments of the hidden Markov model ops: both layouts become one, and every check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks

__all__ = ["arguments", "first_steps", "has_values", "inside", "is_plain", "matching"]

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


def _equal_lengths(batch: int, time: int, device: torch.device) -> _Where:
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


def _index(op: str, name: str, t: Tensor, log_obs: Tensor, letters: str, size: int | None) -> None:
    """Refuses lengths or offsets that are no int64 tensor of their size beside log_obs."""
    if not isinstance(t, Tensor):
        raise TypeError(
            f"evidens.{op}: {name} must be an int64 tensor, got {type(t).__name__}. "
            f"Convert with torch.as_tensor({name})."
        )
    if t.dtype is not torch.int64 or t.device != log_obs.device:
        raise TypeError(
            f"evidens.{op}: {name} must be int64 on {log_obs.device}, got {t.dtype} on {t.device}. "
            f"Convert with {name}.to(log_obs.device, torch.int64)."
        )
    if t.ndim != 1 or t.shape[0] == 0 if size is None else t.shape != (size,):
        want = "at least one entry" if size is None else f"({size},)"
        raise ValueError(
            f"evidens.{op}: {name} must have shape {letters} = {want} for "
            f"log_obs {tuple(log_obs.shape)}, got {tuple(t.shape)}"
        )


def _range(t: Tensor) -> tuple[int, int]:
    """Least and greatest entry; of a few by way of a list, which is 5 us faster."""
    if t.is_cpu and t.shape[0] <= _FEW:
        values = t.tolist()
        return min(values), max(values)
    low, high = t.aminmax()
    return int(low), int(high)


def _padded_where(op: str, log_obs: Tensor, lengths: Tensor) -> _Where:
    batch, time, _ = log_obs.shape
    _index(op, "lengths", lengths, log_obs, "(B,)", batch)
    starts, _, first = _equal_lengths(batch, time, log_obs.device)
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


def _packed_where(op: str, log_obs: Tensor, offsets: Tensor, varies: bool) -> _Where:
    n = log_obs.shape[0]
    _index(op, "offsets", offsets, log_obs, "(B + 1,)", None)
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
    op: str, name: str, t: Tensor, log_obs: Tensor, shapes: tuple[tuple[str, tuple], ...]
) -> None:
    """Refuses an argument of another shape than each of ``shapes``, or another dtype or device."""
    if not any(t.shape == shape for _, shape in shapes):
        want = " or ".join(f"{letters} = {tuple(shape)}" for letters, shape in shapes)
        raise ValueError(
            f"evidens.{op}: {name} must have shape {want} for log_obs {tuple(log_obs.shape)}, "
            f"got {tuple(t.shape)}"
        )
    checks.alike(op, name, t, log_obs, "log_obs")


_Inner = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def arguments(
    op: str,
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
) -> _Inner:
    """The arguments of the inner ops, after every check but those of `inside`."""
    log_obs, initial, transition = checks.widen(
        op, ("log_obs", log_obs), ("initial", initial), ("transition", transition)
    )
    checks.floating(op, "log_obs", log_obs)
    ndim = log_obs.ndim
    if (ndim != 3 and ndim != 2) or log_obs.shape[-1] == 0:
        raise ValueError(
            f"evidens.{op}: expected log_obs padded (B, T, K) or packed (N, K) with at least one "
            f"state, got {tuple(log_obs.shape)}"
        )
    k = log_obs.shape[-1]
    varying: tuple[str, tuple[int, ...]]
    if ndim == 3:
        if offsets is not None:
            raise ValueError(
                f"evidens.{op}: offsets belong to a packed log_obs (N, K), got a padded one "
                f"{tuple(log_obs.shape)}; pass lengths instead"
            )
        batch, time = log_obs.shape[:2]
        if lengths is None:
            where = _equal_lengths(batch, time, log_obs.device)
        else:
            where = _padded_where(op, log_obs, lengths)
        varying = "(B, T - 1, K, K)", (batch, max(time - 1, 0), k, k)
    else:
        if lengths is not None:
            raise ValueError(
                f"evidens.{op}: lengths belong to a padded log_obs (B, T, K), got a packed one "
                f"{tuple(log_obs.shape)}; pass offsets instead"
            )
        n = log_obs.shape[0]
        if offsets is None:
            batch, where = 1, _equal_lengths(1, n, log_obs.device)
            steps = max(n - 1, 0)
        else:
            where = _packed_where(op, log_obs, offsets, transition.ndim == 3)
            batch = offsets.shape[0] - 1
            steps = n
            if transition.ndim == 3:
                # Tracing sees no values: there, `inside` finds what is missing.
                steps = n - int((where[1] > 0).sum()) if has_values(offsets) else len(transition)
        varying = "(N - number of sequences that have frames, K, K)", (steps, k, k)
    dtype, device = log_obs.dtype, log_obs.device
    if initial.shape != (k,) or initial.dtype is not dtype or initial.device != device:
        shapes = ("(K,)", (k,)), ("(B, K)", (batch, k))
        matching(op, "initial", initial, log_obs, shapes)
    if transition.shape != (k, k) or transition.dtype is not dtype or transition.device != device:
        matching(op, "transition", transition, log_obs, (("(K, K)", (k, k)), varying))
    if ndim == 3:
        log_obs = log_obs.reshape(-1, k)
        if transition.ndim == 4:
            transition = transition.reshape(-1, k, k)
    return log_obs, initial, transition, *where


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
        log_obs: Tensor,
        initial: Tensor,
        transition: Tensor,
        starts: Tensor,
        lengths: Tensor,
        first: Tensor,
        *more: Any,
    ) -> Any:
        batch, n = lengths.shape[0], log_obs.shape[0]
        known = None
        if batch and n % batch == 0:
            known = _regular.get((batch, n // batch, log_obs.device))
        if known is None or known[0] is not starts or known[1] is not lengths:
            steps = transition.shape[0] if transition.ndim == 3 else None
            if not _lie_inside(starts, lengths, first, n, steps):
                raise ValueError(
                    f"evidens.{name}: lengths must lie in 0 .. T, offsets must begin with 0, "
                    f"never fall and end with N = {n}, and a transition that varies needs one "
                    "matrix for each pair of consecutive frames; some sequence breaks this"
                )
        return function(
            log_obs.contiguous(),
            initial.contiguous(),
            transition.contiguous(),
            starts.contiguous(),
            lengths.contiguous(),
            first.contiguous(),
            *(m.contiguous() if isinstance(m, Tensor) else m for m in more),
        )

    return call
