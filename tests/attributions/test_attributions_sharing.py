"""Sharing ratios against closed forms and a slow twin, and what they conserve on real networks."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.attributions import SharingRatio, effective_receptive_field, keep_graph, taps
from lit_xai.attributions.sharing import _Descent, _recorded, _start
from lit_xai.network import Convolution

METHODS = [
    SharingRatio(),
    SharingRatio(joint_pool=True),
    SharingRatio(per_channel=True),
    SharingRatio(head="sharing", joint_pool=True, per_channel=True),
]


def unsettle(net: nn.Module) -> nn.Module:
    """The network in double precision, with biases and statistics of batch norm that matter."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
        if getattr(part, "bias", None) is not None:
            nn.init.uniform_(part.bias, -0.3, 0.3)
    return net.double().eval()


class Residual(nn.Module):
    """Stem with padding and stride, max pool, a residual block with a strided path, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(4, 9, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(9)
        self.conv2 = nn.Conv2d(9, 5, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(5)
        self.down = nn.Conv2d(4, 5, 1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn0(self.stem((x - 0.4) / 0.3))))
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return self.fc(self.relu(y).mean((2, 3)))


@pytest.fixture
def residual() -> nn.Module:
    return unsettle(Residual())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 14, 17, dtype=torch.float64)


def patches() -> tuple[nn.Module, Tensor]:
    """Two places (1, 2) and (3, 1), W1 = diag(1, -1), W2 = swap, b = (1, -3); w = (2, 5) and 1 above."""
    net = nn.Sequential(nn.Conv2d(2, 2, (1, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]], [[[0.0, 1.0]], [[-1.0, 0.0]]]]))
        net[0].bias.copy_(torch.tensor([1.0, -3.0]))
        net[3].weight.copy_(torch.tensor([[2.0, 5.0]]))
        net[3].bias.fill_(1.0)
    return net, torch.tensor([[[[1.0, 3.0]], [[2.0, 1.0]]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "expected"),
    [(SharingRatio(), (5.776574, 1.223426)), (SharingRatio(bias=False), (3.769231, -1.615385))],
    ids=str,
)
def test_closed_form_of_two_places(method, expected):
    net, inputs = patches()
    maps = method(net, inputs, torch.tensor([0]))
    torch.testing.assert_close(maps.sum(1)[0, 0], torch.tensor(expected).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(maps[:, 0], maps[:, 1])


def test_inactive_channels_count_and_it_is_not_gradient_times_input():
    """The same with the second channel left out of v, and gradient * input, are other numbers."""
    net, inputs = patches()
    one, other = SharingRatio()(net, inputs, torch.tensor([0])).sum(1)[0, 0].tolist()
    assert not math.isclose(one, 3.299831, abs_tol=1e-3)
    assert not math.isclose(one, 2.0, abs_tol=1e-3)
    assert one + other == pytest.approx(7.0, abs=1e-12)


# The slow twin: one PFV after the other, one source after the other, from mu_ij = <c_ij, v_j> / |v_j|^2.


def shares_of(parts: list[Tensor], bias: Tensor) -> list[Tensor]:
    """c_ij for the contributions u_ij of one affine map to one place."""
    total = sum(float(part.norm()) for part in parts)
    return [part + bias * (float(part.norm()) / total) for part in parts]


def taps_of(weight: Tensor, stride: int, padding: int, at: tuple[int, int], size: torch.Size):
    """Places of the source that are read at one place of the output, with the matrix of their tap."""
    for r in range(weight.shape[2]):
        for c in range(weight.shape[3]):
            row, column = at[0] * stride + r - padding, at[1] * stride + c - padding
            if 0 <= row < size[0] and 0 <= column < size[1]:
                yield (row, column), weight[:, :, r, c]


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    before = 0 if conv.bias is None else conv.bias
    return conv.weight * scale[:, None, None, None], (before - norm.running_mean) * scale + norm.bias


@torch.no_grad()
def twin(net: Residual, image: Tensor, target: int, joint: bool, apart: bool) -> Tensor:
    """The map of one image, (channel, row, column), by sums over places; without `apart` of one channel."""
    x = (image - 0.4) / 0.3
    stem, one, two = (
        folded(*pair) for pair in ((net.stem, net.bn0), (net.conv1, net.bn1), (net.conv2, net.bn2))
    )
    v0 = F.conv2d(x[None], *stem, 2, 1)[0]
    a0 = v0.relu()
    pooled, index = F.max_pool2d(a0[None], 3, 2, 1, return_indices=True)
    pooled, index = pooled[0], index[0]
    v1 = F.conv2d(pooled[None], *one, 2, 1)[0]
    a1 = v1.relu()
    v2 = F.conv2d(a1[None], *two, 1, 1)[0] + net.down(pooled[None])[0]
    a2 = v2.relu()
    torch.testing.assert_close(net.fc(a2.mean((1, 2))), net(image[None])[0])
    count = a2[0].numel()
    r2 = (torch.einsum("c,chw->hw", net.fc.weight[target], a2) + net.fc.bias[target]) / count
    r1, r0 = torch.zeros_like(a1[0]), torch.zeros_like(a0[0])

    def through_pool(
        v: Tensor, r: Tensor, at: list[tuple[int, int]], matrices: list[Tensor], bias: Tensor
    ) -> None:
        """Hand on the relevance of one path to one place, which reads the pool at some places."""
        width = a0.shape[2]
        if joint:
            sources = {}
            for tap, (place, matrix) in enumerate(zip(at, matrices, strict=True)):
                winners = index[:, place[0], place[1]]
                for winner in winners.unique().tolist():
                    mask = (winners == winner).to(pooled)
                    sources[tap, winner] = matrix @ (pooled[:, place[0], place[1]] * mask)
            shares = shares_of(list(sources.values()), bias)
            for (_, winner), share in zip(sources, shares, strict=True):
                r0[winner // width, winner % width] += share @ v / (v @ v) * r
            return
        plain = [matrix @ pooled[:, a, b] for (a, b), matrix in zip(at, matrices, strict=True)]
        shares = shares_of(plain, bias)
        for (a, b), matrix, own, share in zip(at, matrices, plain, shares, strict=True):
            y = pooled[:, a, b]
            lone = (share - own) @ v / (v @ v) * r  # of the bias: over the channels by their squares
            for channel, winner in enumerate(index[:, a, b].tolist()):
                direct = y[channel] * (matrix[:, channel] @ v) / (v @ v) * r
                r0[winner // width, winner % width] += direct + lone * y[channel] ** 2 / (y @ y)

    for j in range(v2.shape[1]):
        for k in range(v2.shape[2]):
            v, r = v2[:, j, k], r2[j, k]
            read = list(taps_of(two[0], 1, 1, (j, k), a1.shape[1:]))
            shares = shares_of([matrix @ a1[:, a, b] for (a, b), matrix in read], two[1])
            for ((a, b), _), share in zip(read, shares, strict=True):
                r1[a, b] += share @ v / (v @ v) * r
            read = list(taps_of(net.down.weight, 2, 0, (j, k), pooled.shape[1:]))
            through_pool(v, r, [at for at, _ in read], [matrix for _, matrix in read], net.down.bias)
    for j in range(v1.shape[1]):
        for k in range(v1.shape[2]):
            read = list(taps_of(one[0], 2, 1, (j, k), pooled.shape[1:]))
            through_pool(v1[:, j, k], r1[j, k], [at for at, _ in read], [m for _, m in read], one[1])
    found = torch.zeros_like(x) if apart else torch.zeros_like(x[:1])
    for j in range(v0.shape[1]):
        for k in range(v0.shape[2]):
            v, r = v0[:, j, k], r0[j, k]
            read = list(taps_of(stem[0], 2, 1, (j, k), x.shape[1:]))
            channels = [[0], [1], [2]] if apart else [[0, 1, 2]]
            parts = [matrix[:, c] @ x[c, a, b] for (a, b), matrix in read for c in channels]
            places = [(c[0], a, b) for (a, b), _ in read for c in channels]
            for place, share in zip(places, shares_of(parts, stem[1]), strict=True):
                found[place] += share @ v / (v @ v) * r
    return found


@pytest.mark.parametrize("joint", [False, True], ids=["stages", "joint"])
@pytest.mark.parametrize("apart", [False, True], ids=["places", "channels"])
def test_against_the_slow_twin(joint, apart, residual, images):
    target = torch.tensor([1, 4])
    maps = SharingRatio(joint_pool=joint, per_channel=apart)(residual, images, target)
    expected = torch.stack(
        [twin(residual, image, int(t), joint, apart) for image, t in zip(images, target, strict=True)]
    )
    torch.testing.assert_close(maps if apart else maps.sum(1, keepdim=True), expected, rtol=1e-10, atol=1e-12)
    total = residual(images)[[0, 1], target]
    torch.testing.assert_close(maps.sum((1, 2, 3)), total, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (2, 0), "dilation": (1, 3)},
        {"stride": 3, "dilation": 2, "padding": 4, "groups": 2},
        {"groups": 12, "padding": 1},
        {"stride": (4, 5)},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [12, 24])
@pytest.mark.parametrize("scaled", [False, True])
@torch.no_grad()
def test_tap_norms_and_the_way_back_are_those_of_unfolding(layer, channels, scaled):
    conv = nn.Conv2d(channels, 24, (3, 2), **layer).double()
    factor = torch.rand(24, dtype=torch.float64) if scaled else None
    source = torch.randn(2, channels, 9, 11, dtype=torch.float64)
    before = conv.weight.clone()
    step = Convolution(conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups, factor)
    size = conv(source).shape[2:]
    windows = F.unfold(source, (3, 2), conv.dilation, conv.padding, conv.stride)
    windows = windows.reshape(2, conv.groups, channels // conv.groups, 6, *size)
    weight = step.weight.reshape(conv.groups, -1, channels // conv.groups, 6)
    expected = torch.einsum("goit,ngithw->ngothw", weight, windows).flatten(1, 2).norm(dim=1)
    torch.testing.assert_close(taps.tap_norms(step, source, size), expected)
    assert torch.equal(conv.weight, before)
    relevance = torch.randn(2, 1, *size, dtype=torch.float64)
    index = torch.arange(99, dtype=torch.float64).reshape(1, 1, 9, 11) + 1
    read = F.unfold(index, (3, 2), conv.dilation, conv.padding, conv.stride).long().reshape(1, -1)
    shares = (expected / expected.sum(1, keepdim=True) * relevance).reshape(2, -1)
    by_hand = torch.zeros(2, 100, dtype=torch.float64).scatter_add(1, read.expand(2, -1), shares)[:, 1:]
    torch.testing.assert_close(taps.divided(step, source, relevance).flatten(1), by_hand)


def test_on_a_linear_layer_the_bias_goes_by_norm(images):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 14 * 17, 4)).double().eval()
    maps = SharingRatio()(net, images, torch.tensor([2, 0]))
    weight, places = net[2].weight.detach().view(4, 3, -1), images.flatten(2)
    added = torch.einsum("oip,nip->nop", weight, places)
    norms = added.norm(dim=1)
    bias = net[2].bias.detach()
    for image, target in enumerate((2, 0)):
        expected = added[image, target] + bias[target] * norms[image] / norms[image].sum()
        torch.testing.assert_close(maps[image].sum(0).flatten(), expected)
    apart = SharingRatio(per_channel=True)(net, images, torch.tensor([2, 0])).flatten(1)
    norms = (net[2].weight.norm(dim=0) * images.flatten(1)).detach()
    expected = net[2].weight[[2, 0]] * images.flatten(1) + bias[[2, 0], None] * norms / norms.sum(
        1, keepdim=True
    )
    torch.testing.assert_close(apart, expected.detach())


def test_without_biases_it_is_gradient_times_input_with_frozen_seeds(images):
    """Between two layers of places: <v, s> with s = v R / |v|^2 held fixed."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(6, 4)).double().eval()  # fmt: skip
    points = images.clone().requires_grad_()
    v = net[0](points)
    relevance = (v.relu() * net[4].weight[1][:, None, None]).sum(1, keepdim=True) + net[4].bias[1]
    seed = (v * relevance / v[0, 0].numel() / v.square().sum(1, keepdim=True)).detach()
    (gradient,) = torch.autograd.grad((v * seed).sum(), points)
    maps = SharingRatio(bias=False)(net, images, torch.tensor([1, 1]))
    torch.testing.assert_close(maps.sum(1), (images * gradient).sum(1))
    assert not torch.allclose(maps, SharingRatio()(net, images, torch.tensor([1, 1])), rtol=1e-2)


