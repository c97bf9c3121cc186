"""What every shell does: it names its needs, keeps scores, averages them, prints itself."""

import inspect
import math

import pytest
import torch
from searches import ToPlane
from subjects import tiny_net, unchanged
from torch import nn

from lit_xai import attributions, metrics, randomness
from lit_xai.attacks.base import Attack, Search
from lit_xai.attributions import BoundarySaliency, Saliency
from lit_xai.metrics import (
    BoundaryDistance,
    CleanAccuracy,
    Closeness,
    Flags,
    Gini,
    Missing,
    Perturbation,
    Quantity,
    RobustAccuracy,
)
from lit_xai.metrics.base import VOCABULARY
from lit_xai.observe import explain

SEARCH = ToPlane()
SHELLS = [
    BoundaryDistance(SEARCH),
    CleanAccuracy(),
    Closeness(),
    Flags(),
    Gini(),
    Gini(metrics.SignedSum()),
    Missing(),
    Perturbation(steps=4),
    Perturbation(steps=3, removal=metrics.ImageMean(), start=metrics.Constant(1.0), chunk=5),
    RobustAccuracy(SEARCH),
]
every_shell = pytest.mark.parametrize("metric", SHELLS, ids=repr)
IDS = torch.tensor([7, 3, 11, 0, 5])


