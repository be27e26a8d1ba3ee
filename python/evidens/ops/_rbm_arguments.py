"""Arguments of the RBM ops: every check, and what an argument is by default."""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.reference.rbm import HIDDEN, VISIBLE


class Machine(NamedTuple):
    """Tensors of one dtype on one device, and the kinds of units."""

    state: Tensor
    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    log_variance: Tensor | None
    visible: str
    hidden: str
    levels: int

    @property
    def units(self) -> tuple[int, int]:
        """V and J."""
        j, v = self.weight.shape
        return v, j


# Kinds of visible units that take no other argument.
_BINARY = ("bernoulli", "spin")


def _in_order(
    state: Tensor | None,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    from_hidden: bool,
) -> bool:
    """Whether one look finds nothing to convert or refuse: an update of few rows is soon done."""
    if state is None:
        return False
    given = state, weight, visible_bias, hidden_bias
    if not all([isinstance(t, Tensor) for t in given]):
        return False
    dtype, device, shape = weight.dtype, weight.device, weight.shape
    return (
        (dtype is torch.float32 or dtype is torch.float64)
        and len(shape) == 2
        and state.ndim == 2
        and state.shape[1] == shape[not from_hidden]
        and visible_bias.shape == shape[1:]
        and hidden_bias.shape == shape[:1]
        and all([t.dtype is dtype and t.device == device for t in given])
        and all([isinstance(t, Tensor) and t.layout is torch.strided for t in given])
    )


def machine(
    op: str,
    state: Tensor | None,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    visible: str,
    hidden: str,
    levels: int | None,
    log_variance: Tensor | None,
    *,
    name: str = "v",
    letters: str = "NV",
) -> Machine:
    """The machine, checked; ``state`` (None: there is none) is the argument called ``name``."""
    binary = visible in _BINARY and levels is None and log_variance is None and hidden in HIDDEN
    if binary and _in_order(state, weight, visible_bias, hidden_bias, letters == "NJ"):
        assert state is not None
        return Machine(state, weight, visible_bias, hidden_bias, None, visible, hidden, 0)
    given = [("weight", weight), ("visible_bias", visible_bias), ("hidden_bias", hidden_bias)]
    if state is not None:
        given.insert(0, (name, state))
    if log_variance is not None:
        given.append(("log_variance", log_variance))
    tensors = dict(zip((n for n, _ in given), checks.widen(op, *given)))
    for n, t in tensors.items():
        if t.layout is not torch.strided:
            raise TypeError(
                f"evidens.{op}: {n} must be a dense tensor, got {t.layout}; convert it with "
                f"{n}.to_dense()"
            )
    weight = tensors["weight"]
    checks.floating(op, "weight", weight)
    if weight.ndim != 2:
        raise ValueError(
            f"evidens.{op}: weight must have shape (J, V), got {tuple(weight.shape)}; one row for "
            "each hidden unit"
        )
    j, v = weight.shape
    checks.choice(op, "visible", visible, VISIBLE)
    checks.choice(op, "hidden", hidden, HIDDEN)
    if (log_variance is not None) != (visible == "gaussian"):
        raise ValueError(
            f"evidens.{op}: log_variance (V,) belongs to visible='gaussian' and to no other kind, "
            f"got {'a tensor' if log_variance is not None else 'None'} with {visible!r}"
        )
    if (levels is not None) != (visible == "softmax"):
        raise ValueError(
            f"evidens.{op}: levels (units of a group) belongs to visible='softmax' and to no other "
            f"kind, got {levels!r} with {visible!r}"
        )
    if levels is not None and (not isinstance(levels, int) or isinstance(levels, bool)):
        raise TypeError(f"evidens.{op}: levels must be an integer, got {levels!r}")
    if levels is not None and (levels < 1 or v % levels):
        raise ValueError(
            f"evidens.{op}: levels must divide the visible units, got {levels} with V = {v}; "
            "group d holds units d * levels .. d * levels + levels - 1"
        )
    sizes = {"J": j, "V": v}
    shapes = {"visible_bias": "V", "hidden_bias": "J", "log_variance": "V"}
    if state is not None:
        found = tensors[name]
        if found.ndim != 2:
            raise ValueError(
                f"evidens.{op}: {name} must have shape ({', '.join(letters)}), got "
                f"{tuple(found.shape)}; one row for each chain or sample"
            )
        sizes["N"] = found.shape[0]
        shapes[name] = letters
    others = [(n, t, shapes[n]) for n, t in tensors.items() if n != "weight"]
    checks.arguments(
        op, weight, sizes, lambda: f"weight (J, V) = {(j, v)}", *others, other="weight"
    )
    if checks.readable() and weight.is_cpu:
        _check_values(op, tensors["visible_bias"], tensors.get("log_variance"), visible)
    return Machine(
        tensors[name] if state is not None else weight,
        weight,
        tensors["visible_bias"],
        tensors["hidden_bias"],
        tensors.get("log_variance"),
        visible,
        hidden,
        levels or 0,
    )


