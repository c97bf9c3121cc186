"""Controls and flags."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from searches import ToNowhere, ToPlane
from subjects import linear_case, pooled_net
from torch import nn

from lit_xai import metrics, randomness
from lit_xai.attacks import ClosestBoundary, LinfPGD
from lit_xai.attributions import (
    BoundaryIntegratedGradients,
    BoundarySaliency,
    IntegratedGradients,
    NoiseImage,
    Saliency,
    SmoothGrad,
)
from lit_xai.metrics import CentreMap, Companions, EdgeMap, Flags, Missing, OtherImage, RandomMap, Untrained
from lit_xai.metrics.neighbourhood import Neighbourhood
from lit_xai.observe import explain

MODEL = nn.Identity().eval()
IDS = torch.tensor([7, 3, 11, 0, 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("control", [RandomMap(), EdgeMap()], ids=repr)
def test_controls_keep_the_contract_of_an_attribution(control, dtype):
    inputs, target = torch.rand(5, 3, 6, 7, dtype=dtype), torch.zeros(5, dtype=torch.int64)
    with randomness.keyed(1, IDS):
        maps = control(MODEL, inputs, target)
    assert maps.shape == inputs.shape
    assert maps.dtype == dtype
    assert eval(repr(control), vars(metrics).copy()) == control
    rows = torch.tensor([4, 1])
    with randomness.keyed(1, IDS[rows]):
        assert torch.equal(control(MODEL, inputs[rows], target[rows]), maps[rows])


def test_random_maps_are_uniform_and_know_nothing_of_the_image():
    inputs, target = torch.rand(5, 3, 60, 60), torch.zeros(5, dtype=torch.int64)
    with randomness.keyed(1, IDS):
        maps = RandomMap()(MODEL, inputs, target)
        assert torch.equal(RandomMap()(MODEL, torch.zeros_like(inputs), target), maps)
    with randomness.keyed(2, IDS):
        assert not torch.equal(RandomMap()(MODEL, inputs, target), maps)
    assert maps.abs().max() < 1
    count = maps.numel()
    assert abs(maps.mean()) < 4 / math.sqrt(3 * count)
    assert abs(maps.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / count)
    assert abs(torch.corrcoef(torch.stack([maps[0].flatten(), maps[1].flatten()]))[0, 1]) < 0.05


def test_edges_equal_scipy():
    inputs = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    maps = EdgeMap()(MODEL, inputs, torch.zeros(2, dtype=torch.int64))
    for plane, edges in zip(inputs.flatten(0, 1).numpy(), maps.flatten(0, 1).numpy(), strict=True):
        across, down = (scipy.ndimage.sobel(plane, axis=axis, mode="nearest") for axis in (1, 0))
        np.testing.assert_allclose(edges, np.hypot(across, down), atol=1e-12)
    assert (EdgeMap()(MODEL, torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])) == 0).all()


@pytest.fixture
def looks():
    """Looks at some of six images with methods that draw, search or have a baseline, and all controls."""
    net, inputs = pooled_net(torch.float64), torch.rand(6, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    target[1] = (target[1] + 1) % 4
    ids = torch.tensor([7, 3, 11, 0, 5, 40])
    # The second image stands beside the first; two images have the same companion.
    beside = torch.tensor([[1, 2], [3, 0], [5, 1], [5, 0], [0, 1], [2, 4]])
    companions = Companions(inputs[beside], target[beside], ids[beside])
    search = ClosestBoundary(starts=1, steps=2, first=2, last=2, bisections=4)
    methods = {
        "gradients": IntegratedGradients(steps=3, baseline=NoiseImage()),
        "smooth": SmoothGrad(samples=3),
        "boundary": BoundarySaliency(search=search),
        "path": BoundaryIntegratedGradients(search=search, steps=3),
    }
    near = Neighbourhood(0.05, 2)
    scored = {
        "gini": metrics.Gini(),
        "srg": metrics.SRG(steps=4),
        "similarity": metrics.NeighbourSimilarity(near),
        "attacked": metrics.AttackedStability(LinfPGD(0.05, steps=2), halvings=2),
        "logit": metrics.RandomLogit(),
        "complexity": metrics.EfficientRandomisation(),
    }
    controls = {
        "random": RandomMap(),
        "edges": EdgeMap(),
        "centre": CentreMap(),
        "other": OtherImage(),
        "untrained": Untrained(),
    }

    def look(rows):
        given = {"controls": controls, "companions": companions[rows]}
        return explain(net, inputs[rows], target[rows], methods, scored, 0, ids[rows], **given)

    return look


def test_scores_of_methods_and_controls_do_not_depend_on_the_batch(looks):
    whole = looks(torch.arange(6)).flat()
    assert {"control/other/boundary/gini", "control/untrained/smooth/similarity/ssim"} < set(whole)
    split = torch.tensor([4, 1]), torch.tensor([5, 0, 3, 2])
    parts = [looks(rows).flat() for rows in split]
    for key, column in whole.items():
        seen = torch.cat([part[key] for part in parts])
        expected = column[torch.cat(split)]
        torch.testing.assert_close(seen, expected, rtol=1e-7, atol=1e-9, equal_nan=True, msg=key)


def test_the_map_of_another_image_is_the_one_that_it_has_itself(looks):
    seen = looks(torch.arange(6))
    for name in seen.maps:
        own = seen.scores[name]["gini"][""]
        other = seen.controls["other"][name]["gini"][""]
        assert own.isnan().sum() <= 2
        torch.testing.assert_close(other, own[[1, 3, 5, 5, 0, 2]], rtol=1e-7, atol=1e-9, equal_nan=True)


def test_without_companions_it_is_the_next_image_and_one_alone_has_none():
    case = linear_case()
    with randomness.keyed(0, torch.arange(6)):
        maps = OtherImage(RandomMap())(case.model, case.inputs, case.target)
        assert torch.equal(maps, RandomMap()(case.model, case.inputs, case.target).roll(-1, 0))
        with pytest.raises(ValueError, match="`OtherImage` needs another image, and the batch has 1"):
            OtherImage()(case.model, case.inputs[:1], case.target[:1])


def test_the_centre_is_brightest_and_as_wide_as_said():
    inputs = torch.rand(2, 3, 9, 17, dtype=torch.float64)
    maps = CentreMap(sigma=0.5)(MODEL, inputs, torch.zeros(2, dtype=torch.int64))
    assert maps.shape == inputs.shape
    assert float(maps[0, :, 4, 8].sum()) == pytest.approx(1)
    assert float(maps[1, :, 4 + 3, 8 - 4].sum()) == pytest.approx(math.exp(-25 / (2 * 4.5**2)))
    with pytest.raises(ValueError, match="`sigma` must be greater than 0"):
        CentreMap(sigma=0)


def test_flags_count_maps_that_are_no_answer():
    maps = torch.rand(5, 2, 4, 4)
    maps[0], maps[1, 0, 1, 1], maps[2, 1, 0, 0] = 0, math.nan, -math.inf
    maps[3, 0] = 0
    metric = Flags()
    metric.update(attributions=maps)
    values = metric.compute()
    assert float(values["zero"]) == pytest.approx(0.2)
    assert float(values["nonfinite"]) == pytest.approx(0.4)


def test_missing_boundaries_are_counted_where_there_should_be_one():
    case = linear_case()
    given = {"model": case.model, "inputs": case.inputs[:5], "target": case.target[:5]}
    metric = Missing()
    assert metric.named(**given, attribution=BoundarySaliency(ToNowhere()))[""].tolist() == [1, 0, 1, 0, 1]
    assert metric.named(**given, attribution=BoundarySaliency(ToPlane()))[""].tolist() == [0] * 5
    assert metric.applies(BoundarySaliency(ToPlane()))
    assert not metric.applies(Saliency())
