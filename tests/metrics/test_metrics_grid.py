"""Grid pointing: mosaics laid by hand, networks whose right share is known, and who is refused."""

import math

import pytest
import torch
from subjects import tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attacks import ClosestBoundary
from lit_xai.attributions import (
    BoundarySaliency,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)
from lit_xai.evaluation.passes import Counted
from lit_xai.memory import remembering
from lit_xai.metrics import AbsoluteSum, Companions, Facts, OtherImage, RandomMap
from lit_xai.metrics import grid as module
from lit_xai.metrics.grid import GridPointingGame, grid_pointing, mosaics
from lit_xai.observe import chosen, explain

CLASSES = 9


class Pooled(nn.Module):
    """Logit c is the mean of channel c: an image of class c, which shows in no other channel, decides it."""

    def __init__(self, sign=1.0):
        super().__init__()
        self.look = nn.Conv2d(CLASSES, CLASSES, 1, bias=False)
        with torch.no_grad():
            self.look.weight.copy_(sign * torch.eye(CLASSES)[:, :, None, None])

    def forward(self, images):
        return self.look(images).mean((2, 3))


def convolutional(channels=2, dtype=torch.float32):
    """Convolutions and a mean over all places."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = (nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, CLASSES, 3, padding=1))
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net.to(dtype).eval()


def probe(count=6, grid=2, shape=(2, 4, 6), dtype=torch.float32):
    """Images, labels, and beside each image others of all different classes."""
    target = torch.arange(count) % CLASSES
    beside = (target[:, None] + torch.arange(1, grid**2)) % CLASSES
    images = torch.rand(count, grid**2 - 1, *shape, dtype=dtype)
    return torch.rand(count, *shape, dtype=dtype), target, Companions(images, beside, beside + 100)


def marked(count=6, grid=2, height=4, width=6):
    """Images that show in the channel of their class and in no other."""
    inputs, target, companions = probe(count, grid, (CLASSES, height, width))
    own, others = torch.eye(CLASSES)[target], torch.eye(CLASSES)[companions.target]
    shown = Companions(companions.images * others[..., None, None], companions.target, companions.ids)
    return inputs * own[..., None, None], target, shown


def scores(metric, model, attribution, inputs, target, companions, ids=None, seed=0):
    with randomness.keyed(seed, torch.arange(len(inputs)) if ids is None else ids):
        return metric.named(
            model=model, inputs=inputs, target=target, attribution=attribution, companions=companions
        )


@pytest.mark.parametrize("grid", [2, 3])
def test_each_image_lies_in_its_cell_and_its_companions_in_the_others(grid):
    inputs, _, companions = probe(12, grid)
    cells = torch.arange(12) % grid**2
    laid = mosaics(inputs, companions, cells, grid)
    assert laid.shape == (12, 2, 4 * grid, 6 * grid)
    for index in range(12):
        rows = laid[index].split(4, dim=1)
        tiles = [tile for row in rows for tile in row.split(6, dim=2)]
        assert torch.equal(tiles[cells[index]], inputs[index])
        rest = [tile for place, tile in enumerate(tiles) if place != cells[index]]
        for other in companions.images[index]:
            assert sum(torch.equal(tile, other) for tile in rest) == 1


def test_scores_are_those_of_the_right_cell():
    maps = torch.zeros(4, 4, 6)
    maps[:, 0, 0], maps[:, 3, 5], maps[:, 0, 4], maps[:, 2, 0] = 3.0, 5.0, -7.0, 5.0  # cells 0, 3, 1, 2
    seen = grid_pointing(maps, torch.arange(4), 2)
    assert seen["share"].tolist() == pytest.approx([3 / 13, 0, 5 / 13, 5 / 13])
    assert seen["hit"].tolist() == [0, 0, 0.5, 0.5]
    assert seen["empty"].tolist() == [0, 0, 0, 0]


def test_a_map_without_positive_part_has_nothing_and_says_so():
    maps = torch.stack([torch.zeros(4, 4), -torch.rand(4, 4), torch.rand(4, 4), torch.rand(4, 4)])
    maps[3, 0, 0] = math.nan
    seen = grid_pointing(maps, torch.tensor([0, 1, 2, 3]), 2)
    assert seen["empty"].tolist()[:3] == [1, 1, 0]
    assert seen["share"].tolist()[:2] == seen["hit"].tolist()[:2] == [0, 0]
    assert all(bool(column[3].isnan()) for column in seen.values())


@pytest.mark.parametrize("scale", [1e-38, 1e-9, 1e9, 1e37])
def test_the_scale_does_not_matter(scale):
    maps, cells = torch.randn(5, 6, 8), torch.tensor([0, 1, 2, 3, 0])
    seen, expected = grid_pointing(maps * scale, cells, 2), grid_pointing(maps, cells, 2)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [2, 3])
def test_a_network_that_looks_at_one_image_is_seen_to(grid):
    inputs, target, companions = marked(count=18, grid=grid)
    metric, model = GridPointingGame(grid), Pooled().eval()
    right = scores(metric, model, InputXGradient(), inputs, target, companions)
    torch.testing.assert_close(right["share"], torch.ones(18, dtype=torch.float64))
    assert right["hit"].tolist() == [1] * 18
    blind = scores(metric, model, Saliency(), inputs, target, companions)  # the same slope everywhere
    torch.testing.assert_close(blind["share"], torch.full((18,), 1 / grid**2, dtype=torch.float64))
    torch.testing.assert_close(blind["hit"], torch.full((18,), 1 / grid**2, dtype=torch.float64))
    against = scores(metric, Pooled(-1.0).eval(), InputXGradient(), inputs, target, companions)
    assert against["empty"].tolist() == [1] * 18
    assert against["share"].tolist() == [0] * 18


@pytest.mark.parametrize("grid", [2, 3])
def test_a_random_map_has_what_chance_has(grid):
    inputs, target, companions = probe(1500, grid)
    seen = scores(GridPointingGame(grid), convolutional(), RandomMap(), inputs, target, companions)
    for name in ("share", "hit"):
        error = float(seen[name].std()) / math.sqrt(1500)
        assert abs(float(seen[name].mean()) - 1 / grid**2) < 3 * error


@pytest.mark.parametrize("grid", [2, 3])
def test_every_cell_comes_up_and_the_same_one_each_time(monkeypatch, grid):
    inputs, target, companions = marked(400, grid)
    places = []

    def watched(images, others, cells, grid):
        places.append(cells)
        return mosaics(images, others, cells, grid)

    monkeypatch.setattr(module, "mosaics", watched)
    for seed in (0, 0, 1):
        scores(GridPointingGame(grid), Pooled().eval(), Saliency(), inputs, target, companions, seed=seed)
    assert torch.equal(places[0], places[1])
    assert not torch.equal(places[0], places[2])
    share = 1 / grid**2
    counts = places[0].bincount(minlength=grid**2)
    assert (counts - 400 * share).abs().max() < 3 * math.sqrt(400 * share * (1 - share))


def test_an_image_beside_one_of_its_class_has_no_score():
    inputs, target, companions = marked()
    companions.target[2, 1] = target[2]
    seen = scores(GridPointingGame(), Pooled().eval(), InputXGradient(), inputs, target, companions)
    for column in seen.values():
        assert column.isnan().tolist() == [False, False, True, False, False, False]


def test_two_grids_in_one_run_are_those_of_two_runs_and_companions_left_out_do_not_count():
    inputs, target, companions = marked(grid=3)
    companions.target[1, 5] = target[1]  # beside it in a grid of three, not in one of two
    metrics = {"two": GridPointingGame(2), "three": GridPointingGame(3)}
    methods, model = {"map": InputXGradient()}, Pooled().eval()
    both = explain(model, inputs, target, methods, metrics, 0, companions=companions).scores["map"]
    for name, metric in metrics.items():
        alone = explain(model, inputs, target, methods, {name: metric}, 0, companions=companions)
        torch.testing.assert_close(both[name], alone.scores["map"][name], equal_nan=True)
    assert not both["two"]["share"].isnan().any()
    assert both["three"]["share"].isnan().tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("attribution", [SmoothGrad(samples=2), RandomMap()], ids=str)
def test_neither_chunk_nor_batch_matters_to_a_method_that_draws(attribution):
    inputs, target, companions = probe(7, dtype=torch.float64)
    model, ids = convolutional(dtype=torch.float64), torch.tensor([7, 3, 11, 0, 5, 2, 9])
    together = scores(GridPointingGame(), model, attribution, inputs, target, companions, ids)
    for chunk in (1, 3):
        apart = scores(GridPointingGame(chunk=chunk), model, attribution, inputs, target, companions, ids)
        torch.testing.assert_close(apart, together)
    rows = torch.tensor([4, 0, 6])
    few = scores(
        GridPointingGame(), model, attribution, inputs[rows], target[rows], companions[rows], ids[rows]
    )
    torch.testing.assert_close(few, {name: column[rows] for name, column in together.items()})


@pytest.mark.parametrize(
    ("attribution", "passes"), [(Saliency(), 1), (IntegratedGradients(steps=3), 3)], ids=str
)
def test_a_mosaic_costs_one_map(attribution, passes):
    inputs, target, companions = probe(6)
    model = Counted(convolutional())
    model.eval()
    scores(GridPointingGame(chunk=4), model, attribution, inputs, target, companions)
    assert (model.forwards, model.backwards) == (6 * passes, 6 * passes)


def test_mosaics_are_laid_once_for_all_methods(monkeypatch):
    inputs, target, companions = probe(6)
    calls = []
    monkeypatch.setattr(module, "mosaics", lambda *given: calls.append(0) or mosaics(*given))
    with remembering(), randomness.keyed(0, torch.arange(6)):
        for attribution in (Saliency(), InputXGradient()):
            GridPointingGame().score(
                convolutional(), inputs, target, attribution, companions
            )  # another model
        model = convolutional()
        for attribution in (Saliency(), InputXGradient()):
            GridPointingGame().score(model, inputs, target, attribution, companions)
        GridPointingGame(reduction=AbsoluteSum()).score(model, inputs, target, Saliency(), companions)
    assert len(calls) == 3


@pytest.mark.parametrize("chunk", [2, 64])
def test_maps_on_a_boundary_share_its_search_on_the_mosaics(chunk):
    inputs, target, companions = probe(6)
    model, search = Counted(convolutional()).eval(), ClosestBoundary(starts=0, first=2, last=0)
    methods = {"plain": BoundarySaliency(search), "margin": BoundarySaliency(search, "margin")}
    counts = []
    for names in (["plain"], ["plain", "margin"]):
        given = {name: methods[name] for name in names}
        model.forwards = 0
        explain(model, inputs, target, given, {"g": GridPointingGame(chunk=chunk)}, 0, companions=companions)
        counts.append(model.forwards)
    assert counts[1] == counts[0] + 2 * len(inputs)  # a gradient at the image's point, and at the mosaic's


def test_it_is_asked_of_methods_and_controls_but_not_of_maps_of_another_image():
    inputs, target, companions = marked()
    metrics = {"grid": GridPointingGame()}
    assert chosen(metrics, Saliency()) == chosen(metrics, RandomMap()) == ["grid"]
    controls = {"random": RandomMap(), "other": OtherImage()}
    seen = explain(
        Pooled().eval(),
        inputs,
        target,
        {"input_x_gradient": InputXGradient()},
        metrics,
        seed=0,
        controls=controls,
        companions=companions,
    )
    assert seen.scores["input_x_gradient"]["grid"]["share"].tolist() == pytest.approx([1] * 6)
    assert list(seen.controls["random"][""]) == ["grid"]
    assert "other" not in seen.controls


def facts(model, samples=64, labels=9, shape=(2, 8, 8), classes=CLASSES):
    return Facts(model.eval(), shape, classes, samples, labels, masks=False, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_networks_that_take_any_size_pass_the_check(dtype):
    GridPointingGame(3).check("grid", facts(convolutional(dtype=dtype)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"samples": 8},
            "`grid` needs 9 images for a grid of 3x3, and the probe has 8: take a smaller `grid`",
        ),
        ({"labels": 8}, "`grid` needs 9 classes among them for a grid of 3x3, and the probe has 8"),
        (
            {"model": tiny_net(nn.ReLU), "classes": 4},
            r"`grid` needs a fully convolutional network with global pooling, and this one fails on images "
            r"of 24x24 \(RuntimeError: .*\): take another network, or leave the metric out.",
        ),
        ({"model": nn.Flatten()}, r"fails on images of 24x24 \(it returns \(1, 1152\)\)"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_run_on_one_line(given, message):
    with pytest.raises(ValueError, match=message) as refused:
        GridPointingGame(3).check("grid", facts(**({"model": convolutional()} | given)))
    assert "\n" not in str(refused.value)


def test_too_few_companions_are_refused():
    inputs, target, companions = marked(grid=2)
    message = "`companions` must be at least 8 to each image for a grid of 3x3, got 3."
    with pytest.raises(ValueError, match=message):
        GridPointingGame(3).score(Pooled().eval(), inputs, target, Saliency(), companions)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"grid": 4}, "`grid` must be 2 or 3, got 4"), ({"chunk": 0}, "`chunk` must be at least 1, got 0")],
)
def test_arguments_are_checked(given, message):
    with pytest.raises(ValueError, match=message):
        GridPointingGame(**given)
