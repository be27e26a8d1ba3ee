"""The seam of the ops: the torch registrations, the choice of backend, autocast, `info`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from ops.gmm_cases import OPS, TYPES, as_tuple, check, mixture

import evidens
from evidens import ops
from evidens.ops import _registry

ALL = (*OPS, "philox_uniform")
SEQUENCES = (  # test_hmm_{gradients,gaussian}.py have the same tests of these
    "hmm_filter",
    "hmm_forward_backward",
    "hmm_gaussian_statistics",
    "hmm_log_likelihood",
    "hmm_sample_paths",
    "hmm_viterbi",
)
FLOWS = (  # and test_coupling_transforms.py and test_spline*.py of these
    "actnorm",
    "affine_coupling",
    "invertible_linear",
    "rational_quadratic_spline",
    "spline_coupling",
)
# test_{autoregress,pixelcnn,masked_conv,logistic_mixture}*.py of these.
AUTOREGRESSIVE = (
    "logistic_mixture_log_prob",
    "logistic_mixture_sample",
    "made_noise",
    "made_sample",
    "masked_conv2d",
    "masked_linear",
    "pixelcnn_noise",
    "pixelcnn_sample",
)
MACHINES = (  # test_rbm*.py of these
    "rbm_ais",
    "rbm_exact_log_partition",
    "rbm_free_energy",
    "rbm_gibbs",
    "rbm_pcd",
    "rbm_statistics",
)
# Of torch's own ops and of other ops, so there is nothing to register.
COMPOSITE = ("invertible_linear", "made_noise", "pixelcnn_noise")
# They keep a state from call to call, which no schema has.
STEPWISE = ("made_start", "made_step", "pixelcnn_start", "pixelcnn_step")


def call(op, case, **changes):
    if op == "philox_uniform":
        return ops.philox_uniform(1, 2, 3, 4)
    return getattr(ops, op)(*case.with_(**changes).arguments(op))


@pytest.fixture
def case():
    return mixture(9, 3, 2, "full", torch.float32, below=0.0)


# --- registrations --------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("n", [0, 6])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, n, covariance_type):
    case = mixture(n, 3, 2, covariance_type, torch.float64, below=0.0)
    code = TYPES.index(covariance_type)
    arguments = [code if a is covariance_type else a for a in case.arguments(op)]
    inner = getattr(torch.ops.evidens, op).default
    if op != "gmm_statistics":
        torch.library.opcheck(inner, arguments)
        return
    weight, labels = torch.rand(n).double(), torch.randint(-1, 2, (n,))
    for more in ((None, None), (weight, None), (None, labels), (weight, labels)):
        torch.library.opcheck(inner, [*arguments, *more])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_philox(dtype):
    inner = torch.ops.evidens.philox_uniform.default
    torch.library.opcheck(inner, (1, 2, 3, 5, dtype, 4, torch.device("cpu")))


def test_opcheck_of_strided_rows(case):
    x = torch.randn(3, 9).T
    torch.library.opcheck(
        torch.ops.evidens.gmm_log_prob.default, (x, case.log_weights, case.means, case.p, 0)
    )


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_have_shapes_and_no_values(op, case, recwarn):
    expected = as_tuple(call(op, case))
    meta = case.with_(**{k: v.to("meta") for k, v in vars(case).items() if torch.is_tensor(v)})
    for e, a in zip(expected, as_tuple(call(op, meta))):
        assert (a.shape, a.dtype, a.device.type) == (e.shape, e.dtype, "meta")
    # Nothing is computed, so nothing is slow.
    assert [str(w.message) for w in recwarn] == []


def test_every_public_op_is_listed():
    assert sorted(ops.__all__) == sorted(
        (*ALL, *SEQUENCES, *FLOWS, *AUTOREGRESSIVE, *MACHINES, *STEPWISE)
    )
    # A gradient that is an op of its own is not public.
    gradients = {f"{name}_backward" for name in _registry.OPS} & set(_registry.OPS)
    assert {*_registry.OPS, *COMPOSITE, *STEPWISE} - gradients == set(ops.__all__)


# --- choice of backend ----------------------------------------------------------------------------


@pytest.mark.parametrize("op", ALL)
def test_the_cpu_backend_runs_the_compiled_kernel(op, case, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the compiled kernel was called")

    for function in ("gmm", "philox_uniform"):
        monkeypatch.setattr(evidens._native.library, function, refuse)
    for chosen in (_registry.contextlib.nullcontext(), evidens.backend("cpu")):
        with chosen, pytest.raises(AssertionError, match="compiled kernel was called"):
            call(op, case)
    with evidens.backend("reference"):
        call(op, case)


@pytest.mark.parametrize("op", OPS)
def test_the_gradient_runs_on_the_same_backend(op, case, monkeypatch):
    if not op.endswith("log_prob"):
        with pytest.raises(RuntimeError, match="offers no gradient"):
            call(op, case, x=case.x.requires_grad_())
        return
    x = case.x.requires_grad_()
    with evidens.backend("cpu"):
        y = call(op, case, x=x)
    monkeypatch.setattr(
        evidens._native.library, "gmm", lambda *a: (_ for _ in ()).throw(AssertionError("kernel"))
    )
    with pytest.raises(AssertionError, match="kernel"):
        y.sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_reference_backend_is_the_formula(op, case):
    with evidens.backend("reference"):
        got = as_tuple(call(op, case))
    want = as_tuple(getattr(evidens.reference.gmm, op)(*case.arguments(op)))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("op", ALL)
def test_triton_asked_for_on_cpu_tensors_says_why_not(op, case):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("under TRITON_INTERPRET=1 the triton backend does take CPU tensors")
    message = rf"evidens\.{op}: backend 'triton' was asked for, but (no CUDA|triton|the triton)"
    with (
        evidens.backend("triton"),
        pytest.raises(evidens.BackendError, match=message + r".*evidens\.info\(\)"),
    ):
        call(op, case)


@pytest.mark.parametrize("op", ALL)
def test_cuda_asked_for_says_that_there_is_no_kernel(op, case):
    message = rf"evidens\.{op}: backend 'cuda' was asked for, but evidens\.{op} has no cuda kernel"
    with evidens.backend("cuda"), pytest.raises(evidens.BackendError, match=message):
        call(op, case)


@pytest.mark.parametrize("name", ["gpu", "", "CPU", None])
def test_unknown_backend(name):
    with (
        pytest.raises(
            evidens.BackendError, match=r"evidens\.backend: expected one of reference, cpu, .*got"
        ),
        evidens.backend(name),
    ):
        pass


def test_backends_nest_and_end_with_an_exception(case):
    with evidens.backend("reference"):
        with evidens.backend("cpu"):
            assert evidens.info()["backend_override"] == "cpu"
        assert evidens.info()["backend_override"] == "reference"
        with pytest.raises(ZeroDivisionError), evidens.backend("cuda"):
            raise ZeroDivisionError
        assert evidens.info()["backend_override"] == "reference"
    assert evidens.info()["backend_override"] == (os.environ.get("EVIDENS_BACKEND") or None)


PROGRAM = """
import torch, evidens
print(evidens.info()["backend_override"])
evidens._native.library.philox_uniform = None
try:
    print(tuple(evidens.ops.philox_uniform(0, 0, 1, 2).shape))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("reference", ["reference", "(1, 2)"]),
        ("cpu", ["cpu", "TypeError 'NoneType' object is not callable"]),
        ("", ["None", "TypeError 'NoneType' object is not callable"]),
        ("cuda", ["cuda", "BackendError evidens.philox_uniform: backend 'cuda' was asked for"]),
    ],
)
def test_environment_variable(value, expected):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"EVIDENS_BACKEND": value},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all(line.startswith(start) for line, start in zip(lines, expected)), lines


