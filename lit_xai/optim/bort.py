"""Bort: optimizers that pull each weight matrix W towards W W^T = amplitude * I.

A weight of shape [out, ...] is the matrix of `out` rows that it flattens to. Of a grouped convolution all
groups are rows of one matrix, since a parameter does not know its groups. Parameters of fewer than two
dimensions (biases, gains) are left alone.
"""

import inspect
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from lit_xai.types import Scalar, require, require_at_least

Amplitude = float | Literal["ada"]
Penalty = Literal["l2", "l1"]


def correction(
    weights: Float[Tensor, "stack rows columns"], amplitude: Amplitude = 1.0, penalty: Penalty = "l2"
) -> Float[Tensor, "stack rows columns"]:
    """The gradient of Bort's penalty, for a stack of matrices of one shape.

    (W W^T - a I) W for l2, the gradient of ||W W^T - a I||^2 / 4; sign(W W^T - a I) W for l1, the gradient of
    sum |W W^T - a I| / 2. A matrix of more rows than columns is constrained in its columns: W (W^T W - a I)
    and W sign(W^T W - a I); for l2 that is the same matrix.

    Args:
        weights: Matrices W.
        amplitude: Squared length a of the rows (columns), greater than 0; "ada" takes the square of their
            mean length in each matrix, which leaves its scale free.
        penalty: "l2" or "l1".

    Source: Zhang et al. 2023, arXiv 2212.09062 (l2), and its released code (l1, "ada").
    Deviates: the released code leaves the side to the caller for l1, which diverges for the wrong one, and
    takes "ada" from the rows of every matrix, which shrinks those of more rows than columns to zero.
    """
    wide = weights.shape[1] <= weights.shape[2]
    deviation = _gram(weights)
    squares = deviation.diagonal(dim1=1, dim2=2)
    if amplitude == "ada":
        lengths = squares.sqrt()
        mean = lengths.mean(dim=1, keepdim=True)
        squares.copy_((lengths - mean) * (lengths + mean))  # exactly 0 for a single row: its sign counts
    else:
        squares.sub_(amplitude)
    if penalty == "l1":
        deviation = deviation.sign()
    return deviation @ weights if wide else weights @ deviation


def residual(weight: Float[Tensor, "rows columns *rest"], amplitude: Amplitude = 1.0) -> Scalar:
    """How far a weight is from Bort's constraint: ||W W^T - a I||_F / (a sqrt(rows)).

    The smaller side counts: columns, and their number, where they are fewer. 0 is perfect; W = 0 has 1.

    Args:
        weight: A weight of at least two dimensions.
        amplitude: As in `correction`.
    """
    gram = _gram(weight.detach().flatten(1)[None])[0]
    lengths = gram.diagonal()
    scale = lengths.sqrt().mean().square() if amplitude == "ada" else lengths.new_tensor(amplitude)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    error: Tensor = torch.linalg.matrix_norm(gram / scale - identity) / math.sqrt(len(gram))
    return error


class BortSGD(SGD):
    """SGD whose gradient carries Bort's correction, through momentum: g + gamma * correction(W).

    The constraint acts with stationary strength lr * gamma / (1 - momentum) and fades with the learning rate.
    Gradients are afterwards what they were before.

    Args:
        params: Parameters or groups of them; a group may set `gamma`, `amplitude` and `penalty` of its own.
        lr: Learning rate, at least 0.
        momentum: From 0 to less than 1.
        dampening: Of the momentum.
        weight_decay: Coupled l2 penalty, at least 0.
        nesterov: Whether to look ahead along the momentum.
        gamma: Strength of the constraint, at least 0; 0 is plain SGD, with a warning.
        amplitude: Squared length of the rows, greater than 0, or "ada": whatever length they have on average.
        penalty: "l2", or "l1", which holds tighter but wants a learning rate that falls.

    Raises:
        ValueError: A value out of range, or a step so long that the constraint diverges.

    Source: Zhang et al. 2023, arXiv 2212.09062; order of operations as in the released code.
    Deviates: see `correction`; parameters of fewer than two dimensions are left alone. Those that are neither
        convolutions nor linear maps are too after `constrain_linear_maps`, which `Classifier` calls.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        gamma: float = 0.0,
        amplitude: Amplitude = 1.0,
        penalty: Penalty = "l2",
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)
        _constrain(self, gamma, amplitude, penalty)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _call(closure)
        plain = []
        for group in self.param_groups:
            for parameter, gradient, pull in _corrections(group):
                plain.append((parameter, gradient))
                parameter.grad = torch.add(gradient, pull, alpha=group["gamma"], out=pull)
        _step(SGD, self)
        for parameter, gradient in plain:
            parameter.grad = gradient
        return loss


class BortAdamW(AdamW):
    """AdamW whose decayed weights are pulled by Bort's correction: W - lr * gamma * correction(W).

    Neither the moments nor the adaptive scale see the constraint. It fades with the learning rate.

    Args:
        params: Parameters or groups of them; a group may set `gamma`, `amplitude` and `penalty` of its own.
        lr: Learning rate, at least 0.
        betas: Decay of the two moments, each from 0 to less than 1.
        eps: Added to the denominator, at least 0.
        weight_decay: Decoupled decay, at least 0.
        gamma: Strength of the constraint, at least 0; 0 is plain AdamW, with a warning.
        amplitude: Squared length of the rows, greater than 0, or "ada": whatever length they have on average.
        penalty: "l2", or "l1", which holds tighter but wants a learning rate that falls.

    Raises:
        ValueError: A value out of range, or a step so long that the constraint diverges.

    Source: Zhang et al. 2023, arXiv 2212.09062; order of operations as in the released code.
    Deviates: see `correction`; parameters of fewer than two dimensions are left alone. Those that are neither
        convolutions nor linear maps are too after `constrain_linear_maps`, which `Classifier` calls.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        gamma: float = 0.0,
        amplitude: Amplitude = 1.0,
        penalty: Penalty = "l2",
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        _constrain(self, gamma, amplitude, penalty)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _call(closure)
        # The correction belongs to the decayed weight, which AdamW makes inside: it is computed before, and
        # subtracted after, the step, which adds up to the same.
        pulls = [
            (parameter, pull.mul_(group["lr"] * group["gamma"]))
            for group in self.param_groups
            for parameter, _, pull in _corrections(group, decay=group["lr"] * group["weight_decay"])
        ]
        _step(AdamW, self)
        for parameter, pull in pulls:
            parameter.sub_(pull)
        return loss


