"""Where EM of a Gaussian mixture starts: scikit-learn's four ways, in bounded memory.

Up to `WHOLE` rows the start is scikit-learn's, draw for draw.  From there on k-means and
k-means++ see a random sample of that many rows, and ``"random_from_data"`` draws its rows without
permuting all of them; the responsibilities of *all* rows are then formed block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.utils.random import sample_without_replacement
from torch import Tensor

from evidens import ops
from evidens.models._rows import Rows
from evidens.models.gmm_statistics import GMMStatistics

WHOLE = 131_072
VALUES = 3_500_000  # and k-means holds about three copies of its rows
PER_COMPONENT = 512

# (rows, number of the first of them) -> responsibilities
Responsibilities = Callable[[Tensor, int], Tensor]


def sample_size(n_components: int, n_features: int) -> int:
    """Up to how many rows k-means sees all of them, and how many it sees beyond."""
    return max(min(WHOLE, VALUES // n_features), PER_COMPONENT * n_components)


def initial_statistics(
    rows: Rows,
    n_components: int,
    covariance_type: str,
    init_params: str,
    random_state: np.random.RandomState,
) -> tuple[GMMStatistics, GMMStatistics | None]:
    """Statistics of all rows under the starting responsibilities.

    A row with a label has all its responsibility there, whatever the method says; a component
    that has labelled rows starts at them (seeded k-means, Basu et al. 2002).

    Returns:
        ``(statistics, other)``: a second choice, where the first may turn out not to be positive
        definite.
    """
    k = n_components
    rows.ranks.share(random_state)
    seeds, seeded = _labelled_means(rows, k)
    if init_params == "kmeans":
        centres, responsibilities = _kmeans(rows, k, random_state, seeds, seeded)
        stats = GMMStatistics.zeros(covariance_type, centres)
        _assign(stats, rows, responsibilities)
    elif init_params == "random":
        centre = torch.zeros(k, rows.n_features, dtype=torch.float64, device=rows.device)
        stats = GMMStatistics.zeros(covariance_type, centre + _mean(rows))
        _assign(stats, rows, _uniform(rows, k, random_state))
    else:
        picked = _pick(rows, k, init_params, random_state)
        stats = GMMStatistics.zeros(covariance_type, torch.where(seeded[:, None], seeds, picked))
        one_hot = torch.eye(k, dtype=rows.dtype, device=rows.device)
        if seeded.any():
            one_hot[seeded] = 0
            _assign(stats, rows, lambda x, _: x.new_zeros(len(x), k))
        stats.assign(picked, one_hot)
    stats.total = stats.total + rows.total_weight
    if covariance_type == "tied" and init_params in ("k-means++", "random_from_data"):
        return _uncentred(stats, rows), stats
    return stats, None


def _assign(stats: GMMStatistics, rows: Rows, responsibilities: Responsibilities) -> None:
    """Add all rows with the given responsibilities, labels and weights applied."""
    k, start = len(stats.weight), 0
    part = GMMStatistics.zeros(stats.covariance_type, stats.centre)
    for x, weight, labels in rows.blocks(columns=k, whole=False):
        x = rows.filled(x)
        r = responsibilities(x, start)
        if labels is not None:
            one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), k).to(r.dtype)
            r = torch.where((labels >= 0)[:, None], one_hot, r)
        part.assign(x, r if weight is None else r * weight[:, None])
        start += len(x)
    part.reduce(rows.ranks)
    stats.merge(part)


def _mean(rows: Rows) -> Tensor:
    """(D,) float64."""
    if rows.column_means is not None:
        return rows.column_means
    total = torch.zeros(rows.n_features, dtype=torch.float64, device=rows.device)
    for x, weight, _ in rows.blocks(whole=False):
        x = x if weight is None else x * weight[:, None]
        total += x.sum(0, dtype=torch.float64)
    return rows.ranks.sum(total) / rows.total_weight


def _labelled_means(rows: Rows, k: int) -> tuple[Tensor, Tensor]:
    """(K, D) means of the labelled rows and (K,) which components have any."""
    stats = GMMStatistics.zeros(
        "spherical", torch.zeros(k, rows.n_features, dtype=torch.float64, device=rows.device)
    )
    # Every process takes part, whether it has labels or not.
    if rows.ranks.total(rows.labels is not None):
        stats.centre = stats.centre + _mean(rows)
        _assign(stats, rows, lambda x, _: x.new_zeros(len(x), k))
    seeded = stats.weight > 0
    return stats.centre + stats.first / stats.weight.where(seeded, 1)[:, None], seeded


def _sample(
    rows: Rows, k: int, random_state: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Rows for k-means in host memory, their weights, and whether they are all there are."""
    n, size = rows.total_used, sample_size(k, rows.n_features)
    whole = n <= size
    if whole and rows.in_memory is not None and rows.used is None and rows.ranks.size == 1:
        x, weight = rows.filled(rows.in_memory.to(rows.dtype)), rows.sample_weight
    else:
        index = (
            np.arange(n)
            if whole
            else np.sort(sample_without_replacement(n, size, random_state=random_state))
        )
        x, weight = rows.take(index)
    return x.cpu().numpy(), None if weight is None else weight.cpu().numpy(), whole


