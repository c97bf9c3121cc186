"""A source of data that reads packs: images, labels and what is known about them in one `.npz` file."""

from typing import Any

from lit_xai.data.base import ImageData, ImageSet, Splits
from lit_xai.data.order import shuffled, stratified
from lit_xai.data.pack import opened
from lit_xai.types import require, require_at_least


class NpzPack(ImageData):
    """Images and labels from `.npz` files, with masks or boxes of the objects where they are known.

    A pack holds, for N images,

    * `images` (or `image`, `x`): (N, H, W) or (N, H, W, C), uint8, or float in [0, 1]; or instead
      `jpeg`, all encoded files end to end, file i being `jpeg[offsets[i]:offsets[i + 1]]`;
    * `labels` (or `label`, `y`): whole numbers from 0 on;
    * optional `masks` (or `mask`): (N, H, W), 1 on the object; or `boxes`: rows (image, x0, y0, x1, y1) in
      pixels, whose union becomes the mask: pixels with their centre in a box;
    * optional `classes`: names.

    Keys may start with `train_`, `val_` and `test_` to hold several splits in one file. Splits are served in
    shuffled order, so that the first images of one are a fair sample of it.

    Args:
        path: The pack to train on; what it does not split by itself is split by the seed.
        test_path: Another pack, to test on.
        size: Side in pixels; the shorter side is resized to it, then the centre is cut out. Null keeps images
            as they are, which must then be of one size.
        val: Images to validate on where `path` is split: a count or a share.
        test: Images to test on where `path` is split: a count or a share.
        **loading: Arguments of `ImageData`.

    Raises:
        ValueError: Something is missing in a pack or wrong with it; names file, key and reason.
    """

    def __init__(
        self,
        path: str,
        test_path: str | None = None,
        size: int | None = None,
        val: int | float = 0.1,
        test: int | float = 0.1,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        require_at_least(1, size=1 if size is None else size)
        self.path = path
        self.test_path = test_path
        self.size = size
        self.val = val
        self.test = test

    def load(self) -> Splits:
        parts: dict[str, ImageSet] = {}
        if self.test_path is not None:
            with opened(self.test_path) as pack:
                parts["test"] = pack.read(self.size)
        with opened(self.path) as pack:
            for part in ("train", "val", "test"):
                if part not in parts and pack.has(f"{part}_"):
                    parts[part] = pack.read(self.size, f"{part}_")
            whole = parts.pop("train") if "train" in parts else pack.read(self.size)
            sizes = {"test": self.test, "val": self.val}
            sets = self._draw(whole, {part: sizes[part] for part in sizes if part not in parts})
            names = pack.names(int(whole.labels.max()) + 1)

        for part, images in parts.items():
            shape, expected = _shape(images), _shape(whole)
            require(shape == expected, f"{self.path}: `{part}` has images {shape}, `train` {expected}.")
            top = int(images.labels.max())
            known = f"{self.path}: `train` has no image of class {top}, which `{part}` has."
            require(top < len(names), known)
            sets[part] = images.subset(shuffled(len(images), self.seed, part))
        train = ImageSet(sets["train"].pixels, sets["train"].labels)
        return Splits(train, sets["val"], sets["test"], names)

    def _draw(self, images: ImageSet, sizes: dict[str, int | float | None]) -> dict[str, ImageSet]:
        """Splits of the given sizes, and `train` from the rest."""
        try:
            drawn = stratified(images.labels, self.seed, **sizes, train=None)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        return {part: images.subset(indices) for part, indices in zip((*sizes, "train"), drawn, strict=True)}


def _shape(images: ImageSet) -> tuple[int, ...]:
    return tuple(images.pixels.shape[1:])
