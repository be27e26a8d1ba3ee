"""Gaussian mixtures from parameters and from other mixtures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidens import ops
from evidens.models.gmm_parameters import (
    GMMParameters,
    check_means,
    check_precisions,
    check_weights,
    cholesky_of_precisions,
    from_precisions,
)
from evidens.models.gmm_queries import GMMQueries


def _unfitted(model: Any) -> Any:
    """What `fit` would say of a model whose parameters came from elsewhere, as for max_iter=0."""
    model.converged_, model.n_iter_ = False, 0
    model.lower_bound_, model.lower_bounds_ = -math.inf, []
    model.n_samples_seen_ = 0.0
    return model


class GMMMixtures(GMMQueries):
    """The methods of `evidens.GaussianMixture` that make one."""

    @classmethod
    def from_parameters(
        cls,
        weights: Any,
        means: Any,
        covariances: Any = None,
        *,
        precisions: Any = None,
        covariance_type: str = "full",
        **params: Any,
    ) -> Any:
        """A mixture with these parameters, as if it had been fitted.

        Args:
            weights: (K,), summing to 1.
            means: (K, D).
            covariances: (K, D, D), (D, D), (K, D) or (K,), by ``covariance_type``.
            precisions: their inverses, in place of ``covariances``.
            covariance_type: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
            **params: other parameters of the constructor; with ``warm_start=True`` `fit` starts
                here.

        Returns:
            A mixture that scores, samples and goes on learning by `partial_fit`.  Its attributes
            are tensors if ``means`` is one, else arrays; float32 if all were given in float32.

        Raises:
            ValueError: wrong shapes, weights that do not sum to 1, or matrices that are not
                symmetric positive-definite.
            TypeError: not just one of ``covariances`` and ``precisions``.
        """
        if (covariances is None) == (precisions is None):
            raise TypeError("from_parameters: expected either covariances or precisions")
        like = means if isinstance(means, Tensor) else torch.empty(0)
        shape = tuple(like.shape) if isinstance(means, Tensor) else np.shape(means)
        if len(shape) != 2:
            raise ValueError(f"means: expected shape (K, D), got {shape}")
        k, d = shape
        new: Any = cls
        model = new(k, covariance_type=covariance_type, **params)
        model._validate_params()
        w, m = check_weights(weights, k), check_means(means, k, d)
        if covariances is None:
            p, c = from_precisions(
                check_precisions(precisions, covariance_type, k, d), covariance_type
            )
        else:
            c = check_precisions(covariances, covariance_type, k, d, "covariance")
            p, _ = cholesky_of_precisions(c.double(), covariance_type)  # checked above
            p = p.to(c.dtype)
        model.n_features_in_ = d
        dtype = torch.promote_types(torch.promote_types(w.dtype, m.dtype), c.dtype)
        model._set(
            GMMParameters(covariance_type, w, m, p, c).to(like.device, dtype),
            isinstance(means, Tensor),
        )
        return _unfitted(model)

    def _dims(self, dims: Iterable[int | str]) -> list[int]:
        """Numbers of features, from numbers (negative ones count from the end) or names."""
        names = list(getattr(self, "feature_names_in_", ()))
        d, result = self.n_features_in_, []
        for dim in dims:
            if isinstance(dim, str):
                if dim not in names:
                    raise ValueError(f"no feature is named {dim!r}; the names are {names}")
                result.append(names.index(dim))
            elif isinstance(dim, int | np.integer) and -d <= dim < d:
                result.append(int(dim) % d)
            else:
                raise ValueError(
                    f"expected features from 0 to {d - 1}, or their names, got {dim!r}"
                )
        if len(set(result)) < len(result):
            raise ValueError(f"expected different features, got {list(dims)}")
        return result

    def marginal(self, dims: Iterable[int | str]) -> Any:
        """The mixture of some of the features.

        Args:
            dims: numbers or names of features, in the order wanted.

        Returns:
            A fitted `evidens.GaussianMixture` of the same type.

        Raises:
            ValueError: none, unknown or repeated features.

        Example:
            >>> import evidens
            >>> mixture = evidens.GaussianMixture.from_parameters(
            ...     [1.0], [[3.0, 4.0]], [[[1.0, 0.5], [0.5, 2.0]]])
            >>> mixture.marginal([1]).covariances_
            array([[[2.]]])
        """
        self._check_fitted()
        kept = self._dims(dims := list(dims))
        if not kept:
            raise ValueError("dims: expected at least one feature")
        p = self._parameters()
        return self._with(p.marginal(torch.tensor(kept, device=p.means.device)), kept)

    def conditional(self, given: Mapping[int | str, float] | Any) -> Any:
        """The mixture of the other features where some are known.

        Args:
            given: a mapping from numbers or names of features to their values; or one row (D,)
                with NaN for the features that are not known.

        Returns:
            A fitted `evidens.GaussianMixture` of the same type over the features that are not
            given, in their order.

        Raises:
            ValueError: all features are given, or values that no component reaches.

        Example:
            >>> import evidens
            >>> mixture = evidens.GaussianMixture.from_parameters(
            ...     [1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]])
            >>> rest = mixture.conditional({0: 2.0})
            >>> rest.means_, rest.covariances_
            (array([[1.]]), array([[[0.75]]]))
        """
        self._check_fitted()
        d = self.n_features_in_
        if isinstance(given, Mapping):
            dims = self._dims(given)
            values = np.array([float(v) for v in given.values()])
        else:
            row = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, float)
            if row.shape != (d,):
                raise ValueError(
                    f"given: expected a mapping or one row of {d} values with NaN for what is not "
                    f"known, got shape {row.shape}"
                )
            dims = np.flatnonzero(~np.isnan(row)).tolist()
            values = row[dims]
        if not np.isfinite(values).all():
            raise ValueError(f"given: expected finite values, got {values.tolist()}")
        if len(dims) == d:
            raise ValueError("given: all features have values, so there is none left")
        p = self._parameters()
        if not dims:
            return self._with(p, list(range(d)))
        index = torch.tensor(dims, device=p.means.device)
        x = torch.from_numpy(values).to(p.means)
        log_prob = ops.gmm_component_log_prob(x[None], *p.marginal(index).arguments)[0]
        if not torch.logsumexp(log_prob, 0).isfinite():
            raise ValueError("given: no component reaches these values (their log-density is -inf)")
        return self._with(p.given(index, x, log_prob), [j for j in range(d) if j not in dims])

    def _with(self, parameters: GMMParameters, dims: list[int]) -> Any:
        """A new mixture over features ``dims`` of this one."""
        k = len(parameters.weights)
        new: Any = type(self)
        model = new(k, covariance_type=self.covariance_type, random_state=self.random_state)
        model._set(parameters, isinstance(self.means_, Tensor))
        model.n_features_in_ = len(dims)
        if hasattr(self, "feature_names_in_"):
            model.feature_names_in_ = self.feature_names_in_[dims]
        return _unfitted(model)

    def _set(self, p: GMMParameters, as_tensors: bool) -> None:
        """Make parameters the fitted attributes."""
        tensors = (p.weights, p.means, p.covariances, p.precisions_cholesky)
        self._set_parameters(
            tensors if as_tensors else tuple(t.cpu().numpy() for t in tensors if t is not None)
        )

    def _set_parameters(self, params: tuple[Any, ...]) -> None:
        """Attributes from weights, means, covariances and ``P``; a hook like `_initialize`."""
        self.weights_, self.means_, self.covariances_, self.precisions_cholesky_ = params
        p = self.precisions_cholesky_
        matrices = self.covariance_type in ("full", "tied")
        self.precisions_ = p @ p.swapaxes(-1, -2) if matrices else p * p
