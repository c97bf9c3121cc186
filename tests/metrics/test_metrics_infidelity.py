"""Infidelity: linear models, Captum, a slow twin, and digits that must not be lost."""

import math

import pytest
import torch
from subjects import linear_case, tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attributions import InputXGradient, Saliency
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics import RandomMap
from lit_xai.metrics.infidelity import GaussianNoise, Infidelity, RandomSquares, infidelity
from lit_xai.observe import explain

KINDS = [GaussianNoise(0.2), RandomSquares(4, 0.25)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=repr)


class Kept(nn.Module):
    """Keeps the images that a model was shown."""

    def __init__(self, model):
        super().__init__()
        self.model, self.images = model, []

    def forward(self, inputs):
        self.images.append(inputs)
        return self.model(inputs)


def names(count):
    return torch.arange(count) + 5


def scored(metric, model, inputs, target, maps, ids=None):
    with randomness.keyed(0, names(len(inputs)) if ids is None else ids):
        return metric.named(model=model, inputs=inputs, target=target, attributions=maps)


def views(kind, inputs, samples):
    """All views of all images, and their weights, one image after the other."""
    with randomness.keyed(0, names(len(inputs))):
        after, weights = kind(inputs, samples)(slice(None), slice(None))
        return tuple(part.transpose(0, 1).flatten(0, 1) for part in (after, weights.expand_as(after)))


@pytest.fixture
def subject():
    net, inputs = tiny_net(nn.ReLU, torch.float64), torch.rand(4, 2, 8, 8, dtype=torch.float64)
    return net, inputs, torch.tensor([0, 1, 2, 3]), torch.randn(4, 2, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "method"), [(GaussianNoise(0.2), Saliency()), (RandomSquares(3), InputXGradient())], ids=repr
)
def test_a_linear_model_is_foretold_without_error(kind, method):
    case, metric = linear_case(), Infidelity(kind, 20)
    maps = method(case.model, case.inputs, case.target)
    exact = scored(metric, case.model, case.inputs, case.target, maps)
    assert all(float(column.abs().max()) < 1e-18 for column in exact.values())
    larger = scored(metric, case.model, case.inputs, case.target, -4 * maps)
    nothing = scored(metric, case.model, case.inputs, case.target, 0 * maps)
    assert float(larger["ninf"].max()) < 1e-18
    assert float(larger["rescaled"].max()) < 1e-18
    torch.testing.assert_close(larger["infidelity"], 25 * nothing["infidelity"], rtol=1e-9, atol=0)
    assert (nothing["infidelity"] > 0).all()


@every_kind
def test_captum_finds_the_same_with_the_same_disturbances(kind, subject):
    captum = pytest.importorskip("captum.metrics")
    net, inputs, target, maps = subject
    after, weights = views(kind, inputs, 30)

    def theirs(normalize):
        return captum.infidelity(
            net,
            lambda _: (weights, after),
            inputs,
            maps,
            target=target,
            n_perturb_samples=30,
            normalize=normalize,
        )

    scores = scored(Infidelity(kind, 30), net, inputs, target, maps)
    torch.testing.assert_close(scores["infidelity"], theirs(False), rtol=1e-9, atol=0)
    torch.testing.assert_close(scores["rescaled"], theirs(True), rtol=1e-7, atol=0)
    with torch.no_grad():
        before, seen = net(inputs).repeat_interleave(30, 0), net(after)
    fall = (before - seen).gather(1, target.repeat_interleave(30)[:, None]).view(4, 30)
    torch.testing.assert_close(
        scores["ninf"], theirs(True) / fall.square().mean(1), rtol=1e-7, atol=0, check_dtype=False
    )


def test_every_square_is_taken_out_of_the_unharmed_image(subject):
    """Squares that pile up give a much larger error; here each view differs from the image in one alone."""
    net, inputs, target, maps = subject
    inputs = inputs * 0.5 + 0.4  # nowhere at the baseline, so that what is hidden can be seen
    kept = Kept(net)
    scores = scored(Infidelity(RandomSquares(4), 40, chunk=7), kept, inputs, target, maps)
    images = torch.cat(kept.images).reshape(41, 4, 2, 8, 8).transpose(0, 1)  # the unharmed ones first
    assert torch.equal(images[:, 0], inputs)
    changed = images[:, 1:] != inputs[:, None]
    sides = set()
    for image in range(4):
        claimed, lost = [], []
        for view in range(40):
            hidden = changed[image, view]
            assert torch.equal(hidden[0], hidden[1])  # all channels of a pixel
            rows, columns = (hidden[0].any(axis).nonzero().flatten() for axis in (1, 0))
            side = int(rows[-1] - rows[0]) + 1
            assert side == int(columns[-1] - columns[0]) + 1
            assert int(hidden[0].sum()) == side**2
            sides.add(side)
            claimed.append(float(maps[image][hidden].sum()))
            with torch.no_grad():
                logits = net(torch.stack([inputs[image], inputs[image].where(~hidden, 0)]))
            lost.append(float(logits[0, target[image]] - logits[1, target[image]]))
        u, d = torch.tensor([claimed, lost], dtype=torch.float64)
        expected = 1 - (u * d).mean() ** 2 / ((u * u).mean() * (d * d).mean())
        assert float(scores["ninf"][image]) == pytest.approx(float(expected), abs=1e-9)
        assert float(scores["infidelity"][image]) == pytest.approx(float(((u - d) ** 2).mean()), rel=1e-9)
    assert sides == {1, 2, 3, 4}
    assert changed.any((0, 1)).all()  # every pixel is hidden somewhere


