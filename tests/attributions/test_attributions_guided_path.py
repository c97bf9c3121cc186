"""Guided integrated gradients: the paper's loop one image at a time, straight limits, sums, order, passes."""

import numpy
import pytest
import torch
from subjects import Recorder, linear_case
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions import IntegratedGradients, Logit, Margin
from lit_xai.attributions.baselines import NoiseImage
from lit_xai.attributions.guided_path import GuidedIntegratedGradients, moved


@pytest.fixture
def smooth_batch(smooth_net):
    inputs = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    return smooth_net, inputs, smooth_net(inputs).argmax(1)


def slope_at(net, point, label):
    point = torch.from_numpy(point)[None].requires_grad_()
    return torch.autograd.grad(net(point)[0, label], point)[0][0].numpy()


def walk(net, image, label, baseline, steps, fraction, max_dist):
    """One image: features of smallest slope go first, as far as the band around the straight path allows."""
    goal, here = image.numpy(), baseline.numpy().copy()
    start = here.copy()
    whole, credit = numpy.abs(goal - start).sum(), numpy.zeros_like(goal)
    for step in range(1, steps + 1):
        slope = slope_at(net, here, label)
        before = here.copy()
        near, far = max(step / steps - max_dist, 0), min(step / steps + max_dist, 1)
        slowest, fastest = start + near * (goal - start), start + far * (goal - start)
        behind = numpy.abs(here - start) < numpy.abs(slowest - start)
        here[behind] = slowest[behind]
        rank = numpy.abs(slope)
        wanted = whole * (1 - step / steps)
        while (excess := numpy.abs(goal - here).sum() - wanted) > 1e-12:
            rank[numpy.abs(fastest - here) < 1e-15] = numpy.inf
            cut = numpy.quantile(rank, fraction, method="lower")
            group = (rank <= cut) & (rank < numpy.inf)
            reach = numpy.abs(fastest - here)[group].sum()
            if reach == 0:
                break
            part = min(excess / reach, 1.0)
            here[group] += part * (fastest - here)[group]
        credit += slope * (here - before)
    assert numpy.abs(here - goal).max() < 1e-9
    return torch.from_numpy(credit)


@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("max_dist", [0.0, 0.02, 0.3, 1.0])
def test_a_walk_of_one_image_after_the_other_gives_the_same_maps(fraction, max_dist, smooth_batch):
    net, inputs, target = smooth_batch
    inputs[0, 0, :3], inputs[1, 1, 2, :5] = 0.2, 1.0  # pixels that have nowhere to go; others that go down
    method = GuidedIntegratedGradients(7, fraction=fraction, max_dist=max_dist, baseline=0.2)
    ours = method(net, inputs, target)
    for image, label, map_ in zip(inputs, target, ours, strict=True):
        start = torch.full_like(image, 0.2)
        torch.testing.assert_close(map_, walk(net, image, label, start, 7, fraction, max_dist))


def test_equal_slopes_move_together(relu_net):
    """Ties are whole: a pixel's place in the image decides nothing."""
    slopes = torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]])
    lengths, none = torch.ones(1, 8), torch.zeros(1, 8)
    gone = moved(none, slopes, lengths, share=0.25, fraction=0.25, max_dist=1.0)
    assert gone[0].tolist() == [0.5] * 4 + [0.0] * 4
    gone = moved(none, slopes, lengths, share=0.625, fraction=0.25, max_dist=1.0)
    assert gone[0].tolist() == [1.0] * 4 + [0.5] * 2 + [0.0] * 2
    gone = moved(none, slopes, lengths, share=0.5, fraction=0.25, max_dist=0.25)
    assert gone[0].tolist() == [0.75] * 4 + [0.25] * 4


def test_steps_reach_their_share_and_stay_in_the_band():
    torch.manual_seed(1)
    lengths = torch.rand(3, 50, dtype=torch.float64) * (torch.rand(3, 50) > 0.2)
    gone = torch.zeros(3, 50, dtype=torch.float64)
    for k in range(1, 11):
        before, slopes = gone, torch.rand(3, 50, dtype=torch.float64)
        gone = moved(before, slopes, lengths, k / 10, fraction=0.2, max_dist=0.15)
        assert (gone >= before).all()
        assert gone.min() >= k / 10 - 0.15 - 1e-12
        assert gone.max() <= k / 10 + 0.15 + 1e-12
        torch.testing.assert_close((gone * lengths).sum(1), k / 10 * lengths.sum(1))
    assert (gone == 1).all()


