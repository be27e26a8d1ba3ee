"""`GaussianHMM`: one Gaussian for each state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.utils import check_random_state
from sklearn.utils.random import sample_without_replacement
from torch import Tensor

from evidens.models import _missing
from evidens.models._sequences import Sequences
from evidens.models.gmm_init import sample_size
from evidens.models.gmm_parameters import GMMParameters, cholesky_of_precisions, definite
from evidens.models.gmm_statistics import GMMStatistics
from evidens.models.hmm_base import BaseHMM
from evidens.models.hmm_checks import SHARED, check_covars, check_type
from evidens.models.hmm_normal import NormalSteps
from evidens.models.hmm_parameters import (
    UNVISITED,
    HMMParameters,
    finite,
    greatest,
    host,
    smallest,
    spread,
    tensor,
)
from evidens.models.hmm_queries import Sampler
from evidens.models.hmm_statistics import add_gaussian, gaussian_log_prob
from evidens.ops import _hmm_maximise as maximise
from evidens.ops._hmm_inner import gaussian as hmm_gaussian

# hmmlearn adds this to a matrix that has no Cholesky factor, for densities only.
RESCUE = 1e-7


def precisions_of(covariances: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """``precisions_cholesky`` and (K,) or (1,) which covariances have none, not even rescued."""
    if kind not in ("full", "tied"):
        c = covariances.double()
        if bool(c.min() > 0) and bool(c.max() < torch.inf):
            return c.rsqrt(), torch.zeros(len(c), dtype=torch.bool, device=c.device)
    p, failed = cholesky_of_precisions(covariances.double(), kind)
    if kind not in ("full", "tied") or not bool(failed.any()):
        return p, failed
    eye = torch.eye(covariances.shape[-1], dtype=torch.float64, device=covariances.device)
    shape = (-1, 1, 1) if kind == "full" else ()
    # Then what rounding to the dtype of the attributes may have cost.
    for rescued in (covariances.double() + RESCUE * eye, definite(covariances, kind).double()):
        other, still = cholesky_of_precisions(rescued, kind)
        p = torch.where((failed & ~still).reshape(shape), other, p)
        failed = failed & still
    return p, failed


def square_roots(covariances: np.ndarray) -> np.ndarray:
    """(K, D, D) ``A`` with ``A^T A`` the covariance: what NumPy multiplies normal draws by."""
    _, s, v = np.linalg.svd(covariances)
    return np.sqrt(s)[:, :, None] * v


def data_covariance(data: Sequences, min_covar: float) -> np.ndarray:
    """(D, D) of all frames, ``min_covar`` added, float64; NaN is filled with column means.

    Raises:
        ValueError: it does not fit into the type of the data.
    """
    finite(min_covar, "min_covar")
    like = torch.zeros(1, data.n_features, dtype=torch.float64, device=data.device)
    total = like[0].clone()
    for x, weight, _ in data.blocks(whole=False):
        x = data.filled(x).double()
        total += x.sum(0) if weight is None else weight.double() @ x
    mean = data.ranks.sum(total) / data.total_weight
    stats = GMMStatistics.zeros("full", like + mean)
    for x, weight, _ in data.blocks(whole=False):
        ones = x.new_ones(len(x), 1) if weight is None else weight[:, None].contiguous()
        stats.assign(data.filled(x), ones)
    stats.reduce(data.ranks)
    n = data.total_weight
    cov = stats.second[0].cpu().numpy() / (n - 1 if n > 1 else n)
    if not np.abs(cov).max() <= torch.finfo(data.dtype).max:
        largest = max(float(x.nan_to_num().abs().max()) for x, _, _ in data.blocks(whole=False))
        name, wider = str(data.dtype)[6:], "" if data.dtype == torch.float64 else " or pass float64"
        raise ValueError(
            f"X: values up to {largest:.3g} overflow {name} when squared; rescale them{wider}"
        )
    return cov + min_covar * np.eye(len(cov))


def frames_for_kmeans(
    data: Sequences, k: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Frames, weights and labels on the host: all of them, or a random sample of many."""
    n, size = data.total_used, sample_size(k, data.n_features)
    if n <= size and data.in_memory is not None and data.used is None and data.ranks.size == 1:
        x, weight = data.filled(data.in_memory), data.sample_weight
        labels = data.labels
    else:
        index = np.arange(n)
        if n > size:
            index = np.sort(sample_without_replacement(n, size, random_state=rng))
        x, weight = data.take(index)
        labels = data.take_labels(index)
    return (
        x.cpu().numpy(),
        None if weight is None else weight.cpu().numpy(),
        None if labels is None else labels.cpu().numpy(),
    )


