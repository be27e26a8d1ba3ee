"""Triton kernels, one module per stem: imported only where a tensor lives on a GPU.

Nothing is imported here, so that `evidens` works where Triton is not installed.
"""
