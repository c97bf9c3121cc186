"""Adversarial training of a smoothed classifier."""

import torch
from torch import nn

from lit_xai.attacks.norms import L2
from lit_xai.models.modes import evaluating
from lit_xai.objectives.base import Terms, Views
from lit_xai.objectives.noise import (
    Noise,
    Noisy,
    gaussian,
    log_likelihood,
    noisy_logits,
    soft_cross_entropy,
)
from lit_xai.objectives.smoothing import dispersion
from lit_xai.types import Epsilon, Images, Labels, require, require_at_least, require_positive

_L2 = L2()


class SmoothAdv(Noisy):
    """Cross-entropy on noisy images of the neighbour that the smoothed soft classifier finds hardest.

    mean_i CE(f(x + d + e_i), y), where d raises -log mean_i softmax(f(x + d + e_i))_y in the l2 ball, with
    the same noises e_i ~ N(0, sigma^2 I) in every step of the attack and in the update. The attack starts at
    d = 0 and takes steps of length 2 epsilon / steps along the gradient, along Gaussian noise where it is
    exactly zero; each is clipped to the box, then shortened to the ball. It meets the model in eval mode.

    All copies pass the model as one batch of `samples` times the images: with m noises and T steps a training
    step costs m (2 T + 3) forward passes' worth. Noise is not clipped to [0, 1].

    Args:
        sigma: Standard deviation of the noise in pixel units, greater than 0; certify with the same.
        epsilon: Budget of the attack in pixel units, greater than 0.
        steps: Gradient steps T of the attack, at least 1.
        samples: Noises per image, at least 1.
        warmup: Share of the run over which the budget rises from 0 to `epsilon`, from 0 to 1.
        all_noises: Train on all noisy copies; otherwise on the first, whatever the attack saw.
        consistency: Weight of the divergence of `Consistency` among the noisy copies, at least 0; published
            with 1 to 2.
        entropy: Weight of the entropy of their mean answer, at least 0.
        chunked: Cut each batch of the loader into `samples` chunks, and take an optimizer step on each: as
            many copies in a step as the loader has images, as published. `samples` must divide the batch; of
            a smaller last one the remainder is dropped.

    Source: Salman, Yang, Li, Zhang, Zhang, Razenshteyn and Bubeck 2019, arXiv 1906.04584, section 2.2, and
    the released code (`--train-multi-noise` is `all_noises` and `chunked`). With `consistency`: Jeong and
    Shin 2020, arXiv 2006.04062.
    Deviates: by default a step sees the whole batch. The budget rises with every step, not with every epoch.
    """

    def __init__(
        self,
        sigma: float,
        epsilon: Epsilon,
        steps: int = 10,
        samples: int = 8,
        warmup: float = 0.0,
        all_noises: bool = True,
        consistency: float = 0.0,
        entropy: float = 0.0,
        chunked: bool = False,
    ) -> None:
        require_positive(epsilon=epsilon)
        require_at_least(1, steps=steps, samples=samples)
        require_at_least(0, consistency=consistency, entropy=entropy)
        require(
            consistency == 0 or (all_noises and samples > 1),
            "`consistency` needs several noises to train on: set `samples` above 1 and `all_noises`.",
        )
        require(0 <= warmup <= 1, f"`warmup` must be at least 0 and at most 1, got {warmup!r}.")
        super().__init__(sigma, samples, chunked)
        self.epsilon = epsilon
        self.steps = steps
        self.warmup = warmup
        self.all_noises = all_noises
        self.consistency = consistency
        self.entropy = entropy

    @property
    def budget(self) -> float:
        """What the warm-up grants by now of `epsilon`."""
        return self.epsilon * min(1.0, self.progress / self.warmup) if self.warmup else self.epsilon

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        inputs = inputs.detach()
        noise = gaussian(inputs, self.sigma, self.samples)
        with evaluating(model):
            attacked = self._ascend(model, inputs, target, noise)
        return (attacked + (noise if self.all_noises else noise[:1])).unbind()

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        answers = noisy_logits(model, torch.stack(views)).log_softmax(dim=2)
        terms: Terms = {"noisy_cross_entropy": -log_likelihood(answers, target).mean()}
        if self.consistency or self.entropy:
            terms |= dispersion(answers, self.consistency, self.entropy)
        return terms

    def _ascend(self, model: nn.Module, inputs: Images, target: Labels, noise: Noise) -> Images:
        """Raise the cross entropy of the smoothed soft classifier of these noises, within box and ball."""
        points, budget = inputs, self.budget
        for _ in range(self.steps if budget > 0 else 0):
            with torch.enable_grad():
                points = points.detach().requires_grad_()
                logits = noisy_logits(model, points + noise)
                loss = soft_cross_entropy(logits, target).sum()  # a sum: images do not see each other
            (gradient,) = torch.autograd.grad(loss, points)
            slopes = gradient.flatten(1).any(dim=1)[:, None, None, None]
            direction = torch.where(slopes, _L2.steepest(gradient), torch.randn_like(gradient))
            boxed = points.detach().add(direction, alpha=2 * budget / self.steps).clamp_(0, 1)
            points = _L2.project(boxed.sub_(inputs), budget).add_(inputs)
        return points
