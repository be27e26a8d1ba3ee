"""Where the Triton kernels run in tests, guards around what they write, and error bounds."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator

import pytest
import torch

from evidens.reference import gmm as reference

pytest.importorskip("triton", reason="Triton is not installed")

GUARD = 1024  # elements, more than one block of rows
CANARY = 12345.0


@pytest.fixture
def device() -> str:
    """The CPU where Triton interprets, else the GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    reason = "TRITON_INTERPRET=1 was not set before Triton was imported, and there is no GPU"
    if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        pytest.fail(f"{reason} (FAIL_WITHOUT_CUDA=1)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Surrounds what a launcher allocates with guards, and checks them after the test."""
    buffers = []
    new_empty = torch.Tensor.new_empty

    def allocate(size, dtype, device, fill):
        numel = math.prod(size)
        flat = torch.full((numel + 2 * GUARD,), CANARY, dtype=dtype, device=device)
        buffers.append((flat, numel))
        return flat[GUARD : GUARD + numel].fill_(fill).view(size)

    def method(fill):
        def guarded(self, *size, dtype=None, device=None):
            size = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
            if size.numel() == 0:
                return new_empty(self, size, dtype=dtype or self.dtype, device=device)
            return allocate(size, dtype or self.dtype, device or self.device, fill)

        return guarded

    def empty(*size, dtype=None, device=None):
        size = size if not size or isinstance(size[0], int) else tuple(size[0])
        return allocate(size, dtype, device, math.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", method(math.nan))
    monkeypatch.setattr(torch.Tensor, "new_zeros", method(0.0))
    monkeypatch.setattr(torch, "empty", empty)
    yield
    monkeypatch.undo()
    assert buffers, "the launcher allocated nothing that could be guarded"
    for flat, numel in buffers:
        assert (flat[:GUARD] == CANARY).all(), "written before the start of a buffer"
        assert (flat[GUARD + numel :] == CANARY).all(), "written past the end of a buffer"


class Problem:
    """A random mixture and rows, and how far rounding may take a kernel from the exact result."""

    def __init__(self, device, shape, covariance_type, dtype=torch.float64, offset=0.0):
        n, d, k = shape
        g = torch.Generator().manual_seed(n + 100 * d + 10_000 * k)

        def normal(*size):
            return torch.randn(*size, generator=g, dtype=torch.float64)

        if covariance_type in ("full", "tied"):
            size = (k, d, d) if covariance_type == "full" else (d, d)
            factor = (normal(*size) * 0.3).triu(1)
            factor += torch.diag_embed(normal(*size[:-1]).abs() + 0.5)
            # What stands below the diagonal must never be read.
            below = torch.ones(d, d, dtype=torch.bool).tril(-1)
            p = factor.masked_fill(below, math.nan)
        else:
            p = normal(*((k, d) if covariance_type == "diag" else (k,))).abs() + 0.5
        values = (normal(n, d) * 2 + offset, normal(k).log_softmax(0), normal(k, d) + offset, p)
        self.covariance_type, self.dtype, self.device = covariance_type, dtype, device
        self.x, *self.parameters = (value.to(device, dtype) for value in values)
        self.responsibilities = torch.rand(n, k, generator=g).to(device, dtype)
        self.responsibilities[torch.rand(n, k, generator=g).to(device) < 0.2] = 0.0
        self.sample_weight = (torch.rand(n, generator=g) * 2).to(device, dtype)
        self.sample_weight[::3] = 0.0
        self.labels = torch.randint(-1, k, (n,), generator=g).to(device)
        self.u = torch.finfo(dtype).eps / 2

    @property
    def mixture(self):
        return (*self.parameters, self.covariance_type)

    @property
    def mixture64(self):
        return (*(p.double() for p in self.parameters), self.covariance_type)

    def factor(self):
        """The magnitude of P as (K, D, D), in float64."""
        d = self.x.shape[1]
        p = self.parameters[2].double().abs()
        if self.covariance_type in ("full", "tied"):
            return p.reshape(-1, d, d).triu().expand(len(self.parameters[1]), d, d)
        return torch.diag_embed(p if p.dim() == 2 else p[:, None].expand(-1, d))

    def residual(self):
        """The magnitude of x - mean as (N, K, D), in float64."""
        return (self.x.double()[:, None] - self.parameters[1].double()).abs()

    def terms_bound(self):
        """Rounding error of the component log-densities: sums of D terms, and their constants."""
        d, p = self.x.shape[1], self.factor()
        y = torch.einsum("nki,kij->nkj", self.residual(), p)
        log_det = p.diagonal(dim1=-2, dim2=-1).log().abs().sum(-1)
        constant = self.parameters[0].double().abs() + d * math.log(2 * math.pi) / 2 + log_det
        return (2 * d + 8) * self.u * (constant + 0.5 * (y * y).sum(-1))

    def moments_bound(self, r, r_error):
        """Rounding error of the moments for weights ``r`` that are ``r_error`` off."""
        n = self.x.shape[0]
        # Blocks of at most 64 rows are summed in ``dtype``, the blocks in float64.
        count = 8 + (n if self.dtype == torch.float64 else min(n, 64))
        scale = count * self.u * r.double() + r_error
        d = self.residual()
        first, second = torch.einsum("nk,nki->ki", scale, d), None
        if self.covariance_type == "full":
            second = torch.einsum("nk,nki,nkj->kij", scale, d, d)
        elif self.covariance_type == "tied":
            second = torch.einsum("nk,nki,nkj->ij", scale, d, d)
        else:
            second = torch.einsum("nk,nki,nki->ki", scale, d, d)
            second = second.mean(-1) if self.covariance_type == "spherical" else second
        return scale.sum(0), first, second

    def posterior(self, weights, labels):
        """Responsibilities in float64 and a bound on the error that a kernel may make in them."""
        terms = reference.gmm_component_log_prob(self.x.double(), *self.mixture64)
        total = terms.logsumexp(1, keepdim=True)
        r, t_error = (terms - total).exp(), self.terms_bound()
        # exp() of a difference is off by the error of the difference, and by what it rounds.
        relative = t_error + t_error.amax(1, keepdim=True) + 8 * self.u * (1 + total - terms)
        r_error = r * relative.expm1() + torch.finfo(self.dtype).tiny
        log_prob, error = total[:, 0], t_error.amax(1) + 8 * self.u * (1 + total[:, 0].abs())
        if labels is not None:
            pinned, index = labels >= 0, labels.clamp(min=0)[:, None]
            one_hot = torch.zeros_like(r).scatter_(1, index, 1.0)
            r = torch.where(pinned[:, None], one_hot, r)
            r_error = torch.where(pinned[:, None], 0.0, r_error)
            error = torch.where(pinned, t_error.gather(1, index)[:, 0], error)
        w = 1.0 if weights is None else weights.double()[:, None]
        return r * w, r_error * w, (error[:, None] * w).sum() + 1e-14 * log_prob.abs().sum()

    def gradient_bound(self):
        """Rounding error of the input gradient: sums over D, twice, and K."""
        d, k = self.x.shape[1], self.responsibilities.shape[1]
        precision = self.factor() @ self.factor().mT
        r = self.responsibilities.double()
        scale = torch.einsum("nk,nki,kij->nj", r, self.residual(), precision)
        return (2 * d + k + 8) * self.u * scale


@pytest.fixture
def problem(device: str) -> Callable[..., Problem]:
    """`Problem` on the device of the kernels."""
    return functools.partial(Problem, device)


@pytest.fixture
def close() -> Callable[..., None]:
    """Asserts that tensors agree within a bound, and exactly where they are not finite."""

    def check(actual, expected, bound):
        assert actual.shape == expected.shape
        finite = expected.isfinite()
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual[actual.isinf()].double(), expected[expected.isinf()].double())
        # The floor is for exact zeros, where the bound is 0 too.
        bound = torch.as_tensor(bound, device=actual.device).expand(actual.shape) + 1e-300
        worst = ((actual.double() - expected.double()).abs() / bound)[finite]
        assert (worst <= 1).all(), f"{worst.max().item():.2f} times the bound"

    return check
