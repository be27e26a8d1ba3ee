"""Cached sampling on a GPU beside full passes: masked flows, MADE and PixelCNN."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evidens import ops

from . import torch_autoregress
from .gpu import OURS, TORCH, case, setup
from .harness import Case, CheckFailed, Floor, Needs, Setup

#: Rows, features, hidden units.
FLOWS = {"full": (4096, 63, 512), "quick": (256, 21, 128), "smoke": (3, 4, 8)}
MADES = {"full": (4096, 784, 500), "quick": (64, 64, 100), "smoke": (3, 5, 8)}
#: Images, side, hidden channels, levels.
PIXELS = {"full": (64, 28, 64, 256), "quick": (4, 10, 32, 16), "smoke": (2, 4, 6, 5)}


def _on(net: torch_autoregress.Made, device: str) -> torch_autoregress.Made:
    parts = ([t.to(device) for t in ts] for ts in (net.weights, net.biases, net.degrees))
    return torch_autoregress.Made(*parts)


def _flow(shape: tuple[int, int, int], device: str) -> Setup:
    n, d, hidden = shape
    net = _on(torch_autoregress.made(d, 2, (hidden, hidden)), device)
    net.weights[-1] = net.weights[-1] * 0.1  # scales near one

    def typed(ts: list[Tensor], z: Tensor) -> list[Tensor]:
        return [t.to(z.dtype) for t in ts]

    def ours(z: Tensor) -> Tensor:
        words = {"scale_map": "exp", "inverse": True}
        given = typed(net.weights, z), typed(net.biases, z), net.degrees
        return ops.made_sample(z, *given, **words)[0]

    def passes(z: Tensor) -> Tensor:
        weights = [torch.where(m, w, 0.0) for m, w in zip(net.masks, typed(net.weights, z))]
        biases, x = typed(net.biases, z), torch.zeros_like(z)
        for i in range(d):
            h = x
            for j, (weight, bias) in enumerate(zip(weights, biases)):
                h = F.linear(h, weight, bias)
                h = h if j + 1 == len(weights) else F.relu(h)
            shift, scale = h[:, 2 * i], h[:, 2 * i + 1]
            x[:, i] = (z[:, i] - shift) * (-scale).exp()
        return x

    z = ops.made_noise("affine", n, d, seed=1, device=device)
    needs = Needs(flops=2.0 * n * net.multiply_adds)
    return setup(
        {OURS: ours, TORCH: passes}, passes, [z], device, tolerance=1e-3, needs=needs, graph=True
    )


def _made(shape: tuple[int, int, int], device: str) -> Setup:
    n, d, hidden = shape
    net = _on(torch_autoregress.made(d, 1, (hidden,)), device)
    noise = ops.made_noise("bernoulli", n, d, seed=1, device=device)

    def ours(u: Tensor) -> Tensor:
        return ops.made_sample(u, net.weights, net.biases, net.degrees, kind="bernoulli")

    functions = {OURS: ours, TORCH: functools.partial(torch_autoregress.bernoulli_loop, net)}
    return _draws(setup(functions, ours, [noise], device), 2.0 * n * net.multiply_adds)


def _pixels(shape: tuple[int, int, int, int], device: str) -> Setup:
    n, side, hidden, levels = shape
    layers = [
        layer._replace(weight=layer.weight.to(device), bias=layer.bias.to(device))
        for layer in torch_autoregress.pixelcnn(hidden, levels)
    ]
    noise = ops.pixelcnn_noise("categorical", n, 1, side, side, seed=1, device=device)
    words = {"levels": levels, "input_map": (2 / (levels - 1), -1.0)}
    functions = {
        OURS: lambda u: ops.pixelcnn_sample(u, layers, **words),
        TORCH: lambda u: torch_autoregress.pixel_loop(layers, u, levels),
    }
    made = setup(functions, functions[OURS], [noise], device)
    return _draws(made, 2.0 * n * side**2 * torch_autoregress.pixel_multiply_adds(layers))


def _draws(made: Setup, flops: float) -> Setup:
    """One float32 rounding flips a draw and all after it, so whole rows are compared."""
    made.oracle, made.needs = None, Needs(flops=flops)

    def check(outputs: dict) -> dict[str, float]:
        ours = outputs[OURS]["0"].flatten(1).double()
        return {
            name: float((output["0"].flatten(1).double() != ours).any(1).double().mean())
            for name, output in outputs.items()
        }

    def strict(outputs: dict) -> dict[str, float]:
        errors = check(outputs)
        rows = outputs[OURS]["0"].shape[0]
        # Rows that differ are counted; with more than these the two do not draw from one network.
        if max(errors.values()) > max(0.05, 1 / math.sqrt(rows)):
            raise CheckFailed(f"rows that differ: {errors}")
        return errors

    made.check = strict
    return made


def cases(size: str, device: str) -> list[Case]:
    """The rows of the table."""
    n, d, _ = FLOWS[size]
    build = functools.partial(_flow, FLOWS[size], device)
    floors = (Floor("ratio", 20, TORCH),)
    rows = [case("autoregress", f"MAF sampling, D = {d}, batch {n}", size, build, *floors)]
    n, d, _ = MADES[size]
    build = functools.partial(_made, MADES[size], device)
    more = {"error": "of rows differ"}
    work = f"MADE sampling, D = {d}, batch {n}"
    rows.append(case("autoregress", work, size, build, Floor("ratio", 100, TORCH), **more))
    n, side, *_ = PIXELS[size]
    build = functools.partial(_pixels, PIXELS[size], device)
    work = f"PixelCNN sampling, {side} x {side}, batch {n}"
    rows.append(case("autoregress", work, size, build, Floor("ratio", 100, TORCH), **more))
    return rows
