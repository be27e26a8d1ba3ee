"""The names of ``hmmlearn.hmm``, for who changes an import; two more families besides."""

from evidens.models.hmm_base import BaseHMM
from evidens.models.hmm_counts import BernoulliHMM, PoissonHMM
from evidens.models.hmm_custom import CustomHMM
from evidens.models.hmm_discrete import CategoricalHMM, MultinomialHMM
from evidens.models.hmm_gaussian import GaussianHMM
from evidens.models.hmm_mixture import GMMHMM
from evidens.models.hmm_monitor import ConvergenceMonitor

__all__ = [
    "GMMHMM",
    "BaseHMM",
    "BernoulliHMM",
    "CategoricalHMM",
    "ConvergenceMonitor",
    "CustomHMM",
    "GaussianHMM",
    "MultinomialHMM",
    "PoissonHMM",
]
