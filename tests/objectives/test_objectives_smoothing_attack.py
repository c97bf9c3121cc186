"""The attack inside SmoothAdv, batches in chunks, and losses under autocast."""

import inspect
from collections import Counter

import pytest
import torch
from subjects import tiny_net
from torch import Tensor, nn

from lit_xai.evaluation.passes import Counted
from lit_xai.objectives import Objective
from lit_xai.objectives.macer import Macer
from lit_xai.objectives.smooth_adv import SmoothAdv
from lit_xai.objectives.smoothing import Consistency, GaussianAugmentation, StabilityTraining


class Seen(nn.Module):
    """A model that keeps what it is shown, and whether it was training."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: list[tuple[Tensor, bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        self.calls.append((inputs.detach().clone(), self.model[1].training))
        return logits


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(count, 2, 8, 8, dtype=torch.float64), torch.arange(count) % 4


def net() -> nn.Module:
    return tiny_net(nn.ReLU, torch.float64)


def attacked_by_hand(model, image, label, noises, epsilon, steps):
    """The released attack on one image, in eval mode, with noises of shape (m, channel, height, width)."""
    delta = torch.zeros_like(image)
    for _ in range(steps):
        delta.requires_grad_()
        probability = 0.0
        for noise in noises:
            logits = model((image + delta + noise)[None])[0]
            probability = probability + (logits - logits.max()).softmax(0)[label] / len(noises)
        (gradient,) = torch.autograd.grad(-probability.log(), delta)
        delta = delta.detach() + 2 * epsilon / steps * gradient / gradient.norm()
        delta = (image + delta).clamp(0, 1) - image
        delta = delta * min(1.0, epsilon / float(delta.norm()))
    return image + delta


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_attack_by_hand(samples, steps):
    inputs, target = batch()
    torch.manual_seed(5)
    views = SmoothAdv(0.3, 2.0, steps=steps, samples=samples).views(net(), inputs, target)
    torch.manual_seed(5)
    noise = 0.3 * torch.randn(samples * 6, 2, 8, 8, dtype=torch.float64).view(samples, 6, 2, 8, 8)
    theirs = torch.stack(
        [
            attacked_by_hand(net(), image, label, noise[:, i], 2.0, steps)
            for i, (image, label) in enumerate(zip(inputs, target, strict=True))
        ]
    )
    assert len(views) == samples
    for view, own in zip(views, noise, strict=True):
        torch.testing.assert_close(view - own, theirs, rtol=1e-9, atol=1e-9)
    lengths = (theirs - inputs).flatten(1).norm(dim=1)
    assert (lengths > 1.5).all()
    assert ((theirs == 0) | (theirs == 1)).any() or (theirs - inputs).abs().max() > 0.1


def test_every_step_and_the_update_see_the_same_noises():
    inputs, target = batch()
    model = Seen(net().train())
    SmoothAdv(0.3, 1.0, steps=3, samples=4)(model, inputs, target)
    assert len(model.calls) == 4
    copies = [images.view(4, *inputs.shape) for images, _ in model.calls]
    noise = copies[0] - inputs  # the attack starts at the images themselves
    assert abs(noise.std() - 0.3) < 0.02
    for step in copies:
        delta = step - noise - inputs
        torch.testing.assert_close(delta, delta[:1].expand_as(delta))
    assert (copies[-1] - copies[0]).abs().max() > 0.05


def test_the_attack_meets_eval_mode_and_the_update_train_mode():
    inputs, target = batch()
    model = Seen(net().train())
    SmoothAdv(0.3, 1.0, steps=2, samples=2)(model, inputs, target)
    assert [training for _, training in model.calls] == [False, False, True]
    assert int(model.model[1].num_batches_tracked) == 1


def test_the_attack_stays_in_box_and_ball_and_raises_the_loss():
    inputs, target = batch()
    inputs = inputs.round() * 0.98 + 0.01  # close to the corners
    objective = SmoothAdv(0.1, 0.5, steps=8, samples=8)
    model = net()
    noise = torch.stack(objective.views(model, inputs, target)).mean(0) - inputs  # of the mean copy
    assert noise.shape == inputs.shape
    torch.manual_seed(5)
    views = torch.stack(objective.views(model, inputs, target))
    torch.manual_seed(5)
    draws = 0.1 * torch.randn(48, 2, 8, 8, dtype=torch.float64).view_as(views)
    delta = views[0] - draws[0] - inputs
    assert (delta.flatten(1).norm(dim=1) <= 0.5 + 1e-9).all()
    assert (inputs + delta).min() > -1e-9
    assert (inputs + delta).max() < 1 + 1e-9
    raised = objective.terms(model, views.unbind(), target)["noisy_cross_entropy"]
    assert raised > 1.1 * objective.terms(model, (inputs + draws).unbind(), target)["noisy_cross_entropy"]


class Plateau(nn.Module):
    """Linear for images whose first pixel is above 1/2, constant for the others."""

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return flat[:, :4] * (flat[:, :1] > 0.5)


def test_without_a_gradient_an_image_takes_a_random_step():
    inputs = torch.full((6, 2, 8, 8), 0.5, dtype=torch.float64)
    inputs[:3, 0, 0, 0], inputs[3:, 0, 0, 0] = 0.9, 0.1
    target = torch.full((6,), 1)
    views = SmoothAdv(1e-6, 0.2, steps=1, samples=2).views(Plateau(), inputs, target)
    delta = (views[0] - inputs).flatten(1)
    assert ((delta.norm(dim=1) - 0.2).abs() < 1e-4).all()  # Gaussian steps leave the ball, and are shortened
    steered, random = delta[:3], delta[3:]
    assert (steered[:, 4:].abs() < 1e-4).all()
    assert ((random.abs() > 1e-3).sum(dim=1) > 100).all()
    similar = torch.nn.functional.normalize(random)
    assert (similar @ similar.T).triu(1).abs().max() < 0.5


def test_training_on_the_first_noise_alone():
    inputs, target = batch()
    views = []
    for all_noises in (True, False):
        torch.manual_seed(2)
        objective = SmoothAdv(0.3, 1.0, steps=2, samples=3, all_noises=all_noises)
        views.append(objective.views(net(), inputs, target))
    (first,) = views[1]
    assert torch.equal(first, views[0][0])
    counted = Counted(net())
    objective(counted, inputs, target)
    assert counted.forwards == (3 * 2 + 1) * 6


@pytest.mark.parametrize(("samples", "steps"), [(1, 1), (3, 4)])
def test_costs(samples, steps):
    model = net().train()
    reached = Counter()
    model[0].weight.register_hook(lambda gradient: reached.update(["weights"]))
    counted = Counted(model)
    inputs, target = batch()
    objective = SmoothAdv(0.3, 1.0, steps=steps, samples=samples)
    sum(objective(counted, inputs, target).values()).backward()
    assert counted.forwards == counted.backwards == samples * (steps + 1) * 6
    assert reached["weights"] == 1  # only the update goes on to the weights
    units = counted.forwards + counted.backwards + samples * 6
    assert units == samples * (2 * steps + 3) * 6


def test_the_budget_warms_up():
    inputs, target = batch()
    objective = SmoothAdv(0.3, 1.0, steps=2, samples=2, warmup=0.5)
    for progress, budget in ((0.0, 0.0), (0.125, 0.25), (0.5, 1.0), (0.9, 1.0)):
        objective.progress = progress
        counted = Counted(net())
        torch.manual_seed(5)
        view = objective.views(counted, inputs, target)[0]
        torch.manual_seed(5)
        noise = 0.3 * torch.randn(12, 2, 8, 8, dtype=torch.float64)[:6]
        lengths = (view - noise - inputs).flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, budget))
        assert counted.forwards == (24 if budget else 0)


# Chunks

CHUNKED = [
    lambda samples, chunked: Consistency(0.25, samples=samples, chunked=chunked),
    lambda samples, chunked: SmoothAdv(0.25, 0.5, samples=samples, chunked=chunked),
]


@pytest.mark.parametrize("build", CHUNKED)
def test_a_batch_is_whole_or_as_many_chunks_as_noises(build):
    inputs, target = batch(12)
    whole = build(4, False)
    assert whole.updates == 1
    assert all(
        torch.equal(a, b) for a, b in zip(whole.share(inputs, target, 0), (inputs, target), strict=True)
    )
    objective = build(4, True)
    assert objective.updates == 4
    chunks = [objective.share(inputs, target, update) for update in range(4)]
    assert [len(images) for images, _ in chunks] == [3] * 4
    assert torch.equal(torch.cat([images for images, _ in chunks]), inputs)
    assert torch.equal(torch.cat([labels for _, labels in chunks]), target)
    views = Consistency(0.25, samples=4).views(nn.Identity(), *chunks[0])
    assert sum(len(view) for view in views) == len(inputs)  # as many copies as the loader has images


@pytest.mark.parametrize("build", CHUNKED)
def test_noises_that_do_not_divide_the_batch_are_refused_in_one_line(build):
    inputs, target = batch(10)
    with pytest.raises(ValueError, match="`samples` must divide the batch") as refused:
        build(4, True).share(inputs, target, 0)
    said = str(refused.value)
    assert "got 4 for a batch of 10" in said
    assert "`data.batch_size` to a multiple of 4" in said
    assert "\n" not in said
    build(4, False).share(inputs, target, 0)


@pytest.mark.parametrize(
    ("count", "seen"), [(11, [0, 1, 2, 3, 4, 5, 6, 7]), (4, [0, 1, 2, 3]), (3, [0, 1, 2, 0]), (1, [0] * 4)]
)
def test_of_a_smaller_last_batch_the_remainder_is_dropped(count, seen):
    objective = Consistency(0.25, samples=4, chunked=True)
    inputs, target = batch(12)
    for update in range(4):
        objective.share(inputs, target, update)
    rows = torch.arange(count)
    chunks = [objective.share(inputs[:count], rows, update) for update in range(4)]
    assert torch.cat([labels for _, labels in chunks]).tolist() == seen
    assert len({len(images) for images, _ in chunks}) == 1
    assert all(torch.equal(images, inputs[labels]) for images, labels in chunks)


# Precision


@pytest.mark.parametrize(
    "objective",
    [
        GaussianAugmentation(0.25),
        StabilityTraining(0.25),
        Consistency(0.25),
        Macer(0.25, samples=3),
        SmoothAdv(0.25, 0.5, steps=2, samples=2, consistency=1.0),
    ],
    ids=repr,
)
def test_under_autocast_noise_and_losses_stay_float32(objective):
    net = tiny_net(nn.ReLU)
    inputs, target = batch()
    inputs = inputs.float()
    seen = []
    net.register_forward_hook(lambda _, images, logits: seen.append((images[0].dtype, logits.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        half = objective(net, inputs, target)
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    torch.manual_seed(0)
    full = objective(net, inputs, target)
    for name, term in half.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, full[name], rtol=0.2, atol=0.1)


@pytest.mark.parametrize(
    "objective",
    [
        StabilityTraining(0.25, weight=1.0, entropy=0.5),
        Consistency(0.25, samples=3, weight=5.0, entropy=0.1, chunked=True),
        SmoothAdv(0.25, 0.5, 3, 2, warmup=0.1, all_noises=False),
        SmoothAdv(0.25, 0.5, 3, 2, consistency=2.0, entropy=0.5, chunked=True),
        Macer(0.25, samples=4, weight=4.0, gamma=6.0, beta=8.0, deferred=0.3),
    ],
    ids=repr,
)
def test_they_have_no_weights_and_name_their_settings(objective: Objective):
    assert objective.state_dict() == {}
    twin = eval(repr(objective))
    assert repr(twin) == repr(objective)
    assert twin.updates == objective.updates
    for name in inspect.signature(type(objective)).parameters:
        assert f"{name}={getattr(twin, name)!r}" in repr(objective)
