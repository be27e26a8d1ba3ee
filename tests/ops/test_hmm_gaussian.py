"""Normal emissions computed beside the recursions: against enumeration and the ops in a row."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ops.hmm_cases import DTYPES
from torch import Tensor

import evidens
from evidens import ops
from evidens.ops import _hmm_inner as inner
from evidens.reference import hmm as reference

F64 = torch.float64
NAMES = ("log_likelihood", "initial", "transitions", "weight", "first", "second")
# Lengths, K, D.  Many short ones, few, one long (cut into chunks), a state, many features.
SHAPES = [
    ((3, 1, 4), 2, 1),
    ((7,) * 20, 3, 2),
    (tuple(range(1, 42)), 5, 3),
    ((30, 0, 11, 30, 2, 0), 4, 4),
    ((9,) * 9, 1, 5),
    ((40, 39, 38) * 8, 17, 9),
    ((200,) * 50, 10, 1),
    ((9000,), 6, 2),
    ((5000, 4500, 3), 9, 1),
]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


class Case:
    """Frames of a model with normal emissions, packed; ``far`` moves all of it from the origin."""

    def __init__(self, lengths, k, d, dtype, *, zeros=False, own_initial=False, far=0.0, seed=0):
        g = torch.Generator().manual_seed(seed + 7 * k + d)
        batch = len(lengths)
        self.lengths = torch.tensor(lengths, dtype=torch.int64)
        self.offsets = torch.cat((torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)))
        rows = (batch, k) if own_initial else (k,)
        initial, a = torch.rand(rows, generator=g), torch.rand(k, k, generator=g) + 0.05
        if zeros:  # to the right only
            a, initial = a.triu(), initial * 0
            initial[..., 0] = 1
        means = torch.randn(k, d, generator=g) * 2 + far
        x = torch.randn(int(self.lengths.sum()), d, generator=g) * 2 + far
        p = torch.rand(k, d, generator=g) + 0.5
        self.given = [
            t.to(dtype)
            for t in (
                x,
                initial / initial.sum(-1, keepdim=True),
                a / a.sum(1, keepdim=True),
                means,
                p,
            )
        ]

    def log_obs(self) -> Tensor:
        x, _, _, means, p = self.given
        return ops.gmm_component_log_prob(x, means.new_zeros(len(means)), means, p, "diag")

    def exact(self, weight: Tensor | None = None) -> ops.HMMGaussianStatistics:
        """What three ops in a row say, in float64."""
        case = self.to(F64)
        x, initial, a, means, _ = case.given
        weight = None if weight is None else weight.double()
        found = ops.hmm_forward_backward(
            case.log_obs(), initial, a, offsets=self.offsets, weight=weight
        )
        r = found.posteriors
        if weight is not None:
            each = weight.repeat_interleave(self.lengths)[:, None]
            r = torch.where(each == 0, 0.0, r * each)
        moments = ops.gmm_moments(x, r, means, "diag")
        return ops.HMMGaussianStatistics(
            found.log_likelihood, found.initial, found.transitions, *moments
        )

    def to(self, dtype) -> Case:
        other = object.__new__(Case)
        other.lengths, other.offsets = self.lengths, self.offsets
        other.given = [t.to(dtype) for t in self.given]
        return other


def close(got, want, dtype, lengths):
    """Errors of rounding: of a frame those of its exponents, over time as in `hmm_cases`."""
    eps, longest = torch.finfo(dtype).eps, max(int(max(lengths)), 1)
    for name, value, expected in zip(NAMES, got, want):
        assert value.dtype is F64
        size = expected.abs().nan_to_num(0, 0, 0).max().clamp(min=1.0)
        atol = float(300 * eps * math.sqrt(longest) * size)
        torch.testing.assert_close(value, expected, rtol=200 * eps, atol=atol, msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s[0])}x{max(s[0])}-{s[1]}-{s[2]}")
@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "zeros"])
def test_statistics(shape, zeros, dtype):
    case = Case(*shape, dtype, zeros=zeros, own_initial=zeros)
    got = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets)
    close(got, case.exact(), dtype, shape[0])


@pytest.mark.parametrize("shape", SHAPES[:4], ids=lambda s: f"{len(s[0])}x{max(s[0])}")
def test_weights(shape, dtype):
    case = Case(*shape, dtype)
    weight = torch.linspace(-1, 2, len(shape[0])).to(dtype)
    weight[1] = 0
    got = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets, weight=weight)
    close(got, case.exact(weight), dtype, shape[0])


def ask(case, task, x=None, starts=None):
    """What models ask of the inner op."""
    given = case.given if x is None else (x, *case.given[1:])
    starts = case.offsets[:-1] if starts is None else starts
    return inner.gaussian(*given[:3], starts, case.lengths, starts, *given[3:], None, task)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s[0])}x{max(s[0])}-{s[1]}-{s[2]}")
def test_queries(shape, dtype):
    case = Case(*shape, dtype)
    wide = case.to(F64)
    want = ops.hmm_forward_backward(wide.log_obs(), *wide.given[1:3], offsets=case.offsets)
    eps = torch.finfo(dtype).eps
    tolerance = {"rtol": 200 * eps, "atol": 300 * eps * math.sqrt(max(shape[0]))}
    total, _, _ = ask(case, "log_likelihood")
    torch.testing.assert_close(total, want.log_likelihood, **tolerance)
    total, posteriors, _ = ask(case, "posteriors")
    torch.testing.assert_close(total, want.log_likelihood, **tolerance)
    torch.testing.assert_close(posteriors.double(), want.posteriors, **tolerance)
    score, states, _ = ask(case, "viterbi")
    best = ops.hmm_viterbi(wide.log_obs(), *wide.given[1:3], offsets=case.offsets)
    torch.testing.assert_close(score, best.log_prob, **tolerance)
    assert (states == best.states).double().mean() > (0.999 if dtype is F64 else 0.99)


def test_enumeration(dtype):
    """Every path of two short sequences, weighed by hand."""
    case = Case((3, 4), 3, 2, dtype)
    x, initial, a, means, p = (t.double() for t in case.given)
    got = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets)
    z = (x[:, None] - means) * p
    log_obs = (p.log() - 0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    r, begun, steps, totals = torch.zeros(7, 3).double(), torch.zeros(3), torch.zeros(3, 3), []
    for start, length in ((0, 3), (3, 4)):
        total = 0.0
        paths = list(itertools.product(range(3), repeat=length))
        each = torch.zeros(len(paths), dtype=F64)
        for i, path in enumerate(paths):
            value = initial[path[0]].log()
            for t, state in enumerate(path):
                value = value + log_obs[start + t, state]
                value = value + (a[path[t - 1], state].log() if t else 0)
            each[i] = value
        total = each.logsumexp(0)
        totals.append(total)
        for path, weight in zip(paths, (each - total).exp()):
            begun[path[0]] += weight
            for t, state in enumerate(path):
                r[start + t, state] += weight
                if t:
                    steps[path[t - 1], state] += weight
    d = x[:, None] - means
    moments = r.sum(0), (r[..., None] * d).sum(0), (r[..., None] * d * d).sum(0)
    want = torch.stack(totals), begun.double(), steps.double(), *moments
    tolerance = 1e-5 if dtype is torch.float32 else 1e-6  # counts were summed in float32
    for name, value, expected in zip(NAMES, got, want):
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance, msg=name)


def test_far_from_the_origin(dtype):
    """Moments are about the means: no digits go to a place 1e4 deviations away."""
    near, far = Case((50,) * 12, 4, 3, F64), Case((50,) * 12, 4, 3, F64)
    shift = 2.0**13
    far.given[0], far.given[3] = near.given[0] + shift, near.given[3] + shift
    far.given = [t.to(dtype) for t in far.given]
    near.given = [t.double() for t in far.given]
    near.given[0], near.given[3] = near.given[0] - shift, near.given[3] - shift
    got = ops.hmm_gaussian_statistics(*far.given, offsets=far.offsets)
    close(got, near.exact(), dtype, (50,))


@pytest.mark.parametrize("frame", [0, 5, 11])
def test_an_impossible_frame(frame, dtype):
    """So far away that every density is 0: log-likelihood -inf, and the others as if alone."""
    case = Case((6, 6, 6) * 8, 3, 1, dtype)
    case.given[0][frame] = torch.finfo(dtype).max
    got = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets)
    lost = frame // 6
    assert got.log_likelihood[lost] == -math.inf
    weight = torch.ones(24, dtype=dtype)
    weight[lost] = 0
    rest = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets, weight=weight)
    keep = torch.arange(24) != lost
    assert got.log_likelihood[keep].isfinite().all()
    close(got[1:], rest[1:], dtype, (6,))


def test_outliers_and_missing_weight(dtype):
    """Densities beyond the range of the type, and NaN in a sequence that does not count."""
    case = Case((30,) * 9, 3, 2, dtype, zeros=True)
    case.given[0][40] += 300.0
    close(
        ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets),
        case.exact(),
        dtype,
        (30,),
    )
    case.given[0][100] = math.nan
    weight = torch.ones(9, dtype=dtype)
    weight[3] = 0
    found = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets, weight=weight)
    assert found.log_likelihood[3].isnan()
    assert all(t.isfinite().all() for t in found[1:])


@pytest.mark.parametrize("task", ["log_likelihood", "posteriors", "statistics"])
def test_the_lost_among_others(task, dtype, monkeypatch):
    """Only the sequences that linear space lost are done again."""
    case = Case((20, 0, 31, 7, 20) * 5, 3, 2, dtype)
    for frame in (3, 40, 300):  # beyond the reach of every density
        case.given[0][frame] = 1e30 if dtype is torch.float32 else 1e160
    x, initial, a, means, p = case.given
    starts = case.offsets[:-1].clone()
    weight = torch.linspace(0.5, 2, 25).to(dtype) if task == "statistics" else None
    args = x, initial, a, starts, case.lengths, starts, means, p, weight, task
    seen: list[int] = []
    parts = inner._gaussian_on_cpu.keywords["in_parts"]

    def counted(x: Tensor, initial: Tensor, a: Tensor, starts: Tensor, *rest) -> tuple:
        seen.append(len(starts))
        return parts(x, initial, a, starts, *rest)

    monkeypatch.setitem(inner._gaussian_on_cpu.keywords, "in_parts", counted)
    found = inner._gaussian_on_cpu(*args)
    assert seen == [3]
    for value, expected in zip(found, parts(*args)):
        finite = expected.isfinite()
        assert torch.equal(value[~finite], expected[~finite])
        size = expected[finite].abs().max().clamp(min=1.0) if finite.any() else 1.0
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(
            value[finite].double(),
            expected[finite].double(),
            rtol=200 * eps,
            atol=float(1000 * eps * size),
        )


def test_a_cut_where_the_past_matters_longer(dtype, monkeypatch):
    """Of 127 cuts 16 are probed; one of the others wants more frames, and gets them."""
    case = Case((65536,), 4, 2, dtype)
    x, initial, a, means, p = case.given
    means[:] = torch.tensor([[3.0, 0], [-3, 0], [0, 3], [0, -3]])
    p[:] = 1.0
    a[:] = torch.full((4, 4), 0.1 / 3).fill_diagonal_(0.9)
    which = torch.randint(4, (65536,), generator=torch.Generator().manual_seed(0))
    x[:] = means[which]
    x[2048 - 70 : 2048 + 70] = 0.0
    starts = case.offsets[:-1].clone()
    args = x, initial, a, starts, case.lengths, starts, means, p, None, "statistics"

    def in_parts(*args) -> tuple:
        raise AssertionError("the long way")

    monkeypatch.setitem(inner._gaussian_on_cpu.keywords, "in_parts", in_parts)
    inner._gaussian_on_cpu(*args)
    monkeypatch.undo()
    got = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets)
    close(got, case.exact(), dtype, (65536,))


def test_padded_as_packed(dtype):
    """Nothing is read behind a length."""
    case = Case(tuple(range(1, 31)), 4, 3, dtype)
    padded = torch.full((30, 33, 3), math.nan, dtype=dtype)
    present = torch.arange(33) < case.lengths[:, None]
    padded[present] = case.given[0]
    packed = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets)
    got = ops.hmm_gaussian_statistics(padded, *case.given[1:], lengths=case.lengths)
    for a, b in zip(got, packed):
        assert torch.equal(a, b)
    _, states, _ = ask(case, "viterbi", padded.flatten(0, 1), torch.arange(30) * 33)
    assert (states.view(30, 33)[~present] == -1).all()


def test_threads(dtype):
    case = Case((40, 31, 22) * 12, 5, 3, dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)], ids=str)
def test_no_frames(lengths, dtype):
    case = Case(lengths, 3, 2, dtype)
    found = ops.hmm_gaussian_statistics(*case.given, offsets=case.offsets)
    assert torch.equal(found.log_likelihood, torch.zeros(len(lengths), dtype=F64))
    assert all((t == 0).all() for t in found[1:])
    assert found.second.shape == (3, 2)


@pytest.mark.parametrize("task", ["log_likelihood", "posteriors", "viterbi", "statistics"])
@pytest.mark.parametrize("batch", [1, 20])
def test_fake(task, batch, dtype):
    case = Case((6,) * batch, 3, 2, dtype)
    x, initial, a, means, p = case.given
    starts = case.offsets[:-1].clone()
    args = x, initial, a, starts, case.lengths, starts, means, p, None, task
    torch.library.opcheck(
        torch.ops.evidens.hmm_gaussian_statistics.default,
        args,
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("task", ["log_likelihood", "posteriors", "viterbi", "statistics"])
def test_backends_agree(task, dtype):
    case = Case((6, 0, 9, 4) * 4, 3, 2, dtype)
    x, initial, a, means, p = case.given
    starts = case.offsets[:-1].clone()
    args = x, initial, a, starts, case.lengths, starts, means, p, None, task
    want = reference.hmm_gaussian_statistics(*(t.double() if t is x else t for t in args))
    got = torch.ops.evidens.hmm_gaussian_statistics(*args)
    with evidens.backend("reference"):
        plain = torch.ops.evidens.hmm_gaussian_statistics(*args)
    eps = torch.finfo(dtype).eps
    for found in (got, plain):
        for value, expected in zip(found, want):
            torch.testing.assert_close(
                value.double(), expected.double(), rtol=200 * eps, atol=1000 * eps
            )


def test_errors():
    case = Case((6, 6), 3, 2, F64)
    x, initial, a, means, p = case.given
    call = ops.hmm_gaussian_statistics
    with pytest.raises(ValueError, match=r"means must have shape \(K, D\) = \(3, 2\) for x"):
        call(x, initial, a, means[:, :1], p)
    with pytest.raises(ValueError, match=r"means must have shape .* at least one state"):
        call(x, initial, a, means[0], p)
    with pytest.raises(ValueError, match="precisions_cholesky must have shape"):
        call(x, initial, a, means, p[:2])
    with pytest.raises(ValueError, match=r"transition must have shape \(K, K\) = \(3, 3\) for x"):
        call(x[None], initial, a.expand(1, 11, 3, 3), means, p)
    with pytest.raises(ValueError, match=r"expected x padded .* at least one feature"):
        call(x[:, :0], initial, a, means, p)
    with pytest.raises(ValueError, match=r"initial must have shape"):
        call(x, initial[:2], a, means, p)
    with pytest.raises(TypeError, match="float32"):
        call(x, initial, a, means.float(), p)
    with pytest.raises(ValueError, match=r"weight must have shape \(B,\) = \(2,\)"):
        call(x, initial, a, means, p, offsets=case.offsets, weight=torch.ones(3).double())
    with pytest.raises(ValueError, match="lengths belong to a padded x"):
        call(x, initial, a, means, p, lengths=case.lengths)
    with pytest.raises(RuntimeError, match="hmm_log_likelihood"):
        call(x, initial, a, means.clone().requires_grad_(), p)
