"""What the masked convolution and linear ops refuse, and how they say so."""

from __future__ import annotations

import pytest
import torch

from evidens import ops

X, W, BIAS = torch.zeros(2, 4, 5, 5), torch.zeros(6, 4, 3, 3), torch.zeros(6)
ROWS, LINKS = torch.zeros(5, 4), torch.zeros(6, 4)
INS, OUTS = torch.arange(4), torch.arange(6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"expected x \(N, C, H, W\), got \(4, 5, 5\)"),
        ({"weight": W[0]}, ValueError, r"expected weight \(O, C, kh, kw\)"),
        ({"x": X[:, :3]}, ValueError, "C = 3"),
        ({"weight": W[:, :, :2]}, ValueError, "odd kernel.*got 2 x 3.*zeros to 3 x 3"),
        ({"weight": W[..., :2]}, ValueError, "odd kernel.*got 3 x 2.*zeros to 3 x 3"),
        ({"weight": W[:0]}, ValueError, r"weight must not be empty, got \(0, 4, 3, 3\)"),
        ({"bias": BIAS[:3]}, ValueError, r"bias must have shape \(O,\) = \(6,\).*got \(3,\)"),
        ({"mask": "C"}, ValueError, r"'A', 'B' or \(3, 3\) booleans, got 'C'"),
        ({"mask": 7}, ValueError, "booleans, got 7"),
        ({"mask": ((True,) * 3,) * 2}, ValueError, "mask must be"),
        ({"mask": ((True,) * 2,) * 3}, ValueError, "mask must be"),
        ({"mask": torch.ones(3, 3)}, ValueError, "mask must be bool.*float32"),
        ({"mask": torch.ones(5, 3).bool()}, ValueError, r"\(3, 3\), got torch.bool \(5, 3\)"),
        ({"groups": 3}, ValueError, "groups = 3 must divide.*C = 4 and O = 6; choose multiples"),
        ({"groups": 4}, ValueError, "groups = 4 must divide"),
        ({"groups": 0}, ValueError, "groups must be an integer >= 1, got 0"),
        ({"groups": 1.0}, ValueError, "got 1.0"),
        ({"groups": True}, ValueError, "got True"),
        ({"x": X.int()}, TypeError, "x must be float32 or float64"),
        ({"x": X.numpy()}, TypeError, "x must be a torch.Tensor, got ndarray"),
        ({"weight": W.double()}, TypeError, r"weight is torch.float64.*weight.to\(x\)"),
        ({"bias": BIAS.double()}, TypeError, "bias is torch.float64"),
    ],
)
def test_conv(given, error, message):
    arguments = {"x": X, "weight": W, "bias": None, "mask": "A"} | given
    with pytest.raises(error, match=rf"evidens\.masked_conv2d: .*{message}"):
        ops.masked_conv2d(**arguments)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"x": torch.tensor(1.0)}, ValueError, r"x \(\*, I\) and weight \(O, I\), got \(\)"),
        ({"x": X}, ValueError, r"got \(2, 4, 5, 5\) and \(6, 4\)"),
        ({"weight": W}, ValueError, r"and weight \(O, I\)"),
        ({"weight": LINKS[:0]}, ValueError, "weight must not be empty"),
        ({"bias": BIAS[:4]}, ValueError, r"bias must have shape.*\(6,\).*got \(4,\)"),
        ({"in_degrees": OUTS}, ValueError, r"must have shape \(I,\) = \(4,\), got \(6,\)"),
        ({"out_degrees": INS}, ValueError, r"must have shape \(O,\) = \(6,\), got \(4,\)"),
        ({"in_degrees": INS.float()}, TypeError, "in_degrees must be int64 on cpu.*float32"),
        ({"out_degrees": [1] * 6}, TypeError, "out_degrees must be an int64 tensor, got list"),
        ({"in_order": OUTS}, ValueError, r"in_order must have shape \(I,\)"),
        ({"out_order": OUTS.int()}, TypeError, "out_order must be int64"),
        ({"weight": LINKS.double()}, TypeError, "weight is torch.float64"),
        ({"x": ROWS.long()}, TypeError, "x must be float32 or float64"),
    ],
)
def test_linear(given, error, message):
    arguments = {"x": ROWS, "weight": LINKS, "in_degrees": INS, "out_degrees": OUTS} | given
    with pytest.raises(error, match=rf"evidens\.masked_linear: .*{message}"):
        ops.masked_linear(**arguments)
