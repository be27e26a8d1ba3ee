"""Hidden likes: who likes some jokes, likes which others?

The data are the ratings of 100 jokes in likes and dislikes.  Of people whom the model has never
seen, a fifth of the ones and zeros is hidden, and predicted from the rest.

Needs matplotlib, and EVIDENS_DATA with discrete/debd_jester.npz (columns of 0 and 1 named train and
test); writes rbm_jester.png.  Lines that begin with `# >` show what is printed.
"""

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import evidens

folder = os.environ.get("EVIDENS_DATA")
if not folder:
    raise SystemExit("set EVIDENS_DATA to the folder with discrete/debd_jester.npz")
with np.load(Path(folder) / "discrete" / "debd_jester.npz") as data:
    train, test = data["train"].astype(np.float32), data["test"][:1000].astype(np.float32)
hidden = np.random.default_rng(0).random(test.shape) < 0.2
seen = np.where(hidden, np.nan, test)

rbm = evidens.BernoulliRBM(
    100,
    batch_size=100,
    n_iter=20,
    momentum=0.5,
    schedule="linear",
    centered=True,
    shuffle=True,
    random_state=0,
).fit(train)
mixture = evidens.GaussianMixture(
    20, covariance_type="diag", reg_covar=0.02, tol=0.01, random_state=0
).fit(train)

predictions = {
    "how well a joke is liked": np.broadcast_to(train.mean(0), test.shape),
    "mixture of 20 Gaussians": mixture.impute(seen),
    "RBM, mean field": rbm.impute(seen, method="mean_field"),
    "RBM, Gibbs": rbm.impute(seen, steps=100, random_state=0),
}
truth = test[hidden] == 1
bits, right = {}, {}
for name, filled in predictions.items():
    p = np.clip(filled[hidden], 0.001, 0.999)
    bits[name] = -np.log2(np.where(truth, p, 1 - p)).mean()
    right[name] = ((p > 0.5) == truth).mean()
    print(f"{name:26}{bits[name]:.3f} bits per hidden answer, {right[name]:.1%} right")
# > how well a joke is liked  0.917 bits per hidden answer, 64.0% right
# > mixture of 20 Gaussians   0.775 bits per hidden answer, 73.1% right
# > RBM, mean field           0.715 bits per hidden answer, 75.9% right
# > RBM, Gibbs                0.715 bits per hidden answer, 75.9% right

# Said and come true: of the answers that were given so much probability, how many were likes?
figure = Figure(figsize=(10, 3.8), layout="constrained")
left, place = figure.subplots(1, 2)
edges = np.linspace(0, 1, 11)
for name, color in (("mixture of 20 Gaussians", "#8a8378"), ("RBM, Gibbs", "#b8451f")):
    p = np.clip(predictions[name][hidden], 0, 1)
    bins = np.digitize(p, edges[1:-1])
    said = [p[bins == i].mean() for i in range(10)]
    came = [truth[bins == i].mean() for i in range(10)]
    left.plot(said, came, "o-", color=color, label=name)
left.plot([0, 1], [0, 1], color="#1d1b19", linewidth=0.7)
left.set(xlabel="probability of a like", ylabel="share of likes among these")
left.legend(frameon=False)
place.barh(list(right), [100 * r for r in right.values()], color="#b8451f")
place.set(xlim=(50, 80), xlabel="% of the hidden answers right")
place.invert_yaxis()
figure.savefig("rbm_jester.png", dpi=150)
print("wrote rbm_jester.png")
# > wrote rbm_jester.png
