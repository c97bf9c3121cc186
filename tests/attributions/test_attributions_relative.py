"""RAP and RSP against loops over units and patches, closed forms, and the sum that every layer must keep."""

import dataclasses

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn
from torchvision.models import get_model

from lit_xai.attributions import relative, sectional
from lit_xai.attributions.relative import RAP
from lit_xai.attributions.sectional import RSP
from lit_xai.models import Normalized
from lit_xai.network import Addition, Affine, Tape, record

pytestmark = pytest.mark.usefixtures("float64")
NETS = [
    "resnet18",
    "mobilenet_v2",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("resnet50", "vgg11_bn", "squeezenet1_1", "densenet121")
    ),
]


def over(top, bottom):
    """The quotient, and 0 where the divisor is 0."""
    return top / bottom if bottom != 0 else 0.0


def matrix(module, shape):
    """A layer with weights as a matrix (output, input), from its answers to one-hot inputs."""
    units = torch.eye(shape.numel()).view(-1, *shape)
    return (module(units) - module(torch.zeros(1, *shape))).flatten(1).T.detach()


def activations(net, image):
    values = [image[None]]
    for module in net:
        values.append(module(values[-1]).detach())
    return values


def slow_rap(net, image, target):
    """Unit by unit, for a chain of modules."""
    values = activations(net, image)
    weighted = [i for i, module in enumerate(net) if isinstance(module, nn.Conv2d | nn.Linear)]
    relevance = torch.zeros_like(values[-1])
    relevance[0, target] = values[-1][0, target]
    for i in reversed(range(len(net))):
        module, x, y = net[i], values[i], values[i + 1]
        if i in weighted:
            w, r, flat = matrix(module, x.shape[1:]), relevance.flatten(), x.flatten()
            c = torch.zeros_like(flat)
            for j in range(len(r)):
                terms = w[j] * flat
                if i == weighted[-1]:
                    c += terms.abs() * over(r[j], terms.abs().sum())
                elif i == weighted[0]:
                    way = terms - w[j].clamp(min=0) * flat.min() - w[j].clamp(max=0) * flat.max()
                    c += way * over(r[j], way.sum())
                else:
                    positive, negative = terms.clamp(min=0), -terms.clamp(max=0)
                    c += negative * over(r[j], positive.sum() + negative.sum())
                    if isinstance(module, nn.Conv2d):
                        c += positive * over(max(r[j], 0), positive.sum())
                        c += negative * over(min(r[j], 0), negative.sum())
                    else:
                        c += positive * over(r[j], positive.sum())
            if i not in (weighted[0], weighted[-1]):
                c[c != 0] -= (c.sum() - r.sum()) / (c != 0).sum()
            relevance = c.view_as(x)
        elif isinstance(module, nn.MaxPool2d):
            winners = nn.functional.max_pool2d(x, module.kernel_size, return_indices=True)[1].flatten(2)
            relevance = torch.zeros_like(x).flatten(2).scatter(2, winners, relevance.flatten(2)).view_as(x)
        elif isinstance(module, nn.AvgPool2d):
            size = module.kernel_size
            ratio = torch.where(y != 0, relevance / (y * size**2), 0)
            relevance = x * ratio.repeat_interleave(size, 2).repeat_interleave(size, 3)
        else:
            relevance = relevance.view_as(x)
    return relevance[0]


