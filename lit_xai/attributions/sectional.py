"""Relevance and hostility at a late layer, carried to the image by what was active together below it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.attributions.base import Attribution, require_logits
from lit_xai.attributions.refusal import no_rule
from lit_xai.attributions.relative import balanced, boxed, halves, handed_on
from lit_xai.attributions.rules import divided
from lit_xai.network import Affine, Convolution, Rectifier, Step, Tape, Unknown, record
from lit_xai.types import Images, Labels, Scores, require


@dataclass(frozen=True)
class RSP(Attribution):
    """Grad-CAM with both its signs, carried down to the pixels by what was active together (RSP).

    start:       R = A a / max(A a),    a_k = mean over places of df / dA_k
    in between:  C = x G+^T (R+ / Z+) - x G-^T (R- / Z-),    G = corr(x, R),    Z = G * x
                 R = C for a kernel of 1 x 1, else 2 C - [C != 0] (2 sum C - sum R) / #{C != 0}
    first:       as in `RAP`, at the convolutions that read the image

    A is the output of the last ReLU with places, f the target logit; R+ and R- are the sizes of the parts of
    R. G stands in for the weights and has their shape: it is the gradient of <R, W * x> for W. x / 0 is 0.
    Everything else is as in `RAP`.

    The weights between the first convolution and A play no part. The map knows of the class only what A and
    its slopes know, and of those weights only what was active: expect it to outlive their randomisation.

    The map adds up to the sum of the start. Where a kernel of 1 x 1 read zeros alone, the relevance of what
    it made of them is lost; wider kernels make up for such a loss.

    Raises:
        ValueError: The network has no ReLU with places, or a layer without a rule.

    Source: Nam, Choi and Lee 2020, arXiv 2012.03434; every rule by the released code, for a single label.
    Deviates: each image has its own G, where the release adds up those of the batch; the shift keeps the sum
        of R, where the release takes it that C has; where A a has no positive entry, it is divided by its
        greatest size. The release runs on VGG alone, and what follows is added to it: averages, sums,
        concatenations, groups (each a convolution by itself), inputs of both signs (each part channels by
        itself).
    """

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        with torch.no_grad():
            trunk, start = self._begun(model, inputs, target)
            first, unsigned = trunk.unweighted, trunk.never_negative

            def rule(step: Step, relevance: Tensor) -> Sequence[Tensor]:
                if not isinstance(step.layer, Convolution):
                    return handed_on(self, step, relevance)
                if id(step.source) in first:
                    return (boxed(trunk, step.layer, step.source, relevance),)
                found = _found(step.layer, step.source, relevance, id(step.source) in unsigned)
                wide = step.layer.raw.shape[2:] != (1, 1)
                return (balanced(2 * found, relevance) if wide else found,)

            return trunk.walk([(trunk.output, start)], rule)

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """Sum of the start."""
        with torch.no_grad():
            return self._begun(model, inputs, target)[1].flatten(1).sum(1)

    def _begun(self, model: nn.Module, inputs: Images, target: Labels) -> tuple[Tape, Tensor]:
        """The network up to its last ReLU with places, and the relevance there."""
        tape = record(model, inputs.detach())
        require_logits(tape.output, len(inputs))
        ends = [number for number, step in enumerate(tape.steps, 1) if _has_places(step)]
        require(
            bool(ends),
            "`RSP` starts at the last ReLU with output (batch, channel, height, width), and this network has "
            "none: take a method that needs only gradients, such as `Saliency`, `IntegratedGradients` or "
            "`SmoothGrad`.",
        )
        below, above = tape.steps[: ends[-1]], tape.steps[ends[-1] :]
        top = below[-1].output
        seed = torch.zeros_like(tape.output).scatter(1, target[:, None], 1)
        slopes = Tape(top, tape.output, above, {}).walk([(tape.output, seed)], self._gradient)
        start = top * slopes.mean((2, 3), keepdim=True)
        low, high = (bound[:, None, None, None] for bound in start.flatten(1).aminmax(dim=1))
        return Tape(tape.inputs, top, below, {}), divided(start, torch.where(high > 0, high, -low), 0)

    def _gradient(self, step: Step, message: Tensor) -> Sequence[Tensor]:
        """The gradient for the sources of a step above the start."""
        if isinstance(step.layer, Unknown):
            raise no_rule(self, step)
        if isinstance(step.layer, Affine):
            return step.layer.pull(message, step.source)
        return step.layer.pull(message, *step.sources)


def _has_places(step: Step) -> bool:
    return isinstance(step.layer, Rectifier) and step.output.ndim == 4


def _found(layer: Convolution, source: Tensor, relevance: Tensor, unsigned: bool) -> Tensor:
    """C, with each group of each image as a group of one convolution."""
    if not len(source):
        return source
    groups = len(source) * layer.groups
    read = source.reshape(groups, -1, *source.shape[2:])
    if not unsigned:
        read = torch.cat(halves(read), 1)
    given = torch.cat(halves(relevance.reshape(groups, -1, *relevance.shape[2:])), 1)
    outputs, places, window = given.shape[1], given[0, 0].numel(), read.shape[1] * layer.raw[0, 0].numel()
    few = places * (2 * window + 2 * outputs) < 3 * outputs * window
    found = read * (_by_places if few else _by_weights)(layer, read, given)
    if not unsigned:
        above, below = found.chunk(2, 1)
        found = above + below
    return found.reshape(source.shape)


def _by_weights(layer: Convolution, read: Tensor, given: Tensor) -> Tensor:
    """G^T (R / Z), by way of G: three convolutions."""
    layer = dataclasses.replace(layer, groups=len(read))
    x, r = read.flatten(0, 1)[None], given.flatten(0, 1)[None]
    weight = x.new_empty(r.shape[1], read.shape[1], *layer.raw.shape[2:])
    _, kernel, _ = torch.ops.aten.convolution_backward(
        r, x, weight, None, layer.stride, layer.padding, layer.dilation,
        False, (0, 0), layer.groups, (False, True, False),
    )  # fmt: skip
    share = _shared(given, layer.apply(x, kernel).reshape_as(given))
    return layer.transpose(share.reshape_as(r), x, kernel).reshape_as(read)


def _by_places(layer: Convolution, read: Tensor, given: Tensor) -> Tensor:
    """The same with the products in another order, G = R x^T and Z = R (x^T x): cheap for few places."""
    shape = layer.raw.shape[2:], layer.dilation, layer.padding, layer.stride
    x, r = F.unfold(read, *shape), given.flatten(2)
    share = _shared(r, r @ (x.mT @ x))
    return F.fold(x @ (r.mT @ share), read.shape[2:], *shape)


def _shared(given: Tensor, found: Tensor) -> Tensor:
    """R+ / Z+ and -R- / Z-, one after the other."""
    friendly, hostile = divided(given, found, 0).chunk(2, 1)
    return torch.cat([friendly, -hostile], 1)
