"""The contract of this room: an attribution maps a decision to the evidence for it."""

import abc

from torch import nn

from lit_xai.types import Images, Labels


class Attribution(abc.ABC):
    """Maps a decision to the evidence for it: one signed number per pixel and channel.

    Pure: same inputs and random state, same maps; it touches neither the model (modes, `.grad`, hooks) nor
    the inputs, also when it fails. Each image is explained by itself: batch size and order do not matter.
    Maps are raw: no absolute value, no normalisation, no sum over channels. Draws are keyed by sample
    (`lit_xai.randomness`). Concrete attributions are final frozen dataclasses.
    """

    @abc.abstractmethod
    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        """Return one map per image, in the shape of the image, for the class `target`."""
