"""Hidden Markov models: hmmlearn's results, brute force, and what may change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from models.hmm_cases import (
    COVARIANCES,
    FAMILIES,
    LENGTHS,
    N,
    assert_same,
    attributes,
    enumerate_paths,
    frames,
    log_density,
    model,
    path_score,
    quiet,
    start_from,
)

import evidens

hmm = pytest.importorskip("hmmlearn.hmm")
quiet()
pytestmark = pytest.mark.usefixtures("one_thread")

# Priors of every kind, in the constructor's words.
PRIORS = {
    "Categorical": {"emissionprob_prior": 1.5, "transmat_prior": 2.0, "startprob_prior": 1.2},
    "Multinomial": {"transmat_prior": np.array([[2.0, 1, 1], [1, 2, 1], [1, 1, 2]])},
    "Poisson": {"lambdas_prior": 2.0, "lambdas_weight": 3.0},
    "Gaussian": {
        "means_prior": 1.0,
        "means_weight": 2.0,
        "covars_prior": 0.1,
        "covars_weight": 6.0,
        "startprob_prior": 2.0,
    },
}
MIX_PRIORS = {"weights_prior": 1.5, "means_prior": 0.5, "means_weight": 0.7, "covars_weight": 2.0}
MIX_COVARS = {"diag": 1.5, "spherical": 1.2, "full": np.eye(2), "tied": np.eye(2)}
# Without "m" but with "c", hmmlearn 0.3.3 leaves out the sums that its covariances need.
FROZEN = {"Categorical": "te", "Multinomial": "s", "Poisson": "l", "Gaussian": "tm", "GMM": "tc"}

CASES = [
    (family, params)
    for family in ("Categorical", "Multinomial", "Poisson")
    for params in ({}, PRIORS[family], {"params": FROZEN[family]})
]
CASES += [
    (family, {"covariance_type": c} | params)
    for family in ("Gaussian", "GMM")
    for c in COVARIANCES
    for params in (
        {},
        PRIORS["Gaussian"]
        if family == "Gaussian"
        else MIX_PRIORS | {"covars_prior": MIX_COVARS[c]},
        {"params": FROZEN[family]},
    )
]


@pytest.mark.parametrize("implementation", ["log", "scaling"])
@pytest.mark.parametrize(("family", "params"), CASES)
def test_everything_is_hmmlearns(family, params, implementation):
    X = frames(family)
    params = {"random_state": 0, "n_iter": 5, "tol": 0.0} | params
    if family == "GMM":
        params["n_mix"] = 2
    ours = model(family, **params).fit(X, LENGTHS)
    theirs = getattr(hmm, f"{family}HMM")(3, implementation=implementation, **params)
    theirs.fit(X, LENGTHS)
    if (family, params.get("covariance_type")) == ("Gaussian", "spherical"):
        theirs._covars_ = theirs._covars_[:, 0]  # or covars_ would be (K D, D, D)
    np.testing.assert_allclose(ours.monitor_.history, theirs.monitor_.history, rtol=1e-10)
    assert ours.monitor_.iter == theirs.monitor_.iter
    assert_same(ours, theirs, family, 1e-8, 1e-12)
    assert abs(ours.score(X, LENGTHS) - theirs.score(X, LENGTHS)) < 1e-8
    for algorithm in ("viterbi", "map"):
        log_prob, path = ours.decode(X, LENGTHS, algorithm)
        expected, their_path = theirs.decode(X, LENGTHS, algorithm)
        assert abs(log_prob - expected) < 1e-8
        if algorithm == "viterbi" and (path != their_path).any():
            # Paths through equal symbols can tie, and then the last bit of a log decides.
            assert family in ("Categorical", "Multinomial")
            tied = [path_score(ours, X, LENGTHS, p) for p in (path, their_path)]
            assert abs(tied[0] - tied[1]) < 1e-10
        else:
            np.testing.assert_array_equal(path, their_path)
    log_prob, posteriors = ours.score_samples(X, LENGTHS)
    np.testing.assert_allclose(posteriors, theirs.predict_proba(X, LENGTHS), atol=1e-10)
    assert abs(log_prob - theirs.score(X, LENGTHS)) < 1e-8
    np.testing.assert_array_equal(ours.predict(X, LENGTHS), ours.decode(X, LENGTHS)[1])
    for name in ("aic", "bic"):
        assert abs(getattr(ours, name)(X, LENGTHS) - getattr(theirs, name)(X, LENGTHS)) < 1e-8
    np.testing.assert_allclose(
        ours.get_stationary_distribution(), theirs.get_stationary_distribution()
    )
    if family == "Multinomial":
        ours.n_trials = theirs.n_trials = 6
    for start in (None, 2):
        drawn, path = ours.sample(30, random_state=3, currstate=start)
        expected, their_path = theirs.sample(30, random_state=3, currstate=start)
        np.testing.assert_array_equal(path, their_path)
        np.testing.assert_allclose(drawn, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_paths_one_by_one(family):
    X = frames(family)
    m = model(family).fit(X, LENGTHS)
    lengths = [5, 1, 3]
    x = X[:9].astype(float)
    log_prob = m.log_prob(X[:9], lengths)
    score, posteriors = m.score_samples(X[:9], lengths)
    best, path = m.decode(X[:9], lengths)
    total, start = 0.0, 0
    for b, length in enumerate(lengths):
        rows = slice(start, start + length)
        log_obs = np.stack([log_density(m, family, row) for row in x[rows]])
        expected, marginal, best_path, best_score = enumerate_paths(m, log_obs)
        assert abs(log_prob[b] - expected) < 1e-9
        np.testing.assert_allclose(posteriors[rows], marginal, atol=1e-9)
        np.testing.assert_array_equal(path[rows], best_path)
        total += best_score
        start += length
    assert abs(best - total) < 1e-9
    assert abs(score - log_prob.sum()) < 1e-9
    assert abs(m.score(X[:9], lengths) - score) < 1e-9


@pytest.mark.parametrize(
    ("family", "params"),
    [(f, {}) for f in ("Categorical", "Multinomial", "Poisson", "Bernoulli", "Custom")]
    + [("Gaussian", {"covariance_type": c, "covars_prior": 0.0}) for c in COVARIANCES]
    + [("GMM", {"covariance_type": c}) for c in COVARIANCES],
)
def test_em_never_lowers_the_likelihood(family, params):
    for seed in range(3):
        m = model(family, n_iter=12, **{"random_state": seed} | params).fit(frames(family), LENGTHS)
        gains = np.diff(m.monitor_.history)
        assert gains.min() > -1e-9
        assert gains[0] > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_em_is_monotone_with_holes_labels_and_weights(family):
    X = frames(family).astype(float)
    rng = np.random.default_rng(1)
    X[10:14] = np.nan
    if family not in ("Categorical", "Multinomial", "Custom"):
        X[rng.random(X.shape) < 0.2] = np.nan
    labels = np.where(np.arange(N) < 12, np.arange(N) % 3, -1)
    params = {"covars_prior": 0.0} if family == "Gaussian" else {}
    m = model(family, n_iter=15, **params)
    m.fit(X, LENGTHS, sample_weight=[1, 2, 0.5, 1], labels=labels)
    assert np.diff(m.monitor_.history).min() > -1e-9
    assert all(np.isfinite(value).all() for value in attributes(m, family).values())
    filled = m.impute(X, LENGTHS) if family != "Custom" else X[:1]
    assert not np.isnan(filled).any()
    if family != "Custom":
        np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_2_is_a_sequence_twice(family):
    X = frames(family)
    start = model(family).fit(X, LENGTHS)
    ends = np.cumsum(LENGTHS)
    parts = np.split(X, ends[:-1])
    twice = np.concatenate([parts[0], parts[0], parts[1], parts[3]])
    repeated = start_from(model(family), start, family).fit(twice, [40, 40, 25, 34])
    weighted = start_from(model(family), start, family)
    weighted.fit(X, LENGTHS, sample_weight=[2, 1, 0, 1])
    assert_same(weighted, repeated, family)
    np.testing.assert_allclose(weighted.monitor_.history, repeated.monitor_.history, rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_sequences_changes_nothing(family):
    X = frames(family)
    start = model(family).fit(X, LENGTHS)
    parts = np.split(X, np.cumsum(LENGTHS)[:-1])
    order = [2, 0, 3, 1]
    one = start_from(model(family), start, family).fit(X, LENGTHS)
    other = start_from(model(family), start, family)
    other.fit(np.concatenate([parts[i] for i in order]), [LENGTHS[i] for i in order])
    assert_same(one, other, family)


def chunkings(X):
    parts = np.split(X, np.cumsum(LENGTHS)[:-1])
    pairs = [(X[:65], LENGTHS[:2]), (X[65:], LENGTHS[2:])]
    return {
        "list of sequences": (parts, None),
        "list of pairs": (pairs, None),
        "function": (lambda: iter(pairs), None),
        "lengths of all": ([X[:65], X[65:]], LENGTHS),
    }


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_are_the_whole(family, small, monkeypatch):
    from evidens import _native
    from evidens.models import _sequences

    X = frames(family)
    labels = np.where(np.arange(N) < 12, np.arange(N) % 3, -1)
    keys = {"sample_weight": [1, 2, 3, 0.5], "labels": labels}
    whole = model(family).fit(X, LENGTHS, **keys)
    if small:  # several blocks in each pass, one after the other in the same memory
        monkeypatch.setattr(_sequences, "BLOCK", 90)
        monkeypatch.setattr(_native, "_LARGE", 64)
        assert_same(model(family).fit(X, LENGTHS, **keys), whole, family)
    for chunks, lengths in chunkings(X).values():
        assert_same(model(family).fit(chunks, lengths, **keys), whole, family)
    scored = whole.score_samples(X, LENGTHS)
    np.testing.assert_allclose(scored[1], whole.predict_proba(X, LENGTHS))


@pytest.mark.parametrize("family", FAMILIES)
def test_labels(family):
    X = frames(family)
    start = model(family).fit(X, LENGTHS)
    # With every frame labelled, the statistics are counts.
    labels = np.random.default_rng(0).integers(0, 3, N)
    m = start_from(model(family, n_iter=1), start, family).fit(X, LENGTHS, labels=labels)
    first = np.cumsum([0, *LENGTHS])[:-1]
    counts = np.bincount(labels[first], minlength=3)
    np.testing.assert_allclose(m.startprob_, counts / 4)
    steps = np.zeros((3, 3))
    inside = np.setdiff1d(np.arange(N - 1), first[1:] - 1)
    np.add.at(steps, (labels[inside], labels[inside + 1]), 1)
    np.testing.assert_allclose(m.transmat_, steps / steps.sum(1, keepdims=True))
    if family == "Gaussian":
        means = np.stack([X[labels == k].mean(0) for k in range(3)])
        np.testing.assert_allclose(m.means_, means, rtol=1e-10)
    if family == "Poisson":
        means = np.stack([X[labels == k].mean(0) for k in range(3)])
        np.testing.assert_allclose(m.lambdas_, means, rtol=1e-10)
    # The log-likelihood is that of the labelled path.
    expected, start_of = 0.0, np.log(start.startprob_)
    for b, length in enumerate(LENGTHS):
        rows = np.arange(first[b], first[b] + length)
        obs = np.stack([log_density(start, family, X[i].astype(float)) for i in rows])
        z = labels[rows]
        expected += start_of[z[0]] + obs[np.arange(length), z].sum()
        expected += np.log(start.transmat_)[z[:-1], z[1:]].sum()
    assert abs(m.monitor_.history[0] - expected) < 1e-7


def test_labels_name_the_states():
    X = frames("Gaussian")
    for family in ("Gaussian", "GMM"):
        labels = np.full(N, -1)
        # One frame of each cluster, named against the order that k-means would give.
        for k, place in enumerate([X.sum(1).argmax(), X.sum(1).argmin()]):
            labels[place] = k
        for seed in range(3):
            m = model(family, random_state=seed).fit(X, LENGTHS, labels=labels)
            means = m.means_ if family == "Gaussian" else m.means_.mean(1)
            assert means[0].sum() > means[2].sum() > means[1].sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_partial_fit(family):
    X = frames(family)
    start = model(family).fit(X, LENGTHS)
    # From parameters of one's own, the first chunk is a whole EM step.
    step = start_from(model(family, n_iter=1), start, family).fit(X, LENGTHS)
    part = start_from(model(family), start, family).partial_fit(X, LENGTHS)
    assert_same(part, step, family, 1e-12)
    assert part.n_samples_seen_ == N
    assert part.n_iter_ == 1
    # The same chunk again and again climbs, whatever the steps.
    score = part.score(X, LENGTHS)
    for _ in range(10):
        part.partial_fit(X, LENGTHS)
    assert part.score(X, LENGTHS) > score
    assert part.n_samples_seen_ == 11 * N
    # After fit it goes on: an optimum stays where it is.
    fitted = model(family, n_iter=300, tol=1e-10).fit(X, LENGTHS)
    before = fitted.score(X, LENGTHS)
    fitted.partial_fit(X, LENGTHS)
    assert abs(fitted.score(X, LENGTHS) - before) < 1e-3 * abs(before)


def test_bits_are_symbols():
    bits = frames("Bernoulli")[:, :1]
    start = evidens.CategoricalHMM(3, random_state=0, n_iter=1).fit(bits, LENGTHS)
    one = evidens.BernoulliHMM(3, init_params="", n_iter=8, tol=-np.inf)
    two = evidens.CategoricalHMM(3, init_params="", n_iter=8, tol=-np.inf)
    for m in (one, two):
        m.startprob_, m.transmat_ = start.startprob_, start.transmat_
    one.probs_, two.emissionprob_ = start.emissionprob_[:, 1:], start.emissionprob_
    one.fit(bits, LENGTHS)
    two.fit(bits, LENGTHS)
    np.testing.assert_allclose(one.probs_, two.emissionprob_[:, 1:], rtol=1e-9)
    np.testing.assert_allclose(one.transmat_, two.transmat_, rtol=1e-9)
    np.testing.assert_allclose(one.monitor_.history, two.monitor_.history, rtol=1e-12)
    # One number less for each state than a table of two symbols has: 2 + 6 + 3.
    assert one.aic(bits) == pytest.approx(-2 * one.score(bits) + 22)
    assert one.bic(bits) == pytest.approx(-2 * one.score(bits) + 11 * np.log(N))


@pytest.mark.parametrize(
    ("family", "params", "log_prior"),
    [
        (
            "Categorical",
            {"emissionprob_prior": 3.0, "transmat_prior": 2.0, "startprob_prior": 1.5},
            lambda m: (
                2 * np.log(m.emissionprob_).sum()
                + np.log(m.transmat_).sum()
                + 0.5 * np.log(m.startprob_).sum()
            ),
        ),
        (
            "Bernoulli",
            {"alpha": 3.0, "beta": np.array([2.0, 5.0, 4.0])},
            lambda m: (
                2 * np.log(m.probs_).sum() + (np.array([1.0, 4.0, 3.0]) * np.log1p(-m.probs_)).sum()
            ),
        ),
        (
            "Gaussian",
            {"means_weight": 2.0, "means_prior": 1.0, "params": "stm", "covars_prior": 0.0},
            lambda m: -((m.means_ - 1.0) ** 2 / m.compact_covars_).sum(),
        ),
    ],
)
def test_priors_are_what_em_climbs(family, params, log_prior):
    X = frames(family)
    start = model(family, n_iter=2).fit(X, LENGTHS)
    m = start_from(model(family, n_iter=1, **params), start, family)
    objective = []
    for _ in range(12):
        objective.append(m.score(X, LENGTHS) + log_prior(m))
        m.fit(X, LENGTHS)
    assert np.diff(objective).min() > -1e-9
    assert np.diff(objective).max() > 1e-3
    # Without the prior the likelihood is higher.
    plain = start_from(model(family, n_iter=12), start, family).fit(X, LENGTHS)
    assert plain.score(X, LENGTHS) > m.score(X, LENGTHS)
