"""Who looks at which images of the probe, what lies beside them, and what becomes of who fails alone."""

import math
from typing import Any

import pytest
import torch
from probed import Beside, classifier, loader, trainer

from lit_xai.attributions import Saliency
from lit_xai.callbacks import Explain
from lit_xai.callbacks.share import drawn, rounds, together


def test_rounds_do_not_cross_the_border_of_the_controls() -> None:
    assert rounds(10, 4, 3) == [(0, 3), (3, 4), (4, 7), (7, 10)]
    assert rounds(3, 64, 64) == [(0, 3)]
    assert rounds(5, 5, 100) == [(0, 5)]
    careful = [(0, 4), (4, 8), (8, 16), (16, 20), (20, 40), (40, 80), (80, 144), (144, 150)]
    assert rounds(150, 20, 64, careful=True) == careful  # from a sixteenth of a batch, none more than before
    assert rounds(4, 64, 3, careful=True) == [(0, 1), (1, 2), (2, 4)]


def test_companions_are_others_of_other_classes_one_of_each_first() -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    labels = order % 5
    places = drawn(order, labels, 0, range(40))
    assert places.shape == (40, 8)
    for place, others in enumerate(places):
        assert place not in others
        assert len(set(others.tolist())) == 8
        theirs = labels[others]
        assert labels[place] not in theirs  # 32 of other classes
        assert len(set(theirs[:4].tolist())) == len(set(theirs[4:].tolist())) == 4
    assert torch.equal(drawn(order, labels, 0, [7, 3]), places[[7, 3]])
    assert not torch.equal(drawn(order, labels, 1, range(40)), places)
    alike = drawn(order[:3], torch.zeros(3, dtype=torch.int64), 0, range(3))  # one class, three images
    assert [set(row.tolist()) for row in alike] == [{1, 2}, {0, 2}, {0, 1}]


@pytest.mark.parametrize("kept", [True, False])
def test_companions_do_not_depend_on_batches_or_memory(
    kept: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = []
    for size in (1, 4, 64):
        if not kept:
            monkeypatch.setattr("lit_xai.callbacks.share.KEPT", 0)
        look = Explain({"saliency": Saliency()}, {"beside": Beside()}, 9, size, on_error="raise")
        trainer(tmp_path, look).validate(classifier(), loader(), verbose=False)
        values.append(look.values["explain/saliency/beside"])
    assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-6)
    assert math.isfinite(values[0])


@pytest.mark.parametrize(
    ("theirs", "kind", "text"),
    [
        ((ValueError, "no masks"), ValueError, "no masks"),
        ((RuntimeError, "out of memory"), RuntimeError, "out of memory"),
    ],
)
def test_what_fails_on_another_process_fails_here(
    theirs: Any, kind: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []

    def everyone(mine: Any) -> list[Any]:
        said.append(mine)
        return [mine, theirs]

    monkeypatch.setattr("lit_xai.callbacks.share.everyone", everyone)
    with pytest.raises(kind, match=text), together():
        pass
    with pytest.raises(KeyError, match="mine"), together():  # its own failure, with where it came from
        raise KeyError("mine")
    assert said == [None, (RuntimeError, "'mine'")]
