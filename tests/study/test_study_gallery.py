import base64
import io
import json

import fake_runs
import numpy as np
import pytest
from PIL import Image

from lit_xai.pictures import MIDDLE, NEGATIVE, POSITIVE, UNKNOWN, photograph
from lit_xai.study import read_run
from lit_xai.study.gallery import gallery, png, tile
from lit_xai.study.tables import Study


def pixels(uri):
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"))


def test_a_map_is_painted_around_zero_with_one_scale_for_both_signs():
    relevance = np.zeros((3, 1, 3))
    relevance[:, 0, 0], relevance[:, 0, 2] = (-0.5, -0.25, -0.25), (0.5, 0.25, 0.25)  # sums -1, 0, 1
    made = tile(relevance)
    assert pixels(made.uri).tolist() == [[list(NEGATIVE), list(MIDDLE), list(POSITIVE)]]
    assert made.scale == "±1.00"
    assert made.note == ""
    half = tile(np.array([[[0.5, 1.0]]]))
    assert np.abs(pixels(half.uri)[0, 0] - (np.array(MIDDLE) + POSITIVE) / 2).max() <= 1


def test_full_colour_is_the_99th_percentile_and_beyond_is_clipped():
    values = np.arange(1.0, 101).reshape(1, 10, 10)
    made = tile(values)
    assert made.scale == f"±{np.percentile(values, 99):.1f}"
    assert pixels(made.uri)[9, 9].tolist() == list(POSITIVE)
    one = np.zeros((1, 20, 20))
    one[0, 0, 0] = 4.0  # 99 % of the map is zero: the largest value sets the scale
    assert tile(one).scale == "±4.00"


def test_maps_that_say_nothing_are_marked():
    assert tile(np.zeros((1, 4, 4))).note == "all zero"
    assert pixels(tile(np.zeros((1, 4, 4))).uri).reshape(-1, 3).tolist() == [list(MIDDLE)] * 16
    lost = tile(np.full((1, 4, 4), np.nan))
    assert (lost.note, lost.scale) == ("not finite", "")
    assert pixels(lost.uri)[0, 0].tolist() == list(UNKNOWN)
    part = np.ones((1, 4, 4))
    part[0, 0, :2] = np.inf
    assert tile(part).note == "12 % not finite"
    assert pixels(tile(part).uri)[0, 0].tolist() == list(UNKNOWN)
    assert pixels(tile(part).uri)[3, 3].tolist() == list(POSITIVE)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_inputs_are_shown_as_they_are(channels):
    image = np.random.default_rng(0).random((channels, 5, 4)).astype("f4")
    image[0, 0, 0] = np.nan
    shown = pixels(png(photograph(image))).astype(int)
    assert shown.shape == (5, 4, 3)
    wanted = np.nan_to_num(image) * 255
    wanted = wanted if channels == 3 else wanted.mean(0, keepdims=True).repeat(3, axis=0)
    assert np.abs(shown - wanted.transpose(1, 2, 0)).max() <= 1


def test_rows_are_regimes_and_columns_methods_of_the_same_images(study_folders):
    study = Study(tuple(map(read_run, study_folders)))
    made = gallery(study)
    assert made.methods == [*fake_runs.ATTRIBUTIONS, "random_map"]
    assert (made.epochs, made.ids, made.total) == ([4, 0], [5, 42, 79, 116], 4)
    assert len(made.panels) == 8
    for panel in made.panels:
        assert [row.run for row in panel.rows] == [f"{regime}-seed0" for regime in study.regimes]
        assert len({row.input for row in panel.rows}) == 1
        assert all(row.right == (row.prediction == panel.target) for row in panel.rows)
    book = np.load(study_folders[1] / "explanations" / "epoch_004.npz")
    panel = next(p for p in made.panels if (p.id, p.epoch) == (116, 4))
    assert panel.rows[1].tiles[4] == tile(book["maps/boundary_saliency"][3])
    assert panel.rows[1].prediction == book["prediction"][3]
    assert next(p for p in made.panels if p.id == 79).rows[0].tiles[0].note == "all zero"
    assert next(p for p in made.panels if p.id == 42).rows[0].tiles[4].note == "not finite"


def test_broken_and_foreign_pictures_are_named(tmp_path):
    folders = fake_runs.fake_study(tmp_path, regimes=("standard", "bort"), seeds=(0,), epochs=1, images=2)
    file = folders[0] / "explanations" / "epoch_000.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    made = gallery(Study(tuple(map(read_run, folders))))
    assert [row.regime for row in made.panels[0].rows] == ["bort"]
    assert made.problems[0].startswith("standard-seed0, epoch 0: epoch_000.npz: ")
    content = dict(np.load(io.BytesIO(whole)))
    np.savez(file, **(content | {"ids": content["ids"] + 1000}))
    made = gallery(Study(tuple(map(read_run, folders))))
    assert made.panels == []
    assert "explain different images" in made.problems[0]
    np.savez(file, **(content | {"target": content["target"][:1]}))
    assert (
        "`target` has 1 entries, `inputs` has 2" in gallery(Study(tuple(map(read_run, folders)))).problems[0]
    )
    np.savez(file, **(content | {"target": np.array([{}, {}], dtype=object)}))
    assert "allow_pickle" in gallery(Study(tuple(map(read_run, folders)))).problems[0]


def test_flipped_bytes_are_noticed(tmp_path):
    folder = fake_runs.fake_run(tmp_path / "a-seed0", epochs=1, images=1)
    file = folder / "explanations" / "epoch_000.npz"
    content = bytearray(file.read_bytes())
    for place in range(200, len(content) - 2000, 97):
        content[place] ^= 0xFF
    file.write_bytes(bytes(content))
    made = gallery(Study((read_run(folder),)))
    assert made.problems[0].startswith("standard-seed0, epoch 0: epoch_000.npz: ")


def test_no_maps_no_gallery(tmp_path):
    folder = fake_runs.fake_run(tmp_path / "a-seed0", epochs=1, images=1)
    (folder / "explanations" / "epoch_000.npz").unlink()
    assert gallery(Study((read_run(folder),))) is None
    (folder / "status.json").write_text(json.dumps({"state": "missing"}))
    assert gallery(Study((read_run(folder / "nowhere"),))) is None
