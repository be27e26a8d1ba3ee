"""The compiled module, bound to torch's thread pool.

`library` is ``evidens._C``.  Its pool is torch's own (``torch_parallel_for``, C linkage, exported
by libtorch since 2.10), so ``torch.set_num_threads`` is obeyed and nothing is oversubscribed.
"""

from __future__ import annotations

import ctypes
import os

import torch

from evidens import _C as library

__all__ = ["library", "pool"]


def _address(handle: ctypes.CDLL, symbol: str) -> int:
    return ctypes.cast(getattr(handle, symbol), ctypes.c_void_p).value or 0


def _bind() -> str:
    handle = ctypes.CDLL(torch._C.__file__)
    try:
        library.set_pool(
            _address(handle, "torch_parallel_for"), _address(handle, "torch_get_num_threads")
        )
    except AttributeError as error:
        raise ImportError(
            f"evidens needs torch >= 2.10 for its thread pool, found torch {torch.__version__}; "
            "install a newer torch."
        ) from error
    # A forked child inherits a pool without threads and would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: library.set_pool(0, 0))
    return "torch"


pool = _bind()
