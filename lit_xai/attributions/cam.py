"""Maps read from a hidden layer, where the network still knows places and already knows classes."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.attributions.base import Attribution, entering, keeping_graph, require_logits
from lit_xai.attributions.rectified import bent, rectified, through
from lit_xai.attributions.refusal import no_meaning
from lit_xai.attributions.score import Logit, Scored, named, settle
from lit_xai.network import Average, Layer, Linear, Rectifier, Step, Tape, Unknown, record
from lit_xai.types import Images, Labels, require


@dataclass(frozen=True)
class GradCam(Attribution):
    """Activations of a late layer, weighted by the mean gradient of each of its channels (Grad-CAM).

    relu(sum_k a_k A_k),    a_k = mean over places of ds / dA_k

    A is the output as it left the layer, also where it is overwritten later. The small map is enlarged to the
    image bilinearly. Where a mean over places and a linear layer follow, the small map before the ReLU adds
    up to the score without its bias.

    Args:
        layer: Name of a module with output (batch, channel, height, width), as in `model.named_modules()`:
            its last call, where there are several; by default the one that `chosen` names.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
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
        with torch.enable_grad():
            points = entering(inputs)
            tape = _watched(model, points if points.requires_grad else points.detach().requires_grad_())
            require_logits(tape.output, len(inputs))
            return self.seen(tape, target)

    def seen(self, tape: Tape, target: Labels) -> Images:
        """The maps of a network that has run with gradients."""
        name, activation = self._read(tape)
        score, graph, slopes = named(self.score)(tape.output, target).sum(), keeping_graph(), None
        if score.requires_grad and activation.requires_grad:
            (slopes,) = torch.autograd.grad(
                score, activation, retain_graph=True, create_graph=graph, allow_unused=True
            )
        if slopes is None:
            raise ValueError(f"`layer` must lead to the score, but {name!r} does not: name another, or none.")
        channels, *size = tape.inputs.shape[1:]
        with torch.set_grad_enabled(graph):
            heat = (slopes.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
            heat = F.interpolate(heat.relu() if self.relu else heat, size, mode="bilinear")
            return heat.repeat(1, channels, 1, 1) / channels

    @torch.no_grad()
    def chosen(self, model: nn.Module, inputs: Images) -> str:
        """Name of the layer that is read: the one asked for, or the last that still tells places apart.

        That is the module nearest to the logits, other than average pooling, whose output is (batch, channel,
        height, width) with more than one place and weights before it.

        Args:
            model: The network.
            inputs: Images of the size in question; one of them is looked at.

        Raises:
            ValueError: There is no such layer; or the network goes on from it with tokens, or with channels
                behind the places, as transformers do; or some of the image goes round it.
        """
        return self._read(_watched(model, inputs[:1]))[0]

    def _read(self, tape: Tape) -> tuple[str, Tensor]:
        """Name and output of the layer."""
        name, images = _late(tape) if self.layer is None else self.layer, len(tape.inputs)
        output = tape.value(name)
        require(
            _has_places(output, images),
            "`layer` must have an output (batch, channel, height, width) with more than one place, but "
            f"{name!r} gives {tuple(output.shape)} for a batch of {images}: name another, or none.",
        )
        return name, output


@dataclass(frozen=True)
class GuidedGradCam(Attribution):
    """Guided backpropagation times Grad-CAM: its detail, where the layer sees the class.

    GuidedBackprop(x) * relu(sum_k a_k A_k)

    Every channel of the one is multiplied by the sum over the channels of the other.

    Args:
        layer: Name of the layer that Grad-CAM reads, see `GradCam`.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.

    Raises:
        ValueError: As for `GradCam` and `GuidedBackprop`.

    Source: Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra 2016, arXiv 1610.02391, section 3.2.
    """

    layer: str | None = None
    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        guided = False  # one forward pass serves both: first for the gradient, then for the guided one

        def gate(layer: Rectifier, output: Tensor, gradient: Tensor) -> Tensor:
            passed = through(layer, output, gradient)
            return passed.relu_() if guided else passed

        def bend(layer: Layer, sources: tuple[Tensor, ...]) -> Tensor | None:
            return rectified(layer, sources, partial(gate, layer)) if isinstance(layer, Rectifier) else None

        with torch.enable_grad():
            points = inputs.detach().requires_grad_()
            tape = bent(self, model, points, bend)
            where = GradCam(self.layer, self.score).seen(tape, target).sum(1, keepdim=True)
            guided = True
            score = named(self.score)(tape.output, target).sum()
            return where * torch.autograd.grad(score, points)[0]


def _watched(model: nn.Module, points: Images) -> Tape:
    """What every module returns: batch norms are not folded into the layers before them."""
    return record(model, points, lambda layer, sources: None)


def _late(tape: Tape) -> str:
    """Name of the module nearest to the logits that tells places apart: all of the image goes through it."""
    names = {id(value): name for name, value in tape.modules.items()}  # of nested modules, the outermost
    needed, late, why = {id(tape.output)}, "", "the network has none"
    for step in reversed(tape.steps):
        value = id(step.output)
        if value not in needed:
            continue
        if not late and _works_on_tokens(step):
            why = f"it works on tokens (layer {step.name!r})"
            break
        told = value in names and value not in tape.unweighted and _has_places(step.output, len(tape.inputs))
        if told and not late and not isinstance(step.layer, Average):
            late = names[value]
        else:
            needed.update(map(id, step.sources))
    if late and id(tape.inputs) not in needed:
        return late
    if late:
        why = f"part of the image goes around {late!r}"
    raise no_meaning(GradCam(), f"needs one late layer with more than one place, but {why}")


def _has_places(output: Tensor, images: int) -> bool:
    return output.ndim == 4 and len(output) == images and output.shape[2:] != (1, 1)


def _works_on_tokens(step: Step) -> bool:
    """Whether channels stand behind places, as in a sequence of tokens."""
    mixes = isinstance(step.layer, Linear) or step.layer == Unknown("layer_norm")
    return mixes and step.output.shape[1:-1].numel() > 1
