"""What `explain:` cannot be is said in one line when the run starts, not after its first epoch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from small_runs import WORDS

from lit_xai.cli import main

Refused = Callable[[list[str]], str]

PLAIN = ["--explain.attributions={saliency: Saliency}", "--explain.metrics={gini: Gini}"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--explain.metrics.x=Ginni"], "there is no class 'Ginni': did you mean 'Gini'?"),
        (["--explain.controls.x=RandomMapp"], "did you mean 'RandomMap'?"),
        (["--explain.metrics_every_n_epochs.ginny=2"], "no metric by 'ginny': did you mean `gini`?"),
        (["--explain.metrics_every_n_epochs.gini=0"], "`metrics_every_n_epochs` must be at least 1, got 0"),
        (["--explain.max_share_of_epoch=0"], "`max_share_of_epoch` must be greater than 0, got 0.0"),
        (["--explain.control_samples=0"], "`control_samples` must be at least 1, got 0"),
        (["--explain.on_error=ignore"], "`explain.on_error` must be one of 'flag', 'raise', got 'ignore'"),
        (
            ["--explain.metrics.x=Residual"],
            "`x` applies to none of the attributions (saliency): leave it out",
        ),
        (["--explain.metrics.x=PointingGame"], "`x` needs to know where the object is, and the data have no"),
        (
            ["--explain.metrics.x.class_path=GridPointingGame", "--explain.metrics.x.init_args.grid=3"],
            "`x` needs 9 images for a grid of 3x3, and the probe has 7",
        ),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(
    words: list[str], expected: str, tmp_path: Path, refused: Refused
) -> None:
    said = refused(["fit", *WORDS, *PLAIN, *words, "--out", str(tmp_path / "run")])
    assert expected in said
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_finished_run_is_refused_likewise(run: Path, refused: Refused) -> None:
    said = refused(["validate", "--run", str(run), "--explain.metrics.x=PointingGame"])
    assert "`x` needs to know where the object is" in said


def test_of_a_menu_what_fails_is_left_out_and_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    words = ["explain", "--run", str(run), "--samples=2", f"--output={tmp_path}"]
    far = "{class_path: GradCam, init_args: {layer: nowhere}}"
    assert main([*words, f"--explain.attributions={{far: {far}, plain: Saliency}}"]) == 0
    said = capsys.readouterr()
    assert "2 images x 1 attributions" in said.out
    (line,) = (line for line in said.err.splitlines() if "failed" in line)
    assert line.startswith("lit-xai: failed and left out: `far` (ValueError: ")
    with np.load(tmp_path / "maps.npz") as kept:
        assert [key for key in kept if key.startswith("maps/")] == ["maps/plain"]
    assert "nowhere" in refused([*words, f"--explain.attributions={{far: {far}}}"])
    assert "all have failed: `far`, `gone`" in refused(
        [*words, f"--explain.attributions={{far: {far}, gone: {far}}}"]
    )


def test_a_mask_of_the_wrong_size_is_refused(tmp_path: Path, refused: Refused) -> None:
    pixels, labels = load_digits(return_X_y=True)
    masks = np.ones((300, 7, 8), dtype=bool)
    np.savez(
        tmp_path / "pack.npz", images=pixels[:300].reshape(-1, 8, 8) / 16, labels=labels[:300], masks=masks
    )
    data = f"{{class_path: NpzPack, init_args: {{path: {tmp_path / 'pack.npz'}}}}}"
    said = refused(["fit", *WORDS, *PLAIN, f"--data={data}", "--out", str(tmp_path / "run")])
    assert "masks" in said
    assert "(300, 7, 8)" in said
