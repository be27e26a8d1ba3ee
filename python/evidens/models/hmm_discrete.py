"""`CategoricalHMM` and `MultinomialHMM`: a table of symbol probabilities for each state."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import check_random_state
from torch import Tensor

from evidens.models._sequences import Sequences
from evidens.models.hmm_base import BaseHMM
from evidens.models.hmm_checks import SHARED
from evidens.models.hmm_parameters import UNVISITED, host, shares, spread, tensor
from evidens.models.hmm_queries import Sampler, pick
from evidens.models.hmm_statistics import CountStatistics, counts_of_frames, safe_log_product

# Up to so many symbols a product with one-hot rows is faster than adding row by row.
ONE_HOT = 64


def counts_of(symbols: Tensor, r: Tensor, n: int) -> Tensor:
    """(K, n) float64: the posteriors (m, K) summed by symbol (m,)."""
    r = r.double()
    if n <= ONE_HOT:
        return r.mT @ torch.nn.functional.one_hot(symbols, n).to(r.dtype)
    return r.new_zeros(n, r.shape[1]).index_add_(0, symbols, r).mT.contiguous()


class Found(int):
    """A parameter of the constructor that `fit` has set itself: a clone has it to find again."""


class TableHMM(BaseHMM):
    """What the families with ``emissionprob_`` share."""

    _counts = True
    emissionprob_: Any
    n_features: Any

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k, s = self.n_components, int(self.n_features)
        return {"s": k - 1, "t": k * (k - 1), "e": k * (s - 1)}

    def _emission(self) -> Tensor:
        return tensor(self.emissionprob_)

    def _emission_attributes(self, emission: Tensor) -> dict[str, Tensor]:
        return {"emissionprob_": emission}

    def _zero_statistics(self, emission: Tensor, k: int) -> CountStatistics:
        return CountStatistics.zeros(emission, seen=False)

    def _start_emission(self, data: Sequences) -> dict[str, Any]:
        if not self._needs_init("e", "emissionprob_"):
            return {}
        return {"emissionprob_": self._start_table(data)}

    def _start_table(self, data: Sequences) -> np.ndarray:
        """Rows of uniforms, hmmlearn's; states with labelled frames start at what those show."""
        k, s = self.n_components, int(self.n_features)
        rng = check_random_state(self.random_state)
        data.ranks.share(rng)
        try:
            table = rng.rand(k, s)
        except (MemoryError, ValueError) as error:
            raise ValueError(
                f"X: a table of {k} x {s} probabilities, one for each symbol up to the largest, "
                "does not fit into memory; number the symbols from 0 without gaps"
            ) from error
        table /= table.sum(1, keepdims=True)
        return labelled_start(self, data, torch.from_numpy(table)).numpy()


def labelled_start(model: BaseHMM, data: Sequences, emission: Tensor) -> Tensor:
    """An emission tensor in which the states with labelled frames have what those frames give."""
    if not data.ranks.total(data.labels is not None):
        return emission
    there = emission.to(data.device)
    stats: Any = model._zero_statistics(there, model.n_components)
    for block in data.sequences() if data.labels is not None else ():
        if block.labels is None:
            continue
        r = torch.nn.functional.one_hot(block.labels.clamp(min=0), model.n_components)
        r = r * (block.labels >= 0)[:, None]
        weight = block.frame_weight
        r = r.to(data.dtype) if weight is None else r * weight[:, None]
        model._accumulate(stats, block.x, r, there, None, data.missing)
    for name in ("weight", "first", "seen"):
        value = getattr(stats, name)
        if value is not None:
            setattr(stats, name, data.ranks.sum(value).cpu())
    params, model.params = model.params, "".join(model._get_n_fit_scalars_per_param() or ())
    try:
        found, kept = model._maximise_emission(stats, emission, emission.dtype)
    finally:
        model.params = params
    keep = torch.from_numpy(kept) | (stats.weight <= UNVISITED)
    # Half-way, so that what the labelled frames happen not to show stays possible.
    return torch.where(keep[:, None], emission, (found + emission) / 2)


