"""The loop of every EM model: steps, convergence, Ctrl-C, what is printed meanwhile."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

P = TypeVar("P")


@dataclass
class Run(Generic[P]):
    """Where one run of EM ended."""

    parameters: P
    lower_bound: float = -math.inf
    lower_bounds: list[float] = field(default_factory=list)
    converged: bool = False
    interrupted: bool = False

    @property
    def n_iter(self) -> int:
        return len(self.lower_bounds)


class Progress:
    """scikit-learn's messages on stdout; a bar on stderr where somebody may be watching it."""

    def __init__(self, verbose: int, interval: int, max_iter: int) -> None:
        self.verbose, self.interval, self.max_iter = int(verbose), interval, max_iter
        self.bar: Any = None

    def _print(self, text: str) -> None:
        if self.bar is None:
            print(text)
        else:
            self.bar.write(text, file=sys.stdout)

    def begin(self, init: int) -> None:
        if self.verbose == 0:
            return
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.max_iter, desc="EM", unit="iteration", leave=False)
        self._print(f"Initialization {init}")
        self.init_time = self.iter_time = time.perf_counter()

    def iteration(self, n_iter: int, change: float) -> None:
        if self.verbose == 0:
            return
        if self.bar is not None:
            self.bar.update()
        if n_iter % self.interval:
            return
        if self.verbose == 1:
            self._print(f"  Iteration {n_iter}")
        else:
            now = time.perf_counter()
            lapse, self.iter_time = now - self.iter_time, now
            self._print(f"  Iteration {n_iter}\t time lapse {lapse:.5f}s\t ll change {change:.5f}")

    def end(self, run: Run[Any]) -> None:
        if self.verbose == 0:
            return
        if run.n_iter:
            text = "converged" if run.converged else "did not converge"
            lapse = time.perf_counter() - self.init_time
            detail = f" time lapse {lapse:.5f}s\t lower bound {run.lower_bound:.5f}."
            self._print(f"Initialization {text}." + (detail if self.verbose > 1 else ""))
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def run_em(
    step: Callable[[P], tuple[P, float]],
    parameters: P,
    *,
    max_iter: int,
    tol: float,
    progress: Progress,
    lower_bound: float = -math.inf,
    converged: Callable[[P, float], bool] | None = None,
) -> Run[P]:
    """Iterate until the objective changes by less than ``tol``, or ``max_iter`` times.

    Args:
        step: from parameters to the next ones and the objective of the *old* ones: the bound that
            is reported and tested lags one step behind the parameters, as in scikit-learn.
        parameters: the start.
        max_iter: 0 returns the start.
        tol: threshold of the change, in nats per row.
        progress: told of every iteration.
        lower_bound: the objective before the first step.
        converged: told of the parameters and the objective after every step, in place of the test
            by ``tol``.

    Returns:
        The run; after Ctrl-C it holds the last complete step.
    """
    run = Run(parameters)
    try:
        for n_iter in range(1, max_iter + 1):
            previous = lower_bound
            run.parameters, lower_bound = step(run.parameters)
            run.lower_bounds.append(lower_bound)
            run.lower_bound = lower_bound
            change = lower_bound - previous
            progress.iteration(n_iter, change)
            if abs(change) < tol if converged is None else converged(run.parameters, lower_bound):
                run.converged = True
                break
    except KeyboardInterrupt:
        run.interrupted = True
    progress.end(run)
    return run
