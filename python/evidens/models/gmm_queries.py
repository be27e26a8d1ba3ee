"""What a fitted Gaussian mixture answers: densities, posteriors, draws, imputation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from evidens import ops
from evidens.models import _missing
from evidens.models._arrays import has_missing, pieces, returned, rows_of, to_tensor, working_dtype
from evidens.models.gmm_parameters import GMMParameters, free_parameters


class GMMQueries:
    """The methods of `evidens.GaussianMixture` that ask and do not learn."""

    n_components: int
    covariance_type: str
    random_state: Any
    n_features_in_: int
    feature_names_in_: Any
    lower_bound_: float
    weights_: Any
    means_: Any
    covariances_: Any
    precisions_cholesky_: Any

    #: `log_prob` is the log-density itself, neither a bound nor an estimate.
    density_kind_ = "exact"

    def _parameters(self, *where: Any) -> GMMParameters:
        """The fitted attributes as tensors, ``to(*where)``."""

        def tensor(value: Any) -> Tensor:
            return value if isinstance(value, Tensor) else to_tensor(np.asarray(value))

        # A mixture that was put together by hand can lack the covariances: densities need none.
        cov = getattr(self, "covariances_", None)
        return GMMParameters(
            self.covariance_type,
            tensor(self.weights_),
            tensor(self.means_),
            tensor(self.precisions_cholesky_),
            None if cov is None else tensor(cov),
        ).to(*where)

    def _check_fitted(self) -> None:
        if not hasattr(self, "means_"):
            check_is_fitted(self)  # raises; it takes longer than the density of a few rows

    def _enter(self, X: Any) -> tuple[Tensor, GMMParameters]:
        """Rows of a query and the parameters for them."""
        self._check_fitted()
        x = rows_of(self, X)
        p = self._parameters()
        return x, p.to(x.device, working_dtype(x.dtype, p.means.dtype))

    # --- densities -------------------------------------------------------------------------------

    def log_prob(self, x: Any) -> Any:
        """Log-density of every row.

        Args:
            x: array-like or tensor (N, D).  NaN marks a missing value: the row is scored by what
                it shows, and a row that shows nothing by 0.

        Returns:
            (N,), nats, exact; an array for an array and a tensor for a tensor.  It is float64 if x
            or the parameters are, else float32.  A tensor that requires gradients gets them (rows
            with NaN get zeros).  -inf where no component reaches.

        Raises:
            ValueError: infinities, or another number of features than in `fit`.
            NotFittedError: before `fit`.

        Example:
            >>> import evidens, torch
            >>> mixture = evidens.GaussianMixture.from_parameters(
            ...     [0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], covariance_type="spherical")
            >>> x = torch.tensor([[0.5], [1.0]], requires_grad=True)
            >>> mixture.log_prob(x).sum().backward()
            >>> [round(g, 3) for g in x.grad[:, 0].tolist()]
            [-0.038, -0.238]
        """
        rows, p = self._enter(x)
        if rows.requires_grad and torch.is_grad_enabled():
            result = ops.gmm_log_prob(rows.to(p.means.dtype), *p.arguments)
        else:
            parts = [ops.gmm_log_prob(x, *p.arguments) for _, x in pieces(rows, p.means.dtype)]
            result = parts[0] if len(parts) == 1 else torch.cat(parts)
        # NaN and inf leave no finite density behind, so only suspicious rows need a look.
        if not result.detach().sum().isfinite() and has_missing(
            rows.detach()[~result.detach().isfinite()]
        ):
            seen = rows.detach().isnan().any(1)
            terms = _missing.log_prob_terms(rows.detach()[seen], p)
            whole = ops.gmm_log_prob(rows[~seen].to(p.means.dtype), *p.arguments)
            result = torch.empty_like(result).index_put((~seen,), whole)
            result = result.index_put((seen,), torch.logsumexp(terms, 1).to(result.dtype))
        return returned(result, x)

    def score_samples(self, X: Any) -> Any:
        """`log_prob` under scikit-learn's name."""
        return self.log_prob(X)

    def score(self, X: Any, y: None = None) -> float:
        """Mean log-density of the rows, nats per row; ``y`` is ignored."""
        return float(self.log_prob(X).mean())

    def _n_parameters(self) -> int:
        k, d = self.means_.shape
        return free_parameters(self.covariance_type, k, d)

    def aic(self, X: Any) -> float:
        """Akaike information criterion on X (N, D), nats; less is better."""
        log_prob = self.log_prob(X)
        return -2 * float(log_prob.mean()) * len(log_prob) + 2 * self._n_parameters()

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on X (N, D), nats; less is better."""
        log_prob = self.log_prob(X)
        n = len(log_prob)
        return -2 * float(log_prob.mean()) * n + self._n_parameters() * math.log(n)

    # --- posteriors ------------------------------------------------------------------------------

    def _terms(self, X: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """``log w_k + log N(x_n | k)`` by pieces of rows, and the weights."""
        x, p = self._enter(X)
        whole = x.requires_grad and torch.is_grad_enabled()
        k = len(p.weights)
        for _, piece in [(0, x.to(p.means.dtype))] if whole else pieces(x, p.means.dtype, k, False):
            terms = ops.gmm_component_log_prob(piece, *p.arguments)
            finite = torch.logsumexp(terms, 1).isfinite()
            if not finite.all() and has_missing(piece.detach()[~finite]):
                seen = piece.detach().isnan().any(1)
                fixed = _missing.log_prob_terms(piece.detach()[seen], p)
                terms = terms.index_put((seen,), fixed.to(terms.dtype))
            yield terms, p.weights

    def predict_proba(self, X: Any) -> Any:
        """Posterior of the components for every row.

        Args:
            X: array-like or tensor (N, D); NaN marks a missing value.

        Returns:
            (N, K), rows that sum to 1.  The weights of the mixture for a row that shows nothing,
            and for one that no component reaches.

        Raises:
            ValueError: infinities, or another number of features than in `fit`.
        """
        parts = [_missing.posterior(*terms)[1] for terms in self._terms(X)]
        return returned(torch.cat(parts), X)

    def predict(self, X: Any) -> Any:
        """The most probable component for every row of X (N, D): (N,) int64."""
        parts = [terms.argmax(1) for terms, _ in self._terms(X)]
        return returned(torch.cat(parts), X)

    # --- draws -----------------------------------------------------------------------------------

    def sample(self, n_samples: int = 1) -> tuple[Any, Any]:
        """Draw rows, sorted by component; scikit-learn's draws for the same ``random_state``.

        Args:
            n_samples: N, at least 1.

        Returns:
            ``(X, y)``: rows (N, D) and their components (N,) int64.  Float64 arrays, or tensors
            like ``means_`` where the model was fitted to tensors.

        Raises:
            ValueError: ``n_samples`` is less than 1.
        """
        self._check_fitted()
        if n_samples < 1:
            raise ValueError(
                f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one "
                "sample."
            )
        rng = check_random_state(self.random_state)
        p = self._parameters("cpu")
        assert p.covariances is not None
        k, d = p.means.shape
        weights = p.weights.detach().numpy()
        if weights.dtype != np.float64:
            weights = weights.astype(np.float64) / weights.sum(dtype=np.float64)
        counts = rng.multinomial(n_samples, weights)
        means, cov = p.means.detach().numpy(), p.covariances.detach().numpy()
        if self.covariance_type in ("full", "tied"):
            each = cov if self.covariance_type == "full" else [cov] * k
            parts = [rng.multivariate_normal(m, c, n) for m, c, n in zip(means, each, counts)]
        else:
            parts = [
                m + rng.standard_normal(size=(n, d)) * np.sqrt(c)
                for m, c, n in zip(means, cov, counts)
            ]
        X, y = np.vstack(parts), np.repeat(np.arange(k), counts)
        if not isinstance(self.means_, Tensor):
            return X.astype(np.float64, copy=False), y
        return torch.from_numpy(X).to(self.means_), torch.from_numpy(y).to(self.means_.device)

    def impute(
        self, X: Any, *, method: Literal["mean", "sample"] = "mean", random_state: Any = None
    ) -> Any:
        """Fill the missing values by what the rest of the row says about them.

        Args:
            X: array-like or tensor (N, D) with NaN where a value is missing.
            method: ``"mean"``, the conditional mean, which has the least squared error; or
                ``"sample"``, one draw from the conditional distribution, which keeps the spread.
            random_state: for the draws; the model's own where it is None.

        Returns:
            A copy of X (N, D), floating, without NaN.

        Raises:
            ValueError: an unknown method, infinities, or another number of features.

        Example:
            >>> import evidens, numpy as np
            >>> mixture = evidens.GaussianMixture.from_parameters(
            ...     [1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]])
            >>> mixture.impute([[2.0, np.nan]])
            array([[2., 1.]])
        """
        if method not in ("mean", "sample"):
            raise ValueError(f"method: expected 'mean' or 'sample', got {method!r}")
        x, p = self._enter(X)
        x = x.detach()
        result = x.clone()
        seen = x.isnan().any(1) if has_missing(x) else None
        if seen is not None:
            seed = self.random_state if random_state is None else random_state
            rng = check_random_state(seed) if method == "sample" else None
            result[seen] = _missing.impute(x[seen], p, rng)
        return returned(result, X)
