"""Public ops: differentiable, ``torch.compile``-clean, on every device; see `evidens.info`."""

from evidens.ops.gmm import (
    gmm_component_log_prob,
    gmm_input_gradient,
    gmm_log_prob,
    gmm_moments,
    gmm_statistics,
)
from evidens.ops.philox import philox_uniform

__all__ = [
    "gmm_component_log_prob",
    "gmm_input_gradient",
    "gmm_log_prob",
    "gmm_moments",
    "gmm_statistics",
    "philox_uniform",
]
