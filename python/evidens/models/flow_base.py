"""`Flow`: what all normalizing flows share but for learning: densities, draws, latents."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidens import ops
from evidens.models._rows import weights_of
from evidens.models.flow_input import check_finite, contexts, label_numbers
from evidens.models.flow_learning import FlowLearning
from evidens.models.flow_state import CLASS, LATENT, PER_FEATURE, PIECE, evaluating, seed_of

# Standardised numbers beyond which a density counts as 0, by the dtype of the layers.
FARTHEST = {torch.float32: 1e15, torch.float64: 1e120}


class Flow(FlowLearning):
    """A density: data, made standard normal by invertible layers.

    ``log p(x) = log N(z; 0, I) + log |det dz/dx|``.  `evidens.RealNVP`,
    `evidens.NeuralSplineFlow` and `evidens.Glow` bring their layers; this class takes yours.

    Args:
        shape: of one row: (D,) or (C, H, W).
        layers: module from standardised rows to latents, as `evidens.nn.Chain`:
            ``forward(x, context)`` and ``inverse(z, context)``, each with a log-determinant (N,).
            The context of the layers is the user's, standardised, and then the class, one-hot.
        context: K, features of the context.
        classes: number of classes; 0 for a flow that knows none.
        dequantize: levels L of integers 0 .. L - 1, to which noise in [0, 1) is added.
        logit: a of ``logit(a + (1 - 2 a) x / L)``, which takes integers to the line.
        standardize: what shares no scale: ``"features"``, ``"channels"``, or ``"none"``.
        settings: arguments of a subclass's constructor, for `save` and for `fit`, which then starts
            with new layers.  None: `fit` goes on with the layers as they are, and `load` wants
            ``layers=``.

    Raises:
        ValueError: a size out of range.

    Example:
        >>> import evidens, torch
        >>> from evidens.nn import MLP, AffineCoupling, Chain, Permutation
        >>> layers = Chain(AffineCoupling(2, MLP(1, 2)), Permutation(2))
        >>> flow = evidens.Flow((2,), layers)
        >>> loss = -flow(torch.randn(64, 2)).mean()  # in a loop of your own, or flow.fit(X)
        >>> loss.backward()
    """

    # --- densities -------------------------------------------------------------------------------

    def forward(self, x: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """`log_prob` of a tensor: what a training loop of one's own calls."""
        result: Tensor = self.log_prob(x, context, y)
        return result

    def log_prob(self, x: Any, context: Any = None, y: Any = None) -> Any:
        """Log-density of every row.

        Args:
            x: array-like or tensor (N, *shape), or (N, D) with the numbers of a row in one axis.
            context: (N, K), or one row for all; needed where the flow has a context.
            y: (N,) labels, or one for all: ``log p(x | y)``.  None in a flow with classes:
                ``log sum_c p(c) p(x | c)``, with the frequencies of the classes in `fit`.

        Returns:
            (N,), nats, in the dtype of the flow; an array for an array, a differentiable tensor
            for a tensor.  With ``dequantize`` it is ``log p(x + u)`` for one draw u of uniform
            noise, the same in every call, in units of the integers: a lower bound of ``log P(x)``
            on average over u.

        Arrays are checked and computed in evaluation mode, in pieces.  Tensors are not looked at,
        so that the call compiles into one graph: a row with NaN gets NaN, one with an infinity
        (or, with ``dequantize``, anything but an integer in range) gets -inf.

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
        value = torch.as_tensor(self.log_prob(X, context, y)).detach().double().cpu()
        if sample_weight is None:
            return float(value.mean())
        weight = weights_of(sample_weight, len(value), value.device, torch.float64)
        used = weight > 0
        if not used.any():
            raise ValueError(f"{type(self).__name__}: sample_weight is zero everywhere")
        return float((value[used] * weight[used]).sum() / weight.sum())

    def bits_per_dim(
        self,
        X: Any,
        y: Any = None,
        *,
        context: Any = None,
        draws: int = 1,
        random_state: Any = 0,
    ) -> float:
        """Mean code length of the integers in X, bits per number; an upper bound.

        Args:
            X: (N, *shape) integers.
            y, context: as in `log_prob`.
            draws: of the noise for every row, whose densities are averaged; more tighten the bound.
            random_state: of the noise.

        Raises:
            ValueError: the flow has no ``dequantize``, or draws below 1.

        Source: Theis et al., A note on the evaluation of generative models (2016), section 3.1.
        """
        if self.dequantize is None:
            raise ValueError(
                f"{type(self).__name__}: bits_per_dim is for integer data; build the flow with "
                "dequantize=levels"
            )
        if draws < 1:
            raise ValueError(f"{type(self).__name__}: draws must be at least 1, got {draws}")
        seed = seed_of(random_state)
        terms = [
            torch.as_tensor(self._query(partial(self._log_prob, seed=seed + i), X, context, y))
            for i in range(draws)
        ]
        mean = torch.stack(terms).detach().double().logsumexp(0) - math.log(draws)
        return -float(mean.mean()) / (math.log(2) * self.features)

    def _log_prob(
        self,
        x: Tensor,
        context: Tensor | None,
        labels: Tensor | None,
        first: int,
        seed: int = 0,
    ) -> Tensor:
        """Rows that cannot be are taken out before the layers see them, and get -inf."""
        if self.dequantize is None:
            possible = ~x.isinf()
        else:
            possible = ((x >= 0) & (x < self.dequantize) & (x == x.floor())) | x.isnan()
        x = self._noisy(torch.where(possible, x, 0), first, seed)
        # So far away the density is 0, but what the layers make of it may be inf - inf.
        near = self.standard(x)[0].abs() < FARTHEST[self.dtype]
        possible = possible & (near | x.isnan())
        result = self._density(torch.where(possible, x, 0), context, labels)
        return result.masked_fill(~possible.flatten(1).all(1), -math.inf)

    # --- latents ---------------------------------------------------------------------------------

    def transform(self, X: Any, context: Any = None, y: Any = None) -> Any:
        """Latents z of the rows, of the shape of X: standard normal where the flow is right.

        Args:
            X, context, y: as in `log_prob`; a flow with classes needs y.

        Raises:
            ValueError: as `log_prob`; a flow with classes without y.
        """
        self._needs_label(y)

        def latents(x: Tensor, c: Tensor | None, labels: Tensor | None, first: int) -> Tensor:
            z, _ = self.standard(self._noisy(x, first, 0))
            result: Tensor = self.layers(z.to(self.dtype), self._condition(c, labels))[0]
            return result

        return self._query(latents, X, context, y)

    def _needs_label(self, y: Any) -> None:
        if self.classes and y is None:
            raise ValueError(f"{type(self).__name__}: latents belong to a class: pass y=")

    # --- draws -----------------------------------------------------------------------------------

    def sample(
        self,
        n: int = 1,
        context: Any = None,
        y: Any = None,
        *,
        temperature: float = 1.0,
        random_state: Any = None,
    ) -> Any:
        """Draw rows.

        Args:
            n: number of rows, not negative.
            context: (n, K), or one row (K,) for all draws.
            y: (n,) labels, or one for all draws; None draws classes by their frequency.
            temperature: factor on the latents; below 1 draws are nearer to the mode.
            random_state: seed or generator; None takes torch's.  A row depends on the seed and on
                its number, not on n.

        Returns:
            (n, *shape); integers with ``dequantize``.  A tensor if ``context`` or ``y`` is one,
            else an array if one of them is, else what the flow was fitted to (a tensor before
            `fit`).  Arrays are float64, tensors of the dtype of the flow.

        Raises:
            ValueError: a missing or wrong context, an unknown label, a negative n or temperature.

        Example:
            >>> import evidens
            >>> flow = evidens.RealNVP(2)
            >>> few, many = flow.sample(3, random_state=0), flow.sample(9, random_state=0)
            >>> bool((few == many[:3]).all())
            True
        """
        with torch.no_grad(), evaluating(self):
            x = self._draw(n, context, y, temperature, random_state)
        given = [value for value in (context, y) if value is not None and np.ndim(value)]
        as_array = self.fitted_to_tensors_ is False
        if given:
            as_array = not any(isinstance(value, Tensor) for value in given)
        if self.dequantize is not None:
            x = x.floor().clamp(0, self.dequantize - 1).to(torch.int64)
        elif not as_array:
            x = x.to(self.dtype)
        return x.cpu().numpy() if as_array else x

    def rsample(
        self,
        n: int = 1,
        context: Any = None,
        y: Any = None,
        *,
        temperature: float = 1.0,
        random_state: Any = None,
    ) -> Tensor:
        """`sample` as a tensor with gradients with respect to the parameters and the context.

        With ``dequantize`` the draws are those of the continuous density, not rounded.
        """
        return self._draw(n, context, y, temperature, random_state).to(self.dtype)

    def _draw(self, n: int, context: Any, y: Any, temperature: float, random_state: Any) -> Tensor:
        """Draws in float64: data may lie far from 0."""
        if n < 0:
            raise ValueError(f"{type(self).__name__}: n must not be negative, got {n}")
        if not 0 <= temperature < math.inf:
            raise ValueError(
                f"{type(self).__name__}: temperature must be a finite number of at least 0, got "
                f"{temperature}"
            )
        seed = seed_of(random_state)
        c = contexts(self, context, n)
        if c is not None and not isinstance(context, Tensor):
            check_finite(self, c, "context")
        labels = label_numbers(self, y, n)
        if self.classes and labels is None:
            u = ops.philox_uniform(seed, CLASS, n, 1, torch.float64, device=self.device)
            edges = self._class_log_prob().exp().cumsum(0)
            labels = torch.searchsorted(edges[:-1].contiguous(), u[:, 0] * edges[-1], right=True)
        size = max(1, PIECE // (PER_FEATURE * max(8, self.features)))
        parts = []
        for i in range(0, max(1, n), size):
            count = min(size, n - i)
            u = ops.philox_uniform(
                seed, LATENT, count, self.features, torch.float64, row_offset=i, device=self.device
            )
            z = self._base_draw(u, temperature).to(self.dtype).view(-1, *self.shape)
            at = slice(i, i + count)
            condition = self._condition(
                None if c is None else c[at], None if labels is None else labels[at]
            )
            x, _ = self.layers.inverse(z, condition)  # type: ignore[operator]
            parts.append(self.standard.inverse(x))
        return torch.cat(parts)
