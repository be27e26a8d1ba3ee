"""Gaussian mixture ops: log-densities, sufficient statistics and their gradients.

All take ``covariance_type`` in scikit-learn's sense with its ``precisions_cholesky`` ``P``, where
``P P^T`` is the inverse covariance: full (K, D, D) upper triangular, tied (D, D), diag (K, D),
spherical (K,).  ``N`` rows, ``D`` features, ``K`` components; densities in nats; float32 or float64
(half types are widened to float32), all arguments of one dtype on one device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _gmm_arguments as given
from evidens.ops import _gmm_cpu as cpu
from evidens.ops import _registry
from evidens.reference import gmm as reference
from evidens.reference.gmm import COVARIANCE_TYPES

__all__ = [
    "gmm_component_log_prob",
    "gmm_input_gradient",
    "gmm_log_prob",
    "gmm_moments",
    "gmm_statistics",
]

_FULL, _TIED, _DIAG, _SPHERICAL = range(4)


# --- backends ------------------------------------------------------------------------------------


def _triton(name: str) -> Any:
    def call(*args: Any) -> Any:
        from evidens.kernels import gmm as kernels

        return _by_name(getattr(kernels, name))(*args)

    return call


def _by_name(function: Any) -> Any:
    """The inner ops carry the covariance type as an integer, everybody else as its name."""

    def call(*args: Any) -> Any:
        return function(*(COVARIANCE_TYPES[a] if type(a) is int else a for a in args))

    return call


# --- gradients -----------------------------------------------------------------------------------


def _parameter_gradients(
    needs: tuple[bool, ...],
    log_weights: Tensor,
    p: Tensor,
    code: int,
    moments: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of sum_nk r_nk log(w_k N(x_n | k)) in (log_weights, means, P) from the moments."""
    weight, first, second = moments
    q = p.double()
    d = first.shape[1]
    means_gradient = p_gradient = None
    if code in (_FULL, _TIED):
        q = q.triu()
    if needs[1]:
        if code == _FULL:
            means_gradient = (q @ (q.mT @ first.unsqueeze(-1))).squeeze(-1)
        elif code == _TIED:
            means_gradient = first @ q @ q.mT
        else:
            means_gradient = first * (q if code == _DIAG else q.unsqueeze(-1)).square()
    if needs[2]:
        if code in (_FULL, _TIED):
            total = weight.unsqueeze(-1) if code == _FULL else weight.sum()
            log_det = torch.diag_embed(total / q.diagonal(dim1=-2, dim2=-1))
            p_gradient = log_det - (second @ q).triu()
        elif code == _DIAG:
            p_gradient = weight.unsqueeze(-1) / q - second * q
        else:
            p_gradient = d * (weight / q - second * q)
    return (
        weight.to(log_weights.dtype) if needs[0] else None,
        None if means_gradient is None else means_gradient.to(p.dtype),
        None if p_gradient is None else p_gradient.to(p.dtype),
    )


def _component_log_prob_backward(
    needs: tuple[bool, ...],
    grads: Any,
    x: Tensor,
    log_weights: Tensor,
    means: Tensor,
    p: Tensor,
    code: int,
) -> tuple[Tensor | None, ...]:
    (r,) = grads
    r = r.to(x.dtype)
    x_gradient = _input_gradient(x, r, means, p, code) if needs[0] else None
    parameters: tuple[Tensor | None, ...] = (None, None, None)
    if any(needs[1:4]):
        parameters = _parameter_gradients(
            needs[1:4], log_weights, p, code, _moments(x, r, means, code)
        )
    return x_gradient, *parameters, None


