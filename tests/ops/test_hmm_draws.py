"""Paths drawn from hidden Markov models: their frequencies, and their seed."""

from __future__ import annotations

import pytest
import torch
from ops.hmm_cases import DTYPES, assert_within, hmm

from evidens import ops


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def test_frequencies_of_drawn_states(dtype):
    """Frames and pairs of frames, as often as their posteriors say."""
    case = hmm(2, 6, 4, dtype, zeros=0.2, seed=3)
    n = 10_000
    paths = ops.hmm_sample_paths(*case.tensors, n=n, seed=17)
    both = ops.hmm_forward_backward(*case.tensors, pairwise=True)
    assert both.log_likelihood.isfinite().all()
    one_hot = torch.nn.functional.one_hot(paths, 4).double()
    pairs = torch.einsum("nbti,nbtj->btij", one_hot[:, :, :-1], one_hot[:, :, 1:]) / n
    # Five standard deviations of a frequency; the seed is fixed, so is the outcome.
    for got, p in ((one_hot.mean(0), both.posteriors), (pairs, both.pairwise)):
        p = p.double()
        assert (got[p == 0] == 0).all()
        assert_within(got, p, 5 * (p * (1 - p) / n).clamp(min=0).sqrt() + 1e-3 / n)


def test_draws_take_the_seed_as_philox_does(dtype):
    case = hmm(3, 5, 4, dtype)

    def draw(seed):
        return ops.hmm_sample_paths(*case.tensors, n=50, seed=seed)

    assert torch.equal(draw(3), draw(3))
    assert torch.equal(draw(-1), draw(2**64 - 1))
    assert torch.equal(draw(5), draw(5 + 2**64))
    assert not torch.equal(draw(5), draw(6))
    assert torch.equal(ops.hmm_sample_paths(*case.tensors, n=7, seed=3), draw(3)[:7])
