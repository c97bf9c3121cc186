"""Objectives for smoothed classifiers: published values, each equation by hand, extremes and costs."""

import math

import pytest
import torch
from subjects import tiny_net
from torch import Tensor, nn

from lit_xai.evaluation.passes import Counted
from lit_xai.objectives.macer import Macer
from lit_xai.objectives.noise import gaussian, noisy_logits, soft_cross_entropy
from lit_xai.objectives.smooth_adv import SmoothAdv
from lit_xai.objectives.smoothing import Consistency, GaussianAugmentation, StabilityTraining

# Two noises, two images, three classes.
LOGITS = torch.tensor(
    [[[2, 0.5, -1], [0.1, 0.2, 0.3]], [[1, 1.5, -0.5], [0, 0.9, -0.4]]], dtype=torch.float64
)
LABELS = torch.tensor([0, 1])


class Fixed(nn.Module):
    """Answers with these logits, whatever it is shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits.flatten(0, -2)


def of_logits(objective, logits=LOGITS, target=LABELS):
    """Its terms where the model says this of the noisy copies."""
    copies = torch.zeros(*logits.shape[:2], 1, 1, 1, dtype=logits.dtype)
    return objective.terms(Fixed(logits), copies.unbind(), target)


def close(ours: Tensor, theirs: float, digits: int = 10) -> bool:
    return abs(ours.item() - theirs) < 0.51 * 10**-digits


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(count, 2, 8, 8, dtype=torch.float64), torch.arange(count) % 4


# Published values


def test_published_values_of_consistency():
    terms = of_logits(Consistency(0.25, weight=10.0, entropy=0.5))
    assert close(terms["consistency"] + terms["entropy"], 1.2491844358)
    assert close(terms["noisy_cross_entropy"], 0.7291174663)
    parts = of_logits(Consistency(0.25, weight=1.0, entropy=1.0))
    assert close(parts["consistency"], 0.0769794348)
    assert close(parts["entropy"], 0.9587801756)


def test_published_values_of_macer():
    terms = of_logits(Macer(0.25, samples=2, weight=12.0, gamma=8.0, beta=16.0))
    assert close(2 * terms["smoothed_cross_entropy"], 1.3356744970)
    assert close(2 * terms["radius"] / 12, 1.9433586442)
    assert close(terms["smoothed_cross_entropy"] + terms["radius"], 12.3279891135)
    mild = of_logits(Macer(0.25, samples=2, weight=12.0, beta=1.0))
    assert close(2 * mild["radius"] / 12, 1.8742535786)


def test_the_attack_raises_the_mean_probability_and_the_update_the_mean_cross_entropy():
    assert close(soft_cross_entropy(LOGITS, LABELS).mean(), 0.6678372487)
    assert close(of_logits(SmoothAdv(0.25, 1.0, samples=2))["noisy_cross_entropy"], 0.7291174663)


# The primitive


def test_noise_is_of_the_level_asked_for_drawn_for_each_copy_and_unclipped():
    inputs, _ = batch(50)
    torch.manual_seed(1)
    noise = gaussian(inputs, 0.5, 4)
    assert noise.shape == (4, *inputs.shape)
    assert abs(noise.std() - 0.5) < 0.01
    flat = noise.flatten(2).flatten(0, 1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.5  # no copy repeats another
    torch.manual_seed(1)
    assert torch.equal(noise.flatten(0, 1), 0.5 * torch.randn(200, 2, 8, 8, dtype=torch.float64))
    views = Consistency(0.5).views(nn.Identity(), inputs, torch.zeros(50, dtype=torch.int64))
    assert [view.shape for view in views] == [inputs.shape] * 2
    assert views[1].min() < 0 < 1 < views[1].max()


def test_copies_keep_the_memory_format():
    inputs = torch.rand(3, 2, 8, 8).to(memory_format=torch.channels_last)
    seen = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    net.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    SmoothAdv(0.25, 0.5, steps=1, samples=4)(net, inputs, torch.zeros(3, dtype=torch.int64))
    assert [len(images) for images in seen] == [12, 12]
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in seen)
    assert not any(images.is_contiguous() for images in seen)


def test_all_copies_pass_at_once_and_come_back_by_noise():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs, _ = batch()
    noise = gaussian(inputs, 0.25, 3)
    counted = Counted(net)
    logits = noisy_logits(counted, inputs + noise)
    assert counted.forwards == 18
    for copy, answers in zip(noise, logits, strict=True):
        torch.testing.assert_close(answers, net(inputs + copy))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_are_float32_at_least(dtype):
    logits = noisy_logits(Fixed(LOGITS.to(dtype)), torch.zeros(2, 2, 1, 1, 1))
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# Each equation by hand, one noise and one image at a time


def softmax(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum()


def case(objective):
    """Terms of a real network, and its logits by noise and image, in eval mode so that images are apart."""
    net = tiny_net(nn.ReLU, torch.float64)
    inputs, target = batch()
    views = objective.views(net, inputs, target)
    terms = objective.terms(net, views, target)
    logits = [[net(image[None])[0] for image in copy] for copy in views]
    return net, terms, logits, target


def agree(net: nn.Module, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Same values, and same gradients of each."""
    assert list(ours) == list(theirs)
    for name, term in ours.items():
        torch.testing.assert_close(term, theirs[name], rtol=1e-9, atol=1e-12)
        a, b = (torch.autograd.grad(t, net.parameters(), retain_graph=True) for t in (term, theirs[name]))
        for one, other in zip(a, b, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-11)


