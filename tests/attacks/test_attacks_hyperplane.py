import math

import numpy as np
import pytest
import torch
from pyautoattack import fab_projections
from scipy.optimize import brentq, linprog, minimize
from torch.testing import assert_close

from lit_xai.attacks.hyperplane import foot
from lit_xai.attacks.norms import L1, L2, Linf, Norm

NORMS = [Linf(), L2(), L1()]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=repr)


def planes(count=30, shape=(2, 3, 3), dtype=torch.float64, reach=None):
    """Points of the box, and planes: `reach` of the way to its corner, by default 0 to 1.3."""
    points = (1.4 * torch.rand(count, *shape, dtype=dtype) - 0.2).clamp(0, 1)
    normal = torch.randn(count, *shape, dtype=dtype)
    normal[:, 0, 0, 0] = 0
    normal[::2, 0, 1, 1] = normal[::2, 0, 2, 2]  # a tie
    sign = torch.randn(count, dtype=dtype).sign()
    away = torch.where((normal.sign() * sign[:, None, None, None]) > 0, points, 1 - points)
    most = (away * normal.abs()).flatten(1).sum(1)
    share = 1.3 * torch.rand(count, dtype=dtype) if reach is None else reach
    return points, normal, sign * most * share, most


def value(points, normal, gap, feet):
    return gap + ((feet - points) * normal).flatten(1).sum(1)


def shortest(norm, x, w, gap):
    """The length of the shortest way to the plane inside the box, by SciPy."""
    n, box = len(x), np.stack([-x, 1 - x], axis=1)
    if norm == L2():
        way = minimize(
            lambda d: d @ d, np.zeros(n), jac=lambda d: 2 * d, bounds=box, method="SLSQP",
            constraints={"type": "eq", "fun": lambda d: gap + w @ d, "jac": lambda d: w},
            options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        return math.sqrt(way.fun)
    # min sum(u) or max(u) over (d, u) with -u <= d <= u
    eye, number = np.eye(n), n if norm == L1() else 1
    bound = eye if norm == L1() else np.ones((n, 1))
    answer = linprog(
        np.r_[np.zeros(n), np.ones(number)],
        A_ub=np.block([[eye, -bound], [-eye, -bound]]), b_ub=np.zeros(2 * n),
        A_eq=np.r_[w, np.zeros(number)][None], b_eq=[-gap],
        bounds=[*box, *[(0, None)] * number],
    )  # fmt: skip
    return answer.fun


def bisected(norm, x, w, gap):
    """All pixels move at speed 1 (l2: |w|) until they hit the box or all of them are on the plane."""
    speed = -(w.sign() if norm == Linf() else w) * gap.sign()

    def left(time):
        return float(gap + w @ ((x + time * speed).clamp(0, 1) - x))

    return (x + brentq(left, 0, 1e6, xtol=1e-15, rtol=1e-14) * speed).clamp(0, 1)


@every_norm
def test_no_shorter_way_to_the_plane_is_known_to_scipy(norm):
    points, normal, gap, most = planes()
    feet = foot(norm, points, normal, gap)
    meets = gap.abs() < most
    assert 3 <= (~meets).sum() < 25
    assert value(points, normal, gap, feet)[meets].abs().max() < 1e-12
    for x, w, g, length in zip(points, normal, gap, norm.length(feet - points), strict=True):
        if abs(g) < (w.abs() * torch.where(w.sign() * g.sign() > 0, x, 1 - x)).sum():
            expected = shortest(norm, x.flatten().numpy(), w.flatten().numpy(), float(g))
            assert float(length) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("reach", [0.01, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("norm", [Linf(), L2()], ids=repr)
def test_the_way_is_that_of_a_bisection(norm, reach):
    points, normal, gap, _ = planes(5, (3, 20, 20), reach=reach)
    feet = foot(norm, points, normal, gap)
    for x, w, g, z in zip(points.flatten(1), normal.flatten(1), gap, feet.flatten(1), strict=True):
        assert_close(z, bisected(norm, x, w, g), atol=1e-9, rtol=0)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_length_is_that_of_the_authors_of_fab(norm, dtype):
    points, normal, gap, _ = planes(200, (3, 8, 8), dtype)
    feet = foot(norm, points, normal, gap)
    project = {
        Linf(): fab_projections.projection_linf,
        L2(): fab_projections.projection_l2,
        L1(): fab_projections.projection_l1,
    }[norm]
    rows, w = points.flatten(1), normal.flatten(1)
    way = project(rows.float(), w.float(), ((rows * w).sum(1) - gap).float()).view_as(points).to(dtype)
    assert feet.dtype == dtype
    assert_close(norm.length(feet - points), norm.length(way), atol=2e-4, rtol=1e-4)
    if norm == L2():  # the only norm in which the foot is the only one
        assert_close(feet, points + way, atol=1e-3, rtol=0)


@every_norm
def test_in_l1_few_pixels_move_and_in_no_norm_more_than_needed(norm):
    points, normal, gap, _ = planes(reach=0.3)
    moved = (foot(norm, points, normal, gap) - points).flatten(1) != 0
    partly = moved & (foot(norm, points, normal, gap).flatten(1) % 1 != 0)
    assert not moved[:, 0].any()  # w = 0
    if norm == L1():
        assert (partly.sum(1) <= 1).all()


@every_norm
def test_a_plane_beyond_the_box_is_met_by_its_nearest_corner(norm):
    points, normal, gap, _ = planes(reach=1.5)
    corner = torch.where(normal.sign() * gap.sign()[:, None, None, None] > 0, 0.0, 1.0).double()
    expected = torch.where(normal == 0, points, corner)
    assert torch.equal(foot(norm, points, normal, gap), expected)
    assert torch.equal(foot(norm, points, normal, gap * torch.inf), expected)


@every_norm
def test_points_on_their_plane_and_images_without_a_plane_stay(norm):
    points, normal, gap, _ = planes()
    assert torch.equal(foot(norm, points, normal, torch.zeros_like(gap)), points)
    assert torch.equal(foot(norm, points, torch.zeros_like(normal), gap), points)
    assert torch.equal(foot(norm, points[:0], normal[:0], gap[:0]), points[:0])


@every_norm
@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e36])
def test_the_scale_of_the_function_does_not_matter(norm, scale):
    points, normal, gap, _ = planes(dtype=torch.float32, reach=0.6)
    expected = foot(norm, points, normal, gap)
    assert_close(foot(norm, points, normal * scale, gap * scale), expected, atol=1e-5, rtol=0)


@every_norm
def test_planes_of_a_batch_do_not_see_each_other(norm):
    points, normal, gap, _ = planes()
    order = torch.randperm(30)[:7]
    alone = foot(norm, points[order], normal[order], gap[order])
    assert_close(alone, foot(norm, points, normal, gap)[order], atol=1e-14, rtol=0)


def test_inputs_stay_as_they_were_and_rounding_does_not_leave_the_box():
    points, normal, gap, _ = planes(dtype=torch.float32)
    before = [part.clone() for part in (points, normal, gap)]
    for norm in NORMS:
        feet = foot(norm, points, normal, gap)
        assert feet.min() >= 0
        assert feet.max() <= 1
    assert all(torch.equal(old, new) for old, new in zip(before, (points, normal, gap), strict=True))


def test_a_norm_without_a_rule_is_refused():
    class Other(Norm):
        length = project = steepest = start = None

    with pytest.raises(TypeError, match=r"no rule for planes in the norm .* use Linf"):
        foot(Other(), *planes()[:3])
