"""DeepLIFT, against Captum, hand-made examples, and what its maps have to add up to."""

import numpy as np
import pytest
import torch
from subjects import tiny_net
from torch import nn
from torch.nn import functional as F

from lit_xai import attributions, randomness
from lit_xai.attributions import InputXGradient, Logit, Margin
from lit_xai.attributions.baselines import FlatImage, NoiseImage, StoredImages
from lit_xai.attributions.deeplift import DeepLift, DeepLiftShap, rescale
from lit_xai.attributions.score import Probability


def stack(*layers):
    return nn.Sequential(*layers).eval()


def pooled(pool, act=nn.ReLU):
    """A network of 2 x 12 x 12 images with the pool in its middle, but not right after a ReLU."""
    return stack(
        nn.Conv2d(2, 6, 3, padding=1), act(), nn.BatchNorm2d(6), pool, nn.Conv2d(6, 6, 3, padding=1), act(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


class Branching(nn.Module):
    """One ReLU for everything, partly in place, with sums, slices and overlapping pools."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(96, 4)

    def forward(self, x):
        y = F.max_pool2d(self.act(self.first(2 * x - 1)), 3, stride=2, padding=1)
        left, right = self.second(y).chunk(2, dim=1)
        y = y + torch.cat([F.leaky_relu(left, 0.2), right.clamp(0, 0.3)], dim=1)
        y = F.max_pool2d(self.act(y), 3, stride=2, padding=1, ceil_mode=True)
        return self.head(y.flatten(1))


def sums(maps):
    return maps.flatten(1).sum(1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "net",
    [
        tiny_net(nn.ReLU, torch.float64),
        tiny_net(lambda: nn.LeakyReLU(0.2), torch.float64),
        pooled(nn.MaxPool2d(2)).double(),
        pooled(nn.MaxPool2d((2, 3), stride=(3, 3))).double(),
        pooled(nn.AvgPool2d(3, stride=2)).double(),
    ],
    ids=["strided", "leaky", "max", "max with gaps", "average"],
)
def test_captum_agrees(net):
    captum = pytest.importorskip("captum.attr")
    size = 8 if len(net) == 8 else 12
    inputs, target = torch.rand(5, 2, size, size, dtype=torch.float64), torch.arange(5) % 4
    starts = torch.rand_like(inputs)
    expected = captum.DeepLift(net).attribute(inputs.clone(), starts, target=target).detach()
    torch.testing.assert_close(
        rescale(DeepLift(), net, inputs, starts, target, Logit()), expected, rtol=1e-6, atol=1e-12
    )
    grey = captum.DeepLift(net).attribute(inputs.clone(), torch.full_like(inputs, 0.5), target=target)
    torch.testing.assert_close(DeepLift(0.5)(net, inputs, target), grey.detach(), rtol=1e-6, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_captum_loses_what_a_max_pool_passes_to_a_relu():
    """Its hook at the ReLU reads the gradient before its hook at the pool has changed it."""
    captum = pytest.importorskip("captum.attr")
    net = stack(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(150, 4)).double()
    inputs, target = torch.rand(4, 2, 12, 12, dtype=torch.float64), torch.arange(4)
    starts = torch.rand_like(inputs)
    lossy = captum.DeepLift(net).attribute(inputs.clone(), starts, target=target).detach()
    maps = rescale(DeepLift(), net, inputs, starts, target, Logit())
    with torch.no_grad():
        rise = Logit()(net(inputs) - net(starts), target)
    torch.testing.assert_close(sums(maps), rise)
    assert (sums(lossy) - rise).abs().max() > 0.1 * rise.abs().max()


@pytest.mark.parametrize("score", [Logit(), Margin()], ids=repr)
@pytest.mark.parametrize(
    "net",
    [
        pooled(nn.MaxPool2d(3, stride=2)),
        pooled(nn.MaxPool2d(3, stride=1, padding=1, dilation=2), act=nn.ReLU6),
        stack(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)),
        Branching().eval(),
    ],
    ids=["overlapping", "dilated", "before the ReLU", "branching"],
)
@pytest.mark.parametrize("baseline", [0.3, NoiseImage()], ids=repr)
def test_maps_add_up_to_the_rise_of_the_score(net, score, baseline):
    net.double()
    inputs, target = torch.rand(6, 2, 12, 12, dtype=torch.float64), torch.arange(6) % 4
    method = DeepLift(baseline, score)
    with randomness.keyed(0, torch.arange(6)):
        maps, total = method(net, inputs, target), method.total(net, inputs, target)
    torch.testing.assert_close(sums(maps), total, rtol=1e-10, atol=1e-12)
    assert total.abs().min() > 1e-6


def test_the_total_is_that_of_the_rival_at_the_image():
    net = pooled(nn.MaxPool2d(2)).double()
    inputs, target = torch.rand(4, 2, 12, 12, dtype=torch.float64), torch.arange(4)
    with torch.no_grad():
        logits, start = net(inputs), net(torch.zeros_like(inputs))
    rival = logits.scatter(1, target[:, None], -torch.inf).argmax(1)
    expected = Margin()(logits, target) - Margin()(start, target, rival)
    torch.testing.assert_close(DeepLift(score="margin").total(net, inputs, target), expected)
    own, other = (
        rescale(DeepLift(), net, inputs, inputs * 0, c, Logit()) for c in (target, (target + 1) % 4)
    )
    held = rescale(DeepLift(), net, inputs, inputs * 0, target, Margin(), rival=(target + 1) % 4)
    torch.testing.assert_close(held, own - other)


def test_toy_by_hand():
    """relu(x1 + x2 - 1) + max(x1, x2) at (1, 0.5), from (0.25, 0.75)."""

    class Toy(nn.Module):
        def __init__(self):
            super().__init__()
            self.sum = nn.Conv2d(1, 1, (1, 2))
            nn.init.ones_(self.sum.weight)
            nn.init.constant_(self.sum.bias, -1)

        def forward(self, x):
            return (F.relu(self.sum(x)) + F.max_pool2d(x, (1, 2))).flatten(1)

    inputs, starts = torch.tensor([1, 0.5]).view(1, 1, 1, 2), torch.tensor([0.25, 0.75]).view(1, 1, 1, 2)
    maps = rescale(DeepLift(), Toy().eval(), inputs, starts, torch.tensor([0]), Logit())
    chord = (0.5 - 0) / (0.5 - 0)  # from 0, the kink, to 0.5
    assert maps.flatten().tolist() == [0.75 * chord + (1 - 0.75), -0.25 * chord]
    starts = torch.tensor([0.25, 0.5]).view(1, 1, 1, 2)
    maps = rescale(DeepLift(), Toy().eval(), inputs, starts, torch.tensor([0]), Logit())
    chord = 0.5 / 0.75  # from -0.25 to 0.5
    torch.testing.assert_close(maps.flatten(), torch.tensor([0.75 * chord + (1 - 0.5), 0]))


def test_without_biases_and_from_black_it_is_image_times_gradient():
    net = pooled(nn.MaxPool2d(2)).double()
    net[2] = nn.Identity().eval()
    for layer in (net[0], net[4], net[8]):
        layer.bias = None
    inputs, target = torch.rand(4, 2, 12, 12, dtype=torch.float64), torch.arange(4)
    torch.testing.assert_close(DeepLift()(net, inputs, target), InputXGradient()(net, inputs, target))


def test_what_is_the_same_for_both_has_the_slope_of_the_tangent():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs, target = torch.rand(3, 2, 8, 8, dtype=torch.float64), torch.arange(3)
    assert not rescale(DeepLift(), net, inputs, inputs, target, Logit()).any()
    step = 1e-6 * torch.randn_like(inputs)
    near = rescale(DeepLift(), net, inputs + step, inputs, target, Logit()) / step
    torch.testing.assert_close(near, attributions.Saliency()(net, inputs, target), rtol=1e-4, atol=1e-4)


def test_one_flat_baseline_stands_for_all():
    net = Branching().double().eval()
    inputs, target = torch.rand(4, 2, 12, 12, dtype=torch.float64), torch.arange(4)
    many = rescale(DeepLift(), net, inputs, torch.full_like(inputs, 0.5), target, Logit())
    torch.testing.assert_close(DeepLift(0.5)(net, inputs, target), many, rtol=1e-12, atol=1e-14)


def test_a_network_with_several_rows_per_image_is_compared_row_by_row():
    """There, one baseline for all has fewer rows than the images, and none of them stands for all."""
    net = pooled(nn.MaxPool2d(3, 2)).double()

    class Both(nn.Module):
        def forward(self, x):
            y = net(torch.cat([x, 1 - x]))
            return y[: len(x)] + y[len(x) :]

    inputs, target = torch.rand(3, 2, 12, 12, dtype=torch.float64), torch.arange(3)
    own, other = (DeepLift(value)(net, x, target) for value, x in ((0.25, inputs), (0.75, 1 - inputs)))
    torch.testing.assert_close(DeepLift(0.25)(Both().eval(), inputs, target), own + other)


def test_shap_is_the_mean_over_its_baselines():
    net = pooled(nn.MaxPool2d(3, 2)).double()
    inputs, target = torch.rand(3, 2, 12, 12, dtype=torch.float64), torch.arange(3)
    method = DeepLiftShap(samples=5, chunk=4)
    with randomness.keyed(1, torch.arange(3)):
        maps, total = method(net, inputs, target), method.total(net, inputs, target)
        keys = randomness.keys(inputs, "baseline")
    expected = torch.stack(
        [rescale(DeepLift(), net, inputs, NoiseImage()(inputs, keys + k), target, Logit()) for k in range(5)]
    )
    assert expected.std(0).max() > 1e-4
    torch.testing.assert_close(maps, expected.mean(0))
    torch.testing.assert_close(sums(maps), total)
    assert (total - DeepLift().total(net, inputs, target)).abs().min() > 1e-4
    flat = DeepLiftShap(samples=2, baseline=0.5)(net, inputs, target)
    torch.testing.assert_close(flat, DeepLift(0.5)(net, inputs, target))


@pytest.mark.filterwarnings("ignore")
def test_captums_shap_agrees_on_a_file_of_images(tmp_path):
    """All images of the file come equally often in the long run."""
    captum = pytest.importorskip("captum.attr")
    net = tiny_net(nn.ReLU, torch.float64)
    stored = np.random.default_rng(0).random((3, 2, 8, 8))
    np.save(tmp_path / "images.npy", stored)
    inputs, target = torch.rand(2, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1])
    expected = captum.DeepLiftShap(net).attribute(inputs.clone(), torch.from_numpy(stored), target=target)
    method = DeepLiftShap(samples=3000, baseline=StoredImages(str(tmp_path / "images.npy")), chunk=1000)
    with randomness.keyed(0, torch.arange(2)):
        maps = method(net, inputs, target)
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("method", [DeepLift(), DeepLiftShap(samples=2)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(("act", "call"), [(nn.GELU, "gelu"), (nn.SiLU, "silu"), (nn.Softplus, "softplus")])
def test_other_activations_are_refused_by_name(method, act, call, batch):
    with pytest.raises(
        ValueError,
        match=rf"`{type(method).__name__}` has no rule for `{call}` \(layer '[24]'.*IntegratedGradients",
    ):
        method(tiny_net(act), *batch)


def test_a_transformer_is_refused():
    models = pytest.importorskip("torchvision.models")
    net = models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3).eval()
    with pytest.raises(ValueError, match="`DeepLift` has no rule for "):
        DeepLift()(net, torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))


def test_a_network_that_takes_other_steps_for_the_baseline_is_refused(relu_net, batch):
    class Fickle(nn.Module):
        def forward(self, x):
            return relu_net(x).relu() if x.mean() > 0.1 else relu_net(x)

    with pytest.raises(ValueError, match="`DeepLift` needs a network that takes the same steps"):
        DeepLift()(Fickle().eval(), *batch)


def test_what_makes_no_sense_is_refused():
    for method in (DeepLift, DeepLiftShap):
        with pytest.raises(ValueError, match=r"`score` must be linear in the logits.*Probability\(\)"):
            method(score=Probability())
        with pytest.raises(ValueError, match=r"`baseline` must lie in \[0, 1\], got 2"):
            method(baseline=2)
        assert method(baseline=0.5) == method(baseline=FlatImage(0.5))
    for field in ("samples", "chunk"):
        with pytest.raises(ValueError, match=f"`{field}` must be at least 1, got 0"):
            DeepLiftShap(**{field: 0})


NETS = ["resnet18", "resnet50", "vgg11_bn", "squeezenet1_1", "mobilenet_v2", "densenet121"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETS, "timm/resnet26t"])
def test_published_networks(name):
    """In double precision nothing of the difference is lost, whatever the layers share and overlap."""
    if name.startswith("timm/"):
        net = pytest.importorskip("timm").create_model(name[5:])
    else:
        net = pytest.importorskip("torchvision.models").get_model(name, weights=None)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    net.double().eval()
    inputs, target = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.tensor([3, 7])
    maps, total = (call(net, inputs, target) for call in (DeepLift(), DeepLift().total))
    assert maps.isfinite().all()
    assert total.abs().min() > 0
    torch.testing.assert_close(sums(maps), total, rtol=1e-8, atol=1e-15)
