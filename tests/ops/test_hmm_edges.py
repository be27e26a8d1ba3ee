"""The hmm ops at the edges: outliers, extreme scales, impossible frames, ties, and every error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.hmm_cases import (
    DTYPES,
    INF,
    PUBLIC,
    Case,
    answer,
    assert_within,
    check,
    check_filter,
    check_log_likelihood,
    check_sample_paths,
    check_viterbi,
    hmm,
    path_log_prob,
    paths_of,
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


def call(op, *args, **kwargs):
    if op == "hmm_sample_paths":
        kwargs.setdefault("seed", 0)
    return getattr(ops, op)(*args, **kwargs)


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


# --- impossible, unknown, empty -------------------------------------------------------------------


@pytest.mark.parametrize("frame", [0, 5, -1])
def test_impossible_frames(dtype, shape, frame):
    case = hmm(*shape, dtype)
    case.log_obs[-1, frame] = -INF
    want = check(case)
    assert want.log_likelihood[-1] == -INF
    both = ops.hmm_forward_backward(*case.tensors, pairwise=True)
    assert (both.posteriors[-1] == 0).all()
    assert (both.pairwise[-1] == 0).all()
    filtered = ops.hmm_filter(*case.tensors)
    position = frame % shape[1]
    assert (filtered.filtered[-1, position:] == 0).all()
    assert (filtered.filtered[-1, :position].sum(-1) > 0.99).all()
    # The sums are those of the other sequences.
    if shape[0] > 1:
        others = ops.hmm_forward_backward(*case.select(torch.arange(shape[0] - 1)).tensors)
        bound = 4 * relative_bound(case) * shape[0] * shape[1]
        assert_within(both.transitions, others.transitions, bound)
        assert_within(both.initial, others.initial, bound)


@pytest.mark.parametrize("what", ["initial", "transition", "state"])
def test_all_impossible(dtype, shape, what):
    case = hmm(*shape, dtype)
    if what == "initial":
        case.initial[:] = 0
    elif what == "transition":
        case.transition[:] = 0
    else:  # the only state that can begin cannot emit
        case.initial[1:] = 0
        case.log_obs[:, :, 0] = -INF
    want = check(case)
    assert (want.log_likelihood == -INF).all()
    both = ops.hmm_forward_backward(*case.tensors)
    assert (both.posteriors == 0).all()
    assert (both.transitions == 0).all()
    assert (ops.hmm_viterbi(*case.tensors).states == -1).all()


def test_state_that_nothing_reaches(dtype, shape):
    case = hmm(*shape, dtype)
    case.initial[1] = 0
    case.transition[:, 1] = 0
    case.log_obs[:, :, 1] = 50.0
    check(case)
    both = ops.hmm_forward_backward(*case.tensors)
    assert (both.posteriors[..., 1] == 0).all()
    assert (both.transitions[1] == 0).all()
    assert (ops.hmm_filter(*case.tensors).filtered[..., 1] == 0).all()
    assert (ops.hmm_viterbi(*case.tensors).states != 1).all()
    # 1e5 nats above the rest it hides them all, if it is let.
    case.log_obs[:, :, 1] = 1e5
    assert check(case).log_likelihood.isfinite().all()


def test_state_that_leads_nowhere(dtype, shape):
    case = hmm(*shape, dtype)
    case.transition[1] = 0
    check(case)
    assert (ops.hmm_forward_backward(*case.tensors).posteriors[:, :-1, 1] == 0).all()


def test_zeros_stay_zero(dtype, shape):
    case = hmm(*shape, dtype, zeros=0.3)
    both = ops.hmm_forward_backward(*case.tensors)
    assert (both.transitions[case.transition == 0] == 0).all()
    assert (both.initial[case.initial == 0] == 0).all()


@pytest.mark.parametrize("value", [math.nan, INF], ids=str)
@pytest.mark.parametrize("varying", [False, True])
def test_nan_stays_in_its_sequence(dtype, shape, value, varying):
    clean = hmm(*shape, dtype, varying=varying)
    case = clean.with_(log_obs=clean.log_obs.clone())
    bad, others = shape[0] // 2, torch.arange(shape[0]) != shape[0] // 2
    case.log_obs[bad, 5, 1] = value
    got = ops.hmm_log_likelihood(*case.tensors)
    want = ops.hmm_log_likelihood(*clean.tensors)
    assert got[bad].isnan()
    assert torch.equal(got[others], want[others])
    a, b = (ops.hmm_forward_backward(*c.tensors, pairwise=True) for c in (case, clean))
    assert a.log_likelihood[bad].isnan()
    for x, y in ((a.posteriors, b.posteriors), (a.pairwise, b.pairwise)):
        assert torch.equal(x[others], y[others])
        assert x[bad].isnan().all()
    assert a.transitions.isnan().any()  # never a number that leaves a sequence out
    weight = others.to(dtype)
    a, b = (ops.hmm_forward_backward(*c.tensors, weight=weight) for c in (case, clean))
    assert_within(a.transitions, b.transitions, 1e-3 if dtype is F32 else 1e-9)
    a, b = (ops.hmm_filter(*c.tensors) for c in (case, clean))
    assert a.log_likelihood[bad].isnan()
    assert a.filtered[bad, 5:].isnan().all()
    past = a.filtered[bad, :5]  # does not know
    assert_within(past, b.filtered[bad, :5], 1e-5 if dtype is F32 else 1e-13)
    assert torch.equal(a.filtered[others], b.filtered[others])
    a, b = (ops.hmm_viterbi(*c.tensors) for c in (case, clean))
    assert a.log_prob[bad].isnan()
    assert (a.states[bad] == -1).all()
    assert torch.equal(a.states[others], b.states[others])
    a, b = (ops.hmm_sample_paths(*c.tensors, n=2, seed=0) for c in (case, clean))
    assert (a[:, bad] == -1).all()
    assert torch.equal(a[:, others], b[:, others])


def test_nan_wins_over_impossible(dtype):
    case = hmm(2, 6, 3, dtype)
    case.log_obs[0, 2] = -INF
    case.log_obs[0, 4, 0] = math.nan
    assert ops.hmm_log_likelihood(*case.tensors)[0].isnan()
    assert ops.hmm_viterbi(*case.tensors).log_prob[0].isnan()


def test_nan_in_a_state_that_nothing_reaches(dtype):
    case = hmm(2, 6, 3, dtype)
    case.initial[1] = 0
    case.transition[:, 1] = 0
    case.log_obs[0, 2, 1] = math.nan
    got = ops.hmm_log_likelihood(*case.tensors)
    assert got[0].isnan()
    assert got[1].isfinite()


def test_nan_in_a_parameter_shows(dtype, shape):
    for name in ("initial", "transition"):
        case = hmm(*shape, dtype)
        getattr(case, name).view(-1)[0] = math.nan
        assert ops.hmm_log_likelihood(*case.tensors).isnan().all(), name


def test_nan_state_goes_on(dtype):
    case = hmm(3, 6, 3, dtype)
    case.log_obs[1, 2] = math.nan
    case.log_obs[2, 2] = -INF
    head = ops.hmm_filter(case.log_obs[:, :4], *case.tensors[1:])
    tail = ops.hmm_filter(case.log_obs[:, 4:], *case.tensors[1:], state=head.state)
    assert tail.log_likelihood[1].isnan()
    assert tail.filtered[1].isnan().all()
    assert tail.log_likelihood[2] == -INF
    assert (tail.filtered[2] == 0).all()
    assert tail.filtered[0].isfinite().all()


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_empty_sequences(dtype, layout):
    case = hmm(5, 4, 3, dtype).with_(lengths=torch.tensor([0, 4, 0, 1, 0]))
    case = case.with_(log_obs=torch.where(case.present[..., None], case.log_obs, math.nan))
    args, kwargs = getattr(case, layout)()
    check(case, (args, kwargs))
    got = ops.hmm_log_likelihood(*args, **kwargs)
    assert (got[[0, 2, 4]] == 0).all()
    assert (got[[1, 3]] != 0).all()
    both = ops.hmm_forward_backward(*args, **kwargs)
    assert both.initial.sum().item() == pytest.approx(2, rel=1e-5)
    assert both.transitions.sum().item() == pytest.approx(3, rel=1e-5)


def test_nothing_at_all(dtype):
    k = 3
    pi, a = torch.full((k,), 1 / k, dtype=dtype), torch.full((k, k), 1 / k, dtype=dtype)
    new = {"dtype": dtype}
    for x, kwargs, batch in (
        (torch.zeros(0, 5, k, **new), {}, 0),
        (torch.zeros(4, 0, k, **new), {}, 4),
        (torch.zeros(4, 5, k, **new), {"lengths": torch.zeros(4, dtype=torch.int64)}, 4),
        (torch.zeros(0, k, **new), {}, 1),
        (torch.zeros(0, k, **new), {"offsets": torch.zeros(4, dtype=torch.int64)}, 3),
        (torch.zeros(0, k, **new), {"offsets": torch.zeros(1, dtype=torch.int64)}, 0),
    ):
        frames = x.shape[:-1]
        assert torch.equal(ops.hmm_log_likelihood(x, pi, a, **kwargs), torch.zeros(batch, **new))
        for weight in (None, torch.ones(batch, **new)):
            both = ops.hmm_forward_backward(x, pi, a, **kwargs, weight=weight, pairwise=True)
            assert both.posteriors.shape == x.shape
            assert (both.posteriors == 0).all()
            assert (both.transitions == 0).all()
            assert (both.initial == 0).all()
            assert (both.pairwise == 0).all()
            assert both.pairwise.shape[-2:] == (k, k)
        path = ops.hmm_viterbi(x, pi, a, **kwargs)
        assert path.states.shape == frames
        assert (path.states == -1).all()
        assert torch.equal(path.log_prob, torch.zeros(batch, dtype=F64))
        drawn = ops.hmm_sample_paths(x, pi, a, **kwargs, n=2, seed=0)
        assert drawn.shape == (2, *frames)
        assert (drawn == -1).all()
        state = torch.rand(batch, k, **new)
        filtered = ops.hmm_filter(x, pi, a, **kwargs, state=state)
        assert torch.equal(filtered.state, state)
        assert (filtered.log_likelihood == 0).all()
        assert filtered.filtered.shape == x.shape


def test_one_frame(dtype):
    """No transition is used, so it may be anything that is there."""
    case = hmm(3, 1, 4, dtype)
    case.transition[:] = 0
    assert check(case).log_likelihood.isfinite().all()
    many = case.with_(transition=torch.zeros(3, 0, 4, 4, dtype=dtype))
    a, b = (ops.hmm_forward_backward(*c.tensors) for c in (case, many))
    assert_within(a.posteriors, b.posteriors, 1e-6 if dtype is F32 else 1e-15)


# --- ties -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_paths_tie(dtype, shape):
    """Last frame: the lowest state.  Before it: the highest, as in hmmlearn."""
    batch, time, k = shape
    case = Case(
        torch.zeros(batch, time, k, dtype=dtype),
        torch.full((k,), 1 / k, dtype=dtype),
        torch.full((k, k), 1 / k, dtype=dtype),
    )
    states = ops.hmm_viterbi(*case.tensors).states
    assert (states[:, :-1] == k - 1).all()
    assert (states[:, -1] == 0).all()


@settings(max_examples=80)
@given(
    batch=st.sampled_from([1, 3, 9]),
    time=st.integers(1, 5),
    k=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9999),
)
def test_ties(batch, time, k, dtype, seed):
    """Probabilities 0 or 1 and whole densities: every sum is exact, and many are equal."""
    g = torch.Generator().manual_seed(seed)

    def coins(*shape):
        return (torch.rand(*shape, generator=g) < 0.8).to(dtype)

    obs = -torch.randint(0, 3, (batch, time, k), generator=g).to(dtype)
    pi, a = coins(k), coins(k, k)
    got = ops.hmm_viterbi(obs, pi, a)
    paths = paths_of(k, time)
    for b in range(batch):
        scores = path_log_prob(obs[b], pi, a.expand(time - 1, k, k), paths)
        assert got.log_prob[b] == scores.max()
        if scores.max() == -INF:
            assert (got.states[b] == -1).all()
            continue
        best = paths[scores == scores.max()].tolist()
        want = min(best, key=lambda path: (path[-1], *(-s for s in reversed(path[:-1]))))
        assert got.states[b].tolist() == want


def test_paths_of_hmmlearn():
    """Random models have no ties: the same paths and scores as hmmlearn's C function."""
    hmmc = pytest.importorskip("hmmlearn._hmmc", reason="hmmlearn is the oracle here")
    for k in (1, 2, 5, 9, 33):
        case = hmm(4, 50, k, F64, seed=k)
        got = ops.hmm_viterbi(*case.tensors)
        for b in range(4):
            score, path = hmmc.viterbi(*(t.numpy() for t in (*case.tensors[1:], case.log_obs[b])))
            assert got.states[b].tolist() == path.tolist()
            assert got.log_prob[b].item() == pytest.approx(score, rel=1e-12)