def test_gaussian_augmentation_by_hand():
    net, terms, (logits,), target = case(GaussianAugmentation(0.25))
    losses = [-softmax(row)[label].log() for row, label in zip(logits, target, strict=True)]
    agree(net, terms, {"noisy_cross_entropy": sum(losses) / 6})


@pytest.mark.parametrize("entropy", [0.3, 2.0])
def test_stability_by_hand(entropy):
    net, terms, (clean, shaken), target = case(StabilityTraining(0.25, 2.0, entropy))
    kl = ce = h = torch.zeros(())
    for a, b, label in zip(clean, shaken, target, strict=True):
        p, q = softmax(a), softmax(b)
        ce = ce - p[label].log() / 6
        kl = kl + (p * (p / q).log()).sum() / 6
        h = h - (p * p.log()).sum() / 6
    agree(net, terms, {"cross_entropy": ce, "stability": 2 * kl, "entropy": entropy * h})
    if entropy == 2.0:  # the cross entropy of the noisy answer, as first published
        cross = sum(-(softmax(a) * softmax(b).log()).sum() for a, b in zip(clean, shaken, strict=True))
        torch.testing.assert_close(terms["stability"] + terms["entropy"], 2 * cross / 6)


def spread_by_hand(logits, target, weight, entropy):
    """Cross-entropy, divergence and entropy of Jeong and Shin, noise by noise."""
    m, ce, kl, h = len(logits), 0.0, 0.0, 0.0
    for index, label in enumerate(target):
        answers = [softmax(copy[index]) for copy in logits]
        mean = sum(answers) / m
        ce = ce + sum(-p[label].log() for p in answers) / m / 6
        kl = kl + sum((mean * (mean / p).log()).sum() for p in answers) / m / 6
        h = h - (mean * mean.log()).sum() / 6
    return {"noisy_cross_entropy": ce, "consistency": weight * kl, "entropy": entropy * h}


def test_consistency_by_hand():
    net, terms, logits, target = case(Consistency(0.25, samples=3, weight=5.0, entropy=0.3))
    agree(net, terms, spread_by_hand(logits, target, 5.0, 0.3))


def test_entropy_of_the_weight_makes_the_cross_entropy_with_the_mean_answer():
    terms = of_logits(Consistency(0.25, weight=3.0, entropy=3.0))
    mean = LOGITS.softmax(2).mean(0)
    cross = -(mean * LOGITS.log_softmax(2)).sum(2).mean()
    torch.testing.assert_close(terms["consistency"] + terms["entropy"], 3 * cross)


def test_smooth_adv_with_consistency_by_hand():
    objective = SmoothAdv(0.25, 0.5, steps=1, samples=3, consistency=2.0, entropy=0.5)
    net, terms, logits, target = case(objective)
    agree(net, terms, spread_by_hand(logits, target, 2.0, 0.5))


def macer_by_hand(logits, target, sigma, weight, gamma, beta):
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    ce, radius, counted = 0.0, 0.0, 0
    for index, label in enumerate(target):
        p = sum(softmax(copy[index]) for copy in logits) / len(logits)
        q = sum(softmax(beta * copy[index]) for copy in logits) / len(logits)
        ce = ce - (p[label] + 1e-10).log() / len(target)
        order = q.argsort(descending=True)
        gap = normal.icdf(q[order[0]]) - normal.icdf(q[order[1]])
        if order[0] == label and gap <= gamma:
            counted += 1
            radius = radius + weight * sigma / 2 * (gamma - gap) / len(target)
    return {"smoothed_cross_entropy": ce, "radius": radius}, counted


def test_macer_by_hand():
    objective = Macer(0.25, samples=3, weight=7.0, gamma=2.0, beta=0.3)
    net, _, logits, _ = case(objective)
    target = sum(torch.stack([torch.stack(c) for c in logits]).softmax(2)).argmax(1)  # right, but for two
    target[0] = (target[0] + 1) % 4
    target[1] = (target[1] + 2) % 4
    theirs, counted = macer_by_hand(logits, target, 0.25, 7.0, 2.0, 0.3)
    assert 0 < counted < 6
    stacked = torch.stack([torch.stack(copy) for copy in logits])
    agree(net, of_logits(objective, stacked, target), theirs)


# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [8.0, 1e6])
def test_macer_has_finite_gradients_wherever_probabilities_reach_0_or_1(dtype, gamma):
    # p of 0 and 1; a vanishing loser; sure and wrong; a tie; a hair's breadth from 0 and from 1; moderate.
    rows = [[500, -500, -500], [9, 3, -4], [-500, 500, 0], [1, 1, 1], [0.9, -5.5, -5.5], [0.3, 0.1, 0.0]]
    logits = torch.tensor([rows, rows], dtype=dtype).requires_grad_()
    terms = of_logits(Macer(0.25, samples=2, gamma=gamma), logits, torch.zeros(6, dtype=torch.int64))
    assert all(term.isfinite() for term in terms.values())
    assert terms["radius"] > 0
    for term in terms.values():
        (gradient,) = torch.autograd.grad(term, logits, retain_graph=True)
        assert gradient.isfinite().all()
    assert (gradient[:, 5] != 0).all()
    assert (gradient[:, 0] == 0).all()  # an infinite radius asks for nothing
    assert (gradient[:, 2] == 0).all()  # nor does a wrong answer


@pytest.mark.parametrize("objective", [Consistency(0.25), StabilityTraining(0.25, entropy=1.0)], ids=repr)
def test_divergences_have_finite_gradients_wherever_probabilities_vanish(objective):
    rows = torch.tensor([[1e4, -1e4, 0.0], [0.0, 300.0, -300.0]])
    logits = torch.stack([rows, rows.roll(1, dims=1)]).requires_grad_()
    total = sum(of_logits(objective, logits).values())
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.isfinite()
    assert gradient.isfinite().all()


def test_the_soft_cross_entropy_of_one_noise_is_the_cross_entropy_and_never_saturates():
    torch.testing.assert_close(
        soft_cross_entropy(LOGITS[:1], LABELS),
        nn.functional.cross_entropy(LOGITS[0], LABELS, reduction="none"),
    )
    logits = torch.tensor([[[-200.0, 200.0, 0.0]], [[-210.0, 200.0, 0.0]]]).requires_grad_()
    loss = soft_cross_entropy(logits, torch.tensor([0]))
    assert close(loss, 400 + math.log(2) - math.log1p(math.exp(-10)), 3)
    assert torch.autograd.grad(loss.sum(), logits)[0].abs().sum() > 1


# Over a run


def test_the_radius_is_deferred():
    objective = Macer(0.25, samples=2, deferred=0.4)
    full = of_logits(objective)["radius"]
    assert full > 0
    for progress, expected in ((0.0, 0.0), (0.39, 0.0), (0.4, full), (0.9, full)):
        objective.progress = progress
        assert float(of_logits(objective)["radius"]) == expected


# Costs: a forward pass is 1 per image, as is a backward pass to the logits; one on to the weights is 2.


@pytest.mark.parametrize(
    ("objective", "passes", "units"),
    [
        (GaussianAugmentation(0.25), 1, 3),
        (StabilityTraining(0.25), 2, 6),
        (Consistency(0.25, samples=2), 2, 6),
        (Macer(0.25, samples=16), 16, 48),
    ],
    ids=repr,
)
def test_costs(objective, passes, units):
    counted = Counted(tiny_net(nn.ReLU, torch.float64).train())
    inputs, target = batch()
    sum(objective(counted, inputs, target).values()).backward()
    assert counted.forwards == counted.backwards == passes * 6
    assert counted.forwards + 2 * counted.backwards == units * 6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StabilityTraining(0.0), "`sigma` must be greater than 0, got 0.0"),
        (lambda: StabilityTraining(0.1, weight=-1.0), "`weight` must be at least 0, got -1.0"),
        (lambda: Consistency(-0.1), "`sigma` must be greater than 0, got -0.1"),
        (lambda: Consistency(0.1, samples=1), "`samples` must be at least 2, got 1"),
        (lambda: Consistency(0.1, weight=-1.0), "`weight` must be at least 0"),
        (lambda: Consistency(0.1, entropy=-1.0), "`entropy` must be at least 0"),
        (lambda: SmoothAdv(0.0, 1.0), "`sigma` must be greater than 0"),
        (lambda: SmoothAdv(0.1, 0.0), "`epsilon` must be greater than 0, got 0.0"),
        (lambda: SmoothAdv(0.1, 1.0, steps=0), "`steps` must be at least 1"),
        (lambda: SmoothAdv(0.1, 1.0, samples=0), "`samples` must be at least 1"),
        (lambda: SmoothAdv(0.1, 1.0, warmup=1.1), "`warmup` must be at least 0 and at most 1, got 1.1"),
        (lambda: SmoothAdv(0.1, 1.0, consistency=-1.0), "`consistency` must be at least 0"),
        (lambda: SmoothAdv(0.1, 1.0, samples=1, consistency=1.0), "`consistency` needs several noises"),
        (lambda: Macer(0.0), "`sigma` must be greater than 0"),
        (lambda: Macer(0.1, weight=-1.0), "`weight` must be at least 0"),
        (lambda: Macer(0.1, gamma=0.0), "`gamma` must be greater than 0"),
        (lambda: Macer(0.1, beta=0.0), "`beta` must be greater than 0"),
        (lambda: Macer(0.1, deferred=-0.1), "`deferred` must be at least 0 and less than 1, got -0.1"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
