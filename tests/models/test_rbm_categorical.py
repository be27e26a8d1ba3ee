"""`CategoricalRBM`: levels and missing entries, against the enumeration of all states."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from models.rbm_cases import categorical, states
from scipy.sparse import csr_array
from scipy.stats import chisquare

from evidens import CategoricalRBM


def law(rbm, items=None):
    """All rows (L^D, D) of some items and their probabilities, the other items absent."""
    j, d, count = rbm.components_.shape
    items = list(range(d)) if items is None else items
    rows = np.array(list(itertools.product(range(count), repeat=len(items))))
    h = states(rbm.hidden, j)
    field = rbm.intercept_visible_ + np.einsum("hj,jdl->hdl", h, rbm.components_)
    log_p = (h @ rbm.intercept_hidden_)[:, None] + sum(
        field[:, i, rows[:, n]] for n, i in enumerate(items)
    )
    log_p = np.logaddexp.reduce(log_p, 0)
    log_z = np.logaddexp.reduce(log_p)
    return rbm.levels_[rows], np.exp(log_p - log_z), log_z


def tastes(n=400, missing=0.3, seed=0):
    """Ratings 1 to 5 of two kinds of people, and what is seen of them."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=(n, 1))
    mean = np.where(kind == np.array([0, 0, 0, 0, 1, 1, 1, 1]), 4.3, 1.7)
    whole = np.clip(np.round(mean + 0.7 * rng.normal(size=mean.shape)), 1, 5)
    return whole, np.where(rng.random(whole.shape) < missing, np.nan, whole)


def test_the_density_is_that_of_enumeration():
    rbm = categorical()
    rows, p, log_z = law(rbm)
    np.testing.assert_allclose(rbm.log_prob(rows), np.log(p), rtol=1e-11)
    np.testing.assert_allclose(rbm.score_samples(rows), np.log(p), rtol=1e-11)
    assert rbm.log_partition_ == pytest.approx(log_z, rel=1e-12)
    rbm.log_partition(exact=False, chains=50, rungs=200)
    low, high = rbm.log_partition_interval_
    assert low < log_z < high < low + 1


def test_samples_have_the_law():
    rbm = categorical()
    _, p, _ = law(rbm)
    drawn = rbm.sample(10_000, steps=40, random_state=0)
    index = (drawn - 1).astype(int) @ [9, 3, 1]
    assert chisquare(np.bincount(index, minlength=27), p * len(drawn)).pvalue > 1e-3
    assert set(np.unique(drawn)) == {1.0, 2.0, 3.0}


def test_predictions_are_conditional_laws_without_the_entry_itself():
    rbm = categorical(d=4)
    x = np.array([[1.0, 3.0, np.nan, 2.0], [np.nan, np.nan, 2.0, -1.0]])
    found = rbm.predict_proba(x)
    for n, d in itertools.product(range(2), range(4)):
        seen = [i for i in range(4) if i == d or x[n, i] > 0]
        rows, p, _ = law(rbm, seen)
        same = [k for k, i in enumerate(seen) if i != d]
        at = (rows[:, same] == x[n, [seen[k] for k in same]]).all(1)
        expected = [p[at & (rows[:, seen.index(d)] == level)].sum() for level in rbm.levels_]
        np.testing.assert_allclose(found[n, d], np.array(expected) / sum(expected), rtol=1e-10)
    np.testing.assert_allclose(rbm.predict(x), found @ rbm.levels_, rtol=1e-12)


@pytest.mark.parametrize("method", ["exact", "mean_field"])
def test_an_entry_never_enters_its_own_prediction(method):
    rbm = categorical(d=4)
    x = np.array([[1.0, 3.0, np.nan, 2.0]])
    first = rbm.predict(x, method=method)
    for d, other in ((0, 2.0), (1, 1.0), (3, np.nan)):
        changed = x.copy()
        changed[0, d] = other
        again = rbm.predict(changed, method=method)
        assert again[0, d] == pytest.approx(first[0, d], rel=1e-12)
        assert (np.delete(again - first, d, 1) != 0).all()


def test_the_mean_field_is_near_where_weights_are_small():
    rbm = categorical(d=4)
    rbm.components_ = 0.1 * rbm.components_
    x = np.array([[1.0, 3.0, np.nan, 2.0]])
    np.testing.assert_allclose(rbm.predict(x, method="mean_field"), rbm.predict(x), atol=2e-3)


