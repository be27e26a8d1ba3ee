"""The Triton mixture kernels against the float64 reference, within rounding-error bounds."""

from __future__ import annotations

import math

import pytest
import torch
from ops.comparison import EXACT

from evidens.kernels import gmm
from evidens.reference import gmm as reference

pytestmark = [
    pytest.mark.usefixtures("canaries"),
    # NumPy stands in for the GPU here, and warns where IEEE arithmetic makes inf or NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DTYPES = [torch.float32, torch.float64]
SHAPES = [(1, 1, 1), (5, 2, 2), (37, 3, 5), (5, 17, 2), (5, 33, 1), (3, 70, 2), (140, 2, 2)]
each_type = pytest.mark.parametrize("covariance_type", reference.COVARIANCE_TYPES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_type
@each_dtype
@each_shape
def test_log_prob(covariance_type, dtype, shape, problem, close):
    p = problem(shape, covariance_type, dtype)
    expected = reference.gmm_component_log_prob(p.x.double(), *p.mixture64)
    terms = gmm.gmm_component_log_prob(p.x, *p.mixture)
    assert terms.dtype == dtype
    close(terms, expected, p.terms_bound())
    total = gmm.gmm_log_prob(p.x, *p.mixture)
    assert total.dtype == dtype
    expected = expected.logsumexp(1)
    close(total, expected, p.terms_bound().amax(1) + 8 * p.u * (1 + expected.abs()))


@each_type
@each_dtype
@each_shape
def test_moments(covariance_type, dtype, shape, problem, close):
    p = problem(shape, covariance_type, dtype)
    r, means = p.responsibilities, p.parameters[1]
    actual = gmm.gmm_moments(p.x, r, means, covariance_type)
    expected = reference.gmm_moments(p.x, r, means, covariance_type)
    for a, b, bound in zip(actual, expected, p.moments_bound(r, torch.zeros_like(r).double())):
        assert a.dtype == torch.float64
        close(a, b, bound)


@each_type
@each_dtype
@each_shape
@pytest.mark.parametrize("weighted, labelled", [(False, False), (True, True)])
def test_statistics(covariance_type, dtype, shape, weighted, labelled, problem, close):
    p = problem(shape, covariance_type, dtype)
    weights, labels = p.sample_weight if weighted else None, p.labels if labelled else None
    actual = gmm.gmm_statistics(p.x, *p.mixture, weights, labels)
    weights64 = None if weights is None else weights.double()
    expected = reference.gmm_statistics(p.x.double(), *p.mixture64, weights64, labels)
    r, r_error, log_error = p.posterior(weights, labels)
    bounds = (log_error, *p.moments_bound(r, r_error))
    for a, b, bound in zip(actual, expected, bounds):
        assert a.dtype == torch.float64
        close(a, b, bound)


@each_type
@each_dtype
@each_shape
def test_input_gradient(covariance_type, dtype, shape, problem, close):
    p = problem(shape, covariance_type, dtype)
    r = p.responsibilities
    actual = gmm.gmm_input_gradient(p.x, r, *p.mixture[1:])
    assert actual.dtype == dtype
    expected = reference.gmm_input_gradient(p.x.double(), r.double(), *p.mixture64[1:])
    close(actual, expected, p.gradient_bound())


@each_type
def test_no_rows(covariance_type, problem, close):
    p = problem((0, 3, 2), covariance_type, torch.float32)
    assert gmm.gmm_component_log_prob(p.x, *p.mixture).shape == (0, 2)
    assert gmm.gmm_log_prob(p.x, *p.mixture).shape == (0,)
    gradient = gmm.gmm_input_gradient(p.x, p.responsibilities, *p.mixture[1:])
    assert gradient.shape == (0, 3)
    for weights, labels in ((None, None), (p.sample_weight, p.labels)):
        actual = gmm.gmm_statistics(p.x, *p.mixture, weights, labels)
        for a, b in zip(actual, reference.gmm_statistics(p.x, *p.mixture, weights, labels)):
            assert a.shape == b.shape
            assert (a == 0).all()


@each_type
@pytest.mark.parametrize("layout", ["columns", "slices", "expanded"])
def test_strides(covariance_type, layout, problem, close):
    p = problem((9, 5, 3), covariance_type, torch.float64)
    x, r = p.x, p.responsibilities
    if layout == "columns":
        strided, r_strided = x.t().contiguous().t(), r.t().contiguous().t()
    elif layout == "slices":
        # What lies between the rows and columns is NaN and must not be read.
        strided = torch.full((18, 20), math.nan, dtype=x.dtype, device=x.device)[1::2, 2:17:3]
        r_strided = torch.full((9, 8), math.nan, dtype=x.dtype, device=x.device)[:, 1:7:2]
        strided.copy_(x)
        r_strided.copy_(r)
    else:
        x = x[:1].expand(9, -1)
        strided, r, r_strided = x, r[:1].expand(9, -1).contiguous(), r[:1].expand(9, -1)
        x = x.contiguous()
    for function, extra in (
        (gmm.gmm_component_log_prob, ()),
        (gmm.gmm_log_prob, ()),
        (gmm.gmm_statistics, (p.sample_weight[:1].expand(9), p.labels[:1].expand(9))),
    ):
        plain = function(x, *p.mixture, *(e.contiguous() for e in extra))
        torch.testing.assert_close(function(strided, *p.mixture, *extra), plain, **EXACT)
    for function, extra in (
        (gmm.gmm_moments, (p.parameters[1], covariance_type)),
        (gmm.gmm_input_gradient, p.mixture[1:]),
    ):
        plain = function(x, r, *extra)
        torch.testing.assert_close(function(strided, r_strided, *extra), plain, **EXACT)
