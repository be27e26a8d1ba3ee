"""`PoissonHMM` and `BernoulliHMM`: independent counts or bits, a rate for each state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from evidens.models._sequences import Sequences
from evidens.models.hmm_base import BaseHMM
from evidens.models.hmm_checks import SHARED
from evidens.models.hmm_discrete import labelled_start
from evidens.models.hmm_parameters import UNVISITED, host, spread, tensor
from evidens.models.hmm_queries import Sampler
from evidens.models.hmm_statistics import CountStatistics, counts_of_frames, safe_log_product


class RateHMM(BaseHMM):
    """What the families with independent features share; a feature may be missing alone."""

    _counts = True
    #: name of the attribute (K, D) and letter of ``params``
    _name, _letter = "", ""

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k, d = self.n_components, self.n_features
        return {"s": k - 1, "t": k * (k - 1), self._letter: k * d}

    def _emission(self) -> Tensor:
        return tensor(getattr(self, self._name))

    def _emission_attributes(self, emission: Tensor) -> dict[str, Tensor]:
        return {self._name: emission}

    def _check(self) -> None:
        super()._check()
        value = getattr(self, self._name)
        if not isinstance(value, Tensor):
            setattr(self, self._name, value := np.atleast_2d(value))
        d = getattr(self, "n_features", value.shape[1])
        if tuple(value.shape) != (self.n_components, d):
            raise ValueError(f"{self._name} must have shape (n_components, n_features)")
        self.n_features = d
        self._check_range(host(value))

    def _check_range(self, value: np.ndarray) -> None:
        """That the rates are possible ones; each family of rates defines it."""
        raise NotImplementedError

    def _zero_statistics(self, emission: Tensor, k: int) -> CountStatistics:
        return CountStatistics.zeros(emission, seen=True)

    def _accumulate(
        self, stats: Any, x: Tensor, r: Tensor, emission: Any, work: Any, missing: bool
    ) -> None:
        r = r.double()
        seen = r.mT @ (~x.isnan()).double() if missing else None
        stats.add(r.sum(0), r.mT @ counts_of_frames(x, missing), seen)

    def _fill(self, x: Tensor, posteriors: Tensor, emission: Tensor) -> Tensor:
        return torch.where(x.isnan(), posteriors @ emission.to(posteriors.dtype), x)


class PoissonHMM(RateHMM):
    """Hidden Markov model with independent Poisson counts.

    A drop-in for ``hmmlearn.hmm.PoissonHMM``.  Beyond it: weights of sequences, labels, missing
    frames and features, chunks and `partial_fit`, tensors on any device, several processes,
    `log_prob`, `impute`, `sample_paths`, `save` and `load`.

    Args:
        n_components: K, the number of states.
        startprob_prior, transmat_prior: Dirichlet priors; 1 is none.
        lambdas_prior, lambdas_weight: shape and rate of a gamma prior, in hmmlearn's way: with
            ``n`` the number of all frames, ``lambdas_ = (prior + n mean) / (weight + n)``.
        algorithm, random_state, n_iter, tol, verbose, implementation: as in `BaseHMM`.
        params, init_params: letters ``s`` start, ``t`` transitions, ``l`` rates.

    Attributes:
        startprob_, transmat_, monitor_, converged_, n_iter_, statistics_, n_samples_seen_: as in
            `BaseHMM`.
        lambdas_: (K, D), mean counts.
        n_features: D.

    Frames are (N, D), non-negative integers of any type; NaN marks a missing value.

    Example:
        >>> import evidens, numpy as np
        >>> X = np.array([[1], [0], [2], [19], [22], [20], [1]])
        >>> model = evidens.PoissonHMM(2, random_state=0, n_iter=30).fit(X)
        >>> sorted(model.lambdas_[:, 0].round(1).tolist())
        [1.0, 20.3]
    """

    _name, _letter = "lambdas_", "l"
    _reads = (*SHARED, "n_features", "lambdas_")
    lambdas_: Any

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        lambdas_prior: Any = 0.0,
        lambdas_weight: Any = 0.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stl",
        init_params: str = "stl",
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
        self.lambdas_prior = lambdas_prior
        self.lambdas_weight = lambdas_weight

    def _check_frames(self, x: Tensor, whole: bool, reset: bool) -> None:
        seen = x if whole else x[~x.isnan()]
        if (seen < 0).any() or (not whole and (seen != seen.round()).any()):
            raise ValueError("Symbol counts should be nonnegative integers")

    def _check_range(self, value: np.ndarray) -> None:
        if not (np.isfinite(value) & (value >= 0)).all():
            raise ValueError("lambdas_ must be non-negative and finite")

    def _start_emission(self, data: Sequences) -> dict[str, Any]:
        if not self._needs_init("l", "lambdas_"):
            return {}
        sums = torch.zeros(3, dtype=torch.float64, device=data.device)
        for x, weight, _ in data.blocks(whole=False):
            x = x.double()
            w = torch.ones_like(x[:, :1]) if weight is None else weight.double()[:, None]
            seen = (~x.isnan()).double() * w
            x = x.nan_to_num()
            sums += torch.stack([seen.sum(), (seen * x).sum(), (seen * x * x).sum()])
        n, first, second = data.ranks.sum(sums).tolist()
        mean = first / n if n else 0.0
        variance = max(second / n - mean**2, 0.0) if n else 0.0
        rng = check_random_state(self.random_state)
        data.ranks.share(rng)
        size = (self.n_components, self.n_features)
        if mean == 0:
            lambdas = np.zeros(size)
        elif variance == 0:
            # All counts are equal: the gamma distribution of the method of moments is a point.
            lambdas = np.full(size, mean)
        else:
            lambdas = rng.gamma(shape=mean**2 / variance, scale=variance / mean, size=size)
        start = labelled_start(self, data, torch.from_numpy(lambdas))
        return {"lambdas_": start.numpy()}

    def _log_obs(self, x: Tensor, emission: Tensor, missing: bool) -> tuple[Tensor, None]:
        counts = counts_of_frames(x, missing)
        rates = emission.double()
        total = (~x.isnan()).double() @ rates.mT if missing else rates.sum(1)
        constant = torch.lgamma(counts + 1).sum(1, keepdim=True)
        return (safe_log_product(counts, rates) - total - constant).to(emission.dtype), None

    def _maximise_emission(
        self, stats: CountStatistics, old: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, np.ndarray]:
        if "l" not in self.params:
            return super()._maximise_emission(stats, old, dtype)
        assert stats.seen is not None
        shape = tuple(old.shape)
        prior = spread(self.lambdas_prior, shape, "lambdas_prior")
        rate = spread(self.lambdas_weight, shape, "lambdas_weight")
        seen, first = stats.seen.numpy(), stats.first.numpy()
        known = seen > UNVISITED
        mean = first / np.where(known, seen, 1)
        n = float(stats.weight.sum())
        value, total = prior + n * mean, rate + n
        if not (np.all(total > 0) and np.all(value >= 0)):
            raise ValueError(
                "lambdas_prior, lambdas_weight: expected numbers that keep lambdas_ non-negative "
                f"({n:g} frames), got {self.lambdas_prior} and {self.lambdas_weight}"
            )
        new = np.where(known, value / total, old.numpy())
        return torch.from_numpy(new), np.zeros(len(old), dtype=bool)

    def _sampler(self) -> Sampler:
        lambdas = host(self.lambdas_).astype(np.float64)
        return lambda state, rng: rng.poisson(lambdas[state])


class BernoulliHMM(RateHMM):
    """Hidden Markov model with independent bits.

    Not in hmmlearn; it has the methods of the other families.

    Args:
        n_components: K, the number of states.
        startprob_prior, transmat_prior: Dirichlet priors; 1 is none.
        alpha, beta: of the beta prior of every probability: numbers or (K, D); 1 is none, and 2 in
            both keeps probabilities away from 0 and 1.
        algorithm, random_state, n_iter, tol, verbose, implementation: as in `BaseHMM`.
        params, init_params: letters ``s`` start, ``t`` transitions, ``b`` probabilities.

    Attributes:
        startprob_, transmat_, monitor_, converged_, n_iter_, statistics_, n_samples_seen_: as in
            `BaseHMM`.
        probs_: (K, D), how probable a 1 is.
        n_features: D.

    Frames are (N, D), 0 or 1 (or booleans); NaN marks a missing value.

    Source: Rabiner, A tutorial on hidden Markov models (1989), with a table of two symbols for each
    feature.

    Example:
        >>> import evidens, numpy as np
        >>> X = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [1, 0]])
        >>> model = evidens.BernoulliHMM(2, random_state=0, n_iter=30, alpha=2, beta=2).fit(X)
        >>> states = model.predict(X)
        >>> (states == states[0]).tolist()
        [True, True, True, False, False, False, True]
    """

    _name, _letter = "probs_", "b"
    _reads = (*SHARED, "n_features", "probs_")
    probs_: Any

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        alpha: Any = 1.0,
        beta: Any = 1.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stb",
        init_params: str = "stb",
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
        self.alpha = alpha
        self.beta = beta

    def _check_frames(self, x: Tensor, whole: bool, reset: bool) -> None:
        bad = ~((x == 0) | (x == 1) | x.isnan())
        if bad.any():
            raise ValueError(
                f"X: expected 0, 1 or NaN (missing), got {x[bad][0].item()}; threshold other values"
            )

    def _check_range(self, value: np.ndarray) -> None:
        if not ((value >= 0) & (value <= 1)).all():
            raise ValueError("probs_ must lie between 0 and 1")

    def _start_emission(self, data: Sequences) -> dict[str, Any]:
        if not self._needs_init("b", "probs_"):
            return {}
        rng = check_random_state(self.random_state)
        data.ranks.share(rng)
        # Away from 0 and 1, which EM never leaves.
        probs = rng.uniform(0.25, 0.75, size=(self.n_components, self.n_features))
        return {"probs_": labelled_start(self, data, torch.from_numpy(probs)).numpy()}

    def _log_obs(self, x: Tensor, emission: Tensor, missing: bool) -> tuple[Tensor, None]:
        x, p = x.double(), emission.double()
        ones, zeros = x, 1 - x
        if missing:
            ones, zeros = ones.nan_to_num(), zeros.nan_to_num()
        result = safe_log_product(ones, p) + safe_log_product(zeros, 1 - p)
        return result.to(emission.dtype), None

    def _maximise_emission(
        self, stats: CountStatistics, old: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, np.ndarray]:
        if "b" not in self.params:
            return super()._maximise_emission(stats, old, dtype)
        assert stats.seen is not None
        shape, seen, first = tuple(old.shape), stats.seen.numpy(), stats.first.numpy()
        ones = np.maximum(spread(self.alpha, shape, "alpha") - 1 + first, 0)
        zeros = np.maximum(spread(self.beta, shape, "beta") - 1 + seen - first, 0)
        total = ones + zeros
        known = total > UNVISITED
        new = np.where(known, np.minimum(ones / np.where(known, total, 1), 1), old.numpy())
        return torch.from_numpy(new), np.zeros(len(old), dtype=bool)

    def _sampler(self) -> Sampler:
        p = host(self.probs_).astype(np.float64)
        return lambda state, rng: (rng.random_sample(p.shape[1]) < p[state]).astype(np.int64)
