"""Random hidden Markov models, all their answers, and how far a right answer may lie from those.

Every kernel adds and multiplies numbers that are not negative, so errors are relative: a frame
costs K roundings in the product, a few in the normalisation, ``spread`` in the exponential,
whose argument is rounded.  Over T frames that is n = T (K + spread + 8) of them; independent ones
add up to ``LAMBDA sqrt(n) u`` but with probability 2 exp(-LAMBDA^2 / 2) (Higham and Mary, A new
approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math

import torch
from ops.comparison import assert_within
from torch import Tensor

import evidens
from evidens.reference import hmm as reference

DTYPES = (torch.float32, torch.float64)
PUBLIC = (
    "hmm_log_likelihood",
    "hmm_forward_backward",
    "hmm_filter",
    "hmm_viterbi",
    "hmm_sample_paths",
)
WITHOUT_GRADIENT = PUBLIC[1:]
INF = math.inf
LAMBDA = 8.0


@dataclasses.dataclass
class Case:
    """Padded; what stands beyond a length is NaN, because nobody may read it."""

    log_obs: Tensor  # (B, T, K)
    initial: Tensor  # (K,) or (B, K)
    transition: Tensor  # (K, K) or (B, T - 1, K, K)
    lengths: Tensor | None = None  # (B,)

    def with_(self, **changes) -> Case:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Case:
        return self.with_(
            log_obs=self.log_obs.to(dtype),
            initial=self.initial.to(dtype),
            transition=self.transition.to(dtype),
        )

    @property
    def counts(self) -> Tensor:
        batch, time, _ = self.log_obs.shape
        return torch.full((batch,), time) if self.lengths is None else self.lengths

    @property
    def present(self) -> Tensor:
        """(B, T)"""
        return torch.arange(self.log_obs.shape[1]) < self.counts[:, None]

    @property
    def stepped(self) -> Tensor:
        """(B, T - 1): the steps between two frames that are there."""
        return self.present[:, 1:]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.log_obs, self.initial, self.transition

    def padded(self) -> tuple[tuple[Tensor, Tensor, Tensor], dict]:
        return self.tensors, {} if self.lengths is None else {"lengths": self.lengths}

    def packed(self) -> tuple[tuple[Tensor, Tensor, Tensor], dict]:
        a = self.transition
        if a.ndim == 4:
            a = a[self.stepped]
        offsets = torch.cat((torch.zeros(1, dtype=torch.int64), self.counts)).cumsum(0)
        return (self.log_obs[self.present], self.initial, a), {"offsets": offsets}

    def inner(self) -> tuple[Tensor, ...]:
        """The arguments of the inner ops and of the reference."""
        batch, time, k = self.log_obs.shape
        a = self.transition.reshape(-1, k, k) if self.transition.ndim == 4 else self.transition
        index = torch.arange(batch)
        where = index * time, self.counts, index * max(time - 1, 0)
        return self.log_obs.reshape(-1, k), self.initial, a, *where

    def sequence(self, b: int) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (L, K), initial (K,) and the transitions (L - 1, K, K) of one sequence."""
        length, k = int(self.counts[b]), self.log_obs.shape[2]
        pi = self.initial if self.initial.ndim == 1 else self.initial[b]
        steps = max(length - 1, 0)
        shared = self.transition.ndim == 2
        a = self.transition.expand(steps, k, k) if shared else self.transition[b, :steps]
        return self.log_obs[b, :length], pi, a

    def select(self, index: Tensor) -> Case:
        """Some of the sequences."""
        return self.with_(
            log_obs=self.log_obs[index],
            initial=self.initial if self.initial.ndim == 1 else self.initial[index],
            transition=self.transition if self.transition.ndim == 2 else self.transition[index],
            lengths=None if self.lengths is None else self.lengths[index],
        )


