"""Gaussian mixture in Triton: the functions of `evidens.reference.gmm` on a GPU.

Names, signatures and results are those of the reference; rows, parameters and weights share one
dtype (float32 or float64) and one device.  The kernels run in Triton's interpreter and compile
for sm_90; they have not yet run on a GPU.

How it is laid out.  A program takes a block of rows and goes over the components with an online
log-sum-exp, so `gmm_log_prob` writes one number per row.  `gmm_statistics` goes over the rows in
chunks whose (rows, K) responsibilities fit a scratch of fixed size, small enough for the GPU's L2
cache; the chunk of ``x`` that the moments of every component read again stays there too.  The
moments are accumulated in float64 by a number of programs that depends on the shape alone, each
striding over row blocks and owning one slice of a buffer; a second pass sums the slices.  No
float is added atomically, so the same input gives the same bits.  ``x - mean`` is formed before
any product, so float32 is safe far from the origin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import _gmm_diagonal, _gmm_product
from ._device import on

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")

# Responsibilities held at a time, in elements: 16 MB in float32, 32 MB in float64.
_SCRATCH_ELEMENTS = 1 << 22
_SCRATCH_MIN_ROWS = 1024
# Programs the moments aim at: about eight for each of an H200's 132 multiprocessors.
_MOMENT_PROGRAMS = 1024
# Size of a tile of the diagonal moments: what components and features leave free goes to rows.
_SIDE_BY_SIDE = 1024


class Tile(NamedTuple):
    """Block sizes in rows and in columns, and warps per program."""

    rows: int
    columns: int
    warps: int


# By kernel and element size: the first tile with room for all columns is taken, else the last.
# Columns are features; for diagonal_log_prob and responsibilities they are components.  Chosen
# from the compiled code (registers without spills, arithmetic per load), not from timings.
TILES = {
    ("product_log_prob", 4): (Tile(128, 16, 4), Tile(128, 32, 4)),
    ("product_log_prob", 8): (Tile(64, 16, 4), Tile(64, 32, 4)),
    ("product_moments", 4): (Tile(64, 16, 2), Tile(64, 32, 4), Tile(32, 64, 8)),
    ("product_moments", 8): (Tile(64, 16, 2), Tile(64, 32, 4), Tile(32, 64, 8)),
    ("product_gradient", 4): (Tile(64, 16, 2), Tile(128, 32, 4), Tile(64, 64, 8)),
    ("product_gradient", 8): (Tile(64, 16, 4), Tile(64, 32, 4), Tile(64, 64, 8)),
    ("diagonal_log_prob", 4): (Tile(128, 1, 4), Tile(128, 8, 4), Tile(128, 32, 4)),
    ("diagonal_log_prob", 8): (Tile(128, 1, 4), Tile(128, 8, 4), Tile(64, 32, 2)),
    ("diagonal_moments", 4): (Tile(512, 4, 4), Tile(128, 16, 4), Tile(32, 64, 4)),
    ("diagonal_moments", 8): (Tile(512, 4, 4), Tile(128, 16, 4), Tile(32, 64, 4)),
    ("diagonal_gradient", 4): (Tile(128, 4, 4), Tile(128, 16, 4), Tile(64, 64, 4)),
    ("diagonal_gradient", 8): (Tile(128, 4, 4), Tile(128, 16, 4), Tile(32, 64, 4)),
    ("responsibilities", 4): (Tile(128, 4, 4), Tile(64, 64, 4)),
    ("responsibilities", 8): (Tile(128, 4, 4), Tile(64, 64, 4)),
}


class _Parameters(NamedTuple):
    """What the density kernels of one family read."""

    constants: Tensor  # (K,): log weight, log-determinant and the power of 2 pi
    means: Tensor  # product family (K, E), diagonal family (D, K); contiguous
    factors: Tensor  # product family (K or 1, E, E), diagonal family (D, K) by strides


def gmm_component_log_prob(
    x: Tensor, log_weights: Tensor, means: Tensor, precisions_cholesky: Tensor, covariance_type: str
) -> Tensor:
    """``log w_k + log N(x_n | mean_k, cov_k)``, shape (N, K)."""
    parameters = _parameters(log_weights, means, precisions_cholesky, covariance_type)
    terms = x.new_empty(x.shape[0], means.shape[0])
    _launch_log_prob(x, parameters, terms=terms)
    return terms


def gmm_log_prob(
    x: Tensor, log_weights: Tensor, means: Tensor, precisions_cholesky: Tensor, covariance_type: str
) -> Tensor:
    """``log sum_k w_k N(x_n | mean_k, cov_k)``, shape (N,); -inf where every term is."""
    parameters = _parameters(log_weights, means, precisions_cholesky, covariance_type)
    total = x.new_empty(x.shape[0])
    _launch_log_prob(x, parameters, total=total)
    return total


def gmm_moments(
    x: Tensor, responsibilities: Tensor, means: Tensor, covariance_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``(weight, first, second)``: weighted moments of the rows about ``means``, in float64."""
    buffers = _moment_buffers(means, covariance_type, x.shape[0])
    _add_moments(x, responsibilities, means, covariance_type, buffers)
    return _sum_moments(buffers, covariance_type)


