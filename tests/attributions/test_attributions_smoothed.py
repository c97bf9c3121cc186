"""Maps of a smoothed classifier: by its logits, at shared draws and bounded memory; by its votes alone."""

import math

import pytest
import torch
from scipy import stats
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attacks import DDN, L2
from lit_xai.attributions import (
    MFABA,
    AdversarialGradientIntegration,
    BoundaryDeepLift,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    BoundarySmoothGrad,
    ExpectedGradients,
    GuidedIntegratedGradients,
    InputXGradient,
    IntegratedGradients,
    Margin,
    NegativeFlux,
    Probability,
    Saliency,
    SmoothGrad,
    SteinGradient,
    keep_graph,
)
from lit_xai.models import Smoothed

GRADIENT_FAMILY = [
    Saliency(),
    Saliency(Margin()),
    InputXGradient(),
    IntegratedGradients(steps=5),
    ExpectedGradients(samples=5),
    SmoothGrad(samples=3),
    BoundarySaliency(DDN(steps=15)),
    BoundaryIntegratedGradients(DDN(steps=15), steps=5, score=Margin()),
    BoundarySmoothGrad(DDN(steps=15), samples=3),
    Saliency(Probability()),
    GuidedIntegratedGradients(steps=4),
    NegativeFlux(points=2, steps=2),
    NegativeFlux(points=2, steps=2, norm=L2()),
    AdversarialGradientIntegration(steps=3),
    AdversarialGradientIntegration(path="accumulate", steps=3, classes=2),
    MFABA(steps=4),
    MFABA(mode="smooth", steps=3, score=Margin()),
    SteinGradient(sigma=1.0, samples=9),
]
IDS = torch.arange(3)


@pytest.fixture
def smooth_batch(smooth_net):
    inputs = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    return smooth_net, inputs, smooth_net(inputs).argmax(1)


def shared_draws(smoothed: Smoothed, shape: tuple[int, ...]) -> Tensor:
    """The noise of the forward pass, one draw after the other."""
    draws = torch.arange(smoothed.samples)
    with randomness.keyed(smoothed.seed, draws):
        keys = randomness.keys(draws, "smoothed forward")
    return smoothed.sigma * randomness.normal(keys, 0, shape, torch.float64)


@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_its_saliency_is_the_mean_saliency_of_the_network_over_the_shared_draws(chunk, smooth_batch):
    """So SmoothGrad is the gradient of a smoothed score: here at the same draws, term by term."""
    net, inputs, target = smooth_batch
    smoothed = Smoothed(net, 0.3, samples=7, seed=2, chunk=chunk).eval()
    maps = [Saliency()(net, inputs + noise, target) for noise in shared_draws(smoothed, (2, 8, 8))]
    expected = torch.stack(maps).mean(0)
    torch.testing.assert_close(Saliency()(smoothed, inputs, target), expected)
    torch.testing.assert_close(InputXGradient()(smoothed, inputs, target), inputs * expected)


def test_its_saliency_and_smooth_grad_have_the_same_limit(smooth_batch):
    """Draws of the image and draws that all share differ by chance alone."""
    net, inputs, target = smooth_batch
    samples = 4000
    ours = SmoothGrad(0.3, samples, chunk=4000)(net, inputs, target)
    shared = Saliency()(Smoothed(net, 0.3, samples, chunk=4000).eval(), inputs, target)
    single = SmoothGrad(0.3, 1)(net, inputs, target)
    spread = (single - ours).square().mean().sqrt()
    assert (ours - shared).square().mean().sqrt() < 2 * spread * (2 / samples) ** 0.5
    assert (Saliency()(net, inputs, target) - ours).square().mean().sqrt() > 5 * spread / samples**0.5


def test_integrated_gradients_of_a_smoothed_classifier_are_the_mean_over_shifted_paths(smooth_batch):
    net, inputs, target = smooth_batch
    smoothed = Smoothed(net, 0.3, samples=4, chunk=3).eval()
    total = torch.zeros_like(inputs)
    for noise in shared_draws(smoothed, (2, 8, 8)):
        for k in range(6):
            total += Saliency()(net, (k + 0.5) / 6 * inputs + noise, target) / 24
    ours = IntegratedGradients(steps=6, rule="midpoint")(smoothed, inputs, target)
    torch.testing.assert_close(ours, inputs * total)


