"""`fit`, `validate`, `test` and `predict`: verbs over one parsed configuration."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

# The rooms are imported so that a YAML may name their classes without a path.
from lit_xai import attacks, attributions, data, metrics, models, objectives, optim  # noqa: F401
from lit_xai.callbacks import (
    BortResidual,
    CatastrophicOverfitting,
    Certify,
    CsvLog,
    Diverged,
    Divergence,
    EarlyStop,
    Explain,
    MovingAverage,
    RegimeCost,
    Robustness,
    RunFolder,
    WandbMirror,
)
from lit_xai.callbacks.progress import EpochLines
from lit_xai.classifier import Classifier
from lit_xai.cli import TRAINER
from lit_xai.cli.quiet import quiet as quiet
from lit_xai.cli.refusal import Refusal, in_one_line, register_types
from lit_xai.cli.runs import chosen_run, config_of
from lit_xai.cli.weights import load_weights
from lit_xai.evaluation import fingerprint
from lit_xai.evaluation.journal import replace
from lit_xai.study import write_report
from lit_xai.types import require

USAGE = "lit-xai fit --config FILE [--config FILE …] [--OPTION VALUE …] [--print_config]"
ENDS = {1: "failed", 130: "stopped by Ctrl-C", 143: "stopped by SIGTERM"}
KEYS_OF_A_RUN = ("resume", "config")  # said on the command line, not part of what a run is


def add_explain(parser: LightningArgumentParser) -> None:
    """The part `explain:` of a configuration."""
    parser.add_lightning_class_args(Explain, "explain")
    parser.set_defaults({"explain.attributions": {}, "explain.metrics": None})


class Parser(LightningArgumentParser):
    """Says what is wrong in one line instead of after a page of usage."""

    amend: Callable[[Namespace], object] | None = None  # changes what was parsed

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise Refusal(in_one_line(message, self))

    def parse_args(self, *args: Any, **options: Any) -> Namespace:  # type: ignore[override]
        config: Namespace = super().parse_args(*args, **options)
        if self.amend is not None:
            self.amend(config)
        return config


Section = Callable[[Parser], object]  # adds a part of its own to a configuration


class Command(LightningCLI):
    """One configuration: classifier, data, trainer, what to explain, where to write.

    Args:
        words: Options.
        verb: The command; one that is no verb of a Trainer gets none.
        section: Adds a part of the command's own.
    """

    def __init__(self, words: Sequence[str], verb: str, section: Section | None = None) -> None:
        self.verb, self.section = verb, section
        register_types()
        super().__init__(
            Classifier,
            None,
            subclass_mode_data=True,
            save_config_callback=None,
            trainer_defaults={
                "max_epochs": 10,  # Lightning's own default is 1000
                "logger": False,
                "enable_model_summary": False,
                "log_every_n_steps": 1,  # everything is logged by the epoch
            },
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"lit-xai {verb}",
                "usage": USAGE
                if verb == "fit"
                else f"lit-xai {verb} --run DIR [--checkpoint last|best|FILE] …",
                "description": "Options override the configuration, files first, in the order given.",
                "allow_abbrev": False,
            },
            parser_class=Parser,
            args=list(words),
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--out", type=str, default="runs/latest", help="Run folder, the record of the run."
        )
        parser.add_argument(
            "--resume", type=bool, default=False, help="Go on from the last finished epoch in `out`, if any."
        )
        parser.add_argument(
            "--wandb",
            type=Literal["auto", "online", "offline", "disabled"],
            default="auto",
            help="Weights & Biases: auto goes online only where credentials exist.",
        )
        add_explain(parser)
        if self.section is not None and isinstance(parser, Parser):
            self.section(parser)
        parser.add_lightning_class_args(Robustness, "robustness")
        parser.add_lightning_class_args(Certify, "certify")
        parser.add_lightning_class_args(MovingAverage, "ema")
        parser.add_lightning_class_args(CatastrophicOverfitting, "guard")
        parser.add_lightning_class_args(Divergence, "divergence")
        parser.add_lightning_class_args(EarlyStop, "early_stopping")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "robustness.metrics": {},
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Without the warning about arguments that were taken from elsewhere: the verb was cut off here.
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        for part in ("model", "trainer", *self.parser.callback_keys):
            said = self.config[part]
            require(isinstance(said, Namespace), f"`{part}` must be options by name, got {said!r}.")
        self.out = Path(self.config.out)
        self.config.checkpoint.dirpath = str(self.out / "checkpoints")
        self.config.trainer.default_root_dir = str(self.out)
        self.yaml = self.parser.dump(self._shared(), skip_unset=False)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise Refusal(in_one_line(str(error), self.parser)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        if self.verb not in TRAINER:
            return None
        lively = sys.stderr.isatty()
        # Lightning's `save_last` would leave out every epoch that is not the best so far.
        last = ModelCheckpoint(
            self.out / "checkpoints", "last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        callbacks: list[Callback] = [RunFolder(self.out, self.config.seed_everything), BortResidual(), last]
        callbacks.append(RichProgressBar(leave=True, refresh_rate=10) if lively else EpochLines())
        chosen = self.config_init.trainer.callbacks or []
        fitting = self.verb == "fit"
        if fitting:
            callbacks.append(RegimeCost())
        own = [CsvLog(self.out), WandbMirror(self.out, self.config.wandb)] if fitting else []
        more = self.config_init.trainer.logger or []  # beside the record, never in its place
        more = [] if more is True else more if isinstance(more, list) else [more]
        return super().instantiate_trainer(
            callbacks=[*(chosen if isinstance(chosen, list) else [chosen]), *callbacks],
            logger=[*own, *more] or False,
            enable_progress_bar=lively,
            **kwargs,
        )

    def _shared(self) -> Any:
        """The configuration without what was said for this call alone."""
        config = self.config.clone()
        for key in KEYS_OF_A_RUN:
            config.pop(key, None)
        return config


def main(verb: str, words: Sequence[str]) -> int:
    """Run one verb; exit status as in `lit_xai.cli`."""
    quiet()
    if verb == "fit":
        return fit(Command(words, verb))
    run, weights, overrides = chosen_run(verb, words)
    # Overrides come last: what a checkpoint or a saved file says never beats the command line.
    command = Command(["--config", str(config_of(run)), *overrides, "--out", str(run)], verb)
    load_weights(command.model, weights)
    return predict(command) if verb == "predict" else evaluate(command)


def fit(command: Command) -> int:
    """Train, unless the folder holds another run; go on where asked to; end with the report."""
    last = command.out / "checkpoints" / "last.ckpt"
    resume = bool(command.config.resume) and last.exists()
    require(
        resume or not last.exists(),
        f"`out` {command.out} already holds a run: add `--resume true` to go on with it, "
        "or choose another folder.",
    )
    before = ""
    if resume:
        load_weights(command.model, last)  # a broken or foreign file is refused before anything is written
        before = fingerprint(command.model)
        keep_earlier(command.out / "config.yaml", command.yaml)
    prepare(command.out, command.yaml)
    trainer = command.trainer
    for logger in trainer.loggers:
        logger.log_hyperparams({"config": command.yaml})
    path = str(last) if resume else None
    status = guarded(trainer, lambda: trainer.fit(command.model, command.datamodule, ckpt_path=path))
    if resume and trainer.is_global_zero:
        load_weights(command.model, last)
        if fingerprint(command.model) != before:
            set_aside(command.out)
    if trainer.is_global_zero:
        if status in (0, 1):
            page = command.out / "report.html"
            write_report([command.out], page, title=command.out.name)
            print(f"report: {page}")
        for line in last_lines(status, trainer, last):
            print(f"lit-xai: {line}", file=sys.stderr)
    return status


def last_lines(status: int, trainer: Any, last: Path) -> Iterator[str]:
    """What was seen that matters, and where a run that was cut off goes on, in words."""
    for callback in trainer.callbacks:
        note, advice = getattr(callback, "note", ""), getattr(callback, "advice", "")
        if note:
            yield f"{note}: {advice}." if advice else f"{note}."
    if status:
        kept = (
            f"{trainer.current_epoch} of {trainer.max_epochs} epochs are kept in {last}: add `--resume true`"
        )
        lost = "no epoch was finished: the same command starts again"
        yield f"{ENDS[status]}; {kept if last.exists() else lost}."


def evaluate(command: Command) -> int:
    """Measure on validation or test images; write `<verb>.json` into the run folder."""
    trainer = command.trainer
    measure = trainer.validate if command.verb == "validate" else trainer.test
    status = guarded(trainer, lambda: measure(command.model, datamodule=command.datamodule, verbose=False))
    if status == 0 and trainer.is_global_zero:
        values = {key: float(value) for key, value in sorted(trainer.callback_metrics.items())}
        (command.out / f"{command.verb}.json").write_text(json.dumps(values, indent=2) + "\n")
        width = max(map(len, values), default=0)
        for key, value in values.items():
            print(f"{key:<{width}}  {value:.6g}")
    return status


def predict(command: Command) -> int:
    """Write `predictions.csv` into the run folder: position and class of every image to predict."""
    trainer = command.trainer
    classes: list[Any] = []
    require(
        trainer.world_size == 1,
        f"`predict` runs on one process, got {trainer.world_size}: add `--trainer.devices 1`.",
    )
    status = guarded(
        trainer, lambda: classes.extend(trainer.predict(command.model, datamodule=command.datamodule) or [])
    )
    if status == 0:
        path = command.out / "predictions.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("image", "class"))
            rows.writerows(enumerate(int(label) for batch in classes for label in batch))
        print(f"predictions: {path}")
    return status


def guarded(trainer: Any, action: Callable[[], object]) -> int:
    """Run a trainer's entry point; turn its ways of stopping into an exit status."""
    try:
        action()
    except SIGTERMException:
        return 143
    except Diverged:
        return 1
    except SystemExit as stop:  # Lightning turns Ctrl-C into this
        return 130 if stop.code == 1 else int(stop.code or 0)
    except MisconfigurationException as error:
        raise Refusal(str(error)) from error
    return 143 if trainer.received_sigterm else 0  # it may come too late for the loop to notice


@rank_zero_only
def keep_earlier(path: Path, yaml: str) -> None:
    """Keep the configuration of the earlier part of a run beside the one it goes on with, if they differ."""
    if path.exists() and path.read_text() != yaml:
        number = len(list(path.parent.glob("config_before_*.yaml"))) + 1
        path.rename(path.with_name(f"config_before_{number}.yaml"))


def set_aside(out: Path) -> None:
    """Rename what was measured on weights that are no longer those of the run."""
    for name in ("attack", "certify", "certificates.tsv", "certificates.json"):
        path = out / name
        if path.exists():
            number = len(list(out.glob(f"{path.stem}_before_*{path.suffix}"))) + 1
            kept = path.rename(path.with_stem(f"{path.stem}_before_{number}"))
            print(f"lit-xai: {path} is of earlier weights: it is {kept.name} now.", file=sys.stderr)


@rank_zero_only
def prepare(out: Path, yaml: str) -> None:
    """Make the run folder and write the configuration, or say why that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace(out / "config.yaml", yaml)
    except OSError as error:
        raise ValueError(
            f"`out` {out} cannot be written ({error.strerror}): choose another folder."
        ) from None
