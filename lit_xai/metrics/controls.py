"""Controls: maps that know nothing of the model, to be scored beside those that claim to."""

import abc
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.gradient import Saliency
from lit_xai.metrics.base import Metric
from lit_xai.metrics.companions import Companions
from lit_xai.types import Images, Labels, require, require_positive


@dataclass(frozen=True)
class RandomMap(Attribution):
    """A control: independent uniform numbers in (-1, 1), drawn anew for each sample.

    Source: Samek et al. 2017, arXiv 1509.06321 (the random heatmap that a method must beat).
    """

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        keys = randomness.keys(inputs, "random map")
        return 2 * randomness.uniform(keys, 0, inputs.shape[1:], inputs.dtype) - 1


@dataclass(frozen=True)
class EdgeMap(Attribution):
    """A control: strength of the image's edges, channel by channel.

    sqrt(u^2 + v^2), u and v the image under the two Sobel kernels, borders repeated.

    Source: Adebayo et al. 2018, arXiv 1810.03292 (edge detectors as a control).
    """

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        smooth, slope = inputs.new_tensor([[1, 2, 1], [-1, 0, 1]])
        kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
        pixels = F.pad(inputs, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
        slopes = F.conv2d(pixels, kernels)
        return slopes.square().sum(dim=1).sqrt().reshape(inputs.shape)


@dataclass(frozen=True)
class CentreMap(Attribution):
    """A control: a Gaussian in the middle of the image, shared out evenly over the channels.

    exp(-r^2 / (2 sigma^2)), r the distance to the middle. What a map scores beyond it, it scores by knowing
    where in the image the object is.

    Args:
        sigma: Standard deviation, as a share of the shorter side; above 0.

    Raises:
        ValueError: `sigma` is not above 0.

    Source: Zhang et al. 2018, arXiv 1608.00507, table 1 (the centre as a baseline of the pointing game).
    """

    sigma: float = 0.25

    def __post_init__(self) -> None:
        require_positive(sigma=self.sigma)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        channels, height, width = inputs.shape[1:]
        down, across = (
            (torch.arange(side, device=inputs.device, dtype=inputs.dtype) - (side - 1) / 2).square()
            for side in (height, width)
        )
        spread = 2 * (self.sigma * min(height, width)) ** 2
        return (torch.exp(-(down[:, None] + across) / spread) / channels).expand_as(inputs).clone()


class Borrowed(Attribution, abc.ABC):
    """A control made of a method's own maps; one is made for each method that is scored."""

    method: Attribution

    def of(self, method: Attribution, companions: Companions | None) -> "Borrowed":
        """The control of a method, for a batch with these companions."""
        self_: Any = self
        return dataclasses.replace(self_, method=method)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class OtherImage(Borrowed):
    """A control: the method's map of another image, for the class of that one.

    What a map of the right image scores beyond it, it scores by looking at the image.

    Args:
        method: The method.
        companions: Other images beside each image; the first one's map is taken. Without any, it is that of
            the next image in the batch.

    Source: by definition, as the shuffled labels of a permutation test.
    """

    method: Attribution = field(default_factory=Saliency)
    companions: Companions | None = None

    def of(self, method: Attribution, companions: Companions | None) -> "OtherImage":
        return OtherImage(method, companions)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        others = self.companions
        if others is None:
            require(
                len(inputs) != 1, "`OtherImage` needs another image, and the batch has 1: give `companions`."
            )
            rows = torch.arange(len(inputs), device=inputs.device).roll(-1)
            with randomness.narrowed(rows):
                return self.method(model, inputs[rows], target[rows])
        require(
            len(others) == len(inputs),
            f"`companions` must be as many as images, got {len(others)} for {len(inputs)}.",
        )
        with randomness.renamed(others.ids[:, 0]):
            return self.method(model, others.images[:, 0].to(inputs.dtype), others.target[:, 0])


def scorable(control: Attribution, metric: Metric) -> bool:
    """Whether a metric can be asked about a control: none has a past, one of another image no method."""
    refused = {"previous", "attribution"} if isinstance(control, OtherImage) else {"previous"}
    return not refused & set(metric.needs)
