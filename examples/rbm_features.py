"""Features for a classifier: digits that may be moved by a pixel, by their pixels or by an RBM.

A logistic regression of raw pixels has to learn every place of a stroke by itself.  The hidden
units of an RBM, learned without labels, are on where parts of digits are, and serve it better.

Needs matplotlib; writes rbm_features.png.  Lines that begin with `# >` show what is printed.
"""

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import evidens

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.images))
images, labels = (digits.images[order] / 16).astype(np.float32), digits.target[order]


def moved(images, labels):
    """Each image five times: as it stands, and moved by a pixel in four directions."""
    wide = np.pad(images, [(0, 0), (1, 1), (1, 1)])
    places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    views = [wide[:, i : i + 8, j : j + 8] for i, j in places]
    return np.concatenate(views).reshape(-1, 64), np.tile(labels, 5)


X, y = moved(images[:1300], labels[:1300])
X_test, y_test = moved(images[1300:], labels[1300:])

rbm = evidens.BernoulliRBM(
    200,
    learning_rate=0.1,
    batch_size=20,
    n_iter=20,
    momentum=0.5,
    schedule="linear",
    shuffle=True,
    random_state=0,
)
pixels = LogisticRegression(C=10, max_iter=3000).fit(X, y)
features = make_pipeline(rbm, LogisticRegression(C=10, max_iter=3000)).fit(X, y)
print(f"right by raw pixels {pixels.score(X_test, y_test):.1%},", end=" ")
print(f"by the hidden units {features.score(X_test, y_test):.1%}")
# > right by raw pixels 80.1%, by the hidden units 92.2%
print(f"units that are on in a digit: {rbm.transform(X_test).mean():.0%}")
# > units that are on in a digit: 9%

figure = Figure(figsize=(10, 3.6), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(2, 1))
strongest = np.argsort(-np.linalg.norm(rbm.components_, axis=1))[:75]
tiles = np.pad(rbm.components_[strongest].reshape(5, 15, 8, 8), [(0, 0)] * 2 + [(0, 1)] * 2)
left.imshow(tiles.transpose(0, 2, 1, 3).reshape(45, 135), cmap="RdBu_r", vmin=-3, vmax=3)
left.set(xticks=[], yticks=[], title="what 75 of the hidden units look for")
lines = {"raw pixels": (pixels, "#8a8378"), "hidden units": (features, "#b8451f")}
for name, (model, color) in lines.items():
    correct = model.predict(X_test) == y_test
    share = [100 * correct[y_test == digit].mean() for digit in range(10)]
    right.plot(range(10), share, "o-", color=color, label=name)
right.set(xticks=range(10), xlabel="digit", ylabel="% right", ylim=(50, 100))
right.legend(frameon=False)
figure.savefig("rbm_features.png", dpi=150)
print("wrote rbm_features.png")
# > wrote rbm_features.png
