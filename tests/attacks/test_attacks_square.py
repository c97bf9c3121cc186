import math
from collections import deque

import pytest
import torch
from digits_net import held_out, trained
from peers import returning
from pyautoattack import square as released
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.losses import LogitMargin
from lit_xai.attacks.norms import L1, L2, Linf, Norm
from lit_xai.attacks.square import Square, _Bumps, _Stripes
from lit_xai.randomness import bits, keyed, keys
from lit_xai.types import Eps

ATTACKS = [
    Square(epsilon=Eps("4/255"), queries=40),
    Square(epsilon=0.3, norm=L2(), queries=40, p=0.3),
    Square(epsilon=1.5, norm=L1(), queries=40, rescale=True),
]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
every_norm = pytest.mark.parametrize("norm", [Linf(), L2(), L1()], ids=repr)
EPSILON = {Linf(): 0.12, L2(): 0.6, L1(): 1.5}


def peer(attack, net):
    return released.SquareAttack(
        net,
        norm=type(attack.norm).__name__,
        n_queries=attack.queries,
        eps=attack.epsilon,
        p_init=attack.p,
        resc_schedule=attack.rescale,
    )


@every_attack
def test_repr_builds_the_attack_again(attack):
    assert eval(repr(attack)) == attack


def test_windows_halve_after_these_queries():
    attack = Square(epsilon=0.1)
    halvings = [query for query in range(1, 10000) if attack.share(query) == attack.share(query - 1) / 2]
    assert halvings == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert (attack.share(0), attack.share(9999)) == (0.8, 0.8 / 512)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("queries", [37, 1000, 5000])
def test_the_schedule_is_that_of_the_authors(rescale, queries):
    attack = Square(epsilon=0.1, queries=queries, rescale=rescale)
    expected = [peer(attack, None).p_selection(query) for query in range(queries)]
    assert [attack.share(query) for query in range(queries)] == expected


@pytest.mark.parametrize("norm", [L2(), L1()], ids=repr)
@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 7, 28])
def test_bumps_are_those_of_the_authors(norm, side, monkeypatch):
    inputs = torch.zeros(1, 1, 30, 30)
    pair = _Bumps(inputs, torch.zeros(1, dtype=torch.int64), 1.0, norm).pair(side).view(2, side, side)
    other = peer(Square(epsilon=1.0, norm=norm), None)
    other.init_hyperparam(inputs)
    for turned in (0, 1):
        monkeypatch.setattr(released.torch, "rand", lambda shape, t=turned: torch.tensor([0.25 + t / 2]))
        assert_close(pair[turned], other.eta(side), atol=1e-6, rtol=0)


def half(draws):
    return 0.25 + 0.5 * (draws & 1).to(torch.float32)


