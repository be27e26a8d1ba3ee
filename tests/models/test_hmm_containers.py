"""Arrays, tensors, float32, files, threads: the same model whatever it comes in."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models.hmm_cases import (
    EMISSIONS,
    FAMILIES,
    LENGTHS,
    N,
    assert_same,
    attributes,
    enumerate_paths,
    frames,
    log_density,
    model,
    quiet,
    start_from,
)
from sklearn.base import clone
from sklearn.model_selection import KFold, cross_val_score
from sklearn.utils.estimator_checks import check_estimator

import evidens

quiet()
BUILT_IN = FAMILIES[:-1]
COUNTS = ("Categorical", "Multinomial", "Poisson", "Bernoulli")


def on_tensors(family, **params):
    if family != "Custom":
        return model(family, **params)
    centres = torch.tensor([0.0, 4.0, 8.0])
    m = model(family, **params)
    return m.set_params(emission=lambda x: -((x[:, :1] - centres.to(x)) ** 2) / 2)


def names(family):
    return ("startprob_", "transmat_", *EMISSIONS[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_in_tensors_out(family):
    X = frames(family)
    x, labels = torch.from_numpy(X), np.where(np.arange(N) < 9, 0, -1)
    keys = {"sample_weight": np.ones(4), "labels": labels}
    a = model(family).fit(X, LENGTHS, **keys)
    tensors = {name: torch.from_numpy(value) for name, value in keys.items()}
    b = on_tensors(family).fit(x, torch.tensor(LENGTHS), **tensors)
    assert_same(a, b, family)
    assert all(isinstance(getattr(b, name), torch.Tensor) for name in names(family))
    for method in ("log_prob", "predict", "predict_proba"):
        result = getattr(b, method)(x, LENGTHS)
        assert isinstance(result, torch.Tensor)
        np.testing.assert_allclose(result.numpy(), getattr(a, method)(X, LENGTHS), atol=1e-8)
    np.testing.assert_array_equal(
        b.sample_paths(x, LENGTHS, n=2, random_state=1).numpy(),
        a.sample_paths(X, LENGTHS, n=2, random_state=1),
    )
    np.testing.assert_allclose(
        b.get_stationary_distribution().numpy(), a.get_stationary_distribution()
    )
    b.partial_fit(x, LENGTHS)
    assert_same(a.partial_fit(X, LENGTHS), b, family)
    if family == "Multinomial":
        a.n_trials = b.n_trials = 6
    for ours, theirs in zip(b.sample(4, random_state=0), a.sample(4, random_state=0)):
        assert isinstance(ours, torch.Tensor)
        np.testing.assert_allclose(ours.numpy(), theirs)


@pytest.mark.parametrize("container", ["array", "tensor"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32(family, container):
    X = frames(family)
    start = model(family, n_iter=1).fit(X, LENGTHS)
    double = start_from(model(family), start, family).fit(X, LENGTHS)
    m = start_from(on_tensors(family) if container == "tensor" else model(family), start, family)
    for name in names(family):
        value = start._covars_ if (family, name) == ("Gaussian", "covars_") else getattr(m, name)
        setattr(m, name, np.asarray(value, dtype=np.float32))
    # Integers are exact in every type, so there the type of the parameters counts.
    x = X if family in COUNTS else X.astype(np.float32)
    x = torch.from_numpy(x) if container == "tensor" else x
    m.fit(x, LENGTHS, sample_weight=[1.0] * 4)
    for name in names(family):
        assert np.asarray(getattr(m, name)).dtype == np.float32, name
    assert_same(m, double, family, 2e-3, 1e-4)
    assert np.asarray(m.predict_proba(x, LENGTHS)).dtype == np.float32
    assert abs(m.score(x, LENGTHS) / double.score(X, LENGTHS) - 1) < 1e-5
    m.partial_fit(x, LENGTHS)
    assert np.asarray(m.transmat_).dtype == np.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_change_no_bit(family):
    X, threads = frames(family), torch.get_num_threads()
    fitted = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            fitted.append(model(family).fit(X, LENGTHS))
    finally:
        torch.set_num_threads(threads)
    for other in fitted[1:]:
        assert_same(fitted[0], other, family, 0, 0)
        assert fitted[0].score(X, LENGTHS) == other.score(X, LENGTHS)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(family, tmp_path):
    X = frames(family)
    for x, name in ((X, "array"), (torch.from_numpy(X), "tensor")):
        m = on_tensors(family) if name == "tensor" else model(family)
        m.fit(x, LENGTHS)
        m.save(tmp_path / name)
        own = {"emission": m.emission} if family == "Custom" else {}
        again = type(m).load(tmp_path / name, **own)
        assert_same(m, again, family, 0, 0)
        assert isinstance(again.startprob_, torch.Tensor) == (name == "tensor")
        assert (again.log_prob(x, LENGTHS) == m.log_prob(x, LENGTHS)).all()
        # The sums went along: learning goes on as if nothing had happened.
        assert_same(m.partial_fit(x, LENGTHS), again.partial_fit(x, LENGTHS), family, 0, 0)
        assert again.n_samples_seen_ == 2 * N


@pytest.mark.parametrize("family", BUILT_IN)
def test_missing_values_are_integrated_out(family):
    X = frames(family)
    m = model(family).fit(X, LENGTHS)
    x = X[:6].astype(float)
    x[2] = np.nan
    if family not in ("Categorical", "Multinomial"):
        x[0, 0] = x[4, 1] = np.nan
    log_obs = np.stack([log_density(m, family, row) for row in x])
    total, posteriors, path, score = enumerate_paths(m, log_obs)
    assert abs(m.log_prob(x)[0] - total) < 1e-9
    np.testing.assert_allclose(m.predict_proba(x), posteriors, atol=1e-9)
    np.testing.assert_array_equal(m.predict(x), path)
    assert abs(m.decode(x)[0] - score) < 1e-9
    if family == "Multinomial":
        m.n_trials = 6
    filled, p = m.impute(x), posteriors[2]
    assert not np.isnan(filled).any()
    expected = {
        "Categorical": lambda: (p @ m.emissionprob_).argmax(),
        "Multinomial": lambda: 6 * p @ m.emissionprob_,
        "Poisson": lambda: p @ m.lambdas_,
        "Bernoulli": lambda: p @ m.probs_,
        "Gaussian": lambda: p @ m.means_,
        "GMM": lambda: np.einsum("k,km,kmd->d", p, m.weights_, m.means_),
    }[family]()
    np.testing.assert_allclose(filled[2], expected, rtol=1e-8)


@pytest.mark.parametrize("family", ["Gaussian", "GMM", "Poisson"])
def test_impute_keeps_the_dtype(family):
    X = frames(family)
    m = model(family).fit(X, LENGTHS)
    x = X[:5].astype(np.float32)
    assert m.impute(x).dtype == np.float32
    x[2] = np.nan
    assert m.impute(torch.from_numpy(x)).dtype == torch.float32


def test_impute_uses_the_other_features():
    X = frames("Gaussian")
    m = model("Gaussian", covariance_type="full").fit(X, LENGTHS)
    x = X[:5].copy()
    x[3, 1] = np.nan
    p = m.predict_proba(x)[3]
    gain = m.covars_[:, 1, 0] / m.covars_[:, 0, 0]
    expected = p @ (m.means_[:, 1] + gain * (x[3, 0] - m.means_[:, 0]))
    np.testing.assert_allclose(m.impute(x)[3, 1], expected, rtol=1e-10)


@pytest.mark.parametrize("family", ["Gaussian", "GMM"])
def test_gradient_of_log_prob(family):
    X = frames(family)
    m = model(family).fit(X, LENGTHS)
    x = torch.from_numpy(X[:7]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: m.log_prob(x, [4, 3]), x)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_paths_have_the_posterior(family):
    X = frames(family)[:12]
    m = model(family).fit(frames(family), LENGTHS)
    paths = m.sample_paths(X, [7, 5], n=4000, random_state=0)
    share = np.stack([(paths == k).mean(0) for k in range(3)], 1)
    np.testing.assert_allclose(share, m.predict_proba(X, [7, 5]), atol=0.035)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_more_states_than_frames(family):
    X = frames(family)[:2]
    m = model(family)
    if family in ("Gaussian", "GMM"):
        with pytest.raises(ValueError, match="n_samples >= n_components"):
            m.fit(X)
        return
    m.fit(X)
    assert all(np.isfinite(value).all() for value in attributes(m, family).values())
    np.testing.assert_allclose(m.predict_proba(X).sum(1), 1)


def test_infinities_are_refused():
    for family in FAMILIES:
        m = model(family).fit(frames(family), LENGTHS)
        x = frames(family).astype(float)
        x[3] = np.inf
        with pytest.raises(ValueError, match=r"infinity|got inf"):
            m.score(x)


def test_data_frames_and_clones():
    pd = pytest.importorskip("pandas", reason="names of columns come with data frames")
    X = pd.DataFrame(frames("Gaussian"), columns=["a", "b"])
    m = model("Gaussian").fit(X, LENGTHS)
    assert m.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="feature names"):
        m.score(X[["b", "a"]])
    for family in FAMILIES:
        m = model(family, n_iter=3)
        assert clone(m).get_params()["n_iter"] == 3


@pytest.mark.parametrize("family", ["Categorical", "Multinomial"])
def test_a_clone_forgets_what_fit_has_found(family):
    X, name = frames(family), {"Categorical": "n_features", "Multinomial": "n_trials"}[family]
    m = model(family).fit(X[:50])
    assert getattr(m, name) is not None
    for fitted in (m, pickle.loads(pickle.dumps(m))):
        again = clone(fitted)
        assert getattr(again, name) is None
        again.fit(X + 1)  # more symbols, other totals
    assert np.isfinite(cross_val_score(m, X, cv=KFold(2))).all()
    given = model(family, **{name: 6}).fit(X)
    assert getattr(clone(given), name) == 6
    assert getattr(clone(m.set_params(**{name: 6})), name) == 6


FORK = """
import os, signal, torch, numpy as np
torch.set_num_threads(2)
x = torch.randn(2_000_000)
(x.exp() + x).sum().item()  # torch's pool has been used, that of the kernels has not
from models.hmm_cases import frames, model
X = {family: np.tile(frames(family), (2000, 1)) for family in %r}
child = os.fork()
if child == 0:
    signal.alarm(60)
    for family, x in X.items():
        model(family, n_iter=2).fit(x)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks; macOS forbids it after threads")