# --- errors ---------------------------------------------------------------------------------------

I64 = torch.int64


def padded(**changes):
    return (
        dict(
            log_obs=torch.zeros(4, 5, 3), initial=torch.ones(3) / 3, transition=torch.ones(3, 3) / 3
        )
        | changes
    )


def packed(**changes):
    return padded(log_obs=torch.zeros(20, 3)) | changes


WRONG = {
    "one axis": (ValueError, padded(log_obs=torch.zeros(3)), r"\(B, T, K\).*\(N, K\).*got \(3,\)"),
    "four axes": (ValueError, padded(log_obs=torch.zeros(2, 4, 5, 3)), r"got \(2, 4, 5, 3\)"),
    "no state": (ValueError, padded(log_obs=torch.zeros(4, 5, 0)), r"at least one.*\(4, 5, 0\)"),
    "integer log_obs": (
        TypeError,
        padded(log_obs=torch.zeros(4, 5, 3, dtype=I64)),
        r"log_obs must be float32 or float64.*torch\.int64.*log_obs\.float\(\)",
    ),
    "complex log_obs": (TypeError, padded(log_obs=torch.zeros(4, 5, 3) * 1j), r"complex64"),
    "a NumPy array": (
        TypeError,
        padded(log_obs=np.zeros((4, 5, 3))),
        r"log_obs must be a torch.Tensor, got ndarray.*as_tensor\(log_obs\)",
    ),
    "a list": (TypeError, padded(initial=[0.5, 0.5]), r"initial must be a torch.Tensor, got list"),
    "nothing": (TypeError, padded(transition=None), r"transition must be.*got NoneType"),
    "initial of another K": (
        ValueError,
        padded(initial=torch.ones(4)),
        r"initial.*\(K,\) = \(3,\) or \(B, K\) = \(4, 3\).*\(4, 5, 3\), got \(4,\)",
    ),
    "initial of another B": (ValueError, padded(initial=torch.ones(5, 3)), r"got \(5, 3\)"),
    "initial of another B, packed": (
        ValueError,
        packed(initial=torch.ones(4, 3)),
        r"\(B, K\) = \(1, 3\).*got \(4, 3\)",
    ),
    "transition of another K": (
        ValueError,
        padded(transition=torch.ones(3, 4)),
        r"transition.*\(K, K\) = \(3, 3\) or \(B, T - 1, K, K\) = \(4, 4, 3, 3\).*got \(3, 4\)",
    ),
    "transition for every frame": (
        ValueError,
        padded(transition=torch.ones(4, 5, 3, 3)),
        r"\(4, 4, 3, 3\).*got \(4, 5, 3, 3\)",
    ),
    "varying transition in the other layout": (
        ValueError,
        padded(transition=torch.ones(16, 3, 3)),
        r"\(4, 4, 3, 3\).*got \(16, 3, 3\)",
    ),
    "varying transition, packed": (
        ValueError,
        packed(transition=torch.ones(20, 3, 3)),
        r"\(N - number of sequences that have frames, K, K\) = \(19, 3, 3\).*got \(20, 3, 3\)",
    ),
    "varying transition, packed with empty sequences": (
        ValueError,
        packed(transition=torch.ones(19, 3, 3), offsets=torch.tensor([0, 0, 7, 20, 20])),
        r"= \(18, 3, 3\).*got \(19, 3, 3\)",
    ),
    "mixed dtypes": (
        TypeError,
        padded(initial=torch.ones(3, dtype=F64)),
        r"one dtype.*log_obs is torch\.float32 on cpu, initial is torch\.float64.*\.to\(log_obs\)",
    ),
    "mixed dtypes of transition": (
        TypeError,
        padded(transition=torch.ones(3, 3, dtype=I64)),
        r"transition is torch\.int64",
    ),
    "mixed devices": (
        TypeError,
        padded(transition=torch.ones(3, 3, device="meta")),
        r"one device.*transition is torch\.float32 on meta",
    ),
    "lengths with packed": (
        ValueError,
        packed(lengths=torch.tensor([20])),
        r"lengths belong to a padded.*got a packed one \(20, 3\); pass offsets",
    ),
    "offsets with padded": (
        ValueError,
        padded(offsets=torch.tensor([0, 20])),
        r"offsets belong to a packed.*got a padded one \(4, 5, 3\); pass lengths",
    ),
    "lengths of another B": (
        ValueError,
        padded(lengths=torch.tensor([5, 5, 5])),
        r"lengths must have shape \(B,\) = \(4,\).*got \(3,\)",
    ),
    "lengths with two axes": (
        ValueError,
        padded(lengths=torch.ones(4, 1, dtype=I64)),
        r"lengths must have shape.*got \(4, 1\)",
    ),
    "lengths as a list": (
        TypeError,
        padded(lengths=[5, 5, 5, 5]),
        r"lengths must be an int64 tensor, got list.*as_tensor\(lengths\)",
    ),
    "lengths of another dtype": (
        TypeError,
        padded(lengths=torch.full((4,), 5, dtype=torch.int32)),
        r"lengths must be int64 on cpu, got torch\.int32",
    ),
    "lengths too long": (
        ValueError,
        padded(lengths=torch.tensor([5, 5, 6, 0])),
        r"lengths must lie in 0 \.\. T = 5, got values from 0 to 6",
    ),
    "negative lengths": (
        ValueError,
        padded(lengths=torch.tensor([5, -1, 5, 5])),
        r"lengths must lie in 0 \.\. T = 5, got values from -1 to 5",
    ),
    "offsets that stop early": (
        ValueError,
        packed(offsets=torch.tensor([0, 5, 19])),
        r"offsets must begin with 0, never fall and end with N = 20, got offsets from 0 to 19",
    ),
    "offsets that run over": (ValueError, packed(offsets=torch.tensor([0, 21])), r"from 0 to 21"),
    "offsets that begin late": (ValueError, packed(offsets=torch.tensor([1, 20])), r"from 1 to 20"),
    "offsets that fall": (
        ValueError,
        packed(offsets=torch.tensor([0, 9, 8, 20])),
        r"got offsets that fall",
    ),
    "no offsets": (
        ValueError,
        packed(offsets=torch.zeros(0, dtype=I64)),
        r"offsets must have shape \(B \+ 1,\) = at least one entry.*got \(0,\)",
    ),
    "offsets of floats": (
        TypeError,
        packed(offsets=torch.tensor([0.0, 20.0])),
        r"offsets must be int64 on cpu, got torch\.float32",
    ),
}


