"""Norms as objects: what an attack asks of the ball in which it moves."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_xai.randomness import normal, uniform
from lit_xai.types import Images, Keys, Scores


class Norm(abc.ABC):
    """The geometry of a perturbation: its length, its ball, its steepest direction and its random start.

    A norm is of one image, over all its pixels and channels; images of a batch do not see each other.
    Concrete norms are final frozen dataclasses.
    """

    @abc.abstractmethod
    def length(self, delta: Images) -> Scores:
        """Length of every perturbation, in pixel units."""

    @abc.abstractmethod
    def project(self, delta: Images, epsilon: float) -> Images:
        """Closest perturbation of length at most `epsilon`, closest in l2."""

    @abc.abstractmethod
    def steepest(self, gradient: Images) -> Images:
        """Perturbation of length 1 along which a loss with this gradient rises fastest; 0 for no gradient."""

    @abc.abstractmethod
    def start(
        self, keys: Keys, stream: int, shape: Sequence[int], epsilon: float, dtype: torch.dtype
    ) -> Images:
        """Random perturbation in the ball of radius `epsilon`, of the shape of one image, one per key."""

    def confine(self, points: Images, inputs: Images, epsilon: float) -> Images:
        """Nearby points of the box [0, 1] that lie in the ball of radius `epsilon` around the inputs.

        Projected onto the ball, then clipped, which brings no pixel further from its input.
        """
        return self.project(points - inputs, epsilon).add_(inputs).clamp_(0, 1)


@dataclass(frozen=True)
class Linf(Norm):
    """Largest absolute change of a pixel: max_i |delta_i|.

    Source: Madry et al. 2018, arXiv 1706.06083, section 2 (ball, sign step, uniform start).
    """

    def length(self, delta: Images) -> Scores:
        return delta.abs().flatten(1).amax(dim=1)

    def project(self, delta: Images, epsilon: float) -> Images:
        return delta.clamp(-epsilon, epsilon)

    def steepest(self, gradient: Images) -> Images:
        return gradient.sign()

    def start(
        self, keys: Keys, stream: int, shape: Sequence[int], epsilon: float, dtype: torch.dtype
    ) -> Images:
        return uniform(keys, stream, shape, dtype).mul_(2).sub_(1).mul_(epsilon)


@dataclass(frozen=True)
class L2(Norm):
    """Euclidean length: sqrt(sum_i delta_i^2).

    The start has a direction drawn evenly from the sphere and a radius drawn evenly from (0, epsilon): it
    lies closer to the image than a point drawn evenly from the ball.

    Source: Madry et al. 2018, arXiv 1706.06083; the start of Engstrom et al. 2019, `robustness` library.
    """

    def length(self, delta: Images) -> Scores:
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def project(self, delta: Images, epsilon: float) -> Images:
        return delta * _column(epsilon / self.length(delta).clamp(min=epsilon))

    def steepest(self, gradient: Images) -> Images:
        # Dividing by the peak first keeps the squares of a tiny gradient from vanishing: no absolute floor.
        peak = Linf().length(gradient)
        scaled = gradient / _column(torch.where(peak > 0, peak, 1.0))
        length = self.length(scaled)
        return scaled / _column(torch.where(length > 0, length, 1.0))

    def start(
        self, keys: Keys, stream: int, shape: Sequence[int], epsilon: float, dtype: torch.dtype
    ) -> Images:
        direction = self.steepest(normal(keys, 2 * stream, shape, dtype))
        return direction * (epsilon * uniform(keys, 2 * stream + 1, (1, 1, 1), dtype))


@dataclass(frozen=True)
class L1(Norm):
    """Sum of absolute changes: sum_i |delta_i|.

    The steepest direction is the one pixel with the largest gradient, where attacks take `sparse`. The start
    is Gaussian noise projected onto the ball: a point of its surface with few changed pixels.

    Source: Croce and Hein 2021, arXiv 2103.01208, proposition 2.2 (projection onto ball and box), section 3
    (steepest direction, sparse step), section 4.2 (start).
    """

    def length(self, delta: Images) -> Scores:
        return delta.abs().flatten(1).sum(dim=1)

    def project(self, delta: Images, epsilon: float) -> Images:
        return _shrink(delta, delta.abs(), epsilon)

    def confine(self, points: Images, inputs: Images, epsilon: float) -> Images:
        """Closest points, in l2, of the intersection of ball and box."""
        delta = points - inputs
        return _shrink(delta, torch.where(delta > 0, 1 - inputs, inputs), epsilon).add_(inputs).clamp_(0, 1)

    def steepest(self, gradient: Images) -> Images:
        flat = gradient.flatten(1)
        peak = flat.abs().argmax(dim=1, keepdim=True)
        sign = flat.gather(1, peak).sign()
        return torch.zeros_like(flat).scatter(1, peak, sign).view_as(gradient)

    def sparse(self, gradient: Images, share: Scores) -> Images:
        """Perturbation of length 1: the signs of the largest gradients, a `share` of all pixels in [0, 1]."""
        size = gradient.flatten(1).abs()
        count = size.shape[1]
        rank = ((1 - share) * count).long().clamp(0, count - 1)
        least = size.sort(dim=1).values.gather(1, rank[:, None])
        signs = gradient.sign() * (size >= least).view_as(gradient)
        return signs / _column(self.length(signs).clamp(min=1))

    def start(
        self, keys: Keys, stream: int, shape: Sequence[int], epsilon: float, dtype: torch.dtype
    ) -> Images:
        return self.project(normal(keys, stream, shape, dtype), epsilon)


def _shrink(delta: Images, room: Images, epsilon: float) -> Images:
    """Move all pixels towards 0 by one amount, to sign(d) clamp(|d| - amount, 0, room) of length epsilon.

    The length falls with the amount along straight pieces, which meet where a pixel leaves its room or
    reaches 0: the pieces are sorted and summed up from the largest amount.
    """
    size = delta.abs().flatten(1)
    most = torch.minimum(room.flatten(1), size)
    knots, order = torch.cat([size, size - most], dim=1).sort(dim=1, descending=True)
    moving = torch.where(order < size.shape[1], 1.0, -1.0).to(size.dtype).cumsum(dim=1)
    gained = moving[:, :-1] * (knots[:, :-1] - knots[:, 1:])
    length = nn.functional.pad(gained.cumsum(dim=1, dtype=torch.float64), (1, 0))
    last = (length <= epsilon).sum(dim=1, keepdim=True) - 1
    rest = (epsilon - length.gather(1, last)) / moving.gather(1, last).clamp(min=1)
    amount = (knots.gather(1, last) - rest).clamp(min=0).to(size.dtype)
    amount = amount.nextafter(torch.full_like(amount, math.inf))  # many pixels must not add up to too much
    return torch.minimum((size - amount).clamp(min=0), most).view_as(delta) * delta.sign()


def _column(values: Scores) -> Tensor:
    """One number per image, shaped to multiply images."""
    return values[:, None, None, None]
