"""One useful line for what a configuration gets wrong, with the nearest right name."""

import importlib
import re
from collections.abc import Iterable
from difflib import get_close_matches

import jsonargparse
from jsonargparse.typing import register_type

from lit_xai.types import Eps


class Refusal(ValueError):
    """A command or configuration that is refused; its text is the one line to print."""


def register_types() -> None:
    """Teach the parser that `8/255` is a number."""
    register_type(Eps, serializer=float, deserializer=Eps, fail_already_registered=False)


def in_one_line(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """The line that helps, out of the parser's message, which may be a page."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", message)
    if "Problems parsing config: while " in text:
        return " ".join(text.replace('"<unicode string>", ', "").split()).replace(
            "config:", "config, no YAML:"
        )
    if "there is no " not in text:  # else the parser of a part has said it already
        unknown, missing = _first(_UNKNOWN_OPTION, text), _first(_UNKNOWN_CLASS, text)
        if unknown:
            return _no_such("option", unknown.split("=")[0].lstrip("-"), _accepted(unknown, text, parser))
        if missing:
            return _no_such("class", missing.rpartition(".")[2], _class_names())
    lines = [re.sub(r'^Parser key "[^"]+":', "", line.strip(" -\t")).strip() for line in text.splitlines()]
    useful = [line for line in lines if line and not any(frame in line for frame in _FRAMES)]
    ours = [line for line in useful if line.startswith(("`", "there is no "))]
    where = ".".join(re.findall(r'Parser key "([^"]+)":', text))
    said = (ours or useful or [text])[0][:300]
    if choice := re.fullmatch(r"Expected a typing\.Literal\[(.+)\]\. Got value: (.+)", said):
        return f"`{where}` must be one of {choice[1]}, got {choice[2]!r}."
    return said if said.startswith("`") or not where else f"{where}: {said}"


def _class_names() -> set[str]:
    rooms = ("attacks", "attributions", "data", "metrics", "models", "objectives", "optim")
    return {name for room in rooms for name in importlib.import_module(f"lit_xai.{room}").__all__}


_FRAMES = ("Problem with given", "Does not validate", "Subtypes:", "Errors:", "Given value", "NoneType")
_UNKNOWN_CLASS = (
    r"Expected a dot import path string: (\S+)",
    r"No module named '([^']+)'",
    r"Unable to import [^']*'([^']+)'",
    r"module '[^']+' has no attribute '([^']+)'",
)
_UNKNOWN_OPTION = (
    r"Option '([^']+)' is not accepted",
    r"Key '([^']+)' is not expected",
    r"[Uu]nrecognized arguments?: (\S+)",
    r"No action for key '([^']+)'",
    r"Group '[^']*' does not accept (?:nested key|option) '([^']+)'",
    r"Nested key '([^']+)'",
)


def _first(patterns: Iterable[str], text: str) -> str | None:
    return next((found.group(1) for pattern in patterns if (found := re.search(pattern, text))), None)


def _no_such(kind: str, name: str, accepted: set[str]) -> str:
    """The refusal of a name, with the nearest one that is accepted: whole, or by its parts."""
    last = name.rpartition(".")[2]
    near = [other for other in get_close_matches(name, accepted, 3) if _alike(last, other)]
    if not near:
        parts = {part for other in accepted for part in other.split(".")}
        strange = [part for part in name.split(".") if part not in parts]
        near = [name.replace(part, end) for part in strange for end in get_close_matches(part, parts, 1)]
    return f"there is no {kind} {name!r}{f': did you mean {near[0]!r}?' if near else '.'}"


def _alike(last: str, other: str) -> bool:
    """Whether the last parts are: a long way that two names share says nothing."""
    return bool(get_close_matches(last, [other.rpartition(".")[2]], 1, cutoff=0.5))


def _accepted(unknown: str, text: str, parser: jsonargparse.ArgumentParser) -> set[str]:
    named = set(re.findall(r"'([\w.]+)'", text))
    return ({action.dest for action in parser._actions} | named) - {unknown}
