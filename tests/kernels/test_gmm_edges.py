"""The Triton mixture kernels on hostile rows, in several chunks, and far from the origin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evidens.kernels import gmm
from evidens.reference import gmm as reference

pytestmark = [
    pytest.mark.usefixtures("canaries"),
    # NumPy stands in for the GPU here, and warns where IEEE arithmetic makes inf or NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

each_type = pytest.mark.parametrize("covariance_type", reference.COVARIANCE_TYPES)
each_dtype = pytest.mark.parametrize(
    "dtype, huge", [(torch.float32, 1e25), (torch.float64, 1e200)], ids=["float32", "float64"]
)


def agree(actual, expected, dtype):
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True, check_dtype=False
    )


@each_type
@each_dtype
def test_impossible_rows(covariance_type, dtype, huge, problem):
    p = problem((6, 3, 2), covariance_type, dtype)
    p.x[2] = huge  # its square overflows
    total = gmm.gmm_log_prob(p.x, *p.mixture)
    assert total[2] == -math.inf
    agree(total, reference.gmm_log_prob(p.x, *p.mixture), dtype)
    agree(
        gmm.gmm_component_log_prob(p.x, *p.mixture),
        reference.gmm_component_log_prob(p.x, *p.mixture),
        dtype,
    )
    log_likelihood, *moments = gmm.gmm_statistics(p.x, *p.mixture)
    assert log_likelihood == -math.inf
    keep = torch.arange(6, device=p.x.device) != 2
    agree(moments, gmm.gmm_statistics(p.x[keep], *p.mixture)[1:], dtype)
    # Without weight it does not even count in the log-likelihood.
    weights = keep.to(dtype)
    actual = gmm.gmm_statistics(p.x, *p.mixture, weights)
    agree(actual, gmm.gmm_statistics(p.x[keep], *p.mixture), dtype)
    agree(actual, reference.gmm_statistics(p.x, *p.mixture, weights), dtype)


@each_type
@each_dtype
@pytest.mark.parametrize("d", [1, 3])
def test_infinite_rows(covariance_type, dtype, huge, d, problem):
    """The padding of features, components and rows must make no NaN of infinity."""
    p = problem((5, d, 3), covariance_type, dtype)
    p.x[2, 0] = math.inf
    total = gmm.gmm_log_prob(p.x, *p.mixture)
    assert total[2] == -math.inf
    agree(total, reference.gmm_log_prob(p.x, *p.mixture), dtype)
    actual = gmm.gmm_statistics(p.x, *p.mixture)
    agree(actual, reference.gmm_statistics(p.x, *p.mixture), dtype)
    assert all(moment.isfinite().all() for moment in actual[1:])


@each_type
@each_dtype
def test_impossible_components(covariance_type, dtype, huge, problem):
    p = problem((5, 3, 3), covariance_type, dtype)
    log_weights = p.parameters[0]
    log_weights[1] = -math.inf
    agree(gmm.gmm_statistics(p.x, *p.mixture), reference.gmm_statistics(p.x, *p.mixture), dtype)
    log_weights.fill_(-math.inf)
    assert (gmm.gmm_log_prob(p.x, *p.mixture) == -math.inf).all()
    log_likelihood, *moments = gmm.gmm_statistics(p.x, *p.mixture)
    assert log_likelihood == -math.inf
    assert all((moment == 0).all() for moment in moments)


@each_type
@each_dtype
def test_nan_rows(covariance_type, dtype, huge, problem):
    p = problem((4, 3, 2), covariance_type, dtype)
    p.x[1, 2] = math.nan
    total = gmm.gmm_log_prob(p.x, *p.mixture)
    assert total.isnan().tolist() == [False, True, False, False]
    agree(total, reference.gmm_log_prob(p.x, *p.mixture), dtype)
    actual = gmm.gmm_statistics(p.x, *p.mixture)
    agree(actual, reference.gmm_statistics(p.x, *p.mixture), dtype)
    assert actual[0].isnan()
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=dtype, device=p.x.device)
    actual = gmm.gmm_statistics(p.x, *p.mixture, weights)
    assert all(result.isfinite().all() for result in actual)
    agree(actual, reference.gmm_statistics(p.x, *p.mixture, weights), dtype)


@each_type
@each_dtype
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_rows_without_weight_do_not_enter_moments(covariance_type, dtype, huge, value, problem):
    p = problem((7, 3, 2), covariance_type, dtype)
    p.x[4] = value
    p.responsibilities[4] = 0.0
    means = p.parameters[1]
    actual = gmm.gmm_moments(p.x, p.responsibilities, means, covariance_type)
    assert all(moment.isfinite().all() for moment in actual)
    agree(actual, reference.gmm_moments(p.x, p.responsibilities, means, covariance_type), dtype)


def test_a_label_without_a_component_shows(problem):
    p = problem((5, 3, 2), "diag")
    p.labels[:] = torch.tensor([-1, 0, 2, 1, -1])
    assert gmm.gmm_statistics(p.x, *p.mixture, None, p.labels)[0].isnan()


@each_type
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_far_from_the_origin(covariance_type, dtype, problem, close):
    p = problem((40, 3, 2), covariance_type, dtype, offset=4096.0)
    r, means = p.responsibilities, p.parameters[1]
    expected = reference.gmm_component_log_prob(p.x.double(), *p.mixture64)
    close(gmm.gmm_component_log_prob(p.x, *p.mixture), expected, p.terms_bound())
    actual = gmm.gmm_moments(p.x, r, means, covariance_type)
    expected = reference.gmm_moments(p.x, r, means, covariance_type)
    for a, b, bound in zip(actual, expected, p.moments_bound(r, torch.zeros_like(r).double())):
        close(a, b, bound)


@each_type
@pytest.mark.parametrize("d", [2, 70])
def test_chunks_and_programs(covariance_type, d, problem, monkeypatch):
    """Several chunks, programs, strides over row blocks and groups of tied components."""
    p = problem((150, d, 5), covariance_type)
    whole = gmm.gmm_statistics(p.x, *p.mixture, p.sample_weight, p.labels)
    monkeypatch.setattr(gmm, "_SCRATCH_ELEMENTS", 5 * 140)
    monkeypatch.setattr(gmm, "_SCRATCH_MIN_ROWS", 1)
    monkeypatch.setattr(gmm, "_MOMENT_PROGRAMS", 12 if d == 70 else 3)
    chunked = gmm.gmm_statistics(p.x, *p.mixture, p.sample_weight, p.labels)
    expected = reference.gmm_statistics(p.x, *p.mixture, p.sample_weight, p.labels)
    for a, b, c in zip(whole, chunked, expected):
        scale = c.abs().max().item()
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-13 * scale)
        torch.testing.assert_close(b, c, rtol=1e-12, atol=1e-13 * scale)


@each_type
def test_the_same_bits_twice(covariance_type, problem):
    p = problem((100, 3, 4), covariance_type, torch.float32)
    first = gmm.gmm_statistics(p.x, *p.mixture, p.sample_weight)
    second = gmm.gmm_statistics(p.x, *p.mixture, p.sample_weight)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_second_moments_are_symmetric(covariance_type, problem):
    p = problem((50, 70, 2), covariance_type, torch.float32)
    second = gmm.gmm_statistics(p.x, *p.mixture)[3]
    assert torch.equal(second, second.mT)


@each_type
def test_statistics_hold_no_array_of_all_rows_and_components(covariance_type, problem, monkeypatch):
    p = problem((100, 2, 4), covariance_type)
    monkeypatch.setattr(gmm, "_SCRATCH_ELEMENTS", 64)
    monkeypatch.setattr(gmm, "_SCRATCH_MIN_ROWS", 16)
    sizes = []
    new_empty = torch.Tensor.new_empty

    def record(self, *size, **options):
        out = new_empty(self, *size, **options)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(torch.Tensor, "new_empty", record)
    gmm.gmm_statistics(p.x, *p.mixture)
    gmm.gmm_log_prob(p.x, *p.mixture)
    assert max(sizes) <= 100


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_rows_beyond_32_bit_offsets(covariance_type, problem):
    p = problem((3, 2, 2), covariance_type, torch.float32)
    try:
        # Zeros from the operating system: pages that nobody touches cost nothing.
        far = torch.from_numpy(np.zeros(2**31 + 2, np.float32)).to(p.x.device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        pytest.skip(f"no 8 GiB of address space: {error}")
    x = far.as_strided((3, 2), (2**30, 1))
    x.copy_(p.x)
    agree(gmm.gmm_log_prob(x, *p.mixture), gmm.gmm_log_prob(p.x, *p.mixture), torch.float32)
    r, means = p.responsibilities, p.parameters[1]
    agree(
        gmm.gmm_moments(x, r, means, covariance_type),
        gmm.gmm_moments(p.x, r, means, covariance_type),
        torch.float32,
    )
    agree(
        gmm.gmm_input_gradient(x, r, *p.mixture[1:]),
        gmm.gmm_input_gradient(p.x, r, *p.mixture[1:]),
        torch.float32,
    )


def test_unknown_covariance_type(problem):
    p = problem((2, 2, 2), "diag")
    gmm.gmm_log_prob(p.x, *p.mixture)
    for call in (
        lambda: gmm.gmm_log_prob(p.x, *p.parameters, "round"),
        lambda: gmm.gmm_moments(p.x, p.responsibilities, p.parameters[1], "round"),
    ):
        with pytest.raises(ValueError, match="got 'round'"):
            call()
