"""Images in folders named after their classes, decoded when they are needed."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from lit_xai.data.base import ImageData, Sample, Splits
from lit_xai.data.decode import MODES, decode, fit
from lit_xai.data.order import Indices, shuffled, stratified
from lit_xai.types import Labels, require, require_at_least


class FileSet(Dataset[Sample]):
    """Labelled image files, decoded one by one.

    Args:
        files: Paths.
        labels: Class of every file.
        size: Side in pixels; the shorter side is resized to it, then the centre is cut out.
        channels: 3 for colour, 1 for grey.
    """

    def __init__(self, files: list[str], labels: Labels, size: int, channels: int = 3) -> None:
        self.files = files
        self.labels = labels
        self.size = size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        pixels = decode(self.files[index], self.files[index], self.channels)
        return fit(pixels, self.size).float() / 255, self.labels[index]

    def subset(self, indices: Indices) -> "FileSet":
        """The chosen files, in the given order."""
        files = [self.files[index] for index in indices.tolist()]
        return FileSet(files, self.labels[indices], self.size, self.channels)


class ImageFolders(ImageData):
    """Image files in one folder per class, below `root/train`, `root/val` and `root/test`, or below `root`.

    Where there is no `root/test`, the validation images are tested on. A single `root` is split by the seed.
    Splits are served in shuffled order, so that the first images of one are a fair sample of it.

    Args:
        root: Folder of the classes, or of the splits.
        size: Side in pixels; the shorter side is resized to it, then the centre is cut out.
        channels: 3 for colour, 1 for grey.
        val: Images to validate on where `root` is split: a count or a share.
        test: Images to test on where `root` is split: a count or a share.
        **loading: Arguments of `ImageData`.

    Raises:
        ValueError: Folders or classes are missing, or an image is broken.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: int = 3,
        val: int | float = 0.1,
        test: int | float = 0.1,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        require_at_least(1, size=size)
        require(channels in MODES, f"`channels` must be 1 or 3, got {channels}.")
        self.root = Path(root)
        self.size = size
        self.channels = channels
        self.sizes = {"test": test, "val": val, "train": None}

    def load(self) -> Splits:
        require(self.root.is_dir(), f"`root` must be a folder, got {self.root.resolve()}.")
        if not (self.root / "train").is_dir():
            files, names = self._files(self.root)
            test, val, train = stratified(files.labels, self.seed, **self.sizes)
            return Splits(files.subset(train), files.subset(val), files.subset(test), names)
        last = "test" if (self.root / "test").is_dir() else "val"
        parts = {}
        for part in ("train", "val", last):
            folder = self.root / part
            require(
                folder.is_dir(), f"`root` {self.root} has a folder train, and so must have a folder {part}."
            )
            files, names = self._files(folder)
            parts[part] = files.subset(shuffled(len(files), self.seed, part)), names
        names = parts["train"][1]
        for part, (_, others) in parts.items():
            odd = sorted(set(names) ^ set(others))
            require(not odd, f"{self.root / part} must have the classes of train; they differ in {odd[:5]}.")
        return Splits(parts["train"][0], parts["val"][0], parts[last][0], names)

    def _files(self, folder: Path) -> tuple[FileSet, tuple[str, ...]]:
        try:
            found = ImageFolder(folder)
        except FileNotFoundError as error:
            raise ValueError(f"{folder} must hold one folder of images per class: {error}") from error
        files = [path for path, _ in found.samples]
        return FileSet(files, torch.tensor(found.targets), self.size, self.channels), tuple(found.classes)
