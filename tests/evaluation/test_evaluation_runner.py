"""An evaluation believes no attack, and can be interrupted anywhere."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_net import EPSILON, held_out, trained
from subjects import Recorder, unchanged
from torch import Tensor, nn

from lit_xai.attacks import DDN, FGSM, L2, Attack, Linf, LinfPGD
from lit_xai.attacks.apgd import APGD
from lit_xai.attacks.autoattack import Members
from lit_xai.attacks.released import PyAutoAttack, PyAutoAttackMember
from lit_xai.attacks.square import Square
from lit_xai.evaluation import Evaluation, Progress, conclude, unfinished
from lit_xai.evaluation.runner import batches, evenly
from lit_xai.randomness import keyed
from lit_xai.types import Images, Labels

IDS = list(range(2, 90, 2))


def suite() -> Members:
    """Keyed attacks and one whose draws belong to the batch; each of them fools some."""
    return Members(
        EPSILON,
        {
            "fgsm": FGSM(EPSILON),
            "released": PyAutoAttackMember(EPSILON, steps=5),
            "pgd": LinfPGD(EPSILON, 20),
            "square": Square(EPSILON, queries=50),
        },
    )


def evaluation(**changes: Any) -> Evaluation:
    return Evaluation(
        **{"suite": suite(), "search": DDN(5), "searched": 20, "probe": 0, "batch_size": 12} | changes
    )


def outcome(folder: Path) -> tuple[str, dict[str, Any]]:
    """The table, and the summary without what differs between two runs of the same."""
    summary = conclude(folder)
    assert summary == json.loads((folder / "summary.json").read_text())
    del summary["provenance"]
    for member in summary["members"]:
        del member["seconds"]
    return (folder / "robustness.tsv").read_text(), summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """An evaluation that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    evaluation()(trained(), held_out, IDS, folder)
    return outcome(folder)


