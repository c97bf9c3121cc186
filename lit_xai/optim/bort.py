"""Bort: optimizers that pull each weight matrix W towards W W^T = amplitude * I.

A weight of shape [out, ...] is the matrix of `out` rows that it flattens to, until `constrain_linear_maps`
has said which weights are grouped or transposed convolutions. Parameters of fewer than two dimensions (biases
or gains) are left alone.

The constraint enters in one of two ways. Coupled (`BortSGD`): it is added to the gradient, and momentum
averages it. Decoupled (`BortAdamW`, `Bort`): it is subtracted from the weights beside the step of the
optimizer, whose moments and adaptive scales never see it. Equal `gamma` is therefore not equal strength:
decoupled, h = lr * gamma; coupled, h = lr * gamma / (1 - momentum).
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from lit_xai.optim.constraint import Penalty, constrain, pulls, ready
from lit_xai.optim.matrices import Amplitude, linear_maps
from lit_xai.types import require

Closure = Callable[[], Any]


class BortSGD(SGD):
    """SGD whose gradient carries Bort's correction, through momentum: g + gamma * correction(W).

    The constraint acts with stationary strength lr * gamma / (1 - momentum) and fades with the learning rate.
    Gradients are afterwards what they were before.

    Args:
        params: Parameters or groups of them; a group may set `gamma`, `amplitude` and `penalty` of its own.
        lr: Learning rate, at least 0: the largest that a schedule will reach.
        momentum: From 0 to less than 1.
        dampening: Of the momentum.
        weight_decay: Coupled l2 penalty, at least 0.
        nesterov: Whether to look ahead along the momentum.
        gamma: Strength of the constraint, at least 0; 0 is plain SGD, with a warning.
        amplitude: Squared length of the rows, greater than 0, or "ada": whatever length they have on average.
        penalty: "l2", or "l1", which holds tighter but wants a learning rate that falls.
        every_k: Apply the constraint at every k-th step alone, k times as strongly; at least 1.

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
        every_k: int = 1,
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)
        constrain(self, gamma, amplitude, penalty, every_k, coupled=True)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        loss = _call(closure)
        ready(self)
        plain = []
        for group in self.param_groups:
            for parameter, gradient, pull in pulls(group, rate=-1.0 if group["maximize"] else 1.0):
                plain.append((parameter, gradient))
                parameter.grad = gradient.add(pull).to(parameter.dtype)  # as the gradient lies in memory
        _step(SGD, self)
        for parameter, gradient in plain:
            parameter.grad = gradient
        return loss


