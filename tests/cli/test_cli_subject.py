"""Networks of one's own: explained and certified without a run, and what is refused about them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_runs import CONFIGS

from lit_xai.cli import main, own
from lit_xai.cli.images import Pool
from lit_xai.cli.weights import load_foreign

DIGITS = str(CONFIGS / "data" / "sklearn_digits.yaml")
PLAIN = ["--model", "mine.plain", "--weights", "net.pt", "--data", DIGITS]
SALIENCY = ["--explain.attributions.saliency", "Saliency", "--samples", "3"]


def maps(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "maps.npz") as kept:
        return dict(kept)


def test_explain_needs_no_run(at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *PLAIN, *SALIENCY, "--out", str(tmp_path)]) == 0
    seen = maps(tmp_path / "explanations" / "validation")
    weight = torch.load("net.pt", weights_only=True)["1.weight"]  # the saliency of a linear network
    expected = weight[torch.from_numpy(seen["target"])].reshape(-1, 1, 8, 8)
    np.testing.assert_allclose(seen["maps/saliency"], expected.numpy(), rtol=1e-5)
    assert "is given pixels in [0, 1]" in capsys.readouterr().err
    said = yaml.safe_load((tmp_path / "explanations" / "validation" / "config.yaml").read_text())
    assert said["model"]["class_path"] == "mine.plain"
    assert said["data"]["class_path"].endswith("SklearnDigits")


def test_normalisation_is_put_first_where_it_is_asked_for(
    at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = yaml.safe_load(Path(DIGITS).read_text())["model"]
    given = ["--mean", str(facts["mean"][0]), "--std", str(facts["std"][0])]
    for name, words in {"told": ["--normalize"], "given": given, "none": []}.items():
        assert main(["explain", *PLAIN, *SALIENCY, *words, "--output", str(tmp_path / name)]) == 0
    said = capsys.readouterr().err
    assert f"pixels are normalised first, with mean {facts['mean']} and std {facts['std']}" in said
    told, named, none = (maps(tmp_path / name)["maps/saliency"] for name in ("told", "given", "none"))
    np.testing.assert_array_equal(told, named)
    np.testing.assert_allclose(told, none / facts["std"][0], rtol=1e-5)


def test_images_are_spread_evenly_whatever_their_number() -> None:
    pool = Pool(range(5), list, "digits")
    assert pool.spaced(2) == [0, 2]
    assert pool.spaced(4) == [0, 1, 2, 3]
    assert pool.spaced(9) == [0, 1, 2, 3, 4]


def test_data_of_ones_own_and_a_class_with_arguments(at_work: Path, tmp_path: Path) -> None:
    mine = ["--model.class_path", "mine.wide", "--model.init_args.width=5", "--data", DIGITS]
    few = ["--sigma", "0.2", "--samples", "9", "--images", "2"]
    assert (
        main(["certify", *mine, *few, "--out", str(tmp_path / "w")]) == 0
    )  # channels and classes come from the file of data
    odd = ["--model.class_path", "mine.Odd", "--model.init_args.kind", "probabilities", "--weights", "odd.pt"]
    data = ["--data", "mine.Digits", "--data.init_args.shift", "0"]
    assert main(["certify", *odd, *data, *few, "--out", str(tmp_path / "odd")]) == 0


def test_a_network_of_the_house_goes_by_its_bare_name() -> None:
    from lit_xai.models import SmallCNN

    assert own.find("SmallCNN") is SmallCNN
    assert own.find("torch.nn.Identity") is torch.nn.Identity


def test_prefixes_of_wrappers_are_taken_off_and_named(
    at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "certify",
        *PLAIN,
        "--weights",
        "wrapped.pt",
        "--sigma",
        "0.2",
        "--samples",
        "9",
        "--images",
        "2",
    ]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "wrapped.pt: `model.module.` was taken off" in capsys.readouterr().err


def test_a_prefix_that_the_network_has_itself_stays(tmp_path: Path) -> None:
    net = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 2)})
    torch.save(net.state_dict(), tmp_path / "own.pt")
    assert load_foreign(net, tmp_path / "own.pt", "net") == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "mine.plian"], "there is no 'plian' in mine: did you mean 'plain'?"),
        (["--model", "mien.plain"], "there is no module 'mien' in this folder, in PYTHONPATH or installed: "),
        (
            ["--model", "lit_xai.model.SmallCNN"],
            "no module 'model' in lit_xai: did you mean 'models'?",
        ),
        (["--model", "SmalCNN"], "did you mean 'SmallCNN'?"),
        (["--model", "mine.Digits"], "made a Digits, not an nn.Module"),
        (["--weights", "nte.pt"], "weights nte.pt do not exist"),
        (["--weights", "whole.pt"], "holds Python objects"),
        (["--weights", "mine.py"], "cannot be read as a checkpoint"),
        (["--weights", "odd.pt"], "belongs to another network than mine.plain makes: Missing key(s)"),
        (["--model", "mine.wide", "--model.init_args.widht", "3"], "did you mean 'model.init_args.width'?"),
        (["--data", "nowhere.yaml"], "`nowhere.yaml` does not exist"),
        (["--data", "SklearnDigit"], "did you mean 'SklearnDigits'?"),
        (["--data", "SklearnDigits", "--normalize"], "`--normalize` needs a file of data"),
        (["--mean", "0.1"], "`--mean` and `--std` belong together"),
        (["--normalize", "--mean", "0.1", "--std", "1"], "leave out `--mean` and `--std`"),
        (["--weihgts", "net.pt"], "there is no option '--weihgts': did you mean '--weights'?"),
        (["--data", "SklearnDigits", "--data.init_args.vla", "3"], "did you mean"),
        (["--model", "mine.Odd", "--weights", "odd.pt", "--model.init_args.kind", "pair"], "got tuple"),
        (["--mean", "0.1", "0.2", "--std", "1", "1"], "one number, or one per channel, 1; got 2"),
        (["--config", "mine.yaml"], "mine.yaml"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: list[str], expected: str, at_work: Path, refused: Callable[[list[str]], str]
) -> None:
    said = refused(["certify", *PLAIN, "--sigma", "0.2", "--images", "2", *words])
    assert expected in said
    assert len(said) < 330


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--modle", "mine.plain"], "did you mean '--model'?"),
        ([], "needs a network: `--run DIR`, or `--model my.Net"),
        (["--model", "mine.plain"], "`--data` is needed"),
        (["--run", "runs/a", "--weights", "net.pt"], "`--weights` is for a network of one's own"),
    ],
)
def test_a_network_must_be_named_and_only_one(
    words: list[str], expected: str, at_work: Path, refused: Callable[[list[str]], str]
) -> None:
    assert expected in refused(["explain", *words])


def test_data_of_other_classes_or_shape_are_refused(
    at_work: Path, refused: Callable[[list[str]], str], tmp_path: Path
) -> None:
    words = ["certify", "--model", "torch.nn.Identity", "--data", DIGITS, "--sigma", "0.2"]
    assert "must answer logits of shape (batch, classes), got (1, 1, 8, 8)" in refused(words)
    few = ["--model", "mine.wide", "--model.init_args.classes", "7"]
    assert "as many logits as the data have classes, 10, got 7" in refused([*words, *few])
    words = ["certify", "--model", "SmallCNN", "--model.init_args.channels", "3", "--data", DIGITS]
    assert "does not take images of shape (1, 1, 8, 8)" in refused([*words, "--sigma", "0.2"])


def test_a_module_that_lacks_something_says_what(at_work: Path, refused: Callable[[list[str]], str]) -> None:
    (at_work / "lacking.py").write_text("import nowhere_to_be_found\n")
    said = refused(["certify", *PLAIN, "--model", "lacking.net"])
    assert "No module named 'nowhere_to_be_found'" in said


def test_a_checkpoint_of_a_run_goes_by_its_run(
    run: Path, at_work: Path, refused: Callable[[list[str]], str]
) -> None:
    words = ["--model", "SmallCNN", "--weights", str(run / "checkpoints" / "last.ckpt"), "--data", DIGITS]
    assert "name its run folder, `--run DIR`" in refused(["certify", *words])
