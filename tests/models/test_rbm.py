"""`BernoulliRBM` against the enumeration of all states: densities, features, classes, draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.rbm_cases import Joint, bernoulli, given, sigmoid
from scipy.stats import binom, chisquare

import evidens
from evidens import BernoulliRBM
from evidens.models.rbm_chains import Ladder, Stream, advance

KINDS = [
    pytest.param(visible, hidden, classes, id=f"{visible}-{hidden}-{classes}")
    for visible in ("bernoulli", "spin")
    for hidden in ("bernoulli", "spin")
    for classes in (0, 3)
]


def machine(visible, hidden, classes):
    return bernoulli(visible=visible, hidden=hidden, classes=classes)


@pytest.mark.parametrize(("visible", "hidden", "classes"), KINDS)
def test_log_prob_is_that_of_enumeration(visible, hidden, classes):
    rbm = machine(visible, hidden, classes)
    joint = Joint(rbm)
    np.testing.assert_allclose(rbm.log_prob(joint.v), np.log(joint.visible), rtol=1e-12)
    np.testing.assert_allclose(
        rbm.free_energy(joint.v), -np.log(joint.visible) - joint.log_z, rtol=1e-12
    )
    assert rbm.density_kind_ == "exact"
    assert rbm.log_partition_ == pytest.approx(joint.log_z, rel=1e-13)
    assert rbm.log_partition_interval_ == (rbm.log_partition_, rbm.log_partition_)


@pytest.mark.parametrize(("visible", "hidden", "classes"), KINDS)
def test_log_partition_by_annealing(visible, hidden, classes):
    rbm = machine(visible, hidden, classes)
    truth = Joint(rbm).log_z
    value = rbm.log_partition(exact=False, chains=50, rungs=200, random_state=0)
    low, high = rbm.log_partition_interval_
    assert rbm.density_kind_ == "estimate"
    assert low < truth < high
    assert low < value < high
    assert high - low < 0.5
    assert value != truth


@pytest.mark.parametrize(("visible", "hidden", "classes"), KINDS)
def test_features_and_classes_are_those_of_enumeration(visible, hidden, classes):
    rbm = machine(visible, hidden, classes)
    joint = Joint(rbm)
    means = (joint.p.sum(1) @ joint.h) / joint.visible[:, None]
    np.testing.assert_allclose(rbm.transform(joint.v), means, rtol=1e-12)
    if classes:
        posterior = joint.p.sum(2) / joint.visible[:, None]
        np.testing.assert_allclose(rbm.predict_proba(joint.v), posterior, rtol=1e-12)
        np.testing.assert_array_equal(rbm.predict(joint.v), posterior.argmax(1))


@pytest.mark.parametrize(("visible", "hidden", "classes"), KINDS)
def test_gibbs_leaves_the_law_as_it_is(visible, hidden, classes):
    rbm = machine(visible, hidden, classes)
    joint = Joint(rbm)
    rng = np.random.default_rng(0)
    start = joint.v[rng.choice(len(joint.v), size=40_000, p=joint.visible)]
    on = rbm.gibbs(start, steps=2)
    assert on.dtype == bool
    index = on @ (1 << np.arange(on.shape[1])[::-1])
    counts = np.bincount(index, minlength=len(joint.v))
    assert chisquare(counts, joint.visible * len(start)).pvalue > 1e-3
    assert (rbm.gibbs(start) != rbm.gibbs(start)).any()


@pytest.mark.parametrize("n_temperatures", [1, 4])
@pytest.mark.parametrize(("visible", "hidden", "classes"), KINDS)
def test_samples_have_the_law(visible, hidden, classes, n_temperatures):
    rbm = machine(visible, hidden, classes)
    joint = Joint(rbm)
    drawn = rbm.sample(10_000, steps=60, n_temperatures=n_temperatures, random_state=0)
    index = (drawn > 0) @ (1 << np.arange(drawn.shape[1])[::-1])
    counts = np.bincount(index, minlength=len(joint.v))
    assert chisquare(counts, joint.visible * len(drawn)).pvalue > 1e-3


@pytest.mark.parametrize("hidden", ["bernoulli", "spin"])
def test_samples_of_a_class_have_its_law(hidden):
    rbm = machine("bernoulli", hidden, 3)
    joint = Joint(rbm)
    law = joint.p[:, 1].sum(1)
    for n_temperatures in (1, 3):
        drawn = rbm.sample(
            10_000, steps=60, labels=1, n_temperatures=n_temperatures, random_state=0
        )
        counts = np.bincount((drawn > 0) @ (1 << np.arange(5)[::-1]), minlength=32)
        assert chisquare(counts, law / law.sum() * len(drawn)).pvalue > 1e-3


@pytest.mark.parametrize("n_temperatures", [1, 4])
def test_a_row_of_a_sample_does_not_depend_on_how_many_there_are(n_temperatures):
    rbm = bernoulli(classes=2)
    keys = {"steps": 5, "n_temperatures": n_temperatures}
    few, many = rbm.sample(3, **keys, random_state=1), rbm.sample(50, **keys, random_state=1)
    np.testing.assert_array_equal(few, many[:3])
    assert (rbm.sample(50, **keys, random_state=2) != many).any()
    assert rbm.sample(0).shape == (0, 5)


@pytest.mark.parametrize("n_temperatures", [1, 3])
@pytest.mark.parametrize(("visible", "hidden", "classes"), KINDS)
def test_impute_is_the_conditional_law(visible, hidden, classes, n_temperatures):
    more = {"n_temperatures": n_temperatures, "random_state": 0}
    rbm = machine(visible, hidden, classes)
    joint = Joint(rbm)
    known = (joint.v[:, 1] == 1) & (joint.v[:, 3] == joint.v[:, 3].min())
    weight = joint.visible * known
    mean = weight @ joint.v / weight.sum()
    row = np.where([0, 1, 0, 1, 0], mean.round(), np.nan)
    filled = rbm.impute(np.tile(row, (400, 1)), steps=100, **more)
    np.testing.assert_array_equal(filled[:, [1, 3]], np.tile(row[[1, 3]], (400, 1)))
    np.testing.assert_allclose(filled.mean(0), mean, atol=0.02)
    drawn = rbm.impute(np.tile(row, (4000, 1)), output="sample", steps=60, **more)
    assert set(np.unique(drawn)) == set(np.unique(joint.v))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.06)
    mode = rbm.impute(row[None], output="mode", random_state=0)
    middle = 0.5 * (joint.v.min() + 1)
    np.testing.assert_array_equal(mode[0], np.where(mean > middle, 1, joint.v.min()))
    if classes:
        weight = joint.p[:, 2].sum(1) * known
        given_class = rbm.impute(np.tile(row, (400, 1)), labels=np.full(400, 2), steps=100, **more)
        np.testing.assert_allclose(given_class.mean(0), weight @ joint.v / weight.sum(), atol=0.02)


def test_the_mean_field_is_a_fixed_point_and_near_where_weights_are_small():
    rbm = bernoulli(scale=0.1, classes=2)
    joint = Joint(rbm)
    known = joint.v[:, 0] == 1
    weight = joint.visible * known
    row = np.array([[1.0, np.nan, np.nan, np.nan, np.nan]])
    filled = rbm.impute(row, method="mean_field")
    np.testing.assert_allclose(filled[0], weight @ joint.v / weight.sum(), atol=0.005)
    rbm = bernoulli(scale=1.0)
    v = rbm.impute(row, method="mean_field", steps=1000)
    h = sigmoid(v @ rbm.components_.T + rbm.intercept_hidden_)
    again = sigmoid(h @ rbm.components_ + rbm.intercept_visible_)
    np.testing.assert_allclose(v[0, 1:], again[0, 1:], atol=1e-4)


def test_parallel_tempering_crosses_where_gibbs_provably_does_not():
    # Two modes, all units off and all on.  A step leaves the first with a chance that is counted.
    w, units, rows, steps = 8.0, 10, 64, 300
    rbm = given(BernoulliRBM(1), [[w] * units], [-w / 2] * units, [-w * units / 2])
    k = np.arange(units + 1)
    leave = binom.pmf(k, units, sigmoid(-w / 2)) @ sigmoid(w * (k - units / 2))
    assert leave * rows * steps < 0.01
    stuck = rbm.sample(rows, steps=steps, random_state=0)
    assert stuck.mean() < 0.1
    mixed = rbm.sample(rows, steps=steps, n_temperatures=10, random_state=0)
    empty = np.full((rows, units), np.nan)
    keys = {"output": "sample", "n_temperatures": 10, "steps": steps, "random_state": 0}
    for drawn in (mixed, rbm.impute(empty, **keys)):
        ones = (drawn.mean(1) > 0.5).sum()
        assert binom.sf(rows - 1 - ones, rows, 0.5) > 1e-3
        assert binom.cdf(ones, rows, 0.5) > 1e-3
    means = rbm.impute(empty, **(keys | {"output": "mean"}))
    np.testing.assert_allclose(means.mean(), 0.5, atol=0.1)


def test_one_chain_is_at_each_rung_of_each_ladder():

    ladder, stream = Ladder.of(5, 7, torch.device("cpu")), Stream(0)
    energy = torch.randn(35, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(20):
        ladder.exchange(1e4 * energy, stream)
        assert (ladder.rung.sort(1).values == torch.arange(5)).all()
        beta = ladder.beta(torch.float64)
        assert (beta[ladder.cold] == 1).all()
    # With energies so far apart the lowest is the coldest.
    low = energy.view(7, 5).argmin(1)
    assert (ladder.cold == low + 5 * torch.arange(7)).all()


def test_clamped_units_stay_beside_a_class():
    rbm = bernoulli(classes=2)
    p = rbm._parameters()
    clamped = torch.tensor([True, False, True, False, False]).expand(6, -1)
    values = torch.rand(6, 5, dtype=torch.float64)
    moves = advance(p, torch.zeros(6, 3).double(), 4, Stream(3), clamped=clamped, values=values)
    assert torch.equal(moves.v[:, [0, 2]], values[:, [0, 2]])
    assert ((moves.v[:, [1, 3, 4]] == 0) | (moves.v[:, [1, 3, 4]] == 1)).all()
    assert (moves.v[:, 5:].sum(1) == 1).all()


def test_gradients_of_densities():
    for classes in (0, 3):
        rbm = bernoulli(classes=classes)
        x = torch.tensor(Joint(rbm).v[:6], requires_grad=True)
        assert torch.autograd.gradcheck(rbm.free_energy, (x,))
        assert rbm.log_prob(x).requires_grad
        with torch.no_grad():
            assert not rbm.log_prob(x).requires_grad


def test_pseudo_likelihood_is_scikit_learns():
    from sklearn.neural_network import BernoulliRBM as Incumbent

    rng = np.random.default_rng(0)
    X = (rng.random((50, 5)) < 0.5).astype(float)
    ours = bernoulli()
    theirs = Incumbent(3, random_state=0)
    for name in ("components_", "intercept_visible_", "intercept_hidden_", "n_features_in_"):
        setattr(theirs, name, getattr(ours, name))
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-12)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-12)
    # It is the log-probability of one unit given the others, times their number.
    joint = Joint(ours)
    unit = np.random.RandomState(0).randint(0, 5, 50)
    place = (X @ (1 << np.arange(5)[::-1])).astype(int)
    other = place ^ (1 << (4 - unit))
    share = joint.visible[place] / (joint.visible[place] + joint.visible[other])
    np.testing.assert_allclose(ours.score_samples(X), 5 * np.log(share), rtol=1e-10)


def test_no_second_path(monkeypatch):
    """Every draw, statistic and density goes through the ops."""
    rbm, cd = bernoulli(), bernoulli().set_params(method="cd")
    X = Joint(rbm).v

    def refuse(*args, **kwargs):
        raise RuntimeError("an op was called")

    for op, calls in {
        "rbm_gibbs": (lambda: rbm.sample(2), lambda: rbm.gibbs(X), lambda: cd.fit(X)),
        "rbm_statistics": (lambda: cd.fit(X), lambda: cd.partial_fit(X)),
        "rbm_pcd": (lambda: rbm.fit(X), lambda: rbm.partial_fit(X)),
        "rbm_free_energy": (lambda: rbm.free_energy(X), lambda: rbm.score_samples(X)),
        "rbm_exact_log_partition": (lambda: rbm.log_partition(),),
        "rbm_ais": (lambda: rbm.log_partition(exact=False),),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(evidens.ops, op, refuse)
            for call in calls:
                with pytest.raises(RuntimeError, match="an op was called"):
                    call()
