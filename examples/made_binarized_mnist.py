"""Binarized MNIST by MADE: every pixel from those before it, in one pass of a masked network.

The model scores images, draws them, and goes on where the lower half is missing.  This run takes
about three minutes on one core and stops early; the table in docs/models/made.md says what longer
ones reach.

Needs matplotlib and the folder EVIDENS_DATA; writes made_binarized_mnist.png.  Lines that begin
with `# >` show what is printed.
"""

import os
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import evidens

if "EVIDENS_DATA" not in os.environ:
    sys.exit("set EVIDENS_DATA to the folder that holds images/binarized_mnist.npz")
data = np.load(Path(os.environ["EVIDENS_DATA"], "images", "binarized_mnist.npz"))
X, X_valid, X_test = (data[f"{part}.data"] for part in ("train", "valid", "test"))

model = evidens.MADE(784, hidden=(4000,))
model.fit(X, validation_data=X_valid, epochs=6, batch_size=200, lr=1e-3, random_state=0, verbose=0)
print(f"test log-likelihood {model.score(X_test):.1f} nats per image")
# > test log-likelihood -96.7 nats per image

chosen = np.arange(10)
upper = X_test[chosen].astype(float)
upper[:, 392:] = np.nan
# What is missing comes after what is known, so that these are draws of the conditional.
continued = [model.impute(upper, method="sample", random_state=i) for i in range(3)]
seen = np.where(np.isnan(upper), 0.5, upper)
drawn = model.sample(20, random_state=0)
rows = [drawn[:10], drawn[10:], X_test[chosen], seen, *continued]
titles = ["drawn", "", "test", "upper half", "continued", "", ""]
figure = Figure(figsize=(8, 6), layout="constrained", facecolor="#fdfcfa")
axes = figure.subplots(len(rows), 10)
for images, title, line in zip(rows, titles, axes, strict=True):
    line[0].set_ylabel(title, rotation=0, ha="right", va="center")
    for image, axis in zip(images, line, strict=True):
        axis.imshow(1 - image.reshape(28, 28).astype(float), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
figure.savefig("made_binarized_mnist.png", dpi=110)
print("wrote made_binarized_mnist.png")
# > wrote made_binarized_mnist.png
