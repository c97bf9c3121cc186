"""Rules of relevance, against loops over every pair of an input and an output."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lit_xai.attributions import rules
from lit_xai.attributions.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Junction,
    WSquare,
    ZBox,
    ZPlus,
)
from lit_xai.network import Convolution, Linear

EVERY = [
    Epsilon(),
    Epsilon(0.5),
    Gamma(),
    Gamma(3),
    AlphaBeta(),
    AlphaBeta(1.5, 0.5),
    ZPlus(),
    Flat(),
    WSquare(),
]
EVERY += [ZBox(-0.5, 2)]
every_rule = pytest.mark.parametrize("rule", EVERY, ids=repr)
any_bias = pytest.mark.parametrize("absorb", [True, False], ids=["absorb", "ignore"])
CASES = {
    "linear": (Linear, (3, 5), {}, (2, 5)),
    "conv": (Convolution, (4, 3, 3, 3), {"padding": (1, 1)}, (2, 3, 4, 5)),
    "strided": (
        Convolution,
        (2, 2, 3, 2),
        {"stride": (2, 1), "padding": (2, 0), "dilation": (1, 2)},
        (2, 2, 5, 5),
    ),
    "grouped": (Convolution, (6, 2, 2, 2), {"groups": 2, "stride": (2, 2)}, (2, 4, 4, 4)),
    "depthwise": (Convolution, (3, 1, 3, 3), {"groups": 3, "padding": (1, 1)}, (1, 3, 3, 3)),
}
every_case = pytest.mark.parametrize("case", CASES)


def junction(case, absorb=True, positive=False, dtype=torch.float64):
    kind, shape, how, size = CASES[case]
    layer = kind(torch.randn(shape, dtype=dtype), torch.randn(shape[0], dtype=dtype), **how)
    source = torch.rand(size, dtype=dtype) if positive else torch.randn(size, dtype=dtype)
    return Junction(
        layer, source, layer(source), absorb, positive, lambda pixel: torch.full_like(source, pixel)
    )


def matrices(at):
    """The layer as a matrix, and which inputs each output reads."""
    units = torch.eye(at.source[0].numel(), dtype=at.source.dtype).view(-1, *at.source.shape[1:])
    dense = at.layer.apply(units, at.layer.weight).flatten(1).T
    reads = at.layer.apply(units, torch.ones_like(at.layer.weight)).flatten(1).T
    return dense.numpy(), reads.numpy() > 0


def by_loops(rule, at, relevance, tiny=1e-9):
    """The published sums, entry by entry."""
    dense, reads = matrices(at)
    bias = at.bias.expand(at.output.shape[1:]).flatten().numpy()
    result = np.zeros((len(at.source), dense.shape[1]))
    for image, j in itertools.product(range(len(at.source)), range(len(dense))):
        x, r = at.source[image].flatten().numpy(), relevance[image].flatten()[j].item()
        w, b = dense[j], bias[j]
        c = w * x
        y = c.sum() + b
        absorbed = b if at.absorb else 0.0

        def share(parts, of_bias, r=r, tiny=tiny):
            total = parts.sum() + of_bias
            return parts / (total + (tiny if total >= 0 else -tiny)) * r

        match rule:
            case Epsilon():
                result[image] += share(c, absorbed, tiny=rule.epsilon)
            case Gamma():
                side = np.maximum if y >= 0 else np.minimum
                result[image] += share(c + rule.gamma * side(c, 0), absorbed + rule.gamma * side(absorbed, 0))
            case ZPlus():
                result[image] += share(np.maximum(c, 0), max(absorbed, 0))
            case AlphaBeta():
                result[image] += rule.alpha * share(np.maximum(c, 0), max(absorbed, 0))
                result[image] -= rule.beta * share(np.minimum(c, 0), min(absorbed, 0))
            case Flat():
                if reads[j].any():
                    result[image] += r * reads[j] / reads[j].sum()
            case WSquare():
                result[image] += share(w**2, absorbed**2)
            case ZBox():
                result[image] += share(
                    c - rule.low * np.maximum(w, 0) * reads[j] - rule.high * np.minimum(w, 0) * reads[j], 0.0
                )
    return torch.from_numpy(result).view_as(at.source)


@every_rule
@every_case
@any_bias
def test_rules_are_their_sums(rule, case, absorb):
    at = junction(case, absorb)
    relevance = torch.randn_like(at.output)
    torch.testing.assert_close(rule(at, relevance), by_loops(rule, at, relevance), rtol=1e-6, atol=1e-8)


@every_rule
@every_case
@any_bias
def test_what_cannot_be_negative_takes_a_shorter_way_to_the_same(rule, case, absorb):
    at = junction(case, absorb, positive=True)
    relevance = torch.randn_like(at.output)
    torch.testing.assert_close(rule(at, relevance), by_loops(rule, at, relevance), rtol=1e-6, atol=1e-8)


@every_case
@any_bias
def test_gamma_lies_between_epsilon_and_z_plus(case, absorb):
    at = junction(case, absorb)
    relevance = torch.randn_like(at.output)
    torch.testing.assert_close(Gamma(0)(at, relevance), Epsilon(1e-9)(at, relevance), rtol=1e-12, atol=1e-12)
    active = relevance * (at.output > 0)
    torch.testing.assert_close(Gamma(1e9)(at, active), ZPlus()(at, active), rtol=1e-6, atol=1e-6)
    assert (Gamma(0)(at, active) - ZPlus()(at, active)).abs().max() > 0.1


@every_case
def test_alpha_beta_one_zero_is_z_plus(case):
    at = junction(case)
    relevance = torch.randn_like(at.output)
    assert torch.equal(AlphaBeta(1, 0)(at, relevance), ZPlus()(at, relevance))


@every_rule
def test_nothing_is_lost_where_the_bias_is_left_out(rule):
    at = junction("conv", absorb=False)
    relevance = torch.randn_like(at.output)
    kept = rule(at, relevance).flatten(1).sum(1)
    tolerance = 20 if rule == Epsilon(0.5) else 1e-4
    torch.testing.assert_close(kept, relevance.flatten(1).sum(1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rule", [Flat(), WSquare()], ids=repr)
def test_rules_that_look_at_weights_alone_do_not_see_the_source(rule):
    first, second = junction("conv"), junction("conv")
    second = Junction(first.layer, second.source, second.output)
    relevance = torch.randn_like(first.output)
    assert torch.equal(rule(first, relevance), rule(second, relevance))


def test_what_has_no_positive_contribution_loses_its_relevance():
    weight = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    source = torch.tensor([[3.0, 1.0]])
    at = Junction(Linear(weight, None), source, source @ weight.T)
    assert torch.equal(ZPlus()(at, torch.tensor([[0.0, 7.0]])), torch.zeros(1, 2))
    torch.testing.assert_close(ZPlus()(at, torch.tensor([[5.0, 0.0]])), torch.tensor([[3.0, 2.0]]))


def test_epsilon_zero_shares_nothing_out_of_nothing():
    at = Junction(Linear(torch.eye(2), None), torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 2.0]]))
    assert torch.equal(Epsilon(0)(at, torch.tensor([[0.0, 6.0]])), torch.tensor([[0.0, 6.0]]))
    assert Epsilon(0)(at, torch.tensor([[5.0, 6.0]])).isfinite().all()


def test_a_channel_that_falls_with_the_pixel_has_its_bounds_exchanged():
    at = junction("conv")
    turned = Junction(at.layer, at.source, at.output, seen=lambda pixel: torch.full_like(at.source, -pixel))
    relevance = torch.randn_like(at.output)
    torch.testing.assert_close(ZBox(-3, 2)(turned, relevance), ZBox(-2, 3)(at, relevance))


@every_rule
@pytest.mark.parametrize("case", ["linear", "grouped"])
@any_bias
def test_rules_can_be_differentiated(rule, case, absorb):
    at = junction(case, absorb)

    def relevance_of(source, relevance):
        return rule(Junction(at.layer, source, at.layer(source), absorb, seen=at.seen), relevance)

    points = at.source.requires_grad_(), torch.randn_like(at.output, requires_grad=True)
    assert torch.autograd.gradcheck(relevance_of, points, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "positive", "ahead", "back"),
    [
        (Epsilon(), False, 0, 2),
        (ZPlus(), True, 2, 2),
        (ZPlus(), False, 4, 4),
        (AlphaBeta(), True, 4, 4),
        (AlphaBeta(), False, 8, 8),
        (AlphaBeta(1, 0), False, 4, 4),
        (Gamma(), True, 2, 4),
        (Gamma(), False, 2, 4),
        (WSquare(), False, 1, 2),
        (ZBox(), False, 2, 4),
    ],
    ids=str,
)
def test_passes(rule, positive, ahead, back, monkeypatch):
    """Images through the layer, and back through it, of a batch of two; twice the channels count twice."""
    at, passes = junction("conv", positive=positive), {"apply": 0, "transpose": 0}
    channels = at.source.shape[1]

    def counting(name):
        plain = getattr(Convolution, name)

        def counted(self, first, *rest):
            passes[name] += len(first) * next(x for x in rest[::-1] if x is not None).shape[1] // channels
            return plain(self, first, *rest)

        return counted

    for name in passes:
        monkeypatch.setattr(Convolution, name, counting(name))
    rule(at, torch.randn_like(at.output))
    assert passes == {"apply": ahead, "transpose": back}


@every_rule
def test_single_precision_stays_single_and_near(rule):
    at = junction("conv", positive=True)
    relevance = torch.rand_like(at.output)
    single = Junction(
        Convolution(at.layer.weight.float(), at.layer.bias.float(), padding=(1, 1)),
        at.source.float(),
        at.output.float(),
        positive=True,
        seen=lambda pixel: torch.full_like(at.source, pixel).float(),
    )
    found = rule(single, relevance.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), rule(at, relevance), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Epsilon(-1), "`epsilon` must be at least 0, got -1"),
        (lambda: Epsilon(float("nan")), "`epsilon` must be at least 0, got nan"),
        (lambda: Gamma(-0.1), "`gamma` must be at least 0"),
        (lambda: AlphaBeta(1, 1), "`alpha` - `beta` must be 1, got 1 and 1"),
        (lambda: AlphaBeta(0, -1), "`beta` must be at least 0"),
        (lambda: ZBox(1, 0), "`low` must be less than `high`, got 1 and 0"),
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_box_needs_a_layer_that_reads_the_images():
    at = junction("linear")
    with pytest.raises(ValueError, match="`ZBox` must be the rule of a layer that reads the images"):
        ZBox()(Junction(at.layer, at.source, at.output), torch.ones_like(at.output))


def test_rules_are_values():
    for rule in EVERY:
        assert eval(repr(rule), vars(rules)) == rule
        assert hash(rule) == hash(eval(repr(rule), vars(rules)))
    assert not isinstance(Flat(), nn.Module)
