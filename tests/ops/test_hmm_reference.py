"""The hmm reference, the oracle of the others, against the sum over all K^T paths and hmmlearn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.hmm_cases import DTYPES, INF, Case, hmm, one_thread, path_log_prob, paths_of
from scipy.stats import chi2

from evidens.reference import hmm as reference

SHAPES = [(2, 1, 1), (2, 1, 3), (2, 4, 1), (3, 2, 2), (3, 5, 2), (3, 4, 3), (2, 3, 4), (2, 6, 3)]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def special(name: str, dtype: torch.dtype, shape=(3, 4, 3)) -> Case:
    _batch, _time, k = shape
    case = hmm(*shape, dtype, seed=11)
    if name == "varying":
        return hmm(*shape, dtype, varying=True, ragged=True, seed=3)
    if name == "ragged":
        return hmm(*shape, dtype, ragged=True, own_initial=True, seed=2)
    if name == "zeros":
        return hmm(*shape, dtype, zeros=0.4, seed=8)
    if name == "zeros, varying":
        return hmm(*shape, dtype, zeros=0.3, varying=True, own_initial=True, seed=4)
    if name == "left-right":
        upper = torch.ones(k, k, dtype=dtype).triu()
        start = torch.eye(k, dtype=dtype)[0]
        return case.with_(transition=upper / upper.sum(1, keepdim=True), initial=start)
    if name == "frames of -inf":
        case.log_obs[0, 1, :-1] = -INF
        case.log_obs[-1, :, 0] = -INF
        case.log_obs[-1, 0, 2:] = -INF
    if name == "impossible":
        case.log_obs[0, 2] = -INF
        case.log_obs[-1, 0] = -INF
    if name == "impossible start":
        case.initial[:] = 0
    if name == "no transition":
        case.transition[:] = 0
    if name == "unreachable state":
        case.transition[:, 1] = 0
        case.initial[1] = 0
    if name == "unnormalised":
        case = case.with_(initial=case.initial * 7, transition=case.transition * 1e-3)
    return case


SPECIAL = (
    "varying",
    "ragged",
    "zeros",
    "zeros, varying",
    "left-right",
    "frames of -inf",
    "impossible",
    "impossible start",
    "no transition",
    "unreachable state",
    "unnormalised",
)


def cases():
    for dtype in DTYPES:
        for shape in SHAPES:
            yield pytest.param(hmm(*shape, dtype, own_initial=True), id=f"{shape} {dtype}")
        for name in SPECIAL:
            yield pytest.param(special(name, dtype), id=f"{name} {dtype}")


@pytest.fixture(params=cases())
def case(request) -> Case:
    return request.param


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Few terms, all computed in float64; a float32 result is rounded once, by half an eps.
    eps = torch.finfo(actual.dtype).eps
    rtol = 1e-12 if actual.dtype is torch.float64 else eps
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=1e-13)


class Enumerated:
    """Every answer for one sequence, from the log-densities of all its paths."""

    def __init__(self, obs, pi, a):
        self.obs, self.pi, self.a = obs, pi, a
        (self.length, self.k) = obs.shape
        self.paths = paths_of(self.k, self.length)
        self.log_prob = path_log_prob(obs, pi, a, self.paths)
        self.total = torch.logsumexp(self.log_prob, 0)
        possible = self.total > -INF
        self.weight = (self.log_prob - self.total).exp() if possible else 0 * self.log_prob.exp()

    def posteriors(self) -> torch.Tensor:
        one_hot = torch.nn.functional.one_hot(self.paths, self.k).double()
        return torch.einsum("p,ptk->tk", self.weight, one_hot)

    def pairs(self) -> torch.Tensor:
        one_hot = torch.nn.functional.one_hot(self.paths, self.k).double()
        return torch.einsum("p,pti,ptj->tij", self.weight, one_hot[:, :-1], one_hot[:, 1:])

    def filtered(self) -> torch.Tensor:
        """Last frame's posterior of each beginning of the sequence."""
        heads = [Enumerated(self.obs[: t + 1], self.pi, self.a[:t]) for t in range(self.length)]
        return torch.stack([head.posteriors()[-1] for head in heads])

    def derivatives(self) -> tuple[torch.Tensor, torch.Tensor]:
        """In pi (K,) and in every A (L - 1, K, K): products without the factor, so no division."""
        if self.total == -INF:
            return torch.zeros(self.k).double(), torch.zeros(self.a.shape).double()
        factors = [self.pi.double()[self.paths[:, :1]]]
        factors += [
            self.a.double()[t, self.paths[:, t], self.paths[:, t + 1]][:, None]
            for t in range(self.length - 1)
        ]
        factors = torch.cat(factors, 1)
        density = self.obs.double().gather(1, self.paths.T).sum(0)
        first = torch.zeros(self.k).double()
        second = torch.zeros(self.a.shape).double()
        for t in range(self.length):
            others = factors[:, [s for s in range(self.length) if s != t]].log().sum(1)
            value = (others + density - self.total).exp()
            if t == 0:
                first.index_add_(0, self.paths[:, 0], value)
            else:
                index = self.paths[:, t - 1] * self.k + self.paths[:, t]
                second[t - 1].view(-1).index_add_(0, index, value)
        return first, second

    def best_paths(self) -> torch.Tensor:
        """All paths within rounding of the best."""
        return self.paths[self.log_prob >= self.log_prob.max() - 1e-12]