def test_the_map_is_a_sum_of_receptive_fields_weighted_by_the_last_places(residual, images):
    """R_p = (w_t . v_p + b_t) / places where a mean and a linear layer follow."""
    last: list[Tensor] = []
    residual.relu.register_forward_hook(lambda part, args, output: last.append(output.detach().clone()))
    residual(images)
    top = last[-1]
    target = torch.tensor([3, 3])
    weights = (torch.einsum("c,nchw->nhw", residual.fc.weight[3], top) + residual.fc.bias[3]) / top[
        0, 0
    ].numel()
    fields = torch.zeros_like(images[:, 0])
    for row in range(top.shape[2]):
        for column in range(top.shape[3]):
            field = effective_receptive_field(residual, images, "relu", (row, column))
            torch.testing.assert_close(field.sum((1, 2)), torch.ones(2).double(), rtol=1e-10, atol=0)
            fields += weights[:, row, column, None, None].detach() * field
    torch.testing.assert_close(SharingRatio()(residual, images, target).sum(1), fields, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", ["bn0", "pool", "conv1", "bn2", "down"])
def test_receptive_fields_of_every_layer_add_up_to_one(layer, residual, images):
    field = effective_receptive_field(residual, images, layer, (1, 1))
    torch.testing.assert_close(field.sum((1, 2)), torch.ones(2).double(), rtol=1e-10, atol=0)


def test_a_receptive_field_stays_within_the_reach_of_the_layer(residual, images):
    field = effective_receptive_field(residual, images, "bn0", (2, 3))
    inside = torch.zeros_like(field, dtype=torch.bool)
    inside[:, 3:6, 5:8] = True
    assert (field[~inside] == 0).all()
    assert (field[inside] != 0).all()


def test_maps_of_all_classes_span_no_more_than_the_grid():
    """Ten classes on a grid of 2 x 2: rank four; and with one place all maps are alike."""
    net = unsettle(torchvision.models.get_model("resnet18", weights=None, num_classes=10))
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    maps = SharingRatio()(net, image.expand(10, -1, -1, -1), torch.arange(10)).sum(1).flatten(1)
    values = torch.linalg.svdvals(maps)
    assert values[3] / values[0] > 1e-8
    assert values[4] / values[0] < 1e-12


def test_the_contrast_takes_the_mean_from_the_last_places(residual, images):
    target = torch.tensor([1, 2])
    plain, contrast = (SharingRatio(contrast=value)(residual, images, target) for value in (False, True))
    grid = [(row, column) for row in range(2) for column in range(3)]
    fields = sum(effective_receptive_field(residual, images, "relu", at) for at in grid) / len(grid)
    total = residual(images)[[0, 1], target].detach()
    torch.testing.assert_close(contrast.sum(1), plain.sum(1) - total[:, None, None] * fields)
    assert contrast.sum((1, 2, 3)).abs().max() < 1e-12
    assert SharingRatio(contrast=True).total(residual, images, target).tolist() == [0, 0]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 17, 4)).double().eval()
    flat = SharingRatio()(linear, images, target).sum(1)
    without = SharingRatio(contrast=True)(linear, images, target).sum(1)
    torch.testing.assert_close(without, flat - flat.mean((1, 2), keepdim=True))


