"""Randomisation: whether a map changes when what it is meant to explain does."""

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from lit_xai.attacks.losses import RandomClass
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.similarity import cosine, pearson, ranks, scaled, ssim
from lit_xai.attributions.smoothing import SmoothGrad
from lit_xai.memory import once
from lit_xai.metrics.base import AbsoluteSum, Facts, Metric, Quantity, Reduction, Saliency, SignedSum
from lit_xai.metrics.shared import clean_logits, maps_of
from lit_xai.metrics.untrained import Untrained
from lit_xai.models.reinitialised import layers, reinitialised
from lit_xai.types import Images, Labels, Scores, require, require_at_least, require_positive

ABSOLUTE, SIGNED = AbsoluteSum(), SignedSum()


def cascade_similarity(original: Saliency, randomised: Sequence[Saliency]) -> dict[str, Scores]:
    """Mean similarity of a map to those of networks that have forgotten more and more.

    ssim, of maps divided by the sum of their absolute values, and spearman. The map's likeness to itself is
    no part of the mean; nor is a network whose map has no likeness to anything, being constant or not finite.

    Args:
        original: The map of the network, one number per pixel.
        randomised: Those of the others.
    """
    mass, order = scaled(original), ranks(original)
    kinds = {
        "ssim": [ssim(mass, scaled(other)) for other in randomised],
        "spearman": [pearson(order, ranks(other)) for other in randomised],
    }
    return {name: torch.stack(columns).nanmean(0) for name, columns in kinds.items()}


def histogram_entropy(saliency: Saliency, bins: int = 100) -> Scores:
    """Entropy, in nats, of the histogram of a map's values over equal bins from its least to its largest.

    0 for a map that is constant, NaN for one that is not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
        bins: How many.
    """
    values = saliency.flatten(1).double().sort(1).values
    low, high = values[:, :1], values[:, -1:]
    width = (high - low) / bins
    edges = torch.arange(1, bins, device=values.device) * width + low
    below = torch.searchsorted(values, edges)
    none = torch.zeros_like(below[:, :1])
    counts = torch.cat([none, below, none + values.shape[1]], dim=1).diff(dim=1)
    entropy: Scores = torch.special.entr(counts.double() / values.shape[1]).sum(1)
    return entropy.where(low[:, 0] < high[:, 0], 0.0).where(values.isfinite().all(1), math.nan)


def entropy_rise(original: Saliency, randomised: Saliency) -> Scores:
    """Relative rise of the entropy of a map's histogram; NaN where one of the maps is constant.

    (H(R) - H(A)) / H(A)

    Args:
        original: A, one number per pixel.
        randomised: R, the map of a network with fresh weights.
    """
    before, after = histogram_entropy(original), histogram_entropy(randomised)
    return ((after - before) / before).where((before > 0) & (after > 0), math.nan)


class ModelRandomisation(Metric):
    """How alike a map stays when the network forgets what it learned, layer by layer from the output.

    ssim and spearman between the map and that of the network whose last k layers have fresh weights, mean
    over k. A map that stays the same shows the image, or the architecture, not what was learned: 1 for an
    edge detector. Costs `layers` maps; with `samples`, (`layers` + 1) `samples`.

    Batch norms keep the running statistics that they learned. With `samples`, the map is the mean over as
    many noisy images, and the noise is that of the image: the same whatever the network.

    Args:
        layers: How many k there are at most, evenly from the last layer alone to all of them; at least 1,
            which is all of them at once.
        samples: Noisy images that a map is averaged over; 0 for the map as it is.
        sigma: Standard deviation of that noise, in pixel units; above 0.
        reduction: Reads a map as one number per pixel.
        seed: Chooses the weights.

    Raises:
        ValueError: A number lies outside its range.

    Source: Adebayo et al. 2018, arXiv 1810.03292, section 3 (cascading randomization); samples: Hedström et
    al. 2024, arXiv 2401.06465 (smooth MPRT).
    Deviates: some of the layers stand for all; SSIM is that of maps of unit mass, spearman that of the sizes
    by default; noise is absolute, not a share of the range of an image.
    """

    quantities: ClassVar = {
        "ssim": Quantity("lower", (-1.0, 1.0)),
        "spearman": Quantity("lower", (-1.0, 1.0)),
    }

    def __init__(
        self,
        layers: int = 4,
        samples: int = 0,
        sigma: float = 0.1,
        reduction: Reduction = ABSOLUTE,
        seed: int = 0,
    ) -> None:
        require_at_least(1, layers=layers)
        require_at_least(0, samples=samples)
        require_positive(sigma=sigma)
        super().__init__()
        self.layers, self.samples, self.sigma = layers, samples, sigma
        self.reduction, self.seed = reduction, seed

    def applies(self, attribution: Attribution) -> bool:
        return not isinstance(attribution, Untrained)  # it has forgotten all there is

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        _needs_layers(name, facts)

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: Attribution,
    ) -> dict[str, Scores]:
        method, own = attribution, attributions
        if self.samples:
            method = SmoothGrad(self.sigma, self.samples, attribution, chunk=max(1, len(inputs)))
            own = maps_of(method, model, inputs, target)
        names, others = layers(model), []
        for depth in _depths(len(names), self.layers):
            question = ("reinitialised", self.seed, depth)
            forget = partial(reinitialised, model, self.seed, names[:depth])
            network = once(question, model, inputs, target, forget)
            others.append(self.reduction(maps_of(method, network, inputs, target)))
        return cascade_similarity(self.reduction(own), others)


