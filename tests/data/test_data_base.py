"""What every source serves: samples, batches, and loaders under a real Trainer."""

from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_xai.data import ImageData, ImageSet, Splits, collate


class Numbered(ImageData):
    """Images that are their own index, so that a batch shows what was drawn."""

    count = 65

    def load(self) -> Splits:
        pixels = torch.arange(self.count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        images = ImageSet(pixels, torch.arange(self.count) % 2)
        return Splits(images, images, images, ("even", "odd"))


class Recorder(L.LightningModule):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)
        self.trained: list[list[int]] = []
        self.seen: list[int] = []

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        self.trained.append(numbers(batch))
        return nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        self.seen += numbers(batch)

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        self.seen += numbers(batch)
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Negate(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return -inputs


def numbers(batch: tuple[Tensor, ...]) -> list[int]:
    return (batch[0][:, 0, 0, 0] * 255).round().int().tolist()


def drawn(loader: DataLoader) -> list[int]:
    return list(chain.from_iterable(map(numbers, loader)))


def trainer(folder: Path, epochs: int, **options: object) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*exists and is not empty")


def test_bytes_become_floats_of_the_unit_interval():
    pixels = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).reshape(4, 1, 1, 1)
    inputs, target = ImageSet(pixels, torch.tensor([3, 2, 1, 0]).int()).__getitems__([3, 2, 0])
    assert inputs.flatten().tolist() == [1.0, torch.tensor(128 / 255).item(), 0.0]
    assert inputs.dtype == torch.float32
    assert target.tolist() == [0, 1, 3]
    assert target.dtype == torch.int64


def test_floats_are_kept_and_doubles_shortened():
    pixels = torch.rand(3, 2, 4, 5, dtype=torch.float64)
    inputs, _ = ImageSet(pixels, torch.zeros(3).long()).__getitems__([0, 1, 2])
    assert torch.equal(inputs, pixels.float())


def test_a_batch_is_its_samples_stacked():
    masks = torch.rand(5, 4, 4) < 0.5
    images = ImageSet((torch.rand(5, 3, 4, 4) * 255).byte(), torch.arange(5), masks)
    gathered = collate(images.__getitems__([4, 1, 1]))
    stacked = collate([images[4], images[1], images[1]])
    assert isinstance(gathered, tuple)
    assert isinstance(stacked, tuple)
    assert all(torch.equal(one, other) for one, other in zip(gathered, stacked, strict=True))
    assert len(gathered) == 3
    assert gathered[2].dtype == torch.bool


def test_a_subset_keeps_images_labels_and_masks_together():
    images = ImageSet(torch.rand(6, 1, 2, 2), torch.arange(6), torch.rand(6, 2, 2) < 0.5)
    part = images.subset(torch.tensor([5, 0]))
    assert len(part) == 2
    for mine, theirs in zip(part[0], images[5], strict=True):
        assert torch.equal(mine, theirs)


def test_labels_must_name_every_image():
    with pytest.raises((ValueError, TypeCheckError)):
        ImageSet(torch.rand(3, 1, 2, 2), torch.arange(2))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0."),
        ({"eval_batch_size": -1}, "`eval_batch_size` must be at least 1, got -1."),
        ({"workers": -1}, "`workers` must be at least 0, got -1."),
    ],
)
def test_impossible_arguments_are_refused(argument: dict[str, int], words: str):
    with pytest.raises(ValueError, match=words):
        Numbered(**argument)


def test_facts_are_known_after_setup():
    data = Numbered()
    data.setup("fit")
    assert (data.classes, data.names, data.image_shape) == (2, ("even", "odd"), (1, 2, 2))
    assert data.splits is data.splits


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_every_image_once(workers: int):
    data = Numbered(batch_size=8, eval_batch_size=16, workers=workers)
    train, val = data.train_dataloader(), data.val_dataloader()
    assert sorted(drawn(train)) == list(range(65))
    assert drawn(val) == list(range(65))
    assert drawn(train) != list(range(65))


def test_samples_by_index_are_collated_by_the_loader():
    loader = Numbered().val_dataloader()
    batch = loader.collate_fn([loader.dataset[index] for index in (3, 60)])
    assert numbers(batch) == [3, 60]
    assert isinstance(batch, tuple)


def test_loading_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    data = Numbered()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(before, torch.random.get_rng_state())


def test_batches_are_tuples_whatever_pinning_made_of_them():
    batch = [torch.rand(2, 1, 2, 2), torch.zeros(2).long()]
    assert isinstance(Numbered().on_after_batch_transfer(batch, 0), tuple)


@pytest.mark.parametrize("ranks", [2, 3])
def test_evaluation_over_processes_repeats_nothing(ranks: int):
    seen = []
    for rank in range(ranks):
        data = Numbered(eval_batch_size=16)
        data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": ranks, "rank": rank})
        seen += drawn(data.test_dataloader())
    assert sorted(seen) == list(range(65))


def test_an_empty_share_is_refused():
    # A process without a batch would wait for ever in DDP's exchange of buffers.
    data = Numbered()
    data.count = 2
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 3, "rank": 0})
    with pytest.raises(ValueError, match="`val` has 2 images for 3 processes: use fewer processes"):
        data.val_dataloader()


@quiet
def test_a_resumed_run_sees_the_batches_of_an_unbroken_one(tmp_path: Path):
    def fit(epochs: int, resume: Path | None = None) -> Recorder:
        model, data = Recorder(), Numbered(batch_size=16, seed=7)
        run = trainer(tmp_path, epochs, num_sanity_val_steps=0)
        run.fit(model, datamodule=data, ckpt_path=resume, weights_only=False if resume else None)
        run.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model

    whole, first = fit(4), fit(2)
    second = fit(4, tmp_path / "2.ckpt")
    assert first.trained + second.trained == whole.trained
    assert [len(batch) for batch in whole.trained[:5]] == [16, 16, 16, 16, 1]
    epochs = [tuple(chain(*whole.trained[start : start + 5])) for start in range(0, 20, 5)]
    assert len(set(epochs)) == 4


@quiet
def test_only_training_batches_are_augmented(tmp_path: Path):
    model, data = Recorder(), Numbered(batch_size=16, augment=Negate())
    run = trainer(tmp_path, 1, enable_checkpointing=False, num_sanity_val_steps=2)
    run.fit(model, datamodule=data)
    assert sorted(chain(*model.trained)) == [-number for number in reversed(range(65))]
    assert model.seen == 2 * list(range(65))  # once for the sanity check
    for look in (run.validate, run.test):
        model.seen = []
        look(model, datamodule=data, verbose=False)
        assert model.seen == list(range(65))
    model.seen = []
    run.predict(model, datamodule=data, return_predictions=False)
    assert model.seen == list(range(65))


@quiet
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_the_trainer_may_overfit_a_few_batches(tmp_path: Path):
    model = Recorder()
    trainer(tmp_path, 2, enable_checkpointing=False, overfit_batches=2).fit(
        model, datamodule=Numbered(batch_size=8)
    )
    assert model.trained == [[*range(8)], [*range(8, 16)]] * 2


@quiet
def test_the_callback_finds_the_data_set(tmp_path: Path):
    class Look(L.Callback):
        found: DataLoader | None = None

        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.found = trainer.val_dataloaders

    look, data = Look(), Numbered()
    run = trainer(tmp_path, 1, enable_checkpointing=False, callbacks=[look])
    run.fit(Recorder(), datamodule=data)
    assert look.found.dataset is data.splits.val
    assert len(look.found.dataset) == 65
