"""Training at weights that are perturbed against the objective."""

import torch
from torch import Tensor, nn

from lit_xai.models.substitution import copied, substituting
from lit_xai.objectives.base import Objective, Terms, Views
from lit_xai.objectives.wrapping import Wrapping
from lit_xai.types import Labels, require, require_positive


class WeightPerturbed(Wrapping):
    """Any objective, at the weights nearby where it is largest: adversarial weight perturbation.

    L(w + D),    D_l = gamma ||w_l|| g_l / ||g_l||,    g = grad_w L(w)

    for every tensor w_l of more than one dimension that is trained. L is the objective at the images that it
    has made once; both gradients see them. Nothing is written into the weights, and no second model is kept:
    the gradient at w + D arrives at the gradient of w. Batch norm uses the statistics of the batch both
    times, and counts only the second in its running ones; dropout draws a mask each time. It costs the terms
    of the objective once more: 3 passes for one batch of images, 6 for two. It is not for models that compute
    activations again in the backward pass, where w would stand in for w + D.

    Args:
        objective: What is minimised.
        gamma: Length of the perturbation, relative to that of the weights; above 0. Published: 0.01 for
            adversarial training, 0.005 for TRADES.
        warmup: Share of the run, from 0 to less than 1, before which weights are not perturbed.

    Source: Wu, Xia and Wang 2020, arXiv 2004.05884 (AWP, with one step).
    Deviates: the released code steps from w + D and takes D off again, so that weight decay sees w + D, here
    w; it perturbs only what has "weight" in its name. Each of several processes perturbs by the gradient of
    its own images.
    """

    def __init__(self, objective: Objective, gamma: float = 0.01, warmup: float = 0.0) -> None:
        super().__init__(objective)
        require_positive(gamma=gamma)
        require(0 <= warmup < 1, f"`warmup` must be at least 0 and less than 1, got {warmup!r}.")
        self.gamma = gamma
        self.warmup = warmup

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        if self.progress < self.warmup:
            return self.objective.terms(model, views, target)
        weights = {name: w for name, w in model.named_parameters() if w.requires_grad and w.ndim > 1}
        require(bool(weights), "`model` has no weights of more than one dimension to perturb.")
        with torch.enable_grad(), substituting(model, copied(model)):
            loss = torch.stack(list(self.objective.terms(model, views, target).values())).sum()
            slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        moved = {
            name: weight + self._step(weight.detach(), slope)
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
            if slope is not None
        }
        with substituting(model, moved):
            return self.objective.terms(model, views, target)

    def _step(self, weight: Tensor, slope: Tensor) -> Tensor:
        length, steepness = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(slope)
        moved: Tensor = slope * (self.gamma * length / (steepness + 1e-20))
        return moved