def gmm_statistics(
    x: Tensor,
    log_weights: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    covariance_type: str,
    sample_weight: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E step: ``(log_likelihood, weight, first, second)``, all float64."""
    parameters = _parameters(log_weights, means, precisions_cholesky, covariance_type)
    n, k = x.shape[0], means.shape[0]
    chunk = min(max(n, 1), max(_SCRATCH_ELEMENTS // max(k, 1), _SCRATCH_MIN_ROWS))
    buffers = _moment_buffers(means, covariance_type, chunk)
    # In the order in which the moments walk it: by component, or by row.
    product = _is_product(covariance_type)
    scratch = x.new_empty(k, chunk).t() if product else x.new_empty(chunk, k)
    total = x.new_empty(chunk)
    rows, columns, warps = _tile("responsibilities", x, k)
    log_likelihood = x.new_zeros(
        triton.cdiv(n, chunk), triton.cdiv(chunk, rows), dtype=torch.float64
    )
    for i, begin in enumerate(range(0, n, chunk)):
        part = slice(begin, begin + chunk)
        x_part = x[part]
        size = x_part.shape[0]
        r = scratch[:size]
        _launch_log_prob(x_part, parameters, terms=r, total=total)
        _launch(
            _gmm_diagonal.responsibilities_kernel,
            triton.cdiv(size, rows),
            warps,
            r,
            total,
            None if sample_weight is None else sample_weight[part].contiguous(),
            None if labels is None else labels[part].contiguous(),
            log_likelihood[i],
            size,
            k,
            *r.stride(),
            WEIGHTS=sample_weight is not None,
            LABELS=labels is not None,
            BLOCK_N=rows,
            BLOCK_K=columns,
        )
        _add_moments(x_part, r, means, covariance_type, buffers)
    return log_likelihood.sum(), *_sum_moments(buffers, covariance_type)


def gmm_input_gradient(
    x: Tensor,
    responsibilities: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    covariance_type: str,
) -> Tensor:
    """``sum_k r_nk d/dx_n log N(x_n | mean_k, cov_k)``, shape (N, D)."""
    (n, d), k = x.shape, means.shape[0]
    out = x.new_empty(n, d)
    product = _is_product(covariance_type)
    rows, columns, warps = _tile("product_gradient" if product else "diagonal_gradient", x, d)
    if product:
        # One product with the precision in place of two with its factor; formed in float64, so
        # that it is rounded once and torch's TF32 switch does not reach it.
        p = precisions_cholesky.reshape(-1, d, d).double().triu()
        matrices = _padded((p @ p.mT).to(x.dtype), 2, columns)
        means = _padded(means, 1, columns)
        kernel, options = _gmm_product.input_gradient_kernel, {"TIED": covariance_type == "tied"}
        extra, strides = (means.shape[1],), ()
    else:
        matrices = _by_feature(precisions_cholesky, means).t()
        means = means.contiguous()
        kernel, options = _gmm_diagonal.input_gradient_kernel, {}
        extra, strides = (), matrices.stride()
    _launch(
        kernel,
        triton.cdiv(n, rows) * triton.cdiv(d, columns),
        warps,
        x,
        responsibilities,
        means,
        matrices,
        out,
        n,
        k,
        d,
        *extra,
        *x.stride(),
        *responsibilities.stride(),
        *strides,
        **options,
        BLOCK_N=rows,
        BLOCK_D=columns,
    )
    return out


def _is_product(covariance_type: str) -> bool:
    """Whether the covariances are matrices, and not one variance per feature or component."""
    if covariance_type not in COVARIANCE_TYPES:
        raise ValueError(
            f"covariance_type must be one of {COVARIANCE_TYPES}, got {covariance_type!r}"
        )
    return covariance_type in ("full", "tied")


def _by_feature(precisions_cholesky: Tensor, means: Tensor) -> Tensor:
    """The diagonal of every factor as (D, K), without a copy for spherical covariances."""
    if precisions_cholesky.dim() == 1:
        return precisions_cholesky.expand(means.shape[1], -1)
    # Components adjacent: the density kernel loads them side by side.
    return precisions_cholesky.t().contiguous()


def _padded(parameter: Tensor, dims: int, multiple: int) -> Tensor:
    """The last ``dims`` dimensions padded with zeros to a multiple, so that rows are aligned."""
    extra = -parameter.shape[-1] % multiple
    return torch.nn.functional.pad(parameter, (0, extra) * dims).contiguous()


def _parameters(
    log_weights: Tensor, means: Tensor, precisions_cholesky: Tensor, covariance_type: str
) -> _Parameters:
    d = means.shape[1]
    if _is_product(covariance_type):
        # Only the upper triangle is a parameter.
        factors = precisions_cholesky.reshape(-1, d, d).triu()
        log_det = factors.diagonal(dim1=-2, dim2=-1).double().log().sum(-1)
        columns = _tile("product_log_prob", means, d).columns
        means, factors = _padded(means, 1, columns), _padded(factors, 2, columns)
    else:
        factors = _by_feature(precisions_cholesky, means)
        log_det = factors.double().log().sum(0)
        means = means.t().contiguous()
    constants = log_weights.double() + log_det - 0.5 * d * math.log(2 * math.pi)
    return _Parameters(constants.to(means.dtype), means, factors)


def _launch_log_prob(
    x: Tensor, parameters: _Parameters, terms: Tensor | None = None, total: Tensor | None = None
) -> None:
    """Write the component log-densities to ``terms``, their log-sum-exp to ``total``, or both."""
    constants, means, factors = parameters
    (n, d), k = x.shape, constants.shape[0]
    product = factors.dim() == 3
    rows, columns, warps = (
        _tile("product_log_prob", x, d) if product else _tile("diagonal_log_prob", x, k)
    )
    if product:
        kernel = _gmm_product.log_prob_kernel
        block = {"BLOCK_D": columns, "ONE_BLOCK": d <= columns}
        extra, strides = (means.shape[1],), (factors.stride(0) if factors.shape[0] > 1 else 0,)
    else:
        kernel, block = _gmm_diagonal.log_prob_kernel, {"BLOCK_K": columns}
        extra, strides = (), factors.stride()
    _launch(
        kernel,
        triton.cdiv(n, rows),
        warps,
        x,
        constants,
        means,
        factors,
        terms,
        total,
        n,
        k,
        d,
        *extra,
        *x.stride(),
        *strides,
        *((0, 0) if terms is None else terms.stride()),
        TERMS=terms is not None,
        TOTAL=total is not None,
        BLOCK_N=rows,
        **block,
    )


def _component_block(k: int) -> int:
    """Components of one tile of the diagonal moments."""
    return min(32, triton.next_power_of_2(max(k, 1)))


def _moment_buffers(means: Tensor, covariance_type: str, rows: int) -> tuple[Tensor, ...]:
    """Zeros for `_add_moments`, one slice per program, for at most ``rows`` rows at a time."""
    k, d = means.shape
    if _is_product(covariance_type):
        tile = _tile("product_moments", means, d)
        tiles = triton.cdiv(d, tile.columns) ** 2
        # Tied components share their sum, so only enough of them run together to fill the GPU.
        group = k if covariance_type == "full" else min(k, max(_MOMENT_PROGRAMS // tiles, 1))
        tiles, second = tiles * group, (group, d, d)
    else:
        tile = _tile("diagonal_moments", means, d)
        tiles = triton.cdiv(d, tile.columns) * triton.cdiv(k, _component_block(k))
        second = (k, d)
    programs = min(triton.cdiv(_MOMENT_PROGRAMS, max(tiles, 1)), triton.cdiv(rows, tile.rows))
    shapes = ((k,), (k, d), second)
    return tuple(means.new_zeros(max(programs, 1), *shape, dtype=torch.float64) for shape in shapes)


def _add_moments(
    x: Tensor,
    responsibilities: Tensor,
    means: Tensor,
    covariance_type: str,
    buffers: tuple[Tensor, ...],
) -> None:
    """Add the moments of these rows to the buffers."""
    (n, d), k = x.shape, means.shape[0]
    programs = buffers[0].shape[0]
    strides = (*x.stride(), *responsibilities.stride())
    if not _is_product(covariance_type):
        rows, columns, warps = _tile("diagonal_moments", means, d)
        block = _component_block(k)
        _launch(
            _gmm_diagonal.moments_kernel,
            programs * triton.cdiv(d, columns) * triton.cdiv(k, block),
            warps,
            x,
            responsibilities,
            means.contiguous(),
            *buffers,
            n,
            k,
            d,
            programs,
            *strides,
            BLOCK_N=rows,
            BLOCK_R=max(1, min(_SIDE_BY_SIDE // (block * columns), rows)),
            BLOCK_K=block,
            BLOCK_D=columns,
        )
        return
    rows, columns, warps = _tile("product_moments", means, d)
    group = buffers[2].shape[1]
    means = _padded(means, 1, columns)
    for k_begin in range(0, k, max(group, 1)):
        _launch(
            _gmm_product.moments_kernel,
            programs * group * triton.cdiv(d, columns) ** 2,
            warps,
            x,
            responsibilities,
            means,
            *buffers,
            n,
            k,
            d,
            means.shape[1],
            programs,
            group,
            k_begin,
            *strides,
            ONE_BLOCK=d <= columns,
            BLOCK_N=rows,
            BLOCK_D=columns,
        )


def _sum_moments(
    buffers: tuple[Tensor, ...], covariance_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    weight, first, second = (buffer.sum(0) for buffer in buffers)
    if covariance_type == "tied":
        second = second.sum(0)
    if _is_product(covariance_type):
        # The kernel fills the blocks on and above the diagonal.
        second = second.triu() + second.triu(1).mT
    elif covariance_type == "spherical":
        second = second.mean(-1)
    return weight, first, second


def _tile(kernel: str, like: Tensor, columns: int) -> Tile:
    """The committed tile of a kernel for the dtype of ``like`` and a number of columns."""
    tiles = TILES[kernel, like.element_size()]
    return next((tile for tile in tiles if columns <= tile.columns), tiles[-1])


def _launch(kernel, programs: int, warps: int, x: Tensor, *args, **constants) -> None:
    # Triton launches on the current device, which need not be that of the tensors.
    with on(x):
        kernel[(programs,)](x, *args, **constants, num_warps=warps, enable_fp_fusion=True)
