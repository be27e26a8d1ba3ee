"""The compiled module, bound to torch's thread pool.

`library` is ``evidens._C``.  Its pool is torch's own (``torch_parallel_for``, C linkage, exported
by libtorch since 2.10), so ``torch.set_num_threads`` is obeyed and nothing is oversubscribed.
"""

from __future__ import annotations

import ctypes
import math
import os

import torch

from evidens import _C as library

__all__ = ["address", "all_finite", "contiguous_rows", "empty", "library", "pool"]

_LARGE = (
    1 << 22
)  # bytes from which the memory of a result is that of one that is gone (csrc/results.h)


def _symbol(handle: ctypes.CDLL, symbol: str) -> int:
    return ctypes.cast(getattr(handle, symbol), ctypes.c_void_p).value or 0


def address(t: torch.Tensor | None) -> int:
    """Where the numbers of a tensor lie; 0 for none."""
    return 0 if t is None else t.data_ptr()


def all_finite(*tensors: torch.Tensor) -> bool:
    """Whether no number of float64 tensors on the CPU is NaN or infinite."""
    arrays = [t.contiguous() for t in tensors]
    return library.all_finite([(t.data_ptr(), t.numel()) for t in arrays])


def contiguous_rows(t: torch.Tensor) -> torch.Tensor:
    """A matrix whose rows are contiguous: itself where they are."""
    return t if t.shape[1] < 2 or t.stride(1) == 1 else t.contiguous()


def empty(
    like: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An uninitialised result on the CPU, which the kernel will fill whole."""
    size = math.prod(shape) * (dtype or like.dtype).itemsize
    if size < _LARGE:
        # Sizes one by one: a tuple of them costs half a microsecond.
        plain = dtype is None and len(shape) > 0
        return like.new_empty(*shape) if plain else like.new_empty(shape, dtype=dtype)
    memory = torch.frombuffer(library.Result(size), dtype=dtype or like.dtype)
    # No view of it: a view that a custom gradient returns could not be changed in place.
    return memory.new_empty(0).set_(memory.untyped_storage()).resize_(shape)


def _leave_pool() -> None:
    """In a forked child, which inherits the pool without its threads and would wait for ever."""
    library.set_pool(0, 0)
    # torch's own operations would wait as well, whoever has used the pool before.
    torch.set_num_threads(1)


def _bind() -> str:
    handle = ctypes.CDLL(torch._C.__file__)
    try:
        library.set_pool(
            _symbol(handle, "torch_parallel_for"), _symbol(handle, "torch_get_num_threads")
        )
    except AttributeError as error:
        raise ImportError(
            f"evidens needs torch >= 2.10 for its thread pool, found torch {torch.__version__}; "
            "install a newer torch."
        ) from error
    os.register_at_fork(after_in_child=_leave_pool)
    return "torch"


pool = _bind()
