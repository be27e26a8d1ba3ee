"""How a density learns: `fit` and `partial_fit`, on the loop of `_training`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from evidens.models._density_classes import ClassConditional
from evidens.models._density_input import Batch, class_labels, training_rows
from evidens.models._density_state import evaluating, seed_of
from evidens.models._training import (
    NotFinite,
    Plan,
    Record,
    make_optimizer,
    run_epoch,
    train,
    warn_of,
)
from evidens.nn import ActNorm

# Rows that `ActNorm` starts from.
FIRST_BATCH = 1024
# Numbers of a row in pieces of a pass without gradients.
PIECE = 1 << 16
_GENERATOR = threading.RLock()
os.register_at_fork(after_in_child=_GENERATOR._at_fork_reinit)  # type: ignore[attr-defined]


class DensityLearning(ClassConditional):
    """The methods that change a learned density."""

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        context: Any = None,
        sample_weight: Any = None,
        validation_data: Any = None,
        validation_fraction: float = 0.1,
        epochs: int = 100,
        batch_size: int = 256,
        lr: float = 2e-3,
        schedule: str = "cosine",
        patience: int | None = 20,
        clip: float | None = 5.0,
        weight_decay: float = 0.0,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 1,
    ) -> Any:
        """Maximum likelihood by Adam; the weights that score held-out rows best are kept.

        Args:
            X: array-like or tensor (N, *shape), or (N, D); finite, integers with ``dequantize``.
            y: (N,) labels of a flow with classes, -1 where the label is unknown: such a row is
                learned by ``log sum_c p(c) p(x | c)``.
            context: (N, K).
            sample_weight: (N,) not negative; 2 is a row that stands there twice, 0 one that does
                not stand there.
            validation_data: X, or a tuple (X, y), (X, y, context) or (X, y, context,
                sample_weight) with None for what there is not; rows to choose the weights by.
            validation_fraction: share of the rows that is held out where there is no
                ``validation_data``; 0 trains on all and keeps the last weights.
            epochs: most passes over the rows; 0 only standardises.
            batch_size: rows in a step.
            lr: learning rate of Adam.
            schedule: ``"cosine"`` lets the rate fall to 0 over ``epochs``, ``"plateau"`` halves it
                when the validation has not improved for a quarter of ``patience``, ``"constant"``.
            patience: training ends after so many epochs without a better validation; None never.
            clip: largest norm of the gradient; None for none.
            weight_decay: decoupled, as in AdamW.
            warm_start: go on from the present weights, standardisation and frequencies of classes;
                else everything starts afresh from ``random_state``.
            random_state: seed or generator of weights, split, order, noise and dropout; None takes
                torch's generator.
            verbose: 0 is silent, 1 a bar where stderr is a terminal, 2 a line for every epoch.

        Returns:
            self, on the device and in the dtype and mode it had.  ``history_`` holds the mean
            log-densities ``"train"`` and ``"validation"`` and the ``"learning_rate"`` of every
            epoch, ``best_epoch_`` the epoch of the weights that were kept (0: the start),
            ``n_iter_`` the number of epochs, ``converged_`` whether ``patience`` ended them.

        Raises:
            ValueError: naming the argument, what was expected and what came.

        Warns:
            RuntimeWarning: Ctrl-C, or a batch whose loss is not finite, which is named: training
                ends, and the best weights so far are kept (without held-out rows those of the last
                whole epoch); steps without a finite gradient, which are left out.

        Example:
            >>> import evidens, numpy as np
            >>> rng = np.random.default_rng(0)
            >>> X = rng.normal(size=(500, 2)) * [1.0, 0.1] + [0.0, 5.0]
            >>> flow = evidens.RealNVP(2, layers=2, hidden=(16,)).fit(X, epochs=3, random_state=0)
            >>> round(flow.score(X), 1), flow.n_iter_
            (-0.5, 3)
        """
        plan = Plan(epochs, batch_size, lr, schedule, patience, clip, weight_decay)
        seed = seed_of(random_state)
        with self._learning(seed):
            generator = torch.Generator().manual_seed(seed)
            with self._keeping_classes():
                if self.classes and not (warm_start and self.fitted_to_tensors_ is not None):
                    self.classes_ = class_labels(self, y, len(X), sample_weight)
                data = training_rows(self, X, y, context, sample_weight)
                held_out = self._validation_rows(validation_data, validation_fraction, len(data))
                if held_out is None and validation_fraction > 0:
                    count = max(1, round(len(data) * validation_fraction))
                    if len(data) - count < 2:
                        raise ValueError(
                            f"{type(self).__name__}: validation_fraction={validation_fraction} "
                            f"holds out {count} of {len(data)} rows; expected at least 2 to learn "
                            "from"
                        )
                    order = torch.randperm(len(data), generator=generator, device="cpu").to(
                        self.device
                    )
                    held_out, data = data.take(order[:count]), data.take(order[count:])
                if not warm_start or self.fitted_to_tensors_ is None:
                    self._begin(data)
                if not warm_start:
                    self._start_afresh()
            self._initialize(data, generator)
            valid = held_out
            record = train(
                self,
                self._loss(data),
                len(data),
                plan=plan,
                generator=generator,
                validate=None if valid is None else lambda: self._mean(valid),
                verbose=verbose,
                device=self.device,
            )
        self.fitted_to_tensors_ = isinstance(X, Tensor)
        self.n_features_in_ = self.features
        self.history_ = record.history
        self.best_epoch_, self.n_iter_ = record.best_epoch, record.epochs
        self.converged_ = record.stopped_early
        warn_of(record, data.number)
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        *,
        classes: Any = None,
        context: Any = None,
        sample_weight: Any = None,
        batch_size: int = 256,
        lr: float = 2e-3,
        clip: float | None = 5.0,
        weight_decay: float = 0.0,
        random_state: Any = None,
    ) -> Any:
        """Learn from one more chunk of rows: one pass over it, at a constant rate.

        The first call on a new flow standardises by its chunk, so that should be a fair sample.
        Adam's averages live on from call to call, but not through `save`.  Frequencies of classes
        are those of all chunks.

        Args:
            X, y, context, sample_weight: as in `fit`.
            classes: all labels, in the first call, where its chunk does not show them all and they
                are not 0 .. classes - 1.
            batch_size, lr, clip, weight_decay, random_state: as in `fit`.

        Returns:
            self.

        Raises:
            ValueError: as `fit`.

        Example:
            >>> import evidens, numpy as np
            >>> rng = np.random.default_rng(0)
            >>> flow = evidens.RealNVP(2, layers=2, hidden=(16,))
            >>> for _ in range(5):
            ...     flow = flow.partial_fit(rng.normal(size=(200, 2)), random_state=0)
            >>> flow.n_iter_
            5
        """
        plan = Plan(1, batch_size, lr, "constant", None, clip, weight_decay)
        seed = seed_of(random_state)
        first = self.fitted_to_tensors_ is None
        with self._learning(seed):
            with self._keeping_classes():
                if self.classes and first:
                    self.classes_ = (
                        class_labels(self, y, len(X), sample_weight)
                        if classes is None
                        else class_labels(self, classes, len(classes))
                    )
                data = training_rows(self, X, y, context, sample_weight)
                if first:
                    self._begin(data)
                    self.n_iter_ = 0
                else:
                    self._count_classes(data, afresh=False)
            record = Record()
            if any(p.requires_grad for p in self.parameters()):
                # Averages of gradients in another dtype or on another device are of no use.
                where = self.dtype, self.device
                if self._optimizer is None or self._optimizer_of != where:
                    self._optimizer, self._optimizer_of = make_optimizer(self, plan), where
                optimizer = self._optimizer
                optimizer.param_groups[0]["weight_decay"] = weight_decay
                batches = plan.batches(torch.randperm(len(data), device="cpu").to(self.device))
                rates = [lr] * len(batches)
                before = {k: v.detach().clone() for k, v in self.state_dict().items()}
                try:
                    run_epoch(self, self._loss(data), batches, optimizer, plan, record, rates)
                except NotFinite as failure:
                    record.failed = failure.args
                    self.load_state_dict(before)
        if first:
            self.fitted_to_tensors_ = isinstance(X, Tensor)
            self.n_features_in_ = self.features
        record.best_epoch = self.n_iter_
        self.n_iter_ += record.failed is None
        warn_of(record, data.number)
        return self

    # --- parts -----------------------------------------------------------------------------------

    def _validation_rows(self, given: Any, fraction: float, count: int) -> Batch | None:
        if not 0 <= fraction < 1:
            raise ValueError(
                f"{type(self).__name__}: validation_fraction must be in [0, 1), got {fraction}"
            )
        least = 2 if given is not None or fraction == 0 else 3
        if count < least:
            raise ValueError(
                f"{type(self).__name__}: X must have at least {least} rows of positive weight"
                f"{' (one of them is held out)' if least == 3 else ''}, got {count}"
            )
        if given is None:
            return None
        parts = given if isinstance(given, tuple) else (given,)
        if not 1 <= len(parts) <= 4:
            raise ValueError(
                f"{type(self).__name__}: validation_data must be X or a tuple (X, y, context, "
                f"sample_weight) of up to four, got {len(parts)}"
            )
        X, y, context, sample_weight = [*parts, None, None, None][:4]
        return training_rows(self, X, y, context, sample_weight, "validation_data")

    @contextlib.contextmanager
    def _keeping_classes(self) -> Iterator[None]:
        """What the data are refused for inside leaves the classes as they were."""
        before = self.classes_
        try:
            yield
        except BaseException:
            self.classes_ = before
            raise

    @contextlib.contextmanager
    def _learning(self, seed: int) -> Iterator[None]:
        """Own random numbers inside; torch's, and the mode of every module, as they were after.

        Layers draw from torch's generator, which threads share: one at a time.
        """
        modes = {m: m.training for m in self.modules()}
        devices = [self.device] if self.device.type == "cuda" else []
        with _GENERATOR, torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(seed)
            try:
                yield
            finally:
                for m, mode in modes.items():
                    m.training = mode

    def _start_afresh(self) -> None:
        """The weights of a new flow, in the tensors of this one."""
        self._optimizer = None
        if not self._renewable:
            return
        fresh = type(self)(**self.settings)
        try:
            self.layers.load_state_dict(fresh.layers.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"{type(self).__name__}: fit starts afresh from the constructor's arguments, but "
                f"modules have been exchanged; pass warm_start=True to train these ({error})"
            ) from None

    def _begin(self, data: Batch) -> None:
        """Location and scale of the rows, frequencies of the classes."""
        self.standard.learn(self._noisy(data.x, 0, 0), data.context, data.weight)
        self._count_classes(data, afresh=True)

    @torch.no_grad()
    def _initialize(self, data: Batch, generator: torch.Generator) -> None:
        """Layers that start from the first batch start here, before the first validation."""
        if any(isinstance(m, ActNorm) and not m.initialized for m in self.modules()):
            self.train()
            order = torch.randperm(len(data), generator=generator, device="cpu")[:FIRST_BATCH]
            self._loss(data)(order.to(self.device))

    def _loss(self, data: Batch) -> Callable[[Tensor], Tensor]:
        """From numbers of rows to minus their mean log-density; weights have mean 1 over all."""
        semi = _has_unlabelled(data)

        def loss(index: Tensor) -> Tensor:
            batch = data.take(index)
            batch.x = self._jittered(batch.x)
            value = self._training_density(batch, semi)
            return -(value if batch.weight is None else value * batch.weight).mean()

        return loss

    def _training_density(self, batch: Batch, semi: bool) -> Tensor:
        """Log-densities of the rows of a training step."""
        return self._labelled_density(batch, semi)

    @torch.no_grad()
    def _mean(self, data: Batch) -> float:
        """Weighted mean log-density of held-out rows."""
        semi, size = _has_unlabelled(data), max(64, PIECE // self.features)
        total = weight = 0.0
        with evaluating(self):
            for i in range(0, len(data), size):
                batch = data.take(slice(i, i + size))
                batch.x = self._noisy(batch.x, i, 0)
                value = self._labelled_density(batch, semi).double()
                w = torch.ones_like(value) if batch.weight is None else batch.weight
                total, weight = total + float((value * w).sum()), weight + float(w.sum())
        return total / weight


def _has_unlabelled(data: Batch) -> bool:
    return data.labels is not None and bool((data.labels < 0).any())
