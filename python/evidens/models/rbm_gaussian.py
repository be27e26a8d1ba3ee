"""`GaussianRBM`: real-valued visible units with variances that are learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evidens.models.rbm_base import RBM
from evidens.models.rbm_rows import RBMRows


class GaussianRBM(RBM):
    """Restricted Boltzmann machine of real-valued visible units.

    ``E(v, h) = sum (v - b)^2 / (2 s^2) - c.h - h W (v / s^2)``, so ``v | h`` is Gaussian with mean
    ``b + W^T h`` and variance ``s^2``, and the density is a mixture of 2^J Gaussians whose means
    share their parts.  The variances are learned by their logarithm, within bounds, in steps that
    do not grow as they shrink.

    Args:
        n_components: J, hidden units.
        learning_rate, batch_size, n_iter, verbose, random_state: as in `evidens.BernoulliRBM`.
        method: as there; ``"pt"`` because clusters are modes that a single chain does not leave.
        steps, n_chains, n_temperatures, momentum, weight_decay: as there.
        schedule, centered, shuffle, monitor, hidden: as there.
        standardize: rows are standardised by the mean and standard deviation of those of the first
            `fit` or `partial_fit`, which `log_prob` accounts for.  Without it the rows should have
            variances of about 1: the steps are made for that.

    Attributes:
        components_: W, (J, D), in units of the standardised rows like all parameters.
        intercept_hidden_: c, (J,).
        intercept_visible_: b, (D,).
        log_variance_: log s^2, (D,).
        mean_, scale_: (D,) of the rows.
        h_samples_, history_, n_iter_, classes_, ...: as in `evidens.BernoulliRBM`.

    Source: Cho, Ilin and Raiko, Improved learning of Gaussian-Bernoulli restricted Boltzmann
    machines (2011).

    Example:
        >>> import evidens, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(1000, 2)) + 8 * rng.integers(2, size=(1000, 1))  # two clusters
        >>> rbm = evidens.GaussianRBM(4, random_state=0).fit(X)
        >>> one = np.log(np.linalg.det(2 * np.pi * np.e * np.cov(X.T))) / 2  # a single Gaussian
        >>> bool(rbm.log_prob(X).mean() > -one + 0.3), rbm.density_kind_
        (True, 'exact')
        >>> rbm.impute([[8.0, np.nan]], random_state=0).round()
        array([[8., 8.]])
    """

    visible = "gaussian"

    def __init__(
        self,
        n_components: int = 64,
        *,
        learning_rate: float = 0.1,
        batch_size: int = 50,
        n_iter: int = 100,
        verbose: int = 0,
        random_state: Any = None,
        method: str = "pt",
        steps: int = 1,
        n_chains: int | None = None,
        n_temperatures: int = 10,
        momentum: float = 0.5,
        weight_decay: float = 0.0,
        schedule: str = "linear",
        centered: bool = True,
        shuffle: bool = True,
        monitor: int = 0,
        hidden: str = "bernoulli",
        standardize: bool = True,
    ) -> None:
        self.standardize = standardize
        super().__init__(
            n_components,
            learning_rate=learning_rate,
            batch_size=batch_size,
            n_iter=n_iter,
            verbose=verbose,
            random_state=random_state,
            method=method,
            steps=steps,
            n_chains=n_chains,
            n_temperatures=n_temperatures,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedule,
            centered=centered,
            shuffle=shuffle,
            monitor=monitor,
            hidden=hidden,
        )

    def log_prob(self, x: Any) -> Any:
        """``log p(x)`` per row (N,), nats; see `evidens.BernoulliRBM.log_prob`."""
        log_p = super().log_prob(x)
        return log_p - float(_of(self, "scale_").double().log().sum())

    # --- parts -----------------------------------------------------------------------------------

    def _learn_scales(self, rows: RBMRows, weight: Tensor | None) -> None:
        d = rows.shape[1]
        mean = torch.zeros(d, dtype=torch.float64, device=rows.device)
        scale = torch.ones_like(mean)
        if self.standardize:
            mean = rows.column_means(weight)
            total = torch.zeros_like(mean)
            for at, x in rows.pieces():
                square = (x.double() - mean).square()
                total += square.sum(0) if weight is None else weight[at].double() @ square
            count = len(rows) if weight is None else weight.sum(dtype=torch.float64)
            spread = (total / count).sqrt()
            # A column that does not vary has no scale of its own.
            tiny = 10 * torch.finfo(rows.dtype).eps * mean.abs()
            scale = torch.where(spread > tiny, spread, 1.0)
        self.mean_, self.scale_ = self._own(mean.to(rows.dtype)), self._own(scale.to(rows.dtype))

    def _units(self, x: Tensor) -> Tensor:
        return (x - _of(self, "mean_", x)) / _of(self, "scale_", x)

    def _rows_of_units(self, v: Tensor) -> Tensor:
        return v * _of(self, "scale_", v) + _of(self, "mean_", v)

    def _means(self, rows: RBMRows, weight: Tensor | None) -> Tensor:
        return (rows.column_means(weight) - _of(self, "mean_").double()) / _of(
            self, "scale_"
        ).double()

    def _bias_of_means(self, means: Tensor) -> Tensor:
        return means


def _of(model: Any, name: str, like: Tensor | None = None) -> Tensor:
    """An attribute as a tensor, in the dtype and on the device of another one."""
    value = torch.as_tensor(getattr(model, name))
    return value if like is None else value.to(like)
