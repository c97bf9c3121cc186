"""Laws of everything that maps (model, inputs, target) to images: attributions and attacks."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from rows import ATTACKS, ATTRIBUTIONS, Row
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import Tensor, nn

from lit_xai import attacks, attributions, metrics, randomness
from lit_xai.attributions.base import Conserving
from lit_xai.metrics import Residual
from lit_xai.observe import explain

every_row = pytest.mark.parametrize("row", ATTRIBUTIONS + ATTACKS, ids=str)
chunked_row = pytest.mark.parametrize(
    "row", [row for row in ATTRIBUTIONS + ATTACKS if hasattr(row.instance, "chunk")], ids=str
)
IDS = torch.tensor([7, 3, 11, 0, 5])


def agree(first, second, tolerance=1e-10):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture
def double_batch():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    return net, inputs, net(inputs).argmax(1)


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_maps_have_the_shape_and_dtype_of_the_images_and_are_finite(row: Row, dtype):
    net = tiny_net(nn.ReLU, dtype)
    inputs = torch.rand(5, 2, 8, 8, dtype=dtype)
    maps = row.instance(net, inputs, net(inputs).argmax(1))
    assert maps.shape == inputs.shape
    assert maps.dtype == dtype
    assert maps.device == inputs.device
    assert maps.isfinite().all()
    assert maps.abs().sum() > 0
    assert not maps.requires_grad


@pytest.mark.parametrize("row", ATTACKS, ids=str)
def test_attacks_stay_in_the_box(row: Row, relu_net):
    inputs = torch.rand(5, 2, 8, 8).round()  # every pixel at an edge
    neighbours = row.instance(relu_net, inputs, relu_net(inputs).argmax(1))
    assert neighbours.min() >= 0
    assert neighbours.max() <= 1
    assert not torch.equal(neighbours, inputs)


@every_row
def test_an_empty_batch_gives_no_maps(row: Row, relu_net):
    maps = row.instance(relu_net, torch.rand(0, 2, 8, 8), torch.zeros(0, dtype=torch.int64))
    assert maps.shape == (0, 2, 8, 8)


@every_row
def test_model_and_inputs_stay_untouched(row: Row, relu_net, batch):
    relu_net[3].weight.requires_grad_(False)
    with unchanged(relu_net, *batch):
        row.instance(relu_net, *batch)


@every_row
@pytest.mark.parametrize("when", ["first", "last"])
def test_model_and_inputs_stay_untouched_when_the_model_fails(row: Row, when, relu_net, batch):
    counted = Recorder(relu_net)
    with randomness.keyed(0, IDS):
        row.instance(counted, *batch)
    if not counted.calls:
        return  # a control that never asks the model
    failing = Recorder(relu_net, fail_at=1 if when == "first" else len(counted.calls))
    with (
        unchanged(failing, *batch),
        randomness.keyed(0, IDS),
        pytest.raises(RuntimeError, match="fails on purpose"),
    ):
        row.instance(failing, *batch)


class Elongated(nn.Module):
    """Logits of a batch of two for each image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs).unflatten(1, (2, 2))


@pytest.mark.parametrize("row", ATTRIBUTIONS, ids=str)
def test_logits_of_another_shape_and_a_target_that_is_none_of_their_classes_are_refused(
    row: Row, relu_net, batch
):
    inputs, target = batch
    counted = Recorder(relu_net)
    row.instance(counted, *batch)
    if not counted.calls:
        return  # a control that never asks the model
    with unchanged(relu_net, *batch), pytest.raises(ValueError, match=r"`target` must lie in 0..3, got 7."):
        row.instance(relu_net, inputs, target.masked_fill(target == target[1], 7))
    with (
        unchanged(relu_net, *batch),
        pytest.raises(ValueError, match=r"must return logits of shape \(batch, cl"),
    ):
        row.instance(Elongated(relu_net), *batch)


@every_row
def test_same_seed_same_maps(row: Row, relu_net, batch):
    def maps(seed):
        torch.manual_seed(seed)
        return row.instance(relu_net, *batch)

    assert torch.equal(maps(1), maps(1))
    assert torch.equal(maps(1), maps(2)) is not row.draws


@every_row
def test_keyed_draws_come_from_the_key_and_leave_the_global_generator_alone(row: Row, relu_net, batch):
    def maps(seed):
        with randomness.keyed(seed, IDS):
            return row.instance(relu_net, *batch)

    before = torch.get_rng_state()
    assert torch.equal(maps(1), maps(1))
    assert torch.equal(maps(1), maps(2)) is not row.draws
    assert torch.equal(torch.get_rng_state(), before)


