"""`GMMHMM`: a Gaussian mixture for each state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from torch import Tensor

from evidens.models._sequences import Sequences
from evidens.models.gmm_parameters import GMMParameters
from evidens.models.gmm_statistics import GMMStatistics
from evidens.models.hmm_base import BaseHMM
from evidens.models.hmm_checks import check_type
from evidens.models.hmm_gaussian import (
    data_covariance,
    fill_gaussian,
    frames_for_kmeans,
    precisions_of,
    seeded_kmeans,
    square_roots,
)
from evidens.models.hmm_monitor import log
from evidens.models.hmm_parameters import UNVISITED, host, shares, smallest, spread, tensor
from evidens.models.hmm_queries import Sampler
from evidens.models.hmm_statistics import add_gaussian, gaussian_log_prob


def _flat(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A prior of every Gaussian, one behind the other: (K M) or (K M, D)."""
    return np.broadcast_to(value, shape).reshape(-1, *shape[2:])


class GMMHMM(BaseHMM):
    """Hidden Markov model with a Gaussian mixture for each state.

    A drop-in for ``hmmlearn.hmm.GMMHMM``.  Beyond it: weights of sequences, labels, missing frames
    and features, chunks and `partial_fit`, tensors on any device, several processes, `log_prob`
    with gradients, `impute`, `sample_paths`, `save` and `load`.

    Args:
        n_components: K, the number of states.
        n_mix: M, the number of Gaussians in each state.
        min_covar: added to the variances at the start.
        startprob_prior, transmat_prior: Dirichlet priors; 1 is none.
        weights_prior: Dirichlet prior of the rows of ``weights_``: a number or (K, M).
        means_prior, means_weight: mean and precision of the normal prior of the means.
        covars_prior, covars_weight: inverse gamma (spherical, diag) or inverse Wishart prior (full,
            tied), in hmmlearn's meaning; None is none.
        covariance_type: ``"spherical"``, ``"diag"``, ``"full"``, or ``"tied"``: one matrix for the
            mixture of each state (not one for all states, as in `GaussianHMM`).
        algorithm, random_state, n_iter, tol, verbose, implementation: as in `BaseHMM`.
        params, init_params: letters ``s`` start, ``t`` transitions, ``m`` means, ``c`` covariances,
            ``w`` weights of the mixtures.

    Attributes:
        startprob_, transmat_, monitor_, converged_, n_iter_, statistics_, n_samples_seen_: as in
            `BaseHMM`.
        weights_: (K, M), rows sum to 1.
        means_: (K, M, D).
        covars_: (K, M), (K, M, D), (K, M, D, D) or for tied (K, D, D).
        n_features: D.

    Where it differs from hmmlearn: NaN is a missing value; the priors given to the constructor stay
    as they are; a Gaussian that is not visited, or whose covariance is no longer positive definite,
    keeps its parameters with a warning.  As there, new covariances are about the *old* means, which
    is a generalised EM step: the likelihood still never falls.

    Source: Rabiner, A tutorial on hidden Markov models (1989), section IV A.

    Example:
        >>> import evidens, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.repeat([0.0, 20.0], 50)[:, None] + rng.choice([-3.0, 3.0], (100, 1))
        >>> X = X + rng.normal(size=(100, 1)) / 4
        >>> model = evidens.GMMHMM(2, n_mix=2, random_state=0, init_params="stmw")
        >>> model.covars_ = np.ones((2, 2, 1))
        >>> model = model.fit(X)
        >>> np.sort(model.means_[:, :, 0].ravel()).round()
        array([-3.,  3., 17., 23.])
    """

    weights_: Any
    means_: Any
    covars_: Any

    def __init__(
        self,
        n_components: int = 1,
        n_mix: int = 1,
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        weights_prior: Any = 1.0,
        means_prior: Any = 0.0,
        means_weight: Any = 0.0,
        covars_prior: Any = None,
        covars_weight: Any = None,
        algorithm: str = "viterbi",
        covariance_type: str = "diag",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmcw",
        init_params: str = "stmcw",
        implementation: str = "log",
    ) -> None:
        super().__init__(
            n_components,
            startprob_prior=startprob_prior,
            transmat_prior=transmat_prior,
            algorithm=algorithm,
            random_state=random_state,
            n_iter=n_iter,
            tol=tol,
            verbose=verbose,
            params=params,
            init_params=init_params,
            implementation=implementation,
        )
        self.covariance_type = covariance_type
        self.min_covar = min_covar
        self.n_mix = n_mix
        self.weights_prior = weights_prior
        self.means_prior = means_prior
        self.means_weight = means_weight
        self.covars_prior = covars_prior
        self.covars_weight = covars_weight

    # --- parameters ------------------------------------------------------------------------------

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k, m, d = self.n_components, self.n_mix, self.n_features
        covariances = {
            "spherical": k * m,
            "diag": k * m * d,
            "full": k * m * d * (d + 1) // 2,
            "tied": k * d * (d + 1) // 2,
        }
        return {
            "s": k - 1,
            "t": k * (k - 1),
            "m": k * m * d,
            "c": covariances.get(self.covariance_type, 0),
            "w": m - 1,  # of one state, as hmmlearn counts
        }

    def _check_settings(self) -> None:
        super()._check_settings()
        check_type(self.covariance_type)
        if not isinstance(self.n_mix, int | np.integer) or self.n_mix < 1:
            raise ValueError(f"n_mix: expected an integer of at least 1, got {self.n_mix!r}")

    def _shape(self) -> tuple[int, ...]:
        k, m, d = self.n_components, self.n_mix, self.n_features
        shape = {"spherical": (k, m), "diag": (k, m, d), "full": (k, m, d, d), "tied": (k, d, d)}
        return shape[self.covariance_type]

    def _check(self) -> None:
        super()._check()
        k, m = self.n_components, self.n_mix
        means = self._host("means_")
        if not hasattr(self, "n_features"):
            self.n_features = means.shape[-1]
        d = self.n_features
        shape = self._host("weights_").shape
        if shape != (k, m):
            raise ValueError(
                f"weights_ must have shape (n_components, n_mix), actual shape: {shape}"
            )
        self._check_sum_1("weights_")
        if means.shape != (k, m, d):
            raise ValueError(
                "means_ must have shape (n_components, n_mix, n_features), actual shape: "
                f"{means.shape}"
            )
        self._check_finite("means_")
        covars = self._host("covars_")
        covars = covars if covars.dtype.kind == "f" else covars.astype(np.float64)
        if covars.shape != self._shape():
            raise ValueError(
                f"{self.covariance_type!r} mixture covars must have shape {self._shape()}, actual "
                f"shape: {covars.shape}"
            )
        if self.covariance_type in ("spherical", "diag"):
            if not (covars >= 0).all():
                raise ValueError(f"{self.covariance_type!r} mixture covars must be non-negative")
            if (covars == 0).any():
                log.warning("Degenerate mixture covariance")
            return
        matrices = covars.reshape(-1, d, d)
        bad = ~np.isclose(matrices, matrices.swapaxes(1, 2)).all((1, 2))
        least = np.linalg.eigvalsh(np.where(bad[:, None, None], 0, matrices))[:, 0]
        # A fitted matrix can be singular, and rounding can be on either side of that.
        floor = -256 * np.finfo(matrices.dtype).eps * np.trace(matrices, axis1=1, axis2=2)
        for wrong, what in ((bad, "symmetric"), (least < floor, "positive definite")):
            if wrong.any():
                raise ValueError(f"Covariance of {self._which(int(wrong.argmax()))} is not {what}")
        if (least <= 0).any():
            which = self._which(int((least <= 0).argmax()))
            log.warning("Covariance of %s has a null eigenvalue.", which)

    def _which(self, matrix: int) -> str:
        if self.covariance_type == "tied":
            return f"state #{matrix}"
        return f"state #{matrix // self.n_mix}, mixture #{matrix % self.n_mix}"

    def _emission(self) -> GMMParameters:
        """All K M Gaussians as one mixture, its weights those of the states."""
        weights, means, covars = tensor(self.weights_), tensor(self.means_), tensor(self.covars_)
        dtype = torch.promote_types(torch.promote_types(weights.dtype, means.dtype), covars.dtype)
        d = means.shape[-1]
        kind, covars = self.covariance_type, covars.to(dtype)
        if kind in ("spherical", "diag"):
            covars = covars.clamp(min=torch.finfo(dtype).tiny)
        if kind == "tied":
            kind, covars = "full", covars[:, None].expand(-1, self.n_mix, -1, -1)
        covars = covars.reshape(-1, *covars.shape[2:])
        p, failed = precisions_of(covars, kind)
        if failed.any():
            raise ValueError("'covars' must be symmetric, positive-definite")
        weights, means = weights.reshape(-1).to(dtype), means.reshape(-1, d).to(dtype)
        return GMMParameters(kind, weights, means, p.to(dtype), covars)

    def _emission_attributes(self, emission: GMMParameters) -> dict[str, Tensor]:
        k, m = self.n_components, self.n_mix
        cov = emission.covariances
        assert cov is not None
        cov = cov.reshape(k, m, *cov.shape[1:])
        return {
            "weights_": emission.weights.reshape(k, m),
            "means_": emission.means.reshape(k, m, -1),
            "covars_": cov[:, 0] if self.covariance_type == "tied" else cov,
        }

    @property
    def _width(self) -> int:
        return self.n_components * self.n_mix

    # --- E step ----------------------------------------------------------------------------------

    def _log_obs(self, x: Tensor, emission: GMMParameters, missing: bool) -> tuple[Tensor, Tensor]:
        terms = gaussian_log_prob(x, emission, missing)
        return torch.logsumexp(terms.view(len(x), -1, self.n_mix), 2), terms

    def _zero_statistics(self, emission: GMMParameters, k: int) -> GMMStatistics:
        # Of all K M Gaussians: the family needs them even where covariances are shared in a state.
        return GMMStatistics.zeros(emission.covariance_type, emission.means)

    def _visits(self, stats: Any) -> Tensor:
        return stats.weight.view(self.n_components, -1).sum(1)

    def _split(self, terms: Tensor, r: Tensor) -> Tensor:
        """Posteriors of the components (n, K M) from those of the states (n, K)."""
        n, k = r.shape
        terms = terms.view(n, k, -1)
        top = terms.amax(2, keepdim=True)
        share = (terms - top.where(top.isfinite(), 0)).exp()
        total = share.sum(2, keepdim=True)
        return (share * (r[:, :, None] / total.where(total > 0, 1))).view(n, -1)

    def _accumulate(
        self, stats: Any, x: Tensor, r: Tensor, emission: Any, work: Any, missing: bool
    ) -> None:
        add_gaussian(stats, x, self._split(work, r), emission, missing)

    def _fill(self, x: Tensor, posteriors: Tensor, emission: GMMParameters) -> Tensor:
        terms = gaussian_log_prob(x, emission, True)
        return fill_gaussian(x, self._split(terms, posteriors), emission)

    # --- M step ----------------------------------------------------------------------------------

    def _maximise_emission(
        self, stats: GMMStatistics, old: GMMParameters, dtype: torch.dtype
    ) -> tuple[GMMParameters, np.ndarray]:
        k, m = self.n_components, self.n_mix
        d = old.means.shape[1]
        if stats.centre is not old.means:
            stats = stats.about(old.means)
        weight, before = stats.weight.numpy(), old.means.numpy()
        mean_prior = _flat(spread(self.means_prior, (k, m, d), "means_prior"), (k, m, d))
        mean_weight = _flat(spread(self.means_weight, (k, m), "means_weight"), (k, m))[:, None]
        weights, means = old.weights, before
        kept: np.ndarray = np.zeros(k, dtype=bool)
        if "w" in self.params:
            extra = spread(self.weights_prior, (k, m), "weights_prior") - 1
            value = np.maximum(weight.reshape(k, m) + extra, 0)
            value, _ = shares(value, weights.numpy().reshape(k, m))
            weights = torch.from_numpy(value.reshape(-1))
        if "m" in self.params:
            denominator = weight[:, None] + mean_weight
            known = denominator > UNVISITED
            total = mean_weight * (mean_prior - before) + stats.first.numpy()
            means = before + np.where(known, total, 0) / np.where(known, denominator, 1)
        covariances, p = old.covariances, old.precisions_cholesky
        if "c" in self.params:
            from_prior = means - mean_prior
            covariances, p, failed = self._covariances(stats, from_prior, mean_weight, old, dtype)
            kept = np.asarray(failed.reshape(k, -1).any(1))
        new = torch.from_numpy(means)
        return GMMParameters(old.covariance_type, weights, new, p, covariances), kept

    def _covariances(
        self,
        stats: GMMStatistics,
        from_prior: np.ndarray,
        mean_weight: np.ndarray,
        old: GMMParameters,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, np.ndarray]:
        """Covariances about the old means, their factors, and which Gaussians kept the old ones."""
        k, m = self.n_components, self.n_mix
        (n, d), kind = from_prior.shape, self.covariance_type
        weight, second = stats.weight.numpy(), stats.second.numpy()
        # What hmmlearn takes for None: priors that cancel in the formulas below.
        defaults = {
            "full": (0.0, -(1.0 + d + 1.0)),
            "tied": (0.0, -(m + d + 1.0)),
            "diag": (-1.5, 0.0),
            "spherical": (-(m + 2.0) / 2.0, 0.0),
        }[kind]
        given = (self.covars_prior, self.covars_weight)
        values = [other if value is None else value for value, other in zip(given, defaults)]
        shape = self._shape()
        of_weight = {"full": (k, m), "tied": (k,), "diag": (k, m, d), "spherical": (k, m)}[kind]
        prior = np.broadcast_to(spread(values[0], shape, "covars_prior"), shape)
        extra = np.broadcast_to(spread(values[1], of_weight, "covars_weight"), of_weight)
        outer = from_prior[:, :, None] * (mean_weight * from_prior)[:, None, :]
        if kind == "spherical":
            distance = (mean_weight * from_prior**2).sum(1)
            total = distance + 2 * extra.reshape(n) + d * second
            count = d * (weight + 1) + 2 * (prior.reshape(n) + 1)
        elif kind == "diag":
            total = mean_weight * from_prior**2 + 2 * extra.reshape(n, d) + second
            count = weight[:, None] + 1 + 2 * (prior.reshape(n, d) + 1)
        elif kind == "full":
            total = prior.reshape(n, d, d).swapaxes(1, 2) + outer + second
            count = (weight + 1 + extra.reshape(n) + d + 1)[:, None, None]
        else:
            total = prior.swapaxes(1, 2) + (outer + second).reshape(k, m, d, d).sum(1)
            total = np.repeat(total, m, axis=0)
            count = weight.reshape(k, m).sum(1) + m + extra + d + 1
            count = np.repeat(count, m)[:, None, None]
        empty = count <= UNVISITED
        new = total / np.where(empty, 1, count)
        factor, none = precisions_of(torch.from_numpy(new), old.covariance_type)
        p, failed = factor.numpy(), none.numpy() | empty.reshape(n, -1).any(1)
        if kind in ("diag", "spherical"):  # what is less rounds to 0
            failed |= (new.reshape(n, -1) < smallest(dtype)).any(1)
        if failed.any():
            assert old.covariances is not None
            where = failed.reshape(-1, *[1] * (new.ndim - 1))
            new = np.where(where, old.covariances.numpy(), new)
            p = np.where(where, old.precisions_cholesky.numpy(), p)
        return torch.from_numpy(new), torch.from_numpy(p), failed

    # --- the start -------------------------------------------------------------------------------

    def _start_emission(self, data: Sequences) -> dict[str, Any]:
        self._check_settings()
        k, m = self.n_components, self.n_mix
        start: dict[str, Any] = {}
        cv = data_covariance(data, self.min_covar)
        if self._needs_init("w", "weights_"):
            start["weights_"] = np.full((k, m), 1 / m)
        if self._needs_init("m", "means_"):
            means = torch.from_numpy(self._start_means(data, cv))
            start["means_"] = data.ranks.first(means).numpy()
        if self._needs_init("c", "covars_"):
            value = {"diag": np.diag(cv), "spherical": cv.mean()}.get(self.covariance_type, cv)
            if self.covariance_type == "spherical" and value <= 0:
                value = np.diag(cv).mean()
            start["covars_"] = np.broadcast_to(value, self._shape()).copy()
        return start

    def _start_means(self, data: Sequences, cv: np.ndarray) -> np.ndarray:
        """(K, M, D): k-means into states, then each cluster into its Gaussians."""
        k, m = self.n_components, self.n_mix
        if data.total_used < k:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {k}, n_samples = "
                f"{data.total_used}"
            )
        rng = check_random_state(self.random_state)
        x, weight, labels = frames_for_kmeans(data, k, rng)
        main = seeded_kmeans(x, weight, labels, k, self.random_state)
        state = main.labels_ if labels is None else np.where(labels >= 0, labels, main.labels_)
        means = []
        for i in range(k):
            own = state == i
            if own.sum() >= m:
                kmeans = KMeans(n_clusters=m, random_state=self.random_state, n_init=10)
                kmeans.fit(x[own], sample_weight=None if weight is None else weight[own])
                means.append(kmeans.cluster_centers_)
            else:
                centre = main.cluster_centers_.mean(0)
                means.append(rng.multivariate_normal(centre, cov=cv, size=m))
        return np.stack(means)

    # --- draws -----------------------------------------------------------------------------------

    def _sampler(self) -> Sampler:
        k, m = self.n_components, self.n_mix
        means = host(self.means_).astype(np.float64)
        d = means.shape[-1]
        cdf = np.cumsum(host(self.weights_).astype(np.float64), axis=1)
        cdf /= cdf[:, -1:]
        covars = host(self.covars_).astype(np.float64)
        if self.covariance_type == "tied":
            covars = np.repeat(covars[:, None], m, axis=1)
        elif self.covariance_type == "spherical":
            covars = covars[:, :, None, None] * np.eye(d)
        elif self.covariance_type == "diag":
            covars = covars[..., None] * np.eye(d)
        roots = square_roots(covars.reshape(-1, d, d)).reshape(k, m, d, d)

        def draw(state: int, rng: np.random.RandomState) -> np.ndarray:
            i = int(np.searchsorted(cdf[state], rng.random_sample(), side="right"))
            return rng.standard_normal(d) @ roots[state, i] + means[state, i]

        return draw
