"""Stability: how far a map can be moved by a change of the image that nobody sees."""

import dataclasses
import math
from typing import ClassVar

from torch import nn

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.comparison import manipulated
from lit_xai.attributions.manipulation import Manipulation
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.types import Images, Labels, Scores


class Manipulability(Metric):
    """How alike the maps of an image and of its manipulated twin are, which has the same class.

    * ssim, spearman, overlap (of the top tenth of the pixels): similarity after the attack, 1 where it does
      nothing;
    * control_ssim, control_spearman, control_overlap: after the same changes of pixels, shuffled. What a map
      loses under these it loses by noise, not by intent;
    * slope: norm of the gradient that the attack began with. A map that stays while this is near 0 was not
      tried: it hides its gradient.

    Applies to methods that can be differentiated. It costs the steps of the attack times some 10 maps.

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
        scores = {name: getattr(seen.attacked, name) for name in ("ssim", "spearman", "overlap")}
        control = {f"control_{name}": getattr(seen.shuffled, name) for name in scores}
        return {**scores, **control, "slope": seen.slope.double()}
