"""The one seam between public ops and their implementations.

An op is one `Op` object.  It owns the torch schema ``evidens::<name>``, the implementations by
backend, the fake for tracing, the gradient, the vmap rule and the choice between them:

=========== ==============================================================================
backend     implementation
=========== ==============================================================================
cpu         the C++ kernel in ``evidens._C``, for CPU tensors
triton      the Triton kernel in ``evidens.kernels``, for CUDA tensors (and for CPU tensors
            under ``TRITON_INTERPRET=1``)
cuda        the CUDA C++ kernel, where one exists
reference   the formula in ``evidens.reference``, for every device
=========== ==============================================================================

The gradient sits in an `torch.autograd.Function` *outside* the op, so a call without gradients
pays for none; `Op.__call__` routes between the two.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from evidens._errors import BackendError

BACKENDS = ("reference", "cpu", "triton", "cuda")
OPS: dict[str, Op] = {}

_library = torch.library.Library("evidens", "DEF")
_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("evidens", default=None)
_C = torch._C
_is_compiling = torch.compiler.is_compiling


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every op inside the ``with`` block on one backend.

    Args:
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.  The environment variable
            ``EVIDENS_BACKEND`` does the same for the whole process; the block wins over it.

    Raises:
        BackendError: at once for an unknown name; at the call of an op that the backend cannot
            serve, with the reason.  An explicit request never falls back.

    Example:
        >>> import torch, evidens
        >>> with evidens.backend("reference"):
        ...     u = evidens.ops.philox_uniform(seed=0, step=0, rows=1, columns=2)
        >>> tuple(u.shape)
        (1, 2)
    """
    token = _override.set(_known(name, "evidens.backend"))
    try:
        yield
    finally:
        _override.reset(token)


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise BackendError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_environment = os.environ.get("EVIDENS_BACKEND") or None
if _environment is not None:
    _known(_environment, "EVIDENS_BACKEND")


def override() -> str | None:
    """The backend asked for by name, or None."""
    return _override.get() or _environment


