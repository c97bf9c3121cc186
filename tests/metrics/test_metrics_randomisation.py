"""Randomisation against linear models, slow twins and three libraries; and the untrained control."""

import math
import weakref

import numpy as np
import pytest
import scipy.stats
import torch
from subjects import linear_case, tiny_net
from torch import nn

from lit_xai import attributions, randomness
from lit_xai.attributions import BoundarySaliency, InputXGradient, Saliency, SmoothGrad
from lit_xai.attributions.similarity import scaled
from lit_xai.memory import remembering
from lit_xai.metrics import EdgeMap, RandomMap, SignedSum, randomisation
from lit_xai.metrics.base import Facts
from lit_xai.metrics.randomisation import (
    EfficientRandomisation,
    ModelRandomisation,
    RandomLogit,
    cascade_similarity,
    entropy_rise,
    histogram_entropy,
)
from lit_xai.metrics.untrained import Untrained
from lit_xai.models.reinitialised import reinitialised, untrained
from lit_xai.observe import explain

IDS = torch.tensor([7, 3, 11, 0, 5])


def scored(metric, model, inputs, target, method, seed=0, ids=IDS):
    with randomness.keyed(seed, ids[: len(inputs)]):
        maps = method(model, inputs, target)
        return metric.named(model=model, inputs=inputs, target=target, attribution=method, attributions=maps)


def quiet(maps):
    return maps.abs().sum(1)


@pytest.fixture
def quantus():
    return pytest.importorskip("quantus", exc_type=ImportError)


@pytest.fixture
def skimage():
    return pytest.importorskip("skimage.metrics")


def structural(skimage, first, second):
    """SSIM of scikit-image, of two maps of unit mass."""
    first, second = (each / np.abs(each).sum() for each in (first, second))
    spread = max(first.max(), second.max()) - min(first.min(), second.min())
    return skimage.structural_similarity(
        first, second, win_size=min(7, *first.shape), data_range=spread, use_sample_covariance=False
    )


def test_a_map_that_does_not_depend_on_the_weights_stays(relu_net, batch):
    for method in (EdgeMap(), RandomMap()):
        scores = scored(ModelRandomisation(), relu_net, *batch, method)
        for column in scores.values():
            torch.testing.assert_close(column, torch.ones(5, dtype=torch.float64))
        rise = scored(EfficientRandomisation(), relu_net, *batch, method)[""]
        assert (rise == 0).all()


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("reduction", [randomisation.ABSOLUTE, SignedSum()], ids=repr)
def test_slow_twin(skimage, samples, reduction):
    net, inputs = tiny_net(nn.ReLU, torch.float64), torch.rand(5, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    metric = ModelRandomisation(layers=10, samples=samples, sigma=0.2, reduction=reduction, seed=4)
    seen = scored(metric, net, inputs, target, Saliency())
    method = SmoothGrad(0.2, samples, Saliency()) if samples else Saliency()
    with randomness.keyed(0, IDS):
        own = reduction(method(net, inputs, target)).numpy()
        likeness = []
        for chosen in (["7"], ["7", "3"], ["7", "3", "1"], ["7", "3", "1", "0"]):
            other = reduction(method(reinitialised(net, 4, chosen), inputs, target)).numpy()
            for image in range(5):
                ranks = scipy.stats.spearmanr(own[image].flatten(), other[image].flatten()).statistic
                likeness.append((ranks, structural(skimage, own[image], other[image])))
    mean = np.array(likeness).reshape(4, 5, 2).mean(0)
    np.testing.assert_allclose(seen["spearman"].numpy(), mean[:, 0], atol=1e-9)
    np.testing.assert_allclose(seen["ssim"].numpy(), mean[:, 1], atol=1e-7)


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [
        (39, 4, [1, 14, 26, 39]),
        (4, 4, [1, 2, 3, 4]),
        (3, 4, [1, 2, 3]),
        (5, 1, [5]),
        (5, 2, [1, 5]),
        (1, 4, [1]),
    ],
)
def test_stages_are_even_from_the_last_layer_to_all(count, most, expected):
    assert randomisation._depths(count, most) == expected


