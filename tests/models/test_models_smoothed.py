"""Certificates against golden values, SciPy and the true radius of a linear net; their failure rate."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.models import Smoothed
from lit_xai.models.certificates import certified_radius, lower_confidence_bound

THRESHOLDS = [  # samples, then smallest certified count and largest quantile at alpha 0.001 and 0.01
    (100, 66, 1.500475, 63, 1.695319),
    (1_000, 550, 2.463263, 538, 2.604935),
    (10_000, 5_156, 3.198578, 5_117, 3.313664),
    (100_000, 50_490, 3.811457, 50_369, 3.910510),
    (1_000_000, 501_546, 4.346774, 501_164, 4.434928),
]
BOUNDS = [  # count of 100,000 at alpha 0.001, bound, its normal quantile
    (99_990, 0.9997586773, 3.49020768),
    (99_900, 0.9986509924, 3.00020099),
    (99_000, 0.9889893404, 2.28999996),
    (95_000, 0.9478348965, 1.62421370),
    (90_000, 0.8970364962, 1.26484469),
    (80_000, 0.7960660712, 0.82765156),
    (70_000, 0.6955035152, 0.51151145),
    (60_000, 0.5952010473, 0.24094479),
    (51_000, 0.5051093492, 0.01280759),
]


class Halfspaces(nn.Module):
    """Two classes, parted by the plane w.x = b; notes batch sizes, and answers wrongly in train mode."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = bias
        self.sizes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.sizes.append(len(inputs))
        margin = inputs.flatten(1) @ self.weight.to(inputs.dtype) - self.bias
        return torch.stack([margin, -margin], dim=1) * (-1 if self.training else 1)


