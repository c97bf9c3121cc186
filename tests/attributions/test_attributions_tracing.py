"""Tracing features back: a slow twin, what is seen where the answer is known, and what is refused."""

import dataclasses

import pytest
import torch
from subjects import tiny_net
from torch import nn

from lit_xai.attributions.tracing import SaliencyByTracing, TraceBack
from lit_xai.models.backtracking import Backtracking
from lit_xai.network import record

pytestmark = pytest.mark.usefixtures("float64")


def slowly(method: SaliencyByTracing, net: nn.Module, image: torch.Tensor, layer: str) -> torch.Tensor:
    """The algorithm as published, channel by channel, for one image."""
    tape, back = record(net, image[None]), Backtracking()
    value = tape.value(layer)
    base = back(tape, value, torch.zeros_like(value)[None])[0, 0]
    height, width = value.shape[2:]
    found = []
    for channel, plane in enumerate(value[0].detach()):
        place = int(plane.argmax())
        border = place // width in (0, height - 1) or place % width in (0, width - 1)
        if not (method.skip_border and border):
            found.append((float(plane.max()), channel, place))
    total = torch.zeros(image.shape[1:])
    for peak, channel, place in sorted(found, reverse=True)[: method.features]:
        lone = torch.zeros_like(value)
        lone[0, channel].view(-1)[place] = method.amplitude
        seen = (back(tape, value, lone[None])[0, 0] - base).abs().sum(0)
        total += peak * (seen > method.threshold * seen.mean())
    return total


@pytest.mark.parametrize(
    "method",
    [
        SaliencyByTracing(),
        SaliencyByTracing(skip_border=False),
        SaliencyByTracing(features=3, threshold=1.5, amplitude=7.0, skip_border=False, chunk=4),
    ],
    ids=str,
)
def test_saliency_by_tracing_is_the_published_algorithm(method):
    net = tiny_net(nn.LeakyReLU, torch.float64)
    inputs = torch.rand(4, 2, 8, 8)
    maps = method(net, inputs, torch.zeros(4, dtype=torch.int64))
    expected = torch.stack([slowly(method, net, image, "4") for image in inputs])
    torch.testing.assert_close(maps.sum(1), expected)
    assert torch.equal(maps[:, 0], maps[:, 1])
    named = dataclasses.replace(method, layer="4")
    assert torch.equal(named(net, inputs, torch.zeros(4, dtype=torch.int64)), maps)


def test_the_map_marks_the_patches_that_the_strongest_features_saw():
    """Channels of a 4 x 4 patch each, with orthogonal rows: a bright corner of the second patch of a row."""
    layer = nn.Conv2d(1, 16, 4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(16).view(16, 1, 4, 4))
    net = nn.Sequential(layer, nn.LeakyReLU(0.5), nn.Flatten(), nn.Linear(16 * 16, 2)).eval()
    image = torch.full((1, 1, 16, 16), 0.1)
    image[0, 0, 5, 6] = 1.0  # within patch (1, 1), no border; entry 1 * 4 + 2 of the patch
    maps = SaliencyByTracing(features=1)(net, image, torch.tensor([0]))
    assert maps.nonzero().tolist() == [[0, 0, 5, 6]]
    assert maps.max() == 1.0
    image[0, 0, 0, 0] = 3.0  # brighter, but on the border
    assert torch.equal(SaliencyByTracing(features=1)(net, image, torch.tensor([0])), maps)
    everywhere = SaliencyByTracing(features=1, skip_border=False)(net, image, torch.tensor([0]))
    assert everywhere.nonzero().tolist() == [[0, 0, 0, 0]]


def test_where_all_peaks_are_on_the_border_nothing_is_shown():
    layer = nn.Conv2d(1, 3, 4, 4)
    net = nn.Sequential(layer, nn.LeakyReLU(0.5), nn.Flatten(), nn.Linear(12, 2)).eval()
    maps = SaliencyByTracing()(net, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))  # 2 x 2 places: all border
    assert not maps.any()


def test_trace_back_is_the_image_where_nothing_is_lost_and_cut_at_zero():
    layer = nn.Conv2d(1, 16, 4, 4)
    with torch.no_grad():
        layer.weight.copy_(3 * torch.linalg.qr(torch.randn(16, 16))[0].view(16, 1, 4, 4))
    net = nn.Sequential(layer, nn.LeakyReLU(0.5), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    inputs = torch.randn(3, 1, 16, 16)
    maps = TraceBack()(net, inputs, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(maps, inputs.clamp(min=0))
    pooled = TraceBack(layer="2")(net, inputs, torch.tensor([0, 1, 0]))
    assert not torch.allclose(pooled, maps)


@pytest.mark.parametrize("method", [SaliencyByTracing(), TraceBack()], ids=["sat", "trace back"])
def test_the_class_does_not_matter(method):
    net, inputs = tiny_net(nn.ReLU, torch.float64), torch.rand(2, 2, 8, 8)
    first, second = (method(net, inputs, torch.full((2,), label)) for label in (0, 3))
    assert torch.equal(first, second)


def test_what_cannot_be_traced_is_refused():
    inputs, target = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with pytest.raises(
        ValueError, match="`SaliencyByTracing` needs a layer with places, and this network has"
    ):
        SaliencyByTracing()(linear, inputs, target)
    with pytest.raises(ValueError, match=r"`layer` must have an output .* but '1' gives \(2, 2\)"):
        SaliencyByTracing(layer="1")(linear, inputs, target)
    bent = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    for method in (SaliencyByTracing(), TraceBack()):
        with pytest.raises(ValueError, match=r"`tanh` \(layer '1'\) has no inverse"):
            method(bent.eval(), inputs, target)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("features", 0, "`features` must be at least 1, got 0"),
        ("chunk", 0, "`chunk` must be at least 1, got 0"),
        ("amplitude", 0.0, "`amplitude` must be greater than 0, got 0.0"),
        ("threshold", -1.0, "`threshold` must be at least 0, got -1.0"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        SaliencyByTracing(**{field: value})
