"""`BaseHMM`: EM over sequences; the families add their emissions."""

from __future__ import annotations

import math
import string
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from torch import Tensor

from evidens import ops
from evidens.models._em import Run, run_em
from evidens.models._persistence import Persistent
from evidens.models._ranks import Ranks
from evidens.models._sequences import Block, Sequences
from evidens.models.hmm_monitor import Bar, ConvergenceMonitor, log, reached_tol
from evidens.models.hmm_parameters import (
    UNVISITED,
    HMMParameters,
    restores,
    tensor,
)
from evidens.models.hmm_queries import HMMQueries
from evidens.models.hmm_statistics import (
    EmissionStatistics,
    HMMStatistics,
    NoStatistics,
    normal_statistics,
)
from evidens.ops import _hmm_maximise as maximise

# Step sizes of partial_fit fall with this power of the share of the new frames among all.
FORGETTING = 0.7


class BaseHMM(HMMQueries, Persistent, BaseEstimator):
    """Hidden Markov model, fitted by EM: what all families share.

    A drop-in for ``hmmlearn.base.BaseHMM`` for subclasses that override ``_compute_log_likelihood``
    (and perhaps ``_generate_sample_from_state``): they learn the start and the transitions.  For
    emissions that learn, too, see `evidens.CustomHMM`.

    Args:
        n_components: K, the number of states.
        startprob_prior: Dirichlet prior of ``startprob_``: a number or (K,); 1 is none.
        transmat_prior: Dirichlet prior of the rows of ``transmat_``: a number or (K, K).
        algorithm: what `decode` and `predict` do: ``"viterbi"`` or ``"map"``.
        random_state: seed or generator for the start of `fit` and for `sample`.
        n_iter: most EM steps.
        tol: EM stops when the log-likelihood of all data grows by less (nats).
        verbose: whether each step is printed to stderr.
        params: which parameters `fit` learns: ``"s"`` start, ``"t"`` transitions, and the letters
            of the family.
        init_params: which parameters `fit` starts anew; others keep what is there.
        implementation: ``"log"`` or ``"scaling"``, as in hmmlearn; one method serves both here.

    Attributes:
        startprob_: (K,).
        transmat_: (K, K), rows sum to 1; zeros stay zero in `fit`.
        monitor_: a `ConvergenceMonitor`.
        converged_: whether the gain fell below ``tol``.
        n_iter_: EM steps made.
        statistics_: the sums behind the parameters, from which `partial_fit` goes on.
        n_samples_seen_: weight of the frames that the parameters stand for.
    """

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = string.ascii_letters,
        init_params: str = string.ascii_letters,
        implementation: str = "log",
    ) -> None:
        self.n_components = n_components
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.algorithm = algorithm
        self.random_state = random_state
        self.n_iter = n_iter
        self.tol = tol
        self.verbose = verbose
        self.params = params
        self.init_params = init_params
        self.implementation = implementation

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # --- what a family defines -------------------------------------------------------------------

    def _zero_statistics(self, emission: Any, k: int) -> EmissionStatistics:
        """No frames."""
        return NoStatistics(torch.zeros(k, dtype=torch.float64, device=emission.device))

    def _accumulate(
        self, stats: Any, x: Tensor, r: Tensor, emission: Any, work: Any, missing: bool
    ) -> None:
        """Add frames (n, D) with weighted posteriors (n, K)."""
        stats.weight = stats.weight + r.sum(0, dtype=torch.float64)

    def _visits(self, stats: Any) -> Tensor:
        """(K,), the weight of the frames in each state."""
        return stats.weight

    def _maximise_emission(
        self, stats: Any, old: Any, dtype: torch.dtype
    ) -> tuple[Any, np.ndarray]:
        """M step on the host in float64: new emission and (K,) which states kept theirs.

        ``dtype`` is what the parameters will be rounded to.
        """
        return old, np.zeros(self.n_components, dtype=bool)

    def _start_emission(self, data: Sequences) -> dict[str, Any]:
        """Attributes at the start of `fit`, those that are not there or in ``init_params``."""
        return {}

    def _columns(self, X: Any) -> Any:
        """X as the family wants it shaped."""
        return X

    def _check_frames(self, x: Tensor, whole: bool, reset: bool) -> None:
        """Check the values of frames (N, D); ``whole`` says that they came as integers."""

    def _settle(self, data: Sequences) -> None:
        """Set or check ``n_features``, the text being hmmlearn's."""
        known = getattr(self, "n_features", data.n_features)
        if known != data.n_features:
            raise ValueError(
                f"Unexpected number of dimensions, got {data.n_features} but expected {known}"
            )
        self.n_features = data.n_features

    # --- the start -------------------------------------------------------------------------------

    def _data(
        self,
        X: Any,
        lengths: Any = None,
        sample_weight: Any = None,
        labels: Any = None,
        group: Any = None,
        reset: bool = True,
    ) -> Sequences:
        """The sequences of `fit`, with ``n_features`` set from them."""
        k = self.n_components
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
            raise ValueError(f"n_components: expected an integer of at least 1, got {k!r}")
        data = Sequences(
            self,
            X,
            lengths,
            sample_weight,
            labels,
            n_components=k,
            columns=self._width,
            ranks=Ranks(group),
            reset=reset,
        )
        self._settle(data)
        return data

    def _init(self, X: Any, lengths: Any = None) -> None:
        """Set the parameters that `fit` would start from, in hmmlearn's way."""
        self._initialise(self._data(X))

    def _initialise(self, data: Sequences) -> None:
        k = self.n_components
        concentration = np.full(k, 1.0 / k)
        start: dict[str, Any] = {}
        first, steps = self._needs_init("s", "startprob_"), self._needs_init("t", "transmat_")
        if first or steps:
            rng = check_random_state(self.random_state)
            data.ranks.share(rng)
            if first:
                start["startprob_"] = rng.dirichlet(concentration)
            if steps:
                start["transmat_"] = rng.dirichlet(concentration, size=k)
        numbers = self._get_n_fit_scalars_per_param()
        if numbers is not None:
            for name in ("params", "init_params"):
                if set(letters := getattr(self, name)) - set(numbers):
                    raise ValueError(
                        f"{name}: {type(self).__name__} knows the letters {''.join(numbers)!r}, "
                        f"got {letters!r}"
                    )
            needed = sum(numbers[letter] for letter in self.params)
            values = data.ranks.before(data.count)[1] * data.n_features
            if values < needed:
                log.warning(
                    "Fitting a model with %d free scalar parameters with only %d data points will "
                    "result in a degenerate solution.",
                    needed,
                    values,
                )
        start |= self._start_emission(data)
        for name, value in start.items():
            setattr(self, name, value)

    # --- learning --------------------------------------------------------------------------------

    @restores
    def fit(
        self,
        X: Any,
        lengths: Any = None,
        *,
        sample_weight: Any = None,
        labels: Any = None,
        process_group: Any = None,
    ) -> Any:
        """Maximum likelihood (maximum a posteriori with priors) by EM.

        Args:
            X: array-like, data frame or tensor (N, D): the frames of all sequences, one behind the
                other; or chunks of whole sequences: a list of such arrays or of pairs of an array
                and its lengths, any object whose ``iter()`` gives them afresh, or a function that
                returns a new iterator.  A frame of NaN is missing; where the family says so, single
                features may be, too (values are taken to be missing at random).
            lengths: (B,) integers that sum to N; None if X (each chunk) is one sequence.
            sample_weight: (B,) non-negative, one for each sequence; 2 is a sequence that is there
                twice.
            labels: (N,) the state of each frame where it is known, -1 where not.
            process_group: a `torch.distributed` group, or True for the default one.  Each process
                passes its own sequences; all get the parameters of one process with all of them.

        Returns:
            self.

        Raises:
            ValueError: infinities, wrong shapes, lengths that do not add up, weights or labels out
                of range, or parameters that were set and are not valid.
            TypeError: X can be read only once.
            RuntimeError: ``process_group`` without a running torch.distributed.

        Warns:
            ConvergenceWarning: a state was not visited and kept its parameters, or no path explains
                a sequence.
            RuntimeWarning: Ctrl-C.
        """
        data = self._data(X, lengths, sample_weight, labels, process_group)
        self._initialise(data)
        self._check()
        monitor = self.monitor_
        monitor._reset()
        bar = Bar(self.verbose, self.n_iter)
        own = type(monitor) is not ConvergenceMonitor
        kept: set[int] = set()
        last: list[HMMStatistics] = []
        hopeless: list[bool] = []
        steps: Any = None

        def step(p: HMMParameters) -> tuple[HMMParameters, float]:
            nonlocal steps
            found = None if steps is None else steps.step(p)
            if found is None:
                steps = None
                stats = self._expect(data, p)
                if math.isnan(stats.log_likelihood):
                    raise ValueError(
                        f"X: its log-likelihood is NaN in {str(data.dtype)[6:]}; rescale X or pass "
                        "float64"
                    )
                found = *self._maximise(stats, p), stats
            new, states, stats = found
            kept.update(states)
            last[:] = [stats]
            hopeless.append(stats.impossible >= data.total_sequences)
            return new, stats.log_likelihood

        def converged(p: HMMParameters, log_prob: float) -> bool:
            if own:  # it may look at the model
                self._publish(p, data.is_tensor)
            with bar.aside():
                monitor.report(log_prob)
            return bool(monitor.converged) or stuck()

        def stuck() -> bool:  # twice, as priors may make a path possible
            return len(hopeless) > 1 and all(hopeless[-2:])

        bar.begin()
        start = self._parameters().to(data.device)
        if not (self._counts and data.integers):  # exact in any type: the parameters decide
            start = start.to(data.dtype)
        data.dtype = start.start.dtype
        steps = self._laid_out(data, start)
        start = start if steps is None else steps.first
        run = run_em(
            step, start, max_iter=self.n_iter, tol=self.tol, progress=bar, converged=converged
        )
        self._publish(run.parameters, data.is_tensor)
        self.n_iter_ = run.n_iter
        self.converged_ = run.converged and (run.n_iter < self.n_iter or reached_tol(monitor))
        self.converged_ = self.converged_ and not stuck()
        self.n_samples_seen_ = data.total_weight
        self.__dict__.pop("statistics_", None)
        if last:
            self._remember(last[0])
        self._warn(run, kept, last[0].impossible if last else 0.0)
        return self

    @restores
    def partial_fit(
        self, X: Any, lengths: Any = None, *, sample_weight: Any = None, labels: Any = None
    ) -> Any:
        """Learn from some more sequences: one step of stepwise EM.

        The first call starts from its chunk as `fit` does.  A call after `fit` or `load` goes on
        from there.  With ``n`` the weight of the frames of the chunk
        and ``N`` that of all so far, the statistics move towards those of the chunk by
        ``(n / N) ** 0.7``: more than their share, so that early, poor posteriors are forgotten.

        Args:
            X: array-like or tensor (N, D), or chunks, as in `fit`.
            lengths: as in `fit`.
            sample_weight: as in `fit`.
            labels: as in `fit`.

        Returns:
            self.

        Raises:
            ValueError: as `fit`.

        Source: Cappé and Moulines, On-line expectation-maximization algorithm for latent data
        models (2009), equation 13; the rate is that of Liang and Klein (2009).
        """
        first = not hasattr(self, "n_samples_seen_")
        data = self._data(X, lengths, sample_weight, labels, reset=first)
        if first:
            self._initialise(data)
        self._check()
        p = self._parameters().to(data.device)
        if first and not (self._counts and data.integers):
            p = p.to(data.dtype)
        data.dtype = p.start.dtype
        stats = self._expect(data, p)
        log_prob, impossible = stats.log_likelihood, stats.impossible
        n = data.total_weight
        total = n + (0.0 if first else self.n_samples_seen_)
        running = self._recalled(p)
        if running is not None and running.frames > 0:
            rate = (n / total) ** FORGETTING
            stats.scale(rate * total / n)
            running.scale((1 - rate) * total / running.frames)
            running.merge(stats)
            stats = running
        new, kept = self._maximise(stats, p)
        self._publish(new, data.is_tensor)
        self._remember(stats)
        # No report: chunks differ, so their log-likelihoods may well fall.
        self.monitor_.history.append(log_prob)
        self.monitor_.iter += 1
        self.n_samples_seen_, self.converged_ = total, False
        self.n_iter_ = 1 + (0 if first else self.n_iter_)
        self._warn(None, set(kept), impossible)
        return self

    # --- parts -----------------------------------------------------------------------------------

    def _laid_out(self, data: Sequences, p: HMMParameters) -> Any:
        """What makes both steps of EM in memory of its own (see `NormalSteps`), or None."""
        return None

    def _no_statistics(self, p: HMMParameters) -> HMMStatistics:
        k = self.n_components
        return HMMStatistics.zeros(self._zero_statistics(p.emission, k), k)

    def _expect(self, data: Sequences, p: HMMParameters) -> HMMStatistics:
        """E step: one pass over the sequences of all processes."""
        stats: HMMStatistics | None = None
        if self._custom:  # its log-densities may depend on what EM has found
            self._publish(p, data.is_tensor)
        normal = None if self._custom or data.missing else self._normal(p.emission)
        for block in data.sequences():
            if normal is not None and block.labels is None:
                found = normal_statistics(block, p, *normal)
            else:
                found = self._statistics(block, p, data)
            if stats is None:
                stats = found
            else:
                stats.merge(found)
        stats = self._no_statistics(p) if stats is None else stats
        stats.reduce(data.ranks)
        return stats

    def _statistics(self, block: Block, p: HMMParameters, data: Sequences) -> HMMStatistics:
        """The sums over a block, by way of log-densities and posteriors."""
        stats, work = self._no_statistics(p), None
        if self._custom:
            log_obs = self._own_log_obs(block.x, p.start, data.is_tensor, data.missing)
            log_obs = log_obs.detach().clone()  # labels are written in
        else:
            log_obs, work = self._log_obs(block.x, p.emission, data.missing)
        result, r = self._posteriors(log_obs, p, block)
        stats.add(result, block)
        self._accumulate(stats.emission, block.x, r, p.emission, work, data.missing)
        return stats

    def _posteriors(
        self, log_obs: Tensor, p: HMMParameters, block: Block
    ) -> tuple[ops.HMMPosteriors, Tensor]:
        """Forward-backward, and the posteriors times the weights; labels are written in."""
        if block.labels is not None:
            rows = (block.labels >= 0).nonzero()[:, 0]
            states = block.labels[rows]
            value = log_obs[rows, states]
            log_obs[rows] = -torch.inf
            log_obs[rows, states] = value
        result = block.run(ops.hmm_forward_backward, log_obs, p, weight=block.weight)
        r, weight = result.posteriors.view(log_obs.shape), block.frame_weight
        return result, r if weight is None else r * weight[:, None]

    def _maximise(
        self, stats: HMMStatistics, old: HMMParameters
    ) -> tuple[HMMParameters, list[int]]:
        """M step, on the host in float64.

        What was 0 stays 0, and a state that was not visited keeps its parameters.
        """
        where = old.start.device, old.start.dtype
        stats = stats.on_host()
        old = old.to(torch.device("cpu"), torch.float64)
        start, transition = old.start, old.transition
        first, steps = self._table_priors()
        if first is not None:
            start = maximise.distributions(stats.start, first, start)
        if steps is not None:
            transition = maximise.distributions(stats.transitions, steps, transition)
        emission, kept = self._maximise_emission(stats.emission, old.emission, where[1])
        kept = kept | (self._visits(stats.emission).numpy() <= UNVISITED)
        new = HMMParameters(start, transition, emission)
        self._check_learned(new, where[1])
        return new.to(*where), kept.nonzero()[0].tolist() if kept.any() else []

    def _publish(self, p: HMMParameters, as_tensors: bool) -> None:
        """Set the fitted attributes."""
        values = {"startprob_": p.start, "transmat_": p.transition}
        for name, value in (values | self._emission_attributes(p.emission)).items():
            value = value.detach()
            setattr(self, name, value.clone() if as_tensors else value.cpu().numpy().copy())

    def _remember(self, stats: HMMStatistics) -> None:
        """Keep the sums for `partial_fit`."""
        flat = stats.flat()
        self.statistics_ = flat if isinstance(self.startprob_, Tensor) else flat.cpu().numpy()

    def _recalled(self, p: HMMParameters) -> HMMStatistics | None:
        """The sums behind the parameters so far, None where the parameters came from elsewhere."""
        if not hasattr(self, "statistics_"):
            return None
        stats = self._no_statistics(p)
        stats.fill(tensor(self.statistics_).to(p.start.device))
        return stats

    def _warn(self, run: Run[Any] | None, kept: set[int], impossible: float) -> None:
        if run is not None and run.interrupted:
            warnings.warn(
                f"fit was interrupted; the parameters of iteration {run.n_iter} are kept and "
                "converged_ is False. With init_params='' fit goes on from here.",
                RuntimeWarning,
                stacklevel=4,
            )
        if impossible > 0:
            warnings.warn(
                f"no path of states explains sequences of weight {impossible:g}: "
                "their log-likelihood is -inf and nothing was learned from them. Zeros in "
                "startprob_, transmat_ or the emissions (or labels) forbid them.",
                ConvergenceWarning,
                stacklevel=4,
            )
        if kept:
            warnings.warn(
                f"States {sorted(kept)} kept parameters at a step: they were not visited, or their "
                "new ones would not have been valid. Decrease n_components or use priors.",
                ConvergenceWarning,
                stacklevel=4,
            )
