"""Rows with missing values under a Gaussian mixture: exact conditional EM.

Let ``L`` be the inverse covariance of a component, ``m`` the missing and ``o`` the observed
features of a row, ``d`` the row minus the mean.  Then (Bishop, equations 2.75 and 2.76, and the
determinant of a block matrix)

    E[d_m | d_o] = -L_mm^-1 L_mo d_o        Cov[d_m | d_o] = L_mm^-1
    log N(x_o) = log N(completed row) + |m|/2 log 2 pi - 1/2 log det L_mm

so a row costs one factor of size |m| per pattern and component, and the densities and moments of
the completed rows come from the ops.  All of it is in float64.

Source: Ghahramani and Jordan, Supervised learning from incomplete data via an EM approach (1994).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evidens import ops
from evidens.models._arrays import PIECE
from evidens.models.gmm_parameters import GMMParameters
from evidens.models.gmm_statistics import GMMStatistics


@dataclass
class _Completed:
    """Incomplete rows with what each component says about their missing values.

    ``S`` is K, or 1 where the components share one covariance; ``G`` counts the patterns, ``m``
    the missing features of the worst of them.  Shorter patterns are padded with the feature D.
    """

    rows: Tensor  # (n,) places among the rows that were given
    deviation: Tensor  # (K, n, D) E[x | observed, k] - mean_k
    log_prob: Tensor  # (n, K) log w_k + log N(observed | k)
    missing: Tensor  # (n, D) bool
    pattern: Tensor | None = None  # (n,) which pattern a row has; None for diag and spherical
    index: Tensor | None = None  # (G, m) the missing features
    factor: Tensor | None = None  # (S, G, m, m) lower Cholesky factor of L_mm


def _log_prob(deviation: Tensor, p: GMMParameters) -> Tensor:
    """(n, K) ``log w_k + log N`` of the completed rows, which differ between components."""
    columns = []
    for k in range(len(p.weights)):
        log_weights, means, cholesky, kind = p.component(k).arguments
        columns.append(
            ops.gmm_component_log_prob(
                deviation[k], log_weights, torch.zeros_like(means), cholesky, kind
            )
        )
    return torch.cat(columns, 1)


def _order(missing: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted by the number of missing features and then by pattern, and each row's pattern."""
    n, d = missing.shape
    words = torch.nn.functional.pad(missing.long(), (0, -d % 62)).view(n, -1, 62)
    words = (words << torch.arange(62, device=missing.device)).sum(-1)
    _, pattern = torch.unique(words, dim=0, return_inverse=True)
    order = torch.argsort(missing.sum(1) * n + pattern, stable=True)
    return order, pattern