def test_fit_in_a_forked_child():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", FORK % (COUNTS,)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# A third of scikit-learn's checks pass y by position, where hmmlearn has lengths.
TAKES_LENGTHS = (
    "check_fit_score_takes_y check_n_features_in_after_fitting check_estimators_dtypes "
    "check_sample_weights_not_an_array check_all_zero_sample_weights_error "
    "check_sample_weights_shape check_sample_weights_not_overwritten "
    "check_sample_weight_equivalence_on_dense_data check_dtype_object check_pipeline_consistency "
    "check_estimators_pickle check_fit2d_1feature check_fit_idempotent check_fit_check_is_fitted "
    "check_n_features_in"
).split()
EXPECTED = dict.fromkeys(TAKES_LENGTHS, "the second argument of fit is lengths") | {
    "check_dont_overwrite_parameters": "n_features is hmmlearn's name",
    "check_sample_weights_pandas_series": "a weight belongs to a sequence, not to a row",
    "check_methods_sample_order_invariance": "the order of rows matters in a sequence",
    "check_methods_subset_invariance": "rows of a sequence depend on each other",
}


@pytest.mark.filterwarnings("ignore")
def test_sklearns_checks_but_for_those_that_assume_rows():
    results = check_estimator(
        evidens.GaussianHMM(), expected_failed_checks=EXPECTED, on_fail="raise", on_skip=None
    )
    assert sum(r["status"] == "passed" for r in results) >= 25
    failed = {r["check_name"] for r in results if r["status"] == "xfail"}
    # Without pandas, scikit-learn skips one of them.
    assert set(EXPECTED) - failed <= {"check_sample_weights_pandas_series"}


@pytest.mark.needs_cuda
@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_gpu(family):
    X = frames(family)
    keys = {"sample_weight": [1, 2, 3, 1], "labels": np.where(np.arange(N) < 9, 0, -1)}
    a = on_tensors(family).fit(torch.from_numpy(X), LENGTHS, **keys)
    x = torch.from_numpy(X).cuda()
    b = on_tensors(family).fit(x, LENGTHS, **keys)
    assert all(getattr(b, name).is_cuda for name in names(family))
    for name in names(family):
        torch.testing.assert_close(getattr(b, name).cpu(), getattr(a, name), rtol=1e-6, atol=1e-8)
    for method in ("log_prob", "predict", "predict_proba", "sample_paths"):
        assert getattr(b, method)(x, LENGTHS).is_cuda
    b.partial_fit(x, LENGTHS)
    hole = x.double().clone()
    hole[5] = float("nan")
    assert b.log_prob(hole, LENGTHS).isfinite().all()
    if family in BUILT_IN:
        if family == "Multinomial":
            b.n_trials = 6
        assert not b.impute(hole, LENGTHS).isnan().any()