def enumerated(case: Case) -> list[Enumerated]:
    return [Enumerated(*case.sequence(b)) for b in range(case.log_obs.shape[0])]


def per_step(case: Case) -> Case:
    """The same model with one matrix per step."""
    batch, time, k = case.log_obs.shape
    return case.with_(transition=case.transition.expand(batch, time - 1, k, k))


def test_log_likelihood(case):
    total = torch.stack([e.total for e in enumerated(case)])
    close(reference.hmm_log_likelihood(*case.inner()), total)
    for function in (reference.hmm_filter, reference.hmm_forward_backward):
        more = (None, False) if function is reference.hmm_forward_backward else ()
        close(function(*case.inner(), *more)[0], total)


def test_filter(case):
    _batch, _time, _ = case.log_obs.shape
    filtered = reference.hmm_filter(*case.inner())[1].reshape(case.log_obs.shape)
    for b, e in enumerate(enumerated(case)):
        if e.length:
            close(filtered[b, : e.length], e.filtered())
        assert (filtered[b, e.length :] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_posteriors(case, weighted):
    batch, time, k = case.log_obs.shape
    dtype = case.log_obs.dtype
    weight = torch.linspace(-1, 2, batch, dtype=dtype) if weighted else None
    w = torch.ones(batch).double() if weight is None else weight.double()
    _, posteriors, first, second = reference.hmm_forward_backward(*case.inner(), weight, False)
    steps = per_step(case)
    _, again, first_again, each = reference.hmm_forward_backward(*steps.inner(), weight, True)
    assert torch.equal(posteriors, again)
    assert torch.equal(first, first_again)
    each = each.reshape(batch, time - 1, k, k)
    posteriors = posteriors.reshape(batch, time, k)
    summed = torch.zeros(k, k).double()
    for b, e in enumerate(enumerated(case)):
        assert (posteriors[b, e.length :] == 0).all()
        assert (each[b, max(e.length - 1, 0) :] == 0).all()
        if not e.length:
            assert (first[b] == 0).all()
            continue
        close(posteriors[b, : e.length], e.posteriors())
        in_pi, in_a = e.derivatives()
        close(first[b], in_pi)
        close(each[b, : e.length - 1], in_a)
        a = case.sequence(b)[2]
        close((each[b, : e.length - 1].double() * a.double()).to(dtype), e.pairs())
        summed += w[b] * in_a.sum(0)
    if case.transition.ndim == 2:
        assert second.dtype is torch.float64
        close(second, summed)
        rows = reference.hmm_forward_backward(*case.inner(), weight, True)[3]
        assert torch.equal(rows.reshape(each.shape), each)
    else:
        assert torch.equal(second.reshape(each.shape), each)


def test_gradients(case):
    """Of autograd through the formula: the derivative of the polynomial, at zeros as well."""
    wide = case.to(torch.float64)
    leaves = [t.clone().requires_grad_() for t in wide.tensors]
    inner = wide.with_(log_obs=leaves[0], initial=leaves[1], transition=leaves[2]).inner()
    cotangent = torch.linspace(-1, 2, case.log_obs.shape[0], dtype=torch.float64)
    value = reference.hmm_log_likelihood(*inner)
    in_obs, in_pi, in_a = torch.autograd.grad(value, leaves, cotangent)
    want = [torch.zeros_like(t) for t in leaves]
    for b, e in enumerate(enumerated(wide)):
        if not e.length:
            continue
        pi, a = e.derivatives()
        want[0][b, : e.length] = cotangent[b] * e.posteriors()
        (want[1] if want[1].ndim == 1 else want[1][b]).add_(cotangent[b] * pi)
        if want[2].ndim == 2:
            want[2].add_(cotangent[b] * a.sum(0))
        else:
            want[2][b, : e.length - 1] = cotangent[b] * a
    for got, expected in zip((in_obs, in_pi, in_a), want):
        close(got, expected)


def test_second_derivatives():
    case = special("zeros", torch.float64)
    start, move = case.initial.clone(), case.transition.clone()
    assert (move == 0).any()
    # Numerical differences need steps to both sides, so zeros are moved inside by a little.
    leaves = [case.log_obs.clamp(min=-20), start.clamp(min=0.05), move.clamp(min=0.05)]
    leaves = [t.requires_grad_() for t in leaves]
    where = case.inner()[3:]

    def function(log_obs, initial, transition):
        return reference.hmm_log_likelihood(log_obs.flatten(0, 1), initial, transition, *where)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_second_derivatives_at_zeros():
    """Of log(a + b A + c A') at A = 0, by hand: two states, two frames, two entries that are 0."""
    obs = torch.tensor([[0.3, -0.4], [-1.0, 0.7]], dtype=torch.float64)
    pi = torch.tensor([0.6, 0.4], dtype=torch.float64)
    a = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    where = torch.tensor([0]), torch.tensor([2]), torch.tensor([0])
    density = pi[:, None] * obs[0].exp()[:, None] * obs[1].exp()  # of the path i, j but for A
    value = reference.hmm_log_likelihood(obs, pi, a, *where)
    (first,) = torch.autograd.grad(value, a, create_graph=True)
    close(first.detach(), density / (density * a.detach()).sum())
    for i, j in ((0, 1), (0, 0)):
        (second,) = torch.autograd.grad(first[i, j], a, retain_graph=True)
        close(second, -first.detach()[i, j] * first.detach())


def test_forward_mode():
    case = special("zeros", torch.float64)
    tangents = [torch.randn_like(t) for t in case.tensors]
    where = case.inner()[3:]

    def function(log_obs, initial, transition):
        return reference.hmm_log_likelihood(log_obs.flatten(0, 1), initial, transition, *where)

    leaves = [t.clone().requires_grad_() for t in case.tensors]
    gradients = torch.autograd.grad(function(*leaves).nan_to_num(neginf=0).sum(), leaves)
    want = sum((g * t).sum() for g, t in zip(gradients, tangents))
    got = torch.func.jvp(function, case.tensors, tuple(tangents))[1].sum()
    close(got, want)


def test_best_path(case):
    states, log_prob = reference.hmm_viterbi(*case.inner())
    batch, time, _ = case.log_obs.shape
    states = states.reshape(batch, time)
    for b, e in enumerate(enumerated(case)):
        assert (states[b, e.length :] == -1).all()
        if e.length == 0:
            assert log_prob[b] == 0
        elif e.total == -INF:
            assert log_prob[b] == -INF
            assert (states[b] == -1).all()
        else:
            close(log_prob[b], e.log_prob.max())
            best = e.best_paths()
            assert len(best) == 1
            assert torch.equal(states[b, : e.length], best[0])


@settings(max_examples=60)
@given(time=st.integers(1, 5), k=st.integers(1, 3), seed=st.integers(0, 9999))
def test_ties(time, k, seed):
    """Probabilities 0 or 1 and whole densities: every sum is exact, and many are equal."""
    g = torch.Generator().manual_seed(seed)

    def coins(*shape):
        return (torch.rand(*shape, generator=g) < 0.8).double()

    obs, pi, a = -torch.randint(0, 3, (time, k), generator=g).double(), coins(k), coins(k, k)
    e = Enumerated(obs, pi, a.expand(time - 1, k, k))
    where = torch.tensor([0]), torch.tensor([time]), torch.tensor([0])
    states, _ = reference.hmm_viterbi(obs, pi, a, *where)
    if e.total == -INF:
        assert (states == -1).all()
        return
    # The lowest last state, then the highest state before it, and so on backwards.
    best = e.best_paths().tolist()
    want = min(best, key=lambda path: (path[-1], *(-s for s in reversed(path[:-1]))))
    assert states.tolist() == want


@pytest.mark.parametrize(
    ("name", "dtype"), [("plain", t) for t in DTYPES] + [(s, DTYPES[1]) for s in SPECIAL]
)
def test_frequencies_of_drawn_paths(name, dtype):
    case = special(name, dtype, shape=(2, 3, 3))
    n = 1500
    batch, time, k = case.log_obs.shape
    drawn = reference.hmm_sample_paths(*case.inner(), 1234, n).reshape(n, batch, time)
    for b, e in enumerate(enumerated(case)):
        mine = drawn[:, b]
        assert (mine[:, e.length :] == -1).all()
        if e.length == 0:
            continue
        if e.total == -INF:
            assert (mine == -1).all()
            continue
        index = (mine[:, : e.length] * k ** torch.arange(e.length - 1, -1, -1)).sum(1)
        counts = torch.bincount(index, minlength=k**e.length).double()
        assert counts.shape == e.weight.shape
        assert (counts[e.weight == 0] == 0).all()
        # Paths that are expected less than 8 times are one bin.
        expected = n * e.weight
        rare = expected < 8
        table = torch.cat((counts[~rare], counts[rare].sum()[None]))
        expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
        used = expected > 1
        assert abs(int((~used).sum())) <= 1
        statistic = ((table - expected).square() / expected)[used].sum().item()
        freedom = int(used.sum()) - 1
        # With fixed seeds the outcome is fixed; a right sampler fails once in 10^5 choices.
        assert statistic <= chi2.ppf(1 - 1e-5, freedom) if freedom else statistic < 1e-9


def test_draws_are_a_function_of_seed_draw_sequence_and_frame():
    case = hmm(4, 6, 3, torch.float64)
    whole = reference.hmm_sample_paths(*case.inner(), 7, 5).reshape(5, 4, 6)
    assert torch.equal(reference.hmm_sample_paths(*case.inner(), 7, 2).reshape(2, 4, 6), whole[:2])
    fewer = case.select(torch.arange(2))
    assert torch.equal(
        reference.hmm_sample_paths(*fewer.inner(), 7, 5).reshape(5, 2, 6), whole[:, :2]
    )
    assert not torch.equal(reference.hmm_sample_paths(*case.inner(), 8, 5).reshape(5, 4, 6), whole)
    assert not torch.equal(whole[0], whole[1])


def test_nan_stays_in_its_sequence():
    clean = hmm(3, 4, 3, torch.float64)
    for value in (math.nan, INF):
        case = clean.with_(log_obs=clean.log_obs.clone())
        case.log_obs[1, 2, 1] = value
        others = torch.tensor([0, 2])
        for function, more in (
            (reference.hmm_log_likelihood, ()),
            (reference.hmm_filter, ()),
            (reference.hmm_viterbi, ()),
            (reference.hmm_forward_backward, (None, True)),
        ):
            got, want = function(*case.inner(), *more), function(*clean.inner(), *more)
            for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want))):
                a, b = a.reshape(3, -1), b.reshape(3, -1)
                assert torch.equal(a[others], b[others])
                if a.dtype is torch.int64:
                    assert (a[1] == -1).all()
                elif function is not reference.hmm_filter or a.shape[1] == 1:
                    assert a[1].isnan().all()
                else:  # the past is not touched by what comes
                    assert torch.equal(a[1, :6], b[1, :6])
                    assert a[1, 6:].isnan().all()
        drawn = reference.hmm_sample_paths(*case.inner(), 0, 2).reshape(2, 3, 4)
        assert (drawn[:, 1] == -1).all()
        assert (drawn[:, others] >= 0).all()


