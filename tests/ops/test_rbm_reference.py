"""The reference of the RBM ops against enumeration and against its own definition."""

from __future__ import annotations

import math

import pytest
import torch
from ops.rbm_cases import KINDS, energy, joint_law, layer_states, machine, states

import evidens
from evidens import ops
from evidens.reference import rbm as reference

each_kind = pytest.mark.parametrize(("visible", "hidden"), KINDS)


@pytest.mark.parametrize("beta", [1.0, 0.3, 1e-9])
@each_kind
def test_free_energy_is_the_sum_over_hidden_states(visible, hidden, beta):
    m = machine(6, 4, visible, hidden)
    v = states(9, 6, visible, torch.float64)
    h = layer_states(4, hidden, None)
    want = -(-beta * energy(m, v, h)).logsumexp(1)
    with evidens.backend("reference"):
        found = ops.rbm_free_energy(v, *m.tensors, **m.options, beta=beta)
    torch.testing.assert_close(found, want, rtol=1e-13, atol=1e-13)


@each_kind
def test_statistics_are_the_gradient_of_the_enumerated_density(visible, hidden):
    m = machine(6, 4, visible, hidden)
    v, weight = states(7, 6, visible, torch.float64), torch.rand(7).double()
    h = layer_states(4, hidden, None)
    leaves = [t.requires_grad_() for t in (*m.tensors, m.log_variance) if t is not None]
    log = (weight * (-energy(m, v, h)).logsumexp(1)).sum()
    want = torch.autograd.grad(log, leaves)
    with torch.no_grad(), evidens.backend("reference"):
        found = ops.rbm_statistics(v, *m.tensors, sample_weight=weight, **m.options)
    parts = [found.weight, found.visible, found.hidden]
    parts += [found.log_variance] if visible == "gaussian" else []
    assert (found.log_variance is None) == (visible != "gaussian")
    for a, b in zip(parts, want):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hidden", ["bernoulli", "spin"])
@pytest.mark.parametrize("visible", ["bernoulli", "spin", "softmax"])
def test_two_phases_are_the_gradient_of_the_log_likelihood(visible, hidden):
    """Of data, less the statistics of all states weighted by their probability."""
    m = machine(6, 3, visible, hidden)
    data = states(5, 6, visible, torch.float64)
    every = layer_states(6, visible, m.levels)
    h = layer_states(3, hidden, None)
    leaves = [t.requires_grad_() for t in m.tensors]
    log = (-energy(m, data, h)).logsumexp(1).mean() - (-energy(m, every, h)).logsumexp((0, 1))
    want = torch.autograd.grad(log, leaves)
    with torch.no_grad():
        law = joint_law(m)[2].sum(1)
        up = ops.rbm_statistics(data, *m.tensors, **m.options)
        down = ops.rbm_statistics(every, *m.tensors, sample_weight=law, **m.options)
    for a, b, w in zip(up, down, want):
        torch.testing.assert_close(a / 5 - b, w, rtol=1e-10, atol=1e-12)


@each_kind
def test_means_are_the_conditional_law(visible, hidden):
    m = machine(6, 4, visible, hidden)
    v, beta = states(1, 6, visible, torch.float64), 0.7
    h = layer_states(4, hidden, None)
    law = torch.softmax(-beta * energy(m, v, h), 1)
    field = reference.hidden_field(v, m.weight, m.hidden_bias, m.log_variance)
    found = reference.means(field, hidden, torch.full((1,), beta).double())
    torch.testing.assert_close(found, law @ h)
    if visible == "gaussian":
        return
    every = layer_states(6, visible, m.levels)
    law = torch.softmax(-beta * energy(m, every, h[5:6]), 0)
    field = reference.visible_field(h[5:6], m.weight, m.visible_bias)
    found = reference.means(field, visible, torch.full((1,), beta).double(), m.levels or 0)
    torch.testing.assert_close(found, law.T @ every)


def test_normals_are_normal():
    n = 200_001
    z = reference.standard_normal(3, 5, 3, n, torch.float64, 0, None)
    assert z.shape == (3, n)
    assert abs(z.mean()) < 5 / math.sqrt(3 * n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / (3 * n))
    cells = torch.special.ndtr(z).mul(64).long().clamp(0, 63).flatten().bincount(minlength=64)
    statistic = ((cells - 3 * n / 64) ** 2 / (3 * n / 64)).sum().item()
    assert statistic < 63 + 5 * math.sqrt(2 * 63)
    # The two halves of a pair do not know of each other.
    pairs = z[:, :-1].unflatten(1, (-1, 2))
    assert abs((pairs[..., 0] * pairs[..., 1]).mean()) < 5 / math.sqrt(1.5 * n)
