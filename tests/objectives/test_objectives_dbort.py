"""DBort against its formula, its costs, and the directions that it finds in the linear case."""

import pytest
import torch
from subjects import tiny_net
from torch import Tensor, nn

from lit_xai.attacks import L2PGD
from lit_xai.evaluation.passes import Counted
from lit_xai.objectives import AdversarialTraining, CrossEntropy, Objective
from lit_xai.objectives.energy import DBort
from lit_xai.objectives.weight_perturbation import WeightPerturbed
from lit_xai.optim import BortSGD


class Twice(Objective):
    """Two passes that are differentiated, and one that is not."""

    updates = 3

    def share(self, inputs, target, update):
        return inputs + update, target

    def terms(self, model, views, target):
        with torch.no_grad():
            model(views[0] + 100)
        return {"first": model(views[0]).sum(), "second": model(2 * views[0]).mean()}


class Nothing(Objective):
    """A pass that asks for nothing."""

    def terms(self, model, views, target):
        return {"nothing": 0 * model(views[0]).sum()}


def batch() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = tiny_net(nn.ReLU, torch.float64).eval()
    return net, torch.rand(5, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize(("weight", "power"), [(1e-3, 0.1), (0.5, 1.0), (0.0, 0.3)])
def test_it_is_the_objective_less_the_energy_of_the_logits(weight: float, power: float) -> None:
    net, inputs, target = batch()
    terms = DBort(weight=weight, power=power)(net, inputs, target)
    logits = net(inputs)
    assert list(terms) == ["cross_entropy", "energy"]
    torch.testing.assert_close(terms["cross_entropy"], nn.functional.cross_entropy(logits, target))
    torch.testing.assert_close(terms["energy"], -weight * (logits**2).mean() ** power)


def test_a_value_by_hand() -> None:
    logits = nn.Linear(1, 2, bias=False).double()
    logits.weight.data = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), logits)
    ones = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    terms = DBort(weight=0.01, power=0.5)(net, ones, torch.tensor([0, 1]))
    torch.testing.assert_close(terms["energy"], torch.tensor(-0.01 * 5**0.5, dtype=torch.float64))


def test_all_passes_of_the_objective_count_that_are_differentiated() -> None:
    net, inputs, target = batch()
    terms = DBort(Twice())(net, inputs, target)
    logits = torch.cat([net(inputs), net(2 * inputs)])
    torch.testing.assert_close(terms["energy"], -1e-3 * (logits**2).mean() ** 0.1)


def test_it_follows_the_objective_inside() -> None:
    inside = AdversarialTraining(L2PGD(epsilon=0.5, steps=2))
    assert eval(repr(DBort(CrossEntropy(0.1), weight=0.2))).objective.label_smoothing == 0.1
    assert "L2PGD" in repr(DBort(inside))
    assert DBort(Twice()).updates == 3
    net, inputs, target = batch()
    assert torch.equal(DBort(Twice()).share(inputs, target, 2)[0], inputs + 2)
    counted = Counted(net)
    terms = DBort(inside)(counted, inputs, target)
    assert set(terms) == {"adversarial_cross_entropy", "energy"}
    torch.stack(list(terms.values())).sum().backward()
    assert (counted.forwards, counted.backwards) == (3 * 5, 3 * 5)  # no pass beside those of the objective


def test_weights_may_be_perturbed_around_it_but_not_inside() -> None:
    with pytest.raises(ValueError, match="put DBort inside of that"):
        DBort(WeightPerturbed(CrossEntropy()))
    net, inputs, target = batch()
    terms = WeightPerturbed(DBort())(net, inputs, target)
    torch.stack(list(terms.values())).sum().backward()
    assert set(terms) == {"cross_entropy", "energy"}
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_network_that_says_nothing_yet_can_learn() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    terms = DBort()(net, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    torch.stack(list(terms.values())).sum().backward()
    assert net[1].weight.grad.isfinite().all()
    assert net[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -0.1}, "`weight` must be at least 0, got -0.1"),
        ({"power": 0.0}, "`power` must be greater than 0, got 0.0"),
        ({"power": 1.5}, "`power` must be at most 1, got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DBort(**settings)


@pytest.mark.parametrize(("power", "weight"), [(0.1, 12.0), (1.0, 0.3)])
def test_linear_maps_come_to_span_the_principal_directions(power: float, weight: float) -> None:
    """Rows under Bort's constraint and the reward alone: the plane of the largest second moments."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q
    spread = torch.tensor([3.0, 2.0, 1.5, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2], dtype=torch.float64)
    images = (torch.randn(400, 9, dtype=torch.float64) * spread) @ turn
    principal = torch.linalg.eigh(images.T @ images).eigenvectors[:, -3:]
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3, bias=False)).double()
    objective = DBort(Nothing(), weight=weight, power=power)
    optimizer = BortSGD(net.parameters(), lr=0.2, gamma=3.0)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.997)
    target = torch.zeros(400, dtype=torch.int64)
    overlaps = []
    for _ in range(500):
        optimizer.zero_grad()
        torch.stack(list(objective(net, images.view(400, 1, 3, 3), target).values())).sum().backward()
        optimizer.step()
        decay.step()
        rows = torch.linalg.qr(net[1].weight.detach().T).Q
        overlaps.append(float((principal.T @ rows).square().sum() / 3))
    assert overlaps[0] < 0.7
    assert overlaps[-1] > 0.999
