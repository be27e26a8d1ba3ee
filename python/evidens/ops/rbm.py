"""Restricted Boltzmann machines: Gibbs chains, free energy, statistics of the gradient.

Shape letters: ``N`` rows (samples or chains), ``V`` visible units, ``J`` hidden units, ``L`` levels
of a softmax group.  float32 or float64 (half types are widened to float32), all of one dtype on
one device; states are numbers of that dtype.

The energy is ``E(v, h) = -b.v - c.h - h W v`` with ``weight`` W (J, V), ``visible_bias`` b and
``hidden_bias`` c.  Every op takes the kinds of units:

=============  ===========================================================================
``visible``    values
=============  ===========================================================================
``bernoulli``  0 and 1
``spin``       -1 and 1
``softmax``    groups of ``levels`` units, of which one is 1; group d holds the units
               ``d * levels .. d * levels + levels - 1``
``gaussian``   real numbers of variance ``s^2 = exp(log_variance)``; the energy is
               ``sum (v - b)^2 / (2 s^2) - c.h - h W (v / s^2)``
=============  ===========================================================================

``hidden`` is ``bernoulli`` or ``spin``.  Weights must be finite; a bias may be infinite, which
pins its unit.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _rbm_arguments as given
from evidens.ops import _rbm_cpu as cpu
from evidens.ops import _registry
from evidens.reference import rbm as reference

__all__ = ["RBMStatistics", "rbm_free_energy", "rbm_gibbs", "rbm_pcd", "rbm_statistics"]


class RBMStatistics(NamedTuple):
    """Result of `rbm_statistics`: gradients of ``sum_n sample_weight_n log p*(v_n)``."""

    weight: Tensor
    """(J, V)."""
    visible: Tensor
    """(V,), of the visible bias."""
    hidden: Tensor
    """(J,), of the hidden bias."""
    h_mean: Tensor
    """(N, J), means of the hidden units."""
    log_variance: Tensor | None = None
    """(V,) for Gaussian visible units, else None."""


# --- backends ------------------------------------------------------------------------------------


def _triton(name: str) -> Any:
    def call(*args: Any) -> Any:
        from evidens.kernels import rbm as kernels

        return getattr(kernels, name)(*args)

    return call


# --- the inner ops -------------------------------------------------------------------------------


def _fake_gibbs(state: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    n, (j, v) = state.shape[0], weight.shape
    kept = n if rest[11] else 0
    shapes = ((n, v), (n, j), (kept, v), (kept, j))
    return tuple(state.new_empty(shape) for shape in shapes)


def _fake_statistics(
    v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, log_variance: Any, *_: Any
) -> tuple[Tensor, ...]:
    j, units = weight.shape
    shapes = ((j, units), (units,), (j,), (v.shape[0], j), (units * (log_variance is not None),))
    return tuple(v.new_empty(shape) for shape in shapes)


def _fake_pcd(v: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *_fake_statistics(v, *rest), h.new_empty(h.shape)


def _gradient(
    needs: tuple[bool, ...],
    grads: Any,
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    beta: Tensor | None,
    visible: str,
    hidden: str,
) -> tuple[Tensor | None, ...]:
    # Products with nothing to fuse: torch's own matmul is the kernel.
    found = reference.rbm_free_energy_backward(
        v, weight, visible_bias, hidden_bias, log_variance, beta, grads[0], visible, hidden
    )
    return (*(g if need else None for g, need in zip(found, needs)), None, None)


_gibbs = _registry.Op(
    "rbm",
    "rbm_gibbs(Tensor state, Tensor weight, Tensor visible_bias, Tensor hidden_bias, "
    "Tensor? log_variance, Tensor? beta, Tensor? clamped, Tensor? values, str visible, str hidden, "
    "int levels, str start, int steps, bool means, int seed, int row0, int step0) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    cpu=cpu.gibbs,
    reference=reference.rbm_gibbs,
    triton=_triton("rbm_gibbs"),
    fake=_fake_gibbs,
)
_free_energy = _registry.Op(
    "rbm",
    "rbm_free_energy(Tensor v, Tensor weight, Tensor visible_bias, Tensor hidden_bias, "
    "Tensor? log_variance, Tensor? beta, str visible, str hidden) -> Tensor",
    cpu=cpu.free_energy,
    reference=reference.rbm_free_energy,
    triton=_triton("rbm_free_energy"),
    fake=lambda v, *rest: v.new_empty(v.shape[:1]),
    backward=_gradient,
    rows=(0, 5),
)
_statistics = _registry.Op(
    "rbm",
    "rbm_statistics(Tensor v, Tensor weight, Tensor visible_bias, Tensor hidden_bias, "
    "Tensor? log_variance, Tensor? h_mean, Tensor? sample_weight, Tensor? minus_v, "
    "Tensor? minus_h, Tensor? minus_weight, str hidden) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=cpu.statistics,
    reference=reference.rbm_statistics,
    triton=_triton("rbm_statistics"),
    fake=_fake_statistics,
)
_pcd = _registry.Op(
    "rbm",
    "rbm_pcd(Tensor v, Tensor h, Tensor weight, Tensor visible_bias, Tensor hidden_bias, "
    "Tensor? log_variance, Tensor? sample_weight, Tensor? minus_weight, str visible, str hidden, "
    "int levels, int steps, int seed, int row0, int step0) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=cpu.pcd,
    reference=reference.rbm_pcd,
    triton=functools.partial(
        reference.rbm_pcd, gibbs=_triton("rbm_gibbs"), statistics=_triton("rbm_statistics")
    ),
    fake=_fake_pcd,
)


# --- the public ops ------------------------------------------------------------------------------


def rbm_gibbs(
    state: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    steps: int = 1,
    seed: int,
    start: str = "visible",
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    levels: int | None = None,
    log_variance: Tensor | None = None,
    beta: Tensor | float | None = None,
    clamped: Tensor | None = None,
    values: Tensor | None = None,
    step0: int = 0,
    row0: int = 0,
    means: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Block Gibbs sampling: ``steps`` full steps of every row's own chain.

    From ``start="visible"`` a step draws the hidden units and then the visible ones; from
    ``start="hidden"`` it draws the visible units and then the hidden ones, which is what
    persistent chains need: their next statistics take the means of these hidden units.

    Numbers come from the Philox stream of `philox_uniform`: in step t of the call (from 0) hidden
    unit j of row n takes ``u = philox_uniform(seed, 2 * (step0 + t), ...)[row0 + n, j]``, visible
    unit i takes ``[row0 + n, i]`` of step ``2 * (step0 + t) + 1``.  A unit is on where
    ``u < p``, strictly.  A softmax group takes one uniform, that of its number: the first level
    whose cumulative probability exceeds it.  Gaussian units 2k and 2k + 1 take ``r cos(t)`` and
    ``r sin(t)`` with ``r = sqrt(-2 log(1 - u_2k))``, ``t = 2 pi u_2k+1``.  So a row's chain depends
    on the seed, its row and its step, not on the batch, on threads or on the backend, but for
    probabilities that tie with their uniform within rounding.  A second call with
    ``step0 = steps`` continues the first.

    Args:
        state: (N, V) visible states, or (N, J) hidden ones with ``start="hidden"``.
        weight: (J, V).
        visible_bias: (V,).
        hidden_bias: (J,).
        steps: full steps, at least 1.
        seed: any Python integer; its low 64 bits count.
        start: ``"visible"`` or ``"hidden"``.
        visible, hidden, levels, log_variance: the kinds of units, as above.
        beta: inverse temperature, a number or (N,): multiplies the whole energy of a row.  Gaussian
            units keep their mean and divide their variance by it.
        clamped: bool (V,) or (N, V): visible units that keep what ``state`` holds; softmax groups
            are taken whole.  A group of zeros takes no part: that is how an absent one is given.
        values: (N, V), what the clamped units are where ``start="hidden"``.
        step0, row0: where in the stream the call begins; ``step0 + steps`` is at most 2^31.
        means: also return the means from which the last states were drawn.

    Returns:
        ``(v, h)``, (N, V) and (N, J), or ``(v, h, v_mean, h_mean)``.  A row whose numbers are NaN
        is NaN.  No gradient.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: an argument requires a gradient.

    Source: Hinton, Training products of experts by minimizing contrastive divergence, 2002;
    Gaussian units: Cho, Ilin, Raiko, Improved learning of Gaussian-Bernoulli restricted Boltzmann
    machines, 2011, eq. 1-4.

    Example:
        >>> import torch, evidens
        >>> weight = torch.tensor([[9.0, 9.0, -9.0]])
        >>> biases = torch.zeros(3), torch.zeros(1)
        >>> v = torch.tensor([[1.0, 1.0, 0.0]])
        >>> evidens.ops.rbm_gibbs(v, weight, *biases, seed=0)
        (tensor([[1., 1., 0.]]), tensor([[1.]]))
    """
    op = "rbm_gibbs"
    checks.choice(op, "start", start, ("visible", "hidden"))
    letters = "NV" if start == "visible" else "NJ"
    m = given.machine(
        op,
        state,
        weight,
        visible_bias,
        hidden_bias,
        visible,
        hidden,
        levels,
        log_variance,
        name="state",
        letters=letters,
    )
    rows = m.state.shape[0]
    betas = given.inverse_temperature(op, beta, rows, m)
    clamped, values = given.clamping(op, clamped, values, start, m)
    signed, steps, step0, row0 = given.stream(op, seed, steps, step0, row0, rows)
    checks.no_gradient(op, *m[:5], betas, values, instead="rbm_free_energy or rbm_statistics")
    found = _gibbs(
        *m[:5],
        betas,
        clamped,
        values,
        visible,
        hidden,
        m.levels,
        start,
        steps,
        bool(means),
        signed,
        row0,
        step0,
    )
    return found if means else found[:2]


