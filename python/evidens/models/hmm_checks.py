"""What is checked of a hidden Markov model before it is used; the texts are hmmlearn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidens._native import all_finite
from evidens.models.hmm_monitor import ConvergenceMonitor, log
from evidens.models.hmm_parameters import HMMParameters, host, spread
from evidens.ops import _hmm_maximise as maximise

DECODERS = ("viterbi", "map")
# What the checks that all families share look at.
SHARED = ("n_components", "implementation", "algorithm", "n_iter", "tol", "startprob_", "transmat_")
COVARIANCE_TYPES = ("spherical", "diag", "full", "tied")


class HMMChecks:
    """The settings, the monitor and the parameters that all families share."""

    n_components: int
    n_iter: int
    tol: float
    verbose: bool
    algorithm: str
    implementation: str
    params: str
    init_params: str
    _monitor: Any
    _monitor_settings: tuple[float, int, bool]

    # --- priors ----------------------------------------------------------------------------------

    def _prior(self, name: str, shape: tuple[int, ...]) -> maximise.Prior:
        """The prior that an attribute holds, for an array of this shape."""
        return maximise.prior_of(spread(getattr(self, name), shape, name), shape)

    def _table_priors(self) -> tuple[maximise.Prior | None, maximise.Prior | None]:
        """Of the start and of the transitions; None where these are not learned."""
        k = self.n_components
        return (
            self._prior("startprob_prior", (k,)) if "s" in self.params else None,
            self._prior("transmat_prior", (k, k)) if "t" in self.params else None,
        )

    # --- the monitor -----------------------------------------------------------------------------

    @property
    def monitor_(self) -> Any:
        """What decides when EM stops; may be replaced by one's own (see `ConvergenceMonitor`)."""
        made = vars(self).get("_monitor")
        settings = (self.tol, self.n_iter, self.verbose)
        if made is None:
            self._monitor = ConvergenceMonitor(*settings)
        elif self._monitor_settings != settings:
            # Parameters of the constructor that changed since reach the monitor, too.
            names = ("tol", "n_iter", "verbose")
            for name, old, new in zip(names, self._monitor_settings, settings):
                if old != new:
                    setattr(made, name, new)
        self._monitor_settings = settings
        return self._monitor

    @monitor_.setter
    def monitor_(self, monitor: Any) -> None:
        self._monitor = monitor
        self._monitor_settings = (self.tol, self.n_iter, self.verbose)

    # --- checks ----------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        k = self.n_components
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
            raise ValueError(f"n_components: expected an integer of at least 1, got {k!r}")
        if self.implementation not in ("log", "scaling"):
            raise ValueError(
                f"implementation: expected 'log' or 'scaling', got {self.implementation!r}"
            )
        if self.algorithm not in DECODERS:
            raise ValueError(f"Unknown decoder {self.algorithm!r}")
        if not isinstance(self.n_iter, int | np.integer) or self.n_iter < 0:
            raise ValueError(f"n_iter: expected a non-negative integer, got {self.n_iter!r}")
        if not isinstance(self.tol, int | float | np.number) or np.isnan(self.tol):
            raise ValueError(f"tol: expected a number (nats), got {self.tol!r}; -inf never stops")

    def _host(self, name: str) -> np.ndarray:
        """An attribute as an array; a list becomes one for good."""
        value = getattr(self, name)
        if not isinstance(value, np.ndarray | Tensor):
            setattr(self, name, value := np.asarray(value))
        return host(value)

    def _check_finite(self, name: str) -> None:
        if not np.isfinite(self._host(name)).all():
            raise ValueError(f"{name} must be finite")

    def _check_sum_1(self, name: str) -> None:
        """That an attribute holds one distribution or rows of them; the texts are hmmlearn's."""
        value = self._host(name)
        s = value.sum(axis=-1)
        if not (np.abs(s - 1) <= 1e-5).all():
            raise ValueError(
                f"{name} must sum to 1 (got {s:.4f})"
                if s.ndim == 0
                else f"{name} rows must sum to 1 (got row sums of {s})"
            )
        if value.min() < 0:
            raise ValueError(f"{name} must not be negative (got {value.min()})")

    def _check(self) -> None:
        """Check the parameters, whoever set them.

        Raises:
            ValueError: a wrong shape, or probabilities that are negative or do not sum to 1.
        """
        self._check_settings()
        k = self.n_components
        if self._host("startprob_").shape != (k,):
            raise ValueError("startprob_ must have length n_components")
        self._check_sum_1("startprob_")
        if self._host("transmat_").shape != (k, k):
            raise ValueError("transmat_ must have shape (n_components, n_components)")
        self._check_sum_1("transmat_")

    def _emission_attributes(self, emission: Any) -> dict[str, Tensor]:
        """The attributes that stand for an emission."""
        return {}

    def _check_learned(self, p: HMMParameters, dtype: torch.dtype) -> None:
        """That an M step gave parameters which the type of the attributes can hold.

        Raises:
            ValueError: NaN, infinity, or more than fits into ``dtype``.
        """
        values = {"startprob_": p.start, "transmat_": p.transition}
        values |= self._emission_attributes(p.emission)
        if dtype is torch.float64 and all_finite(*values.values()):
            return
        for name, value in values.items():
            largest = float(value.abs().max()) if value.numel() else 0.0
            if not largest <= torch.finfo(dtype).max:
                raise ValueError(
                    f"{name.lstrip('_')}: expected finite values after an EM step, got {largest:g} "
                    f"for {str(dtype)[6:]}; rescale X, pass float64, or use smaller priors"
                )

    def _needs_init(self, code: str, name: str) -> bool:
        """Whether `fit` sets this attribute at its start; the text is hmmlearn's."""
        own = vars(self)  # first: to read a property may be much work
        there = name in own or f"_{name}" in own or hasattr(self, name)
        if code in self.init_params:
            if there:
                log.warning(
                    "Even though the %r attribute is set, it will be overwritten during "
                    "initialization because 'init_params' contains %r",
                    name,
                    code,
                )
            return True
        return not there


