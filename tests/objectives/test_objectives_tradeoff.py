"""TRADES, MART and logit pairing: published values, the papers step by step, gradients, modes and cost."""

import math

import pytest
import torch
import torch.nn.functional as F
from subjects import tiny_net
from torch import Tensor, nn
from torch.testing import assert_close

from lit_xai.attacks import APGD, CE, FGSM, L2, L2PGD, LeastLikely, Linf, LinfPGD, MomentumPGD
from lit_xai.attacks.nudged import NudgedPGD
from lit_xai.evaluation.passes import Counted
from lit_xai.objectives.tradeoff import AdversarialLogitPairing, Mart, Trades
from lit_xai.randomness import keys, normal

ATTACK = NudgedPGD(0.1, steps=3)
ALL = [Trades, Mart, AdversarialLogitPairing]


def images(rows: list[list[float]]) -> Tensor:
    """Images that are their own logits: the model is `nn.Flatten()`."""
    return torch.tensor(rows, dtype=torch.float64)[:, None, None]


NATURAL, ADVERSARIAL = images([[2, 0.5, -1], [0.1, 0.2, 0.3]]), images([[1, 1.5, -0.5], [0, 0.9, -0.4]])
TRUTH = torch.tensor([0, 1])


@pytest.fixture
def batch() -> tuple[nn.Module, Tensor, Tensor]:
    net = tiny_net(nn.ReLU, torch.float64).train()
    net[6].eval()  # dropout out of the way of comparisons
    return net, torch.rand(5, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])


def values(terms: dict[str, Tensor]) -> list[float]:
    return [*(float(term) for term in terms.values()), float(sum(terms.values()))]


def test_trades_golden_values():
    terms = Trades(ATTACK, beta=6.0).terms(nn.Flatten(), (NATURAL, ADVERSARIAL), TRUTH)
    assert list(terms) == ["cross_entropy", "divergence"]
    assert values(terms) == pytest.approx([0.6716270724, 6 * 0.2876155886, 2.3973206041], abs=5e-10)


def test_mart_golden_values():
    terms = Mart(ATTACK, beta=5.0).terms(nn.Flatten(), (NATURAL, ADVERSARIAL), TRUTH)
    assert list(terms) == ["boosted_cross_entropy", "weighted_divergence"]
    assert values(terms) == pytest.approx([1.3518215002, 5 * 0.1003916151, 1.8537795760], abs=5e-10)


