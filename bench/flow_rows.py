"""What the rows of splines and of couplings have in common: functions that give (y, log_det)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .flow_functions import Function
from .harness import OURS, CheckFailed, Output, Provider, Setup

COMPILED = "torch.compile"
NAMES = ("x", "first", "second", "third")


def compiled(function: Function) -> Function:
    """The function compiled as one graph for the shapes of its first call."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def _double(arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(a.detach().double().requires_grad_(a.requires_grad) for a in arguments)


def _setup(calls: dict[str, Callable[[], Output]], oracle, tolerance: float) -> Setup:
    providers = [Provider(name, call, warmup=call) for name, call in calls.items()]
    return Setup(providers, tolerance, oracle=oracle)


def forward(
    functions: dict[str, Function], arguments: Sequence[Tensor], oracle: Function, tolerance: float
) -> Setup:
    """Both results, nothing recorded; the oracle is called in float64."""

    def call(function: Function, arguments: Sequence[Tensor] = arguments) -> Output:
        with torch.no_grad():
            return dict(zip(("y", "log_det"), function(*arguments), strict=True))

    calls = {name: functools.partial(call, function) for name, function in functions.items()}
    return _setup(calls, functools.partial(call, oracle, _double(arguments)), tolerance)


def both(
    functions: dict[str, Function],
    arguments: Sequence[Tensor],
    incoming: tuple[Tensor, Tensor],
    oracle: Function,
    tolerance: float,
) -> Setup:
    """Both results and the gradients of all arguments for given gradients of the two results."""
    arguments = tuple(a.requires_grad_() for a in arguments)

    def call(
        function: Function, arguments: Sequence[Tensor] = arguments, incoming=incoming
    ) -> Output:
        y, log_det = function(*arguments)
        slopes = torch.autograd.grad((y, log_det), arguments, incoming)
        return {"y": y.detach(), "log_det": log_det.detach(), **dict(zip(NAMES, slopes))}

    calls = {name: functools.partial(call, function) for name, function in functions.items()}
    truth = functools.partial(call, oracle, _double(arguments), _double(incoming))
    return _setup(calls, truth, tolerance)


def round_trip(
    pairs: dict[str, tuple[Function, Function]], x: Tensor, *parameters: Tensor
) -> Setup:
    """There and back: the error is the largest of x and of the sum of both log-determinants."""

    def call(there: Function, back: Function) -> Output:
        with torch.no_grad():
            y, log_det = there(x, *parameters)
            again, other = back(y, *parameters)
        return {"x": again, "log_det": log_det + other}

    def check(outputs: dict[str, Output]) -> dict[str, float]:
        errors = {
            name: max(float((out["x"] - x).abs().max()), float(out["log_det"].abs().max()))
            for name, out in outputs.items()
        }
        # The floor, which is smaller, is judged with the others.
        if not errors[OURS] <= 1e-2:
            raise CheckFailed(f"{OURS} comes back {errors[OURS]:.1e} off")
        return errors

    calls = {name: functools.partial(call, *pair) for name, pair in pairs.items()}
    setup = _setup(calls, None, 0.0)
    setup.check = check
    return setup
