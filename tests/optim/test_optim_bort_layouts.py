"""The matrices that weights are read as, and what is measured of them."""

import itertools

import pytest
import torch
from bort_twins import slow_correction
from torch import Tensor, nn

from lit_xai.optim import (
    BortAdamW,
    BortSGD,
    Layout,
    constrain_linear_maps,
    correction,
    linear_maps,
    measures,
    residual,
)

LAYERS = [
    nn.Linear(5, 3),
    nn.Linear(3, 5),
    nn.Conv1d(2, 3, 3),
    nn.Conv2d(6, 4, 2, groups=2),
    nn.Conv2d(4, 12, (1, 3), groups=4),
    nn.Conv2d(5, 5, 3, groups=5),
    nn.ConvTranspose2d(4, 3, 2),
    nn.ConvTranspose2d(4, 6, (2, 3), groups=2),
    nn.ConvTranspose3d(2, 2, 1),
]


def outputs_first(layer: nn.Module) -> Tensor:
    """The weight as the released code would see it, were it no transposed convolution."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
        return torch.cat([part.transpose(0, 1) for part in weight.chunk(layer.groups)])
    return weight


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_layout_reads_a_row_per_output_channel_and_finds_the_way_back(layer: nn.Module, memory) -> None:
    ((_, weight, layout),) = linear_maps(layer)
    if weight.ndim == 4:
        weight = weight.detach().clone(memory_format=memory)
    groups = getattr(layer, "groups", 1)
    expected = outputs_first(layer).reshape(groups, len(outputs_first(layer)) // groups, -1)
    assert torch.equal(layout.matrices(weight), expected)
    assert torch.equal(layout.weight(layout.matrices(weight), weight.shape), weight)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_matrix_maps_the_inputs_to_the_outputs(layer: nn.Module) -> None:
    """Of a layer that sees one place alone, the matrices of the groups are the map itself."""
    if sum(getattr(layer, "kernel_size", (1,))) > len(getattr(layer, "kernel_size", (1,))):
        layer = type(layer)(layer.in_channels, layer.out_channels, 1, groups=layer.groups)
    ((_, weight, layout),) = linear_maps(layer)
    x = torch.randn(2, getattr(layer, "in_channels", getattr(layer, "in_features", 0)))
    places = x.reshape(*x.shape, *[1] * (weight.ndim - 2))
    parts = [part @ w.T for part, w in zip(x.chunk(layout.groups, 1), layout.matrices(weight), strict=True)]
    torch.testing.assert_close(
        layer(places).flatten(1) - (layer.bias if layer.bias is not None else 0), torch.cat(parts, 1)
    )


@pytest.mark.parametrize("bort", [BortSGD, BortAdamW])
@pytest.mark.parametrize(("amplitude", "penalty"), list(itertools.product([0.7, "ada"], ["l2", "l1"])))
def test_each_group_of_a_convolution_is_a_matrix_of_its_own(bort, amplitude, penalty) -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([type(m)(*inits(m)) for m in LAYERS]).double()
    optimizer = bort(net.parameters(), lr=0.1, gamma=0.5, amplitude=amplitude, penalty=penalty)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    constrain_linear_maps(optimizer, net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [outputs_first(layer).clone() for layer in net]
    optimizer.step()
    for layer, was in zip(net, before, strict=True):
        expected = was - 0.05 * slow_correction(was, amplitude, penalty, getattr(layer, "groups", 1))
        torch.testing.assert_close(outputs_first(layer), expected, rtol=1e-12, atol=1e-12)


def inits(layer: nn.Module) -> tuple:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
        return layer.in_channels, layer.out_channels, layer.kernel_size, 1, 0, 0, layer.groups
    return layer.in_channels, layer.out_channels, layer.kernel_size, 1, 0, 1, layer.groups


def test_grouped_convolutions_reach_their_constraint() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 8, 3, groups=2), nn.ConvTranspose2d(8, 4, 2)
    ).double()
    optimizer = BortAdamW(net.parameters(), lr=0.1, weight_decay=0.0, gamma=2.0)
    constrain_linear_maps(optimizer, net)
    for _ in range(200):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for _, weight, layout in linear_maps(net):
        found = measures(layout.matrices(weight.detach()), 1.0)
        assert found["residual"] < 1e-6
        torch.testing.assert_close(found["sigma_min"], torch.ones((), dtype=torch.float64))


def test_the_adaptive_amplitude_of_depthwise_convolutions_is_that_of_all_channels() -> None:
    filters = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(
        correction(filters, "ada"), filters * torch.tensor([9 - 4, 1 - 4])[:, None, None]
    )


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 8, 3), (2, 3, 4), (4, 1, 5), (1, 4, 4)])
@pytest.mark.parametrize("amplitude", [0.5, "ada"])
def test_measures_are_their_formulas(shape, amplitude) -> None:
    stack = torch.randn(2, *shape)
    found = measures(stack, amplitude)
    for index, matrices in enumerate(stack.double()):
        rows = [w if shape[1] <= shape[2] else w.T for w in matrices]
        lengths = torch.cat([w.norm(dim=1) for w in rows])
        a = lengths.mean() ** 2 if amplitude == "ada" else amplitude
        grams = [w @ w.T for w in rows]
        errors = [g - a * torch.eye(len(g)) for g in grams]
        off = [g[~torch.eye(len(g), dtype=torch.bool)] for g in grams]
        cosines = [nn.functional.cosine_similarity(w[:, None], w[None], dim=2) for w in rows]
        pairs = torch.cat([c[~torch.eye(len(c), dtype=torch.bool)].abs() for c in cosines])
        singular = torch.cat([torch.linalg.svdvals(w) for w in rows])
        expected = {
            "residual": (torch.stack(errors).square().sum() / len(lengths)) ** 0.5 / a,
            "orthogonality": (torch.cat(off).square().sum() / len(lengths)) ** 0.5 / a,
            "boundedness": (lengths**2 / a - 1).square().mean() ** 0.5,
            "sigma_min": singular.min(),
            "sigma_max": singular.max(),
            "cosine": pairs.mean() if len(pairs) else torch.zeros((), dtype=torch.float64),
        }
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name][index], value, rtol=1e-7, atol=1e-7)


def test_measures_of_weights_that_are_zero_or_not_finite() -> None:
    stack = torch.stack([torch.zeros(1, 2, 3), torch.full((1, 2, 3), torch.nan), torch.eye(2, 3)[None]])
    found = measures(stack, "ada")
    assert found["residual"].nan_to_num(9).tolist() == [1.0, 9.0, 0.0]
    assert found["sigma_max"].nan_to_num(9).tolist() == [0.0, 9.0, 1.0]
    assert found["cosine"].nan_to_num(9).tolist() == [0.0, 9.0, 0.0]


def test_the_residual_is_its_formula_and_takes_the_smaller_side():
    wide = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    w = wide.flatten(1)
    formula = (w @ w.T - 2 * torch.eye(3)).norm() / (2 * 3**0.5)
    torch.testing.assert_close(residual(wide, 2.0), formula)
    torch.testing.assert_close(residual(w.T.contiguous(), 2.0), formula)
    assert residual(torch.zeros(4, 9)) == 1
    assert residual(torch.eye(4)[:, :2] * 3, 9.0) == 0
    assert residual(torch.eye(4)[:, :2] * 3, "ada") == 0


def test_only_convolutions_and_linear_maps_are_constrained() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(2, 3, 2), nn.Linear(4, 5)
            self.scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
            self.token = nn.Parameter(torch.zeros(1, 1, 7))

    net = Net()
    optimizer = BortSGD(net.parameters(), lr=0.1, gamma=0.5, momentum=0.9)
    constrain_linear_maps(optimizer, net)
    held, free = optimizer.param_groups
    assert {id(p) for p in held["params"]} == {id(net.conv.weight), id(net.linear.weight)}
    assert {id(p) for p in free["params"]} >= {id(net.scale), id(net.token), id(net.linear.bias)}
    assert (held["gamma"], free["gamma"], free["momentum"]) == (0.5, 0.0, 0.9)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = net.linear.weight.detach().clone()
    optimizer.step()
    assert net.scale.unique().tolist() == [pytest.approx(1e-6)]
    assert not torch.equal(net.linear.weight, before)


def test_a_split_keeps_the_names_of_parameters_and_a_second_one_changes_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4))
    optimizer = BortSGD(net.named_parameters(), lr=0.1, gamma=0.5)
    for _ in range(2):
        constrain_linear_maps(optimizer, net)
        held, free = optimizer.param_groups
        assert (held["param_names"], held["layouts"]) == (["0.weight"], [(2, False)])
        assert free["param_names"] == ["0.bias", "1.weight", "1.bias"]
        assert (held["gamma"], free["gamma"]) == (0.5, 0.0)


def test_plain_optimizers_keep_their_one_group() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    constrain_linear_maps(optimizer, net)
    assert len(optimizer.param_groups) == 1


def test_a_layout_is_learned_from_the_model_and_kept_in_checkpoints() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 2, 2))
    optimizer = BortAdamW(net.parameters(), lr=0.1, gamma=0.5)
    constrain_linear_maps(optimizer, net)
    held, free = optimizer.state_dict()["param_groups"]
    assert held["layouts"] == [(2, False), (1, True)]
    assert "layouts" not in free
    assert [layout for _, _, layout in linear_maps(net)] == [Layout(2), Layout(1, transposed=True)]
