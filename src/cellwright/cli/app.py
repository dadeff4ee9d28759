"""The command line: its verbs, its exit codes, and how errors are printed. All work is done in `cellwright.api`.

Errors go to standard error; with ``--log-format json`` they are events on standard output like everything else.

Exit codes: 0 done; 1 a bug in cellwright (a report is saved); 2 invalid input or usage; 3 finished, but some inputs
failed; 130 interrupted (129 by SIGHUP, 143 by SIGTERM).
"""

from __future__ import annotations

import gc
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise

from cyclopts import App, CycloptsError, MissingArgumentError

from cellwright import __version__
from cellwright.cli.arguments import DEFAULTS, HelpFormatter, as_typed, option_names, positional, split_lists
from cellwright.cli.console import print_event, printed_log
from cellwright.core.cache import cache_folder, keep_in_cache_folder
from cellwright.core.errors import CellwrightError, UsageError
from cellwright.core.files import place_error
from cellwright.core.interrupts import CommandSignals, Interrupted
from cellwright.core.memory import keep_freed_memory, memory_error
from cellwright.core.needs_torch import torch_is_missing
from cellwright.core.text import printable

# Verb: (module and function of its handler, help). A module is imported when one of its verbs runs.
VERBS = {
    "demo": (
        "model_verbs:demo",
        "Segment three example images, or train and evaluate a small model on synthetic images.",
    ),
    "doctor": ("model_verbs:doctor", "Show versions, bundled models and installed extras; on request, the device."),
    "plan": ("model_verbs:plan", "Write a recipe fitted to a dataset, with the reason of each choice."),
    "train": ("model_verbs:train", "Train a model, or resume an interrupted run."),
    "tune": (
        "tune_verb:tune",
        "Choose score thresholds and minimum areas per class, and calibrate scores, on a validation split.",
    ),
    "predict": ("predict_verb:predict", "Segment images, or resume an interrupted prediction."),
    "fuse": ("fuse_verb:fuse", "Fuse several predictions of the same images (ensemble), or remove duplicates."),
    "evaluate": ("evaluate_verb:evaluate", "Evaluate predictions against ground truth, or compare two predictions."),
    "measure": ("measure_verb:measure", "Measure size, shape and intensities of all objects in one table."),
    "export": ("export_verb:export", "Write predictions in another format, for a submission or another tool."),
    "compare": ("model_verbs:compare", "Compare runs: their recipes, results and costs."),
    "report": ("report_verb:report", "Write one HTML page about a training run, a prediction or an evaluation."),
    "serve": ("serve_verbs:serve", "Look at images, correct objects, train and export on a local page."),
}
GROUPS = {
    "data": (
        "Convert, inspect, check, split and merge annotated images.",
        {
            "convert": ("data_verbs:convert", "Convert annotations of any known format to a dataset."),
            "info": (
                "data_verbs:info",
                "Show counts, classes, sizes and bit depth of a dataset, or what an image or slide contains.",
            ),
            "check": ("data_verbs:check", "List errors and suspicious annotations of a dataset, and how to fix them."),
            "split": ("data_verbs:split", "Split a dataset for training, validation and test, or into folds."),
            "merge": ("data_verbs:merge", "Merge datasets; rename, combine or drop classes."),
            "show": ("data_verbs:show", "Draw images with their objects, or the augmentation of a recipe."),
        },
    ),
    "job": (
        "Show and finish jobs: large images that are predicted tile by tile.",
        {
            "status": ("job_verbs:status", "Show what is done, failed and left of a job."),
            "finish": ("job_verbs:finish", "Write the outputs of a job of which all tiles are done or failed."),
        },
    ),
    "recipes": (
        "List and copy the shipped recipes.",
        {
            "list": ("data_verbs:list_recipes", "List the shipped recipes, and which to start with."),
            "copy": ("data_verbs:copy_recipe", "Copy a shipped recipe to a file, to change it."),
        },
    ),
    "model": (
        "List, inspect, import and export models.",
        {
            "list": ("model_verbs:list_models", "List the models that can be named instead of a folder."),
            "inspect": (
                "model_verbs:inspect",
                "Show what a model or weight file contains: the network, its classes, licence and thresholds.",
            ),
            "import": (
                "model_verbs:import_weights",
                "Import weights from torchvision, Detectron2, Cellpose or StarDist as a model folder.",
            ),
            "export": (
                "model_verbs:export",
                "Export a model for other programs (ONNX, OpenVINO, BioImage.IO), in half precision, or for int8.",
            ),
        },
    ),
}


def build_app(words: Sequence[str] = ()) -> App:
    """The cyclopts application with all verbs; a verb is imported when it runs or shows its help.

    words: as typed, so that help texts can show the options of the verb they name.
    """
    formatter = HelpFormatter()
    app = App(
        name="cellwright",
        version=__version__,
        help="Segment every cell or nucleus in a microscopy image as its own object.",
        help_format="plaintext",
        help_formatter=formatter,
        default_parameter=DEFAULTS,
        config=split_lists,
    )
    for place, (name, (handler, line)) in enumerate(VERBS.items()):
        app.command(f"cellwright.cli.{handler}", name=name, help=line, sort_key=place)
    for group_name, (group_line, verbs) in GROUPS.items():
        group = App(name=group_name, help=group_line, sort_key=len(VERBS))
        for place, (name, (handler, line)) in enumerate(verbs.items()):
            group.command(f"cellwright.cli.{handler}", name=name, help=line, sort_key=place)
        app.command(group)
    if {"--help", "-h"} & set(words):
        verb = app
        for word in _verb(words).split():
            verb = verb[word]
        if verb.default_command is not None:
            names = [argument.name.lstrip("-") for argument in verb.assemble_argument_collection()]
            formatter.options = {name.replace("-", "_"): f"--{name}" for name in names}
    return app


