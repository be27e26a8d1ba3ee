"""Fast kernels for density models, and thin models on top of them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from evidens import nn, ops, reference
from evidens._errors import BackendError
from evidens._info import info
from evidens.ops._registry import backend

if TYPE_CHECKING:
    from evidens.models import (
        GMMHMM,
        MADE,
        BernoulliHMM,
        BernoulliRBM,
        CategoricalHMM,
        CategoricalRBM,
        CustomHMM,
        Flow,
        GaussianHMM,
        GaussianMixture,
        GaussianRBM,
        Glow,
        MaskedAutoregressiveFlow,
        MultinomialHMM,
        NeuralSplineFlow,
        PixelCNN,
        PoissonHMM,
        RealNVP,
    )

__version__ = _version("evidens")
__all__ = [
    "GMMHMM",
    "MADE",
    "BackendError",
    "BernoulliHMM",
    "BernoulliRBM",
    "CategoricalHMM",
    "CategoricalRBM",
    "CustomHMM",
    "Flow",
    "GaussianHMM",
    "GaussianMixture",
    "GaussianRBM",
    "Glow",
    "MaskedAutoregressiveFlow",
    "MultinomialHMM",
    "NeuralSplineFlow",
    "PixelCNN",
    "PoissonHMM",
    "RealNVP",
    "backend",
    "info",
    "nn",
    "ops",
    "reference",
]


def __getattr__(name: str) -> Any:
    # Models stand on scikit-learn, which takes longer to import than all of evidens: on first use.
    if name in __all__:
        from evidens import models

        return getattr(models, name)
    if name in ("hmm", "models"):
        return import_module(f"evidens.{name}")
    raise AttributeError(f"module 'evidens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "hmm", "models"])
