"""Maps that ask the model what it says while parts of the image are hidden: forward passes only.

A part is a rectangle with all its channels; where it is hidden, a baseline image is seen. The value of a part
is divided evenly over its pixels and channels, so that a map adds up to the values of its parts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution, entering, keeping_graph, require_logits
from lit_xai.attributions.baselines import Baseline, FlatImage, settled
from lit_xai.attributions.packing import Rows
from lit_xai.attributions.path import begun
from lit_xai.attributions.score import Logit, Scored, named, settle
from lit_xai.types import Images, Labels, require, require_at_least

Spans = Float[Tensor, "span position"]  # ones among zeros
Parts = tuple[Float[Tensor, "down height"], Float[Tensor, "across width"]]  # each span with each
Hidden = Bool[Tensor, "row part"]
Looks = Callable[[Rows, Rows], Hidden]  # what is hidden, by the numbers of image and look
Answers = Float[Tensor, "batch look"]


@dataclass(frozen=True)
class Occlusion(Attribution):
    """Fall of the score when a window that slides over the image is hidden.

    (s(x) - s(x with W at b)) / |W|    averaged over the windows W that hold the pixel

    Args:
        window: Side of the square window in pixels, at least 1; one larger than the image hides all of it.
        stride: Pixels from one window to the next, from 1 to `window`. Windows at the far edges are cut off.
        baseline: What is seen in the window: the pixel value of a flat image, in [0, 1], 0 being black; or a
            `Baseline`, of which one image is drawn per image explained.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        chunk: Largest number of images in one pass of the model.

    Source: Zeiler and Fergus 2013, arXiv 1311.2901 (occlusion sensitivity).
    Deviates: the fall of the score, not the score that is left; windows that overlap are averaged.
    """

    window: int = 8
    stride: int = 4
    baseline: float | Baseline = field(default_factory=FlatImage)
    score: Scored = field(default_factory=Logit)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        require_at_least(1, window=self.window, stride=self.stride, chunk=self.chunk)
        require(
            self.stride <= self.window,
            f"`stride` must be at most `window`, {self.window}, got {self.stride}: else pixels are left out.",
        )

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        down, across = (_sliding(inputs, size, self.window, self.stride) for size in inputs.shape[2:])
        start = begun(self.baseline, inputs)
        return _one_by_one(model, start, inputs, target, self.score, (down, across), self.chunk)


@dataclass(frozen=True)
class FeatureAblation(Attribution):
    """Fall of the score when one segment of a grid is hidden.

    (s(x) - s(x with G at b)) / |G|    for the segment G that holds the pixel

    Where segments do not interact, the map adds up to s(x) - s(b).

    Args:
        segments: Segments per side of the image, at least 1: their sides differ by a pixel at most. An image
            with fewer pixels per side has a segment for each.
        baseline: What is seen in place of a segment: the pixel value of a flat image, in [0, 1], 0 being
            black; or a `Baseline`, of which one image is drawn per image explained.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        chunk: Largest number of images in one pass of the model.

    Source: Robnik-Sikonja and Kononenko 2008, "Explaining classifications for individual instances"
    (prediction difference).
    Deviates: what is hidden takes the value of one baseline; theirs is averaged over all that it could have.
    """

    segments: int = 7
    baseline: float | Baseline = field(default_factory=FlatImage)
    score: Scored = field(default_factory=Logit)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        require_at_least(1, segments=self.segments, chunk=self.chunk)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        parts, start = grid(inputs, self.segments), begun(self.baseline, inputs)
        return _one_by_one(model, start, inputs, target, self.score, parts, self.chunk)


def grid(inputs: Images, segments: int) -> Parts:
    """A partition of the images into as many spans per side as asked for, or as there are pixels."""

    def spans(size: int) -> Spans:
        count = min(segments, size)
        number = torch.arange(size, device=inputs.device) * count // size
        return (number == torch.arange(count, device=inputs.device)[:, None]).to(inputs.dtype)

    return spans(inputs.shape[2]), spans(inputs.shape[3])


def answers(
    model: nn.Module,
    start: Images,
    inputs: Images,
    target: Labels,
    score: Scored,
    parts: Parts,
    looks: int,
    hidden: Looks,
    chunk: int,
) -> Answers:
    """Score of every image under every look, with `start` where it is hidden, in double precision."""
    inputs = entering(inputs)
    values = []
    with torch.set_grad_enabled(keeping_graph()):
        for rows in torch.split(torch.arange(len(inputs) * looks, device=inputs.device), chunk):
            image, look = rows // looks, rows % looks
            gone = _painted(parts, hidden(image, look).to(inputs.dtype)) > 0.5
            logits = model(torch.where(gone, start[image], inputs[image]))
            require_logits(logits, len(rows))
            values.append(named(score)(logits, target[image]))
    return torch.cat(values).double().reshape(len(inputs), looks)


def spread(parts: Parts, values: Float[Tensor, "batch part"], like: Images) -> Images:
    """Divide the value of each part over its pixels and channels; where parts overlap, take the mean."""
    down, across = parts
    area = down.sum(1)[:, None] * across.sum(1)
    depth = down.sum(0)[:, None] * across.sum(0)
    maps = _painted(parts, values.to(like.dtype) / area.flatten()) / depth
    return maps.repeat(1, like.shape[1], 1, 1) / like.shape[1]


def _painted(parts: Parts, values: Float[Tensor, "row part"]) -> Float[Tensor, "row 1 height width"]:
    """The sum of the values of the parts that hold a pixel."""
    down, across = parts
    return down.T @ values.reshape(len(values), 1, len(down), len(across)) @ across


def _sliding(inputs: Images, size: int, window: int, stride: int) -> Spans:
    """Spans of `window` positions, `stride` apart; the last one ends at the edge or is cut off by it."""
    first = (
        torch.arange(1 + math.ceil(max(0, size - window) / stride), device=inputs.device)[:, None] * stride
    )
    position = torch.arange(size, device=inputs.device)
    return ((position >= first) & (position < first + window)).to(inputs.dtype)


def _one_by_one(
    model: nn.Module, start: Images, inputs: Images, target: Labels, score: Scored, parts: Parts, chunk: int
) -> Images:
    """The fall of the score when each part is hidden alone, divided over the part."""
    number = torch.arange(1, 1 + len(parts[0]) * len(parts[1]), device=inputs.device)

    def alone(_: Rows, look: Rows) -> Hidden:
        return look[:, None] == number  # the whole image is look 0

    seen = answers(model, start, inputs, target, score, parts, 1 + len(number), alone, chunk)
    return spread(parts, seen[:, :1] - seen[:, 1:], inputs)
