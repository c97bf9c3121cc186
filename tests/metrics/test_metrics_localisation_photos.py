"""Localisation on photos: what is known of masks and boxes, and what a map that knows its network scores."""

import numpy as np
import pytest
import torch
from torch import nn

from lit_xai.attributions import GradCam, Saliency
from lit_xai.data.pack import opened
from lit_xai.metrics import CentreMap, Companions, RandomMap
from lit_xai.metrics.grid import GridPointingGame
from lit_xai.metrics.localisation import EnergyGame, PointingGame, RelevanceRank
from lit_xai.models import Normalized, ResNet20
from lit_xai.observe import explain


def resnet20(data):
    net = ResNet20(3, 10)
    net.load_state_dict(torch.load(data / "weights" / "cifar10_resnet20_standard.pt"), strict=False)
    return Normalized(net, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()


@pytest.mark.slow
def test_real_boxes_lie_in_the_middle(shared_data):
    """500 photos; 80.0 % and 44.4 % where each pixel that a box touches, and one more, counts as in it."""
    with opened(str(shared_data / "imagenette224" / "imagenette224_test_boxes.npz")) as pack:
        masks = pack.read().masks
    inputs, target = torch.empty(500, 1, 224, 224), torch.zeros(500, dtype=torch.int64)
    maps = CentreMap().maps(nn.Flatten(), inputs, target)
    seen = PointingGame().score(maps, masks)
    assert float(seen["hit"].mean()) == pytest.approx(0.786, abs=0.001)
    assert float(seen["chance"].mean()) == pytest.approx(0.433, abs=0.001)
    assert float(EnergyGame().score(maps, masks)["share"].mean()) > 0.5


def test_a_class_activation_map_finds_real_objects(shared_data):
    """Masks of a pack reach the metrics, and a map that knows the model beats a random one on them."""
    model = resnet20(shared_data)
    with opened(str(shared_data / "cifar10" / "cifar10_masks.npz")) as pack:
        images = pack.read()
    inputs, target, mask = images.__getitems__(list(range(len(images))))
    methods = {"cam": GradCam(), "random": RandomMap(), "centre": CentreMap()}
    metrics = {"energy": EnergyGame(), "pointing": PointingGame(), "rank": RelevanceRank()}
    seen = explain(model, inputs, target, methods, metrics, seed=0, mask=mask)
    mean = {key: float(column.nanmean()) for key, column in seen.flat().items()}
    assert mean["explain/cam/energy/chance"] == pytest.approx(0.41, abs=0.01)
    assert mean["explain/random/energy/share"] == pytest.approx(0.41, abs=0.02)
    assert mean["explain/cam/energy/share"] > 0.5
    assert mean["explain/cam/pointing/hit"] > 0.6
    assert mean["explain/cam/rank/share"] > mean["explain/random/rank/share"] + 0.2
    for score in ("energy/share", "pointing/hit", "rank/share"):
        assert (
            mean[f"explain/cam/{score}"] > mean[f"explain/centre/{score}"] > mean[f"explain/random/{score}"]
        )


@pytest.mark.slow
def test_maps_find_their_image_among_others(shared_data):
    """A published network on mosaics of four test images: both methods beat chance, Grad-CAM by far."""
    with np.load(shared_data / "cifar10" / "cifar10_exact_2034.npz") as pack:
        images, labels = pack["test_image"][:200], torch.from_numpy(pack["test_label"][:200]).long()
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    rows, others = torch.arange(60), []
    for row in rows.tolist():  # the next images whose labels are new
        chosen = [row]
        while len(chosen) < 4:
            step = chosen[-1] + 1
            while labels[step] in labels[chosen]:
                step += 1
            chosen.append(step)
        others.append(chosen[1:])
    ids = torch.tensor(others)
    companions = Companions(inputs[ids], labels[ids], ids)
    methods = {"cam": GradCam(), "saliency": Saliency(), "random": RandomMap()}
    seen = explain(
        resnet20(shared_data),
        inputs[:60],
        labels[:60],
        methods,
        {"grid": GridPointingGame()},
        seed=0,
        companions=companions,
    )
    share = {name: float(table["grid"]["share"].mean()) for name, table in seen.scores.items() if name}
    assert share["random"] == pytest.approx(0.25, abs=0.02)
    assert share["cam"] > 0.5
    assert 0.27 < share["saliency"] < share["cam"]
