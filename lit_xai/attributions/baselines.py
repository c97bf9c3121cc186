"""Where a path starts: images that stand for nothing to be seen."""

import abc
import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_xai import randomness
from lit_xai.types import Images, Keys, require


class Baseline(abc.ABC):
    """Gives every image one to be compared with. Concrete baselines are final frozen dataclasses.

    One that is drawn is drawn by key, so that it belongs to its image and not to the batch.
    """

    @abc.abstractmethod
    def __call__(self, inputs: Images, keys: Keys) -> Images:
        """Return one baseline per image, in its shape; equal keys give equal draws."""


@dataclass(frozen=True)
class FlatImage(Baseline):
    """All pixels alike.

    Args:
        value: The pixel value, in [0, 1]: 0 is black, 1 white, 0.5 grey.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, section 2 (a black image).
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.value <= 1, f"`value` must lie in [0, 1], got {self.value!r}.")

    def __call__(self, inputs: Images, keys: Keys) -> Images:
        return torch.full_like(inputs, self.value)


@dataclass(frozen=True)
class NoiseImage(Baseline):
    """Pixels drawn independently and uniformly from (0, 1), anew for every key.

    Source: Sturmfels, Lundberg and Lee 2020, "Visualizing the impact of feature attribution baselines"
    (uniform baseline).
    """

    def __call__(self, inputs: Images, keys: Keys) -> Images:
        return randomness.uniform(keys, 0, inputs.shape[1:], inputs.dtype)


@dataclass(frozen=True)
class NormalImage(Baseline):
    """Pixels drawn independently from the standard normal distribution, anew for every key.

    Source: by definition.
    """

    def __call__(self, inputs: Images, keys: Keys) -> Images:
        return randomness.normal(keys, 0, inputs.shape[1:], inputs.dtype)


@dataclass(frozen=True)
class StoredImages(Baseline):
    """Images of a file, one drawn for every key, all equally likely: a reference set such as training images.

    The file is read once, on first use, and kept in memory. It holds one array (`.npy`), or one under
    `images`, `image`, `x` or `inputs` (`.npz`, as in a pack): (N, C, H, W), (N, H, W, C), or (N, H, W) for
    one channel; uint8, or float in [0, 1].

    Args:
        path: The file, `.npy` or `.npz`.

    Raises:
        ValueError: There is no such file; on first use, that it holds no images, or none in the shape of
            those that are explained.

    Source: Erion, Janizek, Sturmfels, Lundberg and Lee 2019, arXiv 1906.10670 (a reference set).
    """

    path: str

    def __post_init__(self) -> None:
        require(Path(self.path).is_file(), f"`path` must name a .npy or .npz file, got {self.path!r}.")

    def __call__(self, inputs: Images, keys: Keys) -> Images:
        stored = _stored(self.path, os.stat(self.path).st_mtime_ns, str(inputs.device))
        channels, height, width = shape = tuple(inputs.shape[1:])
        kept = tuple(stored.shape[1:])
        if kept == (height, width) and channels == 1:
            stored = stored[:, None]
        elif kept != shape and kept == (height, width, channels):
            stored = stored.permute(0, 3, 1, 2)
        else:
            require(kept == shape, f"{self.path}: images have shape {kept}, those explained {shape}.")
        chosen = randomness.uniform(keys, 0, ()).mul(len(stored)).long()
        images = stored[chosen].to(inputs.dtype)
        return images if stored.is_floating_point() else images / 255


def settled(baseline: float | Baseline) -> Baseline:
    """The baseline itself, or the flat image of that pixel value.

    Raises:
        ValueError: It is a number outside of [0, 1].
    """
    if isinstance(baseline, Baseline):
        return baseline
    require(0 <= baseline <= 1, f"`baseline` must lie in [0, 1], got {baseline!r}.")
    return FlatImage(baseline)


@lru_cache(maxsize=4)
def _stored(path: str, modified: int, device: str) -> Tensor:
    """The images of a file as they are stored, on a device; read again where the file has changed."""
    array = _array(path)
    require(
        array.ndim in (3, 4) and len(array) > 0,
        f"{path}: images must have shape (N, C, H, W), (N, H, W, C) or (N, H, W), got {array.shape}.",
    )
    if array.dtype != np.uint8:
        require(
            np.issubdtype(array.dtype, np.floating) and bool(((array >= 0) & (array <= 1)).all()),
            f"{path}: images must be uint8, or float in [0, 1].",
        )
    with torch.inference_mode(False):  # kept for later calls, which may be outside of it
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _array(path: str) -> Any:
    """The array of a `.npy` file, or the images of an `.npz` file; no pickled object is loaded."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = [name for name in ("images", "image", "x", "inputs") if name in loaded]
            if names:
                return loaded[names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a .npy or .npz file of numbers ({error}).") from None
    held = ", ".join(loaded.files)
    raise ValueError(f"{path}: no `images`, `image`, `x` or `inputs` in it, only {held}.")
