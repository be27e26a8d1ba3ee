"""`Density`: what all learned densities answer: log-densities, scores, code lengths."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidens.models._density_input import (
    check_finite,
    check_rows,
    contexts,
    label_numbers,
    rows,
)
from evidens.models._density_learning import DensityLearning
from evidens.models._density_state import evaluating, seed_of
from evidens.models._rows import weights_of

# Standardised numbers beyond which a density counts as 0, by the dtype of the layers.
FARTHEST = {torch.float32: 1e15, torch.float64: 1e120}


class Density(DensityLearning):
    """The queries of a learned density; a subclass says what a row's density is."""

    def forward(self, x: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """`log_prob` of a tensor: what a training loop of one's own calls."""
        result: Tensor = self.log_prob(x, context, y)
        return result

    def log_prob(self, x: Any, context: Any = None, y: Any = None) -> Any:
        """Log-density of every row.

        Args:
            x: array-like or tensor (N, *shape), or (N, D) with the numbers of a row in one axis.
            context: (N, K), or one row for all; needed where the model has a context.
            y: (N,) labels, or one for all: ``log p(x | y)``.  None in a model with classes:
                ``log sum_c p(c) p(x | c)``, with the frequencies of the classes in `fit`.

        Returns:
            (N,), nats, in the dtype of the model; an array for an array, a differentiable tensor
            for a tensor.  With ``dequantize`` it is ``log p(x + u)`` for one draw u of uniform
            noise, the same in every call, in units of the integers: a lower bound of ``log P(x)``
            on average over u.

        Arrays are checked and computed in evaluation mode, in pieces.  Tensors are not looked at,
        so that the call compiles into one graph: a row with NaN gets NaN, one that cannot be
        (infinities; for models of integers anything but an integer in range) -inf.

        Raises:
            ValueError: an array with NaN or infinity, another shape, an unknown label.

        Example:
            >>> import evidens, torch
            >>> flow = evidens.RealNVP(2)
            >>> x = torch.zeros(3, 2, requires_grad=True)
            >>> [round(v, 4) for v in flow.log_prob(x).tolist()]
            [-1.8379, -1.8379, -1.8379]
        """
        return self._query(self._log_prob, x, context, y)

    def score_samples(self, X: Any, context: Any = None, y: Any = None) -> Any:
        """`log_prob` under scikit-learn's name."""
        return self.log_prob(X, context, y)

    def score(
        self, X: Any, y: Any = None, *, context: Any = None, sample_weight: Any = None
    ) -> float:
        """Mean log-density of the rows, nats per row; ``sample_weight`` (N,) weighs them.

        Raises:
            ValueError: as `log_prob`; weights that are negative, not finite, or 0 everywhere.
        """
        with torch.no_grad(), evaluating(self):
            value = torch.as_tensor(self.log_prob(X, context, y)).double().cpu()
        if sample_weight is None:
            return float(value.mean())
        weight = weights_of(sample_weight, len(value), value.device, torch.float64)
        used = weight > 0
        if not used.any():
            raise ValueError(f"{type(self).__name__}: sample_weight is zero everywhere")
        return float((value[used] * weight[used]).sum() / weight.sum())

    def bits_per_dim(self, X: Any, y: Any = None, *, context: Any = None) -> float:
        """Mean code length of the rows of integers in X, bits per number.

        Args:
            X: (N, *shape) integers.
            y, context: as in `log_prob`.

        Raises:
            ValueError: the model is not one of integers; otherwise as `log_prob`.
        """
        if self.levels is None:
            raise ValueError(f"{type(self).__name__}: bits_per_dim is for models of integers")
        return -self.score(X, y, context=context) / (math.log(2) * self.features)

    def _possible(self, x: Tensor) -> Tensor:
        """Whether a number of a row can be; NaN can."""
        if self.levels is None:
            return ~x.isinf()
        return ((x >= 0) & (x < self.levels) & (x == x.floor())) | x.isnan()

    def _log_prob(
        self,
        x: Tensor,
        context: Tensor | None,
        labels: Tensor | None,
        first: int,
        seed: int = 0,
    ) -> Tensor:
        """Rows that cannot be are taken out before the network sees them, and get -inf."""
        possible = self._possible(x)
        x = self._noisy(torch.where(possible, x, 0), first, seed)
        if self.levels is None:
            # So far away the density is 0, but what the layers make of it may be inf - inf.
            near = self.standard(x)[0].abs() < FARTHEST[self.dtype]
            possible = possible & (near | x.isnan())
            x = torch.where(possible, x, 0)
        result = self._density(x, context, labels)
        return result.masked_fill(~possible.flatten(1).all(1), -math.inf)

    def _of_draws(
        self, n: int, context: Any, y: Any, random_state: Any
    ) -> tuple[Tensor | None, int]:
        """What the network is told of each of n draws, and their seed."""
        if not isinstance(n, Integral) or n < 0:
            raise ValueError(
                f"{type(self).__name__}: n must be an integer that is not negative, got {n!r}"
            )
        self._check_dtype()
        seed = seed_of(random_state)
        c = contexts(self, context, n)
        if c is not None and not isinstance(context, Tensor):
            check_finite(self, c, "context")
        return self._condition(c, self._labels_of_draws(y, n, seed)), seed

    def _of_gaps(self, X: Any, context: Any, y: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows with 0 where a number is missing, where that is, and what the network is told."""
        self._needs_label(y)
        self._check_dtype()
        x = rows(self, X).detach()
        missing = x.isnan()
        x = torch.where(missing, 0, x)
        check_rows(self, x)
        c = contexts(self, context, len(x))
        if c is not None:
            check_finite(self, c, "context")
        return x, missing, self._condition(c, label_numbers(self, y, len(x)))

    def _as_asked(self, x: Tensor, context: Any, y: Any) -> Any:
        """Draws: a tensor if ``context`` or ``y`` is one, else what `fit` was given."""
        given = [value for value in (context, y) if value is not None and np.ndim(value)]
        as_array = self.fitted_to_tensors_ is False
        if given:
            as_array = not any(isinstance(value, Tensor) for value in given)
        if self.levels is not None:
            if not x.isfinite().all():
                raise ValueError(
                    f"{type(self).__name__}: the network gave probabilities that are not finite; "
                    "look for weights that are NaN or infinite"
                )
            x = x.to(torch.int64)
        elif not as_array:
            x = x.to(self.dtype)
        return x.cpu().numpy() if as_array else x