@pytest.mark.parametrize("op", PUBLIC)
@pytest.mark.parametrize("what", WRONG)
def test_errors(op, what):
    error, arguments, message = WRONG[what]
    with pytest.raises(error, match=rf"^evidens\.{op}: .*{message}"):
        call(op, **arguments)


@pytest.mark.parametrize(
    ("error", "weight", "message"),
    [
        (ValueError, torch.ones(5), r"weight must have shape \(B,\) = \(4,\).*got \(5,\)"),
        (ValueError, torch.ones(4, 1), r"weight.*got \(4, 1\)"),
        (TypeError, torch.ones(4, dtype=F64), r"weight is torch\.float64"),
        (TypeError, torch.ones(4, dtype=I64), r"weight is torch\.int64"),
        (TypeError, [1.0] * 4, r"weight must be a torch.Tensor, got list"),
    ],
)
def test_errors_of_weight(error, weight, message):
    with pytest.raises(error, match=rf"^evidens\.hmm_forward_backward: .*{message}"):
        ops.hmm_forward_backward(**padded(weight=weight))


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (
            ValueError,
            dict(lengths=torch.tensor([5, 0, 5, 5])),
            r"lengths must be at least 1 without a state.*pass state",
        ),
        (ValueError, dict(log_obs=torch.zeros(4, 0, 3)), r"at least 1 without a state"),
        (
            ValueError,
            dict(state=torch.ones(4, 3), transition=torch.ones(4, 4, 3, 3)),
            r"transition must be the shared \(K, K\) = \(3, 3\) one, got \(4, 4, 3, 3\)",
        ),
        (ValueError, dict(state=torch.ones(3)), r"state.*\(B, K\) = \(4, 3\).*got \(3,\)"),
        (ValueError, dict(state=torch.ones(5, 3)), r"state.*got \(5, 3\)"),
        (TypeError, dict(state=torch.ones(4, 3, dtype=F64)), r"state is torch\.float64"),
        (TypeError, dict(state=[0.0]), r"state must be a torch.Tensor, got list"),
    ],
)
def test_errors_of_state(error, changes, message):
    with pytest.raises(error, match=rf"^evidens\.hmm_filter: .*{message}"):
        ops.hmm_filter(**padded(**changes))


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (ValueError, dict(n=0, seed=0), r"n must be in 1 \.\. 2\^32, got 0"),
        (ValueError, dict(n=-3, seed=0), r"got -3"),
        (TypeError, dict(n=1.5, seed=0), r"integers, got float and int"),
        (TypeError, dict(n=1, seed=None), r"integers, got int and NoneType"),
    ],
)
def test_errors_of_draws(error, changes, message):
    with pytest.raises(error, match=rf"^evidens\.hmm_sample_paths: .*{message}"):
        ops.hmm_sample_paths(**padded(**changes))


