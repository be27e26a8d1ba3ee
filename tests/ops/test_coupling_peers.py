"""Affine coupling against the installed flow libraries, on random and on edge inputs.

Where a library gives NaN or infinity at the edges only its finite numbers are compared.
"""

from __future__ import annotations

import math

import pytest
import torch

from evidens import ops

EDGES = torch.tensor([0.0, 1e-8, 0.5, 2.0, 7.0, 15.0, 30.0], dtype=torch.float64)
each_direction = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def inputs(kind: str, n: int = 49, d: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (N, D) and raw scale and shift (N, D // 2), float64."""
    if kind == "random":
        x, both = torch.randn(n, d).double(), torch.randn(n, d).double()
        return x, *both.chunk(2, 1)
    edges = torch.cat((EDGES, -EDGES))
    grid = torch.cartesian_prod(edges, edges)
    x = grid[:, :1].expand(-1, d).clone()
    scale = grid[:, 1:].expand(-1, d // 2).clone()
    return x, scale, 10 * scale.sin()


class Given(torch.nn.Module):
    """A conditioner that returns what it was given, whatever it is asked."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return self.value


def assert_same(got, want):
    for a, b in zip(got, want):
        finite = b.isfinite()
        assert a.shape == b.shape
        assert not a.isnan().any()
        # Formulas that differ in the order of a few operations, on numbers up to 1e14.
        torch.testing.assert_close(a[finite], b[finite], rtol=1e-10, atol=1e-10)


each_input = pytest.mark.parametrize("kind", ["random", "edges"])


@each_input
@each_direction
@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("ATAN", dict(scale_map="atan")),
        ("ATAN", dict(scale_map="atan", clamp=1.3)),
        ("TANH", dict(scale_map="tanh", clamp=2.0)),
        ("SIGMOID", dict(scale_map="tanh", clamp=2.0)),  # 2 sigmoid(r) - 1 = tanh(r / 2)
    ],
)
def test_freia(kind, inverse, activation, options):
    blocks = pytest.importorskip("FrEIA.modules", reason="FrEIA is not installed")
    x, scale, shift = inputs(kind)
    values = iter((scale, shift))
    block = blocks.RNVPCouplingBlock(
        [(6,)],
        subnet_constructor=lambda *_: Given(torch.zeros(len(x), 3).double()),
        clamp=options.get("clamp", 2.0),
        clamp_activation=activation,
    )
    # The first half is transformed with these, the second one with zeros.
    block.subnet_s2, block.subnet_t2 = Given(next(values)), Given(next(values))
    (want,), logdet = block([x], rev=inverse)
    raw = scale / 2 if activation == "SIGMOID" else scale
    got = ops.affine_coupling(x, raw, shift, active=torch.arange(3), inverse=inverse, **options)
    assert_same(got, (want, logdet))


@each_input
@each_direction
@pytest.mark.parametrize("places", [(), (2, 2)], ids=str)
def test_nflows(kind, inverse, places):
    transforms = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    x, scale, shift = inputs(kind)
    if places:
        x, scale, shift = (t[:, :, None, None].repeat(1, 1, *places) for t in (x, scale, shift))
        x[..., 1] += 0.25
    mask = torch.tensor([0, 1, 0, 1, 1, 0])
    layer = transforms.AffineCouplingTransform(mask, lambda *_: Given(torch.cat((shift, scale), 1)))
    want = (layer.inverse if inverse else layer.forward)(x)
    got = ops.affine_coupling(
        x, scale, shift, active=mask.nonzero()[:, 0], scale_map="sigmoid", inverse=inverse
    )
    assert_same(got, want)


@each_input
@each_direction
def test_nflows_additive(kind, inverse):
    transforms = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    x, _, shift = inputs(kind)
    mask = torch.tensor([0, 1, 0, 1, 1, 0])
    layer = transforms.AdditiveCouplingTransform(mask, lambda *_: Given(shift))
    want = (layer.inverse if inverse else layer.forward)(x)
    got = ops.affine_coupling(x, None, shift, active=mask.nonzero()[:, 0], inverse=inverse)
    assert_same(got, want)


@each_input
@each_direction
@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_normflows(kind, inverse, scale_map):
    affine = pytest.importorskip("normflows.flows.affine", reason="normflows is not installed")
    x, scale, shift = inputs(kind)
    both = torch.stack((shift, scale), 2).flatten(1)
    layer = affine.coupling.AffineCoupling(Given(both), scale_map=scale_map)
    halves = [x[:, :3].clone(), x[:, 3:].clone()]
    (first, second), logdet = (layer.inverse if inverse else layer.forward)(halves)
    options = dict(active=torch.arange(3, 6))
    if scale_map == "exp":
        got = ops.affine_coupling(x, both[:, 1::2], both[:, 0::2], inverse=inverse, **options)
    elif scale_map == "sigmoid_inv":
        options |= dict(scale_map="sigmoid", clamp=0.0, inverse=inverse)
        got = ops.affine_coupling(x, both[:, 1::2], both[:, 0::2], **options)
    else:
        # Its 'sigmoid' divides: x / s + shift is the inverse direction with the shift -s shift.
        moved = -torch.sigmoid(both[:, 1::2] + 2) * both[:, 0::2]
        options |= dict(scale_map="sigmoid", clamp=0.0, inverse=not inverse)
        got = ops.affine_coupling(x, both[:, 1::2], moved, **options)
    assert_same(got, (torch.cat((first, second), 1), logdet))


@each_input
@each_direction
@pytest.mark.parametrize("slope", [None, 1e-4])
def test_zuko(kind, inverse, slope):
    transforms = pytest.importorskip("zuko.transforms", reason="zuko is not installed")
    x, scale, shift = inputs(kind)
    x = x[:, :3]
    transform = transforms.MonotonicAffineTransform(
        shift, scale, **({} if slope is None else {"slope": slope})
    )
    want = transform.inv(x) if inverse else transform(x)
    logdet = transform.log_abs_det_jacobian(x, want).sum(1)
    got = ops.affine_coupling(
        x, scale, shift, scale_map="bounded_exp", clamp=slope, inverse=inverse
    )
    assert_same(got, (want, -logdet if inverse else logdet))


@each_direction
def test_gradients_equal_those_of_nflows(inverse):
    transforms = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    x, scale, shift = (t.requires_grad_() for t in inputs("random"))
    mask = torch.tensor([0, 1, 0, 1, 1, 0])
    layer = transforms.AffineCouplingTransform(mask, lambda *_: Given(torch.cat((shift, scale), 1)))
    y, logdet = (layer.inverse if inverse else layer.forward)(x)
    want = torch.autograd.grad((y.square().sum() + logdet.sum()), (x, scale, shift))
    y, logdet = ops.affine_coupling(
        x, scale, shift, active=mask.nonzero()[:, 0], scale_map="sigmoid", inverse=inverse
    )
    got = torch.autograd.grad((y.square().sum() + logdet.sum()), (x, scale, shift))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@each_direction
def test_actnorm_of_nflows(inverse):
    transforms = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    layer = transforms.ActNorm(3).double().eval()
    with torch.no_grad():
        layer.log_scale.copy_(torch.tensor([0.3, -1.0, 2.0]))
        layer.shift.copy_(torch.tensor([1.0, -5.0, 0.1]))
    for shape in ((7, 3), (7, 3, 4, 5)):
        x = torch.randn(shape).double()
        want = (layer.inverse if inverse else layer.forward)(x)
        got = ops.actnorm(x, layer.log_scale, layer.shift, inverse=inverse)
        assert_same(got, want)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@each_direction
def test_lu_linear_of_nflows(inverse):
    transforms = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    layer = transforms.LULinear(5, identity_init=False).double()
    with torch.no_grad():
        layer.bias.normal_()
        lower, upper = layer._create_lower_upper()
        x = torch.randn(7, 5).double()
        want = (layer.inverse if inverse else layer.forward)(x)
        got = ops.invertible_linear(
            x, lower, upper, upper.diagonal().log(), bias=layer.bias, inverse=inverse
        )
    assert_same(got, want)
    assert math.isfinite(got[1].sum())
