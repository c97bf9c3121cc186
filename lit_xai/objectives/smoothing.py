"""Objectives that train the network inside a smoothed classifier."""

import torch
import torch.nn.functional as F
from torch import nn

from lit_xai.objectives.base import Objective, Terms, Views
from lit_xai.types import Images, Labels, require_positive


class GaussianAugmentation(Objective):
    """Cross-entropy on noisy images: the mean of -log softmax(f(x + e))_y, e ~ N(0, sigma^2 I).

    Noise comes from torch's global generator, one draw per image, and is not clipped to [0, 1].

    Args:
        sigma: Standard deviation of the noise in pixel units, greater than 0; certify with the same.

    Source: Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, section 3.3.
    """

    def __init__(self, sigma: float) -> None:
        require_positive(sigma=sigma)
        super().__init__()
        self.sigma = sigma

    def extra_repr(self) -> str:
        return f"sigma={self.sigma!r}"

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        return (inputs + self.sigma * torch.randn_like(inputs),)

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        (noisy,) = views
        return {"noisy_cross_entropy": F.cross_entropy(model(noisy), target)}