def _log_prob_backward(
    needs: tuple[bool, ...],
    grads: Any,
    x: Tensor,
    log_weights: Tensor,
    means: Tensor,
    p: Tensor,
    code: int,
) -> tuple[Tensor | None, ...]:
    (g,) = grads
    if not needs[0]:
        _, *moments = _statistics(x, log_weights, means, p, code, g.to(x.dtype), None)
        return None, *_parameter_gradients(needs[1:4], log_weights, p, code, tuple(moments)), None
    terms = _component_log_prob(x, log_weights, means, p, code)
    total = torch.logsumexp(terms, dim=1, keepdim=True)
    # An impossible row has no posterior: its gradient is zero, not NaN.
    r = torch.where(torch.isneginf(total), 0.0, (terms - total).exp() * g.unsqueeze(1))
    return _component_log_prob_backward(needs, (r,), x, log_weights, means, p, code)


# --- the ops -------------------------------------------------------------------------------------

_PARAMETERS = (
    "Tensor x, Tensor log_weights, Tensor means, Tensor precisions_cholesky, int covariance"
)
_GIVEN = "Tensor x, Tensor responsibilities, Tensor means"


def _op(name: str, arguments: str, returns: str, on_cpu: Any, **more: Any) -> _registry.Op:
    guard = given.labels_in_range if name == "gmm_statistics" else lambda function: function
    return _registry.Op(
        "gmm",
        f"{name}({arguments}) -> {returns}",
        cpu=guard(on_cpu),
        reference=guard(_by_name(getattr(reference, name))),
        triton=guard(_triton(name)),
        waits=name == "gmm_statistics",  # for the range of labels
        **more,
    )


_component_log_prob = _op(
    "gmm_component_log_prob",
    _PARAMETERS,
    "Tensor",
    on_cpu=cpu.component_log_prob,
    fake=lambda x, w, means, p, code: x.new_empty((x.shape[0], means.shape[0])),
    backward=_component_log_prob_backward,
    rows=(0,),
)
_log_prob = _op(
    "gmm_log_prob",
    _PARAMETERS,
    "Tensor",
    on_cpu=cpu.log_prob,
    fake=lambda x, w, means, p, code: x.new_empty((x.shape[0],)),
    backward=_log_prob_backward,
    rows=(0,),
)
_statistics = _op(
    "gmm_statistics",
    _PARAMETERS + ", Tensor? sample_weight, Tensor? labels",
    "(Tensor, Tensor, Tensor, Tensor)",
    on_cpu=cpu.statistics,
    fake=lambda x, w, means, p, code, sample_weight, labels: (
        x.new_empty((), dtype=torch.float64),
        *cpu.moment_outputs(x, means, code),
    ),
)
_moments = _op(
    "gmm_moments",
    _GIVEN + ", int covariance",
    "(Tensor, Tensor, Tensor)",
    on_cpu=cpu.moments,
    fake=lambda x, r, means, code: cpu.moment_outputs(x, means, code),
)
_input_gradient = _op(
    "gmm_input_gradient",
    _GIVEN + ", Tensor precisions_cholesky, int covariance",
    "Tensor",
    on_cpu=cpu.input_gradient,
    fake=lambda x, r, means, p, code: x.new_empty(x.shape),
    rows=(0, 1),
)


def gmm_component_log_prob(
    x: Tensor, log_weights: Tensor, means: Tensor, precisions_cholesky: Tensor, covariance_type: str
) -> Tensor:
    """Joint log-density of every row and component, ``log w_k + log N(x_n | mean_k, cov_k)``.

    Args:
        x: rows (N, D).
        log_weights: log mixture weights (K,) in nats; -inf removes a component.
        means: (K, D).
        precisions_cholesky: as in the module's table; the triangle below the diagonal is not read.
        covariance_type: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.

    Returns:
        (N, K) in nats, dtype of ``x``.  Differentiable in all tensors.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.

    Source: Bishop, Pattern Recognition and Machine Learning, eq. 9.7 and 2.43.

    Example:
        >>> import torch, evidens
        >>> x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
        >>> means = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
        >>> evidens.ops.gmm_component_log_prob(
        ...     x, torch.zeros(2).double(), means, torch.ones(2).double(), "spherical"
        ... )
        tensor([[-0.9189, -2.9189],
                [-2.9189, -0.9189]], dtype=torch.float64)
    """
    return _parametric(
        "gmm_component_log_prob",
        _component_log_prob,
        x,
        log_weights,
        means,
        precisions_cholesky,
        covariance_type,
    )


