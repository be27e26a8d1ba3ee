"""Real data (EVIDENS_DATA): the same fit as scikit-learn's, constant columns, ties and outliers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture as Incumbent

import evidens

TABLES = ("concrete", "energy", "kin8nm", "naval", "power_plant", "wine_red", "yacht")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("name", TABLES)
def test_fits_as_scikit_learn_does(evidens_data, name, covariance_type):
    x = np.load(evidens_data / "uci" / f"{name}.npz")["x"][:4000]
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)  # naval has constant columns
    options = dict(covariance_type=covariance_type, reg_covar=1e-3, random_state=0, max_iter=30)
    ours, theirs = (m(5, **options).fit(x) for m in (evidens.GaussianMixture, Incumbent))
    assert ours.n_iter_ == theirs.n_iter_
    # Thirty steps multiply the last digit of the first one; 1e-6 is far below what a fit can tell.
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["23_mammography", "40_vowels", "6_cardio"])
def test_finds_the_same_anomalies(evidens_data, name):
    data = np.load(evidens_data / "anomaly" / f"{name}.npz")
    x, y = data["X"], data["y"]
    options = dict(n_components=4, reg_covar=1e-3, random_state=0)
    ours, theirs = (
        roc_auc_score(y, -m(**options).fit(x[y == 0]).score_samples(x))
        for m in (evidens.GaussianMixture, Incumbent)
    )
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours > 0.7
