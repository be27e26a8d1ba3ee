"""`evidens.info`: what runs where, and why not elsewhere."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from evidens._native import library, pool
from evidens.ops import _registry

_PACKAGES = ("evidens", "torch", "numpy", "scikit-learn", "triton", "matplotlib")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def info() -> dict[str, Any]:
    """Versions, instruction set, threads, and for every op the backends with the reason against.

    Returns:
        A dictionary of plain Python values (JSON-ready) that prints as a table; the same as
        ``python -m evidens info [--json]``.  Attach it to a bug report.

    Example:
        >>> import evidens
        >>> evidens.info()["threads"]["pool"]
        'torch'
    """
    subnormal = torch.tensor(1e-310, dtype=torch.float64) * 1
    return _Info(
        versions={p: _version(p) for p in _PACKAGES} | {"python": platform.python_version()},
        platform=platform.platform(),
        compiler=library.compiler,
        isa={"chosen": library.isa, "available": list(library.isa_available)},
        threads={"count": torch.get_num_threads(), "pool": pool},
        cuda=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        subnormals_alive=bool(subnormal > 0),
        backend_override=_registry.override(),
        ops={
            name: {b: op.problem(b) or "ok" for b in _registry.BACKENDS}
            for name, op in sorted(_registry.OPS.items())
        },
    )


class _Info(dict[str, Any]):
    def __str__(self) -> str:
        lines = [f"{name:<18}{value}" for name, value in self["versions"].items()]
        isa, threads = self["isa"], self["threads"]
        lines += [
            f"{'platform':<18}{self['platform']}",
            f"{'compiler':<18}{self['compiler']}",
            f"{'instruction set':<18}{isa['chosen']}  (available: {', '.join(isa['available'])})",
            f"{'threads':<18}{threads['count']}  ({threads['pool']}'s intra-op pool)",
            f"{'cuda':<18}{self['cuda'] or 'no device'}",
            f"{'subnormals':<18}{'alive' if self['subnormals_alive'] else 'FLUSHED TO ZERO'}",
            f"{'backend override':<18}{self['backend_override'] or 'none'}",
            "",
        ]
        width = max(map(len, self["ops"])) + 2
        lines.append(f"{'op':<{width}}" + "".join(f"{b:<11}" for b in _registry.BACKENDS))
        reasons: dict[str, None] = {}
        for name, backends in self["ops"].items():
            row = f"{name:<{width}}"
            for reason in backends.values():
                row += f"{'ok' if reason == 'ok' else '-':<11}"
                if reason != "ok":
                    reasons[reason] = None
            lines.append(row.rstrip())
        return "\n".join([*lines, "", *(f"-  {r}" for r in reasons)])
