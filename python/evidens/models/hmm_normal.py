"""EM steps of normal emissions in memory that is laid out once.

Where frames are few, a step is more naming, checking and allocating of arrays than arithmetic.
Here it is a few calls of the library whose arguments are known before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidens._native import library
from evidens.models._sequences import Block
from evidens.models.gmm_statistics import GMMStatistics
from evidens.models.hmm_parameters import HMMParameters
from evidens.models.hmm_statistics import HMMStatistics
from evidens.ops import _hmm_maximise as maximise
from evidens.ops._hmm_cpu import gaussian_call
from evidens.ops.hmm_gaussian import parts_of

Call = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass
class _Place:
    """Parameters, the sums that the E step makes with them, and how to get to the next place."""

    p: HMMParameters
    stats: HMMStatistics
    sums: Tensor
    kept: np.ndarray
    expect: tuple[Any, ...] = ()
    maximise: tuple[Call, ...] = ()
    learned: Sequence[tuple[int, int]] = ()


class NormalSteps:
    """EM on one block of complete sequences without labels, in float64 on the CPU.

    Args:
        block: the sequences.
        p: normal emissions with variances ``"diag"``, float64.
        start, transition: Dirichlet priors; None where these are not learned.
        settings: priors of the emissions, and what is learned.
    """

    def __init__(
        self,
        block: Block,
        p: HMMParameters,
        start: maximise.Prior | None,
        transition: maximise.Prior | None,
        settings: maximise.Settings,
    ) -> None:
        # Calls have addresses of what is in these.
        self._block, self._x, self._where = block, block.x.contiguous(), block.where
        self._weight = None if block.weight is None else block.weight.contiguous()
        self._priors = start, transition, settings
        self._total = torch.empty(self._where[0].shape[0], dtype=torch.float64, device="cpu")
        # Three: what the step before the last one left is whole, whenever Ctrl-C comes.
        places = [self._place(p) for _ in range(3)]
        self._next = {id(a.p): (a, b) for a, b in zip(places, places[1:] + places[:1])}
        self.first = places[0].p
        for here, there in self._next.values():
            self._connect(here, there)

    def _place(self, p: HMMParameters) -> _Place:
        """A copy of parameters, and memory for the sums beside them."""
        p = p.copied()
        k, d = p.emission.means.shape
        sums = torch.empty(k * (2 + k + 2 * d), dtype=torch.float64, device="cpu")
        begun, steps, weight, first, second = parts_of(sums, k, d)
        zero, centre = sums.new_zeros(()), p.emission.means
        emission = GMMStatistics("diag", centre, weight, first, second, zero, zero)
        return _Place(p, HMMStatistics(begun, steps, emission), sums, np.zeros(k, dtype=bool))

    def _connect(self, here: _Place, there: _Place) -> None:
        """Lay out the calls that lead from one place to the next."""
        start, transition, settings = self._priors
        old, new, stats = here.p, there.p, here.stats
        a, b, nothing = old.emission, new.emission, self._total[:0]
        moments: Any = stats.emission
        here.expect = gaussian_call(
            "statistics",
            self._x,
            old.start,
            old.transition,
            *self._where[:2],
            a.means,
            a.precisions_cholesky,
            self._weight,
            self._total,
            nothing,
            here.sums,
        )
        calls: list[Call] = []
        for prior, counts, before, after in (
            (start, stats.start, old.start, new.start),
            (transition, stats.transitions, old.transition, new.transition),
        ):
            if prior is not None:
                call = maximise.distributions_call(counts, prior, before, after)
                calls.append((library.maximise_distributions, call))
        call = maximise.normal_call(
            (moments.weight, moments.first, moments.second),
            (a.means, a.covariances, a.precisions_cholesky),
            settings,
            (b.means, b.covariances, b.precisions_cholesky),
            torch.from_numpy(here.kept),
        )
        calls.append((library.maximise_normal, call))
        here.maximise = tuple(calls)
        tensors = new.start, new.transition, b.means, b.covariances
        here.learned = [(t.data_ptr(), t.numel()) for t in tensors]

    def step(self, p: HMMParameters) -> tuple[HMMParameters, list[int], HMMStatistics] | None:
        """One step: new parameters, states that kept parameters, the sums behind all that.

        Args:
            p: those of ``first``, then what the last step gave.

        Returns:
            None where linear space loses a sequence, or parameters are not finite.
        """
        here, there = self._next[id(p)]
        if library.hmm_gaussian(*here.expect):
            return None
        for function, arguments in here.maximise:
            function(*arguments)
        if not library.all_finite(here.learned):
            return None
        stats = here.stats
        stats.log_likelihood = stats.total = stats.frames = 0.0
        stats.count(self._total, self._block)
        return there.p, here.kept.nonzero()[0].tolist() if here.kept.any() else [], stats