def rbm_free_energy(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    levels: int | None = None,
    log_variance: Tensor | None = None,
    beta: Tensor | float | None = None,
) -> Tensor:
    """Free energy ``F(v) = -log sum_h exp(-beta E(v, h))``: minus the unnormalised log-density.

    ``-F(v) - log Z`` is ``log p(v)``.  With Bernoulli hidden units
    ``F(v) = -b.v - sum_j softplus(c_j + W_j v)`` at beta = 1.

    Args:
        v: (N, V); any real numbers, as means of units are.
        weight, visible_bias, hidden_bias: (J, V), (V,), (J,).
        visible, hidden, levels, log_variance: the kinds of units, as above.
        beta: inverse temperature, a number or (N,); multiplies the whole energy of a row.

    Returns:
        (N,) nats, dtype of ``weight``.  Differentiable once in every tensor (under
        ``evidens.backend("reference")`` any number of times).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.

    Source: Hinton, A practical guide to training restricted Boltzmann machines, 2010, eq. 24-25.

    Example:
        >>> import torch, evidens
        >>> weight, biases = torch.tensor([[2.0, -1.0]]), (torch.tensor([0.5, 0.0]), torch.zeros(1))
        >>> evidens.ops.rbm_free_energy(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), weight, *biases)
        tensor([-2.6269, -0.6931])
    """
    op = "rbm_free_energy"
    m = given.machine(
        op, v, weight, visible_bias, hidden_bias, visible, hidden, levels, log_variance
    )
    betas = given.inverse_temperature(op, beta, m.state.shape[0], m)
    return _free_energy(*m[:5], betas, visible, hidden)


