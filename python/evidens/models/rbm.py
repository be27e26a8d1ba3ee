"""`BernoulliRBM`: scikit-learn's estimator on the ops of the ``rbm`` stem."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from torch import Tensor

from evidens.models.rbm_base import RBM
from evidens.models.rbm_rows import RBMRows, warn_of_range
from evidens.models.rbm_state import INSTEAD, whole

# Means of units are held so far from certainty: a bias of 4.6 at most.
CERTAIN = 0.01


class BernoulliRBM(RBM):
    """Restricted Boltzmann machine of two-valued units.

    ``E(v, h) = -b.v - c.h - h W v`` and ``p(v) = sum_h exp(-E(v, h)) / Z``.  A drop-in for
    `sklearn.neural_network.BernoulliRBM`: the same constructor, attributes, start and learning rule
    (stochastic maximum likelihood with persistent chains), and its pseudo-likelihood to the digit.
    Beyond it: contrastive divergence and parallel tempering, momentum, weight decay, schedules of
    the learning rate and centred gradients; densities with their normaliser, by enumeration or with
    an error bar; classes among the visible units, `impute`, `sample`, weights of rows, tensors on
    any device, `save` and `load`.

    Args:
        n_components: J, hidden units.
        learning_rate: of a batch's mean gradient.
        batch_size: rows in a batch.
        n_iter: passes over the rows.
        verbose: prints a line for every pass.
        random_state: seed or generator of start, chains and `score_samples`.
        method: what the negative phase is.  ``"pcd"``: chains that go on from batch to batch;
            ``"cd"``: chains that start at the batch (contrastive divergence); ``"pt"``: persistent
            chains at ``n_temperatures`` that exchange their states.
        steps: Gibbs steps per batch, k.
        n_chains: persistent chains; None for ``batch_size``.
        n_temperatures: of ``"pt"``.
        momentum: share of the last step in the next.
        weight_decay: ``learning_rate * weight_decay * W`` is taken off the weights in a step.
        schedule: ``"constant"``, or ``"linear"`` or ``"cosine"`` down to 0 over ``n_iter``.
        centered: gradients of units counted from their means, with the visible biases at those of
            the rows at the start.  Learns faster, all the more where most units are on or off.
        shuffle: rows in a new order on each pass, else as they stand.
        monitor: log-likelihood into ``history_`` every so many passes; 0 for never.
        visible, hidden: ``"bernoulli"``, units of 0 and 1, or ``"spin"``, of -1 and 1.

    Attributes:
        components_: W, (J, V).
        intercept_hidden_: c, (J,).
        intercept_visible_: b, (V,).
        h_samples_: (M, J) states of the persistent chains, (M R, J) with ``"pt"``, by ladders.
        h_rungs_: (M, R) place of each of these among the temperatures, of ``"pt"``.
        velocity_: the last step of all parameters, where there is momentum.
        log_partition_, log_partition_interval_, density_kind_: the normaliser, see `log_partition`.
        history_: log-likelihoods, see `fit`.
        n_iter_: passes done.
        classes_, class_components_, intercept_class_: (C,), (J, C) and (C,) with ``labels``.
        visible_means_, hidden_means_: means that centred gradients count from.
        stream_: seed of the chains and the number of steps they have made.
        n_features_in_, feature_names_in_: V and names of columns.

    Arrays are float32 if the data are and else float64, tensors if X is one.  Draws come from the
    seed by a counter (see `evidens.ops.philox_uniform`), so a fit is the same on any number of
    threads; they are not NumPy's, so a fit is scikit-learn's in law but not number by number.

    Where it differs from scikit-learn: phases are means over their own rows, so a batch of fewer
    rows than chains does not push the model away from its own samples; `partial_fit` returns self
    and keeps float32; a learning rate that diverges stops with a warning and the last good
    parameters.  Values outside 0 .. 1 are learned from with a warning.

    Source: Tieleman, Training restricted Boltzmann machines using approximations to the likelihood
    gradient (2008); Hinton, A practical guide to training restricted Boltzmann machines (2010).

    Example:
        >>> import evidens, numpy as np
        >>> X = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> evidens.BernoulliRBM(n_components=2, random_state=0).fit(X)
        BernoulliRBM(n_components=2, random_state=0)
        >>> both = np.repeat([[0, 0, 0, 0], [1, 1, 1, 1]], 100, axis=0)
        >>> rbm = evidens.BernoulliRBM(2, n_iter=200, centered=True, shuffle=True, random_state=0)
        >>> rbm = rbm.fit(both)
        >>> rbm.density_kind_, bool(rbm.log_prob(both).mean() > -1.2)  # at best log(1/2)
        ('exact', True)
        >>> rbm.impute([[np.nan, 1, 1, np.nan]], random_state=0).round()
        array([[1., 1., 1., 1.]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **RBM._parameter_constraints,
        "visible": [StrOptions({"bernoulli", "spin"})],
    }

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: float = 0.1,
        batch_size: int = 10,
        n_iter: int = 10,
        verbose: int = 0,
        random_state: Any = None,
        method: str = "pcd",
        steps: int = 1,
        n_chains: int | None = None,
        n_temperatures: int = 10,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        centered: bool = False,
        shuffle: bool = False,
        monitor: int = 0,
        visible: str = "bernoulli",
        hidden: str = "bernoulli",
    ) -> None:
        self.visible = visible
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

    def gibbs(self, v: Any, steps: int = 1) -> Any:
        """Gibbs steps from rows; the next call draws other numbers.

        Args:
            v: array-like, sparse matrix or tensor (N, V).
            steps: at least 1.

        Returns:
            (N, V) bool, whether each unit is on.
        """
        states, rows = self._step(v, whole("gibbs", "steps", steps, 1))
        on = states > 0
        return on if rows.is_tensor else on.numpy()

    def score_samples(self, X: Any) -> Any:
        """Pseudo-likelihood of each row (N,), nats, with one unit that is drawn: a proxy.

        What scikit-learn means by the name, with its draws: the log-probability of one unit of the
        row given all others, times V.  `log_prob` is the log-likelihood itself.

        Args:
            X: array-like, sparse matrix or tensor (N, V) of states.
        """
        self._check_fitted()
        rows = self._read(X)
        result = self._pseudo_likelihood(rows)
        return result if rows.is_tensor else result.numpy()

    # --- parts -----------------------------------------------------------------------------------

    def _pseudo_likelihood(self, rows: RBMRows) -> Tensor:
        unit = check_random_state(self.random_state).randint(0, rows.shape[1], len(rows))
        p = self._parameters(rows.device, rows.dtype)
        parts = []
        with torch.no_grad():
            for at, x in rows.pieces(columns=max(p.weight.shape)):
                place = torch.arange(len(x)), torch.from_numpy(unit[at])
                other = x.clone()
                other[place] = 1 - x[place] if self.visible == "bernoulli" else -x[place]
                gain = p.log_weight(x) - p.log_weight(other)
                parts.append(rows.shape[1] * torch.nn.functional.logsigmoid(gain))
        return torch.cat(parts)

    def _look_at(self, rows: RBMRows) -> None:
        warn_of_range(rows, self._low, type(self).__name__)

    @property
    def _low(self) -> float:
        return 0.0 if self.visible == "bernoulli" else -1.0

    def _check_states(self, x: Tensor, op: str, name: str = "X") -> None:
        bad = (x != self._low) & (x != 1)
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{op}: {name} holds {x[row, column].item():g} at row {row} of its piece, column "
                f"{column}; expected states {self._low:g} or 1, which alone have a probability. "
                f"{INSTEAD[op]}"
            )

    def _bias_of_means(self, means: Tensor) -> Tensor:
        if self.visible == "spin":
            return means.clamp(2 * CERTAIN - 1, 1 - 2 * CERTAIN).atanh()
        return means.clamp(CERTAIN, 1 - CERTAIN).logit()

    def _likelier(self, means: Tensor) -> Tensor:
        middle = 0.5 * (1 + self._low)
        return torch.where(means > middle, 1.0, self._low).to(means.dtype)

    def _told(self, rows: RBMRows) -> str:
        told = super()._told(rows)
        if told != "running":
            return told
        return f"pseudo-likelihood = {float(self._pseudo_likelihood(rows).mean()):.2f}"

    # Hooks of scikit-learn's class of these names.
    def _mean_hiddens(self, v: Any) -> np.ndarray:
        """``E[h | v]`` of rows, or of one row (V,)."""
        dense = v.toarray() if issparse(v) else np.asarray(v)
        return self.transform(np.atleast_2d(dense)).reshape(*dense.shape[:-1], -1)

    def _sample_hiddens(self, v: Any, rng: np.random.RandomState) -> np.ndarray:
        """Hidden states of rows, drawn by NumPy."""
        p = self._mean_hiddens(v)
        return rng.uniform(size=p.shape) < p
