"""Philox: published known answers, and the Triton kernel against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch

from evidens.kernels import philox as kernel
from evidens.reference import philox as reference

DTYPES = [torch.float32, torch.float64]
# Random123 1.14, tests/kat_vectors, philox4x32 10: counter, key, output.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize("counter, key, output", KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_reference_known_answers(counter, key, output):
    assert torch.equal(reference.philox4x32(words(counter), words(key)), words(output))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_uniform_is_made_of_the_known_words(dtype, device):
    w = words(KNOWN_ANSWERS[0][2])
    if dtype == torch.float32:
        expected = (w >> 8).float() / 2**24
    else:
        expected = ((w[::2] >> 5) * 2**26 + (w[1::2] >> 6)).double() / 2**53
    columns = len(expected)
    assert torch.equal(reference.philox_uniform(0, 0, 1, columns, dtype)[0], expected)
    actual = kernel.philox_uniform(0, 0, 1, columns, dtype, device=device)
    assert torch.equal(actual[0].cpu(), expected)


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("seed", [0, 2**64 - 1, 12345678901234567, -3])
@pytest.mark.parametrize("step, offset", [(0, 0), (1, 1), (2**32 - 1, 2**32 - 2), (7, 2**40 + 5)])
@pytest.mark.parametrize("rows, columns", [(1, 1), (5, 7), (9, 1030)])
def test_matches_the_reference(seed, step, rows, columns, dtype, offset, device):
    actual = kernel.philox_uniform(seed, step, rows, columns, dtype, offset, device=device)
    expected = reference.philox_uniform(seed, step, rows, columns, dtype, offset)
    assert actual.dtype == dtype
    assert actual.shape == (rows, columns)
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("rows, columns", [(0, 4), (4, 0), (0, 0)])
def test_empty(rows, columns, device):
    assert kernel.philox_uniform(1, 0, rows, columns, device=device).shape == (rows, columns)
    assert reference.philox_uniform(1, 0, rows, columns).shape == (rows, columns)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_a_value_depends_on_its_place_alone(dtype, device):
    whole = kernel.philox_uniform(5, 3, 11, 600, dtype, device=device)
    corner = kernel.philox_uniform(5, 3, 4, 17, dtype, row_offset=7, device=device)
    assert torch.equal(whole[7:, :17], corner)
    assert not torch.equal(whole, kernel.philox_uniform(5, 4, 11, 600, dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_reference_is_uniform(dtype):
    u = reference.philox_uniform(1, 0, 400, 256, dtype).double().flatten()
    assert u.min() >= 0
    assert u.max() < 1
    # Kolmogorov's statistic: 1.95 / sqrt(n) is passed by a true generator once in a thousand.
    n = u.numel()
    grid = torch.arange(n, dtype=torch.float64)
    u = u.sort().values
    distance = torch.maximum((u - grid / n).abs().max(), ((grid + 1) / n - u).abs().max())
    assert distance < 1.95 / n**0.5


@pytest.mark.parametrize("module", [kernel, reference], ids=["kernel", "reference"])
def test_other_dtypes_are_refused(module):
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.float16"):
        module.philox_uniform(0, 0, 1, 1, torch.float16)
