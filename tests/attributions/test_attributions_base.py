"""The rim of every attribution: what is refused, in which words, and that nothing is left behind."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from subjects import Recorder, tiny_net, unchanged
from torch import Tensor, nn

from lit_xai.attributions import Attribution, InputXGradient, Saliency, SmoothGrad, keep_graph
from lit_xai.attributions.base import entering, keeping_graph
from lit_xai.types import Images, Labels


@dataclass(frozen=True)
class Rigid(Attribution):
    """A map without a gradient of its own."""

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return Saliency().maps(model, inputs, target).round()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes as outside of the tests: not checked against the signatures."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def spoilt(value: float) -> Images:
    inputs = torch.rand(5, 2, 8, 8)
    inputs[3, 1, 2, 2] = value
    return inputs


TARGET = torch.tensor([0, 1, 2, 3, 0])
REFUSALS = [
    (torch.rand(5, 2, 8, 8).requires_grad_(), TARGET, "`inputs` must not need a gradient: pass `inputs.det"),
    (spoilt(torch.nan), TARGET, "`inputs` must be finite, got NaN or infinity."),
    (spoilt(torch.inf), TARGET, "`inputs` must be finite, got NaN or infinity."),
    (spoilt(-torch.inf), TARGET, "`inputs` must be finite, got NaN or infinity."),
    (spoilt(0.5), TARGET + 1, "`target` must lie in 0..3, got 4."),
    (spoilt(0.5), TARGET - 1, "`target` must be at least 0, got -1."),
    (spoilt(0.5), TARGET[:3], "`target` must name a class for every image, got torch.int64 of shape (3,)"),
    (spoilt(0.5), TARGET[:0], "`target` must name a class for every image, got torch.int64 of shape (0,)"),
    (
        spoilt(0.5),
        TARGET.float(),
        "`target` must name a class for every image, got torch.float32 of shape (5",
    ),
    (
        spoilt(0.5),
        torch.ones(5, 4).long(),
        "`target` must name a class for every image, got torch.int64 of s",
    ),
    (
        spoilt(0.5).byte(),
        TARGET,
        "`inputs` must be floats in [0, 1] of shape (batch, channel, height, width)",
    ),
    (spoilt(0.5)[:, 0], TARGET, "`inputs` must be floats in [0, 1] of shape (batch, channel, height, width)"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("inputs", "target", "message"), REFUSALS, ids=[row[2][:40] for row in REFUSALS])
@pytest.mark.parametrize("method", [Saliency(), SmoothGrad(samples=2, base=InputXGradient())], ids=repr)
def test_bad_images_and_targets_are_refused_and_nothing_is_left_behind(
    method, inputs, target, message, relu_net
):
    before = inputs.clone()
    with unchanged(relu_net, target), pytest.raises(ValueError, match=re.escape(message)):
        method(relu_net, inputs, target)
    torch.testing.assert_close(inputs, before, rtol=0, atol=0, equal_nan=True)
    assert inputs.grad is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("", "`model` must be in eval mode, but it is in train mode: call `model.eval()`."),
        ("1", "`model` must be in eval mode, but its '1' is in train mode: call `model.eval()`."),
        ("6", "`model` must be in eval mode, but its '6' is in train mode: call `model.eval()`."),
    ],
)
def test_a_model_in_train_mode_is_refused_by_the_name_of_the_part(part, message, relu_net, batch):
    relu_net.get_submodule(part).train()
    with unchanged(relu_net, *batch), pytest.raises(ValueError, match=re.escape(message)):
        Saliency()(relu_net, *batch)
    counted = Recorder(relu_net)
    with pytest.raises(ValueError, match="train mode"):
        Saliency()(counted, *batch)
    assert counted.calls == []  # refused before the model is run


class Shaped(nn.Module):
    """Answers in a shape that is not one row per image."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten()[0] * torch.ones(self.shape)


@pytest.mark.parametrize("shape", [(5,), (4, 4), (5, 4, 1), (1, 4)], ids=str)
def test_a_model_without_one_row_of_logits_per_image_is_refused(shape, batch):
    message = f"`model` must return logits of shape (batch, class), got {shape} for 5 images."
    model = Shaped(*shape)
    with unchanged(model, *batch), pytest.raises(ValueError, match=re.escape(message)):
        Saliency()(model, *batch)


def test_a_refused_target_does_not_haunt_the_next_call(relu_net, batch):
    inputs, target = batch
    with pytest.raises(ValueError, match=re.escape("`target` must lie in 0..3, got 7.")):
        Saliency()(relu_net, inputs, torch.full_like(target, 7))
    assert Saliency()(relu_net, inputs, target).isfinite().all()
    assert Saliency()(relu_net, inputs[:0], target[:0]).shape == (0, 2, 8, 8)


def test_maps_can_be_differentiated_where_the_graph_is_kept_and_nowhere_else():
    net = tiny_net(nn.Softplus, torch.float64)
    inputs = torch.rand(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1])
    with keep_graph():
        assert keeping_graph()
        maps = Saliency()(net, inputs, target)
    assert not keeping_graph()
    (slope,) = torch.autograd.grad(maps.square().sum(), inputs)
    # d/dx |g|^2 = 2 H g, with the Hessian of each image by itself
    for i in range(2):
        logit = lambda x, i=i: net(x[None])[0, target[i]]  # noqa: E731
        hessian = torch.autograd.functional.hessian(logit, inputs[i].detach()).reshape(128, 128)
        expected = 2 * hessian @ maps[i].detach().flatten()
        torch.testing.assert_close(slope[i].flatten(), expected)
    assert inputs.grad is None
    assert not Saliency()(net, inputs.detach(), target).requires_grad


def test_what_cannot_be_differentiated_says_so_before_the_model_is_run(relu_net, batch):
    counted = Recorder(relu_net)
    for method in (Rigid(), SmoothGrad(samples=2, base=Rigid())):
        assert not method.differentiable
        with (
            keep_graph(),
            unchanged(counted, *batch),
            pytest.raises(ValueError, match=f"`{type(method).__name__}` cannot be differentiated"),
        ):
            method(counted, *batch)
    assert counted.calls == []
    assert Rigid()(counted, *batch).isfinite().all()


def test_keeping_the_graph_ends_with_its_context_also_after_an_error_and_under_no_grad():
    inputs = torch.rand(1, 1, 2, 2, requires_grad=True)
    with torch.no_grad():
        with keep_graph(), keep_graph():
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()
    assert entering(inputs).grad_fn is None
    assert not entering(inputs).requires_grad
    assert entering(inputs).data_ptr() == inputs.data_ptr()
    with keep_graph():
        assert entering(inputs) is inputs
    with pytest.raises(RuntimeError, match="broken"), keep_graph():
        raise RuntimeError("broken")
    assert not keeping_graph()
    assert inputs.requires_grad
