"""Patterns: how much of a decision lies in which units are on."""

from typing import ClassVar

import torch
from torch import nn

from lit_xai import randomness
from lit_xai.attacks.losses import holds
from lit_xai.attributions.baselines import Baseline
from lit_xai.attributions.patterns import activation_pattern_only
from lit_xai.metrics.base import Facts, Metric, Quantity
from lit_xai.types import Images, Labels, Scores


class PatternOnlyAccuracy(Metric):
    """Share of images that a network classifies right when all it is told of them is which units are on.

    accuracy: of a surrogate image that takes the way of the image through all ReLUs and max pools. shuffled:
    the control, with as many units on, but not the same. Read both beside `CleanAccuracy`. Costs four forward
    passes.

    Args:
        surrogate: What is seen in place of the image: the pixel value of a flat one, or a `Baseline`, of
            which one is drawn per image.

    Source: Han, Kim and Kwak 2024, arXiv 2402.03348 (activation-pattern-only prediction).
    Deviates: the surrogates of the paper are not published; these, and the control, are ours.
    """

    quantities: ClassVar = {
        "accuracy": Quantity("higher", (0.0, 1.0)),
        "shuffled": Quantity(None, (0.0, 1.0)),
    }

    def __init__(self, surrogate: float | Baseline = 0.5) -> None:
        super().__init__()
        self.surrogate = surrogate

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        weight = next((tensor for tensor in facts.model.parameters() if tensor.is_floating_point()), None)
        black = torch.zeros(
            1, *facts.shape, device=facts.device, dtype=None if weight is None else weight.dtype
        )
        with randomness.keyed(0, torch.zeros(1, dtype=torch.int64, device=facts.device)):
            try:
                activation_pattern_only(facts.model, black, self.surrogate)
            except ValueError as error:
                raise ValueError(f"`{name}` cannot be had for this network: {error}") from None

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        def right(shuffled: bool) -> Scores:
            logits = activation_pattern_only(model, inputs, self.surrogate, shuffled=shuffled)
            return holds(logits, target).to(inputs.dtype)

        return {"accuracy": right(False), "shuffled": right(True)}