def check_type(kind: Any) -> None:
    """That this is one of the covariance types.

    Raises:
        ValueError: it is not.
    """
    if kind not in COVARIANCE_TYPES:
        raise ValueError(f"covariance_type must be one of {COVARIANCE_TYPES}, got {kind!r}")


def check_covars(covars: np.ndarray, kind: str, k: int) -> None:
    """Shapes and signs of covariances in compact form; the texts are hmmlearn's.

    Raises:
        ValueError: what is wrong.
    """
    check_type(kind)
    if kind == "spherical":
        if len(covars) != k:
            raise ValueError("'spherical' covars have length n_components")
        if not (covars > 0).all():
            raise ValueError("'spherical' covars must be positive")
        if (np.ptp(covars.reshape(k, -1), axis=1) != 0).any():
            raise ValueError("'spherical' covars must have one value for each component")
    elif kind == "tied":
        if covars.ndim != 2 or covars.shape[0] != covars.shape[1]:
            raise ValueError("'tied' covars must have shape (n_dim, n_dim)")
        if not np.allclose(covars, covars.T) or (np.linalg.eigvalsh(covars) <= 0).any():
            raise ValueError("'tied' covars must be symmetric, positive-definite")
    elif kind == "diag":
        if covars.ndim != 2 or len(covars) != k:
            raise ValueError("'diag' covars must have shape (n_components, n_dim)")
        if not (covars > 0).all():
            raise ValueError("'diag' covars must be positive")
    else:
        if covars.ndim != 3 or len(covars) != k or covars.shape[1] != covars.shape[2]:
            raise ValueError("'full' covars must have shape (n_components, n_dim, n_dim)")
        bad = ~np.isclose(covars, covars.swapaxes(1, 2)).all((1, 2))
        bad |= (np.linalg.eigvalsh(np.where(bad[:, None, None], 0, covars)) <= 0).any(1)
        if bad.any():
            raise ValueError(
                f"component {bad.argmax()} of 'full' covars must be symmetric, positive-definite"
            )
