"""Restricted Boltzmann machines beside scikit-learn and torch: training and Gibbs chains."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable

import numpy as np
from torch import Tensor

from . import torch_rbm as plain
from .flow_rows import COMPILED, compiled
from .harness import OURS, Case, CheckFailed, Floor, Needs, Output, Provider, Setup
from .rbm_data import SIDE, Persistent, images, learned

SKLEARN, TORCH, RAND = "scikit-learn", "torch", "torch, rand < p"
#: Rows, hidden units, rows of a batch, epochs between two looks.
TRAINING = {
    "full": (10_000, 256, 128, 10),
    "quick": (2_000, 256, 128, 10),
    "smoke": (256, 8, 64, 1),
}
#: Chains, steps, hidden units of the machines.
CHAINS = {"full": (512, 100, (256, 1024)), "quick": (512, 10, (256,)), "smoke": (8, 2, (16,))}
RATE = 0.05


def _pseudo_likelihood(weight, visible_bias, hidden_bias, x: Tensor) -> Output:
    """scikit-learn's own score, mean over rows, with one generator for all."""
    from sklearn.neural_network import BernoulliRBM

    judge = BernoulliRBM(len(hidden_bias), random_state=0)
    judge.components_, judge.n_features_in_ = np.asarray(weight), x.shape[1]
    judge.intercept_visible_ = np.asarray(visible_bias)
    judge.intercept_hidden_ = np.asarray(hidden_bias)
    scores = judge.score_samples(x.numpy())
    return {"score": np.array(scores.mean())}


def _epochs(size: str) -> Setup:
    n, hidden_units, batch, epochs = TRAINING[size]
    x = images(n)[0]

    def ours() -> tuple[float, Output]:
        machine = Persistent(x.shape[1], hidden_units, batch, RATE, seed=0)
        begun = time.perf_counter()
        for _ in range(epochs):
            machine.epoch(x)
        took = time.perf_counter() - begun
        tensors = machine.weight, machine.visible_bias, machine.hidden_bias
        return took / epochs, _pseudo_likelihood(*tensors, x)

    def theirs() -> tuple[float, Output]:
        from sklearn.neural_network import BernoulliRBM

        model = BernoulliRBM(
            hidden_units, learning_rate=RATE, batch_size=batch, n_iter=epochs, random_state=0
        )
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x.numpy())
        took = time.perf_counter() - begun
        found = model.components_, model.intercept_visible_, model.intercept_hidden_
        return took / epochs, _pseudo_likelihood(*found, x)

    def check(outputs: dict[str, Output]) -> dict[str, float]:
        """Pseudo-likelihoods: chains are noisy, and two seeds of scikit-learn differ by 5 %."""
        want = float(outputs[SKLEARN]["score"])
        errors = {name: abs(float(o["score"]) / want - 1) for name, o in outputs.items()}
        # A few updates tell nothing yet.
        if epochs >= 10 and not errors[OURS] < 0.2:
            raise CheckFailed(f"pseudo-likelihoods differ: {outputs}")
        return errors

    providers = [
        Provider(name, lambda run=run: run()[1], run)
        for name, run in ((OURS, ours), (SKLEARN, theirs))
    ]
    flops = 2.0 * n * x.shape[1] * hidden_units * 5
    return Setup(providers, check=check, needs=Needs(flops))


def _gibbs(size: str, hidden_units: int) -> Setup:
    from evidens import ops

    chains, steps, _ = CHAINS[size]
    rows = TRAINING[size][0]
    tensors = learned(hidden_units, rows)
    begun = images(rows)[0][:chains].contiguous()

    def loop(step: Callable[..., Tensor]) -> Output:
        v = begun
        for _ in range(steps):
            v = step(v, *tensors)
        return {"v": v}

    functions: dict[str, Callable[[], Output]] = {
        OURS: lambda: {"v": ops.rbm_gibbs(begun, *tensors, steps=steps, seed=0)[0]},
        TORCH: functools.partial(loop, plain.step),
        RAND: functools.partial(loop, plain.step_rand),
    }
    if size != "smoke":  # small: compiling outlasts the work
        functions[COMPILED] = functools.partial(loop, compiled(plain.step))
        functions[f"{COMPILED}, rand < p"] = functools.partial(loop, compiled(plain.step_rand))

    providers = [Provider(name, call, warmup=call) for name, call in functions.items()]
    flops = 4.0 * chains * steps * begun.shape[1] * hidden_units
    return Setup(providers, check=plain.check_chains, needs=Needs(flops))


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    pace = {"rounds": 2, "budget": 1.0} if size != "full" else {"rounds": 5}
    n, hidden_units, batch, epochs = TRAINING[size]
    units = SIDE * SIDE
    rows = [
        Case(
            f"pcd-epoch-{n}x{units}x{hidden_units}-float32",
            f"PCD epoch, {n} x {units}, {hidden_units} hidden, batch {batch}",
            "float32",
            functools.partial(_epochs, size),
            (Floor("ratio", 3.5, SKLEARN),),
            note=f"error: pseudo-likelihood after {epochs} epochs, each with its own generator",
            **pace,
        )
    ]
    chains, steps, machines = CHAINS[size]
    for j in machines:
        floors = [Floor("ratio", 4 if j <= 256 else 2.2, TORCH), Floor("fraction", 0.7)]
        if j <= 256:
            floors.append(Floor("ratio", 2, COMPILED))
        rows.append(
            Case(
                f"gibbs-{chains}x{units}x{j}-float32",
                f"{steps} Gibbs steps, {chains} chains, {units} x {j}",
                "float32",
                functools.partial(_gibbs, size, j),
                tuple(floors),
                error="standard deviations",
                note="a learned machine; zeros among its states are skipped",
                **pace,
            )
        )
    return rows


def test_rbm(bench_case) -> None:
    """One row of the table."""
    bench_case()
