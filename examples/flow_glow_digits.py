"""Digits by Glow: a flow on images that knows classes draws them, scores them and tells them apart.

The grey levels of scikit-learn's digits are integers, so the flow is told how many there are: it
adds uniform noise while it learns, and reports the code length in bits per pixel.  A
class-conditional density is a classifier as well, by Bayes' rule.

Needs matplotlib; writes flow_glow_digits.png.  Lines that begin with `# >` show what is printed.
"""

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import evidens

digits = load_digits()
X, X_test, y, y_test = train_test_split(
    digits.images[:, None], digits.target, test_size=300, random_state=0, stratify=digits.target
)
flow = evidens.Glow((1, 8, 8), classes=10, dequantize=17)
flow.fit(X, y, epochs=30, lr=5e-3, random_state=0, verbose=0)

bits = flow.bits_per_dim(X_test, y_test)
accuracy = float(np.mean(flow.predict(X_test) == y_test))
print(f"{bits:.1f} bits per pixel, where log2(17) = {np.log2(17):.2f} would be no model at all")
# > 2.0 bits per pixel, where log2(17) = 4.09 would be no model at all
print(f"the class of more than 95 % of new digits is found: {accuracy > 0.95}")
# > the class of more than 95 % of new digits is found: True

drawn = flow.sample(100, y=np.repeat(np.arange(10), 10), temperature=0.8, random_state=0)
figure = Figure(figsize=(6, 6), layout="constrained", facecolor="#fdfcfa")
for image, axis in zip(drawn[:, 0].reshape(10, 10, 8, 8).swapaxes(0, 1).reshape(-1, 8, 8),
                       figure.subplots(10, 10).ravel()):  # fmt: skip
    axis.imshow(16 - image, cmap="gray", vmin=0, vmax=16)
    axis.axis("off")
figure.savefig("flow_glow_digits.png", dpi=110)
print("wrote flow_glow_digits.png")
# > wrote flow_glow_digits.png
