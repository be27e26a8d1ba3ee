"""``python -m evidens tour``: what the library has, measured on scikit-learn's handwritten digits.

Every family is one `Family`: a name and a function that builds our model and the incumbent's from
the same start.  Everything else is generic, so a later family adds one entry to `FAMILIES`.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evidens._tour_machines import boltzmann
from evidens._tour_measure import QUICK, Array, Family, Setting, Tour, run
from evidens._tour_networks import glow, made, pixelcnn
from evidens._tour_sequences import hidden_markov


def gaussian_mixture(covariance_type: str, n_components: int, reg_covar: float) -> Family:
    """scikit-learn's mixture and ours, both from the same k-means start."""

    def build(x: Array) -> tuple[Any, Any]:
        from sklearn.cluster import KMeans
        from sklearn.mixture import GaussianMixture as Incumbent

        from evidens import GaussianMixture

        cluster = KMeans(n_components, n_init=1, random_state=0).fit(x).labels_
        members = [x[cluster == k] for k in range(n_components)]
        if covariance_type == "diag":
            precisions = [1 / (m.var(0) + reg_covar) for m in members]
        else:
            ridge = reg_covar * np.eye(x.shape[1])
            precisions = [np.linalg.inv(np.cov(m.T, bias=True) + ridge) for m in members]
        arguments: dict[str, Any] = {
            "n_components": n_components,
            "covariance_type": covariance_type,
            "reg_covar": reg_covar,
            "max_iter": 500,
            "random_state": 0,
            "weights_init": np.array([len(m) / len(x) for m in members]),
            "means_init": np.array([m.mean(0) for m in members]),
            "precisions_init": np.array(precisions),
        }
        return GaussianMixture(**arguments), Incumbent(**arguments)

    setting = f"{covariance_type}, K={n_components}"
    return Family("GaussianMixture", setting, "sklearn.mixture.GaussianMixture", build)


# Sizes of mixtures chosen by the likelihood of a quarter of the training rows, from scikit-learn's
# own fits; the HMM would gain from more states, and hmmlearn would take longer.
FAMILIES = (
    gaussian_mixture("full", 10, 0.2),
    gaussian_mixture("diag", 40, 0.1),
    hidden_markov(5, 10),
    boltzmann(100, 60),
    glow(20),
    made(40),
    pixelcnn(25),
)
# The same, with networks that are hardly trained.
QUICK_FAMILIES = (*FAMILIES[:-4], boltzmann(20, 2), glow(1), made(1), pixelcnn(1))


def cell(value: float | None, form: str) -> str:
    """The number, or nothing where there is none."""
    return "" if value is None else format(value, form)


def table(tour: Tour) -> str:
    """The result in plain text, 100 columns wide."""
    theirs = tour.incumbents
    pair = f"{'evidens':>9}{theirs:>9}"
    lines = [
        f"scikit-learn's digits: {len(tour.digits.train):,} to fit,"
        f" {len(tour.digits.held_out):,} held out",
        "",
        f"{'':30}{'nats per digit':^18}{'milliseconds to fit':^25}{'anomaly AUROC':^18}{'RMSE':>9}",
        f"{'model':30}{pair}{pair}{'ratio':>7}{pair}{'imputed':>9}",
    ]
    for row in tour.rows:
        a, b = row.fit_seconds
        lines.append(
            f"{row.name:30}"
            + "".join(f"{cell(value, '.2f'):>9}" for value in row.nats)
            + f"{1e3 * a:9.1f}{cell(b and 1e3 * b, '.1f'):>9}{cell(b and b / a, '.1f'):>7}"
            + "".join(f"{cell(value, '.3f'):>9}" for value in row.mean_auroc)
            + f"{cell(row.rmse, '.2f'):>9}"
        )
    lines += [f"{name:91}{rmse:9.2f}" for name, rmse in tour.baselines.items()]
    anomalies = list(tour.rows[0].auroc)
    which = "every digit in turn" if len(anomalies) > 1 else f"the digit {anomalies[0]}"
    lines += [
        "",
        "nats per digit mean log p of the held-out digits; " + tour.agreement,
        f"anomaly AUROC  {which} is left out of training and found by its low log p",
        "RMSE imputed   a quarter of the pixels is hidden; error in grey levels (0 to 16)",
        *(textwrap.wrap(tour.peers, 85, initial_indent=f"{theirs:15}", subsequent_indent=" " * 15)),
        f"machine        {tour.machine['processor']}; threads: {tour.machine['threads']}",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tour, print its table, and write its page where matplotlib is installed."""
    parser = argparse.ArgumentParser(prog="evidens tour", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, one anomaly (for tests)")
    parser.add_argument("--output", type=Path, default=Path("evidens-tour.html"))
    arguments = parser.parse_args(argv)
    if not arguments.output.parent.is_dir():
        parser.error(f"--output: no folder {arguments.output.parent}")

    if arguments.quick:
        tour = run(QUICK, QUICK_FAMILIES)
    else:
        tour = run(Setting(), FAMILIES)
    print(table(tour))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print(f'\nFor the page with pictures ({arguments.output}): pip install "evidens[plot]"')
        return 0
    from evidens._tour_page import render

    arguments.output.write_text(render(tour), encoding="utf-8")
    print(f"\nThe same with pictures: {arguments.output.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
