"""Baseline sensitivity on models where every map is known, and on digits."""

import itertools
import math

import pytest
import torch
from digits_net import held_out, trained
from scipy import stats
from searches import ToPlane
from subjects import linear_case

from lit_xai import attributions as a
from lit_xai import randomness
from lit_xai.attacks import DDN, ClosestBoundary, PGDGrid
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics.baseline_sensitivity import BaselineSensitivity, disagreement
from lit_xai.observe import explain


def scored(model, inputs, target, method, metric=None):
    metric = metric or BaselineSensitivity()
    table = explain(model, inputs, target, {"map": method}, {"metric": metric}, 0)
    return table.scores["map"]["metric"]


def test_disagreement_by_its_definition():
    maps = [torch.randn(3, 2, 5, 6) for _ in range(4)]
    seen = disagreement(maps)
    for row in range(3):
        cosines, ranks = [], []
        for first, second in itertools.combinations([some[row].double() for some in maps], 2):
            cosines.append(float(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0)))
            sizes = [some.sum(0).abs().flatten() for some in (first, second)]
            ranks.append(stats.spearmanr(*sizes).statistic)
        assert float(seen["cosine"][row]) == pytest.approx(1 - sum(cosines) / 6)
        assert float(seen["spearman"][row]) == pytest.approx(1 - sum(ranks) / 6)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_maps_that_differ_by_a_factor_agree(scale):
    maps = torch.rand(2, 1, 4, 4)
    seen = disagreement([maps, scale * maps, 3 * maps])
    for column in seen.values():
        torch.testing.assert_close(column, torch.zeros(2).double(), rtol=0, atol=1e-6)
        assert (column >= 0).all()
    opposite = disagreement([maps, -maps])
    torch.testing.assert_close(opposite["cosine"], torch.full((2,), 2.0).double())


def test_what_cannot_be_compared_is_missing():
    maps = [torch.rand(4, 1, 3, 3) for _ in range(3)]
    maps[1][0], maps[2][1, 0, 0, 0], maps[0][2, 0, 0, 0] = 0, math.nan, math.inf
    for column in disagreement(maps).values():
        assert column.isnan().tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="`maps` must be at least 2"):
        disagreement(maps[:1])


def test_integrated_gradients_of_a_linear_model_in_closed_form():
    case = linear_case()
    own = case.weight[case.target].view_as(case.inputs)
    maps = [(case.inputs - baseline) * own for baseline in (0.0, 1.0, 0.25)]
    metric = BaselineSensitivity(baselines=(0.0, 1.0, 0.25), noise=0)
    for method in (a.IntegratedGradients(steps=3), a.DeepLift(), a.DeepLift(baseline=0.75)):
        seen = scored(case.model, case.inputs, case.target, method, metric)
        for name, column in disagreement(maps).items():
            torch.testing.assert_close(seen[name], column)
            torch.testing.assert_close(seen[f"{name}_median"], column)


def test_noise_is_drawn_anew_and_nothing_else_is():
    inputs, keys = torch.rand(2, 1, 6, 6), torch.tensor([3, 8])
    variants = BaselineSensitivity(noise=3).variants(a.IntegratedGradients())
    drawn = [variant.baseline(inputs, keys) for variant in variants]
    assert [float(flat.mean()) for flat in drawn[:3]] == [0.0, 1.0, 0.5]
    for first, second in itertools.combinations(drawn[3:], 2):
        assert float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.4
    assert all(torch.equal(variant.baseline(inputs[1:], keys[1:]), noise[1:]) for variant, noise in zip(
        variants, drawn, strict=True
    ))  # fmt: skip
    several = BaselineSensitivity(noise=2).variants(a.KernelShap(segments=2))
    assert {variant.segments for variant in several} == {2}


def test_a_search_starts_elsewhere_and_all_else_stays():
    net, (inputs, target) = trained(), held_out(list(range(6)))
    method = a.BoundarySmoothGrad(search=ClosestBoundary(starts=1, steps=1, first=1, last=0), samples=2)
    with randomness.keyed(0, torch.arange(6)):
        first, second, third = (
            variant.search.search(net, inputs, target).points
            for variant in BaselineSensitivity(searches=3).variants(method)
        )
        again = method.search.search(net, inputs, target).points
        some = BaselineSensitivity(searches=3).variants(method)[2]
        with randomness.narrowed(torch.tensor([4, 1])):
            alone = some.search.search(net, inputs[[4, 1]], target[[4, 1]]).points
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    torch.testing.assert_close(alone, third[[4, 1]])


def test_a_linear_model_owes_nothing_to_its_search():
    case = linear_case()
    for method in (a.BoundarySaliency(), a.BoundaryIntegratedGradients(steps=3)):
        seen = scored(case.model, case.inputs, case.target, method)
        assert float(seen["cosine"].max()) < 1e-3


def test_it_applies_to_what_has_a_choice():
    metric = BaselineSensitivity()
    for method in (a.IntegratedGradients(), a.Occlusion(), a.DeepLift(), a.ExpectedGradients()):
        assert metric.applies(method)
    for search in (ClosestBoundary(), PGDGrid(radii=(0.5, 1.0))):
        assert metric.applies(a.BoundarySaliency(search=search))
    for search in (ClosestBoundary(starts=0), DDN(), ToPlane()):
        assert not metric.applies(a.BoundarySaliency(search=search))
    assert not metric.applies(a.Saliency())


def test_maps_and_searches_that_the_run_has_anyway_are_shared():
    inputs, target = held_out([0, 1, 2])
    counted = Counted(trained()).eval()
    steps = 4
    explain(
        counted,
        inputs,
        target,
        {f"ig {baseline}": a.IntegratedGradients(steps, baseline) for baseline in (0.0, 0.5)},
        {"metric": BaselineSensitivity()},
        0,
    )
    assert counted.forwards == counted.backwards == 6 * steps * len(inputs)
    counted.forwards = counted.backwards = 0
    both = {"bsm": a.BoundarySaliency(), "big": a.BoundaryIntegratedGradients(steps=steps)}
    explain(counted, inputs, target, both, {"metric": BaselineSensitivity(searches=2)}, 0)
    assert counted.backwards <= (2 * 41 + 2 * (1 + steps)) * len(inputs)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"baselines": (2.0,)}, "`baselines` must lie in"),
        ({"baselines": (0.0,), "noise": 0}, "at least 2 together"),
        ({"noise": -1}, "`noise` must be at least 0"),
        ({"searches": 1}, "`searches` must be at least 2"),
    ],
    ids=str,
)
def test_arguments_are_refused_in_one_line(argument, said):
    with pytest.raises(ValueError, match=said):
        BaselineSensitivity(**argument)


def test_a_boundary_is_a_choice_that_matters_less_than_a_baseline():
    """The claim of arXiv 2103.11257 on digits; closest boundaries differ little between random states."""
    inputs, target = held_out(list(range(24)))
    seen = {
        name: scored(trained(), inputs, target, method)
        for name, method in {
            "plain": a.IntegratedGradients(steps=8),
            "boundary": a.BoundaryIntegratedGradients(steps=8),
        }.items()
    }
    for name in ("cosine", "spearman"):
        plain, boundary = (seen[which][name].nanmedian() for which in ("plain", "boundary"))
        assert float(boundary) < 0.5 * float(plain), name
