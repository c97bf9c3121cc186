"""Grad-CAM: closed form on a pooled linear head, Captum, layers that are overwritten, shared, missing."""

import captum.attr
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai import randomness
from lit_xai.attributions import GradCam, GuidedGradCam, Margin
from lit_xai.models import Normalized, Smoothed

TARGET = torch.tensor([0, 1, 2])


def pooled_net(inplace: bool = False) -> nn.Sequential:
    """Convolutions, a mean over places, a linear head; 2 x 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


@pytest.fixture
def images(float64) -> Tensor:
    return torch.rand(3, 2, 8, 8)


def test_on_a_pooled_linear_head_the_map_is_that_of_the_class_and_adds_up_to_the_score(images):
    net = pooled_net()
    hidden = net[:4](images)
    weight, bias = net[6].weight[TARGET], net[6].bias[TARGET]
    small = (weight[:, :, None, None] * hidden).sum(1, keepdim=True) / 16
    maps = GradCam(relu=False)(net, images, TARGET)
    torch.testing.assert_close(
        maps.sum(1, keepdim=True), F.interpolate(small, (8, 8), mode="bilinear").detach()
    )
    torch.testing.assert_close(maps[:, 0], maps[:, 1])
    # Each small pixel has become four.
    scores = net(images)[range(3), TARGET]
    torch.testing.assert_close(maps.sum((1, 2, 3)) / 4, (scores - bias).detach())
    rectified = GradCam()(net, images, TARGET).sum(1, keepdim=True)
    torch.testing.assert_close(rectified, F.interpolate(small.relu(), (8, 8), mode="bilinear").detach())
    assert (small < 0).any()


def test_the_small_map_is_enlarged_bilinearly():
    net = nn.Sequential(
        nn.Conv2d(1, 1, (1, 2), stride=(1, 2), bias=False), nn.AvgPool2d((1, 2)), nn.Flatten()
    )
    with torch.no_grad():
        net[0].weight.fill_(1)
    maps = GradCam(layer="0")(net.eval(), torch.tensor([[[[0.0, 0.0, 4.0, 4.0]]]]), torch.tensor([0]))
    torch.testing.assert_close(maps[0, 0, 0], torch.tensor([0.0, 1.0, 3.0, 4.0]))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
def test_captum_gives_the_same_map_at_every_layer(images, layer, relu):
    net = pooled_net()
    cam = captum.attr.LayerGradCam(net, net.get_submodule(layer))
    small = cam.attribute(images, target=TARGET, relu_attributions=relu)
    theirs = captum.attr.LayerAttribution.interpolate(small, (8, 8), "bilinear")
    ours = GradCam(layer=layer, relu=relu)(net, images, TARGET)
    torch.testing.assert_close(ours.sum(1, keepdim=True), theirs.detach())
    assert ours.abs().sum() > 0


def test_an_output_that_is_overwritten_later_is_read_as_it_left_the_layer(images):
    plain, overwriting = pooled_net(), pooled_net(inplace=True)
    overwriting.load_state_dict(plain.state_dict())
    for layer in ("0", "1", "2", "3"):
        method = GradCam(layer=layer, relu=False)
        torch.testing.assert_close(method(overwriting, images, TARGET), method(plain, images, TARGET))


def test_a_model_that_overwrites_what_it_is_given_does_not_reach_the_images(images):
    net = nn.Sequential(nn.Threshold(0.5, 0, inplace=True), pooled_net()).eval()
    before = images.clone()
    GradCam()(net, images, TARGET)
    assert torch.equal(images, before)


class Shared(nn.Module):
    """One activation for all: it is called on places twice, and then on features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 8, 3)
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.act = nn.Tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.act(self.second(self.act(self.first(inputs))))
        return self.head(self.act(self.hidden(hidden.mean((2, 3)))))


@pytest.mark.parametrize("layer", [None, "act#2"])
def test_a_shared_layer_is_read_at_the_call_that_is_named(images, layer):
    """Its last call has no places, so that the layer before it is chosen."""
    net = Shared().eval()
    hidden = net.second(net.act(net.first(images)))
    hidden = (hidden.tanh() if layer else hidden).detach().requires_grad_()
    act = nn.Identity() if layer else net.act
    score = net.head(net.act(net.hidden(act(hidden).mean((2, 3)))))[range(3), TARGET].sum()
    slopes = torch.autograd.grad(score, hidden)[0].mean((2, 3), keepdim=True)
    expected = F.interpolate((slopes * hidden).sum(1, keepdim=True), (8, 8), mode="bilinear")
    method = GradCam(layer=layer, relu=False)
    assert method.chosen(net, images) == (layer or "second")
    torch.testing.assert_close(method(net, images, TARGET).sum(1, keepdim=True), expected.detach())


