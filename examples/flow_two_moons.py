"""Two moons: a neural spline flow learns a density, and draws from it.

The density is exact: `log_prob` integrates to 1, which is checked on a grid.  A Gaussian mixture
of a few components cannot follow the crescents; the flow bends space until they are one Gaussian.

Needs matplotlib; writes flow_two_moons.png.  Lines that begin with `# >` show what is printed.
"""

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

import evidens

X, _ = make_moons(4000, noise=0.06, random_state=0)
train, held_out = X[:2500], X[2500:]

flow = evidens.NeuralSplineFlow(2, layers=6, hidden=(64, 64))
flow.fit(train, epochs=60, batch_size=250, lr=3e-3, random_state=0, verbose=0)
mixture = evidens.GaussianMixture(8, random_state=0).fit(train)
print(f"held out, nats per point: flow {flow.score(held_out):.1f},", end=" ")
print(f"mixture of 8 Gaussians {mixture.score(held_out):.1f}")
# > held out, nats per point: flow -0.5, mixture of 8 Gaussians -0.6

x, y = np.meshgrid(np.linspace(-2.5, 3.5, 481), np.linspace(-2.0, 2.5, 361))
grid = np.column_stack([x.ravel(), y.ravel()])
density = np.exp(flow.log_prob(grid)).reshape(x.shape)
cell = (x[0, 1] - x[0, 0]) * (y[1, 0] - y[0, 0])
print(f"integral of the density over the picture: {density.sum() * cell:.2f}")
# > integral of the density over the picture: 1.00

latent = flow.transform(held_out)
drawn = flow.sample(1500, random_state=0)
print(f"latents of the held-out points: standard deviation {latent.std():.1f}")
# > latents of the held-out points: standard deviation 1.0

figure = Figure(figsize=(12, 3.6), layout="constrained")
axes = figure.subplots(1, 3)
axes[0].scatter(*held_out[:1500].T, s=3, color="#1d1b19", linewidths=0)
axes[0].set_title("held-out points")
axes[1].imshow(density, origin="lower", extent=(-2.5, 3.5, -2.0, 2.5), cmap="magma", aspect="auto")
axes[1].set_title("density")
axes[2].scatter(*drawn.T, s=3, color="#b8451f", linewidths=0)
axes[2].set_title("draws")
for a in axes:
    a.set(xlim=(-1.6, 2.6), ylim=(-1.1, 1.6), xticks=[], yticks=[])
figure.savefig("flow_two_moons.png", dpi=150)
print("wrote flow_two_moons.png")
# > wrote flow_two_moons.png