def seeded_kmeans(
    x: np.ndarray, weight: np.ndarray | None, labels: np.ndarray | None, k: int, random_state: Any
) -> KMeans:
    """k-means as hmmlearn starts it; states with labelled frames start at their mean."""
    seeds = [] if labels is None else np.unique(labels[labels >= 0]).tolist()
    if not seeds:
        kmeans = KMeans(n_clusters=k, random_state=random_state, n_init=10)
    else:
        assert labels is not None
        start = np.empty((k, x.shape[1]), x.dtype)
        for state in seeds:
            start[state] = x[labels == state].mean(0)
        free = np.setdiff1d(np.arange(k), seeds)
        if len(free):
            start[free], _ = kmeans_plusplus(
                x, len(free), sample_weight=weight, random_state=random_state
            )
        kmeans = KMeans(n_clusters=k, init=start, random_state=random_state, n_init=1)
    return kmeans.fit(x, sample_weight=weight)


class GaussianHMM(BaseHMM):
    """Hidden Markov model with a Gaussian for each state.

    A drop-in for ``hmmlearn.hmm.GaussianHMM``.  Beyond it: weights of sequences, labels, missing
    frames and features, chunks and `partial_fit`, tensors on any device, several processes,
    `log_prob` with gradients, `impute`, `sample_paths`, `save` and `load`.

    Args:
        n_components: K, the number of states.
        covariance_type: ``"spherical"``, ``"diag"``, ``"full"`` or ``"tied"``.
        min_covar: added to the variances at the start.
        startprob_prior, transmat_prior: Dirichlet priors; 1 is none.
        means_prior, means_weight: mean and precision of the normal prior of the means.
        covars_prior, covars_weight: inverse gamma prior of variances (spherical, diag) or inverse
            Wishart prior of matrices (full, tied), in hmmlearn's meaning: ``covars_prior`` is added
            to the sum of squares.
        algorithm, random_state, n_iter, tol, verbose, implementation: as in `BaseHMM`.
        params, init_params: letters ``s`` start, ``t`` transitions, ``m`` means, ``c`` covariances.

    Attributes:
        startprob_, transmat_, monitor_, converged_, n_iter_, statistics_, n_samples_seen_: as in
            `BaseHMM`.
        means_: (K, D).
        covars_: read as matrices (K, D, D); set in the shape of ``covariance_type``: (K,), (K, D),
            (K, D, D) or (D, D).
        compact_covars_: the same, read in that shape, too.
        n_features: D.

    Arrays are float32 if the data are and else float64; tensors if X is one.  Sums are in float64
    about the old means.

    Where it differs from hmmlearn: NaN is a missing value; a state that is not visited, or whose
    covariance is no longer positive definite, keeps its parameters with a warning instead of NaN or
    an error; no outlier underflows; after `fit`, ``covars_`` of ``"spherical"`` is (K, D, D).

    Source: Rabiner, A tutorial on hidden Markov models (1989), section VI; the priors are those of
    Huang, Acero and Hon, Spoken Language Processing (2001), p. 443.

    Example:
        >>> import evidens, numpy as np
        >>> X = np.repeat([0.0, 5.0, 0.0], 4)[:, None] + np.tile([-0.1, 0.1], 6)[:, None]
        >>> model = evidens.GaussianHMM(2, random_state=0).fit(X)
        >>> states = model.predict(X)
        >>> (states != states[0]).astype(int)
        array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
        >>> model.impute([[5.0], [5.1], [np.nan], [4.9], [5.0]])[2].round()
        array([5.])
    """

    _reads = (*SHARED, "covariance_type", "n_features", "means_", "_covars_")
    means_: Any

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "diag",
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        means_prior: Any = 0,
        means_weight: Any = 0,
        covars_prior: Any = 1e-2,
        covars_weight: Any = 1,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
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
        self.means_prior = means_prior
        self.means_weight = means_weight
        self.covars_prior = covars_prior
        self.covars_weight = covars_weight

    # --- parameters ------------------------------------------------------------------------------

    @property
    def covars_(self) -> Any:
        """Covariances as matrices, (K, D, D)."""
        covars, k = self._covars_, self.n_components
        d = int(self.means_.shape[1]) if hasattr(self, "means_") else self.n_features
        c = tensor(covars)
        if self.covariance_type == "spherical":
            c = c[:, None, None] * torch.eye(d, dtype=c.dtype, device=c.device)
        elif self.covariance_type == "diag":
            c = torch.diag_embed(c)
        elif self.covariance_type == "tied":
            c = c.expand(k, -1, -1).clone()
        else:
            return covars
        return c if isinstance(covars, Tensor) else c.numpy()

    @covars_.setter
    def covars_(self, covars: Any) -> None:
        array = host(covars)
        array = array if array.dtype.kind == "f" else array.astype(np.float64)
        check_covars(array, self.covariance_type, self.n_components)
        value = tensor(covars).detach() if isinstance(covars, Tensor) else np.array(array)
        if self.covariance_type == "spherical":
            value = value.reshape(self.n_components, -1)[:, 0]
        self._covars_: Any = value.clone() if isinstance(value, Tensor) else value.copy()

    @property
    def compact_covars_(self) -> Any:
        """Covariances in the shape of ``covariance_type``, in which they can be set."""
        return self._covars_

    @compact_covars_.setter
    def compact_covars_(self, covars: Any) -> None:
        self._covars_ = covars  # of a file: checked when they are used

    def _fitted_attributes(self) -> dict[str, Any]:
        own = {"compact_covars_": self._covars_} if hasattr(self, "_covars_") else {}
        return super()._fitted_attributes() | own

    def _check_settings(self) -> None:
        super()._check_settings()
        check_type(self.covariance_type)

    def _check(self) -> None:
        super()._check()
        means, k = self._host("means_"), self.n_components
        if means.ndim != 2 or len(means) != k:
            raise ValueError("means_ must have shape (n_components, n_features)")
        self._check_finite("means_")
        d = self.n_features = means.shape[1]
        shape = {"spherical": (k,), "diag": (k, d), "full": (k, d, d), "tied": (d, d)}
        if tuple(self._covars_.shape) != shape[self.covariance_type]:
            raise ValueError(
                f"{self.covariance_type!r} covars must have shape {shape[self.covariance_type]}, "
                f"got {tuple(self._covars_.shape)}"
            )

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k, d = self.n_components, self.n_features
        covariances = {
            "spherical": k,
            "diag": k * d,
            "full": k * d * (d + 1) // 2,
            "tied": d * (d + 1) // 2,
        }
        return {
            "s": k - 1,
            "t": k * (k - 1),
            "m": k * d,
            "c": covariances.get(self.covariance_type, 0),
        }

    def _emission(self) -> GMMParameters:
        means, covars = tensor(self.means_), tensor(self._covars_)
        p, failed = precisions_of(covars, self.covariance_type)
        if failed.any():
            raise ValueError("'covars' must be symmetric, positive-definite")
        dtype = torch.promote_types(means.dtype, covars.dtype)
        ones = means.new_ones(len(means))
        return GMMParameters(self.covariance_type, ones, means, p, covars).to(dtype)

    def _emission_attributes(self, emission: GMMParameters) -> dict[str, Tensor]:
        assert emission.covariances is not None
        return {"means_": emission.means, "_covars_": emission.covariances}

    # --- E step ----------------------------------------------------------------------------------

    def _log_obs(self, x: Tensor, emission: GMMParameters, missing: bool) -> tuple[Tensor, None]:
        return gaussian_log_prob(x, emission, missing), None

    def _normal(self, emission: GMMParameters) -> tuple[Tensor, Tensor] | None:
        p, means = emission.precisions_cholesky, emission.means
        if self.covariance_type == "diag":
            return means, p
        return (means, p[:, None].expand_as(means)) if self.covariance_type == "spherical" else None

    def _zero_statistics(self, emission: GMMParameters, k: int) -> GMMStatistics:
        return GMMStatistics.zeros(self.covariance_type, emission.means)

    def _accumulate(
        self, stats: Any, x: Tensor, r: Tensor, emission: Any, work: Any, missing: bool
    ) -> None:
        add_gaussian(stats, x, r, emission, missing)

    def _fill(self, x: Tensor, posteriors: Tensor, emission: GMMParameters) -> Tensor:
        return fill_gaussian(x, posteriors, emission)

    # --- M step ----------------------------------------------------------------------------------

    def _maximise_emission(
        self, stats: GMMStatistics, old: GMMParameters, dtype: torch.dtype
    ) -> tuple[GMMParameters, np.ndarray]:
        assert old.covariances is not None
        stats, shape = stats.about(old.means), old.means.shape
        if self.covariance_type in ("full", "tied"):
            return self._maximise_matrices(stats, old)
        moments = stats.weight, stats.first, stats.second
        before = old.means, old.covariances, old.precisions_cholesky
        (means, covariances, p), kept = maximise.normal(
            moments, before, self._normal_settings(shape, dtype)
        )
        new = GMMParameters(self.covariance_type, old.weights, means, p, covariances)
        return new, kept.numpy()

    def _normal_settings(self, shape: torch.Size, dtype: torch.dtype) -> maximise.Settings:
        """The priors, and what is learned."""
        return maximise.Settings(
            mean_weight=self._prior("means_weight", shape),
            mean=self._prior("means_prior", shape),
            variance=self._prior("covars_prior", shape),
            variance_weight=greatest(self.covars_weight, "covars_weight"),
            means="m" in self.params,
            variances="c" in self.params,
            unvisited=UNVISITED,
            least=smallest(dtype),  # what is less rounds to 0
        )

    def _laid_out(self, data: Sequences, p: HMMParameters) -> NormalSteps | None:
        blocks = list(data.sequences()) if data.in_memory is not None else []
        one = len(blocks) == 1 and blocks[0].labels is None and data.ranks.size == 1
        plain = type(self) is GaussianHMM and self.covariance_type == "diag" and not data.missing
        here = p.start.is_cpu and p.start.dtype is torch.float64
        if not (one and plain and here) or hmm_gaussian.backend_on("cpu") != "cpu":
            return None
        settings = self._normal_settings(p.emission.means.shape, torch.float64)
        return NormalSteps(blocks[0], p, *self._table_priors(), settings)

    def _maximise_matrices(
        self, stats: GMMStatistics, old: GMMParameters
    ) -> tuple[GMMParameters, np.ndarray]:
        """`_maximise_emission` for full and tied covariances."""
        shape = old.means.shape
        mean_weight = spread(self.means_weight, shape, "means_weight")
        mean_prior = spread(self.means_prior, shape, "means_prior")
        before, weight, first = old.means.numpy(), stats.weight.numpy(), stats.first.numpy()
        means, lost = before, weight <= UNVISITED
        kept = lost
        if "m" in self.params:
            # Sums about the old means: they are moved to where the new ones are.
            denominator = mean_weight + weight[:, None]
            known = denominator > UNVISITED
            total = mean_weight * (mean_prior - before) + first
            means = before + np.where(known, total, 0) / np.where(known, denominator, 1)
            kept = lost & ~known.all(1)
        covariances, p = old.covariances, old.precisions_cholesky
        if "c" in self.params:
            apart, delta = means - mean_prior, means - before
            half = first - weight[:, None] * delta / 2
            added = apart[:, :, None] * (mean_weight * apart)[:, None, :]
            if self.covariance_type == "tied":
                cross, added = half.T @ delta, added.sum(0)
            else:
                cross = half[:, :, None] * delta[:, None, :]
            # Second moments about the new means.
            squares = stats.second.numpy() - cross - cross.swapaxes(-1, -2)
            covariances, p, failed = self._covariances(squares + added, weight, old)
            kept = kept | failed
        new = GMMParameters(
            self.covariance_type, old.weights, torch.from_numpy(means), p, covariances
        )
        return new, kept

    def _covariances(
        self, squares: np.ndarray, weight: np.ndarray, old: GMMParameters
    ) -> tuple[Tensor, Tensor, np.ndarray]:
        """New matrices, their ``precisions_cholesky``, and which states kept the old ones."""
        kind, (k, d) = self.covariance_type, old.means.shape
        assert old.covariances is not None
        squares = squares + spread(self.covars_prior, squares.shape, "covars_prior")
        extra = max(greatest(self.covars_weight, "covars_weight") - d, 0.0)
        denominator = extra + (weight if kind == "full" else weight.sum(keepdims=True))
        new = squares / np.maximum(denominator, UNVISITED).reshape(-1, *[1] * (squares.ndim - 1))
        factor, failed = precisions_of(torch.from_numpy(new), kind)
        p, keep = factor.numpy(), (denominator <= UNVISITED) | failed.numpy()
        if keep.any():
            where = keep[0] if kind == "tied" else keep[:, None, None]
            new = np.where(where, old.covariances.numpy(), new)
            p = np.where(where, old.precisions_cholesky.numpy(), p)
        keep = np.repeat(keep, k) if kind == "tied" else keep
        return torch.from_numpy(new), torch.from_numpy(p), keep

    # --- the start -------------------------------------------------------------------------------

    def _start_emission(self, data: Sequences) -> dict[str, Any]:
        self._check_settings()
        start: dict[str, Any] = {}
        covars = self._needs_init("c", "covars_")
        cov = data_covariance(data, self.min_covar) if covars else None
        if self._needs_init("m", "means_"):
            k = self.n_components
            if data.total_used < k:
                raise ValueError(
                    f"Expected n_samples >= n_components but got n_components = {k}, "
                    f"n_samples = {data.total_used}"
                )
            rng = check_random_state(self.random_state)
            x, weight, labels = frames_for_kmeans(data, k, rng)
            centres = seeded_kmeans(x, weight, labels, k, self.random_state).cluster_centers_
            start["means_"] = data.ranks.first(torch.from_numpy(centres)).numpy()
        if cov is not None:
            start["covars_"] = distributed(cov, self.covariance_type, self.n_components)
        return start

    # --- draws -----------------------------------------------------------------------------------

    def _sampler(self) -> Sampler:
        means = host(self.means_).astype(np.float64)
        roots = square_roots(host(self.covars_).astype(np.float64))
        d = means.shape[1]
        return lambda state, rng: rng.standard_normal(d) @ roots[state] + means[state]


def distributed(cov: np.ndarray, kind: str, k: int) -> np.ndarray:
    """One covariance matrix (D, D) for K states, in the shape of the type."""
    if kind == "spherical":
        # hmmlearn's: of all entries, which need not be positive.
        return np.full(k, cov.mean() if cov.mean() > 0 else np.diag(cov).mean())
    if kind == "diag":
        return np.tile(np.diag(cov), (k, 1))
    return np.tile(cov, (k, 1, 1)) if kind == "full" else cov


def fill_gaussian(x: Tensor, posteriors: Tensor, emission: GMMParameters) -> Tensor:
    """Frames (n, D), all with a NaN, filled by conditional means for posteriors (n, K)."""
    result, r = x.clone(), posteriors.double()
    p = emission.to(torch.float64)
    none = x.isnan().all(1)
    result[none] = (r[none] @ p.means).to(x.dtype)
    some = (~none).nonzero()[:, 0]
    for part in _missing.complete(x[some], p) if len(some) else ():
        rows = some[part.rows]
        values = torch.einsum("nk,knd->nd", r[rows], part.deviation) + r[rows] @ p.means
        result[rows] = torch.where(part.missing, values.to(x.dtype), x[rows])
    return result
