"""What is checked of a hidden Markov model before it is used; the texts are hmmlearn's."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from evidens.models.hmm_monitor import ConvergenceMonitor, log
from evidens.models.hmm_parameters import host

DECODERS = ("viterbi", "map")


class HMMChecks:
    """The settings, the monitor and the parameters that all families share."""

    n_components: int
    n_iter: int
    tol: float
    verbose: bool
    algorithm: str
    implementation: str
    init_params: str
    _monitor: Any
    _monitor_settings: tuple[float, int, bool]

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

    def _needs_init(self, code: str, name: str) -> bool:
        """Whether `fit` sets this attribute at its start; the text is hmmlearn's."""
        if code in self.init_params:
            if hasattr(self, name):
                log.warning(
                    "Even though the %r attribute is set, it will be overwritten during "
                    "initialization because 'init_params' contains %r",
                    name,
                    code,
                )
            return True
        return not hasattr(self, name)