def constrain_linear_maps(optimizer: Optimizer, model: nn.Module) -> None:
    """Free everything but the weights of convolutions and linear layers from Bort's constraint.

    A class token or a layer scale has rows too, but they are no directions that inputs are compared with.
    Call it before the first step; optimizers without the constraint stay as they are.

    Args:
        optimizer: Its groups are split, settings kept.
        model: Tells which parameter belongs to which kind of layer.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    maps = {id(layer.weight) for layer in model.modules() if isinstance(layer, kinds)}
    for group in list(optimizer.param_groups):
        free = [parameter for parameter in group["params"] if id(parameter) not in maps]
        if group.get("gamma") and free:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) in maps]
            optimizer.add_param_group({**group, "params": free, "gamma": 0.0})


def _gram(weights: Float[Tensor, "stack rows columns"]) -> Float[Tensor, "stack side side"]:
    """Inner products of the rows, or of the columns where there are fewer of them."""
    wide = weights.shape[1] <= weights.shape[2]
    return weights @ weights.mT if wide else weights.mT @ weights


def _constrain(optimizer: Optimizer, gamma: float, amplitude: Amplitude, penalty: Penalty) -> None:
    """Give every parameter group its settings, and check them."""
    settings = {"gamma": gamma, "amplitude": amplitude, "penalty": penalty}
    optimizer.defaults.update(settings)
    for group in optimizer.param_groups:
        for name, value in settings.items():
            group.setdefault(name, value)
        _check(group)
    if all(group["gamma"] == 0 for group in optimizer.param_groups):
        warnings.warn(
            f"`gamma` is 0: {type(optimizer).__name__} constrains nothing. Set it, for example to 0.1.",
            stacklevel=3,
        )


def _check(group: dict[str, Any]) -> None:
    gamma, amplitude, penalty = group["gamma"], group["amplitude"], group["penalty"]
    require_at_least(0, gamma=gamma)
    require(penalty in ("l2", "l1"), f"`penalty` must be 'l2' or 'l1', got {penalty!r}.")
    adaptive = amplitude == "ada"
    require(
        adaptive or (not isinstance(amplitude, str) and amplitude > 0),
        f"`amplitude` must be greater than 0 or 'ada', got {amplitude!r}.",
    )
    momentum = group.get("momentum", 0.0)
    require(momentum < 1, f"`momentum` must be less than 1, got {momentum!r}.")
    # Singular values follow s <- s (1 - h (s^2 - a)), stable for h a < 1; under l1 a step is of size h s.
    size = 1.0 if adaptive or penalty == "l1" else amplitude
    longest = (1 - momentum) / (group["lr"] * size) if group["lr"] > 0 else math.inf
    require(
        gamma < longest or (adaptive and penalty == "l2"),
        f"`gamma` must be less than (1 - momentum) / (lr * amplitude) = {longest:g} or the constraint "
        f"diverges, got {gamma!r}; lower it or the learning rate.",
    )


def _corrections(group: dict[str, Any], decay: float = 0.0) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
    """Every constrained parameter, its gradient and the correction of (1 - decay) W, batched by shape."""
    if group["gamma"] == 0:
        return
    alike = defaultdict(list)
    for parameter in group["params"]:
        if parameter.ndim >= 2 and parameter.grad is not None:
            rows = parameter.flatten(1)
            alike[rows.shape, rows.dtype, rows.device].append((parameter, rows))
    for members in alike.values():
        weights = torch.stack([rows for _, rows in members])
        if decay:
            weights.mul_(1 - decay)
        pulls = correction(weights, group["amplitude"], group["penalty"])
        for (parameter, _), pull in zip(members, pulls, strict=True):
            yield parameter, parameter.grad, pull.reshape(parameter.shape)


def _call(closure: Callable[[], Any] | None) -> Any:
    """Evaluate the closure before anything is corrected: Lightning computes the gradients inside of it."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _step(base: type[Optimizer], optimizer: Optimizer) -> None:
    """The plain step of the base class, without the hooks that torch has already called around ours."""
    inspect.unwrap(base.step, stop=lambda step: not getattr(step, "hooked", False))(optimizer)