def _check_values(op: str, bias: Tensor, log_variance: Tensor | None, visible: str) -> None:
    """Refuses numbers of which no law follows."""
    if log_variance is not None:
        most = math.floor(math.log(torch.finfo(log_variance.dtype).max))
        bad = ~(log_variance.abs() <= most)
        if bad.any():
            raise ValueError(
                f"evidens.{op}: log_variance must lie in -{most} .. {most}, where {bias.dtype} "
                f"holds its exponential, got {log_variance[bad][0].item():g}; scale the rows"
            )
    if visible == "softmax" and (bias == math.inf).any():
        raise ValueError(
            f"evidens.{op}: visible_bias of a softmax group must not be inf, got it at unit "
            f"{int((bias == math.inf).nonzero()[0, 0])}; a level that is always on stands beside "
            "others of -inf"
        )


def inverse_temperature(
    op: str, beta: Tensor | float | None, rows: int, m: Machine
) -> Tensor | None:
    """``beta`` (N,), or None for 1."""
    if beta is None:
        return None
    if not isinstance(beta, Tensor):
        try:
            beta = torch.full((), float(beta), dtype=m.weight.dtype, device=m.weight.device)
        except (TypeError, ValueError):
            raise TypeError(
                f"evidens.{op}: beta must be a number or a tensor (N,), got {beta!r}"
            ) from None
    (beta,) = checks.widen(op, ("beta", beta))
    checks.alike(op, "beta", beta, m.weight, "weight")
    if beta.shape not in ((), (rows,)):
        raise ValueError(
            f"evidens.{op}: beta must be a number or have shape (N,) = ({rows},), got "
            f"{tuple(beta.shape)}"
        )
    if m.visible == "gaussian" and checks.readable() and beta.is_cpu and not bool((beta > 0).all()):
        raise ValueError(
            f"evidens.{op}: beta must be positive with visible='gaussian', whose variance is "
            f"divided by it, got {beta.min().item()}; start a path of temperatures above 0"
        )
    return beta.expand(rows)


def vector(
    op: str, name: str, letter: str, t: Tensor | None, rows: int, m: Machine
) -> Tensor | None:
    """A number for each row, or None."""
    if t is None:
        return None
    (t,) = checks.widen(op, (name, t))
    if t.shape != (rows,):
        raise ValueError(
            f"evidens.{op}: {name} must have shape ({letter},) = ({rows},), got {tuple(t.shape)}"
        )
    checks.alike(op, name, t, m.weight, "weight")
    return t


def persistent(op: str, h: Tensor, m: Machine) -> Tensor:
    """Hidden states (M, J) of chains."""
    (h,) = checks.widen(op, ("h", h))
    j, w = m.weight.shape[0], m.weight
    if h.ndim != 2 or h.shape[1] != j or h.dtype is not w.dtype or h.device != w.device:
        sizes = {"M": h.shape[0] if h.ndim else 0, "J": j}
        what = f"{j} hidden units"
        checks.arguments(op, w, sizes, lambda: what, ("h", h, "MJ"), other="weight")
    return h


