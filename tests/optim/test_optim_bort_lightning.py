"""Bort under Lightning, and in a configuration file."""

import lightning as L
import pytest
import torch
from bort_twins import fresh, steps
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.optim import Bort, BortAdamW, BortSGD
from lit_xai.optim import bort as variant


class Regression(L.LightningModule):
    def __init__(self, build) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        self.build = build

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.build(self.parameters())


@pytest.mark.parametrize(
    ("bort", "plain"),
    [
        (BortSGD, torch.optim.SGD),
        (BortAdamW, torch.optim.AdamW),
        (variant(torch.optim.RMSprop), torch.optim.RMSprop),
    ],
    ids=["sgd", "adamw", "rmsprop"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_trains_as_a_hand_loop_does_and_not_as_the_plain_optimizer(
    bort, plain, accumulate, tmp_path
):
    draws = torch.Generator().manual_seed(0)
    inputs, target = (
        torch.randn(32, 6, generator=draws, dtype=torch.float64),
        torch.randint(3, (32,), generator=draws),
    )
    loader = DataLoader(TensorDataset(inputs, target), batch_size=8, num_workers=0)

    def fitted(build) -> list[Tensor]:
        module = Regression(build)
        trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=accumulate,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader)
        return [p.detach() for p in module.parameters()]

    settings = {"lr": 0.05, "gamma": 1.0, "every_k": 2}
    under_lightning = fitted(lambda p: bort(p, **settings))
    without = fitted(lambda p: plain(p, lr=0.05))

    module = Regression(None)
    optimizer = bort(module.parameters(), **settings)
    batches = list(loader)
    for _ in range(3):
        for first in range(0, len(batches), accumulate):
            optimizer.zero_grad()
            for batch in batches[first : first + accumulate]:
                (module.training_step(batch, 0) / accumulate).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(under_lightning, module.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(under_lightning, without, strict=True) if a.ndim > 1)


@pytest.mark.parametrize("amplitude", [0.5, "ada"])
def test_a_configuration_file_can_name_it(amplitude):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    settings = {"lr": 0.01, "betas": [0.5, 0.9], "gamma": 0.3, "amplitude": amplitude, "penalty": "l1"}
    config = parser.parse_object(
        {"optimizer": {"class_path": "lit_xai.optim.BortAdamW", "init_args": settings}}
    )
    optimizer = parser.instantiate(config).optimizer(fresh())
    group = optimizer.param_groups[0]
    assert type(optimizer) is BortAdamW
    assert {name: group[name] for name in settings} == settings | {"betas": (0.5, 0.9)}


def test_a_configuration_file_can_put_it_around_any_optimizer():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)

    def built(**settings):
        inside = {"class_path": "torch.optim.RMSprop", "init_args": {"lr": 0.03, "alpha": 0.9, **settings}}
        words = {
            "class_path": "lit_xai.optim.Bort",
            "init_args": {"optimizer": inside, "gamma": 0.3, "every_k": 2},
        }
        parameters = fresh()
        return parser.instantiate(parser.parse_object({"optimizer": words})).optimizer(parameters), parameters

    optimizer, parameters = built()
    assert (type(optimizer), type(optimizer.inside)) == (Bort, torch.optim.RMSprop)
    expected = {"lr": 0.03, "alpha": 0.9, "gamma": 0.3, "every_k": 2}
    assert {name: optimizer.param_groups[0][name] for name in expected} == expected
    by_hand = fresh()
    steps(optimizer, parameters, 4)
    steps(variant(torch.optim.RMSprop)(by_hand, **expected), by_hand, 4)
    assert all(torch.equal(a, b) for a, b in zip(parameters, by_hand, strict=True))
    with pytest.raises(ArgumentError, match="alpa"):
        built(alpa=0.1)


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    """Momentum, moments and the beat of `every_k`, through a checkpoint of Lightning."""
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 6, generator=draws, dtype=torch.float64)
    target = torch.randint(3, (24,), generator=draws)
    loader = DataLoader(TensorDataset(inputs, target), batch_size=8, num_workers=0)

    def fitted(epochs, resume=None):
        module = Regression(lambda p: variant(torch.optim.Adamax)(p, lr=0.05, gamma=1.0, every_k=2))
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return [p.detach() for p in module.parameters()]

    whole = fitted(2)
    fitted(1)
    assert all(torch.equal(a, b) for a, b in zip(whole, fitted(2, tmp_path / "1.ckpt"), strict=True))
