"""Flags: how many maps are no answer. A number without its flags is not to be believed."""

from typing import ClassVar

from torch import nn

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.boundary import OnBoundary
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.types import Images, Labels, Scores


class Flags(Metric):
    """Share of maps that are zero everywhere, and share of those with a value that is not finite.

    Source: by definition.
    """

    quantities: ClassVar = {
        "zero": Quantity("lower", (0.0, 1.0)),
        "nonfinite": Quantity("lower", (0.0, 1.0)),
    }

    def score(self, attributions: Images) -> dict[str, Scores]:
        values = attributions.flatten(1)
        flags = {"zero": (values == 0).all(dim=1), "nonfinite": ~values.isfinite().all(dim=1)}
        return {name: flag.to(values.dtype) for name, flag in flags.items()}


class Missing(Metric):
    """Share of images for which a boundary attribution's search found no boundary.

    Source: by definition; the code released with arXiv 2103.11257 does not tell.
    """

    quantities: ClassVar = {"": Quantity("lower", (0.0, 1.0))}

    def applies(self, attribution: Attribution) -> bool:
        return isinstance(attribution, OnBoundary)

    def score(self, model: nn.Module, inputs: Images, target: Labels, attribution: OnBoundary) -> Scores:
        return (~attribution.search.search(model, inputs, target).found).to(inputs.dtype)
