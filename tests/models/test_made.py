"""MADE: exact densities, draws that have them, orders, missing values, files."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from models.flow_cases import QUICK, moons
from scipy import stats

from evidens import MADE

F64 = torch.float64
INTEGERS = [("bernoulli", None), ("categorical", 3)]
OUTPUTS = [*INTEGERS, ("gaussian", None), ("mixture", None)]


def made(output, levels=None, features=3, **options):
    """Weights that matter."""
    torch.manual_seed(0)
    options = {"hidden": (16, 16), "activation": "tanh"} | options
    model = MADE(features, output=output, levels=levels, terms=3, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.double().eval()


def every_row(levels, features=3):
    return torch.tensor(list(itertools.product(range(levels), repeat=features)), dtype=F64)


@pytest.mark.parametrize("orders", [1, 3])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(("output", "levels"), INTEGERS)
def test_probabilities_sum_to_one(output, levels, context, orders):
    model = made(output, levels, context=context, orders=orders)
    x = every_row(levels or 2)
    c = torch.randn(1, context, dtype=F64) if context else None
    assert model.log_prob(x, c).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("orders", [1, 2])
@pytest.mark.parametrize("output", ["gaussian", "mixture"])
def test_densities_integrate_to_one(output, orders):
    model = made(output, features=2, orders=orders)
    grid = torch.linspace(-60, 60, 1201, dtype=F64)
    x = torch.cartesian_prod(grid, grid)
    mass = model.log_prob(x).exp().sum() * (grid[1] - grid[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("orders", [1, 3])
@pytest.mark.parametrize(("output", "levels"), INTEGERS)
def test_frequencies_of_draws(output, levels, orders):
    model = made(output, levels, orders=orders)
    x, n = every_row(levels or 2), 20_000
    expected = model.log_prob(x).exp().detach().numpy() * n
    drawn = model.sample(n, random_state=1)
    base = (levels or 2) ** np.arange(2, -1, -1)
    seen = np.bincount((drawn.numpy() * base).sum(1), minlength=len(x))
    assert stats.chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize("orders", [1, 2])
@pytest.mark.parametrize("output", ["gaussian", "mixture"])
def test_draws_have_the_density(output, orders):
    """The first feature's distribution function, by summing the density over the other."""
    model = made(output, features=2, orders=orders)
    grid = torch.linspace(-25, 25, 1001, dtype=F64)
    density = model.log_prob(torch.cartesian_prod(grid, grid)).exp().view(1001, 1001).detach()
    step = float(grid[1] - grid[0])
    drawn = model.sample(4000, random_state=0).numpy()
    for axis in (0, 1):
        cdf = density.sum(1 - axis).cumsum(0).numpy() * step**2
        found = stats.kstest(drawn[:, axis], lambda v, cdf=cdf: np.interp(v, grid, cdf))
        assert found.pvalue > 1e-3


@pytest.mark.parametrize(("output", "levels"), OUTPUTS)
def test_a_row_depends_on_the_seed_and_its_number_alone(output, levels):
    model = made(output, levels, orders=2)
    few, many = model.sample(5, random_state=3), model.sample(40, random_state=3)
    assert torch.equal(few, many[:5])
    assert model.sample(0).shape == (0, 3)


@pytest.mark.parametrize(("output", "levels"), OUTPUTS)
def test_learning(output, levels, tmp_path):
    rng = np.random.default_rng(0)
    if levels is None and output != "bernoulli":
        X = moons(600)[0]
        start, end = {"gaussian": (-2.2, -1.9), "mixture": (-2.2, -1.0)}[output]
    else:
        first = rng.integers(levels or 2, size=(600, 1))
        X = np.concatenate([first, (first + 1) % (levels or 2), first], 1)
        start, end = -2 * math.log(levels or 2), -1.2 * math.log(levels or 2)
    model = MADE(X.shape[1], output=output, levels=levels, hidden=(64,), orders=2)
    model.fit(X, epochs=60, lr=1e-2, batch_size=64, **QUICK)
    assert start < end < model.score(X)
    model.save(tmp_path / "made")
    again = MADE.load(tmp_path / "made")
    np.testing.assert_array_equal(again.log_prob(X), model.log_prob(X))
    assert np.array_equal(again.sample(3, random_state=0), model.sample(3, random_state=0))
    if model.levels:
        assert model.bits_per_dim(X) == pytest.approx(-model.score(X) / math.log(2) / 3)


