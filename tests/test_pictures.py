"""Pictures of maps say what the maps say."""

from pathlib import Path

import numpy as np
from PIL import Image

from lit_xai.callbacks import gallery
from lit_xai.pictures import PALETTE, flaw, photograph, shades


def painted(map_: np.ndarray) -> tuple[np.ndarray, float]:
    indices, scale = shades(map_)
    return PALETTE[indices], scale


def test_the_palette_runs_from_blue_over_white_to_red() -> None:
    assert PALETTE.shape == (256, 3)
    assert PALETTE[[0, 127, 254, 255]].tolist() == [
        [33, 86, 165],
        [247, 247, 245],
        [190, 39, 45],
        [150, 150, 150],
    ]
    assert (np.diff(PALETTE[:128].astype(int), axis=0) >= 0).all()


def test_red_is_for_blue_is_against_white_is_none() -> None:
    map_ = np.zeros((1, 1, 3))
    map_[0, 0] = [2.0, 0.0, -2.0]
    picture, scale = painted(map_)
    plus, none, minus = picture[0].astype(int)
    assert plus[0] > plus[2] + 50
    assert minus[2] > minus[0] + 50
    assert (none > 240).all()
    assert scale == 2.0


def test_the_scale_is_symmetric_and_ignores_one_wild_pixel() -> None:
    map_ = np.full((1, 32, 32), 0.5)
    map_[0, 0, 0] = 1e6
    assert painted(map_)[1] == 0.5


def test_channels_are_summed() -> None:
    cancelling = np.stack([np.ones((4, 4)), -np.ones((4, 4))])
    assert painted(cancelling)[1] == 0.0


def test_tiny_and_huge_maps_look_alike() -> None:
    map_ = np.random.default_rng(0).normal(size=(3, 8, 8))
    pictures = [painted(map_ * factor)[0] for factor in (1e-12, 1.0, 1e12)]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[2] == pictures[1]).all()


def test_a_map_that_is_not_finite_is_grey_and_says_so() -> None:
    picture, scale = painted(np.full((1, 4, 4), np.nan))
    assert (picture == 150).all()
    assert np.isnan(scale)


def test_flaws_are_said_in_words() -> None:
    map_ = np.ones((2, 2, 2))
    assert flaw(map_, 1.0) == ""
    assert flaw(map_ * 0, 0.0) == "all zero"
    map_[0, 0, 0] = np.inf
    assert flaw(map_, 1.0) == "25 % not finite"
    assert flaw(map_ * np.nan, np.nan) == "not finite"


def test_a_grey_image_is_shown_in_grey_and_colour_in_colour() -> None:
    grey = photograph(np.full((1, 2, 2), 0.5))
    assert (grey == 128).all()
    red = photograph(np.stack([np.ones((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))]))
    assert red[0, 0].tolist() == [255, 0, 0]


def test_a_sheet_is_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = {
        "ids": np.arange(2),
        "inputs": generator.random((2, 3, 8, 8)),
        "target": np.array([1, 2]),
        "prediction": np.array([1, 0]),
        "maps/saliency": generator.normal(size=(2, 3, 8, 8)),
        "maps/broken": np.full((2, 3, 8, 8), np.nan),
    }
    gallery.save(tmp_path / "sheet.png", pictures)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 200
    shown = gallery.sheets(pictures)
    assert set(shown) == {"inputs", "saliency", "broken"}
    assert all(picture.dtype == np.uint8 for pictures_ in shown.values() for picture in pictures_)
