"""Public ops: differentiable, ``torch.compile``-clean, on every device; see `evidens.info`."""

from evidens.ops.autoregress import MadeState as MadeState
from evidens.ops.autoregress import made_noise, made_sample, made_start, made_step
from evidens.ops.coupling import actnorm, affine_coupling, invertible_linear
from evidens.ops.gmm import (
    gmm_component_log_prob,
    gmm_input_gradient,
    gmm_log_prob,
    gmm_moments,
    gmm_statistics,
)
from evidens.ops.hmm import HMMFiltered as HMMFiltered
from evidens.ops.hmm import HMMPath as HMMPath
from evidens.ops.hmm import HMMPosteriors as HMMPosteriors
from evidens.ops.hmm import (
    hmm_filter,
    hmm_forward_backward,
    hmm_log_likelihood,
    hmm_sample_paths,
    hmm_viterbi,
)
from evidens.ops.hmm_gaussian import HMMGaussianStatistics as HMMGaussianStatistics
from evidens.ops.hmm_gaussian import hmm_gaussian_statistics
from evidens.ops.logistic_mixture import logistic_mixture_log_prob, logistic_mixture_sample
from evidens.ops.masked_conv import masked_conv2d, masked_linear
from evidens.ops.philox import philox_uniform
from evidens.ops.pixelcnn import PixelLayer as PixelLayer
from evidens.ops.pixelcnn import PixelState as PixelState
from evidens.ops.pixelcnn import pixelcnn_noise, pixelcnn_sample, pixelcnn_start, pixelcnn_step
from evidens.ops.rbm import RBMStatistics as RBMStatistics
from evidens.ops.rbm import rbm_free_energy, rbm_gibbs, rbm_pcd, rbm_statistics
from evidens.ops.rbm_partition import RBMPartition as RBMPartition
from evidens.ops.rbm_partition import rbm_ais, rbm_exact_log_partition
from evidens.ops.spline import rational_quadratic_spline, spline_coupling

__all__ = [
    "actnorm",
    "affine_coupling",
    "gmm_component_log_prob",
    "gmm_input_gradient",
    "gmm_log_prob",
    "gmm_moments",
    "gmm_statistics",
    "hmm_filter",
    "hmm_forward_backward",
    "hmm_gaussian_statistics",
    "hmm_log_likelihood",
    "hmm_sample_paths",
    "hmm_viterbi",
    "invertible_linear",
    "logistic_mixture_log_prob",
    "logistic_mixture_sample",
    "made_noise",
    "made_sample",
    "made_start",
    "made_step",
    "masked_conv2d",
    "masked_linear",
    "philox_uniform",
    "pixelcnn_noise",
    "pixelcnn_sample",
    "pixelcnn_start",
    "pixelcnn_step",
    "rational_quadratic_spline",
    "rbm_ais",
    "rbm_exact_log_partition",
    "rbm_free_energy",
    "rbm_gibbs",
    "rbm_pcd",
    "rbm_statistics",
    "spline_coupling",
]
