"""Hidden Markov models on every instruction set, from many Python threads, after a fork."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ops.hmm_cases import DTYPES, hmm
from ops.programs import TESTS, run

import evidens
from evidens import ops


def everything(case) -> list[torch.Tensor]:
    args, kwargs = case.padded()
    return [
        ops.hmm_log_likelihood(*args, **kwargs),
        *ops.hmm_forward_backward(*args, **kwargs)[:4],
        *ops.hmm_filter(*args, **kwargs),
        *ops.hmm_viterbi(*args, **kwargs),
        ops.hmm_sample_paths(*args, n=2, seed=5, **kwargs),
    ]


def test_python_threads_at_once():
    cases = [hmm(40, 60, 9, t, ragged=True, seed=s) for t in DTYPES for s in (0, 1)]
    cases += [hmm(2, 500, 20, t) for t in DTYPES]
    want = [everything(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(everything, cases), want):
                assert all(map(torch.equal, got, expected))


@pytest.mark.skipif(sys.platform != "linux", reason="forks; macOS forbids it after threads")
def test_forked_child():
    program = """
    import faulthandler, os, sys
    sys.path.insert(0, {tests!r})
    faulthandler.dump_traceback_later(60, exit=True)
    import torch
    from ops.hmm_cases import DTYPES, hmm
    from ops.test_hmm_levels import everything

    torch.set_num_threads(2)
    cases = [hmm(40, 60, 9, t, ragged=True) for t in DTYPES] + [hmm(2, 500, 20, t) for t in DTYPES]
    want = [everything(case) for case in cases]  # the pool has been used

    def same():
        return all(all(map(torch.equal, everything(c), w)) for c, w in zip(cases, want))

    child = os.fork()
    if child == 0:
        os._exit(0 if same() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert same()  # the parent's pool is as it was
    """
    run(program.format(tests=str(TESTS)))


@pytest.mark.parametrize("level", evidens.info()["isa"]["available"])
def test_every_level_agrees_with_the_reference(level):
    """Sequences and states around the width of a vector, both engines, long enough to redo."""
    program = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch, evidens
    from ops.hmm_cases import DTYPES, check, hmm
    torch.set_num_threads(1)
    assert evidens.info()["isa"]["chosen"] == {level!r}
    for b in (1, 2, 5, 9, 17, 33):
        for k in (1, 2, 7, 9, 16, 25):
            for dtype in DTYPES:
                check(hmm(b, 7, k, dtype, ragged=True, zeros=0.2))
    for dtype in DTYPES:
        check(hmm(20, 150, 6, dtype, scale=50.0, zeros=0.3))
        check(hmm(3, 150, 40, dtype, scale=50.0, zeros=0.3))
        check(hmm(6, 9, 10, dtype, varying=True, own_initial=True))
    print("done")
    """
    assert "done" in run(program.format(tests=str(TESTS), level=level), EVIDENS_ISA=level)


# --- messages that linear space loses -------------------------------------------------------------

# Frames, start, transition, and the log-likelihood: each loses a message in a way of its own.
F32, F64 = torch.float32, torch.float64
LOST = {
    "a floored density at the first frame": (
        F32, [[0, -1000.0]] + [[-12.0, 0]] * 9, [0.05, 0.95], [[1.0, 0], [0.1, 0.9]],
    ),
    "a tiny start": (F64, [[0, -300.0]] + [[-300.0, 0]] * 8, [1, 1e-300], [[1.0, 0], [0, 1]]),
    "tiny transitions": (
        F32, [[0.0, 0, 0]] * 3 + [[-30.0, -30, 0]] * 12, [1.0, 0, 0],
        [[1, 1e-25, 0], [0, 1, 1e-25], [0, 0, 1]],
    ),
    "tiny transitions in double": (
        F64, [[0.0, 0, 0]] * 3 + [[-300.0, -300, 0]] * 12, [1.0, 0, 0],
        [[1, 1e-170, 0], [0, 1, 1e-170], [0, 0, 1]],
    ),
    "potentials above one": (
        F32, [[0.0, 0], [0, -1000]] + [[-30.0, 0]] * 4, [0.5, 0.5], [[10.0, 0], [0, 10]],
    ),
    "a wide range of potentials": (
        F32, [[0, -104.5], [0, 0]], [1.0, 1], [[2e-12, 2e-12], [1e37, 2e-12]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("name", LOST)
def test_no_message_is_lost_unnoticed(name, varying, batch):
    dtype, frames, initial, transition = LOST[name]
    x = torch.tensor(frames, dtype=dtype).expand(batch, -1, -1).contiguous()
    pi, a = torch.tensor(initial, dtype=dtype), torch.tensor(transition, dtype=dtype)
    if varying:
        a = a.expand(batch, x.shape[1] - 1, -1, -1).contiguous()
    with evidens.backend("reference"):
        want = ops.hmm_filter(x, pi, a)
    both = ops.hmm_forward_backward(x, pi, a)
    filtered = ops.hmm_filter(x, pi, a)
    for got in (ops.hmm_log_likelihood(x, pi, a), both.log_likelihood, filtered.log_likelihood):
        torch.testing.assert_close(got.double(), want.log_likelihood, rtol=1e-6, atol=0)
    torch.testing.assert_close(filtered.filtered, want.filtered, rtol=1e-4, atol=1e-7)
    # The last frame's filter is its posterior, from which paths are drawn.
    drawn = ops.hmm_sample_paths(x, pi, a, n=200, seed=1)[..., -1]
    certain = want.filtered[:, -1].max(1)
    at = certain.values > 0.9999
    assert (drawn[:, at] == certain.indices[at]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_op_has_the_same_likelihood(dtype):
    """Contradicting frames, transitions and starts of any size, zeros among them."""
    generator = torch.Generator().manual_seed(0)
    size = 30.0 if dtype is F32 else 300.0

    def rand(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    for k, batch, time, kind in ((2, 3, 6, 0), (3, 64, 9, 1), (4, 3, 14, 2), (3, 9, 12, 3)) * 8:
        x = -size * rand(batch, time, k) * (rand(batch, time, k) < 0.5)
        x[:, :2] *= 10.0 ** torch.randint(0, 3, (batch, 2, k), generator=generator)
        a = rand(k, k) * 10 ** (-size * rand(k, k) / 1.2) if kind in (1, 2) else rand(k, k)
        a = a.triu() if kind in (0, 2) else a
        a = torch.eye(k).double() + torch.full((k - 1,), 1e-20).double().diag(1) if kind == 3 else a
        pi = rand(k) * 10 ** (-size * rand(k))
        x, pi, a = x.to(dtype), (pi / pi.sum()).to(dtype), (a / a.sum(1, keepdim=True)).to(dtype)
        with evidens.backend("reference"):
            want = ops.hmm_log_likelihood(x.double(), pi.double(), a.double())
        for got in (
            ops.hmm_log_likelihood(x, pi, a),
            ops.hmm_filter(x, pi, a).log_likelihood,
            ops.hmm_forward_backward(x, pi, a).log_likelihood,
        ):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
