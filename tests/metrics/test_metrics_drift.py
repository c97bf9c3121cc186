"""Drift against SciPy and by hand."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from lit_xai.attributions import Saliency
from lit_xai.metrics.drift import Drift, drift
from lit_xai.observe import explain


def test_drift_is_that_of_scipy_and_numpy():
    maps, before = torch.randn(4, 3, 7, 6), torch.randn(4, 7, 6)
    scores = Drift(share=0.25).named(attributions=maps, previous=before)
    for image in range(4):
        now, then = maps[image].sum(0).double().numpy().flatten(), before[image].double().numpy().flatten()
        ranks = scipy.stats.spearmanr(np.abs(now), np.abs(then)).statistic
        assert float(scores["spearman"][image]) == pytest.approx(ranks, abs=1e-9)
        most = round(0.25 * 42)
        tops = [set(np.argsort(-np.abs(each))[:most]) for each in (now, then)]
        assert float(scores["overlap"][image]) == pytest.approx(len(tops[0] & tops[1]) / most)
        cosine = now @ then / np.linalg.norm(now) / np.linalg.norm(then)
        assert float(scores["cosine"][image]) == pytest.approx(cosine, abs=1e-6)


def test_a_map_that_stays_is_steady_and_one_that_turns_has_turned():
    maps = torch.randn(3, 2, 6, 6)
    still = Drift().named(attributions=maps, previous=maps.sum(1))
    turned = Drift().named(attributions=maps, previous=-maps.sum(1))
    for name in ("spearman", "overlap", "cosine"):
        torch.testing.assert_close(still[name], torch.ones(3, dtype=torch.float64))
    for name, value in {"spearman": 1.0, "overlap": 1.0, "cosine": -1.0}.items():
        torch.testing.assert_close(turned[name], torch.full((3,), value, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_a_louder_map_has_not_moved(scale):
    maps = torch.randn(3, 2, 6, 6)
    seen = Drift().named(attributions=maps * scale, previous=maps.sum(1))
    for name, column in seen.items():
        torch.testing.assert_close(column, torch.ones_like(column), rtol=1e-5, atol=0, msg=name)


def test_there_is_no_drift_at_the_first_look():
    maps, first = torch.randn(3, 2, 6, 6), torch.full((3, 6, 6), math.nan)
    first[1] = maps[1].sum(0)
    seen = Drift().named(attributions=maps, previous=first)
    none = Drift().named(attributions=maps, previous=None)
    for name in seen:
        assert seen[name].isnan().tolist() == [True, False, True]
        assert none[name].isnan().all()


def test_maps_without_an_order_have_none_to_keep():
    now, before = torch.rand(4, 5, 5), torch.rand(4, 5, 5)
    now[0], before[1], now[2] = 0, 0.5, math.inf
    scores = drift(now, before, 0.1)
    for name in ("spearman", "overlap"):
        assert scores[name].isnan().tolist() == [True, True, True, False]
    assert scores["cosine"].isnan().tolist() == [True, False, True, False]


def test_explain_hands_over_the_last_look(relu_net: nn.Module, batch):
    methods, metrics = {"saliency": Saliency()}, {"drift": Drift()}
    first = explain(relu_net, *batch, methods, metrics, seed=0)
    assert first.scores["saliency"]["drift"]["cosine"].isnan().all()
    past = {"saliency": first.maps["saliency"].sum(1)}
    second = explain(relu_net, *batch, methods, metrics, seed=0, previous=past)
    torch.testing.assert_close(
        second.scores["saliency"]["drift"]["cosine"], torch.ones(5, dtype=torch.float64)
    )


def test_bad_input():
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"`share` must lie in \(0, 1\]"):
            Drift(share=share)
