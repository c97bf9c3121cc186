"""Flipping: what a model says while pixels, squares or superpixels go, in the order of a map."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.memory import once
from lit_xai.metrics.base import Facts, Quantity, Reduction, SignedSum
from lit_xai.metrics.faithfulness import Removing
from lit_xai.metrics.looks import Curves, Ranks, area, first, levels, ranks_of, ranks_of_parts, seen
from lit_xai.metrics.removal import Constant, ImageMean, Removal, UniformNoise
from lit_xai.metrics.segments import mean_of_parts, squares, sum_of_parts, superpixels
from lit_xai.metrics.shared import finite_only
from lit_xai.types import Images, Labels, Scores, require, require_at_least, require_positive

BLACK = Constant(0.0)
MEAN = ImageMean()
NOISE = UniformNoise()
SIGNED = SignedSum()


def flipping_curves(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    ranks: Ranks,
    removal: Removal,
    steps: int,
    chunk: int,
) -> tuple[Float[Tensor, " look"], Curves, Curves]:
    """Logit and probability of the target while the pixels ranked first are removed, to the last.

    Costs steps + 1 forward passes.

    Args:
        model: The network.
        inputs: Pixels.
        target: The class that is followed.
        ranks: 0 for the pixel that goes first.
        removal: What is put in place of a pixel.
        steps: Steps from all to nothing; at most one per pixel is made.
        chunk: Images that pass the model at once.

    Returns:
        Share of pixels that is gone at each point, logits and probabilities.
    """
    pixels = math.prod(inputs.shape[2:])
    counts = levels(pixels, steps)
    said = seen(model, inputs, target, ranks, pixels, first(counts), removal, chunk)
    return inputs.new_tensor(counts) / pixels, said["logit"], said["probability"]


def aopc(curves: Curves) -> Scores:
    """Area over the perturbation curve: 1/(S + 1) sum_{k=0..S} f(x) - f(x_k), the first point being f(x)."""
    return (curves[:, :1] - curves).mean(dim=1)


def area_over(curves: Curves, steps: Int[Tensor, " batch"]) -> Scores:
    """Area over a curve relative to its first point: 1 - int f(x_s) / f(x) ds; NaN where f(x) is 0.

    Args:
        curves: What is said after each step.
        steps: After how many of them nothing is left, per image.
    """
    step, last = torch.arange(curves.shape[1]).to(curves), steps[:, None].to(curves)
    shares = torch.minimum(step, last) / last
    begin = curves[:, :1]
    return 1 - area(shares, (curves / begin).where(begin > 0, math.nan))


class PixelFlipping(Removing):
    """Area under the target's logit and probability while a map's first pixels go.

    int_0^1 f(x without the share s ranked first) ds    f the logit, or the probability

    The logit does not saturate, and has the scale of the model: compare it within one. `probability` is the
    deletion of `Perturbation` with the same operator and steps, and then costs nothing beside it.

    Args:
        steps: Steps from the whole image to nothing, at least 1; costs `steps` + 1 forward passes, of which
            two are shared by all maps.
        removal: What is put in place of a pixel.
        reduction: Reads a map as one number per pixel; signed, as evidence against the class is to go last.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: `steps` or `chunk` is below 1.

    Source: Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by layer-wise
        relevance propagation", PLoS ONE 10(7).
    Deviates: one number for the curve; several pixels a step.
    """

    quantities: ClassVar = {
        "logit": Quantity("lower"),
        "probability": Quantity("lower", (0.0, 1.0)),
    }

    def __init__(
        self,
        steps: int = 14,
        removal: Removal = BLACK,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        require_at_least(1, steps=steps)
        super().__init__(removal, reduction, chunk)
        self.steps = steps

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images
    ) -> dict[str, Scores]:
        ranks = ranks_of(attributions, self.reduction, model, inputs, target)
        shares, *curves = flipping_curves(model, inputs, target, ranks, self.removal, self.steps, self.chunk)
        areas = [finite_only(area(shares, curve), attributions) for curve in curves]
        return dict(zip(self.quantities, areas, strict=True))


class AOPC(Removing):
    """Area over the curve of region perturbation: how far the score falls while a map's first squares go.

    1/(S + 1) sum_{k=0..S} f(x) - f(x_k)    x_k without the k squares with the largest sums of A

    `probability` and `logit` say what f is. `normalised` is the latter divided by f(x) - f(b), b having
    nothing left, and summed up by its median: it does not depend on the scale of the model's logits. It is
    NaN where the two are equal.

    Args:
        region: Side of a square in pixels, at least 1; squares at the far edges are cut off.
        steps: S, squares that are removed, one after the other, at least 1; at most all are. Costs `steps`
            + 2 forward passes, of which two are shared by all maps.
        removal: What is put in place of a pixel.
        reduction: Reads a map as one number per pixel.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: `region`, `steps` or `chunk` is below 1.

    Source: Samek et al. 2017, arXiv 1509.06321 (AOPC, most relevant first).
    Deviates: `normalised`; smaller squares than 9 x 9 and fewer steps than 100, for small images.
    """

    quantities: ClassVar = {
        "probability": Quantity("higher", (-1.0, 1.0)),
        "logit": Quantity("higher"),
        "normalised": Quantity("higher", median=True),
    }

    def __init__(
        self,
        region: int = 4,
        steps: int = 20,
        removal: Removal = NOISE,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        require_at_least(1, region=region, steps=steps)
        super().__init__(removal, reduction, chunk)
        self.region, self.steps = region, steps

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        require(
            self.region < max(facts.shape[1:]),
            f"`{name}` ranks squares of {self.region} x {self.region} pixels, and one holds all of an image "
            f"of {facts.shape[1]} x {facts.shape[2]}: give a smaller `region`.",
        )

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images
    ) -> dict[str, Scores]:
        parts, count = squares(inputs, self.region)

        def sort() -> Ranks:
            sums = sum_of_parts(self.reduction(attributions), parts, count)
            return ranks_of_parts(sums, parts, randomness.keys(inputs, "ties"))

        question = ("ranks of squares", self.region, repr(self.reduction))
        ranks = once(question, model, attributions, target, sort)
        looks = [*first(range(min(self.steps, count) + 1)), (0, count)]
        said = seen(model, inputs, target, ranks, count, looks, self.removal, self.chunk)
        probability, logit = (aopc(said[name][:, :-1]) for name in ("probability", "logit"))
        fall = said["logit"][:, 0] - said["logit"][:, -1]
        scores = {"probability": probability, "logit": logit}
        scores["normalised"] = (logit / fall).where(fall != 0, math.nan)
        return {name: finite_only(column, attributions) for name, column in scores.items()}


class IROF(Removing):
    """Iterative removal of features: area over the target's relative probability while superpixels go.

    1 - int_0^1 p_c(x without the share s of its segments) / p_c(x) ds    by falling mean of A in a segment

    0 where nothing that goes matters, near 1 where the first segment takes the class away, below 0 where the
    class gains. A probability of 0 to begin with has no score.

    Args:
        segments: Segments per side of the image, at least 1; costs `segments`^2 + 1 forward passes, of which
            two are shared by all maps.
        rounds: Rounds in which segments grow from the cells of a grid to superpixels; 0 leaves the grid.
        compactness: Difference in colour, in pixels, that weighs as much as the side of a cell, above 0.
        removal: What is put in place of a pixel.
        reduction: Reads a map as one number per pixel.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: An argument lies outside its range.

    Source: Rieger and Hansen 2020, arXiv 2003.08747; Achanta et al. 2012 (superpixels).
    Deviates: superpixels are grown without CIELAB and without joining pieces; the mean is the image's own.
    """

    quantities: ClassVar = {"": Quantity("higher", (-math.inf, 1.0))}

    def __init__(
        self,
        segments: int = 7,
        rounds: int = 5,
        compactness: float = 0.1,
        removal: Removal = MEAN,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        require_at_least(1, segments=segments)
        require_at_least(0, rounds=rounds)
        require_positive(compactness=compactness)
        super().__init__(removal, reduction, chunk)
        self.segments, self.rounds, self.compactness = segments, rounds, compactness

    def score(self, model: nn.Module, inputs: Images, target: Labels, attributions: Images) -> Scores:
        settings = (self.segments, self.compactness, self.rounds)
        parts, count = once(
            ("superpixels", *settings), model, inputs, target, lambda: superpixels(inputs, *settings)
        )

        def sort() -> Ranks:
            values = mean_of_parts(self.reduction(attributions), parts, count)
            return ranks_of_parts(values, parts, randomness.keys(inputs, "ties"))

        question = ("ranks of superpixels", *settings, repr(self.reduction))
        ranks = once(question, model, attributions, target, sort)
        said = seen(model, inputs, target, ranks, count, first(range(count + 1)), self.removal, self.chunk)
        # A segment may hold no pixel.
        held = parts.new_zeros(len(parts), count).scatter(1, parts.flatten(1), 1).sum(dim=1)
        return finite_only(area_over(said["probability"], held), attributions)
