import math

import numpy as np
import pytest
import torch
from subjects import linear_case, tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attributions import InputXGradient, Saliency
from lit_xai.metrics import EdgeMap, RandomMap, SignedSum
from lit_xai.metrics.neighbourhood import Neighbourhood
from lit_xai.metrics.sensitivity import (
    LocalLipschitz,
    NeighbourSimilarity,
    RelativeStability,
    Sensitivity,
    alike,
    local_lipschitz,
    relative_stability,
    sensitivity,
)

BANK = Neighbourhood(radius=0.05, samples=6)
KINDS = (Sensitivity, LocalLipschitz, RelativeStability, NeighbourSimilarity)


@pytest.fixture(autouse=True)
def _keys():
    with randomness.keyed(0, torch.arange(6)):
        yield


@pytest.fixture
def batch():
    inputs = torch.rand(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = tiny_net(nn.ReLU, torch.float64)
    return net, inputs, net(inputs).argmax(1)


def named(metric, model, inputs, target, method):
    given = {"attributions": method(model, inputs, target), "attribution": method}
    return metric.named(model=model, inputs=inputs, target=target, **given)


def linear_batch():
    case = linear_case()
    return case, (case.model, case.inputs, case.target)


def close(seen, expected, **tolerance):
    torch.testing.assert_close(
        seen, torch.as_tensor(expected), check_dtype=False, equal_nan=True, **tolerance
    )


# Closed forms on the linear model, where the gradient of a class is its row of weights.


def test_a_gradient_that_is_the_same_everywhere_does_not_move():
    _, batch = linear_batch()
    for kind in (Sensitivity, LocalLipschitz):
        for scores in named(kind(BANK), *batch, Saliency()).values():
            assert torch.equal(scores, torch.zeros(6, dtype=torch.float64))
    relative = named(RelativeStability(BANK), *batch, Saliency())
    assert all((relative[name] == -math.inf).all() for name in ("ris", "ros", "ris_norm", "ros_norm"))
    for scores in named(NeighbourSimilarity(BANK), *batch, Saliency()).values():
        close(scores, torch.ones(6))


def test_input_times_gradient_of_a_linear_model_moves_as_its_image_does():
    case, batch = linear_batch()
    seen = named(RelativeStability(BANK), *batch, InputXGradient())
    close(seen["ris"], torch.zeros(6), atol=1e-9, rtol=0)  # (w (x' - x)) / (w x) = (x' - x) / x
    points = BANK.around(*batch).points
    kept = case.model(points.flatten(0, 1)).argmax(1).view(6, 6) == case.target
    weight = case.weight[case.target]
    x, change = case.inputs.flatten(1), (points - case.inputs).flatten(2)
    ratio = (weight * change).norm(dim=2) * x.norm(dim=1) / ((weight * x).norm(dim=1) * change.norm(dim=2))
    close(seen["ris_norm"], ratio.where(kept, 0).amax(0).log10().where(kept.any(0), math.nan))
    close(seen["kept"], kept.double().mean(0))


# Other libraries, given the same neighbours.


def test_captum_finds_the_same_largest_sensitivity(batch):
    metrics = pytest.importorskip("captum.metrics")
    net, inputs, target = batch
    points = BANK.around(net, inputs, target).points

    def explained(images):
        (images,) = images if isinstance(images, tuple) else (images,)
        return (Saliency()(net, images, target.repeat_interleave(len(images) // len(target))),)

    theirs = metrics.sensitivity_max(
        explained, inputs, lambda images, radius: points.transpose(0, 1).flatten(0, 1), n_perturb_samples=6
    )
    close(named(Sensitivity(BANK), net, inputs, target, Saliency())["max"], theirs)


class Double(nn.Module):
    """Takes images in single precision, as Quantus hands them over."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images.double())


def quantus_scores(kind, batch, method, points, **settings):
    """Scores of Quantus whose k-th perturbation is the k-th neighbour."""
    quantus = pytest.importorskip("quantus")
    net, inputs, target = batch
    given = iter(points.numpy())

    def explained(model, inputs, targets, **_):
        with torch.enable_grad():
            return method(net, torch.as_tensor(inputs), torch.as_tensor(targets)).numpy()

    metric = getattr(quantus, kind)(
        nr_samples=len(points),
        perturb_func=lambda arr, indices, **_: next(given).reshape(arr.shape),
        normalise=False,
        abs=False,
        disable_warnings=True,
        **settings,
    )
    arrays = {"x_batch": inputs.numpy(), "y_batch": target.numpy(), "explain_func": explained}
    return torch.tensor(np.array(metric(model=Double(net).eval(), a_batch=None, **arrays)))


def test_quantus_finds_the_same_largest_sensitivity(batch):
    points = BANK.around(*batch).points
    theirs = quantus_scores("MaxSensitivity", batch, Saliency(), points)
    close(named(Sensitivity(BANK), *batch, Saliency())["max"], theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "name"), [("RelativeInputStability", "ris"), ("RelativeOutputStability", "ros")]
)
def test_quantus_finds_the_same_relative_stability_where_the_class_is_kept(batch, kind, name):
    bank = Neighbourhood(radius=0.001, samples=6)
    around = bank.around(*batch)
    assert around.kept.all()
    theirs = quantus_scores(kind, batch, InputXGradient(), around.points).log10()
    close(named(RelativeStability(bank), *batch, InputXGradient())[name], theirs, rtol=1e-5, atol=1e-5)


def test_one_neighbour_of_another_class_is_left_out_and_not_the_whole_image(batch):
    bank = Neighbourhood(radius=0.3, samples=6)
    around = bank.around(*batch)
    some = around.kept.any(0) & ~around.kept.all(0)
    assert some.any()
    theirs = quantus_scores("RelativeInputStability", batch, InputXGradient(), around.points)
    assert theirs[some].isnan().all()
    ours = named(RelativeStability(bank), *batch, InputXGradient())
    assert not ours["ris"][some].isnan().any()
    assert torch.equal(ours["ris"].isnan(), ~around.kept.any(0))


# Slow twins.


def test_each_neighbour_by_itself(batch):
    net, inputs, target = batch
    bank = Neighbourhood(radius=0.2, samples=6)
    points, method = bank.around(net, inputs, target).points, InputXGradient()
    seen = {kind: named(kind(bank), net, inputs, target, method) for kind in KINDS}
    norm = np.linalg.norm
    maps, logits = method(net, inputs, target).numpy(), net(inputs).detach().numpy()
    for i, (x, a, f) in enumerate(zip(inputs.numpy(), maps, logits, strict=True)):
        change, rate, relative = [], [], []
        for some in points:
            near = some[i].numpy()
            b, g = method(net, some, target)[i].numpy(), net(some)[i].detach().numpy()
            change.append(norm(b - a) / norm(a))
            rate.append(norm(b / norm(b) - a / norm(a)) / norm(near - x))
            if g.argmax() == f.argmax():
                each, moved = norm((b - a) / a), norm(near - x)
                relative.append(
                    (
                        each / norm((near - x) / x),
                        each / norm(g - f),
                        change[-1] / (moved / norm(x)),
                        change[-1] / (norm(g - f) / norm(f)),
                    )
                )
        close(seen[Sensitivity]["max"][i], max(change))
        close(seen[Sensitivity]["mean"][i], np.mean(change))
        close(seen[LocalLipschitz][""][i], max(rate))
        ratios = np.log10(np.max(relative, axis=0)) if relative else [math.nan] * 4
        for name, ratio in zip(("ris", "ros", "ris_norm", "ros_norm"), ratios, strict=True):
            close(seen[RelativeStability][name][i], ratio)
        close(seen[RelativeStability]["kept"][i], len(relative) / 6)


def test_maps_are_compared_as_scipy_and_skimage_do(batch):
    stats, measure = pytest.importorskip("scipy.stats"), pytest.importorskip("skimage.metrics")
    net, inputs, target = batch
    points = BANK.around(net, inputs, target).points
    reductions = {None: lambda maps: maps.abs().sum(1), SignedSum(): lambda maps: maps.sum(1)}
    for reduction, reads in reductions.items():
        metric = NeighbourSimilarity(BANK, 0.2, 5, *([] if reduction is None else [reduction]))
        seen = named(metric, net, inputs, target, Saliency())
        first = reads(Saliency()(net, inputs, target)).numpy()
        others = [reads(Saliency()(net, some, target)).numpy() for some in points]
        for i, a in enumerate(first):
            rank, structure, common = [], [], []
            for other in others:
                a, b = a / np.abs(a).sum(), other[i] / np.abs(other[i]).sum()
                rank.append(stats.spearmanr(a.ravel(), b.ravel()).statistic)
                wide = max(a.max(), b.max()) - min(a.min(), b.min())
                full = measure.structural_similarity(
                    a, b, win_size=5, data_range=wide, full=True, use_sample_covariance=False
                )[1]
                structure.append(full[2:-2, 2:-2].mean())
                tops = [set(np.argsort(-values.ravel())[:13]) for values in (a, b)]
                common.append(len(tops[0] & tops[1]) / 13)
            close(seen["spearman"][i], np.mean(rank))
            close(seen["ssim"][i], np.mean(structure))
            close(seen["overlap"][i], np.mean(common))


# What the map does not say: its scale, and nothing at all.


def relative(maps, around, bank, **changed):
    kept = {"kept": bank.kept} | changed
    return relative_stability(maps, around, bank.inputs, bank.points, bank.clean, bank.logits, **kept)


def each_score(maps, around, bank):
    return {
        **sensitivity(maps, around),
        "lipschitz": local_lipschitz(maps, around, bank.inputs, bank.points),
        **relative(maps, around, bank),
        **alike(maps, around),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scale_of_the_maps_does_not_count(batch, dtype, scale):
    net, inputs, target = tiny_net(nn.ReLU, dtype), batch[1].to(dtype), batch[2]
    bank = BANK.around(net, inputs, target)
    method = InputXGradient()
    maps, around = method(net, inputs, target), bank.maps(method)
    maps[:, :, :2], around[:, :, :, :2] = 0, 0  # exact zeros, which the quotients of ris and ros meet
    expected = each_score(maps, around, bank)
    assert not any(scores.isnan().any() for scores in expected.values())
    for name, scores in each_score(scale * maps, scale * around, bank).items():
        close(scores, expected[name], rtol=1e-5, atol=1e-5)


def test_quotients_by_zero_are_by_a_millionth():
    maps, images = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.5, 0.0]).view(1, 1, 1, 2)
    around, points = maps[None] + 3 * (maps == 0), images[None] + 0.1 * (images == 0)
    logits, kept = torch.ones(1, 2), torch.ones(1, 1, dtype=torch.bool)
    seen = relative_stability(maps, around, images, points, logits, logits[None], kept)
    close(seen["ris"], [math.log10(3 / 2e-6 / (0.1 / 1e-6))])
    close(seen["ros"], [math.log10(3 / 2e-6 / 1e-6)])
    assert seen["ros_norm"].isnan().all()


def test_a_map_of_zeros_or_of_no_numbers_has_no_score(batch):
    bank = BANK.around(*batch)
    maps, around = Saliency()(*batch), bank.maps(Saliency()).clone()
    maps[0], maps[1, 0, 0, 0], maps[2, 0, 0, 0] = 0, math.nan, math.inf
    around[3, 3, 0, 0, 0], around[3, 4, 0, 0, 0] = math.nan, math.inf
    for scores in each_score(maps, around, bank).values():
        assert scores[:5].isnan().all()
        assert not scores[5].isnan()


def test_a_neighbour_whose_map_is_zero_is_as_far_as_the_map_is_long(batch):
    bank = BANK.around(*batch)
    maps, around = Saliency()(*batch), bank.maps(Saliency()).clone()
    around[2, 0] = 0
    seen = each_score(maps, around, bank)
    assert seen["max"][0] >= 1
    assert not seen["ris_norm"][0].isnan()
    for name in ("lipschitz", "overlap", "spearman", "ssim"):  # no direction, no ranking
        assert seen[name][0].isnan()


def test_without_a_neighbour_of_its_class_an_image_has_no_relative_stability(batch):
    bank = BANK.around(*batch)
    maps, around = Saliency()(*batch), bank.maps(Saliency())
    kept = bank.kept.clone()
    kept[:, 0] = False
    for scores in relative(maps, around, bank, kept=kept).values():
        assert scores[0].isnan()
        assert not scores[1:].isnan().any()


def test_a_neighbour_of_another_class_may_have_a_map_of_no_numbers(batch):
    bank = BANK.around(*batch)
    maps, around = Saliency()(*batch), bank.maps(Saliency()).clone()
    kept = torch.ones_like(bank.kept)
    around[0, 0], kept[0, 0] = math.nan, False
    assert not any(scores.isnan().any() for scores in relative(maps, around, bank, kept=kept).values())


def test_a_map_of_equal_pixels_has_no_ranking(batch):
    bank = BANK.around(*batch)
    maps = torch.ones_like(batch[1])
    seen = each_score(maps, maps.expand(6, -1, -1, -1, -1), bank)
    assert seen["overlap"].isnan().all()
    assert seen["spearman"].isnan().all()
    close(seen["ssim"], torch.ones(6))
    close(seen["max"], torch.zeros(6))


def test_a_control_that_does_not_look_is_perfectly_stable(batch):
    assert all((scores == 0).all() for scores in named(Sensitivity(BANK), *batch, RandomMap()).values())
    for scores in named(NeighbourSimilarity(BANK), *batch, RandomMap()).values():
        close(scores, torch.ones(6))
    edges = named(Sensitivity(BANK), *batch, EdgeMap())["mean"]
    assert (edges > 0).all()


def test_a_misclassified_image_is_scored_for_its_label(batch):
    net, inputs, target = batch
    wrong = (target + 1) % 4
    seen = named(RelativeStability(BANK), net, inputs, wrong, Saliency())
    around = BANK.around(net, inputs, target)
    assert torch.equal(seen["kept"], around.kept.double().mean(0))
    assert not seen["ris_norm"][around.kept.any(0)].isnan().any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 9), (2, 9, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_shape_and_one_of_them(shape, kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    inputs, target = torch.rand(1, *shape), torch.tensor([1])
    with randomness.keyed(0, torch.tensor([4])):
        for name, scores in named(kind(BANK), net, inputs, target, Saliency()).items():
            assert scores.shape == (1,)
            single = math.prod(shape[1:]) == 1 and name in ("overlap", "spearman")
            assert bool(scores.isnan()) == single  # one pixel has no ranking


@pytest.mark.parametrize("setting", [{"share": 0.0}, {"window": 4}])
def test_settings_without_meaning_are_refused(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must"):
        NeighbourSimilarity(BANK, **setting)
