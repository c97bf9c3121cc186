"""The matrices that a network's weights are, and how bounded and orthogonal their rows are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.types import Scalar

Amplitude = float | Literal["ada"]
Matrices = Float[Tensor, "*stack groups rows columns"]


@dataclass(frozen=True)
class Layout:
    """How a weight is read as matrices: one per group of channels, with a row for each output channel.

    Args:
        groups: Groups of channels that see nothing of each other, at least 1.
        transposed: Whether input channels come first, as in a transposed convolution.
    """

    groups: int = 1
    transposed: bool = False

    def matrices(self, weight: Float[Tensor, "first second *rest"]) -> Float[Tensor, "groups rows columns"]:
        apart = weight.reshape(self.groups, -1, *weight.shape[1:])
        return (apart.transpose(1, 2) if self.transposed else apart).flatten(2)

    def weight(self, matrices: Float[Tensor, "groups rows columns"], shape: torch.Size) -> Tensor:
        """The way back: a weight of that shape."""
        if self.transposed:
            inputs = shape[0] // self.groups
            matrices = matrices.reshape(*matrices.shape[:2], inputs, -1).transpose(1, 2)
        return matrices.reshape(shape)


def linear_maps(model: nn.Module) -> Iterator[tuple[str, Tensor, Layout]]:
    """Name, weight and layout of every convolution, transposed or not, and of every linear layer.

    A class token or a layer scale has rows too, but they are no directions that inputs are compared with.
    """
    forward = nn.Conv1d | nn.Conv2d | nn.Conv3d
    backward = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            yield name, layer.weight, Layout()
        elif isinstance(layer, forward | backward):
            yield name, layer.weight, Layout(layer.groups, isinstance(layer, backward))


def gram(matrices: Matrices) -> Float[Tensor, "*stack groups side side"]:
    """Inner products of the rows, or of the columns where there are fewer of them."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    return matrices @ matrices.mT if wide else matrices.mT @ matrices


def measures(matrices: Matrices, amplitude: Amplitude = "ada") -> dict[str, Float[Tensor, "*stack"]]:
    """How bounded and orthogonal the rows of weights are, of the columns where there are fewer of them.

    With m rows w_i of all groups together, and amplitude a:
    `boundedness` sqrt(mean_i (||w_i||^2 / a - 1)^2), the spread of the rows' lengths;
    `orthogonality` sqrt(sum_{i != j} <w_i, w_j>^2 / (a^2 m));
    `residual` ||W W^T - a I||_F / (a sqrt(m)), whose square is the sum of their squares;
    `sigma_min` and `sigma_max` the ends of the singular values;
    `cosine` the mean of |cos(w_i, w_j)| over i != j, 0 where there is no pair.

    0 is perfect but for the singular values, which then are sqrt(a); of W = 0 the residual is 1. All are
    computed in double precision.

    Args:
        matrices: Weights of one shape, as `Layout` reads them; a pair of rows lies in one group.
        amplitude: Squared length a that the rows are compared with, greater than 0, or "ada" for the square
            of their mean length.
    """
    products = gram(matrices.double())
    groups, side = products.shape[-3:-1]
    squares = products.diagonal(dim1=-2, dim2=-1)
    lengths = squares.sqrt()
    scale = lengths.mean((-2, -1)).square() if amplitude == "ada" else lengths.new_tensor(amplitude)
    tiny = torch.finfo(products.dtype).tiny
    scale = scale.clamp(min=tiny)[..., None, None]
    bounded = (squares / scale - 1).square().mean((-2, -1))
    across = products - squares.diag_embed()
    apart = (across / scale[..., None]).square().sum((-3, -2, -1)) / (groups * side)
    pairs = (lengths[..., None] * lengths[..., None, :]).clamp(min=tiny)
    cosine = (across.abs() / pairs).sum((-3, -2, -1)) / (groups * max(1, side * (side - 1)))
    finite = products.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)  # eigvalsh raises on NaN
    sigma = torch.linalg.eigvalsh(products.where(finite, 0)).clamp(min=0).sqrt()
    sigma = sigma.where(finite[..., 0], torch.nan).flatten(-2)
    return {
        "residual": (bounded + apart).sqrt(),
        "orthogonality": apart.sqrt(),
        "boundedness": bounded.sqrt(),
        "sigma_min": sigma.amin(-1),
        "sigma_max": sigma.amax(-1),
        "cosine": cosine,
    }


def residual(
    weight: Float[Tensor, "first second *rest"], amplitude: Amplitude = 1.0, layout: Layout | None = None
) -> Scalar:
    """How far a weight is from Bort's constraint: ||W W^T - a I||_F / (a sqrt(rows)), see `measures`.

    Args:
        weight: A weight of at least two dimensions.
        amplitude: As in `measures`.
        layout: How the weight is read; as one matrix, `flatten(1)`, if left out.
    """
    matrices = (layout or Layout()).matrices(weight.detach())
    return measures(matrices, amplitude)["residual"].to(weight.dtype)
