"""Flows and what once went wrong: weights, labels, far rows, threads, dtypes, files."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from models.flow_cases import CLASSES, QUICK, moons

from evidens import Glow, NeuralSplineFlow, RealNVP

X = np.random.default_rng(0).normal(size=(60, 2))


def small(cls=RealNVP, features=2, **options):
    return cls(features, **{"layers": 2, "hidden": (8,)} | options)


def learned(cls=RealNVP, x=X, y=None, fit=None, **options):
    return small(cls, x.shape[1], **options).fit(x, y, **{"epochs": 1} | QUICK | (fit or {}))


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weight", [np.ones((60, 1)), [1.0], -np.ones(60), np.full(60, np.nan), np.zeros(60)]
)
def test_score_refuses_weights_that_fit_refuses(weight):
    with pytest.raises(ValueError, match="sample_weight"):
        learned().score(X, sample_weight=weight)


def test_score_leaves_out_rows_without_weight():
    flow, weight = learned(), np.arange(60) % 3
    far = X.copy()
    far[weight == 0] = 1e30  # log-density -inf
    expected = np.repeat(flow.log_prob(X), weight).mean()
    assert flow.score(far, sample_weight=weight) == pytest.approx(expected, rel=1e-6)


def test_frequencies_of_chunks_have_the_unit_of_the_weights():
    flow = small(classes=2)
    flow.partial_fit(X, np.zeros(60), classes=[0, 1], sample_weight=np.full(60, 10.0))
    flow.partial_fit(X[:30], np.ones(30))
    assert flow.class_weight.tolist() == [600.0, 30.0]
    assert flow.half().class_weight.dtype is torch.float64


def test_rows_without_weight_may_have_any_label():
    y = np.array(["a", "b"] * 30, dtype=object)
    y[3] = "?"
    weight = np.ones(60)
    weight[3] = 0
    assert learned(y=y, classes=2, fit={"sample_weight": weight}).classes_.tolist() == ["a", "b"]


# --- labels ---------------------------------------------------------------------------------------


def test_objects_that_are_integers_stay_integers(tmp_path):
    y = (np.arange(60) % 2).astype(object)
    flow = learned(y=y, classes=2)
    flow.save(tmp_path / "flow")
    again = RealNVP.load(tmp_path / "flow")
    assert again.classes_.dtype.kind == flow.classes_.dtype.kind == "i"
    assert (again.predict(X) == flow.predict(X)).all()
    np.testing.assert_array_equal(again.log_prob(X, y=0), flow.log_prob(X, y=0))


@pytest.mark.parametrize("y", [[b"a", b"b"] * 30, [1j] * 60, np.zeros(60, "datetime64[s]")])
def test_labels_of_other_kinds_are_refused(y):
    with pytest.raises(ValueError, match="labels"):
        learned(y=y, classes=2)


@pytest.mark.parametrize("kind", [object, str])
def test_unlabelled_rows_among_strings(kind):
    y = np.array(["a", "b", -1] * 20, dtype=kind)
    flow = learned(y=y, classes=2)
    assert flow.classes_.tolist() == ["a", "b"]
    assert float(flow.class_weight.sum()) < 45  # of 54 rows that are not held out


def test_unsigned_labels_may_miss_a_class():
    assert learned(y=np.zeros(60, np.uint8), classes=2).classes_.tolist() == [0, 1]


def test_no_labelled_row_leaves_the_classes_even():
    flow = small(classes=2).partial_fit(X, np.full(60, -1), classes=[0, 1])
    assert np.isfinite(flow.log_prob(X)).all()


def test_no_rows_and_no_labels():
    flow = learned(y=np.array(["a", "b"] * 30), classes=2)
    assert flow.log_prob(np.zeros((0, 2)), y=[]).shape == (0,)


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [1e16, 1e37, 1e39, 1e308, -1e39])
def test_far_rows_have_no_density(cls, value):
    flow = small(cls, layers=10)
    x = torch.tensor([[value, 0.0], [0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    for density in (flow.log_prob(x), flow.double().log_prob(x)):
        assert density[0] < -1e25
        assert density[1].isfinite()
        (gradient,) = torch.autograd.grad(density[1], x)
        assert gradient.isfinite().all()
    assert not np.isnan(flow.float().log_prob(x.detach().numpy())).any()


@pytest.mark.parametrize("scale", [1e-170, 1e200])
def test_scales_near_the_ends_of_float64(scale):
    flow = learned(x=X * scale)
    expected = learned().score(X) - 2 * np.log(scale)
    assert flow.score(X * scale) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_widened(dtype):
    x = torch.tensor([[200.0, 3.0]] * 8, dtype=dtype)
    flow = small(dequantize=256)
    torch.testing.assert_close(flow.log_prob(x), flow.log_prob(x.float()))


def test_angles_are_no_integers():
    with pytest.raises(ValueError, match="circular or dequantize"):
        NeuralSplineFlow(2, circular=[1], dequantize=5)


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_draws_refuse_contexts_that_densities_refuse(value):
    with pytest.raises(ValueError, match="context must be finite"):
        small(context=1).sample(2, context=[value])


@pytest.mark.parametrize("temperature", [np.nan, -1.0, np.inf])
def test_temperatures(temperature):
    with pytest.raises(ValueError, match="temperature"):
        small().sample(2, temperature=temperature)


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "fraction"), [(3, 0.9), (20, 0.999), (3, 0.5)])
def test_too_few_rows_are_left(rows, fraction):
    with pytest.raises(ValueError, match=f"validation_fraction={fraction} holds out"):
        learned(x=X[:rows], fit={"validation_fraction": fraction})


def test_chunks_after_a_change_of_dtype():
    flow = small().partial_fit(X).double().partial_fit(X)
    assert flow.n_iter_ == 2
    assert flow.log_prob(X).dtype == np.float64


def test_chunks_with_nothing_to_learn():
    flow = small()
    for p in flow.parameters():
        p.requires_grad_(False)
    assert flow.partial_fit(X).n_iter_ == 1


def test_bits_need_a_draw():
    with pytest.raises(ValueError, match="draws"):
        small(dequantize=4).bits_per_dim(np.zeros((3, 2)), draws=0)


def test_threads_do_not_leave_evaluation_mode_to_each_other():
    flow = learned(x=moons()[0], dropout=0.5, fit={"epochs": 3})
    flow.train()
    rows = np.repeat(X, 300, 0)
    expected = flow.log_prob(rows)
    results: list[bool] = []

    def ask(part: np.ndarray) -> None:
        for _ in range(4):
            got = flow.log_prob(part)
            results.append(bool((got == expected[: len(part)]).all()))

    threads = [threading.Thread(target=ask, args=(rows[:n],)) for n in (18000, 500, 9000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12
    assert all(results)
    assert all(m.training for m in flow.modules())


@pytest.mark.parametrize(
    "build",
    [
        lambda: RealNVP(2, hidden=(np.int64(8),), layers=1),
        lambda: NeuralSplineFlow(2, hidden=np.array([8]), layers=1, circular=np.array([0])),
        lambda: Glow(np.array([1, 4, 4]), levels=1, steps=1, hidden=4),
    ],
)
def test_sizes_of_numpy_are_saved(build, tmp_path):
    flow = build()
    flow.save(tmp_path / "flow")
    again = type(flow).load(tmp_path / "flow")
    assert again.settings == flow.settings
