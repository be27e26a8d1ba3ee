"""Numbers that kernels read from memory are made once, and never while a CUDA graph is recorded."""

from __future__ import annotations

import pytest
import torch

from evidens.kernels import _device


def test_a_constant_is_made_once(device):
    where = torch.empty(0, device=device).device
    values = ((0.1, -2.5), (1e300, 3.0))
    made = _device.constant(values, torch.float64, where)
    assert made.tolist() == [list(row) for row in values]
    assert made.device == where
    assert _device.constant(values, torch.float64, where) is made
    assert _device.constant((), torch.int64, where).shape == (0,)


def test_not_while_a_graph_is_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"run it with the same options outside torch\.cuda\.g"):
        _device.constant((123.0,), torch.float32, torch.device("cuda", 0))


def test_an_error_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        # No device has this number.
        _device.constant((1.0,), torch.float32, torch.device("cuda", 101))
    assert caught.type is not KeyError
