"""The hmm ops against the float64 reference: shapes, SIMD borders, layouts, invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.hmm_cases import (
    DTYPES,
    PUBLIC,
    answer,
    assert_within,
    check,
    hmm,
    path_bound,
    poison_padding,
    relative_bound,
    total_bound,
)

import evidens
from evidens import ops
from evidens.ops.hmm import state_posteriors

# Sequences may lie in lanes (2 to 16 of them), and so may states; time runs in blocks.
BATCHES = [(b, 17, 5) for b in (0, 1, 2, 3, 7, 8, 9, 16, 17, 33, 65)]
TIMES = [(3, t, 5) for t in (0, 1, 2, 3, 64)] + [(17, t, 4) for t in (1, 2, 33)]
STATES = [(3, 9, k) for k in (1, 2, 3, 4, 7, 8, 9, 13, 16, 17, 31, 33, 64)]
MIXED = [(33, 3, 17), (9, 64, 9), (2, 64, 64), (1, 129, 2), (65, 2, 3), (17, 5, 65)]
LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "other strides": lambda x: x.transpose(0, -1).clone().transpose(0, -1),
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every second row": lambda x: x.repeat_interleave(2, 0)[::2],
    "offset by one": lambda x: torch.cat((torch.full((1,), 7.0), x.flatten()))[1:].view_as(x),
    "part of a wider one": lambda x: torch.cat((x, x, x), -1)[..., x.shape[-1] : 2 * x.shape[-1]],
}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize("shape", [*BATCHES, *TIMES, *STATES, *MIXED], ids=str)
def test_values(dtype, shape):
    check(hmm(*shape, dtype, seed=sum(shape)))


@pytest.mark.parametrize("shape", [(1, 9, 5), (8, 17, 3), (33, 17, 5), (5, 33, 17)], ids=str)
@pytest.mark.parametrize("varying", [False, True])
def test_ragged(dtype, shape, varying):
    case = hmm(*shape, dtype, ragged=True, varying=varying, own_initial=True, seed=1)
    check(case)
    check(case, given=case.packed())
    # Without empty sequences hmm_filter takes part as well.
    case = poison_padding(case.with_(lengths=case.counts.clamp(min=1)))
    case = hmm(*shape, dtype, varying=varying, seed=1).with_(lengths=case.lengths)
    check(poison_padding(case))
    check(case, given=case.packed())


@pytest.mark.parametrize("shape", [(3, 17, 5), (9, 9, 8), (2, 33, 33), (17, 8, 2)], ids=str)
@pytest.mark.parametrize("varying", [False, True])
def test_zeros(dtype, shape, varying):
    """Zero probabilities, frames of -inf, and sequences that they make impossible."""
    possible = []
    for zeros in (0.1, 0.3, 0.6):
        case = hmm(*shape, dtype, zeros=zeros, varying=varying, seed=sum(shape))
        case.log_obs[-1, shape[1] // 2] = -math.inf
        possible.append(check(case).log_likelihood.isfinite())
    possible = torch.cat(possible)
    assert possible.any()
    assert not possible.all()


@pytest.mark.parametrize("varying", [False, True])
def test_packed_equals_padded(dtype, varying):
    case = hmm(9, 12, 5, dtype, ragged=True, varying=varying, own_initial=True)
    case = poison_padding(case.with_(lengths=case.counts.clamp(min=1)))
    (padded, one), (packed, other) = case.padded(), case.packed()
    weight = torch.randn(9).to(dtype)
    a = ops.hmm_forward_backward(*padded, **one, weight=weight, pairwise=True)
    b = ops.hmm_forward_backward(*packed, **other, weight=weight, pairwise=True)
    bound = 2 * relative_bound(case)
    assert_within(b.log_likelihood, a.log_likelihood, total_bound(case, answer(case)))
    assert_within(b.posteriors, a.posteriors[case.present], bound)
    assert_within(b.pairwise, a.pairwise[case.stepped], bound)
    assert_within(b.initial, a.initial, 9 * bound)
    assert_within(b.transitions, a.transitions, 108 * bound)
    states = ops.hmm_viterbi(*padded, **one).states
    assert torch.equal(ops.hmm_viterbi(*packed, **other).states, states[case.present])
    paths = ops.hmm_sample_paths(*padded, **one, n=4, seed=3)
    if dtype is torch.float64:
        same = ops.hmm_sample_paths(*packed, **other, n=4, seed=3)
        assert torch.equal(same, paths[:, case.present])


def test_one_packed_sequence_needs_no_offsets(dtype):
    case = hmm(1, 20, 4, dtype)
    flat = case.log_obs[0], case.initial, case.transition
    for op in PUBLIC:
        more = {"seed": 0} if op == "hmm_sample_paths" else {}
        got = getattr(ops, op)(*flat, **more)
        want = getattr(ops, op)(*case.tensors, **more)
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want))):
            assert (a is None and b is None) or torch.equal(a.flatten(), b.flatten())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("varying", [False, True])
def test_layouts(dtype, layout, varying):
    change = LAYOUTS[layout]
    case = hmm(5, 9, 7, dtype, varying=varying, own_initial=True)
    other = case.with_(
        log_obs=change(case.log_obs),
        initial=change(case.initial),
        transition=change(case.transition),
        lengths=torch.tensor([9, 4, 1, 9, 7]).repeat_interleave(2)[::2],
    )
    assert torch.equal(other.log_obs, case.log_obs)
    case = case.with_(lengths=torch.tensor([9, 4, 1, 9, 7]))
    weight = torch.rand(5, 2, dtype=dtype)[:, 1]
    check(case, given=other.padded(), weight=weight)
    args, kwargs = other.packed()
    kwargs["offsets"] = kwargs["offsets"].repeat_interleave(2)[::2]
    check(case, given=((change(args[0]), *args[1:]), kwargs), weight=weight)


def test_expanded(dtype):
    case = hmm(6, 9, 5, dtype)
    expanded = case.with_(
        log_obs=case.log_obs[:1].expand(6, 9, 5),
        initial=case.initial.expand(6, 5),
        transition=case.transition.expand(6, 8, 5, 5),
    )
    plain = expanded.with_(log_obs=expanded.log_obs.clone())
    check(plain, given=expanded.padded())
    column = case.with_(log_obs=case.log_obs[..., :1].expand(6, 9, 5))
    check(column)
    # One matrix for all steps is the shared one.
    shared, steps = (ops.hmm_forward_backward(*c.tensors) for c in (case, per_step(case)))
    for a, b in zip(shared[:4], steps[:4]):
        assert_within(b, a, 100 * relative_bound(case))


def per_step(case):
    batch, time, k = case.log_obs.shape
    return case.with_(transition=case.transition.expand(batch, time - 1, k, k))


def test_inputs_are_not_changed(dtype):
    case = hmm(5, 9, 4, dtype, ragged=True, varying=True, own_initial=True)
    case = poison_padding(case.with_(lengths=case.counts.clamp(min=1)))
    for args, kwargs in (case.padded(), case.packed()):
        given = [*args, *kwargs.values()]
        before = [t.clone() for t in given]
        for op in PUBLIC:
            more = {"seed": 0} if op == "hmm_sample_paths" else {}
            result = getattr(ops, op)(*args, **kwargs, **more)
            results = [t for t in (result if isinstance(result, tuple) else (result,))]
            addresses = [t.data_ptr() for t in (*results, *given) if t is not None]
            assert len(set(addresses)) == len(addresses), op
        for t, b in zip(given, before):
            assert torch.equal(t.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_widened(half):
    case = hmm(3, 9, 4, torch.float32).to(half)
    wide = case.to(torch.float32)
    check(wide, given=case.padded())
    check(wide, given=((case.log_obs, *wide.tensors[1:]), {}))
    for op in PUBLIC:
        more = {"seed": 0} if op == "hmm_sample_paths" else {}
        got, want = (getattr(ops, op)(*c.tensors, **more) for c in (case, wide))
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want))):
            assert (a is None and b is None) or (a.dtype is b.dtype and torch.equal(a, b))


@settings(max_examples=60)
@given(
    batch=st.integers(0, 20),
    time=st.integers(0, 12),
    k=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    ragged=st.booleans(),
    varying=st.booleans(),
    own_initial=st.booleans(),
    packed=st.booleans(),
    zeros=st.sampled_from([0.0, 0.2]),
    scale=st.sampled_from([0.0, 1e-3, 2.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_anything(batch, time, k, dtype, ragged, varying, own_initial, packed, zeros, scale, seed):
    case = hmm(
        batch,
        time,
        k,
        dtype,
        ragged=ragged,
        varying=varying,
        own_initial=own_initial,
        zeros=zeros,
        scale=scale,
        seed=seed,
    )
    check(case, given=case.packed() if packed else None)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("varying", [False, True])
def test_weight(dtype, varying):
    case = hmm(9, 8, 5, dtype, ragged=True, varying=varying)
    weight = torch.randn(9).to(dtype)
    weight[::3] = 0
    for given_ in (case.padded(), case.packed()):
        check(case, given_, weight)
        check(case, given_, weight.abs())
        check(case, given_, weight[:1].expand(9))
        check(case, given_, torch.zeros(9, dtype=dtype))


def test_weight_two_is_a_sequence_twice(dtype):
    case = hmm(9, 8, 5, dtype)
    weight = torch.ones(9, dtype=dtype)
    weight[:3] = 2
    a = ops.hmm_forward_backward(*case.tensors, weight=weight)
    twice = case.select(torch.tensor([*range(9), 0, 1, 2]))
    b = ops.hmm_forward_backward(*twice.tensors)
    assert_within(a.initial, b.initial, 12 * relative_bound(twice))
    assert_within(a.transitions, b.transitions, 84 * relative_bound(twice))
    # The frames of one sequence sum to 1, and its pairs too.
    assert_within(b.posteriors.sum(-1), torch.ones(12, 8), 10 * relative_bound(twice))
    assert b.transitions.sum().item() == pytest.approx(12 * 7, rel=10 * relative_bound(twice))


def test_weight_zero_contributes_nothing(dtype):
    for varying in (False, True):
        case = hmm(7, 6, 4, dtype, varying=varying)
        weight = torch.rand(7).to(dtype)
        weight[2] = weight[5] = 0
        clean = ops.hmm_forward_backward(*case.tensors, weight=weight)
        case.log_obs[2, 3] = math.nan
        case.log_obs[5, 1] = -math.inf
        got = ops.hmm_forward_backward(*case.tensors, weight=weight)
        for a, b in ((got.initial, clean.initial), (got.transitions, clean.transitions)):
            assert_within(a, b, 40 * relative_bound(case))


# --- invariants -----------------------------------------------------------------------------------


def everything(case, given_=None, n=3):
    args, kwargs = given_ or case.padded()
    both = ops.hmm_forward_backward(*args, **kwargs, pairwise=True)
    result = {
        "log_likelihood": ops.hmm_log_likelihood(*args, **kwargs),
        "total": both.log_likelihood,
        "posteriors": both.posteriors,
        "pairwise": both.pairwise,
        "log_prob": ops.hmm_viterbi(*args, **kwargs).log_prob,
        "states": ops.hmm_viterbi(*args, **kwargs).states,
    }
    if int(case.counts.min()) > 0:
        filtered = ops.hmm_filter(*args, **kwargs)
        result |= {"filtered": filtered.filtered, "state": filtered.state}
    return result


def assert_same(case, got, want):
    """But for rounding: the sequences may have been computed in other lanes."""
    total, path = total_bound(case, answer(case)), path_bound(case)
    for name, b in want.items():
        a = got[name]
        if name == "states":
            assert torch.equal(a, b)  # random models have no ties
        elif name == "log_likelihood":
            eps = torch.finfo(b.dtype).eps * b.abs().nan_to_num(0, 0, 0).double()
            assert_within(a, b, 2 * total + 2 * eps, name)
        elif name == "total":
            assert_within(a, b, 2 * total, name)
        else:
            assert_within(a, b, 2 * path if name == "log_prob" else 4 * relative_bound(case), name)


@pytest.mark.parametrize("varying", [False, True])
def test_order_of_sequences(dtype, varying):
    case = hmm(23, 9, 6, dtype, ragged=True, varying=varying, own_initial=True)
    order = torch.randperm(23)
    other = everything(case.select(order))
    want = {name: v[order] for name, v in everything(case).items()}
    assert_same(case.select(order), other, want)


def test_order_of_states(dtype):
    case = hmm(5, 9, 7, dtype)
    order = torch.randperm(7)
    other = case.with_(
        log_obs=case.log_obs[..., order],
        initial=case.initial[order],
        transition=case.transition[order][:, order],
    )
    got, want = everything(other), everything(case)
    back = order.argsort()
    for name in ("posteriors", "filtered", "state"):
        got[name] = got[name][..., back]
    got["pairwise"] = got["pairwise"][..., back, :][..., back]
    got["states"] = order[got["states"]]
    assert_same(case, got, want)


@pytest.mark.parametrize("varying", [False, True])
def test_padding(dtype, varying):
    case = hmm(9, 8, 5, dtype, ragged=True, varying=varying)
    want = everything(case)
    batch, time, k = case.log_obs.shape
    wider = torch.full((batch, time + 7, k), math.nan, dtype=dtype)
    wider[:, :time] = case.log_obs
    transition = case.transition
    if varying:
        transition = torch.full((batch, time + 6, k, k), math.nan, dtype=dtype)
        transition[:, : time - 1] = case.transition
    other = case.with_(log_obs=wider, transition=transition, lengths=case.counts)
    got = everything(other)
    for name in ("posteriors", "states", "filtered"):
        if name in got:
            fill = -1 if name == "states" else 0
            assert (got[name][:, time:] == fill).all()
            got[name] = got[name][:, :time]
    assert (got["pairwise"][:, time - 1 :] == 0).all()
    got["pairwise"] = got["pairwise"][:, : time - 1]
    assert_same(case, got, want)


def test_batch(dtype):
    """A sequence has the same answer alone."""
    case = hmm(11, 9, 5, dtype, ragged=True)
    case = poison_padding(case.with_(lengths=case.counts.clamp(min=1)))
    want = everything(case)
    paths = ops.hmm_sample_paths(*case.padded()[0], lengths=case.lengths, n=3, seed=9)
    for b in range(11):
        alone = case.select(torch.tensor([b]))
        assert_same(alone, everything(alone), {name: v[b : b + 1] for name, v in want.items()})
    # The draws of the first sequences do not depend on how many follow.
    few = case.select(torch.arange(4))
    drawn = ops.hmm_sample_paths(*few.padded()[0], lengths=few.lengths, n=3, seed=9)
    if dtype is torch.float64:
        assert torch.equal(drawn, paths[:, :4])
    else:
        assert (drawn != paths[:, :4]).double().mean() < 0.02


def test_splitting_time_at_a_known_state(dtype):
    """The log-likelihood adds up over two halves where a frame pins the state between them."""
    case = hmm(3, 20, 4, dtype)
    case.log_obs[:, 9] = -math.inf
    case.log_obs[:, 9, 2] = 0.5
    head = case.with_(log_obs=case.log_obs[:, :10])
    tail = case.with_(log_obs=case.log_obs[:, 10:], initial=case.transition[2].clone())
    whole, a, b = (ops.hmm_log_likelihood(*c.tensors) for c in (case, head, tail))
    eps = torch.finfo(dtype).eps
    assert_within(a + b, whole, 4 * relative_bound(case) + 4 * eps * whole.abs().double())


def test_number_of_threads(dtype):
    before = torch.get_num_threads()
    cases = [
        hmm(33, 40, 9, dtype, ragged=True, seed=1),
        hmm(2, 300, 33, dtype),
        hmm(70, 9, 3, dtype),
        hmm(2, 5000, 5, dtype),
    ]
    cases.append(hmm(9, 40, 5, dtype, varying=True))
    try:
        torch.set_num_threads(1)
        want = [bits(case) for case in cases]
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for case, expected in zip(cases, want):
                for a, b in zip(bits(case), expected):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def bits(case):
    """All results, the sums over sequences and the gradients among them."""
    args, kwargs = case.padded()
    leaves = [t.clone().requires_grad_() for t in args]
    y = ops.hmm_log_likelihood(*leaves, **kwargs)
    results = [*torch.autograd.grad(y, leaves, torch.linspace(-1, 1, len(y)).to(y)), y.detach()]
    both = ops.hmm_forward_backward(*args, **kwargs)
    results += [*both[:4], *ops.hmm_viterbi(*args, **kwargs), *everything(case).values()]
    return [*results, ops.hmm_sample_paths(*args, **kwargs, n=2, seed=1)]


# --- streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[1], [8], [3, 4, 12], [5, 5, 10]], ids=str)
def test_filter_in_chunks(dtype, cuts):
    """An empty chunk in the middle changes nothing."""
    case = hmm(9, 17, 6, dtype, zeros=0.1, own_initial=True)
    case.log_obs[4, 6] = -math.inf
    whole = ops.hmm_filter(*case.tensors)
    assert whole.log_likelihood.isfinite().any()
    assert not whole.log_likelihood.isfinite().all()
    state, total, pieces = None, torch.zeros(9, dtype=torch.float64), []
    for start, end in zip([0, *cuts], [*cuts, 17]):
        part = ops.hmm_filter(case.log_obs[:, start:end], *case.tensors[1:], state=state)
        state, total = part.state, total + part.log_likelihood
        pieces.append(part.filtered)
    bound = 2 * relative_bound(case)
    assert_within(torch.cat(pieces, 1), whole.filtered, bound)
    assert_within(state, whole.state, bound)
    assert_within(total, whole.log_likelihood, 2 * total_bound(case, answer(case)))


def test_ragged_filter_in_chunks(dtype):
    """Sequences of all lengths, some of which have ended when a chunk comes."""
    case = hmm(8, 20, 5, dtype)
    case = case.with_(lengths=torch.tensor([20, 1, 7, 8, 9, 13, 14, 20]))
    whole = ops.hmm_filter(*case.tensors, lengths=case.lengths)
    state, total, pieces = None, torch.zeros(8, dtype=torch.float64), []
    for start, end in ((0, 7), (7, 14), (14, 20)):
        lengths = (case.lengths - start).clamp(0, end - start)
        part = ops.hmm_filter(
            case.log_obs[:, start:end], *case.tensors[1:], lengths=lengths, state=state
        )
        if state is not None:
            assert torch.equal(part.state[lengths == 0], state[lengths == 0])
            assert (part.log_likelihood[lengths == 0] == 0).all()
        state, total = part.state, total + part.log_likelihood
        pieces.append(part.filtered)
    bound = 2 * relative_bound(case)
    assert_within(torch.cat(pieces, 1), whole.filtered, bound)
    assert_within(state, whole.state, bound)
    assert_within(total, whole.log_likelihood, 2 * total_bound(case, answer(case)))
    # Packed chunks go on where padded ones ended.
    chunk = case.log_obs[:, :3]
    want = ops.hmm_filter(chunk, *case.tensors[1:], state=state)
    got = ops.hmm_filter(
        chunk.flatten(0, 1), *case.tensors[1:], offsets=torch.arange(0, 25, 3), state=state
    )
    assert_within(got.filtered.view_as(chunk), want.filtered, bound)
    assert_within(got.state, want.state, bound)


# --- backends -------------------------------------------------------------------------------------


def test_backends_agree(dtype):
    case = hmm(5, 9, 4, dtype, zeros=0.1)
    with evidens.backend("reference"):
        check(case)
    with evidens.backend("cpu"):
        check(case)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_posteriors_without_sums_are_the_same(dtype, backend, varying):
    """Lanes of sequences and of states; frames that linear space loses; both layouts."""
    for batch, time, k in ((20, 9, 5), (2, 9, 17), (20, 60, 5)):
        case = hmm(batch, time, k, dtype, ragged=True, varying=varying, scale=50.0, zeros=0.3)
        for args, kwargs in (case.padded(), case.packed()):
            with evidens.backend(backend):
                want = ops.hmm_forward_backward(*args, **kwargs)
                total, posteriors = state_posteriors(*args, **kwargs)
            torch.testing.assert_close(total, want.log_likelihood, rtol=1e-12, atol=0)
            assert_within(posteriors, want.posteriors, 2 * relative_bound(case))
