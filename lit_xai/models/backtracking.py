"""A network run backwards: from the features of a layer to the image that they came from.

Bort trains for this: bounded orthogonal rows make the transpose of a layer its inverse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.network import (
    Addition,
    Average,
    Convolution,
    Linear,
    MaxPool,
    Rearrangement,
    Rectifier,
    Scaling,
    Step,
    Tape,
    Unknown,
    record,
)
from lit_xai.types import Images, Scores, require, require_at_least

Pooling = Literal["nearest", "indices"]
Copies = Float[Tensor, "copy batch ..."]

_CLOSE = 1e-3  # relative error up to which a residual sum counts as solved


@dataclass(frozen=True)
class Backtracking:
    """Run a network backwards, layer by layer, from features at a layer to images.

    - convolution: u_o = (z_o - b_o) / ||w_o||^2; what W^T u puts on a pixel, by the number of windows over it
    - linear layer: W^T u, likewise
    - leaky ReLU: z where z > 0, else z / slope; ReLU: z
    - batch norm, normalisation of pixels: (z - shift) / scale, also where folded into the layer before
    - average: its value to all that it averaged; what was only moved: back to its place
    - x + f(x): solved for x by x <- z - f(x), where f is a contraction

    Where W has orthogonal rows, or columns, all of one length and no fewer rows than columns, and no layer
    before it loses anything, the image comes back. A layer that lost something gives one image of those that
    would have these features, or something near it: no part outside of the rows of W. What no window covered
    is 0. Sizes are those of the forward pass; of its values only what the options name is used.

    Args:
        pooling: What a max pool becomes: its value in all of its window ("nearest"), or where the maximum of
            the forward pass was, and 0 elsewhere ("indices").
        guided: Whether a ReLU passes on z only where z > 0 and its input in the forward pass was.
        steps: Iterations for a residual sum, at least 1.

    Source: Zhang et al. 2023, arXiv 2212.09062 (backtracking), and the released code; the sum: Behrmann et
    al. 2019, arXiv 1811.00995, algorithm 1.

    Deviates: ||w_o||^2 is that of the row only where W has no more rows than columns, in its group; else it
    is ||W||_F^2 / columns for all rows, which makes orthogonal columns exact too. Linear layers are divided
    by it as well. The formula of the released code for the size loses the remainder of a stride.
    """

    pooling: Pooling = "nearest"
    guided: bool = False
    steps: int = 50

    def __post_init__(self) -> None:
        known = get_args(Pooling)
        require(
            self.pooling in known,
            f"`pooling` must be {' or '.join(map(repr, known))}, got {self.pooling!r}.",
        )
        require_at_least(1, steps=self.steps)

    @torch.no_grad()
    def __call__(
        self, tape: Tape, value: Tensor, features: Copies
    ) -> Float[Tensor, "copy batch channel height width"]:
        """Images for features in place of a value on the tape, several for each image of the tape.

        Raises:
            ValueError: A layer on the way has no inverse.
        """
        made = {id(step.output): step for step in tape.steps}
        while value is not tape.inputs:
            step = made[id(value)]
            if isinstance(step.layer, Addition):
                value, features = self._solved(tape, step, features)
            else:
                value, features = step.source, self._inverse(step, features)
        return features

    def _inverse(self, step: Step, features: Copies) -> Copies:
        """What the source of a layer with one source was, for what came out."""
        match step.layer:
            case Convolution() as layer:
                flat = _by_row(layer, features, (-1, 1, 1)).flatten(0, 1)
                back = _overlapped(layer, flat, step.source)
                return back.reshape(*features.shape[:2], *back.shape[1:])
            case Linear() as layer:
                return _by_row(layer, features, (-1,)) @ layer.raw
            case Scaling(scale, shift):
                return _divided(features - shift, torch.as_tensor(scale).to(features))
            case Rectifier(slope=slope) if slope > 0:
                return F.leaky_relu(features, 1 / slope)
            case Rectifier(slope=0.0):
                return features * ((features > 0) & (step.source > 0)) if self.guided else features
            case MaxPool() as layer:
                return self._unpooled(layer, step.source, features)
            case Average() | Rearrangement():
                return _spread(step, features)
        raise _no_inverse(step)

    def _unpooled(self, layer: MaxPool, source: Tensor, features: Copies) -> Copies:
        if self.pooling == "indices":
            copies = len(features)
            maxima = layer.maxima(source).expand(copies, *features.shape[1:]).flatten(0, 1)
            like = source.expand(copies, *source.shape).flatten(0, 1)
            return layer.scatter(maxima, features.flatten(0, 1), like).reshape(copies, *source.shape)
        rows, columns = (
            (torch.arange(size, device=source.device) * pooled // _covered(layer, side, pooled)).clamp(
                max=pooled - 1
            )
            for side, (size, pooled) in enumerate(zip(source.shape[2:], features.shape[3:], strict=True))
        )
        return features[..., rows[:, None], columns]

    def _solved(self, tape: Tape, step: Step, features: Copies) -> tuple[Tensor, Copies]:
        """The x of z = x + f(x), and the value on the tape that it stands for."""
        first, second = step.sources
        for kept, other in ((first, second), (second, first)):
            branch = _branch(tape, kept, other)
            if branch is None:
                continue

            def f(x: Tensor, kept: Tensor = kept, branch: Sequence[Step] = branch) -> Tensor:
                return _replayed(branch, kept, x)

            x = features
            for _ in range(self.steps):
                x = features - torch.vmap(f)(x)
            missed = (x + torch.vmap(f)(x) - features).flatten(2).norm(dim=2)
            if bool((missed <= _CLOSE * features.flatten(2).norm(dim=2)).all()):
                return kept, x
        raise _no_inverse(step)


def reconstructions(
    model: nn.Module, inputs: Images, layers: Sequence[str] = (), how: Backtracking | None = None
) -> dict[str, Images]:
    """What comes back of the images from each layer, by name of the layer.

    Args:
        model: The network, in eval mode.
        inputs: The images.
        layers: Names of modules; without, all of `stages`.
        how: The way back.

    Raises:
        ValueError: There is no such layer, or one on the way has no inverse.
    """
    with torch.no_grad():
        tape = record(model, inputs)
    values = {name: tape.value(name) for name in layers or stages(tape)}
    back = how or Backtracking()
    return {name: back(tape, value, value[None])[0] for name, value in values.items()}


def stages(tape: Tape) -> list[str]:
    """Names of the layers that are worth a look: rectifiers, pools, and the logits."""
    kinds = (Rectifier, MaxPool, Average)
    steps = [step for step in tape.steps if isinstance(step.layer, kinds) or step.output is tape.output]
    return [step.name for step in steps]


def feature_map(tape: Tape) -> Tensor | None:
    """The last value that still tells places apart, before pools and rearrangements, if any."""
    passive = (MaxPool, Average, Rearrangement)
    for step in reversed(tape.steps):
        places = step.output.ndim == 4 and step.output.shape[2:] != (1, 1)
        if places and not isinstance(step.layer, passive) and id(step.output) not in tape.unweighted:
            return step.output
    return None


def relative_error(found: Images, inputs: Images) -> Scores:
    """||x' - x||^2 / ||x||^2 of every image."""
    return (found - inputs).flatten(1).square().sum(1) / inputs.flatten(1).square().sum(1)


