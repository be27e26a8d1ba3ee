"""Where a kernel is launched."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def on(t: Tensor) -> contextlib.AbstractContextManager:
    """The device of ``t`` as the current one; nothing for CPU tensors, in the interpreter."""
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()
