"""`GaussianMixture`: scikit-learn's estimator on the ops of the ``gmm`` stem.

The file is long for its docstrings; every part with a life of its own stands in a file beside it.
"""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from evidens.models import _missing
from evidens.models._arrays import keeps_features, rows_of, to_tensor
from evidens.models._em import Progress, Run, run_em
from evidens.models._persistence import Persistent
from evidens.models._ranks import Ranks
from evidens.models._rows import Rows, chunks_of
from evidens.models.gmm_init import initial_statistics
from evidens.models.gmm_mixtures import GMMMixtures
from evidens.models.gmm_parameters import (
    GMMParameters,
    check_means,
    check_precisions,
    check_weights,
    from_precisions,
)
from evidens.models.gmm_statistics import GMMStatistics, maximise

# Step sizes of partial_fit fall with this power of the share of the new rows among all.
FORGETTING = 0.7


class GaussianMixture(
    GMMMixtures,
    Persistent,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    DensityMixin,
    BaseEstimator,
):
    """Gaussian mixture, fitted by EM.

    A drop-in for `sklearn.mixture.GaussianMixture`: the same constructor, attributes and, from the
    same start, the same parameters.  Beyond it: ``sample_weight``, ``labels`` for some of the rows,
    missing values, chunks and `partial_fit`, tensors on any device, several processes, `log_prob`
    with gradients, `impute`, `marginal`, `conditional`, `from_parameters`, `save` and `load`.

    Args:
        n_components: K.
        covariance_type: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
        tol: EM stops when the mean log-density of a row changes by less (nats).
        reg_covar: added to every variance.
        max_iter: most EM steps; 0 keeps the start.
        n_init: starts; the best one is kept.
        init_params: ``"kmeans"``, ``"k-means++"``, ``"random"`` or ``"random_from_data"``.  Beyond
            ``max(min(131072, 3.5e6 / D), 512 K)`` rows the first two look at a random sample of
            that many.
        weights_init: (K,) start in place of that of ``init_params``.
        means_init: (K, D), likewise.
        precisions_init: inverse covariances in the shape of ``covariance_type``, likewise.
        random_state: seed or generator for the start and for `sample`.
        warm_start: `fit` goes on from where the last `fit` ended.
        verbose: 1 prints the progress, 2 also times and changes.
        verbose_interval: iterations between two prints.

    Attributes:
        weights_: (K,).
        means_: (K, D).
        covariances_: (K, D, D), (D, D), (K, D) or (K,).
        precisions_: their inverses.
        precisions_cholesky_: upper triangular ``P`` with ``P P^T`` the inverse covariance.
        converged_: whether the change fell below ``tol``.
        n_iter_: EM steps of the best start.
        lower_bound_: mean log-density of a row before the last M step, nats.
        lower_bounds_: the same after every step.
        n_samples_seen_: weight of the rows that the parameters stand for.
        n_features_in_: D.
        feature_names_in_: (D,) names of the columns of a data frame.

    Arrays are float32 if the data are and else float64; they are tensors on the device of X if X
    is a tensor.  All sums over rows are in float64 about the old means, so a variance is never the
    difference of two large numbers, in float32 neither.  ``"tied"`` is the exception: its sums are
    about one centre for all components, so means 1e8 standard deviations apart cost all digits.

    Where it differs from scikit-learn: NaN is a missing value and not an error; a component that
    loses its rows, or whose covariance is no longer positive definite, keeps its mean and
    covariance with a warning instead of moving to 0 or stopping the fit; Ctrl-C ends `fit` with
    what was learned so far.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 9.2.2.

    Example:
        >>> import evidens, numpy as np
        >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> gm = evidens.GaussianMixture(n_components=2, random_state=0).fit(X)
        >>> gm.means_
        array([[10.,  2.],
               [ 1.,  2.]])
        >>> gm.predict([[0, 0], [12, 3]])
        array([1, 0])
        >>> gm.impute([[9.5, np.nan]]).round(3)
        array([[9.5, 2. ]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions({"full", "tied", "diag", "spherical"})],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions({"kmeans", "random", "random_from_data", "k-means++"})],
        "weights_init": ["array-like", Tensor, None],
        "means_init": ["array-like", Tensor, None],
        "precisions_init": ["array-like", Tensor, None],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # --- learning --------------------------------------------------------------------------------

    @keeps_features
    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        sample_weight: Any = None,
        labels: Any = None,
        process_group: Any = None,
    ) -> GaussianMixture:
        """Maximum likelihood by EM.

        No copy of X and no (N, K) array is made.

        Args:
            X: array-like, data frame or tensor (N, D), N >= 2 and N >= K; or chunks of them: a list
                of 2-D arrays, any object whose ``iter()`` gives them afresh, or a function that
                returns a new iterator.  NaN marks a missing value (exact conditional EM; the values
                are taken to be missing at random).
            y: ignored.
            sample_weight: (N,) non-negative; 2 is a row that stands there twice, 0 one that does
                not stand there.
            labels: (N,) the component of each row where it is known, -1 where not.
            process_group: a `torch.distributed` group, or True for the default one.  Each process
                passes its own rows; all get the parameters of one process with all rows.

        Returns:
            self.

        Raises:
            ValueError: infinities, wrong shapes, fewer rows than components, weights or labels out
                of range, a feature without any observed value, or a start with a covariance that
                is not positive definite (only with ``reg_covar`` close to 0).
            TypeError: X can be read only once.
            RuntimeError: ``process_group`` without a running torch.distributed.

        Warns:
            ConvergenceWarning: ``max_iter`` was reached, or a component collapsed.
            RuntimeWarning: Ctrl-C.
        """
        self._validate_params()
        ranks = Ranks(process_group)
        rows = Rows(self, X, sample_weight, labels, n_components=self.n_components, ranks=ranks)
        self._check_size(rows)
        _ = rows.column_means  # a feature that nobody has seen is an error here, not NaN later
        given = self._given(rows.device, self.n_components, rows.n_features)
        rng = check_random_state(self.random_state)
        warm = self.warm_start and hasattr(self, "converged_")
        if warm:
            self._check_same_size(rows)
        progress = Progress(self.verbose, self.verbose_interval, self.max_iter)
        collapsed: set[int] = set()

        def step(parameters: GMMParameters) -> tuple[GMMParameters, float]:
            stats = self._expect(rows, parameters)
            new, kept = self._maximise(rows, stats, parameters)
            collapsed.update(kept)
            return new, float(stats.log_likelihood / stats.total)

        best: Run[GMMParameters] | None = None
        for init in range(1 if warm else self.n_init):
            progress.begin(init)
            try:
                start = (
                    self._parameters(rows.device, rows.dtype)
                    if warm
                    else self._start(rows, rng, given)
                )
            except KeyboardInterrupt:
                if best is None:
                    raise
                best.interrupted, best.converged = True, False
                break
            run = run_em(
                step,
                start,
                max_iter=self.max_iter,
                tol=self.tol,
                progress=progress,
                lower_bound=self.lower_bound_ if warm else -math.inf,
            )
            # Better by more than rounding: a tie keeps the first, on any number of processes.
            if (
                best is None
                or math.isinf(best.lower_bound)
                or run.lower_bound > best.lower_bound + 1e-12 * abs(best.lower_bound)
            ):
                best = run
            if run.interrupted:
                best.interrupted, best.converged = True, False
                break
        assert best is not None
        self._set(best.parameters, rows.is_tensor)
        self.converged_ = best.converged
        self.n_iter_ = best.n_iter
        self.lower_bound_ = best.lower_bound
        self.lower_bounds_ = best.lower_bounds
        self.n_samples_seen_ = rows.total_weight
        self._warn(best, collapsed)
        return self

    def fit_predict(self, X: Any, y: None = None, **fit_params: Any) -> Any:
        """`fit`, then `predict` the same rows: (N,) int64; for chunks, of all of them."""
        self.fit(X, y, **fit_params)
        chunks = chunks_of(X)
        if chunks is None:
            return self.predict(X)
        parts = [self.predict(chunk) for chunk in chunks()]
        return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)

    @keeps_features
    def partial_fit(
        self, X: Any, y: None = None, *, sample_weight: Any = None, labels: Any = None
    ) -> GaussianMixture:
        """Learn from one more chunk of rows: one step of stepwise EM.

        The first call starts from its chunk as `fit` does (it needs K rows).  A call after `fit`,
        `load` or `from_parameters` goes on from there.  With ``n`` the weight of the chunk and
        ``N`` that of all rows so far, the statistics move towards those of the chunk by
        ``(n / N) ** 0.7``: more than their share, so that early, poor responsibilities are
        forgotten.  Several passes over the chunks improve the fit.

        Args:
            X: array-like or tensor (n, D); NaN marks a missing value.
            y: ignored.
            sample_weight: (n,), as in `fit`.
            labels: (n,), as in `fit`.

        Returns:
            self.  ``lower_bound_`` is the mean log-density of the chunk before the step.

        Raises:
            ValueError: as `fit`.

        Source: Cappé and Moulines, On-line expectation-maximization algorithm for latent data
        models (2009), equation 13; the rate is that of Liang and Klein (2009).

        Example:
            >>> import evidens, numpy as np
            >>> rng = np.random.default_rng(0)
            >>> mixture = evidens.GaussianMixture(2, random_state=0)
            >>> for _ in range(50):
            ...     chunk = rng.normal(size=(100, 1)) + 8 * rng.integers(2, size=(100, 1))
            ...     mixture = mixture.partial_fit(chunk)
            >>> sorted(mixture.means_[:, 0].round().tolist())
            [0.0, 8.0]
        """
        self._validate_params()
        first = not hasattr(self, "means_")
        rows = Rows(
            self,
            X,
            sample_weight,
            labels,
            n_components=self.n_components,
            ranks=Ranks(),
            reset=first,
        )
        if first:
            self._check_size(rows)
            rng = check_random_state(self.random_state)
            given = self._given(rows.device, self.n_components, rows.n_features)
            parameters = self._start(rows, rng, given)
            self.n_samples_seen_, self.n_iter_, self.lower_bounds_ = 0.0, 0, []
        else:
            self._check_same_size(rows)
            parameters = self._parameters(rows.device)
            rows.dtype = parameters.means.dtype
        stats = self._expect(rows, parameters)
        bound = float(stats.log_likelihood / stats.total)
        total = self.n_samples_seen_ + rows.total_weight
        rate = (rows.total_weight / total) ** FORGETTING
        running = GMMStatistics.of(parameters, (1 - rate) * total, self.reg_covar)
        stats.scale(rate * total / rows.total_weight)
        running.merge(stats)
        parameters, kept = self._maximise(rows, running, parameters)
        self._set(parameters, rows.is_tensor)
        self.n_samples_seen_ = total
        self.converged_ = False
        self.n_iter_ += 1
        self.lower_bound_ = bound
        self.lower_bounds_ = [*self.lower_bounds_, bound]
        self._warn(None, set(kept))
        return self

    # Here and not with the other queries: scikit-learn's set_output sees only what a subclass of
    # TransformerMixin defines itself.
    def transform(self, X: Any) -> Any:
        """Features of the rows: `predict_proba`, the responsibilities (N, K)."""
        return self.predict_proba(X)

    @property
    def _n_features_out(self) -> int:
        """Columns of `transform`; missing before `fit`, as `get_feature_names_out` expects."""
        return len(self.means_)

    # --- parts -----------------------------------------------------------------------------------

    def _check_size(self, rows: Rows) -> None:
        """Enough rows; the texts are scikit-learn's."""
        n = rows.total_count
        if n < 2:
            raise ValueError(
                f"Found array with {n} sample(s) (shape=({n}, {rows.n_features})) while a minimum "
                f"of 2 is required by {type(self).__name__}."
            )
        if rows.total_used < self.n_components:
            raise ValueError(
                "Expected n_samples >= n_components but got n_components = "
                f"{self.n_components}, n_samples = {rows.total_used}"
                + ("" if rows.total_used == n else " of positive weight")
            )

    def _check_same_size(self, rows: Rows) -> None:
        """The parameters so far fit the rows and ``n_components``."""
        expected = (self.n_components, rows.n_features)
        if tuple(self.means_.shape) != expected:
            raise ValueError(
                f"the parameters so far have means_ of shape {tuple(self.means_.shape)}, but "
                f"n_components and X ask for {expected}. Set warm_start=False or use a new model."
            )
        k, d = expected
        shapes = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
        p = (
            to_tensor(self.precisions_cholesky_)
            if not isinstance(self.precisions_cholesky_, Tensor)
            else self.precisions_cholesky_
        )
        fits = tuple(p.shape) == shapes[self.covariance_type]
        if fits and k == d > 1 and self.covariance_type in ("tied", "diag"):
            # One shape for both, but only a triangular matrix has zeros.
            fits = bool((p != 0).all()) == (self.covariance_type == "diag")
        if not fits:
            raise ValueError(
                f"covariances_ so far, of shape {tuple(self.covariances_.shape)}, "
                f"are not of covariance_type={self.covariance_type!r}. Set warm_start=False or use "
                "a new model."
            )

    def _given(
        self, device: torch.device, k: int, d: int
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """``weights_init``, ``means_init`` and ``precisions_init``, checked."""
        given = (
            None if self.weights_init is None else check_weights(self.weights_init, k),
            None if self.means_init is None else check_means(self.means_init, k, d),
            None
            if self.precisions_init is None
            else check_precisions(self.precisions_init, self.covariance_type, k, d),
        )
        return tuple(t if t is None else t.to(device) for t in given)  # type: ignore[return-value]

    def _start(
        self,
        rows: Rows,
        rng: np.random.RandomState,
        given: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> GMMParameters:
        """Parameters before the first E step: what was given, the rest by ``init_params``."""
        found = None
        if any(value is None for value in given):
            stats, other = initial_statistics(
                rows, self.n_components, self.covariance_type, self.init_params, rng
            )
            try:
                found, _ = self._maximise(rows, stats, None)
            except ValueError:
                if other is None:
                    raise
                found, _ = self._maximise(rows, other, None)
        return self._merged(found, given).to(rows.dtype)

    def _merged(
        self,
        found: GMMParameters | None,
        given: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> GMMParameters:
        """What was given, and the rest of what was found."""
        weights, means, precisions = given
        if precisions is not None:
            p, c = from_precisions(precisions, self.covariance_type)
        else:
            assert found is not None
            assert found.covariances is not None
            p, c = found.precisions_cholesky, found.covariances
        if weights is None:
            assert found is not None
            weights = found.weights
        if means is None:
            assert found is not None
            means = found.means
        return GMMParameters(self.covariance_type, weights, means, p, c)

    def _initialize(self, X: Any, resp: Any) -> None:
        """Start from responsibilities (N, K): the hook of scikit-learn's class of this name."""
        x = rows_of(self, X, reset=True)
        r = to_tensor(np.asarray(resp, dtype=np.asarray(X).dtype))
        centre = x.mean(0, dtype=torch.float64).expand(r.shape[1], -1)
        stats = GMMStatistics.zeros(self.covariance_type, centre)
        stats.assign(x, r)
        stats.total = stats.total + len(x)
        found, _ = maximise(stats, None, reg_covar=self.reg_covar, dtype=x.dtype)
        merged = self._merged(found, self._given(x.device, r.shape[1], x.shape[1])).to(x.dtype)
        self._set(merged, as_tensors=False)

    def _expect(self, rows: Rows, parameters: GMMParameters) -> GMMStatistics:
        """E step: one pass over the rows of all processes."""
        stats = GMMStatistics.zeros(self.covariance_type, parameters.means)
        for x, weight, labels in rows.blocks(whole=not rows.missing):
            if rows.missing:
                _missing.expect(stats, x, parameters, weight, labels)
            else:
                stats.expect(x, parameters, weight, labels)
        stats.reduce(rows.ranks)
        return stats

    def _maximise(
        self, rows: Rows, stats: GMMStatistics, old: GMMParameters | None
    ) -> tuple[GMMParameters, list[int]]:
        return maximise(stats, old, reg_covar=self.reg_covar, dtype=rows.dtype, unit=rows.unit)

    def _warn(self, run: Run[Any] | None, collapsed: set[int]) -> None:
        if run is not None and run.interrupted:
            warnings.warn(
                f"fit was interrupted; the best parameters so far, of iteration {run.n_iter} of "
                "their start, are kept and converged_ is False. warm_start=True goes on from here.",
                RuntimeWarning,
                stacklevel=3,
            )
        elif run is not None and not self.converged_ and self.max_iter > 0:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, "
                "or increase max_iter, tol, or check for degenerate data.",
                ConvergenceWarning,
                stacklevel=3,
            )
        if collapsed:
            warnings.warn(
                f"Components {sorted(collapsed)} collapsed (no rows, or a covariance that is not "
                "positive definite) and kept their mean and covariance. Decrease n_components or "
                "increase reg_covar.",
                ConvergenceWarning,
                stacklevel=3,
            )
