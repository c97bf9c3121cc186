"""Monotonicity: whether a class gains with every group of pixels that comes, the least salient first."""

from typing import ClassVar

import torch
from torch import nn

from lit_xai.attributions.similarity import spearman
from lit_xai.metrics.answers import ROUNDINGS, Answers, told_apart
from lit_xai.metrics.base import AbsoluteSum, Quantity, Reduction
from lit_xai.metrics.faithfulness import BLACK, Removing
from lit_xai.metrics.flipping import flipping_curves
from lit_xai.metrics.looks import ranks_of
from lit_xai.metrics.removal import Removal
from lit_xai.metrics.shared import finite_only
from lit_xai.types import Images, Labels, Scores, require_at_least

ABSOLUTE = AbsoluteSum()


def monotonicity(logits: Answers, dtype: torch.dtype) -> dict[str, Scores]:
    """Share of the steps of a curve that do not fall, and its rank correlation with the step.

    rising = mean_k 1[f_k >= f_{k-1}];    spearman = corr(rank k, rank f_k)

    A step no larger than rounding is none. NaN for a curve that is flat.

    Args:
        logits: f_0, f_1, ...
        dtype: The precision that the curve was computed in.
    """
    size = logits.abs().amax(1)
    curve = told_apart(logits, size, dtype)
    rises = curve.diff(dim=1)
    rises = rises.where(~(rises.abs() <= ROUNDINGS * torch.finfo(dtype).eps * size[:, None]), 0)
    climbed = torch.cat([torch.zeros_like(rises[:, :1]), rises.cumsum(1)], dim=1)
    step = torch.arange(climbed.shape[1], device=climbed.device, dtype=climbed.dtype).expand_as(climbed)
    rising = (rises >= 0).to(rises).mean(1).where(curve[:, 0].isfinite(), torch.nan)
    return {"rising": rising, "spearman": spearman(step[:, None], climbed[:, None])}


class Monotonicity(Removing):
    """Whether the class gains with every group of pixels that comes, in the order of rising |A|.

    x_k = x where the rank of |A| is below k g, else b;    f_k = the logit of the target at x_k

    It is the curve of `PixelFlipping` with the same operator, reduction and steps, read backwards, and costs
    nothing beside that.

    * rising: share of the steps with f_k >= f_{k-1};
    * spearman: rank correlation of k and f_k.

    Whatever the order, an image comes out of nothing and its class with it, so that both are above chance
    for any map: read them beside those of a random one (`RandomMap`). Equal pixels come in random order, and
    a map that is zero in random order as a whole.

    Args:
        steps: Groups of pixels, at least 2; costs `steps` + 1 forward passes, of which two are shared by all
            maps.
        removal: What is seen before a pixel comes.
        reduction: Reads a map as one number per pixel; the least comes first.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: An argument lies outside its range.

    Source: Luss et al. 2019, arXiv 1905.12698; Arya et al. 2019, arXiv 1909.03012 (the metric as released).
    Deviates: groups in place of single features; the share of steps that rise, not whether all of them do;
        the logit, not the probability.
    """

    quantities: ClassVar = {
        "rising": Quantity("higher", (0.0, 1.0)),
        "spearman": Quantity("higher", (-1.0, 1.0)),
    }

    def __init__(
        self,
        steps: int = 28,
        removal: Removal = BLACK,
        reduction: Reduction = ABSOLUTE,
        chunk: int = 64,
    ) -> None:
        require_at_least(2, steps=steps)
        super().__init__(removal, reduction, chunk)
        self.steps = steps

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images
    ) -> dict[str, Scores]:
        ranks = ranks_of(attributions, self.reduction, model, inputs, target)
        curve = flipping_curves(model, inputs, target, ranks, self.removal, self.steps, self.chunk)[1]
        scores = monotonicity(curve.flip(1).double(), inputs.dtype)
        return {name: finite_only(column, attributions) for name, column in scores.items()}
