"""Maps that add up gradients along the way to another class."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Int, Int8
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attacks.norms import L2, Linf, Norm
from lit_xai.attributions.base import Attribution, require_logits, require_one_of
from lit_xai.attributions.packing import Maps, Rows, packed_sum
from lit_xai.attributions.path import rise
from lit_xai.attributions.score import Probability, Scored, named, settle
from lit_xai.memory import once
from lit_xai.types import (
    Epsilon,
    Images,
    Keys,
    Labels,
    Logits,
    Scores,
    require,
    require_at_least,
    require_positive,
)

Path = Literal["released", "accumulate"]
Mode = Literal["sharp", "smooth"]
Taken = Literal["exact", "released"]
Classes = Int[Tensor, "batch slot"]
Signs = Int8[Tensor, "slot batch channel height width"]

_STEPS: dict[str, tuple[Norm, float]] = {"sharp": (L2(), 0.1), "smooth": (Linf(), 0.001)}


@dataclass(frozen=True)
class AdversarialGradientIntegration(Attribution):
    """Gradient of the score, added up along the ways on which other classes win (AGI).

    -sum_i sum_k grad s_c(z_k) * (z_{k+1} - o_k),
    z_0 = x,    z_{k+1} = clip(o_k + epsilon sign(grad s_i(z_k)))

    i runs over false classes, drawn for each image; a way ends when its class is predicted, or after `steps`
    steps. The origin o_k of a step is

    * `released`: x at every step, as the authors' code has it: no way but a fixed-point iteration in the cube
      of radius `epsilon`, whose increments are all measured from x;
    * `accumulate`: z_k, the integral that the paper describes; each way adds up to the fall of s_c on it, up
      to an error of first order in `epsilon`.

    All ways of an image begin with one forward pass in common, and one gradient for each class; each later
    step of a way costs one forward pass and two gradients. A way that has ended leaves the batch: one host
    sync per step, for the passes it saves.

    Args:
        path: Where a step starts from.
        epsilon: Length of a step in every pixel, in pixel units, above 0.
        steps: Steps per false class at most, at least 1.
        classes: False classes per image, at least 1; all of them, if the model has fewer.
        score: What is explained, and what rises for a false class: `Logit()`, `Margin()` or `Probability()`,
            or its name.
        chunk: Largest number of images in one pass of the model.

    Raises:
        ValueError: The model has only one class.

    Source: Pan, Li and Zhu 2021, "Explaining deep neural network models with adversarial gradient
    integration", IJCAI, algorithms 1 and 2, and the authors' code.
    Deviates: explains `target`, not the class predicted. False classes are drawn for each image, and never
    the target; the released code draws them once for all images, and evaluates the softmax of a softmax.
    """

    path: Path = "released"
    epsilon: Epsilon = 0.05
    steps: int = 20
    classes: int = 20
    score: Scored = field(default_factory=Probability)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        require_one_of(Path, path=self.path)
        require_positive(epsilon=self.epsilon)
        require_at_least(1, steps=self.steps, classes=self.classes, chunk=self.chunk)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        own = randomness.keys(inputs, "adversarial_gradient_integration")
        blocks = zip(*(torch.split(part, self.chunk) for part in (inputs, target, own)), strict=True)
        return torch.cat([self._all_ways(model, *block) for block in blocks])

    def _all_ways(self, model: nn.Module, inputs: Images, target: Labels, own: Keys) -> Images:
        """The maps of a block of images that fits one pass."""
        false, first, slope, uphill = self._fork(model, inputs, target, own)

        def way(image: Rows, slot: Rows) -> Maps:
            start, label, wanted = inputs[image], target[image], false[image, slot]
            points, total = start, torch.zeros_like(start)
            index = torch.arange(len(start), device=start.device)
            seen, fall, rise = first[image], slope[image], uphill[slot, image].to(start.dtype)
            for step in range(self.steps):
                if step:
                    points, logits = _record(model, points)
                    seen = logits.detach().argmax(1)
                    fall = _slope(self.score, points, logits, label, again=True)
                    rise = _slope(self.score, points, logits, wanted).sign()
                    points = points.detach()
                going = seen != wanted
                if not going.all():
                    kept = (part[going] for part in (index, start, label, wanted, points, fall, rise))
                    index, start, label, wanted, points, fall, rise = kept
                    if not len(index):
                        break
                origin = start if self.path == "released" else points
                points = (origin + self.epsilon * rise).clamp(0, 1)
                total.index_add_(0, index, fall * (origin - points))
            return total

        return packed_sum(way, inputs.new_ones(false.shape[1]), inputs, self.chunk)

    def _fork(
        self, model: nn.Module, inputs: Images, target: Labels, own: Keys
    ) -> tuple[Classes, Labels, Images, Signs]:
        """False classes, class predicted, gradient of the target, and signs of those of the false classes."""
        points, logits = _record(model, inputs)
        false = self._false(own, target, logits.shape[1])
        slope = _slope(self.score, points, logits, target, again=True)
        # Signs take a byte: they are kept for all ways of the block at once.
        signs = [_slope(self.score, points, logits, way, again=True).sign().to(torch.int8) for way in false.T]
        return false, logits.detach().argmax(1), slope, torch.stack(signs)

    def _false(self, own: Keys, target: Labels, classes: int) -> Classes:
        """Classes other than the target, evenly drawn without replacement, in ascending order."""
        require(classes > 1, f"a false class needs at least 2 classes, got a model with {classes}.")
        lots = randomness.bits(own, 0, (classes,)).scatter(1, target[:, None], torch.iinfo(torch.int64).max)
        return lots.argsort(dim=1)[:, : min(self.classes, classes - 1)].sort(dim=1).values


@dataclass(frozen=True)
class MFABA(Attribution):
    """Gradient of the score, added up along the steepest way down until another class is predicted.

    -sum_k grad s(x_k) * (x_{k+1} - x_k),    x_0 = x,

    * `sharp`: x_{k+1} = clip(x_k - step_size g / ||g||_2), g = grad s(x_k);
    * `smooth`: x_{k+1} = clip(x + project(x_k - step_size sign(g) - x)), onto the cube of radius `epsilon`.

    The map adds up to `total`, up to an error of first order in `step_size`. Each image stops by itself, when
    after a step its class is another, and leaves the batch: one host sync per step, for the passes it saves.
    Costs `steps` gradients per image at most.

    Args:
        mode: How a step is taken.
        steps: Steps at most, at least 1.
        step_size: Length of a step in pixel units, in l2 for `sharp` and per pixel for `smooth`, above 0; by
            default 0.1 and 0.001.
        epsilon: How far `smooth` may take a pixel, in pixel units, above 0; `sharp` has no bound but the box.
        gradient: `exact`, or `released`: at every step the sum of all gradients so far takes the place of the
            gradient, as in the authors' code, which does not clear it. The map then adds up to nothing known.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        chunk: Largest number of images in one pass of the model.

    Source: Zhu et al. 2024, arXiv 2312.13630 (MFABA), and the authors' code.
    Deviates: the formula is followed; the released code forgets its sum of gradients whenever any image
    leaves the batch, so that a map depends on the company of its image. A point without gradient stays.
    """

    mode: Mode = "sharp"
    steps: int = 50
    step_size: Epsilon | None = None
    epsilon: Epsilon = 0.3
    gradient: Taken = "exact"
    score: Scored = field(default_factory=Probability)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        require_one_of(Mode, mode=self.mode)
        require_one_of(Taken, gradient=self.gradient)
        require_at_least(1, steps=self.steps, chunk=self.chunk)
        require_positive(epsilon=self.epsilon)
        if self.step_size is not None:
            require_positive(step_size=self.step_size)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return self._descent(model, inputs, target)[0]

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """What the map adds up to, but for the error of the steps: s(x) - s(x_K), at the end of the way.

        Inside `remembering()`, the way is that of the map.
        """
        ends = self._descent(model, inputs, target)[1]
        return rise(model, ends, inputs, target, self.score, self.chunk)

    def _descent(self, model: nn.Module, inputs: Images, target: Labels) -> tuple[Images, Images]:
        question = ("descent", self)  # the map alone is asked for under the method's own name
        return once(question, model, inputs, target, lambda: self._descend(model, inputs.detach(), target))

    def _descend(self, model: nn.Module, inputs: Images, target: Labels) -> tuple[Images, Images]:
        """The maps, and where the ways end."""
        total, ends, start, points = torch.zeros_like(inputs), inputs.clone(), inputs, inputs
        index, summed = torch.arange(len(inputs), device=inputs.device), torch.zeros_like(inputs)
        for step in range(self.steps):
            seen, slope = self._look(model, points, target)
            going = seen == target
            if step and not going.all():
                ends[index] = points
                kept = (part[going] for part in (index, start, target, points, slope, summed))
                index, start, target, points, slope, summed = kept
                if not len(index):
                    break
            if self.gradient == "released":
                slope = summed = summed + slope
            moved = self._step(start, points, slope)
            total.index_add_(0, index, slope * (points - moved))
            points = moved
        ends[index] = points
        return total, ends

    def _look(self, model: nn.Module, points: Images, target: Labels) -> tuple[Labels, Images]:
        """Class predicted and gradient of the score, in passes of at most `chunk` images."""
        seen, slopes = [], []
        for some, own in zip(torch.split(points, self.chunk), torch.split(target, self.chunk), strict=True):
            some, logits = _record(model, some)
            seen.append(logits.detach().argmax(1))
            slopes.append(_slope(self.score, some, logits, own))
        return torch.cat(seen), torch.cat(slopes)

    def _step(self, start: Images, points: Images, slope: Images) -> Images:
        norm, size = _STEPS[self.mode]
        moved = points - (size if self.step_size is None else self.step_size) * norm.steepest(slope)
        if self.mode == "smooth":
            moved = start + norm.project(moved - start, self.epsilon)
        return moved.clamp(0, 1)


def _record(model: nn.Module, points: Images) -> tuple[Images, Logits]:
    """A forward pass from which gradients can be taken."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = model(points)
        require_logits(logits, len(points))
        return points, logits


def _slope(score: Scored, points: Images, logits: Logits, classes: Labels, again: bool = False) -> Images:
    """Gradient of the score at recorded points; `again` keeps the record for another one."""
    with torch.enable_grad():
        total = named(score)(logits, classes).sum()
    return torch.autograd.grad(total, points, retain_graph=again)[0]
