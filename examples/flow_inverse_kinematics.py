"""An inverse problem: which joint angles put a robot's hand there?

The arm slides up and down a rail and has three joints; where the hand is, two numbers, follows
from these four.  The way back has no single answer.  A conditional flow learns all of them: it is
trained on pairs from the simulator, and then draws arms for a place of the hand.  Every draw is
put back into the simulator to see where its hand really is.  (The arm is that of Ardizzone et al.,
Analyzing inverse problems with invertible neural networks, 2019.)

Needs matplotlib; writes flow_inverse_kinematics.png.  Lines that begin with `# >` show what is
printed.
"""

import numpy as np
from matplotlib.figure import Figure

import evidens

LENGTHS = np.array([0.5, 0.5, 1.0])
SPREAD = np.array([0.25, 0.5, 0.5, 0.5])  # standard deviations of the height and the angles


def joints(arm):
    """Arms (N, 4): height on the rail and three angles; places (N, 4, 2) of rail, joints, hand."""
    angle = arm[:, 1:].cumsum(1)
    steps = LENGTHS[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    rail = np.stack([np.zeros(len(arm)), arm[:, 0]], -1)
    return np.concatenate([rail[:, None], rail[:, None] + steps.cumsum(1)], 1)


rng = np.random.default_rng(0)
arms = rng.normal(size=(20_000, 4)) * SPREAD
hands = joints(arms)[:, -1]

flow = evidens.NeuralSplineFlow(4, context=2, layers=6, hidden=(96, 96))
flow.fit(arms, context=hands, epochs=40, batch_size=500, lr=4e-3, random_state=0, verbose=0)

target = np.array([1.5, 0.6])
drawn = flow.sample(1000, context=target, random_state=0)
reached = joints(drawn)[:, -1]
error = np.linalg.norm(reached - target, axis=1)
print(f"a hand at {target}: half of the draws miss it by less than 0.04: {np.median(error) < 0.04}")
# > a hand at [1.5 0.6]: half of the draws miss it by less than 0.04: True

# The posterior is known here up to a constant: draws from the prior, kept where the hand is near.
prior = rng.normal(size=(2_000_000, 4)) * SPREAD
near = prior[np.linalg.norm(joints(prior)[:, -1] - target, axis=1) < 0.02]
gaps = np.abs(drawn.mean(0) - near.mean(0)), np.abs(drawn.std(0) - near.std(0))
print("means and spreads are those of the true posterior, to 0.25:", max(map(np.max, gaps)) < 0.25)
# > means and spreads are those of the true posterior, to 0.25: True

figure = Figure(figsize=(9, 4), layout="constrained")
axes = figure.subplots(1, 2, sharex=True, sharey=True)
for a, kept, title in ((axes[0], drawn, "conditional flow"), (axes[1], near, "rejection sampling")):
    for arm in joints(kept[:100]):
        a.plot(*arm.T, color="#1d1b19", alpha=0.12, linewidth=1)
        a.plot(*arm[-1], ".", color="#b8451f", markersize=3)
    a.axvline(0, color="#c9c3ba", linewidth=4, zorder=0)
    a.plot(*target, "x", color="#b8451f", markersize=9, markeredgewidth=2)
    a.set(title=title, xlim=(-0.3, 2.2), ylim=(-1.2, 1.5), xticks=[], yticks=[], aspect="equal")
figure.savefig("flow_inverse_kinematics.png", dpi=150)
print("wrote flow_inverse_kinematics.png")
# > wrote flow_inverse_kinematics.png