# --- hmmlearn -------------------------------------------------------------------------------------


@pytest.fixture
def hmmc():
    return pytest.importorskip("hmmlearn._hmmc", reason="hmmlearn is the oracle here")


@pytest.mark.parametrize("name", ["plain", "zeros", "left-right", "frames of -inf"])
def test_against_hmmlearn(hmmc, name):
    case = special(name, torch.float64, shape=(1, 40, 5))
    case.log_obs[0] = torch.where(case.log_obs[0].isneginf().all(1)[:, None], 0.0, case.log_obs[0])
    obs, pi, a = (t.numpy() for t in (case.log_obs[0], case.initial, case.transition))
    with np.errstate(divide="ignore"):
        log_prob, forward = hmmc.forward_log(pi, a, obs)
        assert np.isfinite(log_prob)
        backward = hmmc.backward_log(pi, a, obs)
        xi = np.exp(hmmc.compute_log_xi_sum(forward, a, backward, obs))
    score, path = hmmc.viterbi(pi, a, obs)
    total, posteriors, _, second = reference.hmm_forward_backward(*case.inner(), None, False)

    def same(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)

    same(total[0], log_prob)
    same(posteriors, np.exp(forward + backward - log_prob))
    same(second * case.transition, xi)
    filtered = np.exp(forward - np.logaddexp.reduce(forward, axis=1, keepdims=True))
    same(reference.hmm_filter(*case.inner())[1], filtered)
    states, best = reference.hmm_viterbi(*case.inner())
    same(best[0], score)
    assert states.tolist() == path.tolist()


@settings(max_examples=60)
@given(time=st.integers(1, 12), k=st.integers(1, 4), seed=st.integers(0, 9999))
def test_ties_against_hmmlearn(time, k, seed):
    hmmc = pytest.importorskip("hmmlearn._hmmc", reason="hmmlearn is the oracle here")
    # Uniform probabilities and densities 0 or 1: all sums of one length are equal to the bit.
    g = torch.Generator().manual_seed(seed)
    obs = torch.where(torch.rand(time, k, generator=g) < 0.3, -INF, 0.0).double()
    obs[:, seed % k] = 0.0
    pi, a = torch.full((k,), 1 / k).double(), torch.full((k, k), 1 / k).double()
    _, path = hmmc.viterbi(pi.numpy(), a.numpy(), obs.numpy())
    where = torch.tensor([0]), torch.tensor([time]), torch.tensor([0])
    assert reference.hmm_viterbi(obs, pi, a, *where)[0].tolist() == path.tolist()
