"""The examples in the docstrings of the installed package are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import evidens

# Kernels need Triton and a device; `__main__` runs a command; the benchmarks are no library.
LEFT_OUT = ("evidens.kernels", "evidens.bench", "evidens.__main__", "evidens._C")
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(evidens.__path__, "evidens.")
    if not module.name.startswith(LEFT_OUT)
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", ["evidens", *MODULES])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=FLAGS).failed == 0


@pytest.mark.parametrize("name", evidens.ops.__all__)
def test_every_public_op_has_an_example(name):
    finder = doctest.DocTestFinder(recurse=False)
    assert any(test.examples for test in finder.find(getattr(evidens.ops, name)))
