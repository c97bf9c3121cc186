"""The command line: a thin dispatcher that loads no more than the command needs."""

import importlib
import os
import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches

COMMANDS = {
    "fit": "Train a classifier, explain it each epoch, write its report.",
    "validate": "Measure a finished run on its validation images, explanations included.",
    "test": "Measure a finished run on its test images, explanations included.",
    "predict": "Predict classes with a finished run.",
    "explain": "Write maps of validation images, or of your own image files, as PNG and NPZ.",
    "reconstruct": "Run a network backwards: images from features, and patterns of another class.",
    "attack": "Measure how robust a network is: AutoAttack, sanity gates, accuracy over epsilon.",
    "certify": "Certify the smoothed classifier of a network at l2 radii.",
    "study": "Run many trainings from one plan, or report on those that are done.",
    "methods": "List every attribution, attack, objective, optimizer and metric, with its source.",
    "doctor": "Check versions, devices, Weights & Biases and folders.",
}
TRAINER = ("fit", "validate", "test", "predict")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 if it did what was asked.

    2 stands for a refused command, 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from lit_xai import __version__

        print(f"lit-xai {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, 1)
        return _refuse(f"there is no command {command!r}{f': did you mean {near[0]!r}?' if near else '.'}")
    return _run(command, rest)


def _run(command: str, words: list[str]) -> int:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that `my.Net` is found in the folder one stands in
    try:
        module = importlib.import_module(f"lit_xai.cli.{'trainer' if command in TRAINER else command}")
        status = module.main(command, words) if command in TRAINER else module.main(words)
        return int(status or 0)
    except SystemExit as stop:  # after --help or --print_config
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("lit-xai: stopped by Ctrl-C; what was finished is kept.", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("LIT_XAI_TRACEBACK"):
            raise
        if os.environ.get("RANK", "0") != "0":
            time.sleep(10)  # the first process refuses the same, and its launcher then ends this one
        return _refuse(" ".join(str(error).split()) or type(error).__name__)


def _refuse(message: str) -> int:
    print(f"lit-xai: {message}", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lit-xai COMMAND [OPTIONS]",
            "",
            "Train image classifiers, explain them while they train, and see how explanation quality",
            "tracks robustness.",
            "",
            *lines,
            "",
            "lit-xai COMMAND --help tells the options of a command.",
            "LIT_XAI_TRACEBACK=1 shows where an error came from.",
        ]
    )
