"""Objectives inside one another, in other precisions and layouts, compiled, and on several processes."""

import copy
import os
import socket
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp
from rows import OBJECTIVES, Row
from subjects import tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.attacks import L2PGD, NudgedPGD, RandomNeighbour
from lit_xai.attributions import DeepLift, GradCam, Saliency
from lit_xai.classifier import Classifier
from lit_xai.objectives import (
    AttributionAlignment,
    CrossEntropy,
    DBort,
    FreeAdversarial,
    GradAlign,
    GradientPenalty,
    Objective,
    Trades,
    WeightPerturbed,
)

TARGET = torch.tensor([0, 1, 2, 3, 0])
NEAR = RandomNeighbour(0.1)
Wrap = Callable[[Objective], Objective]
WRAPS: dict[str, Wrap] = {
    "weight perturbed": WeightPerturbed,
    "gradient penalty": lambda inside: GradientPenalty(0.01, inside),
    "alignment": lambda inside: AttributionAlignment(GradCam(layer="3"), NEAR, objective=inside),
    "dbort": DBort,
}
every_row = pytest.mark.parametrize("row", OBJECTIVES, ids=str)


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    return tiny_net(nn.ReLU, dtype).train()


def descended(objective: Objective, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(2)
    terms = objective(model, images, TARGET[: len(images)])
    torch.stack(list(terms.values())).sum().backward()
    return terms


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@every_row
def test_any_objective_goes_into_any_wrapping(row: Row, wrap: Wrap) -> None:
    inside, model = copy.deepcopy(row.instance), net()
    try:
        outside = wrap(inside)
    except ValueError as refused:
        assert "`objective` must not have" in str(refused)  # noqa: PT017
        return
    plain = set(copy.deepcopy(inside)(net(), torch.rand(5, 2, 8, 8), TARGET))
    added = set(descended(outside, model, torch.rand(5, 2, 8, 8))) - plain
    assert len(added) == (0 if wrap is WeightPerturbed else 1)
    assert gradient(model).isfinite().all()


@every_row
def test_losses_are_in_single_precision_where_the_network_is_in_half(row: Row) -> None:
    """And go down in the same direction, for the same images."""
    found = []
    images = torch.rand(5, 2, 8, 8)
    torch.manual_seed(2)
    views = row.instance.views(net(), images, TARGET)
    for half in (False, True):
        model = net()
        model[6].eval()  # no dropout
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = row.instance.terms(model, views, TARGET)
        assert all(term.dtype == torch.float32 for term in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        found.append(gradient(model))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            descended(row.instance, model, images)
        assert gradient(model).isfinite().all()
    assert torch.cosine_similarity(*found, dim=0) > 0.95


@every_row
def test_the_layout_in_memory_changes_nothing_but_draws(row: Row) -> None:
    images = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    plain, other = net(torch.float64), net(torch.float64).to(memory_format=torch.channels_last)
    first, second = (copy.deepcopy(row.instance) for _ in range(2))
    ours = descended(first, plain, images)
    theirs = descended(second, other, images.contiguous(memory_format=torch.channels_last))
    assert gradient(other).isfinite().all()
    if not row.draws:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_row
def test_a_batch_may_be_one_image(row: Row) -> None:
    model = net()
    terms = descended(copy.deepcopy(row.instance), model, torch.rand(1, 2, 8, 8))
    assert all(term.isfinite() for term in terms.values())
    assert gradient(model).isfinite().all()


CROSSES: list[Objective] = [
    WeightPerturbed(Trades(NudgedPGD(0.1, steps=2))),
    GradAlign(0.1),
    GradientPenalty(0.1, FreeAdversarial(0.1, 2)),
    WeightPerturbed(AttributionAlignment(Saliency(), L2PGD(0.5, steps=1), objective=DBort())),
    AttributionAlignment(DeepLift(), NEAR),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("objective", CROSSES, ids=repr)
def test_a_compiled_network_trains_as_it_does_otherwise(objective: Objective) -> None:
    images, models = torch.rand(5, 2, 8, 8), [net(), net()]
    torch.compiler.reset()
    models[1].compile(backend="aot_eager")
    for model in models:
        model[6].eval()
        descended(copy.deepcopy(objective), nn.Sequential(model), images)
    torch.testing.assert_close(*(gradient(model) for model in models), rtol=1e-3, atol=1e-4)


def work(rank: int, port: int, folder: Path) -> None:
    """One of two processes: a few steps of each objective, with the weights that it ends with."""
    own = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()})
    images = torch.rand(20, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(20) % 4)
    for number, objective in enumerate(CROSSES):
        L.seed_everything(1, verbose=False)
        classifier = Classifier(
            net(), lambda weights: torch.optim.SGD(weights, 0.01), objective, channels=2, classes=4
        )
        trainer = L.Trainer(
            devices=2,
            strategy="ddp",
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=folder,
        )
        loader = DataLoader(data, batch_size=5, generator=torch.Generator())
        trainer.fit(classifier, loader, loader)
        torch.save(classifier.model.state_dict(), folder / f"{number}-{rank}.pt")


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port, tmp_path), nprocs=2)
    weights = [name for name, _ in net().named_parameters()]
    for number in range(len(CROSSES)):
        one, two = (torch.load(tmp_path / f"{number}-{rank}.pt", weights_only=True) for rank in (0, 1))
        before = net().state_dict()
        assert all(torch.equal(one[f"net.{name}"], two[f"net.{name}"]) for name in weights)
        assert any(not torch.equal(one[f"net.{name}"], before[name]) for name in weights)


def test_what_makes_passes_of_its_own_is_refused_at_any_depth() -> None:
    for inside in (WeightPerturbed(CrossEntropy()), AttributionAlignment(Saliency(), NEAR)):
        for objective in (inside, GradientPenalty(0.1, inside)):
            with pytest.raises(ValueError, match=f"must not have {type(inside).__name__} inside"):
                DBort(objective)
