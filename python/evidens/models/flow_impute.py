"""Missing values in a flow: chains that have the conditional density as their limit."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evidens import ops
from evidens.models._arrays import returned
from evidens.models._density_state import PIECE, evaluating, seed_of
from evidens.models.flow_circular import wrapped

if TYPE_CHECKING:
    from evidens.models.flow_base import Flow

METHODS = ("mean", "sample")
# Steps of the Philox stream beside those of `_density_state`: the start, then one for each step.
START, WALK = 18, 64
# Draws of the model among which a chain starts.
STARTS = 16
# Share of proposals to accept (Roberts and Rosenthal 1998), and the first step.
ACCEPT, STEP = 0.574, 0.3


def impute(
    flow: Flow, X: Any, context: Any, y: Any, method: str, steps: int, random_state: Any
) -> Any:
    """`Flow.impute`."""
    name = type(flow).__name__
    if method not in METHODS:
        raise ValueError(f"{name}: expected method one of {', '.join(METHODS)}, got {method!r}")
    if not isinstance(steps, Integral) or steps < 2:
        raise ValueError(f"{name}: steps must be an integer of at least 2, got {steps!r}")
    x, missing, condition = flow._of_gaps(X, context, y)
    seed = seed_of(random_state)
    size = max(1, PIECE // (STARTS * 8 * max(8, flow.features)))
    parts = []
    with torch.no_grad(), evaluating(flow):
        for i in range(0, max(1, len(x)), size):
            at = slice(i, i + size)
            told = None if condition is None else condition[at]
            chain = _Chain(flow, x[at], missing[at], told, seed, i)
            parts.append(chain.run(int(steps), method == "mean"))
    result = torch.where(missing, torch.cat(parts), x.double())
    return returned(result.to(x.dtype) if isinstance(X, Tensor) else result.cpu(), X)


class _Chain:
    """One chain for each row, by the Metropolis-adjusted Langevin algorithm on what is missing.

    It walks in the coordinates that the layers see, where all features have one scale.
    """

    def __init__(
        self, flow: Flow, x: Tensor, missing: Tensor, told: Tensor | None, seed: int, row0: int
    ) -> None:
        self.flow, self.told, self.seed, self.row0 = flow, told, seed, row0
        self.free = missing.to(flow.dtype)
        middle = x if flow.levels is None else x + 0.5
        self.u = torch.where(missing, 0, flow.standard(middle)[0]).to(flow.dtype)
        self._start()

    def _uniform(self, step: int, columns: int, each: int = 1) -> Tensor:
        """Uniform numbers (N each, columns): a row's do not depend on its piece."""
        rows, row0 = each * len(self.u), each * self.row0
        return ops.philox_uniform(
            self.seed,
            step,
            rows,
            columns,
            torch.float64,
            row_offset=row0,
            device=self.u.device,
        )

    def _start(self) -> None:
        """From draws of the model, by what the rows are worth with their missing part."""
        n, shape = len(self.u), self.u.shape[1:]
        z = self.flow._base_draw(self._uniform(START, self.flow.features, STARTS), 1.0)
        told = None if self.told is None else self.told.repeat_interleave(STARTS, 0)
        drawn, _ = self.flow.layers.inverse(z.to(self.u.dtype).view(-1, *shape), told)  # type: ignore[operator]
        free = self.free.repeat_interleave(STARTS, 0)
        rows = torch.where(free > 0, drawn, self.u.repeat_interleave(STARTS, 0))
        worth = self._value(rows, told).view(n, STARTS)
        pick = (worth - (-self._uniform(START + 1, STARTS).log()).log()).argmax(1)
        self.u = rows.view(n, STARTS, *shape)[torch.arange(n, device=pick.device), pick]

    def _value(self, u: Tensor, told: Tensor | None) -> Tensor:
        """Log-density of the layers' coordinates, float64; -inf where there is none."""
        z, change = self.flow.layers(u, told)
        value: Tensor = (self.flow._base_log_prob(z) + change).double()
        possible = value.isfinite()
        if self.flow.levels is not None:
            x = self.flow.standard.inverse(u)
            possible = possible & ((x >= 0) & (x < self.flow.levels)).flatten(1).all(1)
        return torch.where(possible, value, -math.inf)

    def _slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density, and its gradient in what is missing."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = self._value(u, self.told)
            (gradient,) = torch.autograd.grad(value.sum(), u)
        return value.detach(), torch.nan_to_num(gradient * self.free, 0.0, 0.0, 0.0)

    def run(self, steps: int, mean: bool) -> Tensor:
        """Rows in the user's coordinates, float64: the last ones, or the mean of a second half."""
        flow, u = self.flow, self.u
        value, slope = self._slope(u)
        size = torch.full((len(u),), STEP, dtype=torch.float64, device=u.device)
        angle = flow.standard.circular
        sums = torch.zeros((2, *u.shape), dtype=torch.float64, device=u.device)
        across = (-1, *(1,) * (u.ndim - 1))
        for t in range(steps):
            noise = self._uniform(WALK + t, flow.features + 1)
            normal = torch.special.ndtri(noise[:, 1:].clamp(min=2.0**-54)).view(u.shape)
            e = size.view(across)
            there = u + (0.5 * e * e * slope + e * normal * self.free).to(u.dtype)
            inside = there if angle is None else torch.where(angle, wrapped(there), there)
            new_value, new_slope = self._slope(inside)
            back = (u - there - 0.5 * e * e * new_slope) / e * self.free
            ratio = new_value - value + 0.5 * (normal * self.free).square().flatten(1).sum(1)
            ratio = ratio - 0.5 * back.double().square().flatten(1).sum(1)
            ratio = torch.nan_to_num(ratio, -math.inf)
            taken = noise[:, 0] < ratio.exp()
            keep = taken.view(across)
            u = torch.where(keep, inside, u)
            value, slope = torch.where(taken, new_value, value), torch.where(keep, new_slope, slope)
            if t < steps // 2:  # the size of a step settles while nothing is counted
                size = size * ((ratio.exp().clamp(max=1) - ACCEPT) * 3 / (t + 4) ** 0.6).exp()
            elif mean:
                x = self._given_back(u)
                sums += torch.stack(
                    [x, x] if angle is None else [x.where(~angle, x.sin()), x.cos()]
                )
        if not mean:
            return self._given_back(u)
        total = sums[0] / (steps - steps // 2)
        return total if angle is None else torch.where(angle, torch.atan2(*sums), total)

    def _given_back(self, u: Tensor) -> Tensor:
        x = self.flow.standard.inverse(u.double())
        return x if self.flow.levels is None else x.floor().clamp(0, self.flow.levels - 1)
