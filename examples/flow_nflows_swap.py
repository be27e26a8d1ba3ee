"""Kernels of evidens in a model that nflows built and trained.

Two classes, a few lines each: a coupling layer of nflows whose arithmetic is one op.  The layers of
the model change their class and nothing else, so its weights, its optimizer and its files stay.

Needs nflows.  Lines that begin with `# >` show what is printed; the times, which depend on the
machine, go to standard error.
"""

import sys
import time

import torch
from nflows import distributions, flows, nn, transforms
from sklearn.datasets import load_breast_cancer

import evidens

torch.manual_seed(0)
x = torch.tensor(load_breast_cancer().data, dtype=torch.float32)
x = x[torch.randperm(len(x))].log1p()
x = (x - x.mean(0)) / x.std(0)
D = x.shape[1]


def net(inputs, outputs):
    return nn.nets.ResidualNet(inputs, outputs, hidden_features=64)


# --- before: a model of nflows --------------------------------------------------------------------
layers = []
for i in range(3):
    mask = torch.arange(D) % 2 == i % 2
    layers += [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, net, num_bins=8, tails="linear", tail_bound=3.0
        ),
        transforms.AffineCouplingTransform(~mask, net),
        transforms.RandomPermutation(D),
    ]
chain = transforms.CompositeTransform(layers)
model = flows.Flow(chain, distributions.StandardNormal([D]))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


def step():
    optimizer.zero_grad()
    loss = -model.log_prob(x).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


losses = [step() for _ in range(31)]
print(f"nflows: {losses[0]:.1f} nats per row before, {losses[-1]:.1f} after 30 steps")
# > nflows: 47.4 nats per row before, 23.8 after 30 steps


# --- the swap -------------------------------------------------------------------------------------
class Spline(transforms.PiecewiseRationalQuadraticCouplingTransform):
    """Split, spline and merge are one op."""

    def run(self, x, context, inverse):
        """Both directions."""
        params = self.transform_net(x[:, self.identity_features], context)
        return evidens.ops.spline_coupling(
            x,
            params.unflatten(1, (self.num_transform_features, -1)),
            active=self.transform_features,
            bins=self.num_bins,
            bound=self.tail_bound,
            logit_scale=self.transform_net.hidden_features**-0.5,
            inverse=inverse,
        )

    def forward(self, x, context=None):
        """From data to noise."""
        return self.run(x, context, False)

    def inverse(self, y, context=None):
        """From noise to data."""
        return self.run(y, context, True)


class Affine(transforms.AffineCouplingTransform):
    """The same for scale and shift."""

    def run(self, x, context, inverse):
        """Both directions."""
        shift, scale = self.transform_net(x[:, self.identity_features], context).chunk(2, 1)
        return evidens.ops.affine_coupling(
            x,
            scale,
            shift,
            active=self.transform_features,
            scale_map="sigmoid",
            inverse=inverse,
        )

    forward, inverse = Spline.forward, Spline.inverse


def swap(model, classes):
    for layer in model.modules():
        layer.__class__ = classes.get(type(layer), type(layer))


OURS = {
    transforms.PiecewiseRationalQuadraticCouplingTransform: Spline,
    transforms.AffineCouplingTransform: Affine,
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


# --- the same numbers -----------------------------------------------------------------------------
def evaluate():
    """Log-densities of the rows, the gradients of their mean and the way back, in float64."""
    model.double().zero_grad()
    log_prob = model.log_prob(x.double())
    log_prob.mean().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    rows, _ = chain.inverse(x.double())
    model.float()
    return {"log-density": log_prob, "gradients": gradients, "inverse": rows}


theirs = evaluate()
swap(model, OURS)
for what, found in evaluate().items():
    print(f"{what} within 1e-6: {bool((found - theirs[what]).abs().max() < 1e-6)}")
# > log-density within 1e-6: True
# > gradients within 1e-6: True
# > inverse within 1e-6: True


# --- in less time ---------------------------------------------------------------------------------
def seconds(work):
    """The best of five."""
    best = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        best.append(time.perf_counter() - started)
    return min(best)


WORK = {"a training step": step, "1000 samples": lambda: model.sample(1000)}
after = {name: seconds(work) for name, work in WORK.items()}
swap(model, THEIRS)
for name, work in WORK.items():
    print(f"{name}: {seconds(work) / after[name]:.1f} times as fast", file=sys.stderr)
