"""Every error a user can cause, and the one shape of its message.

    CellwrightError               exit code 2
    |-- UsageError                a flag, a name or an argument
    |-- InputError                a file, an image, an annotation
    |   `-- FormatError           content that is not what its format says
    |-- RecipeError               a recipe's key or value
    |-- ModelError                a model folder or foreign weights
    |-- OutputError               an output that exists, a full disk, a folder that cannot be written
    `-- TrainingDiverged          a loss or gradient that is not finite

Anything else that reaches the command line is our bug (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CellwrightError(Exception):
    """A failure the user can mend.

    The message says what failed, where (file, sample, field), what was found, what was expected, and what to do.
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
        parts = [("where", where), ("got", got), ("expected", expected), ("fix", remedy)]
        lines = [problem] + [f"  {name}: {value}" for name, value in parts if value is not None]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive pickling between worker processes otherwise.
        return _rebuild, (type(self), self.problem, self.where, self.got, self.expected, self.remedy)


def _rebuild(kind: type[CellwrightError], problem: str, *rest: object) -> CellwrightError:
    where, got, expected, remedy = rest
    return kind(problem, where=where, got=got, expected=expected, remedy=remedy if remedy is None else str(remedy))


class UsageError(CellwrightError):
    """A flag, a name or an argument that does not fit."""


class InputError(CellwrightError):
    """A file, an image or an annotation that cannot be used."""


class FormatError(InputError):
    """A file whose content is not what its format says."""


class RecipeError(CellwrightError):
    """A recipe with an unknown key, a wrong value, or two fields that do not fit each other."""


class ModelError(CellwrightError):
    """A model folder or foreign weights that cannot be loaded as asked."""


class OutputError(CellwrightError):
    """An output that exists, a disk that is full, a folder that cannot be written."""


class TrainingDiverged(CellwrightError):
    """A loss or a gradient that is not finite."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` for the nearest of ``known``, else the list of what is known."""
    choices = sorted(set(known))
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(choices)}"
