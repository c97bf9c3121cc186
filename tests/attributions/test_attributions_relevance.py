"""Relevance carried through networks, against zennit, identities and conservation."""

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from subjects import Recorder
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lit_xai.attributions import rules
from lit_xai.attributions.base import keep_graph
from lit_xai.attributions.gradient import InputXGradient
from lit_xai.attributions.relevance import COMPOSITES, LRP
from lit_xai.attributions.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from lit_xai.models import Normalized

pytestmark = pytest.mark.usefixtures("float64")
every_composite = pytest.mark.parametrize("name", COMPOSITES)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SURE = LRP(WSquare(), Epsilon(0), bias="ignore")  # rules that conserve whatever the network is


def agree(first, second, tolerance=1e-9):
    scale = second.abs().max()
    torch.testing.assert_close(first / scale, second / scale, rtol=0, atol=tolerance)


class Wired(nn.Module):
    """Residual and dense connections, pools, and a ReLU that is used everywhere."""

    def __init__(self, bias=True, groups=2):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=bias)
        self.side = nn.Conv2d(4, 2, 1, bias=bias)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, 5, bias=bias))

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = self.pool(self.relu(self.inner(x) + x))
        x = torch.cat([self.relu(self.side(x)), x], 1)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def wired():
    return Wired().eval()


@pytest.fixture
def photos():
    return torch.rand(3, 3, 8, 8), torch.tensor([0, 4, 2])


def chain(*, norms=False, bias=True):
    """Modules one after the other, which zennit can follow; the activations are of the order of one."""

    def norm(channels):
        if not norms:
            return []
        made = nn.BatchNorm2d(channels)
        for values, low, high in (("running_mean", -1, 1), ("running_var", 0.5, 1.5), ("weight", 0.5, 1.5)):
            getattr(made, values).data.uniform_(low, high)
        nn.init.uniform_(made.bias, -1, 1)
        return [made]

    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=bias), *norm(6), nn.ReLU()),
        nn.MaxPool2d(2),
        *(nn.Conv2d(6, 8, 3, stride=2, groups=2, padding=1, bias=bias), *norm(8), nn.ReLU(inplace=True)),
        nn.AvgPool2d(2),
        *(nn.Flatten(), nn.Linear(8, 7, bias=bias), nn.ReLU(), nn.Dropout(), nn.Linear(7, 5, bias=bias)),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return net.eval()


def fused(net):
    """The chain with its batch norms folded by torch."""
    parts = list(copy.deepcopy(net))
    for k, part in reversed(list(enumerate(parts))):
        if isinstance(part, nn.BatchNorm2d):
            parts[k - 1 : k + 1] = [fuse_conv_bn_eval(parts[k - 1], part)]
    return nn.Sequential(*parts).eval()


def zennits(name, net, inputs, target, *, ignore=False, low=0.0, high=1.0, canonizers=()):
    """The map of the composite of that name in zennit."""
    zennit = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    bounds = {"low": low, "high": high} if name == "epsilon_gamma_box" else {}
    zero = "bias" if ignore else None
    composite = zennit.COMPOSITES[name](zero_params=zero, canonizers=list(canonizers), **bounds)
    with attribution.Gradient(model=net, composite=composite) as attributor:
        own = nn.functional.one_hot(target, 1000 if canonizers else 5)
        return attributor(inputs, lambda logits: logits * own)[1].detach()


@every_composite
@pytest.mark.parametrize("bias", ["absorb", "ignore"])
def test_composites_are_zennits(name, bias, photos, monkeypatch):
    monkeypatch.setattr(rules, "STABILISER", 1e-6)  # zennit's
    net, (inputs, target) = chain(), photos
    maps = replace(COMPOSITES[name], bias=bias)(net, inputs, target)
    agree(maps, zennits(name, net, inputs, target, ignore=bias == "ignore"), 1e-6)


@every_composite
def test_a_smaller_stabiliser_changes_little(name, photos):
    net, (inputs, target) = chain(), photos
    agree(COMPOSITES[name](net, inputs, target), zennits(name, net, inputs, target), 1e-4)


