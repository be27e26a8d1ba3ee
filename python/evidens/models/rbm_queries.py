"""What a learned machine is asked: densities, draws, features, classes, missing values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils.metaestimators import available_if
from torch import Tensor

from evidens import ops
from evidens.models._arrays import returned
from evidens.models._density_state import seed_of
from evidens.models.rbm_chains import Ladder, Stream, advance, draw_class, draw_hidden, temper
from evidens.models.rbm_parameters import RBMParameters
from evidens.models.rbm_partition import Partition, log_partition
from evidens.models.rbm_rows import RBMRows
from evidens.models.rbm_state import RBMState, tensor

# Change of a mean below which mean fields have settled.
SETTLED = 1e-5
# Rows that `fit` scores while it watches, and rungs of its annealing.
WATCHED, RUNGS = 10_000, 1000


def _has_classes(model: Any) -> bool:
    model._check_classes()
    return True


class RBMQueries(RBMState):
    """The queries; `RBM` learns what they need."""

    # --- densities -------------------------------------------------------------------------------

    def log_prob(self, x: Any) -> Any:
        """``log p(x)`` per row, nats, by the normaliser `log_partition_`.

        Args:
            x: array-like, sparse matrix or tensor (N, D) of states.

        Returns:
            (N,); of a tensor differentiable in it.  Whether it is the log-density itself or an
            estimate says `density_kind_`; the error of an estimate is the same for all rows, and
            `log_partition_interval_` bounds it.

        Raises:
            ValueError: a row that is no state of the visible units.
        """
        self._check_fitted()
        constant = self.log_partition_
        return self._per_row(x, lambda p, v: p.log_weight(v) - constant, states=True)

    def score_samples(self, X: Any) -> Any:
        """`log_prob`, under scikit-learn's name."""
        return self.log_prob(X)

    def free_energy(self, x: Any) -> Any:
        """``-log sum_h exp(-E(x, h))`` per row, nats: minus `log_prob` but for log Z.

        Args:
            x: as in `log_prob`; means of units are taken as well.

        Returns:
            (N,); of a tensor differentiable in it.
        """
        self._check_fitted()
        return self._per_row(x, lambda p, v: -p.log_weight(v), states=False)

    def log_partition(
        self,
        *,
        exact: bool | None = None,
        chains: int = 100,
        rungs: int = 10_000,
        level: float = 0.99,
        random_state: Any = 0,
    ) -> float:
        """``log Z``, for `log_prob` from now on.

        By enumeration of the smaller layer where it has at most 20 units, else by annealed
        importance sampling, which is unbiased for Z and so low for log Z on average: too few
        rungs flatter the model.  The interval shows it.

        Args:
            exact: True asks for enumeration of up to 30 units, False for sampling.
            chains: of the annealing.
            rungs: temperatures of the annealing.
            level: of the interval.
            random_state: seed or generator.

        Returns:
            log Z, nats, which is `log_partition_` until the model learns again;
            `log_partition_interval_` is (low, high), of width 0 where it is exact.

        Raises:
            ValueError: ``exact=True`` with more units than can be enumerated.

        Source: Salakhutdinov and Murray, On the quantitative analysis of deep belief networks
        (2008).
        """
        self._check_fitted()
        p = self._parameters(torch.device("cpu"))
        found = log_partition(
            p,
            self._bias_of_means(tensor(self.visible_means_)[: p.pixels]).to(p.weight),
            exact=exact,
            chains=chains,
            rungs=rungs,
            level=level,
            seed=seed_of(random_state),
        )
        self.partition_ = np.array([found.value, found.low, found.high])
        return found.value

    def _partition(self) -> Partition:
        if not hasattr(self, "partition_"):
            self.log_partition()
        return Partition(*map(float, self.partition_))

    @property
    def log_partition_(self) -> float:
        """``log Z``, nats; found by `log_partition` with its defaults when first asked for."""
        return self._partition().value

    @property
    def log_partition_interval_(self) -> tuple[float, float]:
        """99 % interval of `log_partition_` (or of the ``level`` that was asked for)."""
        found = self._partition()
        return found.low, found.high

    @property
    def density_kind_(self) -> str:
        """``"exact"`` where `log_partition_` is, else ``"estimate"``."""
        return "exact" if self._partition().exact else "estimate"

    # --- classes --------------------------------------------------------------------

    @available_if(_has_classes)
    def predict_proba(self, X: Any) -> Any:
        """``p(class | x)`` (N, C), in the order of ``classes_``; exact.

        Raises:
            AttributeError: the model was fitted without ``labels``.

        Source: Larochelle and Bengio, Classification using discriminative restricted Boltzmann
        machines (2008), equation 2.
        """
        return self._per_row(X, lambda p, v: p.class_terms(v).softmax(1), states=False)

    @available_if(_has_classes)
    def predict(self, X: Any) -> Any:
        """The most probable class of each row (N,).

        Raises:
            AttributeError: the model was fitted without ``labels``.
        """
        best = self.predict_proba(X).argmax(1)
        if isinstance(best, Tensor):
            return torch.as_tensor(self.classes_, device=best.device)[best]
        return self.classes_[best]

    # --- draws -----------------------------------------------------------------------------------

    def sample(
        self,
        n: int = 1,
        *,
        steps: int = 1000,
        labels: Any = None,
        n_temperatures: int = 1,
        random_state: Any = None,
    ) -> Any:
        """Draw rows: chains that start where those of training are.

        Args:
            n: number of rows, not negative.
            steps: Gibbs steps of each chain; chains need time to forget where they started.
            labels: (n,) or one label: the class of each row, for a model with classes; -1 or None
                draws it.
            n_temperatures: more than 1 runs so many chains for a row, at inverse temperatures up to
                1, which exchange them (parallel tempering); for classes drawn only.
            random_state: seed or generator.  A row depends on the seed and its number, not on n.

        Returns:
            (n, D), what the model was fitted to.

        Raises:
            ValueError: n or steps out of range, an unknown label.
        """
        self._check_fitted()
        for name, value, least in (
            ("n", n, 0),
            ("steps", steps, 1),
            ("n_temperatures", n_temperatures, 1),
        ):
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(
                    f"sample: {name} must be an integer of at least {least}, got {value!r}"
                )
        p = self._parameters()
        places = self._places(labels, n)
        stream = Stream(seed_of(random_state) & 0x7FFFFFFF)
        with torch.no_grad():
            chains = tensor(self.h_samples_).to(p.weight)
            at = torch.arange(max(n, 0) * n_temperatures, device=chains.device) % len(chains)
            h = chains[at]
            if n == 0:
                v = h.new_zeros(0, p.pixels)
            elif n_temperatures > 1:
                if places is not None:
                    raise ValueError("sample: labels are given, so n_temperatures must be 1")
                ladder = Ladder.of(n_temperatures, n, h.device)
                v = temper(p, h, steps, stream, ladder).v[ladder.cold]
            else:
                v = advance(p, h, steps, stream, labels=places).v
            rows = self._rows_of_units(v[:, : p.pixels])
        return rows if isinstance(self.components_, Tensor) else rows.numpy()

    def _step(self, x: Any, steps: int) -> tuple[Tensor, RBMRows]:
        """States (N, V) after Gibbs steps from rows; the stream of the model moves on."""
        self._check_fitted()
        rows = self._read(x)
        p = self._parameters(rows.device, rows.dtype)
        stream = Stream(*map(int, self.stream_))
        with torch.no_grad():
            v = self._units(rows.take(slice(0, len(rows))))
            if not p.classes:
                step0 = stream.take(steps)
                v, *_ = ops.rbm_gibbs(
                    v, *p.arguments, steps=steps, seed=stream.seed, step0=step0, **p.kinds
                )
                steps = 0
            for _ in range(steps):
                label = draw_class(p.class_terms(v), None, stream, stream.take(1))
                h = draw_hidden(p, p.hidden_mean(torch.cat([v, label], 1)), stream)
                v = advance(p.without_class(), h, 1, stream).v
        self.stream_ = np.array([stream.seed, stream.step])
        return v, rows

    # --- missing values --------------------------------------------------------------------------

    def impute(
        self,
        X: Any,
        *,
        labels: Any = None,
        method: str = "gibbs",
        output: str = "mean",
        steps: int = 200,
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
            output: ``"mean"``: expected values; ``"mode"``: the likelier state of each unit;
                ``"sample"``: the last states of the chains, one joint draw per row.
            steps: Gibbs steps, or most rounds of the mean field.
            random_state: seed or generator of the chains.

        Returns:
            (N, D); known values as they are.

        Raises:
            ValueError: infinities, values that are no states, an unknown method or output.

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
        if steps < 2:
            raise ValueError(f"impute: steps must be at least 2, got {steps}")
        rows = self._read(X, missing=True)
        p = self._parameters(rows.device, rows.dtype)
        places = self._places(labels, len(rows))
        x = rows.take(slice(0, len(rows)))
        with torch.no_grad():
            v = self._units(x)
            missing = v.isnan() if (absent := self._absent(x)) is None else absent
            start = self._expected(tensor(self.visible_means_).to(v)[: p.pixels])
            known = torch.where(missing, 0, v)
            v = torch.where(missing, start, v)
            stream = Stream(seed_of(random_state) & 0x7FFFFFFF)
            if method == "gibbs":
                filled = self._fill(p, v, ~missing, known, places, stream, steps, output)
            else:
                filled = self._settle(p, v, missing, places, steps)
            if output == "mode":
                filled = self._likelier(filled)
            result = self._merge(x, torch.where(missing, filled, v))
        return returned(result, X)

    def _fill(
        self,
        p: RBMParameters,
        v: Tensor,
        clamped: Tensor,
        known: Tensor,
        places: Tensor | None,
        stream: Stream,
        steps: int,
        output: str,
    ) -> Tensor:
        """Conditional means (N, V) along clamped chains, or their last states."""
        given = {"labels": places, "clamped": clamped, "values": known}
        h = draw_hidden(p, p.hidden_mean_of_rows(v), stream)
        moves = advance(p, h, steps // 2, stream, **given)
        total = torch.zeros_like(moves.v_mean, dtype=torch.float64)
        if output == "sample":
            moves = advance(p, moves.h, steps - steps // 2, stream, **given)
            return moves.v[:, : p.pixels]
        for _ in range(steps - steps // 2):
            moves = advance(p, moves.h, 1, stream, **given)
            total += moves.v_mean
        return (total / (steps - steps // 2)).to(v.dtype)[:, : p.pixels]

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

    # --- parts -----------------------------------------------------------------------------------

    def _per_row(self, X: Any, what: Any, *, states: bool) -> Any:
        """``what(parameters, units)`` of all rows: of a tensor at once, of the rest in pieces."""
        rows = self._read(X)
        p = self._parameters(rows.device, rows.dtype)
        if rows.is_tensor:
            x = X.to(rows.dtype) if X.layout == torch.strided else rows.take(slice(0, len(rows)))
            if states:
                self._check_states(x.detach())
            return what(p, self._units(x))
        parts = []
        with torch.no_grad():
            for _, x in rows.pieces(columns=max(p.weight.shape)):
                if states:
                    self._check_states(x)
                parts.append(what(p, self._units(x)))
        return torch.cat(parts).numpy()

    def _watch(self, rows: RBMRows, weight: Tensor | None, validation: RBMRows | None) -> None:
        """One entry of `history_`."""
        if not hasattr(self, "partition_"):
            self.log_partition(rungs=RUNGS)
        found = self._partition()
        means = [math.nan, math.nan]
        for i, some in enumerate((rows, validation)):
            if some is None:
                continue
            x = some.take(slice(0, WATCHED))
            self._check_states(x)
            p = self._parameters(some.device, some.dtype)
            log_p = p.log_weight(self._units(x)).double() - found.value
            w = weight[:WATCHED].double() if weight is not None and i == 0 else None
            means[i] = float(log_p.mean() if w is None else (w * log_p).sum() / w.sum())
        entry = (self.n_iter_, *means, found.value - found.high, found.value - found.low)
        for name, value in zip(("epoch", "train", "validation", "low", "high"), entry):
            self.history_[name].append(value)

    def _told(self, rows: RBMRows) -> str:
        """What the line of an epoch says."""
        if self.history_["epoch"] and self.history_["epoch"][-1] == self.n_iter_:
            h = self.history_
            text = f"log-likelihood = {h['train'][-1]:.2f}"
            if not math.isnan(h["validation"][-1]):
                text += f", validation = {h['validation'][-1]:.2f}"
            return f"{text} ({h['low'][-1]:+.2f}, {h['high'][-1]:+.2f})"
        return "running"
