"""Gradients at the image, against Captum, finite differences and closed forms."""

import captum.attr
import pytest
import torch
from subjects import Recorder
from torch import nn

from lit_xai.attributions import InputXGradient, Logit, Margin, Saliency
from lit_xai.attributions.score import gradient


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_saliency_is_captums(relu_net, batch):
    inputs, target = batch
    expected = captum.attr.Saliency(relu_net).attribute(inputs, target=target, abs=False)
    torch.testing.assert_close(Saliency()(relu_net, inputs, target), expected)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_input_x_gradient_is_captums(relu_net, batch):
    inputs, target = batch
    expected = captum.attr.InputXGradient(relu_net).attribute(inputs, target=target)
    torch.testing.assert_close(InputXGradient()(relu_net, inputs, target), expected)


@pytest.mark.parametrize("score", [Logit(), Margin()], ids=repr)
def test_saliency_is_the_slope_that_finite_differences_see(score, smooth_net):
    inputs = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 1, 2])
    direction, h = torch.randn_like(inputs), 1e-5
    with torch.no_grad():
        ahead, behind = (score(smooth_net(inputs + s * h * direction), target) for s in (1, -1))
    slope = (Saliency(score)(smooth_net, inputs, target) * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)


def test_scores_by_hand():
    logits = torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.0, 3.0], [2.0, 2.0, 0.0]])
    target = torch.tensor([1, 1, 0])
    assert Logit()(logits, target).tolist() == [4.0, 0.0, 2.0]
    assert Margin()(logits, target).tolist() == [2.0, -5.0, 0.0]
    assert Margin()(logits, target, rival=torch.tensor([0, 2, 2])).tolist() == [3.0, -3.0, 2.0]
    assert Logit()(logits, target, rival=torch.tensor([0, 2, 2])).tolist() == [4.0, 0.0, 2.0]


def test_the_margin_gradient_is_normal_to_the_boundary_and_the_logit_gradient_is_not(smooth_net):
    """Along a tangent of the boundary the margin does not change to first order."""
    inputs = torch.rand(1, 2, 8, 8, dtype=torch.float64)
    target = smooth_net(inputs).argmax(1)
    normal = Saliency(Margin())(smooth_net, inputs, target)
    tangent = torch.randn_like(normal)
    tangent -= (tangent * normal).sum() / normal.square().sum() * normal
    h = 1e-5
    with torch.no_grad():
        change = [Margin()(smooth_net(inputs + s * h * tangent), target) for s in (1, -1)]
    assert abs(change[0] - change[1]) / (2 * h) < 1e-6
    assert (Saliency()(smooth_net, inputs, target) * tangent).sum().abs() > 1e-2


def test_one_forward_pass_per_image(relu_net, batch):
    counted = Recorder(relu_net)
    Saliency()(counted, *batch)
    assert counted.calls == [5]


def test_a_model_without_logits_per_image_is_refused(batch):
    with pytest.raises(
        ValueError, match=r"`model` must return logits of shape \(batch, class\), got \(5, 2, 8, 8\)"
    ):
        Saliency()(nn.Identity().eval(), *batch)


def test_points_that_require_grad_are_not_written_to(relu_net, batch):
    inputs, target = batch
    inputs.requires_grad_()
    maps = gradient(Logit(), relu_net, inputs, target)
    assert inputs.grad is None
    assert not maps.requires_grad


def test_a_score_may_be_named():
    for method in (Saliency, InputXGradient):
        assert method(score="margin") == method(score=Margin())
        assert method(score="logit") == method()
        assert repr(method(score="margin")) == f"{method.__name__}(score=Margin())"
        with pytest.raises((ValueError, TypeError), match="lgoit"):
            method(score="lgoit")
