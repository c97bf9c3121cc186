"""Objectives that weigh what the model says of an image against what it says of its attacked neighbour."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.attacks.base import Attack
from lit_xai.attacks.losses import Loss
from lit_xai.models.modes import BatchNorm
from lit_xai.objectives.adversarial import Attacked, fields_of
from lit_xai.objectives.base import Terms, Views
from lit_xai.types import Images, Labels, Logits, Scores, require, require_at_least


class Trades(Attacked):
    """Cross-entropy on the images, and how far the model changes its mind between them and their neighbours.

    mean CE(f(x), y) + beta mean KL(p(x) || p(x')), p = softmax f, with the neighbour x' at which the attack
    finds that divergence largest. Both arguments of it are differentiated. What the model says of the images
    is taken once for all steps of the attack.

    Args:
        attack: Where neighbours come from; its loss is replaced by the divergence, which has no slope at the
            image itself: it must start beside it.
        beta: Weight of the divergence, at least 0.
        batch_norm: How the attack meets the model, as in `AdversarialTraining`.
        joint: Pass images and neighbours in one batch; by default each has batch statistics of its own.
        warmup: Share of the run over which the budget of the attack grows to its full size, from 0 to 1.

    Source: Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan 2019, arXiv 1901.08573, eq. 5 and algorithm 1; beta
    is their 1 / lambda. Theirs is NudgedPGD(0.031, steps=10, step_size=0.007) with a beta of 6.
    Deviates: the images pass once, where the authors' code passes them again in every step and again for the
    divergence; the loss is the same, batch norm counts them once.
    """

    def __init__(
        self,
        attack: Attack,
        beta: float = 6.0,
        batch_norm: BatchNorm = "eval",
        joint: bool = False,
        warmup: float = 0.0,
    ) -> None:
        require_at_least(0, beta=beta)
        _require_free(attack)
        super().__init__(attack, batch_norm, warmup)
        self.beta = beta
        self.joint = joint

    def attack_on(self, model: nn.Module, inputs: Images) -> Attack:
        with torch.no_grad():
            clean = model(inputs).to(inputs.dtype).softmax(dim=1)
        attack = super().attack_on(model, inputs)
        return dataclasses.replace(attack, loss=_Divergence(clean))  # type: ignore[type-var]

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        clean, attacked = _paired(model, views, self.joint)
        divergence = F.kl_div(
            attacked.log_softmax(dim=1), clean.log_softmax(dim=1), reduction="batchmean", log_target=True
        )
        return {"cross_entropy": F.cross_entropy(clean, target), "divergence": self.beta * divergence}


class Mart(Attacked):
    """A boosted cross-entropy on the neighbours, and a divergence that counts where the image is misjudged.

    mean [-log q_y - log(1.0001 - max_{k != y} q_k + 1e-12)] + beta mean [KL(p || q) (1.0000001 - p_y)], with
    p = softmax f(x), q = softmax f(x'), and log(q + 1e-12) for log q in the divergence. All of it is
    differentiated, the weight 1.0000001 - p_y as well.

    Args:
        attack: Where neighbours come from.
        beta: Weight of the divergence, at least 0.
        batch_norm: How the attack meets the model, as in `AdversarialTraining`.
        joint: Pass images and neighbours in one batch; by default each has batch statistics of its own.
        warmup: Share of the run over which the budget of the attack grows to its full size, from 0 to 1.

    Source: Wang, Zou, Yi, Bailey, Ma and Gu 2020, "Improving adversarial robustness requires revisiting
    misclassified examples" (ICLR), with the constants of the authors' code. Theirs is
    NudgedPGD(0.031, steps=10, step_size=0.007) with a beta of 5 or 6.
    """

    def __init__(
        self,
        attack: Attack,
        beta: float = 5.0,
        batch_norm: BatchNorm = "eval",
        joint: bool = False,
        warmup: float = 0.0,
    ) -> None:
        require_at_least(0, beta=beta)
        super().__init__(attack, batch_norm, warmup)
        self.beta = beta
        self.joint = joint

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        clean, attacked = (logits.log_softmax(dim=1) for logits in _paired(model, views, self.joint))
        own = target[:, None]
        rival = attacked.scatter(1, own, -math.inf).amax(dim=1).exp()
        boosted = F.nll_loss(attacked, target) - (1.0001 - rival + 1e-12).log().mean()
        divergence = (clean.exp() * (clean - (attacked.exp() + 1e-12).log())).sum(dim=1)
        doubt = 1.0000001 - clean.gather(1, own)[:, 0].exp()
        return {
            "boosted_cross_entropy": boosted,
            "weighted_divergence": self.beta * (divergence * doubt).mean(),
        }


class AdversarialLogitPairing(Attacked):
    """Cross-entropy on images and neighbours, and the distance between the logits of the two.

    (1 - clean) mean CE(f(x'), y) + clean mean CE(f(x), y) + weight mean (f_k(x) - f_k(x'))^2, the last mean
    over images and classes.

    Args:
        attack: Where neighbours come from.
        weight: Weight of the squared difference, at least 0.
        clean: Share of the images in the cross-entropy, from 0, the neighbours alone, to 1.
        batch_norm: How the attack meets the model, as in `AdversarialTraining`.
        joint: Pass images and neighbours in one batch; by default each has batch statistics of its own.
        warmup: Share of the run over which the budget of the attack grows to its full size, from 0 to 1.

    Source: Kannan, Kurakin and Goodfellow 2018, arXiv 1803.06373, section 3; mean and weight are those of
    the authors' code.
    """

    def __init__(
        self,
        attack: Attack,
        weight: float = 0.5,
        clean: float = 0.5,
        batch_norm: BatchNorm = "eval",
        joint: bool = False,
        warmup: float = 0.0,
    ) -> None:
        require_at_least(0, weight=weight)
        require(0 <= clean <= 1, f"`clean` must be at least 0 and at most 1, got {clean!r}.")
        super().__init__(attack, batch_norm, warmup)
        self.weight = weight
        self.clean = clean
        self.joint = joint

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        clean, attacked = _paired(model, views, self.joint)
        terms = {
            "adversarial_cross_entropy": (1 - self.clean) * F.cross_entropy(attacked, target),
            "logit_pairing": self.weight * F.mse_loss(clean, attacked),
        }
        if self.clean:
            terms["cross_entropy"] = self.clean * F.cross_entropy(clean, target)
        return terms


@dataclasses.dataclass(frozen=True, eq=False)
class _Divergence(Loss):
    """KL(p || softmax(logits)) for probabilities p that stand fixed, a row for each row of logits."""

    clean: Float[Tensor, "batch class"]

    def __call__(self, logits: Logits, target: Labels, aim: Labels | None = None) -> Scores:
        return F.kl_div(logits.log_softmax(dim=1), self.clean, reduction="none").sum(dim=1)

    def slope(self, logits: Logits, target: Labels, aim: Labels | None = None) -> Logits:
        return logits.softmax(dim=1) - self.clean


def _paired(model: nn.Module, views: Views, joint: bool) -> tuple[Logits, Logits]:
    """Logits of the images and of their neighbours, in the precision of the images."""
    clean, attacked = model(torch.cat(views)).chunk(2) if joint else (model(images) for images in views)
    return clean.to(views[0].dtype), attacked.to(views[0].dtype)


def _require_free(attack: Attack) -> None:
    """Refuse an attack that cannot raise a divergence from what the model says of each image."""
    name = type(attack).__name__
    require(
        "loss" in fields_of(attack),
        f"`attack` must have a `loss` that TRADES can set, got {name}: take NudgedPGD, LinfPGD or L2PGD.",
    )
    require(
        getattr(attack, "random_start", True),
        f"`attack` must start beside the image, where there is a slope: set `random_start` of {name}.",
    )
    require(
        not getattr(attack, "stop_early", False)
        and getattr(attack, "aim", None) is None
        and getattr(attack, "targets", 0) == 0,
        f"`attack` must take every step with every image, to no class: unset what aims or stops {name}.",
    )
