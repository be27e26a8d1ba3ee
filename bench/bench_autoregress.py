"""Cached sampling beside full passes: nflows' flows, and the plain loops in torch.

The limit counts the arithmetic of one masked pass over what is drawn, at the GEMM rate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from evidens import ops

from . import torch_autoregress
from .harness import OURS, Case, CheckFailed, Floor, Needs, Output, Provider, Setup

LOOP = "torch, full passes"
NFLOWS = "nflows"
#: Rows, features, hidden units, layers of a flow.
FLOWS = {"full": (256, 63, 512, 5), "quick": (64, 21, 128, 2), "smoke": (3, 4, 8, 2)}
#: Rows, features, hidden units.
MADES = {"full": (64, 784, 500), "quick": (16, 196, 100), "smoke": (3, 5, 8)}
#: Images, side, hidden channels, levels.
PIXELS = {"full": (16, 28, 64, 256), "quick": (4, 10, 32, 64), "smoke": (2, 4, 6, 5)}


def _flow(rows: int, features: int, hidden: int, layers: int) -> Setup:
    nets = [torch_autoregress.made(features, 2, (hidden, hidden), seed=i) for i in range(layers)]
    for net in nets:  # scales near one, so that five layers stay finite
        net.weights[-1] = net.weights[-1] * 0.1
    z = ops.made_noise("affine", rows, features, seed=1)

    def ours() -> Output:
        x, total = z, torch.zeros(rows)
        for net in nets:
            x, logdet = ops.made_sample(
                x, net.weights, net.biases, net.degrees, scale_map="softplus", inverse=True
            )
            x, total = x.flip(1), total + logdet
        return {"x": x, "logdet": total}

    providers = [Provider(OURS, ours)]
    setup = Setup(providers, 1e-3)
    setup.needs = Needs(flops=2.0 * rows * sum(net.multiply_adds for net in nets))
    try:
        flow = _nflows(nets, features, hidden)
    except ImportError as error:
        setup.unavailable[NFLOWS] = str(error)
        return setup

    def incumbent() -> Output:
        x, total = z, torch.zeros(rows)
        with torch.no_grad():
            for layer in flow:
                x, logdet = layer.inverse(x)
                x, total = x.flip(1), total + logdet
        return {"x": x, "logdet": total}

    providers.append(Provider(NFLOWS, incumbent))
    return setup


def _nflows(nets: list, features: int, hidden: int) -> list:
    from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform

    swap = torch.arange(2 * features).view(features, 2).flip(1).flatten()  # scale before shift
    flow = []
    for net in nets:
        layer = MaskedAffineAutoregressiveTransform(
            features, hidden, num_blocks=1, use_residual_blocks=False
        )
        made = layer.autoregressive_net
        linear = [made.initial_layer, made.blocks[0].linear, made.final_layer]
        with torch.no_grad():
            for i, (module, weight, bias) in enumerate(zip(linear, net.weights, net.biases)):
                module.weight.copy_(weight if i < 2 else weight[swap])
                module.bias.copy_(bias if i < 2 else bias[swap])
        flow.append(layer.eval())
    return flow


def _draws(calls: dict[str, Callable[[], Tensor]], flops: float) -> Setup:
    """Providers that draw the same rows from the same uniforms."""

    def check(outputs: dict[str, Output]) -> dict[str, float]:
        # A uniform may lie within rounding of a threshold, and what follows in its row differs.
        ours = outputs[OURS]["x"].flatten(1)
        errors = {OURS: 0.0}
        for name, output in outputs.items():
            other = output["x"].flatten(1).to(ours.dtype)
            errors[name] = float((ours != other).any(1).double().mean())
            if errors[name] > 1 / 8:
                raise CheckFailed(f"{OURS} and {name} differ in {errors[name]:.0%} of the rows")
        return errors

    providers = [Provider(name, lambda call=call: {"x": call()}) for name, call in calls.items()]
    return Setup(providers, check=check, needs=Needs(flops=flops))


def _made(rows: int, features: int, hidden: int) -> Setup:
    net = torch_autoregress.made(features, 1, (hidden, hidden))
    u = ops.made_noise("bernoulli", rows, features, seed=1)
    calls = {
        OURS: lambda: ops.made_sample(u, net.weights, net.biases, net.degrees, kind="bernoulli"),
        LOOP: lambda: torch_autoregress.bernoulli_loop(net, u),
    }
    return _draws(calls, 2.0 * rows * net.multiply_adds)


def _pixelcnn(images: int, side: int, hidden: int, levels: int) -> Setup:
    layers = torch_autoregress.pixelcnn(hidden, levels)
    u = ops.pixelcnn_noise("categorical", images, 1, side, side, seed=1)
    seen = (2 / (levels - 1), -1.0)
    calls = {
        OURS: lambda: ops.pixelcnn_sample(u, layers, levels=levels, input_map=seen),
        LOOP: lambda: torch_autoregress.pixel_loop(layers, u, levels),
    }
    work = torch_autoregress.pixel_multiply_adds(layers)
    return _draws(calls, 2.0 * images * side * side * work)


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    pace = {"rounds": 3, "budget": 1.0} if size != "full" else {"rounds": 5, "budget": 10.0}
    rows: list[Case] = []

    def add(name: str, work: str, build: Callable[[], Setup], *floors: Floor, **options) -> None:
        rows.append(Case(name, work, "float32", build, floors, **{**pace, **options}))

    n, d, h, layers = FLOWS[size]
    add(f"maf-sample-{n}x{d}", f"MAF, {n} draws, D = {d}, {layers} x ({h}, {h})",
        functools.partial(_flow, *FLOWS[size]), Floor("ratio", 30, NFLOWS))  # fmt: skip
    n, d, h = MADES[size]
    add(f"made-sample-{n}x{d}", f"MADE, {n} binary draws, D = {d}, ({h}, {h})",
        functools.partial(_made, *MADES[size]), error="rows that differ")  # fmt: skip
    n, side, h, levels = PIXELS[size]
    add(f"pixelcnn-sample-{n}x{side}x{side}",
        f"PixelCNN, {n} images, {side} x {side}, {h} channels, {levels} levels",
        functools.partial(_pixelcnn, *PIXELS[size]), Floor("ratio", 150, LOOP),
        error="images that differ")  # fmt: skip
    return rows


def test_autoregress(bench_case) -> None:
    """One row of the table."""
    bench_case()
