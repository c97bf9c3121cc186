"""A network of one's own: found by its name, called with its arguments, given its weights."""

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lit_xai.cli.refusal import Refusal, in_one_line
from lit_xai.cli.trainer import Parser, Section
from lit_xai.cli.weights import load_foreign
from lit_xai.models import Normalized
from lit_xai.study.plan import read_yaml
from lit_xai.types import require

Maker = Callable[..., Any]


@dataclass(frozen=True)
class Built:
    """What was made of the words.

    Args:
        model: The network, behind its normalisation if it has one.
        data: Its images.
        config: The parts of the configuration, built.
        yaml: The configuration, as text.
        name: Of the network.
        notes: What was done to it that nobody spelled out, and what was left undone.
    """

    model: nn.Module
    data: L.LightningDataModule
    config: Any
    yaml: str
    name: str
    notes: list[str]


def build(command: str, options: Any, words: Sequence[str], section: Section) -> Built:
    """Build network and data from the options of `add_subject_options` and the words that are left."""
    require(bool(options.data), "`--data` is needed: a file of configs/data, or a LightningDataModule.")
    data, facts = _data(options.data)
    mean, std = _normalisation(options, facts)
    maker = find(options.model)
    parser = Parser(prog=f"lit-xai {command}", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="Configuration files, in the order given.")
    if isinstance(maker, type):
        known = parser.add_class_arguments(maker, "model.init_args", instantiate=False, fail_untyped=False)
    else:
        known = parser.add_function_arguments(maker, "model.init_args", fail_untyped=False)
    parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    section(parser)
    told = {f"model.init_args.{key}": facts[key] for key in ("channels", "classes") if key in facts}
    parser.set_defaults({key: value for key, value in told.items() if key in known})
    config = parser.parse_args([f"--data={data}", *words])
    try:
        built = parser.instantiate(config)
    except (ValueError, TypeError) as error:
        raise Refusal(in_one_line(str(error), parser)) from error
    net = maker(**(built.model.init_args.as_dict() if known else {}))
    require(
        isinstance(net, nn.Module),
        f"`--model` {options.model} made a {type(net).__name__}, not an nn.Module.",
    )
    taken = "" if options.weights is None else load_foreign(net, options.weights, options.model)
    said = {"class_path": options.model, "weights": str(options.weights or ""), "mean": mean, "std": std}
    for key, value in said.items():
        config[f"model.{key}"] = value
    model = Normalized(net, mean, std) if mean else net
    yaml = parser.dump(config, skip_unset=False, skip_validation=True)
    notes = list(_notes(options, mean, std, taken))
    return Built(model, built.data, built, yaml, options.model.rpartition(".")[2], notes)


def find(path: str) -> Maker:
    """The class or function of a dotted path; a bare name is one of `lit_xai.models`.

    Raises:
        ValueError: There is none; the message names the nearest.
    """
    module, _, name = path.rpartition(".")
    home = _module(module or "lit_xai.models")
    thing = getattr(home, name, None)
    if isinstance(thing, nn.Module):
        return lambda: thing
    makers = (key for key, value in vars(home).items() if callable(value) and not key.startswith("_"))
    require(callable(thing), f"there is no {name!r} in {home.__name__}{_nearest(name, makers)}")
    maker: Maker = thing  # type: ignore[assignment]
    return maker


def _module(path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{path}.".startswith(f"{missing}."):  # what is missing is imported by the module itself
            raise
        parent, _, name = missing.rpartition(".")
        places = sys.modules[parent].__dict__.get("__path__", []) if parent else None
        names = (found.name for found in pkgutil.iter_modules(places))
        where = f"in {parent}" if parent else "in this folder, in PYTHONPATH or installed"
        raise ValueError(f"there is no module {name!r} {where}{_nearest(name, names)}") from None


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), 1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else "."


def _data(given: str) -> tuple[str, Mapping[str, Any]]:
    """The `data` to parse, and what a file says of the model: `channels, classes, mean, std`."""
    if not given.endswith((".yaml", ".yml")):
        return given, {}
    content = read_yaml(Path(given))
    require(
        isinstance(content, Mapping) and "data" in content,
        f"`--data` {given} has no part `data:`: take one of configs/data as a pattern.",
    )
    data = content["data"]
    return data if isinstance(data, str) else json.dumps(data), content.get("model") or {}


def _normalisation(options: Any, facts: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and std to put first; none unless they were asked for."""
    mean, std = options.mean or [], options.std or []
    require(bool(mean) == bool(std), "`--mean` and `--std` belong together: give both or none.")
    require(
        all(0 <= value <= 1 for value in mean),
        f"`--mean` and `--std` are those of pixels in [0, 1], got a mean of {mean}: divide both by 255.",
    )
    if not options.normalize:
        return mean, std
    require(not mean, "`--normalize` takes mean and std of the file of data: leave out `--mean` and `--std`.")
    require(
        "mean" in facts and "std" in facts,
        f"`--normalize` needs a file of data with `model: {{mean, std}}`, got {options.data}: "
        "give `--mean` and `--std`.",
    )
    return list(facts["mean"]), list(facts["std"])


def _notes(options: Any, mean: list[float], std: list[float], taken: str) -> Iterator[str]:
    if options.weights is None:
        yield f"no `--weights`: the network is as {options.model} makes it."
    if taken:
        yield f"{options.weights}: `{taken}` was taken off the names of all tensors."
    if options.normalize:
        yield f"pixels are normalised first, with mean {mean} and std {std} of {options.data}."
    elif not mean:
        yield (
            f"{options.model} is given pixels in [0, 1]; if it expects them normalised, "
            "add `--mean … --std …` or `--normalize`."
        )


@rank_zero_only
def say(text: str) -> None:
    """One line to whoever started the command, from one process alone."""
    print(f"lit-xai: {text}", file=sys.stderr)