def rbm_statistics(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    h_mean: Tensor | None = None,
    sample_weight: Tensor | None = None,
    minus: tuple[Tensor, Tensor] | None = None,
    minus_weight: Tensor | float | None = None,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    levels: int | None = None,
    log_variance: Tensor | None = None,
) -> RBMStatistics:
    """Sums over rows of ``-dE / d parameter`` with the hidden units at their means, in one pass.

    They are one phase of the gradient: with those of the data and of M chains, the gradient of the
    mean log-likelihood of N rows is ``data / N - chains / M``.  With ``minus``, the visible states
    and hidden means of the chains, both phases are one sum: the result is ``data - minus_weight
    chains``, N times the gradient where ``minus_weight`` is N / M.  For discrete visible units the
    sums are
    ``sum h_mean v^T``, ``sum v`` and ``sum h_mean``.  For Gaussian ones
    ``sum h_mean (v / s^2)^T``, ``sum (v - b) / s^2``, ``sum h_mean``, and of the log-variance
    ``sum (v - b)^2 / (2 s^2) - (v / s^2) W^T h_mean``.

    Args:
        v: (N, V); any real numbers, as means of units are.
        weight, visible_bias, hidden_bias: (J, V), (V,), (J,).
        h_mean: (N, J) means of the hidden units given v, where they are known (the last ones of
            `rbm_gibbs` from ``start="hidden"``, say): then they are not computed again.
        sample_weight: (N,) or None for 1.
        minus: (M, V) and (M, J), states and means of other rows, whose sums are taken off: what
            `rbm_gibbs` gives as ``v`` and ``h_mean``.
        minus_weight: of these rows, a number or (M,); None for 1.
        visible, hidden, levels, log_variance: the kinds of units, as above.

    Returns:
        `RBMStatistics`, a tuple of ``weight`` (J, V), ``visible`` (V,), ``hidden`` (J,),
        ``h_mean`` (N, J) and ``log_variance`` (V,) or None.  No gradient.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: an argument requires a gradient.

    Source: Hinton, A practical guide to training restricted Boltzmann machines, 2010, section 3;
    Gaussian units: Cho, Ilin, Raiko, 2011, eq. 5-7.

    Example:
        >>> import torch, evidens
        >>> weight, biases = torch.zeros(1, 2), (torch.zeros(2), torch.zeros(1))
        >>> s = evidens.ops.rbm_statistics(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), weight, *biases)
        >>> s.weight, s.visible, s.hidden
        (tensor([[1.0000, 0.5000]]), tensor([2., 1.]), tensor([1.]))
        >>> chains = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5]])
        >>> v = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> evidens.ops.rbm_statistics(v, weight, *biases, minus=chains, minus_weight=2.0).weight
        tensor([[ 0.0000, -0.5000]])
    """
    op = "rbm_statistics"
    m = given.machine(
        op, v, weight, visible_bias, hidden_bias, visible, hidden, levels, log_variance
    )
    rows, j = m.state.shape[0], m.units[1]
    if h_mean is not None:
        (h_mean,) = checks.widen(op, ("h_mean", h_mean))
        checks.arguments(
            op,
            m.weight,
            {"N": rows, "J": j},
            lambda: f"v (N, V) = {tuple(m.state.shape)}",
            ("h_mean", h_mean, "NJ"),
            other="weight",
        )
    sample_weight = given.vector(op, "sample_weight", "N", sample_weight, rows, m)
    taken_off = given.other_rows(op, minus, minus_weight, m)
    checks.no_gradient(op, *m[:5], h_mean, sample_weight, *taken_off, instead="rbm_free_energy")
    product, sum_v, sum_h, means, spread = _statistics(
        *m[:5], h_mean, sample_weight, *taken_off, hidden
    )
    return RBMStatistics(
        product, sum_v, sum_h, means, spread if m.log_variance is not None else None
    )


