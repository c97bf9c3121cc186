"""Baselines: their pixels, keyed draws, files in every layout, and files that are refused."""

import os
import re

import numpy
import pytest
import torch

from lit_xai.attributions import baselines
from lit_xai.attributions.baselines import FlatImage, NoiseImage, StoredImages, settled

KEYS = torch.arange(6) * 7919 + 13


def test_flat_images_are_flat():
    inputs = torch.rand(6, 3, 4, 5, dtype=torch.float64)
    images = FlatImage(0.25)(inputs, KEYS)
    assert images.dtype == inputs.dtype
    assert torch.equal(images, torch.full((6, 3, 4, 5), 0.25, dtype=torch.float64))


def test_noise_is_uniform_and_belongs_to_its_key():
    inputs = torch.zeros(6, 3, 40, 40)
    images = NoiseImage()(inputs, KEYS)
    assert 0 < images.min() < 0.001
    assert 0.999 < images.max() < 1
    assert abs(images.mean() - 0.5) < 4 / (12 * images.numel()) ** 0.5
    assert torch.equal(NoiseImage()(inputs[:2], KEYS[[4, 1]]), images[[4, 1]])
    assert not torch.equal(images[0], images[1])


def test_stored_images_are_drawn_by_key_all_equally_often(tmp_path):
    stored = torch.rand(5, 2, 3, 4)
    numpy.save(tmp_path / "set.npy", stored.numpy())
    baseline = StoredImages(str(tmp_path / "set.npy"))
    keys = torch.arange(5000)
    images = baseline(torch.zeros(5000, 2, 3, 4), keys)
    assert torch.equal(baseline(torch.zeros(2, 2, 3, 4), keys[[7, 3]]), images[[7, 3]])
    counts = (images[:, None] == stored).flatten(2).all(2).sum(0)
    assert counts.sum() == 5000
    # Five shares of 1/5 each: a chi-square of 4 degrees of freedom exceeds 18.5 once in a thousand.
    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5


@pytest.mark.parametrize("key", ["images", "image", "x", "inputs"])
@pytest.mark.parametrize("layout", ["channels first", "channels last", "none"])
@pytest.mark.parametrize("whole", [True, False])
def test_files_are_read_in_every_layout(key, layout, whole, tmp_path):
    channels = 1 if layout == "none" else 3
    images = torch.randint(0, 256, (1, channels, 4, 6), dtype=torch.uint8)
    array = {"channels first": images, "channels last": images.permute(0, 2, 3, 1), "none": images[:, 0]}[
        layout
    ]
    kept = array.numpy() if whole else (array / 255).double().numpy()
    numpy.savez(tmp_path / "set.npz", **{key: kept, "labels": numpy.zeros(1)})
    read = StoredImages(str(tmp_path / "set.npz"))(torch.zeros(2, channels, 4, 6), KEYS[:2])
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, (images / 255).expand(2, -1, -1, -1))


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    reads = []
    load = numpy.load
    monkeypatch.setattr(
        baselines.np, "load", lambda *given, **more: reads.append(given) or load(*given, **more)
    )
    path = tmp_path / "set.npy"
    baseline, inputs = None, torch.zeros(1, 1, 2, 2)
    for value, stamp in ((0.25, 1_000), (0.75, 2_000)):
        numpy.save(path, numpy.full((1, 1, 2, 2), value))
        os.utime(path, ns=(stamp, stamp))
        baseline = baseline or StoredImages(str(path))
        with torch.inference_mode():  # a first use in inference mode spoils no later one
            assert float(baseline(inputs, KEYS[:1]).mean()) == value
        total = (baseline(inputs, KEYS[:1]).requires_grad_() * 4).mean()
        total.backward()
        assert total.item() == 4 * value
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": numpy.zeros(3)}, "no `images`, `image`, `x` or `inputs` in it, only labels."),
        (
            {"images": numpy.zeros((3, 4))},
            "images must have shape (N, C, H, W), (N, H, W, C) or (N, H, W), got (3,",
        ),
        ({"images": numpy.zeros((0, 1, 2, 2))}, "images must have shape"),
        ({"images": numpy.full((1, 1, 2, 2), 1.5)}, "images must be uint8, or float in [0, 1]."),
        ({"images": numpy.full((1, 1, 2, 2), numpy.nan)}, "images must be uint8, or float in [0, 1]."),
        ({"images": numpy.zeros((1, 1, 2, 2), int)}, "images must be uint8, or float in [0, 1]."),
        ({"images": numpy.zeros((1, 1, 3, 2))}, "images have shape (1, 3, 2), those explained (1, 2, 2)."),
        ({"images": numpy.array([None])}, "not a .npy or .npz file of numbers"),
    ],
)
def test_files_without_fitting_images_are_refused(arrays, message, tmp_path):
    path = tmp_path / "set.npz"
    numpy.savez(path, **arrays)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}"[:120])):
        StoredImages(str(path))(torch.zeros(1, 1, 2, 2), KEYS[:1])


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must name a .npy or .npz file, got 'nowhere.npz'."):
        StoredImages("nowhere.npz")
    (tmp_path / "text.npz").write_text("no array")
    with pytest.raises(ValueError, match=r"not a .npy or .npz file of numbers"):
        StoredImages(str(tmp_path / "text.npz"))(torch.zeros(1, 1, 2, 2), KEYS[:1])


def test_a_number_stands_for_a_flat_image():
    assert settled(0.5) == FlatImage(0.5)
    assert settled(NoiseImage()) == NoiseImage()
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"`baseline` must lie in \[0, 1\], got"):
            settled(value)
        with pytest.raises(ValueError, match=r"`value` must lie in \[0, 1\], got"):
            FlatImage(value)
