"""The compiled module, bound to torch's thread pool.

`library` is ``evidens._C``.  Its pool is torch's own (``torch_parallel_for``, C linkage, exported
by libtorch since 2.10), so ``torch.set_num_threads`` is obeyed and nothing is oversubscribed.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading

import torch

from evidens import _C as library

__all__ = ["Workspace", "address", "contiguous_rows", "empty", "library", "pool"]

_LARGE = 1 << 22  # bytes from which a result asks for huge pages


def _symbol(handle: ctypes.CDLL, symbol: str) -> int:
    return ctypes.cast(getattr(handle, symbol), ctypes.c_void_p).value or 0


def address(t: torch.Tensor | None) -> int:
    """Where the numbers of a tensor lie; 0 for none."""
    return 0 if t is None else t.data_ptr()


def contiguous_rows(t: torch.Tensor) -> torch.Tensor:
    """A matrix whose rows are contiguous: itself where they are."""
    return t if t.shape[1] < 2 or t.stride(1) == 1 else t.contiguous()


def empty(
    like: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An uninitialised result on the device of ``like``, which the kernel will fill whole."""
    held: Workspace | None = getattr(_here, "workspace", None)
    if held is not None and math.prod(shape) * (dtype or like.dtype).itemsize >= _LARGE:
        return held.take(like, shape, dtype or like.dtype)
    # Sizes one by one: a tuple of them costs half a microsecond.
    plain = dtype is None and len(shape) > 0
    result = like.new_empty(*shape) if plain else like.new_empty(shape, dtype=dtype)
    if result.nbytes >= _LARGE:
        library.expect_whole(result.data_ptr(), result.nbytes)
    return result


_here = threading.local()


class Workspace:
    """Memory for the large results of a step that is made many times.

    What `empty` gives inside of ``with workspace:`` lies where that of the last time lay, which
    must be dead by then: new memory costs a page fault for every few thousand numbers.
    """

    def __init__(self) -> None:
        self._held: list[torch.Tensor] = []
        self._taken = 0

    def __enter__(self) -> Workspace:
        self._taken, self._outer = 0, getattr(_here, "workspace", None)
        _here.workspace = self
        return self

    def __exit__(self, *error: object) -> None:
        _here.workspace = self._outer

    def take(self, like: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next tensor, uninitialised."""
        place, count = self._taken, math.prod(shape)
        self._taken += 1
        if place < len(self._held):
            held = self._held[place]
            if held.numel() >= count and held.dtype is dtype and held.device == like.device:
                return held[:count].view(shape)
            del self._held[place:]
        with torch.inference_mode(False):
            held = like.new_empty(count, dtype=dtype)
        library.expect_whole(held.data_ptr(), held.nbytes)
        self._held.append(held)
        return held.view(shape)


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
