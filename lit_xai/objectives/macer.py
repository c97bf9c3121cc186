"""Training that widens the certified radius itself, without an attack."""

import torch
from torch import nn

from lit_xai.objectives.base import Terms, Views
from lit_xai.objectives.noise import Noisy, NoisyLogits, log_likelihood, noisy_logits
from lit_xai.types import Labels, Scores, require, require_at_least, require_positive

_FLOOR = 1e-10  # of the probability whose logarithm is taken, as published


class Macer(Noisy):
    """Cross-entropy of the smoothed soft classifier, and a hinge on its certified radius where it is right.

    mean_x [-log(p_y + 1e-10) + weight sigma / 2 (gamma - PhiInv(q_1) + PhiInv(q_2))], p = mean_i
    softmax f(x + e_i) and q = mean_i softmax(beta f(x + e_i)) over the noises e_i ~ N(0, sigma^2 I), q_1 and
    q_2 its two largest entries. The second term is of the images for which q_1 is that of the label and
    PhiInv(q_1) - PhiInv(q_2) is finite and at most `gamma`.

    All copies pass the model as one batch of `samples` times the images. Noise is not clipped to [0, 1].

    Args:
        sigma: Standard deviation of the noise in pixel units, greater than 0; certify with the same.
        samples: Noises per image, at least 1; published with 16.
        weight: Weight of the radius, at least 0: 12 for natural images with a `sigma` of 0.25, 4 with 0.5,
            and 16 for digits.
        gamma: Width of the hinge, in standard deviations, greater than 0.
        beta: What the logits are multiplied by for the radius, greater than 0.
        deferred: Share of the run before the radius counts, from 0 to less than 1.

    Source: Zhai, Dan, He, Zhang, Gong, Ravikumar, Hsieh and Wang 2020, arXiv 2001.02378, algorithm 1, with
    the floor of the released code, which defers the radius to the first fall of the learning rate.
    """

    def __init__(
        self,
        sigma: float,
        samples: int = 16,
        weight: float = 12.0,
        gamma: float = 8.0,
        beta: float = 16.0,
        deferred: float = 0.0,
    ) -> None:
        require_positive(gamma=gamma, beta=beta)
        require_at_least(1, samples=samples)
        require_at_least(0, weight=weight)
        require(0 <= deferred < 1, f"`deferred` must be at least 0 and less than 1, got {deferred!r}.")
        super().__init__(sigma, samples)
        self.weight = weight
        self.gamma = gamma
        self.beta = beta
        self.deferred = deferred

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        logits = noisy_logits(model, torch.stack(views))
        likelihood = log_likelihood(logits.log_softmax(dim=2), target).exp().mean(dim=0)
        weight = self.weight if self.progress >= self.deferred else 0.0
        return {
            "smoothed_cross_entropy": -(likelihood + _FLOOR).log().mean(),
            "radius": weight * self.sigma / 2 * self._shortfall(logits, target).mean(),
        }

    def _shortfall(self, logits: NoisyLogits, target: Labels) -> Scores:
        """What the gap of the two largest probabilities lacks of `gamma`, in standard deviations; or 0."""
        top = (self.beta * logits).softmax(dim=2).mean(dim=0).topk(2, dim=1)
        first, second = torch.special.ndtri(top.values.detach()).unbind(dim=1)
        gap = first - second
        near = (gap <= self.gamma) & (top.indices[:, 0] == target)  # an infinite gap is not
        # Chosen before the quantile is taken: one that is infinite would leave NaN in the gradient of a 0.
        safe = torch.where(near[:, None], top.values, 0.5)
        first, second = torch.special.ndtri(safe).unbind(dim=1)
        return torch.where(near, self.gamma - first + second, 0.0)
