"""Random mixtures, and how far a right answer may lie from the float64 reference.

The bounds are first-order forward error bounds: every sum of n rounded terms is off by at most
``n eps`` times the sum of their magnitudes.  They follow the data, so they are as tight for a
component far away as for one at hand, and no test needs a tolerance of its own.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from ops.comparison import assert_within
from torch import Tensor

import evidens

TYPES = evidens.reference.gmm.COVARIANCE_TYPES
DTYPES = (torch.float32, torch.float64)
OPS = (
    "gmm_component_log_prob",
    "gmm_log_prob",
    "gmm_statistics",
    "gmm_moments",
    "gmm_input_gradient",
)
# The kernels sum a block of at most 1,024 rows in at least 4 lanes, and blocks in double.
ROUNDINGS = 1024 // 4 + 16


@dataclasses.dataclass
class Mixture:
    """Rows and parameters; `responsibilities` are of any sign, some exactly zero."""

    x: Tensor
    log_weights: Tensor
    means: Tensor
    p: Tensor
    covariance_type: str
    responsibilities: Tensor

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor, str]:
        return self.log_weights, self.means, self.p, self.covariance_type

    def arguments(self, op: str) -> tuple:
        """Arguments of an op, public or reference."""
        if op == "gmm_moments":
            return self.x, self.responsibilities, self.means, self.covariance_type
        if op == "gmm_input_gradient":
            return self.x, self.responsibilities, self.means, self.p, self.covariance_type
        return self.x, *self.parameters

    def with_(self, **changes) -> Mixture:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Mixture:
        tensors = {k: v.to(dtype) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return self.with_(**tensors)


def mixture(n, d, k, covariance_type, dtype, *, below=math.nan, seed=0) -> Mixture:
    """A mixture drawn in float64 and rounded to `dtype`; `below` fills the unread triangle."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def scales(*shape):
        return 0.5 + 1.5 * torch.rand(*shape, generator=g, dtype=torch.float64)

    means = 2 * normal(k, d)
    x = means[torch.randint(k, (n,), generator=g)] + normal(n, d)
    if covariance_type in ("full", "tied"):
        shape = (k, d, d) if covariance_type == "full" else (d, d)
        p = (normal(*shape) / math.sqrt(d)).triu(1) + torch.diag_embed(scales(*shape[:-1]))
        p = torch.where(torch.ones(d, d).tril(-1).bool(), below, p)
    else:
        p = scales(k, d) if covariance_type == "diag" else scales(k)
    r = normal(n, k)
    r = torch.where(torch.rand(n, k, generator=g) < 0.3, 0.0, r)
    log_weights = normal(k).log_softmax(0)
    return Mixture(x, log_weights, means, p, covariance_type, r).to(dtype)


def reference(op: str, case: Mixture, *more) -> Tensor | tuple[Tensor, ...]:
    """The formula in float64 on the values that the op is given."""
    more = [m.double() if isinstance(m, Tensor) and m.is_floating_point() else m for m in more]
    return getattr(evidens.reference.gmm, op)(*case.to(torch.float64).arguments(op), *more)


