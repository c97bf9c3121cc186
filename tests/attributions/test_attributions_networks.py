"""Every attribution on the networks that people use; where a method has no meaning, it says so."""

import pytest
import timm
import torch
import torchvision
from rows import ATTRIBUTIONS
from subjects import unchanged
from torch import nn

from lit_xai.attributions import Occlusion
from lit_xai.memory import remembering

METHODS = {type(row.instance).__name__: row.instance for row in reversed(ATTRIBUTIONS)}
CONVOLUTIONAL = (
    *("resnet18", "resnet50", "vgg11_bn", "squeezenet1_0", "mobilenet_v2", "densenet121"),
    *("timm:resnet26d", "timm:tf_efficientnet_lite0", "timm:repvgg_a0"),
)
# Methods that change what happens at a ReLU, or that need places: a transformer has neither.
NOT_FOR_TRANSFORMERS = {
    *("GuidedBackprop", "Deconvolution", "RectifiedGradient", "DeepLift", "DeepLiftShap", "BoundaryDeepLift"),
    *("LRP", "RAP", "RSP", "SharingRatio", "GradCam", "GuidedGradCam"),
}
SIZE = 48
# Some methods may be at a loss where a network is sure of itself.
METHODS["Occlusion"] = Occlusion(window=SIZE // 2, stride=SIZE // 2)
MAY_SEE_NOTHING = {
    "SteinGradient",
    "NegativeFlux",
    "GradCam",
    "GuidedGradCam",
    "SaliencyByTracing",
    "TraceBack",
    "Untrained",  # fresh weights may leave nothing above zero
}
MAY_FIND_NO_WAY_BACK = {"SaliencyByTracing", "TraceBack"}  # through residual sums
MAY_FIND_NO_BOUNDARY = {name for name in METHODS if name.startswith("Boundary")}


def network(name: str) -> nn.Module:
    """Random weights, batch norms that do something, and logits that tell images apart."""
    torch.manual_seed(1)
    if name.startswith("timm:"):
        model = timm.create_model(name.removeprefix("timm:"), num_classes=5)
    else:
        model = torchvision.models.get_model(name, num_classes=5)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)  # timm starts with zeros: branches that do nothing
    model.eval()
    head = [part for part in model.modules() if isinstance(part, nn.Linear)][-1:]
    with torch.no_grad():
        for linear in head:
            spread, mean = torch.std_mean(model(torch.rand(8, 3, SIZE, SIZE)), 0)
            linear.weight.div_(spread[:, None])
            linear.bias.sub_(mean).div_(spread)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_method_explains_a_convolutional_network(name):
    model = network(name)
    inputs = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        target = model(inputs).argmax(1)
    with remembering():
        for method, instance in METHODS.items():
            try:
                maps = instance(model, inputs, target)
            except ValueError as refusal:
                if method in MAY_FIND_NO_WAY_BACK and "has no inverse" in str(refusal):
                    continue
                raise
            assert maps.shape == inputs.shape, method
            found = maps.isfinite().flatten(1).all(1)
            if method in MAY_FIND_NO_BOUNDARY and not found.all():
                assert maps[~found].isnan().all(), method
                continue
            assert found.all(), method
            assert method in MAY_SEE_NOTHING or (maps != 0).any(), method


@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_is_explained_or_refused_with_what_would_work(method):
    torch.manual_seed(1)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(model.heads[0].weight)  # torchvision starts with a head of zeros: no gradient
    inputs = torch.rand(2, 3, 32, 32)
    target = model(inputs).argmax(1)
    if method not in NOT_FOR_TRANSFORMERS:
        maps = METHODS[method](model, inputs, target)
        assert maps.isfinite().all()
        assert (maps != 0).any()
        return
    with (
        unchanged(model, inputs),
        pytest.raises(ValueError, match=f"`{method}`.*Saliency") as refusal,
    ):
        METHODS[method](model, inputs, target)
    assert "\n" not in str(refusal.value)
