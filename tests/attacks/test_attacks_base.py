from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lit_xai.attacks import Boundary, Search
from lit_xai.memory import remembering

ASKED = []


@pytest.fixture(autouse=True)
def nothing_asked():
    ASKED.clear()


@dataclass(frozen=True)
class Halfway(Search):
    """Answers with the middle of the box, and counts how often it is asked."""

    level: float = 0.5

    def find(self, model, inputs, target):
        ASKED.append(self)
        one = torch.ones_like(target)
        points = torch.full_like(inputs, self.level)
        return Boundary(points, one.to(inputs.dtype), one.bool(), target, one, one)


@pytest.fixture
def case():
    return nn.Identity(), torch.rand(2, 1, 3, 3), torch.tensor([0, 1])


def test_outside_every_search_is_done(case):
    Halfway().search(*case)
    Halfway()(*case)
    assert len(ASKED) == 2


def test_inside_the_same_search_is_done_once(case):
    model, inputs, target = case
    with remembering():
        first = Halfway().search(model, inputs, target)
        assert Halfway().search(model, inputs, target) is first
        assert Halfway(0.5).search(model, inputs.detach(), target.view(2)) is first
        assert torch.equal(Halfway()(model, inputs, target), first.points)
        with remembering():
            assert Halfway().search(model, inputs, target) is first
        assert Halfway().search(model, inputs, target) is first
    assert len(ASKED) == 1
    Halfway().search(model, inputs, target)
    assert len(ASKED) == 2


def test_whatever_differs_is_searched_anew(case):
    model, inputs, target = case
    with remembering():
        Halfway().search(model, inputs, target)
        Halfway(0.25).search(model, inputs, target)
        Halfway().search(nn.Identity(), inputs, target)
        Halfway().search(model, inputs.clone(), target)
        Halfway().search(model, inputs, target.clone())
        Halfway().search(model, inputs[:1], target[:1])
        Halfway().search(model, inputs.transpose(2, 3), target)
        assert len(ASKED) == 7
        inputs[0, 0, 0, 0] = 1
        Halfway().search(model, inputs, target)
        target[0] = 1
        Halfway().search(model, inputs, target)
    assert len(ASKED) == 9


def test_freed_tensors_do_not_leave_their_place_to_others(case):
    model, _, target = case
    with remembering():
        for _ in range(50):
            Halfway().search(model, torch.rand(2, 1, 3, 3), target)
    assert len(ASKED) == 50


def test_an_error_ends_the_memory(case):
    def fail():
        with remembering():
            Halfway().search(*case)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    Halfway().search(*case)
    assert len(ASKED) == 2


def test_tensors_of_inference_mode_are_remembered(case):
    with torch.inference_mode(), remembering():
        inputs = torch.rand(2, 1, 3, 3)
        assert Halfway().search(case[0], inputs, case[2]) is Halfway().search(case[0], inputs, case[2])
    assert len(ASKED) == 1
