"""Backtracking: exact where rows are orthogonal, the published numbers, slow twins, what has no inverse."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.models.backtracking import (
    Backtracking,
    feature_map,
    likeness,
    psnr,
    reconstructions,
    relative_error,
    stages,
)
from lit_xai.models.normalized import Normalized
from lit_xai.models.small import SmallCNN
from lit_xai.network import record

pytestmark = pytest.mark.usefixtures("float64")


def orthogonal(rows: int, columns: int, length: float = 1.0) -> Tensor:
    """Orthogonal rows of one length, or columns where there are fewer of them."""
    basis = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0]
    return length * (basis if rows >= columns else basis.T)


def put(layer: nn.Conv2d | nn.Linear, matrix: Tensor) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(matrix.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.normal_()
    return layer


def conv(*arguments: int, length: float = 1.7, **more: int) -> nn.Module:
    layer = nn.Conv2d(*arguments, **more)
    rows = [orthogonal(layer.out_channels // layer.groups, layer.weight[0].numel(), length)] * layer.groups
    return put(layer, torch.cat(rows))


def back(net: nn.Module, inputs: Tensor, layer: str = "", **how: object) -> Tensor:
    tape = record(net.eval(), inputs)
    value = tape.value(layer) if layer else tape.output
    return Backtracking(**how)(tape, value, value[None])[0].detach()


def assert_exact(net: nn.Module, inputs: Tensor) -> None:
    assert relative_error(back(net, inputs), inputs).max() < 1e-24


@pytest.mark.parametrize(
    ("rows", "size", "stride", "padding", "kind", "low", "high"),
    [
        (27, 3, 1, 1, "orthogonal", 0, 1e-30),
        (12, 2, 2, 0, "orthogonal", 0, 1e-30),
        (27, 3, 1, 1, "gaussian", 0.08, 0.12),
        (12, 2, 2, 0, "gaussian", 0.7, 1.05),
        (16, 3, 1, 1, "orthogonal", 0.17, 0.21),
        (40, 3, 1, 1, "orthogonal", 0, 1e-30),
    ],
)
def test_published_numbers(rows, size, stride, padding, kind, low, high):
    """On noise of 3 x 16 x 16 pixels behind a leaky ReLU: exact, or lossy by a known amount."""
    columns = 3 * size**2
    errors = []
    for _ in range(5):
        matrix = orthogonal(rows, columns, 1.7) if kind == "orthogonal" else torch.randn(rows, columns)
        net = nn.Sequential(put(nn.Conv2d(3, rows, size, stride, padding), matrix), nn.LeakyReLU(0.5))
        inputs = torch.randn(2, 3, 16, 16)
        errors.append(relative_error(back(net, inputs), inputs))
    assert low <= torch.cat(errors).mean() <= high


def by_unfolding(layer: nn.Conv2d, output: Tensor, size: Sequence[int]) -> Tensor:
    """The patches W^T u, added up where they lie and divided by how many there are; group by group."""
    kernel, stride, padding, dilation = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    parts = []
    for weight, bias, part in zip(
        layer.weight.chunk(layer.groups), layer.bias.chunk(layer.groups), output.chunk(layer.groups, 1),
        strict=True,
    ):  # fmt: skip
        matrix = weight.flatten(1)
        squares = matrix.square().sum(1)
        if len(matrix) > matrix.shape[1]:
            squares = squares.sum() / matrix.shape[1] * torch.ones_like(squares)
        rows = (part - bias[:, None, None]).flatten(2) / squares[:, None]
        patches = matrix.T @ rows
        how = {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride}
        ones = F.fold(torch.ones_like(patches), size, **how)
        parts.append(F.fold(patches, size, **how) / ones)
    return torch.cat(parts, 1).nan_to_num()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"padding": 2},
        {"stride": 2, "padding": 1},
        {"stride": 3},
        {"dilation": 2, "padding": 2},
        {"stride": 2, "dilation": (1, 3), "padding": (0, 1)},
        {"groups": 2, "padding": 1},
        {"groups": 4, "stride": (1, 2)},
    ],
    ids=str,
)
@pytest.mark.parametrize("outputs", [8, 80])
def test_a_convolution_is_undone_as_by_unfolding(how, outputs):
    layer = nn.Conv2d(4, outputs, 3, **how)
    inputs = torch.randn(2, 4, 13, 16)
    expected = by_unfolding(layer, layer(inputs), (13, 16))
    torch.testing.assert_close(back(layer, inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(5, 12), (12, 12), (20, 12)])
def test_a_linear_layer_is_undone_by_its_pseudoinverse_where_it_is_orthogonal(rows, columns, bias):
    layer = put(nn.Linear(columns, rows, bias=bias), orthogonal(rows, columns, 3.0))
    inputs = torch.randn(4, 3, 2, 2)
    output = inputs.flatten(1) @ layer.weight.T
    expected = (output @ torch.linalg.pinv(layer.weight).T).view_as(inputs)
    torch.testing.assert_close(back(nn.Sequential(nn.Flatten(), layer), inputs), expected)


def batch_norm(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels))
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


class Scattered(nn.Module):
    """Knows the number of its images, as careless code does."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.view(int(inputs.shape[0]), -1).flip(1)


