"""What a model is asked for, counted."""

import torch
from torch import Tensor, nn

from lit_xai.types import Images, Logits


class Counted(nn.Module):
    """A model that counts the images passed through it, forward and backward, and is otherwise itself.

    Nothing is attached to the model: what is counted backward is the gradient that arrives at its logits.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def forward(self, inputs: Images) -> Logits:
        logits: Tensor = self.model(inputs)
        self.forwards += len(inputs)
        if torch.is_grad_enabled() and logits.requires_grad:
            logits.register_hook(self._arrived)  # type: ignore[no-untyped-call]
        return logits

    def _arrived(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
