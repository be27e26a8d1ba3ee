"""The Triton hidden Markov kernels against the float64 reference, within rounding-error bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import evidens
from evidens.kernels import _hmm_plan, hmm
from evidens.reference import hmm as reference

pytestmark = [
    pytest.mark.usefixtures("canaries"),
    # NumPy stands in for the GPU here, and warns where IEEE arithmetic makes inf or NaN.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DTYPES = [torch.float32, torch.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
# Lengths, K and options.  A matrix of 70 states is streamed in tiles, one of 40 is not.
CASES = {
    "one": ((1,), 1, {}),
    "ragged": ((5, 1, 0, 7), 3, {}),
    "initials": ((3, 6), 17, {"per_sequence": True}),
    "zeros": ((6, 2, 4), 5, {"zeros": 0.5}),
    "varying": ((4, 0, 6, 2), 5, {"varying": True, "zeros": 0.2, "per_sequence": True}),
    "wide": ((3, 2), 40, {}),
    "streamed": ((2, 3), 70, {}),
    "varying wide": ((3,), 70, {"varying": True}),
    "padded": ((5, 2), 3, {"gap": 2}),
    "varying padded": ((2, 4), 3, {"gap": 1, "varying": True}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Sequences:
    """Random sequences and a model, and how far rounding may take a kernel from the exact result.

    Rows between the sequences (``gap``) and matrices that no transition has are NaN.
    """

    def __init__(
        self, device, lengths, k, dtype, *, varying=False, per_sequence=False, zeros=0.0, gap=0
    ):
        g = torch.Generator().manual_seed(sum(lengths) + 100 * k)
        self.lengths = torch.tensor(lengths, dtype=torch.int64)
        batch = len(lengths)
        self.starts = (self.lengths + gap).cumsum(0) - self.lengths
        steps = (self.lengths - 1).clamp(min=0) + gap
        self.first = steps.cumsum(0) - steps
        n = int((self.lengths + gap).sum())
        self.log_obs = torch.full((n, k), math.nan, dtype=torch.float64)
        for start, length in zip(self.starts, self.lengths):
            self.log_obs[start : start + length] = torch.randn(length, k, generator=g).double() * 3
        self.initial = torch.rand((batch, k) if per_sequence else (k,), generator=g).double() + 0.1
        shape = (int(steps.sum()), k, k) if varying else (k, k)
        self.transition = torch.rand(shape, generator=g).double() + 0.01
        self.transition[torch.rand(shape, generator=g) < zeros] = 0.0
        self.transition /= self.transition.sum(-1, keepdim=True).clamp(min=0.1)
        if varying:
            used = torch.zeros(shape[0], dtype=torch.bool)
            for first, length in zip(self.first, self.lengths):
                used[first : first + length - 1] = length > 1
            self.transition[~used] = math.nan
        self.weight = torch.randn(batch, generator=g).double()  # some are negative
        self.weight[1::3] = 0.0
        for name, value in vars(self).items():
            value = value.to(device)
            setattr(self, name, value.to(dtype) if value.is_floating_point() else value)
        self.dtype = dtype

    @property
    def arguments(self):
        where = (self.starts, self.lengths, self.first)
        return (self.log_obs, self.initial, self.transition, *where)

    @property
    def exact(self):
        return tuple(a.double() if a.is_floating_point() else a for a in self.arguments)

    def sums(self):
        """Relative error of a mass that went over all frames: sums of K terms and an exp each."""
        log_obs = self.log_obs[self.log_obs.isfinite()]
        spread = 2 * log_obs.abs().max().item() if log_obs.numel() else 0.0
        frames = int(self.lengths.max()) if self.lengths.numel() else 0
        k = self.log_obs.shape[1]
        return (frames + 2) * (k + 8 + spread) * torch.finfo(self.dtype).eps / 2


@pytest.fixture
def sequences(device):
    """`Sequences` on the device of the kernels."""
    return lambda lengths, k, dtype=torch.float64, **options: Sequences(
        device, lengths, k, dtype, **options
    )


def clamped(actual, expected):
    """Derivatives at a probability of zero may exceed the largest number; sums stop at 1e300."""
    assert actual.isfinite().all() or actual.isnan().any()
    most = min(torch.finfo(actual.dtype).max, 1e300)
    return actual.clamp(-most, most), expected.clamp(-most, most)


def check_all(s, close, weight=None, draws=2):
    """Every function on these sequences against the reference on the same numbers."""
    u = torch.finfo(s.dtype).eps
    actual, expected = hmm.hmm_filter(*s.arguments), reference.hmm_filter(*s.exact)
    log_bound = s.sums() + 4 * u * (1 + expected[0].abs())
    assert actual[0].dtype == torch.float64
    assert actual[1].dtype == s.dtype
    close(actual[0], expected[0], log_bound)
    close(actual[1], expected[1], 4 * s.sums() * expected[1] + u * (expected[1] > 0))
    total = hmm.hmm_log_likelihood(*s.arguments)
    assert total.dtype == s.dtype
    close(total, expected[0], log_bound)

    for pairwise in (False, True):
        # Of a shared matrix with gaps, pairs have no rows to lie in.
        if pairwise and s.transition.dim() == 2 and s.log_obs.shape[0] != int(s.lengths.sum()):
            continue
        # ... nor has the reference where a sequence is empty.
        if pairwise and s.transition.dim() == 2 and (s.lengths == 0).any():
            continue
        weight64 = None if weight is None else weight.double()
        actual = hmm.hmm_forward_backward(*s.arguments, weight, pairwise)
        expected = reference.hmm_forward_backward(*s.exact, weight64, pairwise)
        close(actual[0], expected[0], log_bound)
        for a, b in zip(actual[1:3], expected[1:3]):
            assert a.dtype == s.dtype
            a, b = clamped(a, b)
            close(a, b, 4 * s.sums() * b + u * (b > 0))
        shared = s.transition.dim() == 2 and not pairwise
        assert actual[3].dtype == (torch.float64 if shared else s.dtype)
        second, size = clamped(actual[3], expected[3])
        expected_second = size
        if shared and weight is not None:
            size = reference.hmm_forward_backward(*s.exact, weight64.abs(), False)[3]
        # Blocks of at most 32 frames are summed in ``dtype``, the blocks in float64.
        close(second, expected_second, (4 * s.sums() + 32 * u) * size + u * (size > 0))

    actual, expected = hmm.hmm_viterbi(*s.arguments), reference.hmm_viterbi(*s.exact)
    assert actual[0].dtype == torch.int64
    assert torch.equal(actual[0], expected[0])
    close(actual[1], expected[1], 1e-13 * (1 + expected[1].abs()))
    # A uniform would have to fall within rounding of a cumulative sum to make a difference.
    actual = hmm.hmm_sample_paths(*s.arguments, 2**63 + 11, draws)
    assert torch.equal(actual, reference.hmm_sample_paths(*s.exact, 2**63 + 11, draws))


@each_dtype
@each_case
def test_against_the_reference(case, dtype, sequences, close):
    lengths, k, options = case
    s = sequences(lengths, k, dtype, **options)
    check_all(s, close, None if k == 17 else s.weight, draws=3)


@pytest.mark.parametrize("k", [17, 70])
def test_blocks_of_sequences(k, sequences, close, monkeypatch):
    """Of unlike lengths, in products of matrices."""
    monkeypatch.setattr(_hmm_plan, "_DOT_SEQUENCES", 1)
    s = sequences((2, 4, 1, 0, 3, 2) * 3, k, torch.float32, zeros=0.3)
    assert _hmm_plan.make_plan(_hmm_plan.problem(*s.arguments)).dot
    check_all(s, close, s.weight, draws=1)


def test_rows_without_a_frame(sequences):
    s = sequences((4, 2), 3, gap=3)
    rows = torch.cat([torch.arange(a, a + b) for a, b in zip(s.starts.cpu(), s.lengths.cpu())])
    others = torch.ones(len(s.log_obs), dtype=torch.bool)
    others[rows] = False
    assert others.sum() == 6
    for probabilities in (
        hmm.hmm_filter(*s.arguments)[1],
        hmm.hmm_forward_backward(*s.arguments, None, False)[1],
    ):
        assert (probabilities[others] == 0).all()
        assert torch.allclose(probabilities.sum(1).cpu(), (~others).double())
    assert (hmm.hmm_viterbi(*s.arguments)[0][others] == -1).all()
    assert (hmm.hmm_sample_paths(*s.arguments, 1, 2)[:, others] == -1).all()


@each_dtype
@pytest.mark.parametrize("varying", [False, True])
def test_odd_sequences(dtype, varying, sequences, close):
    """Impossible, undefined, empty and far-off sequences, beside others, change none of them."""
    lengths = (4, 3, 3, 3, 0, 4, 5, 3)
    s = sequences(lengths, 4, dtype, varying=varying, zeros=0.4)
    other = s.log_obs.clone()
    at = s.starts.tolist()
    s.log_obs[at[1] + 1] = -math.inf  # impossible
    s.log_obs[at[2] + 1, 2] = math.nan
    s.log_obs[at[3], 0] = math.inf  # counts as NaN
    s.log_obs[at[5] + 1, 1:] = -math.inf
    s.log_obs[at[6] : at[6] + 5] += 1e4 * torch.tensor([-3.0, 0, 1, 2]).to(s.log_obs)
    s.log_obs[at[7] : at[7] + 3] -= 1e30
    total, posteriors, first, second = hmm.hmm_forward_backward(*s.arguments, None, varying)
    expected = reference.hmm_forward_backward(*s.exact, None, varying)
    assert total[1] == -math.inf
    assert total[2:4].isnan().all()
    assert total[4] == 0
    assert total[[0, 5, 6, 7]].isfinite().all()
    assert (posteriors[at[1] : at[1] + 3] == 0).all()
    assert posteriors[at[2] : at[2] + 6].isnan().all()
    eps = 1e4 * torch.finfo(dtype).eps
    close(total, expected[0], eps * (1 + expected[0].abs()))
    close(posteriors, expected[1], eps)
    first, expected_first = clamped(first, expected[2])
    close(first, expected_first, eps * (1 + expected_first))
    if not varying:
        assert second.isnan().all()
        # Without weight they add nothing, even where they are NaN.
        keep = torch.ones_like(s.weight)
        keep[2:4] = 0.0
        second = hmm.hmm_forward_backward(*s.arguments, keep, False)[3]
        expected = reference.hmm_forward_backward(*s.exact, keep.double(), False)
        assert second.isfinite().all()
    second, expected_second = clamped(second, expected[3])
    close(second, expected_second, eps * (1 + expected_second))

    total, filtered = hmm.hmm_filter(*s.arguments)
    expected = reference.hmm_filter(*s.exact)
    close(total, expected[0], eps * (1 + expected[0].abs()))
    close(filtered, expected[1], eps)
    states, log_prob = hmm.hmm_viterbi(*s.arguments)
    expected = reference.hmm_viterbi(*s.exact)
    assert torch.equal(states, expected[0])
    close(log_prob, expected[1], 1e-13 * (1 + expected[1].abs()))
    draws = hmm.hmm_sample_paths(*s.arguments, 5, 2)
    assert torch.equal(draws, reference.hmm_sample_paths(*s.exact, 5, 2))
    assert (draws[:, at[1] : at[3] + 3] == -1).all()

    s.log_obs, _ = other, s.log_obs
    plain = hmm.hmm_filter(*s.arguments)[1]
    assert torch.equal(filtered[:4], plain[:4])


@each_dtype
@pytest.mark.parametrize("side", ["before", "behind"])
def test_a_path_that_linear_space_loses(dtype, side, sequences, close, monkeypatch):
    """No frame is impossible, but the best path lies below the smallest number for a while."""
    far = 60.0 if dtype == torch.float32 else 500.0
    s = sequences((4, 4), 2, dtype)
    s.initial = torch.full_like(s.initial, 0.5)
    s.transition = torch.eye(2).to(s.transition)
    chain = torch.tensor([[0.0, -1.9], [-1.0, 0.0], [-1.0, 0.0], [0.0, -0.1]]).to(s.log_obs) * far
    s.log_obs[:4] = chain if side == "before" else chain.flip(0)
    marked = []
    real = hmm._marked
    monkeypatch.setattr(hmm, "_marked", lambda redo: marked.append(real(redo)) or marked[-1])
    check_all(s, close)
    assert marked
    assert any(m.tolist() == [0] for m in marked)
    assert all(m.tolist() in ([], [0]) for m in marked)


@each_dtype
def test_transitions_that_products_lose(dtype, device):
    """What the next product with a tiny transition would lose is not there to be lost."""
    small, far = (1e-25, 30.0) if dtype is torch.float32 else (1e-170, 300.0)
    frames = [[0.0, 0, 0]] * 3 + [[-far, -far, 0]] * 12
    x = torch.tensor(frames, dtype=dtype, device=device)
    pi = torch.tensor([1.0, 0, 0], dtype=dtype, device=device)
    a = torch.tensor([[1, small, 0], [0, 1, small], [0, 0, 1]], dtype=dtype, device=device)
    where = (torch.tensor([i], device=device) for i in (0, 15, 0))
    # Both steps are made before the frames turn, in three ways.
    want = 2 * math.log(small) + math.log(3)
    assert hmm.hmm_log_likelihood(x, pi, a, *where).item() == pytest.approx(want, rel=1e-6)


@each_dtype
def test_what_only_the_backward_messages_lose(dtype, sequences, close, monkeypatch):
    """The filter holds all, but before a state that nothing reaches the others vanish."""
    far = 60.0 if dtype == torch.float32 else 500.0
    s = sequences((3, 2), 3, dtype)
    s.initial = torch.tensor([0.5, 0.5, 0.0]).to(s.initial)
    s.transition = torch.eye(3).to(s.transition)
    frames = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 0.0, -2.0], [-0.7, -0.7, 0.0]])
    s.log_obs[:3] = frames.to(s.log_obs) * far
    posteriors = hmm.hmm_forward_backward(*s.arguments, None, False)[1][:3]
    assert torch.allclose(posteriors, posteriors.new_tensor([0.5, 0.5, 0.0]).expand(3, 3))
    check_all(s, close)


@each_dtype
def test_large_weights(dtype, sequences):
    """Weight over normaliser would overflow, their product with a message does not."""
    far, large = (60.0, 1e30) if dtype == torch.float32 else (500.0, 1e200)
    s = sequences((2, 2), 3, dtype)
    s.initial = torch.tensor([0.5, 0.5, 0.0]).to(s.initial)
    s.transition = torch.eye(3).to(s.transition)
    s.log_obs[:2] = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]).to(s.log_obs) * far
    weight = torch.tensor([large, 0.0], dtype=torch.float64).to(s.weight)
    second = hmm.hmm_forward_backward(*s.arguments, weight, False)[3]
    assert torch.allclose(second.diagonal()[:2] / large, second.new_full((2,), 0.5))
    assert not second.isnan().any()


def test_what_is_lost_for_good_is_not_computed_again(sequences, close, monkeypatch):
    """From left to right, states that underflow now and come back later by way of others."""
    k, time = 6, 18
    s = sequences((time, time), k, torch.float32)
    s.initial = torch.eye(k)[0].to(s.initial)
    s.transition = (0.8 * torch.eye(k) + 0.2 * torch.eye(k).roll(1, 1)).triu().to(s.transition)
    s.log_obs[:] = -150.0
    s.log_obs[torch.arange(2 * time), torch.arange(2 * time) % time // 3] = 0.0
    monkeypatch.setattr(hmm, "_forward_again", lambda p, again, *_, **__: again.count and 1 / 0)
    total, posteriors, _, _ = hmm.hmm_forward_backward(*s.arguments, None, False)
    expected = reference.hmm_forward_backward(*s.exact, None, False)
    close(total, expected[0], s.sums() + 1e-6 * expected[0].abs())
    close(posteriors, expected[1], 4 * s.sums() * expected[1] + 1e-7)


def test_a_derivative_at_a_zero_is_finite(sequences):
    """A forbidden transition would make these frames likely beyond the largest number."""
    for dtype in DTYPES:
        for varying in (False, True):
            s = sequences((2,), 2, dtype, varying=varying)
            s.transition[:] = torch.eye(2).to(dtype)
            s.log_obs[:] = torch.tensor([[0.0, -2e3], [-2e3, 0.0]]).to(s.log_obs)
            second = hmm.hmm_forward_backward(*s.arguments, None, False)[3].reshape(2, 2)
            assert second.isfinite().all()
            assert second[0, 1] > 1e37
            pairs = second * s.transition.reshape(2, 2)
            assert pairs.sum().item() == pytest.approx(1.0, rel=1e-6)


def test_ties(sequences):
    s = sequences((3, 2), 3)
    s.log_obs[:] = 0.0
    s.initial = torch.full_like(s.initial, 0.25)
    s.transition = torch.full_like(s.transition, 1 / 3)
    states, _ = hmm.hmm_viterbi(*s.arguments)
    # The lowest of the last states; going back, the highest predecessor.
    assert states.tolist() == [2, 2, 0, 2, 0]


def test_a_draw_depends_on_its_place_alone(sequences):
    s = sequences((9, 6, 7), 4)
    whole = hmm.hmm_sample_paths(*s.arguments, 3, 5)
    assert whole.unique(dim=0).shape[0] > 1
    assert torch.equal(hmm.hmm_sample_paths(*s.arguments, 3, 2), whole[:2])
    assert not torch.equal(hmm.hmm_sample_paths(*s.arguments, 4, 5), whole)
    part = (*s.arguments[:3], s.starts[:2], s.lengths[:2], s.first[:2])
    assert torch.equal(hmm.hmm_sample_paths(*part, 3, 5)[:, :15], whole[:, :15])


@each_dtype
def test_several_programs_sum_the_pairs(dtype, sequences, close, monkeypatch):
    s = sequences((45, 40), 2, dtype)
    monkeypatch.setattr(hmm, "_PAIR_PROGRAMS", 3)
    actual = hmm.hmm_forward_backward(*s.arguments, s.weight, False)[3]
    weight = s.weight.double()
    expected = reference.hmm_forward_backward(*s.exact, weight, False)[3]
    size = reference.hmm_forward_backward(*s.exact, weight.abs(), False)[3]
    close(actual, expected, (4 * s.sums() + 32 * torch.finfo(dtype).eps) * size)


def test_several_programs_sum_the_pairs_in_logs(sequences, monkeypatch):
    s = sequences((3, 4, 2, 3, 3), 2)
    monkeypatch.setattr(hmm, "_PAIR_PROGRAMS", 2)
    plain = hmm.hmm_forward_backward(*s.arguments, s.weight, False)
    monkeypatch.setattr(hmm, "_marked", lambda redo: torch.arange(len(redo), device=redo.device))
    for a, b in zip(hmm.hmm_forward_backward(*s.arguments, s.weight, False), plain):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_the_same_bits_twice(sequences, monkeypatch):
    s = sequences((12, 40), 3, torch.float32)
    monkeypatch.setattr(hmm, "_PAIR_PROGRAMS", 2)
    first = hmm.hmm_forward_backward(*s.arguments, s.weight, False)
    second = hmm.hmm_forward_backward(*s.arguments, s.weight, False)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("lengths", [(), (0, 0)], ids=str)
@pytest.mark.parametrize("varying", [False, True])
def test_no_frames(lengths, varying, sequences):
    s = sequences(lengths, 3, varying=varying)
    hmm.hmm_filter(*sequences((2,), 3).arguments)  # for the canaries: it does allocate
    batch = len(lengths)
    assert torch.equal(hmm.hmm_log_likelihood(*s.arguments), s.log_obs.new_zeros(batch))
    total, posteriors, first, second = hmm.hmm_forward_backward(*s.arguments, None, False)
    assert torch.equal(total, s.log_obs.new_zeros(batch))
    assert posteriors.shape == (0, 3)
    assert torch.equal(first, s.log_obs.new_zeros(batch, 3))
    assert second.shape == ((0, 3, 3) if varying else (3, 3))
    assert (second == 0).all()
    assert [r.shape for r in hmm.hmm_filter(*s.arguments)] == [(batch,), (0, 3)]
    assert [r.shape for r in hmm.hmm_viterbi(*s.arguments)] == [(0,), (batch,)]
    assert hmm.hmm_sample_paths(*s.arguments, 0, 2).shape == (2, 0)
    assert hmm.hmm_sample_paths(*sequences((2,), 3).arguments, 0, 0).shape == (0, 2)


@each_dtype
@pytest.mark.parametrize("varying", [False, True])
def test_gradients_through_the_op(dtype, varying, sequences, close):
    """Forward and backward of the public op, on sequences with zeros and an outlier."""
    s = sequences((4, 3, 0, 2), 3, dtype, varying=varying, zeros=0.3)
    s.log_obs[1] -= torch.tensor([0.0, 2e2, 3e2]).to(s.log_obs)
    offsets = torch.cat((s.starts, s.starts.new_tensor([len(s.log_obs)])))
    inputs = [t.clone().requires_grad_() for t in s.arguments[:3]]
    with evidens.backend("triton"):
        value = evidens.ops.hmm_log_likelihood(*inputs, offsets=offsets)
        gradients = torch.autograd.grad(value, inputs, s.weight)
    weight = s.weight.double()
    total, posteriors, first, second = reference.hmm_forward_backward(*s.exact, weight, False)
    if varying:
        steps = (s.lengths - 1).clamp(min=0)
        second = second * weight.repeat_interleave(steps)[:, None, None]
    expected = (
        posteriors * weight.repeat_interleave(s.lengths)[:, None],
        (first * weight[:, None]).sum(0),
        second,
    )
    close(value.detach(), total, s.sums() + 1e4 * torch.finfo(dtype).eps)
    for a, b in zip(gradients, expected):
        assert a.dtype == dtype
        a, b = clamped(a, b)
        close(a, b, 1e4 * torch.finfo(dtype).eps * (1 + b.abs()))


@pytest.mark.parametrize("pairwise", [False, True])
def test_the_other_public_ops(pairwise, sequences):
    s = sequences((4, 2), 3)
    padded = s.log_obs.new_full((2, 4, 3), math.nan)
    padded[0], padded[1, :2] = s.log_obs[:4], s.log_obs[4:]
    model, options = (padded, s.initial, s.transition), {"lengths": s.lengths}
    results = []
    for backend in ("triton", "reference"):
        with evidens.backend(backend):
            results.append(
                (
                    *evidens.ops.hmm_forward_backward(
                        *model, **options, weight=s.weight, pairwise=pairwise
                    ),
                    *evidens.ops.hmm_filter(*model, **options),
                    *evidens.ops.hmm_viterbi(*model, **options),
                    evidens.ops.hmm_sample_paths(*model, **options, n=2, seed=4),
                )
            )
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@each_dtype
@pytest.mark.parametrize("task", ["log_likelihood", "posteriors", "viterbi", "statistics"])
def test_normal_emissions(task, dtype, sequences):
    """Four kernels in a row, put together as the reference is."""
    s = sequences((4, 0, 2), 3, dtype)
    g = torch.Generator().manual_seed(1)
    device = s.log_obs.device
    x, means, p = (
        torch.randn(rows, 2, generator=g).to(device, dtype)
        for rows in (len(s.log_obs), s.log_obs.shape[1], s.log_obs.shape[1])
    )
    weight = s.weight if task == "statistics" else None
    given = (*s.arguments[1:6], means, p.exp(), weight, task)
    with evidens.backend("triton"):
        found = torch.ops.evidens.hmm_gaussian_statistics(x, *given)
    if task == "log_likelihood":  # that of the reference has a bool, which no guard surrounds
        want = reference.hmm_gaussian_statistics(x, *given[:-1], "posteriors")[:1]
    else:
        want = reference.hmm_gaussian_statistics(x, *given)
    eps = torch.finfo(dtype).eps
    for a, b in zip(found, want):
        torch.testing.assert_close(a.double(), b.double(), rtol=300 * eps, atol=300 * eps)


def test_rows_beyond_32_bit_offsets(sequences, close):
    s = sequences((4, 3), 2, torch.float32)
    try:
        # Zeros from the operating system: pages that nobody touches cost nothing.
        far = torch.from_numpy(np.zeros((2**30 + 5, 2), np.float32)).to(s.log_obs.device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        pytest.skip(f"no 8 GiB of address space: {error}")
    far[-7:] = s.log_obs
    starts = s.starts + (len(far) - 7)
    actual = hmm.hmm_log_likelihood(far, *s.arguments[1:3], starts, *s.arguments[4:])
    assert torch.equal(actual, hmm.hmm_log_likelihood(*s.arguments))