def main(argv: Sequence[str] | None = None, signals: CommandSignals | None = None) -> None:
    """The ``cellwright`` command; always raises `SystemExit`.

    signals: the handler of signals, if they are handled.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    options: dict[str, str] = {}
    as_json = _wants_json(words)
    with printed_log(options, quiet="--quiet" in words, as_json=as_json):
        try:
            if signals is not None:
                signals.start()
            code = _run(words, options)
        except BrokenPipeError:
            code = 0
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - what ends a command is explained to the user
            if signals is not None:
                signals.finish()
            code, text, fields = _explain(_interruption(error, signals) or error, words, options)
            with suppress(OSError):  # the terminal may be gone
                if as_json:
                    print_event("error", "error", {"text": text, "exit_code": code, **fields})
                else:
                    print({1: "", 2: "error: ", 3: "error: "}.get(code, "\n") + printable(text), file=sys.stderr)
    if signals is not None:
        signals.finish()
    sys.exit(code)


def _interruption(error: BaseException, signals: CommandSignals | None) -> BaseException | None:
    """The `KeyboardInterrupt` that ended the command, which a library may have turned into another error."""
    if isinstance(error, KeyboardInterrupt):
        return error
    return Interrupted(signals.received) if signals is not None and signals.received is not None else None


def _explain(error: BaseException, words: Sequence[str], options: Mapping[str, str]) -> tuple[int, str, dict[str, str]]:
    """The exit code, the message, and the fields of the event, for what ended the command."""
    if isinstance(error, CycloptsError):
        return 2, _usage_message(error, _verb(words)), {"kind": UsageError.__name__}
    if isinstance(error, CellwrightError):
        fields = {"kind": type(error).__name__} | {
            name: as_typed(str(value), options) for name, value in error.parts().items()
        }
        return error.exit_code, as_typed(str(error), options), fields
    if isinstance(error, KeyboardInterrupt):
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        by = "" if stopped.exit_code == 130 else f" by {stopped}"
        text = f"interrupted{by}; to resume, run again: cellwright {shlex.join(words)}"
        return stopped.exit_code, text, {"kind": "interrupted", "signal": str(stopped)}
    return 1, *_report_bug(words)


def _run(words: Sequence[str], options: dict[str, str]) -> int:
    """Run the verb and return its exit code; ``options`` receives what one types for each of its parameters."""
    command, bound, _ = build_app(words).parse_args(words, print_error=False, exit_on_error=False)
    for value in bound.arguments.values():
        options |= option_names(value)
    if not gc.isenabled():  # see `__main__`
        gc.freeze()
        gc.enable()
    keep_freed_memory()
    keep_in_cache_folder()
    try:
        code = command(*bound.args, **bound.kwargs)
    except (OSError, MemoryError, RuntimeError) as error:
        known = place_error(error) if isinstance(error, OSError) else memory_error(error)
        if known is None:
            raise
        raise known from error
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("torch", "torchvision"):
            raise
        raise torch_is_missing("this command") from error
    return code if isinstance(code, int) else 0


def _wants_json(words: Sequence[str]) -> bool:
    """Whether JSON lines are asked for, also where the words cannot be parsed."""
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def _usage_message(error: CycloptsError, verb: str) -> str:
    """What is wrong with the words, what the option or argument means, and what to type."""
    argument = getattr(error, "argument", None)
    if argument is None:
        return f"{error}\n  fix: see cellwright {verb}--help"
    fix = f"see cellwright {verb}--help"
    name = argument.name if argument.index is None else positional(argument)
    if not isinstance(error, MissingArgumentError):
        problem = str(error).replace("into float", "into a number").replace("into int", "into a whole number")
    elif argument.index is not None:
        problem, fix = f"{name} is missing", f"put it before the options: cellwright {verb}{name} [OPTIONS]"
    else:
        problem = f"{name} is missing" if argument.required else f"{name} needs a value"
        fix = f"cellwright {verb}... {name} {positional(argument)}"
    return f"{problem}\n  {name}: {_meaning(argument.name, verb)}\n  fix: {fix}"


def _meaning(name: str, verb: str) -> str:
    """The help text of an option or argument."""
    app = build_app()
    for word in verb.split():
        app = app[word]
    arguments = app.assemble_argument_collection(parse_docstring=True)
    options = {argument.name.lstrip("-").replace("-", "_"): argument.name for argument in arguments}
    (text,) = (argument.parameter.help for argument in arguments if argument.name == name)
    return as_typed(" ".join((text or "").split()), options)


def _verb(words: Sequence[str]) -> str:
    """``"data split "`` of the words typed; "" where they name no verb."""
    if words and words[0] in GROUPS:
        return " ".join(words[: 2 if words[1:] and words[1] in GROUPS[words[0]][1] else 1]) + " "
    return f"{words[0]} " if words and words[0] in VERBS else ""


def _report_bug(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Save a report of the exception that is being handled; its message, and the fields of its event."""
    text = f"cellwright {__version__}, Python {sys.version}\ncommand: cellwright {shlex.join(words)}\n\n"
    text += traceback.format_exc()
    message = f"this is a bug in cellwright: {text.strip().splitlines()[-1]}"
    if (folder := cache_folder()) is not None:
        with suppress(OSError):
            (folder / "bugs").mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=folder / "bugs", suffix=".txt", delete=False) as file:
                file.write(text)
            return f"{message}\n  report: {file.name}", {"kind": "bug", "report": file.name}
    return f"{text}\n{message}", {"kind": "bug", "report": ""}
