"""Images in folders: layouts, geometry, and broken files."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from lit_xai.data import ImageFolders, decode, fit


def fill(
    folder: Path, per_class: int, classes: tuple[str, ...] = ("one", "two"), shape: tuple[int, int] = (6, 8)
):
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.full((*shape, 3), 100 * c + i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")


def values(data: ImageFolders, part: str) -> list[int]:
    images = getattr(data.splits, part)
    return [round(images[i][0][0, 0, 0].item() * 255) for i in range(len(images))]


def test_one_folder_is_split_by_the_seed(tmp_path: Path):
    fill(tmp_path, 40)
    data = ImageFolders(str(tmp_path), size=6, val=20, test=0.25)
    data.setup("fit")
    parts = [values(data, part) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [40, 20, 20]
    assert sorted(chain(*parts)) == sorted([*range(40), *range(100, 140)])
    assert sum(value >= 100 for value in parts[1]) == 10
    again = ImageFolders(str(tmp_path), size=6, val=20, test=0.25)
    assert values(again, "val") == parts[1]
    assert (data.classes, data.names, data.image_shape) == (2, ("one", "two"), (3, 6, 6))


def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path):
    for part, count in (("train", 12), ("val", 30), ("test", 5)):
        fill(tmp_path / part, count)
    data = ImageFolders(str(tmp_path), size=6)
    assert sorted(values(data, "train")) == [*range(12), *range(100, 112)]
    assert sorted(values(data, "val")) == [*range(30), *range(100, 130)]
    assert sorted(values(data, "test")) == [*range(5), *range(100, 105)]
    first = torch.stack([data.splits.val[i][1] for i in range(16)])
    assert 3 <= first.sum() <= 13  # no longer sorted by class


def test_without_a_test_folder_validation_is_tested_on(tmp_path: Path):
    for part in ("train", "val"):
        fill(tmp_path / part, 6)
    data = ImageFolders(str(tmp_path), size=6)
    assert values(data, "test") == values(data, "val")


def test_images_are_real_and_batched(tmp_path: Path):
    digits = load_digits()
    for i in range(60):
        folder = tmp_path / str(digits.target[i])
        folder.mkdir(exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(folder / f"{i}.png")
    data = ImageFolders(str(tmp_path), size=8, channels=1, val=10, test=10, batch_size=40)
    ((inputs, target),) = data.train_dataloader()
    assert (inputs.shape, inputs.dtype, target.dtype) == ((40, 1, 8, 8), torch.float32, torch.int64)
    table = {
        (image * 15).astype(np.uint8).tobytes(): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    for image, label in zip(inputs, target, strict=True):
        assert table[(image * 255).round().byte().numpy().tobytes()] == label


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (21, 21), (5, 9)])
def test_resizing_is_that_of_torchvision(shape: tuple[int, int]):
    pixels = (torch.rand(3, *shape) * 255).byte()
    theirs = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(16)])(pixels)
    assert torch.equal(fit(pixels, 16), theirs)
    assert fit(pixels.float() / 255, 16).max() <= 1
    mask = torch.rand(1, *shape) < 0.5
    assert fit(mask, 16, smooth=False).dtype == torch.bool


def test_a_photo_is_set_upright(tmp_path: Path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 255  # the first stored row is the right edge of what the camera saw
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = decode(tmp_path / "turned.png", "turned.png")
    assert upright.shape == (3, 6, 4)
    assert (upright[:, :, -1] == 255).all()
    assert (upright[:, :, :-1] == 0).all()


def test_grey_palette_and_transparent_files_become_colour(tmp_path: Path):
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        grey.convert(mode).save(tmp_path / f"{mode}.png")
        assert decode(tmp_path / f"{mode}.png", mode).shape == (3, 3, 4)
        assert decode(tmp_path / f"{mode}.png", mode, channels=1).shape == (1, 3, 4)


def test_broken_files_are_named_with_the_reason(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-99])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.full((3, 4), 60000, np.uint16)).save(tmp_path / "deep.png")
    for name, words in (
        ("cut.png", "cut.png cannot be read as an image: "),
        ("text.png", "text.png is not an image that Pillow can read."),
        ("empty.png", "empty.png is not an image that Pillow can read."),
        ("absent.png", "absent.png cannot be read as an image: .*No such file"),
        ("deep.png", "deep.png cannot be read as an image: more than 8 bits per channel"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            decode(tmp_path / name, str(tmp_path / name))
        assert "\n" not in str(caught.value)


# torch takes five seconds to let go of a worker that failed.
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_broken_file_stops_loading_by_name(tmp_path: Path, workers: int):
    for part in ("train", "val"):
        fill(tmp_path / part, 6)
    (tmp_path / "val" / "two" / "003.png").write_text("not an image")
    data = ImageFolders(str(tmp_path), size=6, workers=workers)
    with pytest.raises(ValueError, match=r"003.png is not an image"):
        list(data.val_dataloader())


def test_impossible_folders_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "one").mkdir(parents=True)
    fill(tmp_path / "half" / "train", 3)
    for part, classes in (("train", ("one", "two")), ("val", ("one", "three"))):
        fill(tmp_path / "odd" / part, 3, classes)
    fill(tmp_path / "small", 3)
    for name, words in (
        ("absent", "`root` must be a folder, got .*absent"),
        ("empty", "empty must hold one folder of images per class"),
        ("hollow", "hollow must hold one folder of images per class: .*one"),
        ("half", "half has a folder train, and so must have a folder val"),
        ("odd", r"val must have the classes of train; they differ in \['three', 'two'\]"),
        ("small", "`test` must hold every class: with 1 of 6 images"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            ImageFolders(str(tmp_path / name), size=6).setup("fit")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"size": 0}, "`size` must be at least 1, got 0."),
        ({"size": 8, "channels": 2}, "`channels` must be 1 or 3"),
    ],
)
def test_impossible_arguments_are_refused(argument: dict[str, int], words: str):
    with pytest.raises(ValueError, match=words):
        ImageFolders("anywhere", **argument)
