"""Denoising and filling in: a picture as a draw from a machine, given what is left of it.

Digits in black and white.  A tenth of the pixels is turned over, or a third of them is hidden,
and an RBM restores them.  Which pixels were turned is not known, so each gets a second look: how
probable is it, given all the others, and given that one in ten is wrong?

Needs matplotlib; writes rbm_denoising.png.  Lines that begin with `# >` show what is printed.
"""

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import evidens

X = (load_digits().data > 7).astype(np.float32)
train, test = X[:1400], X[1400:]
rng = np.random.default_rng(0)
wrong = rng.random(test.shape) < 0.1
noisy = np.abs(test - wrong)
hidden = rng.random(test.shape) < 1 / 3

rbm = evidens.BernoulliRBM(
    150,
    batch_size=20,
    n_iter=80,
    momentum=0.5,
    schedule="linear",
    centered=True,
    shuffle=True,
    random_state=0,
).fit(train)

# --- noise: p(true pixel | noisy picture), by Gibbs steps that know of the noise ------------------
# A pixel that was seen as x is evidence of log(0.9 / 0.1) for x: a shift of the visible bias that
# differs from row to row.  Averaging over steps gives the mean of the true picture.
evidence = np.log(0.9 / 0.1) * (2 * noisy - 1)
state, mean = noisy.copy(), np.zeros_like(noisy)
for step in range(60):
    hidden_units = rng.random((len(test), 150)) < rbm.transform(state)
    field = hidden_units @ rbm.components_ + rbm.intercept_visible_ + evidence
    p = 1 / (1 + np.exp(-field))
    state = (rng.random(p.shape) < p).astype(np.float32)
    if step >= 20:
        mean += p / 40
print(f"pixels that are wrong: {(noisy != test).mean():.1%}, restored: ", end="")
print(f"{((mean > 0.5) != test).mean():.1%}")
# > pixels that are wrong: 10.1%, restored: 5.2%

# --- holes: clamp what is seen --------------------------------------------------------------------
filled = rbm.impute(np.where(hidden, np.nan, test), steps=100, random_state=0)
by_mean = np.broadcast_to(train.mean(0), test.shape)
print(f"hidden pixels filled in wrongly: {((filled > 0.5) != test)[hidden].mean():.1%},", end=" ")
print(f"by the mean picture {((by_mean > 0.5) != test)[hidden].mean():.1%}")
# > hidden pixels filled in wrongly: 10.2%, by the mean picture 20.4%

rows = (
    ("written", test),
    ("a tenth turned over", noisy),
    ("restored", mean),
    ("a third hidden", np.where(hidden, 0.5, test)),
    ("filled in", filled),
)
figure = Figure(figsize=(10, 5.4), layout="constrained")
axes = figure.subplots(len(rows), 1)
for axis, (name, pictures) in zip(axes, rows):
    strip = np.pad(pictures[:14].reshape(14, 8, 8), [(0, 0), (0, 0), (0, 1)], constant_values=0.2)
    axis.imshow(strip.transpose(1, 0, 2).reshape(8, -1), cmap="gray_r", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_ylabel(name, rotation=0, ha="right", va="center")
figure.savefig("rbm_denoising.png", dpi=150)
print("wrote rbm_denoising.png")
# > wrote rbm_denoising.png
