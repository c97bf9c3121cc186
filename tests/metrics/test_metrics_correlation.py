"""Correlation metrics: linear models, slow twins, another library, and what must not matter."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from subjects import linear_case, tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attributions import FeatureAblation, InputXGradient, IntegratedGradients, NoiseImage, Saliency
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics import AbsoluteSum, RandomMap, SignedSum  # noqa: F401 (named in a repr)
from lit_xai.metrics.base import Facts
from lit_xai.metrics.correlation import (
    FaithfulnessCorrelation,
    FaithfulnessEstimate,
    SensitivityN,
    ablated,
    faithfulness_correlation,
    patches,
    subsets,
)
from lit_xai.observe import explain

METRICS = [
    FaithfulnessCorrelation(20, 0.2),
    SensitivityN(20, (0.05, 0.4, 0.8)),
    FaithfulnessEstimate(3),
]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)


def ids(count):
    return torch.arange(count) + 5


def scored(metric, model, inputs, target, maps, names=None):
    with randomness.keyed(0, ids(len(inputs)) if names is None else names):
        return metric.named(model=model, inputs=inputs, target=target, attributions=maps)


def linear(channels, height, width, dtype=torch.float64, bias=0.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 3)).to(dtype).eval()
    with torch.no_grad():
        model[1].bias.fill_(bias)
    return model, torch.rand(4, channels, height, width, dtype=dtype), torch.tensor([0, 1, 2, 1])


@every_metric
def test_gradient_times_input_is_perfect_on_a_linear_model(metric):
    case = linear_case()
    maps = InputXGradient()(case.model, case.inputs, case.target)
    for sign in (1, -1):
        for column in scored(metric, case.model, case.inputs, case.target, sign * maps).values():
            torch.testing.assert_close(column, torch.full_like(column, sign), rtol=0, atol=1e-9)


@every_metric
def test_the_baseline_is_the_one_that_a_path_of_the_same_kind_starts_from(metric):
    case, path = linear_case(), IntegratedGradients(steps=2, baseline=NoiseImage())
    metric = eval(repr(metric).replace("FlatImage(value=0.0)", "NoiseImage()"), dict(globals()))
    with randomness.keyed(0, ids(len(case.inputs))):
        maps = path(case.model, case.inputs, case.target)
    for column in scored(metric, case.model, case.inputs, case.target, maps).values():
        torch.testing.assert_close(column, torch.ones_like(column), rtol=0, atol=1e-9)
    black = InputXGradient()(case.model, case.inputs, case.target)
    for column in scored(metric, case.model, case.inputs, case.target, black).values():
        assert (column < 0.999).all()


def test_it_equals_its_slow_twin():
    """One subset and one image at a time, with SciPy's correlation."""
    net, inputs = tiny_net(nn.ReLU, torch.float64), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 1, 2])
    maps = torch.randn(3, 8, 8, dtype=torch.float64)
    with randomness.keyed(0, ids(3)):
        table, places = subsets(inputs, 12, 0.2)
        seen = faithfulness_correlation(maps, ablated(net, inputs, target, table, places, 0.5, chunk=7))
    for image in range(3):
        claimed, lost = [], []
        for subset in table:
            gone = torch.tensor([bool(subset[place]) for place in places[image]]).view(8, 8)
            assert gone.sum() == round(0.2 * 64)
            harmed = inputs[image].clone()
            harmed[:, gone] = 0.5
            claimed.append(float(maps[image][gone].sum()))
            with torch.no_grad():
                lost.append(float((net(inputs[image : image + 1]) - net(harmed[None]))[0, target[image]]))
        assert float(seen[image]) == pytest.approx(stats.pearsonr(claimed, lost)[0], abs=1e-9)


def test_quantus_agrees_within_the_error_of_sampling():
    quantus = pytest.importorskip("quantus")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 100, 4)).eval()
    inputs, target = torch.rand(12, 1, 12, 12), torch.arange(12) % 4
    inputs[:, 0, 0, 0] = 0  # "black" means the least value of an image there
    maps = InputXGradient()(net, inputs, target)
    maps = maps + maps.std() * torch.randn_like(maps)  # somewhere between right and ignorant
    own = scored(FaithfulnessCorrelation(150, 0.2), net, inputs, target, maps)[""]
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=150,
        subset_size=round(0.2 * 144),
        perturb_baseline="black",
        return_aggregate=False,
        disable_warnings=True,
    )
    np.random.seed(0)
    theirs = metric(
        model=net, x_batch=inputs.numpy(), y_batch=target.numpy(), a_batch=maps.numpy(), softmax=False
    )
    theirs = torch.tensor(np.array(theirs), dtype=torch.float64)
    error = (1 - own.square()) * math.sqrt(2 / 150)
    assert ((own - theirs).abs() < 5 * error).all()
    assert float((own - theirs).mean().abs()) < 3 * float(error.square().mean().sqrt()) / math.sqrt(12)
    assert 0.3 < float(own.mean()) < 0.9


