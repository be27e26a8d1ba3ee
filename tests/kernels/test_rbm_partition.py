"""Annealed importance sampling in Triton against the reference: every chain's log-weight."""

from __future__ import annotations

import pytest
import torch
from ops.rbm_partition_cases import DTYPES, KINDS, machine

import evidens
from evidens.kernels import rbm_partition as kernels
from evidens.reference import rbm_partition as reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check(device, units, hidden_units, chains, levels, dtype, row0=0, seed=3):
    """As many chains as the reference but for one that a tie may send another way."""
    g = torch.Generator().manual_seed(units + 10 * hidden_units + 100 * levels)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64).to(device, dtype)

    w, b, c = normal(hidden_units, units) * 0.3, normal(units), normal(hidden_units)
    a = 0.5 * b + 0.1 * normal(units)
    betas = torch.tensor([0.0, 0.05, 0.4, 1.0], dtype=torch.float64, device=device)
    given = w, b, c, a, betas, chains, levels, seed, row0
    found, want = kernels.rbm_ais(*given), reference.rbm_ais(*given)
    assert found.dtype is torch.float64
    assert found.shape == (chains,)
    bound = 20 * torch.finfo(dtype).eps * (20 + w.abs().sum() + b.abs().sum() + c.abs().sum())
    apart = (found - want).abs() > bound
    assert apart.sum() <= (dtype is torch.float32), found - want


@pytest.mark.usefixtures("canaries")
@each_dtype
@pytest.mark.parametrize("levels", [0, 1])
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 3, 5), (70, 9, 17), (5, 66, 33)], ids=str)
def test_sizes(device, size, levels, dtype):
    check(device, *size, levels, dtype)


@pytest.mark.usefixtures("canaries")
@each_dtype
@pytest.mark.parametrize("levels", [2, 3, 5, 100])
@pytest.mark.parametrize("groups", [1, 3, 18])
def test_softmax_groups(device, groups, levels, dtype):
    check(device, groups * levels, 4, 5, levels, dtype)


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("seed", [-1, 2**60])
def test_far_rows(device, levels, seed):
    check(device, 6, 4, 3, levels, torch.float64, row0=2**32 - 1, seed=seed)


@pytest.mark.parametrize(("units", "hidden_units"), [(0, 3), (3, 0)])
def test_layers_without_units(device, units, hidden_units):
    check(device, units, hidden_units, 3, 1, torch.float64)


def test_many_levels_are_refused(device):
    w = torch.zeros(2, 258, device=device)
    betas = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match=r"groups of at most 128 levels, got 129"):
        kernels.rbm_ais(w, w[0], w[:, 0], w[0], betas, 2, 129, 0, 0)


@pytest.mark.parametrize(("visible", "hidden"), KINDS)
def test_through_the_op(device, visible, hidden):
    m = machine(visible, hidden)
    m = type(m)(*(t.to(device) for t in m.parameters), m.options)
    if visible == "gaussian":
        m.options["log_variance"] = m.options["log_variance"].to(device)
    found = []
    for backend in ("triton", "reference"):
        with evidens.backend(backend):
            found.append(m.anneal(chains=4, rungs=3).log_weights)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
