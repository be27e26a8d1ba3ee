"""Sampling of autoregressive networks in one pass of work.

A plain loop runs the whole network once for every feature and uses one feature of what it gives.
These ops compute every hidden unit once, when what it sees is known.  Shape letters: ``N`` rows,
``D`` features, ``H`` hidden units, ``P`` parameters of one feature, ``K`` levels, ``M`` mixture
terms.  float32 or float64 (half types are widened to float32), all of one dtype on one device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evidens.ops import _autoregress_arguments as given
from evidens.ops import _autoregress_cpu as cpu
from evidens.ops import _checks as checks
from evidens.ops import _registry, _steps
from evidens.ops.philox import philox_uniform
from evidens.reference import autoregress as reference
from evidens.reference.autoregress import ACTIVATIONS, KINDS

__all__ = ["MadeState", "made_noise", "made_sample", "made_start", "made_step"]

FLOWS = ("affine", "gaussian", "spline")


def _one_network(function: Any) -> Any:
    """Refuses what vmap makes of a list of weights."""

    def call(noise: Tensor, weights: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
        if any(w.ndim != 2 for w in weights):
            raise ValueError(
                "evidens.made_sample: vmap over weights, biases or degrees is not offered; "
                "call it once for each network"
            )
        return function(noise, weights, *rest)

    return call


def _triton(*args: Any) -> tuple[Tensor, Tensor]:
    from evidens.kernels import autoregress as kernels

    return kernels.made_sample(*args)


def _triton_steps(*args: Any) -> Any:
    from evidens.kernels import autoregress as kernels

    return kernels.MadeSteps(*args)


_made = _registry.Op(
    "autoregress",
    "made_sample(Tensor noise, Tensor[] weights, Tensor?[] biases, Tensor[] degrees, "
    "Tensor? context, Tensor? known, Tensor? values, int kind, int activation, int levels, "
    "float[] input_map, int scale_map, float clamp, bool inverse, int bins, int spline_map, "
    "int[] tails, float[] box, float[] options) -> (Tensor, Tensor)",
    cpu=_one_network(cpu.made_sample),
    reference=_one_network(reference.made_sample),
    triton=_one_network(_triton),
    fake=lambda noise, *rest: (noise.new_empty(noise.shape[:2]), noise.new_empty(noise.shape[:1])),
    rows=(0, 4, 5, 6),
    waits=True,  # for the degrees
)


def made_noise(
    kind: str,
    rows: int,
    features: int,
    *,
    seed: int,
    row_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """What `made_sample` is driven by: Philox uniforms, standard normals made of them, or both.

    A number depends on the seed, the row and the feature, and on nothing else.

    Args:
        kind: as in `made_sample`.
        rows, features: N and D.
        seed: any Python integer; its low 64 bits count.
        row_offset: first row of the stream.
        dtype: float32 (numbers of 24 random bits) or float64 (53).
        device: where the result lives.

    Returns:
        (N, D): uniforms in [0, 1) for ``"bernoulli"`` and ``"categorical"``, else standard
        normals; (N, D, 2) for ``"mixture"``: a uniform and a normal.

    Raises:
        ValueError: naming the argument, what was expected and what came.

    Source: the normals are the inverse distribution function, in float64, of the middle of a
    uniform's interval.

    Example:
        >>> import torch, evidens
        >>> z = evidens.ops.made_noise("affine", 5, 3, seed=7)
        >>> tail = evidens.ops.made_noise("affine", 2, 3, seed=7, row_offset=3)
        >>> bool((z[3:] == tail).all())
        True
    """
    letters = given.NOISE[given.kind_of("made_noise", kind)]
    numbers = []
    for step, letter in enumerate(letters):
        u = philox_uniform(seed, step, rows, features, dtype, row_offset, device)
        if letter == "z":
            half = 2.0**-25 if dtype is torch.float32 else 2.0**-54
            u = torch.special.ndtri((u.double() + half).clamp(max=1 - 2.0**-53)).to(dtype)
        numbers.append(u)
    return numbers[0] if len(numbers) == 1 else torch.stack(numbers, -1)


def made_sample(
    noise: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    degrees: Sequence[Tensor],
    *,
    kind: str = "affine",
    activation: str = "relu",
    context: Tensor | None = None,
    known: Tensor | None = None,
    values: Tensor | None = None,
    one_hot: int = 0,
    input_map: tuple[float, float] = (1.0, 0.0),
    scale_map: str | None = None,
    clamp: float | None = None,
    inverse: bool = False,
    spline: Mapping[str, Any] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draws from a masked autoencoder (MADE), or the slow direction of a masked flow.

    The network is ``h = activation(W h + b)`` layer by layer, without an activation on the last.
    Degrees make the masks: a hidden unit sees inputs and units of at most its own degree, a
    parameter those of a smaller degree than its feature has.  Features are drawn in the order of
    their degrees; those of one degree together.  Dead weights are never read.  The work is that of
    one masked pass, not of D.

    =============== ============================== =========================== ==================
    ``kind``        parameters of a feature        x of a feature              noise
    =============== ============================== =========================== ==================
    ``affine``      shift t, raw scale r           z s(r) + t, or (z - t) / s  z (N, D)
    ``gaussian``    mean, log-scale                mean + exp(log-scale) z     normals z (N, D)
    ``spline``      widths, heights, derivatives   the spline of z, or inverse z (N, D)
    ``mixture``     M logits, means, log-scales    of term k by u: its Gaussian u, z (N, D, 2)
    ``bernoulli``   logit                          1 where u < sigmoid, else 0 u (N, D)
    ``categorical`` K logits                       level 0 .. K-1 by u         u (N, D)
    =============== ============================== =========================== ==================

    Args:
        noise: as the table says; `made_noise` makes it from a seed.
        weights: (H1, D), (H2, H1), ..., (D * P, H): one matrix for each layer; parameter p of
            feature d is row ``d * P + p`` of the last.  A single matrix is a network without
            hidden layers.
        biases: one or None for each; None: no bias at all.
        degrees: int64 tensors (D,) of the features, (H1,), (H2,), ... of the hidden units.
        kind: a name of the table.
        activation: one of identity, relu, leaky_relu (0.01), elu, tanh, sigmoid, silu, softplus.
        context: (N, H1) or None, added to the sums of the first layer: what the caller's network
            makes of a condition.  Without hidden layers (N, D * P).
        known: (N, D) or (D,) bool or None: features that are given, not drawn.
        values: (N, D) or None; read where ``known``.
        one_hot: K: the network sees a feature as K inputs, of which the one of its level is 1
            (kinds bernoulli and categorical); input k of feature d is column ``d * K + k``.
            0: it sees the value.
        input_map: ``(a, b)``; it sees ``a x + b``.
        scale_map, clamp: kind affine; as in `affine_coupling`, default ``"exp"``.
        inverse: kinds affine and spline; ``(z - t) / s`` (the usual masked autoregressive flow,
            whose fast direction is ``z = x s + t``), or the inverse spline.
        spline: kind spline; ``bins`` and any of the keywords of `spline_coupling` except
            ``parameters="knots"``; ``tails`` and ``bound`` by feature where they are lists.

    Returns:
        x (N, D); for kinds affine, gaussian and spline ``(x, logdet)``, logdet (N,) the sum of
        ``log |dx/dz|`` in nats, known features included.  A row whose parameters are NaN is NaN
        from there on.  No gradient.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: an argument requires a gradient.

    Source: Germain et al., MADE, 2015, eq. 8-9; Papamakarios, Pavlakou, Murray, Masked
    Autoregressive Flow for Density Estimation, 2017, eq. 3-5.

    Example:
        >>> import torch, evidens
        >>> weights = [torch.tensor([[2.0, 9.0]]), torch.tensor([[9.0], [9.0], [1.0], [0.0]])]
        >>> degrees = [torch.tensor([1, 2]), torch.tensor([1])]
        >>> z = torch.tensor([[3.0, 0.5]])
        >>> x, logdet = evidens.ops.made_sample(z, weights, None, degrees)
        >>> x, logdet  # x_0 = z_0, x_1 = z_1 + relu(2 x_0)
        (tensor([[3.0000, 6.5000]]), tensor([0.]))
    """
    call = _arguments(
        "made_sample",
        noise,
        weights,
        biases,
        degrees,
        kind=kind,
        activation=activation,
        context=context,
        known=known,
        values=values,
        one_hot=one_hot,
        input_map=input_map,
        scale_map=scale_map,
        clamp=clamp,
        inverse=inverse,
        spline=spline,
    )
    flow = kind in FLOWS
    if noise.shape[1] == 0:  # then nothing tells the number of parameters
        x = call[0].new_empty((len(noise), 0))
        return (x, x.new_zeros(len(noise))) if flow else x
    x, logdet = _made(*call)
    return (x, logdet) if flow else x


