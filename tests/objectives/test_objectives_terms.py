"""Terms against hand computation; modes, gradients and random state around an attack."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lit_xai.attacks.base import Attack
from lit_xai.models.modes import evaluating
from lit_xai.objectives import AdversarialTraining, CrossEntropy, GaussianAugmentation, Objective
from lit_xai.types import Images, Labels

SEEN: list[list[bool]] = []


@dataclass(frozen=True)
class SignStep(Attack):
    """One signed gradient step; notes the modes that it meets."""

    epsilon: float
    fails: bool = False

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        SEEN.append([module.training for module in model.modules()])
        if self.fails:
            raise RuntimeError("no neighbour")
        images = inputs.detach().requires_grad_()
        loss = nn.functional.cross_entropy(model(images), target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        return images + (self.epsilon + 0.01 * loss) * gradient.sign()  # careless: attached to the model


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
    SEEN.clear()
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


def test_adversarial_training_is_the_loss_at_the_attacked_images(model, data):
    with evaluating(model):
        attacked = SignStep(0.1)(model, *data).detach()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = by_hand(model(attacked), data[1])
    model.load_state_dict(before)
    terms = AdversarialTraining(SignStep(0.1))(model, *data)
    assert list(terms) == ["adversarial_cross_entropy"]
    torch.testing.assert_close(terms["adversarial_cross_entropy"], expected)
    assert int(model[1].num_batches_tracked) == 1
    assert terms["adversarial_cross_entropy"] > by_hand(model(data[0]), data[1])


@pytest.mark.parametrize("train_mode", [False, True])
def test_the_attack_meets_the_mode_asked_for_and_leaves_modes_as_they_were(model, data, train_mode):
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    AdversarialTraining(SignStep(0.1), train_mode_attack=train_mode)(model, *data)
    (seen,) = SEEN
    assert seen == (modes if train_mode else [False] * len(modes))
    assert [module.training for module in model.modules()] == modes
    assert int(model[1].num_batches_tracked) == (2 if train_mode else 1)


def test_modes_return_after_a_failure(model, data):
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="no neighbour"):
        AdversarialTraining(SignStep(0.1, fails=True))(model, *data)
    assert [module.training for module in model.modules()] == modes


def test_the_attack_leaves_no_gradient_behind_and_none_flows_through_it(model, data):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    total = AdversarialTraining(SignStep(0.1))(model, *data)["adversarial_cross_entropy"]
    assert all((p.grad == 3.0).all() for p in model.parameters())
    gradients = torch.autograd.grad(total, list(model.parameters()))
    model.load_state_dict(before)
    with evaluating(model):
        attacked = SignStep(0.1)(model, *data).detach()
    expected = torch.autograd.grad(by_hand(model(attacked), data[1]), list(model.parameters()))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert data[0].grad is None


@pytest.mark.parametrize(
    "objective", [CrossEntropy(), GaussianAugmentation(0.1), AdversarialTraining(SignStep(0.1))], ids=repr
)
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
