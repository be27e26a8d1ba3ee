"""Sufficient statistics of a Gaussian mixture, and the M step that turns them into parameters.

Everything is a moment *about a centre* that lies near the means, in float64: no variance is ever
the difference of two large numbers, except for tied: there the kernel sums about one centre for all
components, and means 1e8 standard deviations apart cost all digits.  Weights, chunks, machines and
labels are all sums of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evidens import ops
from evidens.models._ranks import Ranks
from evidens.models.gmm_parameters import (
    ILL_DEFINED,
    ILL_DEFINED_FLOAT32,
    GMMParameters,
    cholesky_of_precisions,
)


@dataclass
class GMMStatistics:
    """Sums over rows, all float64; ``d_nk`` is a row minus ``centre[k]``.

    Attributes:
        covariance_type: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
        centre: (K, D), what the moments are about.
        weight: (K,), the sum of the responsibilities.
        first: (K, D), their sum times ``d_nk``.
        second: the sum times ``d_nk d_nk^T``: (K, D, D); for tied summed over components (D, D);
            for diag its diagonal (K, D); for spherical the mean of that diagonal (K,).
        log_likelihood: the sum of the rows' log-densities, nats.
        total: the sum of the rows' weights.
    """

    covariance_type: str
    centre: Tensor
    weight: Tensor
    first: Tensor
    second: Tensor
    log_likelihood: Tensor
    total: Tensor

    @classmethod
    def zeros(cls, covariance_type: str, centre: Tensor) -> GMMStatistics:
        """No rows, about ``centre``."""
        centre = centre.double()
        k, d = centre.shape
        shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
        zero = centre.new_zeros(())
        return cls(
            covariance_type,
            centre,
            centre.new_zeros(k),
            torch.zeros_like(centre),
            centre.new_zeros(shape[covariance_type]),
            zero,
            zero.clone(),
        )

    @classmethod
    def of(cls, parameters: GMMParameters, total: float, reg_covar: float) -> GMMStatistics:
        """The statistics of ``total`` rows from which `maximise` gives just these parameters."""
        assert parameters.covariances is not None
        p = parameters.to(torch.float64)
        assert p.covariances is not None
        stats = cls.zeros(p.covariance_type, p.means)
        stats.weight = p.weights * total
        stats.total = stats.total + total
        cov = p.covariances.clone()
        diagonal = cov.diagonal(dim1=-2, dim2=-1) if p.covariance_type in ("full", "tied") else cov
        diagonal.copy_((diagonal - reg_covar).clamp(min=0))
        stats.second = cov * (total if p.covariance_type == "tied" else _columns(stats.weight, cov))
        return stats

    def expect(
        self,
        x: Tensor,
        parameters: GMMParameters,
        sample_weight: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """E step of complete rows: add them with their responsibilities.  One pass, no N x K."""
        result = ops.gmm_statistics(x, *parameters.arguments, sample_weight, labels)
        self._add(*result)
        self.total = self.total + (
            len(x) if sample_weight is None else sample_weight.double().sum()
        )

    def assign(self, x: Tensor, responsibilities: Tensor) -> None:
        """Add rows with given responsibilities (N, K); neither total nor likelihood change.

        In float64 whatever the rows are: at the start there are no parameters to fall back on
        where the rounding of float32 products is larger than the smallest variance.
        """
        moments = ops.gmm_moments(
            x.double(), responsibilities.double(), self.centre, self.covariance_type
        )
        self._add(torch.zeros_like(self.log_likelihood), *moments)

    def _add(self, log_likelihood: Tensor, weight: Tensor, first: Tensor, second: Tensor) -> None:
        self.log_likelihood = self.log_likelihood + log_likelihood
        self.add_moments(weight, first, second)

    def add_moments(self, weight: Tensor, first: Tensor, second: Tensor) -> None:
        """Add sums about the centre."""
        self.weight = self.weight + weight
        self.first = self.first + first
        self.second = self.second + second

    def merge(self, other: GMMStatistics) -> None:
        """Add the sums of other rows, whatever their centre."""
        other = other.about(self.centre)
        self._add(other.log_likelihood, other.weight, other.first, other.second)
        self.total = self.total + other.total

    def about(self, centre: Tensor) -> GMMStatistics:
        """The same rows about another centre."""
        if self.centre is centre:
            return self
        shift = self.centre - centre
        if not shift.any():
            return self
        first = self.first + self.weight[:, None] * shift
        if self.covariance_type in ("diag", "spherical"):
            change = (self.first + first) * shift
            change = change if self.covariance_type == "diag" else change.mean(1)
        elif self.covariance_type == "tied":
            change = self.first.mT @ shift + shift.mT @ first
        else:
            change = self.first[:, :, None] * shift[:, None] + shift[:, :, None] * first[:, None]
        return GMMStatistics(
            self.covariance_type,
            centre,
            self.weight,
            first,
            self.second + change,
            self.log_likelihood,
            self.total,
        )

    def scale(self, factor: float) -> None:
        """Count every row ``factor`` times."""
        self.log_likelihood = self.log_likelihood * factor
        self.weight = self.weight * factor
        self.first = self.first * factor
        self.second = self.second * factor
        self.total = self.total * factor

    def reduce(self, ranks: Ranks) -> None:
        """Add up over the processes of a group: one all-reduce.  The centres agree already."""
        if ranks.size == 1:
            return
        names = ("log_likelihood", "total", "weight", "first", "second")
        parts = [getattr(self, name) for name in names]
        sums = ranks.sum(torch.cat([p.reshape(-1) for p in parts]))
        for name, part, value in zip(names, parts, sums.split([p.numel() for p in parts])):
            setattr(self, name, value.view(part.shape))


def _columns(k: Tensor, like: Tensor) -> Tensor:
    """(K,) with trailing axes, to broadcast against ``like``."""
    return k.reshape(-1, *[1] * (like.ndim - 1))


def maximise(
    stats: GMMStatistics,
    old: GMMParameters | None,
    *,
    reg_covar: float,
    dtype: torch.dtype,
    unit: float = 1.0,
) -> tuple[GMMParameters, list[int]]:
    """M step, in float64; scikit-learn's arithmetic, moved to the centre.

    ``nk = weight + 10 eps``; the mean is ``centre + first / nk``; the covariance is
    ``second / nk - delta delta^T + reg_covar`` with ``delta = first / nk``, which goes to 0 as EM
    converges.  Bishop, equations 9.24 to 9.26.

    Args:
        stats: the sums.
        old: the parameters before; a component that lost its rows, or whose covariance is not
            positive definite, keeps its mean and covariance.  None at the start.
        reg_covar: added to every variance.
        dtype: of the parameters.
        unit: the typical weight of a row, which scales the ``10 eps``.

    Returns:
        ``(parameters, kept)``: ``kept`` lists the components that kept their old ones.

    Raises:
        ValueError: a covariance is not positive definite and there is no old one.
    """
    kind = stats.covariance_type
    floor = 10 * torch.finfo(torch.float64).eps * unit
    nk = stats.weight + floor
    delta = stats.first / nk[:, None]
    means = stats.centre + delta
    if kind == "full":
        cov = torch.baddbmm(
            stats.second / nk[:, None, None], delta[:, :, None], delta[:, None], alpha=-1
        )
    elif kind == "tied":
        cov = (stats.second - (delta * nk[:, None]).mT @ delta) / nk.sum()
    elif kind == "diag":
        cov = stats.second / nk[:, None] - delta * delta
    else:
        cov = stats.second / nk - (delta * delta).mean(1)
    # What rounding alone would give: below it a variance is noise around zero.  That of the data
    # without reg_covar, that of the sums with it; a start that reg_covar saves is scikit-learn's.
    precision = torch.finfo(dtype if reg_covar == 0 else torch.float64).eps
    noise = (precision / 4 * means) ** 2 if old is not None or reg_covar == 0 else 0 * means
    noise = {"tied": noise.amax(0), "spherical": noise.mean(1)}.get(kind, noise)
    diagonal = cov.diagonal(dim1=-2, dim2=-1) if kind in ("full", "tied") else cov
    diagonal.copy_(diagonal.clamp(min=0) + reg_covar)
    p, failed = cholesky_of_precisions(cov, kind)
    flat = diagonal <= noise
    failed = failed | (flat if kind == "spherical" else flat.any(-1))
    p = p.to(dtype)
    failed = failed | (~p.isfinite()).reshape(len(failed), -1).any(1)

    weights = nk / (nk.sum() if old is not None else stats.total)
    new = GMMParameters(kind, weights, means, p, cov).to(dtype)
    assert new.covariances is not None
    failed = failed | (~new.covariances.isfinite()).reshape(len(failed), -1).any(1)
    if old is None:
        if failed.any():
            raise ValueError(ILL_DEFINED + (ILL_DEFINED_FLOAT32 if dtype == torch.float32 else ""))
        return new, []
    lost = stats.weight <= floor
    if not (failed.any() or lost.any()):
        return new, []
    assert old.covariances is not None
    if kind == "tied":
        keep, keep_shape = lost, failed[0]
    else:
        keep = keep_shape = lost | failed
    new.means = torch.where(keep[:, None], old.means, new.means)
    for name in ("covariances", "precisions_cholesky"):
        now, before = getattr(new, name), getattr(old, name)
        setattr(new, name, torch.where(_columns(keep_shape, now), before, now))
    everything = keep if kind != "tied" else keep | failed
    return new, everything.nonzero()[:, 0].tolist()