def numbers(attack, inputs, draw):
    """What the released code has to draw so that it sees our windows, signs and turns, in its order."""
    channels, height, width = inputs.shape[1:]
    flat = attack.norm == Linf()
    if flat:
        yield 1 - half(bits(draw, 0, (channels, 1, width)))
    else:
        tiles = bits(draw, 0, (channels + 1, 5, 5))
        for row in range(5):
            for column in range(5):
                yield half(tiles[:, -1, row, column])
                yield 1 - half(tiles[:, :-1, row, column])[..., None, None]
    moves = (_Stripes if flat else _Bumps)(inputs, draw, attack.epsilon, attack.norm)
    for query in range(attack.queries):
        if query % 10 == 0:
            moves.draw(1 + query // 10, [attack.share(query + later) for later in range(10)])
        turn = query % 10
        for corner in moves.corners[0, turn][: 1 if flat else 2]:
            for size, place in ((height, corner // width), (width, corner % width)):
                yield (place[None] + 0.5) / max(1, size - moves.sides[turn])
        signs = 0.5 + moves.signs[:, turn, :, 0] / 4
        if flat:
            yield signs[0, :, None, None]
        else:
            yield half(moves.turned[:, turn])
            yield signs[..., None, None]


@pytest.mark.parametrize(
    ("norm", "images", "queries"),
    [
        (Linf(), 5, 60),
        (L2(), 5, 60),
        (L1(), 5, 60),
        pytest.param(Linf(), 8, 500, marks=pytest.mark.slow),
        pytest.param(
            L2(), 12, 600, marks=pytest.mark.slow
        ),  # their l1 ball is smaller by 1e-6, which adds up
    ],
)
def test_with_the_same_draws_the_released_code_finds_the_same_points(norm, images, queries, monkeypatch):
    small, (inputs, target) = trained(), held_out(list(range(images)))
    net = nn.Sequential(nn.Upsample(8, mode="bilinear"), small)
    inputs = nn.functional.interpolate(
        inputs, 10, mode="bilinear"
    )  # their grid is ours if 5 divides the sides
    attack, fooled = Square(EPSILON[norm], norm, queries), 0
    for row in (net(inputs).argmax(1) == target).nonzero():
        with keyed(0, row):
            points, draw = attack(net, inputs[row], target[row]), keys(row, "Square")
        other = peer(attack, net)
        other.init_hyperparam(inputs)
        feed = deque(numbers(attack, inputs[row], draw))
        monkeypatch.setattr(released.torch, "rand", lambda shape, feed=feed: feed.popleft())
        theirs = other.attack_single_run(inputs[row], target[row])[1]
        monkeypatch.undo()
        assert_close(points, theirs, atol=1e-3, rtol=0)
        fooled += int((net(points).argmax(1) != target[row]).sum())
    assert 0 < fooled < images


@pytest.mark.slow
@every_norm
def test_as_many_images_fall_as_for_the_authors(norm, monkeypatch):
    """With windows that reach the last row and column, in which theirs never lie."""

    class Inclusive(released.SquareAttack):
        def random_int(self, low=0, high=1, shape=(1,)):
            return super().random_int(low, high + 1, list(shape))

    net, (inputs, target) = trained(), held_out(list(range(300)))
    attack = Square(EPSILON[norm], norm, 400)
    monkeypatch.setattr(released, "SquareAttack", Inclusive)
    stands = net(attack(net, inputs, target)).argmax(1) == target
    theirs = net(peer(attack, net).perturb(inputs, target)).argmax(1) == target
    assert 0.2 < theirs.float().mean() < 0.9
    assert abs(stands.float().mean() - theirs.float().mean()) < 0.04  # two of their seeds differ by 0.02
    assert (stands == theirs).float().mean() > 0.88


def test_the_corner_of_a_linear_classifier_is_found():
    """Two classes and one pixel: the worst corner of the cube is the worst of all points."""
    case = linear_case(classes=2)
    attack = Square(epsilon=0.004, queries=1500, p=0.02)
    points = attack(case.model, case.inputs, case.target)
    gap = case.weight[1 - case.target] - case.weight[case.target]
    worst = case.inputs + 0.004 * gap.sign().view_as(case.inputs)
    lead = LogitMargin()(case.model(points), case.target)
    stands = LogitMargin()(case.model(worst), case.target) < 0
    assert 0 < stands.sum() < 6
    assert torch.equal(lead <= 0, stands)
    assert_close(points[stands], worst[stands])


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 4, 11), (3, 9, 3)], ids=str)
def test_budget_and_box_hold_and_no_margin_rises(attack, dtype, shape):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)
    inputs = torch.rand(24, *shape, dtype=dtype).mul(1.2).sub(0.1).clamp(0, 1)  # some pixels on the box
    target = net(inputs).argmax(1)
    target[0] = (target[0] + 1) % 4
    points = attack(net, inputs, target)
    assert points.dtype == dtype
    assert not points.requires_grad
    assert points.min() >= 0
    assert points.max() <= 1
    assert (attack.norm.length(points - inputs) <= attack.epsilon + 1e-6).all()
    assert torch.equal(points[0], inputs[0])
    lead = LogitMargin()(net(points), target) - LogitMargin()(net(inputs), target)
    assert (lead > 0).float().mean() > 0.8


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=repr)
def test_every_image_has_windows_of_its_own_and_they_reach_all_sides(norm):
    kind = _Stripes if norm == Linf() else _Bumps
    moves = kind(torch.full((200, 1, 6, 9), 0.5), keys(torch.zeros(200, 1), "t"), 0.1, norm)
    start = moves.start()
    moves.draw(1, [0.2] * 10)
    assert moves.sides == [3] * 10
    changed = torch.stack([moves.next(start, turn) for turn in range(10)]) != start[None]
    corners = moves.corners[..., 0]
    assert (corners // 9).unique().tolist() == [0, 1, 2, 3]
    assert (corners % 9).unique().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(corners.unique(dim=0)) == 200
    if norm == Linf():
        assert changed.any(0).any(0).all()
        inside = torch.zeros(54, dtype=torch.bool)
        inside[moves.windows(9)[7]] = True
        assert not changed[9, 7].flatten()[~inside].any()


@every_attack
def test_a_query_costs_one_forward_pass_and_no_gradient(attack):
    net = tiny_net(nn.ReLU)
    inputs = torch.rand(5, 2, 8, 8)
    target = net(inputs).argmax(1)
    counted = Recorder(net)
    with returning(counted) as returned:
        Square(1e-6, attack.norm, attack.queries)(counted, inputs, target)
    assert counted.calls == [5] * (2 + attack.queries)
    assert returned == []


@every_attack
def test_fooled_images_leave_after_ten_queries(attack, relu_net, batch):
    inputs, target = batch
    counted = Recorder(relu_net)
    Square(50.0, attack.norm)(counted, inputs, target)
    assert counted.calls[:2] == [5, 5]
    assert sum(counted.calls) < 300
    counted = Recorder(relu_net)
    assert torch.equal(attack(counted, inputs, (target + 1) % 4), inputs)
    assert counted.calls == [5]


@every_attack
@pytest.mark.parametrize("frozen", [False, True])
def test_model_inputs_and_global_generator_stay_as_they_were(attack, frozen, relu_net, batch):
    relu_net.requires_grad_(not frozen)
    with unchanged(relu_net, *batch), keyed(0, torch.arange(5)):
        before = torch.random.get_rng_state()
        points = attack(relu_net, *batch)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(points, attack(relu_net, *batch))
    with keyed(1, torch.arange(5)):
        assert not torch.equal(points, attack(relu_net, *batch))


@every_attack
def test_batch_size_and_order_do_not_matter(attack, smooth_net):
    inputs = torch.rand(12, 2, 8, 8, dtype=torch.float64)
    target = smooth_net(inputs).argmax(1)
    order = torch.tensor([4, 0, 5, 11])
    with keyed(3, torch.arange(12)):
        whole = attack(smooth_net, inputs, target)
    with keyed(3, order):
        assert_close(attack(smooth_net, inputs[order], target[order]), whole[order], atol=1e-12, rtol=0)


@every_attack
def test_memory_layout_and_half_precision_are_no_matter(attack, relu_net, batch):
    inputs, target = batch
    with keyed(0, torch.arange(5)):
        expected = attack(relu_net, inputs, target)
        rows = attack(relu_net, inputs.contiguous(memory_format=torch.channels_last), target)
        assert_close(rows, expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert attack(relu_net, inputs, target).dtype == torch.float32


def test_other_norms_are_refused():
    class Other(Norm):
        length = project = steepest = start = None

    with pytest.raises(TypeError, match=r"no windows for the norm .* use Linf"):
        Square(epsilon=0.1, norm=Other())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Square(epsilon=0.0), "`epsilon` must be greater than 0, got 0.0"),
        (lambda: Square(epsilon=0.1, queries=0), "`queries` must be at least 1, got 0"),
        (lambda: Square(epsilon=0.1, p=0.0), r"`p` must lie in \(0, 1\], got 0.0"),
        (lambda: Square(epsilon=0.1, p=1.5), r"`p` must lie in \(0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
