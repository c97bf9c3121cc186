"""Faithfulness by correlation: what a map claims of parts of an image, and what the class loses with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.baselines import Baseline, settled
from lit_xai.attributions.path import begun
from lit_xai.attributions.perturbation import grid
from lit_xai.attributions.similarity import pearson
from lit_xai.memory import once
from lit_xai.metrics.answers import Answers, Places, asked, dealt, everyone, own, told_apart
from lit_xai.metrics.base import Facts, Metric, Quantity, Reduction, Saliency, SignedSum
from lit_xai.metrics.removal import Looks
from lit_xai.metrics.shared import clean_logits, logit
from lit_xai.types import Images, Labels, Scores, require, require_at_least

Table = Bool[Tensor, "subset place"]

SIGNED = SignedSum()


@dataclass(frozen=True, eq=False)
class Ablation:
    """Subsets of the pixels of each image, and what the class loses when one of them is gone.

    Args:
        table: Which places are in a subset.
        places: The place of each pixel: images share the table, not the subsets.
        lost: f(x) - f(x with the subset at b), f the logit. NaN where it is the same for all subsets.
    """

    table: Table
    places: Places
    lost: Answers


def ablated(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    table: Table,
    places: Places,
    baseline: float | Baseline = 0.0,
    chunk: int = 64,
) -> Ablation:
    """What the class loses with each subset of the pixels; one forward pass per subset, and one of the image.

    Args:
        model: The network.
        inputs: Pixels.
        target: The class whose logit is followed.
        table: Which places are in a subset.
        places: The place of each pixel.
        baseline: What is seen in place of a pixel that is gone, with all its channels.
        chunk: Images that pass the model at once.
    """
    start, gone = begun(baseline, inputs), table.to(inputs.dtype)[:, None]
    side = inputs.shape[2:]

    def harmed(images: slice, some: slice) -> Looks:
        place, rows = places[images], gone[some]
        shape = (len(rows), *place.shape)
        hidden = rows.expand(shape).gather(2, place.expand(shape)).reshape(*shape[:2], 1, *side)
        return torch.lerp(inputs[images], start[images], hidden)  # exact at 0 and 1

    whole = clean_logits(model, inputs, target, chunk)
    left = asked(model, inputs, target, len(table), harmed, own, chunk).T.double()
    before = logit(whole, target).double()[:, None]
    size = torch.maximum(left.abs().amax(1), before.abs()[:, 0])
    return Ablation(table, places, before - told_apart(left, size, inputs.dtype))


def faithfulness_correlation(saliency: Saliency, ablation: Ablation) -> Scores:
    """Correlation of what a map claims of subsets of pixels with what the class loses, in double precision.

    corr_U(sum_{i in U} A_i, f(x) - f(x with U at b))

    NaN for a map that is not finite, and where either side is the same for all subsets, but for rounding.

    Args:
        saliency: One number per pixel, of either sign; its scale does not matter.
        ablation: The subsets U and what is lost with them.
    """
    values = saliency.flatten(1).double()
    laid = torch.zeros_like(values).scatter(1, ablation.places, values)
    claimed = told_apart(laid @ ablation.table.to(values).T, values.abs().sum(1), values.dtype)
    return pearson(claimed[:, None], ablation.lost[:, None])


def subsets(inputs: Images, samples: int, share: float) -> tuple[Table, Places]:
    """Random subsets of a share of the pixels, at least one of them and not all, different for each image."""
    pixels = math.prod(inputs.shape[2:])
    count = max(1, min(round(share * pixels), pixels - 1))
    draws = randomness.uniform(everyone(inputs), count, (samples, pixels), torch.float64)[0]
    return draws <= draws.kthvalue(count, dim=1, keepdim=True).values, dealt(inputs)


def patches(inputs: Images, segments: int) -> tuple[Table, Places]:
    """The segments of a grid, each alone, the same for all images."""
    down, across = grid(inputs, segments)
    table = torch.einsum("ih,jw->ijhw", down, across).flatten(2).flatten(0, 1) > 0.5
    return table, torch.arange(table.shape[1], device=inputs.device).expand(len(inputs), -1)


class FaithfulnessCorrelation(Metric):
    """Whether the pixels of random subsets are worth to the class what a map says they are.

    corr_U(sum_{i in U} A_i, f(x) - f(x with U at b)),    f = the logit of the target

    1 for a map that splits the effect of every subset over its pixels, as gradient times input does on a
    linear model; 0 on average for a map that knows nothing. It suits maps in units of the logit; a gradient
    alone is not. With K subsets one image's score has a standard error near (1 - r^2) / sqrt(K).

    What is lost does not depend on the map: it is computed once for all methods that are scored together.
    Subsets are those of the image, the same in each epoch.

    Args:
        samples: Subsets K per image, at least 3; costs K + 1 forward passes for all methods together.
        share: Share of the pixels in a subset, in (0, 1).
        baseline: What is seen in place of a pixel: the value of a flat image, in [0, 1], 0 being black; or a
            `Baseline`, of which one image is drawn per image scored.
        reduction: Reads a map as one number per pixel, which may be negative.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: An argument lies outside its range.

    Source: Bhatt, Weller and Moura 2020, arXiv 2005.00631, section 4 (faithfulness).
    """

    quantities: ClassVar = {"": Quantity("higher", (-1.0, 1.0))}

    def __init__(
        self,
        samples: int = 100,
        share: float = 0.1,
        baseline: float | Baseline = 0.0,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        require_at_least(3, samples=samples)
        require_at_least(1, chunk=chunk)
        require(0 < share < 1, f"`share` must lie in (0, 1), got {share!r}.")
        super().__init__()
        self.samples, self.share, self.baseline = samples, share, settled(baseline)
        self.reduction, self.chunk = reduction, chunk

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        _require_pixels(name, facts)

    def score(self, model: nn.Module, inputs: Images, target: Labels, attributions: Images) -> Scores:
        shared = _of_subsets(self, self.share, model, inputs, target)
        return faithfulness_correlation(self.reduction(attributions), shared)


class SensitivityN(Metric):
    """Whether random subsets are worth to the class what a map says they are, for several sizes of them.

    corr_U(sum_{i in U} A_i, f(x) - f(x with U at b)) over subsets U of n pixels, for each n on its own

    Small subsets ask for single pixels, large ones for the whole. The correlation is taken over the subsets
    of one image, so that a map may have another scale in another image. Quantities are called `at_<share>`;
    `mean` is their mean, for images that have all of them.

    Args:
        samples: Subsets per image and share, at least 3; costs `samples` forward passes per share and one
            more, for all methods together, and none where a `FaithfulnessCorrelation` has asked already.
        shares: Shares n / pixels, in (0, 1), told apart by four digits.
        baseline: What is seen in place of a pixel, as in `FaithfulnessCorrelation`.
        reduction: Reads a map as one number per pixel, which may be negative.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: An argument lies outside its range, there is no share, or two have the same name.

    Source: Ancona, Ceolini, Oztireli and Gross 2018, arXiv 1711.06104, section 3.1; sizes spaced evenly in
        logarithm, up to 80 %.
    Deviates: shares, not counts, so that the names do not depend on the size of the images.
    """

    def __init__(
        self,
        samples: int = 100,
        shares: Sequence[float] = (0.01, 0.03, 0.09, 0.27, 0.8),
        baseline: float | Baseline = 0.0,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        require_at_least(3, samples=samples)
        require_at_least(1, chunk=chunk)
        super().__init__()
        self.samples, self.baseline = samples, settled(baseline)
        self.shares, self.reduction, self.chunk = tuple(shares), reduction, chunk
        names = [f"at_{share:.4g}" for share in self.shares]
        require(len(names) > 0, "`shares` must hold at least one share, got none.")
        for share in self.shares:
            require(0 < share < 1, f"`shares` must lie in (0, 1), got {share!r}.")
        require(
            len(set(names)) == len(names),
            f"`shares` must differ in their first four digits, got {self.shares}.",
        )
        self.quantities = {name: Quantity("higher", (-1.0, 1.0)) for name in [*names, "mean"]}  # type: ignore[misc]

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        _require_pixels(name, facts)

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images
    ) -> dict[str, Scores]:
        saliency = self.reduction(attributions)
        columns = [
            faithfulness_correlation(saliency, _of_subsets(self, share, model, inputs, target))
            for share in self.shares
        ]
        return dict(zip(self.quantities, [*columns, torch.stack(columns).mean(0)], strict=True))


class FaithfulnessEstimate(Metric):
    """Whether the segments of a grid, each alone, are worth to the class what a map says they are.

    corr_G(sum_{i in G} A_i, f(x) - f(x with G at b)) over the segments G of a grid

    1 for `FeatureAblation` of the same segments. No random draw, and fewer passes than random subsets take;
    but parts that matter only together are not seen.

    Args:
        segments: Segments per side of the image, at least 2: their sides differ by a pixel at most. An image
            with fewer pixels per side has a segment for each. Costs `segments`^2 + 1 forward passes for all
            methods together.
        baseline: What is seen in place of a segment, as in `FaithfulnessCorrelation`.
        reduction: Reads a map as one number per pixel, which may be negative.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: An argument lies outside its range.

    Source: Alvarez-Melis and Jaakkola 2018, arXiv 1806.07538, section 5 (faithfulness).
    Deviates: segments in place of single features.
    """

    quantities: ClassVar = {"": Quantity("higher", (-1.0, 1.0))}

    def __init__(
        self,
        segments: int = 7,
        baseline: float | Baseline = 0.0,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        require_at_least(2, segments=segments)
        require_at_least(1, chunk=chunk)
        super().__init__()
        self.segments, self.baseline = segments, settled(baseline)
        self.reduction, self.chunk = reduction, chunk

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        _require_pixels(name, facts)

    def score(self, model: nn.Module, inputs: Images, target: Labels, attributions: Images) -> Scores:
        def ablate() -> Ablation:
            return ablated(model, inputs, target, *patches(inputs, self.segments), self.baseline, self.chunk)

        question = ("patches", self.segments, repr(self.baseline))
        return faithfulness_correlation(
            self.reduction(attributions), once(question, model, inputs, target, ablate)
        )


def _of_subsets(
    metric: FaithfulnessCorrelation | SensitivityN,
    share: float,
    model: nn.Module,
    inputs: Images,
    target: Labels,
) -> Ablation:
    """What the class loses with random subsets of a share of the pixels, once for all maps of a batch."""

    def ablate() -> Ablation:
        table, places = subsets(inputs, metric.samples, share)
        return ablated(model, inputs, target, table, places, metric.baseline, metric.chunk)

    question = ("subsets", metric.samples, share, repr(metric.baseline))
    return once(question, model, inputs, target, ablate)


def _require_pixels(name: str, facts: Facts) -> None:
    _, height, width = facts.shape
    require(
        height * width >= 3,
        f"`{name}` needs images of at least 3 pixels, got {height} x {width}: leave the metric out.",
    )