def test_impute_sums_the_other_missing_entries_out():
    rbm = categorical()
    rows, p, _ = law(rbm)
    at = rows[:, 1] == 2
    expected = p[at] @ rows[at] / p[at].sum()
    x = np.tile([np.nan, 2.0, -1.0], (400, 1))
    filled = rbm.impute(x, steps=60, random_state=0)
    np.testing.assert_allclose(filled.mean(0), expected, atol=0.03)
    assert (filled[:, 1] == 2).all()
    drawn = rbm.impute(x, output="sample", random_state=0)
    assert set(np.unique(drawn)) <= {1.0, 2.0, 3.0}
    mode = rbm.impute(x[:1], output="mode", random_state=0)[0]
    share = [p[at & (rows[:, 0] == level)].sum() for level in rbm.levels_]
    assert mode[0] == rbm.levels_[np.argmax(share)]
    settled = rbm.impute(x[:1], method="mean_field")
    np.testing.assert_allclose(settled[0], expected, atol=0.3)


@pytest.mark.parametrize("params", [{}, {"method": "pcd"}, {"method": "pt", "hidden": "spin"}])
def test_it_predicts_held_out_ratings(params):
    _, seen = tastes(missing=0.0 if "method" in params else 0.3)
    test_whole, _ = tastes(seed=1)
    rng = np.random.default_rng(2)
    hidden = rng.random(test_whole.shape) < 0.4
    rbm = CategoricalRBM(8, random_state=0, **params).fit(seen)
    predicted = rbm.predict(np.where(hidden, np.nan, test_whole))
    means = np.nanmean(seen, 0)
    error = np.sqrt(np.mean((predicted - test_whole)[hidden] ** 2))
    baseline = np.sqrt(np.mean((means - test_whole)[hidden] ** 2))
    assert baseline > 1.3
    assert error < 0.85
    # What is hidden cannot have been looked at: its own cells are predicted from the others.
    shown = rbm.predict(test_whole)
    assert np.sqrt(np.mean((shown - test_whole) ** 2)) > 0.5


def test_missing_is_nan_or_minus_one_or_not_stored():
    _, seen = tastes()
    keys = {"n_iter": 3, "random_state": 0}
    a = CategoricalRBM(4, **keys).fit(seen)
    for other in (
        np.nan_to_num(seen, nan=-1).astype(int),
        csr_array(np.nan_to_num(seen, nan=0)),
        torch.from_numpy(seen),
        np.nan_to_num(seen, nan=-1).astype(int).tolist(),
    ):
        b = CategoricalRBM(4, **keys).fit(other)
        np.testing.assert_array_equal(np.asarray(a.components_), np.asarray(b.components_))
        np.testing.assert_allclose(np.asarray(b.predict(other)), a.predict(seen), rtol=1e-12)
        np.testing.assert_allclose(np.asarray(b.transform(other)), a.transform(seen), rtol=1e-12)
    # Where -1 is a level it is one.
    vote = CategoricalRBM(2, levels=[-1, 1], n_iter=1, random_state=0).fit([[-1, 1], [1, -1]])
    assert vote.levels_.tolist() == [-1, 1]
    assert np.isfinite(vote.log_prob([[-1, 1]])).all()


def test_absent_entries_take_no_part():
    _, seen = tastes()
    keys = {"n_iter": 2, "shuffle": False, "centered": False, "weight_decay": 0.0}
    a = CategoricalRBM(4, random_state=0, **keys).fit(seen)
    never = np.column_stack([seen[:, :4], np.full((400, 1), np.nan), seen[:, 4:]])
    wide = CategoricalRBM(4, random_state=0, levels=[1, 2, 3, 4, 5], **keys).fit(never)
    start = np.random.RandomState(0).normal(0, 0.01, (4, 9 * 5)).reshape(4, 9, 5)
    np.testing.assert_array_equal(wide.components_[:, 4], start[:, 4])
    assert a.components_.shape == (4, 8, 5)


