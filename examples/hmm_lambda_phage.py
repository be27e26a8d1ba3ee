"""Lambda phage: a genome cut into segments of different composition, by the bases alone.

A hidden Markov model with categorical emissions reads the 48,502 bases of the bacteriophage lambda
(the method is Churchill's, Stochastic models for heterogeneous DNA sequences, 1989).  Nobody tells
it where one region ends and the next begins; the posterior of its states shows where that may be,
and how sure that is.

Needs matplotlib, and EVIDENS_DATA naming the folder of data sets; writes hmm_lambda_phage.png.
Lines that begin with `# >` show what is printed.
"""

import gzip
import os
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import evidens

if not os.environ.get("EVIDENS_DATA"):
    sys.exit("set EVIDENS_DATA to the folder with sequences/lambda_phage_NC_001416.fa.gz")
path = Path(os.environ["EVIDENS_DATA"]) / "sequences" / "lambda_phage_NC_001416.fa.gz"
BASES = "ACGT"
with gzip.open(path, "rt") as file:
    genome = "".join(line.strip() for line in file if not line.startswith(">"))
X = np.array([BASES.index(base) for base in genome])[:, None]
is_gc = np.isin(X[:, 0], (1, 2))
print(f"{len(X):,} bases, {is_gc.mean():.1%} of them G or C")
# > 48,502 bases, 49.9% of them G or C


def segmented(k, seed):
    """A fit of K states that start with any composition and stay for a thousand bases."""
    model = evidens.CategoricalHMM(k, init_params="", n_iter=500, tol=1e-3)
    model.startprob_ = np.full(k, 1 / k)
    leave = 1e-3 / max(k - 1, 1)
    model.transmat_ = np.full((k, k), leave) + (1 - k * leave) * np.eye(k)
    model.emissionprob_ = np.random.default_rng(seed).dirichlet(np.full(4, 20.0), size=k)
    return model.fit(X)


# --- how many kinds of segment? -------------------------------------------------------------------
models = {}
for k in range(1, 6):
    # EM climbs the nearest hill, so it starts more than once.
    models[k] = max((segmented(k, seed) for seed in range(2)), key=lambda model: model.score(X))
    print(f"{k} states: log L {models[k].score(X):,.0f} nats, BIC {models[k].bic(X):,.0f}")
# > 1 states: log L -67,191 nats, BIC 134,415
# > 2 states: log L -66,678 nats, BIC 133,453
# > 3 states: log L -66,588 nats, BIC 133,359
# > 4 states: log L -66,525 nats, BIC 133,342
# > 5 states: log L -66,498 nats, BIC 133,417

# --- the two kinds, and the four that the BIC prefers ---------------------------------------------
posteriors, orders = {}, {}
for k in (2, 4):
    model = models[k]
    content = model.emissionprob_[:, 1:3].sum(axis=1)
    orders[k] = np.argsort(content)
    posteriors[k] = model.predict_proba(X)
    states = model.predict(X)
    for state in orders[k]:
        share = np.mean(states == state)
        length = 1 / (1 - model.transmat_[state, state])
        composition = " ".join(
            f"{base} {p:.3f}" for base, p in zip(BASES, model.emissionprob_[state], strict=True)
        )
        print(f"{composition}: {share:.0%} of the genome, {length:,.0f} bases at a time")
    print(f"{k} states: {1 + np.count_nonzero(np.diff(states))} segments")
# > A 0.270 C 0.208 G 0.198 T 0.323: 33% of the genome, 4,419 bases at a time
# > A 0.246 C 0.248 G 0.298 T 0.208: 67% of the genome, 8,635 bases at a time
# > 2 states: 7 segments
# > A 0.291 C 0.181 G 0.180 T 0.348: 20% of the genome, 558 bases at a time
# > A 0.229 C 0.249 G 0.227 T 0.294: 16% of the genome, 585 bases at a time
# > A 0.293 C 0.228 G 0.261 T 0.218: 22% of the genome, 2,747 bases at a time
# > A 0.229 C 0.254 G 0.318 T 0.199: 42% of the genome, 11,005 bases at a time
# > 4 states: 16 segments

# --- along the genome -----------------------------------------------------------------------------
WINDOW, EVERY = 501, 10
COLOURS = {2: ("#3b6ea5", "#b8451f"), 4: ("#3b6ea5", "#8fb3d4", "#d9a441", "#b8451f")}
position = np.arange(len(X)) / 1000
middle = slice(WINDOW // 2, -(WINDOW // 2))
windowed = np.convolve(is_gc, np.full(WINDOW, 1 / WINDOW), mode="valid")
figure = Figure(figsize=(9, 5.6), layout="constrained")
content_axes, *panels = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
content_axes.plot(
    position[middle][::EVERY],
    windowed[::EVERY],
    color="#9a9a9a",
    linewidth=0.9,
    label=f"in windows of {WINDOW} bases",
)
path_content = models[4].emissionprob_[models[4].predict(X), 1:3].sum(axis=1)
content_axes.plot(position, path_content, color="#101010", label="of the state on the best path")
content_axes.set(ylim=(0.2, 0.7), ylabel="share of G and C")
content_axes.legend(frameon=False, ncols=2, loc="lower left", fontsize=9)
for k, axes in zip((2, 4), panels, strict=True):
    shown = posteriors[k][::EVERY][:, orders[k]].T
    axes.stackplot(position[::EVERY], shown, colors=COLOURS[k], linewidth=0)
    axes.set(ylim=(0, 1), yticks=(0, 1), ylabel=f"{k} states", xlim=(0, position[-1]))
panels[0].set_title("posterior, from few to many G and C", loc="left", fontsize=10)
panels[-1].set_xlabel("position, thousand bases")
for axes in (content_axes, *panels):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig("hmm_lambda_phage.png", dpi=150)
print("wrote hmm_lambda_phage.png")
# > wrote hmm_lambda_phage.png
