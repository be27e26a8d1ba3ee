"""Earthquakes: how many levels of activity do 107 yearly counts show?

The counts of earthquakes of magnitude 7 or more from 1900 to 2006 spread too widely for a single
Poisson distribution.  In a hidden Markov model the rate may change from year to year.  The fits are
those of Zucchini and MacDonald, Hidden Markov Models for Time Series (2009): by EM, and with the
chain in its stationary distribution from the start, here by gradients of `hmm_log_likelihood`.

Needs matplotlib, and EVIDENS_DATA naming the folder of data sets; writes hmm_earthquakes.png.
Lines that begin with `# >` show what is printed.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import evidens

if not os.environ.get("EVIDENS_DATA"):
    sys.exit("set EVIDENS_DATA to the folder that holds sequences/earthquakes_1900_2006.csv")
path = Path(os.environ["EVIDENS_DATA"]) / "sequences" / "earthquakes_1900_2006.csv"
with path.open(newline="") as file:
    years, counts = np.array([(int(r["year"]), int(r["count"])) for r in csv.DictReader(file)]).T
X = counts[:, None]
print(f"{len(X)} years, mean {counts.mean():.2f}, variance {counts.var(ddof=1):.2f}")
# > 107 years, mean 19.36, variance 51.57

# Minus log-likelihood and rates as published, rounded.
PUBLISHED = {
    ("EM", 2): (341.88, (15.4, 26.0)),
    ("EM", 3): (328.53, (13.1, 19.7, 29.7)),
    ("stationary", 2): (342.32, (15.5, 26.1)),
    ("stationary", 3): (329.46, (13.1, 19.7, 29.7)),
}


def show(name, k, nats, rates):
    known, known_rates = PUBLISHED[name, k]
    print(f"{name}, {k} states: {nats:.4f}, rates " + " ".join(f"{rate:.3f}" for rate in rates))
    print(f"  published: {known}, rates " + " ".join(str(rate) for rate in known_rates))


# --- EM, which learns the distribution of the first state, too ------------------------------------
models = {}
for k in (2, 3):
    # EM climbs the nearest hill, so it starts five times.
    fits = [
        evidens.PoissonHMM(k, n_iter=1000, tol=1e-9, random_state=seed).fit(X) for seed in range(5)
    ]
    models[k] = max(fits, key=lambda model: model.score(X))
    show("EM", k, -models[k].score(X), np.sort(models[k].lambdas_[:, 0]))
# > EM, 2 states: 341.8787, rates 15.421 26.018
# >   published: 341.88, rates 15.4 26.0
# > EM, 3 states: 328.5275, rates 13.134 19.713 29.710
# >   published: 328.53, rates 13.1 19.7 29.7


# --- a stationary chain: the start is no parameter, so gradients climb the likelihood -------------
def stationary(transition):
    """The distribution that ``transition`` (K, K) leaves as it is."""
    one = torch.ones(len(transition), dtype=torch.float64)
    return torch.linalg.solve((torch.diag(one) - transition + 1).T, one)


def stationary_fit(model):
    """Minus log-likelihood and rates, from the model that EM found."""
    order = np.argsort(model.lambdas_[:, 0])
    log_rates = torch.tensor(model.lambdas_[order, 0]).log().requires_grad_()
    logits = torch.tensor(model.transmat_[np.ix_(order, order)]).add(1e-3).log().requires_grad_()
    x = torch.as_tensor(X, dtype=torch.float64)

    def loss():
        transition = logits.softmax(1)
        log_obs = torch.distributions.Poisson(log_rates.exp()).log_prob(x)
        start = stationary(transition)
        return -evidens.ops.hmm_log_likelihood(log_obs, start, transition).sum()

    optimiser = torch.optim.LBFGS(
        [log_rates, logits], max_iter=1000, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    return loss().item(), log_rates.detach().exp().tolist()


for k in (2, 3):
    nats, rates = stationary_fit(models[k])
    show("stationary", k, nats, rates)
    parameters = k + k * (k - 1)
    aic, bic = 2 * nats + 2 * parameters, 2 * nats + parameters * np.log(len(X))
    print(f"  AIC {aic:.1f}, BIC {bic:.1f}")
# > stationary, 2 states: 342.3183, rates 15.472 26.125
# >   published: 342.32, rates 15.5 26.1
# >   AIC 692.6, BIC 703.3
# > stationary, 3 states: 329.4603, rates 13.146 19.721 29.714
# >   published: 329.46, rates 13.1 19.7 29.7
# >   AIC 676.9, BIC 701.0

# --- what the states say about the years ----------------------------------------------------------
COLOURS = ("#3b6ea5", "#d9a441", "#b8451f")
figure = Figure(figsize=(9, 6.2), layout="constrained")
panels = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1, 3, 1))
for k, (above, below) in zip((2, 3), (panels[:2], panels[2:]), strict=True):
    model = models[k]
    order = np.argsort(model.lambdas_[:, 0])
    colours = (COLOURS[0], COLOURS[2]) if k == 2 else COLOURS
    path_rates = model.lambdas_[model.predict(X), 0]
    above.plot(years, counts, "o", markersize=3, color="#555555", label="earthquakes in the year")
    above.step(years, path_rates, where="mid", color="#101010", label="rate on the best path")
    for state, colour in zip(order, colours, strict=True):
        above.axhline(model.lambdas_[state, 0], color=colour, linewidth=0.8, linestyle=":")
    above.set(ylim=(0, 45), ylabel="earthquakes")
    above.set_title(f"{k} states", loc="left", fontsize=10.5)
    below.stackplot(
        years, model.predict_proba(X)[:, order].T, colors=colours, step="mid", alpha=0.85
    )
    below.set(ylim=(0, 1), yticks=(0, 1), ylabel="posterior", xlim=(years[0], years[-1]))
for axes in panels:
    axes.spines[["top", "right"]].set_visible(False)
panels[0].legend(frameon=False, ncols=2, loc="upper right", fontsize=9)
figure.savefig("hmm_earthquakes.png", dpi=150)
print("wrote hmm_earthquakes.png")
# > wrote hmm_earthquakes.png
