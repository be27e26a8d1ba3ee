"""The hmm ops at the edges: impossible frames, NaN, no frames, and ties."""

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
    assert_within,
    check,
    hmm,
    path_log_prob,
    paths_of,
    relative_bound,
)

import evidens
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


# --- beyond linear space --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e4, 1e8, 1e12, 1e16, 1e30])
@pytest.mark.parametrize("apart", [40.0, 1e4])
def test_far_frames_cost_the_others_nothing(dtype, size, apart):
    """Log space keeps what differs between states, however small beside what they share.

    From left to right with a tiny step, and two frames of huge density or none: linear space loses
    the sequence.  The same frames less what all states share have the same posteriors.
    """
    g = torch.Generator().manual_seed(3)
    time, k = 40, 3
    log_obs = torch.randn(2, time, k, generator=g).to(dtype)
    log_obs[:, 10] = torch.tensor([0.0, -apart, -2 * apart], dtype=dtype)
    log_obs[:, 20] = torch.tensor([-2 * apart, -apart, 0.0], dtype=dtype)
    far = log_obs.clone()
    far[:, 10] = (far[:, 10].double() - size).to(dtype)
    far[:, 30] = (far[:, 30].double() + 3 * size).to(dtype)
    near = far.double()
    shared = near.amax(-1, keepdim=True)
    near = near - shared
    initial = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    a = torch.tensor([[0.9, 0.1, 0], [0, 1 - 1e-30, 1e-30], [0, 0, 1]], dtype=dtype)
    got = ops.hmm_forward_backward(far, initial, a)
    with evidens.backend("reference"):
        want = ops.hmm_forward_backward(near, initial.double(), a.double())
    # Logarithms as large as states are apart have errors of so many last places, in double.
    bound = 9 * torch.finfo(dtype).eps + 4 * torch.finfo(F64).eps * apart
    for name in ("posteriors", "initial", "transitions"):
        found, expected = getattr(got, name).double(), getattr(want, name)
        torch.testing.assert_close(found, expected, rtol=bound, atol=time * bound)
    total = want.log_likelihood + shared.sum((1, 2))
    torch.testing.assert_close(got.log_likelihood, total, rtol=1e-12, atol=1e-9)
    paths = ops.hmm_sample_paths(far, initial, a, n=50, seed=0)
    often = torch.stack([(paths == i).double().mean(0) for i in range(k)], -1)
    sure = want.posteriors > 1 - 1e-6
    assert (often[sure] == 1).all()


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


def test_nan_where_others_have_ended(dtype):
    clean = hmm(20, 12, 4, dtype).with_(lengths=torch.tensor([12] + [5] * 19))
    case = clean.with_(log_obs=clean.log_obs.clone())
    case.log_obs[0, 9, 1] = math.nan
    where = {"lengths": clean.lengths}
    got, want = (ops.hmm_log_likelihood(*c.tensors, **where) for c in (case, clean))
    assert torch.equal(got[1:], want[1:])
    assert got[0].isnan()
    a, b = (ops.hmm_viterbi(*c.tensors, **where) for c in (case, clean))
    assert torch.equal(a.log_prob[1:], b.log_prob[1:])
    assert torch.equal(a.states[1:], b.states[1:])
    assert a.log_prob[0].isnan()


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
