"""Laws of every metric: one score per sample, within its bounds, that depends on that sample alone."""

import copy
import inspect
import math

import pytest
import torch
from rows import METRICS, Row
from subjects import Recorder, pooled_net, tiny_net, unchanged
from torch import nn

from lit_xai import attacks, attributions, metrics, randomness
from lit_xai.attributions import BoundarySaliency, IntegratedGradients, NegativeFlux, Saliency
from lit_xai.metrics import Companions, Facts

every_row = pytest.mark.parametrize("row", METRICS, ids=str)
IDS = torch.tensor([7, 3, 11, 0, 5])
# A metric is tried on the first of these that it applies to.
EXPLAINED = (Saliency(), BoundarySaliency(), IntegratedGradients(steps=3), NegativeFlux(points=2, steps=1))


def accepted(metric, net):
    """Whether a metric takes a network: some want one that sees images of any size."""
    try:
        metric.check("it", Facts(net, (2, 8, 8), 4, 64, 4, masks=True, device=torch.device("cpu")))
    except ValueError:
        return False
    return True


def everything(metric, dtype=torch.float64):
    """All that the vocabulary has, for five images."""
    net = next(net for net in (tiny_net(nn.ReLU, dtype), pooled_net(dtype)) if accepted(metric, net))
    inputs = torch.rand(5, 2, 8, 8, dtype=dtype)
    target = net(inputs).argmax(1)
    attribution = next(method for method in EXPLAINED if metric.applies(method))
    return {
        "model": net,
        "inputs": inputs,
        "target": target,
        "attribution": attribution,
        "attributions": attribution(net, inputs, target),
        "mask": torch.rand(5, 8, 8) > 0.5,
        "companions": Companions(
            torch.rand(5, 8, 2, 8, 8, dtype=dtype),
            (target[:, None] + torch.arange(1, 9)) % 4,
            torch.randint(100, 110, (5, 8)),
        ),
        "previous": torch.randn(5, 8, 8, dtype=dtype),
    }


def part(given, rows):
    sliced = torch.Tensor | Companions
    return {name: value[rows] if isinstance(value, sliced) else value for name, value in given.items()}


def scores(metric, given, ids=IDS, seed=0):
    with randomness.keyed(seed, ids):
        return metric.named(**given)


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_score_per_sample_and_quantity_within_its_bounds(row: Row, dtype):
    metric = row.instance
    seen = scores(metric, everything(metric, dtype))
    assert list(seen) == list(metric.quantities)
    for name, column in seen.items():
        assert column.shape == (5,)
        assert not column.isnan().all()
        low, high = metric.quantities[name].bounds
        slack = 1e-6
        assert ((column >= low - slack) & (column <= high + slack) | column.isnan()).all()


@every_row
@pytest.mark.parametrize("fail", [False, True], ids=["passing", "failing"])
def test_model_and_batch_stay_untouched(row: Row, fail):
    given = everything(row.instance)
    model = given["model"] = Recorder(given["model"], fail_at=1 if fail else None)
    watched = [given[name] for name in ("inputs", "target", "attributions", "mask")]
    with unchanged(model, *watched):
        if fail and "model" in row.instance.needs:
            with pytest.raises(RuntimeError, match="fails on purpose"):
                scores(row.instance, given)
        else:
            scores(row.instance, given)


@every_row
def test_scores_of_a_sample_depend_on_that_sample_alone(row: Row):
    given = everything(row.instance)
    together = scores(row.instance, given)
    for rows in (torch.tensor([3, 1, 4]), torch.tensor([2])):
        apart = scores(row.instance, part(given, rows), IDS[rows])
        for name, column in together.items():
            torch.testing.assert_close(apart[name], column[rows], rtol=1e-9, atol=1e-9, equal_nan=True)


@every_row
def test_draws_are_keyed(row: Row):
    given = everything(row.instance)
    before = torch.get_rng_state()
    first, again = (scores(row.instance, given, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first, again, rtol=0, atol=0, equal_nan=True)


@every_row
def test_updates_add_up_to_one_update(row: Row):
    metric, given = copy.deepcopy(row.instance), everything(row.instance)
    metric.reset()
    metric.set_dtype(torch.float64)
    for rows in (torch.tensor([0, 1]), torch.tensor([2, 3, 4])):
        with randomness.keyed(0, IDS[rows]):
            metric.update(**part(given, rows))
    for name, column in scores(metric, given).items():
        valid = column[~column.isnan()].double().sort().values
        middle = (valid[(len(valid) - 1) // 2] + valid[len(valid) // 2]) / 2
        expected = middle if metric.quantities[name].median else valid.mean()
        torch.testing.assert_close(metric.compute()[name], expected, rtol=1e-9, atol=1e-9, check_dtype=False)
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert all(math.isnan(value) for value in metric.compute().values())


@every_row
def test_no_sample_no_score(row: Row):
    none = torch.zeros(0, dtype=torch.int64)
    seen = scores(row.instance, part(everything(row.instance), none), none)
    assert all(column.shape == (0,) for column in seen.values())


@pytest.mark.parametrize("row", [row for row in METRICS if hasattr(row.instance, "chunk")], ids=str)
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunk_bounds_the_images_per_call_and_changes_nothing(row: Row, chunk):
    given = everything(row.instance)
    expected = scores(row.instance, given)
    metric = copy.deepcopy(row.instance)
    metric.chunk = chunk
    counted = Recorder(given["model"])
    seen = scores(metric, given | {"model": counted})
    assert max(counted.calls) <= chunk
    for name, column in expected.items():
        torch.testing.assert_close(seen[name], column, rtol=1e-9, atol=1e-9)


@every_row
def test_repr_is_a_constructor_call_with_every_argument(row: Row):
    names = vars(attributions) | vars(attacks) | vars(metrics)
    again = eval(repr(row.instance), dict(names))
    assert type(again) is type(row.instance)
    assert repr(again) == repr(row.instance)
    for name in inspect.signature(type(row.instance)).parameters:
        assert f"{name}=" in repr(row.instance)
