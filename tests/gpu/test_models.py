"""Every model on tensors of a GPU: learnt there, asked there, and the same as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from models.hmm_cases import FAMILIES, LENGTHS, frames, model
from torch import Tensor

import evidens

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*running the plain torch reference:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)]
each_device = pytest.mark.parametrize("device", DEVICES)
COVARIANCES = ("full", "tied", "diag", "spherical")
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 32, "random_state": 0, "verbose": 0}


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of ten bits, cuDNN's default, would hide what is asked here."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def rows(n: int = 90, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = 4.0 * torch.tensor([[0, 0, 0], [1, 1, 0], [0, 1, 1]])
    z = torch.arange(n) % 3
    return centres[z].double() + torch.randn(n, 3, generator=g, dtype=torch.float64)


def agree(found: Any, want: Any, device: str, tolerance: float = 1e-6) -> None:
    """On the device, and the numbers that the CPU has."""
    assert isinstance(found, Tensor)
    assert found.device.type == device
    found, want = found.detach().cpu(), want.detach()
    if found.is_floating_point():
        torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)
    else:
        assert torch.equal(found, want)


# --- mixtures -------------------------------------------------------------------------------------


@each_device
@pytest.mark.parametrize("kind", COVARIANCES)
def test_gaussian_mixture(kind, device):
    x = rows()
    options = {"covariance_type": kind, "random_state": 0, "max_iter": 20}
    here = evidens.GaussianMixture(3, **options).fit(x.to(device))
    there = evidens.GaussianMixture(3, **options).fit(x)
    new = rows(7, seed=1)
    gaps = new.clone()
    gaps[::2, 1] = torch.nan
    for name in ("log_prob", "score_samples", "predict_proba", "predict", "transform"):
        found = getattr(here, name)(new.to(device))
        agree(found, getattr(there, name)(new), device)
    agree(here.impute(gaps.to(device)), there.impute(gaps), device)
    leaf = new.to(device).requires_grad_()
    (slope,) = torch.autograd.grad(here.log_prob(leaf).sum(), leaf)
    host = new.clone().requires_grad_()
    agree(slope, torch.autograd.grad(there.log_prob(host).sum(), host)[0], device)
    draws = here.sample(5)[0]
    assert draws.shape == (5, 3)
    weights = torch.linspace(0, 2, len(x), dtype=torch.float64)
    labels = torch.full((len(x),), -1)
    labels[:9] = torch.arange(9) % 3
    given = {"sample_weight": weights.to(device), "labels": labels.to(device)}
    here = evidens.GaussianMixture(3, **options).fit(x.to(device), **given)
    there = evidens.GaussianMixture(3, **options).fit(x, sample_weight=weights, labels=labels)
    agree(here.log_prob(new.to(device)), there.log_prob(new), device)


# --- hidden Markov models -------------------------------------------------------------------------


@each_device
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "Custom"])
def test_hidden_markov_models(family, device):
    X = torch.as_tensor(np.asarray(frames(family)))
    X = X.double() if family in ("Gaussian", "GMM") else X.long()
    models = [model(family).fit(x, lengths=LENGTHS) for x in (X.to(device), X)]
    for name in ("log_prob", "predict", "predict_proba"):
        found, want = (
            getattr(m, name)(x, lengths=LENGTHS) for m, x in zip(models, (X.to(device), X))
        )
        agree(found, want, device)
    found, want = (m.score(x, lengths=LENGTHS) for m, x in zip(models, (X.to(device), X)))
    assert float(found) == pytest.approx(float(want), rel=1e-6)
    draws, states = models[0].sample(6, random_state=0)
    assert len(draws) == len(states) == 6


# --- Boltzmann machines ---------------------------------------------------------------------------


def levels() -> Tensor:
    return torch.randint(3, (96, 4), generator=torch.Generator().manual_seed(0)).float()


MACHINES = {
    "BernoulliRBM": (evidens.BernoulliRBM, lambda: bits()),
    "GaussianRBM": (evidens.GaussianRBM, lambda: rows().float()),
    "CategoricalRBM": (evidens.CategoricalRBM, levels),
}


@each_device
@pytest.mark.parametrize("method", ["cd", "pcd", "pt"])
@pytest.mark.parametrize("name", MACHINES)
def test_boltzmann_machines(name, method, device):
    # Draws are those of the CPU but where a probability ties with its uniform within rounding.
    cls, data = MACHINES[name]
    x = data()
    options = {"n_iter": 2, "batch_size": 32, "method": method, "random_state": 0}
    here, there = (cls(5, **options).fit(to) for to in (x.to(device), x))
    assert here.components_.device.type == device
    new, gaps = x[:7], x[:7].clone()
    gaps[::2, 1] = torch.nan
    for query in ("log_prob", "free_energy", "transform"):
        agree(getattr(here, query)(new.to(device)), getattr(there, query)(new), device, 1e-4)
    filled = here.impute(gaps.to(device), method="mean_field")
    agree(filled, there.impute(gaps, method="mean_field"), device, 1e-3)
    drawn = here.sample(4, steps=5, random_state=0)
    agree(drawn, there.sample(4, steps=5, random_state=0), device, 1e-3)


# --- neural densities -----------------------------------------------------------------------------


class Neural(NamedTuple):
    """How one is made, and what it learns."""

    make: Callable[[], Any]
    data: Callable[[], Tensor]
    gaps: bool = False  # it fills them


def bits() -> Tensor:
    return (torch.rand(96, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def images() -> Tensor:
    return bits().repeat(1, 6)[:, :32].reshape(-1, 2, 4, 4)


def small(cls: Any, **options: Any) -> Callable[[], Any]:
    return lambda: cls(3, layers=2, hidden=(8,), **options)


NEURAL = {
    "RealNVP": Neural(small(evidens.RealNVP), lambda: rows().float()),
    "NeuralSplineFlow": Neural(small(evidens.NeuralSplineFlow), lambda: rows().float()),
    "MAF": Neural(small(evidens.MaskedAutoregressiveFlow), lambda: rows().float()),
    "MAF-spline": Neural(
        small(evidens.MaskedAutoregressiveFlow, transformer="spline"), lambda: rows().float()
    ),
    "Glow": Neural(lambda: evidens.Glow((2, 4, 4), steps=1, hidden=4, dequantize=2), images),
    "MADE-bits": Neural(lambda: evidens.MADE(6, hidden=(16,)), bits, gaps=True),
    "MADE-reals": Neural(
        lambda: evidens.MADE(3, output="gaussian", hidden=(16,)), lambda: rows().float(), gaps=True
    ),
    "PixelCNN": Neural(
        lambda: evidens.PixelCNN((2, 4, 4), levels=2, hidden=8, layers=1, first_kernel=3),
        images,
        gaps=True,
    ),
}


@each_device
@pytest.mark.parametrize("name", NEURAL)
def test_neural_densities(name, device):
    made = NEURAL[name]
    x = made.data()
    torch.manual_seed(0)
    net = made.make().to(device)
    net.fit(x.to(device), **QUICK)
    assert all(p.device.type == device for p in net.parameters())
    torch.manual_seed(0)
    host = made.make()
    host.load_state_dict({k: v.cpu() for k, v in net.state_dict().items()})
    host.eval()
    new = x[:7]
    found = net.log_prob(new.to(device))
    # Networks of a few layers in float32, summed over at most 32 features.
    agree(found, host.log_prob(new), device, 1e-3)
    agree(net.score_samples(new.to(device)), host.score_samples(new), device, 1e-3)
    draws = net.sample(5, random_state=3)
    assert tuple(draws.shape) == (5, *x.shape[1:])
    if made.gaps:
        holes = new.clone()
        holes[:, 0] = torch.nan
        filled = net.impute(holes.to(device), random_state=0)
        assert filled.device.type == device
        assert torch.equal(filled[:, 1:].cpu(), new[:, 1:])
        assert filled.isfinite().all()