@pytest.mark.parametrize(
    "layers",
    [
        [conv, nn.LeakyReLU],
        [lambda: batch_norm(3), conv],
        [conv, lambda: batch_norm(12)],
        [lambda: conv(3, 12, 2, stride=2, bias=False), lambda: batch_norm(12), lambda: nn.LeakyReLU(0.1)],
        [nn.Identity, lambda: conv(3, 40, 3, padding=1), lambda: batch_norm(40), nn.LeakyReLU],
        [conv, nn.LeakyReLU, Scattered, lambda: nn.Linear(192, 192)],
        [lambda: nn.ZeroPad2d(2), lambda: conv(3, 27, 3), nn.Dropout, nn.Flatten],
    ],
)
def test_the_image_comes_back_where_nothing_is_lost(layers):
    made = [conv(3, 12, 2, stride=2) if make is conv else make() for make in layers]
    made = [put(part, orthogonal(192, 192)) if isinstance(part, nn.Linear) else part for part in made]
    inputs = torch.rand(2, 3, 8, 8)
    assert_exact(nn.Sequential(*made), inputs)
    assert_exact(Normalized(nn.Sequential(*made, nn.Flatten()), [0.1, 0.2, 0.7], [0.5, 0.25, 2.0]), inputs)


@pytest.mark.parametrize("left", [0.0, 1e-17])
@pytest.mark.parametrize("part", [0, 1], ids=["weights", "batch norm"])
def test_a_silenced_channel_says_nothing(part, left):
    """Also where rounding says something of it: pruned rows and batch norms are seldom exactly 0."""
    net = nn.Sequential(conv(3, 12, 2, stride=2), batch_norm(12)).eval()
    with torch.no_grad():
        net[part].weight[4] *= left
        rest = net[0].weight.clone()
        rest[4] = 0
    inputs = torch.rand(2, 3, 8, 8)
    expected = F.conv_transpose2d(F.conv2d(inputs, rest, stride=2), rest / 1.7**2, stride=2)
    torch.testing.assert_close(back(net, inputs), expected)
    found = back(net.float(), inputs.float())
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


def test_a_relu_passes_all_on_or_what_it_had_let_through():
    inputs = torch.randn(2, 3, 4, 4)
    tape = record(nn.ReLU(), inputs)
    features = torch.randn(5, *inputs.shape)
    assert torch.equal(Backtracking()(tape, tape.output, features), features)
    expected = features.clamp(min=0) * (inputs > 0)
    assert torch.equal(Backtracking(guided=True)(tape, tape.output, features), expected)


@pytest.mark.parametrize("size", [8, 9])
def test_a_max_pool_fills_its_window_or_the_place_of_its_maximum(size):
    pool, inputs = nn.MaxPool2d(2), torch.randn(2, 3, size, size)
    output = pool(inputs)
    filled = output.repeat_interleave(2, 2).repeat_interleave(2, 3)
    filled = F.pad(filled, (0, size - 8, 0, size - 8), mode="replicate")
    assert torch.equal(back(pool, inputs), filled)
    _, places = F.max_pool2d(inputs, 2, return_indices=True)
    expected = F.max_unpool2d(output, places, 2, output_size=inputs.shape[2:])
    assert torch.equal(back(pool, inputs, pooling="indices"), expected)


def test_a_padded_max_pool_is_enlarged_to_what_its_windows_cover():
    pool, inputs = nn.MaxPool2d(3, 2, 1), torch.randn(1, 2, 9, 9)
    expected = F.interpolate(pool(inputs), 2 * (5 - 1) - 2 + 3, mode="nearest")
    assert torch.equal(back(pool, inputs), expected)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((4, 2))])
