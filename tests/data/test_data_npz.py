"""Packs: round trips, masks from boxes, real packs, and every complaint."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lit_xai.data import NpzPack
from lit_xai.data.pack import opened

RNG = np.random.default_rng(0)
COUNT = 40
COLOUR = RNG.integers(0, 256, (COUNT, 8, 10, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 2


def write(folder: Path, name: str = "pack.npz", **arrays: Any) -> str:
    path = folder / name
    np.savez(path, **arrays)
    return str(path)


def read(folder: Path, size: int | None = None, **arrays: Any):
    with opened(write(folder, **arrays)) as pack:
        return pack.read(size)


def encoded(images: list[np.ndarray], form: str = "PNG") -> dict[str, np.ndarray]:
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, form)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets}


@pytest.mark.parametrize("keys", [("images", "labels"), ("image", "label"), ("x", "y")])
def test_colour_bytes_come_back(tmp_path: Path, keys: tuple[str, str]):
    images = read(tmp_path, **{keys[0]: COLOUR, keys[1]: LABELS.astype(np.uint8)})
    assert images.pixels.dtype == torch.uint8
    assert torch.equal(images.pixels, torch.from_numpy(COLOUR).permute(0, 3, 1, 2))
    assert images.labels.tolist() == LABELS.tolist()
    assert images.masks is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_grey_floats_come_back(tmp_path: Path, dtype: type):
    grey = RNG.random((COUNT, 8, 10)).astype(dtype)
    images = read(tmp_path, images=grey, labels=LABELS[:, None])  # a column of labels is one, too
    assert torch.equal(images.pixels, torch.from_numpy(grey).float().unsqueeze(1))
    assert images.labels.tolist() == LABELS.tolist()


def test_jpeg_files_come_back(tmp_path: Path):
    files = [*COLOUR[:3], np.zeros((8, 10), np.uint8)]  # the last one is grey
    images = read(tmp_path, labels=[0, 1, 0, 1], **encoded(files))
    assert torch.equal(images.pixels[:3], torch.from_numpy(COLOUR[:3]).permute(0, 3, 1, 2))
    assert not images.pixels[3].any()
    lossy = encoded(list(COLOUR), "JPEG")
    images = read(tmp_path, labels=LABELS, **lossy)
    start, end = lossy["offsets"][5:7]
    picture = np.asarray(Image.open(io.BytesIO(lossy["jpeg"][start:end].tobytes())))
    assert torch.equal(images.pixels[5], torch.from_numpy(picture.copy()).permute(2, 0, 1))


def test_one_pack_is_split_by_class(tmp_path: Path):
    names = np.array(["cat", "dog"])
    path = write(tmp_path, images=COLOUR, labels=LABELS, masks=COLOUR[..., 0] > 128, classes=names)
    data = NpzPack(path, val=10, test=0.2)
    data.setup("fit")
    splits = data.splits
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [22, 10, 8]
    assert splits.val.labels.bincount().tolist() == [5, 5]
    assert (data.names, data.image_shape) == (("cat", "dog"), (3, 8, 10))
    # Masks belong to evaluation, and stay with their image.
    assert len(next(iter(data.train_dataloader()))) == 2
    inputs, _, mask = next(iter(data.val_dataloader()))
    assert torch.equal(mask, inputs[:, 0] * 255 > 128.5)


def test_another_pack_is_tested_on(tmp_path: Path):
    train = write(tmp_path, "train.npz", images=COLOUR, labels=LABELS)
    test = write(tmp_path, "test.npz", images=COLOUR[:5], labels=LABELS[:5], mask=COLOUR[:5, ..., 0] > 9)
    splits = NpzPack(train, test_path=test, val=10).load()
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 10, 5]
    assert splits.test.masks is not None
    expected = sorted(image.tobytes() for image in COLOUR[:5].transpose(0, 3, 1, 2))
    assert sorted(image.numpy().tobytes() for image in splits.test.pixels) == expected


def test_one_file_may_hold_its_splits(tmp_path: Path):
    parts = {
        f"{part}_{key}": array[rows]
        for part, rows in (("train", slice(0, 20)), ("val", slice(20, 30)), ("test", slice(30, 40)))
        for key, array in (("images", COLOUR), ("labels", LABELS))
    }
    splits = NpzPack(write(tmp_path, **parts)).load()
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [20, 10, 10]
    expected = sorted(image.tobytes() for image in COLOUR[20:30].transpose(0, 3, 1, 2))
    assert sorted(image.numpy().tobytes() for image in splits.val.pixels) == expected


def test_digits_survive_the_round_trip(tmp_path: Path):
    digits = load_digits()
    pixels = (digits.images * 15).astype(np.uint8)
    splits = NpzPack(write(tmp_path, x=pixels, y=digits.target), val=0.2, test=0.2).load()
    table = {image.tobytes(): label for image, label in zip(pixels, digits.target, strict=True)}
    for part in (splits.train, splits.val, splits.test):
        assert all(
            table[image.numpy().tobytes()] == label
            for image, label in zip(part.pixels, part.labels, strict=True)
        )


def test_boxes_become_masks(tmp_path: Path):
    boxes = np.array(
        [[0, 1, 2, 4, 5], [0, 3, 4, 6, 8], [2, 0, 0, 10, 8], [3, 1.4, 1.6, 3.6, 2.4]], np.float32
    )
    masks = read(tmp_path, images=COLOUR[:4], labels=LABELS[:4], boxes=boxes).masks
    expected = torch.zeros(4, 8, 10, dtype=torch.bool)
    for image, x0, y0, x1, y1 in boxes.tolist():
        for row in range(8):
            for column in range(10):
                if x0 <= column + 0.5 < x1 and y0 <= row + 0.5 < y1:
                    expected[int(image), row, column] = True
    assert torch.equal(masks, expected)
    assert masks.sum((1, 2)).tolist() == [9 + 12 - 1, 0, 80, 0]


def test_images_masks_and_boxes_are_resized_together(tmp_path: Path):
    wide, tall = np.zeros((8, 16, 3), np.uint8), np.zeros((24, 12, 3), np.uint8)
    wide[2:6, 6:10] = 255  # a bright square that its box encloses
    tall[9:15, 3:9] = 255
    boxes = np.array([[0, 6, 2, 10, 6], [1, 3, 9, 9, 15]])
    images = read(tmp_path, 8, labels=[0, 1], boxes=boxes, **encoded([wide, tall]))
    assert images.pixels.shape == (2, 3, 8, 8)
    assert torch.equal(images.masks[0], images.masks[1])
    assert torch.equal(images.masks, images.pixels[:, 0] > 127)


def test_arrays_are_resized(tmp_path: Path):
    images = read(tmp_path, 4, images=COLOUR, labels=LABELS, masks=np.ones((COUNT, 8, 10), np.uint8))
    assert images.pixels.shape == (COUNT, 3, 4, 4)
    assert images.masks.shape == (COUNT, 4, 4)
    assert images.masks.all()


GOOD = {"images": COLOUR, "labels": LABELS}
PNG = {"labels": np.array([0, 1]), **encoded(list(COLOUR[:2]))}
FLOATS = COLOUR / 255


def changed(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": LABELS}, "must hold `images` or `image` or `x` or `jpeg`; it holds labels."),
        ({}, "it holds nothing"),
        ({"images": COLOUR}, "must hold `labels` or `label` or `y`; it holds images."),
        (
            GOOD | {"images": COLOUR.astype(np.int64)},
            "`images` has dtype int64; expected uint8 in 0..255 or float",
        ),
        (GOOD | {"images": COLOUR[:, :, 0, 0]}, r"`images` has shape \(40, 8\); expected \(N, H, W\)"),
        (
            GOOD | {"images": COLOUR.transpose(0, 3, 1, 2)},
            r"`images` has shape \(40, 3, 8, 10\); expected .* C at most 4",
        ),
        (GOOD | {"images": COLOUR[:0], "labels": LABELS[:0]}, "`images` holds no images"),
        (
            GOOD | {"images": COLOUR.astype(np.float32)},
            r"`images` image 0 runs from .* to 25\d; expected \[0, 1\]: scale",
        ),
        (GOOD | {"images": changed(FLOATS, (7, 0, 0, 0), -0.5)}, "`images` image 7 runs from -0.5 to "),
        (GOOD | {"images": changed(FLOATS, (3, 1, 1, 1), np.nan)}, "`images` image 3 runs from nan"),
        (GOOD | {"labels": LABELS[:-1]}, "`labels` has 39 entries for 40 images"),
        (GOOD | {"labels": LABELS + 0.0}, "`labels` has dtype float64; expected integers"),
        (GOOD | {"labels": np.eye(2)[LABELS]}, r"`labels` has shape \(40, 2\); expected one label per image"),
        (GOOD | {"labels": changed(LABELS, (6,), -1)}, "`labels` entry 6 is -1; labels start at 0"),
        (GOOD | {"labels": LABELS * 2}, "`labels` must use every class from 0 to the largest: none is 1"),
        (GOOD | {"labels": LABELS * 10**15}, "`labels` must use every class .* none is 1"),
        (GOOD | {"labels": np.array([None] * 40)}, "`labels` cannot be read: .*allow_pickle"),
        (
            GOOD | {"classes": np.array(["a", "b", "c"])},
            "`classes` names 3 classes, the labels to train on 2",
        ),
        (GOOD | {"masks": np.ones((40, 8, 9))}, r"`masks` has shape \(40, 8, 9\); .* \(40, 8, 10\)"),
        (GOOD | {"mask": np.full((40, 8, 10), 255)}, "`mask` of dtype int64 must hold nothing but 0 and 1"),
        (
            GOOD | {"boxes": np.ones((2, 4))},
            r"`boxes` has shape \(2, 4\) and dtype float64; expected rows of 5",
        ),
        (GOOD | {"boxes": [[0, 0, 0, 1, 1], [40, 0, 0, 1, 1]]}, "`boxes` row 1 names image 40 of 40"),
        (GOOD | {"boxes": [[0.5, 0, 0, 1, 1]]}, "`boxes` row 0 names image 0.5 of 40"),
        (GOOD | {"boxes": [[np.nan, 0, 0, 1, 1]]}, "`boxes` row 0 names image nan of 40"),
        (GOOD | {"boxes": [[0, 0, 0, 11, 1]]}, "`boxes` row 0 must lie in its image of 10x8, got"),
        (GOOD | {"boxes": [[0, 3, 0, 3, 1]]}, "`boxes` row 0 must lie in its image"),
        (PNG | {"offsets": PNG["offsets"][:-1]}, "`labels` has 2 entries for 1 images"),
        (PNG | {"offsets": PNG["offsets"] * 2}, "`offsets` must rise from 0 to at most"),
        (PNG | {"offsets": PNG["offsets"][::-1]}, "`offsets` must rise"),
        (
            PNG | {"offsets": PNG["offsets"] + 0.5},
            "`offsets` has shape .* float64; expected N \\+ 1 integers",
        ),
        ({"jpeg": PNG["jpeg"], "labels": LABELS[:2]}, "must hold `offsets`"),
        (
            PNG | {"jpeg": PNG["jpeg"].astype(np.int16)},
            "`jpeg` has shape .* int16; expected one row of uint8",
        ),
        (
            PNG | {"jpeg": changed(PNG["jpeg"], (slice(PNG["offsets"][1], None),), 0)},
            "`jpeg` 1 is not an image",
        ),
        (
            PNG | encoded([COLOUR[0], COLOUR[1][:5]]),
            "`jpeg` image 1 differs in size from image 0; give `size`",
        ),
    ],
)
def test_every_fault_is_named_with_file_key_and_reason(tmp_path: Path, arrays: dict[str, Any], words: str):
    data = NpzPack(write(tmp_path, **arrays))
    with pytest.raises(ValueError, match=words) as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)
    assert "pack.npz" in str(caught.value)


def test_a_cut_jpeg_is_named(tmp_path: Path):
    pack = encoded(list(COLOUR[:2]), "JPEG")
    pack["offsets"][1] -= 40
    with pytest.raises(ValueError, match=r"pack.npz: `jpeg` 0 cannot be read as an image: .*truncated"):
        read(tmp_path, labels=[0, 1], **pack)


def test_files_that_are_no_packs_are_named(tmp_path: Path):
    whole = Path(write(tmp_path, **GOOD)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("not a pack")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", COLOUR)
    for name, words in (
        ("absent.npz", "absent.npz cannot be read as an .npz archive: no such file."),
        ("cut.npz", "cut.npz cannot be read as an .npz archive: "),
        ("text.npz", "text.npz cannot be read as an .npz archive: "),
        ("empty.npz", "empty.npz cannot be read as an .npz archive: "),
        ("single.npy", "single.npy is a single array, not an .npz archive."),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            NpzPack(str(tmp_path / name)).setup("fit")
        assert "\n" not in str(caught.value)


def test_a_flipped_byte_is_noticed(tmp_path: Path):
    path = Path(write(tmp_path, **GOOD))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"pack.npz: `images` cannot be read: .*CRC"):
        NpzPack(str(path)).setup("fit")


def test_splits_that_do_not_fit_together_are_refused(tmp_path: Path):
    train = write(tmp_path, "train.npz", **GOOD)
    other = write(tmp_path, "other.npz", images=COLOUR, labels=LABELS + 1)
    small = write(tmp_path, "small.npz", images=COLOUR[:, :4], labels=LABELS)
    with pytest.raises(ValueError, match=r"`train` has no image of class 2, which `test` has"):
        NpzPack(train, test_path=other).setup("fit")
    with pytest.raises(ValueError, match=r"`test` has images \(3, 4, 10\), `train` \(3, 8, 10\)"):
        NpzPack(train, test_path=small).setup("fit")


def test_size_is_checked():
    with pytest.raises(ValueError, match=r"`size` must be at least 1, got 0."):
        NpzPack("pack.npz", size=0)


def test_cifar_masks_are_read(shared_data: Path):
    path = shared_data / "cifar10" / "cifar10_masks.npz"
    with opened(str(path)) as pack:
        images = pack.read()
    assert (len(images), images.masks.shape) == (201, (201, 32, 32))
    assert 0.40 < images.masks.float().mean() < 0.42  # 41 %
    shares = images.masks.float().mean((1, 2))
    assert 0.10 < shares.min() < 0.12
    assert 0.90 < shares.max() < 0.92
    data = NpzPack(str(path))
    data.setup("fit")
    assert (data.classes, data.names[0], data.image_shape) == (10, "airplane", (3, 32, 32))


def test_exact_cifar_is_read_with_its_own_splits(shared_data: Path):
    splits = NpzPack(str(shared_data / "cifar10" / "cifar10_exact_2034.npz")).load()
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [915, 102, 1017]


@pytest.mark.slow
def test_a_jpeg_pack_stands_in_the_order_of_the_exact_one(shared_data: Path):
    with opened(str(shared_data / "cifar10" / "cifar10_jpeg_test.npz")) as pack:
        lossy = pack.read()
    with opened(str(shared_data / "cifar10" / "cifar10_exact_2034.npz")) as pack:
        exact = pack.read(prefix="test_")
    assert len(lossy) == 10_000
    assert lossy.labels.bincount().tolist() == [1000] * 10
    assert torch.equal(lossy.labels[:1017], exact.labels)
    error = (lossy.pixels[:1017].double() - exact.pixels).square().mean((1, 2, 3))
    noise = 10 * torch.log10(255**2 / error)
    assert 30 < noise.mean() < 31  # 30.5 dB, 23 dB at worst
    assert noise.min() > 22.5


def test_photos_with_boxes_are_read(shared_data: Path):
    path = str(shared_data / "imagenette224" / "imagenette224_test_boxes.npz")
    with opened(path) as pack:
        images = pack.read()
    assert images.pixels.shape == (500, 3, 224, 224)
    assert images.masks.flatten(1).any(1).all()
    with np.load(path) as pack:
        boxes = pack["boxes"]
    rows, counts = np.unique(boxes[:, 0].astype(int), return_counts=True)
    single = np.isin(boxes[:, 0], rows[counts == 1])
    area = (boxes[single, 3] - boxes[single, 1]) * (boxes[single, 4] - boxes[single, 2]) / 224**2
    covered = images.masks[boxes[single, 0].astype(int)].float().mean((1, 2))
    error = covered.numpy() - area
    assert np.abs(error).max() < 0.01  # half a pixel along each edge at most
    assert abs(error.mean()) < 0.0005
