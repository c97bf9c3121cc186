"""Controls: maps that know nothing of the model, to be scored beside those that claim to."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.types import Images, Labels


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
