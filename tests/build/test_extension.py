"""The installed package as a file: what it links to, what it ships, how it behaves."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from importlib.metadata import requires
from importlib.resources import files

import pytest
import torch

import evidens
from evidens import _C

RUNTIME = r"(libc|libm|libstdc\+\+|libgcc_s|libpthread|ld-linux-[\w-]+)\.so(\.\d+)*"


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (binutils)")
def test_needs_only_the_runtime():
    dynamic = subprocess.run(
        ["readelf", "--dynamic", "--wide", _C.__file__], check=True, capture_output=True, text=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert needed
    assert [name for name in needed if not re.fullmatch(RUNTIME, name)] == []


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python"
)
def test_free_threading_is_declared():
    # An extension that does not declare it makes the interpreter switch the lock back on.
    program = "import sys, evidens._C; print(sys._is_gil_enabled())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_typed_package_ships_stubs():
    package = files("evidens")
    assert (package / "py.typed").is_file()
    stub = (package / "_C.pyi").read_text()
    names = set(re.findall(r"^(?:def|class) (\w+)", stub, re.MULTILINE))
    assert names == {n for n in dir(_C) if callable(getattr(_C, n)) and not n.startswith("_")}


def test_run_time_dependencies():
    names = {
        re.split(r"[^\w-]", line)[0] for line in requires("evidens") or [] if "extra ==" not in line
    }
    assert names == {"torch", "numpy", "scikit-learn", "tqdm", "safetensors"}


def test_installed_not_the_source_tree():
    assert "site-packages" in evidens.__file__ or "dist-packages" in evidens.__file__


def test_large_results_take_over_the_memory_of_others():
    program = """
import pickle, torch
from evidens import _native
like, size = torch.zeros(1), (1 << 20, 2)  # 8 MB
first, second = _native.empty(like, size), _native.empty(like, size)
assert (first.shape, first.dtype, first._is_view()) == (size, torch.float32, False)
places = {first.data_ptr(), second.data_ptr()}
assert len(places) == 2
kept = second[1:]  # alive, and so is its memory
del first, second
kept.fill_(3.0)
again = _native.empty(like, (1 << 20,), torch.float64)
assert again.data_ptr() in places
other = _native.empty(like, size)
assert other.data_ptr() not in {again.data_ptr(), kept.data_ptr(), kept.data_ptr() - 8}
other.fill_(0.0)
again.fill_(0.0)
assert (kept == 3.0).all()
assert torch.equal(pickle.loads(pickle.dumps(kept)), kept)
"""
    # In a process of its own: what other tests gave back would fit as well.
    subprocess.run([sys.executable, "-c", program], check=True)


def test_memory_of_large_results_is_bounded():
    program = """
import resource, sys, torch
from evidens import _native
like = torch.zeros(1)
def peak():  # MB; Linux counts kilobytes, macOS bytes
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used >> (20 if sys.platform == "darwin" else 10)
before = peak()
for megabytes in list(range(8, 60, 4)) * 3:  # none takes over the memory of the one before
    _native.empty(like, (megabytes << 18,)).fill_(1.0)
print(peak() - before)
"""
    grown = int(subprocess.check_output([sys.executable, "-c", program]))
    assert grown < 56 + 16


def test_large_results_in_threads():
    from evidens import _native

    like, wrong = torch.zeros(1), []

    def work(number: int) -> None:
        for i in range(40):
            mine = _native.empty(like, (1 << 20, 1 + i % 3))
            mine.fill_(number)
            if not (mine == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