def test_the_segments_of_an_ablation_are_foretold_by_it_and_by_no_other(relu_net, batch):
    inputs, target = batch
    method = FeatureAblation(segments=3, baseline=0.5)
    maps = method(relu_net, inputs, target)
    exact = scored(FaithfulnessEstimate(3, baseline=0.5), relu_net, inputs, target, maps)[""]
    torch.testing.assert_close(exact, torch.ones_like(exact), rtol=0, atol=1e-5)
    other = scored(FaithfulnessEstimate(4, baseline=0.5), relu_net, inputs, target, maps)[""]
    assert (other < 0.999).all()
    table, _ = patches(inputs, 3)
    assert table.shape == (9, 64)
    assert (table.sum(0) == 1).all()


def test_subsets_have_their_size_belong_to_the_image_and_are_even():
    inputs = torch.rand(40, 1, 6, 7)
    with randomness.keyed(0, ids(40)):
        table, places = subsets(inputs, 200, 0.3)
    with randomness.keyed(0, ids(40)[7:9]):
        _, again = subsets(inputs[7:9], 200, 0.3)
    assert torch.equal(again, places[7:9])
    assert (table.sum(1) == round(0.3 * 42)).all()
    assert len({tuple(row) for row in table.tolist()}) == 200
    gone = table.T[places].double()  # image, pixel, subset
    assert not torch.equal(gone[0], gone[1])
    share = round(0.3 * 42) / 42
    sd = math.sqrt(share * (1 - share) / (200 * 40))
    assert ((gone.mean((0, 2)) - share).abs() < 5 * sd).all()
    # What two images draw has nothing to do with each other: neither have their subsets of the same number.
    centred = gone - share
    common = (centred[:20] * centred[20:]).mean((1, 2)) / (share * (1 - share))
    assert float(common.abs().max()) < 5 / math.sqrt(42 * 200)


@pytest.mark.parametrize(("share", "pixels"), [(0.001, 1), (0.999, 15), (0.5, 8)])
def test_a_subset_is_neither_empty_nor_whole(share, pixels):
    table, _ = subsets(torch.rand(2, 3, 4, 4), 10, share)
    assert (table.sum(1) == pixels).all()


