"""Where a manipulated explanation is to point: one map for every image, whatever the batch."""

import abc
from dataclasses import dataclass, field

import torch
from torch import nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.baselines import Baseline, NoiseImage
from lit_xai.attributions.similarity import Places, shares
from lit_xai.types import Images, require


class Goal(abc.ABC):
    """Gives every image the map that an attack is to put in place of its own.

    Concrete goals are final frozen dataclasses. What is drawn is drawn by key, so that a goal belongs to its
    image and not to the batch.
    """

    @abc.abstractmethod
    def __call__(self, method: Attribution, model: nn.Module, inputs: Images) -> Places:
        """Return the share of every pixel, one map per image; each adds up to 1."""


@dataclass(frozen=True)
class Frame(Goal):
    """All relevance at the rim of the image, evenly: where no object is.

    Args:
        share: Thickness of the frame over the side of the image, in (0, 1/2); it is one pixel at least.

    Source: by definition.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.share < 0.5, f"`share` must lie between 0 and 1/2, got {self.share!r}.")

    def __call__(self, method: Attribution, model: nn.Module, inputs: Images) -> Places:
        rim = torch.ones_like(inputs[:, :1])
        down, across = (max(1, round(self.share * side)) for side in inputs.shape[2:])
        rim[:, :, down:-down, across:-across] = 0
        return shares(rim)


@dataclass(frozen=True)
class Drawing(Goal):
    """An image as the map: relevance in proportion to its pixels, summed over channels.

    Args:
        image: Draws one image for every image attacked: `StoredImages` of a file with one image gives all of
            them the same.

    Source: Dombrowski et al. 2019, arXiv 1906.07983, figure 1 (a text as the map).
    """

    image: Baseline

    def __call__(self, method: Attribution, model: nn.Module, inputs: Images) -> Places:
        return shares(self.image(inputs, randomness.keys(inputs, "goal")))


@dataclass(frozen=True)
class MapOf(Goal):
    """The map of another image, by the same method, for the class that the network sees in it.

    Args:
        image: Draws the other image: `StoredImages` of a file, or noise.

    Source: Dombrowski et al. 2019, arXiv 1906.07983, section 2.
    """

    image: Baseline = field(default_factory=NoiseImage)

    def __call__(self, method: Attribution, model: nn.Module, inputs: Images) -> Places:
        others = self.image(inputs, randomness.keys(inputs, "goal"))
        with torch.no_grad():
            seen = model(others).argmax(1)
        return shares(method(model, others, seen))
