"""What the tour measures: the same rows, noise, start and threads for both sides.

A digit is 64 pixels with 17 grey levels.  A density needs a continuum, so each pixel gets uniform
noise in [0, 1) on top of its level (Theis, van den Oord and Bethge 2016): the mean log-density of
the noisy pixels is then a lower bound of the log-probability of the digit itself, in nats, and two
models that are given the same noise can be compared.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Pair = tuple[float, float | None]
"""The same figure for evidens and for the incumbent, None where there is no incumbent."""


@dataclass(frozen=True)
class Family:
    """One row of the tour: ``build(X)`` returns (our model, the incumbent or None), not fitted.

    A model that trains for seconds is fitted once: it has no anomalies and no series of timings.
    One that does not impute means has no error of them.
    """

    name: str
    setting: str
    incumbent: str
    build: Callable[[Array], tuple[Any, Any]]
    trained_once: bool = False


@dataclass(frozen=True)
class Setting:
    """How long the tour takes; ``--quick`` is for tests."""

    repeats: int = 9
    noise_draws: int = 4
    anomalies: tuple[int, ...] = tuple(range(10))


QUICK = Setting(repeats=2, noise_draws=2, anomalies=(8,))
# Seconds after which a timing that has three turns gets no more, and a longer one is left out.
BUDGET, LONGEST = 2.0, 4.0


@dataclass(frozen=True)
class Digits:
    """Integer grey levels (N, 64), their noisy version, labels (N,), and the pixels to hide."""

    train: Array
    train_labels: Array
    held_out: Array
    held_out_labels: Array
    train_noisy: Array
    held_out_noisy: Array
    many_noisy: Array
    missing: Array


@dataclass
class Row:
    """What was measured for one family."""

    family: Family
    model: Any
    nats: Pair
    difference: float | None
    iterations: int | None
    seconds: dict[str, Pair] = field(default_factory=dict)
    auroc: dict[int, Pair] = field(default_factory=dict)
    anomaly_scores: dict[int, Array] = field(default_factory=dict)
    imputed: Array = field(default_factory=lambda: np.empty(0))
    rmse: float | None = None
    nats_incomplete: float | None = None

    @property
    def name(self) -> str:
        """Model and setting."""
        return f"{self.family.name} {self.family.setting}"

    @property
    def peer(self) -> str:
        """The package of the incumbent."""
        return self.family.incumbent.partition(".")[0]

    @property
    def mean_auroc(self) -> tuple[float | None, float | None]:
        """Over the digits that were left out, one at a time."""
        theirs = [b for _, b in self.auroc.values() if b is not None]
        ours = [a for a, _ in self.auroc.values()]
        return tuple(statistics.fmean(v) if v else None for v in (ours, theirs))  # type: ignore[return-value]

    @property
    def fit_seconds(self) -> Pair:
        """The first timing: one fit of the training rows."""
        return next(iter(self.seconds.values()))


@dataclass
class Tour:
    """All that the table and the page show."""

    digits: Digits
    rows: list[Row]
    baselines: dict[str, float]
    machine: dict[str, str]
    seconds: float

    @property
    def incumbents(self) -> str:
        """The heading of the incumbents' columns."""
        packages = {row.peer for row in self.rows if row.nats[1] is not None}
        return packages.pop() if len(packages) == 1 else "others"

    @property
    def peers(self) -> str:
        """In words, what stands beside each model, or that it is not there."""
        known: dict[str, bool] = {}
        for row in self.rows:
            if row.family.incumbent:
                known[row.family.incumbent] = row.nats[1] is not None
        return ", ".join(
            name if there else f"{name} (not installed: no figures)"
            for name, there in known.items()
        )

    @property
    def agreement(self) -> str:
        """In words, how far the two sides are from each other."""
        worst = max((r.difference for r in self.rows if r.difference is not None), default=0.0)
        return f"both sides agree to {max(worst, 1e-15):.0e} in every row"


