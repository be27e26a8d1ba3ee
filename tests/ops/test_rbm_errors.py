"""Bad input of the RBM ops: every error names op, argument, expected, got and the next step."""

from __future__ import annotations

import math

import pytest
import torch
from ops.rbm_cases import machine, states

from evidens import ops

M = machine(6, 4)
V = states(5, 6, "bernoulli", torch.float64)
H = states(5, 4, "bernoulli", torch.float64)
MASK = torch.zeros(6, dtype=torch.bool)


def gibbs(state=V, m=M, **options):
    return ops.rbm_gibbs(state, *m.tensors, **({"seed": 0} | m.options | options))


def free(v=V, m=M, **options):
    return ops.rbm_free_energy(v, *m.tensors, **(m.options | options))


def statistics(v=V, m=M, **options):
    return ops.rbm_statistics(v, *m.tensors, **(m.options | options))


def pcd(v=V, h=H, m=M, **options):
    return ops.rbm_pcd(v, h, *m.tensors, **({"seed": 0} | m.options | options))


GAUSSIAN, SOFTMAX = machine(6, 4, "gaussian"), machine(6, 4, "softmax")
WIDE = torch.full((6,), -800.0).double()
PART = torch.tensor([True, False, False, False, False, False])

CASES = [
    (lambda: gibbs([[0.0] * 6]), TypeError, r"rbm_gibbs: state must be a torch.Tensor, got list"),
    (lambda: gibbs(V.int()), TypeError, r"state is torch.int32 .*state.to\(weight\)"),
    (lambda: gibbs(V[0]), ValueError, r"state must have shape \(N, V\), got \(6,\)"),
    (lambda: gibbs(V, start="hidden"), ValueError, r"state must have shape \(N, J\) = \(5, 4\)"),
    (lambda: gibbs(H), ValueError, r"state must have shape \(N, V\) = \(5, 6\) for weight"),
    (lambda: gibbs(start="both"), ValueError, r"start must be one of visible, hidden, got 'both'"),
    (lambda: gibbs(visible="relu"), ValueError, r"visible must be one of bernoulli, spin"),
    (lambda: gibbs(hidden="gaussian"), ValueError, r"hidden must be one of bernoulli, spin, got"),
    (lambda: gibbs(steps=0), ValueError, r"steps must be at least 1, got 0"),
    (lambda: gibbs(steps=1.5), TypeError, r"steps.* must be integers.*1\.5"),
    (lambda: gibbs(step0=2**31), ValueError, r"step0 \+ steps at most 2\^31"),
    (lambda: gibbs(row0=-1), ValueError, r"row0 must not be negative"),
    (lambda: gibbs(levels=3), ValueError, r"levels .* belongs to visible='softmax'"),
    (lambda: gibbs(m=SOFTMAX, levels=None), ValueError, r"levels .* got None with 'softmax'"),
    (lambda: gibbs(m=SOFTMAX, levels=4), ValueError, r"levels must divide .* got 4 with V = 6"),
    (lambda: gibbs(m=SOFTMAX, levels=0), ValueError, r"levels must divide"),
    (lambda: gibbs(m=SOFTMAX, levels=2.0), TypeError, r"levels must be an integer, got 2\.0"),
    (lambda: gibbs(m=SOFTMAX, levels="2"), TypeError, r"levels must be an integer, got '2'"),
    (lambda: free(m=SOFTMAX, levels=True), TypeError, r"levels must be an integer, got True"),
    (
        lambda: gibbs(m=SOFTMAX.with_(visible_bias=torch.full((6,), math.inf).double())),
        ValueError,
        r"visible_bias of a softmax group must not be inf, got it at unit 0",
    ),
    (
        lambda: gibbs(V.to_sparse()),
        TypeError,
        r"state must be a dense tensor, got torch.sp",
    ),
    (lambda: free(V.to_sparse()), TypeError, r"v must be a dense tensor, got torch.sparse_coo"),
    (
        lambda: statistics(m=M.with_(weight=M.weight.to_sparse())),
        TypeError,
        r"weight must be a dense tensor",
    ),
    (
        lambda: gibbs(m=GAUSSIAN, log_variance=WIDE),
        ValueError,
        r"-709 \.\. 709, .* got -800",
    ),
    (lambda: free(m=GAUSSIAN, log_variance=WIDE), ValueError, r"log_variance must lie in -709"),
    (lambda: statistics(m=GAUSSIAN, log_variance=WIDE), ValueError, r"log_variance must lie in"),
    (lambda: gibbs(m=GAUSSIAN, log_variance=None), ValueError, r"log_variance .* got None with"),
    (lambda: gibbs(log_variance=V[0]), ValueError, r"log_variance .* a tensor with 'bernoulli'"),
    (lambda: gibbs(m=GAUSSIAN, beta=0.0), ValueError, r"beta must be positive .* got 0\.0"),
    (lambda: gibbs(beta="hot"), TypeError, r"beta must be a number or a tensor \(N,\), got 'hot'"),
    (lambda: gibbs(beta=torch.ones(4).double()), ValueError, r"beta .* \(5,\), got \(4,\)"),
    (lambda: gibbs(beta=torch.ones(5)), TypeError, r"beta is torch.float32 .*beta.to\(weight\)"),
    (lambda: gibbs(clamped=MASK.int()), TypeError, r"clamped must be a bool tensor .* got torch.i"),
    (lambda: gibbs(clamped=MASK[:3]), ValueError, r"clamped must have shape \(V,\) = \(6,\) or"),
    (lambda: gibbs(clamped=MASK, values=V), ValueError, r"values .* goes with clamped and start="),
    (lambda: gibbs(H, start="hidden", values=V), ValueError, r"values .* goes with clamped"),
    (lambda: gibbs(H, start="hidden", clamped=MASK), ValueError, r"needs values \(N, V\) = \(5, 6"),
    (
        lambda: gibbs(H, start="hidden", clamped=MASK, values=H),
        ValueError,
        r"values must have shape \(N, V\) = \(5, 6\), got \(5, 4\)",
    ),
    (
        lambda: gibbs(m=SOFTMAX, clamped=PART),
        ValueError,
        r"softmax group whole, got a part of group 0 in row 0",
    ),
    (lambda: gibbs(V.clone().requires_grad_()), RuntimeError, r"rbm_gibbs offers no gradient"),
    (lambda: gibbs(m=M.to(torch.int64)), TypeError, r"weight must be float32 or float64"),
    (lambda: free(m=M.with_(weight=V[0])), ValueError, r"weight must have shape \(J, V\), got"),
    (
        lambda: free(m=M.with_(hidden_bias=V[0])),
        ValueError,
        r"rbm_free_energy: hidden_bias must have shape \(J\) = \(4,\) for weight .*got \(6,\)",
    ),
    (lambda: free(V.float()), TypeError, r"v is torch.float32 .*v.to\(weight\)"),
    (lambda: statistics(h_mean=V), ValueError, r"rbm_statistics: h_mean must have shape \(N, J\)"),
    (lambda: statistics(sample_weight=V), ValueError, r"sample_weight must have shape \(N,\) = "),
    (
        lambda: statistics(sample_weight=torch.ones(5)),
        TypeError,
        r"sample_weight is torch.float32",
    ),
    (lambda: pcd(h=V), ValueError, r"rbm_pcd: h must have shape \(M, J\) = \(5, 4\) for 4 hidden"),
    (lambda: pcd(h=H[0]), ValueError, r"h must have shape \(M, J\) = \(4, 4\) .*got \(4,\)"),
    (lambda: pcd(h=H.float()), TypeError, r"h is torch.float32 .*h.to\(weight\)"),
    (lambda: pcd(h=[0.0]), TypeError, r"h must be a torch.Tensor, got list"),
    (lambda: pcd(H), ValueError, r"v must have shape \(N, V\) = \(5, 6\)"),
    (lambda: pcd(steps=0), ValueError, r"steps must be at least 1, got 0"),
    (lambda: pcd(sample_weight=V), ValueError, r"sample_weight must have shape \(N,\) = \(5,\)"),
    (lambda: pcd(minus_weight=H), ValueError, r"minus_weight must have shape \(M,\) = \(5,\)"),
    (lambda: pcd(h=H.clone().requires_grad_()), RuntimeError, r"rbm_pcd offers no gradient"),
    (lambda: statistics(minus_weight=2.0), ValueError, r"minus_weight goes with minus="),
    (lambda: statistics(minus=3), TypeError, r"minus must be two tensors.* got int"),
    (
        lambda: statistics(minus=(V, V)),
        ValueError,
        r"minus\[1\] must have shape \(M, J\) = \(5, 4\)",
    ),
    (lambda: statistics(minus=(V[0], H)), ValueError, r"minus\[0\] must have shape \(M, V\)"),
    (lambda: statistics(minus=(V.float(), H)), TypeError, r"minus\[0\] is torch.float32"),
    (
        lambda: statistics(minus=(V, H), minus_weight=V),
        ValueError,
        r"minus_weight must have shape \(M,\) = \(5,\), got \(5, 6\)",
    ),
    (
        lambda: statistics(minus=(V, H), minus_weight="all"),
        TypeError,
        r"minus_weight must be a number or a tensor \(M,\), got 'all'",
    ),
    (
        lambda: statistics(m=M.with_(weight=M.weight.clone().requires_grad_())),
        RuntimeError,
        r"rbm_statistics offers no gradient.*rbm_free_energy",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[c[2][:40] for c in CASES])
def test_errors(call, error, message):
    with pytest.raises(error, match=r"evidens\.rbm_.*") as caught:
        call()
    caught.match(message)
