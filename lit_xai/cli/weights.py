"""Weights from files of plain tensors: loaded whole, or refused with what does not fit."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_xai.types import require

PREFIXES = ("module.", "model.", "_orig_mod.")  # of DistributedDataParallel, LightningModule, torch.compile


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file: a state dict, or one under the key `state_dict`.

    Raises:
        ValueError: The file is missing, holds more than plain data, or holds no state dict.
    """
    require(path.is_file(), f"weights {path} do not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        objects = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        require(
            objects is None,
            f"{path} holds Python objects ({objects and objects[1]}), which are not loaded: "
            "save `torch.save(net.state_dict(), FILE)`.",
        )
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of plain tensors: {said[:160]}") from None
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else None
    require(
        isinstance(tensors, Mapping)
        and bool(tensors)
        and all(isinstance(value, Tensor) for value in tensors.values()),
        f"{path} holds no weights: save them as `torch.save(net.state_dict(), {path.name!r})`.",
    )
    return dict(tensors or {})


def load_weights(module: nn.Module, path: Path) -> None:
    """Load the weights of a file under their own names, all of them and nothing else.

    Raises:
        ValueError: They belong to another network.
    """
    _fit(module, read_weights(path), path, "the configuration describes")


def load_foreign(net: nn.Module, path: Path, name: str) -> str:
    """Load weights that a wrapper may have named: a prefix that all of them share is taken off.

    Args:
        net: Takes them.
        path: Their file.
        name: What the network is called.

    Returns:
        The prefix that was taken off; empty if there was none.

    Raises:
        ValueError: They belong to another network.
    """
    tensors, own, taken = read_weights(path), net.state_dict(), ""
    while prefix := next((p for p in PREFIXES if _all(tensors, p) and not _all(own, p)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        taken += prefix
    ours = {"mean", "std"} <= tensors.keys() and not {"mean", "std"} & own.keys()
    require(not ours, f"{path} is a checkpoint of `lit-xai fit`: name its run folder, `--run DIR`, instead.")
    _fit(net, tensors, path, f"{name} makes")
    return taken


def _all(names: Mapping[str, Tensor], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, expected: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ValueError(
            f"{path} belongs to another network than {expected}: {lines[0][:200]}"
            f"{f' (and {len(lines) - 1} more)' if len(lines) > 1 else ''}"
        ) from None
