"""Layer-wise relevance propagation: a score, carried back to the pixels by a rule for every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution, check, entering, keeping_graph, require_logits
from lit_xai.attributions.refusal import no_rule
from lit_xai.attributions.rules import AlphaBeta, Epsilon, Flat, Gamma, Junction, Rule, ZBox, ZPlus, divided
from lit_xai.attributions.score import Logit
from lit_xai.network import (
    Addition,
    Average,
    Concatenation,
    Convolution,
    Linear,
    MaxPool,
    Rearrangement,
    Rectifier,
    Scaling,
    Step,
    Tape,
    record,
)
from lit_xai.types import Images, Labels, Logits, Scores, require


@dataclass(frozen=True)
class LRP(Attribution):
    """Target logit, shared out layer by layer down to the pixels (layer-wise relevance propagation).

    R_i = sum_j R_(i <- j),    sum_i R_(i <- j) = R_j less the share of the bias,    R at the top = f_c(x)

    Convolutions (with the batch norm behind them) and linear layers have the rules given. Activations and
    normalisations pass relevance on as it is, a max-pool to the winner, a mean and a sum to their terms in
    proportion. `rules` returns what is done in a network, layer by layer. The combinations in the literature
    have names: see `COMPOSITES`.

    Args:
        convolution: Rule of convolutions.
        linear: Rule of linear layers.
        first: Rule of what reads the images with no other weights before it; by default, as for any layer.
        bias: "absorb" lets the biases take their shares of the relevance, as the methods are published;
            "ignore" leaves them out, and the map adds up to the logit, as far as the rules conserve at all.
            `Epsilon` and `Gamma` then divide by sums that may be near zero where the output is not: in deep
            networks with batch norm the map can become a sum of huge terms that cancel.

    Raises:
        ValueError: The network makes a call that no rule is known for.

    Source: Bach, Binder, Montavon, Klauschen, Mueller and Samek 2015, "On pixel-wise explanations for
    non-linear classifier decisions by layer-wise relevance propagation", eq. 2 and 58; the default rules:
    Kohlbrenner et al. 2019, arXiv 1910.09840.
    """

    convolution: Rule = field(default_factory=ZPlus)
    linear: Rule = field(default_factory=Epsilon)
    first: Rule | None = None
    bias: Literal["absorb", "ignore"] = "absorb"

    def __post_init__(self) -> None:
        require(self.bias in ("absorb", "ignore"), f"`bias` must be 'absorb' or 'ignore', got {self.bias!r}.")
        for name in ("convolution", "linear"):
            require(
                not isinstance(getattr(self, name), ZBox),
                f"`{name}` must be a rule without bounds, got {getattr(self, name)!r}: give it as `first`.",
            )

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return self._walk(model, inputs, target)

    @torch.no_grad()
    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The logit of the target: what the map adds up to where no relevance is lost."""
        logits = model(inputs)
        require_logits(logits, len(inputs))
        return Logit()(logits, target)

    def rules(self, model: nn.Module, inputs: Images, target: Labels) -> "RuleTable":
        """What is done at every layer, and the relevance that arrives there: a table to print.

        Raises:
            ValueError: As for the map itself.
        """
        check(model, inputs, target)
        rows: list[RuledLayer] = []
        maps = self._walk(model, inputs, target, rows)
        return RuleTable((RuledLayer("", "images", "", float(maps.detach().sum())), *reversed(rows)))

    def _walk(
        self, model: nn.Module, inputs: Images, target: Labels, notes: list["RuledLayer"] | None = None
    ) -> Images:
        """The maps; with `notes`, what was done at every layer is added to them."""

        def shared(step: Step, relevance: Tensor) -> Sequence[Tensor]:
            layer, source = step.layer, step.source
            how: Rule | str
            if isinstance(layer, Convolution | Linear):
                early, positive = id(source) in tape.unweighted, id(source) in tape.never_negative
                seen = partial(_seen, tape, source) if early else None
                how = self.convolution if isinstance(layer, Convolution) else self.linear
                how = self.first if early and self.first is not None else how
                junction = Junction(layer, source, step.output, self.bias == "absorb", positive, seen)
                parts: Sequence[Tensor] = (how(junction, relevance),)
            else:
                how, parts = _elsewhere(self, step, relevance)
            if notes is not None:
                norm = isinstance(layer, Convolution | Linear) and layer.factor is not None
                kind = type(layer).__name__ + " + norm" * norm
                notes.append(RuledLayer(step.name, kind, str(how), float(relevance.detach().sum())))
            return parts

        with torch.set_grad_enabled(keeping_graph()):
            tape = record(model, entering(inputs))
            require_logits(tape.output, len(inputs))
            return tape.walk([(tape.output, _chosen(tape.output, target))], shared)


COMPOSITES: Mapping[str, LRP] = MappingProxyType(
    {
        "epsilon_plus": LRP(),
        "epsilon_plus_flat": LRP(first=Flat()),
        "epsilon_alpha2_beta1": LRP(convolution=AlphaBeta()),
        "epsilon_alpha2_beta1_flat": LRP(convolution=AlphaBeta(), first=Flat()),
        "epsilon_gamma_box": LRP(convolution=Gamma(), first=ZBox()),
    }
)


@dataclass(frozen=True)
class RuledLayer:
    """What LRP did at one layer.

    Args:
        name: The step of the network.
        kind: What sort of layer it is, with "+ norm" where a batch norm is part of it.
        rule: How relevance is shared among what the layer read.
        relevance: Sum of the relevance that arrived at its output, over the batch.
    """

    name: str
    kind: str
    rule: str
    relevance: float


@dataclass(frozen=True)
class RuleTable:
    """What LRP did at every layer, from the images to the logits; prints as a table."""

    layers: tuple[RuledLayer, ...]

    def __str__(self) -> str:
        cells = [("layer", "kind", "rule", "relevance")]
        cells += [(row.name, row.kind, row.rule, f"{row.relevance:.6g}") for row in self.layers]
        wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
        pad = [f"{{:{width}}}" for width in wide[:3]] + [f"{{:>{wide[3]}}}"]
        return "\n".join("  ".join(pad).format(*row) for row in cells)


def _chosen(logits: Logits, target: Labels) -> Logits:
    """The logits, but for those of other classes, which are zero."""
    own = target[:, None]
    return torch.zeros_like(logits).scatter(1, own, logits.gather(1, own))


def _elsewhere(method: LRP, step: Step, relevance: Tensor) -> tuple[str, Sequence[Tensor]]:
    """What is done at a layer without weights, in words, and the relevance of its sources."""
    layer = step.layer
    if isinstance(layer, Rectifier | Scaling):
        return "pass", (relevance,)
    if isinstance(layer, MaxPool):
        return "to the winner", layer.pull(relevance, step.source)
    if isinstance(layer, Average):
        (back,) = layer.pull(divided(relevance, step.output), step.source)
        return "in proportion", (step.source * back,)
    if isinstance(layer, Addition):
        share = divided(relevance, step.output)
        return "in proportion", [source * share for source in step.sources]
    if isinstance(layer, Concatenation):
        sizes = [source.shape[layer.dim] for source in step.sources]
        return "back in place", torch.split(relevance, sizes, layer.dim)
    if isinstance(layer, Rearrangement):
        return "back in place", layer.pull(relevance, step.source)
    raise no_rule(method, step)


def _seen(tape: Tape, source: Tensor, pixel: float) -> Tensor:
    """What the layer would read if all pixels had one value."""
    return tape.replay(source, torch.full_like(tape.inputs, pixel))
