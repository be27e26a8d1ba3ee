"""What a hidden Markov model answers: likelihoods, posteriors, paths, draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from operator import is_, itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy import linalg
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.autograd import forward_ad

from evidens import ops
from evidens.models._arrays import has_missing, returned, working_dtype
from evidens.models._sequences import blocks_of, frames_of, holds_integers, lengths_of
from evidens.models.hmm_checks import DECODERS, HMMChecks
from evidens.models.hmm_parameters import HMMParameters, added, dtype_of, host, tensor
from evidens.models.hmm_scored import Scored
from evidens.ops._hmm_arguments import is_plain

Sampler = Callable[[int, np.random.RandomState], Any]

# What passed all checks: attributes, and those that are arrays to the bit.
State = tuple[list[Any], list[tuple[Any, ...]]]
# Of each model, that and the parameters that it gave.
_CHECKED: WeakKeyDictionary[Any, tuple[State, HMMParameters]] = WeakKeyDictionary()
SIMPLE = (int, float, str, np.number, type(None))
LARGE = 1 << 19  # bytes of an attribute whose checks are small beside the work on frames


class HMMQueries(HMMChecks):
    """The methods of a hidden Markov model that ask and do not learn."""

    random_state: Any
    startprob_: Any
    transmat_: Any

    #: `log_prob` is the log-likelihood itself, neither a bound nor an estimate.
    density_kind_ = "exact"

    #: whether frames are symbols, counts or bits
    _counts = False

    #: attributes that `_check` and `_emission` read, of a family whose parameters are checked once
    #: and again only when these have changed; None: at every call
    _reads: tuple[str, ...] | None = None

    # --- what a family defines -------------------------------------------------------------------

    def _emission(self) -> Any:
        """The fitted emission parameters as tensors."""
        return torch.empty(0, dtype=tensor(self.startprob_).dtype)

    def _log_obs(self, x: Tensor, emission: Any, missing: bool) -> tuple[Tensor, Any]:
        """Log-densities (n, K) of frames (n, D), and what `_accumulate` can use of the work.

        Every family defines it, unless it overrides `_compute_log_likelihood`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no _compute_log_likelihood")

    def _normal(self, emission: Any) -> tuple[Tensor, Tensor] | None:
        """Means and inverse standard deviations (K, D) of emissions that are nothing else."""
        return None

    def _fill(self, x: Tensor, posteriors: Tensor, emission: Any) -> Tensor:
        """Frames with NaN (n, D), filled for posteriors (n, K); families with parameters do it."""
        raise NotImplementedError(f"{type(self).__name__} cannot impute")

    def _sampler(self) -> Sampler:
        """What draws a frame (D,) from a state."""
        return lambda state, random_state: ()

    def _get_n_fit_scalars_per_param(self) -> dict[str, int] | None:
        """How many free numbers each letter of ``params`` stands for."""
        return None

    @property
    def _width(self) -> int:
        """How many numbers the log-densities of a frame take to compute."""
        return self.n_components

    # --- common ----------------------------------------------------------------------------------

    def _compute_log_likelihood(self, X: Any) -> Any:
        """Log-density of every frame under every state, (N, K) nats.

        A subclass of `BaseHMM` may override this alone, as in hmmlearn.
        """
        x = frames_of(self, X)
        p = self._parameters_for(x, X)
        result, _ = self._log_obs(x.to(p.start.dtype), p.emission, has_missing(x.detach()))
        return returned(result, X)

    def _parameters(self, *where: Any) -> HMMParameters:
        """The fitted attributes as tensors of one dtype, ``to(*where)``."""
        start, transition, emission = (
            tensor(self.startprob_),
            tensor(self.transmat_),
            self._emission(),
        )
        dtype = working_dtype(start.dtype, transition.dtype, dtype_of(emission))
        return HMMParameters(start, transition, emission).to(dtype).to(*where)

    def _parameters_for(self, x: Tensor, X: Any, p: HMMParameters | None = None) -> HMMParameters:
        """The parameters for frames x that came as X; counts are exact in every dtype."""
        p = self._parameters() if p is None else p
        if x.dtype is p.start.dtype and x.device == p.start.device:
            return p
        if self._counts and holds_integers(X):
            return p.to(x.device)
        return p.to(x.device, working_dtype(x.dtype, p.start.dtype))

    def _checked(self) -> HMMParameters:
        """The parameters after every check, which the same numbers need not pass again."""
        state = self._state()
        if state is not None and (known := _CHECKED.get(self)) is not None:
            if _are_same(state, known[0]):
                return known[1]
        self._check()
        p = self._parameters()
        after = self._state()  # what checks make of lists is known at the next call
        if state is not None and after is not None and _are_same(state, after) and _is_small(state):
            # The user's arrays may change, and no inference tensor can be saved for a gradient.
            with torch.inference_mode(False):
                p = p.copied()
            _CHECKED[self] = state, p
        return p

    def _state(self) -> State | None:
        """All that the checks and the parameters depend on; None where that is not known."""
        names = vars(type(self)).get("_reads")  # a subclass may read more
        try:
            values = itemgetter(*names)(vars(self)) if names else None
        except KeyError:
            return None
        if values is None:
            return None
        arrays = [(v.shape, v.dtype, v.tobytes()) for v in values if type(v) is np.ndarray]
        return [v for v in values if type(v) is not np.ndarray], arrays

    def _scored(self, X: Any, lengths: Any, *, whole: bool = False) -> Iterator[Scored]:
        """Some sequences at a time; ``whole``: all at once, and with gradients."""
        if not hasattr(self, "startprob_"):
            check_is_fitted(self, "startprob_")  # raises
        p = self._checked()
        x = frames_of(self, X)
        count = x.shape[0]
        if lengths is not None and count != len(X):
            lengths = np.asarray(lengths) * (count // len(X))
        lengths, each = lengths_of(lengths, count)
        p, missing = self._parameters_for(x, X, p), has_missing(x.detach())
        custom = self._custom
        normal = None if custom or missing or whole else self._normal(p.emission)
        if normal is not None:
            recorded = forward_ad._current_level >= 0 or not is_plain()
            if not recorded and torch.is_grad_enabled():
                recorded = any(t.requires_grad for t in (p.start, p.transition, *normal))
            normal = None if recorded else normal
        for block, _ in blocks_of(x, lengths, self._width, each=each, whole=whole):
            frames = block.x
            if not custom and frames.dtype is not p.start.dtype:
                frames = frames.to(p.start.dtype)

            def log_obs(x: Tensor = frames) -> Tensor:
                if custom:
                    return self._own_log_obs(x, p.start, isinstance(X, Tensor), missing)
                return self._log_obs(x, p.emission, missing)[0]

            yield Scored(block, frames, p, log_obs, normal)

    @property
    def _custom(self) -> bool:
        """Whether a subclass computes its own log-densities."""
        return type(self)._compute_log_likelihood is not HMMQueries._compute_log_likelihood

    def _own_log_obs(self, x: Tensor, like: Tensor, as_tensor: bool, missing: bool) -> Tensor:
        """The log-densities of a subclass; 0 for frames of NaN, which it sees as zeros."""
        gone = x.detach().isnan().all(1)[:, None] if missing else None
        shown = x if gone is None else torch.where(gone, 0, x)
        given = self._compute_log_likelihood(shown if as_tensor else shown.numpy())
        log_obs = tensor(given).to(like.device, like.dtype)
        log_obs = log_obs if gone is None else torch.where(gone, 0, log_obs)
        bad = ~(log_obs.detach() < torch.inf)
        if bad.any():
            frame, state = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{type(self).__name__}: expected log-densities below infinity, got "
                f"{log_obs[frame, state].item()} for frame {frame} of a block under state {state}; "
                "a frame is missing where all of it is NaN"
            )
        return log_obs

    # --- likelihood ------------------------------------------------------------------------------

    def log_prob(self, X: Any, lengths: Any = None) -> Any:
        """Log-likelihood of every sequence.

        Args:
            X: array-like or tensor (N, D): the frames of all sequences, one behind the other.
            lengths: (B,) integers that sum to N; None for one sequence.

        Returns:
            (B,), nats, exact; an array for an array and a tensor for a tensor.  -inf where no path
            explains a sequence, 0 for an empty one.  Missing values are left out.  A tensor that
            requires gradients gets them (frames with NaN get zeros).

        Raises:
            ValueError: infinities, lengths that do not add up, or another number of features.
            NotFittedError: before `fit`.
        """
        whole = isinstance(X, Tensor) and X.requires_grad and torch.is_grad_enabled()
        parts = [scored.log_likelihood() for scored in self._scored(X, lengths, whole=whole)]
        return returned(_joined(parts), X)

    def score(self, X: Any, lengths: Any = None) -> float:
        """Log-likelihood of all sequences together, nats; arguments as `log_prob`."""
        with torch.no_grad():
            return sum(added(scored.log_likelihood()) for scored in self._scored(X, lengths))

    def score_samples(self, X: Any, lengths: Any = None) -> tuple[float, Any]:
        """Log-likelihood of all sequences together, and the posterior of the states.

        Args:
            X: array-like or tensor (N, D).
            lengths: (B,) integers that sum to N; None for one sequence.

        Returns:
            ``(log_prob, posteriors)``: nats; (N, K), rows that sum to 1 (zeros in a sequence that
            no path explains).

        Raises:
            ValueError: as `log_prob`.
        """
        log_prob, parts = 0.0, []
        with torch.no_grad():
            for scored in self._scored(X, lengths):
                total, posteriors = scored.posteriors()
                log_prob += added(total)
                parts.append(posteriors)
        return log_prob, returned(_joined(parts), X)

    def predict_proba(self, X: Any, lengths: Any = None) -> Any:
        """Posterior of the states for every frame, (N, K); arguments as `score_samples`."""
        return self.score_samples(X, lengths)[1]

    def _n_parameters(self) -> int:
        numbers = self._get_n_fit_scalars_per_param()
        if numbers is None:
            raise NotImplementedError(
                f"{type(self).__name__} does not know how many parameters its emissions have"
            )
        return sum(numbers.values())

    def aic(self, X: Any, lengths: Any = None) -> float:
        """Akaike information criterion, nats, by hmmlearn's count of parameters."""
        return -2 * self.score(X, lengths) + 2 * self._n_parameters()

    def bic(self, X: Any, lengths: Any = None) -> float:
        """Bayesian information criterion, nats, by hmmlearn's count of parameters."""
        return -2 * self.score(X, lengths) + self._n_parameters() * math.log(len(X))

    # --- states ----------------------------------------------------------------------------------

    def decode(
        self, X: Any, lengths: Any = None, algorithm: str | None = None
    ) -> tuple[float, Any]:
        """The most probable states.

        Args:
            X: array-like or tensor (N, D).
            lengths: (B,) integers that sum to N; None for one sequence.
            algorithm: ``"viterbi"``, the most probable path of each sequence, or ``"map"``, the
                most probable state of each frame; None for that of the constructor.

        Returns:
            ``(log_prob, states)``: the log-probability of the path with the data, nats (for
            ``"map"`` the sum of the states' posteriors, as in hmmlearn); (N,) int64.  States are
            -1 in a sequence that no path explains.

        Raises:
            ValueError: an unknown algorithm, else as `log_prob`.
        """
        algorithm = algorithm or self.algorithm
        if algorithm not in DECODERS:
            raise ValueError(f"Unknown decoder {algorithm!r}")
        log_prob, parts = 0.0, []
        with torch.no_grad():
            for scored in self._scored(X, lengths):
                if algorithm == "viterbi":
                    score, states = scored.path()
                else:
                    score, states = scored.posteriors()[1].max(1)
                    states = torch.where(score > 0, states, -1)
                log_prob += added(score)
                parts.append(states)
        return log_prob, returned(_joined(parts), X)

    def predict(self, X: Any, lengths: Any = None) -> Any:
        """The states that `decode` finds, (N,) int64."""
        return self.decode(X, lengths)[1]

    def sample_paths(
        self, X: Any, lengths: Any = None, *, n: int = 1, random_state: Any = None
    ) -> Any:
        """Draw state paths from their posterior given the data.

        Args:
            X: array-like or tensor (N, D).
            lengths: (B,) integers that sum to N; None for one sequence.
            n: draws.
            random_state: seed or generator; None for that of the constructor.

        Returns:
            (n, N) int64; -1 in a sequence that no path explains.

        Raises:
            ValueError: as `log_prob`.
        """
        seed = self.random_state if random_state is None else random_state
        seed = int(check_random_state(seed).randint(2**31 - 1))
        with torch.no_grad():
            (scored,) = self._scored(X, lengths, whole=True)
            draw = scored.block.run
            states = draw(ops.hmm_sample_paths, scored.log_obs, scored.p, n=n, seed=seed)
            states = states.reshape(n, -1)
        return returned(states, X)

    def impute(self, X: Any, lengths: Any = None) -> Any:
        """Fill the missing values by what the rest of the sequence says about them.

        A number is filled by its conditional mean, which has the least squared error, a symbol by
        the most probable one.

        Args:
            X: array-like or tensor (N, D) with NaN where a value is missing.
            lengths: (B,) integers that sum to N; None for one sequence.

        Returns:
            A copy of X (N, D), floating, without NaN (but for sequences that no path explains).

        Raises:
            ValueError: as `log_prob`.
        """
        parts = []
        with torch.no_grad():
            for scored in self._scored(X, lengths):
                x = scored.block.x.clone()
                rows = x.isnan().any(1).nonzero()[:, 0]
                if len(rows):
                    r = scored.posteriors()[1]
                    rows = rows[r[rows].sum(1) > 0]
                    filled = self._fill(x[rows].to(r.dtype), r[rows], scored.p.emission)
                    x[rows] = filled.to(x.dtype)
                parts.append(x)
        return returned(_joined(parts), X)

    # --- draws -----------------------------------------------------------------------------------

    def _generate_sample_from_state(self, state: int, random_state: Any = None) -> Any:
        """One frame from a state; a subclass may override it, as in hmmlearn."""
        return self._sampler()(state, check_random_state(random_state))

    def sample(
        self, n_samples: int = 1, random_state: Any = None, currstate: int | None = None
    ) -> tuple[Any, Any]:
        """Draw one sequence; hmmlearn's draws for the same ``random_state``.

        Args:
            n_samples: T, its length.
            random_state: seed or generator; None for that of the constructor.
            currstate: the first state; None to draw it.

        Returns:
            ``(X, states)``: frames (T, D) and their states (T,) int64; tensors where ``startprob_``
            is one.

        Raises:
            ValueError: ``n_samples`` below 1, or ``currstate`` not a state.
            NotFittedError: before `fit` and without parameters.

        Example:
            >>> import evidens, numpy as np
            >>> model = evidens.PoissonHMM(2)
            >>> model.startprob_, model.transmat_ = [1.0, 0.0], [[0.9, 0.1], [0.1, 0.9]]
            >>> model.lambdas_ = [[1.0], [20.0]]
            >>> X, states = model.sample(5, random_state=0)
            >>> X.shape, states.shape
            ((5, 1), (5,))
        """
        check_is_fitted(self, "startprob_")
        self._check()
        if n_samples < 1:
            raise ValueError(f"n_samples: expected at least 1, got {n_samples}")
        if currstate is not None and not 0 <= currstate < self.n_components:
            raise ValueError(
                f"currstate: expected a state from 0 to {self.n_components - 1}, got {currstate}"
            )
        rng = check_random_state(self.random_state if random_state is None else random_state)
        overridden = (
            type(self)._generate_sample_from_state is not HMMQueries._generate_sample_from_state
        )
        draw: Sampler = self._generate_sample_from_state if overridden else self._sampler()
        cdf = np.cumsum(host(self.transmat_).astype(np.float64), axis=1)
        if currstate is None:
            currstate = pick(np.cumsum(host(self.startprob_).astype(np.float64)), rng)
        states, frames = [int(currstate)], [draw(int(currstate), rng)]
        for _ in range(n_samples - 1):
            states.append(pick(cdf[states[-1]], rng))
            frames.append(draw(states[-1], rng))
        X, y = np.atleast_2d(np.array(frames)), np.array(states, dtype=int)
        if not isinstance(self.startprob_, Tensor):
            return X, y
        like = self.startprob_
        x = torch.from_numpy(X)
        return (
            x.to(like) if x.is_floating_point() else x.to(like.device),
            torch.from_numpy(y).to(like.device),
        )

    def get_stationary_distribution(self) -> Any:
        """The distribution of states that the transitions leave as it is, (K,)."""
        check_is_fitted(self, "transmat_")
        values, vectors = linalg.eig(host(self.transmat_).astype(np.float64).T)
        vector = np.real_if_close(vectors[:, np.argmax(values)])
        result = vector / vector.sum()
        if not isinstance(self.transmat_, Tensor):
            return result
        return torch.from_numpy(np.ascontiguousarray(result)).to(self.transmat_)


def pick(cdf: np.ndarray, rng: np.random.RandomState) -> int:
    """Draw an index; hmmlearn's draw where the sum is 1, never one of weight 0 where it is not."""
    return int((cdf > rng.rand() * cdf[-1]).argmax())


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _are_same(a: State, b: State) -> bool:
    return a[1] == b[1] and len(a[0]) == len(b[0]) and all(map(is_, a[0], b[0]))


def _is_small(state: State) -> bool:
    """Whether it can be kept, and pays: settings that never change, arrays of few numbers."""
    settings, arrays = state
    return all(isinstance(value, SIMPLE) for value in settings) and all(
        dtype.kind in "fiu" and len(bits) <= LARGE for _, dtype, bits in arrays
    )