def mlp_head(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return unsettle(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), activation(), nn.MaxPool2d(3), nn.Flatten(),
            nn.Linear(6 * 4 * 5, 12), activation(), nn.Dropout(), nn.Linear(12, 8), activation(),
            nn.Linear(8, 4),
        )
    )  # fmt: skip


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU])
def test_heads(activation, images):
    net = mlp_head(activation)
    with torch.no_grad():
        net[4].weight.mul_(20)  # some ReLU6 are full
    one, two = torch.tensor([1, 1]), torch.tensor([2, 2])
    logits = net(images).detach()
    for head in ("gradient", "sharing"):
        method = SharingRatio(head=head)
        maps = method(net, images, one)
        torch.testing.assert_close(maps.sum((1, 2, 3)), logits[:, 1])
        torch.testing.assert_close(method.total(net, images, one), logits[:, 1])
        alike = (
            maps * logits[:, 2, None, None, None] - method(net, images, two) * logits[:, 1, None, None, None]
        )
        apart = alike.flatten(1).norm(dim=1) / maps.flatten(1).norm(dim=1)
        assert (apart < 1e-10).all() if head == "sharing" else (apart > 1e-3).all()


def test_the_gradient_head_gives_places_their_part_of_the_linear_head(images):
    """With the on/off states fixed the head is A v + a: place p gets (A_p v_p)_t and part of a_t by norm."""
    conv = nn.Conv2d(3, 6, 5, stride=3).double()
    rows, columns = conv(images).shape[2:]
    net = unsettle(
        nn.Sequential(
            conv, nn.ReLU(), nn.Flatten(), nn.Linear(6 * rows * columns, 12), nn.ReLU(), nn.Linear(12, 4)
        )
    )
    places = net[:2](images).detach().requires_grad_()
    (slope,) = torch.autograd.grad(net[2:](places)[:, 2].sum(), places)
    direct = (places * slope).sum(1)
    weight = net[3].weight.view(12, 6, rows * columns)
    norms = torch.einsum("oip,nip->nop", weight, places.flatten(2)).norm(dim=1)
    rest = net(images)[:, 2] - direct.sum((1, 2))
    expected = direct + (rest[:, None] * norms / norms.sum(1, keepdim=True)).view_as(direct)
    fields = sum(
        expected[:, row, column, None, None] * effective_receptive_field(net, images, "1", (row, column))
        for row in range(rows)
        for column in range(columns)
    )
    maps = SharingRatio()(net, images, torch.full((len(images),), 2)).sum(1)
    torch.testing.assert_close(maps, fields.detach())


