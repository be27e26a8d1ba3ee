"""`PixelCNN`: a density of images, pixel by pixel, in one pass of masked convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.models._arrays import returned
from evidens.models._density import Density
from evidens.models._density_scaling import Standardize
from evidens.models._density_state import check_sizes, evaluating, seed_of
from evidens.models._density_steps import PixelSteps, Stepwise
from evidens.nn.pixels import PixelNet

OUTPUTS = ("bernoulli", "categorical", "logistic")


class PixelCNN(Stepwise, Density):
    """Autoregressive density of images of integers: ``p(x) = prod p(pixel | pixels before it)``.

    Args:
        shape: (C, H, W).
        levels: K; pixels are 0 .. K - 1.
        output: ``"bernoulli"`` (two levels), ``"categorical"``, or ``"logistic"``: the discretized
            mixture of logistics of PixelCNN++, for one or three channels.  None: bernoulli for two
            levels, else categorical.
        terms: M of ``"logistic"``.
        context, classes: as in `evidens.RealNVP`.
        hidden: channels between; None: 64, or as many more as make a multiple of the colours that
            come one after the other.
        layers, kernel, first_kernel, gated, dropout: as in `evidens.nn.PixelNet`.
        one_hot: the network sees levels one-hot, not as numbers.

    Colours come one after the other, red first; with ``"logistic"`` all at once, coupled by its
    coefficients.

    Raises:
        ValueError: a size out of range, an output that does not fit the shape or the levels.

    Source: van den Oord, Kalchbrenner and Kavukcuoglu, Pixel recurrent neural networks (2016);
    Salimans, Karpathy, Chen and Kingma, PixelCNN++ (2017).

    Example:
        >>> import evidens, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.repeat(rng.integers(2, size=(300, 1, 4, 1)), 4, 3)  # rows of one bit each
        >>> model = evidens.PixelCNN((1, 4, 4), levels=2, hidden=8, layers=1, first_kernel=3)
        >>> model = model.fit(X, epochs=40, batch_size=32, lr=1e-2, random_state=0)
        >>> model.bits_per_dim(X) < 0.3  # 4 bits for 16 pixels
        True
        >>> model.sample(2, random_state=0).shape
        (2, 1, 4, 4)
    """

    standard: Standardize
    layers: PixelNet

    def __init__(
        self,
        shape: Sequence[int],
        *,
        levels: int = 256,
        output: str | None = None,
        terms: int = 10,
        context: int = 0,
        classes: int = 0,
        hidden: int | None = None,
        layers: int = 5,
        kernel: int = 3,
        first_kernel: int = 7,
        gated: bool = False,
        one_hot: bool = False,
        dropout: float = 0.0,
    ) -> None:
        settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        settings["shape"] = [int(size) for size in shape]
        name = type(self).__name__
        sizes = {"terms": terms, "layers": layers, "levels": levels}
        sizes |= {"hidden": 64 if hidden is None else hidden}
        check_sizes(name, shape, context, classes, None, None, **sizes)
        output = output or ("bernoulli" if levels == 2 else "categorical")
        if len(shape) != 3:
            raise ValueError(f"{name}: shape must be (C, H, W), got {tuple(shape)}")
        channels = int(shape[0])
        if output not in OUTPUTS or levels < 2 or (output == "bernoulli" and levels != 2):
            raise ValueError(
                f"{name}: expected output one of {', '.join(OUTPUTS)} and levels of at least 2, 2 "
                f"for bernoulli, got {output!r} and {levels}"
            )
        if output == "logistic" and channels not in (1, 3):
            raise ValueError(f"{name}: output 'logistic' has 1 or 3 channels, got {channels}")
        groups = 1 if output == "logistic" else channels
        hidden = -(-64 // groups) * groups if hidden is None else hidden
        if hidden % groups:
            raise ValueError(
                f"{name}: hidden must be a multiple of the {groups} channels, got {hidden}"
            )
        outputs = {
            "bernoulli": channels,
            "categorical": channels * levels,
            "logistic": terms * (3 if channels == 1 else 10),
        }[output]
        net = PixelNet(
            channels,
            outputs,
            hidden=hidden,
            layers=layers,
            kernel=kernel,
            first_kernel=first_kernel,
            groups=groups,
            gated=gated,
            context=context + classes,
            one_hot=levels if one_hot else 0,
            dropout=dropout,
        )
        super().__init__(
            shape,
            net,
            Standardize(shape, by="none", context=context),
            context=context,
            classes=classes,
            levels=levels,
            settings=settings,
        )
        self.output = output
        # Levels on [-1, 1].
        self.input_map = (1.0, 0.0) if one_hot else (2.0 / (levels - 1), -1.0)

    # --- densities -------------------------------------------------------------------------------

    def _given_label(self, x: Tensor, context: Tensor | None, labels: Tensor | None) -> Tensor:
        (a, b), levels = self.input_map, torch.where(x.isnan(), 0, x)
        seen = self.layers.shown(x.to(self.dtype)).to(self.dtype) * a + b
        params = self.layers(seen, self._condition(context, labels))
        terms = self._terms(params, levels)
        return terms.flatten(1).sum(1) + (0 * x).flatten(1).sum(1)  # NaN is no level

    def _terms(self, params: Tensor, levels: Tensor) -> Tensor:
        """Log-probabilities of levels (N, C, H, W) from what the network says of each pixel."""
        if self.output == "bernoulli":
            return -nn.functional.softplus((1 - 2 * levels.to(params.dtype)) * params)
        if self.output == "categorical":
            at = levels.to(torch.int64)[:, :, None]
            split = params.unflatten(1, (self.shape[0], -1))
            return split.log_softmax(2).gather(2, at)
        return ops.logistic_mixture_log_prob(
            levels.to(params.dtype), params, levels=self.levels or 2
        )

    # --- draws -----------------------------------------------------------------------------------

    def sample(
        self, n: int = 1, context: Any = None, y: Any = None, *, random_state: Any = None
    ) -> Any:
        """Draw images, by the arithmetic of one pass of the network.

        Args:
            n: number of images, not negative.
            context: (n, K), or one row (K,) for all draws.
            y: (n,) labels, or one for all draws; None draws classes by their frequency.
            random_state: seed or generator; None takes torch's.  An image depends on the seed and
                on its number, not on n.

        Returns:
            (n, C, H, W) integers; a tensor or an array as in `evidens.RealNVP.sample`.

        Raises:
            ValueError: a missing or wrong context, an unknown label, a negative n.
        """
        condition, seed = self._of_draws(n, context, y, random_state)
        with torch.no_grad(), evaluating(self):
            return self._as_asked(self._fill(n, condition, seed), context, y)

    def _fill(
        self,
        n: int,
        condition: Tensor | None,
        seed: int,
        known: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        return self.layers.draw(
            self._noise(n, seed), condition, known=known, values=values, **self._how()
        )

    def _parts(
        self,
        n: int,
        condition: Tensor | None,
        seed: int,
        known: Tensor | None,
        values: Tensor | None,
    ) -> list[PixelSteps]:
        state = self.layers.start(
            self._noise(n, seed), condition, known=known, values=values, **self._how()
        )
        return [PixelSteps(self, state)]

    def _noise(self, n: int, seed: int) -> Tensor:
        return ops.pixelcnn_noise(
            self.output, n, *self.shape, seed=seed, dtype=self.dtype, device=self.device
        )

    def _how(self) -> dict[str, Any]:
        return {"kind": self.output, "levels": self.levels, "input_map": self.input_map}

    def impute(
        self, X: Any, context: Any = None, y: Any = None, *, random_state: Any = None
    ) -> Any:
        """Fill in NaN by draws, pixel by pixel: what stands before a pixel decides, known or drawn.

        A draw from the conditional where the known pixels come first in raster order, as the upper
        part of an image does; what is known further on does not look back.

        Args:
            X: array-like or tensor (N, C, H, W), or (N, C H W), NaN where a value is missing.
            context, y: as in `log_prob`; a model with classes needs y.
            random_state: of the draws.

        Returns:
            (N, C, H, W), what X is; known values as they are.

        Raises:
            ValueError: levels out of range, classes without y.
        """
        x, missing, condition = self._of_gaps(X, context, y)
        seed = seed_of(random_state)
        with torch.no_grad(), evaluating(self):
            drawn = self._fill(len(x), condition, seed, ~missing, x.to(self.dtype))
        result = torch.where(missing, drawn.to(x.dtype), x)
        return returned(result if isinstance(X, Tensor) else result.cpu(), X)
