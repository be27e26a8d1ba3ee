"""`RBM`: how every machine learns; what it is asked stands in `rbm_queries`."""

from __future__ import annotations

import math
import time
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from evidens.models._persistence import Persistent
from evidens.models._training import Bar
from evidens.models.rbm_chains import Ladder, Stream
from evidens.models.rbm_learning import STEPS, Diverged, Learner
from evidens.models.rbm_parameters import RBMParameters
from evidens.models.rbm_queries import RBMQueries
from evidens.models.rbm_rows import RBMRows, batches, class_numbers, weights
from evidens.models.rbm_state import tensor

# Standard deviation of the weights at the start.
START = 0.01


class RBM(
    RBMQueries,
    Persistent,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """The learning that machines of all kinds of units share; use a subclass."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "n_iter": [Interval(Integral, 0, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
        "method": [StrOptions({"pcd", "cd", "pt"})],
        "steps": [Interval(Integral, 1, None, closed="left")],
        "n_chains": [Interval(Integral, 1, None, closed="left"), None],
        "n_temperatures": [Interval(Integral, 2, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "schedule": [StrOptions({"constant", "linear", "cosine"})],
        "centered": ["boolean"],
        "shuffle": ["boolean"],
        "monitor": [Interval(Integral, 0, None, closed="left")],
        "hidden": [StrOptions({"bernoulli", "spin"})],
    }

    def __init__(
        self,
        n_components: int,
        *,
        learning_rate: float,
        batch_size: int,
        n_iter: int,
        verbose: int,
        random_state: Any,
        method: str,
        steps: int,
        n_chains: int | None,
        n_temperatures: int,
        momentum: float,
        weight_decay: float,
        schedule: str,
        centered: bool,
        shuffle: bool,
        monitor: int,
        hidden: str,
    ) -> None:
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.verbose = verbose
        self.random_state = random_state
        self.method = method
        self.steps = steps
        self.n_chains = n_chains
        self.n_temperatures = n_temperatures
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.centered = centered
        self.shuffle = shuffle
        self.monitor = monitor
        self.hidden = hidden

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # Here and not with the other queries: set_output sees what this class itself defines.
    def transform(self, X: Any) -> Any:
        """Means of the hidden units given the visible ones (of levels: those that are there).

        Args:
            X: array-like, sparse matrix or tensor (N, D) of states or means.

        Returns:
            (N, J), of a tensor differentiable in it.
        """
        self._check_fitted()
        return self._per_row(X, lambda p, v: p.hidden_mean_of_rows(v), states=False)

    # --- learning --------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        labels: Any = None,
        validation_data: Any = None,
    ) -> Any:
        """Maximum likelihood by stochastic gradients, whose negative phase comes from chains.

        Args:
            X: array-like, data frame, sparse matrix or tensor (N, D).
            y: ignored.
            sample_weight: (N,) not negative; the mean log-likelihood with these weights is what is
                learned, so 2 is a row that stands there twice, 0 one that does not stand there.
            labels: (N,) integers: the class of each row, a group of visible units of its own; -1
                where it is unknown.
            validation_data: rows that ``monitor`` scores besides.

        Returns:
            self.  ``history_`` holds, for every ``monitor``-th epoch, the mean log-likelihood of
            the rows (``"train"``, of at most 10,000 of them) and of ``validation_data``
            (``"validation"``), and how far the error of log Z may move both (``"low"``,
            ``"high"``): nats, by the exact normaliser or by annealed importance sampling.

        Raises:
            ValueError: wrong shapes, NaN, infinities, weights or labels out of range.

        Warns:
            RuntimeWarning: Ctrl-C (what was learned so far is kept), or a learning rate at which
                learning diverges (it stops, with the last parameters that were finite).
        """
        self._validate_params()
        rows = self._read(X, reset=True)
        weight = weights(sample_weight, rows)
        places = self._classes(labels, len(rows))
        validation = None if validation_data is None else self._read(validation_data)
        self._tensors = rows.is_tensor
        self._learn_scales(rows, weight)
        self._look_at(rows)
        if self.monitor:
            self._check_watched(rows, weight, validation)
        rng = check_random_state(self.random_state)
        learner = self._start(rows, weight, rng)
        generator = np.random.default_rng(learner.stream.seed)
        self.history_ = {key: [] for key in ("epoch", "train", "validation", "low", "high")}
        self.n_iter_ = 0
        per_epoch = -(-len(rows) // self.batch_size)
        unit = 1.0 if weight is None else float(weight.double().mean())
        bar = Bar(self.verbose, self.n_iter, type(self).__name__)
        begin = time.perf_counter()
        stopped: BaseException | None = None
        try:
            for epoch in range(self.n_iter):
                order = None
                if self.shuffle:
                    order = torch.from_numpy(generator.permutation(len(rows)))
                for i, at in enumerate(batches(len(rows), self.batch_size, order)):
                    x = rows.take(at)
                    learner.step(
                        self._units(x),
                        self._rate((epoch + i / per_epoch) / self.n_iter),
                        weight=None if weight is None else weight[at],
                        unit=unit,
                        labels=None if places is None else places[at].to(rows.device),
                        absent=self._absent(x),
                    )
                self.n_iter_ = epoch + 1
                watched = self.monitor and self.n_iter_ % self.monitor == 0
                if watched or self.verbose:
                    self._set(learner)
                if watched:
                    self._watch(rows, weight, validation)
                if self.verbose:
                    told, now = self._told(rows), time.perf_counter()
                    line = f"Iteration {self.n_iter_}, {told}, time = {now - begin:.2f}s"
                    bar.epoch(told, f"[{type(self).__name__}] {line}")
                    begin = now
        except (KeyboardInterrupt, Diverged) as error:
            stopped = error
        finally:
            bar.close()
        self._set(learner)
        self._warn(stopped, self.n_iter_ + 1)
        return self

    def partial_fit(
        self, X: Any, y: Any = None, *, sample_weight: Any = None, labels: Any = None
    ) -> Any:
        """Learn from one more batch of rows: one step of the gradient.

        Goes on from `fit`, `load` or the last call, whose chains it takes over; the first call on
        a new model starts from its rows.

        Args:
            X: (n, D), as in `fit`.
            y: ignored.
            sample_weight: (n,), as in `fit`; 1 is the weight of a row.
            labels: (n,), as in `fit`; the first call must show every class.

        Returns:
            self.

        Raises:
            ValueError: as `fit`.

        Warns:
            RuntimeWarning: the step diverges; it is left out.
        """
        self._validate_params()
        first = not hasattr(self, "components_")
        rows = self._read(X, reset=first)
        weight = weights(sample_weight, rows)
        self._look_at(rows)
        if first:
            places = self._classes(labels, len(rows))
            self._tensors = rows.is_tensor
            self._learn_scales(rows, weight)
            self.n_iter_ = 0
            learner = self._start(rows, weight, check_random_state(self.random_state))
        else:
            known = getattr(self, "classes_", None)
            if (known is None) != (labels is None):
                raise ValueError(
                    f"labels: this {type(self).__name__} was begun "
                    f"{'without' if known is None else 'with'} classes; go on as it was begun "
                    "(-1 is an unknown label) or use a new model"
                )
            places = None if labels is None else class_numbers(labels, len(rows), known)[1]
            learner = self._resume(rows)
            weight = None if weight is None else weight.to(rows.dtype)
        x = rows.take(slice(0, len(rows)))
        stopped = None
        try:
            learner.step(
                self._units(x),
                self.learning_rate,
                weight=weight,
                unit=rows.one,
                labels=None if places is None else places.to(rows.device),
                absent=self._absent(x),
            )
            self.n_iter_ += 1
        except Diverged as error:
            stopped = error
        self._set(learner)
        self._warn(stopped, self.n_iter_ + 1)
        return self

    def _rate(self, done: float) -> float:
        """The learning rate after a share of all epochs."""
        rate = float(self.learning_rate)
        if self.schedule == "linear":
            return rate * (1 - done)
        return rate if self.schedule == "constant" else rate * 0.5 * (1 + math.cos(math.pi * done))

    def _classes(self, labels: Any, count: int) -> Tensor | None:
        """Places of the labels, for a model that begins; `classes_` is set where there are any."""
        classes, places = (None, None) if labels is None else class_numbers(labels, count, None)
        for name in ("classes_", "class_components_", "intercept_class_"):
            self.__dict__.pop(name, None)
        if classes is not None:
            self.classes_ = classes
        return places

    # --- parameters and attributes ---------------------------------------------------------------

    def _start(self, rows: RBMRows, weight: Tensor | None, rng: Any) -> Learner:
        """Small weights, chains that are off, and offsets at the means of the rows."""
        first = self._units(rows.take(slice(0, 1)))
        j, v, c = self.n_components, first.shape[1], len(getattr(self, "classes_", ()))
        start: dict[str, Any] = {"dtype": rows.dtype, "device": rows.device}
        # scikit-learn's own draws: the same random_state starts from the same components.
        weights = rng.normal(0, START, (j, v))
        if c:
            weights = np.concatenate([weights, rng.normal(0, START, (j, c))], 1)
        gaussian = self.visible == "gaussian"
        p = RBMParameters(
            torch.as_tensor(weights, **start),
            torch.zeros(v + c, **start),
            torch.zeros(j, **start),
            torch.zeros(v + c, **start) if gaussian else None,
            self.visible,
            self.hidden,
            getattr(self, "_levels", None),
            c,
        )
        means = self._means(rows, weight)
        if self.centered:
            p.visible_bias[:v] = self._bias_of_means(means)
        stream = Stream(int(rng.randint(np.iinfo(np.int32).max)))
        ladder, count = None, self._chains
        if self.method == "pt":
            ladder = Ladder.of(self.n_temperatures, count, rows.device)
            count *= self.n_temperatures
        middle = 0.5 if self.hidden == "bernoulli" else 0.0
        return self._learner(
            p,
            stream,
            torch.full((count, j), 0.0 if self.hidden == "bernoulli" else -1.0, **start),
            ladder,
            torch.cat([means, torch.full((c,), 1 / max(1, c), device=means.device)]).to(**start),
            torch.full((j,), middle, **start),
        )

    def _resume(self, rows: RBMRows) -> Learner:
        """A learner that goes on from the attributes."""
        self._tensors = isinstance(self.components_, Tensor)
        rows.dtype = tensor(self.components_).dtype
        p = self._parameters(rows.device, rows.dtype)
        for name in ("weight", "visible_bias", "hidden_bias", "log_variance"):
            value = getattr(p, name)
            setattr(p, name, None if value is None else value.clone())
        chains = tensor(self.h_samples_).to(p.weight).clone()
        count = self.n_temperatures if self.method == "pt" else 1
        ladder = (
            Ladder(tensor(self.h_rungs_).to(rows.device)) if hasattr(self, "h_rungs_") else None
        )
        if ladder is not None and ladder.rungs != count:
            # Chains of other temperatures are of no use.
            chains, ladder = chains[ladder.cold], None
        if ladder is None and count > 1:
            ladder = Ladder.of(count, len(chains), rows.device)
            chains = chains.repeat_interleave(count, 0)
        learner = self._learner(
            p,
            Stream(*map(int, self.stream_)),
            chains,
            ladder,
            tensor(self.visible_means_).to(p.weight).clone(),  # a file aligns nothing
            tensor(self.hidden_means_).to(p.weight).clone(),
        )
        if self.momentum and hasattr(self, "velocity_"):
            flat = tensor(self.velocity_).to(p.weight)
            like = [getattr(p, name) for name in STEPS]
            parts = flat.split([0 if t is None else t.numel() for t in like])
            learner.velocity = {
                name: part.view_as(t) for name, t, part in zip(STEPS, like, parts) if t is not None
            }
        return learner

    @property
    def _chains(self) -> int:
        return self.batch_size if self.n_chains is None else self.n_chains

    def _learner(
        self,
        p: RBMParameters,
        stream: Stream,
        chains: Tensor,
        ladder: Ladder | None,
        visible_means: Tensor,
        hidden_means: Tensor,
    ) -> Learner:
        self.visible_means_ = self._own(visible_means)
        return Learner(
            p,
            stream,
            self.method,
            self.steps,
            chains,
            ladder,
            float(self.momentum),
            float(self.weight_decay),
            visible_means if self.centered else None,
            hidden_means,
        )

    def _own(self, value: Tensor) -> Any:
        """An attribute: a tensor where the model was fitted to one, else an array."""
        value = value.detach().clone()
        return value if self._tensors else value.numpy()

    def _set(self, learner: Learner) -> None:
        """Attributes from what has been learned."""
        p = learner.p
        v = p.pixels
        self.components_ = self._own(p.weight[:, :v].contiguous())
        self.intercept_hidden_ = self._own(p.hidden_bias)
        self.intercept_visible_ = self._own(p.visible_bias[:v])
        if p.log_variance is not None:
            self.log_variance_ = self._own(p.log_variance[:v])
        if p.classes:
            self.class_components_ = self._own(p.class_weight.contiguous())
            self.intercept_class_ = self._own(p.visible_bias[v:])
        self.h_samples_ = self._own(learner.chains)
        for name in ("h_rungs_", "velocity_", "partition_"):
            self.__dict__.pop(name, None)
        if learner.ladder is not None:
            self.h_rungs_ = self._own(learner.ladder.rung)
        if learner.velocity:
            self.velocity_ = self._own(
                torch.cat([learner.velocity[n].flatten() for n in STEPS if n in learner.velocity])
            )
        assert learner.hidden_offset is not None
        self.hidden_means_ = self._own(learner.hidden_offset)
        self.stream_ = np.array([learner.stream.seed, learner.stream.step])

    def _warn(self, stopped: BaseException | None, epoch: int) -> None:
        if isinstance(stopped, KeyboardInterrupt):
            warnings.warn(
                f"fit was interrupted in epoch {epoch}; what was learned until then is kept, and "
                "partial_fit goes on from it.",
                RuntimeWarning,
                stacklevel=3,
            )
        elif stopped is not None:
            warnings.warn(
                f"learning diverged in step or epoch {epoch}: an update was not finite or out of "
                "all proportion, and was left out. The parameters before it are kept. Decrease "
                f"learning_rate={self.learning_rate:g} (or momentum={self.momentum:g}), and scale "
                "the rows.",
                RuntimeWarning,
                stacklevel=3,
            )