@pytest.fixture
def given():
    """A linear model, so that the search is exact; maps with zeros, so that ranks are tied."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 4, dtype=torch.float64)).eval()
    inputs = 0.5 + 0.2 * torch.rand(5, 2, 8, 8, dtype=torch.float64)
    attribution = BoundarySaliency(search=ToPlane())
    target = net(inputs).argmax(1)
    maps = torch.randn(5, 2, 8, 8, dtype=torch.float64).relu()
    rows = {"inputs": inputs, "target": target, "attributions": maps}
    return {"model": net, "attribution": attribution, "mask": None, **rows}


def scored(metric, given, rows=None):
    rows = torch.arange(5) if rows is None else rows
    part = {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    with randomness.keyed(1, IDS[rows]):
        return metric.named(**part)


@every_shell
def test_it_asks_for_words_of_the_vocabulary_alone(metric):
    assert metric.needs
    assert set(metric.needs) <= set(VOCABULARY)


@every_shell
def test_it_gives_one_score_per_sample_within_its_bounds(metric, given):
    scores = scored(metric, given)
    assert scores.keys() == metric.quantities.keys()
    for name, column in scores.items():
        low, high = metric.quantities[name].bounds
        assert column.shape == (5,)
        assert not column.requires_grad
        assert (column >= low - 1e-9).all()
        assert (column <= high + 1e-9).all()


@every_shell
def test_batch_size_and_order_do_not_matter(metric, given):
    together = scored(metric, given)
    for rows in (torch.tensor([3, 1, 4]), torch.tensor([2])):
        for name, column in scored(metric, given, rows).items():
            torch.testing.assert_close(column, together[name][rows], rtol=0, atol=1e-9)


@every_shell
def test_model_and_tensors_stay_untouched(metric, given):
    with unchanged(given["model"], given["inputs"], given["attributions"]):
        scored(metric, given)


@every_shell
def test_the_callers_grad_mode_does_not_matter(metric, given):
    with torch.no_grad():
        there = scored(metric, given)
    here = scored(metric, given)
    assert all(torch.equal(here[name], there[name]) for name in here)


@every_shell
def test_repr_is_a_constructor_call(metric):
    names = vars(metrics) | {"ToPlane": lambda asked: SEARCH}
    again = eval(repr(metric), names)
    assert type(again) is type(metric)
    assert repr(again) == repr(metric)


@every_shell
def test_it_accumulates_batches_as_one(metric, given):
    whole, parts = metric.clone(), metric.clone()
    for shell, batches in ((whole, [range(5)]), (parts, [range(2), range(2, 5)])):
        shell.reset()
        shell.set_dtype(torch.float64)
        for batch in batches:
            shell.fold(scored(metric, given, torch.tensor(batch)))
    assert whole.compute().keys() == metric.quantities.keys()
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts.compute()[name], value, rtol=0, atol=1e-9)
        assert value.dtype == torch.float64
    parts.reset()
    assert all(facts["count"] == 0 for facts in parts.spread().values())


def test_update_names_only_what_is_needed(given):
    metric = Gini()
    metric.update(**given)
    metric.update(attributions=given["attributions"])
    assert metric.spread()[""]["count"] == 10
    assert metric.update_called
    other = Gini()
    value = other(**given)[""]
    torch.testing.assert_close(value, metric.compute()[""])


def test_averages_leave_out_what_is_not_valid_and_do_not_depend_on_order():
    scores = torch.tensor([3.0, math.nan, 1e8, -1e8, 0.1, 7.0])
    for order in (torch.arange(6), torch.arange(5, -1, -1), torch.tensor([2, 0, 5, 3, 1, 4])):
        assert float(Quantity().average(scores[order])) == float(Quantity().average(scores))
    assert float(Quantity().average(scores)) == pytest.approx(10.1 / 5)
    assert math.isnan(Quantity().average(torch.full((2,), math.nan)))
    assert math.isnan(Quantity(median=True).average(torch.empty(0)))
    spread = Quantity().spread(torch.tensor([1.0, 2.0, 4.0, math.nan]))
    assert spread["count"] == 4
    assert spread["missing"] == 1
    assert spread["sd"] == pytest.approx(math.sqrt(7 / 3))
    assert spread["se"] == pytest.approx(math.sqrt(7) / 3)


@pytest.mark.parametrize(
    ("scores", "median"),
    [
        ([5.0, 1.0, 2.0], 2.0),
        ([4.0, 1.0, 2.0, 9.0], 3.0),
        ([1.0, math.nan, 2.0], 1.5),
        ([1.0, math.inf, 2.0, math.inf, math.inf], math.inf),
        ([1.0, 2.0, math.inf, math.inf], math.inf),
        ([1.0, 2.0, 3.0, math.inf, math.inf], 3.0),
    ],
)
def test_medians_count_the_infinite(scores, median):
    assert float(Quantity(median=True).average(torch.tensor(scores))) == median


def test_explain_scores_each_map_with_what_applies(given):
    net, inputs, target = tiny_net(nn.ReLU), torch.rand(5, 2, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    methods = {"saliency": Saliency(), "random_map": metrics.RandomMap()}
    shells = {"perturbation": Perturbation(4), "gini": Gini(), "flag": Flags(), "closeness": Closeness()}
    shells |= {"flag/missing": Missing(), "clean": CleanAccuracy()}
    keys = explain(net, inputs, target, methods, shells, 0).flat().keys()
    per_map = {"perturbation/deletion", "perturbation/insertion", "perturbation/difference", "gini"}
    per_map |= {"flag/zero", "flag/nonfinite", "flag/ties"}
    assert keys == {"robust/clean/accuracy"} | {
        f"explain/{name}/{key}" for name in methods for key in per_map
    }

    seen = (
        explain(given["model"], inputs.double(), target, {"bsm": given["attribution"]}, shells, 0)
        .flat()
        .keys()
    )
    assert {"explain/bsm/flag/missing", "explain/bsm/closeness/cosine", "explain/bsm/closeness/kappa"} <= seen


def test_one_search_serves_map_metrics_and_model(given):
    search = ToPlane()
    shells = {"closeness": Closeness(), "flag/missing": Missing(), "boundary": BoundaryDistance(search)}
    methods = {"first": BoundarySaliency(search), "second": BoundarySaliency(search, attributions.Margin())}
    explain(given["model"], given["inputs"], given["target"], methods, shells, 0)
    assert search.asked == [5]


def test_values_can_be_drawn(given):
    plt = pytest.importorskip("matplotlib.pyplot")
    metric = Perturbation(4)
    metric.update(**given)
    figure, _ = metric.plot()
    plt.close(figure)


def test_the_contract_of_constructors_is_explicit():
    for metric in SHELLS:
        for parameter in inspect.signature(type(metric)).parameters.values():
            assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            assert parameter.annotation is not parameter.empty
            assert hasattr(metric, parameter.name)
    assert issubclass(Search, Attack)


def test_any_method_can_stand_for_a_control_and_has_no_past_then(given):
    shells = {"drift": metrics.Drift(), "gini": Gini()}
    row = {name: given[name] for name in ("model", "inputs", "target")}
    seen = explain(
        **row, attributions={}, metrics=shells, seed=0, controls={"slope": attributions.Saliency()}
    )
    assert list(seen.controls["slope"][""]) == ["gini"]
