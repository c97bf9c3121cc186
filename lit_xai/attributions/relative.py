"""Relevance that is handed back layer by layer, each unit held against the others of its layer.

A decision is shared out over the units that made it, and every layer keeps the sum: what was given out beyond
it is taken back from all units alike, so that one that hardly counts ends below zero.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution, require_logits, require_one_of
from lit_xai.attributions.refusal import no_rule
from lit_xai.attributions.rules import divided
from lit_xai.attributions.score import Logit
from lit_xai.network import (
    Addition,
    Affine,
    Average,
    Concatenation,
    Convolution,
    MaxPool,
    Rearrangement,
    Rectifier,
    Scaling,
    Step,
    Tape,
    folded,
    record,
)
from lit_xai.types import Images, Labels, Scores

Size = Callable[[Tensor], Tensor]
Sharing = Literal["absolute", "released"]


@dataclass(frozen=True)
class RAP(Attribution):
    """The target logit, shared out by absolute influence and then held against the mean at every layer (RAP).

    last layer:   R_i = sum_j R_j |c_ij| / sum_i |c_ij|,    c_ij = w_ij x_i
    in between:   R_i = C_i - [C_i != 0] (sum C - sum R) / #{C != 0}
                  convolution:  C_i = sum_j p_ij R+_j / P_j + n_ij (R_j / (P_j + N_j) + R-_j / N_j)
                  linear:       C_i = sum_j p_ij R_j / P_j + n_ij R_j / (P_j + N_j)
    first layer:  R_i = sum_j q_ij R_j / sum_i q_ij,    q_ij = w+_ij (x_i - l) + w-_ij (x_i - h)

    R_j is the relevance of an output, R+ and R- are its parts, w+ and w- those of the weights; p_ij and n_ij
    are the sizes of the parts of c_ij, P_j and N_j their sums over i; biases play no part, and x / 0 is 0.
    l and h are the least and the greatest value of the image as it enters the layer.

    A layer with weights is a last one if the logits follow without another such layer (where convolution,
    ReLU and mean end the network, each place of the convolution has its share of the logit), and a first one
    if it reads the image; one that is both is a last one. Max-pooling hands relevance to the winner, averages
    and sums share it out as `addition` says, everything else passes it on.

    The map adds up to the logit, and turns over where that is negative: explain the predicted class.
    Relevance is lost where a layer has nothing to share it out over: an image of one grey has a map of zeros.
    Both signs grow with depth, to many thousand times the logit in an untrained ResNet-50 at 224 pixels; the
    sum then keeps three digits in single precision.

    Args:
        addition: How averages and sums y = sum_i x_i share out: "absolute" for R |x_i| / sum_i |x_i|, or
            "released" for R x_i / y, which has no bound where terms cancel. The two are the same where all
            terms have one sign.

    Raises:
        ValueError: `addition` is neither; the network has a layer without a rule.

    Source: Nam, Gur, Choi, Wolf and Lee 2019, arXiv 1904.00605; every rule by the released code.
    Deviates: inputs of both signs are treated at once, by the sign of c_ij; the release treats their parts
        one after the other, and doubles the relevance. `addition` is "absolute" unless asked for.
    """

    addition: Sharing = "absolute"

    def __post_init__(self) -> None:
        require_one_of(Sharing, addition=self.addition)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        with torch.no_grad():
            tape = record(model, inputs.detach())
            require_logits(tape.output, len(inputs))
            chosen = target[:, None]
            seed = torch.zeros_like(tape.output).scatter(1, chosen, tape.output.gather(1, chosen))
            first, last, unsigned = tape.unweighted, _deciding(tape), tape.never_negative
            size: Size = torch.abs if self.addition == "absolute" else torch.clone

            def rule(step: Step, relevance: Tensor) -> Sequence[Tensor]:
                if not isinstance(step.layer, Affine):
                    return handed_on(self, step, relevance, size)
                if id(step.output) in last:
                    influence = step.source.abs(), folded(step.layer).abs()
                    return (_shared_out(step.layer, relevance, influence),)
                if id(step.source) in first:
                    return (boxed(tape, step.layer, step.source, relevance),)
                return (_centred(step.layer, step.source, relevance, id(step.source) in unsigned),)

            return tape.walk([(tape.output, seed)], rule)

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The target logit."""
        with torch.no_grad():
            return Logit()(model(inputs), target)


