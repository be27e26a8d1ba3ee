"""The hmm ops far from one: outliers, long sequences, huge offsets, tiny probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.hmm_cases import (
    DTYPES,
    INF,
    Case,
    answer,
    assert_within,
    check,
    check_filter,
    check_log_likelihood,
    check_sample_paths,
    check_viterbi,
    hmm,
    relative_bound,
)

from evidens import ops

F32, F64 = DTYPES


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


# B, T, K: lanes of sequences, lanes of states, one sequence alone.
SHAPES = [(1, 12, 3), (9, 12, 4), (2, 12, 17), (17, 9, 33)]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


# --- outliers -------------------------------------------------------------------------------------


def test_one_frame_far_from_every_state(dtype, shape):
    """hmmlearn's scaling raises here: exp(-1e6) is 0 for all states."""
    case = hmm(*shape, dtype)
    case.log_obs[:, 5] = -1e6 + torch.arange(shape[2]).to(dtype) % 3
    case.log_obs[0, 0] = -1e6
    case.log_obs[-1, -1] = -1e6
    assert check(case).log_likelihood.isfinite().all()


def test_states_that_take_turns(dtype, shape):
    """From frame to frame another state is better by 1e5 nats; the densities decide alone."""
    case = hmm(*shape, dtype)
    _, time, k = shape
    case.log_obs[:] = -1e5
    best = torch.arange(time) * 2 % k
    case.log_obs[:, torch.arange(time), best] = 0.0
    want = check(case)
    assert (ops.hmm_viterbi(*case.tensors).states == best).all()
    a = case.transition.double()
    exact = case.initial.double()[best[0]].log() + a[best[:-1], best[1:]].log().sum()
    torch.testing.assert_close(want.log_likelihood, exact.expand(shape[0]))


@pytest.mark.parametrize("depth", [50.0, 100.0, 800.0, 1e4], ids=str)
@pytest.mark.parametrize("varying", [False, True])
def test_only_a_path_far_below_the_others_survives(dtype, shape, depth, varying):
    """Left to right: staying looks better by `depth` nats a frame, but does not arrive in time.

    The last state alone can emit the last frame.  In linear space its predecessors underflow
    frames before; the answer is exact all the same.
    """
    case = left_right(shape, dtype, depth)
    if varying:
        batch, time, k = shape
        case = case.with_(transition=case.transition.expand(batch, time - 1, k, k).clone())
    assert check(case).log_likelihood.isfinite().all()
    drawn = ops.hmm_sample_paths(*case.tensors, n=3, seed=0)
    assert (drawn[:, :, -1] == shape[2] - 1).all()
    assert (drawn.diff(dim=-1) >= 0).all()