class MadeState(_steps.State):
    """Where a draw of `made_start` and `made_step` stands; a step makes the next one of it.

    Attributes:
        rows: N.
        place, places: how many features have been passed, and D.
        done: whether nothing is left.
        feature: the one that the next step draws; None when done.
        x: (N, D) so far, NaN where a feature is neither known nor drawn.
        parameters: (N, P) of the feature that was passed last.
        logdet: (N,) of the features passed so far, nats; 0 but for flows.
    """

    def __init__(self, cache: Any, watch: Any, order: list[int], levels: int) -> None:
        super().__init__("made", cache, watch, len(order))
        self._order, self._levels = order, levels

    @property
    def feature(self) -> int | None:
        """The one that the next step draws; None when done."""
        return None if self.done else self._order[self.place]

    @property
    def logdet(self) -> Tensor:
        """(N,) of the features passed so far, nats."""
        result: Tensor = self._current()._cache.logdet.clone()  # type: ignore[attr-defined]
        return result


def made_start(
    noise: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    degrees: Sequence[Tensor],
    **how: Any,
) -> MadeState:
    """The beginning of a draw that `made_step` continues feature by feature.

    All steps together do the work of one `made_sample` and give its x and logdet, bit for bit.
    Weights are packed here, so that a step costs what its feature and the hidden units before it
    cost.  The state keeps what the network computed, some numbers for each unit and row.

    Args:
        noise, weights, biases, degrees, **how: as in `made_sample`.  They must stay as they are
            until the last step.

    Returns:
        The state before the first feature in the order of the degrees (of equal ones, the first).

    Raises:
        ValueError, TypeError: as `made_sample`; also where there is no feature.
        RuntimeError: an argument requires a gradient, or the call is inside torch.compile.

    Example:
        >>> import torch, evidens
        >>> weights = [torch.tensor([[2.0, 9.0]]), torch.tensor([[9.0], [9.0], [1.0], [0.0]])]
        >>> degrees = [torch.tensor([1, 2]), torch.tensor([1])]
        >>> state = evidens.ops.made_start(torch.tensor([[3.0, 0.5]]), weights, None, degrees)
        >>> first, state = evidens.ops.made_step(state, torch.tensor([1.0]))  # not 3
        >>> second, state = evidens.ops.made_step(state)
        >>> first, second, state.done  # x_1 = 0.5 + relu(2 x_0)
        (tensor([1.]), tensor([2.5000]), True)
    """
    _steps.starting("made_start")
    call = _arguments("made_start", noise, weights, biases, degrees, **how)
    if call[0].shape[1] == 0:
        raise ValueError("evidens.made_start: noise has no features, so there is nothing to draw")
    context = [c for c in (how.get("context"),) if c is not None]
    watched = [noise, *weights, *(b for b in biases or () if b is not None), *degrees, *context]
    backend = _made.backend_on(call[0].device.type)
    steps: Any = {"cpu": cpu.MadeSteps, "triton": _triton_steps}.get(backend, reference.MadeSteps)
    order = degrees[0].sort(stable=True).indices.tolist()
    kind = KINDS[call[7]]
    levels = {"bernoulli": 2, "categorical": call[1][-1].shape[0] // len(order)}.get(kind, 0)
    like = torch.zeros_like(call[0][..., 0], memory_format=torch.contiguous_format)
    x, known, values = _steps.given(like, call[5], call[6], math.nan)
    cache = steps(x, *call[:5], known, values, *call[7:])
    return MadeState(cache, _steps.Watch(watched), order, levels)


def made_step(state: MadeState, value: Tensor | None = None) -> tuple[Tensor, MadeState]:
    """Passes the next feature of a draw.

    Args:
        state: what `made_start` or the step before returned; it is spent by the step.
        value: (N,) what the feature is, instead of a draw; NaN where it is to be drawn, or is
            known from the start.

    Returns:
        The feature's values (N,), known, given or drawn, and the state after it.

    Raises:
        ValueError: nothing is left to draw, the state is spent, the weights have changed since,
            a value of another batch size, no level of the kind.
        TypeError: something that is no state, or no tensor of numbers.

    Example:
        >>> import torch, evidens
        >>> degrees = [torch.arange(3)]
        >>> z = evidens.ops.made_noise("affine", 1, 3, seed=0)
        >>> state = evidens.ops.made_start(z, [torch.ones(6, 3)], None, degrees)
        >>> while not state.done:
        ...     x, state = evidens.ops.made_step(state)
        >>> whole, logdet = evidens.ops.made_sample(z, [torch.ones(6, 3)], None, degrees)
        >>> bool((state.x == whole).all() and (state.logdet == logdet).all())
        True
    """
    _steps.check("made", state, MadeState)
    f, cache = state._order[state.place], state._cache
    if value is not None:
        value = _steps.check_value("made", value, (state.rows,), "(N,)", state._levels)
        value = value.to(cache.x)
        given_now = ~value.isnan()
        cache.known[:, f] |= given_now
        cache.values[:, f] = torch.where(given_now, value, cache.values[:, f])
    after = state._next()
    cache.step()
    return cache.x[:, f].clone(), after


def _arguments(
    op: str,
    noise: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    degrees: Sequence[Tensor],
    *,
    kind: str = "affine",
    activation: str = "relu",
    context: Tensor | None = None,
    known: Tensor | None = None,
    values: Tensor | None = None,
    one_hot: int = 0,
    input_map: tuple[float, float] = (1.0, 0.0),
    scale_map: str | None = None,
    clamp: float | None = None,
    inverse: bool = False,
    spline: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """What the inner op takes, checked; without features noise and weights only."""
    name = given.kind_of(op, kind)
    weights, biases, found = given.tensors(
        op, weights, biases, degrees, noise=noise, context=context, values=values
    )
    noise, context = found["noise"], found.get("context")
    checks.floating(op, "noise", noise)
    draws = len(given.NOISE[name])
    letters = "(N, D)" if draws == 1 else "(N, D, 2)"
    if noise.ndim != 1 + draws or (draws == 2 and noise.shape[2] != 2):
        raise ValueError(
            f"evidens.{op}: noise of kind {kind!r} must have shape {letters}, got "
            f"{tuple(noise.shape)}; made_noise makes it from a seed"
        )
    noise = noise.unsqueeze(2) if draws == 1 else noise
    n, d = noise.shape[:2]
    code = checks.choice(op, "activation", activation, ACTIVATIONS)
    way = given.way(op, name, scale_map, clamp, inverse)
    name = "affine" if name == "gaussian" else name
    if one_hot < 0 or (one_hot and name not in ("bernoulli", "categorical")):
        raise ValueError(
            f"evidens.{op}: one_hot must be 0, or K levels with kinds 'bernoulli' and "
            f"'categorical', got {one_hot} with {kind!r}"
        )
    given.network(op, noise, weights, biases, degrees, one_hot)
    if d == 0:
        return (noise, weights)
    parameters = weights[-1].shape[0] // d
    given.parameter_count(op, name, parameters)
    levels = {"bernoulli": 2, "categorical": parameters}.get(name, 0)
    if one_hot and one_hot != levels:
        raise ValueError(
            f"evidens.{op}: one_hot must be the number of levels K = {levels}, got {one_hot}"
        )
    index = KINDS.index(name)
    settings = given.spline_settings(op, index, spline, d, parameters)
    if context is not None:
        what = "(N, D * P)" if len(weights) == 1 else "(N, H1)"
        given.like(op, "context", context, noise, what, (n, weights[0].shape[0]))
    known, values = given.partial(op, known, found.get("values"), noise, levels)
    return (
        noise,
        weights,
        biases,
        list(degrees),
        context,
        known,
        values,
        index,
        code,
        one_hot,
        [float(v) for v in input_map],
        *way,
        *settings,
    )