def gmm_log_prob(
    x: Tensor, log_weights: Tensor, means: Tensor, precisions_cholesky: Tensor, covariance_type: str
) -> Tensor:
    """Log-density of every row under the mixture, ``log sum_k w_k N(x_n | mean_k, cov_k)``.

    Arguments, dtypes and errors are those of `gmm_component_log_prob`.  No N x K array is held
    without a gradient in ``x``.  Differentiable once in all tensors; the gradient is the posterior.

    Returns:
        (N,) in nats, dtype of ``x``; -inf where every component is impossible.

    Source: Bishop, Pattern Recognition and Machine Learning, eq. 9.7.

    Example:
        >>> import torch, evidens
        >>> x = torch.zeros(1, 2, requires_grad=True)
        >>> means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> y = evidens.ops.gmm_log_prob(
        ...     x, torch.tensor([0.5, 0.5]).log(), means, torch.ones(2, 2), "diag"
        ... )
        >>> y.backward()
        >>> y.detach(), x.grad
        (tensor([-2.3379]), tensor([[0., 0.]]))
    """
    return _parametric(
        "gmm_log_prob", _log_prob, x, log_weights, means, precisions_cholesky, covariance_type
    )


def _parametric(
    name: str,
    op: _registry.Op,
    x: Tensor,
    log_weights: Tensor,
    means: Tensor,
    p: Tensor,
    covariance_type: str,
) -> Tensor:
    code = checks.choice(name, "covariance_type", covariance_type, COVARIANCE_TYPES)
    if not given.ready(code, x, log_weights, means, p):
        x, log_weights, means, p = checks.widen(
            name,
            ("x", x),
            ("log_weights", log_weights),
            ("means", means),
            ("precisions_cholesky", p),
        )
        given.check(
            name,
            code,
            x,
            means,
            ("log_weights", log_weights, "K"),
            ("precisions_cholesky", p, given.PRECISION_LETTERS[code]),
        )
    return op(x, log_weights, means, p, code)


