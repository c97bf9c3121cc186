"""The torchvision sources, read from files in the official formats that hold real digits."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from lit_xai.data import Cifar10, FashionMnist, ImageData, Mnist


def digits(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Real digits, black around."""
    source = load_digits()
    pixels = np.zeros((count, size, size), np.uint8)
    pixels[:, 2:10, 2:10] = source.images[:count] * 15
    return pixels, source.target[:count].astype(np.uint8)


def write_idx(folder: Path) -> None:
    """The four files of MNIST and Fashion-MNIST: big-endian header, then bytes."""
    folder.mkdir(parents=True)
    for part, count in (("train", 300), ("t10k", 100)):
        pixels, labels = digits(count, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


@pytest.mark.parametrize("source", [Mnist, FashionMnist])
def test_grey_sources_take_validation_from_training(source: type[Mnist], tmp_path: Path):
    write_idx(tmp_path / ("MNIST" if source is Mnist else "FashionMNIST") / "raw")
    data = source(root=str(tmp_path), val=60)
    data.prepare_data()
    data.setup("fit")
    splits = data.splits
    assert (data.classes, data.image_shape) == (10, (1, 28, 28))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [240, 60, 100]
    pixels, labels = digits(100, 28)
    assert torch.equal(splits.test.pixels[:, 0], torch.from_numpy(pixels))  # the official order is kept
    assert splits.test.labels.tolist() == labels.tolist()
    pixels, labels = digits(300, 28)
    both = torch.cat([splits.train.pixels, splits.val.pixels])
    assert sorted(image.numpy().tobytes() for image in both) == sorted(image.tobytes() for image in pixels)
    counts = torch.bincount(torch.from_numpy(labels))
    assert ((splits.val.labels.bincount() - counts * 0.2).abs() < 1).all()


def test_cifar_keeps_colours_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = rng.integers(0, 256, (200, 3072), dtype=np.uint8)
    labels = [i % 10 for i in range(200)]
    for name, part in (("data_batch_1", slice(0, 150)), ("test_batch", slice(150, 200))):
        (folder / name).write_bytes(pickle.dumps({"data": rows[part], "labels": labels[part]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None}
    )
    data = Cifar10(root=str(tmp_path), val=0.2)
    data.setup("fit")
    assert (data.classes, data.image_shape, data.names[3]) == (10, (3, 32, 32), "class 3")
    # A row holds 1,024 red, then green, then blue values.
    assert torch.equal(data.splits.test.pixels.flatten(1), torch.from_numpy(rows[150:]))
    assert data.splits.val.labels.bincount().tolist() == [3] * 10
    assert data.splits.train.labels.bincount().tolist() == [12] * 10


@pytest.mark.parametrize("source", [Cifar10, Mnist, FashionMnist])
def test_missing_files_are_named_with_the_remedy(source: type[Mnist], tmp_path: Path):
    data: ImageData = source(root=str(tmp_path / "nothing"))
    data.prepare_data()
    with pytest.raises(
        ValueError, match=r"nothing does not hold the data .*; set `download: true`."
    ) as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [Cifar10, Mnist, FashionMnist])
def test_a_failed_download_is_one_line(source: type[Mnist], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train:\nTried this mirror\nand that one")

    for module in ("cifar", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", refuse)
    with pytest.raises(ValueError, match="could not be filled by download: Error downloading") as caught:
        source(root=str(tmp_path), download=True).prepare_data()
    assert "\n" not in str(caught.value)
