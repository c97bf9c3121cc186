"""Augmentations: a training batch in, another view of each image out, on the device."""

import torch
from torch import nn
from torch.nn import functional

from lit_xai.types import Images, require_at_least


class CropFlip(nn.Module):
    """Crops each image at random out of its zero-padded self, and mirrors every second one at random.

    Draws come from torch's global generator of the device; the batch is made by one gather.

    Args:
        padding: Black pixels added on each side before the crop, at least 0.
        flip: Whether to mirror left and right with probability 1/2.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        super().__init__()
        require_at_least(0, padding=padding)
        self.padding = padding
        self.flip = flip

    def forward(self, inputs: Images) -> Images:
        count, channels, height, width = inputs.shape
        device = inputs.device
        corner = torch.randint(2 * self.padding + 1, (2, count, 1), device=device)
        rows = corner[0] + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(count, width)
        if self.flip:
            mirrored = torch.rand(count, 1, device=device) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        columns = corner[1] + columns
        padded = functional.pad(inputs, (self.padding,) * 4)
        place = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).flatten(1)
        gathered = padded.flatten(2).gather(2, place[:, None].expand(-1, channels, -1))
        return gathered.reshape(inputs.shape)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, flip={self.flip}"
