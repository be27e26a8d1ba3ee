"""One step of learning: the positive and the negative phase, and what is made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evidens import ops
from evidens.models.rbm_chains import Ladder, Stream, advance, draw_class, draw_hidden, temper
from evidens.models.rbm_parameters import LOG_VARIANCE, RBMParameters

# Parameters that are learned, in the order in which `RBM.velocity_` holds their last steps.
STEPS = ("weight", "visible_bias", "hidden_bias", "log_variance")
# Share of the batch in the running mean of the hidden units, the offset of centred gradients.
FOLLOW = 0.01
# Root mean square of a step beyond which learning has gone astray, of weights and of biases: these
# follow what lies outside the range of a unit, too.
ASTRAY, ASTRAY_BIAS = 10.0, 1000.0


class Diverged(ArithmeticError):
    """A step that would have left the parameters without meaning; they are those before it."""


@dataclass
class Learner:
    """What learns: parameters, chains and the averages that live from step to step.

    Args:
        p: the parameters, changed in place.
        stream: random numbers.
        method: ``"pcd"``, ``"cd"`` or ``"pt"``.
        steps: k.
        chains: (M, J) hidden states of the persistent chains; M R of them with a ladder.
        ladder: of parallel tempering.
        momentum: share of the last step in this one.
        weight_decay: pull of the weights to 0.
        visible_offset: (V + C,) means of the visible units, None for gradients without centring.
        hidden_offset: (J,) running mean of the hidden units.
        velocity: of the last step, by name.
    """

    p: RBMParameters
    stream: Stream
    method: str
    steps: int
    chains: Tensor
    ladder: Ladder | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    visible_offset: Tensor | None = None
    hidden_offset: Tensor | None = None
    velocity: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.astray_bias = ASTRAY_BIAS
        if self.p.log_variance is not None and self.visible_offset is not None:
            # Biases of hidden units take the offset of numbers off again, whatever it is.
            self.astray_bias *= 1 + float(self.visible_offset.abs().max())

    def step(
        self,
        x: Tensor,
        rate: float,
        *,
        weight: Tensor | None = None,
        unit: float = 1.0,
        labels: Tensor | None = None,
        absent: Tensor | None = None,
    ) -> None:
        """One batch.

        Args:
            x: (n, V) rows.
            rate: learning rate.
            weight: (n,) weights of the rows.
            unit: mean weight of all rows; a batch of less learns less.
            labels: (n,) classes of a machine with classes, -1 where unknown.
            absent: (n, V) units that take no part, for ``"cd"``; x is 0 there.

        Raises:
            Diverged: the step is not finite, or out of all proportion; only the chains have moved.
            ValueError: units are absent beside persistent chains.
        """
        if absent is not None and self.method != "cd":
            raise ValueError(
                f"X has missing entries, and method={self.method!r} keeps chains of one machine "
                "for rows that have one each: use method='cd'"
            )
        p, share = self.p, 1.0
        total = float(len(x))
        if weight is not None:
            total = float(weight.sum(dtype=torch.float64))
            share = total / (len(x) * unit)
            if total == 0:
                return
        v = self._with_class(x, labels)
        found = self._phases(v, weight, total, absent)
        # Steps in units of the sums over rows; `mean` makes means of them.
        mean = share / total
        steps = {
            "weight": found.weight,
            "visible_bias": found.visible,
            "hidden_bias": found.hidden,
        }
        if p.log_variance is not None:
            # In units of the variance: a small one would blow the step up.
            variance = p.log_variance.exp()
            steps["weight"].mul_(variance)
            steps["visible_bias"].mul_(variance)
            assert found.log_variance is not None
            steps["log_variance"] = found.log_variance.clamp_(-1 / mean, 1 / mean)
            steps["log_variance"][p.pixels :] = 0  # a class has none
        if self.visible_offset is not None:
            hidden = found.h_mean.sum(0) if weight is None else weight @ found.h_mean
            self._centre(steps)
        if self.weight_decay:
            steps["weight"].sub_(p.weight, alpha=self.weight_decay / mean)
        self._move(steps, rate * mean)
        if self.visible_offset is not None and self.hidden_offset is not None:
            self.hidden_offset = self.hidden_offset.lerp(hidden / total, FOLLOW)

    # --- phases ----------------------------------------------------------------------------------

    def _with_class(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Rows with their class, drawn from p(class | x) where it is unknown."""
        if not self.p.classes:
            return x
        if labels is None or bool((labels < 0).any()):
            logits = self.p.class_terms(x)
        else:
            logits = x.new_zeros(len(x), self.p.classes)  # nothing is drawn
        label = draw_class(logits, labels, self.stream, self.stream.take(1))
        return torch.cat([x, label], 1)

    def _phases(
        self, v: Tensor, weight: Tensor | None, total: float, absent: Tensor | None
    ) -> ops.RBMStatistics:
        """Statistics of the rows less those of the model, as many times as the rows weigh."""
        p = self.p
        if self.method == "pcd" and not p.classes:
            found, self.chains = ops.rbm_pcd(
                v,
                self.chains,
                *p.arguments,
                steps=self.steps,
                step0=self.stream.take(self.steps),  # before the seed, which it may change
                seed=self.stream.seed,
                sample_weight=weight,
                minus_weight=total / self.chains.shape[0],
                **p.kinds,
            )
            return found
        h_mean = p.hidden_mean(v) if self.method == "cd" else None
        minus = self._negative(v, h_mean, absent)
        return ops.rbm_statistics(
            v,
            *p.arguments,
            h_mean=h_mean,
            sample_weight=weight,
            minus=minus,
            minus_weight=weight if self.method == "cd" else total / len(minus[0]),
            **p.kinds,
        )

    def _negative(
        self, v: Tensor, h_mean: Tensor | None, absent: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """States of the visible units and means of the hidden ones under the model."""
        if h_mean is not None:
            h = draw_hidden(self.p, h_mean, self.stream)
            held = None if absent is None else {"clamped": absent, "values": v}
            moves = advance(self.p, h, self.steps, self.stream, **(held or {}))
        elif self.ladder is not None:
            moves = temper(self.p, self.chains, self.steps, self.stream, self.ladder)
            self.chains = moves.h
            cold = moves.v[self.ladder.cold]
            return cold, self.p.hidden_mean(cold)
        else:
            moves = advance(self.p, self.chains, self.steps, self.stream)
            self.chains = moves.h
        return moves.v, moves.h_mean

    # --- the step --------------------------------------------------------------------------------

    def _centre(self, steps: dict[str, Tensor]) -> None:
        """The gradient of a machine whose units are counted from their means.

        Source: Melchior, Fischer and Wiskott, How to center deep Boltzmann machines (2016),
        algorithm 1 in the parameters of a machine that is not centred.
        """
        assert self.visible_offset is not None
        assert self.hidden_offset is not None
        w, at_v, at_h = steps["weight"], self.visible_offset, self.hidden_offset
        w.addr_(at_h, steps["visible_bias"], alpha=-1).addr_(steps["hidden_bias"], at_v, alpha=-1)
        steps["visible_bias"] -= at_h @ w
        steps["hidden_bias"] -= w @ self.p.scaled(at_v)

    def _move(self, steps: dict[str, Tensor], rate: float) -> None:
        scale = rate
        if self.momentum:
            scale = 1.0
            # In the new step, not in the last one: a step that is refused leaves no trace.
            for name, step in steps.items():
                step.mul_(rate)
                if name in self.velocity:
                    step.add_(self.velocity[name], alpha=self.momentum)
        sizes = [
            torch.linalg.vector_norm(step)
            / ((ASTRAY if name == "weight" else self.astray_bias) * math.sqrt(step.numel()))
            for name, step in steps.items()
        ]
        if not float(torch.stack(sizes).max()) * scale <= 1:
            raise Diverged
        for name, step in steps.items():
            getattr(self.p, name).add_(step, alpha=scale)
        if self.momentum:
            self.velocity = steps
        if self.p.log_variance is not None:
            self.p.log_variance[: self.p.pixels].clamp_(*LOG_VARIANCE)
