"""Partition functions of restricted Boltzmann machines: annealed importance sampling, enumeration.

Shape letters: ``N`` chains, ``V`` visible and ``J`` hidden units, ``L`` levels of a softmax group,
``K`` rungs.  float32 or float64 (half types are widened to float32), all of one dtype on one
device; results in float64, nats.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _rbm_arguments as arguments
from evidens.ops import _rbm_partition_cpu as cpu
from evidens.ops import _registry
from evidens.reference import rbm_partition as reference

__all__ = ["RBMPartition", "rbm_ais", "rbm_exact_log_partition"]

_MOST_BITS = 30  # of an enumeration


def _triton(*args: Any) -> Tensor:
    from evidens.kernels import rbm_partition as kernels

    return kernels.rbm_ais(*args)


_ais = _registry.Op(
    "rbm_partition",
    "rbm_ais(Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor base_bias, "
    "Tensor betas, SymInt chains, int levels, int seed, int row0) -> Tensor",
    cpu=cpu.ais,
    reference=reference.rbm_ais,
    triton=_triton,
    fake=lambda weight, b, c, a, betas, chains, *rest: betas.new_empty(chains),
)
_exact = _registry.Op(
    "rbm_partition",
    "rbm_exact_log_partition(Tensor weight, Tensor visible_bias, Tensor hidden_bias, int levels) "
    "-> Tensor",
    cpu=cpu.exact_log_partition,
    reference=reference.rbm_exact_log_partition,
    fake=lambda weight, *rest: weight.new_empty((), dtype=torch.float64),
)


# --- results -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RBMPartition:
    """What `rbm_ais` found.

    Attributes:
        log_weights: (N,) float64, nats: the mean of their exponentials is an unbiased estimate of
            Z, so that `log_partition` is low on average.
        precision: what rounding may do to a log-weight, relative to its size: the machine epsilon
            of the dtype of the machine.

    Example:
        >>> import torch, evidens
        >>> found = evidens.ops.RBMPartition(torch.tensor([1.0, 1.0, 1.0]).double())
        >>> round(float(found.log_partition), 6), round(float(found.effective_sample_size), 6)
        (1.0, 3.0)
    """

    log_weights: Tensor
    precision: float = torch.finfo(torch.float64).eps

    @property
    def log_partition(self) -> Tensor:
        """Estimate of log Z, 0-d float64, nats: the log of the mean weight."""
        return self.log_weights.logsumexp(0) - math.log(self.log_weights.shape[0])

    @property
    def effective_sample_size(self) -> Tensor:
        """``(sum w)^2 / sum w^2``, 0-d float64: 1 .. N chains that carry the estimate."""
        w = self.log_weights
        return torch.exp(2 * w.logsumexp(0) - (2 * w).logsumexp(0))

    def interval(self, level: float = 0.99) -> tuple[Tensor, Tensor]:
        """Where log Z lies with confidence ``level``: two 0-d float64 tensors, nats.

        It spans two intervals, so that it holds where either assumption does: that of the mean of
        the weights by the central limit theorem, and that of the mean of a log-normal law (Zhou
        and Gao, 1997, the method of Cox), which sees past the largest weight that was drawn.  Both
        take Student's quantiles, and rounding is added.  Fewer than five chains say nothing:
        (-inf, inf).

        Raises:
            ValueError: ``level`` is not inside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(
                f"evidens.rbm_ais: level must lie inside (0, 1), got {level}; 0.99 is a habit"
            )
        w = self.log_weights
        n = w.shape[0]
        if n < 5:
            return w.new_tensor(-math.inf), w.new_tensor(math.inf)
        t = _student_quantile(0.5 + level / 2, n - 1)
        estimate, variance = self.log_partition, w.var()
        by_mean = t * ((n / self.effective_sample_size - 1).clamp(min=0) / (n - 1)).sqrt()
        centre = w.mean() + 0.5 * variance
        by_law = t * (variance / n + variance.square() / (2 * (n - 1))).sqrt()
        rounding = self.precision * (1 + w.abs().amax())
        return (
            torch.minimum(estimate - by_mean, centre - by_law) - rounding,
            torch.maximum(estimate + by_mean, centre + by_law) + rounding,
        )


def _student_quantile(p: float, degrees: int) -> float:
    """Student's quantile by the expansion about the normal one (Fisher and Cornish, 1960)."""
    z = math.sqrt(2) * float(torch.special.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)))
    q = z * z
    terms = (
        z,
        z * (q + 1) / 4,
        z * ((5 * q + 16) * q + 3) / 96,
        z * (((3 * q + 19) * q + 17) * q - 15) / 384,
    )
    return sum(term / degrees**i for i, term in enumerate(terms))