def test_the_grad_cam_head_begins_with_grad_cam(images):
    net = mlp_head()
    target = torch.tensor([3, 0])
    v = net[0](images).detach().requires_grad_()
    score = net[1:](v).gather(1, target[:, None]).sum()
    (slope,) = torch.autograd.grad(score, v)
    cam = (v * slope.mean((2, 3), keepdim=True)).sum(1).relu().detach()
    method = SharingRatio(head="grad_cam")
    torch.testing.assert_close(method.total(net, images, target), cam.sum((1, 2)))
    maps = method(net, images, target)
    fields = torch.zeros_like(cam)
    for row in range(14):
        for column in range(17):
            fields += cam[:, row, column, None, None] * effective_receptive_field(
                net, images, "1", (row, column)
            )
    torch.testing.assert_close(maps.sum(1), fields)


class Mixed(nn.Module):
    """What the released code does not cover: average pools, concatenation, lone batch norm, groups, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.shuffle = nn.ChannelShuffle(2)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(torch.cat([self.one(x), self.two(x)], 1)))
        x = F.leaky_relu(self.shuffle(self.grouped(self.pool(x))))
        x = x + self.depthwise(F.max_pool2d(x, 2, 1, padding=1)[..., :-1, :-1])
        y = self.one.weight[:, :, 0, 0].new_tensor([1.0, 2.0]).repeat(4)[:, None, None] * x
        return self.last(torch.cat([y, x], 2).mean((2, 3)))


def at_every_cut(net: nn.Module, inputs: Tensor, target: Tensor, method: SharingRatio) -> list[Tensor]:
    """After every layer, what is on the way: <value, message> of all messages, and what lies beside."""
    with torch.no_grad():
        tape = _recorded(net, inputs)
        descent = _Descent(tape, method)
        value, message = _start(tape, target)
        pending, sums = {id(value): (value, message)}, []
        for step in reversed(tape.steps):
            _, message = pending.pop(id(step.output))
            for source, part in zip(step.sources, descent.rule(step, message), strict=True):
                there = pending.get(id(source))
                pending[id(source)] = (source, part if there is None else there[1] + part)
            held = [(value * message).flatten(1).sum(1) for value, message in pending.values()]
            held += [beside.flatten(1).sum(1) for beside in descent.beside.values()]
            sums.append(torch.stack(held).sum(0))
        return sums


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_relevance_is_conserved_at_every_cut_of_what_is_ours(method, images):
    net, target = unsettle(Mixed()), torch.tensor([0, 3])
    logits = net(images)[[0, 1], target].detach()
    sums = at_every_cut(net, images, target, method)
    assert len(sums) > 15
    for held in sums:
        torch.testing.assert_close(held, logits, rtol=1e-10, atol=0)
    torch.testing.assert_close(method(net, images, target).sum((1, 2, 3)), logits, rtol=1e-10, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "vgg11_bn", "squeezenet1_1", "mobilenet_v2", "densenet121", "timm:dla34"],
)
def test_relevance_is_conserved_at_every_cut_of_real_networks(name):
    if name.startswith("timm:"):
        import timm

        net = unsettle(timm.create_model(name[5:], pretrained=False, num_classes=10))
    else:
        net = unsettle(torchvision.models.get_model(name, weights=None, num_classes=10))
    inputs, target = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.tensor([3, 7])
    logits = net(inputs)[[0, 1], target].detach()
    for method in (METHODS[0], METHODS[3]):
        for held in at_every_cut(net, inputs, target, method):
            torch.testing.assert_close(held, logits, rtol=1e-10, atol=0)
    single = SharingRatio()(net.float(), inputs.float(), target)
    torch.testing.assert_close(single.sum((1, 2, 3)).double(), logits, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (5, 4)], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_images_smaller_than_a_kernel(size, method):
    """The windows reach over both edges of the map: no place may be taken for one in another row."""
    net = unsettle(
        nn.Sequential(
            nn.Conv2d(3, 12, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 1, padding=1),
            nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 9, 3, 2, 2, 2), nn.ReLU(), nn.Conv2d(9, 9, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4),
        )
    )  # fmt: skip
    images, target = torch.rand(3, 3, *size, dtype=torch.float64), torch.tensor([0, 3, 1])
    maps = method(net, images, target)
    torch.testing.assert_close(
        maps.sum((1, 2, 3)), net(images)[[0, 1, 2], target].detach(), rtol=1e-10, atol=0
    )
    assert method(net, images[:0], target[:0]).shape == (0, 3, *size)


def test_nothing_is_nan_where_vectors_are_dead():
    """Black places with a bias share it evenly; without one they are dead, and what they hold is lost."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(6, 4)).double().eval()  # fmt: skip
    inputs = torch.zeros(2, 3, 9, 9, dtype=torch.float64)
    inputs[1, :, 2, 2] = 1.0
    target = torch.tensor([0, 1])
    maps = SharingRatio()(net, inputs, target)
    torch.testing.assert_close(maps.sum((1, 2, 3)), net(inputs)[[0, 1], target].detach())
    assert maps[0].abs().min() > 0
    nn.init.zeros_(net[0].bias)
    with keep_graph():
        points = inputs.clone().requires_grad_()
        maps = SharingRatio()(net, points, target)
        (slope,) = torch.autograd.grad(maps.square().sum(), points)
    assert maps.isfinite().all()
    assert slope.isfinite().all()
    assert maps[0].abs().max() == 0
    logit = net(inputs)[1, 1].detach()
    assert (maps[1].detach().sum() - logit).abs() > 1e-3 * logit.abs()  # what the dead places held is lost
    tiny = SharingRatio()(net, inputs * 1e-200, target)
    assert tiny.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_maps_can_be_differentiated(method, residual, images):
    """The slope of a weighted map along a direction, against central differences."""
    target, weights = torch.tensor([1, 2]), torch.randn_like(images)
    direction, h = torch.randn_like(images), 1e-6
    with keep_graph():
        points = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad((weights * method(residual, points, target)).sum(), points)
    ahead, behind = ((weights * method(residual, images + s * h * direction, target)).sum() for s in (1, -1))
    assert float((slope * direction).sum()) == pytest.approx(float((ahead - behind) / (2 * h)), rel=1e-5)


