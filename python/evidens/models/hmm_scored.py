"""Sequences of one query, and what the ops say of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from evidens import ops
from evidens.models._sequences import Block
from evidens.models.hmm_parameters import HMMParameters
from evidens.ops._hmm_inner import gaussian
from evidens.ops.hmm import state_posteriors


class Scored:
    """Some whole sequences, and what the ops say of them.

    Args:
        block: the sequences.
        x: their frames (n, D) in the dtype of the parameters.
        p: the parameters.
        log_obs: what computes the log-densities (n, K).
        normal: means and inverse standard deviations (K, D), where the emissions are of that kind:
            then nobody has to write the log-densities down.
    """

    def __init__(
        self,
        block: Block,
        x: Tensor,
        p: HMMParameters,
        log_obs: Callable[[], Tensor],
        normal: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.block, self.x, self.p, self._log_obs, self._normal = block, x, p, log_obs, normal

    def _ask(self, task: str, normal: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        p = self.p
        total, frames, _ = gaussian.run(
            self.x, p.start, p.transition, *self.block.where, *normal, None, task
        )
        return total, frames

    @cached_property
    def log_obs(self) -> Tensor:
        """Log-densities of the frames, (n, K)."""
        return self._log_obs()

    def log_likelihood(self) -> Tensor:
        """(B,), in the dtype of the frames."""
        if self._normal is None:
            return self.block.run(ops.hmm_log_likelihood, self.log_obs, self.p)
        total, _ = self._ask("log_likelihood", self._normal)
        return total if total.dtype is self.x.dtype else total.to(self.x.dtype)

    def posteriors(self) -> tuple[Tensor, Tensor]:
        """Log-likelihoods (B,) and posteriors of the states (n, K)."""
        if self._normal is not None:
            return self._ask("posteriors", self._normal)
        total, posteriors = self.block.run(state_posteriors, self.log_obs, self.p)
        return total, posteriors.reshape(self.log_obs.shape)

    def path(self) -> tuple[Tensor, Tensor]:
        """Scores (B,) and states (n,) of the best paths."""
        if self._normal is not None:
            return self._ask("viterbi", self._normal)
        path = self.block.run(ops.hmm_viterbi, self.log_obs, self.p)
        return path.log_prob, path.states.reshape(-1)