# --- arguments -----------------------------------------------------------------------------------


def _machine(
    op: str, base_bias: Tensor | None, *given: Any
) -> tuple[reference.Reduced, int, torch.dtype]:
    """The machine in other coordinates, its ``levels`` there, and the dtype that came."""
    m = arguments.machine(op, None, *given)
    if base_bias is None:
        base_bias = m.visible_bias
    else:
        (base_bias,) = checks.widen(op, ("base_bias", base_bias))
        v, j = m.units
        checks.arguments(
            op,
            m.weight,
            {"V": v},
            lambda: f"weight (J, V) = {(j, v)}",
            ("base_bias", base_bias, "V"),
            other="weight",
        )
    tensors = m.weight, m.visible_bias, m.hidden_bias, base_bias, m.log_variance
    checks.no_gradient(op, *tensors, instead="rbm_statistics, whose mean over samples is that of Z")
    names = "weight", "visible_bias", "hidden_bias", "base_bias", "log_variance"
    for name, t in zip(names, tensors):
        if t is not None and t.is_cpu and checks.readable() and not t.isfinite().all():
            raise ValueError(
                f"evidens.{op}: {name} must be finite, got {t[~t.isfinite()][0].item()}; a unit "
                "that never changes takes a bias of some hundred nats"
            )
    machine = reference.reduced(*tensors, visible=m.visible, hidden=m.hidden)
    levels = {"gaussian": reference.GAUSSIAN, "softmax": m.levels}.get(
        m.visible, reference.BERNOULLI
    )
    return machine, levels, m.weight.dtype


def _schedule(rungs: int, betas: Tensor | Sequence[float] | None, weight: Tensor) -> Tensor:
    """(K + 1,) float64 inverse temperatures from 0 to 1."""
    if betas is None:
        rungs = _integer("rungs", rungs)
        if not 1 <= rungs < 1 << 31:
            raise ValueError(f"evidens.rbm_ais: rungs must be in 1 .. 2^31 - 1, got {rungs}")
        return torch.linspace(0, 1, rungs + 1, dtype=torch.float64, device=weight.device)
    try:
        b = torch.as_tensor(betas, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"evidens.rbm_ais: betas must be numbers that rise from 0 to 1, got {betas!r}"
        ) from None
    checks.no_gradient("rbm_ais", b, instead="betas.detach()")
    if b.ndim != 1 or b.shape[0] < 2:
        raise ValueError(
            f"evidens.rbm_ais: betas must have shape (K + 1,) with K >= 1, got {tuple(b.shape)}"
        )
    if checks.readable() and not (b[0] == 0 and b[-1] == 1 and (b[1:] >= b[:-1]).all()):
        raise ValueError(
            "evidens.rbm_ais: betas must rise from 0 to 1, got "
            f"{b[0].item():g} .. {b[-1].item():g}"
            f"{'' if (b[1:] >= b[:-1]).all() else ', not rising'}; "
            "torch.linspace(0, 1, K + 1) does"
        )
    return b.to(weight.device)


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"evidens.rbm_ais: {name} must be an integer, got {value!r}") from None


# --- the ops -------------------------------------------------------------------------------------


