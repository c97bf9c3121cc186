"""Localisation against its definitions, what chance has, and Quantus where it is right."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from lit_xai.metrics import AbsoluteSum, CentreMap, Facts, RandomMap, SignedSum
from lit_xai.metrics.localisation import (
    BoundaryLocalisation,
    EnergyGame,
    PointingGame,
    RelevanceRank,
    TopKIntersection,
    area,
    boundary_localisation,
    energy,
    grown,
    pointing_game,
    top_intersection,
)

METRICS = (PointingGame(), EnergyGame(), RelevanceRank(), TopKIntersection(), BoundaryLocalisation())
SCORES = {
    "pointing": pointing_game,
    "near": partial(pointing_game, tolerance=1.5),
    "energy": energy,
    "rank": top_intersection,
    "top": partial(top_intersection, share=0.1),
    **{
        name: lambda z, s, name=name: boundary_localisation(z, s)[name]
        for name in ("loc", "energy", "positive", "concentration")
    },
}
each = pytest.mark.parametrize("score", SCORES.values(), ids=list(SCORES))


def disc(height=12, width=9):
    """One object, off the centre."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    return ((y - 3) ** 2 + (x - 5) ** 2 <= 6)[None]


def four(z, box):
    """The boundary paper's scores, pixel by pixel."""
    pixels = list(np.ndindex(z.shape))
    total = sum(abs(z[p]) for p in pixels)
    row = sum(abs(z[p]) / total * p[0] for p in pixels)
    column = sum(abs(z[p]) / total * p[1] for p in pixels)
    return {
        "loc": sum(z[p] > 0 and box[p] for p in pixels)
        / (box.sum() + sum(z[p] > 0 and not box[p] for p in pixels)),
        "energy": sum(z[p] for p in pixels if z[p] > 0 and box[p]) / sum(z[p] for p in pixels if z[p] > 0),
        "positive": sum(z[p] for p in pixels if z[p] > 0 and box[p])
        / sum(abs(z[p]) for p in pixels if box[p]),
        "concentration": sum(
            abs(z[p]) / total / max(math.hypot(p[0] - row, p[1] - column), 1) for p in pixels if box[p]
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_four_scores_equal_their_slow_twin(dtype):
    maps, mask = torch.randn(3, 7, 10, dtype=dtype), torch.rand(3, 7, 10) > 0.6
    seen = boundary_localisation(maps, mask)
    for index in range(3):
        for name, value in four(maps[index].double().numpy(), mask[index].numpy()).items():
            assert float(seen[name][index]) == pytest.approx(value, rel=1e-9), name


def test_sanity_values_of_the_four_scores():
    mask = disc()
    share = float(area(mask))
    everywhere = boundary_localisation(torch.ones(1, 12, 9), mask)
    assert [float(everywhere[name]) for name in ("energy", "positive", "loc")] == pytest.approx(
        [share, 1, share]
    )
    inside = boundary_localisation(mask.double(), mask)
    assert [float(inside[name]) for name in ("energy", "positive", "loc")] == [1, 1, 1]


def test_concentration_of_one_pixel_is_1_on_the_object_and_0_elsewhere():
    maps = torch.zeros(2, 12, 9)
    maps[0, 3, 5] = maps[1, 11, 0] = -2.0
    seen = boundary_localisation(maps, disc().expand(2, 12, 9))["concentration"]
    assert seen.tolist() == [1, 0]


@pytest.mark.parametrize("tolerance", [0, 0.9, 1, 1.5, 2, 3.7, 20])
def test_what_counts_as_the_object_grows_by_the_distance_to_it(tolerance):
    mask = torch.rand(4, 11, 17) > 0.97
    mask[0] = False
    expected = [ndimage.distance_transform_edt(~one.numpy()) <= tolerance for one in mask[1:]]
    assert np.array_equal(grown(mask, tolerance)[1:].numpy(), expected)
    assert not grown(mask, tolerance)[0].any()


def test_the_pointing_game_looks_where_the_map_is_largest():
    mask, maps = disc(), torch.rand(1, 12, 9)
    hits = {}
    for y, x in itertools.product(range(12), range(9)):
        aimed = maps.clone()
        aimed[0, y, x] = 2
        hits[y, x] = float(pointing_game(aimed, mask)), float(pointing_game(aimed, mask, 2.0))
    distance = ndimage.distance_transform_edt(~mask[0].numpy())
    assert hits == {place: (distance[place] <= 0, distance[place] <= 2) for place in hits}


def test_the_tolerance_is_scaled_with_the_image():
    maps, mask = torch.zeros(1, 1, 32, 40), torch.zeros(1, 32, 40, dtype=torch.bool)
    mask[0, 10, 10] = maps[0, 0, 10, 12] = 1
    assert float(PointingGame(15.0).score(maps, mask)["hit"]) == 1  # 2.1 pixels
    assert float(PointingGame(13.0).score(maps, mask)["hit"]) == 0  # 1.9 pixels
    seen = PointingGame(2.0, side=32).score(maps, mask)
    assert {name: float(value) for name, value in seen.items()} == {"hit": 1, "chance": 13 / 1280}


def test_ties_count_by_what_a_fair_draw_hits():
    mask = disc()
    maps = torch.zeros(1, 12, 9)
    maps[0, 3, 5] = maps[0, 11, 0] = maps[0, 11, 1] = 1
    for turned in ((), (1,), (2,), (1, 2)):  # raster order plays no part
        assert float(pointing_game(maps.flip(turned), mask.flip(turned))) == pytest.approx(1 / 3)
    for score in (pointing_game, top_intersection, partial(top_intersection, share=0.1)):
        for value in (0.0, 0.3, -0.3):
            assert float(score(torch.full((1, 12, 9), value), mask)) == pytest.approx(float(area(mask)))


def test_ties_at_the_last_place_equal_the_mean_over_all_orders():
    maps = torch.tensor([[[3.0, 1, 1], [0, 1, 2]]])
    mask = torch.tensor([[[True, False, True], [True, False, True]]])
    for share, count in ((1 / 6, 1), (0.5, 3), (4 / 6, 4), (1.0, 6)):
        flat, inside = maps.flatten().tolist(), mask.flatten().tolist()
        shares = []
        for order in itertools.permutations(range(6)):
            ranked = sorted(order, key=lambda place: -flat[place])[:count]
            shares.append(sum(inside[place] for place in ranked) / count)
        assert float(top_intersection(maps, mask, share)) == pytest.approx(np.mean(shares))
    assert float(top_intersection(maps, mask)) == pytest.approx((2 + 2 / 3) / 4)


def test_a_random_map_has_what_chance_has():
    mask = disc().expand(2000, 12, 9)
    inputs, target = torch.rand(2000, 3, 12, 9), torch.zeros(2000, dtype=torch.int64)
    maps = RandomMap().maps(nn.Flatten(), inputs, target)
    chance = float(area(mask)[0])
    for metric, name in (
        (PointingGame(), "hit"),
        (EnergyGame(), "share"),
        (RelevanceRank(), "share"),
        (TopKIntersection(), "share"),
        (BoundaryLocalisation(), "energy"),
    ):
        seen = metric.score(maps, mask)
        error = float(seen[name].std()) / math.sqrt(2000)
        assert abs(float(seen[name].mean()) - chance) < 3 * error, metric
        if "chance" in seen:
            assert float(seen["chance"].mean()) == pytest.approx(chance)
    assert float(EnergyGame().score(maps, mask)["weighted"].mean()) == pytest.approx(1, abs=0.05)
    near = PointingGame(15.0, side=100).score(maps, mask)
    assert float(near["hit"].mean()) == pytest.approx(float(near["chance"][0]), abs=0.035)


def test_negative_evidence_outside_does_not_make_a_share_larger():
    mask, maps = disc(), torch.where(disc(), 1.0, -0.2)
    maps[0, 11, :] = 1
    inside = int(mask.sum())
    assert float(energy(maps, mask)) == pytest.approx(inside / (inside + 9))
    signed = float((maps * mask).sum() / maps.sum())
    assert signed > 1  # what a denominator of both signs would say


@each
@pytest.mark.parametrize("scale", [1e-38, 1e-9, 1e9, 1e37])
def test_the_scale_does_not_matter(score, scale):
    maps, mask = torch.rand(3, 8, 9) - 0.4, torch.rand(3, 8, 9) > 0.5
    torch.testing.assert_close(score(maps * scale, mask), score(maps, mask), rtol=0, atol=1e-5)


@each
def test_an_image_without_object_is_never_a_hit(score):
    maps, mask = torch.rand(3, 8, 9), torch.rand(3, 8, 9) > 0.5
    mask[1] = False
    assert score(maps, mask).isnan().tolist() == [False, True, False]
    assert score(maps[:0], mask[:0]).shape == (0,)


@each
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_has_no_score(score, broken):
    maps, mask = torch.rand(2, 8, 9), torch.rand(2, 8, 9) > 0.5
    maps[1, 0, 0] = broken
    assert score(maps, mask).isnan().tolist() == [False, True]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_a_mask_of_the_whole_image_and_a_single_pixel_are_fine(metric):
    for shape in ((8, 9), (1, 1)):
        mask = torch.ones(2, *shape, dtype=torch.bool)
        seen = metric.score(torch.rand(2, 3, *shape), mask)
        for name in set(seen) - {"concentration"}:
            assert seen[name].tolist() == [1, 1], name


def test_a_zero_denominator_gives_no_score():
    mask, zero = disc(), torch.zeros(1, 12, 9)
    for maps in (zero, zero - 1):
        assert energy(maps, mask).isnan()
        seen = boundary_localisation(maps, mask)
        assert seen["energy"].isnan()
        assert seen["loc"] == 0
        assert bool(seen["positive"].isnan()) is bool(seen["concentration"].isnan()) is (maps is zero)
    assert boundary_localisation(1 - mask.double(), mask)["positive"].isnan()


def test_chance_is_told_of_the_same_images_as_the_score():
    maps, mask = torch.rand(3, 2, 8, 9), torch.rand(3, 8, 9) > 0.5
    maps[0, 0, 0, 0], mask[1] = math.nan, False
    for metric in METRICS:
        for column in metric.score(maps, mask).values():
            assert column.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_a_mask_of_another_size_is_refused(metric):
    message = "`mask` must have the size of the image, 8x9, got 9x8: resize and crop it as the image is."
    with pytest.raises(ValueError, match=f"^{message}$"):
        metric.score(torch.rand(2, 3, 8, 9), torch.ones(2, 9, 8, dtype=torch.bool))


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_data_without_masks_are_refused_before_the_run(metric):
    facts = Facts(nn.Flatten(), (3, 8, 9), 10, 64, 10, masks=False, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="`pointing` needs to know where the object is"):
        metric.check("pointing", facts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PointingGame(tolerance=-1), "`tolerance` must be at least 0, got -1"),
        (lambda: PointingGame(side=0), "`side` must be at least 1, got 0"),
        (lambda: TopKIntersection(share=0), r"`share` must lie in \(0, 1\], got 0"),
        (lambda: CentreMap(sigma=0), "`sigma` must be greater than 0, got 0"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_channels_are_added_up_by_the_reduction():
    maps, mask = torch.randn(3, 2, 8, 9), torch.rand(3, 8, 9) > 0.5
    for reduction, single in ((AbsoluteSum(), maps.abs().sum(1)), (SignedSum(), maps.sum(1))):
        seen = EnergyGame(reduction).score(maps, mask)
        torch.testing.assert_close(seen["share"], energy(single, mask))
        torch.testing.assert_close(seen["weighted"], energy(single, mask) / area(mask))
        seen = RelevanceRank(reduction).score(maps, mask)
        torch.testing.assert_close(seen["share"], top_intersection(single, mask))
        seen = TopKIntersection(0.3, reduction).score(maps, mask)
        torch.testing.assert_close(seen["share"], top_intersection(single, mask, 0.3))


def test_the_centre_is_a_map_of_the_middle():
    inputs, target = torch.rand(2, 3, 6, 9), torch.zeros(2, dtype=torch.int64)
    maps = CentreMap(sigma=0.5).maps(nn.Flatten(), inputs, target).sum(1)
    y, x = np.mgrid[:6, :9]
    expected = np.exp(-((y - 2.5) ** 2 + (x - 4) ** 2) / (2 * 3.0**2))
    np.testing.assert_allclose(maps[0].numpy(), expected, rtol=1e-5)
    mask = torch.zeros(2, 6, 9, dtype=torch.bool)
    mask[0, 2:4, 4], mask[1, 2, 4] = True, True  # both pixels in the middle, and one of them
    assert pointing_game(maps, mask).tolist() == [1, 0.5]


@pytest.fixture
def quantus():
    return pytest.importorskip("quantus", exc_type=ImportError)


def judged(metric, maps, mask):
    given = {"a_batch": maps[:, None].numpy().copy(), "s_batch": mask[:, None].numpy()}
    return metric(
        model=None, x_batch=np.zeros((len(maps), 1, *maps.shape[1:])), y_batch=[0] * len(maps), **given
    )


def test_quantus_agrees_where_there_is_no_tie_and_no_sign(quantus):
    maps, mask = torch.rand(6, 12, 9, dtype=torch.float64), disc().repeat(6, 1, 1)
    mask[2:] = torch.rand(4, 12, 9) > 0.7
    quiet = {"disable_warnings": True, "abs": True, "normalise": False}
    for theirs, ours in (
        (quantus.PointingGame(**quiet), pointing_game(maps, mask)),
        (quantus.RelevanceRankAccuracy(**quiet), top_intersection(maps, mask)),
        (quantus.RelevanceMassAccuracy(**quiet), energy(maps, mask)),
        (quantus.AttributionLocalisation(**quiet), energy(maps, mask)),
        (quantus.TopKIntersection(k=11, **quiet), top_intersection(maps, mask, 0.1)),
    ):
        np.testing.assert_allclose(ours.numpy(), judged(theirs, maps, mask), atol=1e-8)
    lifted = quantus.TopKIntersection(k=11, concept_influence=True, **quiet)
    np.testing.assert_allclose(
        (top_intersection(maps, mask, 0.1) / area(mask)).numpy(), judged(lifted, maps, mask)
    )


def test_what_quantus_calls_a_hit_and_a_weight(quantus):
    maps, mask = torch.rand(3, 12, 9, dtype=torch.float64), torch.zeros(3, 12, 9, dtype=torch.bool)
    mask[2, :6] = True
    images, given = np.zeros((3, 1, 12, 9)), {"a_batch": maps.numpy(), "s_batch": mask.numpy()}
    theirs = quantus.PointingGame(disable_warnings=True)
    assert list(theirs.evaluate_batch(x_batch=images, **given)[:2]) == [True, True]  # no object at all
    assert pointing_game(maps, mask)[:2].isnan().all()
    weighted = quantus.AttributionLocalisation(disable_warnings=True, weighted=True)
    share = float(energy(maps, mask)[2])
    wrong = weighted.evaluate_batch(x_batch=images, **given)[2]
    assert wrong == pytest.approx(share * 54 / 108, rel=1e-6)  # times the area, of one image of the batch
    assert float(EnergyGame().score(maps[:, None], mask)["weighted"][2]) == pytest.approx(share * 2)
