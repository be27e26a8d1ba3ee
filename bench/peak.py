"""Peak memory of one piece of work beyond its data, measured in a process of its own.

That process first does the work on a little data (imports, thread pools, BLAS buffers), gives what
that left back to the system and then counts how far the resident set grows over the whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np

MB = 1e6
_STATUS = Path("/proc/self/status")


def _resident(field: str) -> int:
    """Bytes: "VmRSS" now, "VmHWM" at most."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class _Peak:
    """Highest resident set within the block: the kernel's own mark, else a sampling thread."""

    def __enter__(self) -> _Peak:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.how = "high-water mark"
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.how = "sampled"
        self.before = self.peak = _resident("VmRSS")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, _resident("VmRSS"))

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        last = _resident("VmHWM" if self.how == "high-water mark" else "VmRSS")
        self.peak = max(self.peak, last)


def _fit(job: dict) -> dict:
    import torch
    from threadpoolctl import threadpool_limits

    from .mixture_data import mixture_data, mixture_factory, start_of

    torch.set_num_threads(job["threads"])
    factory = mixture_factory(job["provider"])
    x, start = mixture_data(job["n"], job["d"], job["k"], "float32", "diag")
    given = {"start": start_of(start), "means": {"means_init": start.means.numpy()}}
    options = dict(
        covariance_type="diag", max_iter=2, tol=0.0, random_state=0, **given.get(job["init"], {})
    )
    warnings.simplefilter("ignore")
    with threadpool_limits(limits=job["threads"]):
        factory(job["k"], **options).fit(x[:4096].copy())
        with _Peak() as memory:
            started = time.perf_counter()
            model = factory(job["k"], **options).fit(x)
            seconds = time.perf_counter() - started
    return {
        "mb": (memory.peak - memory.before) / MB,
        "x_mb": x.nbytes / MB,
        "seconds": seconds,
        "how": memory.how,
        "means": np.asarray(model.means_, np.float64).tolist(),
    }


def _likelihood(job: dict) -> dict:
    import torch
    from threadpoolctl import threadpool_limits

    from . import torch_hmm
    from .hmm_data import log_observations

    torch.set_num_threads(job["threads"])
    if job["provider"] == "evidens":
        from evidens.ops import hmm_log_likelihood as function
    else:
        function = getattr(torch_hmm, job["provider"])
    arguments = log_observations(job["b"], job["t"], job["d"], job["k"])
    few = tuple(a.clone().requires_grad_() for a in (arguments[0][:, :3], *arguments[1:]))
    whole = tuple(a.requires_grad_() for a in arguments)
    with threadpool_limits(limits=job["threads"]):
        torch.autograd.grad(function(*few).sum(), few)
        with _Peak() as memory:
            started = time.perf_counter()
            value = function(*whole)
            slopes = torch.autograd.grad(value.sum(), whole)
            seconds = time.perf_counter() - started
    return {
        "mb": (memory.peak - memory.before) / MB,
        "seconds": seconds,
        "how": memory.how,
        "log_likelihood": value.tolist(),
        "initial": slopes[1].tolist(),
        "transition": slopes[2].tolist(),
    }


def _spline(job: dict) -> dict:
    import torch

    from .flow_data import gradients_of_results, spline_arguments
    from .flow_functions import spline

    torch.set_num_threads(job["threads"])
    function = spline(job["provider"])
    whole = spline_arguments(job["n"], job["d"], job["bins"])
    few = tuple(a[:64].clone().requires_grad_() for a in whole)
    whole = tuple(a.requires_grad_() for a in whole)
    for arguments in (few, whole):
        shape = arguments[0].shape
        incoming = gradients_of_results(shape, shape)
        with _Peak() as memory:
            started = time.perf_counter()
            results = function(*arguments)
            slopes = torch.autograd.grad(results, arguments, incoming)
            seconds = time.perf_counter() - started
    gradients = sum(slope.nbytes for slope in slopes)
    return {
        "mb": (memory.peak - memory.before - gradients) / MB,
        "seconds": seconds,
        "how": memory.how,
        "norms": [float(array.detach().double().norm()) for array in (*results, *slopes)],
    }


def _logistic_mixture(job: dict) -> dict:
    import torch

    from .mixture_images import image_arguments

    torch.set_num_threads(job["threads"])
    if job["provider"] == "evidens":
        from evidens.ops import logistic_mixture_log_prob as function
    else:
        from .torch_logistic_mixture import log_prob as function
    for n in (1, job["n"]):
        x, params = image_arguments(n, job["side"], job["mixtures"])
        params.requires_grad_()
        with _Peak() as memory:
            started = time.perf_counter()
            value = function(x, params)
            (slopes,) = torch.autograd.grad(value.sum(), params)
            seconds = time.perf_counter() - started
    return {
        "mb": (memory.peak - memory.before - slopes.nbytes) / MB,
        "seconds": seconds,
        "how": memory.how,
        "norms": [float(array.detach().double().norm()) for array in (value, slopes)],
    }


def measure_peak(provider: str, n: int, d: int, k: int, init: str, threads: int) -> dict:
    """Peak of ``fit`` in MB beyond X for a diagonal float32 mixture, two iterations.

    ``init`` is "start" (weights, means and precisions given), "means" (means given) or "default".
    """
    return _measure(dict(work="fit", provider=provider, n=n, d=d, k=k, init=init, threads=threads))


def measure_likelihood_peak(provider: str, b: int, t: int, d: int, k: int, threads: int) -> dict:
    """Peak of the log-likelihood of an HMM and its gradients in MB beyond the arguments, float64.

    ``provider`` is "evidens" or a function of ``torch_hmm``.
    """
    return _measure(dict(work="likelihood", provider=provider, b=b, t=t, d=d, k=k, threads=threads))


def measure_spline_peak(provider: str, n: int, d: int, bins: int, threads: int) -> dict:
    """Peak of a spline and its gradients in MB beyond the arguments and their gradients, float32.

    ``provider`` is one that ``flow_functions.spline`` knows.
    """
    return _measure(dict(work="spline", provider=provider, n=n, d=d, bins=bins, threads=threads))


def measure_logistic_mixture_peak(
    provider: str, n: int, side: int, mixtures: int, threads: int
) -> dict:
    """Peak of the loss and its gradient in MB beyond the arguments and their gradients, float32.

    ``provider`` is "evidens" or "torch", which is ``torch_logistic_mixture``.
    """
    job = dict(provider=provider, n=n, side=side, mixtures=mixtures, threads=threads)
    return _measure(dict(work="logistic_mixture", **job))


def _measure(job: dict) -> dict:
    if not _STATUS.exists():
        raise OSError("peak memory is read from /proc, which this system does not have")
    # The folder that holds the package need not be on the path here, under pytest for one.
    root = str(Path(__file__).parents[__package__.count(".") + 1])
    path = [*(entry for entry in sys.path if entry), root]
    code = f"import sys; sys.path[:] = {path!r}; from {__package__}.peak import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"the measuring process failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The measuring process: the job in ``argv``, the result on standard output."""
    job = json.loads(sys.argv[1])
    works = {
        "fit": _fit,
        "likelihood": _likelihood,
        "spline": _spline,
        "logistic_mixture": _logistic_mixture,
    }
    work = works[job["work"]]
    print(json.dumps(work(job)))
