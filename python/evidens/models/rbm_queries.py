"""What a learned machine is asked: densities, draws, features, classes, missing values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.metaestimators import available_if
from torch import Tensor

from evidens import ops
from evidens.models._density_state import seed_of
from evidens.models._rows import weights_of
from evidens.models.rbm_chains import (
    Ladder,
    Stream,
    advance,
    draw_class,
    draw_hidden,
    parts,
    temper,
)
from evidens.models.rbm_impute import RBMImpute
from evidens.models.rbm_partition import Partition, log_partition
from evidens.models.rbm_rows import RBMRows
from evidens.models.rbm_state import tensor, whole

# Rows that `fit` scores while it watches, and rungs of its annealing.
WATCHED, RUNGS = 10_000, 1000


def _has_classes(model: Any) -> bool:
    model._check_classes()
    return True


class RBMQueries(RBMImpute):
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

    def score(self, X: Any, y: Any = None, *, sample_weight: Any = None) -> float:
        """Mean log-density of the rows, nats per row: `log_prob`, so model selection can use it.

        Args:
            X: as in `log_prob`.
            y: ignored.
            sample_weight: (N,) weights of the rows.

        Raises:
            ValueError: as `log_prob`; weights that are negative, not finite, or 0 everywhere.
        """
        with torch.no_grad():
            value = torch.as_tensor(self.log_prob(X)).double()
        if sample_weight is None:
            return float(value.mean())
        weight = weights_of(sample_weight, len(value), value.device, torch.float64)
        if not weight.any():
            raise ValueError(f"{type(self).__name__}.score: sample_weight is zero everywhere")
        return float((value * weight).sum() / weight.sum())

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

        By enumeration of the smaller layer where it has at most 2^20 states, else by annealed
        importance sampling, which is unbiased for Z and so low for log Z on average: too few
        rungs flatter the model.  The interval shows it unless all chains miss a mode; so the
        estimate is held against what the persistent chains and modes near them weigh.

        Args:
            exact: True asks for enumeration of up to 30 units, False for sampling.
            chains: of the annealing.
            rungs: temperatures of the annealing.
            level: of the interval.
            random_state: seed or generator.

        Returns:
            log Z, nats, which is `log_partition_` until the parameters change;
            `log_partition_interval_` is (low, high), of width 0 where it is exact.

        Raises:
            ValueError: ``exact=True`` with more units than can be enumerated.

        Warns:
            RuntimeWarning: states of the machine weigh more than the interval allows; their weight
                is log Z then, and the interval has no upper end.

        Source: Salakhutdinov and Murray, On the quantitative analysis of deep belief networks
        (2008).
        """
        self._check_fitted()
        p = self._parameters(torch.device("cpu"))
        found = log_partition(
            p,
            self._bias_of_means(tensor(self.visible_means_)[: p.pixels]).to(p.weight),
            states=tensor(self.h_samples_).cpu(),
            exact=exact,
            chains=chains,
            rungs=rungs,
            level=level,
            seed=seed_of(random_state),
        )
        self.partition_ = np.array([found.value, found.low, found.high, p.checksum()])
        return found.value

    def _partition(self, **how: Any) -> Partition:
        """The normaliser of the parameters as they are now."""
        if not hasattr(self, "partition_") or self.partition_[3] != self._parameters().checksum():
            self.log_partition(**how)
        return Partition(*map(float, self.partition_[:3]))

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
                1, which exchange them (parallel tempering).
            random_state: seed or generator.  A row depends on the seed and its number, not on n.

        Returns:
            (n, D), what the model was fitted to.

        Raises:
            ValueError: n or steps out of range, an unknown label.
        """
        self._check_fitted()
        whole("sample", "n", n, 0)
        whole("sample", "steps", steps, 1)
        whole("sample", "n_temperatures", n_temperatures, 1)
        p = self._parameters()
        places = self._places(labels, n)
        stream = Stream(seed_of(random_state) & 0x7FFFFFFF)
        with torch.no_grad():
            chains = tensor(self.h_samples_).to(p.weight)
            at = torch.arange(n * n_temperatures, device=chains.device) % len(chains)
            h = chains[at]
            if n == 0:
                v = h.new_zeros(0, p.pixels)
            elif n_temperatures > 1:
                if places is not None:
                    places = places.repeat_interleave(n_temperatures)
                ladder = Ladder.of(n_temperatures, n, h.device)
                v = temper(p, h, steps, stream, ladder, labels=places).v[ladder.cold]
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
                for part in parts(steps, len(v) * p.weight.numel()):
                    step0 = stream.take(part)
                    v, *_ = ops.rbm_gibbs(
                        v, *p.arguments, steps=part, seed=stream.seed, step0=step0, **p.kinds
                    )
                steps = 0
            for _ in range(steps):
                label = draw_class(p.class_terms(v), None, stream, stream.take(1))
                h = draw_hidden(p, p.hidden_mean(torch.cat([v, label], 1)), stream)
                v = advance(p.without_class(), h, 1, stream).v
        self.stream_ = np.array([stream.seed, stream.step])
        return v, rows

    # --- parts -----------------------------------------------------------------------------------

    def _per_row(self, X: Any, what: Any, *, states: bool) -> Any:
        """``what(parameters, units)`` of all rows: of a tensor at once, of the rest in pieces."""
        rows = self._read(X)
        p = self._parameters(rows.device, rows.dtype)
        if rows.is_tensor:
            x = X.to(rows.dtype) if X.layout == torch.strided else rows.take(slice(0, len(rows)))
            if states:
                self._check_states(x.detach(), "log_prob")
            return what(p, self._units(x))
        parts = []
        with torch.no_grad():
            for _, x in rows.pieces(columns=max(p.weight.shape)):
                if states:
                    self._check_states(x, "log_prob")
                parts.append(what(p, self._units(x)))
        return torch.cat(parts).numpy()

    def _watched(
        self, rows: RBMRows, weight: Tensor | None, validation: RBMRows | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What `monitor` scores: some of the rows, and their weights, of ``X`` and of others."""
        if weight is None:
            yield rows.take(slice(0, WATCHED)), None
        else:  # a row without weight says nothing
            at = weight.nonzero()[:WATCHED, 0]
            yield rows.take(at.cpu()), weight[at].double()
        if validation is not None:
            yield validation.take(slice(0, WATCHED)), None

    def _check_watched(self, *watched: Any) -> None:
        for (x, _), name in zip(self._watched(*watched), ("X", "validation_data")):
            self._check_states(x, "monitor", name)

    def _watch(self, *watched: Any) -> None:
        """One entry of `history_`; the arguments are those of `_watched`."""
        found = self._partition(rungs=RUNGS)
        means = [math.nan, math.nan]
        for i, (x, w) in enumerate(self._watched(*watched)):
            p = self._parameters(x.device, x.dtype)
            log_p = p.log_weight(self._units(x)).double() - found.value
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
