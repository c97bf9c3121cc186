"""Explaining is observing: runs with and without the callbacks end in identical weights, bit for bit."""

import contextlib
import copy
import gc
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from probed import Beside, Moved, fitted
from rows import METRICS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.attacks import DDN, L2PGD
from lit_xai.attributions import (
    LRP,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    Margin,
    Saliency,
    SmoothGrad,
)
from lit_xai.callbacks import (
    BortResidual,
    CatastrophicOverfitting,
    Certify,
    Divergence,
    EarlyStop,
    Explain,
    MovingAverage,
    RegimeCost,
    Robustness,
)
from lit_xai.classifier import Classifier
from lit_xai.metrics import BoundaryDistance, Closeness, Flags, Gini, Perturbation, RandomMap, RobustAccuracy
from lit_xai.metrics.base import Facts, Metric
from lit_xai.observe import _full_precision, explain, observing

SEARCH = DDN(steps=3)


def net(channels: int, classes: int) -> nn.Module:
    """Everything that an observer could disturb: dropout, batch statistics, a frozen layer in eval mode."""
    layers = nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 36, classes),
    )
    layers[4].eval()
    return layers


def observers() -> list[L.Callback]:
    attributions = {
        "saliency": Saliency(),
        "smooth_grad": SmoothGrad(samples=2),
        "boundary_saliency": BoundarySaliency(SEARCH),
        "boundary_integrated_gradients": BoundaryIntegratedGradients(SEARCH, steps=3),
        "random_map": RandomMap(),
    }
    metrics = {
        "perturbation": Perturbation(steps=3),
        "gini": Gini(),
        "closeness": Closeness(),
        "flag": Flags(),
        "boundary": BoundaryDistance(SEARCH),
    }
    robustness = Robustness({"pgd": RobustAccuracy(L2PGD(epsilon=0.5, steps=2))}, samples=6)
    stop = EarlyStop(9, monitor="val/accuracy", mode="max")
    guards = [CatastrophicOverfitting(monitor="robust/pgd/accuracy"), stop, Divergence(every_n_steps=1)]
    return [
        Explain(attributions, metrics, samples=6, batch_size=4),
        robustness,
        BortResidual(),
        Certify(sigma=0.1, n=50, n0=10, samples=6),
        *guards,
        RegimeCost(),
        MovingAverage(),
    ]


def trained(
    callbacks: list[L.Callback], folder: Any, masks: bool = False, **trainer: Any
) -> tuple[Classifier, L.Trainer]:
    L.seed_everything(1, verbose=False)
    columns = [
        torch.rand(48, 1, 8, 8),
        torch.arange(48) % 3,
        *([torch.rand(48, 8, 8) > 0.5] if masks else []),
    ]
    loaders = [
        DataLoader(TensorDataset(*columns), batch_size=8, shuffle=shuffle) for shuffle in (True, False)
    ]
    classifier = Classifier(net, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), channels=1, classes=3)
    fitter = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        **trainer,
    )
    fitter.fit(classifier, *loaders)
    return classifier, fitter


@pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode at the start of training")
@pytest.mark.parametrize("trainer", [{}, {"val_check_interval": 0.5, "accumulate_grad_batches": 2}])
def test_weights_and_buffers_are_identical_with_and_without_observers(
    trainer: dict[str, Any], tmp_path: Any
) -> None:
    plain, _ = trained([], tmp_path, **trainer)
    observed, fitter = trained(observers(), tmp_path, **trainer)
    assert "explain/boundary_integrated_gradients/closeness/cosine" in fitter.callback_metrics
    state, other = plain.state_dict(), observed.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode at the start of training")
