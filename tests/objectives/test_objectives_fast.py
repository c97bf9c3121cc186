"""Single-step adversarial training and aligned gradients, against the published procedures written out."""

from collections.abc import Callable

import pytest
import torch
from subjects import tiny_net
from torch import Tensor, nn
from torch.nn import functional as F
from units import units

from lit_xai.attacks import Linf
from lit_xai.evaluation.passes import Counted
from lit_xai.objectives.explanation import misalignment
from lit_xai.objectives.fast import FastAdversarial, GradAlign
from lit_xai.randomness import keys

TARGET = torch.tensor([0, 1, 2, 3, 0])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 2, 8, 8, dtype=torch.float64)


def cross_entropies(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, TARGET, reduction="none")


def odds(logits: Tensor) -> Tensor:
    """log(exp(CE) - 1): in eval mode its gradient has the direction of that of the cross-entropy."""
    return cross_entropies(logits).expm1().log()


def slope(
    net: nn.Module, points: Tensor, rises: Callable[[Tensor], Tensor] = cross_entropies, graph: bool = False
) -> Tensor:
    points = points.detach().requires_grad_()
    return torch.autograd.grad(rises(net(points)).sum(), points, create_graph=graph)[0]


def test_fast_adversarial_is_one_step_from_an_even_start(smooth_net, images):
    epsilon = 0.1
    torch.manual_seed(5)
    (attacked,) = FastAdversarial(epsilon).views(smooth_net, images, TARGET)
    torch.manual_seed(5)
    noise = Linf().start(keys(images, "ascend"), 0, images.shape[1:], epsilon, images.dtype)
    delta = (images + noise).clamp(0, 1) - images
    delta = (delta + 1.25 * epsilon * slope(smooth_net, images + delta).sign()).clamp(-epsilon, epsilon)
    expected = (images + delta).clamp(0, 1)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-12)
    inside = (attacked - images).abs() < 0.99 * epsilon
    assert inside.any()  # a step of 1.25 budgets does not always reach the other side
    terms = FastAdversarial(epsilon).terms(smooth_net, (attacked,), TARGET)
    torch.testing.assert_close(
        terms["adversarial_cross_entropy"], F.cross_entropy(smooth_net(expected), TARGET)
    )


@pytest.mark.parametrize(
    ("objective", "updates"),
    [
        (FastAdversarial(0.1), 1),
        (FastAdversarial(0.1, batch_norm="train"), 2),
        (FastAdversarial(0.1, batch_norm="frozen"), 1),
        (GradAlign(0.1), 1),
        (GradAlign(0.1, batch_norm="train"), 3),
        (GradAlign(0.1, batch_norm="frozen"), 1),
    ],
    ids=repr,
)
def test_batch_norm_counts_what_it_is_told_to(objective, updates, images):
    net = tiny_net(nn.ReLU, torch.float64).train()
    objective(net, images, TARGET)
    assert int(net[1].num_batches_tracked) == updates


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_grad_align_is_the_published_regulariser(mode, images):
    epsilon, beta = 0.1, 0.7

    def fresh() -> nn.Module:
        net = tiny_net(nn.Softplus, torch.float64).train()
        net[6].eval()  # dropout would draw other masks here and there
        return net

    net = fresh()
    torch.manual_seed(2)
    total = sum(GradAlign(epsilon, beta, batch_norm=mode)(net, images, TARGET).values())
    ours = torch.autograd.grad(total, list(net.parameters()))

    net = fresh()
    torch.manual_seed(2)
    net[1].train(mode == "train")
    rises = cross_entropies if mode == "eval" else odds
    at_image = slope(net, images, rises)
    delta = (1.25 * epsilon * at_image.sign()).clamp(-epsilon, epsilon)
    eta = epsilon * (2 * torch.rand_like(images) - 1)
    nearby = slope(net, images + eta, rises, graph=True)
    cosines = [(a * b).sum() / (a.norm() * b.norm()) for a, b in zip(at_image, nearby, strict=True)]
    alignment = beta * (1 - torch.stack(cosines).mean())
    other = fresh()  # running statistics that this pass moves would be seen by the backward pass of the other
    loss = F.cross_entropy(other((images + delta).clamp(0, 1)), TARGET)
    torch.testing.assert_close(total, loss + alignment, rtol=1e-10, atol=1e-12)
    for k, (part, whole) in enumerate(zip(net.parameters(), ours, strict=True)):
        (first,) = torch.autograd.grad(loss, list(other.parameters())[k], retain_graph=True)
        (second,) = torch.autograd.grad(alignment, part, retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(whole, first + second, rtol=1e-10, atol=1e-12)


def test_gradients_of_a_linear_model_of_two_classes_are_aligned_and_of_three_are_not(images):
    def term(classes: int) -> Tensor:
        net = nn.Sequential(nn.Flatten(), nn.Linear(128, classes, dtype=torch.float64))
        return GradAlign(0.5, beta=1.0)(net, images, TARGET % classes)["gradient_misalignment"]

    assert term(2).abs() < 1e-12  # all gradients are multiples of w_1 - w_0
    assert term(3) > 1e-4


def test_cosines_know_no_scale_and_leave_out_what_has_no_direction():
    first = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])[:, None, None].requires_grad_()
    second = torch.tensor([[4.0, 3.0], [1.0, 1.0], [0.0, 2.0]])[:, None, None]
    value = misalignment(first, second)
    torch.testing.assert_close(value, torch.tensor((1 - 0.96 + 1 - 0) / 2))
    torch.testing.assert_close(misalignment(1e-30 * first, 1e30 * second), value)
    (gradient,) = torch.autograd.grad(value, first)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()
    assert misalignment(torch.zeros_like(first), second) == 0


def test_the_budget_warms_up(images):
    net = tiny_net(nn.ReLU, torch.float64)
    for objective in (FastAdversarial(0.1, warmup=0.5), GradAlign(0.1, warmup=0.5)):
        for progress, epsilon in ((0.0, 0.001), (0.25, 0.05), (0.5, 0.1), (1.0, 0.1)):
            objective.progress = progress
            attacked, *others = objective.views(net, images, TARGET)
            assert (attacked - images).abs().max() == pytest.approx(epsilon)
            if others:
                assert 0.9 * epsilon < (others[0] - images).abs().max() <= epsilon


@pytest.mark.parametrize(
    ("objective", "forwards", "backwards", "cost"),
    [(FastAdversarial(0.1), 2, 2, 5), (GradAlign(0.1), 3, 4, 11)],
    ids=repr,
)
def test_cost(objective, forwards, backwards, cost, images):
    model = Counted(tiny_net(nn.ReLU, torch.float64))
    sum(objective(model, images, TARGET).values()).backward()
    assert (model.forwards, model.backwards) == (forwards * 5, backwards * 5)
    assert cost - 0.7 < units(objective) <= cost


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FastAdversarial(0.0), "`epsilon` must be greater than 0, got 0.0"),
        (lambda: FastAdversarial(0.1, step_size=-0.1), "`step_size` must be greater than 0, got -0.1"),
        (lambda: GradAlign(-1.0), "`epsilon` must be greater than 0, got -1.0"),
        (lambda: GradAlign(0.1, beta=-0.2), "`beta` must be at least 0, got -0.2"),
        (lambda: GradAlign(0.1, warmup=2.0), "`warmup` must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
