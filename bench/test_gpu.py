"""The benchmarks for GPUs, tried on the CPU: the same code with another clock, at smoke size."""

from __future__ import annotations

import pytest
import torch

from . import cli, gpu, harness, machine, report

STEMS = cli.stems("cpu")


def test_every_stem_with_a_kernel_is_there():
    """Those of the CPU suite but for whole models, costs of calls, and annealing."""
    assert set(STEMS) == set(cli.stems()) - {"flows", "overhead", "rbm_partition"}


@pytest.mark.parametrize("stem", STEMS)
def test_smoke(stem):
    """Equality first, then a result with a limit, and floors that are judged at full size only."""
    content = cli.run(stem, "smoke", None, "", say=lambda *a, **k: None, device="cpu")
    results = content["results"]
    assert len({r["name"] for r in results}) == len(results) > 0
    for result in results:
        assert result["name"].startswith("gpu-")
        assert set(result["providers"]) >= {harness.OURS, gpu.TORCH}
        assert result["providers"][harness.OURS]["median"] > 0
        assert result["limit"]["fraction"] > 0
        assert result["floors"]
        assert result["reached"] is None
    assert report.terminal_table(results)


def test_a_wrong_result_is_refused():
    """Of a setup made here as of any other."""
    x = torch.ones(3)
    functions = {harness.OURS: lambda x: x * 1.01, gpu.TORCH: lambda x: x}
    made = gpu.setup(functions, functions[gpu.TORCH], [x], "cpu")
    case = gpu.case("stem", "work", "smoke", lambda: made)
    with pytest.raises(harness.CheckFailed, match="evidens and the oracle"):
        harness.measure(case)


def test_a_gpu_is_another_machine():
    """In the name of its file and in the tables."""
    block = {"cpu": "A", "isa": "v4", "threads": 2, "gpu": {"name": "NVIDIA X9 (1)", "driver": "5"}}
    assert machine.slug(block) == "nvidia-x9-1"
    assert report.machine_text(block) == "NVIDIA X9 (1), driver 5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu"], "only tries the code"),
        (["--device", "cpu", "--size", "smoke", "--json", "x"], "only tries the code"),
        (["--device", "cpu", "overhead"], "unknown stem 'overhead'"),
        (["--quick", "--size", "smoke"], "give one of them"),
    ],
)
def test_options_that_do_not_fit(options, message, capsys):
    """Each says what to do."""
    with pytest.raises(SystemExit):
        cli.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_measured(capsys):
    """An explicit request is refused."""
    with pytest.raises(SystemExit):
        cli.main(["--device", "cuda"])
    assert "torch.cuda.is_available() is False" in capsys.readouterr().err
