"""The RBM ops on CPU tensors."""

from __future__ import annotations

from evidens.reference import rbm as reference

__all__ = ["free_energy", "gibbs", "statistics"]

gibbs = reference.rbm_gibbs
free_energy = reference.rbm_free_energy
statistics = reference.rbm_statistics
