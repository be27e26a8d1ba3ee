"""`RBMState`: what a machine is made of, which learning and queries stand on."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from evidens.models._arrays import to_tensor
from evidens.models.rbm_parameters import RBMParameters
from evidens.models.rbm_rows import RBMRows, class_numbers

# What to do about rows that are no states, by what they were meant for.
INSTEAD = {
    "log_prob": "Round X, or rank rows by free_energy or score_samples.",
    "monitor": "Round them, or fit with monitor=0.",
    "impute": "Round them, or put NaN where a value is not known.",
}


def whole(op: str, name: str, value: Any, least: int) -> int:
    """An integer that is not less.

    Raises:
        ValueError: something else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{op}: {name} must be an integer of at least {least}, got {value!r}")
    return int(value)


class RBMState:
    """Attributes, and what each kind of visible units says for itself."""

    #: Kinds of the units.
    visible: str
    hidden: str

    components_: Any
    intercept_visible_: Any
    intercept_hidden_: Any
    h_samples_: Any
    visible_means_: Any
    hidden_means_: Any
    classes_: np.ndarray
    class_components_: Any
    intercept_class_: Any
    stream_: np.ndarray
    partition_: np.ndarray
    history_: dict[str, list[float]]
    n_iter_: int
    n_features_in_: int

    # --- what a subclass says --------------------------------------------------------------------

    def _read(self, X: Any, *, reset: bool = False, missing: bool = False) -> RBMRows:
        """The rows in the form in which `_units` takes them; refuses what they may not hold."""
        return RBMRows(self, X, reset=reset, missing=missing)

    def _learn_scales(self, rows: RBMRows, weight: Tensor | None) -> None:
        """What has to be known of the rows before any of them is a state."""

    def _units(self, x: Tensor) -> Tensor:
        """States of visible units (n, V) of rows (n, D)."""
        return x

    def _rows_of_units(self, v: Tensor) -> Tensor:
        """Rows (n, D) of states (n, V): the inverse of `_units`."""
        return v

    def _absent(self, x: Tensor) -> Tensor | None:
        """Bool (n, V): units that take no part in learning; None where all do."""
        return None

    def _look_at(self, rows: RBMRows) -> None:
        """Warns of rows that are learned from without being what the units stand for."""

    def _check_states(self, x: Tensor, op: str, name: str = "X") -> None:
        """Refuses rows that are no states of the visible units; ``op`` is one of `INSTEAD`."""

    def _means(self, rows: RBMRows, weight: Tensor | None) -> Tensor:
        """(V,) float64 means of the visible units."""
        return rows.column_means(weight)

    def _bias_of_means(self, means: Tensor) -> Tensor:
        """The visible bias of a machine without weights whose units have these means (V,)."""
        raise NotImplementedError

    def _expected(self, means: Tensor) -> Tensor:
        """What units are that nothing is known of, (V,)."""
        return means

    def _likelier(self, means: Tensor) -> Tensor:
        """The likelier states of the units, from their means; the means where units are numbers."""
        return means

    def _merge(self, x: Tensor, v: Tensor) -> Tensor:
        """Rows (N, D) of filled units, known entries exactly as in x."""
        return torch.where(x.isnan(), self._rows_of_units(v), x)

    # --- parts -----------------------------------------------------------------------------------

    def _check_fitted(self) -> None:
        check_is_fitted(self, "components_")

    def _check_classes(self) -> None:
        self._check_fitted()
        if not hasattr(self, "classes_"):
            raise AttributeError(
                f"this {type(self).__name__} knows no classes: fit it with labels=..."
            )

    def _places(self, labels: Any, n: int) -> Tensor | None:
        """Places (n,) of labels among the classes."""
        if labels is None:
            return None
        self._check_classes()
        if np.ndim(labels) == 0:
            labels = np.full(n, labels.item() if isinstance(labels, Tensor) else labels)
        return class_numbers(labels, n, self.classes_)[1].to(tensor(self.components_).device)

    def _parameters(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RBMParameters:
        """The attributes as they are now."""
        weight, b = tensor(self.components_), tensor(self.intercept_visible_)
        c = 0
        if hasattr(self, "class_components_"):
            labels = tensor(self.class_components_)
            c = labels.shape[1]
            weight = torch.cat([weight.flatten(1), labels], 1)
            b = torch.cat([b.flatten(), tensor(self.intercept_class_)])
        log_variance = getattr(self, "log_variance_", None)
        if log_variance is not None:
            log_variance = torch.nn.functional.pad(tensor(log_variance), (0, c))
        device, dtype = device or weight.device, dtype or weight.dtype
        return RBMParameters(
            weight.flatten(1).to(device, dtype).contiguous(),
            b.flatten().to(device, dtype),
            tensor(self.intercept_hidden_).to(device, dtype),
            None if log_variance is None else log_variance.to(device, dtype),
            self.visible,
            self.hidden,
            getattr(self, "_levels", None),
            c,
        )

    @property
    def _n_features_out(self) -> int:
        """Columns of `transform`; missing before `fit`, as `get_feature_names_out` expects."""
        return int(self.components_.shape[0])


def tensor(value: Any) -> Tensor:
    """An attribute, which may be an array, as a tensor."""
    return value if isinstance(value, Tensor) else to_tensor(np.asarray(value))
