"""Randomized smoothing: the classifier that answers what a network mostly says under Gaussian noise.

Noise is added in pixel units, before normalisation, and is not clipped to [0, 1].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import ArrayLike
from scipy import special, stats
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_xai import randomness
from lit_xai.models.modes import evaluating
from lit_xai.types import (
    Flags,
    Images,
    Keys,
    Labels,
    Logits,
    Scores,
    require,
    require_at_least,
    require_positive,
)

ABSTAINED = -1
_STRIDE = 0x2545F4914F6CDD1D  # odd: the draws of one image never share a key


def lower_confidence_bound(count: ArrayLike, samples: int, alpha: float) -> Any:
    """One-sided Clopper-Pearson bound: with probability 1 - alpha, the true share is at least this.

    p = BetaInv(alpha; k, n - k + 1), and 0 for k = 0. For k = n this is alpha^(1/n).

    Args:
        count: Successes k, from 0 to `samples`: a number or an array of them.
        samples: Trials n, at least 1.
        alpha: Probability that the bound is wrong, in (0, 1).

    Returns:
        A float64 number, or an array of the shape of `count`.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial".
    """
    _check(samples, alpha)
    k = np.asarray(count)
    require(
        bool(np.all((k >= 0) & (k <= samples))), f"`count` must lie between 0 and {samples}, got {count!r}."
    )
    bound = special.betaincinv(np.maximum(k, 1), samples - k + 1.0, alpha)
    return np.where(k > 0, bound, 0.0)[()]


def certified_radius(count: ArrayLike, samples: int, alpha: float, sigma: float) -> Any:
    """The l2 radius within which the smoothed answer cannot change: sigma * PhiInv(p), or 0 to abstain.

    p is `lower_confidence_bound(count, samples, alpha)`. Below p = 1/2 nothing is certified.

    Args:
        count: Votes for the class, from 0 to `samples`: a number or an array of them.
        samples: Votes in all, at least 1.
        alpha: Probability that a radius is wrong, in (0, 1).
        sigma: Standard deviation of the noise in pixel units, greater than 0.

    Returns:
        A float64 number in pixel units, or an array of the shape of `count`.

    Source: Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, theorem 1 and section 3.2.2.
    """
    require_positive(sigma=sigma)
    bound = lower_confidence_bound(count, samples, alpha)
    return np.where(bound >= 0.5, sigma * special.ndtri(np.maximum(bound, 0.5)), 0.0)[()]


@dataclass(frozen=True)
class Certificate:
    """What `Smoothed.certify` found, per image.

    Args:
        label: The certified class, -1 for an abstention.
        radius: l2 radius in pixel units in which the label holds, in float64; 0 for an abstention.
        count: Votes for the selected class, out of `samples`.
        samples: Votes of the estimation, per image.
        alpha: Probability that the radius of one image is wrong.
        sigma: Standard deviation of the noise in pixel units.
    """

    label: Labels
    radius: Scores
    count: Int[Tensor, " batch"]
    samples: int
    alpha: float
    sigma: float

    @property
    def abstained(self) -> Flags:
        return self.label == ABSTAINED


class Smoothed(nn.Module):
    """A network smoothed by Gaussian noise: g(x) = argmax_c P[f(x + e) = c], e ~ N(0, sigma^2 I).

    `predict` and `certify` are about g, by votes. The forward pass is its differentiable companion, the mean
    logits over noise drawn once and shared by all images: a deterministic function, so that it has gradients,
    a decision boundary and attributions of its own. The gradient of one of its logits is SmoothGrad of the
    network. A batch of b images passes through the network as `samples` * b, at most `chunk` at once: where
    that takes several passes, backward computes each of them again in place of keeping them all in memory.
    In train mode all pass at once, as batch statistics must be of all.

    Args:
        net: Maps pixels to logits; its normalisation is inside, so that `sigma` is in pixel units.
        sigma: Standard deviation of the noise in pixel units, greater than 0.
        samples: Noise draws in a forward pass, at least 1.
        seed: Fixes the draws of the forward pass; `predict` and `certify` do not use it.
        chunk: Largest number of noisy images in one pass of the network in eval mode, at least 1; results do
            not depend on it.

    Source: Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, algorithm 1 (`predict`, `certify`); Smilkov et
    al. 2017, arXiv 1706.03825 (the gradient of the forward pass).
    """

    def __init__(
        self, net: nn.Module, sigma: float, samples: int = 16, seed: int = 0, chunk: int = 256
    ) -> None:
        require_positive(sigma=sigma)
        require_at_least(1, samples=samples, chunk=chunk)
        super().__init__()
        self.net = net
        self.sigma = sigma
        self.samples = samples
        self.seed = seed
        self.chunk = chunk

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in ("sigma", "samples", "seed", "chunk"))

    def forward(self, inputs: Images) -> Logits:
        draws = torch.arange(self.samples, device=inputs.device)
        with randomness.keyed(self.seed, draws):
            keys = randomness.keys(draws, "smoothed forward")
        if self.training or self.samples * len(inputs) <= self.chunk:
            return self._sum(inputs, keys) / self.samples
        blocks = []
        for images in torch.split(inputs, self.chunk):
            sums = [
                checkpoint(self._sum, images, some, use_reentrant=False, preserve_rng_state=False)
                for some in torch.split(keys, self.chunk // len(images))
            ]
            blocks.append(torch.stack(sums).sum(dim=0) / self.samples)
        return torch.cat(blocks)

    def _sum(self, inputs: Images, keys: Int[Tensor, " draw"]) -> Logits:
        """Logits added up over the draws of these keys, in one pass of the network."""
        noise = self.sigma * randomness.normal(keys, 0, inputs.shape[1:], inputs.dtype)
        logits: Tensor = self.net((inputs + noise[:, None]).flatten(0, 1))
        return logits.reshape(len(keys), len(inputs), *logits.shape[1:]).sum(dim=0)

    def predict(self, inputs: Images, samples: int = 1000, alpha: float = 0.001, chunk: int = 1024) -> Labels:
        """The class that g answers, or -1 where the votes do not tell it from the second.

        Abstains where the two-sided binomial test of the top two counts against 1/2 has p > `alpha`. Draws
        are keyed by sample (`lit_xai.randomness`): the answer does not depend on `chunk` or on the batch.

        Args:
            inputs: Pixels in [0, 1].
            samples: Votes per image, at least 1.
            alpha: Probability that an answer is not that of g, in (0, 1).
            chunk: Noisy images that pass the network at once, at least 1.
        """
        _check(samples, alpha)
        counts = self._votes(inputs, randomness.keys(inputs, "smoothed prediction"), samples, chunk)
        (first, second), label = counts.topk(2).values.T.cpu().numpy(), counts.argmax(dim=1)
        chance = np.minimum(1.0, 2 * stats.binom.sf(first - 1, first + second, 0.5))
        return label.where(torch.from_numpy(chance <= alpha).to(label.device), ABSTAINED)

    def certify(
        self, inputs: Images, n0: int = 100, n: int = 100_000, alpha: float = 0.001, chunk: int = 1024
    ) -> Certificate:
        """The class that g answers and the l2 radius in which it does, each wrong with probability `alpha`.

        `n0` votes select the class; `n` other votes estimate its probability. Draws are keyed by sample
        (`lit_xai.randomness`): the certificate does not depend on `chunk` or on the batch.

        Args:
            inputs: Pixels in [0, 1].
            n0: Votes that select the class, per image, at least 1.
            n: Votes that estimate its probability, per image, at least 1.
            alpha: Probability that the certificate of one image is wrong, in (0, 1).
            chunk: Noisy images that pass the network at once, at least 1.
        """
        require_at_least(1, n0=n0, n=n)
        _check(n, alpha)
        selection = randomness.keys(inputs, "smoothed selection")
        estimation = randomness.keys(inputs, "smoothed estimation")
        chosen = self._votes(inputs, selection, n0, chunk).argmax(dim=1)
        count = self._votes(inputs, estimation, n, chunk).gather(1, chosen[:, None]).squeeze(1)
        votes = count.cpu().numpy()
        radius = certified_radius(votes, n, alpha, self.sigma)
        certain = torch.from_numpy(lower_confidence_bound(votes, n, alpha) >= 0.5).to(chosen.device)
        return Certificate(
            label=chosen.where(certain, ABSTAINED),
            radius=torch.from_numpy(radius).to(chosen.device),
            count=count,
            samples=n,
            alpha=alpha,
            sigma=self.sigma,
        )

    @torch.no_grad()
    def _votes(self, inputs: Images, keys: Keys, samples: int, chunk: int) -> Int[Tensor, "batch class"]:
        """How often each class wins among `samples` noisy copies of each image, in eval mode."""
        require_at_least(1, chunk=chunk)
        counts = []
        with evaluating(self.net):
            for images, own in zip(torch.split(inputs, chunk), torch.split(keys, chunk), strict=True):
                share = chunk // max(1, len(images))  # a process may have no images
                total = self._vote(images, own, 0, min(share, samples))
                for first in range(share, samples, share):
                    total += self._vote(images, own, first, min(first + share, samples))
                counts.append(total)
        return torch.cat(counts)

    def _vote(self, inputs: Images, keys: Keys, first: int, last: int) -> Int[Tensor, "batch class"]:
        """Votes of the draws from `first` to before `last`: a key per image and draw, whatever the chunk."""
        draws = torch.arange(first, last, device=inputs.device)
        noise = randomness.normal(
            (keys[:, None] + draws * _STRIDE).flatten(), 0, inputs.shape[1:], inputs.dtype
        )
        logits = self.net(inputs.repeat_interleave(len(draws), dim=0).add_(noise, alpha=self.sigma))
        winners = logits.argmax(dim=1).reshape(len(inputs), len(draws))
        counts = torch.zeros(len(inputs), logits.shape[1], dtype=torch.int64, device=inputs.device)
        return counts.scatter_add_(1, winners, torch.ones_like(winners))


def _check(samples: int, alpha: float) -> None:
    require_at_least(1, samples=samples)
    require(0 < alpha < 1, f"`alpha` must lie between 0 and 1, got {alpha!r}.")
