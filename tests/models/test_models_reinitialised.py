"""Networks that have forgotten: what is fresh, what stays, and that nobody else notices."""

import threading
import weakref
import zlib

import pytest
import torch
from subjects import tiny_net, unchanged
from torch import nn

from lit_xai.models import ResNet20
from lit_xai.models.reinitialised import layers, reinitialised, untrained


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second, *names):
    return all(torch.equal(first[name], second[name]) for name in names or first)


def test_layers_are_named_from_the_output_to_the_input():
    assert layers(tiny_net(nn.ReLU)) == ["7", "3", "1", "0"]
    assert layers(nn.Sequential(nn.Flatten(), nn.ReLU())) == []
    assert layers(nn.Linear(2, 2)) == [""]
    names = layers(ResNet20(3, 10))
    assert names[0] == "linear"
    assert names.index("layer3.0.conv1") < names.index("layer1.0.conv1")


def test_fresh_weights_are_those_of_a_new_layer():
    net = tiny_net(nn.ReLU)
    fresh = reinitialised(net, 5)
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(b"5 3"))
        conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        torch.manual_seed(zlib.crc32(b"5 7"))
        linear = nn.Linear(128, 4)
    assert same(conv.state_dict(), fresh[3].state_dict())
    assert same(linear.state_dict(), fresh[7].state_dict())
    assert torch.equal(fresh[1].weight, torch.ones(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_copy_keeps_its_precision_is_frozen_and_in_eval_mode(dtype):
    net = tiny_net(nn.ReLU).to(dtype).train()
    for twin in (reinitialised(net, 0), reinitialised(net, 0, ["7"])):
        assert not any(part.training for part in twin.modules())
        assert not any(parameter.requires_grad for parameter in twin.parameters())
        assert all(parameter.dtype == dtype for parameter in twin.parameters())
        assert twin(torch.rand(2, 2, 8, 8, dtype=dtype)).isfinite().all()


def test_a_seed_is_a_network():
    net = tiny_net(nn.ReLU)
    first, again, other = (reinitialised(net, seed).state_dict() for seed in (3, 3, 4))
    assert same(first, again)
    assert not torch.equal(first["7.weight"], other["7.weight"])
    assert not same(first, other, "0.weight")


@pytest.mark.parametrize("chosen", [["7"], ["7", "3"], ["0"], ["7", "3", "1", "0"]], ids=str)
def test_what_is_not_chosen_stays_and_what_is_does_not_depend_on_the_rest(chosen):
    net = tiny_net(nn.ReLU)
    before, fresh = state(net), reinitialised(net, 1).state_dict()
    after = reinitialised(net, 1, chosen).state_dict()
    for name, tensor in after.items():
        learned = "running" in name or "tracked" in name or name.split(".")[0] not in chosen
        assert torch.equal(tensor, (before if learned else fresh)[name]), name
        assert tensor.data_ptr() not in [own.data_ptr() for own in net.state_dict().values()]


def test_running_statistics_of_an_untrained_network_are_those_before_the_first_batch():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3))
    net(torch.rand(4, 2, 8, 8))
    fresh = reinitialised(net, 0)
    for norm in fresh[1:]:
        assert torch.equal(norm.running_mean, torch.zeros(3))
        assert torch.equal(norm.running_var, torch.ones(3))
        assert int(norm.num_batches_tracked) == 0


