"""The tape against the network itself: replayed, differentiated, named, and without a trace."""

import gc
import threading
import weakref

import pytest
import torch
from subjects import tiny_net, unchanged
from torch import nn
from torch.nn import functional as F

from lit_xai import network
from lit_xai.models import Normalized, PreActResNet18, ResNet20, SmallCNN
from lit_xai.network import record


class Crooked(nn.Module):
    """Every habit that breaks hooks and tracing: shared, functional and in-place ReLUs, branches, len()."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        assert len(x) == x.shape[0]
        y = self.act(self.norm(self.first(x)))
        z = self.second(y)
        z += y
        F.relu_(z)  # the result is not taken up: `z` itself has changed
        left, right = z.chunk(2, dim=1)
        z = torch.cat([self.act(1 - left), 2 * right.clamp(min=0)], dim=1)
        z = F.max_pool2d(z, 2) if x.mean() < 100 else z
        z[:, 0] = 0.25
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.pad(z, (1, 0)), (1, 2)), 1))


@pytest.fixture
def crooked():
    net = Crooked().double().eval()
    net.norm.running_mean.uniform_(-0.5, 0.5)
    net.norm.running_var.uniform_(0.5, 2)
    return net


def replay(tape, inputs):
    values = {id(tape.inputs): inputs}
    for step in tape.steps:
        values[id(step.output)] = step.layer(*(values[id(source)] for source in step.sources))
    return values[id(tape.output)]


def gradient(model, inputs):
    points = inputs.clone().requires_grad_()
    logits = model(points)
    return torch.autograd.grad(logits.square().sum(), points)[0]


def walked(tape):
    return tape.walk(
        [(tape.output, 2 * tape.output)], lambda step, message: step.layer.pull(message, *step.sources)
    )


def test_logits_are_those_of_the_network(crooked):
    inputs = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    with unchanged(crooked, inputs):
        tape = record(crooked, inputs)
    assert torch.equal(tape.output, crooked(inputs))


def test_assignment_into_an_activation_is_a_step_without_a_rule(crooked):
    tape = record(crooked, torch.rand(3, 2, 6, 6, dtype=torch.float64))
    unknown = [step for step in tape.steps if isinstance(step.layer, network.Unknown)]
    assert [step.layer.call for step in unknown] == ["__setitem__"]
    with pytest.raises(NotImplementedError, match="__setitem__"):
        walked(tape)


@pytest.mark.parametrize(
    "model",
    [
        tiny_net(nn.ReLU, torch.float64),
        tiny_net(lambda: nn.ReLU6(inplace=True), torch.float64),
        tiny_net(lambda: nn.LeakyReLU(0.2), torch.float64),
        Normalized(SmallCNN(2, 3), (0.3, 0.5), (0.2, 0.4)).double().eval(),
        Normalized(ResNet20(2, 3), (0.3, 0.5), (0.2, 0.4)).double().eval(),
        PreActResNet18(2, 3).double().eval(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_replayed_and_walked_back_it_is_the_network_and_its_gradient(model):
    inputs, others = torch.rand(2, 3, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        tape = record(model, inputs)
        torch.testing.assert_close(replay(tape, others), model(others), rtol=1e-10, atol=1e-10)
    expected = gradient(model, inputs)
    torch.testing.assert_close(walked(tape), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_batch_norm_after_a_convolution_is_folded_and_one_that_stands_alone_is_a_scaling():
    alone = record(PreActResNet18(2, 3).eval(), torch.rand(1, 2, 8, 8))
    kinds = [type(step.layer).__name__ for step in alone.steps]
    assert (
        kinds.count("Scaling") == 9
    )  # the first of each block, and the last; the others follow a convolution
    folded = record(ResNet20(2, 3).eval(), torch.rand(1, 2, 8, 8))
    assert "Scaling" not in {type(step.layer).__name__ for step in folded.steps}
    assert folded.value("conv1") is folded.value("bn1")


def test_steps_carry_the_names_of_their_modules():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.block(self.act(x)) - 0.5) + 1

    tape = record(Shared().eval(), torch.rand(1, 1, 2, 2))
    assert [step.name for step in tape.steps] == [
        *("act", "block.0", "block.1", "scaling", "act#2", "scaling#2"),
    ]
    assert tape.value("block") is tape.value("block.1")
    with pytest.raises(
        ValueError, match=r"`layer` must be one of the network's, got 'blok.1'; nearest: block.1"
    ):
        tape.value("blok.1")


def test_nothing_is_left_behind_when_the_network_fails():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("on purpose")

    before = len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks)
    with pytest.raises(RuntimeError, match="on purpose"):
        record(nn.Sequential(nn.ReLU(), Failing()).eval(), torch.rand(1, 1, 2, 2))
    after = len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks)
    assert before == after
    assert not torch.overrides._get_current_function_mode_stack()


def test_logits_that_do_not_come_from_the_images_are_refused():
    class Deaf(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 2)

    with pytest.raises(ValueError, match="pass the eager module"):
        record(Deaf().eval(), torch.rand(1, 1, 2, 2))


def test_a_layer_can_be_replaced_wherever_it_is_called(crooked):
    inputs = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    seen = []

    def double(layer, sources):
        if isinstance(layer, network.Rectifier):
            seen.append(layer)
            return 2 * layer(*sources)
        return None

    tape = record(crooked, inputs, double)
    assert len(seen) == 4
    assert not torch.allclose(tape.output, crooked(inputs))
    same = record(crooked, inputs, lambda layer, sources: None)
    assert torch.equal(same.output, crooked(inputs))


class Forward(nn.Module):
    """A small network, of which one function of its first activation is given."""

    def __init__(self, middle, **parts):
        super().__init__()
        self.stem, self.head, self.middle = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3), middle
        for name, part in parts.items():
            setattr(self, name, part)
        self.double().eval()

    def forward(self, x):
        return self.head(self.middle(self, self.stem(x)).mean((2, 3)))


def in_place(function, *args, **kwargs):
    """A call whose result is not taken up."""

    def middle(net, x):
        function(x, *args, **kwargs)
        return x

    return middle


def written(net, x):
    z = torch.zeros_like(x)
    z.copy_(x)
    return x + torch.full_like(x, 2.0) + sum(torch.full_like(x, float(k)) for k in range(5))


RIGHT = {
    "inplace=1": in_place(F.relu, inplace=1),
    "input in place": lambda net, x: in_place(lambda y: torch.relu_(input=y))(net, x),
    "imul": lambda net, x: in_place(torch.Tensor.__imul__, 2.0)(net, x).relu(),
    "itruediv": lambda net, x: in_place(torch.Tensor.__itruediv__, 2.0)(net, x).relu(),
    "transpose_": in_place(torch.Tensor.transpose_, 2, 3),
    "input=": lambda net, x: torch.relu(input=x),
    "tensors=": lambda net, x: torch.cat(tensors=[x[:, 2:].relu(), x[:, :2]], dim=1),
    "other=": lambda net, x: torch.add(x, other=x.relu()),
    "buffers that come and go": written,
    "pad": lambda net, x: net.pad(x.relu()).relu(),
    "copies": lambda net, x: x.relu().repeat(1, 1, 2, 1).flip(2).roll(1, 3),
    "matmul": lambda net, x: (x.relu().transpose(1, 3) @ net.rows.weight.T).transpose(1, 3),
    "sum": lambda net, x: x.relu().sum((2, 3), keepdim=True),
    "shape of what has changed": lambda net, x: x.flatten(2).relu_().view(len(x), *x.shape[1:]),
    "norm of rows": lambda net, x: net.norm(net.rows(x[:, :, :4, :4].flatten(2)[..., :4]))[..., None],
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_habits_that_can_be_read(name):
    net = Forward(
        RIGHT[name],
        pad=nn.Conv2d(4, 4, 3, padding=(2, 1), padding_mode="reflect"),
        rows=nn.Linear(4, 4),
        norm=nn.BatchNorm1d(4),
    )
    net.norm.running_var.uniform_(0.5, 2)
    inputs, others = torch.rand(2, 3, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad(), unchanged(net, inputs):
        tape = record(net, inputs)
        torch.testing.assert_close(tape.output, net(inputs))
    with torch.no_grad():
        torch.testing.assert_close(tape.replay(tape.output, others), net(others))
    if name not in ("imul", "itruediv"):  # which autograd refuses at the leaf
        torch.testing.assert_close(walked(tape), gradient(net, inputs))


def through_a_view(net, x):
    x[:, :2].relu_()
    return x


def behind_a_view(net, x):
    view = x[:, :2]
    x.relu_()
    return torch.cat([view, view], 1)


def through_a_buffer(net, x):
    z = torch.zeros(x.shape, dtype=x.dtype)
    z[:, :2].copy_(x[:, :2])
    return x + z


def moving_constant(net, x):
    w = torch.ones(4, 1, 1, dtype=x.dtype)
    for _ in range(3):
        x = x * w
        w += 1
    return x


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (through_a_view, "change a value in place"),
        (behind_a_view, "change a value in place"),
        (through_a_buffer, "change a value in place"),
        (moving_constant, "change a value in place"),
        (in_place(lambda x: x.data.mul_(2)), "change a value in place"),
        (in_place(lambda x: torch.mul(x, 2, out=x)), "write to `out`"),
        (lambda net, x: x + torch.vmap(torch.square)(x), "pass the eager module"),
    ],
)
def test_habits_that_cannot_be_read_are_refused(middle, message):
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        record(Forward(middle), torch.rand(3, 2, 6, 6, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_part_that_is_scripted_is_refused():
    net = Forward(lambda net, x: x + net.part(x), part=torch.jit.script(nn.ReLU()))
    with pytest.raises(ValueError, match="pass the eager module"):
        record(net, torch.rand(3, 2, 6, 6, dtype=torch.float64))


def test_an_output_that_is_no_tensor_is_refused():
    class Named(nn.Module):
        def forward(self, x):
            return {"logits": x.flatten(1)}

    with pytest.raises(ValueError, match="`model` must return logits, got a dict"):
        record(Named().eval(), torch.rand(1, 1, 2, 2))


def test_a_mask_made_of_the_images_is_no_constant():
    tape = record(Forward(lambda net, x: x * (x > 0)), torch.rand(3, 2, 6, 6, dtype=torch.float64))
    assert [step.layer.name for step in tape.steps if isinstance(step.layer, network.Unknown)] == ["mul"]


def test_an_empty_batch_is_recorded():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(True), nn.Conv2d(4, 4, 3), nn.ReLU(True), nn.Flatten())
    assert record(net.eval(), torch.rand(0, 2, 6, 6)).output.shape == (0, 16)


def test_networks_that_run_at_once_do_not_mix():
    entered, gone = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, x):
            entered.set()
            assert gone.wait(10)
            return x

    outer = nn.Sequential(nn.ReLU(), Waiting(), nn.Flatten()).eval()
    tapes = []
    other = threading.Thread(target=lambda: tapes.append(record(outer, torch.rand(1, 1, 2, 2))))
    other.start()
    assert entered.wait(10)
    inner = record(tiny_net(nn.ReLU), torch.rand(1, 2, 8, 8))
    gone.set()
    other.join()
    assert [step.name for step in tapes[0].steps] == ["0", "2"]
    assert set(tapes[0].modules) == {"", "0", "1", "2"}
    assert [step.name for step in inner.steps] == ["0", "2", "3", "4", "5", "7"]


def test_a_tape_is_gone_with_its_last_reader():
    gc.collect()
    gc.disable()
    try:
        tape = record(tiny_net(nn.ReLU), torch.rand(1, 2, 8, 8))
        assert tape.never_negative
        seen = weakref.ref(tape), weakref.ref(tape.steps[1].output)
        del tape
        assert [found() for found in seen] == [None, None]
    finally:
        gc.enable()


ZOO = ("resnet18", "squeezenet1_1", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0", "regnet_x_400mf")


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_torchvision_are_read_whole(name):
    import torchvision

    model = torchvision.models.get_model(name, num_classes=5).double().eval()
    inputs = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        tape = record(model, inputs)
        torch.testing.assert_close(replay(tape, 1 - inputs), model(1 - inputs), rtol=1e-8, atol=1e-8)
    expected = gradient(model, inputs)
    torch.testing.assert_close(walked(tape), expected, rtol=1e-7, atol=1e-8 * float(expected.abs().max()))
