"""The contract of this room: an objective says what one training batch is asked to minimise."""

import abc

from torch import nn

from lit_xai.types import Images, Labels, Scalar


class Objective(nn.Module, abc.ABC):
    """What one training batch is asked to minimise: named scalar terms whose sum is the loss.

    It receives the model in train mode and leaves it so. State that must survive a restart lives in buffers.
    """

    @abc.abstractmethod
    def forward(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scalar]:
        """Return the terms by name; each is logged as `train/<name>`."""
