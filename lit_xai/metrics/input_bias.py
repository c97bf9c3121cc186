"""Input bias: what a map cannot highlight because of its colour.

A map that is multiplied by its input, or by the difference to a baseline, is zero where that factor is zero,
whatever the network makes of the place. The metrics here paint a patch in a colour and look at the map in it,
or compare the map with the brightness of the image.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.similarity import spearman
from lit_xai.memory import once
from lit_xai.metrics.base import AbsoluteSum, Facts, Metric, Quantity
from lit_xai.metrics.shared import finite_only
from lit_xai.types import Images, Keys, Labels, Masks, Scores, require, require_at_least

Colour = float | tuple[float, ...]
Curves = Float[Tensor, "batch level"]
SIZE = AbsoluteSum()


def patches(inputs: Images, keys: Keys, share: float) -> Masks:
    """The pixels of one rectangle per image, in the proportions of the image, at a random place inside of it.

    Args:
        inputs: The images, for their size.
        keys: One per image; equal keys give equal places.
        share: Share of the pixels, in (0, 1], up to whole pixels and at least one.
    """
    place = randomness.uniform(keys, 0, (2,), torch.float64)
    inside = []
    for axis, size in enumerate(inputs.shape[2:]):
        length = min(size, max(1, round(size * math.sqrt(share))))
        start = (place[:, axis, None] * (size - length + 1)).long()
        at = torch.arange(size, device=inputs.device)
        inside.append((at >= start) & (at < start + length))
    return inside[0][:, :, None] & inside[1][:, None, :]


def painted(inputs: Images, where: Masks, colour: Colour) -> Images:
    """The images with these pixels in one colour.

    Args:
        inputs: The images.
        where: The pixels.
        colour: In the unit of the images; one number, or one per channel.
    """
    values = colour if isinstance(colour, tuple) else (colour,)
    return torch.where(where[:, None], inputs.new_tensor(values)[:, None, None], inputs)


def highlight(attributions: Images, where: Masks) -> Scores:
    """How much of a map lies on some pixels, relative to how many they are, in double precision.

    (sum_{p in B} a_p / sum_p a_p) / (|B| / n),    a_p = sum_c |A_cp|

    0 where the map is blind to them, 1 where they are as any others. NaN for a map that is zero or not
    finite, and where there are no such pixels.
    """
    size = SIZE(attributions.double()).flatten(1)
    chosen = where.flatten(1)
    inside = (size * chosen).sum(1) / size.sum(1)
    return finite_only(inside / chosen.double().mean(1), attributions)


def blank(attributions: Images, where: Masks) -> Scores:
    """1 for a map that is exactly zero on these pixels and not elsewhere, 0 for one that is not, in double.

    NaN for a map that is zero or not finite: that it is zero there says nothing.
    """
    size = SIZE(attributions).double().flatten(1)
    inside = (size * where.flatten(1)).amax(1)
    return finite_only((inside == 0).double().where(size.amax(1) > 0, math.nan), attributions)


def dark_share(attributions: Images, inputs: Images) -> Scores:
    """How much of a map lies on the pixels that are darker than the mean of the image: `highlight` of them.

    The brightness of a pixel is the sum of |x| over its channels. NaN also for an image of one brightness.
    """
    brightness = SIZE(inputs.double())
    largest = brightness.amax((1, 2), keepdim=True)  # which a mean of equal values may miss by a digit
    return highlight(attributions, brightness < brightness.mean((1, 2), keepdim=True).minimum(largest))


def colour_curve(
    method: Attribution, model: nn.Module, inputs: Images, target: Labels, where: Masks, levels: list[float]
) -> Curves:
    """Mean of |A| on some pixels when they are painted in one grey after the other, in double precision.

    a_k = mean_{p in B} sum_c |A(x_k)_cp|,    x_k = x, painted in the grey level k on B

    NaN where a map is not finite. One map per image and level.

    Args:
        method: Makes the maps.
        model: The network.
        inputs: The images.
        target: The class that is explained throughout.
        where: The pixels B, at least one per image.
        levels: Pixel values, in the unit of the images.
    """
    points = []
    for level in levels:
        images = _painted(model, inputs, target, where, level)
        size = SIZE(method(model, images, target).detach().double())
        inside = (size * where).sum((1, 2)) / where.sum((1, 2))
        points.append(finite_only(inside, size))
    return torch.stack(points, dim=1)


def v_shape(curves: Curves, levels: list[float]) -> dict[str, Scores]:
    """Where a curve is lowest, and how deep it falls from its ends.

    minimum = the level k with the smallest a_k,    depth = 1 - a_k / ((a_1 + a_K) / 2)

    Depth lies in [0, 1], and is 1 for a curve that reaches zero. NaN where a value is not finite, or both
    ends are zero; for the minimum also where the curve is flat.

    Args:
        curves: One value per level, 0 or more.
        levels: Pixel values, ascending.
    """
    curves = curves.double()
    lowest, place = curves.min(dim=1)
    minimum = curves.new_tensor(levels)[place]
    depth = 1 - lowest / ((curves[:, 0] + curves[:, -1]) / 2)
    valid = curves.isfinite().all(1) & depth.isfinite()
    sloped = valid & (curves.amax(1) > lowest)
    return {"minimum": minimum.where(sloped, math.nan), "depth": depth.where(valid, math.nan)}


class BlindColour(Metric):
    """Whether a map can highlight a patch painted in the colour that it may be blind to.

    * highlight: share of |A| in the patch, by its share of the pixels: 0 for a blind map, 1 for one that sees
      the patch as any other place. That is no aim: a plain patch is mostly irrelevant. Hence
    * contrast: the same where the same patch is painted in another colour;
    * exactly_zero: share of the maps that are zero in the patch to the last bit, and not elsewhere.

    A blind map has highlight 0 and exactly_zero 1, and a contrast above 0. The patch is a rectangle at a
    random place, the same in each epoch. Maps multiplied by pixels are blind to black; `IntegratedGradients`
    and `DeepLift` to the colour of their baseline; `LRP`, which multiplies by what enters the first layer, to
    the colour that the normalisation makes zero. It costs two maps per image. The class stays that of the
    image as it is: boundary maps are missing where the paint hides it.

    Args:
        colour: What the patch is painted in: a pixel value in [0, 1], or one per channel.
        other: The same for `contrast`.
        share: Share of the pixels that are painted, in (0, 1).

    Raises:
        ValueError: An argument lies outside its range, or the colours are the same.

    Source: Brocki and Chung 2020, arXiv 2011.05002 (dark regions are not highlighted by maps that are
        multiplied by their input).
    Deviates: the source gives no such number; the patch, its share and the contrast are ours.
    """

    quantities: ClassVar = {
        "highlight": Quantity(None, (0.0, math.inf)),
        "contrast": Quantity(None, (0.0, math.inf)),
        "exactly_zero": Quantity("lower", (0.0, 1.0)),
    }

    def __init__(self, colour: Colour = 0.0, other: Colour = 0.5, share: float = 0.25) -> None:
        super().__init__()
        self.colour, self.other, self.share = _settled("colour", colour), _settled("other", other), share
        require(self.colour != self.other, f"`other` must differ from `colour`, got {other!r} for both.")
        _require_share(share)

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        for colour in (self.colour, self.other):
            channels = len(colour) if isinstance(colour, tuple) else 1
            require(
                channels in (1, facts.shape[0]),
                f"`{name}` must have colours of one value, or one per channel, got {channels} values for "
                f"images of {facts.shape[0]} channels.",
            )

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attribution: Attribution
    ) -> dict[str, Scores]:
        where = _where(model, inputs, target, self.share)
        blind, seen = (
            attribution(model, _painted(model, inputs, target, where, colour), target).detach()
            for colour in (self.colour, self.other)
        )
        return {
            "highlight": highlight(blind, where),
            "contrast": highlight(seen, where),
            "exactly_zero": blank(blind, where),
        }


class Polarity(Metric):
    """How much a map follows the brightness of the image it explains.

    * spearman: rank correlation of |x| and |A| over the pixels: near 1 for a map that redraws the image;
    * dark: share of |A| on the pixels darker than the mean of the image, by their share: 1 where brightness
      plays no part, 0 for a map that is blind to what is dark.

    |x| and |A| are sums over channels. Neither number has a good side by itself: where the object is bright,
    a good map is bright there too. They tell bias when they move with the polarity of the data, or differ
    between a method with and without the factor. It costs no pass.

    Source: Brocki and Chung 2020, arXiv 2011.05002 (attributions that follow brightness).
    Deviates: the source gives no such number.
    """

    quantities: ClassVar = {"spearman": Quantity(None, (-1.0, 1.0)), "dark": Quantity(None, (0.0, math.inf))}

    def score(self, inputs: Images, attributions: Images) -> dict[str, Scores]:
        rank = spearman(SIZE(inputs), SIZE(attributions))
        return {"spearman": rank, "dark": dark_share(attributions, inputs)}


class ColourSweep(Metric):
    """How the size of a map in a patch changes while the patch goes from black to white.

    * minimum: the grey level with the least |A| in the patch, median;
    * depth: how far the curve falls from the mean of its ends to its minimum, relative to that mean: 1 for a
      map that is zero at some level, its blind colour.

    The curve of a map that is multiplied by its input, or by its difference to a baseline, is a V with its
    tip at the blind colour; other maps change with the image, not with the factor. It costs `steps` maps per
    image.

    Args:
        steps: Grey levels, from 0 to 1, at least 2.
        share: Share of the pixels that are painted, in (0, 1).

    Raises:
        ValueError: An argument lies outside its range.

    Source: Brocki and Chung 2020, arXiv 2011.05002 (with inputs scaled otherwise, the blind colour lies
        elsewhere in the range).
    Deviates: the source gives no such number.
    """

    quantities: ClassVar = {
        "minimum": Quantity(None, (0.0, 1.0), median=True),
        "depth": Quantity("lower", (0.0, 1.0)),
    }

    def __init__(self, steps: int = 9, share: float = 0.25) -> None:
        super().__init__()
        require_at_least(2, steps=steps)
        _require_share(share)
        self.steps, self.share = steps, share

    @property
    def levels(self) -> list[float]:
        """The grey levels of the patch."""
        return [step / (self.steps - 1) for step in range(self.steps)]

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attribution: Attribution
    ) -> dict[str, Scores]:
        where = _where(model, inputs, target, self.share)
        return v_shape(colour_curve(attribution, model, inputs, target, where, self.levels), self.levels)


def _where(model: nn.Module, inputs: Images, target: Labels, share: float) -> Masks:
    """The patches of a batch, the same for all metrics that paint as much."""

    def draw() -> Masks:
        return patches(inputs, randomness.keys(inputs, "painted patch"), share)

    return once(("painted patches", share), model, inputs, target, draw)


def _painted(model: nn.Module, inputs: Images, target: Labels, where: Masks, colour: Colour) -> Images:
    """The images with these pixels in one colour: the same tensor for all, so that searches are shared."""

    def paint() -> tuple[Images, Masks]:
        return painted(inputs, where, colour), where  # kept as well, so that its place is not given away

    return once(("painted", repr(colour), where.data_ptr()), model, inputs, target, paint)[0]


def _settled(name: str, colour: Colour) -> Colour:
    """The colour, as floats."""
    values = colour if isinstance(colour, float | int) else tuple(colour)
    several = (values,) if isinstance(values, float | int) else values
    for value in several:
        require(0 <= value <= 1, f"`{name}` must lie in [0, 1], got {value!r}: pixels are not normalised.")
    require(len(several) > 0, f"`{name}` must have a value, got none.")
    return float(values) if isinstance(values, float | int) else tuple(map(float, values))


def _require_share(share: float) -> None:
    require(0 < share < 1, f"`share` must lie between 0 and 1, got {share!r}.")