def test_noise_is_gaussian_within_the_box_and_drawn_for_each_view():
    inputs = torch.full((6, 3, 16, 16), 0.5, dtype=torch.float64)
    inputs[3:] = 0.1
    after, weights = views(GaussianNoise(0.1), inputs, 20)
    assert after.amin() >= 0
    assert after.amax() <= 1
    torch.testing.assert_close(weights, inputs.repeat_interleave(20, 0) - after, rtol=0, atol=0)
    grey = weights[:60].flatten(1)
    assert float(grey.std()) == pytest.approx(0.1, rel=5 / math.sqrt(2 * grey.numel()))
    assert float(grey.mean().abs()) < 5 * 0.1 / math.sqrt(grey.numel())
    alike = torch.corrcoef(grey) - torch.eye(60)
    assert float(alike.abs().max()) < 5.5 / math.sqrt(grey.shape[1])
    assert (after[60:] == 0).double().mean() == pytest.approx(0.1587, abs=0.01)  # P(e > 1)


def test_a_map_that_knows_nothing_is_near_one_and_the_gradient_is_not(relu_net):
    inputs = torch.rand(30, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    metric = Infidelity(samples=50)
    with randomness.keyed(0, names(30)):
        nothing = RandomMap()(relu_net, inputs, target)
    assert float(scored(metric, relu_net, inputs, target, nothing)["ninf"].mean()) > 0.9
    informed = Saliency()(relu_net, inputs, target)
    assert float(scored(metric, relu_net, inputs, target, informed)["ninf"].mean()) < 0.5


@pytest.mark.parametrize("angle", [1e-9, 1e-3, 1.0, math.pi / 2])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-200, 1e150)], ids=str)
def test_no_digit_of_the_normalised_error_is_lost(angle, scales):
    one = torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64)
    other = math.cos(angle) * one + math.sin(angle) * torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.float64)
    scores = infidelity(one * scales[0], other * scales[1])
    assert float(scores["ninf"]) == pytest.approx(math.sin(angle) ** 2, rel=1e-6)


@every_kind
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_scale_of_a_map_does_not_matter(kind, relu_net, batch, scale):
    maps, metric = torch.randn(5, 2, 8, 8), Infidelity(kind, 10)
    expected = scored(metric, relu_net, *batch, maps)
    seen = scored(metric, relu_net, *batch, scale * maps)
    for name in ("ninf", "rescaled"):
        torch.testing.assert_close(seen[name], expected[name], rtol=1e-5, atol=0)
    assert not torch.allclose(seen["infidelity"], expected["infidelity"], rtol=1e-2)


@every_kind
@pytest.mark.parametrize("shape", [(1, 5, 9), (3, 9, 5), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_maps_without_an_answer_have_no_score(kind, shape, dtype):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3)).to(dtype).eval()
    inputs, target = torch.rand(4, *shape, dtype=dtype) * 0.5 + 0.3, torch.tensor([0, 1, 2, 1])
    maps = Saliency()(model, inputs, target)
    maps[1] = 0
    maps[2, 0, 0, 0] = math.nan
    maps[3, 0, 0, 0] = -math.inf
    scores = scored(Infidelity(kind, 6), model, inputs, target, maps)
    assert scores["ninf"].isnan().tolist() == [False, True, True, True]
    assert scores["rescaled"].isnan().tolist() == [False, True, True, True]
    assert scores["infidelity"].isnan().tolist() == [False, False, True, True]
    assert float(scores["infidelity"][1]) > 0  # a zero map misses all there is


def test_small_answers_beside_large_logits_are_told_from_rounding():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    with torch.no_grad():
        model[1].bias.fill_(1000.0)
    inputs, target = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 1])
    maps, metric = Saliency()(model, inputs, target), Infidelity()
    assert float(scored(metric, model, inputs, target, maps)["ninf"].max()) < 1e-5
    with torch.no_grad():
        model[1].weight.mul_(1e-5)
    assert all(column.isnan().all() for column in scored(metric, model, inputs, target, maps).values())


@every_kind
def test_an_image_scores_alone_what_it_scores_in_company(kind, subject):
    net, inputs, target, maps = subject
    metric = Infidelity(kind, 10)
    together = scored(metric, net, inputs, target, maps)
    alone = scored(metric, net, inputs[2:3], target[2:3], maps[2:3], names(4)[2:3])
    for name, column in together.items():
        torch.testing.assert_close(alone[name], column[2:3], rtol=1e-9, atol=0)


@every_kind
def test_one_bank_of_passes_serves_all_methods(kind, relu_net, batch):
    counted = Counted(relu_net)
    methods = {"saliency": Saliency(), "random_map": RandomMap(), "input_x_gradient": InputXGradient()}
    explain(counted, *batch, methods, {"infidelity": Infidelity(kind, 30)}, 0)
    assert (counted.forwards, counted.backwards) == (5 * (30 + 1) + 2 * 5, 2 * 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Infidelity(samples=1), "`samples` must be at least 2, got 1."),
        (lambda: Infidelity(chunk=0), "`chunk` must be at least 1, got 0."),
        (lambda: GaussianNoise(0.0), "`sigma` must be greater than 0, got 0.0."),
        (lambda: RandomSquares(0), "`largest` must be at least 1, got 0."),
        (lambda: RandomSquares(3, 1.5), r"`baseline` must lie in \[0, 1\], got 1.5."),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
