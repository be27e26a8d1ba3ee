"""The installed package as a file: what it links to, what it ships, how it behaves."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
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


def test_a_workspace_gives_the_same_memory_again():
    from evidens import _native

    like, size = torch.zeros(1), (1 << 20, 2)  # 8 MB
    workspace = _native.Workspace()
    with workspace:
        first, second = _native.empty(like, size), _native.empty(like, size, torch.float64)
        small = _native.empty(like, (3,))
    with workspace:
        again = _native.empty(like, (1 << 20, 1))
        wider = _native.empty(like, (1 << 21, 2), torch.float64)  # does not fit
        assert _native.empty(like, (3,)).data_ptr() != small.data_ptr()
    assert again.data_ptr() == first.data_ptr() != second.data_ptr()
    assert (again.shape, again.dtype) == ((1 << 20, 1), torch.float32)
    assert (wider.shape, wider.dtype) == ((1 << 21, 2), torch.float64)
    outside = _native.empty(like, size)
    assert outside.data_ptr() not in (again.data_ptr(), wider.data_ptr())
    with pytest.raises(RuntimeError), workspace:
        raise RuntimeError
    assert getattr(_native._here, "workspace", None) is None