def test_an_average_goes_to_all_that_it_averaged(pool):
    inputs = torch.randn(2, 3, 8, 8)
    expected = F.interpolate(pool(inputs), 8, mode="nearest")
    torch.testing.assert_close(back(pool, inputs), expected)


def test_overlapping_averages_are_averaged_and_the_rest_stays_empty():
    pool, inputs = nn.AvgPool2d(3, 2), torch.ones(1, 1, 8, 8)
    assert back(pool, inputs)[0, 0, :7, :7].eq(1).all()
    assert back(pool, inputs)[0, 0, 7].eq(0).all()


class Residual(nn.Module):
    """x + size f(x), or what stands for x."""

    def __init__(self, size: float, shortcut: nn.Module | None = None, turned: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.size, self.turned, self.shortcut = size, turned, shortcut or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        branch, around = self.size * F.relu(self.conv(inputs)), self.shortcut(inputs)
        return around + branch if self.turned else branch + around


@pytest.mark.parametrize("turned", [True, False])
def test_a_sum_with_a_contraction_is_solved(turned):
    inputs = torch.rand(2, 3, 8, 8)
    assert_exact(nn.Sequential(Residual(0.3, turned=turned), nn.LeakyReLU(), Residual(0.2)), inputs)


def test_copies_of_an_image_go_back_as_if_each_were_alone():
    net = nn.Sequential(Residual(0.2), SmallCNN(3, 4, width=2).conv1, nn.ReLU(), nn.AvgPool2d(2), Scattered())
    tape = record(net.eval(), torch.rand(2, 3, 8, 8))
    features = torch.randn(3, *tape.output.shape)
    together = Backtracking()(tape, tape.output, features)
    for copy, image in zip(features, together, strict=True):
        torch.testing.assert_close(Backtracking()(tape, tape.output, copy[None])[0], image)


class Joined(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, 2 * inputs], 1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Sigmoid, r"`sigmoid` \(layer '1'\) has no inverse"),
        (Joined, r"`concatenation` \(layer '1#2'\) has no inverse"),
        (lambda: Residual(9.0), r"`addition` \(layer '1.addition'\) has no inverse"),
        (
            lambda: Residual(0.1, shortcut=nn.Conv2d(3, 3, 1)),
            r"`addition` \(layer '1.addition'\) has no inverse",
        ),
        (lambda: nn.LeakyReLU(-0.5), r"`rectifier` \(layer '1'\) has no inverse"),
    ],
)
def test_what_has_no_inverse_is_named(layer, message):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), layer())
    with pytest.raises(ValueError, match=message):
        back(net, torch.rand(1, 3, 8, 8))
    assert back(net, torch.rand(1, 3, 8, 8), "0").isfinite().all()


def test_an_impossible_way_back_is_refused(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # else the checker of tests is first
    with pytest.raises(ValueError, match="`pooling` must be 'nearest' or 'indices', got 'max'"):
        Backtracking(pooling="max")
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        Backtracking(steps=0)


def test_layers_are_found_and_named():
    net = Normalized(SmallCNN(1, 10, width=2), [0.5], [0.5]).eval()
    inputs = torch.rand(2, 1, 16, 16)
    tape = record(net, inputs)
    assert stages(tape) == ["net.relu1", "net.relu2", "net.relu3", "net.pool", "net.linear"]
    assert feature_map(tape) is tape.value("net.relu3")
    assert feature_map(record(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), inputs)) is None
    found = reconstructions(net, inputs)
    assert list(found) == stages(tape)
    assert all(images.shape == inputs.shape for images in found.values())
    one = reconstructions(net, inputs[1:], ["net.conv2"])
    torch.testing.assert_close(one["net.conv2"], reconstructions(net, inputs, ["net.conv2"])["net.conv2"][1:])
    with pytest.raises(ValueError, match=r"nearest: net\.conv3"):
        reconstructions(net, inputs, ["net.conv9"])


def test_an_empty_batch_comes_back_empty():
    net = nn.Sequential(Residual(0.1), nn.MaxPool2d(2), SmallCNN(3, 4, width=2))
    images = reconstructions(net.eval(), torch.rand(0, 3, 16, 16))
    assert {tuple(image.shape) for image in images.values()} == {(0, 3, 16, 16)}


def test_measures_of_a_reconstruction():
    inputs = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    assert relative_error(inputs / 2, inputs).item() == 0.25
    assert psnr(inputs + 0.1, inputs).item() == pytest.approx(20)
    assert likeness(0.7 - 0.2 * inputs, inputs).item() == pytest.approx(-1)
