"""The plain objective."""

import torch.nn.functional as F
from torch import nn

from lit_xai.objectives.base import Objective, Terms, Views
from lit_xai.types import Labels, require


class CrossEntropy(Objective):
    """Cross-entropy of the labels: the mean of -log softmax(f(x))_y.

    Args:
        label_smoothing: Share of the target spread evenly over all classes, from 0 to less than 1.

    Source: Szegedy et al. 2016, arXiv 1512.00567, section 7 (label smoothing).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        require(
            0 <= label_smoothing < 1,
            f"`label_smoothing` must be at least 0 and less than 1, got {label_smoothing!r}.",
        )
        super().__init__()
        self.label_smoothing = label_smoothing

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        (inputs,) = views
        loss = F.cross_entropy(model(inputs), target, label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}