@every_composite
def test_batch_norms_are_part_of_their_convolution(name, photos, monkeypatch):
    monkeypatch.setattr(rules, "STABILISER", 1e-6)
    net, (inputs, target) = chain(norms=True), photos
    maps = COMPOSITES[name](net, inputs, target)
    agree(maps, COMPOSITES[name](fused(net), inputs, target), 1e-12)
    agree(maps, zennits(name, fused(net), inputs, target), 1e-6)


@every_composite
def test_normalisation_in_front_passes_relevance_on_and_moves_the_box(name, photos, monkeypatch):
    monkeypatch.setattr(rules, "STABILISER", 1e-6)
    net, (inputs, target) = chain(), photos
    normalized = Normalized(net, MEAN, STD).eval()
    maps = COMPOSITES[name](normalized, inputs, target)
    mean, std = normalized.mean.double(), normalized.std.double()
    bounds = {"low": (0 - mean[None]) / std, "high": (1 - mean[None]) / std}
    agree(maps, zennits(name, net, (inputs - mean) / std, target, **bounds), 1e-6)


@every_composite
def test_a_batch_norm_that_stands_alone_passes_relevance_on(name, photos, monkeypatch):
    monkeypatch.setattr(rules, "STABILISER", 1e-6)
    plain, (inputs, target) = chain(norms=True), photos
    order = [0, 2, 1, 3, 4, 6, 5, 7, 8, 9, 10, 11, 12]  # behind the ReLU: what follows reads both signs
    net = nn.Sequential(*(plain[k] for k in order)).eval()
    net[5].inplace = False
    assert net[:3](inputs).min() < 0
    agree(COMPOSITES[name](net, inputs, target), zennits(name, net, inputs, target), 1e-6)


@pytest.mark.parametrize("join", ["sum", "cat"])
def test_shorter_ways_are_taken_only_where_nothing_can_be_negative(join, photos):
    class Joined(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor, self.first, self.last = factor, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(8 if join == "cat" else 4, 5)

        def forward(self, x):
            x = self.first(x).relu()
            x = torch.cat([x, self.last(x)], 1) if join == "cat" else x + self.last(x)
            x = x if self.factor is None else x * self.factor
            return self.head(nn.functional.avg_pool2d(x, 6).flatten(1))

    near, far = Joined(None).eval(), Joined(1.0).eval()  # a product with a constant may turn the sign
    far.load_state_dict(near.state_dict())
    method = LRP(ZPlus(), AlphaBeta())
    torch.testing.assert_close(method(near, *photos), method(far, *photos))


@pytest.mark.slow
@every_composite
def test_resnet_is_zennits(name):
    canonizer = pytest.importorskip("zennit.torchvision").ResNetCanonizer
    net, inputs = prepared("resnet18"), torch.rand(2, 3, 64, 64)
    target = torch.tensor([3, 500])
    maps = COMPOSITES[name](net, inputs, target)
    expected = zennits(name, copy.deepcopy(net), inputs, target, canonizers=[canonizer()])
    assert (maps - expected).norm() < 1e-3 * expected.norm()


def prepared(name):
    """A torchvision network with statistics that fit it, so that no layer is dead."""
    net = torchvision.models.get_model(name, weights=None).float().train()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            part.reset_running_stats()
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.1)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.normal_(part.bias, 0, 0.1)
    net.apply(lambda part: part.eval() if isinstance(part, nn.Dropout) else part)
    with torch.no_grad():
        net(torch.rand(8, 3, 64, 64, dtype=torch.float32))
    return net.double().eval()


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        "mobilenet_v2",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("resnet18", "resnet50", "vgg11_bn", "densenet121")
        ),
    ],
)
def test_networks_conserve_their_logit(name):
    net, inputs = prepared(name), torch.rand(2, 3, 64, 64)
    target = net(inputs).argmax(1)
    methods = [SURE]
    if name != "mobilenet_v2":  # in a depthwise convolution many outputs have no positive contribution
        methods += [LRP(ZPlus(), Epsilon(0), Flat(), "ignore"), LRP(Gamma(), Epsilon(0), ZBox(), "ignore")]
    for method in methods:
        maps, logit = method(net, inputs, target).flatten(1), method.total(net, inputs, target)
        mass = torch.maximum(maps.abs().sum(1), logit)
        assert ((maps.sum(1) - logit).abs() < 1e-6 * mass).all()
        assert mass.isfinite().all()
        if isinstance(method.convolution, ZPlus):
            torch.testing.assert_close(maps.sum(1), logit, rtol=1e-6, atol=0)


