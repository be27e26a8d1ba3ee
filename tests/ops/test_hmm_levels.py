"""Hidden Markov models on every instruction set, from many Python threads, after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ops.hmm_cases import DTYPES, hmm

import evidens
from evidens import ops

TESTS = Path(__file__).parents[1]


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