def test_a_seed_is_demanded():
    with pytest.raises(TypeError, match="seed"):
        ops.hmm_sample_paths(**padded())


@pytest.mark.parametrize("what", ["too long", "negative", "before the first row", "steps"])
def test_inner_ops_refuse_sequences_outside_of_their_rows(what):
    """Wherever they come from, nothing reads or writes beyond a tensor."""
    x, pi, a = torch.zeros(20, 3), torch.ones(3), torch.ones(3, 3)
    starts, lengths, first = torch.tensor([0, 10]), torch.tensor([10, 10]), torch.tensor([0, 9])
    if what == "too long":
        lengths = torch.tensor([10, 11])
    elif what == "negative":
        lengths = torch.tensor([10, -1])
    elif what == "before the first row":
        starts = torch.tensor([-1, 10])
    else:
        a = torch.ones(17, 3, 3)
    for name, more in (
        ("hmm_log_likelihood", ()),
        ("hmm_forward_backward", (None, False)),
        ("hmm_filter", ()),
        ("hmm_viterbi", ()),
        ("hmm_sample_paths", (0, 1)),
    ):
        op = getattr(torch.ops.evidens, name)
        for scale in (1, 40):  # few sequences are checked in another way than many
            where = starts.repeat(scale), lengths.repeat(scale), first.repeat(scale)
            with pytest.raises(ValueError, match=rf"^evidens\.{name}: lengths must lie in 0"):
                op(x, pi, a, *where, *more)