def test_classes_and_contexts():
    X, y = moons(600)
    model = MADE(2, output="mixture", classes=2, hidden=(32,))
    model.fit(X, y, epochs=40, lr=1e-2, batch_size=64, **QUICK)
    assert (model.predict(X) == y).mean() > 0.95
    drawn = model.sample(200, y=1, random_state=0)
    assert model.predict(drawn).mean() > 0.9


@pytest.mark.parametrize("orders", [1, 3])
def test_imputed_draws_have_the_conditional(orders):
    """Also where what is known comes after what is missing."""
    model = made("categorical", 3, orders=orders)
    x = every_row(3)
    p = model.log_prob(x).exp().detach()
    given = torch.tensor([[math.nan, 2.0, math.nan]], dtype=F64)
    match = x[:, 1] == 2
    filled = model.impute(given.expand(4000, 3), method="sample", draws=100, random_state=0)
    assert (filled[:, 1] == 2).all()
    seen = np.bincount((filled[:, 0] * 3 + filled[:, 2]).int().numpy(), minlength=9)
    expected = (p[match] / p[match].sum()).numpy() * 4000
    # Importance sampling of 100 completions is all but exact.
    assert stats.chisquare(seen, expected).pvalue > 1e-4
    mode = model.impute(given, draws=4000, random_state=0)
    marginal = [(x[match][:, 0] == k).double() @ p[match] for k in range(3)]
    assert int(mode[0, 0]) == int(np.argmax(marginal))


def test_imputed_numbers():
    model = made("gaussian", features=2)
    x = torch.tensor([[0.3, math.nan], [math.nan, 0.2], [1.0, 2.0]], dtype=F64)
    filled = model.impute(x, draws=3000, random_state=0)
    assert torch.equal(filled[2], x[2])
    assert filled[0, 0] == 0.3
    raw = model.layers[0](torch.tensor([[0.3, 0.0]], dtype=F64))
    assert float(filled[0, 1]) == pytest.approx(float(raw[0, 1, 0].detach()), abs=0.1)
    assert isinstance(model.impute(x.numpy(), draws=2), np.ndarray)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MADE(3, output="poisson"), "output.*bernoulli.*poisson"),
        (lambda: MADE(3, output="categorical"), "levels.*None.*categorical"),
        (lambda: MADE(3, levels=4), "levels.*4.*bernoulli"),
        (lambda: MADE(3, orders=0), "orders"),
        (lambda: MADE(0), "size of a row"),
        (lambda: MADE(3).fit(np.full((9, 3), 0.5)), "integers from 0 to 1"),
        (lambda: MADE(3).log_prob(np.full((9, 3), 2)), "integers from 0 to 1"),
        (lambda: MADE(3).impute([[2.0, np.nan, 0]]), "integers from 0 to 1"),
        (lambda: MADE(3).impute([[np.inf, np.nan, 0]]), "finite"),
        (lambda: MADE(3).impute([[1, np.nan, 0]], method="median"), "method.*median"),
        (lambda: MADE(3, output="gaussian").impute([[1, np.nan, 0]], method="mode"), "mode"),
        (lambda: MADE(3).impute([[1, np.nan, 0]], draws=0), "draws"),
        (lambda: MADE(3, classes=2).impute([[1, np.nan, 0]]), "pass y"),
        (lambda: MADE(3, output="gaussian").bits_per_dim(np.zeros((1, 3))), "integers"),
        (lambda: MADE(3).sample(-1), "negative"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(("output", "levels"), [("bernoulli", None), ("categorical", 2)])
def test_impossible_rows_of_tensors(output, levels):
    model = made(output, levels)
    x = torch.tensor([[0.0, 1, 2], [0, 1, 0], [math.nan, 0, 0]], dtype=F64)
    density = model.log_prob(x)
    assert density[0] == -math.inf
    assert density[1].isfinite()
    assert density[2].isnan()


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("output", ["gaussian", "mixture"])
@pytest.mark.parametrize("value", [1e6, 1e14, 1e16, 1e39, -1e308])
def test_far_rows_have_no_density(output, value, activation):
    model = made(output, activation=activation)
    x = torch.tensor([[value, 0.0, 0.0], [0.5, 0.0, 0.0]], dtype=F64, requires_grad=True)
    for dtype in (F64, torch.float32):
        density = model.to(dtype).log_prob(x)
        assert density[0] < -1e5
        (gradient,) = torch.autograd.grad(density[1], x)
        assert gradient[1].isfinite().all()


# --- what once went wrong -------------------------------------------------------------------------


def test_a_draw_is_one_pass(monkeypatch):
    model = made("categorical", 3)
    monkeypatch.setattr(MADE, "_terms", None)  # densities are nothing to a draw
    assert model.sample(5, random_state=0).shape == (5, 3)


def test_queries_of_tensors_know_no_dropout_and_all_orders():
    x = torch.randint(2, (40, 6), generator=torch.Generator().manual_seed(0))
    model = MADE(6, hidden=(32,), dropout=0.5, orders=3, classes=2)
    model.fit(x, x[:, 0], epochs=2, **QUICK)
    model.train()
    y = x[:, 0]
    assert model.score(x, y) == pytest.approx(model.score(x.numpy(), y.numpy()), abs=1e-9)
    assert model.bits_per_dim(x, y) == pytest.approx(model.bits_per_dim(x.numpy(), y.numpy()))
    np.testing.assert_array_equal(model.predict(x).numpy(), model.predict(x.numpy()))


def test_the_density_of_several_orders_compiles_while_training():
    model = made("bernoulli", orders=3).train()
    x = every_row(2)
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model.log_prob(x))
    assert compiled(x).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("orders", [1, 3])
