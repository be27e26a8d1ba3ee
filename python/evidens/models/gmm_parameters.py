"""Parameters of a Gaussian mixture, their checks and the algebra on them.

Shape letters: ``K`` components, ``D`` features.  ``precisions_cholesky`` is scikit-learn's: upper
triangular ``P`` with ``P P^T`` the inverse covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor

from evidens.models._arrays import to_tensor

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have "
    "ill-defined empirical covariance (for instance caused by singleton "
    "or collapsed samples). Try to decrease the number of components, "
    "increase reg_covar, or scale the input data."
)
ILL_DEFINED_FLOAT32 = (
    " The numerical accuracy can also be improved by passing float64 data instead of float32."
)


@dataclass
class GMMParameters:
    """One mixture: tensors of one dtype on one device.

    Attributes:
        covariance_type: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
        weights: (K,), summing to 1.
        means: (K, D).
        precisions_cholesky: (K, D, D), (D, D), (K, D) or (K,).
        covariances: same shape; None where only densities are needed.
    """

    covariance_type: str
    weights: Tensor
    means: Tensor
    precisions_cholesky: Tensor
    covariances: Tensor | None = None

    @property
    def log_weights(self) -> Tensor:
        """(K,); -inf where a weight is 0."""
        return self.weights.log()

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, str]:
        """What every op of the stem takes after the rows."""
        return self.log_weights, self.means, self.precisions_cholesky, self.covariance_type

    def to(self, *args: Any) -> GMMParameters:
        """The same mixture in another dtype or on another device."""
        tensors = (self.weights, self.means, self.precisions_cholesky, self.covariances)
        return GMMParameters(
            self.covariance_type,
            *(t if t is None else t.to(*args) for t in tensors),  # type: ignore[arg-type]
        )

    def component(self, k: int) -> GMMParameters:
        """Component ``k`` alone, its weight kept."""
        shared = self.covariance_type == "tied"
        p = self.precisions_cholesky
        return GMMParameters(
            self.covariance_type,
            self.weights[k : k + 1],
            self.means[k : k + 1],
            p if shared else p[k : k + 1],
        )

    def full_covariances(self) -> Tensor:
        """Covariances as matrices: (K, D, D), or (1, D, D) where all components share one."""
        assert self.covariances is not None
        cov = self.covariances
        if self.covariance_type == "tied":
            return cov[None]
        if self.covariance_type == "diag":
            return torch.diag_embed(cov)
        if self.covariance_type == "spherical":
            return cov[:, None, None] * torch.eye(
                self.means.shape[1], dtype=cov.dtype, device=cov.device
            )
        return cov

    def marginal(self, dims: Tensor) -> GMMParameters:
        """The mixture of the features ``dims``, in that order."""
        assert self.covariances is not None
        cov = self.covariances
        if self.covariance_type in ("full", "tied"):
            cov = cov[..., dims[:, None], dims]
        elif self.covariance_type == "diag":
            cov = cov[:, dims]
        return from_covariances(self.covariance_type, self.weights, self.means[:, dims], cov)

    def given(self, dims: Tensor, values: Tensor, log_prob: Tensor) -> GMMParameters:
        """The mixture of the other features where features ``dims`` have ``values``.

        ``log_prob`` (K,) is ``log w_k + log N(values | k)``.  Bishop, equations 2.81 and 2.82.
        """
        assert self.covariances is not None
        weights, cov = torch.softmax(log_prob, 0), self.covariances
        free = torch.ones(self.means.shape[1], dtype=torch.bool, device=cov.device)
        free[dims] = False
        means = self.means[:, free]
        if self.covariance_type in ("full", "tied"):
            cov = self.full_covariances()
            across = cov[:, dims][:, :, free]
            known = definite(cov[:, dims[:, None], dims], "full")
            factor = torch.linalg.cholesky(known.double()).to(cov.dtype)
            gain = torch.cholesky_solve(across, factor).mT
            means = means + (gain @ (values - self.means[:, dims])[:, :, None])[:, :, 0]
            cov = cov[:, free][:, :, free] - gain @ across
            cov = (cov + cov.mT) / 2
            cov = cov[0] if self.covariance_type == "tied" else cov
        elif self.covariance_type == "diag":
            cov = cov[:, free]
        return from_covariances(self.covariance_type, weights, means, cov)


def free_parameters(covariance_type: str, k: int, d: int) -> int:
    """How many numbers a mixture has to estimate."""
    of_covariances = {
        "full": k * d * (d + 1) // 2,
        "tied": d * (d + 1) // 2,
        "diag": k * d,
        "spherical": k,
    }
    return of_covariances[covariance_type] + k * d + k - 1


def _inverse_of_lower(lower: Tensor) -> Tensor:
    """Inverse of lower triangular matrices (..., D, D): by halves, twice as fast as one solve."""
    d = lower.shape[-1]
    if d <= 32:
        eye = torch.eye(d, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, eye, upper=False)
    h = d // 2
    inverse = torch.zeros_like(lower)
    inverse[..., :h, :h] = top = _inverse_of_lower(lower[..., :h, :h])
    inverse[..., h:, h:] = bottom = _inverse_of_lower(lower[..., h:, h:])
    inverse[..., h:, :h] = -bottom @ (lower[..., h:, :h] @ top)
    return inverse


def cholesky_of_precisions(covariances: Tensor, covariance_type: str) -> tuple[Tensor, Tensor]:
    """``precisions_cholesky`` of covariances, and which of them are not positive definite.

    Returns:
        ``(P, failed)``: ``failed`` is (K,), or (1,) for tied; ``P`` is undefined where it is true.
    """
    if covariance_type in ("full", "tied"):
        d = covariances.shape[-1]
        lower, info = torch.linalg.cholesky_ex(covariances)
        # A factor that failed half-way can hold zeros on its diagonal.
        failed = (info != 0).reshape(-1)
        eye = torch.eye(d, dtype=covariances.dtype, device=covariances.device)
        safe = torch.where(failed.reshape(info.shape)[..., None, None], eye, lower)
        p = _inverse_of_lower(safe).mT.contiguous()
        return p, failed | ~p.isfinite().all(-1).all(-1).reshape(-1)
    failed = ~(covariances > 0) | covariances.isinf()
    p = torch.where(failed, 1.0, covariances).rsqrt()
    return p, failed.any(1) if covariance_type == "diag" else failed


def definite(covariances: Tensor, covariance_type: str) -> Tensor:
    """The covariances, with a little on the diagonal of those that rounding left indefinite.

    The least power of 4 times ``eps * trace`` that helps, up to 256; what needs more stays
    indefinite.
    """
    if covariance_type not in ("full", "tied"):
        return covariances
    eye = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    trace = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    result = covariances
    for power in range(5):
        _, failed = cholesky_of_precisions(result.double(), covariance_type)
        if not failed.any():
            break
        more = covariances + 4**power * torch.finfo(covariances.dtype).eps * trace * eye
        result = torch.where(failed.reshape(trace.shape), more, result)
    return result


def from_covariances(
    covariance_type: str, weights: Tensor, means: Tensor, covariances: Tensor
) -> GMMParameters:
    """A mixture from its covariances.

    Raises:
        ValueError: a covariance is not positive definite.
    """
    covariances = definite(covariances, covariance_type)
    p, failed = cholesky_of_precisions(covariances.double(), covariance_type)
    if failed.any():
        k = failed.nonzero()[0].item()
        which = (
            "the covariance" if covariance_type == "tied" else f"the covariance of component {k}"
        )
        raise ValueError(f"covariances: {which} should be symmetric and positive-definite")
    return GMMParameters(covariance_type, weights, means, p.to(means.dtype), covariances)


def from_precisions(precisions: Tensor, covariance_type: str) -> tuple[Tensor, Tensor]:
    """``(precisions_cholesky, covariances)`` of checked precisions, computed in float64.

    Raises:
        ValueError: a matrix so close to singular that it has no Cholesky factor.
    """
    if covariance_type not in ("full", "tied"):
        return precisions.sqrt(), 1 / precisions
    # An upper factor U U^T is the lower one with rows and columns in reverse order.
    reverse = precisions.double().flip(-1, -2)
    lower, info = torch.linalg.cholesky_ex((reverse + reverse.mT) / 2)
    if info.any():
        raise ValueError(f"'{covariance_type} precision' should be symmetric, positive-definite")
    p = lower.flip(-1, -2).contiguous()
    inverse = torch.linalg.solve_triangular(
        p, torch.eye(p.shape[-1], dtype=p.dtype, device=p.device), upper=True
    )
    return p.to(precisions.dtype), (inverse.mT @ inverse).to(precisions.dtype)


# --- checks of what the user gives; the texts are scikit-learn's --------------------------------


def _shape(value: Any, shape: tuple[int, ...], name: str) -> Any:
    if value.shape != shape:
        raise ValueError(
            f"The parameter '{name}' should have the shape of {shape}, but got {value.shape}"
        )
    return value


def _array(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return check_array(
        value, dtype=[np.float64, np.float32], ensure_2d=False, allow_nd=True, input_name=name
    )


def _copied(array: np.ndarray) -> Tensor:
    """A tensor of its own: a model must not change with the caller's array."""
    return to_tensor(np.array(array))


