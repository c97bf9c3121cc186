import pytest
import torch
from subjects import Recorder, linear_case, tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attacks import L1, L2, Linf
from lit_xai.attributions import (
    BoundaryIntegratedGradients,
    BoundarySaliency,
    InputXGradient,
    Saliency,
    SmoothGrad,
)
from lit_xai.evaluation.passes import Counted
from lit_xai.memory import remembering
from lit_xai.metrics import RandomMap
from lit_xai.metrics.neighbourhood import InBall, Neighbourhood, Normal
from lit_xai.metrics.sensitivity import LocalLipschitz, NeighbourSimilarity, RelativeStability, Sensitivity

IDS = torch.tensor([7, 3, 11, 0, 5])
RADIUS = 0.05


@pytest.fixture
def batch():
    inputs = torch.rand(5, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = tiny_net(nn.ReLU, torch.float64)
    return net, inputs, net(inputs).argmax(1)


@pytest.fixture(autouse=True)
def _keys():
    with randomness.keyed(0, IDS):
        yield


@pytest.mark.parametrize("norm", [Linf(), L2(), L1()], ids=str)
def test_neighbours_lie_in_ball_and_box(batch, norm):
    net, inputs, target = batch
    inputs = inputs.round()  # half of the pixels at each end
    points = Neighbourhood(RADIUS, 4, InBall(norm)).around(net, inputs, target).points
    assert points.shape == (4, *inputs.shape)
    assert points.min() >= 0
    assert points.max() <= 1
    lengths = torch.stack([norm.length(some - inputs) for some in points])
    assert (lengths > 0).any(0).all()  # of the few pixels that a point of `L1` changes, all may be clipped
    assert (lengths <= RADIUS * (1 + 1e-9)).all()
    assert len(points.flatten(1).unique(dim=0)) == 4


def test_noise_has_both_signs_and_its_spread(batch):
    net, inputs, target = batch
    inputs = inputs * 0.2 + 0.4  # no neighbour touches the box
    even = Neighbourhood(RADIUS, 64).around(net, inputs, target).points - inputs
    normal = Neighbourhood(RADIUS / 2, 64, Normal()).around(net, inputs, target).points - inputs
    assert abs(even.mean()) < RADIUS / 50
    assert abs(even.std() - RADIUS / 3**0.5) < RADIUS / 50
    assert abs(normal.mean()) < RADIUS / 50
    assert abs(normal.std() - RADIUS / 2) < RADIUS / 50


def test_neighbours_are_not_only_brighter_as_those_of_quantus_are(batch):
    quantus = pytest.importorskip("quantus")
    net, inputs, target = batch
    inputs = inputs * 0.2 + 0.4
    metric = quantus.RelativeInputStability(disable_warnings=True)
    rows = inputs.flatten(1).numpy()
    theirs = metric.perturb_func(arr=rows, indices=torch.arange(128).expand(5, -1).numpy()) - rows
    assert theirs.min() >= 0.02 - 1e-9
    assert theirs.max() <= 0.2
    ours = Neighbourhood(0.2, 8).around(net, inputs, target).points - inputs
    assert 0.45 < (ours > 0).double().mean() < 0.55


def test_draws_are_the_same_for_more_samples_and_other_radii(batch):
    net, inputs, target = batch
    inputs = inputs * 0.2 + 0.4
    points = {
        (radius, samples): Neighbourhood(radius, samples).around(net, inputs, target).points
        for radius, samples in ((RADIUS, 2), (RADIUS, 5), (RADIUS / 4, 2))
    }
    assert torch.equal(points[RADIUS, 5][:2], points[RADIUS, 2])
    change, quarter = points[RADIUS, 2] - inputs, points[RADIUS / 4, 2] - inputs
    torch.testing.assert_close(change, 4 * quarter)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize("method", [Saliency(), SmoothGrad(samples=2), BoundarySaliency()], ids=str)
def test_chunk_bounds_the_images_per_call_and_changes_nothing(batch, chunk, method):
    net, inputs, target = batch
    expected = Neighbourhood(RADIUS, 3).around(net, inputs, target)
    counted = Recorder(net)
    seen = Neighbourhood(RADIUS, 3, chunk=chunk).around(counted, inputs, target)
    torch.testing.assert_close(seen.maps(method), expected.maps(method), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(seen.logits, expected.logits)
    if not isinstance(method, SmoothGrad):  # which has a chunk of its own
        assert max(counted.calls) <= chunk


def test_maps_are_those_of_each_neighbour_by_itself(batch):
    net, inputs, target = batch
    bank = Neighbourhood(RADIUS, 3).around(net, inputs, target)
    maps = bank.maps(SmoothGrad(samples=2))
    for points, seen, logits in zip(bank.points, maps, bank.logits, strict=True):
        torch.testing.assert_close(seen, SmoothGrad(samples=2)(net, points, target))
        torch.testing.assert_close(logits, net(points).detach())


def test_a_method_that_draws_has_the_same_draws_at_image_and_neighbours(batch):
    net, inputs, target = batch
    close = Neighbourhood(1e-9, 3).around(net, inputs, target)
    for method in (SmoothGrad(samples=2), RandomMap()):
        torch.testing.assert_close(
            close.maps(method), method(net, inputs, target).expand(3, -1, -1, -1, -1), rtol=1e-6, atol=1e-6
        )


def metrics_on(bank):
    kinds = Sensitivity, LocalLipschitz, RelativeStability, NeighbourSimilarity
    return [kind(bank) for kind in kinds]


def test_any_number_of_metrics_cost_the_maps_once(batch):
    net, inputs, target = batch
    counted, count, samples = Counted(net).eval(), len(inputs), 8
    with remembering():
        for number, method in enumerate((Saliency(), InputXGradient()), start=1):
            maps = method(net, inputs, target)
            for metric in metrics_on(Neighbourhood(RADIUS, samples)):
                given = {"attributions": maps, "attribution": method}
                metric.named(model=counted, inputs=inputs, target=target, **given)
            # maps of every method; logits of neighbours and images once for all methods
            assert counted.backwards == number * samples * count
            assert counted.forwards == number * samples * count + (samples + 1) * count


def test_a_metric_costs_no_more_than_it_needs(batch):
    net, inputs, target = batch
    for metric, forwards in zip(metrics_on(Neighbourhood(RADIUS, 3)), (3, 3, 3 + 3 + 1, 3), strict=True):
        counted = Counted(net).eval()
        given = {"attributions": torch.rand_like(inputs), "attribution": Saliency()}
        metric.named(model=counted, inputs=inputs, target=target, **given)
        assert counted.forwards == forwards * len(inputs)
        assert counted.backwards == 3 * len(inputs)


def test_searches_at_neighbours_are_shared_by_boundary_methods(batch):
    net, inputs, target = batch
    counted = Counted(net).eval()
    with remembering():
        bank = Neighbourhood(RADIUS, 2, chunk=3).around(counted, inputs, target)
        bank.maps(BoundarySaliency())
        searched = counted.forwards
        bank.maps(BoundaryIntegratedGradients(steps=4))
    assert counted.forwards - searched == 2 * 4 * len(inputs)
    assert searched > 2 * 4 * len(inputs)


def test_maps_of_one_method_are_held_at_a_time(batch):
    net, inputs, target = batch
    counted = Counted(net).eval()
    bank = Neighbourhood(RADIUS, 2).around(counted, inputs, target)
    for method in (Saliency(), Saliency(), InputXGradient(), Saliency()):
        bank.maps(method)
    assert counted.forwards == 3 * 2 * len(inputs)


def test_kept_is_about_the_class_that_the_model_sees():
    case = linear_case()
    wrong = (case.target + 1) % 4  # misclassified, all of them
    with randomness.keyed(0, torch.arange(6)):
        close, far = (
            Neighbourhood(radius, 16).around(case.model, case.inputs, wrong) for radius in (1e-6, 0.5)
        )
        assert close.kept.all()
        assert 0 < far.kept.double().mean() < 1
        assert torch.equal(
            far.kept, case.model(far.points.flatten(0, 1)).argmax(1).view(16, 6) == case.target
        )


def test_what_is_no_number_is_of_no_class(batch):
    _, inputs, target = batch

    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :4] / 0

    bank = Neighbourhood(RADIUS, 2).around(Broken().eval(), inputs, target)
    assert not bank.kept.any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"radius": 0.0}, "`radius` must be greater than 0"),
        ({"radius": 0.1, "samples": 0}, "`samples` must be at least 1"),
        ({"radius": 0.1, "chunk": 0}, "`chunk` must be at least 1"),
    ],
)
def test_settings_without_meaning_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Neighbourhood(**settings)
