"""Patterns made of features: the edit by hand, the grid of lengths, the bill, and what is refused."""

import dataclasses

import pytest
import torch
from digits_net import digits, trained
from subjects import linear_case, tiny_net
from torch import nn

from lit_xai.attacks import FixedClass, RandomClass
from lit_xai.attacks.semantic import SemanticPattern
from lit_xai.models.backtracking import Backtracking
from lit_xai.network import record
from lit_xai.randomness import keyed


def by_hand(attack: SemanticPattern, net: nn.Module, image: torch.Tensor, label: int) -> torch.Tensor:
    """The pattern of one image, feature by feature, at the last ReLU of `tiny_net`."""
    hidden = net[:5](image[None]).detach().requires_grad_()
    logits = net[5:](hidden)[0]
    aim = int(logits.detach().index_fill(0, torch.tensor([int(label)]), -torch.inf).argmax())
    (gradient,) = torch.autograd.grad(logits[aim] - logits[label], hidden)
    edited = hidden.detach().clone()
    for sign in (1, -1) if attack.subtract else (1,):
        slopes = sign * gradient[0]
        peaks = [(float(plane.max()), channel) for channel, plane in enumerate(slopes)]
        for peak, channel in sorted(peaks, reverse=True)[: attack.features]:
            if peak > 0:
                size = sign * attack.strength * hidden.abs().max()
                edited[0, channel].view(-1)[slopes[channel].argmax()] += size.detach()
    tape, back = record(net, image[None]), Backtracking()
    value = tape.value("4")
    return (back(tape, value, edited[None]) - back(tape, value, hidden.detach()[None]))[0, 0]


@pytest.mark.parametrize(
    "attack",
    [
        SemanticPattern(1.0),
        SemanticPattern(1.0, features=3, strength=0.2),
        SemanticPattern(1.0, features=2, subtract=False),
    ],
    ids=str,
)
def test_the_pattern_is_the_edit_traced_back(attack):
    net = tiny_net(nn.LeakyReLU, torch.float64)
    inputs = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    pattern = attack.pattern(net, inputs, target)
    expected = torch.stack([by_hand(attack, net, *one) for one in zip(inputs, target, strict=True)])
    torch.testing.assert_close(pattern, expected)
    assert pattern.flatten(1).norm(dim=1).min() > 0


def test_of_places_with_the_same_gradient_the_one_with_the_largest_feature_is_raised():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.ones(2, 1, 1, 1))
        net[3].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    inputs = torch.rand(3, 1, 5, 5, dtype=torch.float64)
    pattern = SemanticPattern(1.0, subtract=False).pattern(net.eval(), inputs, torch.zeros(3).long())
    assert torch.equal(pattern.flatten(1).argmax(1), inputs.flatten(1).argmax(1))
    assert (pattern != 0).sum() == 3


def test_the_smallest_length_of_the_grid_that_flips_is_kept():
    case = linear_case()
    attack = SemanticPattern(0.4, steps=9, finest=0.1)
    found = attack.search(case.model, case.inputs, case.target)
    assert found.found.all()
    delta = attack.pattern(case.model, case.inputs, case.target)
    unit = delta / delta.flatten(1).norm(dim=1)[:, None, None, None]
    lengths = 0.4 * 0.1 ** (1 - torch.arange(9, dtype=torch.float64) / 8)
    torch.testing.assert_close(lengths[[0, -1]], torch.tensor([0.04, 0.4], dtype=torch.float64))
    points = (case.inputs + lengths[:, None, None, None, None] * unit).clamp(0, 1)
    flips = case.model(points.flatten(0, 1)).argmax(1).view(9, -1) != case.target
    first = flips.int().argmax(0)
    rows = torch.arange(len(first))
    torch.testing.assert_close(found.points, points[first, rows])
    torch.testing.assert_close(found.distance, (found.points - case.inputs).flatten(1).norm(dim=1))
    assert torch.equal(found.forwards, 2 + first + 1)  # the decision, the pattern, the lengths
    assert torch.equal(found.backwards, torch.ones_like(first))
    assert len(set(first.tolist())) > 1


def test_features_of_another_class_change_the_decision_of_a_trained_network():
    inputs = digits()[0][:60]
    said = trained()(inputs).argmax(1)
    found = SemanticPattern(2.5).search(trained(), inputs, said)
    assert found.found.float().mean() > 0.9
    assert found.distance[found.found].max() < 2.5 + 1e-5
    assert torch.equal(found.points[~found.found], inputs[~found.found])
    assert torch.equal(trained()(found.points).argmax(1), found.label)
    closer = SemanticPattern(0.3).search(trained(), inputs, said)
    assert closer.found.sum() < found.found.sum()


def test_an_image_of_another_class_stays_and_the_aims_of_the_others_do_too():
    inputs = digits()[0][:12]
    said = trained()(inputs).argmax(1)
    attack = SemanticPattern(2.5, aim=RandomClass())
    ids = torch.arange(12)
    with keyed(3, ids):
        alone = attack.search(trained(), inputs, said)
        wrong = said.clone()
        wrong[4] = (said[4] + 1) % 10
        found = attack.search(trained(), inputs, wrong)
    assert found.distance[4] == 0
    assert found.forwards[4] == 1
    others = ids != 4
    torch.testing.assert_close(found.points[others], alone.points[others])


def test_the_aim_is_where_the_pattern_leads():
    inputs = digits()[0][:40]
    said = trained()(inputs).argmax(1)
    attack = SemanticPattern(6.0, aim=FixedClass(3))
    found = attack.search(trained(), inputs, said)
    other = SemanticPattern(6.0, aim=FixedClass(8)).search(trained(), inputs, said)
    reached, missed = ((search.label == 3)[said != 3].float().mean() for search in (found, other))
    assert reached > 3 * missed


class Aside(nn.Module):
    """Computes something that the logits do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.aside, self.flatten, self.linear = nn.Conv2d(2, 1, 1), nn.Flatten(), nn.Linear(128, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.aside(inputs)
        return self.linear(self.flatten(inputs))


def test_what_makes_no_pattern_is_refused():
    inputs = torch.rand(2, 2, 8, 8)
    net = Aside().eval()
    target = net(inputs).argmax(1)
    with pytest.raises(ValueError, match="`layer` must lead to the logits, but 'aside' does not"):
        SemanticPattern(1.0, layer="aside")(net, inputs, target)
    bent = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(ValueError, match=r"`gelu` \(layer '1'\) has no inverse"):
        SemanticPattern(1.0)(bent.eval(), inputs, bent(inputs).argmax(1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epsilon", 0.0, "`epsilon` must be greater than 0, got 0.0"),
        ("strength", 0.0, "`strength` must be greater than 0, got 0.0"),
        ("features", 0, "`features` must be at least 1, got 0"),
        ("steps", 1, "`steps` must be at least 2, got 1"),
        ("finest", 1.5, r"`finest` must lie in \(0, 1\], got 1.5"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SemanticPattern(1.0), **{field: value})
