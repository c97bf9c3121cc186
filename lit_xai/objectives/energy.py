"""Objectives that reward what arrives at the logits."""

import torch
from torch import Tensor, nn

from lit_xai.objectives.base import Objective, Terms, Views
from lit_xai.objectives.explanation import AttributionAlignment
from lit_xai.objectives.standard import CrossEntropy
from lit_xai.objectives.weight_perturbation import WeightPerturbed
from lit_xai.objectives.wrapping import Wrapping
from lit_xai.types import Images, Labels, Logits, require, require_at_least, require_positive


class DBort(Wrapping):
    """Any objective, and a reward for the energy of the logits: -weight * (mean z^2)^power.

    Made for networks under Bort's constraint, whose orthogonal rows it turns towards the directions in which
    the data vary: of a linear network they come to span those of the largest second moments. The mean runs
    over all images and classes of the passes that the objective makes itself; there is none beside them.

    Args:
        objective: What is minimised with it; the cross entropy if left out.
        weight: Of the reward, at least 0.
        power: Of the mean, greater than 0 and at most 1: below 1, more energy is worth less and less.

    Source: Alignment-Invertibility Regularization for Explainable Neural Networks, TPAMI 2026 (DBort), in its
        released form; the defaults are those of its scripts.
    Deviates: logits that are all 0, where the power has no slope, get no gradient.
    """

    def __init__(self, objective: Objective | None = None, weight: float = 1e-3, power: float = 0.1) -> None:
        for part in () if objective is None else objective.modules():
            require(
                not isinstance(part, WeightPerturbed | AttributionAlignment),
                f"`objective` must not have {type(part).__name__} inside, which makes passes of its own: "
                "put DBort inside of that.",
            )
        require_at_least(0, weight=weight)
        require_positive(power=power)
        require(power <= 1, f"`power` must be at most 1, got {power!r}.")
        super().__init__(CrossEntropy() if objective is None else objective)
        self.weight = weight
        self.power = power

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        noted = _Noted(model)
        terms = self.objective.terms(noted, views, target)
        energy = torch.cat(noted.logits).to(views[0].dtype).square().mean()
        reward = energy.clamp(min=torch.finfo(energy.dtype).tiny) ** self.power
        return {**terms, "energy": -self.weight * reward}


class _Noted(nn.Module):
    """A model whose logits are noted where they can be differentiated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.logits: list[Tensor] = []

    def forward(self, inputs: Images) -> Logits:
        logits: Tensor = self.model(inputs)
        if logits.requires_grad:
            self.logits.append(logits)
        return logits
