"""Parameters of a restricted Boltzmann machine, and what follows from them without a draw."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from evidens import ops

# Bounds of a log-variance: standardised rows have variance 1.
LOG_VARIANCE = (-8.0, 4.0)


@dataclass
class RBMParameters:
    """A machine whose last ``classes`` visible units are one more group, one-hot: the class.

    The ops know one kind of visible units.  They see the class as units that are clamped, and what
    is said of a class stands here: it needs no product of the size of the others.
    """

    weight: Tensor  # (J, V + C)
    visible_bias: Tensor  # (V + C,)
    hidden_bias: Tensor  # (J,)
    log_variance: Tensor | None = None  # (V + C,), 0 for the class
    visible: str = "bernoulli"
    hidden: str = "bernoulli"
    levels: int | None = None
    classes: int = 0

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first arguments of every op."""
        return self.weight, self.visible_bias, self.hidden_bias

    @property
    def kinds(self) -> dict[str, Any]:
        """Keyword arguments of every op."""
        return {
            "visible": self.visible,
            "hidden": self.hidden,
            "levels": self.levels,
            "log_variance": self.log_variance,
        }

    def checksum(self) -> int:
        """32 bits that change with the parameters and the kinds of the units."""
        parts = [t for t in (*self.arguments, self.log_variance) if t is not None]
        found = zlib.crc32(f"{self.visible} {self.hidden} {self.levels} {self.classes}".encode())
        for t in parts:
            found = zlib.crc32(t.detach().cpu().contiguous().numpy().data, found)
        return found

    @property
    def pixels(self) -> int:
        """V: visible units but for the class."""
        return self.weight.shape[1] - self.classes

    @property
    def class_weight(self) -> Tensor:
        """(J, C)."""
        return self.weight[:, self.pixels :]

    def without_class(self) -> RBMParameters:
        """The machine of the rows, as it is where the class is known to be none of all."""
        if not self.classes:
            return self
        v = self.pixels
        return replace(
            self,
            weight=self.weight[:, :v].contiguous(),
            visible_bias=self.visible_bias[:v],
            log_variance=None if self.log_variance is None else self.log_variance[:v],
            classes=0,
        )

    def given_class(self, k: int) -> RBMParameters:
        """The machine of the rows of class k; its energy lacks minus the bias of the class."""
        return replace(self.without_class(), hidden_bias=self.hidden_bias + self.class_weight[:, k])

    # --- means -----------------------------------------------------------------------------------

    def scaled(self, v: Tensor) -> Tensor:
        """What the hidden units see of v (N, at most V + C): a Gaussian over its variance."""
        if self.log_variance is None:
            return v
        return v * (-self.log_variance[: v.shape[-1]]).exp()

    def hidden_input(self, v: Tensor) -> Tensor:
        """``c + W v`` (N, J) of rows with or without their class."""
        return torch.addmm(self.hidden_bias, self.scaled(v), self.weight[:, : v.shape[1]].T)

    def hidden_mean(self, v: Tensor) -> Tensor:
        """``E[h | v]`` (N, J)."""
        return self._mean_of(self.hidden_input(v))

    def _mean_of(self, field: Tensor) -> Tensor:
        return field.sigmoid() if self.hidden == "bernoulli" else field.tanh()

    def visible_mean(self, h: Tensor) -> Tensor:
        """``E[v | h]`` (N, V + C), of hidden states or of their means."""
        field = torch.addmm(self.visible_bias, h, self.weight)
        rows, label = field[:, : self.pixels], field[:, self.pixels :]
        if self.visible == "bernoulli":
            rows = rows.sigmoid()
        elif self.visible == "spin":
            rows = rows.tanh()
        elif self.visible == "softmax":
            rows = rows.unflatten(1, (-1, self.levels)).softmax(2).flatten(1)
        return torch.cat([rows, label.softmax(1)], 1) if self.classes else rows

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """``E(v, h)`` (N,) of joint states."""
        pull = self.scaled(v) * (h @ self.weight)
        if self.log_variance is None:
            own = -(v @ self.visible_bias)
        else:
            label = v[:, self.pixels :] @ self.visible_bias[self.pixels :]
            own = -self._gaussian(v[:, : self.pixels]) - label
        return own - h @ self.hidden_bias - pull.sum(1)

    def _gaussian(self, x: Tensor) -> Tensor:
        """``-sum (x - b)^2 / (2 s^2)`` (N,)."""
        d = x - self.visible_bias[: self.pixels]
        return -0.5 * self.scaled(d * d).sum(1)

    # --- densities -------------------------------------------------------------------------------

    def log_weight(self, x: Tensor) -> Tensor:
        """``log sum_h exp(-E(x, h))`` (N,), summed over the classes, too: log p(x) + log Z."""
        if not self.classes:
            return -ops.rbm_free_energy(x, *self.arguments, **self.kinds)
        own = (
            self._gaussian(x)
            if self.log_variance is not None
            else x @ self.visible_bias[: self.pixels]
        )
        return own + self.class_terms(x).logsumexp(1)

    def log_weight_of_hidden(self, h: Tensor) -> Tensor:
        """``log sum_v exp(-E(v, h))`` (M,) of hidden states, summed over the classes, too."""
        pull = h @ self.weight
        rows, label = (self.visible_bias + pull).tensor_split([self.pixels], 1)
        if self.visible == "gaussian":
            pull = pull[:, : self.pixels]
            # (b + pull)^2 - b^2, in which nothing cancels
            own = self.scaled(pull * (self.visible_bias[: self.pixels] + 0.5 * pull)).sum(1)
            assert self.log_variance is not None
            own = own + 0.5 * (math.log(2 * math.pi) + self.log_variance[: self.pixels]).sum()
        elif self.visible == "softmax":
            own = rows.unflatten(1, (-1, self.levels)).logsumexp(2).sum(1)
        else:
            own = log_sum(rows, self.visible).sum(1)
        if self.classes:
            own = own + label.logsumexp(1)
        return own + h @ self.hidden_bias

    def class_terms(self, x: Tensor) -> Tensor:
        """``log p(k | x)`` (N, C) up to a constant of the row, from one product for all classes."""
        field = self.hidden_input(x)
        terms = [self._log_sum(field + column).sum(1) for column in self.class_weight.T]
        return torch.stack(terms, 1) + self.visible_bias[self.pixels :]

    def _log_sum(self, field: Tensor) -> Tensor:
        return log_sum(field, self.hidden)

    def hidden_mean_of_rows(self, x: Tensor) -> Tensor:
        """``E[h | x]`` (N, J), over the classes where there are any."""
        if not self.classes:
            return self.hidden_mean(x)
        field, posterior = self.hidden_input(x), self.class_terms(x).softmax(1)
        means = torch.zeros_like(field)
        for k, column in enumerate(self.class_weight.T):
            means += posterior[:, k, None] * self._mean_of(field + column)
        return means


def log_sum(field: Tensor, kind: str) -> Tensor:
    """``log sum_u exp(u field)`` over the two states of each unit."""
    if kind == "bernoulli":
        return softplus(field)
    return field.abs() + softplus(-2 * field.abs())
