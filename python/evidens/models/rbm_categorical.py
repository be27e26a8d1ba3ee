"""`CategoricalRBM`: levels with missing entries, such as ratings."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from evidens.models._arrays import PIECE, returned
from evidens.models.rbm_base import RBM
from evidens.models.rbm_parameters import RBMParameters
from evidens.models.rbm_rows import RBMRows

MISSING = -1


class CategoricalRBM(RBM):
    """Restricted Boltzmann machine whose visible units are levels, some of them missing.

    Each of the D features is a group of L units of which one is on.  In learning, a missing entry
    takes no part: a row is learned by the machine of the features that it has, and all these
    machines share their parameters.  That is the model of Salakhutdinov, Mnih and Hinton for
    ratings.

    Args:
        n_components: J, hidden units.
        levels: (L,) values of an entry; None for those of the rows of the first `fit` or
            `partial_fit`.  Entries are compared with them in float32 where it tells them apart.
        learning_rate, batch_size, n_iter, verbose, random_state: as in `evidens.BernoulliRBM`.
        method: ``"cd"`` as there, or for rows without missing entries ``"pcd"`` or ``"pt"``: a
            persistent chain is of one machine, not of one for every row.
        steps, n_chains, n_temperatures, momentum, weight_decay: as there.
        schedule, centered, shuffle, monitor, hidden: as there.

    Attributes:
        levels_: (L,), sorted.
        components_: W, (J, D, L).
        intercept_hidden_: c, (J,).
        intercept_visible_: b, (D, L).
        visible_means_: (D L,) how often each unit is on.
        h_samples_, history_, n_iter_, ...: as in `evidens.BernoulliRBM`.

    Missing is NaN, or -1 where -1 is no level; of a sparse matrix or tensor, what is not stored.

    Source: Salakhutdinov, Mnih and Hinton, Restricted Boltzmann machines for collaborative
    filtering (2007).

    Example:
        >>> import evidens, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> taste = rng.integers(2, size=(400, 1))  # half like the first items, half the last
        >>> X = np.where(taste == np.array([0, 0, 0, 1, 1, 1]), 5, 1)
        >>> X[rng.random(X.shape) < 0.3] = -1  # not rated
        >>> rbm = evidens.CategoricalRBM(8, n_iter=30, random_state=0).fit(X)
        >>> rbm.levels_
        array([1., 5.])
        >>> ratings = rbm.predict([[5, 5, -1, 1, -1, -1]])
        >>> bool(ratings[0, 2] > 4), bool(ratings[0, 4] < 2)
        (True, True)
    """

    visible = "softmax"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **RBM._parameter_constraints,
        "levels": ["array-like", None],
    }

    def __init__(
        self,
        n_components: int = 100,
        *,
        levels: Any = None,
        learning_rate: float = 0.2,
        batch_size: int = 64,
        n_iter: int = 50,
        verbose: int = 0,
        random_state: Any = None,
        method: str = "cd",
        steps: int = 1,
        n_chains: int | None = None,
        n_temperatures: int = 10,
        momentum: float = 0.5,
        weight_decay: float = 1e-3,
        schedule: str = "linear",
        centered: bool = True,
        shuffle: bool = True,
        monitor: int = 0,
        hidden: str = "bernoulli",
    ) -> None:
        self.levels = levels
        super().__init__(
            n_components,
            learning_rate=learning_rate,
            batch_size=batch_size,
            n_iter=n_iter,
            verbose=verbose,
            random_state=random_state,
            method=method,
            steps=steps,
            n_chains=n_chains,
            n_temperatures=n_temperatures,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedule,
            centered=centered,
            shuffle=shuffle,
            monitor=monitor,
            hidden=hidden,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        return tags

    # --- queries ---------------------------------------------------------------------------------

    def predict_proba(self, X: Any, *, method: str = "exact") -> Any:
        """``p(level of an entry | the other entries of its row)``, (N, D, L).

        What X holds at an entry does not enter its own prediction, so the entries of a row can be
        scored by a row that shows them.

        Args:
            X: array-like, sparse matrix or tensor (N, D).
            method: ``"exact"`` sums the hidden units out, at N D L J softplus; ``"mean_field"``
                takes them at their means given the other entries, one product where an entry is
                missing.

        Returns:
            (N, D, L) in the order of ``levels_``; other missing entries take no part.

        Raises:
            ValueError: an unseen level, an unknown method.

        Source: Salakhutdinov, Mnih and Hinton (2007), equations 7 to 10.
        """
        self._check_fitted()
        if method not in ("exact", "mean_field"):
            raise ValueError(
                f"predict_proba: method must be one of exact, mean_field, got {method!r}"
            )
        rows = self._read(X)
        p = self._parameters(rows.device, rows.dtype)
        parts = []
        with torch.no_grad():
            for _, x in rows.pieces(columns=max(p.weight.shape)):
                parts.append(self._predict(p, x, method))
        return returned(torch.cat(parts), X)

    def predict(self, X: Any, *, method: str = "exact") -> Any:
        """Expected level of every entry given the other entries of its row, (N, D).

        Args:
            X, method: as in `predict_proba`.
        """
        p = self.predict_proba(X, method=method)
        return p @ (_levels(self, p) if isinstance(p, Tensor) else self.levels_.astype(p.dtype))

    def _predict(self, p: RBMParameters, x: Tensor, method: str) -> Tensor:
        v = self._units(x)
        count = len(self.levels_)
        field = p.hidden_input(v)
        weight = p.weight.unflatten(1, (-1, count))  # (J, D, L)
        bias = p.visible_bias.unflatten(0, (-1, count))
        known = v.unflatten(1, (-1, count)).sum(2) > 0
        law = torch.empty(*known.shape, count, dtype=v.dtype, device=v.device)
        if method == "mean_field":
            law[:] = p.visible_mean(p._mean_of(field)).unflatten(1, (-1, count))
            row, item = known.nonzero().unbind(1)
        else:
            row, item = torch.ones_like(known).nonzero().unbind(1)
        step = max(1, PIECE // (count * len(weight)))
        for at in torch.arange(len(row), device=row.device).split(step):
            r, i = row[at], item[at]
            w = weight[:, i].permute(1, 2, 0)  # (m, L, J)
            own = v.unflatten(1, (-1, count))[r, i]  # (m, L), 0 where it is missing
            others = field[r] - (own[:, :, None] * w).sum(1)
            if method == "exact":
                logits = p._log_sum(others[:, None] + w).sum(2)
            else:
                logits = (p._mean_of(others)[:, None] * w).sum(2)
            law[r, i] = (logits + bias[i]).softmax(1)
        return law

    # --- parts -----------------------------------------------------------------------------------

    @property
    def _levels(self) -> int:
        return len(self.levels_)

    def _read(self, X: Any, *, reset: bool = False, missing: bool = False) -> RBMRows:
        rows = LevelRows(self, X, reset=reset, missing=True)
        if reset:
            given = self.levels
            if given is None:
                found = torch.cat([x[~x.isnan() & (x != MISSING)].unique() for x in rows.values()])
                given = found.unique().cpu().numpy()
            self.levels_ = np.unique(np.asarray(given, dtype=np.float64))
            if len(self.levels_) < 2 or not np.isfinite(self.levels_).all():
                raise ValueError(
                    f"levels: expected at least two different numbers, got {self.levels_.tolist()}"
                    + ("" if self.levels is not None else " in X")
                )
        return rows

    def _learn_scales(self, rows: RBMRows, weight: Tensor | None) -> None:
        empty, holes = 0, False
        for _, x in rows.pieces():
            missing = self._missing(x)
            empty += int(missing.all(1).sum())
            holes = holes or bool(missing.any())
        if holes and self.monitor:
            raise ValueError(
                "X has missing entries, so its rows have no common normaliser to watch: use "
                "monitor=0, and score held-out entries by predict"
            )
        if empty:
            warnings.warn(
                f"{empty} rows of X have no entry and teach nothing", UserWarning, stacklevel=3
            )

    def _missing(self, x: Tensor) -> Tensor:
        """Bool (n, D)."""
        if MISSING in self.levels_:
            return x.isnan()
        return x.isnan() | (x == MISSING)

    def _on(self, x: Tensor, name: str = "X") -> Tensor:
        """Bool (n, D, L): which level each entry has."""
        levels = torch.from_numpy(self.levels_).to(x.device)
        single = levels.float()
        # A level may have come in float32, where 0.1 is another number.
        alike = len(single.unique()) == len(levels)
        on = x.float()[:, :, None] == single if alike else x[:, :, None] == levels
        bad = ~(on.any(2) | self._missing(x))
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{name} holds the level {x[row, column].item():g} in column {column}; expected "
                f"one of {self.levels_.tolist()}, or NaN or -1 for missing. Give all levels as "
                "levels=..."
            )
        return on

    def _units(self, x: Tensor) -> Tensor:
        return self._on(x).to(x.dtype).flatten(1)

    def _rows_of_units(self, v: Tensor) -> Tensor:
        return v.unflatten(1, (-1, self._levels)) @ _levels(self, v)

    def _absent(self, x: Tensor) -> Tensor | None:
        missing = self._missing(x)
        return missing.repeat_interleave(self._levels, 1) if missing.any() else None

    def _merge(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.where(self._missing(x), self._rows_of_units(v), x)

    def _likelier(self, means: Tensor) -> Tensor:
        best = means.unflatten(1, (-1, self._levels)).argmax(2)
        return torch.nn.functional.one_hot(best, self._levels).to(means.dtype).flatten(1)

    def _means(self, rows: RBMRows, weight: Tensor | None) -> Tensor:
        """How often units are on, with one more entry in each feature, of the levels of all."""
        total, count = torch.zeros((), dtype=torch.float64, device=rows.device), 0.0
        for at, x in rows.pieces(columns=rows.shape[1] * self._levels):
            v = self._units(x).double()
            total = total + (v.sum(0) if weight is None else weight[at].double() @ v)
            count += len(x) if weight is None else float(weight[at].sum(dtype=torch.float64))
        groups = total.unflatten(0, (-1, self._levels))
        return ((groups + rows.one * groups.sum(0) / groups.sum()) / (count + rows.one)).flatten()

    def _bias_of_means(self, means: Tensor) -> Tensor:
        return self._expected(means).log()

    def _expected(self, means: Tensor) -> Tensor:
        groups = means.unflatten(0, (-1, self._levels))
        return (groups / groups.sum(1, keepdim=True)).clamp(min=1e-6).flatten()

    def _check_states(self, x: Tensor, op: str, name: str = "X") -> None:
        missing = self._missing(x)
        if missing.any():
            column = int(missing.nonzero()[0, 1])
            instead = "fit with monitor=0" if op == "monitor" else "use predict for single entries"
            raise ValueError(
                f"{op}: an entry of column {column} of {name} is missing; the normaliser is of the "
                f"machine of all features. Fill it with impute, or {instead}."
            )
        self._on(x, f"{op}: {name}")

    def _set(self, learner: Any) -> None:
        super()._set(learner)
        d, count = self.n_features_in_, self._levels
        self.components_ = self.components_.reshape(-1, d, count)
        self.intercept_visible_ = self.intercept_visible_.reshape(d, count)

    def _classes(self, labels: Any, count: int) -> Tensor | None:
        if labels is not None:
            raise ValueError(
                "labels: CategoricalRBM predicts levels; make the class one more column of X, "
                "missing where it is unknown"
            )
        return None


class LevelRows(RBMRows):
    """Rows of levels: of a sparse matrix, what is not stored is missing."""

    @staticmethod
    def _dense(x: Tensor) -> Tensor:
        x = x.to_sparse_coo().coalesce()
        values = x.values() if x.is_floating_point() else x.values().double()
        dense = values.new_full(x.shape, torch.nan)
        dense[tuple(x.indices())] = values
        return dense

    def take(self, at: slice | Tensor) -> Tensor:
        """Some rows, (n, D) contiguous, NaN where an entry is missing."""
        if self.sparse is None:
            return super().take(at)
        some = self.sparse[at if isinstance(at, slice) else at.numpy()].tocoo()
        dense = torch.full(some.shape, torch.nan, dtype=self.dtype)
        dense[torch.from_numpy(some.row).long(), torch.from_numpy(some.col).long()] = (
            torch.from_numpy(some.data).to(self.dtype)
        )
        return dense


def _levels(model: CategoricalRBM, like: Tensor) -> Tensor:
    return torch.from_numpy(model.levels_).to(like)