def test_the_noise_is_shared_so_that_a_map_is_wholly_like_itself(monkeypatch, relu_net, batch):
    monkeypatch.setattr(randomisation, "reinitialised", lambda model, seed, chosen: model)
    for method in (Saliency(), EdgeMap()):
        for column in scored(ModelRandomisation(samples=2), relu_net, *batch, method).values():
            torch.testing.assert_close(column, torch.ones_like(column), rtol=0, atol=1e-12)


class Given(nn.Linear):
    """A layer whose fresh weights are known, so that another library's networks are the same as ours."""

    def reset_parameters(self):
        count = self.weight.numel()
        with torch.no_grad():
            self.weight.copy_(torch.sin(1.7 * torch.arange(count) + count).view_as(self.weight))
            self.bias.zero_()


def known_net():
    net = nn.Sequential(nn.Flatten(), Given(72, 12), nn.ReLU(), Given(12, 8), nn.ReLU(), Given(8, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    inputs = torch.rand(5, 2, 6, 6)
    return net.eval(), inputs, net(inputs).argmax(1)


def judged(metric, net, inputs, target):
    def maps(model, inputs, targets, **kwargs):
        given = (torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets))
        return Saliency()(model, *given).sum(1, keepdim=True).numpy()

    return metric(model=net, x_batch=inputs.numpy(), y_batch=target.numpy(), explain_func=maps)


def test_quantus_agrees_but_for_the_likeness_of_the_map_to_itself(quantus):
    net, inputs, target = known_net()
    settings = {"layer_order": "top_down", "normalise": False, "disable_warnings": True, "abs": True}
    layered = judged(quantus.MPRT(**settings), net, inputs, target)
    signed = ModelRandomisation(reduction=SignedSize())
    ours = scored(signed, net, inputs, target, Saliency())["spearman"].numpy()
    stages = [layered[name] for name in ("5", "3", "1")]
    np.testing.assert_allclose(ours, np.mean(stages, axis=0), atol=1e-6)
    theirs = judged(quantus.MPRT(**settings, return_average_correlation=True), net, inputs, target)
    np.testing.assert_allclose(theirs, (3 * ours + 1) / 4, atol=1e-6)


class SignedSize(type(randomisation.ABSOLUTE).__base__):
    """The size of the sum over channels, as a map of one channel has it."""

    def __call__(self, attributions):
        return attributions.sum(1).abs()


def test_quantus_agrees_about_complexity(quantus):
    net, inputs, target = known_net()
    theirs = judged(
        quantus.EfficientMPRT(normalise=False, abs=False, disable_warnings=True), net, inputs, target
    )
    ours = scored(EfficientRandomisation(), net, inputs, target, Saliency())[""].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (5, 13), (1, 3), (28, 28)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bins", [100, 7])
def test_histogram_entropy_is_that_of_scipy(shape, dtype, bins):
    maps = torch.randn(4, *shape, dtype=dtype)
    maps[1] = (maps[1] * 3).round()  # values on the edges of bins
    expected = [scipy.stats.entropy(np.histogram(each.double().numpy(), bins=bins)[0]) for each in maps]
    np.testing.assert_allclose(histogram_entropy(maps, bins).numpy(), expected, atol=1e-12)


def test_entropy_of_maps_without_a_histogram():
    maps = torch.rand(4, 3, 3)
    maps[0], maps[1], maps[2, 0, 0] = 0, 0.3, math.nan
    entropy = histogram_entropy(maps)
    assert entropy[:2].tolist() == [0, 0]
    assert entropy.isnan().tolist() == [False, False, True, False]
    other = torch.rand(4, 3, 3)
    other[3] = 1.0
    assert entropy_rise(maps, other).isnan().all()
    assert entropy_rise(other, maps).isnan().all()
    assert histogram_entropy(torch.rand(2, 1, 1)).tolist() == [0, 0]


def test_evenly_filled_bins_have_the_entropy_of_their_number():
    maps = torch.arange(400, dtype=torch.float64).view(1, 20, 20)
    maps = (maps // 4 + 0.5).where(maps > 0, 0.0).where(maps < 399, 100.0)
    assert float(histogram_entropy(maps)) == pytest.approx(math.log(100))


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_scale_of_a_map_does_not_matter(scale):
    maps, other = torch.randn(3, 8, 9), torch.randn(3, 8, 9)
    expected = cascade_similarity(maps, [other]) | {"rise": entropy_rise(maps, other)}
    seen = cascade_similarity(maps * scale, [other]) | {"rise": entropy_rise(maps, other * scale)}
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-5)


def test_networks_whose_map_is_constant_say_nothing():
    maps, other = torch.rand(4, 8, 8), torch.rand(4, 8, 8)
    dead, ill = torch.zeros(4, 8, 8), torch.full((4, 8, 8), math.nan)
    expected = cascade_similarity(maps, [other])
    torch.testing.assert_close(cascade_similarity(maps, [other, dead, ill]), expected)
    for column in cascade_similarity(maps, [dead, ill]).values():
        assert column.isnan().all()
    maps[1], maps[2, 0, 0] = 0, math.inf
    for column in cascade_similarity(maps, [other]).values():
        assert column.isnan().tolist() == [False, True, True, False]
    assert scaled(maps).isnan().flatten(1).any(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_random_logit_of_a_linear_model_is_the_cosine_of_its_rows(skimage, classes):
    case = linear_case(classes)
    inputs, target = case.inputs[:5], case.target[:5]
    scores = scored(RandomLogit(), case.model, inputs, target, Saliency())
    cosines = torch.cosine_similarity(case.weight[target][:, None], case.weight[None], dim=2)
    gap = (scores["cosine"][:, None] - cosines).abs()
    drawn = gap.argmin(1)
    assert (gap.amin(1) < 1e-12).all()
    assert (drawn != target).all()
    for image in range(5):
        first, second = (case.weight[c].view(2, 5, 5).abs().sum(0) for c in (target[image], drawn[image]))
        expected = structural(skimage, first.numpy(), second.numpy())
        assert float(scores["ssim"][image]) == pytest.approx(expected, abs=1e-7)
    again = scored(RandomLogit(), case.model, inputs, target, Saliency())
    assert torch.equal(again["cosine"], scores["cosine"])


def test_the_other_class_is_drawn_evenly():
    case = linear_case(10)
    inputs, target = case.inputs[:1].expand(2000, -1, -1, -1), case.target[:1].expand(2000)
    scores = scored(RandomLogit(), case.model, inputs, target, Saliency(), ids=torch.arange(2000))
    cosines = torch.cosine_similarity(case.weight[target[:1]], case.weight)
    drawn = (scores["cosine"][:, None] - cosines).abs().argmin(1)
    counts = drawn.bincount(minlength=10)
    assert counts[target[0]] == 0
    others = counts[torch.arange(10) != target[0]]
    assert (others - 2000 / 9).abs().max() < 5 * math.sqrt(2000 * 8 / 81)


def test_a_map_that_ignores_the_class_is_the_same_for_all(relu_net, batch):
    for column in scored(RandomLogit(), relu_net, *batch, EdgeMap()).values():
        torch.testing.assert_close(column, torch.ones_like(column))


def test_networks_and_classes_are_drawn_once_for_all_methods(monkeypatch, relu_net, batch):
    made, drawn = [], []

    def forget(model, seed, chosen):
        made.append(chosen)
        return reinitialised(model, seed, chosen)

    class Watched(randomisation.RandomClass):
        def __call__(self, logits, target):
            drawn.append(len(target))
            return super().__call__(logits, target)

    monkeypatch.setattr(randomisation, "reinitialised", forget)
    monkeypatch.setattr(randomisation, "RandomClass", Watched)
    metrics = {
        "mprt": ModelRandomisation(),
        "signed": ModelRandomisation(reduction=SignedSum()),
        "l": RandomLogit(),
    }
    methods = {"saliency": Saliency(), "product": InputXGradient()}
    seen = explain(relu_net, *batch, methods, metrics, seed=0)
    assert [len(chosen) for chosen in made] == [1, 2, 3, 4]
    assert drawn == [5]
    assert not any(column.isnan().any() for column in seen.flat().values())


def test_the_untrained_control_is_the_method_on_the_untrained_network(relu_net, batch):
    control = Untrained(InputXGradient(), seed=3)
    expected = InputXGradient()(reinitialised(relu_net, 3), *batch)
    assert torch.equal(control(relu_net, *batch), expected)
    assert not torch.allclose(InputXGradient()(relu_net, *batch), expected)
    assert Untrained(seed=3).of(InputXGradient(), None) == control
    assert eval(repr(control), vars(attributions) | {"Untrained": Untrained}) == control


def test_the_untrained_control_stays_while_the_network_learns_and_leaves_nothing_behind():
    net, copies, scores = tiny_net(nn.ReLU), weakref.WeakSet(), []
    inputs, target = torch.rand(5, 2, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    metrics = {"complexity": EfficientRandomisation(), "mprt": ModelRandomisation(), "logit": RandomLogit()}
    for epoch in range(6):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.01 * epoch)
        seen = explain(net, inputs, target, {"saliency": Saliency()}, metrics, 0, controls={"u": Untrained()})
        scores.append(seen.controls["u"]["saliency"]["logit"]["cosine"])
        assert list(seen.controls["u"]["saliency"]) == ["logit"]  # the other two make it forget again
        with torch.inference_mode(False):
            copies.add(untrained(net, 0))
        assert len(copies) == 1
    for later in scores[1:]:
        assert torch.equal(later, scores[0])


def test_the_control_and_the_complexity_share_one_map(monkeypatch, relu_net, batch):
    seen, maps = [], Saliency.maps

    def watched(self, model, inputs, target):
        seen.append(model)
        return maps(self, model, inputs, target)

    monkeypatch.setattr(Saliency, "maps", watched)
    metrics = {"complexity": EfficientRandomisation(), "logit": EfficientRandomisation(SignedSum())}
    explain(relu_net, *batch, {"saliency": Saliency()}, metrics, 0, controls={"untrained": Untrained()})
    assert seen == [relu_net, untrained(relu_net, 0)]


def test_methods_that_search_are_scored_too(relu_net, batch):
    with remembering():
        for metric in (ModelRandomisation(layers=2), EfficientRandomisation(), RandomLogit()):
            columns = scored(metric, relu_net, *batch, BoundarySaliency())
            assert all(column.shape == (5,) for column in columns.values())


def test_bad_input(relu_net):
    for settings, message in (
        ({"layers": 0}, "`layers` must be at least 1, got 0"),
        ({"samples": -1}, "`samples` must be at least 0, got -1"),
        ({"sigma": 0.0}, "`sigma` must be greater than 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelRandomisation(**settings)
    bare = Facts(nn.Flatten(), (1, 2, 2), 4, 5, 4, False, torch.device("cpu"))
    for metric in (ModelRandomisation(), EfficientRandomisation()):
        with pytest.raises(ValueError, match="`forget` needs a network with weights"):
            metric.check("forget", bare)
        assert not metric.applies(Untrained())
    single = Facts(relu_net, (2, 8, 8), 1, 5, 1, False, torch.device("cpu"))
    with pytest.raises(ValueError, match="`logit` needs at least 2 classes, got 1"):
        RandomLogit().check("logit", single)
