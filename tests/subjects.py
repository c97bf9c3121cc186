"""Models to test on, and ways to watch them."""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_xai.types import Images, Labels


@dataclass(frozen=True)
class Linear:
    """A linear classifier in double precision; `target` is its decision on inputs far from the box."""

    model: nn.Module
    weight: Tensor  # (class, channel * height * width)
    bias: Tensor
    inputs: Images
    target: Labels


def linear_case(classes: int = 4) -> Linear:
    draw = torch.Generator().manual_seed(classes)
    shape = (2, 5, 5)
    weight = torch.randn(classes, 50, generator=draw, dtype=torch.float64)
    inputs = 0.5 + 0.1 * (torch.rand(6, *shape, generator=draw, dtype=torch.float64) - 0.5)
    # Classes meet near the middle of the box, so that all of them win somewhere close to it.
    bias = -0.5 * weight.sum(1) + 0.05 * torch.randn(classes, generator=draw, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, classes, dtype=torch.float64)).eval()
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(bias)
        target = model(inputs).argmax(1)
    return Linear(model, weight, bias, inputs, target)


def tiny_net(activation: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A convolutional classifier of 2 x 8 x 8 images into 4 classes, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            activation(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            activation(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(128, 4),
        )
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(3)
        net[1].running_mean.uniform_(-0.2, 0.2)
        net[1].running_var.uniform_(0.5, 1.5)
    return net.to(dtype).eval()


def pooled_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A classifier of 2-channel images of any size into 4 classes, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, stride=2, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    return net.to(dtype).eval()


@contextmanager
def unchanged(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """Fail unless the block, also one that raises, leaves model, tensors and grad mode as they were."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = _state(model, tensors)
    try:
        yield
    finally:
        after = _state(model, tensors)
        assert before.keys() == after.keys()
        for name, value in before.items():
            same = torch.equal if isinstance(value, Tensor) else operator.eq
            assert same(value, after[name]), f"{name} changed"


def _state(model: nn.Module, tensors: Sequence[Tensor]) -> dict[str, Any]:
    seen: dict[str, Any] = {"grad mode": torch.is_grad_enabled(), "dtype": torch.get_default_dtype()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers(), *enumerate(tensors)]:
        seen[f"{name} value"] = tensor.detach().clone()
        seen[f"{name} version"] = tensor._version
        seen[f"{name} requires_grad"] = tensor.requires_grad
        seen[f"{name} grad"] = None if tensor.grad is None else (id(tensor.grad), tensor.grad._version)
    for name, module in model.named_modules():
        seen[f"{name} training"] = module.training
        for kind in ("forward", "forward_pre", "backward", "backward_pre", "state_dict"):
            seen[f"{name} {kind} hooks"] = list(getattr(module, f"_{kind}_hooks"))
    return seen


class Recorder(nn.Module):
    """Counts the images of each call of a model, and fails at a chosen call."""

    def __init__(self, model: nn.Module, fail_at: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.fail_at = fail_at
        self.calls: list[int] = []
        self.training = model.training

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.append(len(inputs))
        if len(self.calls) == self.fail_at:
            raise RuntimeError("this model fails on purpose")
        return self.model(inputs)
