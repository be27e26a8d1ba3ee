"""The fixtures that other tests rely on do what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def test_poison_fills_what_nobody_wrote(poison):
    x = torch.ones(2, 3)
    for fresh in (
        torch.empty(4),
        torch.empty_like(x),
        x.new_empty(2),
        torch.empty_strided((2,), (1,)),
    ):
        assert fresh.isnan().all()
    assert torch.empty(4, dtype=torch.float64).isnan().all()
    assert (torch.empty(4, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


def test_poison_ends():
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("run", [1, 2])
def test_every_test_starts_from_the_same_seed(run):
    assert torch.rand(()).item() == torch.rand((), generator=torch.Generator().manual_seed(0))
    assert np.random.rand() == np.random.RandomState(0).rand()


@pytest.mark.filterwarnings("default")
def test_warnings_can_be_relaxed_by_a_mark(recwarn):
    import warnings

    warnings.warn("seen, not raised", UserWarning, stacklevel=1)
    assert len(recwarn) == 1


def test_a_warning_is_an_error():
    import warnings

    with pytest.raises(UserWarning):
        warnings.warn("raised", UserWarning, stacklevel=1)
