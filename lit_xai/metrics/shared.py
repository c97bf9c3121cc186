"""What several metrics ask for about one batch, computed for the first of them.

All of it goes through `lit_xai.memory.once`: within `observe.explain` nothing here is computed twice.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution
from lit_xai.memory import once
from lit_xai.types import Images, Labels, Logits, Scores


def passed(model: nn.Module, images: Images, chunk: int) -> Logits:
    """Logits of many images, at most `chunk` of them in the model at once, without gradients."""
    with torch.no_grad():
        return torch.cat([model(part).to(images.dtype) for part in torch.split(images, chunk)])


def clean_logits(model: nn.Module, inputs: Images, target: Labels, chunk: int | None = None) -> Logits:
    """Logits of the images as they are, at most `chunk` of them in the model at once; all, where not set."""
    chunk = max(1, len(inputs)) if chunk is None else chunk
    return once("clean logits", model, inputs, target, partial(passed, model, inputs, chunk))


def maps_of(attribution: Attribution, model: nn.Module, inputs: Images, target: Labels) -> Images:
    """Maps of a method, those that were scored already if they are the same; without a graph."""
    return once(
        attribution, model, inputs, target, lambda: attribution(model, inputs, target).detach()
    ).detach()


def probability(logits: Logits, target: Labels) -> Scores:
    """Probability of the target."""
    return logits.softmax(dim=1).gather(1, target[:, None])[:, 0]


def logit(logits: Logits, target: Labels) -> Scores:
    """Logit of the target."""
    return logits.gather(1, target[:, None])[:, 0]


def finite_only(scores: Scores, attributions: Images | Float[Tensor, "batch height width"]) -> Scores:
    """The scores, NaN where a map is not finite."""
    return scores.where(attributions.flatten(1).isfinite().all(dim=1), torch.nan)