def test_every_image_falls_to_the_first_member_that_fools_it(tmp_path: Path):
    attacks: dict[str, Attack] = {"fgsm": FGSM(EPSILON), "pgd": LinfPGD(EPSILON, 20)}
    evaluation(suite=Members(EPSILON, attacks), seed=3)(trained(), held_out, IDS, tmp_path)
    inputs, target = held_out(IDS)
    fell = ["clean" if wrong else "-" for wrong in (trained()(inputs).argmax(1) != target).tolist()]
    distance = torch.full((len(IDS), 2), torch.nan).where(torch.tensor([f == "-" for f in fell])[:, None], 0)
    for name, attack in attacks.items():
        with keyed(3, torch.tensor(IDS)):
            points = attack(trained(), inputs, target)
        for k in (trained()(points).argmax(1) != target).nonzero()[:, 0].tolist():
            if fell[k] == "-":
                fell[k], delta = name, points[k] - inputs[k]
                distance[k] = torch.stack([delta.abs().max(), delta.norm()])
    table = [line.split("\t") for line in outcome(tmp_path)[0].splitlines()]
    assert table[0] == ["idx", "label", "pred", "robust", "first_attack", "linf", "l2"]
    assert [int(row[0]) for row in table[1:]] == IDS
    assert [int(row[1]) for row in table[1:]] == target.tolist()
    assert [int(row[2]) for row in table[1:]] == trained()(inputs).argmax(1).tolist()
    assert [row[4] for row in table[1:]] == fell
    assert [row[3] == "1" for row in table[1:]] == [name == "-" for name in fell]
    assert {"clean", "fgsm", "pgd", "-"} <= {*fell, "clean"}
    found = torch.tensor([[float(row[5]), float(row[6])] for row in table[1:]])
    torch.testing.assert_close(found, distance, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_members_are_counted_on_what_still_stands(whole: tuple[str, dict[str, Any]]):
    table, summary = whole
    standing = round(summary["clean"]["accuracy"] * len(IDS))
    for member in summary["members"]:
        assert member["attacked"] == standing
        assert member["fooled"] == sum(f"\t{member['name']}\t" in line for line in table.splitlines())
        standing -= member["fooled"]
        assert member["accuracy"] == pytest.approx(standing / len(IDS))
    assert summary["robust"]["accuracy"] == summary["members"][-1]["accuracy"]
    fgsm, _, pgd, _ = summary["members"]
    assert (fgsm["forwards"], fgsm["backwards"]) == (2 * fgsm["attacked"], fgsm["attacked"])
    assert (pgd["forwards"], pgd["backwards"]) == (21 * pgd["attacked"], 20 * pgd["attacked"])
    assert 0 < summary["robust"]["accuracy"] < summary["clean"]["accuracy"]


@pytest.fixture(scope="module")
def passes(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often an evaluation calls the model."""
    recorder = Recorder(trained())
    evaluation()(recorder, held_out, IDS, tmp_path_factory.mktemp("passes"))
    return len(recorder.calls)


class Interrupted(Exception):
    """The process ends here."""


@pytest.mark.parametrize("stage", ["gates", "clean", "fgsm", "released", "pgd", "square", "search"])
def test_interrupted_between_two_batches(tmp_path: Path, whole: tuple[str, dict[str, Any]], stage: str):
    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluation()(trained(), held_out, IDS, tmp_path, progress=stop)
    assert unfinished(tmp_path)
    evaluation()(trained(), held_out, IDS, tmp_path)
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.4, 0.6, 0.9])
def test_interrupted_in_the_middle_of_a_batch(
    tmp_path: Path, whole: tuple[str, dict[str, Any]], passes: int, share: float
):
    failing = Recorder(trained(), fail_at=int(share * passes))
    with unchanged(failing, *held_out(IDS)), pytest.raises(RuntimeError, match="on purpose"):
        evaluation()(failing, held_out, IDS, tmp_path)
    evaluation()(trained(), held_out, IDS, tmp_path, described="Sequential")
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize("share", [0.05, 0.3, 0.55, 0.7, 0.95])
def test_killed_while_it_wrote(tmp_path: Path, whole: tuple[str, dict[str, Any]], share: float):
    evaluation()(trained(), held_out, IDS, tmp_path)
    path = tmp_path / "journal_0of1.tsv"
    text = path.read_bytes()
    path.write_bytes(text[: int(share * len(text))])
    evaluation()(trained(), held_out, IDS, tmp_path)
    assert outcome(tmp_path) == whole


def test_neither_processes_nor_batches_matter_to_keyed_attacks(tmp_path: Path):
    keyed_suite = Members(EPSILON, {"fgsm": FGSM(EPSILON), "pgd": LinfPGD(EPSILON, 20)})
    found = []
    for ranks, size in ((1, 12), (3, 5), (2, 50)):
        folder = tmp_path / str(ranks)
        for rank in range(ranks):
            assert rank == 0 or unfinished(folder)
            evaluation(suite=keyed_suite, search=None, batch_size=size)(
                trained(), held_out, IDS, folder, share=(rank, ranks)
            )
        table, summary = outcome(folder)
        found.append(([line.split("\t")[:5] for line in table.splitlines()], summary))
    assert found[0] == found[1] == found[2]


def test_another_number_of_processes_takes_over(tmp_path: Path):
    pgd = Members(EPSILON, {"fgsm": FGSM(EPSILON), "pgd": LinfPGD(EPSILON, 20)})
    evaluation(suite=pgd, search=None)(trained(), held_out, IDS, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.stage == "pgd":
            raise Interrupted

    folder = tmp_path / "dealt"
    for rank, size in ((0, 3), (2, 5)):
        with pytest.raises(Interrupted):
            evaluation(suite=pgd, search=None, batch_size=size)(
                trained(), held_out, IDS, folder, (rank, 3), stop
            )
    left = sum(unfinished(folder).values())
    evaluation(suite=pgd, search=None)(trained(), held_out, IDS, folder, (1, 2))
    assert 0 < sum(unfinished(folder).values()) < left
    evaluation(suite=pgd, search=None)(trained(), held_out, IDS, folder, (0, 2))
    assert not unfinished(folder)
    assert outcome(folder) == outcome(tmp_path / "whole")
    lines = [line for path in folder.glob("journal*") for line in path.read_text().splitlines()[1:]]
    keys = [tuple(line.split("\t")[:2]) for line in lines]
    assert len(keys) == len(set(keys)), "no image was evaluated twice"


def test_more_images_are_added_to_those_that_are_done(tmp_path: Path):
    evaluation(search=None)(trained(), held_out, IDS[:10], tmp_path / "grown")
    evaluation(search=None)(trained(), held_out, IDS, tmp_path / "grown")
    evaluation(search=None)(trained(), held_out, IDS, tmp_path / "whole")
    grown, whole = (outcome(tmp_path / name)[0].splitlines() for name in ("grown", "whole"))
    assert [line.split("\t")[:3] for line in grown] == [line.split("\t")[:3] for line in whole]


def test_batches():
    assert batches(range(7), (), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches(range(7), (0, 1, 2), 3) == [[3, 4, 5], [6]]
    assert batches(range(7), (0, 1, 2, 3), 3) == [[3, 4, 5], [6]]  # cut off: again, as a whole
    assert batches(range(7), (0, 3, 4), 3) == [[1, 2, 5], [6]]  # dealt out differently before
    assert batches(range(7), range(7), 3) == []
    assert evenly([5, 6, 7, 8], 2) == [5, 7]
    assert evenly([5, 6], 9) == [5, 6]


@dataclass(frozen=True)
class Liar(Attack):
    """Moves images by what it is told, whatever the budget."""

    move: Callable[[Tensor], Tensor]

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return self.move(inputs)


@pytest.mark.parametrize(
    "move",
    [
        lambda x: 1 - x,  # too far
        lambda x: x + 0.1,  # out of the box
        lambda x: x * torch.nan,
        lambda x: (x + 1.01 * EPSILON).clamp(0, 1),
    ],
)
def test_points_outside_of_budget_or_box_do_not_count(tmp_path: Path, move: Callable[[Tensor], Tensor]):
    lying = Members(EPSILON, {"liar": Liar(move)})
    evaluation(suite=lying, search=None)(trained(), held_out, IDS, tmp_path)
    summary = conclude(tmp_path)
    gate = next(gate for gate in summary["gates"] if gate["name"] == "budget")
    assert gate["passed"] is False
    assert summary["suspicious"]
    inputs, _ = held_out(IDS)
    if move(inputs).isnan().any() or (move(inputs) - inputs).abs().max() > EPSILON:
        assert summary["members"][0]["fooled"] == 0


def test_points_that_do_not_fool_do_not_count(tmp_path: Path):
    evaluation(suite=Members(EPSILON, {"idle": Liar(lambda x: x)}), search=None)(
        trained(), held_out, IDS, tmp_path
    )
    summary = conclude(tmp_path)
    assert summary["members"][0]["fooled"] == 0
    assert summary["robust"] == summary["clean"]


def test_a_search_counts_where_it_stays_within_the_budget(tmp_path: Path):
    near = Members(0.4, {"ddn": DDN()}, L2())
    evaluation(suite=near, search=None)(trained(), held_out, IDS, tmp_path)
    summary = conclude(tmp_path)
    inputs, target = held_out(IDS)
    found = DDN().search(trained(), inputs, target)
    assert summary["robust"]["accuracy"] == pytest.approx(float((found.distance > 0.4).float().mean()))
    assert next(gate for gate in summary["gates"] if gate["name"] == "budget")["passed"]


def test_a_suite_that_is_called_finds_what_the_evaluation_finds(tmp_path: Path):
    """The same draws, though an image meets other companions."""
    drawing = Members(
        EPSILON,
        {"pgd": LinfPGD(EPSILON, 2), "again": APGD(EPSILON, steps=4), "square": Square(EPSILON, queries=9)},
    )
    evaluation(suite=drawing, search=None, batch_size=7, seed=5)(trained(), held_out, IDS, tmp_path)
    rows = [line.split("\t") for line in outcome(tmp_path)[0].splitlines()[1:]]
    inputs, target = held_out(IDS)
    with keyed(5, torch.tensor(IDS)):
        points = drawing(trained(), inputs, target)
    fooled = torch.tensor([row[4] not in ("clean", "-") for row in rows])
    assert torch.equal(fooled, (points != inputs).flatten(1).any(1))
    assert len({row[4] for row in rows}) > 3
    found = torch.tensor([float(row[6]) for row in rows])[fooled]
    torch.testing.assert_close(found, (points - inputs).flatten(1).norm(dim=1)[fooled], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [Linf(), L2()], ids=str)
def test_flags_are_those_of_the_released_code_alone(tmp_path: Path, norm: Any):
    """The same seed and batches, nothing in between."""
    from pyautoattack import AutoAttack as Alone

    ids, size, epsilon = list(range(20)), 8, EPSILON if norm == Linf() else 0.6
    members: dict[str, Attack] = dict(PyAutoAttack(epsilon, norm, seed=5).members)
    shorter = {"apgd-t": {"targets": 2}, "fab-t": {"targets": 2, "steps": 5}, "square": {"steps": 50}}
    for name, changes in shorter.items():
        members[name] = dataclasses.replace(members[name], **changes)
    suite = Members(epsilon, members, norm)
    Evaluation(suite, probe=0, batch_size=size)(trained(), held_out, ids, tmp_path)
    rows = [line.split("\t") for line in outcome(tmp_path)[0].splitlines()[1:]]
    inputs, target = held_out(ids)
    alone = Alone(trained(), eps=epsilon, norm=repr(norm)[:-2], seed=5)
    alone.apgd_targeted.n_target_classes = alone.fab.n_target_classes = 2
    alone.fab.n_iter, alone.square.n_queries = 5, 50
    points, found = alone.run_standard_evaluation(inputs, target, batch_size=size)
    assert [row[3] == "1" for row in rows] == (found == target).tolist()
    assert {row[4] for row in rows} >= {"apgd-ce", "-"}
    fooled = torch.tensor([row[4] not in ("-", "clean") for row in rows])
    lengths = torch.tensor([[float(row[5]), float(row[6])] for row in rows])[fooled]
    delta = (points - inputs).flatten(1)[fooled]
    expected = torch.stack([delta.abs().amax(1), delta.norm(dim=1)], dim=1)
    torch.testing.assert_close(lengths, expected, rtol=1e-5, atol=1e-7)
