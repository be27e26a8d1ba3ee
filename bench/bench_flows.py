"""Training steps of whole flows beside nflows, normflows and zuko, from the same weights.

A step is the log-density of a batch, its gradients and one step of Adam.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .flow_data import correlated_rows
from .flow_functions import NFLOWS, NORMFLOWS, ZUKO
from .flow_training import SPLINE_VALUES, Flow, flow, masks
from .harness import OURS, Case, Floor, Needs, Output, Provider, Setup

TOLERANCE = 1e-5
#: Rows of a batch, features (MINIBOONE has 43), hidden units, layers.
SHAPES = {"full": (512, 43, 128, 10), "quick": (512, 43, 128, 2), "smoke": (17, 5, 8, 2)}
Shape = tuple[int, int, int, int]
NAMES = {"spline": "NSF", "affine": "RealNVP"}


def needs(kind: str, library: str, shape: Shape) -> Needs:
    """The matrix products of the conditioners: one forward, two backward."""
    n, d, hidden, layers = shape
    each = SPLINE_VALUES if kind == "spline" else 2
    flops = 0
    for i, mask in enumerate(masks(kind, library, d, layers)):
        active = int(mask.sum())
        first, rest = (d - active) * hidden, hidden * (hidden + active * each)
        # No gradient goes back to the data.
        flops += 2 * n * (3 * rest + (3 if i else 2) * first)
    return Needs(flops=float(flops))


def _evaluate(model: Flow, x: Tensor) -> Output:
    """Log-density of each row as it is timed, and the gradients of the mean in float64.

    A point that rounding carries over a knot has another gradient.
    """
    with torch.no_grad():
        log_prob = model.log_prob(x)
    model.module.double()
    model.log_prob(x.double()).mean().backward()
    output = {"log_prob": log_prob, "gradients": model.gradients()}
    model.module.zero_grad()
    model.module.to(x.dtype)
    return output


def _step(model: Flow, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (-model.log_prob(x).mean()).backward()
    optimizer.step()


def _conditioners(model: Flow, x: Tensor) -> Callable[[], object]:
    """Forward and backward of the conditioners alone, on inputs of the same shape."""
    inputs = [x[:, : next(net.parameters()).shape[1]].clone() for net in model.nets]
    for i, given in enumerate(inputs):
        given.requires_grad_(i > 0)
    with torch.no_grad():
        incoming = [net(given) for net, given in zip(model.nets, inputs)]

    def call() -> None:
        for net, given, back in zip(model.nets, inputs, incoming):
            leaves = [*net.parameters(), *([given] if given.requires_grad else [])]
            torch.autograd.grad(net(given), leaves, back)

    return call


def _training(kind: str, library: str, providers: tuple[str, ...], shape: Shape) -> Setup:
    n, d, *sizes = shape
    x = correlated_rows(n, d)

    def provider(name: str) -> Provider:
        model = flow(kind, name, library, d, *sizes)
        # Before the first step: what is compared is the model that was given the weights.
        output = _evaluate(model, x)
        optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-4)
        step = functools.partial(_step, model, x, optimizer)

        def call() -> Output:
            step()
            return output

        return Provider(name, call, warmup=step)

    def oracle() -> Output:
        model = flow(kind, providers[0], library, d, *sizes)
        model.module.double()
        return _evaluate(model, x.double())

    setup = Setup([provider(name) for name in (OURS, *providers)], TOLERANCE, oracle=oracle)
    setup.needs = needs(kind, library, shape)
    model = flow(kind, OURS, library, d, *sizes)
    model.log_prob(x).mean().backward()
    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-4)
    setup.parts = {"conditioners": _conditioners(model, x), "optimizer": optimizer.step}
    return setup


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    shape = SHAPES[size]
    n, d, hidden, layers = shape
    pace = {"rounds": 3, "budget": 1.0} if size != "full" else {"rounds": 9, "inner": 5}
    rows: list[Case] = []
    table = (
        ("spline", NFLOWS, (NFLOWS, NORMFLOWS), 1.5),
        ("spline", ZUKO, (ZUKO,), 1.5),
        ("affine", NFLOWS, (NFLOWS,), 1),
        ("affine", NORMFLOWS, (NORMFLOWS,), 1),
        ("affine", ZUKO, (ZUKO,), 1),
    )
    for kind, library, providers, floor in table:
        work = f"training step, {NAMES[kind]} as in {library}, {n} x {d}, {layers} layers"
        name = f"training-step-{NAMES[kind]}-{library}-{n}x{d}x{hidden}x{layers}".lower()
        build = functools.partial(_training, kind, library, providers, shape)
        floors = tuple(Floor("ratio", floor, provider) for provider in providers)
        note = f"conditioners {d // 2} to 2 x {hidden}, Adam"
        rows.append(Case(name, work, "float32", build, floors, note=note, **pace))
    return rows


def test_flows(bench_case) -> None:
    """One row of the table."""
    bench_case()