def slow_rsp_layer(module, x, relevance):
    """C of one convolution of one image, patch by patch; the parts of x are channels by themselves."""
    (stride, _), (padding, _), size = module.stride, module.padding, module.kernel_size[0]
    padded = nn.functional.pad(x, (padding,) * 4)
    both = torch.stack([padded.clamp(min=0), -padded.clamp(max=0)])
    given, read = len(relevance) // module.groups, len(x) // module.groups
    c = torch.zeros_like(both)

    def window(begin):
        return slice(begin, begin + size)

    for sign in (1, -1):
        part = (sign * relevance).clamp(min=0)
        for o in range(len(relevance)):
            group = slice(o // given * read, (o // given + 1) * read)
            places = [
                ((r, s), (slice(None), group, window(r * stride), window(s * stride)))
                for r in range(part.shape[1])
                for s in range(part.shape[2])
            ]
            kernel = sum(part[o][place] * both[patch] for place, patch in places)
            for place, patch in places:
                shares = both[patch] * kernel
                c[patch] += sign * shares * over(part[o][place], shares.sum())
    return c.sum(0)[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]


def slow_rsp(net, image, target, last):
    """Layer by layer for a chain of modules, of which number `last` is the last ReLU with places."""
    top = activations(net, image)[last + 1].requires_grad_()
    (slope,) = torch.autograd.grad(net[last + 1 :](top)[0, target], top)
    start = top.detach() * slope.mean((2, 3), keepdim=True)
    relevance = start / start.max()
    values = activations(net, image)
    for i in reversed(range(last + 1)):
        module, x = net[i], values[i]
        if isinstance(module, nn.Conv2d) and i > 0:
            c = slow_rsp_layer(module, x[0], relevance[0])[None]
            if module.kernel_size != (1, 1):
                c = 2 * c - (c != 0) * relevance.sum() / (c != 0).sum()
            relevance = c
        elif isinstance(module, nn.Conv2d):
            w = matrix(module, x.shape[1:])
            up, down, flat = w.clamp(min=0), w.clamp(max=0), x.flatten()
            low, high = flat.min(), flat.max()
            s = relevance.flatten() / (w @ flat - (low * up).sum(1) - (high * down).sum(1))
            relevance = (flat * (w.T @ s) - low * (up.T @ s) - high * (down.T @ s)).view_as(x)
        elif isinstance(module, nn.MaxPool2d):  # as released: the share of x + 1e-9 in its maximum
            lifted = (x + 1e-9).requires_grad_()
            pooled = module(lifted)
            (slope,) = torch.autograd.grad(pooled, lifted, relevance / pooled.detach())
            relevance = (lifted * slope).detach()
    return relevance[0]


def chain(*modules):
    torch.manual_seed(1)
    net = nn.Sequential(*modules).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.05, 0.5)
    return net