def gmm_statistics(
    x: Tensor,
    log_weights: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    covariance_type: str,
    sample_weight: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The E step and the sums the M step needs, in one pass over the rows.

    Holds neither an N x K array nor a copy of ``x``.  With posteriors ``r_nk`` times
    ``sample_weight`` and ``d_nk = x_n - mean_k``, returns float64 tensors

    - ``log_likelihood`` (): ``sum_n weight_n log p(x_n)``, nats;
    - ``weight`` (K,): ``sum_n r_nk``;
    - ``first`` (K, D): ``sum_n r_nk d_nk``;
    - ``second``: ``sum_n r_nk d_nk d_nk^T``: full (K, D, D), tied (D, D) summed over k, diag
      (K, D) its diagonal, spherical (K,) the mean of the diagonal.

    Args:
        x, log_weights, means, precisions_cholesky, covariance_type: as `gmm_component_log_prob`.
        sample_weight: (N,) of any sign; a row of weight 0 contributes nothing.
        labels: (N,) int64; a label k >= 0 pins the row to component k (its log-likelihood is
            then ``log w_k N(x_n | k)``), -1 leaves it free.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: if an argument requires a gradient (none is offered).

    Source: Bishop, Pattern Recognition and Machine Learning, eq. 9.13-9.27.  The result does not
    depend on the number of threads.

    Example:
        >>> import torch, evidens
        >>> x = torch.tensor([[0.0], [1.0], [5.0]])
        >>> log_likelihood, weight, first, second = evidens.ops.gmm_statistics(
        ...     x, torch.zeros(1), torch.zeros(1, 1), torch.ones(1), "spherical"
        ... )
        >>> weight.tolist(), first.tolist(), [round(s, 4) for s in second.tolist()]
        ([3.0], [[6.0]], [26.0])
    """
    name = "gmm_statistics"
    code = checks.choice(name, "covariance_type", covariance_type, COVARIANCE_TYPES)
    x, log_weights, means, p = checks.widen(
        name,
        ("x", x),
        ("log_weights", log_weights),
        ("means", means),
        ("precisions_cholesky", precisions_cholesky),
    )
    others = [
        ("log_weights", log_weights, "K"),
        ("precisions_cholesky", p, given.PRECISION_LETTERS[code]),
    ]
    if sample_weight is not None:
        (sample_weight,) = checks.widen(name, ("sample_weight", sample_weight))
        others.append(("sample_weight", sample_weight, "N"))
    given.check(name, code, x, means, *others)
    if labels is not None:
        given.check_labels(name, labels, x)
    checks.no_gradient(name, x, log_weights, means, p, sample_weight, instead="gmm_log_prob")
    return _statistics(x, log_weights, means, p, code, sample_weight, labels)


def gmm_moments(
    x: Tensor, responsibilities: Tensor, means: Tensor, covariance_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted moments of the rows about ``means`` for given responsibilities.

    Args:
        x: rows (N, D).
        responsibilities: (N, K), of any sign; a row with weight 0 in a component does not enter it.
        means: (K, D), the centres.
        covariance_type: as `gmm_component_log_prob`.

    Returns:
        ``(weight, first, second)`` of `gmm_statistics`, float64.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: if an argument requires a gradient (none is offered).

    Example:
        >>> import torch, evidens
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> weight, first, second = evidens.ops.gmm_moments(
        ...     x, torch.ones(2, 1), torch.zeros(1, 2), "diag"
        ... )
        >>> first.tolist(), second.tolist()
        ([[1.0, 2.0]], [[1.0, 4.0]])
    """
    name = "gmm_moments"
    code = checks.choice(name, "covariance_type", covariance_type, COVARIANCE_TYPES)
    x, responsibilities, means = checks.widen(
        name, ("x", x), ("responsibilities", responsibilities), ("means", means)
    )
    given.check(name, code, x, means, ("responsibilities", responsibilities, "NK"))
    checks.no_gradient(name, x, responsibilities, means, instead="gmm_component_log_prob")
    return _moments(x, responsibilities, means, code)


def gmm_input_gradient(
    x: Tensor,
    responsibilities: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    covariance_type: str,
) -> Tensor:
    """Gradient in the rows, ``sum_k r_nk d/dx_n log N(x_n | mean_k, cov_k)``.

    With posteriors as ``responsibilities`` it is the score of the mixture.

    Args:
        x, means, precisions_cholesky, covariance_type: as `gmm_component_log_prob`.
        responsibilities: (N, K), of any sign.

    Returns:
        (N, D), dtype of ``x``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: if an argument requires a gradient (none is offered).

    Example:
        >>> import torch, evidens
        >>> one = torch.ones(1, 1)
        >>> evidens.ops.gmm_input_gradient(3 * one, one, one, torch.ones(1), "spherical")
        tensor([[-2.]])
    """
    name = "gmm_input_gradient"
    code = checks.choice(name, "covariance_type", covariance_type, COVARIANCE_TYPES)
    x, responsibilities, means, p = checks.widen(
        name,
        ("x", x),
        ("responsibilities", responsibilities),
        ("means", means),
        ("precisions_cholesky", precisions_cholesky),
    )
    given.check(
        name,
        code,
        x,
        means,
        ("responsibilities", responsibilities, "NK"),
        ("precisions_cholesky", p, given.PRECISION_LETTERS[code]),
    )
    checks.no_gradient(name, x, responsibilities, means, p, instead="gmm_log_prob")
    return _input_gradient(x, responsibilities, means, p, code)