def test_rows_are_imputed_in_pieces(monkeypatch, orders):
    model = made("gaussian", orders=orders)
    x = torch.randn(20, 3, dtype=F64)
    x[torch.rand(20, 3) < 0.5] = math.nan
    whole = model.impute(x, random_state=0)
    monkeypatch.setattr("evidens.models.made.PIECE", 1)
    torch.testing.assert_close(model.impute(x, random_state=0), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("output", ["gaussian", "mixture"])
def test_imputed_beside_what_is_far_away(output):
    model = made(output)
    filled = model.impute(np.array([[np.nan, 1e20, np.nan]]), random_state=0)
    assert np.isfinite(filled).all()
    assert filled[0, 1] == 1e20


@pytest.mark.parametrize(("output", "levels"), INTEGERS)
def test_weights_that_are_no_numbers_give_no_draws(output, levels):
    model = made(output, levels)
    with torch.no_grad():
        model.layers[0].layers[-1].bias[-1] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        model.sample(4, random_state=0)


def test_orders_share_their_weights_after_loading():
    model = MADE(4, hidden=(8,), orders=3)
    count = sum(p.numel() for p in model.parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert sum(p.numel() for p in model.parameters()) == count


def test_two_fits_at_once_are_as_one_by_one():
    x = np.random.default_rng(0).integers(2, size=(200, 6))

    models = [MADE(6, hidden=(16,), dropout=0.1) for _ in range(2)]
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        scores = list(pool.map(lambda model: model.fit(x, epochs=3, **QUICK).score(x), models))
    assert scores[0] == scores[1]
    assert torch.equal(before, torch.random.get_rng_state())


def test_half_precision_is_refused_in_words():
    model = MADE(3, output="gaussian").bfloat16()
    for call in (lambda: model.log_prob(torch.zeros(1, 3)), lambda: model.sample(2)):
        with pytest.raises(TypeError, match=r"float32 or float64, and its weights are .*bfloat16"):
            call()


@pytest.mark.parametrize("hidden", [64, "88", (8.7,), (0,), (True,)])
def test_widths_are_integers(hidden):
    with pytest.raises(ValueError, match="hidden must be a sequence of integers"):
        MADE(4, hidden=hidden)


@pytest.mark.parametrize("n", [2.5, -1, "2"])
def test_the_number_of_draws_is_an_integer(n):
    with pytest.raises(ValueError, match="n must be an integer that is not negative"):
        made("bernoulli").sample(n)
