import torch
from subjects import tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attributions import BoundarySaliency, InputXGradient, Saliency, SmoothGrad
from lit_xai.attributions.comparison import manipulated
from lit_xai.attributions.manipulation import TopKAttack
from lit_xai.metrics.stability import Manipulability
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