@pytest.mark.parametrize("settings", [{"fraction": 1.0, "max_dist": 1.0}, {"max_dist": 0.0}], ids=str)
def test_without_freedom_the_path_is_straight(settings, smooth_batch):
    """Then the map is a left Riemann sum of integrated gradients."""
    net, inputs, target = smooth_batch
    n, total = 6, torch.zeros_like(inputs)
    for k in range(n):
        point = (0.1 + k / n * (inputs - 0.1)).requires_grad_()
        total += torch.autograd.grad(net(point)[range(4), target].sum(), point)[0] / n
    ours = GuidedIntegratedGradients(n, baseline=0.1, **settings)(net, inputs, target)
    torch.testing.assert_close(ours, (inputs - 0.1) * total)


@pytest.mark.parametrize("fraction", [0.1, 0.25])
@pytest.mark.parametrize("max_dist", [0.02, 1.0])
def test_on_a_linear_net_every_path_gives_the_same_map(fraction, max_dist):
    case = linear_case()
    for steps in (1, 2, 9):
        method = GuidedIntegratedGradients(steps, fraction, max_dist, baseline=0.25)
        maps = method(case.model, case.inputs, case.target)
        torch.testing.assert_close(maps, (case.inputs - 0.25) * case.weight[case.target].view_as(maps))


@pytest.mark.parametrize(("max_dist", "tolerance"), [(0.0, 0.03), (0.02, 0.15), (1.0, 0.3)])
def test_the_sum_closes_at_order_one(max_dist, tolerance, smooth_net):
    """Each piece of the path counts with the slope at its beginning; the path itself depends on the steps."""
    inputs = torch.rand(16, 2, 8, 8, dtype=torch.float64)
    target = smooth_net(inputs).argmax(1)
    sizes, gaps = [32, 64, 128, 256], []
    for steps in sizes:
        method = GuidedIntegratedGradients(steps, max_dist=max_dist)
        sums = method(smooth_net, inputs, target).flatten(1).sum(1)
        gaps.append((sums - method.total(smooth_net, inputs, target)).abs().mean())
    order = -numpy.polyfit(numpy.log(sizes), numpy.log(gaps), 1)[0]
    assert order == pytest.approx(1, abs=tolerance)


class Product(nn.Module):
    """f_0 = x_1 + 10 x_1 x_2: from black, the second pixel has no slope until the first has moved."""

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = inputs.flatten(1).T
        value = first + 10 * first * second
        return torch.stack([value, 0 * value], dim=1)


def test_the_path_goes_where_slopes_are_small():
    """The second pixel goes first and gains nothing; on the straight path the two share 10 evenly."""
    given = Product().eval(), torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.tensor([0])
    guided = GuidedIntegratedGradients(8, max_dist=1.0)(*given).flatten()
    torch.testing.assert_close(guided, torch.tensor([11.0, 0.0], dtype=torch.float64))
    straight = IntegratedGradients(2)(*given).flatten()
    torch.testing.assert_close(straight, torch.tensor([6.0, 5.0], dtype=torch.float64))


@pytest.mark.parametrize("score", [Logit(), Margin()], ids=repr)
def test_the_total_is_the_rise_of_the_score(score, smooth_batch):
    net, inputs, target = smooth_batch
    method = GuidedIntegratedGradients(2, baseline=NoiseImage(), score=score, chunk=3)
    with randomness.keyed(3, torch.arange(4)):
        total = method.total(net, inputs, target)
        start = NoiseImage()(inputs, randomness.keys(inputs, "baseline"))
    with torch.no_grad():
        torch.testing.assert_close(total, score(net(inputs), target) - score(net(start), target))


def test_an_image_that_is_its_baseline_has_an_empty_map(relu_net):
    inputs = torch.full((2, 2, 8, 8), 0.5)
    inputs[1] = torch.rand(2, 8, 8)
    maps = GuidedIntegratedGradients(3, baseline=0.5)(relu_net, inputs, torch.tensor([1, 1]))
    assert not maps[0].any()
    assert maps[1].any()


def test_passes_are_exactly_images_times_steps(relu_net, batch):
    counted = Recorder(relu_net)
    GuidedIntegratedGradients(steps=4, chunk=3)(counted, *batch)
    assert counted.calls == [3] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0."),
        ({"chunk": 0}, "`chunk` must be at least 1, got 0."),
        ({"fraction": 0.0}, r"`fraction` must lie in \(0, 1\], got 0.0."),
        ({"fraction": 1.5}, r"`fraction` must lie in \(0, 1\], got 1.5."),
        ({"max_dist": -0.1}, r"`max_dist` must lie in \[0, 1\], got -0.1."),
        ({"max_dist": float("nan")}, r"`max_dist` must lie in \[0, 1\], got nan."),
        ({"baseline": 2.0}, r"`baseline` must lie in \[0, 1\], got 2.0."),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GuidedIntegratedGradients(**settings)
