"""Drop-in ``torch.nn`` modules over the ops: the layers of normalizing flows and their networks.

`MaskedConv2d` and `MaskedLinear` are called as torch's layers are.  A layer of a flow is called as
``layer(x, context) -> (y, logdet)`` and undone by ``layer.inverse(y, context) -> (x, logdet)``,
each with the log-determinant (N,) of the direction taken.
"""

from evidens.nn.actnorm import ActNorm
from evidens.nn.autoregressive import AffineAutoregressive, MaskedMLP, SplineAutoregressive
from evidens.nn.chain import Chain, Inverse
from evidens.nn.conditioners import MLP, ConvNet
from evidens.nn.coupling import AffineCoupling
from evidens.nn.linear import Invertible1x1Conv, InvertibleLinear, Permutation
from evidens.nn.masked import MaskedConv2d, MaskedLinear
from evidens.nn.multiscale import Split, Squeeze
from evidens.nn.pixels import PixelNet
from evidens.nn.spline import SplineCoupling

__all__ = [
    "MLP",
    "ActNorm",
    "AffineAutoregressive",
    "AffineCoupling",
    "Chain",
    "ConvNet",
    "Inverse",
    "Invertible1x1Conv",
    "InvertibleLinear",
    "MaskedConv2d",
    "MaskedLinear",
    "MaskedMLP",
    "Permutation",
    "PixelNet",
    "SplineAutoregressive",
    "SplineCoupling",
    "Split",
    "Squeeze",
]