def test_a_map_that_knows_nothing_has_no_correlation_on_average(relu_net):
    inputs = torch.rand(200, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    with randomness.keyed(0, ids(200)):
        maps = RandomMap()(relu_net, inputs, target)
    metric = FaithfulnessCorrelation(30)
    scores = scored(metric, relu_net, inputs, target, maps)[""]
    assert float(scores.mean().abs()) < 4 * float(scores.std()) / math.sqrt(200)
    informed = InputXGradient()(relu_net, inputs, target)
    assert float(scored(metric, relu_net, inputs, target, informed)[""].mean()) > 0.3


@every_metric
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_scale_of_a_map_does_not_matter(metric, relu_net, batch, scale):
    maps = torch.randn(5, 2, 8, 8)
    expected = scored(metric, relu_net, *batch, maps)
    for name, column in scored(metric, relu_net, *batch, maps * scale).items():
        torch.testing.assert_close(column, expected[name], rtol=0, atol=1e-5)


def test_each_image_is_correlated_on_its_own():
    """The scale of a map may change from image to image; a correlation over images would see that."""
    case = linear_case()
    maps = InputXGradient()(case.model, case.inputs, case.target)
    factor = torch.tensor([1e-6, 1, 1e3, 20, 1e6, 0.1], dtype=torch.float64).view(-1, 1, 1, 1)
    for column in scored(
        SensitivityN(10, (0.1, 0.5)), case.model, case.inputs, case.target, factor * maps
    ).values():
        torch.testing.assert_close(column, torch.ones_like(column), rtol=0, atol=1e-9)


def test_sensitivity_is_a_faithfulness_correlation_for_each_share(relu_net, batch):
    maps = Saliency()(relu_net, *batch)
    shares = (0.03, 0.2, 0.8)
    metric = SensitivityN(15, shares)
    scores = scored(metric, relu_net, *batch, maps)
    assert list(scores) == ["at_0.03", "at_0.2", "at_0.8", "mean"]
    single = [scored(FaithfulnessCorrelation(15, share), relu_net, *batch, maps)[""] for share in shares]
    for column, expected in zip(scores.values(), [*single, torch.stack(single).mean(0)], strict=True):
        torch.testing.assert_close(column, expected, rtol=0, atol=0)
    assert len({tuple(column.tolist()) for column in scores.values()}) == 4


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_maps_without_an_answer_have_no_score(metric, dtype):
    model, inputs, target = linear(2, 5, 7, dtype)
    maps = InputXGradient()(model, inputs, target)
    maps[1] = 0
    maps[2] = torch.full((5, 7), 0.1, dtype=dtype)  # the same for all subsets, but for rounding
    maps[3, 0, 2, 3] = math.nan
    missing = [False, True, not isinstance(metric, FaithfulnessEstimate), True]
    for column in scored(metric, model, inputs, target, maps).values():
        assert column.isnan().tolist() == missing
    maps[3, 0, 2, 3] = math.inf
    assert all(column[3].isnan() for column in scored(metric, model, inputs, target, maps).values())


@every_metric
def test_a_model_that_answers_alike_has_no_score(metric):
    """A change of a logit by a rounding error or two is none; one that is small but larger is one."""
    model, inputs, target = linear(1, 6, 6, torch.float32, bias=1000.0)
    maps = InputXGradient()(model, inputs, target)
    for column in scored(metric, model, inputs, target, maps).values():
        assert (column > 0.999).all()
    with torch.no_grad():
        model[1].weight.mul_(1e-5)
    for column in scored(metric, model, inputs, target, maps).values():
        assert column.isnan().all()


def test_one_image_alone_scores_what_it_scores_in_company(relu_net, batch):
    inputs, target = batch
    maps = torch.randn(5, 2, 8, 8)
    for metric in METRICS:
        together = scored(metric, relu_net, inputs, target, maps)
        alone = scored(metric, relu_net, inputs[3:4], target[3:4], maps[3:4], ids(5)[3:4])
        for name, column in together.items():
            torch.testing.assert_close(alone[name], column[3:4], rtol=0, atol=1e-5)


def test_forward_passes_are_those_told_and_are_shared_by_methods_and_metrics(relu_net, batch):
    inputs, target = batch
    methods = {"saliency": Saliency(), "random_map": RandomMap()}
    for metric, cost in (
        (METRICS[0], 20 + 1),
        (METRICS[1], 3 * 20 + 1),
        (METRICS[2], 9 + 1),
    ):
        counted = Counted(relu_net)
        explain(counted, inputs, target, methods, {"metric": metric}, 0)
        assert (counted.forwards, counted.backwards) == (5 * (1 + cost), 5)
    counted = Counted(relu_net)
    shells = {
        "all": SensitivityN(20, (0.05, 0.2)),
        "one": METRICS[0],
        "sizes": FaithfulnessCorrelation(20, 0.2, reduction=AbsoluteSum()),
    }
    explain(counted, inputs, target, methods, shells, 0)
    assert counted.forwards == 5 * (1 + 2 * 20 + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaithfulnessCorrelation(samples=2), "`samples` must be at least 3, got 2."),
        (lambda: FaithfulnessCorrelation(share=1.0), r"`share` must lie in \(0, 1\), got 1.0."),
        (lambda: FaithfulnessCorrelation(baseline=2.0), r"`baseline` must lie in \[0, 1\], got 2.0."),
        (lambda: FaithfulnessCorrelation(chunk=0), "`chunk` must be at least 1, got 0."),
        (lambda: SensitivityN(shares=()), "`shares` must hold at least one share, got none."),
        (lambda: SensitivityN(shares=(0.1, 0.0)), r"`shares` must lie in \(0, 1\), got 0.0."),
        (lambda: SensitivityN(shares=(0.1, 0.1)), "`shares` must differ in their first four digits"),
        (lambda: FaithfulnessEstimate(segments=1), "`segments` must be at least 2, got 1."),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_metric
def test_images_of_two_pixels_are_refused_before_the_run(metric):
    facts = Facts(nn.Identity(), (3, 1, 2), 4, 5, 4, False, torch.device("cpu"))
    with pytest.raises(ValueError, match="`mine` needs images of at least 3 pixels, got 1 x 2"):
        metric.check("mine", facts)
