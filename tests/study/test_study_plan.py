import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_xai.study import load_plan

GOOD = """
name: demo
out: {out}
configs: [base.yaml]
regimes:
  standard: [standard.yaml]
  robust: [standard.yaml, robust.yaml]
seeds: [0, 7]
overrides: {{trainer.max_epochs: 3, model.objective.init_args.attack: null, data.flip: true, epsilon: 8/255}}
workers: 2
"""


@pytest.fixture
def write(tmp_path):
    for name in ("base", "standard", "robust"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n")

    def write(text):
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        return path

    return write


def test_runs_are_regimes_times_seeds(write, tmp_path):
    plan = load_plan(write(GOOD.format(out=tmp_path / "out")))
    runs = plan.runs()
    assert [run.name for run in runs] == ["standard-seed0", "robust-seed0", "standard-seed7", "robust-seed7"]
    assert runs[1].folder == tmp_path / "out" / "robust-seed0"
    base, standard, robust = (str(tmp_path / f"{name}.yaml") for name in ("base", "standard", "robust"))
    assert runs[3].arguments == (
        "fit",
        *("--config", base, "--config", standard, "--config", robust),
        *("--seed_everything", "7", "--out", str(runs[3].folder), "--resume", "true"),
        "--trainer.max_epochs=3",
        "--model.objective.init_args.attack=null",
        "--data.flip=true",
        "--epsilon=8/255",
    )


def test_names_default_to_the_file(write):
    plan = load_plan(write("regimes: {a: standard.yaml}\nseeds: [1]"))
    assert (plan.name, plan.out, plan.workers, len(plan.runs())) == ("plan", Path("runs/plan"), 1, 1)


def test_fingerprint_follows_content_and_nothing_else(write, tmp_path):
    path = write(GOOD.format(out=tmp_path / "out"))
    before = [run.fingerprint for run in load_plan(path).runs()]
    assert len(set(before)) == 4
    (tmp_path / "robust.yaml").write_text("# a comment\nname:   robust\n")
    assert [run.fingerprint for run in load_plan(path).runs()] == before
    (tmp_path / "robust.yaml").write_text("name: other\n")
    after = [run.fingerprint for run in load_plan(path).runs()]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regimes: {a: standard.yaml}\nseed: [0]", "unknown key `seed`: did you mean `seeds`?"),
        ("regimes: {a: standard.yaml}\nzzz: 1", "unknown key `zzz`: known are name, out"),
        ("seeds: [0]", "lacks `regimes`"),
        ("regimes: {a: standard.yaml}", "lacks `seeds`"),
        ("regimes: {}\nseeds: [0]", "`regimes` must name at least one"),
        ("regimes: {a: standard.yaml}\nseeds: []", "`seeds` must hold at least one"),
        ("regimes: {a: standard.yaml}\nseeds: [0, 0]", "`seeds` holds `0` twice"),
        ("regimes: {a: standard.yaml}\nseeds: [0.5]", "`seeds` must be whole numbers, got float 0.5"),
        ("regimes: {a: standard.yaml}\nseeds: [-1]", "`seeds` must be whole numbers from 0 on, got -1"),
        (
            "regimes: {a: standard.yaml}\nseeds: [0]\nworkers: two",
            "`workers` must be whole numbers, got str 'two'",
        ),
        ("regimes: {a: standard.yaml}\nseeds: [true]", "`seeds` must be whole numbers, got bool True"),
        ("regimes: {a: standard.yaml}\nseeds: 3", "`seeds` must be a list, got int 3"),
        ("regimes: [standard.yaml]\nseeds: [0]", "`regimes` must be a mapping, got list"),
        ("regimes: {a: 3}\nseeds: [0]", "`regimes.a` must be a list, got int 3"),
        ("regimes: {a: standard.yaml, a: robust.yaml}\nseeds: [0]", "key `a` is given twice"),
        ("regimes: {a: [standard.yaml, standard.yaml]}\nseeds: [0]", "standard.yaml` twice"),
        ("regimes: {a: nowhere.yaml}\nseeds: [0]", "nowhere.yaml`, which is not a file"),
        ("regimes: {a/b: standard.yaml}\nseeds: [0]", "may hold letters, digits"),
        ("regimes: {a: standard.yaml}\nseeds: [0]\nworkers: 0", "`workers` must be at least 1, got 0"),
        (
            "regimes: {a: standard.yaml}\nseeds: [0]\noverrides: {seed_everything: 1}",
            "set by the study itself",
        ),
        ("regimes: {a: standard.yaml}\nseeds: [0]\nname: a/b", "`name` may hold"),
        ("a: [1", "is not valid YAML (line 1)"),
        ("just text", "must be a mapping"),
        ("", "got nothing"),
    ],
)
def test_errors_say_it_in_one_line(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_plan(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_plan_of_the_quickstart():
    plan = load_plan(Path(__file__).parents[2] / "configs" / "studies" / "quickstart.yaml")
    assert list(plan.regimes) == ["standard", "adversarial", "smoothed", "bort"]
    assert (plan.seeds, len(plan.runs()), plan.out) == ((0, 1), 8, Path("runs/quickstart"))


def test_a_missing_plan_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.yaml` does not exist"):
        load_plan(tmp_path / "nothing.yaml")


def test_importing_the_room_loads_no_training_code():
    code = (
        "import lit_xai.study, sys; print([m for m in ('torch', 'lightning', 'plotly') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