def _scale(x: np.ndarray) -> np.floating:
    """A power of two, 1 for ordinary data: k-means squares its input in the input's own dtype."""
    exponent = np.frexp(np.abs(x).max())[1]
    largest = np.finfo(x.dtype).maxexp - 1  # subnormal data ask for more than the dtype holds
    return x.dtype.type(np.ldexp(1.0, min(-exponent, largest)) if abs(exponent) > 40 else 1.0)


def _kmeans(
    rows: Rows, k: int, random_state: np.random.RandomState, seeds: Tensor, seeded: Tensor
) -> tuple[Tensor, Responsibilities]:
    """Centres (K, D) and the responsibilities of hard assignment."""
    x, weight, whole = _sample(rows, k, random_state)
    if (scale := _scale(x)) != 1:
        x = x * scale
    start: Any = "k-means++"
    if seeded.any():
        start = (seeds.cpu().numpy() * scale).astype(x.dtype)
        free = ~seeded.cpu().numpy()
        if free.any():
            start[free], _ = kmeans_plusplus(
                x, int(free.sum()), sample_weight=weight, random_state=random_state
            )
    kmeans = KMeans(k, init=start, n_init=1, random_state=random_state)
    kmeans.fit(x, sample_weight=weight)
    centres = torch.from_numpy(kmeans.cluster_centers_ / scale)
    centres = rows.ranks.first(centres).to(rows.device)
    if whole:
        # All rows of weight > 0, in order: this process has its own stretch of them.
        label = rows.ranks.first(torch.from_numpy(kmeans.labels_.astype(np.int64)))
        used = rows.count if rows.used is None else len(rows.used)
        label = label[rows.offset : rows.offset + used].to(rows.device)
        if rows.used is not None:
            label = torch.zeros(rows.count, dtype=torch.int64, device=rows.device).index_copy(
                0, rows.used, label
            )
        return centres, lambda x, first: _one_hot(label[first : first + len(x)], k, x)
    c = centres.to(rows.dtype)
    zero, one = c.new_zeros(k), c.new_ones(k)

    def nearest(x: Tensor, first: int) -> Tensor:
        terms = ops.gmm_component_log_prob(x, zero, c, one, "spherical")
        return _one_hot(terms.argmax(1), k, x)

    return centres, nearest


def _one_hot(label: Tensor, k: int, x: Tensor) -> Tensor:
    return torch.zeros(len(label), k, dtype=x.dtype, device=x.device).scatter_(1, label[:, None], 1)


def _uniform(rows: Rows, k: int, random_state: np.random.RandomState) -> Responsibilities:
    """Normalised uniforms in the order of all rows of weight > 0 of all processes."""
    used = rows.count if rows.used is None else len(rows.used)
    position = None
    if rows.used is not None:
        position = torch.zeros(rows.count, dtype=torch.bool).index_fill(0, rows.used.cpu(), True)

    def skip(count: int) -> None:
        while count > 0:
            random_state.uniform(size=min(count, 1 << 20))
            count -= 1 << 20

    skip(rows.offset * k)

    def draw(x: Tensor, first: int) -> Tensor:
        here = None if position is None else position[first : first + len(x)]
        count = len(x) if here is None else int(here.sum())
        r = torch.from_numpy(random_state.uniform(size=(count, k))).to(x.dtype)
        r /= r.sum(1, keepdim=True)
        if here is not None:
            r = torch.zeros(len(x), k, dtype=x.dtype).index_copy(0, here.nonzero()[:, 0], r)
        if first + len(x) == rows.count:
            skip((rows.total_used - rows.offset - used) * k)
        return r.to(x.device)

    return draw


def _pick(rows: Rows, k: int, init_params: str, random_state: np.random.RandomState) -> Tensor:
    """(K, D): rows of the data, all different ones."""
    if init_params == "k-means++":
        x, weight, _ = _sample(rows, k, random_state)
        scaled = x * scale if (scale := _scale(x)) != 1 else x
        _, index = kmeans_plusplus(scaled, k, sample_weight=weight, random_state=random_state)
        return rows.ranks.first(torch.from_numpy(x[index])).to(rows.device)
    n = rows.total_used
    if n <= sample_size(k, rows.n_features):
        index = random_state.choice(n, size=k, replace=False)
    else:
        index = sample_without_replacement(n, k, random_state=random_state)
    return rows.take(index)[0]


def _uncentred(stats: GMMStatistics, rows: Rows) -> GMMStatistics:
    """scikit-learn's tied start from picked rows: ``X^T X`` of *all* rows, about 0.

    It takes every row to have responsibilities, though only the picked ones do.  The result is a
    very wide covariance; it is kept because the fit that follows depends on it.
    """
    one = GMMStatistics.zeros("tied", _mean(rows)[None])
    for x, weight, _ in rows.blocks(whole=False):
        r = x.new_ones(len(x), 1) if weight is None else weight[:, None].contiguous()
        one.assign(rows.filled(x), r)
    one.reduce(rows.ranks)
    means = stats.centre + stats.first / stats.weight[:, None]
    about_zero = one.about(torch.zeros_like(one.centre)).second
    second = about_zero - (means * stats.weight[:, None]).mT @ means
    return GMMStatistics(
        "tied",
        means,
        stats.weight,
        torch.zeros_like(means),
        second,
        stats.log_likelihood,
        stats.total,
    )
