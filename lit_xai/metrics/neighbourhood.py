"""Random neighbours of every image, with their maps and logits: a bank that metrics of stability share."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attacks.losses import holds
from lit_xai.attacks.norms import Linf, Norm
from lit_xai.attributions.base import Attribution
from lit_xai.memory import once
from lit_xai.metrics.shared import clean_logits, passed
from lit_xai.types import Epsilon, Images, Keys, Labels, Logits, require_at_least, require_positive

Bank = Float[Tensor, "sample batch channel height width"]


class Noise(abc.ABC):
    """How far and where to neighbours are drawn. Concrete noises are final frozen dataclasses."""

    @abc.abstractmethod
    def __call__(
        self, keys: Keys, stream: int, shape: Sequence[int], radius: float, dtype: torch.dtype
    ) -> Images:
        """Return a random change of an image of this shape, one per key."""


@dataclass(frozen=True)
class InBall(Noise):
    """A point of the ball of the radius, drawn as random starts of attacks are: even in the cube for `Linf`.

    Args:
        norm: The ball.

    Source: Yeh, Hsieh, Suggala, Inouye and Ravikumar 2019, arXiv 1901.09392 (even in the cube).
    """

    norm: Norm = field(default_factory=Linf)

    def __call__(
        self, keys: Keys, stream: int, shape: Sequence[int], radius: float, dtype: torch.dtype
    ) -> Images:
        return self.norm.start(keys, stream, shape, radius, dtype)


@dataclass(frozen=True)
class Normal(Noise):
    """Independent normal numbers; the radius is their standard deviation.

    Source: Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049 (Gaussian neighbours).
    """

    def __call__(
        self, keys: Keys, stream: int, shape: Sequence[int], radius: float, dtype: torch.dtype
    ) -> Images:
        return radius * randomness.normal(keys, stream, shape, dtype)


@dataclass(frozen=True)
class Neighbourhood:
    """Random neighbours of every image: x_k = clip(x + u_k), k = 1 ... K, clipped to [0, 1].

    Metrics that are built on equal neighbourhoods share the neighbours, their logits, and their maps. Draws
    belong to the image: the first ones are the same for every K, and for every radius but for its length.

    Args:
        radius: Size of the changes, in pixel units, above 0.
        samples: K, the neighbours of an image, at least 1; each costs one map.
        noise: How changes are drawn.
        chunk: Largest number of images that a method is given at once, at least 1.

    Source: Yeh, Hsieh, Suggala, Inouye and Ravikumar 2019, arXiv 1901.09392 (a sampled ball).
    Deviates: neighbours are clipped to the box.
    """

    radius: Epsilon
    samples: int = 8
    noise: Noise = field(default_factory=InBall)
    chunk: int = 64

    def __post_init__(self) -> None:
        require_positive(radius=self.radius)
        require_at_least(1, samples=self.samples, chunk=self.chunk)

    def around(self, model: nn.Module, inputs: Images, target: Labels) -> "Neighbours":
        """The neighbours of a batch; drawn, passed and explained once for all that ask."""

        def drawn() -> Neighbours:
            keys = randomness.keys(inputs, "neighbourhood")
            shape, dtype = inputs.shape[1:], inputs.dtype
            draws = (self.noise(keys, k, shape, self.radius, dtype) for k in range(self.samples))
            points = torch.stack([draw.add_(inputs).clamp_(0, 1) for draw in draws])
            return Neighbours(model, inputs, target, points, self.chunk)

        return once(("neighbourhood", self), model, inputs, target, drawn)


class Neighbours:
    """Neighbours of a batch, and what model and methods say about them, computed when first asked for.

    Args:
        model: The network.
        inputs: The images.
        target: Their classes.
        points: The neighbours.
        chunk: Largest number of them in one call of the model, or of a method.
    """

    def __init__(
        self, model: nn.Module, inputs: Images, target: Labels, points: Bank, chunk: int = 64
    ) -> None:
        self.model, self.inputs, self.target = model, inputs, target
        self.points, self.chunk = points, chunk
        # Kept, so that what methods do at a chunk (a search) is remembered from one method to the next.
        self._targets = target.repeat(len(points))
        self._last: tuple[Attribution, Bank] | None = None

    @cached_property
    def logits(self) -> Float[Tensor, "sample batch class"]:
        """Logits of the neighbours."""
        logits = passed(self.model, self.points.flatten(0, 1), self.chunk)
        return logits.reshape(*self.points.shape[:2], logits.shape[1])

    @cached_property
    def clean(self) -> Logits:
        """Logits of the images."""
        return clean_logits(self.model, self.inputs, self.target)

    @cached_property
    def kept(self) -> Bool[Tensor, "sample batch"]:
        """Whether a neighbour is of the class that the model sees in the image, right or wrong."""
        predicted = self.clean.argmax(dim=1).repeat(len(self.points))
        return holds(self.logits.flatten(0, 1), predicted).reshape(self.points.shape[:2])

    def maps(self, attribution: Attribution) -> Bank:
        """Maps of the neighbours for the classes of the images.

        Within `randomness.keyed`, a method that draws has the same draws at an image and its neighbours. The
        maps of the last method are kept, not those of all: methods are scored one after the other.
        """
        if self._last is None or self._last[0] != attribution:
            self._last = None  # two banks of maps are never held at once
            self._last = (attribution, self._explained(attribution.maps))
        return self._last[1]

    def _explained(self, maps: Callable[[nn.Module, Images, Labels], Images]) -> Bank:
        count = len(self.inputs)
        points = self.points.flatten(0, 1)
        image = torch.arange(len(points), device=points.device) % max(1, count)
        filled = torch.empty_like(points)
        chunks = (torch.split(whole, self.chunk) for whole in (points, self._targets, image, filled))
        for some, target, rows, place in zip(*chunks, strict=True):
            with randomness.narrowed(rows):
                place.copy_(maps(self.model, some, target).detach())
        return filled.view_as(self.points)
