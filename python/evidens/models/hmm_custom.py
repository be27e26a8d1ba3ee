"""`CustomHMM`: a hidden Markov model over the user's own log-densities, neural ones included."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.models._arrays import returned
from evidens.models._sequences import Block, Sequences
from evidens.models.hmm_base import BaseHMM
from evidens.models.hmm_parameters import HMMParameters
from evidens.models.hmm_statistics import HMMStatistics


class CustomHMM(BaseHMM):
    """Hidden Markov model over log-densities that the user computes.

    Args:
        n_components: K, the number of states.
        emission: takes frames (N, D), as a tensor if it is a `torch.nn.Module` and else in the
            container that the user passes, and returns log-densities (N, K) in nats (up to a term
            that all states share, if only states matter).
        m_step: ``m_step(X, posteriors)`` is called after every E step with the frames (N, D) and
            weighted posteriors (N, K) in the user's container, to fit what ``emission`` reads.  It
            must maximise (or raise) ``sum posteriors * log-density``; then EM is monotone.
        optimizer: for a module: takes its parameters and returns a `torch.optim.Optimizer`; None
            is Adam with ``learning_rate``.
        learning_rate: of the default optimizer.
        startprob_prior, transmat_prior: Dirichlet priors; 1 is none.
        algorithm, random_state, n_iter, tol, verbose, implementation: as in `BaseHMM`.
        params, init_params: letters ``s`` start, ``t`` transitions, ``e`` emission: without it in
            ``params`` the emission is frozen, without it in ``init_params`` `fit` goes on with
            ``emission_``.

    Attributes:
        startprob_, transmat_, monitor_, converged_, n_iter_, statistics_, n_samples_seen_: as in
            `BaseHMM`.
        emission_: what computes the densities: a trained copy of a module, else ``emission``.

    Start and transitions are learned by EM.  A module is trained at the same time: each iteration
    is one step of the optimizer on the mean of ``-log p`` per frame, through
    `evidens.ops.hmm_log_likelihood`, whose gradient also gives the expected transitions.  Such an
    iteration need not raise the likelihood, and one that lowers it counts as convergence; set
    ``tol=-np.inf`` to make all ``n_iter``.  `partial_fit` makes one step for each chunk (a batch).
    Or write a loop of your own around `log_prob`.

    Source: for the gradient, Rabiner, A tutorial on hidden Markov models (1989), section III;
    Tran et al., Unsupervised neural hidden Markov models (2016).

    Example:
        >>> import evidens, numpy as np
        >>> X = np.array([[0.1], [0.0], [4.9], [5.1], [5.0], [0.2]])
        >>> model = evidens.CustomHMM(2, lambda X: -((X - [0.0, 5.0]) ** 2), random_state=0).fit(X)
        >>> model.predict(X)
        array([0, 0, 1, 1, 1, 0])
    """

    emission_: Any

    def __init__(
        self,
        n_components: int = 1,
        emission: Callable[[Any], Any] | nn.Module | None = None,
        *,
        m_step: Callable[[Any, Any], Any] | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        learning_rate: float = 1e-2,
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
        self.emission = emission
        self.m_step = m_step
        self.optimizer = optimizer
        self.learning_rate = learning_rate

    # --- densities -------------------------------------------------------------------------------

    def _density(self) -> Any:
        """What computes the densities now."""
        return vars(self).get("emission_", self.emission)

    def _check_settings(self) -> None:
        super()._check_settings()
        if not callable(self.emission):
            raise TypeError(
                "emission: expected a callable or a torch.nn.Module from frames (N, D) to "
                f"log-densities (N, K), got {type(self.emission).__name__}"
            )
        if self.m_step is not None and isinstance(self.emission, nn.Module):
            raise ValueError("m_step is for callables; a module is trained by its gradient")

    def _compute_log_likelihood(self, X: Any) -> Any:
        """Log-densities (N, K) of frames X (N, D)."""
        density = self._density()
        if isinstance(density, nn.Module):
            like = next(density.parameters(), None)
            x = X if isinstance(X, Tensor) else torch.as_tensor(X)
            result = density(x if like is None else x.to(like))
            if isinstance(result, Tensor):
                result = returned(result if isinstance(X, Tensor) else result.detach().cpu(), X)
        else:
            result = density(X)
        if not hasattr(result, "shape"):
            raise TypeError(
                "emission: expected an array or a tensor of log-densities (N, K), got "
                f"{type(result).__name__}"
            )
        if tuple(result.shape) != (len(X), self.n_components):
            raise ValueError(
                f"emission: expected log-densities of shape (N, K) = {(len(X), self.n_components)},"
                f" got {tuple(result.shape)}"
            )
        return result

    # --- learning --------------------------------------------------------------------------------

    def _start_emission(self, data: Sequences) -> dict[str, Any]:
        self._check_settings()
        if "e" in self.init_params or not hasattr(self, "emission_"):
            module = isinstance(self.emission, nn.Module)
            self.emission_ = copy.deepcopy(self.emission) if module else self.emission
        if isinstance(self.emission_, nn.Module):
            self.__dict__.pop("_steps", None)
            for parameter in self.emission_.parameters():
                parameter.data = data.ranks.first(parameter.data)
        elif self.m_step is not None and data.in_memory is None:
            raise ValueError("m_step needs all frames at once: pass one array and not chunks")
        return {}

    def _expect(self, data: Sequences, p: HMMParameters) -> HMMStatistics:
        if isinstance(self.emission_, nn.Module):
            return self._train(data, p)
        if self.m_step is None or "e" not in self.params:
            return super()._expect(data, p)
        stats = self._no_statistics(p)
        posteriors = []
        for block in data.sequences():
            log_obs = self._own_log_obs(block.x, p.start, data.is_tensor, data.missing)
            log_obs = log_obs.detach().clone()  # labels are written in
            result, r = self._posteriors(log_obs, p, block)
            stats.add(result, block)
            self._accumulate(stats.emission, block.x, r, p.emission, None, data.missing)
            if data.missing:
                r = torch.where(block.x.isnan().all(1)[:, None], 0, r)
            posteriors.append(r)
        stats.reduce(data.ranks)
        x, r = data.in_memory, torch.cat(posteriors)
        assert x is not None
        self.m_step(*((x, r) if data.is_tensor else (x.numpy(), r.numpy())))
        return stats

    def _train(self, data: Sequences, p: HMMParameters) -> HMMStatistics:
        """The statistics from the gradient of the likelihood, and one step of the optimizer."""
        stats = self._no_statistics(p)
        steps = self._optimizer()
        if steps is not None:
            steps.zero_grad()
        for block in data.sequences():
            log_obs = self._own_log_obs(block.x, p.start, True, data.missing)
            log_obs = _pinned(log_obs if steps is not None else log_obs.detach(), block)
            start = p.start.detach().clone().requires_grad_()
            transition = p.transition.detach().clone().requires_grad_()
            log_prob = ops.hmm_log_likelihood(log_obs, start, transition, offsets=block.offsets)
            possible = log_prob.detach().isfinite()
            weight = torch.ones_like(log_prob) if block.weight is None else block.weight
            (-(log_prob.where(possible, 0) * weight * possible).sum()).backward()
            assert start.grad is not None
            assert transition.grad is not None
            initial = -(start.grad.double() * p.start)
            transitions = -(transition.grad.double() * p.transition)
            result = ops.HMMPosteriors(
                log_prob.detach().double(), log_obs.detach(), initial, transitions, None
            )
            stats.add(result, block)
            # How often a state was visited: as a first state, or as one that was entered.
            stats.emission.weight = stats.emission.weight + initial + transitions.sum(0)
        stats.reduce(data.ranks)
        if steps is not None:
            for parameter in self.emission_.parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = data.ranks.sum(gradient) / stats.frames
            steps.step()
        return stats

    def _optimizer(self) -> torch.optim.Optimizer | None:
        """What trains the module; None where it is frozen."""
        if "e" not in self.params or next(self.emission_.parameters(), None) is None:
            return None
        if "_steps" not in vars(self):
            make = self.optimizer or (lambda p: torch.optim.Adam(p, lr=self.learning_rate))
            self._steps: torch.optim.Optimizer = make(list(self.emission_.parameters()))
        return self._steps

    # --- files -----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model; of a module its parameters, of a callable nothing.

        `load` takes ``emission=`` (and ``m_step=``, ``optimizer=``) for what a file cannot hold.

        Args:
            path: file to write; replaced if it exists.
        """
        there = copy.copy(self)
        there.emission = there.m_step = there.optimizer = None
        density = there.__dict__.pop("emission_", self.emission)
        if isinstance(density, nn.Module):
            for name, value in density.state_dict().items():
                setattr(there, f"module__{name.replace('.', '__dot__')}_", value)
        super(CustomHMM, there).save(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: Any = "cpu",
        *,
        emission: Any = None,
        **params: Any,
    ) -> CustomHMM:
        """Read a model that `save` wrote.

        Args:
            path: the file.
            device: where tensors are put.
            emission: the callable, or a module of the same structure, whose parameters are read.
            **params: ``m_step`` and ``optimizer``.

        Raises:
            ValueError: the file is not a saved model of this class.
        """
        model: CustomHMM = super().load(path, device)
        state = {}
        for name in [n for n in vars(model) if n.startswith("module__")]:
            state[name[len("module__") : -1].replace("__dot__", ".")] = model.__dict__.pop(name)
        model.emission = emission
        model.set_params(**params)
        if isinstance(emission, nn.Module):
            model.emission_ = copy.deepcopy(emission).to(device)
            model.emission_.load_state_dict(state)
        elif emission is not None:
            model.emission_ = emission
        return model


def _pinned(log_obs: Tensor, block: Block) -> Tensor:
    """-inf for the other states of frames with labels, differentiable."""
    if block.labels is None:
        return log_obs
    states = torch.arange(log_obs.shape[1], device=log_obs.device)
    other = (block.labels >= 0)[:, None] & (states != block.labels[:, None])
    return log_obs.masked_fill(other, -torch.inf)