def naive_trades(clean: Tensor, attacked: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros((), dtype=clean.dtype)
    for f, g, y in zip(clean, attacked, target, strict=True):
        p, q = f.exp() / f.exp().sum(), g.exp() / g.exp().sum()
        total = total - p[y].log() + 6.0 * sum(a * (a / b).log() for a, b in zip(p, q, strict=True))
    return total / len(clean)


def naive_mart(clean: Tensor, attacked: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros((), dtype=clean.dtype)
    for f, g, y in zip(clean, attacked, target, strict=True):
        p, q = f.exp() / f.exp().sum(), g.exp() / g.exp().sum()
        rival = max(q[k] for k in range(len(q)) if k != y)
        total = total - q[y].log() - (1.0001 - rival + 1e-12).log()
        divergence = sum(a * (a.log() - (b + 1e-12).log()) for a, b in zip(p, q, strict=True))
        total = total + 6.0 * divergence * (1.0000001 - p[y])
    return total / len(clean)


def naive_pairing(clean: Tensor, attacked: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros((), dtype=clean.dtype)
    for f, g, y in zip(clean, attacked, target, strict=True):
        total = total - 0.3 * (f.exp() / f.exp().sum())[y].log() - 0.7 * (g.exp() / g.exp().sum())[y].log()
        total = total + 2.0 * sum((a - b) ** 2 for a, b in zip(f, g, strict=True)) / len(f)
    return total / len(clean)


@pytest.mark.parametrize(
    ("objective", "naive"),
    [
        (Trades(ATTACK, beta=6.0), naive_trades),
        (Mart(ATTACK, beta=6.0), naive_mart),
        (AdversarialLogitPairing(ATTACK, weight=2.0, clean=0.3), naive_pairing),
    ],
    ids=["trades", "mart", "pairing"],
)
def test_the_loss_and_both_gradients_are_those_of_the_paper_image_by_image(objective, naive):
    draw = torch.Generator().manual_seed(1)
    views = [3 * torch.randn(7, 1, 1, 5, generator=draw, dtype=torch.float64) for _ in range(2)]
    target = torch.arange(7) % 5
    clean, attacked = (view.requires_grad_() for view in views)
    ours = sum(objective.terms(nn.Flatten(), (clean, attacked), target).values())
    theirs = naive(clean.flatten(1), attacked.flatten(1), target)
    assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, [clean, attacked]) for loss in (ours, theirs)]
    assert all(float(gradient.abs().sum()) > 0.01 for gradient in gradients[0])
    assert_close(*gradients)


def test_gradients_reach_the_weight_of_mart_and_the_first_argument_of_the_divergences():
    clean = NATURAL.clone().requires_grad_()

    def slope(objective, name):
        term = objective.terms(nn.Flatten(), (clean, ADVERSARIAL), TRUTH)[name]
        return torch.autograd.grad(term, clean)[0].flatten(1)

    p, q = (view.flatten(1).softmax(1) for view in (NATURAL, ADVERSARIAL))
    divergence = (p * (p / q).log()).sum(1, keepdim=True)
    # d KL / d f_k = p_k (log p_k / q_k - KL), d p_y / d f_k = p_y (1[k = y] - p_k), over two images
    own = p.gather(1, TRUTH[:, None])
    of_divergence = p * ((p / q).log() - divergence)
    of_weight = -own * (F.one_hot(TRUTH, 3) - p)
    assert_close(slope(Trades(ATTACK, beta=1.0), "divergence"), of_divergence / 2)
    expected = (of_divergence * (1.0000001 - own) + divergence * of_weight) / 2
    assert_close(slope(Mart(ATTACK, beta=1.0), "weighted_divergence"), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=repr)
def test_trades_ascends_the_divergence_that_a_naive_loop_ascends(norm, batch):
    net, inputs, target = batch
    objective = Trades(NudgedPGD(0.2, norm=norm, steps=4, step_size=0.07))
    torch.manual_seed(5)
    same, ours = objective.views(net, inputs, target)
    assert torch.equal(same, inputs)
    torch.manual_seed(5)
    points = inputs + 0.001 * normal(keys(inputs, "NudgedPGD"), 0, (2, 8, 8), torch.float64)
    net.eval()
    for _ in range(4):
        points = points.detach().requires_grad_()
        loss = F.kl_div(net(points).log_softmax(1), net(inputs).softmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = norm.confine(points.detach() + 0.07 * norm.steepest(gradient), inputs, 0.2)
    assert_close(ours, points)
    assert (norm.length(ours - inputs) <= 0.2 + 1e-9).all()
    assert 0 <= ours.min() <= ours.max() <= 1


@pytest.mark.parametrize(
    "attack",
    [
        NudgedPGD(0.3),
        LinfPGD(0.3, steps=5),
        LinfPGD(0.3, steps=5, restarts=2, best=True),
        MomentumPGD(0.3, steps=5, random_start=True),
        APGD(0.3, steps=10, stop_early=False),
    ],
    ids=repr,
)
def test_any_attack_with_a_loss_finds_a_divergence_larger_than_a_random_one(attack, batch):
    net, inputs, target = batch
    _, attacked = Trades(attack).views(net, inputs, target)
    net.eval()
    clean = net(inputs).softmax(1)
    random = inputs + 0.3 * torch.rand_like(inputs).sub(0.5).sign()
    found, drawn = (
        F.kl_div(net(points).log_softmax(1), clean, reduction="none").sum(1) for points in (attacked, random)
    )
    assert found.mean() > 2 * drawn.mean()
    assert ((attacked - inputs).abs() <= 0.3 + 1e-9).all()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("batch_norm", "joint", "batches"),
    [
        ("eval", False, 2),
        ("eval", True, 1),
        ("train", False, 2 + 3),
        ("train", True, 1 + 3),
        ("frozen", False, 2),
    ],
)
def test_batches_that_batch_norm_counts(kind, batch_norm, joint, batches, batch):
    net, inputs, target = batch
    kind(ATTACK, batch_norm=batch_norm, joint=joint)(net, inputs, target)
    extra = kind is Trades and batch_norm == "train"  # what the model says of the images, once
    assert int(net[1].num_batches_tracked) == batches + extra


@pytest.mark.parametrize("kind", ALL)
def test_a_joint_batch_has_joint_statistics_and_else_the_same_loss(kind, batch):
    net, inputs, target = batch
    views = inputs, (inputs + 0.1 * torch.rand_like(inputs)).clamp(0, 1)
    apart, joint = (kind(ATTACK, joint=joint) for joint in (False, True))
    assert sum(apart.terms(net, views, target).values()) != sum(joint.terms(net, views, target).values())
    net.eval()
    assert_close(apart.terms(net, views, target), joint.terms(net, views, target))


@pytest.mark.parametrize(("kind", "extra"), [(Trades, 7), (Mart, 6), (AdversarialLogitPairing, 6)])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("steps", [1, 10])
def test_the_cost_in_passes(kind, extra, joint, steps, batch):
    net, inputs, target = batch
    counted = Counted(net).train()
    total = sum(kind(NudgedPGD(0.1, steps=steps), joint=joint)(counted, inputs, target).values())
    torch.autograd.grad(total, list(net.parameters()))
    weights = 2 * 5  # a gradient of weights counts twice: images and neighbours
    assert counted.forwards + counted.backwards + weights == 5 * (2 * steps + extra)
    assert counted.backwards == 5 * (steps + 2)


@pytest.mark.parametrize("kind", ALL)
def test_the_budget_warms_up(kind, batch):
    net, inputs, target = batch
    objective = kind(ATTACK, warmup=0.5)
    objective.progress = 0.25
    _, attacked = objective.views(net, inputs, target)
    assert 0.04 < (attacked - inputs).abs().max() <= 0.05 + 1e-9


@pytest.mark.parametrize("kind", ALL)
def test_sure_models_under_autocast_give_finite_losses_and_gradients(kind):
    net = tiny_net(nn.ReLU).train()
    with torch.no_grad():
        net[7].weight.mul_(1000)  # softmax rounds to zeros and ones
    inputs, target = torch.rand(5, 2, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert net(inputs).dtype == torch.bfloat16
        terms = kind(ATTACK)(net, inputs, target)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    gradients = torch.autograd.grad(sum(terms.values()), list(net.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_pairing_can_do_without_the_cross_entropy_of_the_images(batch):
    objective = AdversarialLogitPairing(ATTACK, clean=0.0)
    terms = objective.terms(nn.Flatten(), (NATURAL, ADVERSARIAL), TRUTH)
    assert list(terms) == ["adversarial_cross_entropy", "logit_pairing"]
    assert_close(terms["adversarial_cross_entropy"], F.cross_entropy(ADVERSARIAL.flatten(1), TRUTH))
    assert float(terms["logit_pairing"]) == pytest.approx(0.5 * (1 + 1 + 0.25 + 0.01 + 0.49 + 0.49) / 6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Trades(ATTACK, beta=-1.0), "`beta` must be at least 0, got -1.0"),
        (lambda: Mart(ATTACK, beta=-1.0), "`beta` must be at least 0, got -1.0"),
        (lambda: Mart(ATTACK, beta=math.nan), "`beta` must be at least 0, got nan"),
        (lambda: AdversarialLogitPairing(ATTACK, weight=-1.0), "`weight` must be at least 0"),
        (lambda: AdversarialLogitPairing(ATTACK, clean=1.5), "`clean` must be at least 0 and at most 1"),
        (lambda: Trades(ATTACK, warmup=2.0), "`warmup` must be at least 0 and at most 1"),
        (lambda: Trades(FGSM(0.1)), "`attack` must have a `loss` that TRADES can set, got FGSM"),
        (lambda: Trades(LinfPGD(0.1, random_start=False)), "must start beside the image"),
        (lambda: Trades(MomentumPGD(0.1)), "set `random_start` of MomentumPGD"),
        (lambda: Trades(L2PGD(0.1, stop_early=True)), "unset what aims or stops L2PGD"),
        (lambda: Trades(L2PGD(0.1, aim=LeastLikely())), "unset what aims or stops L2PGD"),
        (lambda: Trades(APGD(0.1)), "unset what aims or stops APGD"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", ALL)
def test_they_say_what_they_were_built_with(kind):
    objective = kind(ATTACK, 2.0, batch_norm="frozen", joint=True, warmup=0.25)
    names = {"CE": CE, "Linf": Linf, "NudgedPGD": NudgedPGD, kind.__name__: kind}
    assert repr(eval(repr(objective), names)) == repr(objective)
    assert "2.0" in repr(objective)
    assert repr(objective).endswith("batch_norm='frozen', joint=True, warmup=0.25)")
    assert objective.state_dict() == {}
