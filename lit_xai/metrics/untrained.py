"""A control that knows the network, but nothing of what it learned."""

from dataclasses import dataclass, field

from torch import nn

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.gradient import Saliency
from lit_xai.metrics.controls import Borrowed
from lit_xai.models.reinitialised import untrained
from lit_xai.types import Images, Labels


@dataclass(frozen=True)
class Untrained(Borrowed):
    """A control: the method's map of the same network with fresh weights, for the same class.

    What a map of the trained network scores beyond it, it scores by what was learned, not by what method and
    architecture make of the image.

    Args:
        method: The method.
        seed: Chooses the weights, the same in each epoch; see `reinitialised`.

    Source: Adebayo et al. 2018, arXiv 1810.03292, section 3 (the fully randomized model).
    """

    method: Attribution = field(default_factory=Saliency)
    seed: int = 0

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return self.method(untrained(model, self.seed), inputs, target)
