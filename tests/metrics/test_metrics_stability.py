import math
from dataclasses import dataclass

import pytest
import torch
from subjects import linear_case, tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attacks import FGSM, Attack, ClosestBoundary, LinfPGD
from lit_xai.attributions import BoundarySaliency, InputXGradient, Saliency, SmoothGrad
from lit_xai.attributions.comparison import manipulated
from lit_xai.attributions.manipulation import TopKAttack
from lit_xai.evaluation.passes import Counted
from lit_xai.memory import remembering
from lit_xai.metrics import RandomMap, RobustAccuracy
from lit_xai.metrics.sensitivity import alike
from lit_xai.metrics.stability import AttackedStability, Manipulability, approach
from lit_xai.observe import explain

IDS = torch.tensor([7, 3, 11])


def test_the_method_that_is_scored_is_the_one_attacked():
    net, inputs = tiny_net(nn.ReLU), torch.rand(3, 2, 8, 8)
    target = net(inputs).argmax(1)
    metric = Manipulability(TopKAttack(epsilon=0.1, steps=5, method=Saliency()))
    with randomness.keyed(0, IDS):
        scores = metric.named(model=net, inputs=inputs, target=target, attribution=InputXGradient())
        seen = manipulated(TopKAttack(epsilon=0.1, steps=5, method=InputXGradient()), net, inputs, target)
    for name in ("ssim", "spearman", "overlap"):
        assert torch.equal(scores[name], getattr(seen.attacked, name))
        assert torch.equal(scores[f"control_{name}"], getattr(seen.shuffled, name))
    torch.testing.assert_close(scores["slope"], seen.slope.double())
    assert metric.attack.method == Saliency()


def test_it_applies_to_methods_with_a_gradient():
    metric = Manipulability(TopKAttack(epsilon=0.1, steps=1))
    assert metric.applies(SmoothGrad())
    assert not metric.applies(SmoothGrad(base=BoundarySaliency()))


def test_it_is_logged_by_quantity_and_sees_an_attack_where_there_is_one():
    net, inputs = tiny_net(nn.ReLU), torch.rand(3, 2, 8, 8)
    metrics = {
        "manipulability": Manipulability(TopKAttack(epsilon=0.1, steps=15)),
        "blunt": Manipulability(TopKAttack(epsilon=0.1, steps=15, betas=None)),
    }
    target = net(inputs).argmax(1)
    seen = explain(net, inputs, target, {"saliency": Saliency()}, metrics, seed=0, ids=IDS).flat()
    found = {key.removeprefix("explain/saliency/"): value for key, value in seen.items()}
    assert (found["manipulability/overlap"] < found["manipulability/control_overlap"]).all()
    assert (found["manipulability/slope"] > 1e-3).all()
    assert (found["blunt/slope"] == 0).all()  # no curvature: the attack has nothing to follow


def test_a_zero_map_is_not_perfectly_robust():
    net, inputs = tiny_net(nn.ReLU), torch.rand(3, 2, 8, 8)
    nn.init.zeros_(net[-1].weight)
    metric = Manipulability(TopKAttack(epsilon=0.1, steps=2))
    with randomness.keyed(0, IDS):
        given = {"inputs": inputs, "target": net(inputs).argmax(1), "attribution": Saliency()}
        scores = metric.named(model=net, **given)
    assert all(scores[name].isnan().all() for name in scores if name != "slope")
    assert (scores["slope"] == 0).all()


@dataclass(frozen=True)
class Still(Attack):
    """Finds nothing."""

    def __call__(self, model, inputs, target):
        return inputs.clone()


def named(metric, model, inputs, target, method=None, maps=None):
    method = Saliency() if method is None else method
    maps = method(model, inputs, target) if maps is None else maps
    return metric.named(model=model, inputs=inputs, target=target, attributions=maps, attribution=method)