class Votes(nn.Module):
    """Answers with classes in a given ratio, whatever the image: class 0 where u < share, else class 1."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.bound = stats.norm.ppf(share)

    def forward(self, inputs: Tensor) -> Tensor:
        first = inputs[:, 0, 0, 0] < self.bound
        return torch.stack([first, ~first], dim=1).to(inputs.dtype)


@pytest.mark.parametrize(("samples", "k1", "q1", "k2", "q2"), THRESHOLDS)
def test_abstention_thresholds_and_largest_radii(samples, k1, q1, k2, q2):
    for alpha, smallest, largest in ((0.001, k1, q1), (0.01, k2, q2)):
        below, at, full = certified_radius(np.array([smallest - 1, smallest, samples]), samples, alpha, 1.0)
        assert below == 0 < at
        assert full == pytest.approx(largest, abs=5.1e-7)
        assert lower_confidence_bound(samples, samples, alpha) == pytest.approx(
            alpha ** (1 / samples), rel=1e-12
        )


@pytest.mark.parametrize(("count", "bound", "quantile"), BOUNDS)
def test_golden_bounds(count, bound, quantile):
    assert lower_confidence_bound(count, 100_000, 0.001) == pytest.approx(bound, abs=5.1e-11)
    assert certified_radius(count, 100_000, 0.001, 1.0) == pytest.approx(quantile, abs=5.1e-9)


def test_golden_bounds_at_the_threshold():
    bounds = lower_confidence_bound([50_490, 50_489], 100_000, 0.001)
    assert bounds == pytest.approx([0.5000089488, 0.4999989485], abs=5.1e-11)
    assert certified_radius(50_490, 100_000, 0.001, 1.0) == pytest.approx(2.243e-5, rel=1e-3)
    assert certified_radius(50_489, 100_000, 0.001, 1.0) == 0


@pytest.mark.parametrize(("sigma", "radius"), [(0.12, 0.4574), (0.25, 0.9529), (0.5, 1.9057), (1.0, 3.8115)])
def test_largest_radius_by_noise(sigma, radius):
    assert certified_radius(100_000, 100_000, 0.001, sigma) == pytest.approx(radius, abs=5.1e-5)


def test_the_bound_inverts_the_binomial_test():
    counts = np.arange(51)
    bounds = lower_confidence_bound(counts, 50, 0.02)
    assert bounds.dtype == np.float64
    assert bounds[0] == 0
    assert stats.binom.sf(counts[1:] - 1, 50, bounds[1:]) == pytest.approx(0.02, rel=1e-9)
    exact = [stats.binomtest(int(k), 50).proportion_ci(0.96, method="exact").low for k in counts]
    assert bounds == pytest.approx(exact, abs=1e-9)


def linear() -> tuple[Halfspaces, Tensor, Tensor]:
    """A linear classifier, images, and their distances from its plane (negative in class 1)."""
    weight = torch.randn(16)
    net = Halfspaces(weight, bias=0.3)
    distance = torch.tensor([-1.1, -0.5, -0.25, 0.02, 0.4, 0.9])
    images = torch.rand(6, 16)
    images += ((0.3 - images @ weight) / weight.norm() + distance)[:, None] * weight / weight.norm()
    return net, images.reshape(6, 1, 4, 4), distance.double()


def test_a_linear_classifier_is_certified_up_to_its_plane():
    net, images, distance = linear()
    sigma = 0.5
    found = Smoothed(net, sigma).certify(images, n0=50, n=20_000, alpha=0.001, chunk=5000)
    sure = ~found.abstained
    assert sure.sum() >= 4
    assert torch.equal(found.label[sure], (distance < 0).long()[sure])
    assert (found.radius <= distance.abs()).all()
    # The radius falls short of the distance by what the bound costs at the expected count, and by chance.
    expected = certified_radius(
        np.round(20_000 * stats.norm.cdf(distance.abs() / sigma)), 20_000, 0.001, sigma
    )
    far = distance.abs().numpy() > 0.1
    assert found.radius.numpy()[far] == pytest.approx(expected[far], abs=0.03)
    assert found.radius.numpy() == pytest.approx(certified_radius(found.count, 20_000, 0.001, sigma), abs=0)
    assert (found.radius.dtype, found.count.dtype, found.label.dtype) == (
        torch.float64,
        torch.int64,
        torch.int64,
    )
    assert (found.samples.unique().tolist(), found.alpha, found.sigma) == ([20_000], 0.001, sigma)


def test_an_abstention_has_label_minus_one_and_radius_zero():
    found = Smoothed(Votes(0.5), 1.0).certify(torch.zeros(5, 1, 2, 2), n0=20, n=200, alpha=0.001)
    assert found.abstained.tolist() == [True] * 5
    assert found.label.tolist() == [-1] * 5
    assert found.radius.tolist() == [0.0] * 5
    assert ((found.count > 0) & (found.count < 200)).all()


def test_certificates_fail_as_often_as_they_may():
    """1000 images of one known share: the bound exceeds it in at most alpha of them, and nearly so."""
    share, alpha = 0.8, 0.05
    found = Smoothed(Votes(share), 1.0).certify(torch.zeros(1000, 1, 1, 1), n0=50, n=400, alpha=alpha)
    assert (found.label == 0).all()
    failures = int((found.radius > stats.norm.ppf(share)).sum())
    counts = np.arange(401)
    exact = stats.binom.pmf(counts, 400, share)[lower_confidence_bound(counts, 400, alpha) > share].sum()
    assert exact <= alpha
    assert stats.binomtest(failures, 1000, exact).pvalue > 1e-3


def test_logits_that_are_not_finite_vote_for_no_class():
    """A network that has diverged would else be certified to answer its first class, by all votes."""

    class Broken(Votes):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = super().forward(inputs)
            return logits.masked_fill(inputs[:, :1, 0, 0] < -0.5, math.nan)

    images = torch.zeros(3, 1, 1, 1)
    found = Smoothed(Broken(1.0), 1.0).certify(images, n0=50, n=4000)
    share = stats.norm.cdf(0.5)
    assert (found.count.numpy() / 4000) == pytest.approx(share, abs=0.03)
    assert (found.radius > 0).all()
    assert (found.radius < 0.5).all()
    nothing = Smoothed(Broken(1.0), 1e-3)
    assert nothing.certify(images - 9, n0=5, n=200).abstained.all()
    assert nothing.predict(images - 9, samples=200).tolist() == [-1] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_is_drawn_and_added_in_full_precision_whatever_the_network_is_given(dtype):
    seen = []

    class Spy(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.clone())
            return inputs.flatten(1)[:, :2]

    images, ids = torch.rand(2, 1, 2, 3).to(dtype), torch.arange(2)
    for batch in (images.float(), images):
        with randomness.keyed(0, ids):
            Smoothed(Spy(), 0.3).predict(batch, samples=50)
        Smoothed(Spy(), 0.3, samples=50)(batch)
    assert seen[2].dtype == seen[3].dtype == dtype
    assert torch.equal(seen[2], seen[0].to(dtype))
    assert torch.equal(seen[3], seen[1].to(dtype))


def test_selection_is_not_reused_in_the_estimation():
    """With one vote each, the two agree in p^2 + q^2 of the images if independent, and in all if shared."""
    share = 0.7
    smoothed = Smoothed(Votes(share), 1.0)
    with randomness.keyed(0, torch.arange(2000)):
        found = smoothed.certify(torch.zeros(2000, 1, 1, 1), n0=1, n=1, alpha=0.5)
    agree = int(found.count.sum())
    assert stats.binomtest(agree, 2000, share**2 + (1 - share) ** 2).pvalue > 1e-3


def test_votes_are_standard_normal_draws_of_each_pixel():
    seen = []

    class Spy(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.clone())
            return inputs.flatten(1)[:, :2]

    images = torch.rand(2, 1, 2, 3)
    Smoothed(Spy(), 0.3).predict(images, samples=4000, chunk=1000)
    noisy = torch.stack([part.reshape(2, 500, 6) for part in seen], dim=1).reshape(2, 4000, 6)
    noise = (noisy - images.reshape(2, 1, 6)) / 0.3
    for column in noise.permute(0, 2, 1).reshape(12, 4000).numpy():
        assert stats.kstest(column, "norm").pvalue > 1e-4
    correlation = np.corrcoef(noise.permute(0, 2, 1).reshape(12, 4000).numpy())
    assert np.abs(correlation - np.eye(12)).max() < 0.08


@pytest.mark.parametrize("chunk", [1, 7, 64, 100_000])
def test_results_do_not_depend_on_chunk_or_batch(chunk):
    net, images, _ = linear()
    smoothed = Smoothed(net, 0.7)
    ids = torch.arange(6) + 40
    with randomness.keyed(3, ids):
        whole = smoothed.certify(images, n0=10, n=150, alpha=0.01, chunk=97)
        labels = smoothed.predict(images, samples=60, alpha=0.01, chunk=97)
    some = torch.tensor([4, 1])
    with randomness.keyed(3, ids[some]):
        part = smoothed.certify(images[some], n0=10, n=150, alpha=0.01, chunk=chunk)
        again = smoothed.predict(images[some], samples=60, alpha=0.01, chunk=chunk)
    for name in ("label", "radius", "count"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[some])
    assert torch.equal(again, labels[some])
    with randomness.keyed(4, ids):
        assert not torch.equal(smoothed.certify(images, n0=10, n=150, alpha=0.01).count, whole.count)


def test_no_more_than_a_chunk_of_images_passes_at_once_and_none_is_wasted():
    net, images, _ = linear()
    Smoothed(net, 0.7).certify(images, n0=10, n=55, chunk=20)
    assert max(net.sizes) <= 20
    assert sum(net.sizes) == 6 * 65


def test_a_process_without_images_certifies_none():
    net, images, _ = linear()
    smoothed = Smoothed(net, 0.5)
    assert smoothed.certify(images[:0], n0=3, n=5, chunk=4).label.shape == (0,)
    assert smoothed.predict(images[:0], samples=5, chunk=4).shape == (0,)


def test_the_network_votes_in_eval_mode_and_returns_to_its_modes():
    net, images, _ = linear()
    body = nn.Sequential(net, nn.Dropout(), nn.Dropout())
    smoothed = Smoothed(body, 1e-3)
    smoothed.train()
    body[1].eval()
    modes = [module.training for module in smoothed.modules()]
    labels = smoothed.predict(images, samples=100)
    net.eval()
    assert torch.equal(labels, net(images).argmax(1))
    net.train()
    assert [module.training for module in smoothed.modules()] == modes

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    body[2].register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        smoothed.certify(images, n0=1, n=1)
    assert [module.training for module in smoothed.modules()] == modes


@pytest.mark.parametrize(
    ("samples", "threshold"), [(100, 67), (1_000, 553), (10_000, 5_166), (100_000, 50_521)]
)
def test_predict_abstains_below_its_threshold(samples, threshold, monkeypatch):
    counts = torch.tensor([[threshold - 1, samples - threshold + 1], [samples - threshold, threshold]])
    monkeypatch.setattr(Smoothed, "_votes", lambda *_: counts)
    labels = Smoothed(nn.Identity(), 1.0).predict(torch.zeros(2, 1, 1, 1), samples=samples, alpha=0.001)
    assert labels.tolist() == [-1, 1]


def test_predict_is_the_binomial_test_of_the_top_two(monkeypatch):
    draws = torch.distributions.Multinomial(60, torch.tensor([0.45, 0.3, 0.2, 0.05])).sample((200,)).long()
    draws[::2] = draws[::2].flip(1)
    counts = torch.cat([draws, torch.tensor([[20, 20, 20, 0], [60, 0, 0, 0]])])
    monkeypatch.setattr(Smoothed, "_votes", lambda *_: counts)
    labels = Smoothed(nn.Identity(), 1.0).predict(torch.zeros(202, 1, 1, 1), samples=60, alpha=0.05)
    for label, row in zip(labels.tolist(), counts.tolist(), strict=True):
        first, second = sorted(row, reverse=True)[:2]
        certain = stats.binomtest(first, first + second, 0.5).pvalue <= 0.05
        assert label == (row.index(first) if certain else -1)
    assert {-1, 0, 3} <= set(labels.tolist())


def test_the_forward_pass_is_a_deterministic_function_of_each_image():
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    smoothed = Smoothed(net, 0.3, samples=8)
    images = torch.rand(4, 1, 3, 3, dtype=torch.float64)
    logits = smoothed(images)
    torch.manual_seed(99)
    with randomness.keyed(5, torch.arange(4)):
        assert torch.equal(smoothed(images), logits)
    torch.testing.assert_close(smoothed(images[2:3]), logits[2:3])
    assert not torch.allclose(Smoothed(net, 0.3, samples=8, seed=1)(images), logits)
    assert torch.autograd.gradcheck(smoothed, images.requires_grad_())


def test_the_forward_pass_of_a_linear_network_moves_by_the_same_noise_everywhere():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    images = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    shift = Smoothed(net, 0.5, samples=500)(images) - net(images)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))
    scale = net[1].weight.norm(dim=1) * 0.5 / math.sqrt(500)
    assert (shift[0].abs() < 4 * scale).all()


def test_the_forward_pass_tends_to_the_gaussian_mean():
    """E relu(a + s z) = a Phi(a / s) + s phi(a / s): a unit whose smoothing has a closed form."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()).double()
    images = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        a, s = net[:2](images).numpy(), 0.5 * net[1].weight.norm(dim=1).numpy()
        value = Smoothed(net, 0.5, samples=40_000)(images).numpy()
    assert value == pytest.approx(a * stats.norm.cdf(a / s) + s * stats.norm.pdf(a / s), abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: Smoothed(net, 0.0), "`sigma` must be greater than 0, got 0.0"),
        (lambda net, x: Smoothed(net, 0.1, samples=0), "`samples` must be at least 1, got 0"),
        (lambda net, x: Smoothed(net, 0.1).certify(x, n0=0), "`n0` must be at least 1, got 0"),
        (lambda net, x: Smoothed(net, 0.1).certify(x, n=0), "`n` must be at least 1, got 0"),
        (lambda net, x: Smoothed(net, 0.1).certify(x, alpha=0.0), "`alpha` must lie between 0 and 1"),
        (lambda net, x: Smoothed(net, 0.1).predict(x, chunk=0), "`chunk` must be at least 1, got 0"),
        (lambda net, x: Smoothed(net, 0.1).predict(x, alpha=1.5), "`alpha` must lie between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Votes(0.5), torch.zeros(1, 1, 1, 1))
