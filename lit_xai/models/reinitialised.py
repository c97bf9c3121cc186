"""Re-initialisation: networks that have forgotten, wholly or in part, what they learned."""

import copy
import weakref
import zlib
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lit_xai.types import require


def layers(model: nn.Module) -> list[str]:
    """Names of the modules that have parameters of their own, from the output to the input.

    The order is that of registration, reversed: the order of execution, for networks that register their
    modules as they call them.
    """
    owners = [name for name, part in model.named_modules() if list(part.parameters(recurse=False))]
    return owners[::-1]


def reinitialised(model: nn.Module, seed: int, chosen: Sequence[str] | None = None) -> nn.Module:
    """A copy of a network with fresh weights in the chosen layers, in eval mode and frozen.

    A layer's weights are those of its own `reset_parameters`. Parameters that this does not write (a class
    token, a position embedding, a weight that is computed from others) have their values put into a random
    order. Draws belong to (seed, name of the layer) and are made on the CPU: they are the same on each device
    and in each process, whatever else is chosen. No global random state changes.

    Args:
        model: The network. Its copy shares nothing with it but what its hooks refer to.
        seed: Chooses the weights.
        chosen: Names of layers, see `layers`: running statistics stay those that were learned. None for an
            untrained network: all layers, and running statistics as they were before the first batch.

    Raises:
        ValueError: A name is not that of a layer.

    Source: Adebayo et al. 2018, arXiv 1810.03292, section 3 (cascading randomization).
    """
    if chosen is None:
        return _fresh(model, seed)
    known = layers(model)
    for name in chosen:
        require(name in known, f"`chosen` must name layers with parameters of their own, got {name!r}.")
    fresh, twin = untrained(model, seed), _copied(model)
    with torch.no_grad():
        for name in chosen:
            source = dict(fresh.get_submodule(name).named_parameters(recurse=False))
            for key, parameter in twin.get_submodule(name).named_parameters(recurse=False):
                parameter.copy_(source[key])
    return twin


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """The network as it might have been before training: `reinitialised` in all layers.

    It is made once and kept, for whoever asks next: not to be changed. Only the latest is kept, until the
    network changes or is gone.

    Args:
        model: The network.
        seed: Chooses the weights.
    """
    return _latest(weakref.ref(model, _forget), _state(model), seed)


@lru_cache(maxsize=1)
def _latest(model: Any, state: Hashable, seed: int) -> nn.Module:
    return _fresh(model(), seed)


def _forget(_: object) -> None:
    _latest.cache_clear()


@torch.no_grad()
def _state(model: nn.Module) -> Hashable:
    """What differs once parameters or buffers were written to, moved or replaced."""
    places = tuple(
        (tensor.device, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for tensor in (*model.parameters(), *model.buffers())
    )
    # Fused optimizers write without a trace in the versions. Text: one NaN is as good as another.
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    return places, str(float(nn.utils.get_total_norm(weights)))


@torch.inference_mode(False)
@torch.no_grad()
def _fresh(model: nn.Module, seed: int) -> nn.Module:
    twin = _copied(model)
    with torch.random.fork_rng(devices=[]):
        for name, part in twin.named_modules():
            words = f"{seed} {name.replace('_orig_mod.', '')}"  # compiled or not, it is the same layer
            torch.default_generator.manual_seed(zlib.crc32(words.encode()))  # of the CPU alone
            _renew(part)
    return twin.requires_grad_(False)


def _renew(part: nn.Module) -> None:
    """Give a module fresh parameters of its own, and running statistics if it has any."""
    before = dict(part.named_parameters(recurse=False))
    homes = {name: parameter.device for name, parameter in before.items()}
    for parameter in before.values():
        parameter.data = parameter.data.cpu()
    versions = {name: parameter._version for name, parameter in before.items()}
    for reset in ("reset_parameters", "_reset_parameters") if before else ():
        getattr(part, reset, _nothing)()
    for name, parameter in part.named_parameters(recurse=False):
        if parameter is before.get(name) and parameter._version == versions[name]:
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
        parameter.data = parameter.data.to(homes.get(name, parameter.device))
    getattr(part, "reset_running_stats", _nothing)()


def _nothing() -> None:
    pass


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode, frozen, that calls the same hooks."""
    memo: dict[int, Any] = {}
    for part in model.modules():
        for name, value in vars(part).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                memo[id(value)] = copy.copy(value)  # what a bound method is bound to is not for copying
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # computed by a hook, as by `weight_norm`
    twin = copy.deepcopy(model, memo)
    for part in twin.modules():
        part.training = False
    return twin.requires_grad_(False)
