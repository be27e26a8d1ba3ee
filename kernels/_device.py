"""Where a kernel is launched, and numbers that it reads from memory."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import Any

import torch
from torch import Tensor


def on(t: Tensor) -> contextlib.AbstractContextManager:
    """The device of ``t`` as the current one; nothing for CPU tensors, in the interpreter."""
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


@functools.cache
def constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Nested tuples of numbers as a tensor, made once: on a GPU it is a copy that is waited for.

    It is kept for good, since a CUDA graph may hold its address.

    Raises:
        RuntimeError: the current stream records a CUDA graph, in which nothing can be copied from
            the host.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "evidens: this call was recorded in a CUDA graph before it had run once; run it with "
            "the same options outside torch.cuda.graph first, as torch asks for any work"
        )
    made: list[Any] = []

    def make() -> None:
        try:
            made.append(torch.tensor(values, dtype=dtype, device=device))
        except BaseException as error:
            made.append(error)

    # While torch.compile warms its CUDA graphs up, memory of this thread is theirs and is reused.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]
