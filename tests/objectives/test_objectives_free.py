"""Free adversarial training: the loop of the paper, its price, and runs that stop and go on."""

import copy
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp
from subjects import tiny_net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from units import units

from lit_xai.classifier import Classifier
from lit_xai.evaluation.passes import Counted
from lit_xai.objectives import Objective
from lit_xai.objectives.free import FreeAdversarial
from lit_xai.objectives.weight_perturbation import WeightPerturbed

EPSILON, REPLAYS, EPOCHS = 0.1, 3, 2
IMAGES = torch.rand(13, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(13) % 4
BATCHES = list(zip(IMAGES.split(5), LABELS.split(5), strict=True))  # the last one is short


def net() -> nn.Module:
    model = tiny_net(nn.ReLU, torch.float64).train()
    model[6].eval()  # without dropout, nothing is drawn
    return model


def of_the_paper(model: nn.Module) -> Tensor:
    """Algorithm 1, with a step of the size of the budget; returns the perturbation."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    delta = torch.zeros(5, 2, 8, 8, dtype=torch.float64)
    for _ in range(EPOCHS):
        for images, labels in BATCHES:
            for _ in range(REPLAYS):
                count = len(images)
                points = (images + delta[:count]).clamp(0, 1).requires_grad_()
                optimizer.zero_grad()
                F.cross_entropy(model(points), labels).backward()
                delta[:count] = (delta[:count] + EPSILON * points.grad.sign()).clamp(-EPSILON, EPSILON)
                optimizer.step()
    return delta


def test_it_is_the_loop_of_the_paper():
    model, objective = net(), FreeAdversarial(EPSILON, REPLAYS)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(EPOCHS):
        for images, labels in BATCHES:
            for update in range(objective.updates):
                share = objective.share(images, labels, update)
                optimizer.zero_grad()
                sum(objective(model, *share).values()).backward()
                optimizer.step()
    twin = net()
    delta = of_the_paper(twin)
    assert torch.equal(objective.carried, delta)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert set(delta.unique().tolist()) > {-EPSILON, EPSILON}


def stepped(objective: FreeAdversarial, scale: float = 1.0, count: int = 5, model: Any = None) -> Tensor:
    images, labels = IMAGES[:count], LABELS[:count]
    total = sum(objective(net() if model is None else model, images, labels).values())
    (scale * total).backward()
    return objective.carried


def test_scaled_losses_move_the_images_alike_and_what_is_no_number_does_not():
    plain = stepped(FreeAdversarial(EPSILON))
    assert torch.equal(stepped(FreeAdversarial(EPSILON), 2.0**16), plain)
    assert (stepped(FreeAdversarial(EPSILON), float("nan")) == 0).all()


def test_nothing_moves_without_a_backward_pass_to_the_images():
    objective, model = FreeAdversarial(EPSILON), net()
    total = objective(model, *BATCHES[0])["adversarial_cross_entropy"]
    torch.autograd.grad(total, list(model.parameters()))
    with torch.no_grad():
        objective(model, *BATCHES[0])
    assert objective.carried is None
    assert not IMAGES.requires_grad


def test_a_shorter_batch_takes_the_first_rows_and_a_longer_one_begins_the_others_at_zero():
    objective = FreeAdversarial(EPSILON)
    first = stepped(objective).clone()
    short = stepped(objective, count=2).clone()
    assert torch.equal(short[2:], first[2:])
    assert not torch.equal(short[:2], first[:2])
    attacked, delta = objective.views(net(), IMAGES[:7], LABELS[:7])
    assert torch.equal(delta[:5], short)
    assert (delta[5:] == 0).all()
    assert torch.equal(attacked, (IMAGES[:7] + delta).clamp(0, 1))
    attacked, delta = objective.views(net(), torch.rand(5, 2, 6, 6), LABELS[:5])  # images of another size
    assert delta.dtype == torch.float32
    assert (delta == 0).all()


def test_perturbed_weights_are_felt_once():
    """The image climbs where the weights are in the end, and not a second time where they are first."""
    objective = FreeAdversarial(EPSILON, REPLAYS)
    model = net()
    wrapped = WeightPerturbed(objective, gamma=0.5)
    assert wrapped.updates == REPLAYS
    sum(wrapped(model, *BATCHES[0]).values()).backward()
    twin = net()
    slopes = torch.autograd.grad(F.cross_entropy(twin(BATCHES[0][0]), BATCHES[0][1]), list(twin.parameters()))
    with torch.no_grad():
        for weight, slope in zip(twin.parameters(), slopes, strict=True):
            if weight.ndim > 1:
                weight += 0.5 * weight.norm() / slope.norm() * slope
    points = BATCHES[0][0].clone().requires_grad_()
    F.cross_entropy(twin(points), BATCHES[0][1]).backward()
    assert torch.equal(objective.carried, EPSILON * points.grad.sign())


def test_cost():
    model = Counted(net())
    stepped(FreeAdversarial(EPSILON), model=model)
    assert (model.forwards, model.backwards) == (5, 5)
    assert 2.9 < units(FreeAdversarial(EPSILON)) <= 3.0


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)


class Steps(L.Callback):
    """Counts optimizer steps, and stops after an epoch if told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.count, self.stop_after = 0, stop_after

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        def count(*args: Any) -> None:
            self.count += 1

        trainer.optimizers[0].register_step_post_hook(count)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.stop_after


def trained(
    folder: Path,
    objective: Objective,
    stop_after: int | None = None,
    resumed: Path | None = None,
    **options: Any,
) -> tuple[Classifier, L.Trainer, Steps]:
    L.seed_everything(1, verbose=False)
    model = Counted(tiny_net(nn.ReLU).train()).train()
    classifier = Classifier(model, momentum, objective, channels=2, classes=4)
    steps = Steps(stop_after)
    trainer = L.Trainer(
        **{
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "callbacks": [steps],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            "default_root_dir": folder,
            **options,
        }
    )
    # A loader draws from its own generator, as those of the house do.
    loader = DataLoader(TensorDataset(IMAGES.float(), LABELS), batch_size=5, generator=torch.Generator())
    trainer.fit(classifier, loader, loader, ckpt_path=resumed, weights_only=True)
    return classifier, trainer, steps


@pytest.mark.parametrize(
    ("wrap", "passes"), [(lambda inner: inner, 1), (WeightPerturbed, 2)], ids=["free", "perturbed"]
)
def test_a_run_that_stops_and_goes_on_is_the_run_in_one_go(
    tmp_path: Path, wrap: Callable[[Objective], Objective], passes: int
):
    whole = FreeAdversarial(EPSILON, REPLAYS)
    one, trainer, steps = trained(tmp_path, wrap(whole))
    assert steps.count == EPOCHS * len(BATCHES) * REPLAYS
    assert trainer.global_step == EPOCHS * len(BATCHES)
    assert one.model.net.forwards == one.model.net.backwards == EPOCHS * REPLAYS * len(IMAGES) * passes
    assert "train/adversarial_cross_entropy" in trainer.callback_metrics

    _, trainer, _ = trained(tmp_path, wrap(FreeAdversarial(EPSILON, REPLAYS)), stop_after=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    halves = FreeAdversarial(EPSILON, REPLAYS)
    two, _, steps = trained(tmp_path, wrap(halves), resumed=tmp_path / "half.ckpt")
    assert steps.count == len(BATCHES) * REPLAYS
    assert torch.equal(whole.carried, halves.carried)
    after = two.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in one.state_dict().items())

    lost = torch.load(tmp_path / "half.ckpt", weights_only=True)
    del lost["carried"]
    torch.save(lost, tmp_path / "lost.ckpt")
    other, _, _ = trained(tmp_path, wrap(FreeAdversarial(EPSILON, REPLAYS)), resumed=tmp_path / "lost.ckpt")
    assert not torch.equal(other.model.net.model[0].weight, one.model.net.model[0].weight)


class Saved(L.Callback):
    """A checkpoint after each epoch; every process takes part."""

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{trainer.current_epoch}.ckpt")


def work(rank: int, port: int, folder: Path) -> None:
    """One of two processes: a run of two epochs, and another one from its first checkpoint on."""
    own = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()})
    options = {"devices": 2, "strategy": "ddp", "callbacks": [Saved()]}
    trained(folder / "one", FreeAdversarial(EPSILON, REPLAYS), **options)
    trained(folder / "two", FreeAdversarial(EPSILON, REPLAYS), resumed=folder / "one" / "0.ckpt", **options)