@pytest.mark.parametrize("convolution", [ZPlus(), Gamma(), Flat(), WSquare(), Epsilon(0)], ids=repr)
@pytest.mark.parametrize("linear", [Epsilon(1e-9), ZPlus()], ids=repr)
def test_a_chain_conserves_the_logit_at_every_cut(convolution, linear, photos):
    net, inputs = chain(), photos[0]
    target = net(inputs).argmax(1)
    for k in range(3):  # each image by itself: sums of three could hide what is lost
        one = inputs[k : k + 1], target[k : k + 1]
        method = LRP(convolution, linear, bias="ignore")
        logit = method.total(net, *one).item()
        cuts = method.rules(net, *one).layers
        assert len(cuts) == 11
        assert [cut.relevance for cut in cuts] == pytest.approx([logit] * 11, rel=1e-5)


def test_biases_take_their_share(photos):
    net, (inputs, target) = chain(), photos
    method = LRP()
    cuts = [cut.relevance for cut in method.rules(net, inputs[:1], target[:1]).layers]
    logit = method.total(net, inputs[:1], target[:1]).item()
    assert cuts[-1] == pytest.approx(logit, rel=1e-12)
    assert abs(cuts[0] - logit) > 0.02 * abs(logit)


def test_epsilon_is_input_times_gradient(wired, photos):
    inputs, target = photos
    maps = LRP(Epsilon(0), Epsilon(0))(wired, inputs, target)
    # The rule of a sum and of a mean has a stabiliser.
    agree(maps, InputXGradient()(wired, inputs, target), 1e-6)
    kept = maps.flatten(1).sum(1) / wired(inputs).gather(1, target[:, None])[:, 0]
    assert (kept - 1).abs().min() > 0.05, "the biases are not conserved"


def test_epsilon_on_a_chain_is_input_times_gradient_to_the_last_digits(photos):
    net = nn.Sequential(*chain()[:5], nn.Flatten(), nn.Linear(32, 7), nn.ReLU(), nn.Linear(7, 5)).eval()
    agree(LRP(Epsilon(0), Epsilon(0))(net, *photos), InputXGradient()(net, *photos), 1e-13)


def test_without_biases_everything_is_input_times_gradient_and_conserved(photos):
    net, (inputs, target) = Wired(bias=False).eval(), photos
    maps = LRP(Epsilon(0), Epsilon(0))(net, inputs, target)
    agree(maps, InputXGradient()(net, inputs, target), 1e-6)
    torch.testing.assert_close(maps.flatten(1).sum(1), LRP().total(net, inputs, target), rtol=1e-6, atol=1e-9)
    both = [
        replace(COMPOSITES["epsilon_plus"], bias=bias)(net, inputs, target) for bias in ("absorb", "ignore")
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize("rule", [Flat(), WSquare()], ids=repr)
def test_rules_that_look_at_weights_alone_draw_the_same_map_of_every_image(rule):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 2), nn.Flatten(), nn.Linear(45, 2)).eval()
    inputs, target = torch.rand(4, 3, 6, 6), torch.zeros(4, dtype=torch.int64)
    maps = LRP(rule, rule, bias="ignore")(net, inputs, target)
    shapes = maps / maps.sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(shapes, shapes[:1].expand_as(shapes))