def test_the_margin_is_the_difference_of_two_maps(images):
    net = pooled_net()
    ranked = net(images).argsort(1, descending=True)
    own, rival = (GradCam(relu=False)(net, images, ranked[:, place]) for place in (0, 1))
    lead = GradCam(relu=False, score=Margin())(net, images, ranked[:, 0])
    torch.testing.assert_close(lead, own - rival)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_captum_gives_the_same_guided_map(images):
    net = pooled_net()
    guided = captum.attr.GuidedGradCam(net, net[3])
    theirs = guided.attribute(images.clone(), target=TARGET, interpolate_mode="bilinear")
    ours = GuidedGradCam()(net, images, TARGET)
    torch.testing.assert_close(ours, theirs.detach())
    assert ours.abs().sum() > 0


class Functional(nn.Module):
    """`pooled_net` with activations that are no modules."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.first, self.second, self.head = net[0], net[2], net[6]

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.second(self.first(inputs).relu()).relu_()
        return self.head(hidden.mean((2, 3)))


def test_guided_maps_do_not_miss_activations_that_are_no_modules(images):
    net = pooled_net()
    expected = GuidedGradCam(layer="2")(net, images, TARGET)
    torch.testing.assert_close(
        GuidedGradCam(layer="second")(Functional(net).eval(), images, TARGET), expected
    )


class Tokens(nn.Module):
    """Channels behind the places, and perhaps in front of them again."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(2, 6, 2, stride=2), nn.LayerNorm(6)
        self.back, self.head = nn.Identity() if back else None, nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.embed(inputs).permute(0, 2, 3, 1))
        if self.back is None:
            return self.head(hidden.mean((1, 2)))
        return self.head(self.back(hidden.permute(0, 3, 1, 2)).mean((2, 3)))


def test_channels_behind_the_places_are_not_taken_for_places():
    images = torch.rand(3, 2, 8, 8)
    with pytest.raises(ValueError, match=r"it works on tokens \(layer 'norm'\)"):
        GradCam()(Tokens(back=False).eval(), images, TARGET)
    assert GradCam().chosen(Tokens(back=True).eval(), images) == "back"


def test_a_vision_transformer_is_refused_and_other_methods_are_named():
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4).eval()
    why = r"needs one late layer.*it works on tokens \(layer 'encoder.ln'\)", "has no rule for"
    for method, reason in zip((GradCam(), GuidedGradCam()), why, strict=True):
        with pytest.raises(ValueError, match=f"`{type(method).__name__}` {reason}.*Saliency"):
            method(vit, torch.rand(3, 3, 32, 32), TARGET)


def test_the_image_itself_is_no_layer():
    mlp = Normalized(nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(128, 4)), [0.5] * 2, [0.2] * 2)
    with pytest.raises(ValueError, match=r"`GradCam` needs one late layer .* but the network has none"):
        GradCam()(mlp.eval(), torch.rand(3, 2, 8, 8), TARGET)