@functools.cache
def triton_problem() -> str | None:
    """Why Triton cannot be used in this process, or None."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken install must not break the CPU path
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return None
    return "no CUDA device (and TRITON_INTERPRET is not 1)"


class Op:
    """One op on every backend.  Calling it routes to the op, its gradient or the reference.

    Args:
        schema: torch schema, as ``"name(Tensor x, int covariance) -> Tensor"``.
        cpu: implementation on CPU tensors over ``evidens._C``.
        reference: the formula; same arguments.
        fake: shapes and dtypes of the results for tracing; same arguments.
        backward: ``backward(needs, grads, *args)`` gives the gradient of every argument (None
            where ``needs`` is false) from those of the results (None for a result that was not
            used, where there are several); None where the op offers no gradient.
        triton: the stem has a Triton kernel of the same name in ``evidens.kernels.<stem>``.
        rows: positions of the arguments whose first axis is the row axis, when the op treats rows
            independently: vmap over these folds the batch into the rows.
        waits: it looks at values of a GPU from the host, so no CUDA graph can record it, and
            torch.compile is told to leave it out of its own.
    """

    def __init__(
        self,
        stem: str,
        schema: str,
        *,
        cpu: Callable[..., Any],
        reference: Callable[..., Any],
        fake: Callable[..., Any],
        backward: Callable[..., tuple[Tensor | None, ...]] | None = None,
        triton: Callable[..., Any] | None = None,
        rows: tuple[int, ...] = (),
        waits: bool = False,
    ) -> None:
        self.name = schema[: schema.index("(")]
        self.stem = stem
        self.reference = reference = _without_autocast(reference)
        self.backward = backward
        self.fake = fake
        self.rows = rows
        self.implementations = {"reference": reference, "cpu": cpu, "triton": triton, "cuda": None}
        self._warned = False
        _library.define(schema, tags=(torch.Tag.cudagraph_unsafe,) if waits else ())
        _library.impl(self.name, self.run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"evidens::{self.name}", fake, lib=_library)
        self.inner = getattr(torch.ops.evidens, self.name).default
        torch.library.register_vmap(
            f"evidens::{self.name}", functools.partial(self._vmap, self.inner), lib=_library
        )
        arguments = self.inner._schema.arguments
        self.tensors = sum("Tensor" in str(a.type) for a in arguments)  # they come first
        self._function: Any = None
        self._traced: Any = None
        if backward is not None:
            self._function, self._traced = _make_functions(self)
            # torch's Python `apply` inspects signatures on every call (20 us); the C one does not.
            self._apply = super(torch.autograd.Function, self._function).apply  # type: ignore[misc]
        OPS[self.name] = self

    # --- choice of backend ---------------------------------------------------------------------

    def problem(self, name: str, device: str | None = None) -> str | None:
        """Why backend ``name`` cannot serve this op (on ``device``), or None."""
        if self.implementations[name] is None:
            return f"evidens.{self.name} has no {name} kernel"
        if name == "reference":
            return None
        if name == "cpu":
            if device not in (None, "cpu"):
                return f"the cpu kernels take CPU tensors, these are on {device}"
            return None
        reason = triton_problem()
        if reason is None and device not in (None, "cuda"):
            if os.environ.get("TRITON_INTERPRET") != "1":
                return f"the {name} kernels take CUDA tensors, these are on {device}"
        return reason

    def _choose(self, device: str) -> Callable[..., Any]:
        if device == "meta":
            return self.fake
        return self.implementations[self.backend_on(device)]  # type: ignore[return-value]

    def backend_on(self, device: str) -> str:
        """The backend that serves a call on a device: the one asked for, or the device's own."""
        name = override()
        if name is None and device == "cpu":
            return "cpu"
        if name is None:
            name, reason = "triton", self.problem("triton", device)
            if reason is not None:
                if not self._warned:
                    self._warned = True
                    warnings.warn(
                        f"evidens.{self.name}: running the plain torch reference on {device}, "
                        f"which is slow: {reason}. evidens.info() lists the backends.",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                name = "reference"
        else:
            reason = self.problem(name, device)
            if reason is not None:
                raise BackendError(
                    f"evidens.{self.name}: backend {name!r} was asked for, but {reason}. "
                    "Choose another backend or drop the request (evidens.info() lists them)."
                )
        return name

    def run(self, *args: Any) -> Any:
        """The implementation for where the tensors are; what the dispatcher calls.

        Models call it, too, with tensors of their own: nobody records what is done with these, they
        need no gradient, and their memory holds their numbers.
        """
        first = args[0]
        device = first.device.type if isinstance(first, Tensor) else args[-1].type
        return self._choose(device)(*args)

    # --- routing of one call -------------------------------------------------------------------

    def __call__(self, *args: Any) -> Any:
        if _is_compiling():
            # torch.compile of functorch's grad over any custom backward returns zeros (2.10-2.13).
            if self._traced is None:
                return self.inner(*args)
            transformed = _C._are_functorch_transforms_active()
            return self.reference(*args) if transformed else self._traced.apply(*args)
        plain, differentiate = _inspect(args)
        if forward_ad._current_level >= 0:
            if self._function is not None:
                return self.reference(*args)  # it knows tangents
            self._refuse_tangents(args)
        if self._function is not None:
            if override() == "reference":
                return self.reference(*args)  # with every derivative that torch knows
            if differentiate and plain and torch.is_grad_enabled():
                return self._apply(*args)
            if not plain and (differentiate or _C._are_functorch_transforms_active()):
                return self._traced.apply(*args)
        return self.run(*args) if plain else self.inner(*args)

    def _refuse_tangents(self, args: tuple[Any, ...]) -> None:
        each = (t for a in args for t in (a if isinstance(a, list | tuple) else (a,)))
        for a in each:
            if isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None:
                raise RuntimeError(
                    f"evidens.{self.name} offers no gradient, but an argument carries a tangent; "
                    f"use the formula in evidens.reference.{self.stem}."
                )

    def _vmap(self, call: Callable[..., Any], info: Any, in_dims: Any, *args: Any) -> Any:
        """Fold a batch of rows into the rows; map any other batched argument by a loop."""
        batch = info.batch_size
        in_dims = tuple(d if type(d) is int else None for d in in_dims)  # lists have lists
        args = tuple(a if d is None else a.movedim(d, 0) for a, d in zip(args, in_dims))
        if self.rows and all(d is None or i in self.rows for i, d in enumerate(in_dims)):
            first = self.rows[0]
            n = args[first].shape[0 if in_dims[first] is None else 1]
            args = tuple(
                a
                if i not in self.rows or a is None
                else (a if d is not None else a.expand(batch, *a.shape)).flatten(0, 1)
                for i, (a, d) in enumerate(zip(args, in_dims))
            )
            result = call(*args)
            if isinstance(result, tuple):
                return tuple(r.reshape(batch, n, *r.shape[1:]) for r in result), (0,) * len(result)
            return result.reshape(batch, n, *result.shape[1:]), 0
        if batch == 0:
            raise ValueError(
                f"evidens.{self.name}: vmap over an empty batch of parameters has no result shape"
            )
        results = [
            call(*(a if d is None else a[b] for a, d in zip(args, in_dims))) for b in range(batch)
        ]
        if isinstance(results[0], tuple):
            return tuple(torch.stack(r) for r in zip(*results)), (0,) * len(results[0])
        return torch.stack(results), 0


def _inspect(args: tuple[Any, ...]) -> tuple[bool, bool]:
    """``(plain, differentiate)``: no need of the dispatcher, and an argument requires gradients.

    The dispatcher costs 3 us.  Modes, transforms, tracers and subclasses of Tensor need it, and so
    do lazily negated tensors, whose memory holds other numbers than they do.
    """
    plain = not (
        _C._len_torch_dispatch_stack()
        or _C._are_functorch_transforms_active()
        or _C._get_tracing_state()
    )
    differentiate = False
    for a in args:
        kind = type(a)
        if kind is Tensor or kind is Parameter:
            differentiate = differentiate or a.requires_grad
            plain = plain and not a.is_neg()
        elif isinstance(a, Tensor):
            plain, differentiate = False, differentiate or a.requires_grad
    return plain, differentiate


def _without_autocast(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The formula in the dtype of its arguments, as the kernels compute."""

    @functools.wraps(reference)
    def call(*args: Any) -> Any:
        device = args[0].device.type if isinstance(args[0], Tensor) else args[-1].type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return reference(*args)
        with torch.autocast(device_type=device, enabled=False):
            return reference(*args)

    return call


def _make_functions(op: Op) -> tuple[Any, Any]:
    """The autograd.Function of an op, eager and traced: saves its inputs, recomputes the rest."""
    # torch.compile takes in functions, but no `Op`, from around a traced function.
    inner, op_backward, name = op.inner, op.backward, op.name
    results = len(inner._schema.returns)

    def gradient(requested: Any, needs: tuple[bool, ...], grads: Any, args: tuple[Any, ...]) -> Any:
        assert op_backward is not None
        with backend(requested) if requested else contextlib.nullcontext():
            return op_backward(needs, grads, *args)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(requested: Any, needs: Any, *args: Any) -> Any:
            return gradient(requested, needs, args[:results], args[results:])

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def vmap(info: Any, in_dims: Any, requested: Any, needs: Any, *args: Any) -> Any:
            results = []
            for b in range(info.batch_size):
                here = (a.select(d, b) if type(d) is int else a for a, d in zip(args, in_dims[2:]))
                results.append(Backward.apply(requested, needs, *here))
            stacked = tuple(None if r[0] is None else torch.stack(r) for r in zip(*results))
            return stacked, tuple(None if r is None else 0 for r in stacked)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(
                f"evidens.{name}: second derivatives are not offered by the kernel; call the op "
                "under evidens.backend('reference') to have them."
            )

    # It also counts the parameters of forward to see whether there is a ctx: `*args` will not do.
    names = ", ".join(a.name for a in inner._schema.arguments)
    tensors = op.tensors

    class Traced(torch.autograd.Function):
        forward = staticmethod(eval(f"lambda {names}: inner({names})", {"inner": inner}))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs[:tensors])
            ctx.rest = inputs[tensors:]
            ctx.backend = None
            ctx.set_materialize_grads(results == 1)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            args = (*ctx.saved_tensors, *ctx.rest)
            if torch.is_grad_enabled() and not _is_compiling():
                return Backward.apply(ctx.backend, ctx.needs_input_grad, *grads, *args)
            return gradient(ctx.backend, ctx.needs_input_grad, grads, args)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return op._vmap(op, info, in_dims, *args)

    class Forward(Traced):
        @staticmethod
        def forward(*args: Any) -> Any:
            return op.run(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs[:tensors])
            ctx.rest = inputs[tensors:]
            ctx.backend = _override.get()
            ctx.set_materialize_grads(results == 1)

    Forward.__name__ = Traced.__name__ = f"{name}_function"
    return Forward, Traced
