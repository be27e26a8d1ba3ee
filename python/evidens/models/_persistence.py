"""Save and load a fitted model: one safetensors file with a JSON header, no pickle."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from evidens.models._arrays import to_tensor

FORMAT = 1
M = TypeVar("M", bound="Persistent")
T = TypeVar("T", bound="PersistentModule")


class Persistent:
    """`save` and `load` of an estimator: its parameters and its attributes with an underscore."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write constructor parameters and fitted attributes to one file.

        The file is safetensors: arrays, and a JSON header with the rest.  A ``random_state`` that
        is a generator cannot be written; it becomes None, with a warning.

        Args:
            path: file to write; replaced if it exists.

        Raises:
            TypeError: a constructor parameter is neither a number, a string nor an array.
        """
        write(path, type(self), self.get_params(deep=False), self._fitted_attributes())  # type: ignore[attr-defined]

    def _fitted_attributes(self) -> dict[str, Any]:
        """What `save` writes besides the parameters of the constructor."""
        return {k: v for k, v in vars(self).items() if k.endswith("_") and not k.startswith("_")}

    @classmethod
    def load(cls: type[M], path: str | os.PathLike[str], device: Any = "cpu") -> M:
        """Read a model that `save` wrote.  No code in the file is run: there is none.

        Args:
            path: the file.
            device: where the attributes of a model that was fitted to tensors are put; those of a
                model fitted to arrays stay NumPy arrays.

        Raises:
            ValueError: the file is not a saved model, is of another class, or of a later format.
        """
        saved = read(path, cls, device)
        with _damage(path):
            model = cls(**saved.parameters)
            for name, value in saved.fitted.items():
                setattr(model, name, value)
        return model


class PersistentModule:
    """`save` and `load` of a `torch.nn.Module` that is built again from its ``settings``."""

    #: Arguments of the constructor, but for modules.
    settings: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the constructor's arguments, parameters, buffers and fitted attributes to one file.

        The file is safetensors: tensors, and a JSON header with the rest.

        Args:
            path: file to write; replaced if it exists.
        """
        fitted = {k: v for k, v in vars(self).items() if k.endswith("_") and not k.startswith("_")}
        write(path, type(self), self.settings, fitted, self.state_dict())  # type: ignore[attr-defined]

    @classmethod
    def load(cls: type[T], path: str | os.PathLike[str], device: Any = "cpu", **modules: Any) -> T:
        """Read a model that `save` wrote, in evaluation mode.  No code in the file is run.

        Args:
            path: the file.
            device: where the model is put.
            **modules: arguments of the constructor that a file cannot hold.

        Raises:
            ValueError: the file is not a saved model, is of another class, or of a later format.
        """
        saved = read(path, cls, "cpu")
        with _damage(path):
            model: Any = cls(**saved.parameters, **modules)
            dtype = {t.dtype for t in saved.state.values() if t.is_floating_point()}
            if torch.float32 not in dtype and dtype:
                model.to(torch.float64)
            model.load_state_dict(saved.state)
            for name, value in saved.fitted.items():
                setattr(model, name, value)
        result: T = model.eval().to(device)
        return result


@dataclass
class Saved:
    """What a file holds."""

    parameters: dict[str, Any]
    fitted: dict[str, Any]
    state: dict[str, Tensor]


def write(
    path: str | os.PathLike[str],
    cls: type,
    parameters: dict[str, Any],
    fitted: dict[str, Any],
    state: dict[str, Tensor] | None = None,
) -> None:
    """One file with the constructor's parameters, fitted attributes and a module's state."""
    from safetensors.torch import save_file

    tensors = {f"state.{k}": v.detach().cpu().clone() for k, v in (state or {}).items()}
    header = {
        "format": FORMAT,
        "class": cls.__name__,
        "evidens": version("evidens"),
        "parameters": _pack(parameters, "parameters", tensors),
        "fitted": _pack(fitted, "fitted", tensors),
    }
    save_file(tensors, path, metadata={"evidens": json.dumps(header)})


def read(path: str | os.PathLike[str], cls: type, device: Any) -> Saved:
    """What `write` wrote for ``cls``; tensors among the values go to ``device``.

    Raises:
        ValueError: the file is not a saved model, is of another class, or of a later format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("evidens", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged header, not JSON ({error})") from error
    with _damage(path):
        if header is None:
            raise ValueError(f"{path}: a safetensors file, but not one that evidens has saved")
        if header["format"] > FORMAT:
            raise ValueError(
                f"{path}: written by evidens {header['evidens']} in format {header['format']}, "
                f"this version reads up to {FORMAT}: upgrade evidens"
            )
        if header["class"] != cls.__name__:
            raise ValueError(
                f"{path}: holds a {header['class']}, not a {cls.__name__}: "
                f"read it with evidens.{header['class']}.load"
            )
        saved = Saved(
            _unpack(header["parameters"], "parameters", tensors, device),
            _unpack(header["fitted"], "fitted", tensors, device),
            {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")},
        )
    for name in saved.fitted:
        if not name.isidentifier() or name.startswith("_") or not name.endswith("_"):
            raise ValueError(f"{path}: {name!r} is not a fitted attribute")
    return saved


@contextlib.contextmanager
def _damage(path: Any) -> Iterator[None]:
    """What a header that does not fit leads to, in words."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: damaged header, it lacks {error}") from error
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged header ({error})") from error


def _pack(values: dict[str, Any], group: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """JSON for the values; arrays go to ``tensors`` and leave their kind behind."""
    packed: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
            packed[name] = {"strings": [str(s) for s in value], "kind": value.dtype.kind}
        elif isinstance(value, np.ndarray | Tensor):
            tensor = value if isinstance(value, Tensor) else to_tensor(value)
            tensors[f"{group}.{name}"] = tensor.detach().cpu().contiguous().clone()
            packed[name] = {"array": "torch" if isinstance(value, Tensor) else "numpy"}
        elif isinstance(value, np.random.RandomState | np.random.Generator):
            warnings.warn(
                f"{name} is a generator and is saved as None: give an integer to keep it",
                UserWarning,
                stacklevel=5,
            )
            packed[name] = {"value": None}
        else:
            value = value.item() if isinstance(value, np.generic) else value
            try:
                json.dumps(value)
            except TypeError:
                raise TypeError(
                    f"save: {name} is a {type(value).__name__}; expected a number, a string, a "
                    "list of them or an array"
                ) from None
            packed[name] = {"value": value}
    return packed


def _unpack(
    packed: dict[str, Any], group: str, tensors: dict[str, Tensor], device: Any
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, entry in packed.items():
        if "strings" in entry:
            values[name] = np.array(entry["strings"], dtype=entry.get("kind", "O"))
        elif "array" in entry:
            tensor = tensors[f"{group}.{name}"]
            values[name] = tensor.numpy() if entry["array"] == "numpy" else tensor.to(device)
        else:
            values[name] = entry["value"]
    return values
