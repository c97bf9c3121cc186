"""What data of one's own may look like, and what is refused at the first batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lit_xai.classifier import Classifier
from lit_xai.types import check_batch


@pytest.fixture
def classifier() -> Classifier:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    return Classifier(module, optimizer=torch.optim.SGD, channels=1, classes=3)


@pytest.mark.parametrize("classes", [["a", "b", "c"], 3, None])
def test_data_that_name_their_classes_are_taken(classifier: Classifier, classes: Any) -> None:
    classifier.trainer = SimpleNamespace(datamodule=SimpleNamespace(classes=classes))  # type: ignore[assignment]
    classifier.setup("fit")


def test_another_number_of_classes_is_refused(classifier: Classifier) -> None:
    classifier.trainer = SimpleNamespace(datamodule=SimpleNamespace(classes=4))  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the number of classes of the data, 4, got 3"):
        classifier.setup("fit")


def test_a_batch_without_labels_is_refused(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match=r"a batch must be .*, got a list of 1"):
        classifier._checked_batch("train", [torch.rand(2, 1, 3, 4)])


@pytest.mark.parametrize(
    ("inputs", "target", "said"),
    [
        (torch.ones(2, 1, 3, 4, dtype=torch.uint8), torch.tensor([0, 1]), "pixels must be floats"),
        (torch.ones(2, 1, 3, 4), torch.tensor([0.0, 1.0]), "labels must be int64"),
        (torch.ones(2, 1, 3, 4), torch.tensor([[0], [1]]), "labels must be int64"),
        (torch.ones(2, 1, 3, 4), torch.tensor([0, 1], dtype=torch.int32), "labels must be int64"),
    ],
)
def test_wrong_types_are_refused_with_the_remedy(
    inputs: torch.Tensor, target: torch.Tensor, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check_batch(inputs, target, channels=1, classes=3)


def test_a_fingerprint_tells_weights_apart_and_knows_them_again() -> None:
    from lit_xai.evaluation import fingerprint

    torch.manual_seed(0)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert fingerprint(first) == fingerprint(first)
    assert fingerprint(first) != fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second)
