"""Stability: how far a map is moved by a change of the image that nobody sees, made on purpose."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lit_xai.attacks.base import Attack
from lit_xai.attacks.losses import holds
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.comparison import manipulated
from lit_xai.attributions.manipulation import Manipulation
from lit_xai.memory import once
from lit_xai.metrics.base import Metric, Quantity, Reduction
from lit_xai.metrics.robustness import neighbours
from lit_xai.metrics.sensitivity import ABSOLUTE, alike, check_reading
from lit_xai.metrics.shared import clean_logits, maps_of
from lit_xai.types import Flags, Images, Labels, Scores, require_at_least


@dataclass(frozen=True, eq=False)
class Approach:
    """How far an attack on the decision can go before the decision changes.

    Args:
        points: The last points found with the class of the image, on the straight way to the attack's answer.
        reach: Where they are on that way: 0 at the image, 1 at the answer.
        kept: Whether the answer itself has the class of the image.
    """

    points: Images
    reach: Scores
    kept: Flags


def approach(attack: Attack, halvings: int, model: nn.Module, inputs: Images, target: Labels) -> Approach:
    """Go towards an attack's answer as far as the class of the image is kept: the answer, or bisection.

    Ball and box are convex, so that the points lie in both. Costs the attack, 1 + `halvings` forward passes,
    and one for the class of the image; done once for all methods and metrics that ask.

    Args:
        attack: Moves away from `target`.
        halvings: Steps of the bisection, 0 or more; with none, an answer of another class is not followed.
        model: The network.
        inputs: The images.
        target: Their classes.
    """

    def search() -> Approach:
        answer = neighbours(attack, model, inputs, target)
        predicted = clean_logits(model, inputs, target).argmax(dim=1)

        def at(reach: Scores) -> Images:
            return torch.lerp(inputs, answer, reach[:, None, None, None])

        def keeps(reach: Scores) -> Flags:
            with torch.no_grad():
                return holds(model(at(reach)).to(inputs.dtype), predicted)

        low, high = inputs.new_zeros(len(inputs)), inputs.new_ones(len(inputs))
        kept = keeps(high)
        low = torch.where(kept, high, low)
        for _ in range(halvings):  # goes on beside images that are done: passes of one shape, no host sync
            middle = (low + high) / 2
            inside = keeps(middle)
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return Approach(at(low), low, kept)

    return once(("approach", repr(attack), halvings), model, inputs, target, search)


class AttackedStability(Metric):
    """How alike the maps of an image and of its attacked twin are, the attack being one on the decision.

    The twin is the last point with the class of the image on the way to the attack's answer, see `approach`:
    the answer itself, or a point just before the boundary.

    * overlap, spearman, ssim: see `alike`; where the twin is the image itself there is no score;
    * kept: share of answers that have the class of the image. The lower it is, the closer are the twins:
      models are to be compared at equal `reach`, or with `halvings=0` on the images that are kept;
    * reach: how much of the way was gone.

    An attack on the decision is no attack on the map: see `Manipulability`.

    Args:
        attack: Moves away from the target's class; shared with `RobustAccuracy` and others of the same.
        halvings: Steps of the bisection, 0 or more, each one forward pass. With none, an image whose class
            the attack changes has no score.
        share: How many of the pixels count as most salient, in (0, 1].
        window: Side of the windows of SSIM in pixels, odd and at least 3; less where images are smaller.
        reduction: Reads a map as one number per pixel.

    Source: Ghorbani, Abid and Zou 2019, arXiv 1710.10547, section 2 (top-k intersection, rank correlation);
        Chen, Wu, Rastogi, Liang and Jha 2019, arXiv 1905.09957 (in the ball that a model was trained for).
    Deviates: the attack is one on the decision; the class is kept by bisection.
    """

    quantities: ClassVar = {
        "overlap": Quantity("higher", (0.0, 1.0)),
        "spearman": Quantity("higher", (-1.0, 1.0)),
        "ssim": Quantity("higher", (-1.0, 1.0)),
        "kept": Quantity(None, (0.0, 1.0)),
        "reach": Quantity(None, (0.0, 1.0)),
    }

    def __init__(
        self,
        attack: Attack,
        halvings: int = 6,
        share: float = 0.1,
        window: int = 7,
        reduction: Reduction = ABSOLUTE,
    ) -> None:
        require_at_least(0, halvings=halvings)
        check_reading(share, window)
        super().__init__()
        self.attack, self.halvings, self.share = attack, halvings, share
        self.window, self.reduction = window, reduction

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: Attribution,
    ) -> dict[str, Scores]:
        twin = approach(self.attack, self.halvings, model, inputs, target)
        maps = maps_of(attribution, model, twin.points, target)
        scores = alike(attributions, maps[None], self.reduction, self.share, self.window)
        moved = (twin.points != inputs).flatten(1).any(dim=1)
        scores = {name: column.where(moved, math.nan) for name, column in scores.items()}
        return {**scores, "kept": twin.kept.double(), "reach": twin.reach.double()}


class Manipulability(Metric):
    """How alike the maps of an image and of its manipulated twin are, which has the same class.

    * ssim, spearman, overlap (of the top tenth of the pixels): similarity after the attack, 1 where it does
      nothing;
    * control_ssim, control_spearman, control_overlap: after the same changes of pixels, shuffled. What a map
      loses under these it loses by noise, not by intent;
    * slope: norm of the gradient that the attack began with. A map that stays while this is near 0 was not
      tried: it hides its gradient.

    A map that is zero, or the same everywhere, has no ranking and no score. Applies to methods that can be
    differentiated. It costs the steps of the attack times some 10 maps.

    Args:
        attack: Moves the map; its `method` is replaced by the one that is scored.

    Source: Ghorbani, Abid and Zou 2019, arXiv 1710.10547 (rank correlation, top-k intersection); Dombrowski
        et al. 2019, arXiv 1906.07983 (SSIM).
    Deviates: the control, and the slope.
    """

    quantities: ClassVar = {
        "ssim": Quantity("higher", (-1.0, 1.0)),
        "spearman": Quantity("higher", (-1.0, 1.0)),
        "overlap": Quantity("higher", (0.0, 1.0)),
        "control_ssim": Quantity("higher", (-1.0, 1.0)),
        "control_spearman": Quantity("higher", (-1.0, 1.0)),
        "control_overlap": Quantity("higher", (0.0, 1.0)),
        "slope": Quantity(None, (0.0, math.inf), median=True),
    }

    def __init__(self, attack: Manipulation) -> None:
        super().__init__()
        self.attack = attack

    def applies(self, attribution: Attribution) -> bool:
        return attribution.differentiable

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attribution: Attribution
    ) -> dict[str, Scores]:
        seen = manipulated(dataclasses.replace(self.attack, method=attribution), model, inputs, target)
        pairs = {"": seen.attacked, "control_": seen.shuffled}
        scores = {
            head + name: getattr(pair, name).where(~pair.spearman.isnan(), math.nan)
            for head, pair in pairs.items()
            for name in ("ssim", "spearman", "overlap")
        }
        return {**scores, "slope": seen.slope.double()}
