"""Controls and flags."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from searches import ToNowhere, ToPlane
from subjects import linear_case
from torch import nn

from lit_xai import metrics, randomness
from lit_xai.attributions import BoundarySaliency, Saliency
from lit_xai.metrics import EdgeMap, Flags, Missing, RandomMap

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