class Token(nn.Module):
    """A network with parameters that no module resets."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.arange(12.0).view(1, 3, 4))
        self.register_buffer("mean", torch.full((1,), 0.5))
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, inputs):
        return self.attend(inputs + self.token, inputs, inputs)[0].mean(1)


def test_parameters_without_an_initialiser_change_places():
    net = Token().eval()
    fresh = reinitialised(net, 0)
    assert not torch.equal(fresh.token, net.token)
    assert torch.equal(fresh.token.flatten().sort().values, torch.arange(12.0))
    assert fresh.token.shape == (1, 3, 4)
    assert torch.equal(fresh.mean, net.mean)
    # Attention initialises its own: a uniform draw, no permutation of what was there.
    assert not torch.equal(
        fresh.attend.in_proj_weight.flatten().sort().values, net.attend.in_proj_weight.flatten().sort().values
    )
    assert layers(net) == ["attend.out_proj", "attend", ""]
    assert torch.equal(reinitialised(net, 0, [""]).token, fresh.token)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_weights_that_are_computed_from_others_are_fresh_too(normed):
    net = normed(nn.Linear(6, 5)).eval()
    points = torch.rand(3, 6)
    expected = net(points)  # leaves a weight with a graph behind, which a plain deep copy refuses
    fresh = reinitialised(net, 0)
    assert (fresh.weight - net.weight).abs().max() > 0.05
    assert not torch.allclose(fresh(points), expected)
    assert torch.equal(net(points), expected)


def test_the_network_and_the_random_state_stay_as_they_were():
    net = tiny_net(nn.ReLU)
    with unchanged(net):
        before = torch.get_rng_state()
        reinitialised(net, 0)
        reinitialised(net, 0, ["7", "0"])
        untrained(net, 0)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_are_the_same_on_each_device():
    net = tiny_net(nn.ReLU)
    expected = reinitialised(net, 2).state_dict()
    net.cuda()
    before = torch.cuda.get_rng_state()
    seen = reinitialised(net, 2)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert all(tensor.is_cuda for tensor in seen.state_dict().values())
    assert same(expected, {name: tensor.cpu() for name, tensor in seen.state_dict().items()})


class Watcher:
    """Holds what cannot be copied, as a trainer does."""

    def __init__(self):
        self.lock = threading.Lock()
        self.seen = []

    def look(self, module, inputs, output):
        self.seen.append(module)


def test_hooks_are_called_but_what_they_are_bound_to_is_not_copied():
    net, watcher = tiny_net(nn.ReLU), Watcher()
    net[0].register_forward_hook(watcher.look)
    net[5].register_forward_hook(lambda module, inputs, output: output * 0)
    with unchanged(net):
        fresh = reinitialised(net, 0)
    points = torch.rand(2, 2, 8, 8)
    torch.testing.assert_close(fresh(points), fresh[7].bias.expand(2, 4))
    assert watcher.seen == [fresh[0]]
    fresh[0]._forward_hooks.clear()
    net(points)
    assert watcher.seen == [fresh[0], net[0]]


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_networks_are_copied(in_place):
    net, points = tiny_net(nn.ReLU), torch.rand(2, 2, 8, 8)
    expected = reinitialised(net, 0)(points)
    if in_place:
        net.compile(backend="eager")
        compiled = net
    else:
        compiled = torch.compile(net, backend="eager")
    with torch.compiler.set_stance("force_eager"):
        before = compiled(points)
        fresh = reinitialised(compiled, 0)
        assert torch.equal(compiled(points), before)
        assert len(layers(compiled)) == 4
        assert torch.equal(fresh(points), expected)


def test_a_part_that_is_compiled_is_the_same_layer():
    net = tiny_net(nn.ReLU)
    part = torch.compile(tiny_net(nn.ReLU), backend="eager")
    expected = reinitialised(nn.Sequential(net), 0).state_dict()
    seen = reinitialised(nn.Sequential(part), 0).state_dict()
    assert all(torch.equal(seen[name.replace("0.", "0._orig_mod.", 1)], expected[name]) for name in expected)


def test_in_inference_mode_it_is_the_same_network_and_has_gradients():
    net, points = tiny_net(nn.ReLU), torch.rand(2, 2, 8, 8, requires_grad=True)
    with torch.inference_mode():
        fresh, part = untrained(net, 0), reinitialised(net, 0, ["7"])
    assert same(part.state_dict(), reinitialised(net, 0, ["7"]).state_dict())
    assert untrained(net, 0) is fresh
    assert torch.autograd.grad(fresh(points).sum(), points)[0].any()


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match=r"`chosen` must name layers with parameters .* got '2'"):
        reinitialised(tiny_net(nn.ReLU), 0, ["2"])


def test_the_untrained_network_is_made_once_until_the_network_changes():
    net = tiny_net(nn.ReLU)
    first = untrained(net, 0)
    assert untrained(net, 0) is first
    assert same(first.state_dict(), reinitialised(net, 0).state_dict())
    with torch.no_grad():
        net[0].weight.mul_(2)
    second = untrained(net, 0)
    assert second is not first
    assert same(second.state_dict(), first.state_dict())  # but it is no other network
    net[1].running_mean.add_(1)
    assert untrained(net, 0) is not second
    assert untrained(net, 1) is not untrained(net, 0)
    with torch.no_grad():
        net[0].weight[0] = torch.nan
    assert untrained(net, 0) is untrained(net, 0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_of_an_optimizer_is_a_change_of_the_network(fused):
    net = Token()
    first = untrained(net, 0)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    net(torch.rand(2, 3, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(untrained(net.eval(), 0).token, reinitialised(net, 0).token)
    assert untrained(net, 0) is not first


def test_one_copy_is_kept_and_none_when_the_network_is_gone():
    net = tiny_net(nn.ReLU)
    copies = weakref.WeakSet()
    for _ in range(50):
        with torch.no_grad():
            net[7].bias.add_(1)
        copies.add(untrained(net, 0))
        assert len(copies) == 1
    gone = weakref.ref(net)
    del net
    assert gone() is None
    assert len(copies) == 0
