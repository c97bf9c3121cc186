"""NeFLAG: closed forms on linear and quadratic scores, a slow twin, its limit, its count of points."""

import math

import numpy
import pytest
import scipy.stats
import torch
from subjects import Recorder, linear_case
from torch import Tensor, nn

from benchmarks.passes import Meter
from lit_xai import randomness
from lit_xai.attacks.norms import L2, Linf
from lit_xai.attributions.flux import NegativeFlux
from lit_xai.attributions.gradient import Saliency
from lit_xai.attributions.score import Logit, Margin, Probability
from lit_xai.memory import remembering


class Bowl(nn.Module):
    """f_0(x) = -x.H x / 2, f_1 = 0."""

    def __init__(self, hessian: Tensor) -> None:
        super().__init__()
        self.hessian = hessian

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        value = -((x @ self.hessian) * x).sum(1) / 2
        return torch.stack([value, torch.zeros_like(value)], dim=1)


class Sure(nn.Module):
    """A linear classifier with logits of about +-`size` on images near 0.5."""

    def __init__(self, size: float, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.randn(3, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.weight = weight.to(dtype)
        self.bias = (torch.tensor([size, 0.0, -size]) - weight.sum(1) / 2).to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) @ self.weight.T + self.bias


def test_linear_descent_gives_the_squares_in_l2_and_the_magnitudes_in_linf():
    case = linear_case()
    weight = case.weight[case.target]
    cube = NegativeFlux(points=3, steps=1, score=Logit())(case.model, case.inputs, case.target)
    torch.testing.assert_close(cube, (weight.abs() / math.sqrt(50)).view_as(cube))
    for eta, steps, tolerance in ((0.5, 20, 2e-3), (0.5, 60, 1e-9), (9.0, 12, 1e-10)):
        ball = NegativeFlux(points=3, steps=steps, norm=L2(), score=Logit(), eta=eta)
        maps = ball(case.model, case.inputs, case.target)
        squares = weight.square() / weight.norm(dim=1, keepdim=True)
        torch.testing.assert_close(maps, squares.view_as(maps), rtol=0, atol=tolerance)
    # Both rank the pixels as the magnitude of the gradient does.
    order = weight.abs().argsort(dim=1)
    assert torch.equal(cube.flatten(1).argsort(dim=1), order)
    assert torch.equal(maps.flatten(1).argsort(dim=1), order)


def test_random_points_on_a_linear_score_have_the_known_mean():
    case = linear_case()
    method = NegativeFlux(points=40_000, steps=0, norm=L2(), score=Logit(), chunk=20_000)
    inputs, target = case.inputs[:1], case.target[:1]
    with randomness.keyed(3, torch.arange(1)):
        maps = method(case.model, inputs, target)
        accepted = method.accepted(case.model, inputs, target)
    weight = case.weight[target[0]]
    # Mean length of one coordinate of a unit vector.
    reach = math.gamma(25) / (math.sqrt(math.pi) * math.gamma(25.5))
    mean = weight.square() / weight.norm() * reach / 2
    ours = (maps * accepted / method.points).flatten()
    assert float(accepted) / method.points == pytest.approx(0.5, abs=0.01)
    assert float(ours.sum()) == pytest.approx(float(mean.sum()), rel=0.02)
    # In one coordinate a draw has a variance of at most w_i^2 / n.
    error = (ours - mean).abs() / (weight.abs() / math.sqrt(50 * method.points))
    assert error.max() < 4
    assert error.square().mean() < 1
    # The maps themselves are the mean over the points that are accepted.
    assert float(maps.sum()) == pytest.approx(2 * float(mean.sum()), rel=0.02)


def test_random_points_in_a_quadratic_sink_are_all_accepted_and_give_the_diagonal():
    root = torch.randn(8, 8, dtype=torch.float64)
    hessian = root @ root.T
    net = Bowl(hessian).eval()
    inputs, target = torch.zeros(1, 2, 2, 2, dtype=torch.float64), torch.tensor([0])
    method = NegativeFlux(
        points=100_000, steps=0, radius=0.3, norm=L2(), score=Logit(), clip=False, chunk=50_000
    )
    with remembering():
        maps = method(net, inputs, target)
        accepted = method.accepted(net, inputs, target)
    assert accepted.tolist() == [100_000]
    expected = 0.3 * hessian.diagonal() / 8
    torch.testing.assert_close(maps.flatten(), expected, rtol=0.03, atol=0)


def test_where_no_point_is_accepted_the_map_is_zero_and_the_count_says_so():
    source = Bowl(-torch.eye(8, dtype=torch.float64)).eval()  # gradients point outwards everywhere
    inputs, target = torch.zeros(2, 2, 2, 2, dtype=torch.float64), torch.tensor([0, 0])
    method = NegativeFlux(points=4, steps=2, norm=L2(), score=Logit(), clip=False)
    assert torch.equal(method(source, inputs, target), torch.zeros_like(inputs))
    assert method.accepted(source, inputs, target).tolist() == [0, 0]
    sink = Bowl(torch.eye(8, dtype=torch.float64)).eval()
    assert method.accepted(sink, inputs, target).tolist() == [4, 4]


def slow(method: NegativeFlux, net: nn.Module, image: Tensor, label: int, starts: Tensor):
    """The sum for one image, point by point, with the softmax written out; the mean and the count."""

    def gradient(point):
        point = point.detach().requires_grad_()
        return torch.autograd.grad(net(point[None]).softmax(1)[0, label], point)[0]

    total, count = torch.zeros_like(image), 0
    for start in starts:
        u = start.sign() if method.norm == Linf() else start / start.norm()
        point = (image + method.radius * u).clamp(0, 1)
        for _ in range(method.steps):
            g = gradient(point)
            if method.norm == Linf():
                u = -g.sign()
            else:
                u = u - method.eta * g / g.norm()
                u = u / u.norm()
            point = (image + method.radius * u).clamp(0, 1)
        outward = (point - image) / (point - image).norm()
        g = gradient(point)
        if (g * outward).sum() < 0:
            total, count = total - g * outward, count + 1
    return total / max(count, 1), count


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_loop_over_images_and_points_gives_the_same_maps_and_counts(norm, steps, smooth_net):
    radius = 0.3 if norm == Linf() else 2.0
    method = NegativeFlux(points=6, steps=steps, radius=radius, norm=norm, chunk=5)
    inputs = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    inputs[0] = inputs[0].round()  # at the box, half of the steps are clipped
    target = smooth_net(inputs).argmax(1)
    with randomness.keyed(5, torch.arange(3)):
        keys = randomness.keys(inputs, "negative_flux")
        maps = method(smooth_net, inputs, target)
        accepted = method.accepted(smooth_net, inputs, target)
    for i in range(3):
        starts = torch.cat(
            [randomness.normal(keys[i : i + 1] + j, 0, (2, 8, 8), torch.float64) for j in range(6)]
        )
        expected, count = slow(method, smooth_net, inputs[i], int(target[i]), starts)
        torch.testing.assert_close(maps[i], expected, rtol=1e-9, atol=1e-14)
        assert int(accepted[i]) == count
    if steps == 0:
        assert accepted.min() < 6  # some are rejected, or the test shows nothing
    if steps == 3:
        assert accepted.tolist() == [6, 6, 6]


def test_the_map_adds_up_to_the_inward_flux_and_so_to_no_less_than_zero(relu_net, batch):
    for score in (Logit(), Margin(), Probability()):
        for steps in (0, 2):
            maps = NegativeFlux(points=3, steps=steps, score=score)(relu_net, *batch)
            assert (maps.flatten(1).sum(1) >= 0).all()
            assert (maps < 0).any() or steps


def test_on_a_small_sphere_the_ranking_is_that_of_saliency(smooth_net):
    inputs = 0.2 + 0.6 * torch.rand(4, 2, 8, 8, dtype=torch.float64)
    target = smooth_net(inputs).argmax(1)
    slope = Saliency(score=Probability())(smooth_net, inputs, target).abs().flatten(1)
    for norm, radii in ((Linf(), (1e-5, 0.05, 0.2)), (L2(), (1e-4, 0.5, 2.0))):
        alike = []
        for radius in radii:
            maps = NegativeFlux(points=4, steps=20, radius=radius, norm=norm)(smooth_net, inputs, target)
            pairs = zip(maps.flatten(1), slope, strict=True)
            alike.append(numpy.mean([scipy.stats.spearmanr(*pair).statistic for pair in pairs]))
        assert alike[0] > 0.999
        assert alike[0] > alike[1] > alike[2]


def test_maps_and_counts_are_one_computation_while_remembering(relu_net, batch):
    method = NegativeFlux(points=4, steps=2)
    counted = Recorder(relu_net)
    with remembering(), randomness.keyed(0, torch.arange(5)):
        method.accepted(counted, *batch)
        method(counted, *batch)
    assert sum(counted.calls) == 5 * 4 * 3
    method.accepted(counted, *batch)
    assert sum(counted.calls) == 2 * 5 * 4 * 3


@pytest.mark.parametrize("steps", [0, 3])
def test_passes_are_exactly_points_times_steps_and_one(steps, relu_net, batch):
    with Meter(relu_net) as meter:
        NegativeFlux(points=4, steps=steps, chunk=10)(relu_net, *batch)
    assert meter.forwards == meter.backwards == 5 * 4 * (steps + 1)
    assert meter.calls == 2 * (steps + 1)  # two points of each image fill a pass


def test_images_and_points_do_not_share_their_starts():
    seen: list[Tensor] = []

    class Witness(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append((inputs.detach() - 0.5).flatten(1))
            return inputs.flatten(1)[:, :2]

    inputs = torch.full((4, 1, 8, 8), 0.5)
    NegativeFlux(points=50, steps=0, radius=0.2)(Witness().eval(), inputs, torch.zeros(4, dtype=torch.int64))
    starts = torch.cat(seen)
    torch.testing.assert_close(starts.abs(), torch.full((200, 64), 0.2))
    correlation = numpy.corrcoef(starts) - numpy.eye(200)
    assert abs(correlation).max() < 0.7
    assert correlation.std() == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize("lead", [-80.0, -30.0, -3.0, 0.0, 3.0, 23.0, 80.0])
def test_the_slope_of_a_probability_keeps_its_digits_in_saturation(lead):
    logits = torch.tensor([[lead, 0.0, -1.0]], requires_grad=True)
    value = Probability()(logits, torch.tensor([0]))
    (slope,) = torch.autograd.grad(value.sum(), logits)
    others = numpy.exp(numpy.longdouble([0, -1]))
    odds = numpy.exp(numpy.longdouble(lead)) / others.sum()
    spread = odds / (1 + odds) ** 2  # p (1 - p)
    expected = numpy.array([spread, *(-spread * others / others.sum())], dtype=float)
    assert float(value.detach()) == pytest.approx(float(odds / (1 + odds)), rel=1e-5)
    numpy.testing.assert_allclose(slope[0].numpy(), expected, rtol=2e-5)
    assert (slope != 0).all()


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=str)
def test_maps_survive_where_single_precision_rounds_the_probability_to_one(norm):
    inputs, target = 0.5 + 0.05 * torch.rand(2, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 0])
    method = NegativeFlux(points=3, steps=4, norm=norm)
    with randomness.keyed(0, torch.arange(2)):
        exact = method(Sure(30, torch.float64).eval(), inputs, target)
        single = method(Sure(30, torch.float32).eval(), inputs.float(), target)
        count = method.accepted(Sure(30, torch.float32).eval(), inputs.float(), target)
    assert exact.abs().max() < 1e-8
    assert count.tolist() == [3, 3]
    torch.testing.assert_close(single.double(), exact, rtol=1e-2, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 0}, "`points` must be at least 1, got 0."),
        ({"steps": -1}, "`steps` must be at least 0, got -1."),
        ({"radius": 0.0}, "`radius` must be greater than 0, got 0.0."),
        ({"eta": 0.0}, "`eta` must be greater than 0, got 0.0."),
        ({"chunk": 0}, "`chunk` must be at least 1, got 0."),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NegativeFlux(**settings)


def test_a_score_may_be_given_by_its_name():
    assert NegativeFlux() == NegativeFlux(score="probability") == NegativeFlux(score=Probability())
    assert NegativeFlux(score="logit") != NegativeFlux()