@every_composite
def test_maps_can_be_differentiated(name, wired, photos):
    inputs, target = photos[0][:2, :, :6, :6], photos[1][:2]
    method, weight = COMPOSITES[name], torch.randn(2, 3, 6, 6)
    points, step = inputs.clone().requires_grad_(), 1e-6 * torch.randn_like(inputs)
    with keep_graph():
        (slope,) = torch.autograd.grad((method(wired, points, target) * weight).sum(), points)
    ahead, behind = (method(wired, inputs + s * step, target) for s in (1, -1))
    expected = ((ahead - behind) / 2 * weight).sum()
    torch.testing.assert_close((slope * step).sum(), expected, rtol=1e-5, atol=1e-14)
    assert slope.abs().max() > 1e-4


def test_first_is_every_layer_that_reads_the_images():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.last, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            x = torch.cat([x[:, :1] * 2, 1 - x[:, 1:]], 1)
            x = (self.fine(x) + self.coarse(nn.functional.pad(x, (1, 0)))[..., 1:]).relu()
            return self.head(self.last(x).mean((2, 3)))

    net, inputs = Two().eval(), torch.rand(2, 3, 6, 6)
    target = torch.tensor([1, 2])
    table = COMPOSITES["epsilon_gamma_box"].rules(net, inputs, target)
    named = {row.name: row.rule for row in table.layers if row.kind in ("Convolution", "Linear")}
    box = "ZBox(low=0.0, high=1.0)"
    assert named == {
        "fine": box,
        "coarse": box,
        "last": "Gamma(gamma=0.25)",
        "head": "Epsilon(epsilon=1e-06)",
    }


def test_the_table_can_be_read(wired, photos):
    text = str(LRP(first=Flat()).rules(wired, photos[0][:1], photos[1][:1]))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "kind", "rule", "relevance"]
    assert lines[1].split()[0] == "images"
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["stem", "Convolution", "Flat()"],
        ["relu", "Rectifier", "pass"],
        ["inner", "Convolution", "ZPlus()"],
    ]
    logit = wired(photos[0][:1])[0, photos[1][0]].item()
    assert float(lines[-1].split()[-1]) == pytest.approx(logit, rel=1e-5)
    assert len({len(line) for line in lines}) == 1


def test_the_map_is_that_of_the_table(wired, photos):
    table = LRP().rules(wired, *photos)
    assert table.layers[0].relevance == pytest.approx(LRP()(wired, *photos).sum().item())
    assert LRP().rules(wired, *photos) == table


def test_one_forward_pass(wired, photos):
    counted = Recorder(wired)
    LRP()(counted, *photos)
    assert counted.calls == [3]


def test_leaky_and_capped_rectifiers_pass_relevance_on(photos):
    inputs, target = photos
    for activation in (nn.ReLU6(), nn.LeakyReLU(0.3), nn.Hardtanh(0, 2)):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Flatten(), nn.Linear(144, 5)).eval()
        maps = replace(SURE, linear=ZPlus())(net, inputs, target)
        torch.testing.assert_close(maps.sum((1, 2, 3)), SURE.total(net, inputs, target), rtol=1e-6, atol=1e-9)


def test_what_has_no_rule_is_refused_by_name(photos):
    net = torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=5).eval()
    with pytest.raises(ValueError, match=r"`LRP` has no rule for `\w+` \(layer '.+'\): take a method"):
        LRP()(net, *photos)
    gelu = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    with pytest.raises(ValueError, match=r"`LRP` has no rule for `gelu` \(layer '1'\)"):
        LRP().rules(gelu, *photos)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: LRP(convolution=ZBox()), "`convolution` must be a rule without bounds"),
        (lambda: LRP(linear=ZBox()), "`linear` must be a rule without bounds"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_composites_are_values_with_a_short_spelling():
    assert COMPOSITES["epsilon_plus"] == LRP()
    assert COMPOSITES["epsilon_gamma_box"] == LRP(Gamma(), first=ZBox())
    for method in COMPOSITES.values():
        assert eval(repr(method), {**vars(rules), "LRP": LRP}) == method
