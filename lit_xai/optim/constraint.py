"""Bort's constraint: what it asks of a weight, how its settings are checked, and when it is due."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_xai.optim.matrices import Amplitude, Layout, Matrices, gram
from lit_xai.types import require, require_at_least

Penalty = Literal["l2", "l1"]


def correction(matrices: Matrices, amplitude: Amplitude = 1.0, penalty: Penalty = "l2") -> Matrices:
    """The gradient of Bort's penalty, for a stack of weights of one shape.

    (W W^T - a I) W for l2, the gradient of ||W W^T - a I||^2 / 4; sign(W W^T - a I) W for l1, the gradient of
    sum |W W^T - a I| / 2. A matrix of more rows than columns is constrained in its columns: W (W^T W - a I)
    and W sign(W^T W - a I); for l2 that is the same matrix.

    Args:
        matrices: Weights, as `Layout` reads them: a matrix W for each group.
        amplitude: Squared length a of the rows (columns), greater than 0; "ada" takes the square of their
            mean length in each weight, all groups together, which leaves its scale free.
        penalty: "l2" or "l1".

    Source: Zhang et al. 2023, arXiv 2212.09062 (l2), and its released code (l1, "ada").
    Deviates: the released code leaves the side to the caller for l1, which diverges for the wrong one; takes
        "ada" from the rows of every matrix, which shrinks those of more rows than columns to zero; and takes
        all groups of a convolution for one matrix.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    deviation = gram(matrices)
    squares = deviation.diagonal(dim1=-2, dim2=-1)
    if amplitude == "ada":
        lengths = squares.sqrt()
        mean = lengths.mean(dim=(-2, -1), keepdim=True)
        squares.copy_((lengths - mean) * (lengths + mean))  # exactly 0 for a single row: its sign counts
    else:
        squares.sub_(amplitude)
    if penalty == "l1":
        deviation = deviation.sign()
    return deviation @ matrices if wide else matrices @ deviation


def constrain(
    optimizer: Optimizer,
    gamma: float,
    amplitude: Amplitude,
    penalty: Penalty,
    every_k: int,
    coupled: bool = False,
) -> None:
    """Give every parameter group its settings, and check them."""
    settings = {
        "gamma": gamma,
        "amplitude": amplitude,
        "penalty": penalty,
        "every_k": every_k,
        "coupled": coupled,
        "since": 0,  # steps since the constraint was applied
        "seen": False,  # whether the amplitude of the weights was looked up
    }
    optimizer.defaults.update(settings)
    for group in optimizer.param_groups:
        for name, value in settings.items():
            group.setdefault(name, value)
        check(group)
    if all(group["gamma"] == 0 for group in optimizer.param_groups):
        warnings.warn(
            f"`gamma` is 0: {type(optimizer).__name__} constrains nothing. Set it, for example to 0.1.",
            stacklevel=3,
        )


def check(group: dict[str, Any]) -> None:
    """Refuse settings out of range, and a constraint that diverges at the learning rate of the moment."""
    gamma, amplitude, penalty = group["gamma"], group["amplitude"], group["penalty"]
    require_at_least(0, gamma=gamma)
    require_at_least(1, every_k=group["every_k"])
    require(penalty in ("l2", "l1"), f"`penalty` must be 'l2' or 'l1', got {penalty!r}.")
    adaptive = amplitude == "ada"
    require(
        adaptive or (not isinstance(amplitude, str) and amplitude > 0),
        f"`amplitude` must be greater than 0 or 'ada', got {amplitude!r}.",
    )
    momentum = group["momentum"] if group["coupled"] else 0.0
    require(momentum < 1, f"`momentum` must be less than 1, got {momentum!r}.")
    if penalty == "l1":
        _require_stable(group, 1.0, float(group["lr"]))  # a step is of size h s
    elif not adaptive:
        _require_stable(group, amplitude, float(group["lr"]))


def ready(optimizer: Optimizer) -> None:
    """Before a step: complete and check the groups, whatever a schedule or a checkpoint made of them.

    What "ada" comes to is looked up in the weights once, at the first step; later ones do not wait for the
    device.
    """
    for group in optimizer.param_groups:
        for name, value in optimizer.defaults.items():
            group.setdefault(name, value)
        if group["gamma"] == 0:
            continue
        if not isinstance(group["lr"], Tensor):
            check(group)
        if group["amplitude"] == "ada" and group["penalty"] == "l2" and not group["seen"]:
            group["seen"] = True
            largest = max((float(_squared_length(m)) for *_, m in _constrained(group)), default=0.0)
            _require_stable(group, largest, max(float(group["lr"]), group.get("initial_lr", 0.0)))


def pulls(
    group: dict[str, Any], decay: float = 0.0, rate: float = 1.0
) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
    """Every constrained parameter, its gradient, and rate * gamma * correction((1 - decay) W).

    Counts the step: between the steps of `every_k` there are none. Batched by shape, in float32 at least.
    """
    if group["gamma"] == 0:
        return []
    group["since"] = (group["since"] + 1) % group["every_k"]
    if group["since"]:
        return []
    alike = defaultdict(list)
    for parameter, gradient, layout, matrices in _constrained(group):
        key = matrices.shape, matrices.dtype, matrices.device
        alike[key].append((parameter, gradient, layout, matrices))
    found = []
    for (_, dtype, device), members in alike.items():
        weights = torch.stack([matrices for *_, matrices in members])
        weights = weights.to(torch.promote_types(dtype, torch.float32))
        if decay:
            weights.mul_(1 - decay)
        with torch.autocast(device.type, enabled=False):
            stack = correction(weights, group["amplitude"], group["penalty"])
        stack.mul_(rate * (group["gamma"] * group["every_k"]))
        for (parameter, gradient, layout, _), pull in zip(members, stack, strict=True):
            found.append((parameter, gradient, layout.weight(pull, parameter.shape)))
    return found


def _constrained(group: dict[str, Any]) -> Iterator[tuple[nn.Parameter, Tensor, Layout, Tensor]]:
    """Every parameter that has rows and takes part in the step, its gradient, layout and matrices."""
    layouts = group.get("layouts") or [(1, False)] * len(group["params"])
    for parameter, layout in zip(group["params"], layouts, strict=True):
        if parameter.ndim >= 2 and parameter.grad is not None:
            yield parameter, parameter.grad, Layout(*layout), Layout(*layout).matrices(parameter)


def _squared_length(matrices: Matrices) -> Tensor:
    """The amplitude that "ada" takes; 0 for a single row, which it leaves alone."""
    side = -1 if matrices.shape[-2] <= matrices.shape[-1] else -2
    lengths: Tensor = torch.linalg.vector_norm(matrices, dim=side)
    return lengths.mean().square() * (lengths.numel() > 1)


def _require_stable(group: dict[str, Any], amplitude: float, lr: float) -> None:
    """Singular values follow s <- s (1 - h (s^2 - a)), which is stable for h a < 1."""
    coupled = group["coupled"]
    held = 1 - group["momentum"] if coupled else 1.0
    step = lr * group["every_k"] * amplitude
    longest = held / step if step > 0 else math.inf
    require(
        group["gamma"] < longest,
        f"`gamma` must be less than {'(1 - momentum)' if coupled else '1'} / (lr * every_k * amplitude) = "
        f"{longest:g} or the constraint diverges, got {group['gamma']!r}; lower it or the learning rate.",
    )