class BortAdamW(AdamW):
    """AdamW whose decayed weights are pulled by Bort's correction: W - lr * gamma * correction(W).

    Neither the moments nor the adaptive scale see the constraint. It fades with the learning rate.

    Args:
        params: Parameters or groups of them; a group may set `gamma`, `amplitude` and `penalty` of its own.
        lr: Learning rate, at least 0: the largest that a schedule will reach.
        betas: Decay of the two moments, each from 0 to less than 1.
        eps: Added to the denominator, at least 0.
        weight_decay: Decoupled decay, at least 0.
        gamma: Strength of the constraint, at least 0; 0 is plain AdamW, with a warning.
        amplitude: Squared length of the rows, greater than 0, or "ada": whatever length they have on average.
        penalty: "l2", or "l1", which holds tighter but wants a learning rate that falls.
        every_k: Apply the constraint at every k-th step alone, k times as strongly; at least 1.

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
        every_k: int = 1,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        constrain(self, gamma, amplitude, penalty, every_k)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        return _beside(AdamW, self, self, closure)


class Bort(Optimizer):
    """Any optimizer, with Bort's correction beside its step: W - lr * gamma * correction(W).

    The constraint is decoupled: the optimizer inside steps as it would without it. The correction is that of
    the weights before the step, decayed where the optimizer's groups have `decoupled_weight_decay`: around
    AdamW this is `BortAdamW`, around SGD it is not `BortSGD`. Groups and state are those of the optimizer
    inside, in checkpoints too.

    Args:
        params: Parameters or groups of them; a group may set `gamma`, `amplitude` and `penalty` of its own.
        optimizer: Called with the parameters, gives the optimizer inside; it has a learning rate, the largest
            that a schedule will reach.
        gamma: Strength of the constraint, at least 0; 0 is the optimizer alone, with a warning.
        amplitude: Squared length of the rows, greater than 0, or "ada": whatever length they have on average.
        penalty: "l2", or "l1", which holds tighter but wants a learning rate that falls.
        every_k: Apply the constraint at every k-th step alone, k times as strongly; at least 1.

    Raises:
        ValueError: A value out of range, a step so long that the constraint diverges, or an optimizer that
            evaluates its closure more than once.

    Source: Zhang et al. 2023, arXiv 2212.09062 (whose LAMB variant has no released code).
    Deviates: see `BortAdamW`.
    """

    def __init__(
        self,
        params: ParamsT,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        gamma: float = 0.0,
        amplitude: Amplitude = 1.0,
        penalty: Penalty = "l2",
        every_k: int = 1,
    ) -> None:
        self.inside = optimizer(params)
        name = type(self.inside).__name__
        closure = inspect.signature(self.inside.step).parameters.get("closure")
        require(
            closure is None or closure.default is not closure.empty,
            f"`optimizer` must step without a closure, {name} does not: take another.",
        )
        rates = [group.get("lr") for group in self.inside.param_groups]
        require(None not in rates, f"`optimizer` must have a learning rate, `lr`; {name} got none.")
        super().__init__(self.inside.param_groups, self.inside.defaults)
        self.__setstate__({"state": self.inside.state})
        constrain(self, gamma, amplitude, penalty, every_k)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        return _beside(type(self.inside), self.inside, self, closure)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "inside": self.inside}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called for copies and for checkpoints: one list of groups and one state for both.
        super().__setstate__(state)
        self.inside.__setstate__({"state": self.state, "param_groups": self.param_groups})


def bort(optimizer_class: type[Optimizer]) -> Callable[..., Bort]:
    """Bort's variant of an optimizer class: `bort(RMSprop)(params, lr=1e-3, gamma=0.1)`.

    What it returns takes the arguments of the class and those of `Bort`, which it builds.

    Args:
        optimizer_class: Any that has a learning rate and needs no closure.
    """

    def build(
        params: ParamsT,
        *args: Any,
        gamma: float = 0.0,
        amplitude: Amplitude = 1.0,
        penalty: Penalty = "l2",
        every_k: int = 1,
        **settings: Any,
    ) -> Bort:
        def inside(given: Iterable[Any]) -> Optimizer:
            return optimizer_class(given, *args, **settings)

        return Bort(params, inside, gamma, amplitude, penalty, every_k)

    return build


def constrain_linear_maps(optimizer: Optimizer, model: nn.Module) -> None:
    """Tell Bort which parameters are weights of convolutions and linear layers, and free all others.

    Grouped convolutions are constrained within each group then, transposed ones in their output channels.
    Call it before the first step; optimizers without the constraint stay as they are.

    Args:
        optimizer: Its groups are split, settings kept.
        model: Tells which parameter belongs to which kind of layer.
    """
    layouts = {id(weight): (layout.groups, layout.transposed) for _, weight, layout in linear_maps(model)}
    for group in list(optimizer.param_groups):
        if not group.get("gamma"):
            continue
        held = [id(parameter) in layouts for parameter in group["params"]]
        free = {**group, "gamma": 0.0}
        for name in {"params", "param_names"} & group.keys():
            free[name] = [value for value, kept in zip(group[name], held, strict=True) if not kept]
            group[name] = [value for value, kept in zip(group[name], held, strict=True) if kept]
        if free["params"]:
            optimizer.add_param_group(free)
        # Plain data: checkpoints keep it.
        group["layouts"] = [layouts[id(parameter)] for parameter in group["params"]]


def _beside(base: type[Optimizer], inside: Optimizer, outside: Optimizer, closure: Closure | None) -> Any:
    """The plain step and the correction of the weights before it, decayed, which the step makes itself."""
    loss = _call(closure)
    ready(outside)
    found = []
    for group in outside.param_groups:
        decay = group["lr"] * group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0
        found += pulls(group, decay, group["lr"])
    _step(base, inside)
    for parameter, _, pull in found:
        parameter.sub_(pull)
    return loss


def _call(closure: Closure | None) -> Any:
    """Evaluate the closure before anything is corrected: Lightning computes the gradients inside of it."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _step(base: type[Optimizer], optimizer: Optimizer) -> None:
    """The plain step of the base class, without the hooks that torch has already called around ours."""
    inspect.unwrap(base.step, stop=lambda step: not getattr(step, "hooked", False))(optimizer)