def test_all_metrics_at_once_leave_no_trace(tmp_path: Any) -> None:
    """Weights and buffers, optimizer, batches and the random state after the run are those without it."""
    metrics = {f"metric_{number:02}": copy.deepcopy(row.instance) for number, row in enumerate(METRICS)}
    methods = {
        "saliency": Saliency(),
        "smooth_grad": SmoothGrad(samples=2),
        "boundary_integrated_gradients": BoundaryIntegratedGradients(SEARCH, steps=3),
    }
    watched = Unrefused(methods, metrics, samples=12, batch_size=4, control_samples=2)
    plain, first = trained([], tmp_path / "plain", masks=True)
    after = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*its scores are left out.*")
        observed, second = trained([watched], tmp_path / "observed", masks=True)
    assert torch.equal(torch.get_rng_state(), after)
    state, other = plain.state_dict(), observed.state_dict()
    assert all(torch.equal(state[key], other[key]) for key in state)
    for mine, theirs in zip(first.optimizers, second.optimizers, strict=True):
        assert str(mine.state_dict()) == str(theirs.state_dict())
    assert all(parameter.requires_grad for parameter in observed.parameters())
    said = [key for key, value in watched.values.items() if key.startswith(("explain/", "robust/"))]
    failed = {name for name in watched.failed if not name.startswith("control/")}
    assert len(said) > len(metrics)
    assert len(failed) < len(metrics) / 4, watched.failed


class Unrefused(Explain):
    """Scores also what this small net or its few images are refused for: it may fail, and leave no trace."""

    def _check_metric(self, name: str, metric: Metric, facts: Facts) -> None:
        with contextlib.suppress(ValueError):
            super()._check_metric(name, metric, facts)


def census(trainer: L.Trainer) -> tuple[int, int]:
    """How many tensors are alive, and how many hooks are on the network."""
    gc.collect()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = trainer.lightning_module.modules()
    alive = sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    return alive, sum(len(getattr(module, name)) for module in modules for name in hooks)


def test_nothing_grows_over_fifty_epochs(tmp_path: Any) -> None:
    counts: dict[int, tuple[int, int]] = {}

    class Count(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch in (4, 48):
                counts[trainer.current_epoch] = census(trainer)

    look = Explain(
        {"saliency": Saliency(), "boundary": BoundarySaliency(SEARCH), "lrp": LRP()},
        {"perturbation": Perturbation(steps=2), "gini": Gini(), "moved": Moved(), "beside": Beside()},
        samples=3,
        max_share_of_epoch=1e9,
        on_error="raise",
    )
    fitted(tmp_path, look, Count(), max_epochs=50)
    assert counts[4] == counts[48]
    assert len(list((tmp_path / "explanations").glob("maps_*"))) == 2


def test_the_guard_restores_everything_also_after_an_error() -> None:
    model = net(1, 3).train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    state = torch.random.get_rng_state()
    modes = [module.training for module in model.modules()]

    def look() -> None:
        with observing(model, seed=3):
            assert not model[1].training
            torch.rand(3)
            model(torch.rand(2, 1, 8, 8))
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        look()
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 7
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_explaining_works_on_tensors_of_inference_mode() -> None:
    model = net(1, 3).eval()
    with torch.inference_mode():
        inputs, target = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
        seen = explain(model, inputs, target, {"saliency": Saliency()}, {"gini": Gini()}, seed=0)
    assert seen.flat()["explain/saliency/gini"].shape == (4,)
    assert not seen.maps["saliency"].is_inference()


def test_a_search_is_done_once_for_all_who_ask() -> None:
    model = net(1, 3).eval()
    looks: list[int] = []
    model.register_forward_hook(lambda *_: looks.append(1))
    inputs, target = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    saliency, distance = {"b": BoundarySaliency(SEARCH)}, {"d": BoundaryDistance(SEARCH)}

    def passes(attributions: Any, metrics: Any) -> int:
        looks.clear()
        explain(model, inputs, target, attributions, metrics, seed=0)
        return len(looks)

    search = passes({}, distance) - 1  # one look for the checks of the point
    assert passes({**saliency, "c": BoundarySaliency(SEARCH, Margin())}, distance) == search + 1 + 2


def test_the_plain_twin_of_a_boundary_map_is_computed_once() -> None:
    model = net(1, 3).eval()
    looks: list[int] = []
    model.register_forward_hook(lambda *_: looks.append(1))
    inputs, target = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    boundary, closeness = {"b": BoundarySaliency(SEARCH)}, {"close": Closeness()}
    explain(model, inputs, target, boundary, closeness, seed=0)
    alone = len(looks)
    looks.clear()
    explain(model, inputs, target, {"plain": Saliency(), **boundary}, closeness, seed=0)
    assert len(looks) == alone


def test_full_precision_is_lent_and_given_back() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with _full_precision(True):
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before
