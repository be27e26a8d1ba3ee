"""The two half steps of a rung of annealed importance sampling, in Triton.

Shape letters: ``N`` chains, ``V`` visible and ``J`` hidden units.  A program takes a block of
chains and a block of units.  What it adds to the log-weights of its chains goes to a row of its
own, so that nothing is added in the order of arrival.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._coupling_maps import _sigmoid, _softplus
from ._rbm_units import DRAWN, _fields, normals, uniforms


@triton.jit
def _bits(x, u):
    p = _sigmoid(x)
    return tl.where(p != p, p, (u < p).to(p.dtype))


@triton.jit
def _add(gain_ptr, n, row, total):
    at = gain_ptr + tl.cast(tl.program_id(1), tl.int64) * n + row
    tl.store(at, tl.load(at, mask=row < n, other=0.0) + total, mask=row < n)


@triton.jit(do_not_specialize=["rung", "seed", "row0", "n", "visible", "hidden"])
def hidden_kernel(
    v_ptr,  # (N, V)
    weight_ptr,  # (J, V)
    bias_ptr,  # (J,)
    h_ptr,  # out (N, J)
    gain_ptr,  # in and out (blocks of J, N), float64
    beta_ptr,  # (K + 1,) float64
    rung,
    seed,
    row0,
    n,
    visible,
    hidden,
    STATES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What the model of a rung gains on the last one at v, and its hidden units."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * BLOCK_U
    unit = tl.cast(first + tl.arange(0, BLOCK_U), tl.int64)
    wide = tl.cast(visible, tl.int64)
    x = _fields(
        v_ptr, wide, weight_ptr, 1, wide, bias_ptr, None, row, unit, n, visible, hidden, dtype,
        STATES, BLOCK_N, BLOCK_U, BLOCK_K,
    )  # fmt: skip
    before, after = tl.load(beta_ptr + rung - 1), tl.load(beta_ptr + rung)
    exact = x.to(tl.float64)
    gain = _softplus(after * exact) - _softplus(before * exact)
    _add(gain_ptr, n, row, tl.sum(tl.where((unit < hidden)[None, :], gain, 0.0), axis=1))
    step = 2 * tl.cast(rung, tl.int64)
    h = _bits(after.to(dtype) * x, uniforms(seed, step, row + row0, first, dtype, BLOCK_N, BLOCK_U))
    both = (row < n)[:, None] & (unit < hidden)[None, :]
    tl.store(h_ptr + row[:, None] * tl.cast(hidden, tl.int64) + unit[None, :], h, mask=both)


@triton.jit
def _levels(x, u, LEVELS: tl.constexpr, PADDED: tl.constexpr):
    """Softmax groups (N, groups x PADDED) with one unit on; those past LEVELS are -inf."""
    N: tl.constexpr = x.shape[0]
    GROUPS: tl.constexpr = x.shape[1] // PADDED
    x = tl.reshape(x, [N, GROUPS, PADDED])
    w = tl.exp(x - tl.max(x, axis=2)[:, :, None])
    limit = (u * tl.sum(w, axis=2))[:, :, None]
    level = tl.arange(0, PADDED)[None, None, :]
    past = (tl.cumsum(w, axis=2) <= limit) & (level < LEVELS - 1)
    chosen = tl.sum(past.to(tl.int32), axis=2)[:, :, None]
    drawn = tl.where(limit != limit, limit, (level == chosen).to(x.dtype))
    return tl.reshape(drawn, [N, GROUPS * PADDED])


@triton.jit(do_not_specialize=["rung", "seed", "row0", "n", "visible", "hidden"])
def visible_kernel(
    h_ptr,  # (N, J)
    weight_ptr,  # (J, V)
    bias_ptr,  # (V,)
    base_ptr,  # (V,)
    v_ptr,  # out (N, V)
    gain_ptr,  # in and out (blocks of V, N), float64
    beta_ptr,  # (K + 1,) float64
    rung,
    seed,
    row0,
    n,
    visible,
    hidden,
    LEVELS: tl.constexpr,  # 0: Gaussian, 1: Bernoulli, else of a softmax group
    PADDED: tl.constexpr,  # LEVELS of a softmax group as a power of two, else 1
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Visible units of the model of a rung, and what is linear in them of the next gain."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    COLUMNS: tl.constexpr = BLOCK_U // PADDED  # of the stream
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * COLUMNS
    lane = tl.arange(0, BLOCK_U)
    wide = tl.cast(visible, tl.int64)
    unit = tl.cast(first + lane, tl.int64)
    if LEVELS > 1:
        unit = tl.cast(first + lane // PADDED, tl.int64) * LEVELS + lane % PADDED
        unit = tl.where(lane % PADDED < LEVELS, unit, wide)
    depth = tl.where(rung > 0, hidden, 0)  # the base model has no hidden units
    x = _fields(
        h_ptr, tl.cast(hidden, tl.int64), weight_ptr, wide, 1, bias_ptr, None, row, unit, n, depth,
        visible, dtype, DRAWN, BLOCK_N, BLOCK_U, BLOCK_K,
    )  # fmt: skip
    beta, after = tl.load(beta_ptr + rung), tl.load(beta_ptr + rung + 1)
    unit_in = unit < visible
    base = tl.load(base_ptr + unit, mask=unit_in, other=0.0)
    x = beta.to(dtype) * x + ((1 - beta).to(dtype) * base)[None, :]
    step, at = 2 * tl.cast(rung, tl.int64) + 1, row + row0
    if LEVELS == 0:
        v = x + normals(seed, step, at, first, dtype, BLOCK_N, COLUMNS)
    elif LEVELS == 1:
        v = _bits(x, uniforms(seed, step, at, first, dtype, BLOCK_N, COLUMNS))
    else:
        x = tl.where((lane % PADDED < LEVELS)[None, :], x, float("-inf"))
        v = _levels(x, uniforms(seed, step, at, first, dtype, BLOCK_N, COLUMNS), LEVELS, PADDED)
    both = (row < n)[:, None] & unit_in[None, :]
    tl.store(v_ptr + row[:, None] * wide + unit[None, :], v, mask=both)
    start = base.to(tl.float64)
    end = tl.load(bias_ptr + unit, mask=unit_in, other=0.0).to(tl.float64)
    seen = v.to(tl.float64)
    if LEVELS == 0:
        seen -= (0.5 * (start + end))[None, :]
    gain = tl.where(both, seen * (end - start)[None, :], 0.0)
    _add(gain_ptr, n, row, tl.sum(gain, axis=1) * (after - beta))