def psnr(found: Images, inputs: Images) -> Scores:
    """Peak signal-to-noise ratio in decibels, the peak being 1: -10 log10 of the mean squared error."""
    return -10 * (found - inputs).flatten(1).square().mean(1).log10()


def likeness(found: Images, inputs: Images) -> Scores:
    """Correlation over the pixels, in [-1, 1]: what an error of gain and offset leaves alone."""
    first, second = (
        images.flatten(1) - images.flatten(1).mean(1, keepdim=True) for images in (found, inputs)
    )
    result: Tensor = F.cosine_similarity(first, second)
    return result


def _by_row(layer: Convolution | Linear, features: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(z - b) / ||w||^2, by channel of the output, in units of the weights before a batch norm was folded."""
    groups = layer.groups if isinstance(layer, Convolution) else 1
    rows = layer.raw.reshape(groups, -1, layer.raw[0].numel())
    squares = rows.square().sum(2)
    if rows.shape[1] > rows.shape[2]:
        squares = squares.sum(1, keepdim=True).expand_as(squares) / rows.shape[2]
    scale = squares.flatten() if layer.factor is None else squares.flatten() * layer.factor
    centred = features if layer.bias is None else features - layer.bias.view(shape)
    return _divided(centred, scale.view(shape))


def _overlapped(layer: Convolution, rows: Tensor, source: Tensor) -> Tensor:
    """W^T u, divided by the number of windows over each pixel."""
    back = layer.transpose(rows, source.new_zeros(()).expand(len(rows), *source.shape[1:]), layer.raw)
    window = source.new_ones(1, 1, *layer.raw.shape[2:])
    counting = Convolution(window, None, layer.stride, layer.padding, layer.dilation)
    blank = source.new_zeros(1, 1, *source.shape[2:])
    return _divided(back, counting.transpose(source.new_ones(1, 1, *rows.shape[2:]), blank, window))


def _spread(step: Step, features: Copies) -> Copies:
    """A^T (z / A1) / A^T 1, for A with entries that are not negative."""
    with torch.enable_grad():
        blank = torch.zeros_like(step.source).requires_grad_()
        seen = step.layer(blank)
    share = _divided(features, step.layer(torch.ones_like(step.source)))
    both = torch.cat([share, torch.ones_like(share[:1])])
    (back,) = torch.autograd.grad(seen, blank, both, is_grads_batched=True)
    return _divided(back[:-1], back[-1])


def _covered(layer: MaxPool, side: int, pooled: int) -> int:
    """Length of what the windows along one side cover, less the padding."""
    reach = layer.dilation[side] * (layer.kernel[side] - 1) + 1
    return max(1, layer.stride[side] * (pooled - 1) + reach - 2 * layer.padding[side])


def _branch(tape: Tape, start: Tensor, end: Tensor) -> list[Step] | None:
    """The steps that make the one value out of the other alone, in order; None if there are none such."""
    needed, branch = {id(end)}, []
    for step in reversed(tape.steps):
        if id(step.output) in needed and step.output is not start:
            if isinstance(step.layer, Unknown):
                return None
            branch.append(step)
            needed.update(map(id, step.sources))
    alone = id(start) in needed and (start is tape.inputs or id(tape.inputs) not in needed)
    return branch[::-1] if alone else None


def _replayed(branch: Sequence[Step], start: Tensor, value: Tensor) -> Tensor:
    values = {id(start): value}
    for step in branch:
        values[id(step.output)] = step.layer(*(values[id(source)] for source in step.sources))
    return values[id(branch[-1].output)] if branch else value


def _divided(dividend: Tensor, divisor: Tensor) -> Tensor:
    """The quotient; 0 where the divisor is 0 beside the others, since only rounding came through there."""
    nothing = divisor.abs() <= torch.finfo(divisor.dtype).eps * divisor.abs().mean()
    return dividend * torch.where(nothing, 0, 1 / divisor)


def _no_inverse(step: Step) -> ValueError:
    return ValueError(
        f"`{step.layer.name}` (layer {step.name!r}) has no inverse: a network runs backwards through "
        "convolutions, linear layers, ReLUs, pools, batch norms and sums of x and a contraction of x; take a "
        "layer before it."
    )
