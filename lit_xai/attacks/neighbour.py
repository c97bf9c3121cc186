"""A perturbation that looks for nothing: the control of those that do."""

from dataclasses import dataclass, field

from torch import nn

from lit_xai.attacks.base import Attack
from lit_xai.attacks.norms import Linf, Norm
from lit_xai.randomness import keys
from lit_xai.types import Epsilon, Images, Labels, require_positive


@dataclass(frozen=True)
class RandomNeighbour(Attack):
    """A random point of the ball: where a random start sets out, and no step follows.

    x' = clip(x + u),    u the start of the norm: even in the cube for `Linf`

    The model is not asked.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbour lies.

    Source: Fawzi, Moosavi-Dezfooli and Frossard 2016, arXiv 1608.08967 (random noise beside the adversarial
    one).
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        own = keys(inputs, "RandomNeighbour")
        delta = self.norm.start(own, 0, inputs.shape[1:], self.epsilon, inputs.dtype)
        return delta.add_(inputs.detach()).clamp_(0, 1)
