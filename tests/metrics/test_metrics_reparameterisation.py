"""Re-parameterisation: twins are the same function, and maps change as they must."""

import copy

import pytest
import torch
from subjects import linear_case, tiny_net, unchanged
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from lit_xai import attributions as a
from lit_xai.attributions.rules import Epsilon, Flat, ZBox
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics.reparameterisation import (
    Reparameterisation,
    first_shift,
    relative_change,
    reparameterised,
)
from lit_xai.metrics.untrained import Untrained
from lit_xai.models import Normalized
from lit_xai.models.reinitialised import untrained
from lit_xai.observe import explain


def conv_net(**options):
    net = nn.Sequential(nn.Conv2d(2, 4, 3, **options), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*net, nn.Linear(16, 3)).double().eval()


class Forked(nn.Module):
    """Two layers read the image: shifting the first alone is another function."""

    def __init__(self):
        super().__init__()
        self.near, self.far = (nn.Conv2d(2, 4, size, padding=size // 2) for size in (3, 5))
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.linear((self.near(inputs) + self.far(inputs)).relu().mean((2, 3)))


class Tokens(nn.Module):
    """A linear layer that reads the pixels one by one."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        return self.head(self.embed(inputs.flatten(2).transpose(1, 2)).relu().mean(1))


class Bare(nn.Module):
    def forward(self, inputs):
        return inputs.flatten(1)[:, :3].square()


class Clipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = conv_net()

    def forward(self, inputs):
        return self.net(inputs.clamp(0, 1))


NETS = {
    "valid": (conv_net(), True),
    "no bias": (conv_net(bias=False, padding=2), True),
    "same": (conv_net(padding="same", dilation=2), True),
    "even": (
        nn.Sequential(nn.Conv2d(2, 4, 4, padding="same"), nn.Flatten(), nn.Linear(256, 3)).double(),
        True,
    ),
    "strides": (conv_net(padding=(2, 1), stride=2, groups=2), True),
    "reflect": (conv_net(padding=1, padding_mode="reflect"), True),
    "normalised": (Normalized(conv_net(padding=1), (0.3, 0.6), (0.2, 0.5)), True),
    "batch norm": (nn.Sequential(nn.BatchNorm2d(2), *conv_net(padding=1)).double(), True),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(128, 9), nn.ReLU(), nn.Linear(9, 3)).double(), True),
    "tokens": (Tokens().double(), True),
    "forked": (Forked().double(), False),
    "no layer": (Bare(), False),
    "clipped": (Clipped(), False),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("shift", [0.5, -2.0])
@pytest.mark.parametrize("name", NETS)
def test_both_networks_are_the_same_function(name, shift):
    net, shifted_inside = NETS[name][0].eval(), NETS[name][1]
    inputs = torch.rand(3, 2, 8, 8).double()
    assert (first_shift(net, inputs) is not None) == shifted_inside
    with unchanged(net, inputs):
        same, twin = reparameterised(net, inputs, shift)
        torch.testing.assert_close(same(inputs), net(inputs), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(twin(inputs + shift), net(inputs), rtol=1e-11, atol=1e-11)
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in net.named_modules()]


def by_hand(net, shift):
    """The network with another bias in its first layer, a valid convolution."""
    twin = copy.deepcopy(net)
    first = twin[0]
    with torch.no_grad():
        first.bias -= shift * first.weight.sum((1, 2, 3))
    return twin


METHODS = [
    a.Saliency(),
    a.InputXGradient(),
    a.IntegratedGradients(steps=3),
    a.DeepLift(),
    a.LRP(),
    a.LRP(Epsilon(), Epsilon()),
    a.LRP(first=Flat()),
    a.LRP(first=ZBox()),
    a.RectifiedGradient(percentile=50),
    a.SharingRatio(),
    a.GradCam(layer="0"),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_maps_are_those_of_a_network_whose_bias_was_changed_by_hand(method):
    net, inputs, target = conv_net(), torch.rand(3, 2, 8, 8).double(), torch.tensor([0, 1, 2])
    _, twin = reparameterised(net, inputs, 0.5)
    meant = method(by_hand(net, 0.5), inputs + 0.5, target)
    torch.testing.assert_close(method(twin, inputs + 0.5, target), meant, rtol=1e-8, atol=1e-10)


def change(net, inputs, target, method, metric=None):
    table = explain(net, inputs, target, {"map": method}, {"metric": metric or Reparameterisation()}, 0)
    return table.scores["map"]["metric"]


@pytest.mark.parametrize(
    "method",
    [
        a.Saliency(),
        a.SmoothGrad(samples=3),
        a.GuidedBackprop(),
        a.RectifiedGradient(percentile=50, times_input=False),
        a.GradCam(),
        a.LRP(first=Flat()),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_maps_of_the_function_do_not_change(method, dtype):
    net = Normalized(tiny_net(nn.ReLU, dtype), (0.3, 0.6), (0.2, 0.5)).eval()
    inputs = torch.rand(5, 2, 8, 8, dtype=dtype)
    scores = change(net, inputs, net(inputs).argmax(1), method)
    assert float(scores["change"].max()) < {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert float(scores["logits"].max()) < {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]


@pytest.mark.parametrize("shift", [0.5, -0.25])
def test_a_multiplied_map_of_a_linear_model_in_closed_form(shift):
    case = linear_case()
    own = case.weight[case.target].view_as(case.inputs)
    metric = Reparameterisation(shift)
    scores = change(case.model, case.inputs, case.target, a.InputXGradient(), metric)
    meant = abs(shift) * own.flatten(1).norm(dim=1) / (case.inputs * own).flatten(1).norm(dim=1)
    torch.testing.assert_close(scores["change"], meant)
    for method in (a.IntegratedGradients(steps=3), a.DeepLift()):
        scores = change(case.model, case.inputs, case.target, method, metric)
        torch.testing.assert_close(scores["change"], meant)


@pytest.mark.parametrize(
    "method", [a.InputXGradient(), a.RectifiedGradient(percentile=50), a.LRP(Epsilon(), Epsilon())], ids=str
)
def test_multiplied_maps_change(relu_net, batch, method):
    assert float(change(relu_net, *batch, method)["change"].min()) > 0.1


def test_it_follows_a_residual_network():
    net = get_model("resnet18", weights=None).eval()
    inputs, target = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    assert float(change(net, inputs, target, a.Saliency())["change"].max()) < 1e-2
    scores = change(net, inputs, target, a.LRP(Epsilon(), Epsilon()))
    assert float(scores["logits"].max()) < 1e-4
    assert float(scores["change"].min()) > 0.1


def test_relative_change_by_hand():
    before, after = torch.zeros(4, 1, 1, 2), torch.zeros(4, 1, 1, 2)
    before[0, 0, 0], after[0, 0, 0] = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 2.0])
    before[1], after[2], before[3] = torch.nan, 1, 1e-30
    seen = relative_change(before, after)
    torch.testing.assert_close(seen, torch.tensor([0.4, torch.nan, torch.nan, 1]).double(), equal_nan=True)


def test_what_it_costs(relu_net, batch):
    counted = Counted(relu_net).eval()
    change(counted, *batch, a.Saliency())
    # The map; two maps and a pass of the twin, the clean logits; two passes of one image.
    assert counted.forwards == 5 * len(batch[0]) + 2
    assert counted.backwards == 3 * len(batch[0])


def test_two_shifts_in_one_run_are_those_of_two_runs(relu_net, batch):
    metrics = {"up": Reparameterisation(0.5), "down": Reparameterisation(-0.25)}
    seen = explain(relu_net, *batch, {"map": a.InputXGradient()}, metrics, 0).scores["map"]
    for name, metric in metrics.items():
        alone = change(relu_net, *batch, a.InputXGradient(), metric)
        torch.testing.assert_close(seen[name]["change"], alone["change"])
    assert not torch.allclose(seen["up"]["change"], seen["down"]["change"])


def test_what_rounding_does_is_a_share_of_the_logits():
    class Louder(Forked):
        def forward(self, inputs):
            return 1024 * super().forward(inputs)

    quiet, loud = Forked().eval(), Louder().eval()
    loud.load_state_dict(quiet.state_dict())
    inputs, target = torch.rand(4, 2, 8, 8) / 3, torch.tensor([0, 1, 2, 0])
    seen = change(quiet, inputs, target, a.Saliency())["logits"]
    assert 0 < float(seen.max()) < 1e-5
    torch.testing.assert_close(change(loud, inputs, target, a.Saliency())["logits"], seen)


def test_methods_that_stay_in_the_box_do_not_apply():
    metric = Reparameterisation()
    for method in (a.BoundarySaliency(), a.NegativeFlux(), a.MFABA(), a.AdversarialGradientIntegration()):
        assert not metric.applies(method)
    assert metric.applies(a.LRP())


@pytest.mark.parametrize("name", ["valid", "forked"])
def test_the_control_without_training_has_twins_of_its_own_weights(name):
    net, inputs = NETS[name][0].eval(), torch.rand(3, 2, 8, 8).double()
    same, twin = reparameterised(net, inputs, 0.5)
    meant = untrained(net, 0)(inputs)
    assert not torch.allclose(meant, net(inputs))
    torch.testing.assert_close(untrained(same, 0)(inputs), meant)
    torch.testing.assert_close(untrained(twin, 0)(inputs + 0.5), meant)
    methods = {"gradient": a.Saliency(), "boundary": a.BoundarySaliency()}
    asked, controls = {"metric": Reparameterisation()}, {"untrained": Untrained()}
    seen = explain(net, inputs, torch.tensor([0, 1, 2]), methods, asked, 0, controls=controls)
    assert float(seen.controls["untrained"]["gradient"]["metric"]["change"].max()) < 1e-10
    assert "boundary" not in seen.controls["untrained"]  # x + c is no more in its box than that of the method


@pytest.mark.parametrize("shift", [0.0, float("nan"), float("inf")])
def test_no_shift_is_refused(shift):
    with pytest.raises(ValueError, match="`shift` must be finite and other than 0"):
        Reparameterisation(shift)


def test_functions_of_torch_are_called_as_they_were():
    """A first layer called by keyword is read as well."""

    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2, 8, 8))

        def forward(self, inputs):
            return F.conv2d(input=inputs, weight=self.weight, padding=0).flatten(1)

    net, inputs = Keywords().eval(), torch.rand(2, 2, 8, 8)
    assert first_shift(net, inputs) is not None
    _, twin = reparameterised(net, inputs, 0.5)
    torch.testing.assert_close(twin(inputs + 0.5), net(inputs), rtol=1e-4, atol=1e-4)