def rbm_pcd(
    v: Tensor,
    h: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    steps: int = 1,
    seed: int,
    sample_weight: Tensor | None = None,
    minus_weight: Tensor | float | None = None,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    levels: int | None = None,
    log_variance: Tensor | None = None,
    step0: int = 0,
    row0: int = 0,
) -> tuple[RBMStatistics, Tensor]:
    """An update of persistent contrastive divergence: steps of the chains, and the gradient.

    The same numbers as `rbm_gibbs` from ``start="hidden"`` with its means, and `rbm_statistics` of
    the rows ``minus`` these chains, in one call that writes neither the chains' visible states nor
    their means, and lays the weights out once.

    Args:
        v: (N, V) rows of data; any real numbers, as means of units are.
        h: (M, J) hidden states of the chains.
        weight, visible_bias, hidden_bias: (J, V), (V,), (J,).
        steps: full steps of each chain, at least 1.
        seed, step0, row0: of the stream, as in `rbm_gibbs`.
        sample_weight: (N,) or None for 1.
        minus_weight: of the chains, a number or (M,); None for 1.
        visible, hidden, levels, log_variance: the kinds of units, as above.

    Returns:
        `RBMStatistics` of ``data - minus_weight chains``, N times the gradient of the mean
        log-likelihood where ``minus_weight`` is N / M, and the chains (M, J).  No gradient.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: an argument requires a gradient.

    Source: Tieleman, Training restricted Boltzmann machines using approximations to the likelihood
    gradient, 2008.

    Example:
        >>> import torch, evidens
        >>> weight, biases = torch.zeros(1, 2), (torch.tensor([9.0, -9.0]), torch.tensor([-9.0]))
        >>> v, chains = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.zeros(2, 1)
        >>> step, chains = evidens.ops.rbm_pcd(v, chains, weight, *biases, seed=0)
        >>> step.visible, chains
        (tensor([0., 1.]), tensor([[0.],
                [0.]]))
    """
    op = "rbm_pcd"
    m = given.machine(
        op, v, weight, visible_bias, hidden_bias, visible, hidden, levels, log_variance
    )
    h = given.persistent(op, h, m)
    rows = h.shape[0]
    sample_weight = given.vector(op, "sample_weight", "N", sample_weight, m.state.shape[0], m)
    minus_weight = given.minus_weights(op, minus_weight, rows, m)
    signed, steps, step0, row0 = given.stream(op, seed, steps, step0, row0, rows)
    checks.no_gradient(op, h, *m[:5], sample_weight, minus_weight, instead="rbm_free_energy")
    x, *machine = m[:5]
    weights = sample_weight, minus_weight
    product, sum_v, sum_h, means, spread, chains = _pcd(
        x, h, *machine, *weights, visible, hidden, m.levels, steps, signed, row0, step0
    )
    return RBMStatistics(
        product, sum_v, sum_h, means, spread if m.log_variance is not None else None
    ), chains
