"""Packs: images, labels and what is known about them in one `.npz` file, checked while they are read."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_xai.data.base import ImageSet
from lit_xai.data.decode import decode, fit
from lit_xai.types import require

Array = NDArray[Any]
IMAGES, LABELS, MASKS = ("images", "image", "x"), ("labels", "label", "y"), ("masks", "mask")
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@contextmanager
def opened(path: str) -> Iterator["Pack"]:
    """Open a pack; no pickled object is ever loaded from it.

    Raises:
        ValueError: The file is missing, or not an archive.
    """
    with ExitStack() as stack:
        try:
            archive = np.load(stack.enter_context(Path(path).open("rb")), allow_pickle=False)
        except UNREADABLE as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).rstrip(".")
            raise ValueError(f"{path} cannot be read as an .npz archive: {reason}.") from error
        require(isinstance(archive, np.lib.npyio.NpzFile), f"{path} is a single array, not an .npz archive.")
        yield Pack(path, archive)


@dataclass(frozen=True)
class Pack:
    """One open archive, whose every complaint names file, key and reason."""

    path: str
    archive: np.lib.npyio.NpzFile

    def has(self, prefix: str) -> bool:
        """Whether images are there under keys with this prefix."""
        return any(prefix + key in self.archive for key in (*IMAGES, "jpeg"))

    def names(self, classes: int) -> tuple[str, ...]:
        """Names of the classes; their numbers where there are none."""
        if "classes" not in self.archive:
            return tuple(map(str, range(classes)))
        names = tuple(map(str, self._array("classes").tolist()))
        self._require(
            len(names) == classes, "classes", f"names {len(names)} classes, the labels to train on {classes}"
        )
        return names

    def read(self, size: int | None = None, prefix: str = "") -> ImageSet:
        """The images under keys with this prefix, brought to `size` where one is given."""
        key = self._key(prefix, *IMAGES, "jpeg")
        images = self._jpeg(prefix) if key == f"{prefix}jpeg" else self._images(key)
        labels = self._labels(self._key(prefix, *LABELS), len(images))
        masks = self._masks(prefix, images)
        pixels = self._stack(key, images, size, smooth=True)
        if masks is None:
            return ImageSet(pixels, labels)
        return ImageSet(pixels, labels, self._stack(key, masks, size, smooth=False)[:, 0])

    def _images(self, key: str) -> list[Tensor] | Tensor:
        array = self._array(key)
        if array.ndim == 3:
            array = array[..., None]
        good = array.ndim == 4 and 1 <= array.shape[-1] <= 4
        self._require(
            good, key, f"has shape {array.shape}; expected (N, H, W) or (N, H, W, C) with C at most 4"
        )
        self._require(array.size > 0, key, "holds no images")
        if array.dtype != np.uint8:
            self._require(
                np.issubdtype(array.dtype, np.floating),
                key,
                f"has dtype {array.dtype}; expected uint8 in 0..255 or float in [0, 1]",
            )
            flat = array.reshape(len(array), -1)
            outside = ~((flat >= 0) & (flat <= 1)).all(1)  # NaN is outside
            first = int(outside.argmax())
            reason = f"{first} runs from {flat[first].min():g} to {flat[first].max():g}; expected [0, 1]"
            self._require(
                not outside.any(),
                key,
                f"image {reason}: scale the pixels, and leave normalisation to the model",
            )
            array = array.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))

    def _jpeg(self, prefix: str) -> list[Tensor]:
        key, start = f"{prefix}jpeg", f"{prefix}offsets"
        data, offsets = self._array(key), self._array(self._key(prefix, "offsets"))
        flat = data.ndim == 1 and data.dtype == np.uint8
        self._require(flat, key, f"has shape {data.shape} and dtype {data.dtype}; expected one row of uint8")
        whole = offsets.ndim == 1 and np.issubdtype(offsets.dtype, np.integer) and len(offsets) > 1
        self._require(
            whole, start, f"has shape {offsets.shape} and dtype {offsets.dtype}; expected N + 1 integers"
        )
        rising = offsets[0] >= 0 and (offsets[1:] > offsets[:-1]).all() and offsets[-1] <= len(data)
        self._require(bool(rising), start, f"must rise from 0 to at most {len(data)}, the length of `{key}`")
        ends = offsets.tolist()
        return [
            decode(io.BytesIO(data[begin:end].tobytes()), f"{self.path}: `{key}` {i}")
            for i, (begin, end) in enumerate(pairwise(ends))
        ]

    def _labels(self, key: str, count: int) -> Tensor:
        labels = self._array(key)
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        self._require(labels.ndim == 1, key, f"has shape {labels.shape}; expected one label per image")
        whole = np.issubdtype(labels.dtype, np.integer)
        self._require(whole, key, f"has dtype {labels.dtype}; expected integers")
        self._require(len(labels) == count, key, f"has {len(labels)} entries for {count} images")
        low = int(labels.argmin())
        self._require(bool(labels[low] >= 0), key, f"entry {low} is {labels[low]}; labels start at 0")
        return torch.from_numpy(labels.astype(np.int64))

    def _masks(self, prefix: str, images: list[Tensor] | Tensor) -> list[Tensor] | Tensor | None:
        """One mask (1, H, W) per image, in the size of the image."""
        given = [prefix + key for key in MASKS if prefix + key in self.archive]
        if not given:
            return self._boxes(f"{prefix}boxes", images) if f"{prefix}boxes" in self.archive else None
        key, masks = given[0], self._array(given[0])
        expected = (len(images), *images[0].shape[1:])
        same = masks.shape == expected and all(image.shape[1:] == masks.shape[1:] for image in images)
        self._require(same, key, f"has shape {masks.shape}; expected that of the images, {expected}")
        binary = masks.dtype == bool or (masks.dtype.kind in "iuf" and bool(np.isin(masks, (0, 1)).all()))
        self._require(binary, key, f"of dtype {masks.dtype} must hold nothing but 0 and 1")
        return torch.from_numpy(masks.astype(bool)).unsqueeze(1)

    def _boxes(self, key: str, images: list[Tensor] | Tensor) -> list[Tensor]:
        boxes = self._array(key)
        good = boxes.ndim == 2 and boxes.shape[1] == 5 and boxes.dtype.kind in "iuf"
        self._require(
            good, key, f"has shape {boxes.shape} and dtype {boxes.dtype}; expected rows of 5 numbers"
        )
        masks = [torch.zeros(1, *image.shape[1:], dtype=torch.bool) for image in images]
        for i, (image, *corners) in enumerate(boxes.tolist()):
            known = 0 <= image < len(images) and image % 1 == 0
            self._require(known, key, f"row {i} names image {image:g} of {len(images)}")
            mask, (x0, y0, x1, y1) = masks[int(image)], corners
            _, height, width = mask.shape
            inside = 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            self._require(inside, key, f"row {i} must lie in its image of {width}x{height}, got {corners}")
            # A pixel belongs to the box that its centre lies in.
            left, top, right, bottom = (int(np.ceil(edge - 0.5)) for edge in (x0, y0, x1, y1))
            mask[:, top:bottom, left:right] = True
        return masks

    def _stack(self, key: str, images: list[Tensor] | Tensor, size: int | None, smooth: bool) -> Tensor:
        """Images of one size as one tensor."""
        if isinstance(images, Tensor):
            return images if size is None else fit(images, size, smooth)
        resized = images if size is None else [fit(image, size, smooth) for image in images]
        odd = next((i for i, image in enumerate(resized) if image.shape != resized[0].shape), 0)
        self._require(odd == 0, key, f"image {odd} differs in size from image 0; give `size`")
        return torch.stack(resized)

    def _key(self, prefix: str, *keys: str) -> str:
        found = [prefix + key for key in keys if prefix + key in self.archive]
        names = " or ".join(f"`{prefix}{key}`" for key in keys)
        held = ", ".join(self.archive.files) or "nothing"
        require(bool(found), f"{self.path} must hold {names}; it holds {held}.")
        return found[0]

    def _array(self, key: str) -> Array:
        try:
            array: Array = self.archive[key]
        except UNREADABLE as error:
            raise ValueError(f"{self.path}: `{key}` cannot be read: {error}.") from error
        return array

    def _require(self, condition: bool, key: str, reason: str) -> None:
        require(condition, f"{self.path}: `{key}` {reason}.")
