"""The engine around every regime: precision, memory layout, compilation, and what is logged of the terms."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from rows import OBJECTIVES, Row
from subjects import tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.attacks import L2PGD
from lit_xai.callbacks import MovingAverage, Robustness
from lit_xai.classifier import Classifier
from lit_xai.metrics import RobustAccuracy
from lit_xai.models import ResNet20, SmallCNN
from lit_xai.objectives import AdversarialTraining, CrossEntropy, Objective
from lit_xai.observe import observing
from lit_xai.optim import BortSGD

SGD: Any = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731


def fitted(folder: Path, module: Classifier, *callbacks: L.Callback, **words: Any) -> L.Trainer:
    L.seed_everything(words.pop("seed", 1), verbose=False)
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 3
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 1, "log_every_n_steps": 1, **words},
    )
    data = DataLoader(TensorDataset(images, labels), batch_size=8)  # the last batch is smaller
    trainer.fit(module, data, data)
    return trainer


@pytest.mark.parametrize("row", OBJECTIVES, ids=str)
def test_terms_are_float32_under_autocast_and_near_those_without(row: Row) -> None:
    net, inputs, target = tiny_net(nn.ReLU).train(), torch.rand(6, 2, 8, 8), torch.arange(6) % 4
    terms = []
    for bf16 in (False, True):
        objective, model = copy.deepcopy(row.instance), copy.deepcopy(net)
        model[6].p = 0.0
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            terms.append(objective(model, inputs, target))
        sum(terms[-1].values()).backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())
    exact, rough = terms
    assert exact.keys() == rough.keys()
    for name, term in rough.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact[name], rtol=0.2, atol=0.1)


def test_a_run_in_bf16_keeps_weights_averages_and_constraint_in_float32(tmp_path: Path) -> None:
    attack = L2PGD(epsilon=0.5, steps=2)
    bort: Any = lambda p: BortSGD(p, lr=0.1, gamma=0.1)  # noqa: E731
    ema, probe = MovingAverage(0.5), Robustness({"pgd": RobustAccuracy(attack)}, samples=4)
    module = Classifier(SmallCNN, bort, AdversarialTraining(attack), channels=1, classes=3)
    trainer = fitted(tmp_path, module, ema, probe, precision="bf16-mixed")
    state = module.state_dict()
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert ema._average_model is not None
    assert {value.dtype for value in ema._average_model.module.parameters()} == {torch.float32}
    assert all(value.isfinite().all() for value in state.values())
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("net", [SmallCNN, ResNet20])
def test_channels_last_is_a_layout_and_nothing_else(net: Any, tmp_path: Path) -> None:
    seen: list[bool] = []
    modules = []
    for last in (False, True):
        torch.manual_seed(0)
        attack = AdversarialTraining(L2PGD(epsilon=0.5, steps=1))
        module = Classifier(net, SGD, attack, channels=1, classes=3, channels_last=last)
        module.model.net.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        fitted(tmp_path, module)
        modules.append(module)
    plain, laid = (module.state_dict() for module in modules)
    assert plain.keys() == laid.keys()
    for name, value in laid.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-2, atol=1e-3)
        if value.ndim == 4:
            assert value.is_contiguous(memory_format=torch.channels_last)
    assert all(seen)  # of one channel, an image is both
    assert modules[1].predict_step((torch.rand(2, 1, 8, 8),), 0).shape == (2,)


def test_images_come_channels_last() -> None:
    module = Classifier(lambda c, k: nn.Flatten(), SGD, channels=3, classes=12, channels_last=True)
    inputs, _ = module._checked_batch("val", (torch.rand(2, 3, 2, 2), torch.arange(2)))
    assert inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_the_network_alone_is_compiled_and_explained_as_it_is(tmp_path: Path) -> None:
    attack = AdversarialTraining(L2PGD(epsilon=0.5, steps=2))
    plain = Classifier(net_of(), SGD, attack, channels=1, classes=3)
    module = Classifier(net_of(), SGD, attack, channels=1, classes=3, compile=True)
    module.load_state_dict(plain.state_dict())  # the names are the same
    before = torch._dynamo.utils.counters["frames"]["ok"]
    for one in (plain, module):
        fitted(tmp_path, one, limit_train_batches=2, limit_val_batches=1)
    assert torch._dynamo.utils.counters["frames"]["ok"] > before
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-3, atol=1e-4)
    compiled = torch._dynamo.utils.counters["frames"]["ok"]
    with observing(module.model, 0):
        module.model(torch.rand(7, 1, 8, 8))
    assert torch._dynamo.utils.counters["frames"]["ok"] == compiled


def net_of() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


class Halves(Objective):
    """Two steps on halves of a batch."""

    updates = 2

    def share(self, inputs: Tensor, target: Tensor, update: int) -> tuple[Tensor, Tensor]:
        return inputs[update::2], target[update::2]

    def terms(self, model: nn.Module, views: Any, target: Tensor) -> dict[str, Tensor]:
        return {"size": model(views[0]).sum() * 0 + len(target), "one": model(views[0]).sum() * 0 + 1.0}


@pytest.mark.parametrize("words", [{}, {"max_steps": 4, "max_epochs": -1}], ids=str)
def test_terms_are_averaged_over_images(words: dict[str, Any], tmp_path: Path) -> None:
    trainer = fitted(tmp_path, Classifier(SmallCNN, SGD, Halves(), channels=1, classes=3), **words)
    sizes = [4, 4, 4, 4] + ([] if words else [2, 2])
    mean = sum(size * size for size in sizes) / sum(sizes)
    logged = trainer.callback_metrics
    assert float(logged["train/size"]) == pytest.approx(mean)
    assert float(logged["train/one"]) == 1.0
    assert float(logged["train/loss"]) == pytest.approx(mean + 1)


def test_a_loss_that_is_no_number_shows(tmp_path: Path) -> None:
    module = Classifier(SmallCNN, SGD, CrossEntropy(), channels=1, classes=3)
    with torch.no_grad():
        module.model.net.linear.bias.fill_(torch.nan)
    trainer = fitted(tmp_path, module, num_sanity_val_steps=0)
    assert trainer.callback_metrics["train/loss"].isnan()
    assert trainer.callback_metrics["val/loss"].isnan()


class Drawing(CrossEntropy):
    """Keeps a number drawn for each batch, and what it is told to carry."""

    def __init__(self, carried: Tensor | None = None) -> None:
        super().__init__()
        self.carried = carried
        self.drawn: list[float] = []

    def terms(self, model: nn.Module, views: Any, target: Tensor) -> dict[str, Tensor]:
        self.drawn.append(float(torch.rand(())))
        return super().terms(model, views, target)


def test_draws_of_training_differ_by_seed_epoch_and_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    for seed, rank in ((1, 0), (2, 0), (1 << 31, 0), (1, 1)):
        monkeypatch.setattr(Classifier, "global_rank", rank)
        objective = Drawing()
        module = Classifier(SmallCNN, SGD, objective, channels=1, classes=3)
        fitted(tmp_path, module, seed=seed, max_epochs=2)
        drawn += objective.drawn
    assert len(set(drawn)) == len(drawn) == 4 * 2 * 3


def test_what_processes_carry_may_differ_or_be_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(every: list[Any], mine: Any) -> None:
        every[:] = [mine, {"": torch.ones(1)}, {}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    checkpoint: dict[str, Any] = {}
    for rank, carried in enumerate((torch.zeros(2), torch.ones(1), None)):
        module = Classifier(SmallCNN, SGD, Drawing(torch.zeros(2)), channels=1, classes=3)
        module.on_load_checkpoint({"carried": [{}]})  # as weights alone are loaded, without a run
        module.trainer = SimpleNamespace(world_size=3, global_rank=rank)  # type: ignore[assignment]
        if rank == 0:
            module.on_save_checkpoint(checkpoint)
        module.on_load_checkpoint(checkpoint)
        found = module.objective.carried
        assert found is None if carried is None else torch.equal(found, carried)
