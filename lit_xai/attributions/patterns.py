"""What a network still predicts when all it is told of an image is which of its units are on."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.base import check
from lit_xai.attributions.baselines import Baseline
from lit_xai.network import Layer, MaxPool, Rectifier, Step, Unknown, record
from lit_xai.types import Images, Keys, Logits, require

Pattern = Callable[[Tensor], Tensor]


def activation_pattern_only(
    model: nn.Module,
    inputs: Images,
    surrogate: float | Baseline | Tensor = 0.5,
    replay_pool: bool = True,
    shuffled: bool = False,
) -> Logits:
    """Return the logits of a surrogate image under the activation pattern of the image (APOP).

    a = v(x') 1[v(x) > 0]

    A first pass notes for every ReLU which of its inputs v(x) are positive, and for every max pool where its
    maxima lie. A second pass on the surrogate x' multiplies by these states, and reads each pool there. A
    ReLU6 has three states: 0, linear and 6; a leaky ReLU has two slopes. With x' = x the logits are those of
    the model. Much depends on the surrogate: take several.

    Args:
        model: The network, in eval mode.
        inputs: The images whose patterns are kept.
        surrogate: What is seen in their place: the pixel value of a flat image; a `Baseline`, of which one
            image is drawn per image; or images, one for each or one for all.
        replay_pool: Whether max pools read where the maxima of the image lie; else where those of the second
            pass do.
        shuffled: The control: within each image the states of each ReLU change places, so that as many are
            on, but not the same; nothing is kept of the pools.

    Raises:
        ValueError: The model has no ReLU, or computes what has no on/off states, such as GELU or attention;
            the surrogate is not finite or does not fit the images; the second pass takes another way through
            the model.

    Source: Han, Kim and Kwak 2024, arXiv 2402.03348 (activation-pattern-only prediction).
    Deviates: the surrogates of the paper are not published; these, and the control, are ours.
    """
    check(model, inputs, inputs.new_zeros(len(inputs), dtype=torch.int64))
    seen = _seen(inputs, surrogate)
    require(bool(seen.isfinite().all()), "`surrogate` must be finite, got NaN or infinity.")
    keys = randomness.keys(inputs, "activation pattern") if shuffled else None
    with torch.no_grad():
        steps = record(model, inputs).steps
        require(
            any(isinstance(step.layer, Rectifier) for step in steps),
            "`activation_pattern_only` needs a network with ReLUs, and this one has none.",
        )
        patterns = iter(
            [
                (step.output.shape, _pattern(step, keys, number, replay_pool))
                for number, step in enumerate(steps)
                if isinstance(step.layer, Rectifier | MaxPool | Unknown)
            ]
        )

        def replay(layer: Layer, sources: tuple[Tensor, ...]) -> Tensor | None:
            if not isinstance(layer, Rectifier | MaxPool):
                return None
            shape, pattern = next(patterns, (None, layer))
            output = pattern(sources[0])
            require(
                output.shape == shape,
                "`model` must take the same way for the surrogate as for the image, but its layers differ.",
            )
            return output

        return record(model, seen, replay).output


def _seen(inputs: Images, surrogate: float | Baseline | Tensor) -> Images:
    """The surrogate images."""
    if isinstance(surrogate, Baseline):
        return surrogate(inputs, randomness.keys(inputs, "surrogate"))
    if not isinstance(surrogate, Tensor):
        return torch.full_like(inputs, surrogate)
    require(
        surrogate.shape in (inputs.shape, inputs.shape[1:], (1, *inputs.shape[1:])),
        f"`surrogate` must be one image for each, or one for all, of shape {tuple(inputs.shape[1:])}, got "
        f"{tuple(surrogate.shape)}.",
    )
    return surrogate.to(inputs).expand_as(inputs).clone()


def _pattern(step: Step, keys: Keys | None, stream: int, replay_pool: bool) -> Pattern:
    """The layer with its states held fixed."""
    layer, source = step.layer, step.source
    if isinstance(layer, MaxPool):
        return _gather(layer, source) if replay_pool and keys is None else layer
    if not isinstance(layer, Rectifier):
        raise ValueError(
            f"`activation_pattern_only` needs a network of ReLUs, but {layer.name} (layer {step.name!r}) has "
            "no on/off states."
        )
    slope, full = layer.derivative(source), source >= layer.ceiling
    if keys is not None:
        order = randomness.uniform(keys, stream, source.shape[1:]).flatten(1).argsort(1)
        slope, full = (state.flatten(1).gather(1, order).reshape_as(state) for state in (slope, full))
    return lambda other: torch.where(full, layer.ceiling, slope * other)


def _gather(layer: MaxPool, source: Tensor) -> Pattern:
    index = layer.maxima(source)
    return lambda other: other.flatten(2).gather(2, index.flatten(2)).reshape_as(index)
