"""Errors of the spline ops: the op, the argument, what was expected and what came."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ops.spline_cases import NAMES

from evidens import ops

X, W, D7 = torch.zeros(5, 3), torch.zeros(5, 3, 8), torch.zeros(5, 3, 7)
RIGHT = dict(x=X, widths=W, heights=W, derivatives=D7, parameters="nflows")
WRONG = {
    "bins too many for min_width": (ValueError, dict(min_width=0.2), r"min_width.*0\.2.*8 bins"),
    "bins too many for min_height": (ValueError, dict(min_height=0.2), r"min_height.*8 bins"),
    "negative floor": (ValueError, dict(min_width=-0.1), r"min_width.*-0\.1"),
    "min_derivative": (ValueError, dict(min_derivative=1.0), r"min_derivative.*1\.0"),
    "slope": (ValueError, dict(parameters="zuko", slope=0.0), r"slope.*0\.0"),
    "logit_scale": (ValueError, dict(logit_scale=0.0), r"logit_scale.*0\.0"),
    "map": (ValueError, dict(parameters="nsf"), r"parameters must be one of.*'nsf'"),
    "tails": (ValueError, dict(tails="cubic"), r"tails must be one of.*'cubic'"),
    "tails of another D": (ValueError, dict(tails=["linear"] * 2), r"D = 3.*got 2"),
    "too few derivatives": (
        ValueError,
        dict(derivatives=torch.zeros(5, 3, 6)),
        r"'linear'.*8 bins.*M - 1 = 7.*got 6",
    ),
    "derivatives of circular tails": (ValueError, dict(tails="circular"), r"M = 8.*got 7"),
    "derivatives without tails": (ValueError, dict(tails="none"), r"M \+ 1 = 9.*got 7"),
    "derivatives of a list": (
        ValueError,
        dict(tails=["linear", "circular", "linear"]),
        r"M \+ 1 = 9.*got 7",
    ),
    "bound": (ValueError, dict(bound=0.0), r"bound must be.*0\.0"),
    "infinite bound": (ValueError, dict(bound=math.inf), r"bound must be.*inf"),
    "bounds of another D": (ValueError, dict(bound=[1.0, 2.0]), r"bound must be.*D = 3"),
    "box with tails": (ValueError, dict(bound=(0.0, 1.0, 0.0, 1.0)), r"bound must be"),
    "one of tails": (ValueError, dict(tails=["linear"]), r"tails must be one name.*D = 3.*got 1"),
    "a set of bounds": (TypeError, dict(bound={1.0, 2.0}), r"bound must be.*got set"),
    "bounds of two axes": (ValueError, dict(bound=np.ones((3, 2))), r"bound must be.*1\.0"),
    "a name for a bound": (ValueError, dict(bound="2"), r"bound must be.*'?2"),
    "names for bounds": (ValueError, dict(bound=["1"] * 3), r"bound must be"),
    "four equal bounds": (
        ValueError,
        dict(
            x=torch.zeros(5, 4),
            widths=torch.zeros(5, 4, 8),
            heights=torch.zeros(5, 4, 8),
            derivatives=torch.zeros(5, 4, 9),
            tails="none",
            bound=[2.0] * 4,
        ),
        r"\(left, right, bottom, top\).*one bound for each of 4 features needs.*\['none'\] \* 4",
    ),
    "box upside down": (
        ValueError,
        dict(tails="none", derivatives=torch.zeros(5, 3, 9), bound=(1.0, 0.0, 0.0, 1.0)),
        r"left < right",
    ),
    "bound of knots": (
        ValueError,
        dict(parameters="knots", derivatives=W, bound=2.0),
        r"leave bound out",
    ),
    "heights of another M": (
        ValueError,
        dict(heights=torch.zeros(5, 3, 7)),
        r"heights.*\(5, 3, 7\)",
    ),
    "widths of another shape": (
        ValueError,
        dict(widths=torch.zeros(4, 3, 8)),
        r"widths.*\(5, 3\).*\(4, 3, 8\)",
    ),
    "no bins": (
        ValueError,
        dict(widths=torch.zeros(5, 3, 0), heights=torch.zeros(5, 3, 0)),
        r"at least one bin",
    ),
    "integers": (TypeError, dict(x=X.long()), r"x must be float32 or float64.*int64.*x\.float"),
    "another dtype": (TypeError, dict(widths=W.double()), r"one dtype.*widths\.to\(x\)"),
    "another device": (TypeError, dict(widths=W.to("meta")), r"one device.*meta"),
    "no tensor": (TypeError, dict(heights=[1.0]), r"heights must be a torch\.Tensor.*list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    kind, changes, message = WRONG[name]
    keywords = RIGHT | changes
    tensors = [keywords.pop(k) for k in NAMES]
    with pytest.raises(kind, match=r"evidens\.rational_quadratic_spline: .*" + message):
        ops.rational_quadratic_spline(*tensors, **keywords)


P = torch.zeros(5, 2, 23)
LAYER_WRONG = {
    "x of one axis": (ValueError, dict(x=torch.zeros(5)), r"x \(N, D\).*\(5,\)"),
    "params of two axes": (ValueError, dict(params=torch.zeros(5, 23)), r"params \(N, A, P\)"),
    "params of other rows": (
        ValueError,
        dict(params=torch.zeros(4, 2, 23)),
        r"params.*\(4, 2, 23\)",
    ),
    "params of other features": (
        ValueError,
        dict(active=None),
        r"params.*\(5, 3, 23\).*\(5, 2, 23\)",
    ),
    "params of another count": (ValueError, dict(bins=9), r"9 bins.*M - 1 = 8.*got 5"),
    "no bins": (ValueError, dict(bins=0), r"at least one bin"),
    "index out of range": (ValueError, dict(active=torch.tensor([0, 3])), r"active"),
    "negative index": (ValueError, dict(active=torch.tensor([0, -1])), r"active"),
    "index twice": (ValueError, dict(active=torch.tensor([1, 1])), r"active"),
    "index of two axes": (ValueError, dict(active=torch.tensor([[0, 1]])), r"active"),
    "mask": (TypeError, dict(active=torch.tensor([True, False, True])), r"active"),
    "list": (TypeError, dict(active=[0, 1]), r"active"),
}


@pytest.mark.parametrize("name", LAYER_WRONG)
def test_errors_of_a_layer(name):
    kind, changes, message = LAYER_WRONG[name]
    keywords = dict(x=X, params=P, active=torch.tensor([0, 2]), bins=8) | changes
    x, params = keywords.pop("x"), keywords.pop("params")
    with pytest.raises(kind, match=r"evidens\.spline_coupling: .*" + message):
        ops.spline_coupling(x, params, **keywords)


def test_only_keywords():
    with pytest.raises(TypeError):
        ops.spline_coupling(X, P, torch.tensor([0, 2]), 8)  # type: ignore[misc]
    with pytest.raises(TypeError):
        ops.rational_quadratic_spline(X, W, W, D7, True)  # type: ignore[misc]
