"""Networks to be run backwards: published sizes and widths, and room for orthogonal rows."""

import pytest
import torch
from torch import nn

from lit_xai.models.all_convolutional import ACNNSmall, AllConv12
from lit_xai.models.backtracking import reconstructions

SMALL = {"width": 4, "widest": 16}


def sizes(model: nn.Module, channels: int, size: int) -> list[int]:
    seen: list[int] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    with torch.no_grad():
        model.eval()(torch.rand(1, channels, size, size))
    return seen


def widths(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize(
    ("channels", "size", "expected"),
    [(1, 28, [26, 13, 12, 6, 6]), (3, 32, [30, 15, 14, 7, 7])],
)
def test_the_small_network_shrinks_images_as_published(channels, size, expected):
    assert sizes(ACNNSmall(channels, 10, **SMALL), channels, size) == expected


def test_the_small_network_has_the_published_widths():
    with torch.device("meta"):
        assert widths(ACNNSmall(1, 10)) == [8, 24, 288, 864, 2592]
        assert widths(ACNNSmall(3, 10)) == [24, 64, 512, 1536, 4608]
        counts = [
            sum(weight.numel() for weight in ACNNSmall(channels, 10).parameters()) for channels in (1, 3)
        ]
    assert counts == [21_291_986, 67_431_786]
    assert widths(ACNNSmall(1, 10, width=4)) == [4, 12, 144, 432, 1296]
    assert widths(ACNNSmall(1, 10, widest=100)) == [8, 24, 100, 100, 100]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("more", [{}, {"width": 2}, SMALL], ids=str)
def test_no_convolution_of_the_small_network_has_more_rows_than_columns(channels, more):
    with torch.device("meta"):
        model = ACNNSmall(channels, 10, **more)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.out_channels <= layer.weight[0].numel()


@pytest.mark.parametrize("large", [False, True])
def test_the_deep_network_shrinks_images_as_published(large):
    with torch.device("meta"):
        base = [96, 96, 96, 256, 256, 256, 384, 384, 384, 1024, 1024, 7]
        rest = [100, 50, 90, 162, 81, 243, 729, 243, 729, 2187, 1458, 7]
        assert widths(AllConv12(3, 7, large=large)) == (rest if large else base)
    model = AllConv12(3, 7, large=large, widest=6)
    assert sizes(model, 3, 224) == [75, 75, 37, 35, 35, 17, 15, 15, 7, 5, 5, 5]
    assert sizes(model, 3, 128)[-1] == 1
    assert [type(layer).__name__ for layer in model.features].index("Dropout") == 18


@pytest.mark.parametrize("net", [ACNNSmall(2, 5, **SMALL), AllConv12(2, 5, widest=8)], ids=["small", "deep"])
def test_a_row_of_the_batch_is_classified_by_itself_in_both_precisions(net):
    model = net.double().eval()
    inputs = torch.rand(3, 2, 128, 128, dtype=torch.float64)
    logits = model(inputs)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(model(inputs[1:2]), logits[1:2])
    torch.testing.assert_close(model.float()(inputs.float()), logits.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", [ACNNSmall(1, 5, **SMALL), AllConv12(1, 5, widest=8)], ids=["small", "deep"])
def test_every_layer_can_be_traced_back(net):
    inputs = torch.rand(2, 1, 128, 128)
    found = reconstructions(net.eval(), inputs)
    assert len(found) == (5 if isinstance(net, ACNNSmall) else 13)
    assert all(images.isfinite().all() for images in found.values())


def test_the_small_network_takes_tiny_images_and_learns():
    model = ACNNSmall(1, 2, **SMALL)
    inputs = torch.rand(32, 1, 8, 8)
    target = (inputs[:, 0, 3:5, 3:5].mean((1, 2)) > 0.5).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("net", [ACNNSmall, AllConv12])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0, "classes": 10}, "`channels` must be at least 1, got 0"),
        ({"channels": 3, "classes": 1}, "`classes` must be at least 2, got 1"),
        ({"channels": 3, "classes": 2, "widest": 0}, "`widest` must be at least 1, got 0"),
        ({"channels": 3, "classes": 2, "slope": 0.0}, "`slope` must be greater than 0, got 0.0"),
    ],
)
def test_impossible_networks_are_refused(net, arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        net(**arguments)