def rbm_ais(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    chains: int = 100,
    rungs: int = 10_000,
    betas: Tensor | Sequence[float] | None = None,
    base_bias: Tensor | None = None,
    seed: int,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    levels: int | None = None,
    log_variance: Tensor | None = None,
    row0: int = 0,
) -> RBMPartition:
    """Annealed importance sampling of a restricted Boltzmann machine's partition function.

    Every chain starts with a draw from a base model without hidden units, whose Z is known, and
    moves through K models between that and the machine: rung k adds to the chain's log-weight what
    the next model gains on the last one at its state, then makes one Gibbs step of the next model.
    The hidden inputs ``c + W v`` serve both the gain and the step, so a rung is two products.

    Args:
        weight: W (J, V), as scikit-learn's ``components_``; the energy is
            ``-b.v - c.h - h W v`` (Gaussian units: see `rbm_gibbs`).
        visible_bias, hidden_bias: b (V,), c (J,).
        chains: N independent runs; the interval needs five, and deserves a hundred.
        rungs: K, in even steps of the inverse temperature; ten times as many take the variance of
            the log-weights down about tenfold.
        betas: (K + 1,) rising from 0 to 1, instead of ``rungs``.
        base_bias: (V,) visible bias of the base model, by default ``visible_bias``; the log-odds of
            the data's means (for Gaussian units their means) make a better start.
        seed: any Python integer; its low 64 bits count.
        visible: ``"bernoulli"`` (0, 1), ``"spin"`` (-1, 1), ``"gaussian"``, ``"softmax"``.
        hidden: ``"bernoulli"`` or ``"spin"``.
        levels: L of ``"softmax"``: V = D L units in groups of L of which one is 1.
        log_variance: (V,) log s^2 of ``"gaussian"``.
        row0: row of the stream of the first chain, not negative.

    Chains see the modes that they come upon: where all of them miss one, the estimate is too low
    and the interval, which is made of what was seen, stays narrow.  So it is with weights of tens
    of nats, or a base model far from the machine.  What distinct states weigh together (minus
    `rbm_free_energy`) is a lower bound to hold it against, as `evidens.BernoulliRBM` does.

    Returns:
        `RBMPartition`: log-weights (N,), log Z, its interval and the effective sample size.  A
        chain depends on the seed, its row and the machine, not on how many others there are.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: if an argument requires a gradient (none is offered).

    Source: Neal, Annealed importance sampling (2001); Salakhutdinov and Murray, On the quantitative
    analysis of deep belief networks (2008), section 4.2.

    Example:
        >>> import torch, evidens
        >>> g = torch.Generator().manual_seed(0)
        >>> machine = torch.randn(3, 6, generator=g), torch.zeros(6), torch.zeros(3)
        >>> found = evidens.ops.rbm_ais(*machine, chains=50, rungs=300, seed=0)
        >>> low, high = found.interval(0.99)
        >>> bool(low < evidens.ops.rbm_exact_log_partition(*machine) < high)
        True
    """
    op = "rbm_ais"
    given = weight, visible_bias, hidden_bias, visible, hidden, levels, log_variance
    machine, kind, dtype = _machine(op, base_bias, *given)
    chains, seed, row0 = (
        _integer(n, i) for n, i in (("chains", chains), ("seed", seed), ("row0", row0))
    )
    if chains < 1:
        raise ValueError(f"evidens.{op}: chains must be at least 1, got {chains}")
    if row0 < 0 or row0 + chains > 1 << 63:
        raise ValueError(
            f"evidens.{op}: row0 must not be negative and row0 + chains at most 2^63, got {row0}"
        )
    schedule = _schedule(rungs, betas, weight)
    signed = ((seed + (1 << 63)) & 0xFFFFFFFFFFFFFFFF) - (1 << 63)
    gains = _ais(*(t.to(dtype) for t in machine[:4]), schedule, chains, kind, signed, row0)
    base = reference.base_log_partition(machine.base_bias.to(dtype), weight.shape[0], kind)
    return RBMPartition(gains + (base + machine.constant), torch.finfo(dtype).eps)


def rbm_exact_log_partition(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    levels: int | None = None,
    log_variance: Tensor | None = None,
) -> Tensor:
    """The exact log Z of a small restricted Boltzmann machine, by enumeration of one layer.

    The layer with fewer units is enumerated and the other summed out; beside Gaussian and softmax
    visible units it is the hidden one.  All of it is in float64, whatever the dtype of the machine,
    and in blocks of states that no number of threads changes.  Every unit more takes twice as long;
    inputs beyond 300 nats take some ten times as long as others.

    Args:
        weight, visible_bias, hidden_bias, visible, hidden, levels, log_variance: as in `rbm_ais`.

    Returns:
        log Z, 0-d float64, nats.

    Raises:
        ValueError: more than 2^30 states, and what `rbm_ais` raises.
        RuntimeError: if an argument requires a gradient (none is offered).

    Source: by definition; Salakhutdinov and Murray (2008), section 4, for the layer summed out.

    Example:
        >>> import torch, evidens
        >>> zero = torch.zeros(2, 3), torch.zeros(3), torch.zeros(2)
        >>> log_partition = evidens.ops.rbm_exact_log_partition(*zero)
        >>> round(float(log_partition.exp()), 6)  # 2^5 states of energy 0
        32.0
    """
    op = "rbm_exact_log_partition"
    given = weight, visible_bias, hidden_bias, visible, hidden, levels, log_variance
    machine, kind, _ = _machine(op, None, *given)
    w, b, c = machine[:3]
    if kind == reference.BERNOULLI and w.shape[1] < w.shape[0]:
        w, b, c = w.T, c, b
    if w.shape[0] > _MOST_BITS:
        raise ValueError(
            f"evidens.{op}: the smaller layer may have at most {_MOST_BITS} units (2^30 states), "
            f"got {w.shape[0]} beside {w.shape[1]}; estimate it by rbm_ais"
        )
    return _exact(w, b, c, kind) + machine.constant