def hmm(
    batch,
    time,
    k,
    dtype,
    *,
    ragged=False,
    varying=False,
    own_initial=False,
    zeros=0.0,
    scale=2.0,
    seed=0,
) -> Case:
    """A model drawn in float64 and rounded; ``zeros`` of the probabilities and frames are none.

    With zeros, a part of the sequences is impossible; without, none is.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def stochastic(*shape):
        p = uniform(*shape) ** 2 + 1e-3
        p = torch.where(uniform(*shape) < zeros, 0.0, p)
        return p / p.sum(-1, keepdim=True).clamp(min=1e-3)

    log_obs = scale * torch.randn(batch, time, k, generator=g, dtype=torch.float64)
    log_obs = torch.where(uniform(batch, time, k) < zeros / 2, -INF, log_obs - scale)
    case = Case(
        log_obs,
        stochastic(batch, k) if own_initial else stochastic(k),
        stochastic(batch, max(time - 1, 0), k, k) if varying else stochastic(k, k),
    )
    if ragged:
        lengths = torch.randint(0, time + 1, (batch,), generator=g)
        if batch:
            lengths[batch // 2] = time
        case = poison_padding(case.with_(lengths=lengths))
    return case.to(dtype)


def poison_padding(case: Case) -> Case:
    case = case.with_(log_obs=torch.where(case.present[..., None], case.log_obs, math.nan))
    if case.transition.ndim == 4:
        stepped = case.stepped[..., None, None]
        case = case.with_(transition=torch.where(stepped, case.transition, math.nan))
    return case


# --- enumeration ----------------------------------------------------------------------------------


def paths_of(k: int, time: int) -> Tensor:
    """All K^T paths, (K^T, T)."""
    paths = list(itertools.product(range(k), repeat=time))
    return torch.tensor(paths, dtype=torch.int64).reshape(len(paths), time)


def path_log_prob(obs: Tensor, pi: Tensor, a: Tensor, paths: Tensor) -> Tensor:
    """Log joint density of one sequence and each path (P, T), float64, as a sum of logs."""
    log_pi, log_a = pi.double().log(), a.double().log()
    steps = torch.arange(paths.shape[1])
    terms = [obs.double()[steps, paths], log_pi[paths[:, :1]]]
    terms.append(log_a[steps[:-1], paths[:, :-1], paths[:, 1:]])
    return torch.cat(terms, 1).sum(1)


# --- the answers ----------------------------------------------------------------------------------


@contextlib.contextmanager
def one_thread():
    """The reference makes many small calls, whose threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass
class Answer:
    """Of all ops, padded, float64."""

    log_likelihood: Tensor  # (B,)
    posteriors: Tensor  # (B, T, K)
    first: Tensor  # (B, K)
    second: Tensor  # (B, T - 1, K, K)
    filtered: Tensor  # (B, T, K)
    log_prob: Tensor  # (B,)


@one_thread()
def answer(case: Case) -> Answer:
    wide = case.to(torch.float64)
    inner = list(wide.inner())
    batch, time, k = case.log_obs.shape
    steps = max(time - 1, 0)
    inner[2] = wide.transition.expand(batch, steps, k, k).reshape(-1, k, k)
    total, posteriors, first, second = reference.hmm_forward_backward(*inner, None, True)
    _, filtered = reference.hmm_filter(*wide.inner())
    _, log_prob = reference.hmm_viterbi(*wide.inner())
    shape = case.log_obs.shape
    return Answer(
        total,
        posteriors.reshape(shape),
        first,
        second.reshape(batch, steps, k, k),
        filtered.reshape(shape),
        log_prob,
    )


def _finite_max(x: Tensor) -> float:
    x = x[x.isfinite()]
    return float(x.max()) if x.numel() else 0.0


def _distance(case: Case) -> float:
    """How far below the largest of its frame a log-density lies."""
    obs = case.log_obs[case.present].double()
    return _finite_max(obs.amax(-1, keepdim=True) - obs)


def _log_size(case: Case) -> float:
    """Largest log of a probability."""
    both = (case.initial, case.transition)
    return _finite_max(torch.cat([t[t > 0].double().log().abs() for t in both]))


def spread(case: Case) -> float:
    """Roundings in ``exp(log_obs - largest)``; what is further down underflows and counts for 0."""
    return min(_distance(case), -math.log(torch.finfo(case.log_obs.dtype).tiny))


@one_thread()
def message_size(case: Case) -> float:
    """Largest log of a message: in float64 and in logs, it is rounded by u times that."""
    size = _distance(case) + _log_size(case)
    if size > 60:
        alpha = reference._setup(*case.to(torch.float64).inner())[5][case.present]
        size += _finite_max(alpha.abs())
    return size


def relative_bound(case: Case) -> float:
    """Of a filtered or smoothed probability, and in nats of a log-likelihood before rounding."""
    batch, time, k = case.log_obs.shape
    n = time * (k + spread(case) + 8) + batch * time
    eps = torch.finfo(case.log_obs.dtype).eps
    # u = eps / 2; the float64 reference rounds as well, in logs.
    own = LAMBDA * math.sqrt(n) * eps * (0.5 if case.log_obs.dtype is torch.float32 else 2.0)
    logs = LAMBDA * math.sqrt(time) * torch.finfo(torch.float64).eps * message_size(case)
    return own + logs


