"""Few long sequences are cut into chunks that are run side by side: nobody may notice.

More than 16 sequences are never cut, so the same frames among 17 sequences are the oracle.
"""

from __future__ import annotations

import math

import pytest
import torch
from ops.hmm_cases import DTYPES, hmm
from torch import Tensor

from evidens import ops

F64 = torch.float64
SHAPES = [(1, 9000, 3), (3, 4000, 5), (2, 8192, 17), (1, 8200, 40)]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def results(log_obs, initial, transition, lengths, weight) -> dict[str, Tensor]:
    """What is summed over time, of the sequences, and the gradient."""
    leaves = [t.detach().clone().requires_grad_() for t in (log_obs, initial, transition)]
    total = ops.hmm_log_likelihood(*leaves, lengths=lengths)
    gradients = torch.autograd.grad(total, leaves, weight)
    both = ops.hmm_forward_backward(
        log_obs, initial, transition, lengths=lengths, weight=weight
    )._asdict()
    del both["pairwise"]
    filtered = ops.hmm_filter(log_obs, initial, transition, lengths=lengths)._asdict()
    named = dict(zip(("d log_obs", "d initial", "d transition"), gradients))
    return {**both, **{f"filter {k}": v for k, v in filtered.items()}, **named}


def check(case, weight=None) -> dict[str, Tensor]:
    """The same as among 17 sequences, whose others are one frame long and weigh nothing."""
    log_obs, initial, transition = case.tensors
    batch, time, k = log_obs.shape
    weight = torch.ones(batch).to(log_obs) if weight is None else weight.to(log_obs)
    got = results(log_obs, initial, transition, case.lengths, weight)
    wide = log_obs.new_zeros(17, time, k)
    wide[:batch] = log_obs
    lengths = torch.ones(17, dtype=torch.int64)
    lengths[:batch] = case.counts
    weights = log_obs.new_zeros(17)
    weights[:batch] = weight
    want = results(wide, initial, transition, lengths, weights)
    # Roundings of a chunk's start are forgotten; those of sums grow with their number.
    eps = torch.finfo(log_obs.dtype).eps
    for name, value in got.items():
        expected = want[name][:batch] if value.shape[:1] == (batch,) else want[name]
        size = expected.abs().nan_to_num(0, 0, 0).max().clamp(min=1.0)
        torch.testing.assert_close(
            value, expected, rtol=500 * eps, atol=float(100 * eps * size), equal_nan=True, msg=name
        )
    return got


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, dtype):
    check(hmm(*shape, dtype), torch.linspace(-1.5, 2, shape[0] + 1)[1:])


def test_ragged(dtype):
    lengths = torch.tensor([5000, 2, 1, 1200, 4999, 700])
    check(hmm(6, 5000, 4, dtype).with_(lengths=lengths), torch.tensor([1, 2, 0.5, 0, -1, 1]))


@pytest.mark.parametrize("stay", [0.9, 0.99, 0.999999])
def test_chains_that_forget_slowly(stay, dtype):
    case = hmm(1, 9000, 4, dtype, scale=0.05)
    move = (1 - stay) / 3
    case.transition[:] = torch.full((4, 4), move, dtype=F64).fill_diagonal_(stay).to(dtype)
    check(case)


@pytest.mark.parametrize("where", [slice(512, 2000), slice(8000, 9000), slice(3000, 3300)])
def test_frames_that_say_nothing(where, dtype):
    """The probe may miss them; they carry the past across a cut."""
    case = hmm(1, 9000, 2, dtype)
    case.transition[:] = torch.tensor([[0.9999, 1e-4], [1e-4, 0.9999]])
    case.log_obs[:, where] = 0.0
    check(case)


def test_almost_periodic(dtype):
    case = hmm(1, 9000, 5, dtype, scale=0.01)
    cycle = torch.eye(5, dtype=F64).roll(1, 1)
    case.transition[:] = (0.999 * cycle + 0.001 / 5).to(dtype)
    check(case)


def test_left_right(dtype):
    case = hmm(1, 9000, 3, dtype)
    case.initial[:] = torch.tensor([1.0, 0, 0])
    case.transition[:] = torch.tensor([[0.999, 0.001, 0], [0, 0.999, 0.001], [0, 0, 1]])
    check(case)


def test_outliers(dtype):
    case = hmm(1, 9000, 3, dtype)
    case.log_obs[:, 4000:4005] -= 1e5
    case.log_obs[:, 6000, 1:] = -math.inf
    check(case)


@pytest.mark.parametrize("frame", [0, 4000, 8999])
def test_an_impossible_frame(frame, dtype):
    case = hmm(2, 9000, 3, dtype)
    case.log_obs[0, frame] = -math.inf
    got = check(case)
    assert got["log_likelihood"].isneginf().tolist() == [True, False]
    assert (got["posteriors"][0] == 0).all()


@pytest.mark.parametrize("frame", [0, 4000, 8999])
def test_nan(frame, dtype):
    case = hmm(2, 9000, 3, dtype)
    case.log_obs[1, frame, 2] = math.nan
    got = ops.hmm_forward_backward(*case.tensors)
    assert got.log_likelihood.isnan().tolist() == [False, True]
    alone = ops.hmm_forward_backward(case.log_obs[:1], *case.tensors[1:])
    torch.testing.assert_close(got.posteriors[:1], alone.posteriors)
    assert got.posteriors[1].isnan().all()


def test_unnormalised_potentials(dtype):
    case = hmm(1, 9000, 3, dtype)
    check(case.with_(transition=case.transition * 3, initial=case.initial * 5))
