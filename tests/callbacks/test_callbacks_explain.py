"""`Explain`: what is scored when, what it does where something fails, and what it refuses at the start."""

import json
import math
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from probed import Broken, Level, Moved, classifier, fitted, loader, trainer
from torch import nn

from lit_xai.attributions import Attribution, InputXGradient, IntegratedGradients, Saliency
from lit_xai.callbacks import CatastrophicOverfitting, Explain, Robustness, RunFolder
from lit_xai.metrics import Closeness, Flags, Gini, RandomMap, Residual
from lit_xai.metrics.base import Metric
from lit_xai.metrics.credible import credible


class Seen(Explain):
    """Remembers what it logged, epoch by epoch."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self.history: dict[int, dict[str, float]] = getattr(self, "history", {})
        if self.fresh and not trainer.sanity_checking:
            self.history[trainer.current_epoch] = dict(self.values)


class Refusing(Attribution):
    """A method that cannot explain anything."""

    def maps(self, model: nn.Module, inputs: Any, target: Any) -> Any:
        raise ValueError("no rule for `net.3`")


def seen(metrics: dict[str, Metric] | None, **words: Any) -> Seen:
    return Seen(
        {"saliency": Saliency()}, metrics, **{"samples": 6, "batch_size": 4, "on_error": "raise", **words}
    )


def test_everything_that_is_logged_is_described_and_the_other_way_round(tmp_path: Any) -> None:
    look = seen({"gini": Gini(), "flag": Flags()}, on_error="flag")
    run = fitted(tmp_path, look)
    facts = look.quantities()
    logged = {key for key in run.callback_metrics if key.partition("/")[0] in ("explain", "control", "lead")}
    assert logged == set(facts)
    assert {fact["kind"] for fact in facts.values()} == {"score", "control", "lead"}
    assert facts["lead/saliency/gini"] == {
        "kind": "lead",
        "better": "higher",
        "low": None,
        "high": None,
        "median": False,
    }
    assert facts["control/random_map/gini"]["high"] == 1.0
    assert set(run.callback_metrics) >= {
        "control/random_map/gini",
        "control/edge_map/gini",
        "control/other_image/saliency/gini",
        "control/untrained/saliency/gini",
        "explain/saliency/flag/failed",
        "time/seen_share",  # by the name of the class
    }
    assert run.callback_metrics["explain/saliency/flag/failed"] == 0


def test_without_metrics_or_attributions_there_are_no_controls(tmp_path: Any) -> None:
    assert seen({}, on_error="raise").quantities() == {}
    assert Explain({}, {"gini": Gini()}).quantities() == {}


def test_each_metric_has_its_own_epochs(tmp_path: Any) -> None:
    look = seen(
        {"gini": Gini(), "level": Level(), "flag": Flags()},
        controls={"random_map": RandomMap()},
        every_n_epochs=2,
        metrics_every_n_epochs={"gini": 3, "flag": 100},
    )
    fitted(tmp_path, look, max_epochs=8)
    at = {
        name: [e for e, values in look.history.items() if f"explain/saliency/{name}" in values]
        for name in ("gini", "level", "flag/zero")
    }
    assert at == {"gini": [0, 3, 6, 7], "level": [0, 2, 4, 6, 7], "flag/zero": [0, 7]}
    assert "lead/saliency/gini" not in look.history[2]
    assert "control/random_map/gini" not in look.history[2]


def test_a_run_that_is_validated_every_second_epoch_is_seen_first_and_last(tmp_path: Any) -> None:
    look = seen({"gini": Gini()}, every_n_epochs=10)
    fitted(tmp_path, look, max_epochs=7, check_val_every_n_epoch=2)
    assert sorted(look.history) == [1, 5]  # the last epoch that is validated


@pytest.mark.parametrize(("every", "epochs"), [(2, [1, 3, 5, 7]), (3, [1, 3, 7]), (4, [1, 5, 7])])
def test_an_epoch_that_is_due_between_validations_is_seen_at_the_next(
    every: int, epochs: list[int], tmp_path: Any
) -> None:
    look = seen({"gini": Gini()}, every_n_epochs=every)
    fitted(tmp_path, look, max_epochs=8, check_val_every_n_epoch=2)
    assert sorted(look.history) == epochs  # 0, n, 2 n, or the one after it; and the last


def test_a_run_of_so_many_steps_is_seen_at_its_last(tmp_path: Any) -> None:
    look = seen({"gini": Gini()}, every_n_epochs=10)
    fitted(tmp_path, look, max_epochs=-1, max_steps=9)  # of 3 steps an epoch
    assert sorted(look.history) == [0, 2]


def test_a_guard_that_follows_a_metric_of_fewer_epochs_waits_for_it(tmp_path: Any) -> None:
    look = seen({"gini": Gini(), "level": Level()}, metrics_every_n_epochs={"gini": 3})
    fitted(tmp_path, look, CatastrophicOverfitting(monitor="explain/saliency/gini"), max_epochs=4)
    assert sorted(look.history) == [0, 1, 2, 3]


@pytest.mark.parametrize("target", ["label", "prediction"])
def test_controls_of_the_first_images_and_their_lead(tmp_path: Any, target: Any) -> None:
    look = seen({"level": Level()}, control_samples=4, samples=10, batch_size=3, target=target)
    fitted(tmp_path, look)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:10]
    with np.load(tmp_path / "explanations" / "epoch_000.npz") as kept:
        ids, control = kept["probe_ids"], kept["scores/control/random_map/level"]
        own, facts = (
            kept["scores/explain/saliency/level"],
            {key: kept[f"probe_{key}"] for key in ("target", "prediction", "correct", "probability")},
        )
    assert ids.tolist() == sorted(order.tolist())
    assert set(ids[~np.isnan(control)].tolist()) == set(order[:4].tolist())
    assert look.values["lead/saliency/level"] == pytest.approx(np.nanmean(own - control), rel=1e-6)
    assert look.values["control/random_map/level"] == pytest.approx(np.nanmean(control), rel=1e-6)
    assert (facts["correct"] == (facts["prediction"] == ids % 3)).all()
    assert (facts["target"] == (ids % 3 if target == "label" else facts["prediction"])).all()
    assert ((facts["probability"] > 0) & (facts["probability"] < 1)).all()


@pytest.mark.parametrize("bound", [0.0, 0.5])
def test_what_fails_is_flagged_and_the_others_go_on(
    tmp_path: Any, bound: float, capsys: pytest.CaptureFixture[str]
) -> None:
    look = Seen(
        {"saliency": Saliency(), "refusing": Refusing()},
        {"gini": Gini(), "broken": Broken(bound), "level": Level()},
        samples=12,
        batch_size=1,
        controls={"random_map": RandomMap()},
    )
    fitted(tmp_path, look, max_epochs=2)
    assert [line for line in capsys.readouterr().out.splitlines() if "failed" in line] == [
        f"Seen: at epoch 0, failed and left out: {reason}"  # once, with all that failed for it
        for reason in (
            "`saliency/broken`, `control/random_map/broken` (RuntimeError: out of memory)",
            "`refusing` (ValueError: no rule for `net.3`)",
        )
    ]
    values = look.history[1]
    share = float((loader().dataset.tensors[0].flatten(1).mean(1) > bound).double().mean())
    assert 0 < share <= 1
    assert values["explain/saliency/flag/failed"] == pytest.approx(share)
    assert values["explain/refusing/flag/failed"] == 1
    assert math.isnan(values["explain/refusing/gini"])
    assert math.isfinite(values["explain/saliency/gini"])
    assert math.isnan(values["explain/saliency/broken"]) == (share == 1)
    assert look.note.startswith("failed and left out: `saliency/broken`, `control/")
    assert look.note.count("out of memory") == 1


def test_the_strict_end_the_run(tmp_path: Any) -> None:
    with pytest.raises(RuntimeError, match="out of\nmemory"):
        fitted(tmp_path, seen({"broken": Broken()}, controls={}))


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory")
def test_drift_compares_with_the_last_look_also_after_a_stop(tmp_path: Any) -> None:
    def run(folder: Any, epochs: int, ckpt_path: Any = None) -> Seen:
        look = seen({"moved": Moved()}, controls={"random_map": RandomMap()}, every_n_epochs=2)
        last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        fitted(folder, look, last, max_epochs=epochs, ckpt_path=ckpt_path, enable_checkpointing=True)
        return look

    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", 8).history
    assert sorted(whole) == [0, 2, 4, 6, 7]
    assert math.isnan(whole[0]["explain/saliency/moved"])
    assert all(whole[epoch]["explain/saliency/moved"] > 0 for epoch in (2, 4, 6, 7))
    kept = sorted(path.name for path in (tmp_path / "whole" / "explanations").glob("maps_*"))
    assert kept == ["maps_006.npz", "maps_007.npz"]

    class Halt(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if not trainer.sanity_checking and trainer.current_epoch == 4:
                raise InterruptedError  # after the look of this epoch, before its checkpoint

    folder = tmp_path / "halves"
    look = seen({"moved": Moved()}, controls={"random_map": RandomMap()}, every_n_epochs=2)
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    with pytest.raises(InterruptedError):
        fitted(folder, look, Halt(), last, max_epochs=8, enable_checkpointing=True)
    second = run(folder, 8, folder / "last.ckpt").history
    assert sorted(second) == [4, 6, 7]
    key = "explain/saliency/moved"
    assert {epoch: values[key] for epoch, values in second.items()} == {e: whole[e][key] for e in second}


def test_a_method_may_have_any_name(tmp_path: Any) -> None:
    methods: dict[str, Attribution] = {"file": Saliency(), "ids": InputXGradient()}
    look = Explain(methods, {"moved": Moved()}, 6, on_error="raise")
    fitted(tmp_path, look, max_epochs=2)
    assert look.values["explain/file/moved"] > 0
    assert look.values["explain/ids/moved"] > 0


REFUSED = [
    (
        {"metrics_every_n_epochs": {"ginni": 2}},
        "`metrics_every_n_epochs` names no metric by 'ginni': did you mean `gini`",
    ),
    ({"metrics_every_n_epochs": {"gini": 0}}, "`metrics_every_n_epochs` must be at least 1"),
    ({"max_share_of_epoch": 0.0}, "`max_share_of_epoch` must be greater than 0"),
    ({"control_samples": 0}, "`control_samples` must be at least 1"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_wrong_words_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seen({"gini": Gini()}, **words)


class NeedsMasks(Level):
    def score(self, attributions: Any, mask: Any) -> Any:
        return attributions.flatten(1).mean(1)


def of_size(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


UNFIT = [
    ({"inside": NeedsMasks()}, loader(), "`inside` needs to know where the object is"),
    (
        {"inside": NeedsMasks()},
        loader(12, of_size(12, 5, 5)),
        r"masks must be true or false .* shape \(\d+, 6, 8\), got torch.bool of shape \(\d+, 5, 5\)",
    ),
    (
        {"closeness": Closeness()},
        loader(),
        r"`closeness` applies to none of the attributions \(saliency\): leave it out, or add one that it "
        "applies to, such as Boundary",
    ),
    ({"flag/residual": Residual()}, loader(), "`flag/residual` applies to none .* such as "),
    ({"gini": Gini()}, loader(1), "the control `other_image` needs another image, and the probe has 1"),
]


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
@pytest.mark.parametrize(("metrics", "data", "message"), UNFIT)
def test_what_could_not_be_scored_is_refused_before_the_first_epoch(
    verb: str, metrics: Any, data: Any, message: str, tmp_path: Any
) -> None:
    trained: list[int] = []
    module = classifier()
    module.on_train_batch_start = lambda *_: trained.append(1)
    fitter = trainer(tmp_path, seen(metrics), num_sanity_val_steps=0)
    begin = {
        "fit": lambda: fitter.fit(module, loader(), data),
        "validate": lambda: fitter.validate(module, data, verbose=False),
        "test": lambda: fitter.test(module, data, verbose=False),
    }
    with pytest.raises(ValueError, match=message) as refusal:
        begin[verb]()
    assert "\n" not in str(refusal.value)
    assert not trained


def test_a_metric_that_applies_to_some_method_is_none_to_refuse(tmp_path: Any) -> None:
    methods = {"saliency": Saliency(), "ig": IntegratedGradients(steps=2), "x": InputXGradient()}
    look = Explain(methods, {"residual": Residual()}, samples=3, on_error="raise")
    fitted(tmp_path, look)
    assert "explain/ig/residual" in look.values
    assert "explain/saliency/residual" not in look.values


def test_the_default_metrics_are_the_credible_ones_that_apply() -> None:
    plain, residual = Explain({"saliency": Saliency()}), "flag/residual"
    assert set(credible()) - set(plain.metrics) == {residual, "flag/missing"}
    assert residual in Explain({"ig": IntegratedGradients()}).metrics
    assert plain.metrics_every_n_epochs == {"randomisation_complexity": 10}
    assert Explain({"saliency": Saliency()}, {}).metrics == {}
    assert Explain({}).metrics == {}  # nothing is explained, and nothing measured


@pytest.mark.slow
def test_by_default_what_this_network_or_probe_cannot_show_is_left_out_and_said(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    look = seen(None, samples=3, control_samples=2)
    run = fitted(tmp_path, RunFolder(tmp_path, seed=0), look, max_epochs=2)
    facts = set(json.loads((tmp_path / "quantities.json").read_text()))
    logged = {key for key in run.callback_metrics if not key.startswith(("train/", "val/", "time/"))}
    assert facts == logged  # of a metric that is left out, neither
    said = capsys.readouterr().out
    assert said.startswith("Seen: left out: `grid` needs")
    assert said.count("\n") == 1
    assert "explain/saliency/srg" in {key.rpartition("/")[0] for key in look.values} | set(look.values)
    assert not [key for key in look.values if key.startswith("explain/saliency/grid")]
    assert math.isfinite(look.values["explain/saliency/drift/cosine"])


@pytest.mark.filterwarnings("ignore:.*Precision bf16-mixed")
@pytest.mark.parametrize("kind", ["compiled", "bf16-mixed"])
def test_compiled_and_half_precision_training_explains_the_plain_model(kind: str, tmp_path: Any) -> None:
    values, module = [], classifier()
    for number in range(2):
        look = seen({"level": Level(), "gini": Gini()})
        words = {"precision": "bf16-mixed"} if number and kind == "bf16-mixed" else {}
        if number and kind == "compiled":
            module.model.net.compile(backend="eager")
        trainer(tmp_path, look, **words).validate(module, loader(), verbose=False)
        values.append(look.values)
    assert values[0] == values[1]


def test_a_robustness_probe_stays_strict(tmp_path: Any) -> None:
    class Falls(Metric):
        quantities = Level.quantities

        def score(self, model: nn.Module) -> Any:
            raise RuntimeError("fell")

    with pytest.raises(RuntimeError, match="fell"):
        fitted(tmp_path, Robustness({"falls": Falls()}, samples=3))
