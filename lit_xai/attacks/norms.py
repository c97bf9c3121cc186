"""Norms as objects: what an attack asks of the ball in which it moves."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
        return epsilon * (2 * uniform(keys, stream, shape, dtype) - 1)


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


def _column(values: Scores) -> Tensor:
    """One number per image, shaped to multiply images."""
    return values[:, None, None, None]