@pytest.mark.slow
def test_two_processes_carry_on_what_each_of_them_had(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port, tmp_path), nprocs=2)
    after = [torch.load(tmp_path / name / "1.ckpt", weights_only=True) for name in ("one", "two")]
    one, two = ([mine[""] for mine in checkpoint["carried"]] for checkpoint in after)
    assert [state.shape for state in one] == [(5, 2, 8, 8)] * 2
    assert not torch.equal(one[0], one[1])
    assert all(map(torch.equal, one, two))
    weights = [checkpoint["state_dict"] for checkpoint in after]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_clipped_gradients_of_the_weights_and_half_precision_leave_the_images_theirs(tmp_path: Path):
    found = []
    for options in ({}, {"gradient_clip_val": 1e-6}, {"precision": "bf16-mixed"}):
        objective = FreeAdversarial(EPSILON, replays=1)
        trained(tmp_path, objective, max_epochs=1, limit_train_batches=1, **options)
        found.append(objective.carried)
    plain, clipped, half = found
    assert torch.equal(clipped, plain)
    assert half.dtype == torch.float32
    assert (half == plain).float().mean() > 0.9


def test_accumulated_gradients_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"`trainer\.accumulate_grad_batches` must be 1"):
        trained(tmp_path, FreeAdversarial(EPSILON, REPLAYS), accumulate_grad_batches=2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FreeAdversarial(0.0), "`epsilon` must be greater than 0, got 0.0"),
        (lambda: FreeAdversarial(0.1, replays=0), "`replays` must be at least 1, got 0"),
        (lambda: FreeAdversarial(0.1, step_size=0.0), "`step_size` must be greater than 0, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_copy_goes_its_own_way():
    objective = FreeAdversarial(EPSILON)
    before = stepped(objective).clone()
    stepped(copy.deepcopy(objective))
    assert torch.equal(objective.carried, before)