def probability_bound(case: Case, want: Tensor) -> Tensor:
    """Of a probability; the reference forms it in logs, which are rounded as well."""
    log = want.log().abs().nan_to_num(0, 0, 0) / (case.log_obs.shape[2] + 8)
    return relative_bound(case) * want * (1 + log) + smallest(case)


def smallest(case: Case) -> float:
    """What underflow may take: linear space loses tiny, and may grow that by 1 / sqrt(tiny)."""
    return math.sqrt(torch.finfo(case.log_obs.dtype).tiny)


def path_bound(case: Case) -> float:
    """Of the log-density of a path: T sums of terms of the size of ``log_obs`` and log A."""
    size = _distance(case) + _log_size(case) + 8
    eps = torch.finfo(case.log_obs.dtype).eps
    obs = case.log_obs[case.present].double()
    sums = 2 * torch.finfo(torch.float64).eps * float(obs.nan_to_num(0, 0, 0).abs().sum())
    return LAMBDA * math.sqrt(2 * max(case.log_obs.shape[1], 1)) * eps * size + sums


# --- calls ----------------------------------------------------------------------------------------


def call(op: str, *args, **kwargs):
    """A public op; draws get a seed."""
    if op == "hmm_sample_paths":
        kwargs.setdefault("seed", 0)
    return getattr(evidens.ops, op)(*args, **kwargs)


def leaves(case: Case) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in case.tensors]


def formula(case: Case):
    """The reference as a function of the padded tensors."""
    _batch, _time, k = case.log_obs.shape
    where = case.inner()[3:]

    def function(log_obs, initial, transition):
        if transition.ndim == 4:
            transition = transition.reshape(-1, k, k)
        return reference.hmm_log_likelihood(log_obs.reshape(-1, k), initial, transition, *where)

    return function


def public(case: Case):
    """The public op as a function of the padded tensors."""
    kwargs = case.padded()[1]
    return lambda *tensors: evidens.ops.hmm_log_likelihood(*tensors, **kwargs)


# --- comparison -----------------------------------------------------------------------------------


def unpack(case: Case, packed: Tensor, fill: float) -> Tensor:
    """(N, ...) of the packed layout as (B, T, ...)."""
    batch, time, _ = case.log_obs.shape
    assert packed.shape[0] == int(case.counts.sum())
    out = packed.new_full((batch, time, *packed.shape[1:]), fill)
    out[case.present] = packed
    return out


def total_bound(case: Case, want: Answer) -> Tensor:
    """Of the float64 log-likelihoods (B,)."""
    obs = case.log_obs.double().nan_to_num(0, 0, 0).abs().amax(-1).sum(-1)
    return relative_bound(case) + 4 * torch.finfo(torch.float64).eps * (obs + 1)


def check_log_likelihood(case: Case, want: Answer, given=None) -> Tensor:
    args, kwargs = given or case.padded()
    got = evidens.ops.hmm_log_likelihood(*args, **kwargs)
    assert got.dtype is case.log_obs.dtype
    eps = torch.finfo(got.dtype).eps
    rounding = want.log_likelihood.abs().nan_to_num(0, 0, 0) * eps
    bound = total_bound(case, want) + rounding
    assert_within(got, want.log_likelihood, bound, "log_likelihood")
    return got


def check_filter(case: Case, want: Answer, given=None) -> None:
    args, kwargs = given or case.padded()
    if int(case.counts.min() if case.counts.numel() else 1) == 0:
        return  # an error without a state, see test_hmm_edges
    got = evidens.ops.hmm_filter(*args, **kwargs)
    filtered = got.filtered
    if "offsets" in kwargs:
        filtered = unpack(case, filtered, 0)
    assert got.filtered.dtype is got.state.dtype is case.log_obs.dtype
    assert got.log_likelihood.dtype is torch.float64
    assert_within(got.log_likelihood, want.log_likelihood, total_bound(case, want), "filter, total")
    bound = probability_bound(case, want.filtered)
    assert_within(filtered, want.filtered, bound, "filtered")
    if case.log_obs.shape[0] and case.log_obs.shape[1]:
        last = filtered[torch.arange(len(filtered)), case.counts - 1]
        assert torch.equal(got.state.nan_to_num(-1), last.nan_to_num(-1))


