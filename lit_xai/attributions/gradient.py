"""Maps that are one gradient, taken at the image itself."""

from dataclasses import dataclass, field

from torch import nn

from lit_xai.attributions.base import Attribution, entering
from lit_xai.attributions.score import Logit, Scored, gradient, settle
from lit_xai.types import Images, Labels


@dataclass(frozen=True)
class Saliency(Attribution):
    """Gradient of the score at the image.

    grad s(x)

    Args:
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.

    Source: Simonyan, Vedaldi and Zisserman 2013, arXiv 1312.6034, section 3, eq. 4.
    Deviates: signed and per channel; the paper draws the largest magnitude over the channels.
    """

    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return gradient(self.score, model, inputs, target)


@dataclass(frozen=True)
class InputXGradient(Attribution):
    """Image times the gradient of the score: the first-order effect of painting each pixel black.

    x * grad s(x)

    Args:
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.

    Source: Shrikumar, Greenside, Shcherbina and Kundaje 2016, arXiv 1605.01713 (gradient * input).
    """

    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return entering(inputs) * gradient(self.score, model, inputs, target)
