import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lit_xai.attacks.norms import L1, L2, Linf
from lit_xai.randomness import keyed, keys

NORMS = [Linf(), L2(), L1()]
DUAL = {Linf(): 1, L2(): 2, L1(): torch.inf}  # order of the norm in which gradients are measured


@st.composite
def perturbations(draw):
    shape = (
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
    )
    scale = 10.0 ** draw(st.integers(-8, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS, ids=str)
@settings(max_examples=40, deadline=None)
@given(delta=perturbations(), epsilon=st.floats(1e-6, 10))
def test_projection_is_the_closest_point_of_the_ball(norm, delta, epsilon):
    inside = norm.project(delta, epsilon)
    assert (norm.length(inside) <= epsilon * (1 + 1e-12)).all()
    short = norm.length(delta) <= epsilon
    assert_close(inside[short], delta[short], rtol=1e-14, atol=0)
    # Variational inequality: no other point z of the ball lies on the side of delta.
    other = norm.project(torch.randn_like(delta) * epsilon, epsilon)
    product = ((delta - inside) * (other - inside)).flatten(1).sum(1)
    assert (product <= 1e-9 * (delta.abs().amax() + epsilon) ** 2 * delta[0].numel()).all()


@pytest.mark.parametrize("norm", NORMS, ids=str)
@settings(max_examples=40, deadline=None)
@given(gradient=perturbations())
def test_steepest_reaches_the_dual_norm_with_length_one(norm, gradient):
    direction = norm.steepest(gradient)
    gain = (gradient * direction).flatten(1).sum(1)
    assert_close(norm.length(direction), torch.ones_like(gain))
    assert_close(gain, torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1))


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("scale", [1e-10, 1e-30, 1e-38, 1e30])
def test_steepest_has_no_absolute_floor(norm, scale):
    gradient = torch.randn(3, 2, 4, 4)
    assert_close(norm.steepest(scale * gradient), norm.steepest(gradient), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_steepest_of_no_gradient_is_no_step_and_images_do_not_see_each_other(norm):
    gradient = torch.randn(3, 2, 4, 4)
    gradient[1] = 0
    direction = norm.steepest(gradient)
    assert (direction[1] == 0).all()
    assert_close(direction[2:], norm.steepest(gradient[2:]))


def test_lengths_are_those_of_torch():
    delta = torch.randn(5, 3, 4, 4)
    assert_close(Linf().length(delta), delta.flatten(1).norm(p=torch.inf, dim=1))
    assert_close(L2().length(delta), delta.flatten(1).norm(p=2, dim=1))
    assert_close(L1().length(delta), delta.flatten(1).norm(p=1, dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_start_lies_in_the_ball_and_fills_it(norm, dtype):
    with keyed(0, torch.arange(4000)):
        some = keys(torch.zeros(4000, 1), "test")
    start = norm.start(some, 0, (1, 2, 3), 0.25, dtype)
    assert start.dtype == dtype
    assert start.shape == (4000, 1, 2, 3)
    assert (norm.length(start) <= 0.25 * (1 + 1e-6)).all()
    assert not torch.equal(start, norm.start(some, 1, (1, 2, 3), 0.25, dtype))
    assert start.mean().abs() < 0.01
    if norm == L2():  # radius even in (0, epsilon), direction without preference
        radius = norm.length(start).sort().values / 0.25
        even = (torch.arange(4000, dtype=dtype) + 0.5) / 4000
        assert (radius - even).abs().max() < 1.63 / 4000**0.5  # Kolmogorov's 1 % point
        direction = norm.steepest(start).flatten(1)
        assert_close(direction.T @ direction / 4000, torch.eye(6, dtype=dtype) / 6, atol=0.02, rtol=0)
    elif norm == L1():  # on the surface; every pixel changed in as many starts, up or down
        assert_close(norm.length(start), torch.full((4000,), 0.25, dtype=dtype))
        changed = (start != 0).to(dtype)
        assert 1 < changed.flatten(1).sum(1).mean() < 3
        assert_close(changed.mean(0), changed.mean().expand(1, 2, 3), atol=0.03, rtol=0)
    else:
        pixels = start.flatten().sort().values / 0.25
        even = 2 * (torch.arange(24000, dtype=dtype) + 0.5) / 24000 - 1
        assert (pixels - even).abs().max() / 2 < 1.63 / 24000**0.5


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_start_of_an_image_belongs_to_its_key(norm):
    with keyed(0, torch.arange(6)):
        some = keys(torch.zeros(6, 1), "test")
    whole = norm.start(some, 3, (2, 4, 4), 0.1, torch.float32)
    part = norm.start(some[[4, 1]], 3, (2, 4, 4), 0.1, torch.float32)
    assert torch.equal(part, whole[[4, 1]])


def shrunk(delta, room, epsilon):
    """Slow twin of the projection on ball and box: bisection for the amount that is taken off every pixel."""
    size = delta.abs()
    low, high = 0.0, float(size.max())
    for _ in range(100):
        middle = (low + high) / 2
        inside = float((size - middle).clamp(min=0).minimum(room).sum()) <= epsilon
        low, high = (low, middle) if inside else (middle, high)
    amount = 0 if float(size.minimum(room).sum()) <= epsilon else high
    return delta.sign() * (size - amount).clamp(min=0).minimum(room)


@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 3.0, 12.0, 1e3])
def test_ball_and_box_in_l1_are_met_at_their_closest_point(epsilon):
    inputs = torch.rand(20, 3, 6, 6, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)  # some on the box
    delta = torch.randn_like(inputs).mul(torch.logspace(-3, 1, 20)[:, None, None, None])
    delta[delta.abs() < 0.05] = 0
    delta[3, :, :3] = 0.25  # ties
    points = L1().confine(inputs + delta, inputs, epsilon)
    for point, image, step in zip(points, inputs, delta, strict=True):
        expected = shrunk(step, torch.where(step > 0, 1 - image, image), epsilon)
        assert_close(point - image, expected, atol=1e-12, rtol=0)


def test_ball_and_box_in_l1_are_those_of_the_authors():
    from pyautoattack.autopgd_base import L1_projection

    inputs, delta = torch.rand(30, 3, 8, 8), torch.randn(30, 3, 8, 8)
    expected = inputs + delta + L1_projection(inputs, delta, 6.0)
    assert_close(L1().confine(inputs + delta, inputs, 6.0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("epsilon", [1e-4, 0.3, 50.0])
def test_confined_points_lie_in_ball_and_box_and_those_that_do_stay(norm, dtype, epsilon):
    inputs = torch.rand(8, 3, 16, 16, dtype=dtype).mul(1.4).sub(0.2).clamp(0, 1)
    far = inputs + torch.randn_like(inputs)
    before = far.clone()
    points = norm.confine(far, inputs, epsilon)
    assert torch.equal(far, before)
    assert points.dtype == dtype
    assert points.min() >= 0
    assert points.max() <= 1
    assert (norm.length(points.double() - inputs.double()) <= epsilon + 1e-6 * max(1, epsilon)).all()
    assert_close(norm.confine(points, inputs, epsilon), points, atol=2e-6, rtol=0)
    assert torch.equal(norm.confine(inputs, inputs, epsilon), inputs)


def test_a_sparse_step_takes_the_signs_of_the_largest_gradients():
    gradient = torch.tensor([3.0, -1, 0, -4, 2, 0.5, 0, 0]).view(1, 2, 2, 2).repeat(3, 1, 1, 1)
    step = L1().sparse(gradient, torch.tensor([0.25, 0.0, 1.0])).flatten(1)
    assert step[0].tolist() == [0.5, 0, 0, -0.5, 0, 0, 0, 0]
    assert step[1].tolist() == [0, 0, 0, -1, 0, 0, 0, 0]
    assert_close(step[2], torch.tensor([0.2, -0.2, 0, -0.2, 0.2, 0.2, 0, 0]))
    assert (L1().sparse(torch.zeros_like(gradient), torch.ones(3)) == 0).all()