def vgg_like():
    return chain(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


def signed():
    """With a convolution and a linear layer that read values of both signs, groups, a stride, and 1 x 1."""
    return chain(
        nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.Linear(5, 4), nn.Linear(4, 3),
    )  # fmt: skip


def perceptron():
    return chain(nn.Flatten(), nn.Linear(128, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def images(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(3, 2, 8, 8, generator=draw), torch.tensor([2, 0, 1])


def torchvision_net(name):
    net = get_model(name, weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return Normalized(net, (0.45, 0.45, 0.45), (0.22, 0.22, 0.22)).eval()


@pytest.fixture
def walks(monkeypatch):
    """For every walk, its steps with the message at the output and the messages at the sources."""
    seen = []
    walk = Tape.walk

    def watched(tape, seeds, rule):
        seen.append([])

        def noted(step, message):
            parts = rule(step, message)
            seen[-1].append((step, message, parts))
            return parts

        return walk(tape, seeds, noted)

    monkeypatch.setattr(Tape, "walk", watched)
    return seen


@pytest.fixture
def recorded(monkeypatch):
    """Lets a test change the layers on the tape, after the network has run."""

    def change(how):
        def altered(model, inputs):
            tape = record(model, inputs)
            steps = [dataclasses.replace(step, layer=how(step)) for step in tape.steps]
            return dataclasses.replace(tape, steps=tuple(steps))

        monkeypatch.setattr(relative, "record", altered)
        monkeypatch.setattr(sectional, "record", altered)

    return change


def sums(values):
    return values.flatten(1).sum(1)


def close(first, second, tolerance=1e-10):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance * float(second.abs().max()))


# The networks of the field


@pytest.mark.parametrize("method", [RAP(), RAP(addition="released"), RSP()], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_every_layer_of_a_network_keeps_the_sum_and_every_image_is_by_itself(method, name, walks):
    net, inputs = torchvision_net(name), torch.rand(2, 3, 64, 64)
    target = net(inputs).argmax(1)
    maps = method(net, inputs, target)
    total = method.total(net, inputs, target)
    # With terms that cancel, the released sum loses digits.
    tolerance = 1e-7 if method == RAP(addition="released") else 1e-11
    torch.testing.assert_close(sums(maps), total, rtol=tolerance, atol=0)
    carried = walks[1 if isinstance(method, RSP) else 0]
    assert len(carried) > 20
    for step, message, parts in carried:
        scale = max(float(part.abs().sum()) for part in (message, *parts))
        torch.testing.assert_close(
            sum(sums(part) for part in parts), sums(message), rtol=0, atol=1e-11 * scale, msg=step.name
        )
    close(method(net, inputs[1:], target[1:]), maps[1:], 1e-7)


# RAP


def test_rap_of_one_layer_is_the_logit_by_absolute_influence():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 1)).eval()
    net[1].weight.data = torch.tensor([[2.0, -1.0, 0.5]])
    net[1].bias.data = torch.tensor([0.5])
    image = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    close(RAP()(net, image, torch.tensor([0])).flatten(), torch.tensor([8 / 11, 8 / 11, 6 / 11]))
    net[1].bias.data -= 3  # now the logit is -1
    close(RAP()(net, image, torch.tensor([0])).flatten(), -torch.tensor([4 / 11, 4 / 11, 3 / 11]))


@pytest.mark.parametrize("make", [vgg_like, signed, perceptron])
@pytest.mark.parametrize("turned", [1, -1])
def test_rap_is_that_of_single_contributions(make, turned):
    net = make()
    net[-1].weight.data *= turned
    net[-1].bias.data *= turned
    inputs, target = images()
    expected = torch.stack([slow_rap(net, *pair) for pair in zip(inputs, target, strict=True)])
    close(RAP()(net, inputs, target), expected)
    close(sums(RAP()(net, inputs, target)), net(inputs).gather(1, target[:, None])[:, 0].detach())


def test_rap_of_linear_layers_turns_over_with_the_logit():
    net = perceptron()
    before = RAP()(net, *images())
    net[-1].weight.data *= -1
    net[-1].bias.data *= -1
    close(RAP()(net, *images()), -before)


def test_rap_starts_with_a_convolution_where_that_ends_the_network():
    net = chain(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs, target = images()
    weight = net[0].weight[target].detach()
    active = net[1](net[0](inputs))[torch.arange(3), target].detach()
    influence = (weight * inputs).abs()
    expected = (active / 64)[:, None] * influence / influence.sum(1, keepdim=True)
    assert active.any()
    close(RAP()(net, inputs, target), expected)


def test_rap_does_not_read_the_biases(recorded):
    net, batch = vgg_like(), images()
    expected = RAP()(net, *batch)

    def other_bias(step):
        if not isinstance(step.layer, Affine):
            return step.layer
        return dataclasses.replace(step.layer, bias=torch.randn_like(step.layer.bias))

    recorded(other_bias)
    assert torch.equal(RAP()(net, *batch), expected)


class Residual(nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.sign = sign

    def forward(self, x):
        x = self.stem(x).relu()
        branch = self.block(x)
        x = (x + (branch.relu() if self.sign else branch)).relu()
        return self.head(x.mean((2, 3)))


def test_rap_shares_out_a_sum_by_size_or_as_released(walks):
    net = Residual(sign=False).eval()
    for method in (RAP(), RAP(addition="released")):
        method(net, *images())
        step, message, parts = next(entry for entry in walks[-1] if isinstance(entry[0].layer, Addition))
        left, right = step.sources
        if method.addition == "absolute":
            left, right = left.abs(), right.abs()
        there = message != 0
        assert there.any()
        assert (right < 0).any() == (method.addition == "released")
        for part, term in zip(parts, (left, right), strict=True):
            close(part[there], (message * term / (left + right))[there])
            assert not part[~there].any()


def test_both_ways_to_share_out_a_sum_agree_where_nothing_cancels():
    net = Residual(sign=True).eval()
    close(RAP(addition="released")(net, *images()), RAP()(net, *images()))


def test_an_image_of_one_grey_has_a_rap_of_zeros():
    grey = torch.full((1, 2, 8, 8), 0.3)
    maps = RAP()(vgg_like(), torch.cat([grey, images()[0]]), torch.tensor([1, 2, 0, 1]))
    assert not maps[0].any()
    close(maps[1:], RAP()(vgg_like(), *images()))


def test_rap_refuses_another_way_to_add():
    with pytest.raises((ValueError, TypeCheckError), match="addition"):
        RAP(addition="signed")


# RSP


def middle():
    """Ends with a ReLU that has places, then a perceptron; of both signs, with groups, and 1 x 1 kernels."""
    return chain(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 1),
        nn.Conv2d(6, 4, 3, 2, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(),
        nn.Linear(5, 3),
    )  # fmt: skip


@pytest.mark.parametrize(("make", "last"), [(vgg_like, 4), (signed, 4), (middle, 5)])
def test_rsp_is_that_of_single_patches(make, last):
    net = make()
    inputs, target = images()
    expected = torch.stack([slow_rsp(net, *pair, last) for pair in zip(inputs, target, strict=True)])
    close(RSP()(net, inputs, target), expected)


@pytest.mark.parametrize("make", [vgg_like, signed, middle])
@pytest.mark.parametrize("way", ["_by_weights", "_by_places"])
def test_rsp_is_the_same_in_both_orders_of_its_products(make, way, monkeypatch):
    net, batch = make(), images()
    expected = RSP()(net, *batch)
    for name in ("_by_weights", "_by_places"):
        monkeypatch.setattr(sectional, name, getattr(sectional, way))
    close(RSP()(net, *batch), expected)


def test_rsp_does_not_read_the_weights_below_its_start(recorded):
    net, batch = vgg_like(), images()
    expected = RSP()(net, *batch)
    noised = []

    def noise(step):
        if step.name != "3":
            return step.layer
        noised.append(step)
        return dataclasses.replace(step.layer, raw=torch.randn_like(step.layer.raw))

    recorded(noise)
    assert torch.equal(RSP()(net, *batch), expected)
    assert len(noised) == 1
    assert not torch.equal(RAP()(net, *batch), RAP()(vgg_like(), *images(1)))


def test_rsp_of_an_image_does_not_know_the_rest_of_the_batch():
    net, (inputs, target) = vgg_like(), images()
    others = torch.cat([inputs[:1], 100 * inputs[1:]])
    close(RSP()(net, others, target)[:1], RSP()(net, inputs, target)[:1])


def test_rsp_starts_at_the_greatest_size_where_nothing_is_positive():
    net, (inputs, target) = vgg_like(), images()
    net[-1].weight.data = -net[-1].weight.data.abs()
    net[7].weight.data.abs_()
    net[7].bias.data.abs_()
    total = RSP().total(net, inputs, target)
    assert (total < -1).all()
    close(sums(RSP()(net, inputs, target)), total)


@pytest.mark.parametrize(("size", "kept"), [(1, False), (3, True)])
def test_what_comes_from_zeros_alone_is_lost_after_a_narrow_kernel_only(size, kept):
    net = chain(
        nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, size, padding=size // 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 3),
    )  # fmt: skip
    net[0].weight.data.abs_()
    net[0].bias.data.fill_(-0.01)
    net[2].bias.data.fill_(0.2)  # active also where there is nothing
    inputs, target = images()
    inputs[..., :4] = 0
    found, total = sums(RSP()(net, inputs, target)), RSP().total(net, inputs, target)
    assert torch.allclose(found, total, rtol=1e-9) is kept


def test_rsp_needs_a_relu_with_places():
    with pytest.raises(ValueError, match=r"`RSP` starts at the last ReLU .* this network has none: take a"):
        RSP()(perceptron(), *images())


# Both


class Gated(nn.Module):
    """With an activation that has no rule, before or after the last ReLU with places."""

    def __init__(self, early):
        super().__init__()
        self.early = early
        self.stem, self.body, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 3)
        self.gate = nn.GELU()

    def forward(self, x):
        x = self.stem(x)
        x = self.gate(x) if self.early else x.relu()
        x = self.body(x).relu().flatten(1)
        return self.head(x if self.early else self.gate(x))


@pytest.mark.parametrize("method", [RAP(), RSP()], ids=str)
@pytest.mark.parametrize("early", [True, False])
def test_a_layer_without_a_rule_is_refused_by_name(method, early):
    name = type(method).__name__
    with pytest.raises(ValueError, match=f"`{name}` has no rule for `gelu` \\(layer 'gate'\\): .* Saliency"):
        method(Gated(early).eval(), *images())


@pytest.mark.parametrize("method", [RAP(), RSP()], ids=str)
def test_pixels_that_are_normalised_first_are_those_of_a_network_that_reads_them_so(method):
    net, (inputs, target) = vgg_like(), images()
    mean, std = torch.tensor([0.5, 0.25]).view(2, 1, 1), torch.tensor([0.25, 0.5]).view(2, 1, 1)
    wrapped = Normalized(net, (0.5, 0.25), (0.25, 0.5)).double().eval()
    close(method(wrapped, inputs, target), method(net, (inputs - mean) / std, target))


@pytest.mark.parametrize("method", [RAP(), RSP()], ids=repr)
def test_the_layout_of_memory_does_not_matter(method):
    """Max-pools hand relevance back in channels-last; many places take RSP's way through the weights."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 5, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    ).double().eval()  # fmt: skip
    inputs, target = torch.rand(2, 3, 24, 20, dtype=torch.float64), torch.tensor([0, 3])
    expected = method(net, inputs, target)
    net.to(memory_format=torch.channels_last)
    found = method(net, inputs.contiguous(memory_format=torch.channels_last), target)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [RAP(), RSP()], ids=repr)
def test_padding_that_is_a_layer_gets_no_relevance(method):
    """As in networks that came from TensorFlow: what goes to the padding would be lost."""
    own = nn.Conv2d(3, 6, 3, padding=1)
    rest = [nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)]
    bare = nn.Conv2d(3, 6, 3)
    bare.load_state_dict(own.state_dict())
    inside = Normalized(nn.Sequential(own, *rest), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).double().eval()
    apart = Normalized(nn.Sequential(nn.ZeroPad2d(1), bare, *rest), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    inputs, target = torch.rand(2, 3, 8, 8), torch.tensor([0, 3])
    maps = method(apart.double().eval(), inputs, target)
    torch.testing.assert_close(maps, method(inside, inputs, target), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(maps.sum((1, 2, 3)), method.total(inside, inputs, target))
