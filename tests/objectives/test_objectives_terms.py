"""Terms of the plain objectives against hand computation."""

import pytest
import torch
from torch import Tensor, nn

from lit_xai.objectives import CrossEntropy, GaussianAugmentation, Objective


@pytest.fixture
def model() -> nn.Module:
    """With batch norm and dropout, of which one part is frozen in eval mode."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3)
    ).double()
    net[3].eval()
    return net


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return torch.rand(6, 2, 5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def by_hand(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    log = logits - logits.exp().sum(1, keepdim=True).log()
    right = log[range(len(target)), target]
    return -((1 - smoothing) * right + smoothing * log.mean(1)).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(model, data, smoothing):
    terms = CrossEntropy(label_smoothing=smoothing)(model, *data)
    assert list(terms) == ["cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], by_hand(model(data[0]), data[1], smoothing))


def test_gaussian_augmentation_adds_unclipped_noise_of_the_global_generator(model, data):
    torch.manual_seed(7)
    terms = GaussianAugmentation(sigma=0.5)(model, *data)
    torch.manual_seed(7)
    noisy = data[0] + 0.5 * torch.randn_like(data[0])
    assert noisy.min() < 0 < 1 < noisy.max()
    assert list(terms) == ["noisy_cross_entropy"]
    torch.testing.assert_close(terms["noisy_cross_entropy"], by_hand(model(noisy), data[1]))


@pytest.mark.parametrize("objective", [CrossEntropy(), GaussianAugmentation(0.1)], ids=repr)
def test_objectives_have_no_weights_of_their_own_and_name_their_settings(objective: Objective, model, data):
    assert objective.state_dict() == {}
    assert repr(eval(repr(objective))) == repr(objective)
    assert all(term.shape == () for term in objective(model, *data).values())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: CrossEntropy(label_smoothing=1.0),
            "`label_smoothing` must be at least 0 and less than 1, got 1.0",
        ),
        (lambda: CrossEntropy(label_smoothing=-0.1), "`label_smoothing` must be at least 0"),
        (lambda: GaussianAugmentation(sigma=0.0), "`sigma` must be greater than 0, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