def load(setting: Setting) -> Digits:
    """The bundled digits, a quarter of them held out, and noise and missing pixels that are fixed.

    A pixel is missing with probability 1/4, whatever its value and its neighbours.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))
    x, y = x[order], y[order]
    cut = 3 * len(x) // 4
    noisy = x + rng.random(x.shape)
    train = x[:cut]
    many = np.concatenate([train + rng.random(train.shape) for _ in range(setting.noise_draws)])
    missing = rng.random((len(x) - cut, x.shape[1])) < 0.25
    return Digits(train, y[:cut], x[cut:], y[cut:], noisy[:cut], noisy[cut:], many, missing)


def measure(family: Family, digits: Digits, setting: Setting) -> Row:
    """Fit, score, time and impute; the same rows, noise and start for both sides."""
    ours, theirs = family.build(digits.train_noisy)
    start = time.perf_counter()
    ours.fit(digits.train_noisy)
    taken = time.perf_counter() - start
    log_p = np.asarray(ours.log_prob(digits.held_out_noisy))
    nats: Pair = (float(log_p.mean()), None)
    difference = None
    if theirs is not None:
        other = theirs.fit(digits.train_noisy).score_samples(digits.held_out_noisy)
        nats, difference = (nats[0], float(other.mean())), float(np.abs(log_p - other).max())
    row = Row(family, ours, nats, difference, getattr(ours, "n_iter_", None))
    if family.trained_once:
        row.seconds = {f"fit, {len(digits.train_noisy):,} digits": (taken, None)}
        if hasattr(ours, "impute"):
            _impute(row, digits)
        return row

    _impute(row, digits)
    row.nats_incomplete = _fit_incomplete(family, digits)
    for digit in setting.anomalies:
        row.auroc[digit], row.anomaly_scores[digit] = _anomaly(family, digits, digit)
    row.seconds = _time(family, digits, setting.repeats)
    return row


def _impute(row: Row, digits: Digits) -> None:
    """Fill the hidden pixels; what is seen enters as the middle of its grey level."""
    seen = np.where(digits.missing, np.nan, digits.held_out + 0.5)
    row.imputed = np.asarray(row.model.impute(seen)) - 0.5
    row.rmse = _rmse(row.imputed, digits)


def _rmse(filled: Array, digits: Digits) -> float:
    return float(np.sqrt(np.mean((filled - digits.held_out)[digits.missing] ** 2)))


def _fit_incomplete(family: Family, digits: Digits) -> float:
    """Held-out nats per row of a model whose training rows, too, lack a quarter of their pixels."""
    hidden = np.random.default_rng(1).random(digits.train.shape) < 0.25
    seen = np.where(hidden, np.nan, digits.train_noisy)
    # The start, too, sees only what is left.
    ours, _ = family.build(np.where(hidden, np.nanmean(seen, axis=0), seen))
    ours.fit(seen)
    return float(np.mean(ours.log_prob(digits.held_out_noisy)))


def _anomaly(family: Family, digits: Digits, digit: int) -> tuple[Pair, Array]:
    """AUROC of -log p where no ``digit`` was seen in training, and our scores (held-out rows,)."""
    from sklearn.metrics import roc_auc_score

    known = digits.train_noisy[digits.train_labels != digit]
    anomalous = digits.held_out_labels == digit
    ours, theirs = family.build(known)
    scores = -np.asarray(ours.fit(known).log_prob(digits.held_out_noisy))
    pair: Pair = (float(roc_auc_score(anomalous, scores)), None)
    if theirs is not None:
        other = -theirs.fit(known).score_samples(digits.held_out_noisy)
        pair = (pair[0], float(roc_auc_score(anomalous, other)))
    return pair, scores


def _time(family: Family, digits: Digits, repeats: int) -> dict[str, Pair]:
    """Median seconds, both sides taking turns, after a warm-up; fewer turns if they are long."""
    ours, theirs = family.build(digits.train_noisy)
    few, many = digits.train_noisy, digits.many_noisy
    draws = len(many) // len(few)
    work: dict[str, Callable[[Any], Any]] = {
        f"fit, {len(few):,} digits": lambda model: model.fit(few),
        f"fit, {len(many):,} digits": lambda model: model.fit(many),
        f"mean log p of {len(many):,} digits": lambda model: model.score(many),
    }
    result: dict[str, Pair] = {}
    for i, (name, call) in enumerate(work.items()):
        if i == 1 and max(t or 0 for pair in result.values() for t in pair) * draws > LONGEST:
            continue
        taken: tuple[list[float], list[float]] = ([], [])
        for turn in range(repeats + 1):
            for model, seconds in zip((ours, theirs), taken, strict=True):
                if model is not None:
                    start = time.perf_counter()
                    call(model)
                    seconds.append(time.perf_counter() - start)
            if turn >= 2 and sum(map(sum, taken)) > BUDGET:
                break
        a, b = (statistics.median(seconds[1:]) if seconds else None for seconds in taken)
        assert a is not None
        result[name] = a, b
    return result


def baselines(digits: Digits) -> dict[str, float]:
    """RMSE of filling the hidden pixels without a density model."""
    from sklearn.impute import KNNImputer, SimpleImputer

    seen = np.where(digits.missing, np.nan, digits.held_out)
    fillers = {"column means": SimpleImputer(), "5 nearest neighbours": KNNImputer()}
    return {
        name: _rmse(filler.fit(digits.train).transform(seen), digits)
        for name, filler in fillers.items()
    }


def machine(threads: int) -> dict[str, str]:
    """Where and with what the figures were measured."""
    import evidens

    facts = evidens.info()
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text(errors="replace")
        names = [s.partition(":")[2] for s in text.splitlines() if s.startswith("model name")]
        processor = names[0].strip() if names else processor
    return {
        "processor": f"{processor}, {os.cpu_count()} logical cores",
        "instructions": facts["isa"]["chosen"],
        "threads": f"{threads} for each side",
        "system": facts["platform"],
        **{name: value for name, value in facts["versions"].items() if value},
    }


def run(setting: Setting, families: Sequence[Family]) -> Tour:
    """Everything, with as many threads as torch has."""
    import torch
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    start = time.perf_counter()
    digits = load(setting)
    # BLAS and OpenMP of the incumbent get as many threads as torch, whose pool evidens uses.
    threads = torch.get_num_threads()
    with threadpool_limits(threads):
        bar = tqdm(families, desc="tour", unit="model", disable=None, leave=False)
        rows = [measure(family, digits, setting) for family in bar]
        others = baselines(digits)
    return Tour(digits, rows, others, machine(threads), time.perf_counter() - start)
