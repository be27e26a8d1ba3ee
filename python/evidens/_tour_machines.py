"""Digits by a restricted Boltzmann machine, for the tour."""

from __future__ import annotations

from typing import Any

import numpy as np

from evidens._tour_measure import Array, Family


class Machine:
    """A Gaussian machine behind the vocabulary of the tour: (N, 64) in, (N,) or (N, 64) out."""

    def __init__(self, n_components: int, n_iter: int) -> None:
        from evidens import GaussianRBM

        self.model = GaussianRBM(n_components, n_iter=n_iter, n_chains=20, random_state=0)

    def fit(self, images: Array) -> Machine:
        self.model.fit(images)
        return self

    @property
    def n_iter_(self) -> int:
        return self.model.n_iter_

    def log_prob(self, images: Array) -> Array:
        """Log p of each image, nats."""
        return np.asarray(self.model.log_prob(images))

    def sample(self, n: int) -> Array:
        return np.asarray(self.model.sample(n, steps=300, n_temperatures=10, random_state=0))

    @property
    def parts(self) -> Array:
        """What each hidden unit adds to an image (J, 64), in grey levels, the strongest first."""
        added = self.model.components_ * self.model.scale_
        return added[np.argsort(-np.linalg.norm(added, axis=1))]

    @property
    def error(self) -> float:
        """How far log Z, and with it every log p, may be off, nats."""
        low, high = self.model.log_partition_interval_
        return float(high - low) / 2


def boltzmann(n_components: int, n_iter: int) -> Family:
    """Our Gaussian machine; scikit-learn's has bits only and no density."""

    def build(images: Array) -> tuple[Any, Any]:
        return Machine(n_components, n_iter), None

    return Family("GaussianRBM", f"J={n_components}", "", build, trained_once=True)
