"""`RBMImpute`: missing values, by clamped chains or by mean fields."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evidens.models._arrays import returned
from evidens.models._density_state import seed_of
from evidens.models.rbm_chains import Ladder, Moves, Stream, advance, draw_hidden, temper
from evidens.models.rbm_parameters import RBMParameters
from evidens.models.rbm_state import RBMState, tensor, whole

# Change of a mean below which mean fields have settled.
SETTLED = 1e-5


class RBMImpute(RBMState):
    """`impute` of every machine."""

    def impute(
        self,
        X: Any,
        *,
        labels: Any = None,
        method: str = "gibbs",
        output: str = "mean",
        steps: int = 200,
        n_temperatures: int = 1,
        random_state: Any = None,
    ) -> Any:
        """Fill in missing values (NaN) given those that are there.

        Args:
            X: array-like or tensor (N, D), NaN where a value is missing.
            labels: (N,) classes for a model with classes, -1 or None where unknown.
            method: ``"gibbs"``: chains whose known units are clamped; their first half is left
                out, and means are those of the conditional laws along the second.
                ``"mean_field"``: the best factorising law, by alternating means: fast, without
                chance, and too sure of itself where several fill-ins are likely.
            output: ``"mean"``: expected values; ``"mode"``: the likelier state of each unit, and of
                numbers, whose law is a mixture without a mode of its own, the expected value;
                ``"sample"``: the last states of the chains, one joint draw per row.
            steps: Gibbs steps, or most rounds of the mean field.
            n_temperatures: of ``"gibbs"``; more than 1 runs so many clamped chains for a row, which
                exchange their temperatures, as in `sample`: for likely fill-ins that are far from
                each other, between which a single chain stays with one.
            random_state: seed or generator of the chains.

        Returns:
            (N, D); known values as they are.

        Raises:
            ValueError: infinities, values that are no states, an unknown method or output, steps or
                n_temperatures out of range.

        Source: Salakhutdinov, Mnih and Hinton (2007) for clamping; Peterson and Anderson, A mean
        field theory learning algorithm for neural networks (1987).
        """
        self._check_fitted()
        for name, value, names in (
            ("method", method, ("gibbs", "mean_field")),
            ("output", output, ("mean", "mode", "sample")),
        ):
            if value not in names:
                raise ValueError(f"impute: {name} must be one of {', '.join(names)}, got {value!r}")
        if method == "mean_field" and output == "sample":
            raise ValueError("impute: a mean field has no samples; use method='gibbs'")
        whole("impute", "steps", steps, 2)
        if whole("impute", "n_temperatures", n_temperatures, 1) > 1 and method == "mean_field":
            raise ValueError("impute: a mean field has no temperatures; use method='gibbs'")
        rows = self._read(X, missing=True)
        p = self._parameters(rows.device, rows.dtype)
        places = self._places(labels, len(rows))
        x = rows.take(slice(0, len(rows)))
        with torch.no_grad():
            v = self._units(x)
            missing = v.isnan() if (absent := self._absent(x)) is None else absent
            if absent is None:
                self._check_states(torch.where(missing, 1, v), "impute")
            start = self._expected(tensor(self.visible_means_).to(v)[: p.pixels])
            known = torch.where(missing, 0, v)
            v = torch.where(missing, start, v)
            stream = Stream(seed_of(random_state) & 0x7FFFFFFF)
            if method == "mean_field":
                filled = self._settle(p, v, missing, places, steps)
            else:
                given = {"labels": places, "clamped": ~missing, "values": known}
                filled = self._fill(p, v, given, stream, steps, output, n_temperatures)
            if output == "mode":
                filled = self._likelier(filled)
            result = self._merge(x, torch.where(missing, filled, v))
        return returned(result, X)

    def _fill(
        self,
        p: RBMParameters,
        v: Tensor,
        given: dict[str, Tensor | None],
        stream: Stream,
        steps: int,
        output: str,
        rungs: int,
    ) -> Tensor:
        """Conditional means (N, V) along clamped chains, or their last states."""
        h = draw_hidden(p, p.hidden_mean_of_rows(v), stream)
        if rungs > 1:
            ladder = Ladder.of(rungs, len(v), v.device)
            h = h.repeat_interleave(rungs, 0)
            given = {
                k: None if t is None else t.repeat_interleave(rungs, 0) for k, t in given.items()
            }

        def go(h: Tensor, steps: int) -> Moves:
            if rungs > 1:
                return temper(p, h, steps, stream, ladder, **given)
            return advance(p, h, steps, stream, **given)

        moves = go(h, steps // 2)
        if output == "sample":
            v = go(moves.h, steps - steps // 2).v
            return (v[ladder.cold] if rungs > 1 else v)[:, : p.pixels]
        total = torch.zeros_like(v, dtype=torch.float64)
        for _ in range(steps - steps // 2):
            moves = go(moves.h, 1)
            mean = p.visible_mean(moves.h[ladder.cold]) if rungs > 1 else moves.v_mean
            total += mean[:, : p.pixels]
        return (total / (steps - steps // 2)).to(v.dtype)

    def _settle(
        self, p: RBMParameters, v: Tensor, missing: Tensor, places: Tensor | None, rounds: int
    ) -> Tensor:
        """Mean fields of the missing units: each round raises the bound on log p(known)."""
        known = torch.where(missing, 0, v)
        if p.classes:
            unknown = torch.ones(len(v), dtype=torch.bool, device=v.device)
            label = v.new_full((len(v), p.classes), 1 / p.classes)
            if places is not None:
                unknown = places < 0
                one_hot = torch.nn.functional.one_hot(places.clamp(min=0), p.classes).to(v.dtype)
                label = torch.where(unknown[:, None], label, one_hot)
            v, known = torch.cat([v, label], 1), torch.cat([known, label], 1)
            missing = torch.cat([missing, unknown[:, None].expand(-1, p.classes)], 1)
        for _ in range(rounds):
            new = torch.where(missing, p.visible_mean(p.hidden_mean(v)), known)
            change = float((new - v).abs().max()) if v.numel() else 0.0
            v = new
            if change < SETTLED:
                break
        return v[:, : p.pixels]