@every_row
def test_batch_size_and_order_do_not_matter(row: Row, double_batch):
    if row.companions:
        pytest.skip("released code, whose answer depends on the batch")
    net, inputs, target = double_batch
    with randomness.keyed(1, IDS):
        together = row.instance(net, inputs, target)
    for part in (torch.tensor([3, 1, 4]), torch.tensor([2]), torch.tensor([0])):
        with randomness.keyed(1, IDS[part]):
            agree(row.instance(net, inputs[part], target[part]), together[part])


@every_row
def test_the_layout_of_memory_does_not_matter(row: Row):
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4),
    ).double().eval()  # fmt: skip
    inputs = torch.rand(5, 2, 20, 16, dtype=torch.float64)
    target = net(inputs).argmax(1)
    with randomness.keyed(1, IDS):
        expected = row.instance(net, inputs, target)
        net.to(memory_format=torch.channels_last)
        agree(row.instance(net, inputs.contiguous(memory_format=torch.channels_last), target), expected, 1e-7)


@chunked_row
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunk_bounds_the_images_per_call_and_changes_nothing(row: Row, chunk, double_batch):
    net, inputs, target = double_batch
    counted = Recorder(net)
    instance = dataclasses.replace(row.instance, chunk=chunk)
    with randomness.keyed(1, IDS):
        agree(instance(counted, inputs, target), row.instance(net, inputs, target))
    searched = len(inputs) if hasattr(row.instance, "search") else 0
    inside = getattr(getattr(row.instance, "base", None), "chunk", 0)
    assert max(counted.calls) <= max(chunk, searched, inside)


@pytest.mark.parametrize("row", ATTRIBUTIONS, ids=str)
def test_maps_have_the_gradient_they_declare(row: Row):
    """Within `keep_graph`, against central differences; other methods refuse."""
    net = tiny_net(nn.Softplus if row.smooth else nn.ReLU, torch.float64)
    inputs = torch.rand(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    target = net(inputs).argmax(1)
    if not row.instance.differentiable:
        with attributions.keep_graph(), pytest.raises(ValueError, match="cannot be differentiated"):
            row.instance(net, inputs, target)
        return

    def loss(points):
        with randomness.keyed(0, torch.arange(2)):
            return (row.instance(net, points, target) * weight).sum()

    weight, step = torch.randn_like(inputs), 1e-5 * torch.randn_like(inputs)
    with attributions.keep_graph():
        (slope,) = torch.autograd.grad(loss(inputs), inputs)
    with torch.no_grad():
        points = inputs.detach()
        difference = (loss(points + step) - loss(points - step)) / 2
    torch.testing.assert_close((slope * step).sum(), difference, rtol=1e-4, atol=1e-12)
    assert difference.abs() > 1e-9


@every_row
@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(row: Row, around, relu_net, batch):
    with randomness.keyed(1, IDS):
        expected = row.instance(relu_net, *batch)
        with around():
            assert torch.equal(row.instance(relu_net, *batch), expected)


@every_row
def test_frozen_parameters_do_not_matter(row: Row, relu_net, batch):
    with randomness.keyed(1, IDS):
        expected = row.instance(relu_net, *batch)
        relu_net.requires_grad_(False)
        assert torch.equal(row.instance(relu_net, *batch), expected)


@every_row
def test_repr_is_a_constructor_call(row: Row):
    names = vars(metrics) | vars(attributions) | vars(attacks)
    again = eval(repr(row.instance), dict(names))
    assert again == row.instance
    assert hash(again) == hash(row.instance)


@every_row
def test_instances_are_frozen(row: Row):
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.instance.anything = 1


@pytest.mark.parametrize("row", [row for row in ATTRIBUTIONS + ATTACKS if row.linear], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_closed_form_on_the_linear_classifier(row: Row, grad):
    case = linear_case(row.classes)
    with nullcontext() if grad else torch.no_grad():
        maps = row.instance(case.model, case.inputs, case.target)
    expected = row.linear(case.weight, case.bias, case.inputs, case.target)
    torch.testing.assert_close(maps, expected, rtol=0, atol=row.tolerance)
    assert expected.abs().max() > 100 * row.tolerance


CONSERVING = [row for row in ATTRIBUTIONS if isinstance(row.instance, Conserving)]


@pytest.mark.parametrize("row", CONSERVING, ids=str)
def test_what_a_map_adds_up_to_is_the_same_beside_the_map(row: Row):
    """Within one look, map and total share their work, and neither takes the other for itself."""
    net, inputs = tiny_net(nn.ReLU, torch.float64), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    target, ids = net(inputs).argmax(1), torch.arange(3)
    with randomness.keyed(0, ids):
        alone = Residual().named(
            model=net,
            inputs=inputs,
            target=target,
            attribution=row.instance,
            attributions=row.instance(net, inputs, target),
        )[""]
    seen = explain(net, inputs, target, {"it": row.instance}, {"residual": Residual()}, 0, ids)
    torch.testing.assert_close(seen.scores["it"]["residual"][""], alone)
