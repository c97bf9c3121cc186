"""Faithfulness: what happens to a class's probability when the pixels that a map ranks first go, or come."""

import abc
import itertools
import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.memory import remembering
from lit_xai.metrics.base import Facts, Metric, Quantity, Reduction, SignedSum
from lit_xai.metrics.imputation import LinearImputation
from lit_xai.metrics.looks import Curves, Ranks, area, first, last, levels, ranks_of, seen
from lit_xai.metrics.removal import Blur, Constant, Removal
from lit_xai.metrics.shared import finite_only
from lit_xai.types import Images, Labels, Scores, require, require_at_least

BLACK = Constant(0.0)
BLURRED = Blur()
IMPUTED = LinearImputation()
SIGNED = SignedSum()
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def removal_curves(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    ranks: Ranks,
    removal: Removal,
    start: Removal,
    steps: int,
    chunk: int,
) -> tuple[Float[Tensor, " look"], Curves, Curves]:
    """Probability of the target while the pixels ranked first are removed, and while they are revealed.

    x_k = b where rank < k, else x (deletion); x where rank < k, else b' (insertion). Costs 2 steps + 1
    forward passes: the unharmed image, where one curve starts and the other ends, is looked at once.

    Args:
        model: The network.
        inputs: Pixels.
        target: The class whose probability is followed.
        ranks: 0 for the pixel that goes, or comes, first.
        removal: Makes b, what deletion puts in place of a pixel.
        start: Makes b', what insertion starts from.
        steps: Steps from all to nothing; at most one per pixel is made.
        chunk: Images that pass the model at once.

    Returns:
        Share of pixels at each point, the deletion curve and the insertion curve.
    """
    pixels = math.prod(inputs.shape[2:])
    counts = levels(pixels, steps)
    with remembering():  # the unharmed image
        down = seen(model, inputs, target, ranks, pixels, first(counts), removal, chunk)
        up = seen(model, inputs, target, ranks, pixels, [(count, pixels) for count in counts], start, chunk)
    return inputs.new_tensor(counts) / pixels, down["probability"], up["probability"]


def gain_curves(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    ranks: Ranks,
    removal: Removal,
    steps: int,
    chunk: int,
) -> tuple[Float[Tensor, " look"], Curves, Curves]:
    """Probability of the target while the pixels ranked first are removed, and while those ranked last are.

    Costs 2 steps forward passes: both curves start at the unharmed image, and end where all is gone.

    Args:
        model: The network.
        inputs: Pixels.
        target: The class whose probability is followed.
        ranks: 0 for the pixel that matters most.
        removal: What is put in place of a pixel.
        steps: Steps from all to nothing; at most one per pixel is made.
        chunk: Images that pass the model at once.

    Returns:
        Share of pixels at each point, the curve of most and that of least relevant first.
    """
    pixels = math.prod(inputs.shape[2:])
    counts = levels(pixels, steps)
    looks = first(counts) + last(counts, pixels)
    both = seen(model, inputs, target, ranks, pixels, looks, removal, chunk)["probability"]
    most, least = both.tensor_split(2, dim=1)
    return inputs.new_tensor(counts) / pixels, most, least


def decisions(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    ranks: Ranks,
    removal: Removal,
    shares: tuple[float, ...],
    chunk: int,
) -> tuple[Curves, Curves]:
    """Whether the model still decides for the target, 1 or 0, without a share of the pixels.

    Costs 2 forward passes for each share.

    Args:
        model: The network.
        inputs: Pixels.
        target: The class that is looked for.
        ranks: 0 for the pixel that matters most.
        removal: What is put in place of a pixel.
        shares: Shares of the pixels that are gone, in (0, 1).
        chunk: Images that pass the model at once.

    Returns:
        Without those ranked first, and without those ranked last, by share.
    """
    pixels = math.prod(inputs.shape[2:])
    counts = [round(pixels * share) for share in shares]
    looks = first(counts) + last(counts, pixels)
    both = seen(model, inputs, target, ranks, pixels, looks, removal, chunk)["decided"]
    most, least = both.tensor_split(2, dim=1)
    return most, least


class Removing(Metric, abc.ABC):
    """A metric that removes pixels in the order of a map and asks the model what it says of the rest.

    A pixel goes with all its channels. Ties are broken at random, per sample, the same way in all epochs. A
    map that is not finite has no score; one that is zero is ranked at random.
    """

    def __init__(self, removal: Removal, reduction: Reduction, chunk: int) -> None:
        require_at_least(1, chunk=chunk)
        super().__init__()
        self.removal, self.reduction, self.chunk = removal, reduction, chunk

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        for removal in self.operators:
            require(
                removal.channels in (None, facts.shape[0]),
                f"`{name}` removes pixels by {removal}, and images have {facts.shape[0]} channels: give as "
                "many values, or a single one.",
            )

    @property
    def operators(self) -> tuple[Removal, ...]:
        """All that it removes pixels by."""
        return (self.removal,)


