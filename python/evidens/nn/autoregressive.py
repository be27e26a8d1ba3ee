"""Autoregressive networks and flow layers: parameters of a feature depend on those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from evidens import ops
from evidens.nn._shapes import check_features
from evidens.nn.conditioners import ACTIVATIONS, check_context
from evidens.nn.coupling import SCALE_MAPS
from evidens.nn.masked import MaskedLinear
from evidens.nn.spline import SplineCoupling

# Those that the sampler knows, too.
NAMES = tuple(name for name in ACTIVATIONS if name != "gelu")


class MaskedMLP(nn.Module):
    """A masked perceptron: P numbers for every feature, from the features that come before it.

    Args:
        features: D.
        parameters: P.
        hidden: widths of the hidden layers.
        order: (D,) the place of each feature, 0 .. D - 1; None: as they stand.
        context: features of a context that every hidden unit may see; 0 for none.
        one_hot: K: the network sees a level 0 .. K - 1 as K inputs, of which one is 1; 0: a number.
        activation: ``"relu"``, ``"silu"``, ``"tanh"``, ``"elu"`` or ``"leaky_relu"``.
        dropout: share of hidden units that are left out in training; draws leave out none.
        zero_init: the last layer starts at zero.

    Raises:
        ValueError: sizes below 1, an order that is none, an unknown activation; a context where
            none was announced, or the reverse.

    Source: Germain, Gregor, Murray and Larochelle, MADE: masked autoencoder for distribution
    estimation (2015).

    Example:
        >>> import torch, evidens
        >>> net = evidens.nn.MaskedMLP(3, 2, hidden=(16,))
        >>> x = torch.zeros(1, 3).requires_grad_()
        >>> net(x)[0, 1].sum().backward()  # the parameters of feature 1
        >>> x.grad.ne(0).tolist()
        [[True, False, False]]
    """

    def __init__(
        self,
        features: int,
        parameters: int,
        hidden: Sequence[int] = (128, 128),
        *,
        order: Any = None,
        context: int = 0,
        one_hot: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if features < 1 or parameters < 1 or any(size < 1 for size in hidden):
            raise ValueError(
                f"{name}: expected features, parameters and hidden of at least 1, got {features}, "
                f"{parameters} and {tuple(hidden)}"
            )
        if activation not in NAMES:
            raise ValueError(
                f"{name}: expected activation one of {', '.join(NAMES)}, got {activation!r}"
            )
        place = torch.arange(features) if order is None else torch.as_tensor(order)
        if not torch.equal(place.sort().values, torch.arange(features)):
            raise ValueError(
                f"{name}: order must hold each of 0 .. D - 1 = {features - 1} once, got "
                f"{place.tolist()}"
            )
        self.features, self.parameters_each, self.context = features, parameters, context
        self.one_hot, self.activation = one_hot, activation
        degree = place.to(torch.int64)
        # A unit that sees no feature is worth its while where a context comes in, or alone.
        first = 0 if context or features == 1 else 1
        steps = features - first
        degrees = [degree]
        for size in hidden:
            # Rising, so that a layer's live weights are a staircase as they lie.
            degrees.append(first + torch.arange(size) * steps // size)
        # Degrees of hidden units count features seen: a feature at place p is seen from p + 1 on.
        degrees[0] = degree + 1
        self.degrees = degrees
        inputs = degrees[0].repeat_interleave(one_hot) if one_hot else degrees[0]
        self.entry = (
            nn.Linear(context, hidden[0] if hidden else features * parameters, bias=False)
            if context
            else None
        )
        layers = [MaskedLinear(a, b) for a, b in zip([inputs, *degrees[1:]], degrees[1:])]
        out = degrees[0].repeat_interleave(parameters)
        layers.append(MaskedLinear(degrees[-1] if hidden else inputs, out, strict=True))
        if zero_init:
            nn.init.zeros_(layers[-1].weight)
            assert layers[-1].bias is not None
            nn.init.zeros_(layers[-1].bias)
            if self.entry is not None and not hidden:
                nn.init.zeros_(self.entry.weight)
        self.layers = nn.ModuleList(layers)
        self._between = nn.Sequential(
            ACTIVATIONS[activation](), *([nn.Dropout(dropout)] if dropout else [])
        )

    @property
    def order(self) -> list[int]:
        """The features as they come, one after the other."""
        order: list[int] = self.degrees[0].argsort().tolist()
        return order

    @property
    def _stack(self) -> list[MaskedLinear]:
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, D, P) for x (N, D) and a context (N, context)."""
        check_features(self, x, self.features)
        check_context(self, context, self.context)
        n = x.shape[0]
        if self.one_hot:
            levels = torch.arange(self.one_hot, device=x.device)
            x = (x[:, :, None] == levels).to(self._stack[0].weight.dtype)
            x = x.view(n, self.features * self.one_hot)
        first, *others = self._stack
        h = first(x)
        if self.entry is not None:
            h = h + self.entry(context)
        for layer in others:
            h = layer(self._between(h))
        return h.view(n, self.features, self.parameters_each)

    def draw(self, noise: Tensor, context: Tensor | None = None, **how: Any) -> Any:
        """`evidens.ops.made_sample` with this network; no gradient.

        Args:
            noise: as the op wants it.
            context: (N, context) or None.
            **how: ``kind`` and what belongs to it, ``known``, ``values``, ``input_map``.

        Returns:
            What the op returns.
        """
        return self._drawn_by(ops.made_sample, noise, context, **how)

    def start(self, noise: Tensor, context: Tensor | None = None, **how: Any) -> ops.MadeState:
        """`evidens.ops.made_start` with this network: `draw` feature by feature."""
        state: ops.MadeState = self._drawn_by(ops.made_start, noise, context, **how)
        return state

    def _drawn_by(self, op: Any, noise: Tensor, context: Tensor | None, **how: Any) -> Any:
        check_context(self, context, self.context)
        with torch.no_grad():
            return op(
                noise,
                [layer.weight for layer in self._stack],
                [layer.bias for layer in self._stack],
                [d.to(noise.device) for d in self.degrees],
                activation=self.activation,
                one_hot=self.one_hot,
                context=None if self.entry is None else self.entry(context),
                **how,
            )

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"{self.features}, parameters={self.parameters_each}, activation={self.activation!r}"


