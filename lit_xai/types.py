"""The vocabulary of shapes, and the conventions of units, said once.

* Pixels live in [0, 1]. Normalisation is the first layer of the model, never part of the data.
* `epsilon`, `radius`, `distance` and `sigma` are in the same unit as pixels.
* Models map images to logits, shape (batch, class), and are differentiable in their input.
* `steps` are sequential, `samples` are random, `chunk` bounds how many images pass a model at once.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Images = Float[Tensor, "batch channel height width"]
Labels = Int[Tensor, " batch"]
Logits = Float[Tensor, "batch class"]
Scores = Float[Tensor, " batch"]
Flags = Bool[Tensor, " batch"]
Masks = Bool[Tensor, "batch height width"]
Keys = Int[Tensor, " batch"]
Scalar = Float[Tensor, ""]


class Eps(float):
    """A distance in pixel units that also reads a fraction: `Eps("8/255")`.

    Args:
        value: A number, or the text of a number or of a fraction.

    Raises:
        ValueError: The text is neither.
    """

    def __new__(cls, value: float | str) -> "Eps":
        numerator, slash, denominator = str(value).partition("/")
        try:
            number = float(numerator) / float(denominator) if slash else float(numerator)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"expected a number or a fraction such as 8/255, got {value!r}") from None
        return super().__new__(cls, number)


Epsilon = Eps | float


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless the condition holds: the one form of validation at the rim."""
    if not condition:
        raise ValueError(message)


def require_at_least(bound: float, **values: float) -> None:
    """Raise `ValueError` naming the first keyword whose value lies below the bound (or is NaN)."""
    for name, value in values.items():
        require(value >= bound, f"`{name}` must be at least {bound:g}, got {value!r}.")


def require_positive(**values: float) -> None:
    """Raise `ValueError` naming the first keyword whose value is not above zero."""
    for name, value in values.items():
        require(value > 0, f"`{name}` must be greater than 0, got {value!r}.")


def check_batch(inputs: Tensor, target: Tensor, channels: int, classes: int) -> None:
    """Refuse a batch that does not keep the conventions of this module, and say what to do."""
    shape = tuple(inputs.shape)
    require(
        inputs.ndim == 4 and shape[1] == channels,
        f"images must have shape (batch, {channels}, height, width), got {shape}: set `model.channels`, "
        "or mend the data.",
    )
    require(
        inputs.is_floating_point(), f"pixels must be floats in [0, 1], got {inputs.dtype}: divide by 255."
    )
    require(bool(inputs.isfinite().all()), "pixels must be finite, got NaN or infinity.")
    low, high = float(inputs.min()), float(inputs.max())
    remedy = (
        "divide by 255" if high > 2 and low >= 0 else "leave normalisation to `model.mean` and `model.std`"
    )
    require(
        low >= 0 and high <= 1,
        f"pixels must lie in [0, 1], got [{low:.3g}, {high:.3g}]: {remedy}.",
    )
    require(
        target.ndim == 1 and target.dtype == torch.int64,
        f"labels must be int64 of shape (batch), got {target.dtype} of shape {tuple(target.shape)}.",
    )
    least, most = int(target.min()), int(target.max())
    require(
        least >= 0 and most < classes,
        f"labels must lie in 0..{classes - 1}, got {least}..{most}: set `model.classes`, or mend the data.",
    )
