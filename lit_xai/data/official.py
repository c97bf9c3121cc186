"""Data with an official test set, read by torchvision; validation images are taken from the training set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from lit_xai.data.base import ImageData, ImageSet, Splits
from lit_xai.data.order import stratified
from lit_xai.types import require


class Cifar10(ImageData):
    """CIFAR-10: 50,000 training and 10,000 test photos of 32x32 pixels in 10 classes.

    Args:
        root: Folder that holds, or will hold, `cifar-10-batches-py`.
        download: Fetch what is missing (170 MB).
        val: Training images to validate on: a count or a share.
        **loading: Arguments of `ImageData`.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    def __init__(
        self, root: str = "data", download: bool = False, val: int | float = 5000, **loading: Any
    ) -> None:
        super().__init__(**loading)
        self.root, self.download, self.val = root, download, val

    def prepare_data(self) -> None:
        _prepare(datasets.CIFAR10, self.root, self.download)

    def load(self) -> Splits:
        return _load(datasets.CIFAR10, self.root, self.val, self.seed)


class Mnist(ImageData):
    """MNIST: 60,000 training and 10,000 test digits of 28x28 pixels in 10 classes.

    Args:
        root: Folder that holds, or will hold, `MNIST/raw`.
        download: Fetch what is missing (12 MB).
        val: Training images to validate on: a count or a share.
        **loading: Arguments of `ImageData`.

    Source: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition".
    """

    def __init__(
        self, root: str = "data", download: bool = False, val: int | float = 5000, **loading: Any
    ) -> None:
        super().__init__(**loading)
        self.root, self.download, self.val = root, download, val

    def prepare_data(self) -> None:
        _prepare(datasets.MNIST, self.root, self.download)

    def load(self) -> Splits:
        return _load(datasets.MNIST, self.root, self.val, self.seed)


class FashionMnist(ImageData):
    """Fashion-MNIST: 60,000 training and 10,000 test pictures of clothes, 28x28 pixels, in 10 classes.

    Args:
        root: Folder that holds, or will hold, `FashionMNIST/raw`.
        download: Fetch what is missing (30 MB).
        val: Training images to validate on: a count or a share.
        **loading: Arguments of `ImageData`.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747.
    """

    def __init__(
        self, root: str = "data", download: bool = False, val: int | float = 5000, **loading: Any
    ) -> None:
        super().__init__(**loading)
        self.root, self.download, self.val = root, download, val

    def prepare_data(self) -> None:
        _prepare(datasets.FashionMNIST, self.root, self.download)

    def load(self) -> Splits:
        return _load(datasets.FashionMNIST, self.root, self.val, self.seed)


def _prepare(source: Callable[..., Any], root: str, download: bool) -> None:
    if download:
        try:
            source(root, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"`root` {Path(root).resolve()} could not be filled by download: {reason}"
            ) from error


def _load(source: Callable[..., Any], root: str, val: int | float, seed: int) -> Splits:
    try:
        train, test = source(root, train=True), source(root, train=False)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"`root` {Path(root).resolve()} does not hold the data ({reason}); set `download: true`."
        ) from error
    images, official = _images(train), _images(test)
    require(len(images) > 0 and len(official) > 0, f"`root` {Path(root).resolve()} holds no images.")
    chosen, rest = stratified(images.labels, seed, val=val, train=None)
    return Splits(images.subset(rest), images.subset(chosen), official, tuple(train.classes))


def _images(source: Any) -> ImageSet:
    """Bytes (N, H, W) or (N, H, W, 3) to channels first."""
    pixels = torch.as_tensor(source.data)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels, torch.as_tensor(source.targets))