class Perturbation(Removing):
    """Deletion and insertion: the target's mean probability while a map's first pixels go, or come.

    deletion = int_0^1 p_c(x with the first share s removed) ds; insertion = int_0^1 p_c(blurred x with the
    first share s revealed) ds; difference = insertion - deletion. All three come from one ranking and one
    look at the unharmed image.

    The values follow a model's confidence: read them beside those of a random map (`RandomMap`).

    Args:
        steps: Steps from the whole image to nothing, at least 1; costs 2 `steps` + 1 forward passes.
        removal: What deletion puts in place of a pixel.
        start: What insertion starts from.
        reduction: Reads a map as one number per pixel. The signed sum suits maps whose sign says for or
            against the class; `AbsoluteSum` those where it does not.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: `steps` or `chunk` is below 1.

    Source: Petsiuk et al. 2018, arXiv 1806.07421; the difference: Li et al. 2023, arXiv 2301.06989.
    Deviates: trapezoids over the share of pixels; ties in random instead of raster order.
    """

    quantities: ClassVar = {
        "deletion": Quantity("lower", (0.0, 1.0)),
        "insertion": Quantity("higher", (0.0, 1.0)),
        "difference": Quantity("higher", (-1.0, 1.0)),
    }

    def __init__(
        self,
        steps: int = 14,
        removal: Removal = BLACK,
        start: Removal = BLURRED,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        require_at_least(1, steps=steps)
        super().__init__(removal, reduction, chunk)
        self.steps, self.start = steps, start

    @property
    def operators(self) -> tuple[Removal, ...]:
        return self.removal, self.start

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images
    ) -> dict[str, Scores]:
        ranks = ranks_of(attributions, self.reduction, model, inputs, target)
        shares, down, up = removal_curves(
            model, inputs, target, ranks, self.removal, self.start, self.steps, self.chunk
        )
        deletion = finite_only(area(shares, down), attributions)
        insertion = finite_only(area(shares, up), attributions)
        return {"deletion": deletion, "insertion": insertion, "difference": insertion - deletion}


class SRG(Removing):
    """Symmetric relevance gain, or area between perturbation curves (ABPC): what the ranking is worth.

    gain = int_0^1 p_c(x without the share s ranked last) - p_c(x without the share s ranked first) ds

    `most` and `least` are the two areas: least relevant pixels first should leave the class, most relevant
    first should take it away. Both ask the operator for the same shares, so most of what the operator itself
    does to the model cancels. A map that says nothing has gain 0 in expectation; -A has the gain of A with
    the other sign, where no values are equal. `relative` is the gain over p_c(x), summed up by its median:
    between models of different confidence it compares better.

    Args:
        steps: Steps from the whole image to nothing, at least 1; costs 2 `steps` forward passes, of which two
            are shared by all maps.
        removal: What is put in place of a pixel.
        reduction: Reads a map as one number per pixel.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: `steps` or `chunk` is below 1.

    Source: Blücher, Vielhaben and Strodthoff 2024, arXiv 2401.06654 (symmetric relevance gain).
    Deviates: trapezoids over the share of pixels; `relative`.
    """

    quantities: ClassVar = {
        "gain": Quantity("higher", (-1.0, 1.0)),
        "relative": Quantity("higher", median=True),
        "most": Quantity("lower", (0.0, 1.0)),
        "least": Quantity("higher", (0.0, 1.0)),
    }

    def __init__(
        self,
        steps: int = 20,
        removal: Removal = IMPUTED,
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
        shares, first_gone, last_gone = gain_curves(
            model, inputs, target, ranks, self.removal, self.steps, self.chunk
        )
        most, least = (finite_only(area(shares, curve), attributions) for curve in (first_gone, last_gone))
        gain, clean = least - most, first_gone[:, 0]
        relative = (gain / clean).where(clean > 0, math.nan)
        return {"gain": gain, "relative": relative, "most": most, "least": least}


class ROAD(Removing):
    """Remove and debias: accuracy that is left when shares of the pixels are imputed from the others.

    most, least = mean over `shares` of 1[argmax z(x without the share s ranked first, or last) = c]
    difference  = least - most

    One sample has one of few values: it takes hundreds of images to tell two methods apart. Coarse, blurry
    maps do well whatever they know (arXiv 2304.13836).

    Args:
        shares: Shares of the pixels that are gone, in (0, 1), rising; costs 2 forward passes for each, none
            for those that an `SRG` with the same operator looks at too.
        removal: What is put in place of a pixel.
        reduction: Reads a map as one number per pixel.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: `shares` are none, not rising or outside (0, 1), or `chunk` is below 1.

    Source: Rong et al. 2022, arXiv 2202.00449.
    Deviates: both orders and their difference, averaged over the shares.
    """

    quantities: ClassVar = {
        "difference": Quantity("higher", (-1.0, 1.0)),
        "most": Quantity("lower", (0.0, 1.0)),
        "least": Quantity("higher", (0.0, 1.0)),
    }

    def __init__(
        self,
        shares: tuple[float, ...] = TENTHS,
        removal: Removal = IMPUTED,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        super().__init__(removal, reduction, chunk)
        self.shares = tuple(shares)
        require(len(self.shares) > 0, "`shares` must hold at least one share of the pixels, got none.")
        bounds = (0.0, *self.shares, 1.0)
        require(
            all(low < high for low, high in itertools.pairwise(bounds)),
            f"`shares` must rise and lie in (0, 1), got {self.shares}.",
        )

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images
    ) -> dict[str, Scores]:
        ranks = ranks_of(attributions, self.reduction, model, inputs, target)
        curves = decisions(model, inputs, target, ranks, self.removal, self.shares, self.chunk)
        most, least = (finite_only(curve.mean(dim=1), attributions) for curve in curves)
        return {"difference": least - most, "most": most, "least": least}
