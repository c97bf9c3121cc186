"""What a change of the image did to its explanation, beside what it did to the image and to the decision."""

from dataclasses import dataclass

import torch
from torch import nn

from lit_xai import randomness
from lit_xai.attacks.norms import L2, Linf
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.manipulation import Manipulation
from lit_xai.attributions.score import Logit, gradient
from lit_xai.attributions.similarity import overlap, pearson, shares, spearman, ssim
from lit_xai.types import Flags, Images, Labels, Scores


@dataclass(frozen=True)
class Comparison:
    """Two images, and the maps of both for one class: one number per pair.

    Args:
        ssim: Structural similarity of the maps.
        spearman: Rank correlation of the maps.
        pearson: Correlation of the maps.
        overlap: Share of the pixels with most relevance that are among them in both maps.
        logits: l2 distance of the logits.
        kept: Whether the predicted class is the same.
        linf: Largest change of a pixel.
        l2: Length of the change.
        slope_before: l2 norm of the gradient of the class's logit at the first image.
        slope_after: The same at the second: a network that hides its gradient has none.
    """

    ssim: Scores
    spearman: Scores
    pearson: Scores
    overlap: Scores
    logits: Scores
    kept: Flags
    linf: Scores
    l2: Scores
    slope_before: Scores
    slope_after: Scores


@dataclass(frozen=True)
class Manipulated:
    """What an attack on explanations did, beside the same changes of pixels at random.

    Args:
        points: The images that the attack returned.
        control: The images with the same changes, shuffled.
        attacked: What the attack did.
        shuffled: What the control did.
        before: What the attack lowers, at the image.
        after: The same at the points of the attack.
        after_control: The same at those of the control.
        slope: l2 norm of the gradient that the attack began with. Zero: nothing was tried.
        slope_relu: The same without softening. Far smaller: who attacks the network as it is sees a method
            that only seems robust.
    """

    points: Images
    control: Images
    attacked: Comparison
    shuffled: Comparison
    before: Scores
    after: Scores
    after_control: Scores
    slope: Scores
    slope_relu: Scores


def manipulated(attack: Manipulation, model: nn.Module, inputs: Images, target: Labels) -> Manipulated:
    """Attack the explanations of a batch, and say what it did to them, per image.

    Maps that draw are compared under draws that the attack has not seen, the same before and after.
    """
    with randomness.keyed(0, randomness.keys(inputs, "manipulated")):
        points = attack(model, inputs, target)
        control = shuffled(inputs, points)
        first = attack.betas[0] if attack.betas else None
        return Manipulated(
            points,
            control,
            compared(attack.method, model, inputs, points, target),
            compared(attack.method, model, inputs, control, target),
            attack.value(model, inputs, inputs, target),
            attack.value(model, inputs, points, target),
            attack.value(model, inputs, control, target),
            attack.slope(model, inputs, target, first),
            attack.slope(model, inputs, target, None),
        )


def compared(
    method: Attribution,
    model: nn.Module,
    inputs: Images,
    points: Images,
    target: Labels,
    share: float = 0.1,
    window: int = 7,
) -> Comparison:
    """Compare the maps of two images for one class, read as shares of the pixels.

    Args:
        method: Makes the maps; what it draws is the same for both images.
        model: The network.
        inputs: The first images.
        points: The second images.
        target: The class explained in both.
        share: For the overlap, how many of the pixels count as those with most relevance.
        window: For SSIM, the side of its windows in pixels.
    """
    with randomness.keyed(0, randomness.keys(inputs, "compared")):
        before, after = (shares(method(model, images, target)) for images in (inputs, points))
    with torch.no_grad():
        first, second = model(inputs), model(points)
    slopes = [gradient(Logit(), model, images, target) for images in (inputs, points)]
    return Comparison(
        ssim(before, after, window),
        spearman(before, after),
        pearson(before, after),
        overlap(before, after, share),
        torch.linalg.vector_norm(second - first, dim=1),
        first.argmax(1) == second.argmax(1),
        Linf().length(points - inputs),
        L2().length(points - inputs),
        *(L2().length(slope) for slope in slopes),
    )


def shuffled(inputs: Images, points: Images) -> Images:
    """The same changes at other pixels with random signs: as long in every norm, and without a purpose.

    A change that would leave the box has the other sign; one that would do so either way, as only one of more
    than 1/2 can, is cut.
    """
    keys = randomness.keys(inputs, "shuffled")
    change = (points - inputs).flatten(1)
    order = randomness.uniform(keys, 0, change.shape[1:], torch.float64).argsort(1)
    sign = randomness.uniform(keys, 1, change.shape[1:], inputs.dtype).sub(0.5).sign()
    moved = (change.gather(1, order).abs() * sign).view_as(inputs)
    outside = (inputs + moved < 0) | (inputs + moved > 1)
    return (inputs + torch.where(outside, -moved, moved)).clamp(0, 1)
