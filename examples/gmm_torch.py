"""A mixture inside your own PyTorch model, and a mixture that sees its data in chunks.

`evidens.ops.gmm_log_prob` is a differentiable op: here it is the base density of a small
normalizing flow.  Every feature goes through a learnt arcsinh, which takes its long tail away, and
the mixture describes what comes out; all parameters, the mixture's too, follow the gradient.

Lines that begin with `# >` show what is printed.
"""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

import evidens

torch.manual_seed(0)
x = torch.tensor(load_breast_cancer().data, dtype=torch.float64)
x = x[torch.randperm(len(x))]
mean, std = x[:400].mean(0), x[:400].std(0)
train, held_out = ((part - mean) / std for part in (x[:400], x[400:]))
D, K = x.shape[1], 4


class Flow(torch.nn.Module):
    """log p(x) = log mixture(y) + log |dy/dx|, with y = arcsinh(exp(a) (x - c)) per feature."""

    def __init__(self, start: evidens.GaussianMixture, a: torch.Tensor, c: torch.Tensor):
        super().__init__()
        self.a, self.c = torch.nn.Parameter(a.clone()), torch.nn.Parameter(c.clone())
        self.log_weights = torch.nn.Parameter(start.weights_.log())
        self.means = torch.nn.Parameter(start.means_.clone())
        self.log_precisions = torch.nn.Parameter(start.precisions_cholesky_.log())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows (N, D) to log-densities (N,) in nats."""
        u = self.a.exp() * (x - self.c)
        log_slope = self.a - 0.5 * torch.log1p(u * u)
        log_p = evidens.ops.gmm_log_prob(
            u.asinh(),
            self.log_weights.log_softmax(0),
            self.means,
            self.log_precisions.exp(),
            "diag",
        )
        return log_p + log_slope.sum(1)


# --- before: the mixture alone, by EM; tensors in, tensors out ------------------------------------
mixture = evidens.GaussianMixture(K, covariance_type="diag", reg_covar=1e-3, random_state=0)
mixture.fit(train)
print(f"mixture alone: {mixture.log_prob(held_out).mean():.1f} nats per held-out row")
# > mixture alone: -29.2 nats per held-out row

# --- after: the same size of mixture behind the learnt features -----------------------------------
a, c = torch.zeros(D, dtype=x.dtype), train.amin(0)
start = mixture.fit((train - c).asinh())
flow = Flow(start, a, c)
optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
for _ in range(300):
    optimizer.zero_grad()
    loss = -flow(train).mean()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    print(f"flow and mixture: {flow(held_out).mean():.1f} nats per held-out row")
# > flow and mixture: -26.4 nats per held-out row

# --- chunks: rows that come one batch at a time, and are never held together ----------------------
truth = evidens.GaussianMixture.from_parameters(
    torch.tensor([0.5, 0.3, 0.2], dtype=x.dtype),
    torch.tensor([[0, 0], [4, 0], [0, 6]], dtype=x.dtype),
    torch.tensor([[1, 0.5], [0.5, 1]], dtype=x.dtype),
    covariance_type="tied",
    random_state=np.random.RandomState(0),
)
test = truth.sample(20_000)[0]
online = evidens.GaussianMixture(3, random_state=0)
for _ in range(100):
    online.partial_fit(truth.sample(1_000)[0])
print(f"after {online.n_samples_seen_:,.0f} rows: {online.score(test):.3f} nats per row")
print(f"the truth: {truth.score(test):.3f} nats per row")
# > after 100,000 rows: -3.696 nats per row
# > the truth: -3.696 nats per row

# `fit` takes anything that gives its chunks again for each pass: files, a DataLoader, a list.
chunks = [truth.sample(1_000)[0] for _ in range(100)]
batch = evidens.GaussianMixture(3, random_state=0).fit(chunks)
print("weights:", *(f"{w:.2f}" for w in batch.weights_.sort(descending=True).values))
# > weights: 0.50 0.30 0.20
