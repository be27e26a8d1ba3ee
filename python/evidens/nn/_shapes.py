"""What the layers ask of their input."""

from __future__ import annotations

from torch import Tensor


def check_features(layer: object, x: Tensor, features: int, least: int = 2) -> None:
    """``x`` is (N, features, *S).

    Raises:
        ValueError: another shape.
    """
    if x.ndim < least or x.shape[1] != features:
        letters = "(N, D, *S)" if least == 2 else "(N, C, H, W)"
        raise ValueError(
            f"{type(layer).__name__}: expected x of shape {letters} with {features} features on "
            f"axis 1, got {tuple(x.shape)}"
        )


def no_logdet(x: Tensor) -> Tensor:
    """The log-determinant of a layer that keeps volumes: zeros (N,)."""
    return x.new_zeros(x.shape[0])