class Autoregressive(nn.Module):
    """A flow layer whose inverse goes feature by feature; what it does to one is the subclass's."""

    net: MaskedMLP

    def __init__(self, net: MaskedMLP, parameters: int) -> None:
        super().__init__()
        if not isinstance(net, MaskedMLP) or net.parameters_each != parameters or net.one_hot:
            got = type(net).__name__
            got += f" with {net.parameters_each}" if isinstance(net, MaskedMLP) else ""
            raise TypeError(
                f"{type(self).__name__}: net must be an evidens.nn.MaskedMLP with {parameters} "
                f"parameters for each feature that sees numbers, got {got}"
            )
        self.net, self.features = net, net.features

    def _apply_to(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Rows (N, D) through the transformer with parameters ``raw``, and its logdet (N,)."""
        raise NotImplementedError

    def _kind(self) -> dict[str, Any]:
        """The transformer, in the words of `evidens.ops.made_sample`."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, D): one pass of the network."""
        check_features(self, x, self.features)
        return self._apply_to(x, self.net(x, context), False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)`` for y (N, D): the work of one pass, feature by feature.

        Where a gradient is wanted, D passes.
        """
        check_features(self, y, self.features)
        wanted = torch.is_grad_enabled() and (
            y.requires_grad
            or (context is not None and context.requires_grad)
            or any(p.requires_grad for p in self.parameters())
        )
        if wanted or forward_ad._current_level >= 0:
            return self._by_passes(y, context)
        x, logdet = self.net.draw(y, context, inverse=True, **self._kind())
        return x, logdet

    def _by_passes(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, logdet = y, y.new_zeros(y.shape[0])
        for place in range(
            1, self.features + 1
        ):  # after it the features up to this place are right
            given, logdet = self._apply_to(y, self.net(x, context), True)
            known = (self.net.degrees[0] <= place).to(y.device)
            # What follows is not known yet and gets no gradient; no parameter that counts sees it.
            x = torch.where(known, given, y.detach())
        return given, logdet


class AffineAutoregressive(Autoregressive):
    """``y_d = x_d s(scale_d) + shift_d``, where both depend on the features before d.

    Args:
        net: an `evidens.nn.MaskedMLP` with 2 parameters for each feature: raw scale, then shift.
        scale_map, clamp: as in `evidens.nn.AffineCoupling`, but for ``"additive"``.

    The direction that is fast is that of densities.  `evidens.nn.Inverse` around it is the layer of
    an inverse autoregressive flow, with fast draws.

    Raises:
        TypeError: another network.
        ValueError: an unknown map.

    Source: Papamakarios, Pavlakou and Murray, Masked autoregressive flow for density estimation
    (2017); Kingma et al., Improving variational inference with inverse autoregressive flow (2016).

    Example:
        >>> import torch, evidens
        >>> layer = evidens.nn.AffineAutoregressive(evidens.nn.MaskedMLP(3, 2, hidden=(8,)))
        >>> x = torch.randn(4, 3)
        >>> y, logdet = layer(x)
        >>> with torch.no_grad():
        ...     back, _ = layer.inverse(y)
        >>> torch.allclose(back, x, atol=1e-5)
        True
    """

    def __init__(
        self, net: MaskedMLP, *, scale_map: str = "exp_clamped", clamp: float | None = None
    ) -> None:
        super().__init__(net, 2)
        maps = [name for name in SCALE_MAPS if name != "additive"]
        if scale_map not in maps:
            raise ValueError(
                f"AffineAutoregressive: expected scale_map one of {', '.join(maps)}, got "
                f"{scale_map!r}"
            )
        self.scale_map, self.clamp = scale_map, clamp

    def _apply_to(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return ops.affine_coupling(
            x,
            raw[:, :, 1],
            raw[:, :, 0],
            scale_map=self.scale_map,
            clamp=self.clamp,
            inverse=inverse,
        )

    def _kind(self) -> dict[str, Any]:
        return {"kind": "affine", "scale_map": self.scale_map, "clamp": self.clamp}

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"scale_map={self.scale_map!r}"


class SplineAutoregressive(Autoregressive):
    """A rational-quadratic spline of every feature, whose knots depend on the features before it.

    Args:
        net: an `evidens.nn.MaskedMLP` with ``SplineAutoregressive.outputs(bins)`` parameters for
            each feature.
        bins: M.
        parameters: ``"nflows"`` or ``"zuko"``: the map from numbers to splines.
        bound: B; the spline works on [-B, B], what lies outside passes as it is.
        identity_init: a net that gives zeros makes the layer the identity (``"nflows"``).

    Raises:
        TypeError: another network.
        ValueError: an unknown map.

    Source: Durkan, Bekasov, Murray and Papamakarios, Neural spline flows (2019), section 3.

    Example:
        >>> import torch, evidens
        >>> outputs = evidens.nn.SplineAutoregressive.outputs(8)
        >>> net = evidens.nn.MaskedMLP(3, outputs, zero_init=True)
        >>> layer = evidens.nn.SplineAutoregressive(net)
        >>> x = torch.tensor([[0.5, -1.0, 9.0]])
        >>> torch.allclose(layer(x)[0], x, atol=1e-6)
        True
    """

    def __init__(
        self,
        net: MaskedMLP,
        *,
        bins: int = 8,
        parameters: str = "nflows",
        bound: float = 5.0,
        identity_init: bool = True,
    ) -> None:
        super().__init__(net, self.outputs(bins))
        if parameters not in ("nflows", "zuko"):
            raise ValueError(
                f"SplineAutoregressive: expected parameters 'nflows' or 'zuko', got {parameters!r}"
            )
        self.bins, self.bound = bins, float(bound)
        self.options = {
            "bins": bins,
            "parameters": parameters,
            "bound": self.bound,
            "identity_init": identity_init,
        }

    @staticmethod
    def outputs(bins: int) -> int:
        """Parameters that the net must give for each feature."""
        return SplineCoupling.sizes(1, bins=bins)[1]

    def _apply_to(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = self.options
        return ops.spline_coupling(x, raw, inverse=inverse, **options)

    def _kind(self) -> dict[str, Any]:
        return {"kind": "spline", "spline": self.options}

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"bins={self.bins}, bound={self.bound}"
