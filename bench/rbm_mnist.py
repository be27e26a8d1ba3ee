"""How good a density of binarized MNIST is, with 500 hidden units and a given time.

Not a race: one run of `evidens.BernoulliRBM`, and the test log-likelihood with its interval.
EVIDENS_DATA names the folder with images/binarized_mnist.npz.

Usage: python -m evidens.bench.rbm_mnist [--minutes 19] [--steps 5]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from evidens import BernoulliRBM

SETTINGS = {
    "learning_rate": 0.1,
    "batch_size": 100,
    "n_chains": 100,
    "momentum": 0.5,
    "weight_decay": 1e-4,
    "schedule": "linear",
    "centered": True,
    "shuffle": True,
    "random_state": 0,
}


def main() -> None:
    """Train for the time that is given, and score the test rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=19.0, help="of training")
    parser.add_argument("--steps", type=int, default=5, help="Gibbs steps for a batch")
    arguments = parser.parse_args()
    folder = os.environ.get("EVIDENS_DATA")
    if not folder:
        parser.error("set EVIDENS_DATA to the folder with images/binarized_mnist.npz")
    with np.load(Path(folder) / "images" / "binarized_mnist.npz") as data:
        train, test = (data[f"{name}.data"].astype(np.float32) for name in ("train", "test"))
    settings = SETTINGS | {"steps": arguments.steps}
    # The time of a pass decides how many there are; the learning rate falls to 0 over them.
    start = time.perf_counter()
    BernoulliRBM(500, n_iter=1, **settings).fit(train[:10_000])
    seconds = 5 * (time.perf_counter() - start)
    n_iter = max(1, int(60 * arguments.minutes / seconds))
    print(f"{n_iter} passes of about {seconds:.1f} s", flush=True)
    start = time.perf_counter()
    rbm = BernoulliRBM(500, n_iter=n_iter, **settings).fit(train)
    print(f"trained in {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
    value = rbm.log_partition(chains=100, rungs=20_000)
    low, high = rbm.log_partition_interval_
    for name, rows in (("train", train[:10_000]), ("test", test)):
        nats = float(rbm.log_prob(rows).mean())
        print(
            f"{name}: {nats:.2f} nats, by the interval of log Z from {nats + value - high:.2f} to "
            f"{nats + value - low:.2f}"
        )


if __name__ == "__main__":
    main()
