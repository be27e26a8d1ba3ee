"""The gmm ops at the edges: weights, labels, impossible and broken rows, and every error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ops.gmm_cases import DTYPES, OPS, TYPES, as_tuple, check, mixture

from evidens import ops

INF = math.inf
LOG_PROB_OPS = ("gmm_component_log_prob", "gmm_log_prob")


@pytest.fixture(params=TYPES)
def covariance_type(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


# --- weights and labels ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 33, 400])
def test_sample_weight(covariance_type, dtype, n):
    case = mixture(n, 7, 5, covariance_type, dtype)
    weight = torch.randn(n, dtype=dtype)
    weight[::3] = 0
    check("gmm_statistics", case, weight)
    check("gmm_statistics", case, weight.abs())
    check("gmm_statistics", case, weight[:1].expand(n))
    check("gmm_statistics", case, torch.stack((weight, weight), 1)[:, 1])
    for result in check("gmm_statistics", case, torch.zeros(n, dtype=dtype)):
        assert (result == 0).all()


@pytest.mark.parametrize("d", [1, 7, 17])
def test_labels(covariance_type, dtype, d):
    for n in (0, 1, 33, 400):
        case = mixture(n, d, 5, covariance_type, dtype)
        labels = torch.randint(-1, 5, (n,))
        check("gmm_statistics", case, None, labels)
        check("gmm_statistics", case, torch.randn(n, dtype=dtype), labels)
        check("gmm_statistics", case, None, torch.stack((labels, labels), 1)[:, 0])
        free = ops.gmm_statistics(case.x, *case.parameters, None, torch.full((n,), -1))
        plain = ops.gmm_statistics(case.x, *case.parameters)
        assert all(torch.equal(a, b) for a, b in zip(free, plain))


def test_pinned_to_an_impossible_component(covariance_type, dtype):
    case = mixture(20, 3, 4, covariance_type, dtype)
    case.log_weights[2] = -INF
    labels = torch.full((20,), -1)
    labels[7] = 2
    log_likelihood, weight, first, _ = check("gmm_statistics", case, None, labels)
    assert log_likelihood == -INF
    assert weight[2] == 1  # pinned all the same
    torch.testing.assert_close(first[2], (case.x[7] - case.means[2]).double())
    # ... unless it weighs nothing.
    sample_weight = torch.ones(20, dtype=dtype)
    sample_weight[7] = 0
    log_likelihood, weight, _, _ = check("gmm_statistics", case, sample_weight, labels)
    assert log_likelihood.isfinite()
    assert weight[2] == 0


def test_pinned_nan_row_stays_in_its_component(dtype):
    # Per component there is no posterior to break, so the other components keep their moments.
    case = mixture(40, 3, 4, "diag", dtype)
    case.x[7] = math.nan
    labels = torch.full((40,), -1)
    labels[7] = 2
    _, weight, first, second = check("gmm_statistics", case, None, labels)
    others = [0, 1, 3]
    assert weight.isfinite().all()
    assert first[others].isfinite().all()
    assert second[others].isfinite().all()


# --- impossible -----------------------------------------------------------------------------------


def test_component_without_weight(covariance_type, dtype):
    case = mixture(100, 7, 5, covariance_type, dtype)
    case.log_weights[3] = -INF
    for op in OPS:
        check(op, case)
    terms = ops.gmm_component_log_prob(case.x, *case.parameters)
    assert (terms[:, 3] == -INF).all()
    _, weight, first, _ = ops.gmm_statistics(case.x, *case.parameters)
    assert weight[3] == 0
    assert (first[3] == 0).all()


def test_all_components_without_weight(covariance_type, dtype):
    case = mixture(33, 7, 5, covariance_type, dtype)
    case.log_weights[:] = -INF
    assert (ops.gmm_log_prob(case.x, *case.parameters) == -INF).all()
    log_likelihood, weight, first, second = check("gmm_statistics", case)
    assert log_likelihood == -INF
    assert all((m == 0).all() for m in (weight, first, second))


@pytest.mark.parametrize("value", [1e30, -1e30, 1e38, INF, -INF], ids=str)
def test_impossible_rows(covariance_type, dtype, value):
    """A row infinitely far away has density 0: -inf, no responsibility, no gradient, no NaN."""
    value = value if dtype is torch.float32 or math.isinf(value) else value**8
    case = mixture(40, 7, 5, covariance_type, dtype)
    clean = case.x.clone()
    case.x[11] = value  # every feature
    case.x[12, 3] = value
    rows = torch.tensor([n not in (11, 12) for n in range(40)])
    for op in LOG_PROB_OPS:
        got = getattr(ops, op)(case.x, *case.parameters)
        assert (got[~rows] == -INF).all(), got[~rows]
        assert torch.equal(got[rows], getattr(ops, op)(clean, *case.parameters)[rows])
    log_likelihood, *moments = ops.gmm_statistics(case.x, *case.parameters)
    _, *expected = ops.gmm_statistics(clean, *case.parameters, rows.to(dtype))
    assert log_likelihood == -INF
    for a, b in zip(moments, expected):
        torch.testing.assert_close(a, b, rtol=1e-5 if dtype is torch.float32 else 1e-12, atol=1e-5)
    tensors = [t.requires_grad_() for t in (case.x, *case.parameters[:3])]
    ops.gmm_log_prob(*tensors, covariance_type).nan_to_num(neginf=0).sum().backward()
    assert (case.x.grad[~rows] == 0).all(), case.x.grad[~rows]
    assert all(t.grad.isfinite().all() for t in tensors)


@pytest.mark.parametrize("value", [1e30, INF, -INF, math.nan], ids=str)
def test_rows_of_weight_zero_contribute_nothing(covariance_type, dtype, value):
    case = mixture(400, 7, 5, covariance_type, dtype)
    clean = case.x.clone()
    case.x[::5] = value
    weight = torch.randn(400, dtype=dtype)
    weight[::5] = 0
    expected = ops.gmm_statistics(clean, *case.parameters, weight)
    for a, b in zip(ops.gmm_statistics(case.x, *case.parameters, weight), expected):
        torch.testing.assert_close(a, b, rtol=1e-5 if dtype is torch.float32 else 1e-12, atol=1e-4)
    case.responsibilities[::5] = 0
    for a, b in zip(
        as_tuple(ops.gmm_moments(case.x, case.responsibilities, case.means, covariance_type)),
        as_tuple(ops.gmm_moments(clean, case.responsibilities, case.means, covariance_type)),
    ):
        torch.testing.assert_close(a, b, rtol=1e-5 if dtype is torch.float32 else 1e-12, atol=1e-4)
    gradient = ops.gmm_input_gradient(
        case.x, case.responsibilities, case.means, case.p, covariance_type
    )
    assert (gradient[::5] == 0).all()


@pytest.mark.parametrize("d", [1, 7, 17])
def test_nan_stays_in_its_row(covariance_type, dtype, d):
    case = mixture(70, d, 5, covariance_type, dtype)
    clean = case.x.clone()
    case.x[33, d // 2] = math.nan
    rows = torch.arange(70) != 33
    for op in (*LOG_PROB_OPS, "gmm_input_gradient"):
        got = getattr(ops, op)(*case.arguments(op))
        assert torch.equal(got[rows], getattr(ops, op)(*case.with_(x=clean).arguments(op))[rows])
        if op != "gmm_input_gradient":
            assert got[33].isnan().all()
    for result in ops.gmm_statistics(case.x, *case.parameters)[:2]:
        assert result.isnan().all()  # never a number that leaves a row out
    gradient = ops.gmm_input_gradient(
        case.x, torch.ones_like(case.responsibilities), *case.parameters[1:]
    )
    assert gradient[33].isnan().any()


def test_nan_in_a_parameter_shows(covariance_type, dtype):
    for name in ("log_weights", "means", "p"):
        case = mixture(20, 3, 4, covariance_type, dtype, below=0.0)
        getattr(case, name).view(-1)[0] = math.nan
        assert ops.gmm_log_prob(case.x, *case.parameters).isnan().all(), name


# --- errors ---------------------------------------------------------------------------------------

F32, F64 = DTYPES
WRONG = {
    "x with one axis": (ValueError, dict(x=torch.zeros(3)), r"x \(N, D\).*\(3,\)"),
    "means with another D": (ValueError, dict(means=torch.zeros(2, 4)), r"equal D.*\(2, 4\)"),
    "means with one axis": (ValueError, dict(means=torch.zeros(3)), r"means \(K, D\).*\(3,\)"),
    "no component": (ValueError, dict(means=torch.zeros(0, 3)), r"at least one.*\(0, 3\)"),
    "no feature": (
        ValueError,
        dict(x=torch.zeros(5, 0), means=torch.zeros(2, 0)),
        r"at least one.*\(2, 0\)",
    ),
    "precisions of another type": (
        ValueError,
        dict(p=torch.zeros(2, 3, 3)),
        r"precisions_cholesky.*\(K, D\) = \(2, 3\).*'diag'.*\(2, 3, 3\)",
    ),
    "log_weights of another K": (
        ValueError,
        dict(log_weights=torch.zeros(3)),
        r"log_weights.*\(K\) = \(2,\).*got \(3,\)",
    ),
    "responsibilities of another K": (
        ValueError,
        dict(responsibilities=torch.zeros(5, 3)),
        r"responsibilities.*\(5, 2\).*\(5, 3\)",
    ),
    "means of another dtype": (
        TypeError,
        dict(means=torch.zeros(2, 3, dtype=F64)),
        r"one dtype.*x is torch.float32 on cpu, means is torch.float64.*means\.to\(x\)",
    ),
    "means on another device": (
        TypeError,
        dict(means=torch.zeros(2, 3, device="meta")),
        r"one device.*means is torch.float32 on meta",
    ),
    "integers": (
        TypeError,
        dict(
            x=torch.zeros(5, 3).long(),
            means=torch.zeros(2, 3).long(),
            log_weights=torch.zeros(2).long(),
            p=torch.ones(2, 3).long(),
            responsibilities=torch.ones(5, 2).long(),
        ),
        r"float32 or float64.*torch.int64.*x\.float\(\)",
    ),
    "a NumPy array": (
        TypeError,
        dict(x=np.zeros((5, 3), np.float32)),
        r"\bx\b.*[Tt]ensor.*ndarray",
    ),
    "a list": (TypeError, dict(x=[[0.0] * 3] * 5), r"\bx\b.*[Tt]ensor.*list"),
}


def valid(**changes):
    case = mixture(5, 3, 2, "diag", F32)
    return case.with_(**changes)


def takes(op, changes):
    return any(a is b for a in valid(**changes).arguments(op) for b in changes.values())


@pytest.mark.parametrize(
    ("op", "what"), [(op, what) for op in OPS for what in WRONG if takes(op, WRONG[what][1])]
)
def test_errors(op, what):
    error, changes, message = WRONG[what]
    case = valid(**changes)
    with pytest.raises(error, match=rf"^evidens\.{op}: .*{message}"):
        getattr(ops, op)(*case.arguments(op))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("covariance_type", ["Full", "", None, 0, ["full"]])
def test_unknown_covariance_type(op, covariance_type):
    case = valid(covariance_type=covariance_type)
    with pytest.raises(ValueError, match=rf"evidens\.{op}: .*full, tied, diag, spherical, got"):
        getattr(ops, op)(*case.arguments(op))


@pytest.mark.parametrize(
    ("error", "weight", "labels", "message"),
    [
        (ValueError, torch.ones(4), None, r"sample_weight.*\(N\) = \(5,\).*got \(4,\)"),
        (ValueError, torch.ones(5, 1), None, r"sample_weight.*got \(5, 1\)"),
        (TypeError, torch.ones(5, dtype=F64), None, r"sample_weight is torch.float64"),
        (TypeError, torch.ones(5).long(), None, r"sample_weight is torch.int64"),
        (ValueError, None, torch.zeros(4).long(), r"labels.*int64.*\(5,\).*\(4,\)"),
        (ValueError, None, torch.zeros(5).int(), r"labels.*int64.*torch.int32"),
        (ValueError, None, torch.full((5,), 2), r"labels.*K-1 = 1, got values from 2 to 2"),
        (ValueError, None, torch.full((5,), -2), r"labels.*got values from -2 to -2"),
    ],
)
def test_errors_of_weights_and_labels(error, weight, labels, message):
    case = valid()
    with pytest.raises(error, match=rf"evidens\.gmm_statistics: .*{message}"):
        ops.gmm_statistics(case.x, *case.parameters, weight, labels)
