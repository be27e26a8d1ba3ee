"""Models: fit, log-density, sample, impute; scikit-learn's habits, arrays or tensors in and out."""

from evidens.models.flow_autoregressive import MaskedAutoregressiveFlow
from evidens.models.flow_base import Flow
from evidens.models.flow_glow import Glow
from evidens.models.flow_realnvp import RealNVP
from evidens.models.flow_spline import NeuralSplineFlow
from evidens.models.gmm import GaussianMixture
from evidens.models.hmm_counts import BernoulliHMM, PoissonHMM
from evidens.models.hmm_custom import CustomHMM
from evidens.models.hmm_discrete import CategoricalHMM, MultinomialHMM
from evidens.models.hmm_gaussian import GaussianHMM
from evidens.models.hmm_mixture import GMMHMM
from evidens.models.made import MADE
from evidens.models.pixelcnn import PixelCNN
from evidens.models.rbm import BernoulliRBM
from evidens.models.rbm_categorical import CategoricalRBM
from evidens.models.rbm_gaussian import GaussianRBM

__all__ = [
    "GMMHMM",
    "MADE",
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
]
