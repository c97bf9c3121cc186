"""Every data config is a constructor call, with constants for the model beside it."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from lit_xai.data import ImageData

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "data"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_there_is_a_config_for_every_source():
    named = {yaml.safe_load(path.read_text())["data"]["class_path"] for path in CONFIGS}
    sources = {
        f"lit_xai.data.{source.__name__}"
        for source in ImageData.__subclasses__()
        if "lit_xai" in source.__module__
    }
    assert named == sources


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_builds(path: Path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")
    config = yaml.safe_load(path.read_text())
    data = parser.instantiate(parser.parse_object({"data": config["data"]})).data
    assert isinstance(data, ImageData)
    model = config["model"]
    assert set(model) == {"channels", "classes", "mean", "std"}
    assert len(model["mean"]) == len(model["std"]) == model["channels"]
    assert all(0 < value < 1 for value in model["mean"] + model["std"])


@pytest.mark.parametrize("name", ["digits", "sklearn_digits"])
def test_the_constants_for_the_model_fit_the_data(name: str):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    data = parser.instantiate(parser.parse_object({"data": config["data"]})).data
    data.setup("fit")
    assert (data.image_shape[0], data.classes) == (config["model"]["channels"], config["model"]["classes"])
