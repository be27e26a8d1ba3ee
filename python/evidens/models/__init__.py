"""Models: fit, log-density, sample, impute; scikit-learn's habits, arrays or tensors in and out."""

from evidens.models.gmm import GaussianMixture

__all__ = ["GaussianMixture"]
