"""How good a density of binarized MNIST is, and how long it takes to learn.

Not a race: one run of `MADE`, `PixelCNN` or `BernoulliRBM` with the settings
whose results stand in the docs.  EVIDENS_DATA names the folder with images/binarized_mnist.npz.

Usage: python -m evidens.bench.mnist made|pixelcnn|rbm [--epochs N] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from evidens import MADE, BernoulliRBM, PixelCNN

RBM_SETTINGS = {
    "learning_rate": 0.1,
    "batch_size": 100,
    "n_chains": 100,
    "momentum": 0.5,
    "weight_decay": 1e-4,
    "schedule": "linear",
    "centered": True,
    "shuffle": True,
    "steps": 5,
    "random_state": 0,
}
#: Epochs of the results in the docs.
EPOCHS = {"made": 20, "pixelcnn": 10, "rbm": 250}


def density(name: str, train: np.ndarray, valid: np.ndarray, epochs: int) -> MADE | PixelCNN:
    """A network that is trained with Adam and keeps the weights of its best epoch."""
    model: MADE | PixelCNN
    if name == "made":
        model = MADE(784, hidden=(4000,))
        how = {"batch_size": 200, "lr": 1e-3}
    else:
        # The first layer sees nearly the whole image: four blocks of 3 x 3 add only ten pixels.
        model = PixelCNN((1, 28, 28), levels=2, hidden=64, layers=4, first_kernel=27)
        how = {"batch_size": 16, "lr": 2e-3}
    shape = (-1, *model.shape)
    validation = valid[:2000].reshape(shape)
    model.fit(
        train.reshape(shape),
        validation_data=validation,
        epochs=epochs,
        random_state=0,
        verbose=2,
        **how,
    )
    return model


def main() -> None:
    """Train, and score the test rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=EPOCHS)
    parser.add_argument("--epochs", type=int, help="passes; None: those of the docs")
    parser.add_argument("--threads", type=int, help="of torch's pool; None: as it is")
    arguments = parser.parse_args()
    folder = os.environ.get("EVIDENS_DATA")
    if not folder:
        parser.error("set EVIDENS_DATA to the folder with images/binarized_mnist.npz")
    with np.load(Path(folder) / "images" / "binarized_mnist.npz") as data:
        parts = (data[f"{name}.data"].reshape(-1, 784) for name in ("train", "valid", "test"))
        train, valid, test = (part.astype(np.float32) for part in parts)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    epochs = arguments.epochs or EPOCHS[arguments.model]
    start = time.perf_counter(), time.process_time()
    if arguments.model == "rbm":
        rbm = BernoulliRBM(500, n_iter=epochs, **RBM_SETTINGS).fit(train)
    else:
        model = density(arguments.model, train, valid, epochs)
    wall, core = time.perf_counter() - start[0], time.process_time() - start[1]
    print(f"trained in {wall / 60:.1f} minutes, {core / 60:.1f} of one core", flush=True)
    if arguments.model != "rbm":
        print(f"test: {model.score(test.reshape(-1, *model.shape)):.2f} nats")
        return
    value = rbm.log_partition(chains=100, rungs=20_000)
    low, high = rbm.log_partition_interval_
    nats = float(rbm.log_prob(test).mean())
    print(
        f"test: {nats:.2f} nats, by the interval of log Z from {nats + value - high:.2f} to "
        f"{nats + value - low:.2f}"
    )


if __name__ == "__main__":
    main()
