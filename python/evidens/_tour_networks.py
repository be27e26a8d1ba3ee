"""Digits by networks that are trained for seconds, for the tour: a flow, MADE and PixelCNN."""

from __future__ import annotations

from typing import Any

import numpy as np

from evidens._tour_measure import Array, Family


class Pictures:
    """A density of integers behind the vocabulary of the tour: (N, 64) in, (N,) or (N, 64) out.

    The tour's noise comes on top of integers, and these models learn the integers themselves (a
    flow adds noise of its own), so that their nats are those of the probability of a digit.
    """

    def __init__(self, model: Any, *, drawn: dict[str, Any] | None = None, **fit: Any) -> None:
        self.model, self.drawn, self.settings = model, drawn or {}, fit

    def fit(self, images: Array) -> Pictures:
        self.model.fit(self._levels(images), random_state=0, verbose=0, **self.settings)
        return self

    def _levels(self, images: Array) -> Array:
        return np.floor(images).reshape(-1, *self.model.shape)

    @property
    def n_iter_(self) -> int:
        return int(self.model.n_iter_)

    def log_prob(self, images: Array) -> Array:
        """Log p of each image, nats; of a flow with noise of its own."""
        return np.asarray(self.model.log_prob(self._levels(images)))

    def sample(self, n: int) -> Array:
        """Grey levels and one half, the mean of the noise."""
        drawn = self.model.sample(n, random_state=0, **self.drawn)
        return np.asarray(drawn).reshape(n, -1) + 0.5


class Mean(Pictures):
    """A model that says what a missing pixel is on average."""

    def impute(self, images: Array) -> Array:
        """Conditional means of the pixels that are NaN, plus one half."""
        filled = self.model.impute(self._levels(images), method="mean", draws=64, random_state=0)
        return np.asarray(filled) + 0.5


class Downwards(Pictures):
    """A model that goes on where a picture ends."""

    def continued(self, images: Array, rows: int) -> Array:
        """The first rows of each image as they are, the others drawn; levels (N, 64)."""
        levels = self._levels(images)
        levels[:, :, rows:] = np.nan
        filled = self.model.impute(levels, random_state=0)
        return np.asarray(filled).reshape(len(images), -1)


def glow(epochs: int) -> Family:
    """Our Glow; there is no incumbent of that name to pip-install."""

    def build(images: Array) -> tuple[Any, Any]:
        from evidens import Glow

        model = Glow((1, 8, 8), dequantize=17)
        # Draws a little nearer to the mode, as Glow's authors show theirs.
        return Pictures(model, drawn={"temperature": 0.8}, epochs=epochs, lr=5e-3), None

    return Family("Glow", f"8 x 8, {epochs} epochs", "", build, trained_once=True)


def made(epochs: int) -> Family:
    """MADE: a masked perceptron, pixel by pixel in four orders."""

    def build(images: Array) -> tuple[Any, Any]:
        from evidens import MADE

        model = MADE(64, output="categorical", levels=17, hidden=(512,), orders=4)
        return Mean(model, epochs=epochs, lr=5e-3), None

    return Family("MADE", f"17 levels, {epochs} epochs", "", build, trained_once=True)


def pixelcnn(epochs: int) -> Family:
    """PixelCNN: gated masked convolutions, pixel by pixel."""

    def build(images: Array) -> tuple[Any, Any]:
        from evidens import PixelCNN

        net: dict[str, Any] = {"hidden": 32, "layers": 2, "first_kernel": 5, "gated": True}
        model = PixelCNN((1, 8, 8), levels=17, output="logistic", terms=5, **net)
        return Downwards(model, epochs=epochs, lr=5e-3, batch_size=128), None

    return Family("PixelCNN", f"gated, {epochs} epochs", "", build, trained_once=True)
