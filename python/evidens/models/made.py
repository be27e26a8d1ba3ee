"""`MADE`: a density of rows, feature by feature, in one pass of a masked network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.models._arrays import returned
from evidens.models._density import Density
from evidens.models._density_input import Batch
from evidens.models._density_scaling import Standardize
from evidens.models._density_state import PIECE, check_sizes, evaluating, seed_of, widths
from evidens.models._density_steps import FeatureSteps, Stepwise
from evidens.nn import MaskedMLP

OUTPUTS = ("bernoulli", "categorical", "gaussian", "mixture")
METHODS = ("sample", "mean", "mode")
# Steps of the Philox stream beside those of `_density_state`.
ORDER, PICK = 16, 17


class MADE(Stepwise, Density):
    """Autoregressive density: ``p(x) = prod_d p(x_d | features before d)``.

    Args:
        features: D.
        output: what a feature is, given those before it: ``"bernoulli"`` (0 or 1),
            ``"categorical"`` (integers 0 .. levels - 1), ``"gaussian"``, or ``"mixture"`` of
            Gaussians.
        levels: K of ``"categorical"``.
        terms: M of ``"mixture"``.
        context, classes: as in `evidens.RealNVP`.
        hidden: widths of the hidden layers.
        orders: orders of the features that share the weights: as they stand, then random ones fixed
            by D.  A training step takes one of them; `log_prob` is that of their even mixture.
        activation, dropout: as in `evidens.nn.MaskedMLP`.
        standardize: rows of numbers, and contexts, are standardised by the training rows, which
            `log_prob` accounts for.

    Raises:
        ValueError: a size out of range, an unknown output or activation, levels or no levels.

    Source: Germain, Gregor, Murray and Larochelle, MADE: masked autoencoder for distribution
    estimation (2015); Uria, Murray and Larochelle, A deep and tractable density estimator (2014),
    for several orders.

    Example:
        >>> import evidens, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.repeat(rng.integers(2, size=(500, 1)), 4, 1)  # four equal bits: log(2) nats
        >>> model = evidens.MADE(4, hidden=(32,))
        >>> model = model.fit(X, epochs=60, batch_size=32, lr=1e-2, random_state=0)
        >>> round(model.score(X), 1)
        -0.7
        >>> model.sample(2, random_state=0).shape
        (2, 4)
    """

    standard: Standardize
    layers: nn.ModuleList

    def __init__(
        self,
        features: int,
        *,
        output: str = "bernoulli",
        levels: int | None = None,
        terms: int = 10,
        context: int = 0,
        classes: int = 0,
        hidden: Sequence[int] = (500, 500),
        orders: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
        standardize: bool = True,
    ) -> None:
        settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        name = type(self).__name__
        settings["hidden"] = widths(name, hidden)
        if output not in OUTPUTS:
            raise ValueError(f"{name}: expected output one of {', '.join(OUTPUTS)}, got {output!r}")
        check_sizes(name, (features,), context, classes, None, None, terms=terms, orders=orders)
        if (levels is not None) != (output == "categorical") or (levels or 2) < 2:
            raise ValueError(
                f"{name}: levels must be at least 2 with output='categorical' and None without, "
                f"got {levels!r} with {output!r}"
            )
        known_levels = {"bernoulli": 2, "categorical": levels}.get(output)
        count = {"bernoulli": 1, "categorical": levels or 0, "gaussian": 2}.get(output, 3 * terms)
        nets = [
            MaskedMLP(
                features,
                count,
                settings["hidden"],
                order=_order(features, i),
                context=context + classes,
                one_hot=levels or 0,
                activation=activation,
                dropout=dropout,
            )
            for i in range(orders)
        ]
        for net in nets[1:]:
            _share(net, nets[0])
        standardized = standardize and known_levels is None
        super().__init__(
            (features,),
            nn.ModuleList(nets),
            Standardize((features,), by="features" if standardized else "none", context=context),
            context=context,
            classes=classes,
            levels=known_levels,
            settings=settings,
        )
        self.output, self.terms = output, terms
        self._only: int | None = None  # the order of a training step
        self.register_load_state_dict_post_hook(_share_again)

    # --- densities -------------------------------------------------------------------------------

    def _given_label(self, x: Tensor, context: Tensor | None, labels: Tensor | None) -> Tensor:
        z, logdet = self.standard(x)
        z, condition = z.to(self.dtype), self._condition(context, labels)
        nets = list(self.layers) if self._only is None else [self.layers[self._only]]
        terms = torch.stack([self._terms(net, z, condition).sum(1) for net in nets])
        return terms.logsumexp(0) - math.log(len(nets)) + logdet.to(self.dtype)

    def _training_density(self, batch: Batch, semi: bool) -> Tensor:
        self._only = int(torch.randint(len(self.layers), ()))
        try:
            return super()._training_density(batch, semi)
        finally:
            self._only = None

    def _terms(self, net: nn.Module, z: Tensor, condition: Tensor | None) -> Tensor:
        """``log p(z_d | features before d)``, (N, D)."""
        return self._step_terms(net(z, condition), z)

    def _step_terms(self, raw: Tensor, z: Tensor) -> Tensor:
        """``log p(z_d | features before d)``, (N, A), from their parameters (N, A, P)."""
        if self.output == "bernoulli":
            return -nn.functional.softplus((1 - 2 * z) * raw[:, :, 0])
        if self.output == "categorical":
            at = torch.where(z.isnan(), 0, z).to(torch.int64)[:, :, None]
            return raw.log_softmax(2).gather(2, at)[:, :, 0] + 0 * z  # NaN is no level
        weights = None
        if self.output == "gaussian":
            mean, log_scale = raw[:, :, :1], raw[:, :, 1:]
        else:
            logits, mean, log_scale = raw.chunk(3, 2)
            weights = logits.log_softmax(2)
        apart = (z[:, :, None] - mean) * (-log_scale).exp()
        normal = -0.5 * (apart * apart + math.log(2 * math.pi)) - log_scale
        return normal[:, :, 0] if weights is None else (weights + normal).logsumexp(2)

    # --- draws -----------------------------------------------------------------------------------

    def sample(
        self, n: int = 1, context: Any = None, y: Any = None, *, random_state: Any = None
    ) -> Any:
        """Draw rows, by the arithmetic of one pass of the network.

        Args:
            n: number of rows, not negative.
            context: (n, K), or one row (K,) for all draws.
            y: (n,) labels, or one for all draws; None draws classes by their frequency.
            random_state: seed or generator; None takes torch's.  A row depends on the seed and on
                its number, not on n.

        Returns:
            (n, D), integers for the outputs that are; a tensor or an array as in
            `evidens.RealNVP.sample`.

        Raises:
            ValueError: a missing or wrong context, an unknown label, a negative n.
        """
        condition, seed = self._of_draws(n, context, y, random_state)
        with torch.no_grad(), evaluating(self):
            z = self._fill(n, condition, seed)
            return self._as_asked(self.standard.inverse(z.double()), context, y)

    def _fill(
        self,
        n: int,
        condition: Tensor | None,
        seed: int,
        known: Tensor | None = None,
        values: Tensor | None = None,
        row0: int = 0,
        terms: Tensor | None = None,
    ) -> Tensor:
        """Rows (n, D) as the network sees them, known values as they are.

        ``terms`` (n, D) receives the log-densities of all features given those before them.
        """
        z = torch.empty((n, self.features), dtype=self.dtype, device=self.device)
        for net, at, noise, c, how in self._by_order(n, condition, seed, known, values, row0):
            drawn = net.draw(noise, c, **how)
            z[at] = drawn[0] if isinstance(drawn, tuple) else drawn
            if terms is not None:
                terms[at] = self._terms(net, z[at], c)
        return z

    def _by_order(
        self,
        n: int,
        condition: Tensor | None,
        seed: int,
        known: Tensor | None,
        values: Tensor | None,
        row0: int = 0,
    ) -> Iterator[tuple[MaskedMLP, Tensor, Tensor, Tensor | None, dict[str, Any]]]:
        """The network of each order: its rows, their noise and condition, how they are drawn."""
        nets: list[Any] = list(self.layers)
        where: dict[str, Any] = {"row_offset": row0, "device": self.device}
        noise = ops.made_noise(self.output, n, self.features, seed=seed, dtype=self.dtype, **where)
        u = ops.philox_uniform(seed, ORDER, n, 1, torch.float64, **where)
        for i, net in enumerate(nets):
            at = ((u[:, 0] * len(nets)).long() == i).nonzero()[:, 0]
            c, k, v = (None if t is None else t[at] for t in (condition, known, values))
            yield net, at, noise[at], c, {"kind": self.output, "known": k, "values": v}

    def _parts(
        self,
        n: int,
        condition: Tensor | None,
        seed: int,
        known: Tensor | None,
        values: Tensor | None,
    ) -> list[FeatureSteps]:
        return [
            FeatureSteps(self, at, net.start(noise, c, **how), net.order)
            for net, at, noise, c, how in self._by_order(n, condition, seed, known, values)
        ]

    # --- missing values --------------------------------------------------------------------------

    def impute(
        self,
        X: Any,
        context: Any = None,
        y: Any = None,
        *,
        method: str | None = None,
        draws: int = 32,
        random_state: Any = None,
    ) -> Any:
        """Fill in NaN by what the known features say of the missing ones.

        A row is completed ``draws`` times, feature by feature, and a completion weighs what the
        known features are worth that come after missing ones: importance sampling, whose error
        falls with the number of draws.

        Args:
            X: array-like or tensor (N, D), NaN where a value is missing.
            context, y: as in `log_prob`; a model with classes needs y.
            method: ``"sample"``: one of the completions by their weights; ``"mean"``: their
                weighted mean; ``"mode"``: for each feature the level of most weight.  None: mode
                for models of integers, else mean.
            draws: completions of each row.
            random_state: of the draws.

        Returns:
            (N, D), what X is; known values as they are.

        Raises:
            ValueError: infinities, an unknown method, mode of numbers, classes without y.

        Example:
            >>> import evidens, numpy as np
            >>> rng = np.random.default_rng(0)
            >>> X = np.repeat(rng.integers(2, size=(500, 1)), 4, 1)
            >>> model = evidens.MADE(4, hidden=(32,))
            >>> model = model.fit(X, epochs=60, batch_size=32, lr=1e-2, random_state=0)
            >>> model.impute([[np.nan, 1, np.nan, 1]], random_state=0)
            array([[1., 1., 1., 1.]])
        """
        name = type(self).__name__
        method = method or ("mean" if self.levels is None else "mode")
        if method not in METHODS or (method == "mode" and self.levels is None):
            raise ValueError(
                f"{name}: expected method one of {', '.join(METHODS)} (mode for integers only), "
                f"got {method!r}"
            )
        if not isinstance(draws, Integral) or draws < 1:
            raise ValueError(f"{name}: draws must be an integer of at least 1, got {draws!r}")
        x, missing, condition = self._of_gaps(X, context, y)
        seed = seed_of(random_state)
        with torch.no_grad(), evaluating(self):
            net: Any = self.layers[0]
            widest = max(max(layer.weight.shape) for layer in net.layers)
            size = max(1, PIECE // (draws * widest))
            parts = [
                self._complete(
                    x[i : i + size],
                    missing[i : i + size],
                    None if condition is None else condition[i : i + size],
                    method,
                    draws,
                    seed,
                    i,
                )
                for i in range(0, max(1, len(x)), size)
            ]
            result = torch.cat(parts)
        return returned(result.to(x.dtype) if isinstance(X, Tensor) else result.cpu(), X)

    def _complete(
        self,
        x: Tensor,
        missing: Tensor,
        condition: Tensor | None,
        method: str,
        draws: int,
        seed: int,
        row0: int,
    ) -> Tensor:
        n, d = x.shape
        seen = self.standard(x)[0].to(self.dtype)
        every = [t.repeat_interleave(draws, 0) for t in (seen, ~missing)]
        conditions = None if condition is None else condition.repeat_interleave(draws, 0)
        terms = seen.new_empty((n * draws, d))
        z = self._fill(n * draws, conditions, seed, every[1], every[0], row0 * draws, terms)
        worth = torch.where(every[1], terms.double(), 0).sum(1).view(n, draws)
        # Where no completion explains what is known, one is as good as another.
        weight = worth.masked_fill(worth.amax(1, keepdim=True) == -math.inf, 0).softmax(1)
        completed = self.standard.inverse(z.double()).view(n, draws, d)
        if method == "sample":
            u = ops.philox_uniform(
                seed, PICK, n, 1, torch.float64, row_offset=row0, device=self.device
            )
            pick = (weight.cumsum(1) <= u).sum(1).clamp(max=draws - 1)
            filled = completed[torch.arange(n, device=x.device), pick]
        elif method == "mean":
            filled = (weight[:, :, None] * completed).sum(1)
        else:
            votes = weight.new_zeros(n, d, self.levels or 2)
            at = completed.transpose(1, 2).to(torch.int64)
            filled = votes.scatter_add_(2, at, weight[:, None].expand(-1, d, -1)).argmax(2).double()
        return torch.where(missing, filled, x.double())


def _order(features: int, number: int) -> Tensor:
    """Places of the features in an order: as they stand, then random ones."""
    if number == 0:
        return torch.arange(features)
    return torch.randperm(features, generator=torch.Generator().manual_seed(number), device="cpu")


def _share_again(model: MADE, _: Any) -> None:
    """With ``assign=True`` each order would keep tensors of its own."""
    for net in model.layers[1:]:
        _share(net, model.layers[0])  # type: ignore[arg-type]


def _share(net: MaskedMLP, first: MaskedMLP) -> None:
    """Both networks have the weights of the first."""
    for own, other in zip(net.modules(), first.modules()):
        for name, value in other._parameters.items():
            own._parameters[name] = value
