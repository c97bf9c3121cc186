"""Maps that are averaged over noise, and the gradient of what a network mostly says under it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution, entering, require_logits
from lit_xai.attributions.gradient import Saliency
from lit_xai.attributions.packing import Maps, Rows, packed_sum
from lit_xai.types import Images, Labels, require_at_least, require_positive


@dataclass(frozen=True)
class SmoothGrad(Attribution):
    """Mean of another map over Gaussian noise; with `Saliency`, the gradient of the smoothed score.

    (1 / n) sum_k M(x + sigma e_k),    e_k ~ N(0, I)

    Noisy pixels are not clipped, and maps keep their signs: only so is the mean of gradients an unbiased
    estimate of the gradient of E s(x + sigma e), with an error that falls as 1 / sqrt(n). Draws belong to the
    image; the gradient of `Smoothed` is the same mean over draws that all images share.

    Args:
        sigma: Standard deviation of the noise, in pixel units; greater than 0.
        samples: Noise draws per image, at least 1.
        base: The map that is averaged. Its own draws, if any, are fresh for every noisy image.
        chunk: Largest number of images in one call of `base`.

    Source: Smilkov, Thorat, Kim, Viegas and Wattenberg 2017, arXiv 1706.03825, section 2.
    Deviates: `sigma` is absolute, not a share of the value range of each image.
    """

    sigma: float = 0.15
    samples: int = 16
    base: Attribution = field(default_factory=Saliency)
    chunk: int = 64

    def __post_init__(self) -> None:
        require_positive(sigma=self.sigma)
        require_at_least(1, samples=self.samples, chunk=self.chunk)

    @property
    def differentiable(self) -> bool:
        return self.base.differentiable

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        def base(points: Images, image: Rows) -> Maps:
            return self.base.maps(model, points, target[image])

        return mean_around(entering(inputs), base, self.sigma, self.samples, self.chunk)


@dataclass(frozen=True)
class SteinGradient(Attribution):
    """Gradient of the votes of a smoothed classifier, by forward passes alone; the network needs no slopes.

    grad P[f(x + sigma e) = c] = E[v e] / sigma,    v = 1 if f(x + sigma e) = c, else 0,    e ~ N(0, I)

    Estimated by the sample covariance of v and e over sigma,

    1 / ((n - 1) sigma) sum_k (v_k - mean v) e_k

    which is unbiased: it takes from every vote the mean of the others, which does not depend on its e, and
    E e = 0. That brings the variance of a pixel from p to p (1 - p), nearly, over n sigma^2.

    Args:
        sigma: Standard deviation of the noise, in pixel units; greater than 0.
        samples: Votes per image, at least 2; the error falls as 1 / sqrt(n).
        chunk: Largest number of images in one pass of the model.

    Source: Stein 1981, "Estimation of the mean of a multivariate normal distribution", lemma 1; Salman et al.
        2019, arXiv 1906.04584, lemma 1 (for smoothed classifiers); Cohen, Rosenfeld and Kolter 2019, arXiv
        1902.02918 (the classifier).
    Deviates: the mean vote is taken off, which changes no expectation. Antithetic pairs, x + sigma e with
        x - sigma e, take it off as well, but on a linear network both members of a pair say the same about e:
        their variance is 1 / p times as large, p >= 1/2 being the share of c.
    """

    sigma: float = 0.25
    samples: int = 1000
    chunk: int = 256

    def __post_init__(self) -> None:
        require_positive(sigma=self.sigma)
        require_at_least(2, samples=self.samples)
        require_at_least(1, chunk=self.chunk)

    @torch.no_grad()
    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        batch, channels, *place = inputs.shape
        own = randomness.keys(inputs, "stein")

        def cast(image: Rows, sample: Rows) -> Maps:
            noise = randomness.normal(own[image] + sample, 0, inputs.shape[1:], inputs.dtype)
            logits = model(inputs[image] + self.sigma * noise)
            require_logits(logits, len(image))
            vote = (logits.argmax(1) == target[image]).to(noise).view(-1, 1, 1, 1)
            return torch.cat([vote * noise, noise, vote.expand_as(noise[:, :1])], dim=1)

        ones = inputs.new_ones(self.samples)
        sums = packed_sum(cast, ones, inputs.new_empty(batch, 2 * channels + 1, *place), self.chunk)
        together, noise, votes = torch.split(sums, [channels, channels, 1], dim=1)
        return (together - votes / self.samples * noise) / ((self.samples - 1) * self.sigma)


def mean_around(
    centre: Images, maps: Callable[[Images, Rows], Maps], sigma: float, samples: int, chunk: int
) -> Images:
    """Mean of maps over Gaussian noise around an image, or around any point that stands for it.

    Draws belong to the image, so that they are the same around all of its points.

    Args:
        centre: Where the noise is added, one point for each image.
        maps: Maps at noisy points of the images of these numbers; what they draw is fresh for every point.
        sigma: Standard deviation of the noise, in pixel units.
        samples: Noise draws per image.
        chunk: Largest number of points at once.
    """
    own = randomness.keys(centre, "smooth_grad")

    def noisy(image: Rows, sample: Rows) -> Maps:
        keys = own[image] + sample
        points = centre[image] + sigma * randomness.normal(keys, 0, centre.shape[1:], centre.dtype)
        with randomness.keyed(0, keys):
            return maps(points, image)

    return packed_sum(noisy, centre.new_full((samples,), 1 / samples), centre, chunk)