class Odd(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.conv, self.part, self.last = nn.Conv2d(3, 4, 3), part, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("part", "call"),
    [(nn.GELU(), "gelu"), (nn.GroupNorm(2, 4), "group_norm"), (nn.Softmax(1), "softmax")],
    ids=str,
)
def test_layers_without_a_rule_are_named(part, call, images):
    net = Odd(part).double().eval()
    with pytest.raises(ValueError, match=rf"`SharingRatio` has no rule for `{call}` \(layer 'part'\).*Integ"):
        SharingRatio()(net, images, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="has no rule"):
        effective_receptive_field(net, images, "last", (0, 0))


def test_bad_arguments_are_refused(residual, images):
    with pytest.raises((ValueError, TypeError), match="head"):
        SharingRatio(head="cam")
    with pytest.raises(ValueError, match="got 'rleu'; nearest: relu"):
        effective_receptive_field(residual, images, "rleu", (0, 0))
    with pytest.raises(
        ValueError, match=r"`location` must lie in rows 0\.\.3 and columns 0\.\.4 of 'pool', got \(4, 0\)"
    ):
        effective_receptive_field(residual, images, "pool", (4, 0))
    with pytest.raises(ValueError, match="eval mode"):
        effective_receptive_field(residual.train(), images, "pool", (0, 0))
