"""Coupling layers of any size, mask, dtype and direction are undone, and sum their determinants."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evidens.nn import MLP, AffineCoupling, Chain, InvertibleLinear, SplineCoupling

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-3}


@settings(max_examples=60)
@given(
    features=st.integers(1, 9),
    rows=st.integers(0, 5),
    seed=st.integers(0, 2**31),
    spline=st.booleans(),
    bins=st.integers(1, 12),
    context=st.integers(0, 2),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_coupling_is_undone(features, rows, seed, spline, bins, context, spread, dtype):
    torch.manual_seed(seed)
    mask = torch.rand(features) < 0.5
    mask[torch.randint(features, ())] = True
    layers: list[torch.nn.Module] = [InvertibleLinear(features, init="rotation")]
    for chosen in (mask, ~mask if not mask.all() else mask):
        if spline:
            sizes = SplineCoupling.sizes(features, mask=chosen, bins=bins)
            net = MLP(*sizes, (8,), context=context, zero_init=False)
            layers.append(SplineCoupling(features, net, bins=bins, mask=chosen, bound=2.0))
        else:
            sizes = AffineCoupling.sizes(features, mask=chosen)
            net = MLP(*sizes, (8,), context=context, zero_init=False)
            layers.append(AffineCoupling(features, net, mask=chosen, scale_map="tanh"))
    flow = Chain(*layers).to(dtype)
    x = spread * torch.randn(rows, features, dtype=dtype)
    c = torch.randn(rows, context, dtype=dtype) if context else None
    y, logdet = flow(x, c)
    back, opposite = flow.inverse(y, c)
    assert y.dtype == logdet.dtype == dtype
    atol = TOLERANCE[dtype] * (1 + spread)
    torch.testing.assert_close(back, x, rtol=0, atol=atol)
    torch.testing.assert_close(logdet, -opposite, rtol=0, atol=atol * features)