@pytest.fixture
def batch():
    inputs = torch.rand(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = tiny_net(nn.ReLU, torch.float64)
    with randomness.keyed(0, IDS):
        yield net, inputs, net(inputs).argmax(1)


def test_a_label_that_is_kept_is_compared_at_the_answer_of_the_attack(batch):
    attack = LinfPGD(epsilon=1e-3, steps=3)
    seen = named(AttackedStability(attack, share=0.2, window=5), *batch)
    answer = attack(*batch)
    attacked = Saliency()(batch[0], answer, batch[2])
    expected = alike(Saliency()(*batch), attacked[None], share=0.2, window=5)
    for name, scores in expected.items():
        torch.testing.assert_close(seen[name], scores)
    assert (seen["kept"] == 1).all()
    assert (seen["reach"] == 1).all()


@pytest.mark.parametrize("halvings", [0, 3, 10])
def test_a_label_that_is_lost_is_kept_up_to_the_boundary(halvings):
    """On a linear model the straight way crosses the boundary where the margin over some class is used up."""
    case = linear_case()
    attack = FGSM(epsilon=0.5)  # one step: the way to its answer is known
    seen = approach(attack, halvings, case.model, case.inputs, case.target)
    here, there = case.model(case.inputs), case.model(attack(case.model, case.inputs, case.target))
    lead, left = (logits.gather(1, case.target[:, None]) - logits for logits in (here, there))
    crossing = torch.where(left < 0, lead / (lead - left), math.inf).amin(1)
    lost = crossing < 1
    assert lost.any()
    assert torch.equal(seen.kept, ~lost)
    assert (seen.reach[lost] <= crossing[lost]).all()
    assert (seen.reach[lost] > crossing[lost] - 2.0**-halvings).all()
    assert torch.equal(case.model(seen.points).argmax(1), case.target)
    assert torch.equal(seen.points[seen.kept], attack(case.model, case.inputs, case.target)[seen.kept])


def test_without_bisection_a_lost_label_is_no_score_and_not_zero(batch):
    attack = LinfPGD(epsilon=0.05, steps=5)
    lost = batch[0](attack(*batch)).argmax(1) != batch[2]
    assert lost.any()
    for halvings in (0, 8):
        seen = named(AttackedStability(attack, halvings), *batch)
        assert torch.equal(seen["kept"], (~lost).double())
        for name in ("overlap", "spearman", "ssim"):
            assert torch.equal(seen[name].isnan(), lost & (halvings == 0))
        assert ((seen["reach"] == 1) == ~lost).all()


def test_a_map_that_is_the_same_everywhere_withstands():
    case = linear_case()
    with randomness.keyed(0, torch.arange(6)):
        for method in (Saliency(), RandomMap()):  # a control that does not look at the image among them
            metric = AttackedStability(LinfPGD(0.5), halvings=20)  # some are very close to the boundary
            seen = named(metric, case.model, case.inputs, case.target, method)
            for name in ("overlap", "spearman", "ssim"):
                torch.testing.assert_close(seen[name], torch.ones(6, dtype=torch.float64))


def test_where_nothing_moved_there_is_no_score(batch):
    seen = named(AttackedStability(Still()), *batch)
    assert all(seen[name].isnan().all() for name in ("overlap", "spearman", "ssim"))
    assert (seen["kept"] == 1).all()


def test_a_zero_map_has_no_score(batch):
    maps = torch.zeros_like(batch[1])
    seen = named(AttackedStability(LinfPGD(0.01)), *batch, maps=maps)
    assert all(seen[name].isnan().all() for name in ("overlap", "spearman", "ssim"))


def test_a_misclassified_image_keeps_the_class_that_the_model_sees(batch):
    net, inputs, target = batch
    wrong = (target + 1) % 4
    seen = approach(LinfPGD(epsilon=0.05, steps=5), 8, net, inputs, wrong)
    assert torch.equal(net(seen.points).argmax(1), target)
    # A search has nothing to find there: it answers the image itself.
    scores = named(AttackedStability(ClosestBoundary()), net, inputs, wrong)
    assert scores["overlap"].isnan().all()


def test_a_boundary_search_serves_as_attack_and_the_twin_stays_on_this_side(batch):
    net, inputs, target = batch
    seen = approach(ClosestBoundary(), 8, net, inputs, target)
    assert not seen.kept.any()
    assert (seen.reach > 0.95).all()
    assert torch.equal(net(seen.points).argmax(1), target)


def test_attack_and_bisection_cost_their_passes_once(batch):
    net, inputs, target = batch
    counted, count, steps, halvings = Counted(net).eval(), len(inputs), 5, 4
    attack = LinfPGD(epsilon=0.05, steps=steps)
    metric = AttackedStability(attack, halvings)
    maps = Saliency()(net, inputs, target)
    with remembering():
        for number, method in enumerate((Saliency(), InputXGradient(), InputXGradient()), start=1):
            named(metric, counted, inputs, target, method, maps)
            assert counted.backwards == (steps + min(number, 2)) * count
            assert counted.forwards == (steps + 1 + 1 + halvings + min(number, 2)) * count
        before = counted.forwards
        RobustAccuracy(attack).named(model=counted, inputs=inputs, target=target)
        assert counted.backwards == (steps + 2) * count  # the attack is the same, and done
        assert counted.forwards == before + 2 * count


def test_twins_have_common_draws(batch):
    seen = named(AttackedStability(LinfPGD(epsilon=1e-9, steps=1)), *batch, SmoothGrad(samples=2))
    torch.testing.assert_close(seen["spearman"], torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"halvings": -1}, "`halvings` must be at least 0"),
        ({"share": 2.0}, "`share` must lie in"),
        ({"window": 1}, "`window` must be odd"),
    ],
)
def test_settings_without_meaning_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        AttackedStability(LinfPGD(0.1), **settings)
