"""What watches EM of a hidden Markov model: hmmlearn's monitor, and a bar for who waits."""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from evidens.models._em import Progress, Run

log = logging.getLogger(__name__)

# A fall of the log-likelihood by less is rounding.
_ROUNDING = 2.0**-26


class ConvergenceMonitor:
    """Decides when EM stops, and reports every step.

    A drop-in for ``hmmlearn.base.ConvergenceMonitor``: subclass it, override ``converged``, and put
    an instance into ``model.monitor_`` before `fit`.

    Args:
        tol: EM stops when the log-likelihood of all data grows by less (nats); -inf: never, and
            no fall is worth a word.
        n_iter: most EM steps.
        verbose: whether `report` prints a line to stderr: step, log-likelihood, change.

    Attributes:
        history: log-likelihood before each M step, nats.
        iter: how many steps were made.

    Example:
        >>> from evidens.hmm import ConvergenceMonitor
        >>> monitor = ConvergenceMonitor(tol=0.1, n_iter=10, verbose=False)
        >>> for log_prob in (-3.0, -2.0, -1.99):
        ...     monitor.report(log_prob)
        >>> monitor.converged
        True
    """

    _template = "{iter:>10d} {log_prob:>16.8f} {delta:>+16.8f}"

    def __init__(self, tol: float, n_iter: int, verbose: bool) -> None:
        self.tol = tol
        self.n_iter = n_iter
        self.verbose = verbose
        self.history: deque[float] = deque()
        self.iter = 0

    def __repr__(self) -> str:
        items = {**vars(self), "history": list(self.history)}
        body = ", ".join(f"{name}={value!r}" for name, value in sorted(items.items()))
        return f"{type(self).__name__}({body})"

    def _reset(self) -> None:
        """Forget the last run."""
        self.iter = 0
        self.history.clear()

    def report(self, log_prob: float) -> None:
        """Take note of the log-likelihood (nats) of one more step."""
        delta = log_prob - self.history[-1] if self.history else math.nan
        if self.verbose:
            line = self._template.format(iter=self.iter + 1, log_prob=log_prob, delta=delta)
            print(line, file=sys.stderr)
        if delta < -_ROUNDING and self.tol > -math.inf:
            log.warning(
                f"Model is not converging.  Current: {log_prob} is not greater than "
                f"{self.history[-1]}. Delta is {delta}"
            )
        self.history.append(log_prob)
        self.iter += 1

    @property
    def converged(self) -> bool:
        """Whether to stop: the gain is below ``tol``, or ``n_iter`` steps were made."""
        return self.iter == self.n_iter or reached_tol(self)


def reached_tol(monitor: Any) -> bool:
    """Whether the last step gained less than ``tol``."""
    history = monitor.history
    return len(history) >= 2 and history[-1] - history[-2] < monitor.tol


class Bar(Progress):
    """A bar on stderr where somebody may be watching; the lines come from the monitor."""

    def __init__(self, verbose: bool, max_iter: int) -> None:
        super().__init__(int(verbose), 1, max_iter)

    def begin(self, init: int = 0) -> None:
        """Show the bar."""
        if self.verbose and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.max_iter, desc="EM", unit="iteration", leave=False)

    def iteration(self, n_iter: int, change: float) -> None:
        """One more step."""
        if self.bar is not None:
            self.bar.update()

    def end(self, run: Run[Any]) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def aside(self) -> AbstractContextManager[Any]:
        """Lines printed meanwhile do not run into the bar."""
        if self.bar is None:
            return nullcontext()
        return self.bar.external_write_mode(file=sys.stderr)