def check_weights(weights: Any, k: int) -> Tensor:
    """(K,) in [0, 1] with sum 1.

    Raises:
        ValueError: naming the shape, the range or the sum.
    """
    weights = _shape(_array(weights, "weights"), (k,), "weights")
    if (weights < 0).any() or (weights > 1).any():
        # scikit-learn's text gives the least first, and its tests hold on to that.
        raise ValueError(
            "The parameter 'weights' should be in the range [0, 1], but got max value "
            f"{weights.min():.5f}, min value {weights.max():.5f}"
        )
    total = float(weights.sum())
    if not math.isclose(total, 1, abs_tol=1e-6 if weights.dtype == np.float32 else 1e-8, rel_tol=0):
        raise ValueError(
            f"The parameter 'weights' should be normalized, but got sum(weights) = {total:.5f}"
        )
    return _copied(weights)


def check_means(means: Any, k: int, d: int) -> Tensor:
    """(K, D) and finite."""
    return _copied(_shape(_array(means, "means"), (k, d), "means"))


def check_precisions(
    precisions: Any, covariance_type: str, k: int, d: int, name: str = "precision"
) -> Tensor:
    """Symmetric positive-definite, in the shape of ``covariance_type``; ``name`` is for errors."""
    shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[covariance_type]
    full_name = f"{covariance_type} {name}"
    precisions = _shape(_array(precisions, full_name), shape, full_name)
    if covariance_type in ("full", "tied"):
        for matrix in precisions.reshape(-1, d, d):
            if not (np.isclose(matrix, matrix.T).all() and (np.linalg.eigvalsh(matrix) > 0).all()):
                raise ValueError(f"'{full_name}' should be symmetric, positive-definite")
    elif (precisions <= 0).any():
        raise ValueError(f"'{full_name}' should be positive")
    result = _copied(precisions)
    matrices = result.double()
    if name == "precision":
        from_precisions(matrices, covariance_type)
    elif cholesky_of_precisions(matrices, covariance_type)[1].any():
        raise ValueError(f"'{full_name}' should be symmetric, positive-definite")
    return result
