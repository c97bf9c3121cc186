"""Maps read from a hidden layer, where the network still knows places and already knows classes."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.attributions.base import Attribution, entering, keeping_graph, require_logits
from lit_xai.attributions.rectified import GuidedBackprop
from lit_xai.attributions.refusal import no_meaning
from lit_xai.attributions.score import Logit, Scored, named, settle
from lit_xai.types import Images, Labels, require

Places = Float[Tensor, "batch feature row column"]


@dataclass(frozen=True)
class GradCam(Attribution):
    """Activations of a late layer, weighted by the mean gradient of each of its channels (Grad-CAM).

    relu(sum_k a_k A_k),    a_k = mean over places of ds / dA_k

    A is the output as it left the layer, also where it is overwritten later; the last one with places, where
    a layer is called several times. The small map is enlarged to the image bilinearly. Where a mean over
    places and a linear layer follow, the small map before the ReLU adds up to the score without its bias.

    Args:
        layer: Name of a module with output (batch, channel, height, width), as in `model.named_modules()`; by
            default the one that `chosen` names, at the price of one more forward pass of one image.
        score: What is explained: `Logit()` or "logit", `Margin()` or "margin".
        relu: Whether negative evidence is set to 0.

    Raises:
        ValueError: The layer does not exist, is not called, has no places, or does not lead to the score; or
            the network has no layer to choose.

    Source: Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra 2016, arXiv 1610.02391, eq. 1 and 2.
    Deviates: not normalised; divided evenly over the channels of the image.
    """

    layer: str | None = None
    score: Scored = field(default_factory=Logit)
    relu: bool = True

    def __post_init__(self) -> None:
        settle(self)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        name = self.chosen(model, inputs)
        logits, activation = _read(model, name, inputs)
        require_logits(logits, len(inputs))
        with torch.enable_grad():
            total = named(self.score)(logits, target).sum()
        slopes = None
        if total.requires_grad:
            (slopes,) = torch.autograd.grad(
                total, activation, create_graph=keeping_graph(), allow_unused=True
            )
        if slopes is None:
            raise ValueError(f"`layer` must lead to the score, but {name!r} does not: name another, or none.")
        with torch.set_grad_enabled(keeping_graph()):
            heat = (slopes.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
            heat = F.interpolate(heat.relu() if self.relu else heat, inputs.shape[2:], mode="bilinear")
            maps: Images = heat.repeat(1, inputs.shape[1], 1, 1) / inputs.shape[1]
            return maps

    def chosen(self, model: nn.Module, inputs: Images) -> str:
        """Name of the layer that is read: the one asked for, or the last that still tells places apart.

        That is the last module to finish, after the first weights, whose output is (batch, channel, height,
        width) with more than one place.

        Args:
            model: The network.
            inputs: Images of the size in question; one of them is looked at.

        Raises:
            ValueError: There is no such layer; or the network goes on from it with tokens, or with channels
                behind the places, as transformers do.
        """
        if self.layer is None:
            return _last_with_places(model, inputs)
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        near = difflib.get_close_matches(self.layer, names, n=3, cutoff=0)
        require(
            self.layer in names,
            f"`layer` must name a module of the model, got {self.layer!r}; nearest are "
            f"{', '.join(map(repr, near)) or 'none: it has no modules'}.",
        )
        return self.layer


@dataclass(frozen=True)
class GuidedGradCam(Attribution):
    """Guided backpropagation times Grad-CAM: its detail, where the layer sees the class.

    GuidedBackprop(x) * relu(sum_k a_k A_k)

    Every channel of the one is multiplied by the sum over the channels of the other.

    Args:
        layer: Name of the layer that Grad-CAM reads, see `GradCam`.
        score: What is explained: `Logit()` or "logit", `Margin()` or "margin".

    Raises:
        ValueError: As for `GradCam` and `GuidedBackprop`.

    Source: Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra 2016, arXiv 1610.02391, section 3.2.
    """

    layer: str | None = None
    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        where = GradCam(self.layer, self.score).maps(model, inputs, target).sum(1, keepdim=True)
        return where * GuidedBackprop(score=self.score).maps(model, inputs, target)


def _read(model: nn.Module, name: str, inputs: Images) -> tuple[Tensor, Places]:
    """Logits, and the output of a layer to differentiate them by: the last one that has places."""
    seen: list[Tensor] = []
    other = "is not called"

    def keep(_: nn.Module, __: Any, output: Any) -> Tensor | None:
        nonlocal other
        if not _has_places(output):
            other = f"gives {tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}"
            return None
        seen[:] = [output if keeping_graph() else output.detach().requires_grad_()]
        return seen[0].clone()  # what follows may overwrite the copy, never what is read

    handle = model.get_submodule(name).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(entering(inputs).clone())
    finally:
        handle.remove()
    require(
        bool(seen),
        "`layer` must have an output (batch, channel, height, width) with more than one place, but "
        f"{name!r} {other}: name another, or none.",
    )
    return logits, seen[0]


def _last_with_places(model: nn.Module, inputs: Images) -> str:
    """Name of the last module, after the first weights, whose output has places, if no tokens follow."""
    last, tokens, weights = "", "", False

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, _: Any, output: Any) -> None:
            nonlocal last, tokens, weights
            weights = weights or next(module.parameters(recurse=False), None) is not None
            if _has_tokens(module, output):
                tokens = name
            elif _has_places(output) and weights:
                last, tokens = name, ""

        return note

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(inputs[:1].clone())
    finally:
        for handle in handles:
            handle.remove()
    if tokens or not last:
        why = f"{tokens!r} goes on with tokens after {last!r}" if last else "the network has none"
        raise no_meaning(GradCam(), f"needs a late layer with more than one place, but {why}")
    return last


def _has_places(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:] != (1, 1)


def _has_tokens(module: nn.Module, output: Any) -> bool:
    """Whether an output is a sequence of tokens, or an image whose channels stand behind the places."""
    if not isinstance(output, Tensor):
        return False
    if output.ndim == 3:
        return output.shape[1] > 1
    mixed = getattr(module, "out_features", None), *getattr(module, "normalized_shape", ())
    return output.ndim == 4 and output.shape[3] in mixed and output.shape[1] not in mixed
