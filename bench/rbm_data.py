"""Images and machines that the RBM rows are timed on."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 28


def _binarized_mnist() -> np.ndarray | None:
    """Binarized MNIST from the folder that EVIDENS_DATA names."""
    folder = os.environ.get("EVIDENS_DATA")
    file = Path(folder or ".") / "images" / "binarized_mnist.npz"
    if not folder or not file.is_file():
        return None
    with np.load(file) as arrays:
        return arrays["train.data"]


@functools.lru_cache(maxsize=4)
def images(n: int) -> tuple[Tensor, str]:
    """Rows (n, 784) of 0 and 1, and what they are.

    Without binarized MNIST, scikit-learn's digits drawn at its size, shifted, and cut where as many
    pixels are on.
    """
    given = _binarized_mnist()
    if given is not None:
        return torch.from_numpy(given[:n].reshape(-1, SIDE * SIDE)).float(), "binarized MNIST"
    from sklearn.datasets import load_digits

    g = torch.Generator().manual_seed(0)
    digits = torch.from_numpy(load_digits().images).float()
    large = F.interpolate(digits[:, None], size=(SIDE, SIDE), mode="bicubic")[:, 0]
    row = torch.randint(len(large), (n,), generator=g)
    shift = torch.randint(-2, 3, (n, 2), generator=g).tolist()
    x = torch.stack([large[i].roll(s, (0, 1)) for i, s in zip(row.tolist(), shift)])
    cut = x.flatten()[: 1 << 20].quantile(0.87)
    return (x > cut).float().flatten(1), "digits at 28 x 28"


class Persistent:
    """Persistent contrastive divergence by the ops: one chain for each row of a batch.

    scikit-learn's rule to the letter: a short last batch stands against all chains.
    """

    def __init__(self, units: int, hidden_units: int, batch: int, rate: float, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.weight = 0.01 * torch.randn(hidden_units, units, generator=g)
        self.visible_bias, self.hidden_bias = torch.zeros(units), torch.zeros(hidden_units)
        self.chains = torch.zeros(batch, hidden_units)
        self.rate, self.seed, self.step = rate, seed, 0

    def epoch(self, x: Tensor) -> None:
        """One pass over the rows."""
        from evidens import ops

        for rows in x.split(self.chains.shape[0]):
            tensors = self.weight, self.visible_bias, self.hidden_bias
            steps, self.chains = ops.rbm_pcd(
                rows, self.chains, *tensors, seed=self.seed, step0=self.step
            )
            for parameter, step in zip(tensors, steps):
                parameter.add_(step, alpha=self.rate / len(rows))
            self.step += 1


@functools.lru_cache(maxsize=4)
def learned(hidden_units: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A machine that has seen the images a few times: its units are as rarely on as real ones."""
    machine = Persistent(SIDE * SIDE, hidden_units, 128, 0.05, seed=0)
    for _ in range(3):
        machine.epoch(images(n)[0])
    return machine.weight, machine.visible_bias, machine.hidden_bias