def test_a_layer_that_cannot_be_read_is_refused_in_one_line():
    net, images = pooled_net(), torch.rand(3, 2, 8, 8)
    net.side = nn.Conv2d(2, 2, 1).eval()

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aside, self.net = nn.Conv2d(2, 2, 1), pooled_net()

        def forward(self, inputs: Tensor) -> Tensor:
            self.aside(inputs)
            return self.net(inputs)

    class Never(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.never, self.net = nn.Conv2d(2, 2, 1), pooled_net()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

    cases = [
        (Shared().eval(), "frist", r"`layer` must be one of the network's, got 'frist'; nearest: first"),
        (net, "6", r"more than one place, but '6' gives \(3, 4\) for a batch of 3: name another"),
        (net, "4", r"more than one place, but '4' gives \(3, 8, 1, 1\) for a batch of 3"),
        (Never().eval(), "never", r"`layer` must be one of the network's, got 'never'"),
        (Aside().eval(), "aside", r"`layer` must lead to the score, but 'aside' does not"),
    ]
    del net.side
    for model, layer, message in cases:
        with pytest.raises(ValueError, match=message):
            GradCam(layer=layer)(model, images, TARGET)


class Sides(nn.Module):
    """Two looks at the image, of which the logits are the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = pooled_net(), pooled_net()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.left(inputs) + self.right(inputs)


def test_a_layer_that_sees_part_of_the_image_is_not_chosen(images):
    net = Sides().eval()
    with pytest.raises(ValueError, match=r"part of the image goes around 'right.3': take .*Saliency"):
        GradCam()(net, images, TARGET)
    named = GradCam(layer="right.3")(net, images, TARGET)
    torch.testing.assert_close(named, GradCam()(net.right, images, TARGET))


@pytest.mark.parametrize("chunk", [256, 5])
def test_a_smoothed_network_has_a_row_per_draw_and_is_refused(images, chunk):
    net = Smoothed(pooled_net(), sigma=0.1, samples=4, chunk=chunk).eval()
    with pytest.raises(ValueError, match="`GradCam` needs one late layer"):
        GradCam()(net, images, TARGET)
    if chunk == 256:
        with pytest.raises(ValueError, match=r"'net.3' gives \(12, 8, 4, 4\) for a batch of 3"):
            GradCam(layer="net.3")(net, images, TARGET)


def test_a_batch_norm_is_not_part_of_the_layer_before_it(images):
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), *pooled_net()[4:6], nn.Linear(6, 4))
    net[1].running_mean.uniform_(-0.2, 0.2)
    net[1].running_var.uniform_(0.5, 1.5)
    net.eval()
    for layer in ("0", "1"):
        small = captum.attr.LayerGradCam(net, net.get_submodule(layer)).attribute(images, target=TARGET)
        theirs = captum.attr.LayerAttribution.interpolate(small, (8, 8), "bilinear")
        ours = GradCam(layer=layer, relu=False)(net, images, TARGET).sum(1, keepdim=True)
        torch.testing.assert_close(ours, theirs.detach())


def test_nothing_is_drawn(images):
    with randomness.keyed(0, torch.arange(3)):
        keyed = GradCam()(pooled_net(), images, TARGET)
    assert keyed.shape == images.shape


NETWORKS = {
    "resnet18": "layer4",
    "vgg11_bn": "features",  # not `avgpool`, which at 64 pixels repeats its 2 x 2 places
    "squeezenet1_1": "classifier.2",  # one channel per class
    "mobilenet_v2": "features",
    "densenet121": "features",
    "convnext_tiny": "features",
    "swin_t": "permute",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_read_where_captum_reads_them_by_hand(name):
    net = Normalized(torchvision.models.get_model(name, weights=None), [0.5] * 3, [0.2] * 3).eval()
    inputs = torch.rand(2, 3, 64, 64)
    target = net(inputs).argmax(1)
    method = GradCam(relu=False)
    layer = method.chosen(net, inputs)
    assert layer == f"net.{NETWORKS[name]}"
    cam = captum.attr.LayerGradCam(net, net.get_submodule(layer))
    theirs = captum.attr.LayerAttribution.interpolate(cam.attribute(inputs, target), (64, 64), "bilinear")
    ours = method(net, inputs, target).sum(1, keepdim=True)
    assert ours.abs().max() > 0
    # Densenet overwrites the negative features: Captum reads what is left of them, and calls it the layer.
    if name == "densenet121":
        activation = net.net.features((inputs - 0.5) / 0.2).detach()
        weight = net.net.classifier.weight[target].detach()[:, :, None, None]
        slopes = (weight * (activation > 0)).mean((2, 3), keepdim=True) / 4
        theirs = F.interpolate((slopes * activation).sum(1, keepdim=True), (64, 64), mode="bilinear")
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-5 * float(ours.abs().max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "squeezenet1_1"])
def test_guided_maps_of_networks_are_those_of_captum(name):
    net = torchvision.models.get_model(name, weights=None).eval()
    inputs = torch.rand(2, 3, 64, 64)
    target = net(inputs).argmax(1)
    layer = GradCam().chosen(net, inputs)
    guided = captum.attr.GuidedGradCam(net, net.get_submodule(layer))
    theirs = guided.attribute(inputs.clone(), target=target, interpolate_mode="bilinear")
    ours = GuidedGradCam()(net, inputs, target)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-5 * float(ours.abs().max()))
    assert ours.abs().max() > 0