def other_rows(
    op: str, minus: tuple[Tensor, Tensor] | None, weight: Tensor | float | None, m: Machine
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """States, hidden means and weights of the rows whose sums are taken off, or three None."""
    if minus is None:
        if weight is not None:
            raise ValueError(
                f"evidens.{op}: minus_weight goes with minus=(v, h_mean), the rows that it weights"
            )
        return None, None, None
    try:
        v, h = minus
    except (TypeError, ValueError):
        raise TypeError(
            f"evidens.{op}: minus must be two tensors, states (M, V) and hidden means (M, J), got "
            f"{type(minus).__name__}"
        ) from None
    v, h = checks.widen(op, ("minus[0]", v), ("minus[1]", h))
    units, j = m.units
    rows = v.shape[0] if v.ndim else 0
    checks.arguments(
        op,
        m.weight,
        {"M": rows, "V": units, "J": j},
        lambda: f"weight (J, V) = {(j, units)} and as many rows of both",
        ("minus[0]", v, "MV"),
        ("minus[1]", h, "MJ"),
        other="weight",
    )
    return v, h, minus_weights(op, weight, rows, m)


def minus_weights(op: str, weight: Tensor | float | None, rows: int, m: Machine) -> Tensor | None:
    """Weights (M,) of the rows whose sums are taken off, or None for 1."""
    if weight is None or isinstance(weight, Tensor):
        return vector(op, "minus_weight", "M", weight, rows, m)
    try:
        return None if weight == 1 else m.weight.new_full((rows,), float(weight))
    except (TypeError, ValueError):
        raise TypeError(
            f"evidens.{op}: minus_weight must be a number or a tensor (M,), got {weight!r}"
        ) from None


def clamping(
    op: str, clamped: Tensor | None, values: Tensor | None, start: str, m: Machine
) -> tuple[Tensor | None, Tensor | None]:
    """Mask and values (N, V) of the visible units that are given."""
    if values is not None and (start == "visible" or clamped is None):
        raise ValueError(
            f"evidens.{op}: values (N, V) goes with clamped and start='hidden'; with "
            "start='visible' the clamped units keep what state holds"
        )
    if clamped is None:
        return None, None
    rows, v = m.state.shape[0], m.units[0]
    if not isinstance(clamped, Tensor) or clamped.dtype is not torch.bool:
        got = clamped.dtype if isinstance(clamped, Tensor) else type(clamped).__name__
        raise TypeError(
            f"evidens.{op}: clamped must be a bool tensor (V,) or (N, V), got {got}; "
            "clamped.bool() makes one"
        )
    if clamped.shape not in ((v,), (rows, v)):
        raise ValueError(
            f"evidens.{op}: clamped must have shape (V,) = ({v},) or (N, V) = {(rows, v)}, got "
            f"{tuple(clamped.shape)}"
        )
    if clamped.device != m.weight.device:
        raise TypeError(
            f"evidens.{op}: clamped must be on {m.weight.device} as weight is, got {clamped.device}"
        )
    clamped = clamped.expand(rows, v)
    if start == "visible":
        values = m.state
    elif values is None:
        raise ValueError(
            f"evidens.{op}: clamped with start='hidden' needs values (N, V) = {(rows, v)}, what "
            "the clamped units are"
        )
    else:
        (values,) = checks.widen(op, ("values", values))
        if values.shape != (rows, v):
            raise ValueError(
                f"evidens.{op}: values must have shape (N, V) = {(rows, v)}, got "
                f"{tuple(values.shape)}"
            )
        checks.alike(op, "values", values, m.weight, "weight")
    if m.levels and checks.readable() and clamped.is_cpu:
        groups = clamped.unflatten(1, (-1, m.levels))
        bad = groups.any(-1) & ~groups.all(-1)
        if bad.any():
            row, group = bad.nonzero()[0].tolist()
            raise ValueError(
                f"evidens.{op}: clamped must take a softmax group whole, got a part of group "
                f"{group} in row {row}; mask.repeat_interleave(levels, -1) makes it from groups"
            )
    return clamped, values


def stream(
    op: str, seed: int, steps: int, step0: int, row0: int, rows: int
) -> tuple[int, int, int, int]:
    """Signed seed, steps, step0 and row0 of the Philox counter."""
    try:
        seed, steps, step0, row0 = (operator.index(i) for i in (seed, steps, step0, row0))
    except TypeError:
        raise TypeError(
            f"evidens.{op}: seed, steps, step0 and row0 must be integers, got {seed!r}, {steps!r}, "
            f"{step0!r} and {row0!r}. Convert with int()."
        ) from None
    if steps < 1:
        raise ValueError(f"evidens.{op}: steps must be at least 1, got {steps}")
    if step0 < 0 or step0 + steps > 1 << 31:
        raise ValueError(
            f"evidens.{op}: step0 must not be negative and step0 + steps at most 2^31, got {step0} "
            f"and {steps}; fold a longer counter into the seed"
        )
    if row0 < 0 or row0 + rows > 1 << 63:
        raise ValueError(
            f"evidens.{op}: row0 must not be negative and row0 + N at most 2^63, got {row0}"
        )
    return ((seed + (1 << 63)) & 0xFFFFFFFFFFFFFFFF) - (1 << 63), steps, step0, row0
