"""Every error of the hmm ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.hmm_cases import (
    DTYPES,
    PUBLIC,
    call,
)

from evidens import ops

F32, F64 = DTYPES


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


# B, T, K: lanes of sequences, lanes of states, one sequence alone.
SHAPES = [(1, 12, 3), (9, 12, 4), (2, 12, 17), (17, 9, 33)]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


I64 = torch.int64


def padded(**changes):
    return (
        dict(
            log_obs=torch.zeros(4, 5, 3), initial=torch.ones(3) / 3, transition=torch.ones(3, 3) / 3
        )
        | changes
    )


def packed(**changes):
    return padded(log_obs=torch.zeros(20, 3)) | changes


WRONG = {
    "one axis": (ValueError, padded(log_obs=torch.zeros(3)), r"\(B, T, K\).*\(N, K\).*got \(3,\)"),
    "four axes": (ValueError, padded(log_obs=torch.zeros(2, 4, 5, 3)), r"got \(2, 4, 5, 3\)"),
    "no state": (ValueError, padded(log_obs=torch.zeros(4, 5, 0)), r"at least one.*\(4, 5, 0\)"),
    "integer log_obs": (
        TypeError,
        padded(log_obs=torch.zeros(4, 5, 3, dtype=I64)),
        r"log_obs must be float32 or float64.*torch\.int64.*log_obs\.float\(\)",
    ),
    "complex log_obs": (TypeError, padded(log_obs=torch.zeros(4, 5, 3) * 1j), r"complex64"),
    "a NumPy array": (
        TypeError,
        padded(log_obs=np.zeros((4, 5, 3))),
        r"log_obs must be a torch.Tensor, got ndarray.*as_tensor\(log_obs\)",
    ),
    "a list": (TypeError, padded(initial=[0.5, 0.5]), r"initial must be a torch.Tensor, got list"),
    "nothing": (TypeError, padded(transition=None), r"transition must be.*got NoneType"),
    "initial of another K": (
        ValueError,
        padded(initial=torch.ones(4)),
        r"initial.*\(K,\) = \(3,\) or \(B, K\) = \(4, 3\).*\(4, 5, 3\), got \(4,\)",
    ),
    "initial of another B": (ValueError, padded(initial=torch.ones(5, 3)), r"got \(5, 3\)"),
    "initial of another B, packed": (
        ValueError,
        packed(initial=torch.ones(4, 3)),
        r"\(B, K\) = \(1, 3\).*got \(4, 3\)",
    ),
    "transition of another K": (
        ValueError,
        padded(transition=torch.ones(3, 4)),
        r"transition.*\(K, K\) = \(3, 3\) or \(B, T - 1, K, K\) = \(4, 4, 3, 3\).*got \(3, 4\)",
    ),
    "transition for every frame": (
        ValueError,
        padded(transition=torch.ones(4, 5, 3, 3)),
        r"\(4, 4, 3, 3\).*got \(4, 5, 3, 3\)",
    ),
    "varying transition in the other layout": (
        ValueError,
        padded(transition=torch.ones(16, 3, 3)),
        r"\(4, 4, 3, 3\).*got \(16, 3, 3\)",
    ),
    "varying transition, packed": (
        ValueError,
        packed(transition=torch.ones(20, 3, 3)),
        r"\(N - number of sequences that have frames, K, K\) = \(19, 3, 3\).*got \(20, 3, 3\)",
    ),
    "varying transition, packed with empty sequences": (
        ValueError,
        packed(transition=torch.ones(19, 3, 3), offsets=torch.tensor([0, 0, 7, 20, 20])),
        r"= \(18, 3, 3\).*got \(19, 3, 3\)",
    ),
    "mixed dtypes": (
        TypeError,
        padded(initial=torch.ones(3, dtype=F64)),
        r"one dtype.*log_obs is torch\.float32 on cpu, initial is torch\.float64.*\.to\(log_obs\)",
    ),
    "mixed dtypes of transition": (
        TypeError,
        padded(transition=torch.ones(3, 3, dtype=I64)),
        r"transition is torch\.int64",
    ),
    "mixed devices": (
        TypeError,
        padded(transition=torch.ones(3, 3, device="meta")),
        r"one device.*transition is torch\.float32 on meta",
    ),
    "lengths with packed": (
        ValueError,
        packed(lengths=torch.tensor([20])),
        r"lengths belong to a padded.*got a packed one \(20, 3\); pass offsets",
    ),
    "offsets with padded": (
        ValueError,
        padded(offsets=torch.tensor([0, 20])),
        r"offsets belong to a packed.*got a padded one \(4, 5, 3\); pass lengths",
    ),
    "lengths of another B": (
        ValueError,
        padded(lengths=torch.tensor([5, 5, 5])),
        r"lengths must have shape \(B,\) = \(4,\).*got \(3,\)",
    ),
    "lengths with two axes": (
        ValueError,
        padded(lengths=torch.ones(4, 1, dtype=I64)),
        r"lengths must have shape.*got \(4, 1\)",
    ),
    "lengths as a list": (
        TypeError,
        padded(lengths=[5, 5, 5, 5]),
        r"lengths must be an int64 tensor, got list.*as_tensor\(lengths\)",
    ),
    "lengths of another dtype": (
        TypeError,
        padded(lengths=torch.full((4,), 5, dtype=torch.int32)),
        r"lengths must be int64 on cpu, got torch\.int32",
    ),
    "lengths too long": (
        ValueError,
        padded(lengths=torch.tensor([5, 5, 6, 0])),
        r"lengths must lie in 0 \.\. T = 5, got values from 0 to 6",
    ),
    "negative lengths": (
        ValueError,
        padded(lengths=torch.tensor([5, -1, 5, 5])),
        r"lengths must lie in 0 \.\. T = 5, got values from -1 to 5",
    ),
    "offsets that stop early": (
        ValueError,
        packed(offsets=torch.tensor([0, 5, 19])),
        r"offsets must begin with 0, never fall and end with N = 20, got offsets from 0 to 19",
    ),
    "offsets that run over": (ValueError, packed(offsets=torch.tensor([0, 21])), r"from 0 to 21"),
    "offsets that begin late": (ValueError, packed(offsets=torch.tensor([1, 20])), r"from 1 to 20"),
    "offsets that fall": (
        ValueError,
        packed(offsets=torch.tensor([0, 9, 8, 20])),
        r"got offsets that fall",
    ),
    "no offsets": (
        ValueError,
        packed(offsets=torch.zeros(0, dtype=I64)),
        r"offsets must have shape \(B \+ 1,\) = at least one entry.*got \(0,\)",
    ),
    "offsets of floats": (
        TypeError,
        packed(offsets=torch.tensor([0.0, 20.0])),
        r"offsets must be int64 on cpu, got torch\.float32",
    ),
}


@pytest.mark.parametrize("op", PUBLIC)
@pytest.mark.parametrize("what", WRONG)
def test_errors(op, what):
    error, arguments, message = WRONG[what]
    with pytest.raises(error, match=rf"^evidens\.{op}: .*{message}"):
        call(op, **arguments)


@pytest.mark.parametrize(
    ("error", "weight", "message"),
    [
        (ValueError, torch.ones(5), r"weight must have shape \(B,\) = \(4,\).*got \(5,\)"),
        (ValueError, torch.ones(4, 1), r"weight.*got \(4, 1\)"),
        (TypeError, torch.ones(4, dtype=F64), r"weight is torch\.float64"),
        (TypeError, torch.ones(4, dtype=I64), r"weight is torch\.int64"),
        (TypeError, [1.0] * 4, r"weight must be a torch.Tensor, got list"),
    ],
)
def test_errors_of_weight(error, weight, message):
    with pytest.raises(error, match=rf"^evidens\.hmm_forward_backward: .*{message}"):
        ops.hmm_forward_backward(**padded(weight=weight))


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (
            ValueError,
            dict(lengths=torch.tensor([5, 0, 5, 5])),
            r"lengths must be at least 1 without a state.*pass state",
        ),
        (ValueError, dict(log_obs=torch.zeros(4, 0, 3)), r"at least 1 without a state"),
        (
            ValueError,
            dict(state=torch.ones(4, 3), transition=torch.ones(4, 4, 3, 3)),
            r"transition must be the shared \(K, K\) = \(3, 3\) one, got \(4, 4, 3, 3\)",
        ),
        (ValueError, dict(state=torch.ones(3)), r"state.*\(B, K\) = \(4, 3\).*got \(3,\)"),
        (ValueError, dict(state=torch.ones(5, 3)), r"state.*got \(5, 3\)"),
        (TypeError, dict(state=torch.ones(4, 3, dtype=F64)), r"state is torch\.float64"),
        (TypeError, dict(state=[0.0]), r"state must be a torch.Tensor, got list"),
    ],
)
def test_errors_of_state(error, changes, message):
    with pytest.raises(error, match=rf"^evidens\.hmm_filter: .*{message}"):
        ops.hmm_filter(**padded(**changes))


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (ValueError, dict(n=0, seed=0), r"n must be in 1 \.\. 2\^32, got 0"),
        (ValueError, dict(n=-3, seed=0), r"got -3"),
        (TypeError, dict(n=1.5, seed=0), r"integers, got float and int"),
        (TypeError, dict(n=1, seed=None), r"integers, got int and NoneType"),
    ],
)
def test_errors_of_draws(error, changes, message):
    with pytest.raises(error, match=rf"^evidens\.hmm_sample_paths: .*{message}"):
        ops.hmm_sample_paths(**padded(**changes))


def test_a_seed_is_demanded():
    with pytest.raises(TypeError, match="seed"):
        ops.hmm_sample_paths(**padded())


@pytest.mark.parametrize("what", ["too long", "negative", "before the first row", "steps"])
def test_inner_ops_refuse_sequences_outside_of_their_rows(what):
    """Wherever they come from, nothing reads or writes beyond a tensor."""
    x, pi, a = torch.zeros(20, 3), torch.ones(3), torch.ones(3, 3)
    starts, lengths, first = torch.tensor([0, 10]), torch.tensor([10, 10]), torch.tensor([0, 9])
    if what == "too long":
        lengths = torch.tensor([10, 11])
    elif what == "negative":
        lengths = torch.tensor([10, -1])
    elif what == "before the first row":
        starts = torch.tensor([-1, 10])
    else:
        a = torch.ones(17, 3, 3)
    for name, more in (
        ("hmm_log_likelihood", ()),
        ("hmm_forward_backward", (None, False)),
        ("hmm_filter", ()),
        ("hmm_viterbi", ()),
        ("hmm_sample_paths", (0, 1)),
    ):
        op = getattr(torch.ops.evidens, name)
        for scale in (1, 40):  # few sequences are checked in another way than many
            where = starts.repeat(scale), lengths.repeat(scale), first.repeat(scale)
            with pytest.raises(ValueError, match=rf"^evidens\.{name}: lengths must lie in 0"):
                op(x, pi, a, *where, *more)
