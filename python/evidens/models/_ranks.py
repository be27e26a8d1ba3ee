"""The processes of a torch.distributed group, or this one alone: the same few verbs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """Sums and broadcasts over a process group.

    Args:
        group: None for this process alone, True for the default group, or a group.

    Raises:
        RuntimeError: a group is asked for and torch.distributed is not running.
    """

    def __init__(self, group: Any = None) -> None:
        self.group, self.rank, self.size, self.device = None, 0, 1, torch.device("cpu")
        if group is None or group is False:
            return
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "process_group: torch.distributed is not running. Start the program with torchrun "
                "and call torch.distributed.init_process_group() before fit."
            )
        self.group = dist.group.WORLD if group is True else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if dist.get_backend(self.group) == "nccl":
            self.device = torch.device("cuda", torch.cuda.current_device())

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size == 1:
            return value
        there = value.to(self.device, copy=True)
        dist.all_reduce(there, group=self.group)
        return there.to(value.device)

    def total(self, value: float) -> float:
        """The sum of a number over the processes."""
        if self.size == 1:
            return value
        return float(self.sum(torch.tensor(value, dtype=torch.float64)))

    def first(self, value: Tensor) -> Tensor:
        """What rank 0 has."""
        if self.size == 1:
            return value
        there = value.to(self.device, copy=True)
        dist.broadcast(there, group=self.group, group_src=0)
        return there.to(value.device)

    def before(self, count: int) -> tuple[int, int]:
        """``(sum over the ranks before this one, sum over all)``."""
        if self.size == 1:
            return 0, count
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = count
        counts = self.sum(counts)
        return int(counts[: self.rank].sum()), int(counts.sum())

    def share(self, random_state: np.random.RandomState) -> None:
        """Put every rank's generator into the state of rank 0's."""
        if self.size == 1:
            return
        state: Any = random_state.get_state(legacy=True)
        name, keys, position, has_gauss, gauss = state
        numbers = np.concatenate([keys.astype(np.float64), [position, has_gauss, gauss]])
        numbers = self.first(torch.from_numpy(numbers)).numpy()
        random_state.set_state(
            (name, numbers[:-3].astype(np.uint32), int(numbers[-3]), int(numbers[-2]), numbers[-1])
        )

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank if one has an error: none is left waiting for the others."""
        failed = int(self.total(0 if error is None else 1))
        if error is not None:
            raise error
        if failed:
            raise RuntimeError(
                f"process_group: {failed} of {self.size} processes refused their rows; their own "
                "errors say why"
            )
