"""Small flows, fitted once, for the tests of flows."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits, make_moons

from evidens import Flow, Glow, MaskedAutoregressiveFlow, NeuralSplineFlow, RealNVP

QUICK: dict[str, Any] = {"random_state": 0, "verbose": 0}
SMALL: dict[str, Any] = {"layers": 4, "hidden": (32, 32)}
CLASSES: tuple[type[Flow], ...] = (RealNVP, NeuralSplineFlow, MaskedAutoregressiveFlow)


def moons(n: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    X, y = make_moons(n, noise=0.07, random_state=seed)
    return X, y


def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    return X[order], y[order]


@functools.cache
def fitted(cls: type[Flow]) -> Flow:
    """On two moons; tests leave it as it is."""
    more: dict[str, Any] = {"transformer": "spline"} if cls is MaskedAutoregressiveFlow else {}
    flow: Flow = cls(2, layers=8 if cls is RealNVP else 4, hidden=(32, 32), **more)
    flow.fit(moons()[0], epochs=40, lr=5e-3, batch_size=64, **QUICK)
    return flow


@functools.cache
def fitted_digits() -> Glow:
    """A Glow that knows the classes of the digits."""
    X, y = digits()
    flow = Glow((1, 8, 8), classes=10, steps=3, hidden=24, dequantize=17)
    flow.fit(X[:1400], y[:1400], epochs=10, lr=1e-2, batch_size=64, **QUICK)
    return flow


def shaken(flow: Flow, by: float = 0.1) -> Flow:
    """The flow with every weight moved: no longer the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in flow.layers.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator).to(p))
    return flow
