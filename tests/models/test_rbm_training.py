"""How machines learn: methods, weights, classes, chunks, interruptions, divergence, files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.rbm_cases import Joint, bernoulli
from scipy.sparse import csr_array
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

from evidens import BernoulliRBM, CategoricalRBM, GaussianRBM
from evidens.models.rbm_base import RBM
from evidens.models.rbm_chains import Stream
from evidens.models.rbm_learning import Learner

LEARNED = ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_")


def patterns(n=200, seed=0):
    """Rows near two patterns; at best about -2.3 nats a row."""
    rng = np.random.default_rng(seed)
    rows = np.where(rng.random((n, 1)) < 0.5, [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1])
    return np.where(rng.random(rows.shape) < 0.05, 1 - rows, rows).astype(float)


def fitted(X, **keys):
    fit = {k: keys.pop(k) for k in ("sample_weight", "labels", "validation_data") if k in keys}
    params = {"n_iter": 20, "batch_size": 20, "centered": True, "random_state": 0} | keys
    return BernoulliRBM(4, **params).fit(X, **fit)


def assert_same(a, b, rtol=0.0):
    for name in LEARNED:
        np.testing.assert_allclose(
            np.asarray(getattr(a, name)), np.asarray(getattr(b, name)), rtol=rtol, atol=rtol
        )


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"centered": False, "learning_rate": 0.3},
        {"method": "cd", "steps": 2},
        {"method": "pt", "n_temperatures": 4, "n_chains": 10},
        {"momentum": 0.5, "schedule": "linear", "n_chains": 50},
        {"schedule": "cosine", "shuffle": True, "steps": 3},
        {"hidden": "spin", "learning_rate": 0.05},
    ],
)
def test_every_method_learns_the_patterns(params):
    X = patterns()
    rbm = fitted(X, **({"n_iter": 60} | params))
    p = X.mean(0)
    independent = (X * np.log(p) + (1 - X) * np.log(1 - p)).sum(1).mean()
    assert independent < -4.1
    assert rbm.log_prob(X).mean() > -2.8
    assert rbm.n_iter_ == 60


def test_spins_learn_what_bits_learn():
    X = patterns()
    spin = fitted(2 * X - 1, n_iter=60, visible="spin", hidden="spin", learning_rate=0.03)
    assert spin.log_prob(2 * X - 1).mean() > -2.8


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("centered", [False, True])
def test_a_step_follows_the_gradient_of_enumeration(centered, classes):
    # Chains that are drawn from the model itself: the mean step is the gradient, centred or not.
    rbm = bernoulli(v=4, j=2, classes=classes)
    joint = Joint(rbm)
    rng = np.random.default_rng(0)
    X = patterns(50)[:, :4]
    labels = torch.from_numpy(rng.integers(2, size=50)) if classes else None
    many = 400_000
    h = joint.h[rng.choice(len(joint.h), size=many, p=joint.p.sum((0, 1)))]
    p = rbm._parameters()
    before = {n: getattr(p, n).clone() for n in ("weight", "visible_bias", "hidden_bias")}
    half = torch.full((4 + classes,), 0.5).double()
    offset = half if centered else None
    learner = Learner(
        p,
        Stream(0),
        "pcd",
        1,
        torch.from_numpy(h),
        visible_offset=offset,
        hidden_offset=torch.full((2,), 0.5).double(),
    )
    learner.step(torch.from_numpy(X), 1.0, labels=labels)
    step = {n: (getattr(p, n) - before[n]).numpy() for n in before}
    # The gradient, by counting.
    one_hot = np.eye(classes)[labels] if classes else np.zeros((50, 0))
    data = np.concatenate([X, one_hot], 1)
    field = before["hidden_bias"].numpy() + data @ before["weight"].numpy().T
    means = 1 / (1 + np.exp(-field))
    w = means.T @ data / 50
    b, c = data.mean(0), means.mean(0)
    v = (
        np.concatenate(
            [np.repeat(joint.v, max(1, classes), 0), np.tile(np.eye(classes), (len(joint.v), 1))], 1
        )
        if classes
        else joint.v
    )
    p_vh = joint.p.reshape(len(v), -1)
    w = w - np.einsum("vh,vi,hj->ji", p_vh, v, joint.h)
    b, c = b - p_vh.sum(1) @ v, c - p_vh.sum(0) @ joint.h
    if centered:
        w = w - 0.5 * b - 0.5 * c[:, None]
        b, c = b - 0.5 * w.sum(0), c - 0.5 * w.sum(1)
    for name, truth in (("weight", w), ("visible_bias", b), ("hidden_bias", c)):
        np.testing.assert_allclose(step[name], truth, atol=8 / np.sqrt(many))


def test_the_default_start_and_attributes_are_scikit_learns():
    from sklearn.neural_network import BernoulliRBM as Incumbent

    X = patterns()
    ours = BernoulliRBM(4, n_iter=0, random_state=3).fit(X)
    theirs = Incumbent(4, n_iter=0, random_state=3).fit(X)
    assert_same(ours, theirs)
    assert ours.get_feature_names_out().tolist() == theirs.get_feature_names_out().tolist()
    assert {k for k in theirs.get_params()} <= {k for k in ours.get_params()}
    for name, value in theirs.get_params().items():
        assert ours.get_params()[name] == value


def test_the_pseudo_likelihood_is_scikit_learns_within_noise():
    from sklearn.neural_network import BernoulliRBM as Incumbent

    X = load_digits().data[:600] / 16
    scores = []
    for cls in (BernoulliRBM, Incumbent):
        fits = (cls(32, n_iter=8, random_state=seed).fit(X) for seed in range(4))
        scores.append([rbm.score_samples(X).mean() for rbm in fits])
    ours, theirs = np.array(scores)
    assert abs(ours.mean() - theirs.mean()) < 3 * np.hypot(ours.std(), theirs.std())
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_tensor_and_dtype(dtype):
    X = patterns().astype(dtype)
    dense = fitted(X)
    assert dense.components_.dtype == dtype
    assert dense.transform(X).dtype == dtype
    assert_same(dense, fitted(csr_array(X)))
    np.testing.assert_allclose(dense.log_prob(csr_array(X)), dense.log_prob(X), rtol=1e-6)
    tensor = fitted(torch.from_numpy(X))
    assert isinstance(tensor.components_, torch.Tensor)
    assert isinstance(tensor.sample(2, steps=2), torch.Tensor)
    assert isinstance(tensor.log_prob(X), np.ndarray)
    assert_same(dense, tensor)


def test_bits_and_integers_are_numbers():
    X = patterns()
    for other in (X.astype(bool), X.astype(np.uint8), X.astype(int).tolist()):
        assert_same(fitted(X), fitted(other))
    assert_same(fitted(X), fitted(torch.from_numpy(X).to(torch.uint8)))


def test_the_same_on_any_number_of_threads():
    X = patterns(500)
    threads = torch.get_num_threads()
    try:
        models = []
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            models.append(fitted(X, n_iter=3, batch_size=100))
    finally:
        torch.set_num_threads(threads)
    for other in models[1:]:
        assert_same(models[0], other)


def test_weights_are_rows_that_stand_there_so_often():
    X = patterns(40)
    weight = np.arange(40) % 3
    keys = {"batch_size": 1000, "n_chains": 10, "n_iter": 5}
    weighted = fitted(X, sample_weight=weight, **keys)
    repeated = fitted(np.repeat(X, weight, 0), **keys)
    assert_same(weighted, repeated, 1e-12)
    # A batch without weight is no step, and all weights together have a unit.
    none = fitted(X, sample_weight=np.r_[np.ones(20), np.zeros(20)], batch_size=20, n_iter=1)
    half = fitted(X[:20], batch_size=20, n_iter=1, learning_rate=0.2)
    assert_same(none, half, 1e-12)
    assert_same(fitted(X, sample_weight=np.full(40, 3.0)), fitted(X), 1e-12)


def test_classes_known_for_some_rows():
    X = patterns(400)
    y = (X[:, 0] + X[:, 1] + X[:, 2] > 1.5) * 10 + 7  # labels 7 and 17
    labels = np.where(np.arange(400) % 10 == 0, y, -1)
    for keys in ({}, {"method": "cd"}, {"method": "pt", "n_temperatures": 3}):
        rbm = fitted(X, labels=labels, n_iter=60, **keys)
        assert rbm.classes_.tolist() == [7, 17]
        assert (rbm.predict(X) == y).mean() > 0.95
        np.testing.assert_allclose(rbm.predict_proba(X).sum(1), 1, rtol=1e-12)
        # A density of the rows: it sums to 1 over all of them.
        every = Joint(rbm).v
        assert np.exp(rbm.log_prob(every)).sum() == pytest.approx(1, rel=1e-9)
        law = Joint(rbm).p[:, 0].sum(1)
        expected = law @ (rbm.predict(every) == 7) / law.sum()
        drawn = rbm.sample(1000, labels=7, steps=500, random_state=0)
        assert (rbm.predict(drawn) == 7).mean() == pytest.approx(expected, abs=0.05)


def test_partial_fit_goes_on():
    X = patterns()
    rbm = BernoulliRBM(4, random_state=0, learning_rate=0.1, centered=True, momentum=0.5)
    for _ in range(60):
        for chunk in np.split(X, 10):
            assert rbm.partial_fit(chunk) is rbm
    assert rbm.n_iter_ == 600
    assert rbm.log_prob(X).mean() > -2.8
    # One step of fit is one partial_fit.
    keys = {"batch_size": 50, "n_iter": 1, "n_chains": 20, "random_state": 0}
    assert_same(BernoulliRBM(4, **keys).fit(X[:50]), BernoulliRBM(4, **keys).partial_fit(X[:50]))
    # It keeps its dtype, whatever comes.
    single = BernoulliRBM(4, random_state=0).fit(X.astype(np.float32))
    for chunk in (X, csr_array(X), torch.from_numpy(X)):
        single.partial_fit(chunk, sample_weight=np.ones(len(X)))
        assert single.components_.dtype == np.float32
    # And goes on after fit, in its classes.
    labels = X[:, 0].astype(int)
    for method in ("pcd", "pt"):
        rbm = fitted(X, labels=labels, method=method).partial_fit(X, labels=labels)
        assert rbm.n_iter_ == 21


def test_files(tmp_path):
    X = patterns()
    digits = np.where(X == 1, 5, 2)
    for rbm, rows, keys in (
        (BernoulliRBM(3, n_iter=2, random_state=0), X, {"labels": X[:, 0].astype(int)}),
        (BernoulliRBM(3, n_iter=2, random_state=0, method="pt"), torch.from_numpy(X), {}),
        (GaussianRBM(3, n_iter=2, random_state=0, momentum=0.0), X + 3, {}),
        (CategoricalRBM(3, n_iter=2, random_state=0, momentum=0.0), digits, {}),
    ):
        rbm.fit(rows, **keys)
        rbm.log_partition()
        rbm.save(tmp_path / "rbm.safetensors")
        again = type(rbm).load(tmp_path / "rbm.safetensors")
        assert again.get_params() == rbm.get_params()
        np.testing.assert_array_equal(again.log_prob(rows), rbm.log_prob(rows))
        assert again.log_partition_interval_ == rbm.log_partition_interval_
        assert_same(rbm.partial_fit(rows, **keys), again.partial_fit(rows, **keys))
        assert not hasattr(rbm, "partition_")


def test_a_second_fit_starts_anew():
    X = patterns()
    labels = X[:, 0].astype(int)
    rbm = fitted(X, labels=labels, method="pt", n_temperatures=3)
    rbm.log_partition()
    rbm.set_params(method="pcd").fit(X)
    assert_same(rbm, fitted(X))
    for name in ("classes_", "class_components_", "intercept_class_", "h_rungs_", "partition_"):
        assert not hasattr(rbm, name)
    np.testing.assert_array_equal(rbm.log_prob(X), fitted(X).log_prob(X))
    # What is refused leaves the model as it was.
    rbm = fitted(X, labels=labels)
    before = rbm.predict_proba(X)
    with pytest.raises(ValueError, match="at least two classes"):
        rbm.fit(X, labels=np.zeros(200, int))
    np.testing.assert_array_equal(rbm.predict_proba(X), before)


def test_monitoring_is_the_log_likelihood(monkeypatch):
    X = patterns()
    rbm = fitted(
        X, monitor=5, validation_data=X[:50], sample_weight=np.r_[np.ones(100), np.zeros(100)]
    )
    history = rbm.history_
    assert history["epoch"] == [5, 10, 15, 20]
    assert history["train"][-1] == pytest.approx(rbm.log_prob(X[:100]).mean(), rel=1e-12)
    assert history["validation"][-1] == pytest.approx(rbm.log_prob(X[:50]).mean(), rel=1e-12)
    assert history["low"] == history["high"] == [0, 0, 0, 0]
    assert history["train"][-1] > history["train"][0]
    none = fitted(X, n_iter=1, monitor=1, sample_weight=np.arange(200) == 199)
    monkeypatch.setattr("evidens.models.rbm_queries.WATCHED", 100)  # of those that have a weight
    few = fitted(X, n_iter=1, monitor=1, sample_weight=np.arange(200) == 199)
    assert few.history_ == none.history_
    assert few.history_["train"] == [pytest.approx(few.log_prob(X[199:])[0], rel=1e-12)]
    wide = np.tile(X, 5)  # too many units to count
    rbm = BernoulliRBM(25, n_iter=1, monitor=1, random_state=0).fit(wide)
    assert rbm.density_kind_ == "estimate"
    assert rbm.history_["low"][0] < 0 < rbm.history_["high"][0]


def test_verbose(capsys):
    X = patterns()
    fitted(X, n_iter=2, verbose=1)
    fitted(X, n_iter=2, verbose=1, monitor=2, validation_data=X)
    GaussianRBM(2, n_iter=1, verbose=1, random_state=0).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[BernoulliRBM] Iteration 1, pseudo-likelihood = -")
    assert "log-likelihood = -" in lines[3]
    assert "validation = -" in lines[3]
    assert lines[4].startswith("[GaussianRBM] Iteration 1, ")


def test_verbose_with_names_of_columns(capsys):
    frame = pytest.importorskip("pandas").DataFrame(patterns(), columns=list("abcdef"))
    fitted(frame, n_iter=1, verbose=1)  # a warning would be an error
    assert "pseudo-likelihood = -" in capsys.readouterr().out


def test_a_bar_where_somebody_watches(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fitted(patterns(), n_iter=2, verbose=1)
    shown = capsys.readouterr()
    assert "BernoulliRBM:  50%" in shown.err
    assert "Iteration 2" in shown.out


def test_ctrl_c_keeps_what_was_learned(monkeypatch):
    X = patterns()
    whole = fitted(X, n_iter=3)
    step, count = Learner.step, 0

    def interrupted(*args, **kwargs):
        nonlocal count
        count += 1
        if count > 30:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(Learner, "step", interrupted)
    with pytest.warns(RuntimeWarning, match="interrupted in epoch 4; what was learned"):
        rbm = fitted(X, n_iter=100)
    assert rbm.n_iter_ == 3
    assert_same(rbm, whole)


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        (GaussianRBM(3, learning_rate=50.0, random_state=0), 1.0),
        (GaussianRBM(3, standardize=False, random_state=0, method="cd"), 1e12),
        (BernoulliRBM(3, learning_rate=1e6, random_state=0), 1.0),
        (BernoulliRBM(3, learning_rate=1e300, random_state=0), 1.0),
        (CategoricalRBM(3, learning_rate=1e6, random_state=0), 1.0),
    ],
)
def test_divergence_stops_with_the_last_finite_parameters(model, scale):
    X = patterns() * scale
    with pytest.warns(RuntimeWarning, match=r"diverged .* Decrease learning_rate="):
        model.fit(X)
    for name in LEARNED:
        assert np.isfinite(getattr(model, name)).all()
    with pytest.warns(RuntimeWarning, match="diverged"):
        model.set_params(learning_rate=1e12).partial_fit(X)
    assert np.isfinite(model.free_energy(X)).all()


def test_weights_of_size_50_have_a_normaliser():
    rng = np.random.default_rng(0)
    rbm = bernoulli(v=30, j=10, scale=50.0)
    exact = rbm.log_partition()
    assert np.isfinite(exact)
    X = (rng.random((20, 30)) < 0.5).astype(float)
    assert np.isfinite(rbm.log_prob(X)).all()
    assert (rbm.log_prob(X) <= 0).all()
    rbm.log_partition(exact=False, chains=20, rungs=500, random_state=0)
    low, high = rbm.log_partition_interval_
    assert low < exact < high  # wide, and it says so


def test_the_base_class_names_its_subclasses():
    assert issubclass(GaussianRBM, RBM)
    assert issubclass(CategoricalRBM, RBM)


STATES = "score is the log-likelihood, and its rows of fractions have none"
WEIGHTS = "rows of weight 2 and rows that stand there twice come in other batches"
EXPECTED = {
    # scikit-learn expects these two of its own class.
    "check_methods_subset_invariance": "score_samples draws a unit for each row",
    "check_methods_sample_order_invariance": "score_samples draws a unit for each row",
    "check_sample_weight_equivalence_on_dense_data": WEIGHTS,
    "check_sample_weight_equivalence_on_sparse_data": WEIGHTS,
    "check_fit_score_takes_y": STATES,
    "check_pipeline_consistency": STATES,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks(
    [BernoulliRBM(n_iter=5, random_state=0)], expected_failed_checks=lambda _: EXPECTED
)
def test_check_estimator(estimator, check):
    check(estimator)


@parametrize_with_checks([GaussianRBM(n_components=2, n_iter=2, random_state=0)])
def test_check_estimator_of_gaussians(estimator, check):
    check(estimator)
