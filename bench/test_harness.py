"""The harness refuses on a red check, times what agrees and judges floors."""

from __future__ import annotations

import numpy as np
import pytest

from . import harness, report
from .harness import OURS, Case, CheckFailed, Floor, Needs, Provider, Setup

CEILINGS = {"gemm": {"float64": 1e9}, "copy": 1e9, "exp": {"float64": 1e9}}


def _case(values: dict[str, float], seconds: dict[str, float], **options) -> Case:
    def provider(name: str) -> Provider:
        output = {"y": np.array([1.0, values[name]])}
        return Provider(name, lambda: output, lambda: (seconds[name], output))

    def build() -> Setup:
        return Setup([provider(name) for name in values], 1e-6, needs=Needs(flops=2e8))

    return Case("c", "work, 1 x 2 -> 3", "float64", build, **options)


def test_a_red_check_refuses_to_time():
    """Outputs beyond the tolerance are an error."""
    case = _case({OURS: 2.0, "other": 2.001}, {OURS: 1.0, "other": 1.0})
    with pytest.raises(CheckFailed, match="other differ by"):
        harness.measure(case)


def test_with_an_oracle_only_a_baseline_may_be_imprecise():
    """Ours within the tolerance of the oracle, a baseline within a hundred of them."""
    outputs = {OURS: {"y": np.ones(2)}, "other": {"y": np.ones(2) + 5e-5}}
    setup = Setup([], 1e-6, oracle=lambda: {"y": np.ones(2)})
    assert harness.check(setup, outputs) == pytest.approx({OURS: 0.0, "other": 5e-5})
    for name in outputs:
        wrong = {**outputs, name: {"y": np.ones(2) + 2e-4}}
        with pytest.raises(CheckFailed, match=f"{name} and the oracle"):
            harness.check(setup, wrong)


def test_not_a_number_is_red():
    """NaN is not equal to anything."""
    case = _case({OURS: float("nan"), "other": 2.0}, {OURS: 1.0, "other": 1.0})
    with pytest.raises(CheckFailed, match="not a number"):
        harness.measure(case)


def test_ratio_fraction_and_floors():
    """Medians become ratios, a fraction of the limit and verdicts."""
    floors = (Floor("ratio", 4, "other"), Floor("fraction", 0.5), Floor("at_most", 0.6))
    seconds = {OURS: 0.5, "other": 2.5, "fast": 1.0}
    result = harness.measure(_case(dict.fromkeys(seconds, 2.0), seconds, floors=floors))
    harness.finish(result, CEILINGS, judge=True)
    assert result["ratio"] == {"other": 5.0, "fast": 2.0}
    assert result["best_baseline"] == "fast"
    assert result["limit"]["fraction"] == pytest.approx(0.4)
    assert result["reached"] == [True, False, True]


def test_a_floor_of_the_error_judges_ours():
    """The error of ours against its floor, whatever the times are."""
    floors = (Floor("error", 1e-6), Floor("error", 1e-9))
    case = _case({OURS: 2.0 + 1e-7, "other": 2.0}, {OURS: 3.0, "other": 1.0}, floors=floors)
    result = harness.measure(case)
    harness.finish(result, CEILINGS, judge=True)
    assert result["reached"] == [True, False]
    assert "error <= 1e-06 reached; error <= 1e-09 MISSED" in report.terminal_table([result])
    content = report.document("hmm", "full", {"cpu": "a", "isa": "b", "threads": 2}, [result])
    assert "error 5e-08 (0.3x other), missed" in report.markdown_table([content], True)


def test_an_iteration_is_what_longer_fits_take_longer(monkeypatch):
    """What every fit spends besides its iterations drops out."""
    clock = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def fit(iterations: int) -> dict:
        clock[0] += 0.05 + 0.01 * iterations
        return {"y": np.array(iterations)}

    seconds, output = harness.iteration_time(fit, 7, 2)
    assert seconds == pytest.approx(0.01)
    assert output["y"] == 7


def test_a_baseline_that_fails_is_named_and_ours_is_not_spared():
    """A baseline may be missing; we may not."""

    def broken() -> dict:
        raise MemoryError("too large")

    good = Provider(OURS, lambda: {"y": np.ones(1)})
    case = Case("c", "w", "float64", lambda: Setup([good, Provider("other", broken)], 0.0))
    assert harness.measure(case)["unavailable"] == {"other": "MemoryError: too large"}
    case = Case("c", "w", "float64", lambda: Setup([Provider(OURS, broken)], 0.0))
    with pytest.raises(MemoryError):
        harness.measure(case)


def test_parts_are_timed_but_no_rivals():
    """A part is a share of our time: neither a ratio nor the best baseline."""
    case = _case(dict.fromkeys((OURS, "other"), 2.0), {OURS: 1e3, "other": 2e3})
    setup = case.build()
    called = []
    setup.parts = {"optimizer": lambda: called.append(1)}
    result = harness.measure(case, harness.Prepared(setup, {}, {}))
    assert result["ratio"] == {"other": 2.0}
    assert set(result["providers"]) == {OURS, "other"}
    part = result["parts"]["optimizer"]
    assert called
    assert part["share"] == pytest.approx(part["median"] / 1e3)
    harness.finish(result, CEILINGS, judge=True)
    assert "0% of ours" in report.terminal_table([result])
    machine = {"cpu": "a", "isa": "b", "threads": 2}
    content = report.document("flows", "full", machine, [result])
    assert "2.0x other; optimizer 0%" in report.markdown_table([content], False)


def test_tables_hold_speed_and_error():
    """Both tables show what the result holds."""
    floors = (Floor("ratio", 4, "other"),)
    seconds = {OURS: 0.5, "other": 1.5}
    result = harness.measure(_case({OURS: 2.0, "other": 2.0}, seconds, floors=floors))
    harness.finish(result, CEILINGS, judge=True)
    machine = {"cpu": "a", "isa": "b", "threads": 2}
    content = report.document("gmm", "full", machine, [result])
    (row,) = report.markdown_table([content], floors_only=True).splitlines()[2:]
    for cell in ("≥ 4x other", "3.0x other, missed", "40% of gemm float64"):
        assert cell in row
    lines = report.terminal_table([result]).splitlines()
    assert len(lines) == 3
    assert "MISSED" in lines[1]
    assert "500 ms" in lines[1]