def check_forward_backward(case: Case, want: Answer, given=None, weight=None) -> None:
    args, kwargs = given or case.padded()
    batch, time, _k = case.log_obs.shape
    relative = relative_bound(case)
    a = case.transition.double()
    pi = case.initial.double()
    pairs = torch.where(case.stepped[..., None, None] & (a != 0), want.second * a, 0.0)
    begun = torch.where(pi == 0, 0.0, want.first * pi)
    w = torch.ones(batch).double() if weight is None else weight.double()
    kept = w != 0
    sums = [
        ((begun[kept] * v[kept, None]).sum(0), (pairs.sum(1)[kept] * v[kept, None, None]).sum(0))
        for v in (w, w.abs())
    ]
    for pairwise in (False, True):
        got = evidens.ops.hmm_forward_backward(*args, weight=weight, pairwise=pairwise, **kwargs)
        posteriors, step_by_step = got.posteriors, got.pairwise
        assert (step_by_step is None) is not pairwise
        if "offsets" in kwargs:
            posteriors = unpack(case, posteriors, 0)
        assert posteriors.dtype is case.log_obs.dtype
        assert got.log_likelihood.dtype is got.initial.dtype is got.transitions.dtype
        assert got.log_likelihood.dtype is torch.float64
        total = total_bound(case, want)
        assert_within(got.log_likelihood, want.log_likelihood, total, "log_likelihood")
        bound = probability_bound(case, want.posteriors)
        assert_within(posteriors, want.posteriors, bound, "posteriors")
        absolute = batch * max(time, 1) * smallest(case)
        assert_within(got.initial, sums[0][0], 2 * relative * sums[1][0] + absolute, "initial")
        # Pairs take both recursions and the transition: twice the roundings of a posterior.
        bound = 2 * relative * sums[1][1] + absolute
        assert_within(got.transitions, sums[0][1], bound, "transitions")
        if pairwise:
            if "offsets" in kwargs:
                expected = pairs[case.stepped]
            else:
                expected = pairs
            bound = 2 * probability_bound(case, expected)
            assert_within(step_by_step, expected, bound, "pairwise")


def check_viterbi(case: Case, want: Answer, given=None) -> None:
    args, kwargs = given or case.padded()
    got = evidens.ops.hmm_viterbi(*args, **kwargs)
    states = got.states
    if "offsets" in kwargs:
        states = unpack(case, states, -1)
    assert states.dtype is torch.int64
    assert got.log_prob.dtype is torch.float64
    bound = path_bound(case)
    assert_within(got.log_prob, want.log_prob, bound, "log_prob")
    for b in range(case.log_obs.shape[0]):
        length = int(case.counts[b])
        assert (states[b, length:] == -1).all()
        if not want.log_prob[b].isfinite():
            assert (states[b] == -1).all()
            continue
        path = states[b, None, :length]
        assert ((path >= 0) & (path < case.log_obs.shape[2])).all()
        score = path_log_prob(*case.sequence(b), path)[0]
        assert abs(score - want.log_prob[b]) <= bound, (b, score, want.log_prob[b])


@one_thread()
def check_sample_paths(case: Case, given=None, n=3, seed=5) -> None:
    args, kwargs = given or case.padded()
    got = evidens.ops.hmm_sample_paths(*args, **kwargs, n=n, seed=seed)
    if "offsets" in kwargs:
        got = torch.stack([unpack(case, paths, -1) for paths in got])
    batch, time, k = case.log_obs.shape
    wide = case.to(torch.float64)
    want = reference.hmm_sample_paths(*wide.inner(), seed, n).reshape(n, batch, time)
    assert got.dtype is torch.int64
    assert got.shape == want.shape
    assert torch.equal(got == -1, want == -1)
    # A draw differs where u lies within the error of a border between two of K states, and may
    # take the frames before it along: a dozen of them where the transitions forget.
    expected = 12 * want.numel() * k * relative_bound(case)
    differ = int((got != want).sum())
    assert differ <= 2 * expected + 4 * math.sqrt(12 * expected), (differ, want.numel())
    for s, b in itertools.product(range(n), range(batch)):
        length = int(case.counts[b])
        if length and got[s, b, 0] >= 0:
            # No path without a density is drawn.
            score = path_log_prob(*case.sequence(b), got[s, b, None, :length])
            assert score.isfinite().all()


def check(case: Case, given=None, weight=None) -> Answer:
    """All ops on ``given``: arguments with the values of the case, otherwise laid out."""
    want = answer(case)
    check_log_likelihood(case, want, given)
    check_filter(case, want, given)
    check_forward_backward(case, want, given, weight)
    check_viterbi(case, want, given)
    check_sample_paths(case, given)
    return want
