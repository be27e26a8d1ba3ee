"""`Flow`: what all normalizing flows share: layers, their base, draws and latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.models._density import Density
from evidens.models._density_scaling import Standardize
from evidens.models._density_state import (
    LATENT,
    NOISE,
    PER_FEATURE,
    PIECE,
    check_sizes,
    evaluating,
    seed_of,
)


class Flow(Density):
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

    standard: Standardize

    def __init__(
        self,
        shape: Sequence[int],
        layers: nn.Module,
        *,
        context: int = 0,
        classes: int = 0,
        dequantize: int | None = None,
        logit: float | None = None,
        standardize: str = "features",
        settings: dict[str, Any] | None = None,
        circular: Tensor | None = None,
    ) -> None:
        own = dict(shape=list(shape), context=context, classes=classes, dequantize=dequantize)
        own |= dict(logit=logit, standardize=standardize)
        check_sizes(type(self).__name__, shape, context, classes, dequantize, logit)
        standard = Standardize(
            shape,
            by=standardize,
            context=context,
            levels=dequantize,
            logit=logit,
            circular=circular,
        )
        super().__init__(
            shape,
            layers,
            standard,
            context=context,
            classes=classes,
            levels=dequantize,
            settings=own if settings is None else settings,
            renewable=settings is not None,
        )
        self.dequantize = dequantize

    @property
    def density_kind_(self) -> str:
        """``"exact"``; with ``dequantize`` ``"bound"``, as `log_prob` is one of the log-mass."""
        return "exact" if self.dequantize is None else "bound"

    # --- densities -------------------------------------------------------------------------------

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
        with torch.no_grad(), evaluating(self):
            terms = [
                torch.as_tensor(self._query(partial(self._log_prob, seed=seed + i), X, context, y))
                for i in range(draws)
            ]
        mean = torch.stack(terms).double().logsumexp(0) - math.log(draws)
        return -float(mean.mean()) / (math.log(2) * self.features)

    def _given_label(self, x: Tensor, context: Tensor | None, labels: Tensor | None) -> Tensor:
        z, logdet = self.standard(x)
        z, change = self.layers(z.to(self.dtype), self._condition(context, labels))
        return self._base_log_prob(z) + change + logdet.to(change.dtype)

    def _noisy(self, x: Tensor, first: int, seed: int) -> Tensor:
        """Integers become numbers between them and the next ones."""
        if self.dequantize is None:
            return x
        u = ops.philox_uniform(
            seed, NOISE, len(x), self.features, self.dtype, row_offset=first, device=x.device
        )
        return x + u.view(x.shape)

    def _jittered(self, x: Tensor) -> Tensor:
        return x if self.dequantize is None else x + torch.rand_like(x)

    def _base_log_prob(self, z: Tensor) -> Tensor:
        """Standard normal, and uniform on the circle for angles."""
        z = z.flatten(1)
        angle = self.standard.circular
        log_prob = -0.5 * (z * z + math.log(2 * math.pi))
        if angle is not None:
            log_prob = torch.where(angle, -math.log(2 * math.pi), log_prob)
        return log_prob.sum(1)

    def _latents(self, n: int, seed: int, temperature: float, first: int = 0) -> Tensor:
        """Latents (n, *shape) of a seed, from row ``first`` on."""
        u = ops.philox_uniform(
            seed, LATENT, n, self.features, torch.float64, row_offset=first, device=self.device
        )
        return self._base_draw(u, temperature).to(self.dtype).view(-1, *self.shape)

    def _base_draw(self, u: Tensor, temperature: float) -> Tensor:
        """Latents (N, D) from uniforms."""
        z = torch.special.ndtri(u.clamp(min=2.0**-54)) * temperature
        angle = self.standard.circular
        return z if angle is None else torch.where(angle, math.pi * (2 * u - 1), z)

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
        if self.dequantize is not None:
            x = x.floor().clamp(0, self.dequantize - 1)
        return self._as_asked(x, context, y)

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
        if not 0 <= temperature < math.inf:
            raise ValueError(
                f"{type(self).__name__}: temperature must be a finite number of at least 0, got "
                f"{temperature}"
            )
        condition, seed = self._of_draws(n, context, y, random_state)
        size = max(1, PIECE // (PER_FEATURE * max(8, self.features)))
        parts = []
        for i in range(0, max(1, n), size):
            count = min(size, n - i)
            z = self._latents(count, seed, temperature, i)
            told = None if condition is None else condition[i : i + count]
            x, _ = self.layers.inverse(z, told)  # type: ignore[operator]
            parts.append(self.standard.inverse(x))
        return torch.cat(parts)

    # --- missing values --------------------------------------------------------------------------

    def impute(
        self,
        X: Any,
        context: Any = None,
        y: Any = None,
        *,
        method: str = "mean",
        steps: int = 300,
        random_state: Any = None,
    ) -> Any:
        """Fill in NaN by what the density says of the missing features given the known ones.

        No conditional of a flow is at hand, so each row has a chain that walks over its missing
        features with the conditional density as its limit: the Metropolis-adjusted Langevin
        algorithm, which starts at the best of a few draws of the model.  It stays among modes that
        are near each other.

        Args:
            X: array-like or tensor (N, *shape), or (N, D), NaN where a value is missing.
            context, y: as in `log_prob`; a flow with classes needs y.
            method: ``"mean"``: the conditional mean (of angles its direction), over the second half
                of the chain; ``"sample"``: a draw, its end.
            steps: of the chain; each costs a density and its gradient.
            random_state: seed or generator; None takes torch's.  A row depends on the seed and on
                its number, not on N.

        Returns:
            (N, *shape), what X is; known values as they are.

        Raises:
            ValueError: infinities, integers out of range, an unknown method, classes without y.

        Source: Roberts and Rosenthal, Optimal scaling of discrete approximations to Langevin
        diffusions (1998).

        Example:
            >>> import evidens, numpy as np
            >>> rng = np.random.default_rng(0)
            >>> X = np.repeat(rng.normal(size=(500, 1)), 2, 1) + 0.1 * rng.normal(size=(500, 2))
            >>> flow = evidens.MaskedAutoregressiveFlow(2, layers=2, hidden=(16,))
            >>> flow = flow.fit(X, epochs=30, lr=1e-2, random_state=0, verbose=0)
            >>> filled = flow.impute([[1.5, np.nan]], random_state=0)
            >>> bool(abs(filled[0, 1] - 1.5) < 0.3)
            True
        """
        from evidens.models.flow_impute import impute

        return impute(self, X, context, y, method, steps, random_state)
