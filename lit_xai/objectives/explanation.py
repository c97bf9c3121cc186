"""Objectives that train the explanation along with the decision."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from lit_xai import randomness
from lit_xai.attacks.base import Attack
from lit_xai.attributions.base import Attribution, keep_graph
from lit_xai.models.modes import eagerly, evaluating
from lit_xai.models.substitution import copied, substituting
from lit_xai.network.softened import softened
from lit_xai.objectives.base import Objective, Terms, Views
from lit_xai.objectives.standard import CrossEntropy
from lit_xai.objectives.wrapping import Wrapping
from lit_xai.types import Images, Labels, Scalar, require, require_at_least, require_positive


class GradientPenalty(Wrapping):
    """An objective, and input gradients of the cross-entropy that are small.

    L + beta mean_i ||grad_x CE(f(x_i), y_i)||^2

    The norm is l2 over all pixels and channels of an image, a sum; over the images it is a mean. The gradient
    is taken of the clean images, in the mode of the model. Where batch norm sees the batch, it is that of the
    sum of all their losses. Without an `objective`, L is the cross-entropy of the same forward pass, and the
    whole costs 6 passes where the cross-entropy costs 3; with one, it costs 6 more. A compiled network runs
    eagerly for the gradient.

    Args:
        beta: Weight of the penalty, at least 0, in units of one over the square of a slope per pixel unit.
        objective: L; the cross-entropy of the clean images if left out.

    Source: Ross and Doshi-Velez 2018, arXiv 1711.09404 (input gradient regularisation); Drucker and LeCun
    1992, "Improving generalization performance using double backpropagation".
    """

    def __init__(self, beta: float, objective: Objective | None = None) -> None:
        require_at_least(0, beta=beta)
        super().__init__(CrossEntropy() if objective is None else objective)
        self.beta = beta
        self._alone = objective is None

    def extra_repr(self) -> str:
        return f"beta={self.beta!r}, objective={None if self._alone else self.objective!r}"

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        return (*super().views(model, inputs, target), inputs)

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        *rest, inputs = views
        terms = {} if self._alone else self.objective.terms(model, tuple(rest), target)
        points = inputs.detach().requires_grad_()
        with eagerly():
            logits = model(points).to(points.dtype)
        losses = F.cross_entropy(logits, target, reduction="none")
        if self._alone:
            terms = {"cross_entropy": losses.mean()}
        (slope,) = torch.autograd.grad(losses.sum(), points, create_graph=True)
        return {**terms, "gradient_penalty": self.beta * slope.square().flatten(1).sum(1).mean()}


class AttributionAlignment(Wrapping):
    """An objective, and maps of the true class that stay as they are when the image is perturbed.

    L + beta (1 - mean_i cos(M(x_i), M(x_i')))

    x' is what the attack makes of x, and M(x) is a constant. Maps are those of the model in eval mode, signed
    and per channel, with the same draws for both; images with a map that is exactly 0 count for nothing.
    `Saliency` costs 8 passes on top of the objective and the attack. `SharingRatio` takes part of what its
    maps are made of as constants, and trains the rest. A compiled network runs eagerly for its maps.

    Args:
        attribution: M, a method that is `differentiable`.
        attack: Makes the perturbed image: `RandomNeighbour`, an attack on the class, or one on the map.
        beta: Weight of the alignment, at least 0.
        objective: L; the cross-entropy of the clean images if left out.
        softplus: Sharpness of the softplus in place of the ReLUs while maps are made, see `softened`. None
            leaves them as they are: the gradient of a map then does not see which of them open and close.

    Raises:
        ValueError: The attribution cannot be differentiated.

    Source: Joo, Jeong, Heo, Weller and Moon 2022, arXiv 2211.15900 (cosine distance of input gradients, that
    of x a constant in the released code); Chen, Wu, Rastogi, Liang and Jha 2019, arXiv 1905.09957 (the idea,
    for integrated gradients).
    Deviates: any differentiable method in place of the gradient; any attack in place of noise; eval mode; the
    distance of lengths is left out, and 1 - cos is not halved.
    """

    def __init__(
        self,
        attribution: Attribution,
        attack: Attack,
        beta: float = 1.0,
        objective: Objective | None = None,
        softplus: float | None = 10.0,
    ) -> None:
        require(
            attribution.differentiable,
            f"`attribution` must have a gradient, but `{type(attribution).__name__}` cannot be "
            "differentiated: take one with `differentiable` set.",
        )
        require_at_least(0, beta=beta)
        if softplus is not None:
            require_positive(softplus=softplus)
        super().__init__(CrossEntropy() if objective is None else objective)
        self.attribution = attribution
        self.attack = attack
        self.beta = beta
        self.softplus = softplus

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        rest = super().views(model, inputs, target)
        with evaluating(model):
            return (*rest, inputs, self.attack(model, inputs, target).detach())

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        *rest, inputs, perturbed = views
        terms = self.objective.terms(model, tuple(rest), target)
        draws = randomness.keyed(0, randomness.keys(inputs, "AttributionAlignment"))
        smooth = nullcontext() if self.softplus is None else softened(model, self.softplus)
        with eagerly(), evaluating(model), substituting(model, copied(model)), draws, smooth:
            seen = self.attribution.maps(model, inputs, target).detach()
            with keep_graph():
                moved = self.attribution.maps(model, perturbed, target)
        apart = misalignment(seen.to(inputs.dtype), moved.to(inputs.dtype))
        return {**terms, "attribution_misalignment": self.beta * apart}


def misalignment(first: Images, second: Images) -> Scalar:
    """One less the mean cosine of two maps; pairs of which one is exactly 0 are left out.

    Maps are scaled by their peaks first: a gradient of 1e-30 has a direction like any other.
    """
    units, defined = [], torch.ones(len(first), dtype=torch.bool, device=first.device)
    for maps in (first, second):
        rows = maps.flatten(1)
        peak = rows.detach().abs().amax(1, keepdim=True)
        rows = rows / torch.where(peak > 0, peak, 1)
        squares = rows.square().sum(1, keepdim=True)
        units.append(rows / torch.where(squares > 0, squares, 1).sqrt())
        defined = defined & (peak[:, 0] > 0)
    cosine = (units[0] * units[1]).sum(1)
    return torch.where(defined, 1 - cosine, 0).sum() / defined.sum().clamp(min=1)