def left_right(shape, dtype, depth) -> Case:
    _batch, time, k = shape
    case = hmm(*shape, dtype)
    reach = max(1, -(-(k - 1) // (time - 1)))  # enough to arrive, with a frame or two to spare
    jump = torch.ones(k, k).triu() - torch.ones(k, k).triu(reach + 1)
    case.transition[:] = jump / jump.sum(1, keepdim=True)
    case.initial[:] = torch.eye(k)[0].to(dtype)
    case.log_obs[:, :, 0] += depth  # the first state explains every frame
    case.log_obs[:, -1, :-1] = -INF
    return case


def test_the_better_path_dies_out(dtype):
    """Two chains that never meet: one better by 3e4 nats on the way, and impossible at the end."""
    case = hmm(5, 30, 4, dtype)
    block = torch.tensor([[0.5, 0.5, 0, 0], [0.3, 0.7, 0, 0], [0, 0, 0.6, 0.4], [0, 0, 0.2, 0.8]])
    case.transition[:] = block.to(dtype)
    case.log_obs[:, :-1, :2] += 1e3
    case.log_obs[:, -1, :2] = -INF
    check(case)
    alone = case.with_(
        log_obs=case.log_obs[..., 2:],
        initial=case.initial[2:],
        transition=case.transition[2:, 2:],
    )
    got, want = (ops.hmm_forward_backward(*c.tensors) for c in (case, alone))
    torch.testing.assert_close(got.log_likelihood, want.log_likelihood, rtol=1e-6, atol=1e-4)
    assert (got.posteriors[..., :2] == 0).all()
    assert_within(got.posteriors[..., 2:], want.posteriors, 1e-4 if dtype is F32 else 1e-9)


def test_the_better_path_dies_out_slowly(dtype):
    """The same without -inf: what looked hopeless is made up for, state by state, later."""
    case = hmm(5, 40, 4, dtype)
    block = torch.tensor([[0.5, 0.5, 0, 0], [0.3, 0.7, 0, 0], [0, 0, 0.6, 0.4], [0, 0, 0.2, 0.8]])
    case.transition[:] = block.to(dtype)
    case.log_obs[:, :20, :2] += 64
    case.log_obs[:, 20:, 2:] += 64
    want = check(case)
    shares = want.posteriors[..., :2].sum(-1)
    assert ((shares > 1e-6) & (shares < 1 - 1e-6)).any()  # both chains matter in the end


def test_a_bridge_of_small_probabilities(dtype):
    """Transitions of 1e-30 in a row: the product is far below the smallest number."""
    case = hmm(3, 9, 5, dtype)
    a = torch.full((5, 5), 0.0, dtype=dtype)
    for i in range(5):
        a[i, i], a[i, min(i + 1, 4)] = 1.0, 1e-30
    a[4, 4] = 1.0
    case = case.with_(transition=a, initial=torch.eye(5, dtype=dtype)[0])
    case.log_obs[:, -1, :-1] = -INF
    assert (check(case).log_likelihood < -250).all()


@settings(max_examples=40)
@given(
    batch=st.sampled_from([1, 2, 9]),
    time=st.integers(2, 12),
    k=st.integers(2, 6),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([30.0, 100.0, 1e3, 1e5]),
    zeros=st.sampled_from([0.0, 0.3, 0.6]),
    varying=st.booleans(),
    seed=st.integers(0, 999),
)
def test_wild_frames(batch, time, k, dtype, scale, zeros, varying, seed):
    """Log-densities of any size, with zeros: exact in the log-likelihood and the best path."""
    case = hmm(batch, time, k, dtype, scale=scale, zeros=zeros, varying=varying, seed=seed)
    check(case)


# --- scales ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1e8, -1e8, 1e30, -1e30], ids=str)
def test_huge_offsets(dtype, shape, offset):
    if dtype is F32 and abs(offset) > 1e8:
        offset = math.copysign(3e38, offset)
    case = hmm(*shape, dtype)
    case = case.with_(log_obs=case.log_obs + offset)
    # What is left of the differences is in the input; no more may be lost.
    if dtype is F32 and abs(offset) > 1e8:
        # 12 frames of 3e38 nats are beyond float32, and within float64.
        got = ops.hmm_forward_backward(*case.tensors)
        want = answer(case)
        torch.testing.assert_close(got.log_likelihood, want.log_likelihood)
        assert_within(got.posteriors, want.posteriors, 1e-4)
        assert (ops.hmm_log_likelihood(*case.tensors) == math.copysign(INF, offset)).all()
        return
    check(case)


def test_offsets_of_each_frame(dtype):
    """A constant added to a frame adds itself to the log-likelihood and changes nothing else."""
    case = hmm(5, 9, 4, dtype)
    case = case.with_(log_obs=(8 * case.log_obs).round() / 8)
    offset = 64.0 * torch.randint(-200, 200, (5, 9, 1))
    other = case.with_(log_obs=case.log_obs + offset.to(dtype))  # exact
    a, b = (ops.hmm_forward_backward(*c.tensors) for c in (case, other))
    torch.testing.assert_close(
        b.log_likelihood, a.log_likelihood + offset.double().sum((1, 2)), rtol=1e-12, atol=1e-4
    )
    assert_within(b.posteriors, a.posteriors, 2 * relative_bound(case))


def test_tiny_differences(dtype):
    case = hmm(5, 9, 4, dtype, scale=1e-30)
    check(case)
    check(case.with_(log_obs=torch.zeros_like(case.log_obs)))


@pytest.mark.parametrize("k", [2, 3, 8])
def test_long_sequence_in_float32(k):
    case = hmm(1, 20_000, k, F32, seed=5)
    got = ops.hmm_log_likelihood(*case.tensors).double()
    wide = ops.hmm_log_likelihood(*case.to(F64).tensors)
    assert abs(got - wide) <= 1e-6 * abs(wide)
    totals = [
        ops.hmm_forward_backward(*case.tensors).log_likelihood,
        ops.hmm_filter(*case.tensors).log_likelihood,
    ]
    for total in totals:
        assert abs(total - wide) <= 1e-6 * abs(wide)
    # A part of it from the reference, which is slow: no drift over time.
    if k == 3:
        head = case.with_(log_obs=case.log_obs[:, :2000])
        want = answer(head)
        assert abs(ops.hmm_log_likelihood(*head.tensors) - want.log_likelihood) <= 1e-6 * abs(
            want.log_likelihood
        )
        got = ops.hmm_forward_backward(*head.tensors)
        assert_within(got.posteriors, want.posteriors, 1e-4)
        assert_within(got.posteriors.sum(-1), torch.ones(1, 2000), 1e-5)
        assert got.transitions.sum().item() == pytest.approx(1999, rel=1e-5)


def test_long_sequence_in_float64():
    case = hmm(1, 2000, 3, F64, seed=5)
    check(case)


@pytest.mark.parametrize("small", ["normal", "subnormal"])
def test_subnormal_probabilities(dtype, shape, small):
    tiny = torch.finfo(dtype).tiny
    case = hmm(*shape, dtype)
    k = shape[2]
    # The only way on is the small entry.  A count of 1e4 over it must be within double.
    value = 1e4 * tiny if small == "normal" else 0.4 * tiny
    case.transition[:] = torch.eye(k).roll(1, 1).to(dtype) * value
    case.initial[:] = value
    want = answer(case)
    assert want.log_likelihood.isfinite().all()
    if dtype is F32 or small == "normal":
        check(case)
    check_log_likelihood(case, want)
    check_filter(case, want)
    check_viterbi(case, want)
    check_sample_paths(case)


def test_smallest_numbers(dtype):
    """One bit: the likelihood is right; a derivative may saturate, but is no NaN."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    case = hmm(3, 6, 3, dtype)
    case.transition[:] = torch.eye(3).roll(1, 1).to(dtype) * smallest
    case.initial[:] = smallest
    assert (case.transition > 0).any()
    want = answer(case)
    got = ops.hmm_log_likelihood(*case.tensors)
    torch.testing.assert_close(got.double(), want.log_likelihood, rtol=1e-6, atol=0)
    got = ops.hmm_forward_backward(*case.tensors, pairwise=True)
    assert_within(got.posteriors, want.posteriors, 1e-5)
    for t in got:
        assert not t.isnan().any()
        assert not t.isinf().any()
    leaves = [t.clone().requires_grad_() for t in case.tensors]
    for g in torch.autograd.grad(ops.hmm_log_likelihood(*leaves).sum(), leaves):
        assert not g.isnan().any()


@pytest.mark.parametrize("factor", [1e-30, 1e30, 1e-3, 7.0], ids=str)
def test_unnormalised_potentials(dtype, shape, factor):
    """Rows that sum to anything: the log-likelihood follows, the posteriors do not change."""
    case = hmm(*shape, dtype)
    other = case.with_(initial=case.initial / factor, transition=case.transition * factor)
    check(other)
    a, b = (ops.hmm_forward_backward(*c.tensors) for c in (case, other))
    assert_within(b.posteriors, a.posteriors, 4 * relative_bound(case))


def test_more_messages_than_the_cache_holds(dtype):
    """Forward messages come from the result then, and observations are made again."""
    check(hmm(40, 500, 12, dtype, ragged=True))
