"""Flags: how many maps are no answer. A number without its flags is not to be believed."""

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from lit_xai.attacks.losses import holds
from lit_xai.attributions.base import Attribution, Conserving
from lit_xai.attributions.boundary import OnBoundary
from lit_xai.attributions.flux import NegativeFlux
from lit_xai.metrics.base import Metric, Quantity, Saliency, SignedSum
from lit_xai.metrics.shared import clean_logits, finite_only
from lit_xai.types import Images, Labels, Scores

SIGNED = SignedSum()


def tied(saliency: Saliency) -> Scores:
    """Share of the pixels that have the value of another pixel: a ranking of these is made up.

    #{i: a_i = a_j for some j != i} / n; NaN for a map that is not finite.

    Args:
        saliency: One number per pixel.
    """
    values = saliency.flatten(1).sort(dim=1).values
    same = values[:, 1:] == values[:, :-1]
    shared = F.pad(same, (1, 0)) | F.pad(same, (0, 1))
    return finite_only(shared.to(values.dtype).mean(dim=1), saliency)


class Flags(Metric):
    """Share of maps that are zero everywhere, of those with a value that is not finite, and of tied pixels.

    A pixel is tied if its value, summed over channels, is that of another pixel of the map: metrics that rank
    pixels put them in an order that the map does not have.

    Source: by definition.
    """

    quantities: ClassVar = {
        "zero": Quantity("lower", (0.0, 1.0)),
        "nonfinite": Quantity("lower", (0.0, 1.0)),
        "ties": Quantity("lower", (0.0, 1.0)),
    }

    def score(self, attributions: Images) -> dict[str, Scores]:
        values = attributions.flatten(1)
        flags = {"zero": (values == 0).all(dim=1), "nonfinite": ~values.isfinite().all(dim=1)}
        shares = {name: flag.to(values.dtype) for name, flag in flags.items()}
        return shares | {"ties": tied(SIGNED(attributions))}


class Misclassified(Metric):
    """Share of images whose prediction is not the target: their maps explain what the model does not say.

    Logits that are not finite predict nothing.

    Source: by definition.
    """

    quantities: ClassVar = {"": Quantity("lower", (0.0, 1.0))}

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        return (~holds(clean_logits(model, inputs, target), target)).to(inputs.dtype)


class Missing(Metric):
    """Share of images for which a boundary attribution's search found no boundary.

    Source: by definition; the code released with arXiv 2103.11257 does not tell.
    """

    quantities: ClassVar = {"": Quantity("lower", (0.0, 1.0))}

    def applies(self, attribution: Attribution) -> bool:
        return isinstance(attribution, OnBoundary)

    def score(self, model: nn.Module, inputs: Images, target: Labels, attribution: OnBoundary) -> Scores:
        return (~attribution.search.search(model, inputs, target).found).to(inputs.dtype)


class Residual(Metric):
    """How far maps are from adding up to what they are meant to add up to.

    |sum A - T| / max(|sum A|, |T|),    T = what the method promises: a logit, a difference of scores

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, section 3 (completeness); Bach et al. 2015, "On
    pixel-wise explanations for non-linear classifier decisions by layer-wise relevance propagation", eq. 2.
    Deviates: relative to the larger of the two, so that it lies in [0, 2] whatever the scale of the logits.
    """

    quantities: ClassVar = {"": Quantity("lower", (0.0, 2.0))}

    def applies(self, attribution: Attribution) -> bool:
        return isinstance(attribution, Conserving)

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images, attribution: Conserving
    ) -> Scores:
        found = attributions.flatten(1).sum(1, dtype=torch.float64)
        meant = attribution.total(model, inputs, target).to(found.dtype)
        scale = torch.maximum(found.abs(), meant.abs())
        return ((found - meant).abs() / scale.where(scale != 0, 1)).to(inputs.dtype)


class Accepted(Metric):
    """How many of a flux map's points on the sphere have negative flux; a map without any is zero.

    Source: Li et al. 2023, arXiv 2301.06989 (negative flux).
    """

    quantities: ClassVar = {"": Quantity("higher", (0.0, math.inf))}

    def applies(self, attribution: Attribution) -> bool:
        return isinstance(attribution, NegativeFlux)

    def score(self, model: nn.Module, inputs: Images, target: Labels, attribution: NegativeFlux) -> Scores:
        return attribution.accepted(model, inputs, target)