def _parts(case: Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """|residual| (N, K, D), |whitened| and its magnitude before cancellation, |offset| (K,)."""
    c = case.to(torch.float64)
    x, means, p = c.x, c.means, c.p
    residual = x[:, None] - means
    d = x.shape[1]
    if c.covariance_type == "full":
        p = p.triu()
        whitened = torch.einsum("nki,kij->nkj", residual, p)
        magnitude = torch.einsum("nki,kij->nkj", residual.abs(), p.abs())
        log_det = p.diagonal(dim1=-2, dim2=-1).log().abs().sum(-1)
    elif c.covariance_type == "tied":
        p, centre = p.triu(), means.mean(0)
        whitened = residual @ p
        # Row and mean are whitened apart, about the means' mean.
        magnitude = ((x - centre).abs() @ p.abs())[:, None] + (means - centre).abs() @ p.abs()
        log_det = p.diagonal().log().abs().sum()
    else:
        p = p if c.covariance_type == "diag" else p[:, None]
        whitened = residual * p
        magnitude = whitened.abs()
        log_det = p.log().abs().sum(-1) * (1 if c.covariance_type == "diag" else d)
    offset = c.log_weights.abs() + log_det + d * math.log(2 * math.pi) / 2
    return residual.abs(), whitened.abs(), magnitude, offset


def term_bound(case: Mixture, eps: float) -> Tensor:
    """Of gmm_component_log_prob, (N, K)."""
    d = case.x.shape[1]
    _, whitened, magnitude, offset = _parts(case)
    return eps * (d + 4) * ((whitened * magnitude).sum(-1) + offset)


def _posterior(case: Mixture, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Posteriors, the bound of each term, and that of log_prob (N,)."""
    terms = reference("gmm_component_log_prob", case)
    posterior = terms.softmax(1).nan_to_num(0.0)
    bound = term_bound(case, eps).nan_to_num(0.0, posinf=0.0)
    k = case.means.shape[0]
    lse = (posterior * bound).sum(1)
    total = torch.logsumexp(terms, 1).abs().nan_to_num(0.0, posinf=0.0)
    return posterior, bound, lse + eps * (k + 4 + total)


def log_prob_bound(case: Mixture, eps: float) -> Tensor:
    return _posterior(case, eps)[2]


def moment_bounds(case: Mixture, eps: float, r: Tensor, relative: Tensor | float = 0.0):
    """Of (weight, first, second) for weights `r`, each off by `relative` (N, K) of itself."""
    residual = _parts(case)[0]
    r = weight = r.double().abs()
    weighed = r != 0
    n, d = case.x.shape
    residual = torch.where(weighed[:, :, None], residual, 0.0)
    # Rounding of the sums, of sqrt(r) twice and of the residual; every product may underflow.
    r = r * (relative + eps * (min(n, ROUNDINGS) + 8)) + torch.finfo(case.x.dtype).tiny
    first = torch.einsum("nk,nkd->kd", r, residual)
    if case.covariance_type == "full":
        second = torch.einsum("nk,nki,nkj->kij", r, residual, residual)
    elif case.covariance_type == "tied":
        second = torch.einsum("nk,nki,nkj->ij", r, residual, residual)
        # The kernel sums about the means' mean, in double, and moves the sums to each mean.
        c = case.to(torch.float64)
        far = torch.where(weighed.any(1, keepdim=True), c.x - c.means.mean(0), 0.0).abs()
        far = torch.einsum("n,ni,nj->ij", weight.sum(1), far, far)
        far_means = (c.means - c.means.mean(0)).abs()
        far += torch.einsum("k,ki,kj->ij", weight.sum(0), far_means, far_means)
        second += torch.finfo(torch.float64).eps * (min(n, ROUNDINGS) + 8) * far
    else:
        second = torch.einsum("nk,nkd->kd", r, residual.square())
        second = second if case.covariance_type == "diag" else second.sum(-1) * (1 + d * eps) / d
    lost = n * torch.finfo(case.x.dtype).tiny
    return r.sum(0), first + lost, second + lost


def statistics_bounds(case: Mixture, eps: float, weight: Tensor | None = None, labels=None):
    """Of (log_likelihood, weight, first, second)."""
    n, k = case.x.shape[0], case.means.shape[0]
    posterior, bound, lse = _posterior(case, eps)
    relative = bound + lse[:, None] + eps * (k + 8)
    if labels is not None:
        pinned = labels >= 0
        one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), k).double()
        posterior = torch.where(pinned[:, None], one_hot, posterior)
        lse = torch.where(pinned, (one_hot * (bound + eps * (k + 4))).sum(1) + lse, lse)
    weight = torch.ones(n).double() if weight is None else weight.double().abs()
    # The log-likelihood is summed in double whatever the dtype.
    return (weight * lse).sum(), *moment_bounds(case, eps, posterior * weight[:, None], relative)


def gradient_bound(case: Mixture, eps: float) -> Tensor:
    """Of gmm_input_gradient, (N, D)."""
    d, k = case.x.shape[1], case.means.shape[0]
    c = case.to(torch.float64)
    r = c.responsibilities.abs()
    _, _, magnitude, _ = _parts(case)
    magnitude = torch.where(r[:, :, None] == 0, 0.0, magnitude)
    if c.covariance_type == "full":
        total = torch.einsum("nk,nkj,kij->ni", r, magnitude, c.p.triu().abs())
    elif c.covariance_type == "tied":
        total = torch.einsum("nk,nkj,ij->ni", r, magnitude, c.p.triu().abs())
    else:
        total = torch.einsum("nk,nkj,kj->nj", r, magnitude, c.p.reshape(k, -1).expand(k, d))
    return eps * (2 * d + k + 8) * total


def bounds(op: str, case: Mixture, *more) -> tuple[Tensor, ...]:
    """The bound of each result; twice over, because the float64 reference rounds as well."""
    eps = torch.finfo(case.x.dtype).eps
    eps *= 2 if case.x.dtype is torch.float64 else 1
    if op == "gmm_statistics":
        return statistics_bounds(case, eps, *more)
    if op == "gmm_moments":
        return moment_bounds(case, eps, case.responsibilities)
    one = {
        "gmm_component_log_prob": term_bound,
        "gmm_log_prob": log_prob_bound,
        "gmm_input_gradient": gradient_bound,
    }[op]
    return (one(case, eps),)


def as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def check(op: str, case: Mixture, *more, given: Mixture | None = None) -> tuple[Tensor, ...]:
    """Runs an op (on `given`, the same values otherwise laid out) and compares it."""
    actual = as_tuple(getattr(evidens.ops, op)(*(given or case).arguments(op), *more))
    expected = as_tuple(reference(op, case, *more))
    for i, (a, e, b) in enumerate(zip(actual, expected, bounds(op, case, *more))):
        assert a.dtype is (
            torch.float64 if op in ("gmm_statistics", "gmm_moments") else case.x.dtype
        )
        what = f"{op}[{i}] {case.covariance_type} {tuple(case.x.shape)} {tuple(case.means.shape)}"
        assert_within(a, e, b, what)
    return actual
