"""Activation patterns without the image: identities, a twin by hand, the control, and a network of digits."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai import randomness
from lit_xai.attributions import FlatImage, NoiseImage, NormalImage, activation_pattern_only


def net_of(activation: nn.Module) -> nn.Module:
    """Conv, ReLU, max pool, conv, ReLU, linear, ReLU, linear, with one activation for all."""
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), activation, nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3), activation, nn.Flatten(),
        nn.Linear(32, 12), activation, nn.Dropout(), nn.Linear(12, 4),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 2, 8, 8)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1)], ids=str)
@pytest.mark.parametrize("replay_pool", [True, False])
def test_the_image_under_its_own_pattern_has_its_own_logits(activation, replay_pool, images):
    net = net_of(activation)
    found = activation_pattern_only(net, images, images, replay_pool=replay_pool)
    assert torch.equal(found, net(images))
    assert not found.requires_grad


@pytest.mark.parametrize("replay_pool", [True, False])
@torch.no_grad()
def test_against_masks_by_hand(replay_pool, images):
    net, other = net_of(nn.ReLU()), torch.rand(5, 2, 8, 8)
    found = activation_pattern_only(net, images, other, replay_pool=replay_pool)
    x, y = net[:2](images), net[:2](other)
    x, y = x.relu(), y * (x > 0)
    x, index = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    if replay_pool:
        rows = [y[n, c].flatten()[index[n, c].flatten()] for n in range(5) for c in range(6)]
        y = torch.stack(rows).view_as(x)
    else:
        y = F.max_pool2d(y, 3, 2, 1)
    for part in (net[4], nn.Sequential(nn.Flatten(), net[7])):
        x, y = part(x), part(y)
        x, y = x.relu(), y * (x > 0)
    torch.testing.assert_close(found, net[10](y))
    assert not torch.allclose(found, net(images), rtol=1e-2)


def test_a_relu6_that_is_full_stays_full(images):
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(256, 3)).eval()
    nn.init.constant_(net[0].bias, 100.0)
    torch.testing.assert_close(activation_pattern_only(net, images, 0.0), net(images).detach())


@pytest.mark.parametrize("surrogate", [0.5, 0.0, 1, FlatImage(0.3), NoiseImage(), NormalImage()], ids=repr)
@pytest.mark.parametrize("shuffled", [False, True])
def test_batch_size_and_order_do_not_matter(surrogate, shuffled, images):
    net, ids = net_of(nn.ReLU()).double(), torch.tensor([7, 3, 11, 0, 5])
    images = images.double()
    with randomness.keyed(1, ids):
        together = activation_pattern_only(net, images, surrogate, shuffled=shuffled)
    for part in (torch.tensor([3, 1, 4]), torch.tensor([2])):
        with randomness.keyed(1, ids[part]):
            alone = activation_pattern_only(net, images[part], surrogate, shuffled=shuffled)
        torch.testing.assert_close(alone, together[part])
    assert activation_pattern_only(net, images[:0], surrogate, shuffled=shuffled).shape == (0, 4)


def test_surrogate_images_are_one_for_each_or_one_for_all(images):
    net, other = net_of(nn.ReLU()), torch.rand(2, 8, 8)
    expected = activation_pattern_only(net, images, other.expand(5, 2, 8, 8))
    assert torch.equal(activation_pattern_only(net, images, other), expected)
    assert torch.equal(activation_pattern_only(net, images, other[None]), expected)
    half = activation_pattern_only(net, images, torch.full((5, 2, 8, 8), 0.5))
    assert torch.equal(activation_pattern_only(net, images), half)
    with pytest.raises(ValueError, match=r"`surrogate` must be one image for each, .* got \(3, 2, 8, 8\)"):
        activation_pattern_only(net, images, images[:3])
    with pytest.raises(ValueError, match="`surrogate` must be finite"):
        activation_pattern_only(net, images, float("nan"))


def test_the_control_keeps_how_many_are_on(images):
    """A layer of ones counts the units that are on: the same count, at other units."""
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2)).eval()
    before = net[0](images) > 0
    nn.init.zeros_(net[3].bias)
    with torch.no_grad():
        net[3].weight[0] = 1.0
        net[3].weight[1] = before[0].flatten()
    states, found = [], {}
    for shuffled in (False, True):
        probe = Constant(net)
        found[shuffled] = activation_pattern_only(probe, images, shuffled=shuffled)
        states.append(found[shuffled][:, 0])
    assert torch.equal(states[0], before.flatten(1).sum(1).to(states[0]))
    assert torch.equal(states[0], states[1])
    assert found[False][0, 1] == before[0].sum()
    assert found[True][0, 1] < before[0].sum()


class Constant(nn.Module):
    """The network; but a flat grey image is 1 in front of its ReLU."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval()
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        v = self.net[0](x)
        grey = bool((x == 0.5).all())
        return self.net[1:](v * (0.0 if grey else 1.0) + (1.0 if grey else 0.0))


class Wayward(nn.Module):
    """Goes another way where the image is flat."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        y = F.relu(F.avg_pool2d(y, 2)) if bool((x == 0.5).all()) else y
        return self.last(y.mean((2, 3)))


def test_networks_without_patterns_are_refused(images):
    for part, call in ((nn.GELU(), "gelu"), (nn.Sigmoid(), "sigmoid")):
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), part, nn.Flatten(), nn.Linear(144, 3)).eval()
        with pytest.raises(ValueError, match=rf"{call} \(layer '2'\) has no on/off states"):
            activation_pattern_only(net, images)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).eval()
    with pytest.raises(ValueError, match="needs a network with ReLUs"):
        activation_pattern_only(linear, images)
    with pytest.raises(ValueError, match="eval mode"):
        activation_pattern_only(net_of(nn.ReLU()).train(), images)
    with pytest.raises(ValueError, match="take the same way"):
        activation_pattern_only(Wayward().eval(), images)


@pytest.mark.slow
def test_patterns_of_digits_predict_and_shuffled_ones_do_not():
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(8):
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    net.eval()
    images, labels = images[1400:], labels[1400:]

    def accuracy(**options: object) -> float:
        return float((activation_pattern_only(net, images, **options).argmax(1) == labels).float().mean())

    assert accuracy(surrogate=images) > 0.9
    for replay_pool in (True, False):
        assert accuracy(surrogate=0.5, replay_pool=replay_pool) > 0.35
    assert accuracy(surrogate=0.5, shuffled=True) < 0.2
