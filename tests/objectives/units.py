"""What a training step costs in floating point operations, in units of a forward pass."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lit_xai.objectives import Objective


class Flops(TorchDispatchMode):
    """Counts the operations of convolutions and matrix products, backward ones as well."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def units(objective: Objective) -> float:
    """Cost of a step for eight convolutions: the first, whose images need no gradient, hardly counts."""
    layers = [part for _ in range(8) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 4))
    images, target = torch.rand(4, 8, 6, 6), torch.tensor([0, 1, 2, 3])
    with Flops() as one, torch.no_grad():
        net(images)
    with Flops() as step:
        sum(objective(net, images, target).values()).backward()
    return step.total / one.total
