"""Digits by a normalizing flow on images, for the tour."""

from __future__ import annotations

from typing import Any

import numpy as np

from evidens._tour_measure import Array, Family


class Pictures:
    """Glow behind the vocabulary of the tour: (N, 64) in, (N,) or (N, 64) out.

    The tour's noise comes on top of integers; the flow draws its own, afresh in every epoch.
    """

    def __init__(self, **settings: Any) -> None:
        from evidens import Glow

        self.settings = settings
        self.model = Glow((1, 8, 8), dequantize=17)

    def fit(self, images: Array) -> Pictures:
        self.model.fit(self._levels(images), random_state=0, verbose=0, **self.settings)
        return self

    @staticmethod
    def _levels(images: Array) -> Array:
        return np.floor(images).reshape(-1, 1, 8, 8)

    @property
    def n_iter_(self) -> int:
        return int(self.model.n_iter_)

    def log_prob(self, images: Array) -> Array:
        """Log p of each image with noise of its own, nats."""
        return np.asarray(self.model.log_prob(self._levels(images)))

    def sample(self, n: int) -> Array:
        """Grey levels and one half, the mean of the noise."""
        drawn = self.model.sample(n, temperature=0.8, random_state=0)
        return np.asarray(drawn).reshape(n, -1) + 0.5


def glow(epochs: int) -> Family:
    """Our Glow; there is no incumbent of that name to pip-install."""

    def build(images: Array) -> tuple[Any, Any]:
        return Pictures(epochs=epochs, lr=5e-3), None

    return Family("Glow", f"8 x 8, {epochs} epochs", "", build, trained_once=True)
