"""Gated gradients, against Captum, zennit, hand-made examples and a slow twin of the rule."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_xai.attributions import InputXGradient, Saliency
from lit_xai.attributions.rectified import (
    Deconvolution,
    GuidedBackprop,
    RectifiedGradient,
    nearest_rank,
    redistributed,
)
from lit_xai.network import MaxPool

EVERY = [GuidedBackprop(), Deconvolution(), RectifiedGradient(percentile=80, times_input=False)]
every_method = pytest.mark.parametrize("method", EVERY, ids=lambda method: type(method).__name__)


class Shared(nn.Module):
    """One ReLU module for everything, in place."""

    def __init__(self, act=None):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.act = act or nn.ReLU(inplace=True)
        self.head = nn.Linear(96, 4)

    def forward(self, x):
        y = self.act(self.first(x))
        y = self.act(F.max_pool2d(self.second(y) + y, 2))
        return self.head(y.flatten(1))


class Functional(Shared):
    """The same by functions."""

    def forward(self, x):
        y = F.relu(self.first(x))
        y = torch.relu_(F.max_pool2d(y + self.second(y), 2))
        return self.head(y.view(len(x), -1))


@pytest.fixture
def shared():
    return Shared().eval()


def stack(*layers):
    return nn.Sequential(*layers).double().eval()


def toy():
    """Four units of two pixels: W x = (1, 2, 3, 1), seen by a linear layer with weights v."""
    net = stack(nn.Flatten(), nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 1]]))
        net[3].weight.copy_(torch.tensor([[1.0, -1, 0.5, 3]]))
    return net, torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 1, 1, 2), torch.tensor([0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvolution"])
@pytest.mark.parametrize("kind", ["relu_net", "shared"])
def test_captum_agrees(name, kind, batch, request):
    captum = pytest.importorskip("captum.attr")
    net = request.getfixturevalue(kind)
    inputs, target = batch
    expected = getattr(captum, name)(net).attribute(inputs.clone(), target=target)
    maps = {"GuidedBackprop": GuidedBackprop, "Deconvolution": Deconvolution}[name]()(net, inputs, target)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-6)
    assert (maps - Saliency()(net, inputs, target)).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "composite"), [(GuidedBackprop(), "GuidedBackprop"), (Deconvolution(), "DeconvNet")], ids=str
)
@pytest.mark.parametrize("kind", ["relu_net", "shared"])
def test_zennit_agrees(method, composite, kind, batch, request):
    composites = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    net = request.getfixturevalue(kind)
    inputs, target = batch
    with attribution.Gradient(net, getattr(composites, composite)()) as attributor:
        _, expected = attributor(inputs.clone(), F.one_hot(target, 4).float())
    torch.testing.assert_close(method(net, inputs, target), expected, rtol=1e-5, atol=1e-6)


@every_method
def test_a_relu_is_a_relu_however_it_is_called(method, shared, batch):
    functional = Functional().eval()
    functional.load_state_dict(shared.state_dict())
    maps = method(shared, *batch)
    assert torch.equal(method(functional, *batch), maps)
    assert maps.abs().max() > 0


def test_toy_by_hand():
    net, inputs, target = toy()

    def pixels(method):
        return method(net, inputs, target).flatten().tolist()

    def cut(**fields):
        return pixels(RectifiedGradient(times_input=False, **fields))

    assert pixels(Saliency()) == [-1.5, 2.5]
    assert pixels(GuidedBackprop()) == [-1.5, 3.5]
    assert cut(threshold=0.0) == [-1.5, 3.5]
    assert cut(percentile=25) == [-2.5, 3.5]  # a g = (1, -2, 1.5, 3), so tau = 1
    assert cut(percentile=75) == [-3, 3]  # rank 2.25, so tau = 1.5
    assert cut(percentile=100) == [0, 0]
    assert cut(threshold=2.0) == [-3, 3]
    assert cut(threshold=-3.0) == [-1.5, 2.5]
    assert pixels(RectifiedGradient(percentile=75)) == [-3, 6]


def test_below_zero_the_threshold_lets_the_gradient_pass_units_that_are_off():
    net, inputs, target = toy()
    with torch.no_grad():
        net[1].weight[0] = torch.tensor([-1.0, 0.0])  # off
    maps = RectifiedGradient(percentile=0, times_input=False)(net, inputs, target)
    assert maps.flatten().tolist() == [-1 + 0.5 - 3, 0.5 + 3]  # all but the least, a g = -2
    maps = RectifiedGradient(threshold=0.0, times_input=False)(net, inputs, target)
    assert maps.flatten().tolist() == [0.5 - 3, 0.5 + 3]


def test_the_rule_by_a_slow_twin():
    """Layer by layer with sorted lists, one image after the other."""
    net = stack(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(),
                nn.Flatten(), nn.Linear(36, 3))  # fmt: skip
    inputs, target = torch.rand(4, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    maps = RectifiedGradient(percentile=70)(net, inputs, target)
    for x, c, found in zip(inputs, target, maps, strict=True):
        first = net[1](net[0](x[None]))
        second = net[3](net[2](first))
        g = net[5].weight[c].view_as(second)
        for activation, transpose in (
            (second, lambda g: F.conv_transpose2d(g, net[2].weight, stride=2, output_padding=1)),
            (first, lambda g: F.conv_transpose2d(g, net[0].weight, padding=1)),
        ):
            weighed = (activation * g).flatten()
            tau = sorted(weighed.tolist())[round((len(weighed) - 1) * 0.7)]
            g = transpose(g * (activation * g > tau))
        torch.testing.assert_close(found, (x * g)[0].detach())


@pytest.mark.parametrize("kind", ["relu_net", "shared"])
def test_threshold_zero_without_the_image_is_guided_backprop_to_the_bit(kind, batch, request):
    net = request.getfixturevalue(kind)
    rectified = RectifiedGradient(threshold=0.0, times_input=False)
    assert torch.equal(rectified(net, *batch), GuidedBackprop()(net, *batch))


@every_method
def test_an_image_is_explained_alone_as_in_a_batch(method, shared):
    shared.double()
    inputs, target = torch.rand(6, 2, 8, 8, dtype=torch.float64), torch.arange(6) % 4
    together = method(shared, inputs, target)
    alone = torch.cat([method(shared, inputs[i : i + 1], target[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


def test_higher_percentiles_leave_less(shared, batch):
    shares = [
        (RectifiedGradient(percentile=q, times_input=False)(shared, *batch) != 0).float().mean()
        for q in (50, 80, 95, 99)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("percentile", [0, 1, 37.5, 50, 98, 100])
def test_nearest_rank_is_an_element_of_the_sorted_row(percentile, dtype):
    values = torch.randn(5, 401, dtype=dtype)
    values[1] = 0
    values[2].relu_()
    values[3] = values[3].round()
    rank = round(400 * percentile / 100)
    assert torch.equal(nearest_rank(values, percentile), values.sort(dim=1).values[:, rank])


def test_where_relu6_saturates_the_gradient_stops():
    net = stack(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU6(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 0], [0, 10], [2, 1]]))
        net[3].weight.copy_(torch.tensor([[1.0, 1, 1]]))
    inputs, target = torch.tensor([0.5, 1.0], dtype=torch.float64).view(1, 1, 1, 2), torch.tensor([0])
    for method in (GuidedBackprop(), RectifiedGradient(threshold=0.0, times_input=False), Saliency()):
        assert method(net, inputs, target).flatten().tolist() == [3, 1]
    assert Deconvolution()(net, inputs, target).flatten().tolist() == [3, 11]


@pytest.mark.parametrize(
    ("layer", "masked"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, bias=False), True),
        (nn.Conv2d(1, 1, 3, padding="same", bias=False), True),
        (nn.Conv2d(1, 1, 1, bias=False), True),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False), True),
        (nn.Conv2d(1, 1, 3, bias=False), False),
        (nn.Conv2d(1, 1, 2, stride=2, padding=1, bias=False), False),
    ],
    ids=str,
)
def test_border(layer, masked):
    net = stack(layer, nn.Flatten(), nn.LazyLinear(1))
    inputs, target = torch.rand(1, 1, 6, 6, dtype=torch.float64), torch.tensor([0])
    layer = layer.double()
    net(inputs)
    maps = RectifiedGradient(mask_border=True, times_input=False)(net, inputs, target)
    points = inputs.clone().requires_grad_()
    frame = torch.zeros_like(layer(inputs))
    frame[:, :, 1:-1, 1:-1] = 1
    g = net[2].weight.view_as(frame) * (frame if masked else 1)
    (expected,) = torch.autograd.grad(layer(points), points, g)
    torch.testing.assert_close(maps, expected)
    assert torch.equal(maps, Saliency()(net, inputs, target)) is not masked


@pytest.mark.parametrize("places", [1, 2])
def test_a_border_that_is_all_there_is_leaves_nothing(places):
    net = stack(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * places**2, 2))
    maps = RectifiedGradient(mask_border=True)(
        net, torch.rand(1, 1, places, places).double(), torch.tensor([0])
    )
    assert not maps.any()


def test_redistribution_by_a_slow_twin():
    pool = MaxPool((3, 2), (2, 1), (1, 0))
    source = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    gradient = torch.randn_like(pool(source))
    padded = F.pad(source.relu(), (0, 0, 1, 1))
    expected = torch.zeros_like(padded)
    for i in range(gradient.shape[2]):
        for j in range(gradient.shape[3]):
            window = padded[:, :, 2 * i : 2 * i + 3, j : j + 2]
            share = window / (window.sum((2, 3), keepdim=True) + 6e-10)
            expected[:, :, 2 * i : 2 * i + 3, j : j + 2] += gradient[:, :, i : i + 1, j : j + 1] * share
    torch.testing.assert_close(redistributed(pool, source, gradient), expected[:, :, 1:-1])


def test_redistribution_keeps_the_sum_and_is_what_the_switch_does():
    net = stack(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 2))
    inputs, target = torch.rand(3, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 0])
    maps = RectifiedGradient(redistribute=True, times_input=False)(net, inputs, target)
    totals = net[2].weight[target].view(3, 1, 3, 3)
    torch.testing.assert_close(F.avg_pool2d(maps, 2) * 4, totals, rtol=1e-8, atol=0)
    assert (maps != 0).all()
    assert (RectifiedGradient(times_input=False)(net, inputs, target) != 0).float().mean() == 0.25


def test_without_a_relu_all_are_the_gradient():
    net = stack(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 4))
    inputs, target = torch.rand(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 3])
    for method in EVERY:
        assert torch.equal(method(net, inputs, target), Saliency()(net, inputs, target))
    assert torch.equal(RectifiedGradient()(net, inputs, target), InputXGradient()(net, inputs, target))


@pytest.mark.parametrize("percentile", [-1, 100.5, float("nan")])
def test_a_percentile_that_is_none_is_refused(percentile):
    with pytest.raises(ValueError, match=r"`percentile` must lie in \[0, 100\], got"):
        RectifiedGradient(percentile=percentile)


@every_method
@pytest.mark.parametrize(
    ("act", "call"),
    [
        (nn.GELU(), "`gelu`"),
        (nn.SiLU(), "`silu`"),
        (nn.Sigmoid(), "`sigmoid`"),
        (nn.LeakyReLU(), "a leaky ReLU"),
    ],
    ids=str,
)
def test_other_activations_are_refused_by_name(method, act, call, batch):
    name = type(method).__name__
    with pytest.raises(ValueError, match=rf"`{name}` has no rule for {call} \(layer 'act.*take .*Saliency"):
        method(Shared(act).eval(), *batch)


@every_method
def test_a_transformer_is_refused(method):
    models = pytest.importorskip("torchvision.models")
    net = models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3).eval()
    nn.init.normal_(net.heads.head.weight)
    with pytest.raises(ValueError, match="has no rule for "):
        method(net, torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))


def test_a_layer_that_does_not_reach_the_logits_does_not_matter(shared, batch):
    class Watched(nn.Module):
        def forward(self, x):
            assert torch.sigmoid(x).max() <= 1
            return shared(x)

    assert torch.equal(GuidedBackprop()(Watched().eval(), *batch), GuidedBackprop()(shared, *batch))


@pytest.mark.parametrize("method", [RectifiedGradient(percentile=80), InputXGradient()], ids=str)
@pytest.mark.parametrize("blind", [0.0, 0.5], ids=["[0, 1]", "[-1, 1]"])
def test_a_product_with_the_image_is_blind_to_one_colour(method, blind, shared, batch):
    """Exactly zero where the network sees zero, however much the patch matters (Brocki and Chung 2020).

    Pixels that are normalised within the model are 0 at another colour; the multiplication is by the pixel.
    """
    inputs, target = batch
    inputs = inputs - blind
    inputs[:, :, 2:6, 2:6] = 0
    maps = method(shared, inputs, target)[:, :, 2:6, 2:6]
    assert not maps.any()
    bare = RectifiedGradient(percentile=80, times_input=False) if "Rect" in str(method) else Saliency()
    assert (bare(shared, inputs, target)[:, :, 2:6, 2:6] != 0).float().mean() > 0.5


def test_a_shift_of_all_colours_changes_only_the_product_with_the_image():
    """x' = x + c with b' = b - W c is the same network of the same picture."""
    net = stack(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    inputs, target = torch.rand(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    pairs = [
        (RectifiedGradient(80, times_input=False), RectifiedGradient(80)),
        (Saliency(), InputXGradient()),
    ]
    before = [[method(net, inputs, target) for method in pair] for pair in pairs]
    logits = net(inputs)
    with torch.no_grad():
        net[0].bias -= 0.3 * net[0].weight.sum((1, 2, 3))
    torch.testing.assert_close(net(inputs + 0.3), logits)
    for pair, (bare, product) in zip(pairs, before, strict=True):
        torch.testing.assert_close(pair[0](net, inputs + 0.3, target), bare)
        changed = pair[1](net, inputs + 0.3, target) - product
        assert changed.norm() > 0.3 * product.norm()


NETS = ["resnet18", "resnet50", "vgg11_bn", "squeezenet1_1", "mobilenet_v2", "densenet121"]


def grown(name):
    """A network with fresh weights and batch norms that do something."""
    if name.startswith("timm/"):
        net = pytest.importorskip("timm").create_model(name[5:])
    else:
        net = pytest.importorskip("torchvision.models").get_model(name, weights=None)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETS, "timm/resnet26t"])
def test_published_networks(name):
    net = grown(name)
    inputs, target = torch.rand(2, 3, 64, 64), torch.tensor([3, 7])
    for method in (GuidedBackprop(), Deconvolution(), RectifiedGradient(percentile=50)):
        maps = method(net, inputs, target)
        assert maps.isfinite().all()
        assert maps.flatten(1).abs().amax(1).min() > 0
    silent = RectifiedGradient(threshold=0.0, times_input=False)(net, inputs, target)
    assert torch.equal(silent, GuidedBackprop()(net, inputs, target))
