"""Gibbs chains of a machine: steps, classes, and the exchanges of parallel tempering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evidens import ops
from evidens.models.rbm_parameters import RBMParameters

# Half-steps that one seed counts.
LONGEST = 1 << 30
# Multiplications of one call of an op, a fraction of a second: Python hears Ctrl-C after it.
CALL = 1 << 30
# Streams of their own beside that of the units; a seed of a stream has 31 bits.
CLASS, SWAP = 1 << 32, 2 << 32


def parts(count: int, work: int, least: int = 1) -> Iterator[int]:
    """``count`` steps of ``work`` multiplications, cut into calls: Ctrl-C is heard between."""
    step = max(least, CALL // max(1, work))
    for start in range(0, count, step):
        yield min(step, count - start)


@dataclass
class Stream:
    """Where the random numbers of a model are: a seed and the steps that it has served."""

    seed: int
    step: int = 0

    def take(self, steps: int) -> int:
        """The first of so many steps, which nobody gets again."""
        if self.step + steps > LONGEST:
            self.seed, self.step = (self.seed + 1) & 0x7FFFFFFF, 0
        first = self.step
        self.step += steps
        return first

    def uniform(self, purpose: int, step: int, like: Tensor, columns: int = 1) -> Tensor:
        """(N, columns) for the rows of ``like``."""
        return ops.philox_uniform(
            self.seed + purpose, step, len(like), columns, like.dtype, device=like.device
        )


def draw_hidden(p: RBMParameters, mean: Tensor, stream: Stream) -> Tensor:
    """States of hidden units (N, J) from their means: a half-step of its own."""
    step = stream.take(1)
    u = stream.uniform(0, 2 * step, mean, mean.shape[1])
    if p.hidden == "bernoulli":
        return (u < mean).to(mean.dtype)
    return torch.where(u < 0.5 * (1 + mean), 1.0, -1.0).to(mean.dtype)


def draw_class(logits: Tensor, labels: Tensor | None, stream: Stream, step: int) -> Tensor:
    """One-hot (N, C) classes, drawn but where ``labels`` (N,) is not -1."""
    u = stream.uniform(CLASS, step, logits)
    edges = logits.softmax(1).cumsum(1)
    drawn = (edges[:, :-1] <= u * edges[:, -1:]).sum(1)
    if labels is not None:
        drawn = torch.where(labels < 0, drawn, labels)
    return torch.nn.functional.one_hot(drawn, logits.shape[1]).to(logits.dtype)


@dataclass
class Moves:
    """Where chains are after some steps."""

    v: Tensor  # (N, V + C) states
    h: Tensor  # (N, J) states
    v_mean: Tensor  # (N, V + C), given the hidden states before v
    h_mean: Tensor  # (N, J), given v


def advance(
    p: RBMParameters,
    h: Tensor,
    steps: int,
    stream: Stream,
    *,
    beta: Tensor | None = None,
    labels: Tensor | None = None,
    clamped: Tensor | None = None,
    values: Tensor | None = None,
) -> Moves:
    """``steps`` times v | h, then h | v.

    Args:
        p: the machine.
        h: (N, J) states to start from.
        steps: at least 1.
        stream: random numbers.
        beta: (N,) inverse temperatures.
        labels: (N,) classes, -1 where a class is drawn.
        clamped: (N, V) bool, rows that keep some of their units.
        values: (N, V), what these keep.
    """

    def go(
        h: Tensor, steps: int, step: int, clamped: Tensor | None, values: Tensor | None
    ) -> Moves:
        found = ops.rbm_gibbs(
            h,
            *p.arguments,
            steps=steps,
            seed=stream.seed,
            start="hidden",
            beta=beta,
            clamped=clamped,
            values=values,
            step0=step,
            means=True,
            **p.kinds,
        )
        return Moves(*found)

    # A step is taken before the seed is read, which it may change.
    if not p.classes:
        for part in parts(steps, len(h) * p.weight.numel()):
            step = stream.take(part)
            moves = go(h, part, step, clamped, values)
            h = moves.h
        return moves
    n, v = len(h), p.pixels
    given = torch.zeros(n, v + p.classes, dtype=h.dtype, device=h.device)
    held = torch.zeros(n, v + p.classes, dtype=torch.bool, device=h.device)
    held[:, v:] = True
    if clamped is not None and values is not None:
        given[:, :v], held[:, :v] = values, clamped
    for _ in range(steps):
        logits = torch.addmm(p.visible_bias[v:], h, p.class_weight)
        if beta is not None:
            logits = logits * beta[:, None]
        step = stream.take(1)
        given[:, v:] = draw_class(logits, labels, stream, step)
        moves = go(h, 1, step, held, given)
        h = moves.h
    moves.v_mean[:, v:] = logits.softmax(1)
    return moves


class Ladder:
    """Chains at rising inverse temperatures that exchange them (parallel tempering).

    Chain ``R i + r`` is of ladder i, so its random numbers do not depend on how many ladders there
    are; each ladder has one chain at every rung.  The states stay and the temperatures wander:
    neighbours on a ladder change places with probability ``min(1, exp((beta - beta') (E - E')))``.

    Args:
        rung: (n, R) rung of each chain; inverse temperatures are 1 / R .. 1.

    Source: Desjardins, Courville, Bengio, Vincent and Delalleau, Tempered Markov chain Monte Carlo
    for training of restricted Boltzmann machines (2010).
    """

    def __init__(self, rung: Tensor) -> None:
        self.rung = rung

    @classmethod
    def of(cls, rungs: int, chains: int, device: torch.device) -> Ladder:
        """A ladder for each of ``chains`` chains, in order."""
        return cls(torch.arange(rungs, device=device).repeat(chains, 1))

    @property
    def rungs(self) -> int:
        """R."""
        return self.rung.shape[1]

    def beta(self, dtype: torch.dtype) -> Tensor:
        """(n R,)."""
        return (self.rung.reshape(-1) + 1).to(dtype) / self.rungs

    @property
    def cold(self) -> Tensor:
        """(n,) chains at inverse temperature 1, one of each ladder."""
        place = (self.rung == self.rungs - 1).int().argmax(1)
        return place + self.rungs * torch.arange(len(place), device=place.device)

    def exchange(self, energy: Tensor, stream: Stream) -> None:
        """Even or odd pairs of neighbours change places, by the energies (n R,) of their states."""
        step = stream.take(1)
        energy = energy.double().view(-1, self.rungs)
        order = self.rung.argsort(1)
        first = step // 2 % 2  # a step and its exchange take two
        low, high = order[:, first:-1:2], order[:, first + 1 :: 2]
        if high.numel() == 0:
            return
        # Neighbours differ by 1 / R in their inverse temperature.
        gain = (energy.gather(1, high) - energy.gather(1, low)) / self.rungs
        swap = stream.uniform(SWAP, step, gain, gain.shape[1]).log() < gain
        at_low, at_high = self.rung.gather(1, low), self.rung.gather(1, high)
        self.rung = self.rung.scatter(1, low, torch.where(swap, at_high, at_low)).scatter(
            1, high, torch.where(swap, at_low, at_high)
        )


def temper(
    p: RBMParameters,
    h: Tensor,
    steps: int,
    stream: Stream,
    ladder: Ladder,
    **given: Tensor | None,
) -> Moves:
    """``steps`` steps of all chains (n R, J), each followed by an exchange.

    Args:
        p, h, steps, stream: as in `advance`.
        ladder: whose temperatures are exchanged.
        **given: ``labels``, ``clamped`` and ``values`` of `advance`, a row for each chain.

    Returns:
        The last moves.  Their means are of the temperatures before the exchange: of the chains that
        are cold now, only the states are those of the machine.
    """
    for _ in range(steps):
        moves = advance(p, h, 1, stream, beta=ladder.beta(h.dtype), **given)
        ladder.exchange(p.energy(moves.v, moves.h), stream)
        h = moves.h
    return moves