def complete(x: Tensor, parameters: GMMParameters) -> Iterator[_Completed]:
    """Condition rows (N, D), each with a NaN, on what they show, a bounded number at a time."""
    p = parameters.to(torch.float64)
    k, d = p.means.shape
    x = x.double()
    missing = x.isnan()
    if p.covariance_type in ("diag", "spherical"):
        step = max(1, PIECE // (k * d))
        log_p = p.precisions_cholesky.log()
        log_p = log_p if p.covariance_type == "diag" else log_p[:, None].expand(k, d)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            gone = missing[rows]
            deviation = torch.where(gone, 0, x[rows] - p.means[:, None])
            change = gone.double() @ (0.5 * math.log(2 * math.pi) - log_p).mT
            yield _Completed(
                torch.arange(start, start + len(gone), device=x.device),
                deviation,
                _log_prob(deviation, p) + change,
                gone,
            )
        return
    cholesky = p.precisions_cholesky.reshape(-1, d, d)
    precisions = cholesky @ cholesky.mT
    order, pattern = _order(missing)
    # Factors are padded to a multiple of 8, which is where the sorted rows are cut, too.
    width = ((missing.sum(1)[order] + 7) // 8 * 8).clamp(max=d)
    part = (k * (width**2).clamp(min=d)).cumsum(0) // PIECE
    _, counts = torch.unique_consecutive(torch.stack([width, part]), dim=1, return_counts=True)
    for rows in order.split(counts.tolist()):
        yield _complete(x[rows], rows, pattern[rows], missing[rows], p, precisions)


def _complete(
    x: Tensor, rows: Tensor, pattern: Tensor, missing: Tensor, p: GMMParameters, precisions: Tensor
) -> _Completed:
    """The rows of one batch of factors; equal patterns are neighbours."""
    k, d = p.means.shape
    n = len(x)
    _, pattern, counts = torch.unique_consecutive(pattern, return_inverse=True, return_counts=True)
    gone = missing[counts.cumsum(0) - counts]
    m = int(gone.sum(1).max())
    index = torch.where(gone, torch.arange(d, device=x.device), d).sort(1).values[:, :m]
    # Feature D stands for the padding: nothing depends on it, and its factor is 1.
    padded = torch.nn.functional.pad(precisions, (0, 1, 0, 1))
    block = padded[:, index[:, :, None], index[:, None, :]]
    block = block + torch.diag_embed((index == d).to(block.dtype))
    factor, info = torch.linalg.cholesky_ex(block)
    if info.any():
        raise ValueError(
            "X has missing values, and a covariance is too close to singular to condition on: "
            "increase reg_covar, or scale the features to similar size"
        )
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    deviation = torch.where(missing, 0, x - p.means[:, None])
    deviation = torch.nn.functional.pad(deviation, (0, 1))
    pull = torch.nn.functional.pad(deviation[..., :d] @ precisions, (0, 1))
    place = index[pattern].expand(k, n, m)
    pull = pull.gather(2, place)
    sizes = counts.tolist()
    parts = zip(pull.split(sizes, 1), factor.unbind(1))
    fill = torch.cat([torch.cholesky_solve(r.mT, f).mT for r, f in parts], 1)
    deviation = deviation.scatter(2, place, -fill)[..., :d].contiguous()

    numbers = missing.sum(1, dtype=torch.float64)
    change = 0.5 * math.log(2 * math.pi) * numbers[:, None] - log_det[:, pattern].mT
    return _Completed(
        rows, deviation, _log_prob(deviation, p) + change, missing, pattern, index, factor
    )


def log_prob_terms(x: Tensor, parameters: GMMParameters) -> Tensor:
    """``log w_k + log N(observed part | k)``, (N, K) float64; 0 + log w_k where all is missing."""
    terms = x.new_empty(len(x), len(parameters.weights), dtype=torch.float64)
    for part in complete(x, parameters):
        terms[part.rows] = part.log_prob
    return terms


def posterior(terms: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``(log p, responsibilities)`` of (N, K) terms; an impossible row gets the weights."""
    log_prob = torch.logsumexp(terms, 1)
    possible = ~log_prob.isneginf()[:, None]
    shift = log_prob.where(possible[:, 0], 0)[:, None]
    return log_prob, torch.where(possible, (terms - shift).exp(), weights.to(terms.dtype))


def expect(
    stats: GMMStatistics,
    x: Tensor,
    parameters: GMMParameters,
    sample_weight: Tensor | None = None,
    labels: Tensor | None = None,
) -> None:
    """E step of rows of which some have missing values: add them to the statistics."""
    gone = x.isnan().any(1)
    if not gone.any():
        stats.expect(x, parameters, sample_weight, labels)
        return
    whole, rows = (~gone).nonzero()[:, 0], gone.nonzero()[:, 0]
    if len(whole):
        stats.expect(x[whole], parameters, _at(sample_weight, whole), _at(labels, whole))
    for part in complete(x[rows], parameters):
        place = rows[part.rows]
        _add(stats, part, parameters, _at(sample_weight, place), _at(labels, place))


def _at(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index]


def _add(
    stats: GMMStatistics,
    part: _Completed,
    parameters: GMMParameters,
    sample_weight: Tensor | None,
    labels: Tensor | None,
) -> None:
    """Likelihood and moments of the completed rows."""
    log_prob, r = posterior(part.log_prob, torch.zeros_like(stats.weight))
    n = len(r)
    if labels is not None:
        pinned, label = labels >= 0, labels.clamp(min=0)[:, None]
        r = torch.where(pinned[:, None], torch.zeros_like(r).scatter(1, label, 1.0), r)
        log_prob = torch.where(pinned, part.log_prob.gather(1, label)[:, 0], log_prob)
    if sample_weight is not None:
        w = sample_weight.double()
        r = r * w[:, None]
        log_prob = torch.where(w == 0, 0.0, log_prob * w)
        stats.total = stats.total + w.sum()
    else:
        stats.total = stats.total + n
    stats.log_likelihood = stats.log_likelihood + log_prob.sum()
    add_moments(stats, part, parameters, r)


def add_moments(
    stats: GMMStatistics, part: _Completed, parameters: GMMParameters, r: Tensor
) -> None:
    """Moments of the completed rows for responsibilities (n, K) float64.

    To them comes the covariance of what was filled in.
    """
    k, kind, d = r.shape[1], stats.covariance_type, stats.centre.shape[1]
    zero = stats.centre.new_zeros(1, d)
    for j in range(k):
        weight, first, second = ops.gmm_moments(part.deviation[j], r[:, j : j + 1], zero, kind)
        stats.weight[j] += weight[0]
        stats.first[j] += first[0]
        stats.second[... if kind == "tied" else j] += second if kind == "tied" else second[0]
    if part.index is None:
        gone = r.mT @ part.missing.double()
        variance = parameters.precisions_cholesky.double() ** -2
        stats.second += gone * variance if kind == "diag" else gone.sum(1) * variance / d
        return
    assert part.factor is not None
    assert part.pattern is not None
    # (S, G, m, m), weighted by the rows of each pattern, scattered to their places and summed.
    cov = torch.cholesky_inverse(part.factor)
    weight = r.new_zeros(len(part.index), k).index_add(0, part.pattern, r)
    weight = weight.sum(1)[None] if kind == "tied" else weight.mT
    place = (part.index[:, :, None] * (d + 1) + part.index[:, None, :]).reshape(1, -1)
    cov = (cov * weight[:, :, None, None]).flatten(1)
    total = cov.new_zeros(len(cov), (d + 1) ** 2).scatter_add(1, place.expand_as(cov), cov)
    total = total.view(-1, d + 1, d + 1)[:, :d, :d]
    stats.second += total[0] if kind == "tied" else total


def impute(
    x: Tensor, parameters: GMMParameters, random_state: np.random.RandomState | None
) -> Tensor:
    """Fill the NaN of rows (N, D) that all have some: conditional mean, or draws."""
    result = x.clone()
    n, d = x.shape
    if random_state is not None:
        uniform = torch.from_numpy(random_state.uniform(size=n)).to(x.device)
        normal = torch.from_numpy(random_state.standard_normal((n, d))).to(x.device)
    p = parameters.to(torch.float64)
    for part in complete(x, parameters):
        _, r = posterior(part.log_prob, p.weights)
        if random_state is None:
            values = torch.einsum("nk,knd->nd", r, part.deviation) + r @ p.means
        else:
            edges = r.cumsum(1)
            k = torch.searchsorted(edges, uniform[part.rows, None] * edges[:, -1:], right=True)
            k = k.clamp(max=len(p.weights) - 1)[:, 0]
            every = torch.arange(len(k), device=x.device)
            noise = _noise(part, p, k, normal[part.rows])
            values = part.deviation[k, every] + p.means[k] + noise
        result[part.rows] = torch.where(part.missing, values.to(x.dtype), x[part.rows])
    return result


def _noise(part: _Completed, p: GMMParameters, k: Tensor, normal: Tensor) -> Tensor:
    """(n, D): a draw of the missing features about their conditional mean in component ``k``."""
    if part.index is None:
        scale = p.precisions_cholesky.reshape(len(p.weights), -1)[k]
        return normal / scale
    assert part.factor is not None
    assert part.pattern is not None
    factor = part.factor[k if len(part.factor) > 1 else k * 0, part.pattern]
    place = part.index[part.pattern]
    draw = torch.nn.functional.pad(normal, (0, 1)).gather(1, place)
    draw = torch.linalg.solve_triangular(factor.mT, draw[:, :, None], upper=True)[:, :, 0]
    return torch.nn.functional.pad(torch.zeros_like(normal), (0, 1)).scatter(1, place, draw)[:, :-1]
