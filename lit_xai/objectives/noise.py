"""Noisy copies of a batch and their logits: what every objective for a smoothed classifier is made of."""

import abc
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.objectives.base import Objective, Share, Views
from lit_xai.types import Images, Labels, Logits, Scores, require, require_positive

Noise = Float[Tensor, "noise batch channel height width"]  # or the noisy copies of a batch
NoisyLogits = Float[Tensor, "noise batch class"]
NoisyScores = Float[Tensor, "noise batch"]


def gaussian(inputs: Images, sigma: float, samples: int) -> Noise:
    """Draw `samples` noises for each image from N(0, sigma^2 I), by torch's global generator.

    They have the memory format of the inputs.
    """
    copies = torch.cat([inputs.detach()] * samples)
    return torch.randn_like(copies).mul_(sigma).view(samples, *inputs.shape)


def noisy_logits(model: nn.Module, copies: Noise) -> NoisyLogits:
    """Pass all copies of a batch through the model at once; return what it says of each.

    The logits are in float32 at least, whatever the model computes in.
    """
    logits: Logits = model(copies.flatten(0, 1))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.reshape(*copies.shape[:2], logits.shape[1])


def log_likelihood(log_probability: NoisyLogits, target: Labels) -> NoisyScores:
    """Log-probability of the label, for each noise and image."""
    own = target.expand(len(log_probability), -1)[:, :, None]
    return log_probability.gather(2, own)[:, :, 0]


def soft_cross_entropy(logits: NoisyLogits, target: Labels) -> Scores:
    """Cross entropy of the smoothed soft classifier: -log mean_i softmax(f(x + e_i))_y, per image."""
    own = log_likelihood(logits.log_softmax(dim=2), target)
    return math.log(len(own)) - own.logsumexp(dim=0)


def log_mean(log_probability: NoisyLogits) -> Logits:
    """Logarithm of the probabilities' mean over the noises."""
    return log_probability.logsumexp(dim=0) - math.log(len(log_probability))


class Noisy(Objective, abc.ABC):
    """An objective of noisy copies of each image: x + e_i, e_i ~ N(0, sigma^2 I), unclipped.

    Args:
        sigma: Standard deviation of the noise in pixel units, greater than 0.
        samples: Copies of an image, at least 1.
        chunked: Cut each batch of the loader into `samples` equal chunks, and take an optimizer step on each.
            `samples` must divide a full batch. Of a smaller one, the last of an epoch, the remainder is
            dropped; if it has fewer images than there are steps, each step sees one of them, in turn.
    """

    def __init__(self, sigma: float, samples: int = 1, chunked: bool = False) -> None:
        require_positive(sigma=sigma)
        super().__init__()
        self.sigma = sigma
        self.samples = samples
        self.chunked = chunked
        self.updates = samples if chunked else 1
        self._full = 0  # images of a full batch, as far as is known

    def share(self, inputs: Images, target: Labels, update: int) -> Share:
        count = len(inputs)
        if count > self._full:
            require(
                count % self.updates == 0,
                f"`samples` must divide the batch if it is `chunked`, got {self.updates} for a batch of "
                f"{count}: set `data.batch_size` to a multiple of {self.updates}, or `chunked` to false.",
            )
            self._full = count
        size = max(1, count // self.updates)
        first = update * size % count
        return inputs[first : first + size], target[first : first + size]

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        return (inputs + gaussian(inputs, self.sigma, self.samples)).unbind()