def test_unknown_environment_variable():
    done = subprocess.run(
        [sys.executable, "-c", "import evidens"],
        env=os.environ | {"EVIDENS_BACKEND": "gpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "EVIDENS_BACKEND: expected one of reference, cpu, triton, cuda, got 'gpu'" in done.stderr


# --- autocast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_autocast_computes_in_float32(op, backend, case):
    with evidens.backend(backend):
        want = as_tuple(call(op, case))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = as_tuple(call(op, case))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("op", OPS[:2])
def test_autocast_of_a_network_before_the_op(op, case):
    """A bfloat16 result of autocast goes in; the gradient comes back through it."""
    layer = torch.nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = layer(case.x)
        assert hidden.dtype is torch.bfloat16
        y = call(op, case, x=hidden)
        assert y.dtype is torch.float32
        (inside,) = torch.autograd.grad(y.sum(), layer.weight, retain_graph=True)
    (outside,) = torch.autograd.grad(y.sum(), layer.weight)
    assert inside.isfinite().all()
    assert torch.equal(inside, outside)
    check(op, case.with_(x=hidden.detach().float()))


# --- info -----------------------------------------------------------------------------------------


def test_info_lists_every_op():
    info = evidens.info()
    assert set(info["ops"]) == set(_registry.OPS)
    for name, backends in info["ops"].items():
        assert set(backends) == set(_registry.BACKENDS)
        assert backends["reference"] == backends["cpu"] == "ok"
        assert backends["cuda"] == f"evidens.{name} has no cuda kernel"
    text = str(info)
    assert all(name in text for name in (*ALL, *_registry.BACKENDS, torch.__version__))
    assert info["subnormals_alive"] is True


def test_lazily_negated_tensors(case):
    """Their memory holds the other sign: the direct path past the dispatcher must not read it."""
    x = torch.complex(torch.zeros_like(case.x), -case.x).conj().imag
    assert x.is_neg()
    assert torch.equal(
        ops.gmm_log_prob(x, *case.parameters), ops.gmm_log_prob(case.x, *case.parameters)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_functions_compute(case):
    traced = torch.jit.trace(lambda x: ops.gmm_log_prob(x, *case.parameters), case.x)
    assert torch.equal(traced(case.x * 2), ops.gmm_log_prob(case.x * 2, *case.parameters))