class CategoricalHMM(TableHMM):
    """Hidden Markov model with one of S symbols in each frame.

    A drop-in for ``hmmlearn.hmm.CategoricalHMM``.  Beyond it: weights of sequences, labels, missing
    frames, chunks and `partial_fit`, tensors on any device, several processes, `log_prob`,
    `impute`, `sample_paths`, `save` and `load`.

    Args:
        n_components: K, the number of states.
        startprob_prior, transmat_prior: Dirichlet priors; 1 is none.
        emissionprob_prior: Dirichlet prior of the rows of ``emissionprob_``: a number or (K, S).
        n_features: S, the number of symbols; None to take the largest in `fit` plus 1.
        algorithm, random_state, n_iter, tol, verbose, implementation: as in `BaseHMM`.
        params, init_params: letters ``s`` start, ``t`` transitions, ``e`` emissions.

    Attributes:
        startprob_, transmat_, monitor_, converged_, n_iter_, statistics_, n_samples_seen_: as in
            `BaseHMM`.
        emissionprob_: (K, S), rows sum to 1.

    Frames are (N, 1), integers from 0 to S - 1.  Numbers of a floating type are taken only where
    some are NaN, which marks a missing frame (and in queries).  A symbol that `fit` has not seen
    has probability 0, and one from S on is an error.

    Source: Rabiner, A tutorial on hidden Markov models (1989), section III.

    Example:
        >>> import evidens, numpy as np
        >>> model = evidens.CategoricalHMM(2)  # rainy, sunny; walk, shop, clean
        >>> model.startprob_ = np.array([0.6, 0.4])
        >>> model.transmat_ = np.array([[0.7, 0.3], [0.4, 0.6]])
        >>> model.emissionprob_ = np.array([[0.1, 0.4, 0.5], [0.6, 0.3, 0.1]])
        >>> log_prob, states = model.decode([[0], [1], [2]])
        >>> round(float(np.exp(log_prob)), 5), states
        (0.01344, array([1, 0, 0]))
    """

    _reads = (*SHARED, "n_features", "emissionprob_")

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        *,
        emissionprob_prior: Any = 1.0,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
    ) -> None:
        super().__init__(
            n_components,
            startprob_prior=startprob_prior,
            transmat_prior=transmat_prior,
            algorithm=algorithm,
            random_state=random_state,
            n_iter=n_iter,
            tol=tol,
            verbose=verbose,
            params=params,
            init_params=init_params,
            implementation=implementation,
        )
        self.emissionprob_prior = emissionprob_prior
        self.n_features = n_features

    def __sklearn_clone__(self) -> Any:
        new = super().__sklearn_clone__()
        if isinstance(self.n_features, Found):
            new.n_features = None
        return new

    # --- checks ----------------------------------------------------------------------------------

    def _columns(self, X: Any) -> Any:
        X = X if hasattr(X, "shape") else np.asarray(X)
        if len(X.shape) == 2 and X.shape[0] and X.shape[1] > 1 and not issparse(X):
            warnings.warn(
                "Inputs of shape other than (n_samples, 1) are deprecated.",
                DeprecationWarning,
                stacklevel=7,
            )
            X = (X if isinstance(X, Tensor) else np.asarray(X)).reshape(-1, 1)
        return X

    def _check_frames(self, x: Tensor, whole: bool, reset: bool) -> None:
        if not whole:
            symbols = x[~x.isnan()]
            if symbols.isinf().any():
                raise ValueError("Symbols should be integers, got infinity")
            if (reset and len(symbols) == len(x)) or (symbols != symbols.round()).any():
                raise ValueError("Symbols should be integers")
        if (x < 0).any():
            raise ValueError("Symbols should be nonnegative")
        largest = x.nan_to_num(nan=0.0).amax()
        if self.n_features is not None and float(largest) > self.n_features - 1:
            raise ValueError(
                f"Largest symbol is {int(largest)} but the model only emits symbols up to "
                f"{self.n_features - 1}"
            )

    def _check_and_set_n_features(self, X: Any) -> None:
        """The check of `fit` on an array of any shape, by hmmlearn's name."""
        x = torch.from_numpy(np.asarray(X).astype(np.float64)).reshape(-1, 1)
        self._check_frames(x, np.asarray(X).dtype.kind in "iu", True)
        if self.n_features is None:
            self.n_features = Found(int(x.max()) + 1)

    def _settle(self, data: Sequences) -> None:
        if self.n_features is None and "e" not in self.init_params:
            if hasattr(self, "emissionprob_"):
                self.n_features = Found(np.shape(self.emissionprob_)[-1])
                for x, _, _ in data.blocks(whole=False):
                    self._check_frames(x, True, False)
        if self.n_features is not None:
            return
        largest = -1.0
        for x, _, _ in data.blocks(whole=False):
            largest = max(largest, float(x.nan_to_num(nan=-1.0).amax()))
        ranks = data.ranks
        every = torch.zeros(ranks.size, dtype=torch.float64)
        every[ranks.rank] = largest + 1
        symbols = int(ranks.sum(every).max())
        if symbols == 0:
            raise ValueError("X: every frame is missing, so there is no symbol to learn from")
        self.n_features = Found(symbols)

    def _check(self) -> None:
        super()._check()
        self.emissionprob_ = (
            self.emissionprob_
            if isinstance(self.emissionprob_, Tensor)
            else np.atleast_2d(self.emissionprob_)
        )
        if self.n_features is None:
            self.n_features = Found(self.emissionprob_.shape[1])
        if tuple(self.emissionprob_.shape) != (self.n_components, self.n_features):
            raise ValueError(
                f"emissionprob_ must have shape({self.n_components}, {self.n_features})"
            )
        self._check_sum_1("emissionprob_")

    # --- learning --------------------------------------------------------------------------------

    def _log_obs(self, x: Tensor, emission: Tensor, missing: bool) -> tuple[Tensor, Tensor]:
        # The last row of the table stands for a missing frame: it says nothing of the state.
        s = emission.shape[1]
        table = torch.nn.functional.pad(emission.log().mT, (0, 0, 0, 1))
        symbols = x[:, 0].nan_to_num(nan=float(s)).long()
        return table[symbols], symbols

    def _accumulate(
        self, stats: Any, x: Tensor, r: Tensor, emission: Any, work: Any, missing: bool
    ) -> None:
        s = emission.shape[1]
        symbols = x[:, 0].nan_to_num(nan=float(s)).long() if work is None else work
        first = counts_of(symbols, r, s + 1)[:, :s]
        stats.add(r.sum(0, dtype=torch.float64), first)

    def _maximise_emission(
        self, stats: CountStatistics, old: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, np.ndarray]:
        if "e" not in self.params:
            return super()._maximise_emission(stats, old, dtype)
        prior = spread(self.emissionprob_prior, tuple(old.shape), "emissionprob_prior")
        counts = np.maximum(prior - 1 + stats.first.numpy(), 0)
        new, kept = shares(counts, old.numpy())
        return torch.from_numpy(new), kept

    # --- draws -----------------------------------------------------------------------------------

    def _fill(self, x: Tensor, posteriors: Tensor, emission: Tensor) -> Tensor:
        return (posteriors @ emission.to(posteriors.dtype)).argmax(1, keepdim=True)

    def _sampler(self) -> Sampler:
        cdf = np.cumsum(host(self.emissionprob_).astype(np.float64), axis=1)
        return lambda state, rng: [pick(cdf[state], rng)]


