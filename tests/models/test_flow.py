"""Densities of flows: they integrate to 1, know their data, and come as they were asked for."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from models.flow_cases import CLASSES, QUICK, SMALL, fitted, moons, shaken
from scipy.stats import multivariate_normal, vonmises

from evidens import Flow, GaussianMixture, Glow, NeuralSplineFlow, RealNVP
from evidens.nn import MLP, ActNorm, AffineCoupling, Chain, InvertibleLinear


def grid(low, high, count):
    """Midpoints of cells, and the volume of one."""
    axes = [a + (np.arange(count) + 0.5) * (b - a) / count for a, b in zip(low, high)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(low))
    return points, float(np.prod([(b - a) / count for a, b in zip(low, high)]))


# --- densities ------------------------------------------------------------------------------------


def test_density_integrates_to_one_in_one_dimension():
    flow = shaken(NeuralSplineFlow(1, layers=3, hidden=()), 0.5).double()
    points, volume = grid([-12], [12], 20000)
    assert np.exp(flow.log_prob(points)).sum() * volume == pytest.approx(1, abs=1e-6)
    assert np.ptp(flow.log_prob(points[9000:11000])) > 0.1  # no Gaussian


@pytest.mark.parametrize("cls", CLASSES)
def test_density_integrates_to_one_in_two_dimensions(cls):
    points, volume = grid([-4, -3], [5, 3.5], 600)
    density = np.exp(fitted(cls).log_prob(points).astype(np.float64))
    assert density.sum() * volume == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("cls", CLASSES)
def test_conditional_density_integrates_to_one(cls):
    flow = shaken(cls(1, context=2, **SMALL)).double()
    points, volume = grid([-12], [12], 20000)
    for context in ([0.0, 0.0], [1.0, -2.0]):
        density = np.exp(flow.log_prob(points, context))
        assert density.sum() * volume == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_new_flow_is_the_gaussian_of_the_data(cls):
    X = np.random.default_rng(0).normal(size=(400, 3)) * [1, 10, 0.1] + [5, -300, 0]
    flow = cls(3, **SMALL).fit(X, epochs=0, validation_fraction=0, **QUICK)
    gaussian = multivariate_normal(X.mean(0), np.diag(X.var(0)))
    np.testing.assert_allclose(flow.log_prob(X), gaussian.logpdf(X), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cls", CLASSES)
def test_two_moons_are_no_gaussian(cls):
    test = moons(seed=1)[0]
    gaussian = GaussianMixture().fit(moons()[0]).score(test)
    flow = fitted(cls)
    assert flow.score(test) > gaussian + 1
    assert flow.history_["validation"][-1] > flow.history_["validation"][0]
    # Draws have the density of the data, by a flow-free measure.
    judge = GaussianMixture(20, random_state=0).fit(test)
    drawn = flow.sample(2000, random_state=0)
    assert judge.score(drawn) == pytest.approx(judge.score(moons(2000, 2)[0]), abs=0.5)


@pytest.mark.parametrize("cls", CLASSES)
def test_logdet_is_that_of_the_jacobian_of_transform(cls):
    flow = copy.deepcopy(fitted(cls)).double()
    x = torch.from_numpy(moons(4, 5)[0])
    z = flow.transform(x)
    base = -0.5 * (z.square().sum(1) + 2 * math.log(2 * math.pi))
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.transform(v[None])[0], x[i])
        logdet = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(flow.log_prob(x)[i], base[i] + logdet)


@pytest.mark.parametrize("cls", CLASSES)
def test_latents_of_draws_are_the_latents(cls):
    flow = copy.deepcopy(fitted(cls)).double()
    x = flow.rsample(500, random_state=3)
    z = flow.transform(x)
    u = torch.special.ndtr(z).detach()
    assert abs(float(u.mean()) - 0.5) < 0.03
    again = flow.layers.inverse(z)[0]
    torch.testing.assert_close(flow.standard.inverse(again), x)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_conditional_flow_learns_a_known_conditional(cls):
    rng = np.random.default_rng(0)
    c = rng.uniform(-2, 2, size=(2000, 1))
    spread = 0.2 + 0.1 * c**2
    X = np.sin(c) + spread * rng.normal(size=c.shape)
    flow = cls(1, context=1, layers=1, hidden=(32, 32))
    flow.fit(X[:1500], context=c[:1500], epochs=40, lr=5e-3, batch_size=128, **QUICK)
    truth = -0.5 * ((X - np.sin(c)) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi))
    assert flow.score(X[1500:], context=c[1500:]) == pytest.approx(truth[1500:].mean(), abs=0.04)
    for value in (-1.5, 0.0, 1.5):
        drawn = flow.sample(4000, context=[value], random_state=0)
        assert drawn.mean() == pytest.approx(math.sin(value), abs=0.1)
        assert drawn.std() == pytest.approx(0.2 + 0.1 * value**2, rel=0.2)


def test_angles_have_periodic_densities():
    rng = np.random.default_rng(0)
    angle = rng.vonmises(3.0, 3, size=1500)
    X = np.c_[angle, np.sin(angle) + 0.2 * rng.normal(size=1500)]
    flow = NeuralSplineFlow(2, layers=4, hidden=(32,), circular=[0])
    flow.fit(X, epochs=30, lr=5e-3, **QUICK)
    truth = vonmises.logpdf(angle, 3, 3.0) + multivariate_normal(0, 0.04).logpdf(
        X[:, 1] - np.sin(angle)
    )
    assert flow.score(X) > truth.mean() - 0.05
    np.testing.assert_allclose(
        flow.log_prob(X + np.array([2 * np.pi, 0])), flow.log_prob(X), atol=1e-4
    )
    edge = flow.log_prob([[np.pi - 1e-6, 0.1], [-np.pi + 1e-6, 0.1]])
    assert edge[0] == pytest.approx(edge[1], abs=1e-3)
    points, volume = grid([-np.pi, -3], [np.pi, 3], 400)
    assert np.exp(flow.log_prob(points).astype(float)).sum() * volume == pytest.approx(1, abs=1e-3)
    drawn = flow.sample(4000, random_state=0)
    assert np.abs(drawn[:, 0]).max() <= np.pi
    assert np.cos(drawn[:, 0]).mean() == pytest.approx(np.cos(angle).mean(), abs=0.05)


def test_data_far_from_zero_keep_their_digits():
    near = moons()[0]
    far = near + 1e9
    kept = (far - 1e9)[:200]  # what float64 leaves of them
    flow = RealNVP(2, **SMALL).fit(far, epochs=3, **QUICK)
    close = RealNVP(2, **SMALL).fit(far - 1e9, epochs=3, **QUICK)
    np.testing.assert_allclose(flow.log_prob(kept + 1e9), close.log_prob(kept), atol=1e-4)
    assert np.abs(flow.sample(100, random_state=0) - 1e9).max() < 10


# --- containers, dtypes, modes --------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_arrays_give_arrays_and_tensors_tensors(cls):
    flow, X = fitted(cls), moons(50, 3)[0]
    x = torch.from_numpy(X)
    for name in ("log_prob", "score_samples", "transform"):
        array, tensor = getattr(flow, name)(X), getattr(flow, name)(x)
        assert isinstance(array, np.ndarray)
        assert isinstance(tensor, torch.Tensor)
        assert tensor.requires_grad
        np.testing.assert_allclose(array, tensor.detach(), rtol=1e-5, atol=1e-5)
    assert flow.log_prob(X.tolist()).shape == (50,)
    assert isinstance(flow.score(X), float)
    assert isinstance(flow.sample(3), np.ndarray)
    assert isinstance(cls(2).sample(3), torch.Tensor)
    on_tensors = cls(2, **SMALL).fit(x, epochs=0, **QUICK)
    assert on_tensors.sample(3).dtype == torch.float32
    assert on_tensors.double().sample(3).dtype == torch.float64


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_of_the_density(cls):
    flow = shaken(cls(2, **SMALL)).double()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: flow.log_prob(x), x)
    flow.log_prob(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    drawn = flow.rsample(5, random_state=0)
    assert drawn.requires_grad
    assert not flow.sample(5).requires_grad


@pytest.mark.parametrize("cls", CLASSES)
def test_double_is_double(cls):
    single, X = fitted(cls), moons(100, 4)[0]
    double = copy.deepcopy(single).double()
    assert double.log_prob(X).dtype == np.float64
    assert single.log_prob(X).dtype == np.float32
    np.testing.assert_allclose(single.log_prob(X), double.log_prob(X), rtol=1e-3, atol=2e-3)
    # Location and scale never lose digits on the way.
    back = double.float().double()
    assert torch.equal(back.standard.location, single.standard.location)
    assert back.standard.location.dtype == torch.float64


def test_rows_in_many_pieces(monkeypatch):
    flow = copy.deepcopy(fitted(RealNVP)).double()  # float32 GEMMs of few rows round differently
    X = moons(500, 5)[0]
    whole, drawn = flow.log_prob(X), flow.sample(500, random_state=0)
    for module in ("_density_state", "flow_base"):
        monkeypatch.setattr(f"evidens.models.{module}.PIECE", 32 * 8 * 7)
    np.testing.assert_allclose(flow.log_prob(X), whole, rtol=0, atol=1e-12)
    np.testing.assert_allclose(flow.sample(500, random_state=0), drawn, rtol=0, atol=1e-12)
    assert flow.log_prob(np.zeros((0, 2))).shape == (0,)
    assert flow.sample(0).shape == (0, 2)


def test_draws_depend_on_the_seed_and_the_row_alone():
    flow = fitted(NeuralSplineFlow)
    a, b = flow.sample(20, random_state=7), flow.sample(50, random_state=7)
    np.testing.assert_allclose(a, b[:20], atol=1e-5)
    assert np.abs(flow.sample(20, random_state=8) - a).max() > 0.1
    torch.manual_seed(3)
    c = flow.sample(5)
    assert (flow.sample(5) != c).any()
    torch.manual_seed(3)
    assert (flow.sample(5) == c).all()
    generators = [np.random.default_rng(0), np.random.RandomState(0), torch.Generator()]
    for generator in generators:
        first, second = (flow.sample(4, random_state=generator) for _ in range(2))
        assert (first != second).any()
    cold = flow.sample(400, temperature=0.1, random_state=0)
    assert cold.std(0).sum() < flow.sample(400, random_state=0).std(0).sum()
    with pytest.raises(TypeError, match="random_state: expected None, an integer"):
        flow.sample(3, random_state="seed")


def test_mode_is_left_as_found():
    flow = RealNVP(2, dropout=0.5, **SMALL)
    flow.layers[1].eval()
    modes = [m.training for m in flow.modules()]
    X = moons(200)[0]
    flow.fit(X, epochs=1, **QUICK)
    first, second = flow.log_prob(X), flow.log_prob(X)
    flow.sample(3)
    flow.partial_fit(X)
    assert [m.training for m in flow.modules()] == modes
    assert (first == second).all()  # arrays are answered without dropout
    x = torch.from_numpy(X)
    assert (flow.log_prob(x) != flow.log_prob(x)).any()  # tensors go through as through a module


def test_torch_generator_is_left_as_found():
    before = torch.random.get_rng_state()
    RealNVP(2, dropout=0.1, **SMALL)
    torch.random.set_rng_state(before)
    flow = RealNVP(2, **SMALL)
    after = torch.random.get_rng_state()
    flow.fit(moons(100)[0], epochs=1, **QUICK).sample(3, random_state=0)
    assert torch.equal(torch.random.get_rng_state(), after)


# --- rows that are no data ------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_tensors_with_nan_and_infinity(cls):
    flow = fitted(cls)
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[0.0, 0.0], [nan, 0.0], [0.0, inf], [-inf, 0.0], [1e30, 0.0]])
    x.requires_grad_()
    value = flow.log_prob(x)
    assert value[0].isfinite()
    assert value[1].isnan()
    assert (value[2:] == -inf).all()
    # A row that cannot be spoils no other row's gradient.
    value[[0, 2]].sum().backward()
    assert x.grad[0].isfinite().all()
    assert not x.grad[2:4].any()


# --- compiling, copying, files --------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_log_prob_compiles_into_one_graph(cls):
    flow = shaken(cls(2, context=1, layers=2, hidden=(8,)))
    x, c = torch.randn(10, 2), torch.randn(10, 1)
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, c), flow.log_prob(x, c))
    loss = torch.compile(flow, fullgraph=True, backend="aot_eager")(x, c).mean()
    loss.backward()
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.parametrize("cls", CLASSES)
def test_copies_and_files(cls, tmp_path):
    flow, X = fitted(cls), moons(100, 6)[0]
    expected = flow.log_prob(X)
    flow.save(tmp_path / "flow.safetensors")
    loaded = cls.load(tmp_path / "flow.safetensors")
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), loaded):
        assert (other.log_prob(X) == expected).all()
        assert (other.sample(5, random_state=0) == flow.sample(5, random_state=0)).all()
        assert repr(other) == repr(flow)
        assert other.history_ == flow.history_
    assert not loaded.training
    assert loaded.fit(X, epochs=1, **QUICK).n_iter_ == 1
    copy.deepcopy(flow).double().save(tmp_path / "double.safetensors")
    assert cls.load(tmp_path / "double.safetensors").dtype == torch.float64
    other = RealNVP if cls is NeuralSplineFlow else NeuralSplineFlow
    with pytest.raises(ValueError, match=f"holds a {cls.__name__}, not a {other.__name__}"):
        other.load(tmp_path / "flow.safetensors")


def test_a_flow_of_ones_own_layers(tmp_path):
    def layers():
        return Chain(ActNorm(2), InvertibleLinear(2), AffineCoupling(2, MLP(1, 2, (16,))))

    X = moons(300)[0]
    flow = Flow((2,), layers()).fit(X, epochs=5, **QUICK)
    assert flow.score(X) > Flow((2,), layers()).fit(X, epochs=0, **QUICK).score(X)
    assert flow.fit(X, epochs=0, **QUICK).score(X) == pytest.approx(flow.score(X))
    flow.save(tmp_path / "own.safetensors")
    again = Flow.load(tmp_path / "own.safetensors", layers=layers())
    assert (again.log_prob(X) == flow.log_prob(X)).all()
    with pytest.raises(ValueError, match="damaged header"):
        Flow.load(tmp_path / "own.safetensors")


def test_repr_shows_what_is_not_default():
    text = repr(RealNVP(3, layers=2, hidden=(16,)))
    assert text.startswith("RealNVP(features=3, layers=2, hidden=[16])  # ")
    assert text.endswith("parameters, not fitted")
    assert repr(fitted(RealNVP)).endswith("parameters, fitted")


def test_features_that_never_meet_would_be_independent():
    """Every feature is transformed, and decides about others, in any pair of layers."""
    from evidens.models.flow_realnvp import coupling_mask

    for features in range(2, 9):
        for layer in range(0, 6, 2):
            first, second = coupling_mask(features, layer), coupling_mask(features, layer + 1)
            assert torch.equal(first, ~second)
            assert 0 < first.sum() < features
    assert coupling_mask(1, 0).tolist() == [True]


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: RealNVP(0), "size of a row must be an integer of at least 1, got 0"),
        (lambda: RealNVP(2, context=-1), "context must be an integer of at least 0"),
        (lambda: RealNVP(2, classes=1.5), "classes must be an integer"),
        (lambda: RealNVP(2, dequantize=1), "dequantize must be an integer of at least 2"),
        (lambda: RealNVP(2, dequantize=4, logit=0.5), "logit must be between 0 and 0.5"),
        (lambda: RealNVP(2, activation="x"), "activation: expected one of"),
        (lambda: NeuralSplineFlow(2, circular=[2]), "circular must hold features from 0 to 1"),
        (lambda: Glow((1, 8, 6)), r"multiples of 2 \*\* levels = 4, got \(1, 8, 6\)"),
        (lambda: Glow((8, 8)), r"shape must be \(C, H, W\)"),
        (lambda: Flow((2,), Chain(), standardize="rows"), "standardize: expected one of"),
    ],
)
def test_constructors_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()
