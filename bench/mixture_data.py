"""The data that the mixtures are timed on, and whose mixture it is."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from .torch_mixture import Parameters

SKLEARN = "scikit-learn"


def mixture_factory(provider: str) -> Callable:
    """The ``GaussianMixture`` class of a provider."""
    if provider == SKLEARN:
        from sklearn.mixture import GaussianMixture
    else:
        from evidens import GaussianMixture
    return GaussianMixture


@functools.lru_cache(maxsize=1)
def mixture_data(
    n: int, d: int, k: int, dtype: str, covariance_type: str
) -> tuple[np.ndarray, Parameters]:
    """Rows of ``k`` overlapping, well-conditioned clusters, and a start near the truth.

    Two means stand about 4 standard deviations apart in any dimension, so the responsibilities
    are far from one-hot and EM has work to do.
    """
    rng = np.random.default_rng(20)
    means = rng.standard_normal((k, d)) * (4.0 / np.sqrt(2 * d))
    x = rng.standard_normal((n, d), dtype=dtype)
    z = rng.integers(k, size=n)
    scale = rng.uniform(0.7, 1.3, (k, d)).astype(dtype)
    mixing = (np.eye(d) + 0.3 / np.sqrt(d) * rng.standard_normal((k, d, d))).astype(dtype)
    for j in range(k):
        rows = np.flatnonzero(z == j)
        shape = mixing[j] if covariance_type in ("full", "tied") else np.diag(scale[j])
        x[rows] = x[rows] @ shape + means[j].astype(dtype)
    eye = {"full": np.tile(np.eye(d), (k, 1, 1)), "tied": np.eye(d), "diag": np.ones((k, d))}
    guess = means + rng.standard_normal((k, d)) * (0.5 / np.sqrt(2 * d))
    start = (np.full(k, 1 / k), guess, eye[covariance_type], eye[covariance_type])
    return x, Parameters(*(torch.from_numpy(a.astype(dtype)) for a in start))


def start_of(start: Parameters) -> dict[str, np.ndarray]:
    """The start as keywords of the constructor; scikit-learn then runs no k-means."""
    return {
        "weights_init": start.weights.numpy(),
        "means_init": start.means.numpy(),
        "precisions_init": start.precisions_cholesky.numpy(),
    }


def double(start: Parameters) -> Parameters:
    """The start in float64, for the oracle."""
    return Parameters(*(a.double() for a in start))