class EfficientRandomisation(Metric):
    """Relative rise of a map's complexity when the network forgets all that it learned.

    (H(R) - H(A)) / H(A), H the entropy of the histogram of a map in 100 bins, R the map of the network with
    fresh weights. It compares no pixels, so that noise does not count as change. Costs one map, which it
    shares with the control `Untrained` of the same seed.

    Args:
        reduction: Reads a map as one number per pixel.
        seed: Chooses the weights.

    Source: Hedström et al. 2024, arXiv 2401.06465 (efficient MPRT).
    """

    quantities: ClassVar = {"": Quantity("higher", (-1.0, math.inf))}

    def __init__(self, reduction: Reduction = SIGNED, seed: int = 0) -> None:
        super().__init__()
        self.reduction, self.seed = reduction, seed

    def applies(self, attribution: Attribution) -> bool:
        return not isinstance(attribution, Untrained)

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        _needs_layers(name, facts)

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: Attribution,
    ) -> Scores:
        other = maps_of(Untrained(attribution, self.seed), model, inputs, target)
        return entropy_rise(self.reduction(attributions), self.reduction(other))


class RandomLogit(Metric):
    """How alike the maps of two classes of one image are: a map that is the same for both explains neither.

    cosine, of the maps with all their channels and signs, and ssim, of maps of unit mass with one number per
    pixel. The other class is drawn evenly, by sample, the same in each epoch. Costs one map.

    Args:
        reduction: Reads a map as one number per pixel, for ssim.

    Source: Sixt, Granz and Landgraf 2020, arXiv 1912.09818 (random logit).
    """

    quantities: ClassVar = {
        "cosine": Quantity("lower", (-1.0, 1.0)),
        "ssim": Quantity("lower", (-1.0, 1.0)),
    }

    def __init__(self, reduction: Reduction = ABSOLUTE) -> None:
        super().__init__()
        self.reduction = reduction

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        require(facts.classes > 1, f"`{name}` needs at least 2 classes, got {facts.classes}: leave it out.")

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: Attribution,
    ) -> dict[str, Scores]:
        def draw() -> Labels:
            return RandomClass()(clean_logits(model, inputs, target), target)

        other = once("another class", model, inputs, target, draw)
        maps = maps_of(attribution, model, inputs, other)
        first, second = (scaled(self.reduction(each)) for each in (attributions, maps))
        return {"cosine": cosine(attributions, maps), "ssim": ssim(first, second)}


def _depths(count: int, most: int) -> list[int]:
    """How many layers are forgotten, in at most so many steps: evenly from one to all."""
    steps = min(count, most)
    return [round(1 + (count - 1) * step / (steps - 1)) for step in range(steps)] if steps > 1 else [count]


def _needs_layers(name: str, facts: Facts) -> None:
    require(
        bool(layers(facts.model)),
        f"`{name}` needs a network with weights, and this one has none: leave it out.",
    )
