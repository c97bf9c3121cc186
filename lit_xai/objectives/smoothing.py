"""Objectives that train the network inside a smoothed classifier on noisy images."""

import torch
import torch.nn.functional as F
from torch import nn

from lit_xai.objectives.base import Terms, Views
from lit_xai.objectives.noise import Noisy, NoisyLogits, log_likelihood, log_mean, noisy_logits
from lit_xai.types import Images, Labels, Logits, Scalar, require_at_least


class GaussianAugmentation(Noisy):
    """Cross-entropy on noisy images: the mean of -log softmax(f(x + e))_y, e ~ N(0, sigma^2 I).

    Noise comes from torch's global generator, one draw per image, and is not clipped to [0, 1].

    Args:
        sigma: Standard deviation of the noise in pixel units, greater than 0; certify with the same.

    Source: Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, section 3.3.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__(sigma)

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        (logits,) = noisy_logits(model, torch.stack(views))
        return {"noisy_cross_entropy": F.cross_entropy(logits, target)}


class StabilityTraining(Noisy):
    """Cross-entropy on clean images, and how far the answer moves under noise.

    CE(f(x), y) + weight KL(p || q) + entropy H(p), p = softmax f(x), q = softmax f(x + e),
    e ~ N(0, sigma^2 I): with `entropy` = `weight`, the last two are the cross entropy of q with targets p.

    Clean and noisy images pass the model as one batch. Noise is not clipped to [0, 1].

    Args:
        sigma: Standard deviation of the noise in pixel units, greater than 0; certify with the same.
        weight: Weight of the divergence, at least 0.
        entropy: Weight of the entropy of the clean answer, at least 0.

    Source: Zheng, Song, Leung and Goodfellow 2016, arXiv 1604.04326, section 3; with Gaussian noise, Li,
    Chen, Wang and Carin 2019, arXiv 1809.03113.
    """

    def __init__(self, sigma: float, weight: float = 2.0, entropy: float = 0.0) -> None:
        require_at_least(0, weight=weight, entropy=entropy)
        super().__init__(sigma)
        self.weight = weight
        self.entropy = entropy

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        return (inputs, *super().views(model, inputs, target))

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        clean, shaken = noisy_logits(model, torch.stack(views)).log_softmax(dim=2)
        return {
            "cross_entropy": F.nll_loss(clean, target),
            "stability": self.weight * _divergence(clean, shaken),
            "entropy": self.entropy * _entropy(clean),
        }


class Consistency(Noisy):
    """Cross-entropy on noisy images, and how far the answers under several noises lie from their mean.

    mean_i CE(f(x + e_i), y) + weight mean_i KL(q || p_i) + entropy H(q), p_i = softmax f(x + e_i),
    q = mean_i p_i, e_i ~ N(0, sigma^2 I). Of the published variants, `entropy` 0 is "kl" and `entropy` =
    `weight`, the cross entropy of p_i with targets q, is "xent".

    All copies pass the model as one batch of `samples` times the images. Noise is not clipped to [0, 1].

    Args:
        sigma: Standard deviation of the noise in pixel units, greater than 0; certify with the same.
        samples: Noises per image, at least 2.
        weight: Weight of the divergence, at least 0: about 10 for digits, and for natural images 20 with a
            `sigma` of 0.25 and 10 with more.
        entropy: Weight of the entropy of the mean answer, at least 0.
        chunked: Cut each batch of the loader into `samples` chunks, and take an optimizer step on each: as
            many copies in a step as the loader has images, as published. `samples` must divide the batch; of
            a smaller last one the remainder is dropped.

    Source: Jeong and Shin 2020, arXiv 2006.04062, section 3; chunks by the released code.
    Deviates: by default a step sees the whole batch. Logarithms are taken of the logits, without a floor.
    """

    def __init__(
        self,
        sigma: float,
        samples: int = 2,
        weight: float = 10.0,
        entropy: float = 0.5,
        chunked: bool = False,
    ) -> None:
        require_at_least(2, samples=samples)
        require_at_least(0, weight=weight, entropy=entropy)
        super().__init__(sigma, samples, chunked)
        self.weight = weight
        self.entropy = entropy

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        answers = noisy_logits(model, torch.stack(views)).log_softmax(dim=2)
        own = log_likelihood(answers, target)
        return {"noisy_cross_entropy": -own.mean(), **dispersion(answers, self.weight, self.entropy)}


def dispersion(answers: NoisyLogits, weight: float, entropy: float) -> Terms:
    """The terms of `Consistency` but the first, of log-probabilities."""
    mean = log_mean(answers)
    return {
        # KL(q || p) is affine in log p: the mean of the divergences is that of the mean logarithm.
        "consistency": weight * _divergence(mean, answers.mean(dim=0)),
        "entropy": entropy * _entropy(mean),
    }


def _divergence(log_p: Logits, log_q: Logits) -> Scalar:
    """Sum of p log(p / q) over the classes, mean over the batch."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def _entropy(log_p: Logits) -> Scalar:
    """Sum of -p log p over the classes, mean over the batch."""
    return -(log_p.exp() * log_p).sum(dim=1).mean()
