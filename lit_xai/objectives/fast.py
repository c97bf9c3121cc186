"""Adversarial training with a single gradient step, and what keeps it from failing."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from lit_xai.attacks.losses import CE
from lit_xai.attacks.norms import Linf
from lit_xai.attacks.pgd import FGSM
from lit_xai.models.modes import BatchNorm, crafting, eagerly
from lit_xai.models.substitution import copied, substituting
from lit_xai.objectives.adversarial import Attacked, warmed
from lit_xai.objectives.base import Terms, Views
from lit_xai.objectives.explanation import misalignment
from lit_xai.types import Epsilon, Images, Labels, require_at_least

_CE, _LINF = CE(), Linf()


class FastAdversarial(Attacked):
    """Cross-entropy on images attacked by one signed step from a random point of the l-infinity ball.

    x' = clip(project(x + u + step_size sign(grad CE(f(x + u), y)))),    u ~ U(-epsilon, epsilon)

    It costs one pass forward and one input gradient more than the cross-entropy alone. Networks that are
    trained in this way may all at once lose their robustness to more than one step ("catastrophic
    overfitting"): watch the accuracy under several, or take `GradAlign`.

    Args:
        epsilon: Budget in pixel units, above 0.
        step_size: Length of the step in pixel units, above 0; 1.25 `epsilon` by default.
        batch_norm: How the attack meets the model, as in `AdversarialTraining`.
        warmup: Share of the run over which the budget of the attack grows to its full size, from 0 to 1.

    Source: Wong, Rice and Kolter 2020, arXiv 2001.03994, algorithm 3.
    Deviates: the attack meets the model in eval mode; the released code has a `batch_norm` of "train".
    """

    def __init__(
        self,
        epsilon: Epsilon,
        step_size: Epsilon | None = None,
        batch_norm: BatchNorm = "eval",
        warmup: float = 0.0,
    ) -> None:
        step_size = 1.25 * epsilon if step_size is None else step_size
        super().__init__(FGSM(epsilon, _LINF, step_size, random_start=True), batch_norm, warmup)
        self.epsilon = epsilon
        self.step_size = step_size

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        return (self.neighbours(model, inputs, target),)

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        (attacked,) = views
        logits = model(attacked).to(attacked.dtype)
        return {"adversarial_cross_entropy": F.cross_entropy(logits, target)}


class GradAlign(Attacked):
    """Cross-entropy on images attacked by one signed step, and input gradients that agree within the ball.

    mean l(x') + beta (1 - mean cos(grad l(x), grad l(x + u))),    x' = clip(x + epsilon sign grad l(x))

    with l = CE(f(.), y) and u ~ U(-epsilon, epsilon), where x + u is not clipped to [0, 1]. The gradient at x
    serves for the step and for the cosine, in which it is a constant. Images that have a gradient of exactly
    0 count for nothing in the cosine. It costs 11 passes where the cross-entropy costs 3. A compiled network
    runs eagerly for the second gradient.

    Args:
        epsilon: Budget in pixel units, above 0.
        beta: Weight of the alignment, at least 0.
        batch_norm: How both input gradients meet the model, as the attack does in `AdversarialTraining`.
        warmup: Share of the run over which `epsilon` grows to its full size, from 0 to 1.

    Source: Andriushchenko and Flammarion 2020, arXiv 2007.02617; that the gradient at x is a constant: the
    released code. For an epsilon of 8/255 beta is 0.2 there.
    Deviates: input gradients meet the model in eval mode; the released code has a `batch_norm` of "train".
    They are those of the loss `CE`, which does not saturate: same directions in eval mode, while in train
    mode, where images see each other, those that are misjudged no longer weigh more.
    """

    def __init__(
        self, epsilon: Epsilon, beta: float = 0.2, batch_norm: BatchNorm = "eval", warmup: float = 0.0
    ) -> None:
        require_at_least(0, beta=beta)
        super().__init__(FGSM(epsilon, _LINF), batch_norm, warmup)
        self.epsilon = epsilon
        self.beta = beta

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        epsilon = warmed(FGSM(self.epsilon), self.progress, self.warmup).epsilon
        with crafting(model, self.batch_norm):
            _, slope = _CE.climb(model, inputs, target)
        attacked = _LINF.confine(inputs + epsilon * slope.sign(), inputs, epsilon)
        return attacked, inputs + epsilon * (2 * torch.rand_like(inputs) - 1), slope

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        attacked, noisy, slope = views
        points = noisy.detach().requires_grad_()
        statistics = substituting(model, copied(model)) if self.batch_norm == "eval" else nullcontext()
        # Before statistics move: both gradients see the same.
        with crafting(model, self.batch_norm), statistics, eagerly():
            odds = _CE(model(points).to(points.dtype), target)
        (other,) = torch.autograd.grad(odds.sum(), points, create_graph=True)
        logits = model(attacked).to(attacked.dtype)
        return {
            "adversarial_cross_entropy": F.cross_entropy(logits, target),
            "gradient_misalignment": self.beta * misalignment(slope, other),
        }