class MultinomialHMM(TableHMM):
    """Hidden Markov model with counts of S symbols in each frame.

    A drop-in for ``hmmlearn.hmm.MultinomialHMM``.  Beyond it: weights of sequences, labels, missing
    frames, chunks and `partial_fit`, tensors on any device, several processes, `log_prob`,
    `impute`, `sample_paths`, `save` and `load`.

    Args:
        n_components: K, the number of states.
        n_trials: sum of the counts of a frame: a number, or (N,) for the frames of `fit`; None to
            take it from X.
        startprob_prior, transmat_prior: Dirichlet priors; 1 is none.
        algorithm, random_state, n_iter, tol, verbose, implementation: as in `BaseHMM`.
        params, init_params: letters ``s`` start, ``t`` transitions, ``e`` emissions.

    Attributes:
        startprob_, transmat_, monitor_, converged_, n_iter_, statistics_, n_samples_seen_: as in
            `BaseHMM`.
        emissionprob_: (K, S), rows sum to 1.
        n_features: S.

    Frames are (N, S), non-negative integers; a frame of NaN is missing (one with some NaN is an
    error: the counts of a frame depend on each other).

    Example:
        >>> import evidens, numpy as np
        >>> X = np.array([[5, 0], [4, 1], [5, 0], [0, 5], [1, 4], [0, 5], [5, 0]])
        >>> model = evidens.MultinomialHMM(2, random_state=0, n_iter=20).fit(X)
        >>> states = model.predict(X)
        >>> (states == states[0]).tolist()
        [True, True, True, False, False, False, True]
    """

    _reads = (*SHARED, "n_features", "emissionprob_", "n_trials")

    def __init__(
        self,
        n_components: int = 1,
        n_trials: Any = None,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
    ) -> None:
        super().__init__(
            n_components,
            startprob_prior=startprob_prior,
            transmat_prior=transmat_prior,
            algorithm=algorithm,
            random_state=random_state,
            n_iter=n_iter,
            tol=tol,
            verbose=verbose,
            params=params,
            init_params=init_params,
            implementation=implementation,
        )
        self.n_trials = n_trials

    def __sklearn_clone__(self) -> Any:
        new = super().__sklearn_clone__()
        if self.n_trials is vars(self).get("_own_trials"):
            new.n_trials = None
        return new

    # --- checks ----------------------------------------------------------------------------------

    def _check_frames(self, x: Tensor, whole: bool, reset: bool) -> None:
        gone = x.isnan()
        if (gone.any(1) != gone.all(1)).any():
            raise ValueError(
                "X: a frame has some counts missing; the counts of a frame depend on each other, "
                "so only a whole frame may be NaN"
            )
        seen = x[~gone[:, 0]]
        floating = reset and not whole and len(seen) == len(x)
        if floating or (seen < 0).any() or (seen != seen.round()).any():
            raise ValueError("Symbol counts should be nonnegative integers")

    def _check_trials(self, x: Tensor, start: int) -> None:
        """That the rows from ``start`` on have ``n_trials``."""
        trials = np.asarray(self.n_trials)
        if trials.ndim:
            trials = trials[start : start + len(x)]
        given = x.sum(1)
        expected = torch.from_numpy(np.broadcast_to(trials, len(x)).astype(np.float64))
        wrong = (given != expected.to(given.device)) & ~given.isnan()
        if wrong.any():
            raise ValueError("Total count for each sample should add up to the number of trials")

    def _check_and_set_n_features(self, X: Any) -> None:
        """The check of `fit` on an array, by hmmlearn's name."""
        array = np.asarray(X)
        known = getattr(self, "n_features", array.shape[1])
        if known != array.shape[1]:
            raise ValueError(
                f"Unexpected number of dimensions, got {array.shape[1]} but expected {known}"
            )
        self.n_features = array.shape[1]
        x = torch.from_numpy(array.astype(np.float64))
        self._check_frames(x, array.dtype.kind in "iu", True)
        if self.n_trials is None:
            self.n_trials = self._own_trials = array.sum(axis=1)
        else:
            self._check_trials(x, 0)

    def _settle(self, data: Sequences) -> None:
        super()._settle(data)
        own = vars(self).get("_own_trials")
        if self.n_trials is None or self.n_trials is own:
            totals = [x.sum(1).nan_to_num() for x, _, _ in data.blocks(whole=False)]
            self.n_trials = torch.cat(totals).cpu().numpy().astype(np.int64)
            self._own_trials = self.n_trials
            return
        start = 0
        for x, _, _ in data.blocks(whole=False):
            if np.ndim(self.n_trials) and len(self.n_trials) != data.count:
                raise ValueError(
                    f"n_trials: expected one number or one for each of the {data.count} frames, "
                    f"got {len(self.n_trials)}"
                )
            self._check_trials(x, start)
            start += len(x)

    def _check(self) -> None:
        super()._check()
        if not isinstance(self.emissionprob_, Tensor):
            self.emissionprob_ = np.atleast_2d(self.emissionprob_)
        s = getattr(self, "n_features", self.emissionprob_.shape[1])
        if tuple(self.emissionprob_.shape) != (self.n_components, s):
            raise ValueError("emissionprob_ must have shape (n_components, n_features)")
        self._check_sum_1("emissionprob_")
        self.n_features = s
        if self.n_trials is None:
            raise ValueError("n_trials must be set")

    # --- learning --------------------------------------------------------------------------------

    def _log_obs(self, x: Tensor, emission: Tensor, missing: bool) -> tuple[Tensor, None]:
        counts = counts_of_frames(x, missing)
        constant = torch.lgamma(counts.sum(1) + 1) - torch.lgamma(counts + 1).sum(1)
        return (safe_log_product(counts, emission) + constant[:, None]).to(emission.dtype), None

    def _accumulate(
        self, stats: Any, x: Tensor, r: Tensor, emission: Any, work: Any, missing: bool
    ) -> None:
        counts = counts_of_frames(x, missing)
        stats.add(r.sum(0, dtype=torch.float64), r.double().mT @ counts)

    def _maximise_emission(
        self, stats: CountStatistics, old: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, np.ndarray]:
        if "e" not in self.params:
            return super()._maximise_emission(stats, old, dtype)
        new, kept = shares(stats.first.numpy(), old.numpy())
        return torch.from_numpy(new), kept

    # --- draws -----------------------------------------------------------------------------------

    def _one_trial(self) -> int:
        given = np.unique(np.asarray([] if self.n_trials is None else self.n_trials))
        trials = given[given > 0]  # of a missing frame it is 0
        if len(trials) != 1:
            raise ValueError("For sampling, a single n_trials must be given")
        return int(trials[0])

    def _fill(self, x: Tensor, posteriors: Tensor, emission: Tensor) -> Tensor:
        return self._one_trial() * (posteriors @ emission.to(posteriors.dtype))

    def _sampler(self) -> Sampler:
        n, p = self._one_trial(), host(self.emissionprob_).astype(np.float64)
        p /= p.sum(1, keepdims=True)  # NumPy gives what is left of 1 to the last symbol
        return lambda state, rng: rng.multinomial(n, p[state])