def test_paths_of_a_smoothed_classifier_add_up_to_the_rise_of_its_score(smooth_batch):
    net, inputs, target = smooth_batch
    smoothed = Smoothed(net, 0.3, samples=4).eval()
    method = IntegratedGradients(steps=200)
    sums = method(smoothed, inputs, target).flatten(1).sum(1)
    torch.testing.assert_close(sums, method.total(smoothed, inputs, target), rtol=1e-4, atol=1e-5)
    target = smoothed(inputs).argmax(1)
    method = BoundaryIntegratedGradients(steps=200, score=Margin())
    found = method.search.search(smoothed, inputs, target)
    assert found.found.all()
    with torch.no_grad():
        margin = Margin()(smoothed(inputs), target, found.label)
    sums = method(smoothed, inputs, target).flatten(1).sum(1)
    torch.testing.assert_close(sums, margin, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", GRADIENT_FAMILY, ids=repr)
def test_maps_of_a_smoothed_classifier_do_not_depend_on_its_chunk(method, smooth_batch):
    net, inputs, _ = smooth_batch
    target = Smoothed(net, 0.2, samples=6)(inputs).argmax(1)
    maps = []
    for chunk in (1, 4, 1000):
        counted = Recorder(net)
        smoothed = Smoothed(counted, 0.2, samples=6, chunk=chunk).eval()
        with unchanged(smoothed, inputs, target), randomness.keyed(1, IDS):
            maps.append(method(smoothed, inputs, target))
        assert max(counted.calls) <= chunk
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], rtol=1e-8, atol=1e-10)
    assert maps[0].abs().sum() > 0


def test_boundary_deep_lift_has_no_rule_for_draws_that_share_a_batch_and_says_so(relu_net):
    smoothed, inputs, target = Smoothed(relu_net, 0.2).eval(), torch.rand(2, 2, 8, 8), torch.tensor([0, 1])
    with (
        unchanged(smoothed, inputs, target),
        pytest.raises(ValueError, match=r"`BoundaryDeepLift` has no rule for .*Saliency"),
    ):
        BoundaryDeepLift(DDN(steps=3))(smoothed, inputs, target)


