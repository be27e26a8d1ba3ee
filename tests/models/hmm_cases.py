"""Models and data of every family, shared by the tests of hidden Markov models."""

from __future__ import annotations

import itertools
import logging

import numpy as np
from scipy import special, stats

import evidens

LENGTHS = [40, 25, 1, 34]
N = sum(LENGTHS)
FAMILIES = ("Categorical", "Multinomial", "Poisson", "Bernoulli", "Gaussian", "GMM", "Custom")
COVARIANCES = ("spherical", "diag", "full", "tied")
EMISSIONS = {
    "Categorical": ("emissionprob_",),
    "Multinomial": ("emissionprob_",),
    "Poisson": ("lambdas_",),
    "Bernoulli": ("probs_",),
    "Gaussian": ("means_", "covars_"),
    "GMM": ("weights_", "means_", "covars_"),
    "Custom": (),
}


def states(seed=0):
    rng = np.random.default_rng(seed)
    return np.repeat(rng.integers(0, 3, N // 4 + 1), 4)[:N]


def frames(family, seed=0):
    """(N, D) frames of three states that overlap."""
    rng, z = np.random.default_rng(seed), states(seed)
    if family == "Categorical":
        return rng.integers(0, 3, (N, 1)) + z[:, None]
    if family == "Multinomial":
        p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
        return np.stack([rng.multinomial(6, p[i]) for i in z])
    if family == "Poisson":
        return rng.poisson(np.array([[1, 5], [8, 2], [15, 15]])[z])
    if family == "Bernoulli":
        p = np.array([[0.1, 0.9, 0.2], [0.8, 0.3, 0.9], [0.4, 0.4, 0.1]])
        return (rng.random((N, 3)) < p[z]).astype(int)
    return rng.normal(size=(N, 2)) + 3 * z[:, None] + 2 * rng.integers(0, 2, (N, 1))


def density(X):
    return -((X - np.array([0.0, 4.0, 8.0])) ** 2) / 2


def model(family, **params):
    """Three states, not fitted."""
    params = {"random_state": 0, "n_iter": 6, "tol": -np.inf} | params
    if family == "GMM":
        params = {"n_mix": 2} | params
    if family == "Custom":
        return evidens.CustomHMM(3, lambda X: density(X[:, :1]), **params)
    return getattr(evidens, f"{family}HMM")(3, **params)


def attributes(m, family):
    names = ("startprob_", "transmat_", *EMISSIONS[family])
    return {name: np.asarray(getattr(m, name)) for name in names}


def assert_same(a, b, family, rtol=1e-8, atol=1e-10):
    left, right = attributes(a, family), attributes(b, family)
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=rtol, atol=atol, err_msg=name)


def start_from(m, other, family):
    """Give ``m`` the parameters of ``other``, to start there."""
    for name in ("startprob_", "transmat_", *EMISSIONS[family]):
        value = (
            other._covars_ if (family, name) == ("Gaussian", "covars_") else getattr(other, name)
        )
        setattr(m, name, value)
    m.init_params = ""
    return m


def log_density(m, family, x):
    """(K,) log-density of one frame, in plain NumPy; NaN is integrated out."""
    seen = ~np.isnan(x)
    if not seen.any():
        return np.zeros(3)
    if family == "Categorical":
        return np.log(m.emissionprob_[:, int(x[0])])
    if family == "Multinomial":
        return np.array([stats.multinomial.logpmf(x, x.sum(), p) for p in m.emissionprob_])
    if family == "Poisson":
        return stats.poisson.logpmf(x[seen], m.lambdas_[:, seen]).sum(1)
    if family == "Bernoulli":
        return stats.bernoulli.logpmf(x[seen].astype(int), m.probs_[:, seen]).sum(1)
    if family == "Custom":
        return density(x[None, :1])[0]
    pick = np.ix_(seen, seen)

    def normal(mean, cov):
        return stats.multivariate_normal.logpdf(x[seen], mean[seen], cov[pick])

    if family == "Gaussian":
        return np.array([normal(mean, cov) for mean, cov in zip(m.means_, m.covars_)])
    result = np.empty(3)
    for k in range(3):
        covars = m.covars_[[k] * m.n_mix] if m.covariance_type == "tied" else m.covars_[k]
        if m.covariance_type == "diag":
            covars = [np.diag(c) for c in covars]
        if m.covariance_type == "spherical":
            covars = [c * np.eye(len(x)) for c in covars]
        terms = [normal(mean, cov) for mean, cov in zip(m.means_[k], covars)]
        result[k] = special.logsumexp(np.log(m.weights_[k]) + terms)
    return result


def enumerate_paths(m, log_obs):
    """Log-likelihood, posteriors (T, K) and best path of one sequence, from all K^T paths."""
    t, k = log_obs.shape
    paths = np.array(list(itertools.product(range(k), repeat=t)))
    with np.errstate(divide="ignore"):
        score = np.log(m.startprob_)[paths[:, 0]] + log_obs[np.arange(t), paths].sum(1)
        score = score + np.log(m.transmat_)[paths[:, :-1], paths[:, 1:]].sum(1)
    total = special.logsumexp(score)
    share = np.exp(score - total)
    posteriors = np.stack([np.bincount(paths[:, i], share, k) for i in range(t)])
    return total, posteriors, paths[score.argmax()], score.max()


def path_score(m, X, lengths, path):
    """Log-probability of a path and the data."""
    log_obs, start, total = m._compute_log_likelihood(X), 0, 0.0
    with np.errstate(divide="ignore"):
        initial, transition = np.log(m.startprob_), np.log(m.transmat_)
    for length in lengths:
        z = path[start : start + length]
        total += initial[z[0]] + transition[z[:-1], z[1:]].sum()
        total += log_obs[np.arange(start, start + length), z].sum()
        start += length
    return total


def quiet():
    logging.getLogger("evidens.models.hmm_monitor").setLevel(logging.ERROR)
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