def test_levels_are_kept_between_chunks():
    _, seen = tastes()
    rbm = CategoricalRBM(4, levels=[1, 2, 3, 4, 5], random_state=0)
    for chunk in np.array_split(seen, 20):
        rbm.partial_fit(chunk)
    assert rbm.n_iter_ == 20
    assert rbm.levels_.tolist() == [1, 2, 3, 4, 5]
    persistent = CategoricalRBM(4, method="pcd", random_state=0).partial_fit([[1, 2], [2, 1]])
    with pytest.raises(ValueError, match="use method='cd'"):
        persistent.partial_fit([[1, np.nan]])
    few = CategoricalRBM(4, random_state=0).partial_fit([[1, 2], [2, 1]])
    with pytest.raises(ValueError, match=r"level 3 in column 0; expected one of \[1.0, 2.0\]"):
        few.partial_fit([[3, 2]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.predict([[9] * 8]), "level 9 in column 0; expected one of"),
        (lambda m, x: m.transform([[2.5] * 8]), "level 2.5 in column 0"),
        (lambda m, x: m.log_prob(x), "is missing; the normaliser is of the machine of all"),
        (lambda m, x: m.predict_proba(x, method="no"), "one of exact, mean_field, got 'no'"),
        (lambda m, x: m.fit(x, labels=[0] * 400), "make the class one more column"),
        (lambda m, x: m.set_params(method="pcd").fit(x), "use method='cd'"),
        (lambda m, x: m.set_params(monitor=1).fit(x), "use monitor=0"),
        (lambda m, x: m.set_params(levels=[3]).fit(x), "at least two different numbers"),
        (lambda m, x: m.set_params(levels=[1, 2]).fit(x), "level [345] in column"),
        (lambda m, x: m.fit(np.full((4, 2), np.nan)), "at least two different numbers"),
        (lambda m, x: m.fit([[1, np.inf]]), "infinity"),
        (lambda m, x: m.fit(np.ones((3, 2))), r"got \[1.0\] in X"),
    ],
)
def test_bad_input(call, message):
    _, seen = tastes()
    rbm = CategoricalRBM(4, n_iter=1, random_state=0).fit(seen)
    with pytest.raises(ValueError, match=message):
        call(rbm, seen)


def test_rows_without_any_entry():
    _, seen = tastes()
    seen[:3] = np.nan
    with pytest.warns(UserWarning, match="3 rows of X have no entry and teach nothing"):
        rbm = CategoricalRBM(4, n_iter=2, random_state=0).fit(seen)
    seen[:3] = -1
    with pytest.warns(UserWarning, match="3 rows"):
        again = CategoricalRBM(4, n_iter=2, random_state=0).fit(seen)
    np.testing.assert_array_equal(rbm.components_, again.components_)
    nothing = rbm.predict(seen[:1])
    assert ((nothing > 1) & (nothing < 5)).all()
    assert np.isfinite(rbm.impute(seen[:2], random_state=0)).all()


def test_a_sparse_tensor_has_holes_as_a_sparse_matrix():
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((100, 6)) < 0.5, 0, rng.integers(1, 6, (100, 6)))
    rows[:, 0] = 1
    matrix = CategoricalRBM(4, n_iter=2, random_state=0).fit(csr_array(rows.astype(float)))
    dense = torch.tensor(rows)
    for some in (dense.to_sparse(), dense.double().to_sparse()):
        tensor = CategoricalRBM(4, n_iter=2, random_state=0).fit(some)
        assert tensor.levels_.tolist() == [1, 2, 3, 4, 5]
        np.testing.assert_array_equal(tensor.components_, matrix.components_)
        predicted = matrix.predict(csr_array(rows.astype(float)))
        np.testing.assert_allclose(tensor.predict(some), predicted, rtol=1e-12)


@pytest.mark.parametrize(("fit", "ask"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_levels_are_the_same_in_either_precision(fit, ask):
    rows = np.where(np.random.default_rng(0).random((50, 3)) < 0.5, 0.1, 0.2)
    rbm = CategoricalRBM(2, n_iter=1, random_state=0).fit(rows.astype(fit))
    np.testing.assert_allclose(
        rbm.predict_proba(rows.astype(ask)), rbm.predict_proba(rows.astype(fit)), rtol=1e-5
    )
    # Levels that float32 does not tell apart are told apart.
    near = np.where(rows == 0.1, 2.0**30, 2.0**30 + 1)
    assert len(CategoricalRBM(2, n_iter=1, random_state=0).fit(near).levels_) == 2
    with pytest.raises(ValueError, match="X holds the level 1"):
        rbm.fit(near).predict(near + 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((3, 3), 7), "monitor: validation_data holds the level 7 in column 0"),
        (np.full((3, 3), -1), "monitor: an entry of column 0 of validation_data is missing"),
    ],
)
def test_validation_rows_are_looked_at_before_the_first_epoch(bad, message, monkeypatch):
    rows = np.random.default_rng(0).integers(1, 4, (50, 3))
    monkeypatch.setattr(CategoricalRBM, "_start", lambda *_: pytest.fail("it began"))
    with pytest.raises(ValueError, match=message):
        CategoricalRBM(2, monitor=1).fit(rows, validation_data=bad)
