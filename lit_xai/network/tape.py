"""What a network computed, layer by layer, to be walked back by any rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

import torch
from torch import Tensor

from lit_xai.network.layers import (
    Addition,
    Average,
    Concatenation,
    Convolution,
    Layer,
    Linear,
    MaxPool,
    Rearrangement,
    Rectifier,
    Unknown,
)

Rule = Callable[["Step", Tensor], Sequence[Tensor]]


@dataclass(frozen=True, eq=False)
class Step:
    """One layer as it ran.

    Args:
        name: Path of the module that called it, with the name of the function where the module has parts, and
            with #2, #3, ... for the calls after the first.
        layer: What was computed.
        sources: What it was computed from.
        output: What came out.
    """

    name: str
    layer: Layer
    sources: tuple[Tensor, ...]
    output: Tensor

    @property
    def source(self) -> Tensor:
        """The source of a layer that has one."""
        return self.sources[0]


@dataclass(frozen=True, eq=False)
class Tape:
    """The layers of a network in the order in which they ran, for one batch.

    Args:
        inputs: The images.
        output: The logits.
        steps: One per layer.
        modules: What each module returned, by path; of several calls, the last.
    """

    inputs: Tensor
    output: Tensor
    steps: tuple[Step, ...]
    modules: dict[str, Tensor]

    def walk(self, seeds: Sequence[tuple[Tensor, Tensor]], rule: Rule) -> Tensor:
        """Carry messages from later values back to the images; where paths meet, messages add up.

        Args:
            seeds: Pairs of a value on the tape and the message to start with there.
            rule: Turns the message at the output of a step into one message per source.

        Returns:
            The message at the images, zero if none arrives.
        """
        messages: dict[int, Tensor] = {}
        for value, message in seeds:
            _deliver(messages, value, message)
        for step in reversed(self.steps):
            if id(step.output) in messages:
                message = messages.pop(id(step.output))
                for source, part in zip(step.sources, rule(step, message), strict=True):
                    _deliver(messages, source, part)
        found = messages.get(id(self.inputs))
        return torch.zeros_like(self.inputs) if found is None else found

    @cached_property
    def never_negative(self) -> frozenset[int]:
        """Ids of the values that have no negative entry, whatever the images are."""
        found: set[int] = set()
        for step in self.steps:
            keeps = isinstance(step.layer, MaxPool | Average | Rearrangement | Concatenation | Addition)
            cuts = isinstance(step.layer, Rectifier) and not step.layer.slope
            if cuts or (keeps and all(id(source) in found for source in step.sources)):
                found.add(id(step.output))
        return frozenset(found)

    @cached_property
    def unweighted(self) -> frozenset[int]:
        """Ids of the values that come from the images without weights: the images, normalised or not."""
        found = {id(self.inputs)}
        for step in self.steps:
            weighted = isinstance(step.layer, Convolution | Linear | Unknown)
            if not weighted and all(id(source) in found for source in step.sources):
                found.add(id(step.output))
        return frozenset(found)

    def replay(self, value: Tensor, inputs: Tensor) -> Tensor:
        """What a value on the tape would be for other images."""
        values = {id(self.inputs): inputs}
        for step in self.steps:
            if id(value) in values:
                break
            if not isinstance(step.layer, Unknown) and all(id(source) in values for source in step.sources):
                values[id(step.output)] = step.layer(*(values[id(source)] for source in step.sources))
        return values[id(value)]

    def value(self, name: str) -> Tensor:
        """What a module or a step returned.

        Raises:
            ValueError: There is none of that name; the nearest names are listed.
        """
        known = {step.name: step.output for step in self.steps} | self.modules
        if name not in known:
            near = get_close_matches(name, known, 4, 0.3) or list(known)[:4]
            raise ValueError(
                f"`layer` must be one of the network's, got {name!r}; nearest: {', '.join(near)}."
            )
        return known[name]


def _deliver(messages: dict[int, Tensor], value: Tensor, message: Tensor) -> None:
    there = messages.get(id(value))
    messages[id(value)] = message if there is None else there + message