def test_no_images_have_no_logits_and_no_maps(smooth_net):
    smoothed = Smoothed(smooth_net, 0.2, samples=3, chunk=2).eval()
    nothing, target = torch.rand(0, 2, 8, 8, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    assert smoothed(nothing).shape == (0, 4)
    for method in GRADIENT_FAMILY:
        assert method(smoothed, nothing, target).shape == (0, 2, 8, 8)


def test_one_that_was_just_made_is_in_train_mode_and_is_refused(smooth_net):
    inputs, target = torch.rand(2, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"it is in train mode: call `model.eval\(\)`"):
        Saliency()(Smoothed(smooth_net, 0.2), inputs, target)


def test_no_more_noise_than_a_chunk_is_held_at_once(smooth_net, monkeypatch):
    drawn, normal = [], randomness.normal
    monkeypatch.setattr(
        randomness, "normal", lambda keys, *rest: drawn.append(len(keys)) or normal(keys, *rest)
    )
    Smoothed(smooth_net, 0.2, samples=10, chunk=4).eval()(torch.rand(1, 2, 8, 8, dtype=torch.float64))
    assert drawn == [4, 4, 2]


@pytest.mark.parametrize(
    ("chunk", "calls"), [(18, [18]), (17, [15, 3]), (7, [6, 6, 6]), (2, [2] * 6 + [2] * 3)]
)
def test_no_more_than_a_chunk_passes_the_network_at_once(chunk, calls, smooth_net):
    counted = Recorder(smooth_net)
    smoothed = Smoothed(counted, 0.2, samples=6, chunk=chunk).eval()
    inputs = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        smoothed(inputs)
    assert counted.calls == calls


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_the_forward_pass_can_be_differentiated_twice_in_any_chunk(chunk, smooth_batch):
    net, inputs, target = smooth_batch
    smoothed = Smoothed(net, 0.2, samples=3, chunk=chunk).eval()
    points = inputs[:2].clone().requires_grad_()
    with keep_graph():
        maps = Saliency()(smoothed, points, target[:2])
    (slope,) = torch.autograd.grad(maps.square().sum(), points)
    step = torch.randn_like(points) * 1e-5
    ahead, behind = (Saliency()(smoothed, inputs[:2] + s * step, target[:2]).square().sum() for s in (1, -1))
    torch.testing.assert_close((slope * step).sum(), (ahead - behind) / 2, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_training_through_a_smoothed_classifier_sees_all_draws(train):
    """Parameters get the gradient of the whole, and batch statistics move once, whatever the chunk."""
    seen = []
    for chunk in (1, 4, 1000):
        net = tiny_net(nn.Softplus, torch.float64)
        net[6].p = 0.0
        smoothed = Smoothed(net, 0.2, samples=3, chunk=chunk).train(train)
        torch.manual_seed(0)
        inputs = torch.rand(4, 2, 8, 8, dtype=torch.float64)
        nn.functional.cross_entropy(smoothed(inputs), torch.tensor([0, 1, 2, 3])).backward()
        assert int(net[1].num_batches_tracked) == int(train)
        seen.append([net[0].weight.grad, net[7].bias.grad, net[1].running_mean])
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=1e-9, atol=1e-12)


def test_frozen_parameters_change_nothing(smooth_batch):
    net, inputs, target = smooth_batch
    smoothed = Smoothed(net, 0.2, samples=3, chunk=2).eval()
    maps = Saliency()(smoothed, inputs, target)
    smoothed.requires_grad_(False)
    assert torch.equal(Saliency()(smoothed, inputs, target), maps)


def votes_in_closed_form(sigma: float) -> tuple[object, Tensor, Tensor]:
    """A linear net of two classes, the gradient of its votes, and their share for the target.

    The class wins where m + sigma w.e > 0: P = Phi(z), grad P = phi(z) w / (sigma |w|), z = m / (sigma |w|).
    """
    case = linear_case(2)
    w = case.weight[case.target] - case.weight[1 - case.target]
    margin = (case.inputs.flatten(1) * w).sum(1) + case.bias[case.target] - case.bias[1 - case.target]
    length = w.norm(dim=1)
    z = margin / (sigma * length)
    slope = torch.from_numpy(stats.norm.pdf(z)) / (sigma * length)
    return case, (slope[:, None] * w).view_as(case.inputs), torch.from_numpy(stats.norm.cdf(z))


@pytest.mark.parametrize("sigma", [0.02, 0.1, 1.0])
def test_the_gradient_of_votes_is_that_of_the_normal_distribution_on_a_linear_net(sigma):
    """The error is the standard error that the closed form predicts, neither more nor less."""
    case, expected, share = votes_in_closed_form(sigma)
    samples = 20_000
    maps = SteinGradient(sigma, samples, chunk=6000)(case.model, case.inputs, case.target)
    # One term has variance E[(v - p)^2 e^2] / sigma^2 - g^2 in a pixel: p (1 - p) / sigma^2 but for one
    # direction of 50, along w, in which e and v depend on each other.
    error = (maps - expected).square().flatten(1).mean(1).sqrt()
    predicted = (share * (1 - share) / samples).sqrt() / sigma
    assert ((error / predicted) < 1.4).all()
    assert ((error / predicted) > 0.65).all()
    assert (expected.flatten(1).norm(dim=1) > 5 * predicted).any()


def test_its_error_falls_as_one_over_the_root_of_the_votes():
    case, expected, _ = votes_in_closed_form(0.1)
    few, many = (
        (SteinGradient(0.1, n, chunk=6000)(case.model, case.inputs, case.target) - expected).square().mean()
        for n in (100, 10_000)
    )
    assert math.log(float(many / few), 100) == pytest.approx(-1, abs=0.06)


def test_it_is_unbiased_with_two_votes():
    """Where the mean vote is half one's own, dividing by n in place of n - 1 would halve the map."""
    case, expected, _ = votes_in_closed_form(0.5)
    repeats = 4000
    inputs, target = case.inputs[:1].repeat(repeats, 1, 1, 1), case.target[:1].repeat(repeats)
    maps = SteinGradient(0.5, 2)(case.model, inputs, target)
    standard_error = maps.std(0) / math.sqrt(repeats)
    score = (maps.mean(0) - expected[0]) / standard_error
    assert score.abs().max() < 4.5
    assert score.square().mean() < 1.6
    along = (maps.mean(0) * expected[0]).sum() / expected[0].square().sum()
    assert float(along) == pytest.approx(1, abs=0.15)


def test_a_loop_over_leave_one_out_means_gives_the_same_map(relu_net, batch):
    """Every vote less the mean of the other votes, times its noise."""
    inputs, target = batch
    n, sigma = 6, 1.5
    with randomness.keyed(3, torch.arange(5)):
        ours = SteinGradient(sigma, n, chunk=7)(relu_net, inputs, target)
        keys = randomness.keys(inputs, "stein")
    noise = torch.stack([randomness.normal(keys + k, 0, (2, 8, 8)) for k in range(n)])
    with torch.no_grad():
        votes = torch.stack([(relu_net(inputs + sigma * e).argmax(1) == target).float() for e in noise])
    assert 0.1 < votes.mean() < 0.9
    total = torch.zeros_like(inputs)
    for k in range(n):
        others = (votes.sum(0) - votes[k]) / (n - 1)
        total += (votes[k] - others).view(-1, 1, 1, 1) * noise[k] / (n * sigma)
    torch.testing.assert_close(ours, total)


def test_the_mean_vote_taken_off_beats_antithetic_pairs_on_a_linear_net():
    """At equal passes, pairs have 1 / p times the variance: the members of a pair say the same about e."""
    sigma, samples = 0.5, 20_000
    case, expected, share = votes_in_closed_form(sigma)
    assert 0.5 < share.min() < share.max() < 0.7
    maps = SteinGradient(sigma, samples, chunk=6000)(case.model, case.inputs, case.target)
    ours = (maps - expected).square().flatten(1).mean(1)
    noise, pairs = torch.randn(6, samples // 2, 2, 5, 5, dtype=torch.float64), []
    with torch.no_grad():
        for image, label, e in zip(case.inputs, case.target, noise, strict=True):
            ahead, behind = (case.model(image + s * sigma * e).argmax(1) == label for s in (1, -1))
            pairs.append(((ahead.double() - behind.double()).view(-1, 1, 1, 1) * e / (2 * sigma)).mean(0))
    theirs = (torch.stack(pairs) - expected).square().flatten(1).mean(1)
    # 300 squared errors on each side: the ratio is known to 12 percent.
    assert float((ours / share).sum() / theirs.sum()) == pytest.approx(1, abs=0.36)
    assert float(ours.sum() / theirs.sum()) < 0.85


def test_votes_ask_for_no_slope_of_the_network():
    """An argmax on its way gives every other gradient zero."""

    class Steps(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            lead = (inputs.flatten(1).sum(1) > 32).float()
            return torch.stack([lead, 1 - lead], dim=1) + 0 * inputs.flatten(1)[:, :2]

    inputs, target = torch.full((1, 1, 8, 8), 0.5), torch.tensor([0])
    assert not Saliency()(Steps().eval(), inputs, target).any()
    maps = SteinGradient(0.1, 20_000, chunk=4096)(Steps().eval(), inputs, target)
    # On the boundary z = 0: phi(0) / (sigma sqrt(64)) for every pixel.
    assert float(maps.mean()) == pytest.approx(0.3989 / 0.8, rel=0.05)
    assert float(maps.std()) < 3 * 0.5 / (0.1 * math.sqrt(20_000))


def test_unanimous_votes_have_no_gradient(relu_net, batch):
    assert not SteinGradient(1e-6, 4)(relu_net, *batch).any()


def test_passes_are_exactly_images_times_votes_and_forward_alone(relu_net, batch):
    counted = Recorder(relu_net)
    SteinGradient(samples=16, chunk=32)(counted, *batch)
    assert counted.calls == [30, 30, 20]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "`sigma` must be greater than 0, got 0.0."),
        ({"samples": 1}, "`samples` must be at least 2, got 1."),
        ({"chunk": 0}, "`chunk` must be at least 1, got 0."),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SteinGradient(**settings)


def test_a_chunk_of_none_is_refused():
    with pytest.raises(ValueError, match=r"`chunk` must be at least 1, got 0."):
        Smoothed(nn.Identity(), 0.1, chunk=0)
