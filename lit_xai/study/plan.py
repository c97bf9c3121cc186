"""A plan: which regimes, with which seeds, from which configuration files."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
SET_BY_STUDY = ("config", "out", "resume", "seed_everything")


@dataclass(frozen=True)
class Run:
    """One training of one regime with one seed, in a folder of its own.

    Args:
        regime: Name of the regime.
        seed: Seeds the whole run.
        folder: Where the run writes.
        configs: Configuration files; a later file wins over an earlier one.
        overrides: Dotted keys that win over all files.
    """

    regime: str
    seed: int
    folder: Path
    configs: tuple[Path, ...]
    overrides: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """`<regime>-seed<k>`."""
        return f"{self.regime}-seed{self.seed}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows `lit-xai` on the command line."""
        configs = (part for path in self.configs for part in ("--config", str(path)))
        overrides = (f"--{key}={value}" for key, value in self.overrides)
        rim = ("--seed_everything", str(self.seed), "--out", str(self.folder), "--resume", "true")
        return ("fit", *configs, *rim, *overrides)

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the result: content of the files (not their names), overrides, seed."""
        content = [read_yaml(path) for path in self.configs]
        text = json.dumps([content, self.overrides, self.seed], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """A study as its YAML file says it: regimes by seeds.

    Args:
        name: Title of the study.
        out: Folder of the study, relative to the working directory.
        regimes: Configuration files by name of the regime, relative to the plan's file.
        seeds: One run of each regime per seed.
        configs: Configuration files shared by all runs, read before those of the regime.
        overrides: Dotted keys, as on the command line of `lit-xai fit`, for all runs.
        workers: How many runs train at the same time.
        source: The plan's file.
    """

    name: str
    out: Path
    regimes: Mapping[str, tuple[Path, ...]]
    seeds: tuple[int, ...]
    configs: tuple[Path, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    source: Path | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name.replace(" ", "-")):
            raise ValueError(f"`name` may hold letters, digits, spaces and . _ + -, got {self.name!r}.")
        if not self.regimes:
            raise ValueError("`regimes` must name at least one regime, such as `standard: [standard.yaml]`.")
        if not self.seeds:
            raise ValueError("`seeds` must hold at least one whole number, such as `[0, 1]`.")
        if self.workers < 1:
            raise ValueError(f"`workers` must be at least 1, got {self.workers!r}.")
        if min(self.seeds) < 0:
            raise ValueError(f"`seeds` must be whole numbers from 0 on, got {min(self.seeds)}.")
        unique("seeds", self.seeds)
        for regime, files in {"": self.configs, **self.regimes}.items():
            where = f"regimes.{regime}" if regime else "configs"
            if regime and not NAME.fullmatch(regime):
                raise ValueError(f"`{where}`: a regime's name may hold letters, digits and . _ + - only.")
            unique(where, files)
            for path in files:
                if not path.is_file():
                    raise ValueError(f"`{where}` names `{path}`, which is not a file.")
        for key in self.overrides:
            if key.lstrip("-").partition(".")[0] in SET_BY_STUDY:
                raise ValueError(f"`overrides.{key}` is set by the study itself: remove it.")

    def runs(self) -> list[Run]:
        """All runs, the first seed of every regime before the second of any."""
        overrides = tuple((key.lstrip("-"), as_argument(value)) for key, value in self.overrides.items())
        return [
            Run(regime, seed, self.out / f"{regime}-seed{seed}", self.configs + files, overrides)
            for seed in self.seeds
            for regime, files in self.regimes.items()
        ]


def load_plan(path: str | Path) -> Plan:
    """Read a plan from its YAML file.

    Args:
        path: The file. `configs` and `regimes` in it are relative to its own folder.

    Raises:
        ValueError: In one line: no such file, an unknown key, or a value that cannot be.
    """
    path = Path(path)
    given = read_yaml(path)
    if not isinstance(given, dict):
        raise ValueError(f"`{path}` must be a mapping with `regimes` and `seeds`, got {kind(given)}.")
    known = [item.name for item in fields(Plan) if item.name != "source"]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}."
            raise ValueError(f"`{path}` has the unknown key `{key}`: {remedy}")
    for key in ("regimes", "seeds"):
        if key not in given:
            raise ValueError(f"`{path}` lacks `{key}`.")
    regimes = expect(given["regimes"] or {}, dict, "regimes", path)
    seeds = expect(given["seeds"] or [], list, "seeds", path)
    workers = given.get("workers", 1)
    for where, value in [("workers", workers), *(("seeds", seed) for seed in seeds)]:
        if type(value) is not int:
            raise ValueError(f"`{path}`: `{where}` must be whole numbers, got {kind(value)}.")
    name = str(given.get("name") or path.stem)
    try:
        return Plan(
            name=name,
            out=Path(str(given.get("out") or f"runs/{name.replace(' ', '-')}")),
            regimes={
                str(regime): paths(entry, f"regimes.{regime}", path) for regime, entry in regimes.items()
            },
            seeds=tuple(seeds),
            configs=paths(given.get("configs") or [], "configs", path),
            overrides=expect(given.get("overrides") or {}, dict, "overrides", path),
            workers=workers,
            source=path,
        )
    except ValueError as error:
        raise ValueError(str(error) if f"`{path}`" in str(error) else f"`{path}`: {error}") from None


def paths(entry: Any, where: str, plan: Path) -> tuple[Path, ...]:
    """One file name or a list of them, relative to the plan's folder."""
    names = [entry] if isinstance(entry, str) else expect(entry, list, where, plan)
    return tuple(Path(os.path.normpath(plan.parent / str(name))) for name in names)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; a ValueError in one line where it cannot be read or repeats a key."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=OnceLoader)
    except FileNotFoundError:
        raise ValueError(f"`{path}` does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"`{path}` is not valid YAML{line}: {getattr(error, 'problem', error)}.") from None


class OnceLoader(yaml.SafeLoader):
    """Refuses a mapping that says a key twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key `{key}` is given twice", key_node.start_mark
                )
            seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)


def as_argument(value: Any) -> str:
    """A YAML value as the command line wants it."""
    return value if isinstance(value, str) else json.dumps(value)


def expect(value: Any, wanted: type, where: str, path: Path) -> Any:
    """The value, if it is of the wanted kind."""
    if not isinstance(value, wanted):
        name = "a mapping" if wanted is dict else "a list"
        raise ValueError(f"`{path}`: `{where}` must be {name}, got {kind(value)}.")
    return value


def kind(value: Any) -> str:
    """What a value is, in words."""
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"


def unique(where: str, values: Iterable[Hashable]) -> None:
    """Refuse a list that says something twice."""
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"`{where}` holds `{value}` twice.")
        seen.add(value)
