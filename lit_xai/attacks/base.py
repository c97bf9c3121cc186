"""The contract of this room: an attack answers a decision with a neighbouring image."""

import abc
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from lit_xai.memory import once
from lit_xai.types import Flags, Images, Labels, Scores


class Attack(abc.ABC):
    """Maps a decision to a neighbour of the input, in pixels, inside [0, 1].

    Pure: same inputs and random state, same images; it touches neither the model nor the inputs. Draws are
    keyed by sample (`lit_xai.randomness`). Concrete attacks are final frozen dataclasses.
    """

    @abc.abstractmethod
    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        """Return one neighbour per image; `target` is the class to move away from."""


@dataclass(frozen=True)
class Boundary:
    """What a closest-boundary search found, per image.

    Args:
        points: On the far side of the decision boundary where `found`, else the input itself.
        distance: l2 distance to the input in pixel units; 0 for an input that is not of class `target`
            to begin with (one whose logits are not finite is of no class), infinite where no boundary was
            found.
        found: Whether the point was checked to flip the decision.
        label: Class predicted at the point.
        forwards: Forward passes spent on this image.
        backwards: Input gradients spent on this image.
    """

    points: Images
    distance: Scores
    found: Flags
    label: Labels
    forwards: Int[Tensor, " batch"]
    backwards: Int[Tensor, " batch"]


class Search(Attack):
    """An attack that looks for the closest point of another class."""

    @abc.abstractmethod
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        """Search, without looking into the memory."""

    def search(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        """Closest boundary point of every image, with what it cost.

        Inside `remembering()`, the same search of the same tensors, or of views on all of them, is done once.
        """
        return once(self, model, inputs, target, lambda: self.find(model, inputs, target))

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return self.search(model, inputs, target).points
