"""Every kernel compiles for sm_90 as its launcher calls it, on a machine without a GPU.

The interpreter accepts what the compiler refuses, so the launchers are also run in a process where
a launch compiles instead (this file as a program), and the compiled code is looked at here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
DTYPES = ("float32", "float64")
# (D, K): arguments of 1, odd sizes within one block of features, aligned ones over several.
SIZES = ((1, 1), (17, 5), (128, 64))
OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}
# States of a hidden Markov model whose matrices are shared, and whose matrices vary.
SHARED_STATES, VARYING_STATES = (1, 70), (1, 17)
# Features and bins of splines: one of each, and more than a tile of them.
SPLINES = ((1, 1), (40, 64))
# Shapes of an x that is coupled: nothing but arguments of 1, one block of a row, and images.
COUPLINGS = ((1, 1), (37, 17), (3, 5, 1024))
# Shapes of images under a mixture: arguments of 1, and several blocks of a row.
IMAGES = ((1, 1, 1, 1), (3, 3, 16, 17))
# Rows, visible and hidden units: arguments of 1, and several blocks of each.
MACHINES = ((1, 1, 1), (37, 78, 70))
# States for which a block of sequences times the matrix is one product: held, and streamed.
PRODUCT_STATES = (17, 96)
SHARED_MEMORY = 227 * 1024  # of a thread block on sm_90


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict]:
    """One record for each kernel, specialisation and case."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", __file__],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_gmm(compiled, covariance_type, dtype):
    family = "_gmm_product" if covariance_type in ("full", "tied") else "_gmm_diagonal"
    names = {f"{family}.{stage}_kernel" for stage in ("log_prob", "moments", "input_gradient")}
    check(compiled, f"{covariance_type} {dtype}", names | {"_gmm_diagonal.responsibilities_kernel"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_philox(compiled, dtype):
    check(compiled, f"philox {dtype}", {"philox._uniform_kernel"})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["shared", "varying"])
def test_hmm(compiled, kind, dtype):
    names = {f"_hmm_linear.{stage}_kernel" for stage in ("forward", "backward")}
    names |= {f"_hmm_log.{stage}_kernel" for stage in ("forward", "backward", "pairs")}
    names |= {f"_hmm_paths.{stage}_kernel" for stage in ("score", "trace", "draw")}
    if kind == "shared":
        names |= {"_hmm_linear.pair_sums_kernel"}
    check(compiled, f"hmm {kind} {dtype}", names)


def test_hmm_blocks_of_sequences(compiled):
    names = {f"_hmm_linear.{stage}_kernel" for stage in ("forward", "backward", "pair_sums")}
    check(compiled, "hmm product", names)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parameters", ["knots", "nflows", "zuko"])
def test_spline(compiled, parameters, dtype):
    names = {"_spline_forward.forward_kernel", "_spline_backward.backward_kernel"}
    check(compiled, f"spline {parameters} {dtype}", names)


@pytest.mark.parametrize("dtype", DTYPES)
def test_coupling(compiled, dtype):
    names = {"affine_kernel", "actnorm_kernel", "actnorm_sums_kernel"}
    check(compiled, f"coupling {dtype}", {f"_coupling_maps.{name}" for name in names})


@pytest.mark.parametrize("dtype", DTYPES)
def test_autoregress(compiled, dtype):
    check(compiled, f"autoregress {dtype}", {"autoregress.made_kernel"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_pixelcnn(compiled, dtype):
    check(compiled, f"pixelcnn {dtype}", {"_pixelcnn_pixels.pixel_kernel"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_conv(compiled, dtype):
    names = {"product_kernel", "weight_kernel"}
    check(compiled, f"masked {dtype}", {f"_masked_conv_products.{name}" for name in names})


@pytest.mark.parametrize("dtype", DTYPES)
def test_logistic_mixture(compiled, dtype):
    names = {f"_logistic_mixture_bins.{name}_kernel" for name in ("log_prob", "sample")}
    check(compiled, f"logistic mixture {dtype}", names)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rbm_partition(compiled, dtype):
    names = {"_rbm_anneal.hidden_kernel", "_rbm_anneal.visible_kernel"}
    check(compiled, f"rbm partition {dtype}", names)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rbm(compiled, dtype):
    names = {"half_kernel", "softmax_kernel", "free_energy_kernel", "sums_kernel", "columns_kernel"}
    check(compiled, f"rbm {dtype}", {f"_rbm_units.{name}" for name in names})


def check(compiled, case, names):
    records = [record for record in compiled if record["case"] == case]
    assert {record["kernel"] for record in records} == names
    for record in records:
        assert record["cubin"] > 0
        assert record["shared"] <= SHARED_MEMORY, record
        # Products are of float32 or of the bfloat16 that make it up, and no sum depends on the
        # order of arrival.
        assert not record["tf32"], record
        assert not record["atomics"], record


def main() -> None:
    import importlib

    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    from evidens.reference.autoregress import ACTIVATIONS
    from evidens.reference.coupling import SCALE_MAPS
    from evidens.reference.rbm import HIDDEN, VISIBLE

    stems = (
        "autoregress coupling gmm hmm _hmm_plan logistic_mixture masked_conv philox pixelcnn rbm"
    )
    (
        autoregress,
        coupling,
        gmm,
        hmm,
        hmm_plan,
        logistic_mixture,
        masked,
        philox,
        pixelcnn,
        rbm,
        spline,
    ) = (importlib.import_module(f"evidens.kernels.{name}") for name in (*stems.split(), "spline"))
    types = {
        torch.float32: "*fp32",
        torch.float64: "*fp64",
        torch.int8: "*i8",
        torch.int32: "*i32",
        torch.int64: "*i64",
    }
    case, done = "", {}

    def source(kernel, arguments):
        """What Triton's own launcher would compile for these arguments."""
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            name, value = parameter.name, arguments[parameter.name]
            if isinstance(value, torch.Tensor):
                signature[name] = types[value.dtype]
                aligned = value.data_ptr() % 16 == 0
            elif parameter.is_constexpr or value is None:
                signature[name], constants[name], aligned = "constexpr", value, False
            elif value == 1 and not parameter.do_not_specialize:
                signature[name], constants[name], aligned = "constexpr", value, False
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                aligned = value % 16 == 0 and not parameter.do_not_specialize
            if aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(kernel, signature, constants, attributes)

    def compile_instead(kernel, *args, grid, warmup, **kwargs):
        options = {
            name: kwargs.pop(name) for name in ("num_warps", "enable_fp_fusion") if name in kwargs
        }
        src = source(kernel, dict(zip(kernel.arg_names, args)) | kwargs)
        key = (case, src.hash(), str(options))
        if key in done:
            return
        built = triton.compile(src, target=GPUTarget("cuda", 90, 32), options=options)
        ptx = built.asm["ptx"]
        done[key] = {
            "case": case,
            "kernel": f"{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}",
            "cubin": len(built.asm["cubin"]),
            "shared": built.metadata.shared,
            "tf32": "tf32" in ptx,
            "atomics": re.search(r"\b(atom|red)\.", ptx) is not None,
        }

    JITFunction.run = compile_instead
    for name in DTYPES:
        dtype = getattr(torch, name)
        for kind in COVARIANCE_TYPES:
            case = f"{kind} {name}"
            for d, k in SIZES:
                shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[kind]
                x, r = torch.ones(37, d, dtype=dtype), torch.ones(37, k, dtype=dtype)
                means, p = torch.ones(k, d, dtype=dtype), torch.ones(shape, dtype=dtype)
                mixture = (torch.ones(k, dtype=dtype), means, p, kind)
                gmm.gmm_component_log_prob(x, *mixture)
                gmm.gmm_log_prob(x, *mixture)
                gmm.gmm_input_gradient(x, r, *mixture[1:])
                gmm.gmm_statistics(x, *mixture)
                labels = torch.zeros(37, dtype=torch.int64)
                gmm.gmm_statistics(x, *mixture, x[:, 0].contiguous(), labels)
        case = f"philox {name}"
        for seed, step, offset in ((1, 1, 1), (2**60, 2**32 - 1, 2**40)):
            philox.philox_uniform(seed, step, 5, 7, dtype, offset, device="cpu")

    def sequences(k, dtype, varying=False):
        """Two of them, of 3 and 2 frames."""
        log_obs, initial = torch.ones(5, k, dtype=dtype), torch.ones(2, k, dtype=dtype)
        transition = torch.ones(((3, k, k) if varying else (k, k)), dtype=dtype)
        where = (torch.tensor(x) for x in ((0, 3), (3, 2), (0, 2)))
        return log_obs, initial, transition, *where

    # The kernels in logs are launched for sequences that are marked.
    hmm._marked = lambda redo: torch.arange(redo.shape[0])
    for name in DTYPES:
        dtype = getattr(torch, name)
        for kind, states in (("shared", SHARED_STATES), ("varying", VARYING_STATES)):
            case = f"hmm {kind} {name}"
            for k in states:
                s = sequences(k, dtype, kind == "varying")
                hmm.hmm_log_likelihood(*s)
                hmm.hmm_filter(*s)
                hmm.hmm_forward_backward(*s, None, False)
                hmm.hmm_forward_backward(*s, s[1][:, 0].contiguous(), True)
                hmm.hmm_forward_backward(*s, s[1][:, 0].contiguous(), False)
                hmm.hmm_viterbi(*s)
                hmm.hmm_sample_paths(*s, 2**60, 3)
    case, hmm_plan._DOT_SEQUENCES = "hmm product", 1
    hmm._marked = lambda redo: torch.arange(0)
    for k in PRODUCT_STATES:
        hmm.hmm_log_likelihood(*sequences(k, torch.float32))
        hmm.hmm_forward_backward(*sequences(k, torch.float32), None, False)

    def layers(kind, tails, d, bins, dtype, inverse):
        """A layer on some of the features, forward and backward."""
        knots, listed = bins + (kind == "knots"), len(tails) > 1
        count = bins + 1 if kind == "knots" or listed else max(bins - 1, 1)
        x, params = (
            torch.ones(37, d + 1, dtype=dtype),
            torch.ones(37, d, 2 * knots + count).to(dtype),
        )
        rest = (bins, kind, tails, [-1.0, 1.0] * 2 * len(tails), [1e-3] * 6, inverse)
        spline.spline_coupling(x, params, torch.arange(d), *rest)
        spline.spline_coupling_backward(x, params, torch.arange(d), x, x[:, 0], *rest)

    for name in DTYPES:
        dtype = getattr(torch, name)
        for kind in ("knots", "nflows", "zuko"):
            case = f"spline {kind} {name}"
            for inverse in (False, True):
                layers(kind, [1], 7, 8, dtype, inverse)
            layers(kind, [0, 1, 2], 2, 5, dtype, False)
    case = "spline nflows float32"
    for d, bins in SPLINES:
        layers("nflows", [1], d, bins, torch.float32, True)
    x, w = torch.ones(37, 7), torch.ones(37, 7, 8)
    rest = ("nflows", [2], [-1.0, 1.0] * 2, [1e-3] * 6, False)
    spline.rational_quadratic_spline(x, w, w, w, *rest)
    for y, logdet in ((x, x), (None, x), (x, None)):
        spline.rational_quadratic_spline_backward(x, w, w, w, y, logdet, *rest)
    params = torch.cat((w, w, w), 2)
    spline.spline_coupling(x, params, None, 8, *rest)
    spline.spline_coupling_backward(x, params, None, x, None, 8, *rest)
    for name in DTYPES:
        case, dtype = f"logistic mixture {name}", getattr(torch, name)
        for n, c, h, w in IMAGES:
            x = torch.zeros(n, c, h, w, dtype=dtype)
            params = torch.zeros(n, 3 if c == 1 else 50, h, w, dtype=dtype)
            for p in (params, params.contiguous(memory_format=torch.channels_last)):
                logistic_mixture.log_prob(x, p, 256, -7.0)
                logistic_mixture.log_prob_backward(x, p, x[:, 0], 256, -7.0)
                logistic_mixture.sample(p, c, 256, -7.0, 2**40, 0, 0)
    for name in DTYPES:
        case, dtype = f"rbm {name}", getattr(torch, name)
        for n, units, j in MACHINES:
            v, h = torch.ones(n, units, dtype=dtype), torch.ones(n, j, dtype=dtype)
            tensors = torch.ones(j, units, dtype=dtype), v[0], h[0]
            mask = torch.ones(n, units, dtype=torch.bool)
            for visible, hidden in zip(VISIBLE, (*HIDDEN, *HIDDEN)):
                levels = units if visible == "softmax" else 0
                variance = v[0] if visible == "gaussian" else None
                for given in ((None, None, None), (v[:, 0], mask, v)):
                    rest = visible, hidden, levels, "visible", 1, given[0] is not None, 2**40, 5, 7
                    rbm.rbm_gibbs(v, *tensors, variance, *given, *rest)
                rbm.rbm_free_energy(v, *tensors, variance, v[:, 0], visible, hidden)
                rbm.rbm_statistics(v, *tensors, variance, *(None,) * 5, hidden)
            rbm.rbm_statistics(v, *tensors, None, h, v[:, 0], v, h, None, "spin")
    for name in DTYPES:
        case, dtype = f"coupling {name}", getattr(torch, name)
        for shape in COUPLINGS:
            x, index = torch.ones(shape, dtype=dtype), torch.arange(shape[1])
            rest, all_three = (0, 0.0, False), (True, True, True)
            for given in ((x, x, None), (x, x, index), (None, x, None), (x, None, index)):
                coupling.affine_coupling(x, *given, *rest)
                coupling.affine_coupling_backward(x, *given, x, x[:, 0], *rest, *all_three)
            coupling.affine_coupling_backward(x, x, x, None, None, None, *rest, False, True, False)
            log_scale = torch.ones(shape[1], dtype=dtype)
            for inverse in (False, True):
                coupling.actnorm(x, log_scale, log_scale, inverse)
                coupling.actnorm_backward(x, log_scale, log_scale, x, inverse, True)
        x = torch.ones(COUPLINGS[1], dtype=dtype)
        for scale_map in range(len(SCALE_MAPS)):
            for rest in ((scale_map, 0.5, False), (scale_map, 0.5, True)):
                coupling.affine_coupling(x, x, x, None, *rest)
                coupling.affine_coupling_backward(x, x, x, None, x, x[:, 0], *rest, *all_three)

    def made(kind, parameters, dtype, activation=1, scale_map=0, inverse=False, **changes):
        """A network of three features and one hidden layer."""
        features = torch.arange(3)
        given = {"levels": 0, "spline_map": 1, "tails": [1], "context": None, "known": None}
        given |= changes
        levels = given["levels"]
        weights = [torch.ones(5, 3 * max(levels, 1)), torch.ones(3 * parameters, 5)]
        noise = torch.ones(37, 3, 2 if kind == 3 else 1, dtype=dtype)
        autoregress.made_sample(
            noise, [w.to(dtype) for w in weights], [None, None],
            [features, torch.arange(5) % 3], given["context"], given["known"],
            None if given["known"] is None else noise[..., 0], kind, activation, levels,
            [1.0, 0.0], scale_map, 0.5, inverse, 4, given["spline_map"], given["tails"],
            [-1.0, 1.0] * 2 * len(given["tails"]), [1e-3] * 6,
        )  # fmt: skip

    for name in DTYPES:
        case, dtype = f"autoregress {name}", getattr(torch, name)
        known = torch.ones(37, 3, dtype=torch.bool)
        context = torch.ones(37, 5, dtype=dtype)
        for activation in range(len(ACTIVATIONS)):
            made(0, 2, dtype, activation, context=context)
        for scale_map in range(len(SCALE_MAPS)):
            for inverse in (False, True):
                made(0, 2, dtype, 1, scale_map, inverse)
        for kind, parameters, levels in ((1, 1, 2), (2, 7, 7), (3, 9, 0)):
            made(kind, parameters, dtype, levels=levels, known=known)
        for spline_map, tails, count in ((1, [1], 3), (2, [2], 4), (1, [0, 1, 2], 5)):
            for inverse in (False, True):
                words = {"spline_map": spline_map, "tails": tails, "known": known}
                made(4, 8 + count, dtype, inverse=inverse, **words)
    for name in DTYPES:
        case, dtype = f"pixelcnn {name}", getattr(torch, name)
        many = torch.ones(12, 6, 3, 3, dtype=dtype)
        taps, known = [True] * 4 + [False] * 5, torch.ones(3, 3, 5, 4, dtype=torch.bool)
        # A row at a time, a gate, and a layer without a weight; three colours in groups.
        program = [0, -1, 0, 0, 1, 1, -1, 100, 0, 1, 2, 1, 100, 0, 0, 3, -1, 1, 0, 0]
        told = [many[0, :3, 0, 0][:, None].expand(3, 12).contiguous(), None, None, None]
        for kind, channels, groups, one_hot in (
            (0, 3, 3, False), (1, 3, 3, True), (2, 3, 1, False), (2, 1, 1, True)
        ):  # fmt: skip
            shown = channels * 3 if one_hot else channels
            outputs = {0: 3, 1: 9, 2: 10 if channels == 3 else 3}[kind]
            noise = torch.ones(3, channels + (kind == 2), 5, 4, dtype=dtype)
            first, last = (
                torch.ones(*size, 3, 3, dtype=dtype) for size in ((12, shown), (outputs, 6))
            )
            net, held = [first, many[:0, :0, :1, :1], many, last], known[:, :channels]
            pixelcnn.pixelcnn_sample(
                noise, net, [None] * 4, [*taps, True, *taps, *taps], told, held, held.long(),
                program, kind, channels, 3, groups, one_hot, [1.0, 0.0], -7.0,
            )  # fmt: skip
        # One layer of one tap, and nothing else.
        pixelcnn.pixelcnn_sample(
            noise[:, :1], [first[:1, :1, :1, :1]], [None], [True], [None], None, None,
            [0, -1, 0, 1, 0], 0, 1, 2, 1, False, [1.0, 0.0], -7.0,
        )  # fmt: skip
    for name in DTYPES:
        case, dtype = f"masked {name}", getattr(torch, name)
        for n, c, o, groups in ((1, 1, 1, 1), (3, 9, 15, 3)):
            x, weight = torch.ones(n, c, 5, 4, dtype=dtype), torch.ones(o, c, 3, 3, dtype=dtype)
            given = (list(range(5)), False, groups)
            for bias in (weight[:, 0, 0, 0], None):
                y = masked.masked_conv2d(x, weight, bias, *given)
            masked.masked_conv2d_backward(x, weight, y, *given, True, True, True)
            x, weight, degrees = (
                x[:, :, 0, 0],
                weight[:, :, 0, 0],
                (torch.arange(c), torch.arange(o)),
            )
            y = masked.masked_linear(x, weight, None, *degrees, None, None, False)
            rest = (*degrees, None, None, True, True, True, True)
            masked.masked_linear_backward(x, weight, y, *rest)
    rbm_partition = importlib.import_module("evidens.kernels.rbm_partition")
    for name in DTYPES:
        case, dtype = f"rbm partition {name}", getattr(torch, name)
        for units, hidden, levels in (
            (1, 1, 0), (1, 1, 1), (2, 1, 2), (78, 70, 0), (78, 70, 1), (78, 70, 3), (384, 9, 128),
        ):  # fmt: skip
            weight, betas = torch.ones(hidden, units, dtype=dtype), torch.ones(3).double()
            given = weight, weight[0], weight[:, 0], weight[0], betas
            rbm_partition.rbm_ais(*given, 37, levels, 2**40, 5)
    for record in done.values():
        print(json.dumps(record))


if __name__ == "__main__":
    main()
