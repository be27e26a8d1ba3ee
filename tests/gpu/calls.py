"""One table of op calls: what must hold on every device is asked of each row of it.

A stem adds its ops here, and every test of this folder then runs them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from ops.autoregress_cases import KINDS, network
from ops.pixelcnn_cases import pixels
from torch import Tensor

from evidens import ops
from evidens.reference.gmm import COVARIANCE_TYPES

Results = tuple[Tensor, ...]


class Given(NamedTuple):
    """A call made ready: floating tensors in float64 and indices, on the CPU."""

    function: Callable[..., Any]  # of all tensors: first the floating ones
    tensors: list[Tensor]
    indices: list[Tensor]
    rows: tuple[int, ...] = (0,)  # the tensors whose first axis is the rows

    def on(self, device: str, dtype: torch.dtype) -> Given:
        tensors = [t.to(device, dtype) for t in self.tensors]
        return self._replace(tensors=tensors, indices=[i.to(device) for i in self.indices])

    def __call__(self, *tensors: Tensor) -> Results:
        found = self.function(*(tensors or self.tensors), *self.indices)
        return tuple(found) if isinstance(found, tuple) else (found,)


class Call(NamedTuple):
    """A row of the table."""

    name: str
    op: str  # of torch.ops.evidens
    given: Callable[[int], Given]  # of a number of rows
    gradient: bool = True
    waits: str = ""  # why no CUDA graph can record it
    kernel: bool = True  # there is one for a GPU
    halves: bool = True  # float16 and bfloat16 are read and widened


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def index(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


# --- mixtures -------------------------------------------------------------------------------------

D, K = 5, 3


def _mixture(kind: str) -> list[Tensor]:
    p = {
        "full": torch.eye(D).double() + 0.2 * normal(K, D, D, seed=3).triu(),
        "tied": torch.eye(D).double() + 0.2 * normal(D, D, seed=3).triu(),
        "diag": normal(K, D, seed=3).abs() + 0.5,
        "spherical": normal(K, seed=3).abs() + 0.5,
    }[kind]
    return [normal(K, seed=1).log_softmax(0), normal(K, D, seed=2), p]


def _gmm(name: str, kind: str, labelled: bool, n: int) -> Given:
    op, x, (w, means, p) = getattr(ops, name), 2 * normal(n, D), _mixture(kind)
    r = normal(n, K, seed=4).softmax(1)
    if name == "gmm_moments":
        return Given(lambda *t: op(*t, kind), [x, r, means], [], (0, 1))
    if name == "gmm_input_gradient":
        return Given(lambda *t: op(*t, kind), [x, r, means, p], [], (0, 1))
    if not labelled:
        return Given(lambda *t: op(*t, kind), [x, w, means, p], [])
    labels = torch.arange(n) % (K + 1) - 1

    def call(x: Tensor, w: Tensor, means: Tensor, p: Tensor, weight: Tensor, labels: Tensor) -> Any:
        return op(x, w, means, p, kind, weight, labels)

    return Given(call, [x, w, means, p, r[:, 0].contiguous()], [labels], (0, 4))


# --- sequences ------------------------------------------------------------------------------------

TIME, STATES = 6, 4


def _hmm(name: str, options: dict[str, Any], n: int) -> Given:
    op = getattr(ops, name)
    log_obs, initial = normal(n, TIME, STATES), normal(STATES, seed=1).softmax(0)
    a, lengths = normal(STATES, STATES, seed=2).softmax(1), torch.arange(n) % TIME + 1

    def call(log_obs: Tensor, initial: Tensor, a: Tensor, lengths: Tensor) -> Any:
        return tuple(_tensors(op(log_obs, initial, a, lengths=lengths, **options)))

    return Given(call, [log_obs, initial, a], [lengths])


def _hmm_gaussian(n: int) -> Given:
    x, initial = normal(n, TIME, D), normal(STATES, seed=1).softmax(0)
    a, means = normal(STATES, STATES, seed=2).softmax(1), normal(STATES, D, seed=3)
    p, lengths = normal(STATES, D, seed=4).exp(), torch.arange(n) % TIME + 1

    def call(*tensors: Tensor) -> Any:
        *floating, lengths = tensors
        return tuple(ops.hmm_gaussian_statistics(*floating, lengths=lengths))

    return Given(call, [x, initial, a, means, p], [lengths])


def _tensors(found: Any) -> list[Tensor]:
    found = found if isinstance(found, tuple) else (found,)
    return [t for t in found if isinstance(t, Tensor)]


# --- flows ----------------------------------------------------------------------------------------


def _affine(scale_map: str, inverse: bool, images: bool, n: int) -> Given:
    shape = (3, 4) if images else ()
    active = None if images else index(4, 0, 2)
    half = D if active is None else 3

    def call(x: Tensor, scale: Tensor, shift: Tensor, *active: Tensor) -> Any:
        options = dict(active=active[0] if active else None, scale_map=scale_map, inverse=inverse)
        return ops.affine_coupling(x, scale, shift, **options)

    pair = normal(n, half, *shape, seed=1), normal(n, half, *shape, seed=2)
    return Given(call, [normal(n, D, *shape), *pair], [] if active is None else [active], (0, 1, 2))


def _actnorm(inverse: bool, n: int) -> Given:
    given = [normal(n, D, 3, 4), normal(D, seed=1), normal(D, seed=2)]
    return Given(functools.partial(ops.actnorm, inverse=inverse), given, [])


def _linear(inverse: bool, n: int) -> Given:
    given = [normal(n, D), 0.3 * normal(D, D, seed=1), 0.3 * normal(D, D, seed=2)]
    call = functools.partial(ops.invertible_linear, inverse=inverse)
    return Given(call, [*given, 0.3 * normal(D, seed=3)], [])


def _spline(parameters: str, tails: Any, inverse: bool, n: int) -> Given:
    bins, d = 8, 3
    more = 1 if parameters == "knots" or tails == "none" else -1
    edges = bins + (parameters == "knots")
    sizes = [normal(n, d, edges, seed=1), normal(n, d, edges, seed=2)]
    slopes = normal(n, d, bins + more, seed=3)
    options: dict[str, Any] = {"parameters": parameters, "tails": tails, "inverse": inverse}
    if parameters == "knots":
        sizes, slopes = [s.exp().cumsum(-1) - 4 for s in sizes], slopes.exp()
    else:
        options["bound"] = 2.0
    call = functools.partial(ops.rational_quadratic_spline, **options)
    return Given(call, [normal(n, d), *sizes, slopes], [], (0, 1, 2, 3))


def _spline_coupling(inverse: bool, n: int) -> Given:
    def call(x: Tensor, params: Tensor, active: Tensor) -> Any:
        return ops.spline_coupling(x, params, active=active, bins=4, bound=2.0, inverse=inverse)

    return Given(call, [normal(n, D), normal(n, 3, 11, seed=1)], [index(4, 0, 2)], (0, 1))


# --- autoregressive -------------------------------------------------------------------------------


def _conv(mask: str, groups: int, n: int) -> Given:
    call = functools.partial(ops.masked_conv2d, mask=mask, groups=groups)
    return Given(call, [normal(n, 6, 5, 4), normal(9, 6, 3, 3, seed=1), normal(9, seed=2)], [])


def _masked_linear(strict: bool, n: int) -> Given:
    def call(x: Tensor, w: Tensor, b: Tensor, ins: Tensor, outs: Tensor) -> Any:
        return ops.masked_linear(x, w, b, in_degrees=ins, out_degrees=outs, strict=strict)

    degrees = [torch.arange(70) % 9, torch.arange(33) % 7]
    return Given(call, [normal(n, 70), normal(33, 70, seed=1), normal(33, seed=2)], degrees)


def _mixture_image(n: int, channels: int) -> tuple[Tensor, Tensor]:
    planes = 3 * (3 if channels == 1 else 10)
    params = 0.5 * normal(n, planes, 5, 4)
    levels = (normal(n, channels, 5, 4, seed=1).abs() * 90).floor().clamp(max=255)
    return params, levels.long()


def _logistic(channels: int, n: int) -> Given:
    params, x = _mixture_image(n, channels)
    return Given(lambda p, x: ops.logistic_mixture_log_prob(x.to(p.dtype), p), [params], [x])


def _logistic_draws(channels: int, n: int) -> Given:
    call = functools.partial(ops.logistic_mixture_sample, channels=channels, seed=2**63 + 5)
    return Given(call, [_mixture_image(n, channels)[0]], [])


def _made(kind: str, n: int) -> Given:
    net = network(kind, n, 4, (9,), gain=0.5)
    weights = [w.nan_to_num(0.0) for w in net.weights]

    def call(noise: Tensor, *rest: Tensor) -> Any:
        layers, degrees = len(weights), list(rest[2 * len(weights) :])
        return ops.made_sample(
            noise, rest[:layers], rest[layers : 2 * layers], degrees, **net.options
        )

    return Given(call, [net.noise, *weights, *net.biases], list(net.degrees))


def _pixelcnn(n: int) -> Given:
    net = pixels("categorical", images=n, hidden=8, levels=4)
    places = [i for i, layer in enumerate(net.layers) if layer.weight is not None]

    def call(noise: Tensor, *rest: Tensor) -> Any:
        built = list(net.layers)
        for i, place in enumerate(places):
            words = {"weight": rest[2 * i], "bias": rest[2 * i + 1]}
            built[place] = built[place]._replace(**words)
        return ops.pixelcnn_sample(noise, built, **net.options)

    tensors = [t for i in places for t in (net.layers[i].weight, net.layers[i].bias)]
    return Given(call, [net.noise, *tensors], [])


# --- restricted Boltzmann machines ----------------------------------------------------------------


def _machine() -> list[Tensor]:
    return [0.4 * normal(6, 9, seed=1), normal(9, seed=2), normal(6, seed=3)]


def _rbm(name: str, options: dict[str, Any], n: int) -> Given:
    def call(*tensors: Tensor) -> Any:
        return tuple(_tensors(tuple(_fields(getattr(ops, name)(*tensors, **options)))))

    return Given(call, [(normal(n, 9) > 0).double(), *_machine()], [])


def _pcd(n: int) -> Given:
    def call(v: Tensor, h: Tensor, *machine: Tensor) -> Any:
        found, chains = ops.rbm_pcd(v, h, *machine, steps=2, seed=7, minus_weight=0.5)
        return tuple(_tensors((*found, chains)))

    states = [(normal(n, 9) > 0).double(), (normal(n, 6) > 0).double()]
    return Given(call, [*states, *_machine()], [], (0, 1))


def _fields(found: Any) -> Any:
    return found if isinstance(found, tuple) else (found,)


def _ais(n: int) -> Given:
    def call(*machine: Tensor) -> Any:
        return ops.rbm_ais(*machine, chains=max(n, 2), rungs=5, seed=3).log_weights

    return Given(call, _machine(), [], ())


def _exact(n: int) -> Given:
    return Given(ops.rbm_exact_log_partition, _machine(), [], ())


# --- draws from a seed ----------------------------------------------------------------------------


def _philox(n: int) -> Given:
    def call(like: Tensor) -> Any:
        return ops.philox_uniform(2**64 - 7, 3, n, 11, like.dtype, 2**33, like.device)

    return Given(call, [normal(1)], [], ())


def _noise(name: str, kind: str, sizes: tuple[int, ...], n: int) -> Given:
    def call(like: Tensor) -> Any:
        options = {"seed": 5, "dtype": like.dtype, "device": like.device}
        return getattr(ops, name)(kind, n, *sizes, **options)

    return Given(call, [normal(1)], [], ())


# --- the table ------------------------------------------------------------------------------------

_LABELS = "the range of the labels is looked at on the host"
_AGAIN = "lengths, and the marks of sequences to be computed again, are looked at on the host"


def _calls() -> list[Call]:
    def add(name: str, op: str, function: Any, *arguments: Any, **words: Any) -> None:
        rows.append(Call(name, op, functools.partial(function, *arguments), **words))

    rows: list[Call] = []
    for kind in COVARIANCE_TYPES:
        for name in ("gmm_log_prob", "gmm_component_log_prob"):
            add(f"{name}-{kind}", name, _gmm, name, kind, False)
        for name in ("gmm_moments", "gmm_input_gradient"):
            add(f"{name}-{kind}", name, _gmm, name, kind, False, gradient=False)
        for labelled in (False, True):
            name = f"gmm_statistics-{kind}{'-labels' if labelled else ''}"
            words = {"gradient": False, "waits": _LABELS if labelled else ""}
            add(name, "gmm_statistics", _gmm, "gmm_statistics", kind, labelled, **words)
    add("hmm_log_likelihood", "hmm_log_likelihood", _hmm, "hmm_log_likelihood", {}, waits=_AGAIN)
    for name, more in (
        ("hmm_forward_backward", {}),
        ("hmm_filter", {}),
        ("hmm_viterbi", {}),
        ("hmm_sample_paths", {"n": 3, "seed": 5}),
    ):
        add(name, name, _hmm, name, more, gradient=False, waits=_AGAIN)
    name = "hmm_gaussian_statistics"
    add(name, name, _hmm_gaussian, gradient=False, waits=_AGAIN)
    for inverse in (False, True):
        way = "-inverse" if inverse else ""
        add(f"affine{way}", "affine_coupling", _affine, "exp", inverse, False)
        add(f"affine-images{way}", "affine_coupling", _affine, "sigmoid", inverse, True)
        add(f"actnorm{way}", "actnorm", _actnorm, inverse)
        add(f"invertible_linear{way}", "", _linear, inverse)
        name = "rational_quadratic_spline"
        add(f"spline-nflows{way}", name, _spline, "nflows", "linear", inverse)
        add(f"spline-zuko{way}", name, _spline, "zuko", "linear", inverse)
        add(f"spline-knots{way}", name, _spline, "knots", "linear", inverse)
        add(f"spline_coupling{way}", "spline_coupling", _spline_coupling, inverse)
    add("masked_conv2d-A", "masked_conv2d", _conv, "A", 3)
    add("masked_conv2d-B", "masked_conv2d", _conv, "B", 1)
    for strict in (False, True):
        add(f"masked_linear{'-strict' * strict}", "masked_linear", _masked_linear, strict)
    for c in (1, 3):
        add(f"logistic_mixture_log_prob-{c}", "logistic_mixture_log_prob", _logistic, c)
        name = "logistic_mixture_sample"
        add(f"{name}-{c}", name, _logistic_draws, c, gradient=False)
    for kind in KINDS:
        words = {"gradient": False, "waits": "the schedule is made of the degrees on the host"}
        add(f"made_sample-{kind}", "made_sample", _made, kind, **words)
    words = {"gradient": False, "waits": "its program is copied to the device"}
    add("pixelcnn_sample", "pixelcnn_sample", _pixelcnn, **words)
    add("rbm_gibbs", "rbm_gibbs", _rbm, "rbm_gibbs", {"seed": 7, "steps": 2}, gradient=False)
    add("rbm_free_energy", "rbm_free_energy", _rbm, "rbm_free_energy", {})
    add("rbm_statistics", "rbm_statistics", _rbm, "rbm_statistics", {}, gradient=False)
    add("rbm_pcd", "rbm_pcd", _pcd, gradient=False)
    add("rbm_ais", "rbm_ais", _ais, gradient=False)
    name = "rbm_exact_log_partition"
    add(name, name, _exact, gradient=False, kernel=False)
    more = {"gradient": False, "halves": False}
    add("philox_uniform", "philox_uniform", _philox, **more)
    add("made_noise", "", _noise, "made_noise", "mixture", (4,), **more)
    add("pixelcnn_noise", "", _noise, "pixelcnn_noise", "categorical", (1, 3, 4), **more)
    return rows


CALLS = {call.name: call for call in _calls()}


def close(found: Results, want: Results, dtype: torch.dtype, factor: float = 4e3) -> None:
    """Each result within ``factor`` roundings of its largest entry; whole numbers are equal."""
    assert len(found) == len(want)
    for a, b in zip(found, want):
        assert a.shape == b.shape
        a, b = a.detach().cpu(), b.detach().cpu()
        if not a.is_floating_point():
            assert torch.equal(a, b)
            continue
        finite = b[b.isfinite()].abs()
        size = float(finite.max()) if finite.numel() else 0.0
        most = factor * torch.finfo(dtype).eps * (1 + size)
        assert math.isfinite(most)
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=most, equal_nan=True)
