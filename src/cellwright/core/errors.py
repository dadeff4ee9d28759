"""The errors that a user can cause, and the form of their messages.

    CellwrightError               exit code 2
    |-- UsageError                an argument or a name that is not valid
    |-- InputError                a file, an image or an annotation that cannot be used
    |   `-- FormatError           a file whose content does not match its format
    |-- RecipeError               a key or value of a recipe
    |-- ModelError                a model folder or weights of another framework
    |-- OutputError               an output that exists, a full disk, a folder without write permission
    `-- TrainingDiverged          a loss or gradient that is not finite

Any other exception that reaches the command line is a bug in cellwright (exit code 1).

Messages address a Python caller. A parameter is written in backticks, as in Python: `` `overwrite=True` ``, or
`` `min_area` `` without a value. Messages never contain an option such as ``--overwrite``: the command line translates
the backticked parameters when it prints an error. A complete command without options, such as
``cellwright data split``, may be suggested as a fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self

from cellwright.core.public import public

_LONGEST = 1000  # characters of a line in a message


@public
class CellwrightError(Exception):
    """Base class of all errors that a user can fix.

    problem: what failed. where: the file, sample or field concerned. got, expected: the value and what was expected
    instead. remedy: how to fix it. The message has one line for each of them that is given.

    >>> print(InputError("the image has no channel", where="a.tif", expected="at least 1", remedy="save it again"))
    the image has no channel
      where: a.tif
      expected: at least 1
      fix: save it again
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.where, self.got, self.expected, self.remedy = problem, where, got, expected, remedy
        details = [f"  {name}: {_shown(name, value)}" for name, value in self.parts().items() if name != "problem"]
        super().__init__("\n".join([problem, *details]))

    def parts(self) -> dict[str, object]:
        """The parts of the message that are given, by the name that it shows.

        >>> InputError("the image has no channel", where="a.tif", remedy="save it again").parts()
        {'problem': 'the image has no channel', 'where': 'a.tif', 'fix': 'save it again'}
        """
        parts = {"problem": self.problem, "where": self.where, "got": self.got, "expected": self.expected}
        return {name: value for name, value in (parts | {"fix": self.remedy}).items() if value is not None}

    def at(self, where: object, remedy: str | None = None) -> Self:
        """The same error at another place, by default with the same fix.

        >>> print(InputError("the image has no channel", where="object 3").at("a.tif, annotation 7"))
        the image has no channel
          where: a.tif, annotation 7
        """
        remedy = self.remedy if remedy is None else remedy
        return type(self)(self.problem, where=where, got=self.got, expected=self.expected, remedy=remedy)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive pickling between worker processes otherwise.
        return _rebuild, (type(self), self.problem, self.where, self.got, self.expected, self.remedy)


def _shown(name: str, value: object) -> str:
    """A part of a message: a place on one line, and long lines, which come from files, cut short."""
    lines = [str(value).replace("\n", "\\n")] if name == "where" else str(value).split("\n")
    return "\n".join(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in lines)


def _rebuild(kind: type[CellwrightError], problem: str, *rest: object) -> CellwrightError:
    where, got, expected, remedy = rest
    return kind(problem, where=where, got=got, expected=expected, remedy=remedy if remedy is None else str(remedy))


@public
class UsageError(CellwrightError):
    """An argument or a name that is not valid."""


@public
class InputError(CellwrightError):
    """A file, an image or an annotation that cannot be used."""


@public
class FormatError(InputError):
    """A file whose content does not match its format."""


@public
class RecipeError(CellwrightError):
    """A recipe with an unknown key, a wrong value, or two values that contradict each other."""


@public
class ModelError(CellwrightError):
    """A model folder, or weights of another framework, that cannot be loaded as requested."""


@public
class OutputError(CellwrightError):
    """An output that already exists, a full disk, or a folder without write permission."""


@public
class TrainingDiverged(CellwrightError):
    """A loss or gradient that is not finite."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the most similar known name if there is one, else all known names.

    >>> did_you_mean("nucleous", ["nucleus", "cell"])
    "did you mean 'nucleus'?"
    >>> did_you_mean("tissue", ["nucleus", "cell"])
    'known: cell, nucleus'
    """
    choices = sorted(set(known))
    closest = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {closest[0]!r}?" if closest else f"known: {', '.join(choices)}"
