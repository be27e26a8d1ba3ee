"""The gmm ops against the float64 reference: shapes, tile borders, layouts, invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.gmm_cases import DTYPES, OPS, TYPES, as_tuple, assert_within, bounds, check, mixture

import evidens
from evidens import ops

# Every N with K = 5, and the borders of the other sizes: tiles have 6 columns of P, panels 12 rows
# of the moments, and 8 to 64 rows of data; a block has at most 1,024 rows.
SIZES = [(n, 5) for n in (0, 1, 5, 31, 33, 257)] + [(n, k) for n in (33, 65) for k in (1, 2, 64)]
FEATURES = (1, 2, 3, 5, 6, 7, 11, 12, 13, 16, 17, 33, 65)
LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "transposed": lambda x: x.T.clone().T,
    "every second column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every second row": lambda x: x.repeat_interleave(2, 0)[::2],
    "offset by one": lambda x: torch.cat((torch.full((1,), 7.0), x.flatten()))[1:].view_as(x),
    "column of a wider one": lambda x: torch.cat((x, x, x), 1)[:, x.shape[1] : 2 * x.shape[1]],
}


@pytest.fixture(params=TYPES)
def covariance_type(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize("d", FEATURES)
def test_values(covariance_type, dtype, d):
    for n, k in SIZES:
        case = mixture(n, d, k, covariance_type, dtype, seed=n + 7 * d)
        for op in OPS:
            check(op, case)


@pytest.mark.parametrize(("n", "d", "k"), [(1500, 17, 5), (1500, 2, 64), (1025, 33, 2)])
def test_values_of_several_blocks(covariance_type, dtype, n, d, k):
    case = mixture(n, d, k, covariance_type, dtype)
    for op in OPS:
        check(op, case)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(covariance_type, dtype, layout):
    change = LAYOUTS[layout]
    for n, d in ((70, 17), (70, 1), (1, 3)):
        case = mixture(n, d, 3, covariance_type, dtype)
        p = case.p.reshape(1, -1) if case.p.ndim == 1 else case.p
        # The parameters and responsibilities come in every layout as well.
        other = case.with_(
            x=change(case.x),
            means=change(case.means),
            responsibilities=change(case.responsibilities),
            log_weights=change(case.log_weights[None])[0],
            p=change(p).reshape(case.p.shape) if p.ndim == 2 else p.mT.clone().mT,
        )
        assert torch.equal(other.x, case.x)
        for op in OPS:
            check(op, case, given=other)


def test_expanded_rows(covariance_type, dtype):
    case = mixture(1, 7, 3, covariance_type, dtype)
    rows = case.with_(
        x=case.x.expand(100, 7), responsibilities=case.responsibilities.expand(100, 3)
    )
    column = mixture(40, 1, 3, covariance_type, dtype).x.expand(40, 7)
    for op in OPS:
        check(op, rows)
        if op in ("gmm_component_log_prob", "gmm_log_prob", "gmm_statistics"):
            check(op, case.with_(x=column))


def test_inputs_are_not_changed(covariance_type, dtype):
    case = mixture(33, 5, 3, covariance_type, dtype)
    before = {k: v.clone() for k, v in vars(case).items() if isinstance(v, torch.Tensor)}
    for op in OPS:
        results = as_tuple(getattr(ops, op)(*case.arguments(op)))
        addresses = [t.data_ptr() for t in (*results, *before.values())]
        assert len(set(addresses)) == len(addresses)
    for name, value in before.items():
        assert torch.equal(getattr(case, name).nan_to_num(), value.nan_to_num()), name


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_widened(covariance_type, half):
    case = mixture(33, 5, 3, covariance_type, torch.float32).to(half)
    wide = case.to(torch.float32)
    for op in OPS:
        for a, b in zip(
            check(op, wide, given=case), as_tuple(getattr(ops, op)(*wide.arguments(op)))
        ):
            assert torch.equal(a, b)
    # A half type beside float32 is fine as well.
    mixed = wide.with_(x=case.x)
    assert torch.equal(
        ops.gmm_log_prob(mixed.x, *mixed.parameters), ops.gmm_log_prob(wide.x, *wide.parameters)
    )


@settings(max_examples=60)
@given(
    n=st.integers(0, 100),
    d=st.integers(1, 40),
    k=st.integers(1, 20),
    covariance_type=st.sampled_from(TYPES),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-15, 1e-3, 1.0, 1e3, 1e12]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_scale(n, d, k, covariance_type, dtype, scale, seed):
    case = mixture(n, d, k, covariance_type, dtype, seed=seed)
    case = case.with_(x=case.x * scale, means=case.means * scale, p=case.p / scale)
    for op in OPS:
        check(op, case)


# --- invariants -----------------------------------------------------------------------------------


def assert_close(actual, expected, op, case, *more):
    for a, e, b in zip(as_tuple(actual), as_tuple(expected), bounds(op, case, *more)):
        assert_within(a, e.double(), 2 * b, op)


def test_order_of_rows(covariance_type, dtype):
    case = mixture(300, 7, 5, covariance_type, dtype)
    order = torch.randperm(300)
    other = case.with_(x=case.x[order], responsibilities=case.responsibilities[order])
    for op in OPS:
        a, b = (getattr(ops, op)(*c.arguments(op)) for c in (case, other))
        if isinstance(a, tuple):
            assert_close(b, a, op, case)
        else:  # a row's value does not depend on where it stands
            assert torch.equal(b, a[order])


def test_order_of_components(covariance_type, dtype):
    case = mixture(100, 7, 5, covariance_type, dtype)
    order = torch.tensor([3, 0, 4, 1, 2])
    other = case.with_(
        log_weights=case.log_weights[order],
        means=case.means[order],
        p=case.p if covariance_type == "tied" else case.p[order],
        responsibilities=case.responsibilities[:, order],
    )
    for op in OPS:
        expected = as_tuple(getattr(ops, op)(*case.arguments(op)))
        back = []
        for e in as_tuple(getattr(ops, op)(*other.arguments(op))):
            if op == "gmm_component_log_prob":
                back.append(e[:, order.argsort()])
            elif op in ("gmm_statistics", "gmm_moments") and e.ndim and e.shape[0] == 5:
                back.append(e[order.argsort()])
            else:
                back.append(e)
        assert_close(tuple(back), expected, op, case)


def test_weight_two_is_a_row_twice(covariance_type, dtype):
    case = mixture(100, 7, 5, covariance_type, dtype)
    weight = torch.ones(100, dtype=dtype)
    weight[:30] = 2
    twice = torch.cat((case.x, case.x[:30]))
    a = ops.gmm_statistics(case.x, *case.parameters, weight)
    b = ops.gmm_statistics(twice, *case.parameters)
    assert_close(a, b, "gmm_statistics", case, weight)


def test_chunks_sum_to_the_whole(covariance_type, dtype):
    case = mixture(1500, 7, 5, covariance_type, dtype)
    labels = torch.randint(-1, 5, (1500,))
    weight = torch.rand(1500, dtype=dtype)
    whole = ops.gmm_statistics(case.x, *case.parameters, weight, labels)
    pieces = [
        ops.gmm_statistics(case.x[s], *case.parameters, weight[s], labels[s])
        for s in (slice(0, 1), slice(1, 1), slice(1, 700), slice(700, None))
    ]
    summed = tuple(sum(piece) for piece in zip(*pieces))
    assert_close(summed, whole, "gmm_statistics", case, weight, labels)


def test_statistics_are_the_moments_of_the_posteriors(covariance_type, dtype):
    case = mixture(300, 7, 5, covariance_type, dtype)
    terms = ops.gmm_component_log_prob(case.x, *case.parameters)
    log_prob = ops.gmm_log_prob(case.x, *case.parameters)
    r = (terms - log_prob[:, None]).exp()
    moments = ops.gmm_moments(case.x, r, case.means, covariance_type)
    assert_close(
        (log_prob.double().sum(), *moments),
        ops.gmm_statistics(case.x, *case.parameters),
        "gmm_statistics",
        case,
    )


def test_density_integrates_to_one(covariance_type):
    # A mean of a fine grid: the trapezoidal rule converges faster than any power for a Gaussian.
    axis = torch.arange(-24, 24, 0.1, dtype=torch.float64)
    for d, grid in ((1, axis[:, None]), (2, torch.cartesian_prod(axis, axis))):
        case = mixture(1, d, 3, covariance_type, torch.float64)
        total = ops.gmm_log_prob(grid, *case.parameters).exp().sum().item() * 0.1**d
        assert total == pytest.approx(1, abs=1e-12)


# --- large offsets --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "offset"), [(torch.float64, 1e8), (torch.float32, 1e4)], ids=str)
def test_large_offset(covariance_type, dtype, offset):
    # The data carry few digits of the noise, but of those none may be lost: the bounds, which
    # follow the residuals and not the offset, hold.
    case = mixture(500, 7, 3, covariance_type, dtype)
    case = case.with_(x=case.x + offset, means=case.means + offset)
    for op in OPS:
        check(op, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_offset_against_mpmath(covariance_type, dtype):
    mpmath = pytest.importorskip("mpmath", reason="oracle with 50 digits; comes with torch's sympy")
    offset = 1e8 if dtype is torch.float64 else 1e4
    case = mixture(4, 3, 2, covariance_type, dtype, below=0.0)
    case = case.with_(x=case.x + offset, means=case.means + offset)
    actual = ops.gmm_log_prob(case.x, *case.parameters)
    with mpmath.workdps(50):
        for n, row in enumerate(case.x.tolist()):
            terms = []
            for k, mean in enumerate(case.means.tolist()):
                p = {"tied": case.p, "spherical": case.p[k] * torch.eye(3, dtype=dtype)}.get(
                    covariance_type, case.p[k] if case.p.ndim > 1 else case.p
                )
                p = mpmath.matrix((torch.diag(p) if p.ndim == 1 else p).tolist())
                z = p.T * (mpmath.matrix(row) - mpmath.matrix(mean))
                log_det = sum(mpmath.log(p[i, i]) for i in range(3))
                quadratic = sum(v * v for v in z)
                terms.append(
                    mpmath.exp(
                        mpmath.mpf(case.log_weights[k].item())
                        + log_det
                        - (3 * mpmath.log(2 * mpmath.pi) + quadratic) / 2
                    )
                )
            error = abs(mpmath.log(sum(terms)) - actual[n].item())
            assert error <= bounds("gmm_log_prob", case)[0][n].item()


@pytest.mark.parametrize("spread", [1e2, 1e4])
def test_variances_of_far_groups(covariance_type, dtype, spread):
    # Two groups far apart, each of two overlapping components: what is summed about one mean must
    # not be rounded at the scale of the distance between the groups.
    case = mixture(2000, 2, 4, covariance_type, dtype, below=0.0)
    means = torch.tensor([[-1.0, 0], [-1, 0.5], [1, 0], [1, 0.5]]) * torch.tensor([spread, 1])
    p = torch.ones(4) if case.p.ndim == 1 else torch.eye(2) if case.p.ndim > 1 else None
    p = torch.ones(4, 2) if covariance_type == "diag" else p
    p = p.expand(4, 2, 2) if covariance_type == "full" else p
    x = means[torch.arange(2000) % 4] + torch.randn(2000, 2)
    weights = torch.full((4,), -math.log(4))
    case = case.with_(x=x, means=means, p=p.contiguous(), log_weights=weights).to(dtype)
    _, _, _, second = ops.gmm_statistics(case.x, *case.parameters)
    expected = evidens.reference.gmm.gmm_statistics(
        case.to(torch.float64).x, *case.to(torch.float64).parameters
    )[3]
    # Responsibilities near 1/2 are off by the error of the terms; 1e-3 of a variance is far above
    # it for float32 at 1e2 and below what a fit could notice.
    assert (second - expected).abs().max() <= 1e-3 * expected.abs().max()