def _centred(layer: Affine, source: Tensor, relevance: Tensor, unsigned: bool) -> Tensor:
    """The rule between the first layer and the last."""
    up, down = halves(folded(layer))
    # Each part of the source, with the weights by which it counts for a unit and against it.
    parts = [(source, up, down)]
    if not unsigned:
        above, below = halves(source)
        parts = [(above, up, down), (below, down, up)]
    backing = _added([layer.apply(part, helps) for part, helps, _ in parts])
    opposing = _added([layer.apply(part, harms) for part, _, harms in parts])
    strong, weak = relevance, divided(relevance, backing + opposing, 0)
    if isinstance(layer, Convolution):
        strong, negative = halves(relevance)
        weak = weak - divided(negative, opposing, 0)
    strong = divided(strong, backing, 0)
    found = [
        part * (layer.transpose(strong, part, helps) + layer.transpose(weak, part, harms))
        for part, helps, harms in parts
    ]
    return balanced(_added(found), relevance)


def boxed(tape: Tape, layer: Affine, source: Tensor, relevance: Tensor) -> Tensor:
    """The rule of the first layer: shares by what a weight makes of the way from one end of the range.

    What is the same for all images, such as padding that is a layer of its own, has no way to go.
    """
    black, white = (tape.replay(source, torch.full_like(tape.inputs, pixel)) for pixel in (0.0, 1.0))
    fixed, shape = black == white, (-1, *[1] * (source.ndim - 1))
    low = source.masked_fill(fixed, math.inf).flatten(1).amin(1).view(shape)
    high = source.masked_fill(fixed, -math.inf).flatten(1).amax(1).view(shape)
    above, below = (way.masked_fill(fixed, 0) for way in (source - low, high - source))
    up, down = halves(folded(layer))
    return _shared_out(layer, relevance, (above, up), (below, down))


def _shared_out(layer: Affine, relevance: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """sum_j x_i w_ij R_j / sum_i x_i w_ij, where sums run over pairs (x, w) of which none is negative."""
    share = divided(relevance, _added([layer.apply(part, weight) for part, weight in pairs]), 0)
    return _added([part * layer.transpose(share, part, weight) for part, weight in pairs])


def balanced(found: Tensor, relevance: Tensor) -> Tensor:
    """What was found, moved by one number wherever it is not zero, so that it adds up to the relevance."""
    excess = found.flatten(1).sum(1) - relevance.flatten(1).sum(1)
    there = found != 0
    shift = excess / there.flatten(1).sum(1).clamp(min=1)
    return found - there * shift.view(-1, *[1] * (found.ndim - 1))


def handed_on(method: Attribution, step: Step, relevance: Tensor, size: Size = torch.abs) -> Sequence[Tensor]:
    """The relevance of the sources of a layer without weights.

    Args:
        method: Whose rule it is.
        step: The layer.
        relevance: That of its output.
        size: What the shares in an average or a sum are proportional to.

    Raises:
        ValueError: There is no rule for the layer.
    """
    layer, sources = step.layer, step.sources
    match layer:
        case Scaling() | Rectifier():
            return (relevance,)
        case MaxPool() | Rearrangement():
            return layer.pull(relevance, *sources)
        case Concatenation():
            return torch.split(relevance, [source.shape[layer.dim] for source in sources], layer.dim)
        case Average():
            own = size(sources[0])
            return (own * layer.pull(divided(relevance, layer(own), 0), own)[0],)
        case Addition():
            left, right = size(sources[0]), size(sources[1])
            share = divided(relevance, left + right, 0)
            return left * share, right * share
    raise no_rule(method, step)


def halves(value: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes of the positive and of the negative part."""
    above = value.clamp(min=0)
    return above, above - value


def _deciding(tape: Tape) -> set[int]:
    """Ids of the outputs of the last layers with weights: the logits follow without another such layer."""
    late, found = {id(tape.output)}, set()
    for step in reversed(tape.steps):
        if id(step.output) in late and isinstance(step.layer, Affine):
            found.add(id(step.output))
        elif id(step.output) in late:
            late.update(id(source) for source in step.sources)
    return found


def _added(terms: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, terms)
