"""How the fields of a plan become command-line options, and how they are shown by ``--help``.

A verb's options are the fields of its plan, a dataclass in ``cellwright.api``: name, type, default and the docstring
below the field. cyclopts reads them as they are; this module holds what is the same for all verbs.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from attrs import evolve
from cyclopts import App, Parameter
from cyclopts.help import DefaultFormatter, InlineText
from rich.text import Text

from cellwright.core.errors import UsageError

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection
    from cyclopts.argument import Argument
    from cyclopts.help import HelpPanel

_IN_BACKTICKS = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]+))?`")


def shown_default(value: object) -> str:
    """A default as one would type it; "" for None, False and empty lists, which ``--help`` does not show."""
    if value is None or value is False:
        return ""
    if isinstance(value, tuple | list):
        return " ".join(map(shown_default, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


DEFAULTS = Parameter(negative=(), consume_multiple=1, show_default=shown_default)


class HelpFormatter(DefaultFormatter):
    """The panels of cyclopts without empty defaults, and with positional arguments shown as positional only.

    options: what one types for each parameter of the verb; help texts name parameters in backticks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, str] = {}

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        entries = [
            evolve(
                entry,
                positive_names=() if entry.positional_label else entry.positive_names,
                description=InlineText(Text(as_typed(_one_line(entry.description), self.options))),
                default=entry.default or None,
            )
            for entry in panel.entries
        ]
        super().__call__(console, options, panel.copy(entries=entries))

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """``Usage: cellwright train RECIPE --data PATH [OPTIONS]``: what is positional comes first."""
        positionals, others = [], []
        words = str(usage).split()
        while words:
            word = words.pop(0)
            if word.startswith("--"):
                others.append(f"{word} {words.pop(0)}")
            else:
                (others if word == "[OPTIONS]" else positionals).append(word)
        others.sort(key=lambda word: word == "[OPTIONS]")
        super().render_usage(console, options, Text(" ".join(positionals + others) + "\n"))


def _one_line(description: InlineText) -> str:
    return " ".join(description.primary_renderable.plain.split())  # type: ignore[union-attr]


def split_lists(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Split the words of list options at commas, in place; called by cyclopts before it converts them.

    ``--save masks,rois``, ``--save masks rois`` and ``--save masks --save rois`` are the same. Paths and ``key=value``
    words stay whole, and so do the words of a repeated option, since names may contain commas.
    """
    _return_positionals(arguments)
    for argument in arguments:
        if argument.index is not None and any(token.keyword for token in argument.tokens):
            raise UsageError(
                f"unknown option {argument.tokens[0].keyword}",
                got=argument.tokens[0].keyword,
                remedy=f"give it without the option: {' '.join(('cellwright', *commands))} {positional(argument)}",
            )
        element = _element_type(argument.hint)
        if argument.index is not None or element in (None, Path):
            continue
        repeated = sum(token.index == 0 for token in argument.tokens) > 1
        words = []
        for token in argument.tokens:
            whole = "=" in token.value or (element is str and repeated) or Path(token.value).exists()
            parts = [token.value] if whole else [part.strip() for part in token.value.split(",")]
            words += [token.evolve(value=part) for part in parts if part]
        argument.tokens[:] = [token.evolve(index=k) for k, token in enumerate(words)]


def _return_positionals(arguments: ArgumentCollection) -> None:
    """Without a word for the positional argument, take those that list options took after their first.

    ``predict --model nuclei a.png`` means the model nuclei and the image a.png.
    """
    positionals = [argument for argument in arguments if argument.index is not None and argument.required]
    if len(positionals) != 1 or positionals[0].tokens:
        return
    lists = [arg for arg in arguments if arg.index is None and _element_type(arg.hint) is not None]
    if _element_type(positionals[0].hint) is Path and _return_paths(positionals[0], lists):
        return
    words = []
    for argument in lists:
        words += [token for token in argument.tokens if token.index > 0]
    if len(words) == 1 or (words and _element_type(positionals[0].hint) is not None):
        positionals[0].tokens[:] = [token.evolve(keyword=None, index=0) for token in words]
        for argument in lists:
            argument.tokens[:] = [token for token in argument.tokens if token.index == 0]


def _return_paths(positional: Argument, lists: Sequence[Argument]) -> bool:
    """Take the last words of the list options that are files or folders, if there are any."""
    for argument in lists:
        paths = takewhile(lambda token: token.index > 0 and Path(token.value).exists(), reversed(argument.tokens))
        if n := len(list(paths)):
            last = argument.tokens[-n:]
            positional.tokens[:] = [token.evolve(keyword=None, index=k) for k, token in enumerate(last)]
            del argument.tokens[-n:]
            return True
    return False


def _element_type(hint: Any) -> Any:
    """``X`` of ``tuple[X, ...]`` (or of an optional one), else None."""
    for kind in (hint, *get_args(hint)):
        if get_origin(kind) in (tuple, list) and (elements := get_args(kind)):
            return str if get_origin(elements[0]) is None and elements[0] not in (Path, int, float) else elements[0]
    return None


def positional(argument: Argument) -> str:
    """``SOURCES`` for the field ``sources``."""
    return argument.name.lstrip("-").upper()


def option_names(plan: object) -> dict[str, str]:
    """Field name -> what one types for it: ``min_area`` -> ``--min-area``; positional fields in capitals."""
    if not dataclasses.is_dataclass(plan):
        return {}
    return {
        field.name: f"--{field.name.replace('_', '-')}" if field.kw_only else field.name.upper()
        for field in dataclasses.fields(plan)
    }


def as_typed(text: str, names: Mapping[str, str]) -> str:
    """``text`` with parameters in backticks as command-line options.

    names: the options of the verb that runs. An option of another verb is named together with that verb.

    >>> as_typed('give `overwrite=True` or `split="val"`', {"overwrite": "--overwrite", "split": "--split"})
    'give --overwrite or --split val'
    >>> as_typed('choose with `foreground="split"`', {"data": "--data"})
    'choose with --foreground split of cellwright data convert'
    >>> as_typed('cellwright data merge renames classes: `map="a=b"`', {"data": "--data"})
    'cellwright data merge renames classes: --map a=b'
    """

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name in names:
            return typed(names[name], value)
        verb = _verb_with(name, text) if names else None
        if verb is None:
            return match[0]
        shown = typed(f"--{name.replace('_', '-')}", value)
        return shown if f"cellwright {verb}" in text else f"{shown} of cellwright {verb}"

    def typed(option: str, value: str | None) -> str:
        if value is None or value == "True":
            return option
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            parsed = value
        if parsed is None or parsed is False:
            return f"no {option}"
        words = parsed if isinstance(parsed, tuple | list) else (parsed,)
        return " ".join([option, *(shlex.quote(shown_default(word)) for word in words)])

    return _IN_BACKTICKS.sub(option, text)


def _verb_with(name: str, text: str) -> str | None:
    """The verb that has the option ``name``: one that ``text`` names, else the first of those that prepare inputs."""
    # Imported only where a message names an option that the verb at hand lacks.
    from cellwright.api.convert import ConvertPlan
    from cellwright.api.merge import MergePlan
    from cellwright.api.predict import PredictPlan
    from cellwright.api.split import SplitPlan

    verbs = {"data convert": ConvertPlan, "predict": PredictPlan, "data merge": MergePlan, "data split": SplitPlan}
    having = [
        verb
        for verb, plan in verbs.items()
        if any(field.name == name and field.kw_only for field in dataclasses.fields(plan))
    ]
    return next((verb for verb in having if f"cellwright {verb}" in text), next(iter(having), None))
