"""Boundary searches whose answer is known in closed form, and models they belong to."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.types import Flags, Images, Labels, Scores

OVERSHOOT = 1e-9


def answer(model: nn.Module, inputs: Images, points: Images, found: Flags, distance: Scores) -> Boundary:
    none = torch.zeros(len(inputs), dtype=torch.int64)
    with torch.no_grad():
        label = model(points).argmax(1)
    return Boundary(points, distance, found, label, none, none)


@dataclass(frozen=True)
class ToPlane(Search):
    """Foot of the image on the nearest of the planes f_c = f_j of a linear classifier; the box is ignored."""

    asked: list[int] = field(default_factory=list, compare=False, hash=False)

    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        self.asked.append(len(inputs))
        linear = next(module for module in model.modules() if isinstance(module, nn.Linear))
        weight = linear.weight.detach()
        with torch.no_grad():
            logits = model(inputs)
        normal = weight[target][:, None] - weight
        margin = logits.gather(1, target[:, None]) - logits
        distance = (margin / normal.norm(dim=2)).scatter(1, target[:, None], torch.inf)
        nearest, rival = distance.min(dim=1)
        step = normal[torch.arange(len(inputs)), rival]
        unit = (step / step.norm(dim=1, keepdim=True)).view_as(inputs)
        nearest = nearest.clamp(min=0)
        beyond = torch.where(nearest > 0, nearest + OVERSHOOT, 0)
        points = inputs - beyond.view(-1, 1, 1, 1) * unit
        return answer(model, inputs, points, nearest.isfinite(), nearest)


@dataclass(frozen=True)
class ToSphere(Search):
    """The nearest point outside of a ball: the boundary of `Ball`."""

    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        offset = inputs - model.centre
        length = offset.flatten(1).norm(dim=1)
        outward = offset / length.view(-1, 1, 1, 1)
        points = model.centre + (model.radius + OVERSHOOT) * outward
        return answer(model, inputs, points, torch.ones_like(target, dtype=torch.bool), model.radius - length)


@dataclass(frozen=True)
class ToNowhere(Search):
    """Finds nothing for images of even number, and the image itself, misclassified, for the others."""

    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        found = torch.arange(len(inputs)) % 2 == 1
        distance = torch.where(found, 0.0, torch.inf).to(inputs.dtype)
        return answer(model, inputs, inputs.clone(), found, distance)


class Ball(nn.Module):
    """Class 0 inside of a ball, class 1 outside: f_0 = 1 - ||x - centre||^2 / radius^2, f_1 = 0."""

    def __init__(self, centre: Tensor, radius: float) -> None:
        super().__init__()
        self.centre, self.radius = centre, radius
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        inside = 1 - (inputs - self.centre).flatten(1).square().sum(1) / self.radius**2
        return torch.stack([inside, 0 * inside], dim=1)
