"""Normalisation as the first layer: everything outside of the model speaks pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_xai.types import Images, Logits, require


class Normalized(nn.Module):
    """A network behind the normalisation it was trained with: net((x - mean) / std).

    Mean and std are buffers, so a checkpoint cannot be read with those of another data set.

    Args:
        net: Maps normalised images to logits.
        mean: One number per channel, in pixel units.
        std: One number per channel, in pixel units, greater than 0.

    Raises:
        ValueError: The lengths differ or are 0, or a `std` is not greater than 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        require(
            len(mean) == len(std) > 0,
            "`mean` and `std` must have one number per channel each, "
            f"got {len(mean)} and {len(std)} numbers.",
        )
        require(all(value > 0 for value in std), f"`std` must be greater than 0, got {list(std)}.")
        super().__init__()
        self.net = net
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, inputs: Images) -> Logits:
        logits: Tensor = self.net((inputs - self.mean) / self.std)
        return logits
