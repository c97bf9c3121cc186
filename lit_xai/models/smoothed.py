"""Randomized smoothing: the classifier that answers what a network mostly says under Gaussian noise.

Noise is added in pixel units, before normalisation, in float32 or more, and is not clipped to [0, 1].
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int
from scipy import stats
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_xai import randomness
from lit_xai.models.certificates import (
    ABSTAINED,
    Certificate,
    anytime_lower_bound,
    check_level,
    looks,
    lower_confidence_bound,
    radius_of,
    settled,
)
from lit_xai.models.modes import evaluating
from lit_xai.types import (
    Images,
    Keys,
    Labels,
    Logits,
    require,
    require_at_least,
    require_positive,
)

_STRIDE = 0x2545F4914F6CDD1D  # odd: the draws of one image never share a key


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
        noise = self.sigma * randomness.normal(keys, 0, inputs.shape[1:], _precision(inputs))
        logits: Tensor = self.net((inputs + noise[:, None]).to(inputs.dtype).flatten(0, 1))
        return logits.reshape(len(keys), len(inputs), *logits.shape[1:]).sum(dim=0, dtype=inputs.dtype)

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
        check_level(samples, alpha)
        counts = self._votes(inputs, randomness.keys(inputs, "smoothed prediction"), 0, samples, chunk)
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
        check_level(n, alpha)
        chosen, keys = self._select(inputs, n0, chunk)
        count = self._votes(inputs, keys, 0, n, chunk).gather(1, chosen[:, None]).squeeze(1)
        bound = lower_confidence_bound(count.cpu().numpy(), n, alpha)
        return self._certificate(chosen, bound, count, torch.full_like(count, n), alpha)

    def certify_sequentially(
        self,
        inputs: Images,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        tolerance: float = 0.1,
        radii: Sequence[float] = (),
        chunk: int = 1024,
    ) -> Certificate:
        """As `certify`, but each image stops as soon as more votes would tell little more.

        `n0` votes select the class. Others estimate its probability, by a bound that holds at all numbers of
        votes at once (`anytime_lower_bound`), so that when to stop may depend on the votes: the certificate
        of an image is wrong with probability `alpha` at most, as that of `certify`. It is looked at after
        100 votes, then after each 6 % more, and stops when its radius is 1 - `tolerance` of that which it
        would have after `n` votes with the same share, when it is certain not to exceed 0, or after `n`.

        The votes are the first ones of `certify`: whoever looks at both must not choose between them.

        Args:
            inputs: Pixels in [0, 1].
            n0: Votes that select the class, per image, at least 1.
            n: Votes that estimate its probability, per image, at most; at least 1.
            alpha: Probability that the certificate of one image is wrong, above 0 and at most 0.5.
            tolerance: Share of the radius that may be given away for fewer votes, in [0, 1).
            radii: Stop, in place of the tolerance, when for each of these radii in pixel units, at least 0,
                it is decided whether the certified radius reaches it.
            chunk: Noisy images that pass the network at once, at least 1.

        Source: as `anytime_lower_bound`.
        """
        require_at_least(1, n0=n0, n=n)
        require(0 <= tolerance < 1, f"`tolerance` must lie in [0, 1), got {tolerance!r}.")
        require(0 < alpha <= 0.5, f"`alpha` must lie above 0 and be at most 0.5, got {alpha!r}.")
        require(all(radius >= 0 for radius in radii), f"`radii` must be at least 0, got {radii!r}.")
        goals = [radius / self.sigma for radius in radii]
        chosen, keys = self._select(inputs, n0, chunk)
        count, samples = torch.zeros_like(chosen), torch.zeros_like(chosen)
        open_ = torch.arange(len(inputs))
        for first, last in pairwise([0, *looks(n)]):
            if len(open_) == 0:
                break
            rows = open_.to(inputs.device)
            votes = self._votes(inputs[rows], keys[rows], first, last, chunk)
            count[rows] += votes.gather(1, chosen[rows, None]).squeeze(1)
            samples[rows] = last
            if last < n:  # the one wait for the device per look; images that have stopped leave the batch
                over = settled(count[rows].cpu().numpy(), last, n, alpha, tolerance, goals)
                open_ = open_[~torch.from_numpy(over)]
        bound = anytime_lower_bound(count.cpu().numpy(), samples.cpu().numpy(), alpha)
        return self._certificate(chosen, bound, count, samples, alpha)

    def _select(self, inputs: Images, n0: int, chunk: int) -> tuple[Labels, Keys]:
        """The class that most of `n0` votes are for, and the keys of other votes."""
        selection = randomness.keys(inputs, "smoothed selection")
        estimation = randomness.keys(inputs, "smoothed estimation")
        return self._votes(inputs, selection, 0, n0, chunk).argmax(dim=1), estimation

    def _certificate(
        self, chosen: Labels, bound: np.ndarray, count: Labels, samples: Labels, alpha: float
    ) -> Certificate:
        certain = torch.from_numpy(bound >= 0.5).to(chosen.device)
        radius = torch.from_numpy(radius_of(bound, self.sigma)).to(chosen.device)
        label = chosen.where(certain, ABSTAINED)
        return Certificate(label, radius, count, samples, alpha, self.sigma)

    @torch.no_grad()
    def _votes(
        self, inputs: Images, keys: Keys, first: int, last: int, chunk: int
    ) -> Int[Tensor, "batch class"]:
        """How often each class wins among the draws `first` to before `last` of each image, in eval mode."""
        require_at_least(1, chunk=chunk)
        counts = []
        with evaluating(self.net):
            for images, own in zip(torch.split(inputs, chunk), torch.split(keys, chunk), strict=True):
                share = chunk // max(1, len(images))  # a process may have no images
                total = self._vote(images, own, first, min(first + share, last))
                for start in range(first + share, last, share):
                    total += self._vote(images, own, start, min(start + share, last))
                counts.append(total)
        return torch.cat(counts)

    def _vote(self, inputs: Images, keys: Keys, first: int, last: int) -> Int[Tensor, "batch class"]:
        """Votes of the draws from `first` to before `last`: a key per image and draw, whatever the chunk.

        Logits that are not finite vote for no class.
        """
        draws = torch.arange(first, last, device=inputs.device)
        each = (keys[:, None] + draws * _STRIDE).flatten()
        noise = randomness.normal(each, 0, inputs.shape[1:], _precision(inputs))
        noise = noise.reshape(len(inputs), len(draws), *inputs.shape[1:])
        noisy = torch.add(inputs[:, None], noise, alpha=self.sigma, out=noise)
        logits = self.net(noisy.flatten(0, 1).to(inputs.dtype))
        winners, valid = logits.argmax(dim=1), logits.isfinite().all(dim=1).long()
        counts = torch.zeros(len(inputs), logits.shape[1], dtype=torch.int64, device=inputs.device)
        shape = (len(inputs), len(draws))
        return counts.scatter_add_(1, winners.reshape(shape), valid.reshape(shape))


def _precision(inputs: Images) -> torch.dtype:
    """In which noise is drawn and added: float32 at least, whatever the network is given."""
    return torch.promote_types(inputs.dtype, torch.float32)
