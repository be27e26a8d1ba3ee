"""Draws of the logistic mixture: their law, their streams, and what is no draw."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ops.logistic_mixture_cases import CHANNELS, DTYPES, LAYOUTS, mixture, strided

import evidens
from evidens import ops
from evidens.reference import logistic_mixture as reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_count = pytest.mark.parametrize("channels", CHANNELS)


def draw(case, **options):
    given = dict(channels=case.channels, seed=0, **case.options) | options
    return ops.logistic_mixture_sample(case.params, **given)


# --- the law --------------------------------------------------------------------------------------


def chi_square(counts, probabilities):
    """The statistic and its degrees of freedom, cells of few expected draws taken together."""
    expected = probabilities * counts.sum()
    few = expected < 8
    observed = torch.cat((counts[~few], counts[few].sum()[None]))
    expected = torch.cat((expected[~few], expected[few].sum()[None]))
    observed, expected = observed[expected > 0], expected[expected > 0]
    return ((observed - expected) ** 2 / expected).sum().item(), len(expected) - 1


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("levels", [2, 7, 256])
def test_grey_draws_follow_the_log_probability(levels, backend):
    n = 20_000
    case = mixture(1, 1, 1, 1, 3, levels, log_scale=-1.5, seed=levels)
    params = case.params.expand(n, -1, -1, -1)
    x = torch.arange(levels).view(-1, 1, 1, 1)
    law = ops.logistic_mixture_log_prob(x, params[:levels], levels=levels).exp().flatten()
    with evidens.backend(backend):
        drawn = ops.logistic_mixture_sample(params, channels=1, levels=levels, seed=1)
    counts = torch.bincount(drawn.flatten(), minlength=levels).double()
    statistic, freedom = chi_square(counts, law)
    # Five standard deviations of the statistic; the seed is fixed.
    assert freedom >= 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 10


def test_coloured_draws_follow_the_joint_log_probability():
    n, levels = 50_000, 4
    case = mixture(1, 3, 1, 1, 2, levels, log_scale=-0.5, seed=3)
    case.params[:, -2:] = case.params[:, 10:12] = 1.5  # coefficients that matter
    triples = torch.tensor(list(itertools.product(range(levels), repeat=3)))
    params = case.params.expand(n, -1, -1, -1)
    x = triples[:, :, None, None]
    law = ops.logistic_mixture_log_prob(x, params[: len(x)], levels=levels).exp().flatten()
    drawn = ops.logistic_mixture_sample(params, channels=3, levels=levels, seed=1)[..., 0, 0]
    cell = (drawn * torch.tensor([16, 4, 1])).sum(1)
    statistic, freedom = chi_square(torch.bincount(cell, minlength=64).double(), law)
    assert freedom > 20
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@each_dtype
def test_a_narrow_term_gives_its_level(dtype):
    levels = torch.arange(256).view(1, 1, 16, 16)
    v = reference.value(levels.to(dtype), 256)
    params = torch.cat((torch.zeros_like(v), v, torch.full_like(v, -20.0)), 1)
    drawn = ops.logistic_mixture_sample(params, channels=1, min_log_scale=-20.0, seed=0)
    assert torch.equal(drawn, levels)
    clamped = ops.logistic_mixture_sample(params, channels=1, seed=0)
    assert not torch.equal(clamped, levels)
    assert (clamped - levels).abs().max() <= 2


def test_coefficients_act_on_the_drawn_levels():
    """Narrow terms: red is drawn at random, green is half of it, blue their sum."""
    params = torch.zeros(1, 10, 20, 20, dtype=torch.float64)
    params[:, 2], params[:, 5], params[:, 8] = -1.0, -20.0, -20.0
    params[:, 3] = math.atanh(0.5)
    params[:, 6], params[:, 9] = math.atanh(0.25), math.atanh(0.75)
    drawn = ops.logistic_mixture_sample(params, channels=3, min_log_scale=-20.0, seed=0)
    r, g, b = reference.value(drawn.double(), 256).unbind(1)
    assert r.std() > 0.3
    half = 1 / 255 + 1e-6
    assert ((g - 0.5 * r).abs() <= half).all()
    assert ((b - 0.25 * r - 0.75 * g).abs() <= half).all()


@each_dtype
def test_far_means_give_the_ends(dtype):
    params = torch.tensor([[0.0, -1e30, 0.0], [0.0, 1e30, 0.0]], dtype=dtype).view(2, 3, 1, 1)
    assert ops.logistic_mixture_sample(params, channels=1, seed=0).flatten().tolist() == [0, 255]


def test_a_term_of_no_weight_is_never_drawn():
    params = torch.zeros(1, 9, 50, 50)
    params[:, 0], params[:, 2] = -math.inf, -math.inf
    params[:, 3:6] = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)
    params[:, 6:] = -7.0
    assert ((ops.logistic_mixture_sample(params, channels=1, seed=0) - 127.5).abs() < 4).all()


# --- streams --------------------------------------------------------------------------------------


@each_dtype
@each_count
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(3, 5, 7), (9, 1, 1), (1, 1, 3)], ids=str)
def test_against_the_reference(size, layout, channels, dtype, poison):
    case = mixture(size[0], channels, *size[1:], 4, dtype=dtype, log_scale=-1.0)
    options = dict(channels=channels, seed=-5, row0=2**40 + 3, step0=7)
    got = ops.logistic_mixture_sample(strided(case.params, layout), **options)
    assert got.dtype is torch.int64
    assert got.is_contiguous()
    assert torch.equal(got, reference.logistic_mixture_sample(case.params, **options))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_uniforms_are_those_of_philox(backend):
    """One term, so that the draw is the inverse distribution function of column 1 + c."""
    params = torch.zeros(3, 10, 2, 4, dtype=torch.float64)
    options = dict(channels=3, levels=65536, seed=11, row0=5, step0=100)
    with evidens.backend(backend):
        drawn = ops.logistic_mixture_sample(params, **options)
    for pixel in range(8):
        u = ops.philox_uniform(11, 100 + pixel, 3, 4, torch.float64, row_offset=5)[:, 1:]
        v = torch.log(u) - torch.log1p(-u)
        want = torch.floor((v + 1) * 65535 / 2 + 0.5).clamp(0, 65535)
        assert torch.equal(drawn.flatten(2)[:, :, pixel].double(), want)


def test_the_term_is_that_of_the_first_uniform():
    params = torch.zeros(64, 6, 1, 1, dtype=torch.float64)
    params[:, 0] = math.log(0.3)
    params[:, 1] = math.log(0.7)
    params[:, 2], params[:, 3], params[:, 4:] = -0.5, 0.5, -20.0
    drawn = ops.logistic_mixture_sample(params, channels=1, min_log_scale=-20.0, seed=2)
    u = ops.philox_uniform(2, 0, 64, 2, torch.float64)[:, 0]
    assert torch.equal(drawn.flatten() > 127, u >= 0.3)


@each_count
def test_a_row_does_not_depend_on_its_batch(channels):
    case = mixture(7, channels, 3, 5)
    whole = draw(case)
    for first, last in ((0, 1), (1, 4), (4, 7)):
        part = case.with_(params=case.params[first:last])
        assert torch.equal(draw(part, row0=first), whole[first:last])


@each_count
def test_pixel_by_pixel(channels):
    case = mixture(5, channels, 3, 4)
    whole = draw(case, step0=9)
    for i, (h, w) in enumerate(itertools.product(range(3), range(4))):
        pixel = case.with_(params=case.params[:, :, h, w, None, None])
        assert torch.equal(draw(pixel, step0=9 + i)[..., 0, 0], whole[:, :, h, w])


def test_seeds():
    case = mixture(2, 3, 6, 6)
    assert torch.equal(draw(case, seed=3), draw(case, seed=3 + 2**64))
    for other in (dict(seed=1), dict(row0=1), dict(step0=1), dict(seed=2**32)):
        assert (draw(case) != draw(case, **other)).any(), other


# --- what is no draw ------------------------------------------------------------------------------


@each_count
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nan_is_an_error(backend, channels):
    case = mixture(3, channels, 4, 5, 2)
    for plane in (0, 2, 4, case.params.shape[1] - 2):
        bad = case.params.clone()
        bad[1, plane : plane + 2, 2, 3] = (
            math.nan
        )  # of both terms: one that is not drawn is not seen
        with evidens.backend(backend), pytest.raises(ValueError, match=r"row 1, pixel \(2, 3\)"):
            draw(case.with_(params=bad))
        inner = torch.ops.evidens.logistic_mixture_sample(bad, channels, 256, -7.0, 0, 0, 0)
        hit = torch.zeros(3, 4, 5, dtype=torch.bool)
        hit[1, 2, 3] = True
        assert torch.equal((inner == -1).any(1), hit)
        assert torch.equal(inner.movedim(1, -1)[~hit], draw(case).movedim(1, -1)[~hit])


PARAMS = torch.zeros(2, 30, 4, 5)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (dict(channels=2), ValueError, "channels must be 1 or 3, got 2"),
        (dict(channels="RGB"), ValueError, "channels must be 1 or 3, got 'RGB'"),
        (dict(params=PARAMS[:, :29]), ValueError, r"P = 10 M planes for C = 3, got P = 29"),
        (dict(params=PARAMS[0]), ValueError, r"\(N, P, H, W\), got \(30, 4, 5\)"),
        (dict(params=PARAMS.long()), TypeError, "params must be float32 or float64"),
        (dict(seed=0.5), TypeError, "seed, row0 and step0 must be integers, got 0.5"),
        (dict(seed=None), TypeError, "got None"),
        (dict(row0=-1), ValueError, "row0 must not be negative.*got -1"),
        (dict(row0=2**63 - 1), ValueError, r"row0 \+ N at most 2\^63"),
        (dict(step0=-1), ValueError, "step0 must not be negative.*got -1"),
        (dict(step0=2**32 - 19), ValueError, r"step0 \+ H W at most 2\^32"),
        (dict(levels=0), ValueError, r"levels must be in 2 \.\. 65536"),
    ],
)
def test_bad_arguments(given, kind, message):
    arguments = dict(params=PARAMS, channels=3, seed=0) | given
    params = arguments.pop("params")
    with pytest.raises(kind, match=message) as error:
        ops.logistic_mixture_sample(params, **arguments)
    assert "evidens.logistic_mixture_sample" in str(error.value)


def test_the_last_steps_and_rows_are_taken():
    case = mixture(2, 3, 4, 5)
    options = dict(channels=3, seed=0, row0=2**63 - 2, step0=2**32 - 20)
    want = reference.logistic_mixture_sample(case.params, **options)
    assert torch.equal(ops.logistic_mixture_sample(case.params, **options), want)


def test_no_gradient_is_cut_silently():
    params = PARAMS.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="logistic_mixture_sample offers no gradient"):
        ops.logistic_mixture_sample(params, channels=3, seed=0)
    with torch.no_grad():
        ops.logistic_mixture_sample(params, channels=3, seed=0)
