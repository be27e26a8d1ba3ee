"""Sufficient statistics of hidden Markov models: sums over sequences, all float64.

Weights, chunks, machines and labels are all sums of these.  The part of the emissions is
`GMMStatistics` for Gaussian families and `CountStatistics` for tables and rates.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from evidens import ops
from evidens.models import _missing
from evidens.models._ranks import Ranks
from evidens.models._sequences import Block
from evidens.models.gmm_parameters import GMMParameters
from evidens.models.gmm_statistics import GMMStatistics
from evidens.models.hmm_parameters import HMMParameters, added
from evidens.ops._hmm_inner import gaussian as hmm_gaussian
from evidens.ops.hmm_gaussian import parts_of

_ZERO = torch.zeros((), dtype=torch.float64, device="cpu")
_SCALARS = ("log_likelihood", "total", "frames", "impossible")


class EmissionStatistics(Protocol):
    """What every family sums over its frames."""

    weight: Tensor

    def merge(self, other: Any) -> None:
        """Add the sums of other frames."""

    def scale(self, factor: float) -> None:
        """Count every frame ``factor`` times."""


@dataclass
class CountStatistics:
    """Sums over frames for tables and rates.

    Attributes:
        weight: (K,), the sum of the posteriors.
        seen: (K, D), the same where a feature is observed; None where none can be missing.
        first: (K, D), the posteriors times the values (or how often each of D symbols came).
    """

    weight: Tensor
    first: Tensor
    seen: Tensor | None = None

    @classmethod
    def zeros(cls, like: Tensor, *, seen: bool) -> CountStatistics:
        """No frames; ``like`` is (K, D), ``seen`` whether a feature can be missing alone."""
        first = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        return cls(first[:, 0].clone(), first, first.clone() if seen else None)

    def add(self, weight: Tensor, first: Tensor, seen: Tensor | None = None) -> None:
        """Add sums over more frames; ``seen`` None: every feature of theirs was observed."""
        self.weight = self.weight + weight
        self.first = self.first + first
        if self.seen is not None:
            self.seen = self.seen + (weight[:, None] if seen is None else seen)

    def merge(self, other: EmissionStatistics) -> None:
        """Add the sums of other frames."""
        assert isinstance(other, CountStatistics)
        self.add(other.weight, other.first, other.seen)

    def scale(self, factor: float) -> None:
        """Count every frame ``factor`` times."""
        self.weight = self.weight * factor
        self.first = self.first * factor
        if self.seen is not None:
            self.seen = self.seen * factor


@dataclass
class NoStatistics:
    """Emissions without parameters of their own: only how often each state was visited."""

    weight: Tensor

    def merge(self, other: EmissionStatistics) -> None:
        """Add the sums of other frames."""
        self.weight = self.weight + other.weight

    def scale(self, factor: float) -> None:
        """Count every frame ``factor`` times."""
        self.weight = self.weight * factor


@dataclass
class HMMStatistics:
    """Sums over sequences, each with its weight.

    Attributes:
        start: (K,), posteriors of the first frames.
        transitions: (K, K), expected number of steps from state i to state j.
        emission: the sums of the family.
        log_likelihood: of all sequences, nats; -inf if one of positive weight is impossible.
        total: weight of the sequences.
        frames: weight of the frames.
        impossible: weight of the sequences that no path explains.
    """

    start: Tensor
    transitions: Tensor
    emission: EmissionStatistics
    log_likelihood: float = 0.0
    total: float = 0.0
    frames: float = 0.0
    impossible: float = 0.0

    @classmethod
    def zeros(cls, emission: EmissionStatistics, k: int) -> HMMStatistics:
        """No sequences; K states."""
        zero = emission.weight.new_zeros(k)
        return cls(zero, zero.new_zeros(k, k), emission)

    def count(self, log_likelihood: Tensor, block: Block) -> None:
        """Add the log-likelihoods (B,) of a block, and how much it holds."""
        weight = block.weight
        if weight is not None:
            w = weight.double()
            log_likelihood = torch.where(w == 0, 0.0, log_likelihood * w)
        value = added(log_likelihood)
        if value == -math.inf:
            lost = log_likelihood.isneginf()
            self.impossible += float(lost.sum() if weight is None else weight[lost].sum())
        self.log_likelihood += value
        self.total += block.total
        self.frames += block.frames

    def add(self, result: ops.HMMPosteriors, block: Block) -> None:
        """Add what `ops.hmm_forward_backward` says of a block, called with its weights."""
        self.count(result.log_likelihood, block)
        self.start = self.start + result.initial
        self.transitions = self.transitions + result.transitions

    def _parts(self, centre: bool) -> list[tuple[object, str]]:
        """Where the sums stand, in the order of `flat`."""
        own = ("start", "transitions")
        names = ("weight", "first", "second", "seen", *(["centre"] if centre else []))
        emission = [n for n in names if getattr(self.emission, n, None) is not None]
        return [*((self, name) for name in own), *((self.emission, name) for name in emission)]

    def flat(self, centre: bool = True) -> Tensor:
        """All sums as one vector: for files with the centre of the moments, for sums without."""
        parts = [getattr(owner, name).reshape(-1) for owner, name in self._parts(centre)]
        scalars = [getattr(self, name) for name in _SCALARS]
        return torch.cat([*parts, self.start.new_tensor(scalars)])

    def fill(self, flat: Tensor, centre: bool = True) -> None:
        """Take the sums from a vector that `flat` made of a model of this size."""
        parts = self._parts(centre)
        sizes = [getattr(owner, name).numel() for owner, name in parts] + [len(_SCALARS)]
        if sum(sizes) != len(flat):
            raise ValueError(f"expected {sum(sizes)} sums, got {len(flat)}")
        *values, scalars = flat.split(sizes)
        for (owner, name), value in zip(parts, values):
            setattr(owner, name, value.view(getattr(owner, name).shape))
        for name, number in zip(_SCALARS, scalars.tolist()):
            setattr(self, name, number)

    def merge(self, other: HMMStatistics) -> None:
        """Add the sums of other sequences."""
        for name in ("start", "transitions", *_SCALARS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.emission.merge(other.emission)

    def scale(self, factor: float) -> None:
        """Count every sequence ``factor`` times."""
        for name in ("start", "transitions", *_SCALARS):
            setattr(self, name, getattr(self, name) * factor)
        self.emission.scale(factor)

    def reduce(self, ranks: Ranks) -> None:
        """Add up over the processes of a group: one all-reduce."""
        if ranks.size > 1:
            self.fill(ranks.sum(self.flat(centre=False)), centre=False)

    def on_host(self) -> HMMStatistics:
        """The same sums in the memory of the host, where the M step is."""
        if self.start.is_cpu:
            return self
        new = replace(self, emission=copy.copy(self.emission))
        for owner, name in new._parts(centre=True):
            setattr(owner, name, getattr(owner, name).cpu())
        return new


def add_gaussian(
    stats: GMMStatistics, x: Tensor, r: Tensor, parameters: GMMParameters, missing: bool
) -> None:
    """Add the moments of frames (n, D) with posteriors (n, K) to those of a Gaussian family.

    A frame that shows nothing adds nothing; one that shows a part is completed by what each
    component says about the rest (see `_missing`).
    """
    if missing:
        gone = x.isnan()
        some = gone.any(1)
        if some.any():
            partial = (some & ~gone.all(1)).nonzero()[:, 0]
            for part in _missing.complete(x[partial], parameters) if len(partial) else ():
                here = r[partial[part.rows]].double()
                _missing.add_moments(stats, part, parameters, here)
            whole = (~some).nonzero()[:, 0]
            x, r = x[whole], r[whole]
    if len(x):
        weight, first, second = ops.gmm_moments(
            x, r, stats.centre.to(x.dtype), stats.covariance_type
        )
        stats.add_moments(weight, first, second)


def normal_statistics(
    block: Block, p: HMMParameters, means: Tensor, precisions: Tensor
) -> HMMStatistics:
    """The sums over complete sequences of normal emissions: one op for all of the E step."""
    where, (k, d) = block.where, means.shape
    total, _, sums = hmm_gaussian.run(
        block.x, p.start, p.transition, *where, means, precisions, block.weight, "statistics"
    )
    begun, steps, weight, first, second = parts_of(sums, k, d)
    kind = p.emission.covariance_type
    if kind == "spherical":
        second = second.mean(1)
    moments = GMMStatistics(kind, p.emission.means.double(), weight, first, second, _ZERO, _ZERO)
    stats = HMMStatistics(begun, steps, moments)
    stats.count(total, block)
    return stats


def gaussian_log_prob(x: Tensor, parameters: GMMParameters, missing: bool) -> Tensor:
    """``log w_k + log N(x_n | k)``, (n, K); of a frame with NaN, by what it shows.

    That is ``log w_k`` where it shows nothing.  Differentiable in the complete frames.
    """
    terms = ops.gmm_component_log_prob(x, *parameters.arguments)
    if missing:
        gone = x.detach().isnan()
        some = gone.any(1)
        if some.any():
            rows = some.nonzero()[:, 0]
            part = x.detach()[rows]
            fixed = parameters.log_weights.to(terms.dtype).expand(len(rows), -1).clone()
            seen = ~part.isnan().all(1)
            if seen.any():
                fixed[seen] = _missing.log_prob_terms(part[seen], parameters).to(terms.dtype)
            terms = terms.index_put((rows,), fixed)
    return terms


def counts_of_frames(x: Tensor, missing: bool) -> Tensor:
    """Frames of counts in float64, 0 where one is missing."""
    return x.double().nan_to_num() if missing else x.double()


def safe_log_product(counts: Tensor, p: Tensor) -> Tensor:
    """``sum_d counts_nd log p_kd`` (n, K) float64, where 0 log 0 is 0 and n log 0 is -inf."""
    p = p.double()
    zero = p <= 0
    result = counts @ p.where(~zero, 1).log().mT
    if zero.any():
        forbidden = (counts != 0).double() @ zero.double().mT
        result = torch.where(forbidden > 0, -torch.inf, result)
    return result
