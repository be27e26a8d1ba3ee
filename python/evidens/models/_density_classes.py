"""The classes of a class-conditional density: their frequencies, and Bayes' rule."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from evidens.models._density_input import Batch
from evidens.models._density_state import DensityState, evaluating


class ClassConditional(DensityState):
    """The methods that ask which class."""

    def predict_proba(self, X: Any, context: Any = None) -> Any:
        """Posterior of the classes, ``p(c) p(x | c) / p(x)``.

        Args:
            X: array-like or tensor (N, *shape).
            context: (N, K), or one row for all.

        Returns:
            (N, classes), in the order of ``classes_``; an array for an array, a differentiable
            tensor for a tensor.

        Raises:
            ValueError: the model has no classes; otherwise as `log_prob`.
        """
        if not self.classes:
            raise ValueError(
                f"{type(self).__name__}: predict_proba needs a model with classes; build it with "
                "classes=K and pass y to fit"
            )

        def posterior(x: Tensor, context: Tensor | None, labels: None, first: int) -> Tensor:
            return self._class_terms(self._noisy(x, first, 0), context).softmax(1)

        return self._query(posterior, X, context, None)

    def predict(self, X: Any, context: Any = None) -> Any:
        """The most probable class of every row of X (N, *shape).

        Returns:
            (N,) labels of ``classes_``: a tensor for a tensor, unless the labels are strings.

        Raises:
            ValueError: as `predict_proba`.
        """
        # A compiled call keeps the mode that it was compiled in.
        mode = contextlib.nullcontext() if torch.compiler.is_compiling() else evaluating(self)
        with torch.no_grad(), mode:
            best = self.predict_proba(X, context).argmax(1)
        assert self.classes_ is not None
        if not isinstance(best, Tensor):
            return self.classes_[best]
        if self.class_codes is None:
            return self.classes_[best.cpu().numpy()]
        return self.class_codes[best]

    def _needs_label(self, y: Any) -> None:
        if self.classes and y is None:
            raise ValueError(f"{type(self).__name__}: this belongs to a class: pass y=")

    def _labelled_density(self, batch: Batch, semi: bool) -> Tensor:
        """Of every row by its label where it has one, else over the classes."""
        if not semi or batch.labels is None:
            return self._density(batch.x, batch.context, batch.labels)
        known = batch.labels >= 0
        result = torch.zeros(len(batch), dtype=self.dtype, device=self.device)
        for mask, labels in ((known, batch.labels[known]), (~known, None)):
            if mask.any():
                context = None if batch.context is None else batch.context[mask]
                result = result.index_put(
                    (mask,), self._density(batch.x[mask], context, labels).to(self.dtype)
                )
        return result

    @torch.no_grad()
    def _count_classes(self, data: Batch, afresh: bool) -> None:
        if data.labels is None:
            return
        weight = torch.ones(len(data), device=self.device) if data.weight is None else data.weight
        known = data.labels >= 0
        counts = torch.bincount(data.labels[known], weight[known].double(), self.classes)
        counts = counts * data.unit
        self.class_weight.copy_(counts if afresh else self.class_weight + counts)
