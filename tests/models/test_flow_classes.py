"""Flows that know classes: Bayes' rule, labels of every kind, and rows without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.flow_cases import CLASSES, QUICK, SMALL, digits, moons

from evidens import MaskedAutoregressiveFlow, NeuralSplineFlow, RealNVP
from evidens.models._density_input import training_rows

X, Y = moons(800)
TEST, ANSWER = moons(400, 1)


def learned(y=Y, cls=RealNVP, x=X, **options):
    more = {"transformer": "spline"} if cls is MaskedAutoregressiveFlow else {}
    flow = cls(2, classes=2, **SMALL, **more)
    return flow.fit(x, y, **{"epochs": 15, "lr": 1e-2} | QUICK | options)


@pytest.mark.parametrize("cls", CLASSES)
def test_bayes(cls):
    flow = learned(cls=cls)
    terms = np.stack([flow.log_prob(TEST, y=c) for c in (0, 1)], 1) + np.log([0.5, 0.5])
    frequency = flow.class_weight / flow.class_weight.sum()
    terms += np.log(frequency.numpy()) - np.log(0.5)
    marginal = np.logaddexp(terms[:, 0], terms[:, 1])
    np.testing.assert_allclose(flow.log_prob(TEST), marginal, atol=1e-4)
    posterior = np.exp(terms - marginal[:, None])
    np.testing.assert_allclose(flow.predict_proba(TEST), posterior, atol=1e-4)
    assert (flow.predict(TEST) == posterior.argmax(1)).all()
    assert (flow.predict(TEST) == ANSWER).mean() > 0.94
    mixed = np.where(ANSWER == 1, terms[:, 1], terms[:, 0]) - np.log(frequency.numpy())[ANSWER]
    np.testing.assert_allclose(flow.log_prob(TEST, y=ANSWER), mixed, atol=1e-4)


def test_draws_of_a_class_and_of_all():
    flow = learned(np.where(Y == 1, "up", "down"))
    assert flow.classes_.tolist() == ["down", "up"]
    for label in ("down", "up"):
        drawn = flow.sample(200, y=label, random_state=0)
        assert (flow.predict(drawn) == label).mean() > 0.9
    names = np.array(["up", "down"] * 50)
    assert (flow.predict(flow.sample(100, y=names, random_state=0)) == names).mean() > 0.9
    rare = learned(np.r_[Y[Y == 0], 1, 1], x=np.r_[X[Y == 0], X[Y == 1][:2]], epochs=2)
    drawn = rare.sample(1000, random_state=0)
    assert drawn.shape == (1000, 2)
    assert rare.predict_proba(drawn)[:, 1].mean() < 0.1


@pytest.mark.parametrize(
    "names", [(0, 1), (1, 0), (3, 7), (-5, 2), (0.0, 1.0), (False, True), ("a", "bc")]
)
def test_labels_of_every_kind(names):
    labels = np.array(names)[Y]
    flow = learned(labels, epochs=2)
    assert flow.classes_.tolist() == sorted(names)
    assert set(flow.predict(TEST).tolist()) <= set(names)
    value = flow.log_prob(X, y=labels)
    for one in names:
        rows = labels == one
        np.testing.assert_allclose(flow.log_prob(X[rows], y=one), value[rows], atol=1e-5)
    if isinstance(names[0], str):
        with pytest.raises(ValueError, match="labels are strings; pass them as an array"):
            flow.log_prob(torch.from_numpy(X), y=torch.from_numpy(Y))
        assert isinstance(flow.predict(torch.from_numpy(X)), np.ndarray)
        return
    by_tensor = flow.log_prob(torch.from_numpy(X), y=torch.as_tensor(labels))
    np.testing.assert_allclose(by_tensor.detach(), value, atol=1e-5)
    predicted = flow.predict(torch.from_numpy(TEST))
    assert (predicted.numpy() == flow.predict(TEST)).all()


def test_labels_survive_a_file(tmp_path):
    for names in (np.array(["a", "bc"]), np.array(["a", "bc"], dtype=object), np.array([3, 7])):
        flow = learned(names[Y], epochs=1)
        flow.save(tmp_path / "classes.safetensors")
        loaded = RealNVP.load(tmp_path / "classes.safetensors")
        assert loaded.classes_.dtype == flow.classes_.dtype
        assert (loaded.predict(TEST) == flow.predict(TEST)).all()
        assert (loaded.log_prob(TEST) == flow.log_prob(TEST)).all()


def test_rows_without_a_label_help():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2)) + 3.0 * (np.arange(600) % 2)[:, None]
    answer = np.arange(600) % 2
    few = np.where(np.arange(600) < 20, answer, -1)
    flow = RealNVP(2, classes=2, layers=2, hidden=(16,))
    flow.fit(x, few, epochs=20, lr=1e-2, batch_size=100, **QUICK)
    assert flow.classes_.tolist() == [0, 1]
    alone = RealNVP(2, classes=2, layers=2, hidden=(16,))
    alone.fit(x[:20], answer[:20], epochs=20, lr=1e-2, **QUICK)
    assert flow.score(x) > alone.score(x)


def test_loss_of_rows_with_and_without_a_label():
    flow = learned(epochs=2)
    labels = np.where(np.arange(len(X)) % 3 == 0, -1, Y)
    data = np.where(labels == -1, flow.log_prob(X), flow.log_prob(X, y=Y))
    mean = flow._mean(training_rows(flow, X, labels, None, None))
    assert mean == pytest.approx(float(data.mean()), abs=1e-4)


def test_a_class_that_no_row_has():
    flow = RealNVP(2, classes=3, **SMALL).fit(X, Y, epochs=1, **QUICK)
    assert flow.classes_.tolist() == [0, 1, 2]
    posterior = flow.predict_proba(TEST)
    assert (posterior[:, 2] == 0).all()
    assert np.isfinite(flow.log_prob(TEST)).all()
    assert np.isfinite(flow.log_prob(TEST, y=2)).all()


def test_class_and_context_together():
    c = X[:, :1]
    flow = NeuralSplineFlow(1, classes=2, context=1, layers=2, hidden=(32,))
    flow.fit(X[:, 1:], Y, context=c, epochs=30, lr=1e-2, batch_size=64, **QUICK)
    assert (flow.predict(TEST[:, 1:], TEST[:, :1]) == ANSWER).mean() > 0.9
    assert flow.predict_proba(TEST[:, 1:], TEST[:, :1]).shape == (400, 2)


def test_a_loop_of_ones_own():
    flow = RealNVP(2, classes=2, layers=4, hidden=(32,), standardize=False)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in range(100):
        optimizer.zero_grad()
        (-flow(x, y=y).mean()).backward()
        optimizer.step()
    assert (flow.predict(TEST) == ANSWER).mean() > 0.94
    assert isinstance(flow.sample(3, y=1), torch.Tensor)


def test_densities_and_posteriors_compile_into_one_graph():
    flow = learned(np.array([3, 7])[Y], epochs=1)
    x, y = torch.from_numpy(TEST[:9]).float(), torch.from_numpy(np.array([3, 7])[ANSWER[:9]])
    for method, args in (
        (flow.log_prob, (x,)),
        (flow.log_prob, (x, None, y)),
        (flow.predict, (x,)),
    ):
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*args), method(*args))


def test_chunks_count_the_classes():
    flow = RealNVP(2, classes=2, **SMALL)
    with pytest.raises(ValueError, match="y must hold 2 labels"):
        flow.partial_fit(X[Y == 1], np.full((Y == 1).sum(), "b"))
    flow.partial_fit(X[Y == 1], np.full((Y == 1).sum(), "b"), classes=["a", "b"], random_state=0)
    flow.partial_fit(X[Y == 0][:100], np.full(100, "a"), random_state=0)
    assert flow.class_weight.tolist() == [100, (Y == 1).sum()]
    assert flow.classes_.tolist() == ["a", "b"]


def test_digits():
    x, y = digits()
    flow = RealNVP(64, classes=10, layers=4, hidden=(64,), dequantize=17)
    flow.fit(x[:1200], y[:1200], epochs=20, lr=1e-2, batch_size=50, **QUICK)
    assert (flow.predict(x[1200:]) == y[1200:]).mean() > 0.9


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: RealNVP(2).fit(X, Y), "y must be None, since the model has classes=0"),
        (lambda: RealNVP(2, classes=2).fit(X), "y must hold the labels of the 800 rows"),
        (lambda: RealNVP(2, classes=2).fit(X, Y[:9]), r"y must have shape \(800,\), got \(9,\)"),
        (lambda: RealNVP(2, classes=2).fit(X, Y + 0.5), "got fractions or NaN"),
        (lambda: RealNVP(2, classes=2).fit(X, np.arange(800)), r"y must hold 2 labels, as many"),
        (lambda: RealNVP(2, classes=2).log_prob(X, y=Y + 1), r"labels of \[0, 1\], got 2"),
        (lambda: RealNVP(2).predict(X), "predict_proba needs a model with classes"),
        (lambda: learned(epochs=0).log_prob(X, y=2), r"labels of \[0, 1\], got 2"),
        (lambda: learned(epochs=0).log_prob(X, y="a"), r"labels of \[0, 1\], got"),
        (lambda: learned(epochs=0).log_prob(X, y=-1), r"labels of \[0, 1\], got -1"),
        (lambda: learned(epochs=0).log_prob(X, y=Y[:3]), "y must be one label or have shape"),
        (lambda: learned(epochs=0).transform(X), "this belongs to a class: pass y="),
        (
            lambda: learned(epochs=0).log_prob(torch.zeros(1, 2), y=torch.tensor([5])),
            r"labels of \[0, 1\], got 5",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
