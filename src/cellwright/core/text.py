"""Wording shared by messages, tables and reports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_IRREGULAR = {
    "class": "classes",
    "box": "boxes",
    "nucleus": "nuclei",
    "index": "indices",
    "pass": "passes",
    "vertex": "vertices",
}
_N_NAMED = 3


def count(n: int, noun: str) -> str:
    """``n`` with the noun in the right number.

    >>> count(1, "image"), count(0, "image"), count(1500, "object"), count(2, "class")
    ('1 image', '0 images', '1,500 objects', '2 classes')
    """
    return f"{n:,} {noun if n == 1 else plural(noun)}"


def differences(now: Mapping[str, Any], before: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> list[str]:
    """The options that differ, one part of a sentence each; names of parameters are in backticks.

    own: values that nobody chose, because they are those of the model.

    >>> differences({"score": 0.25, "views": None}, {"score": 0.5, "views": None, "save": ["masks", "rois"]})
    ['`save` none instead of masks rois', '`score` 0.25 instead of 0.5']
    >>> differences({"score": 0.6}, {"score": [0.310597]}, own={"score": [0.310597]})
    ["`score` 0.6 instead of the model's own 0.311"]
    """
    names = sorted({*now, *before})
    pairs = {name: (now.get(name), before.get(name)) for name in names}
    return [_difference(name, new, old, (own or {}).get(name)) for name, (new, old) in pairs.items() if new != old]


def listed(names: Sequence[str]) -> str:
    """The first names in alphabetical order.

    >>> listed(["d", "b", "a", "c"]), listed(["a"])
    ('a, b, c, ...', 'a')
    """
    return ", ".join(sorted(names)[:_N_NAMED]) + (", ..." if len(names) > _N_NAMED else "")


def _difference(name: str, new: Any, old: Any, own: Any) -> str:
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        return f"`{name}`"  # such as a calibration: too long to be shown
    shown = [
        f"the model's own {_shown(value, '.3g')}" if own is not None and value == own else _shown(value)
        for value in (new, old)
    ]
    return f"`{name}` {shown[0]} instead of {shown[1]}"


def _shown(value: Any, number: str = "g") -> str:
    if isinstance(value, list | tuple):
        return " ".join(_shown(one, number) for one in value) or "none"
    return "none" if value is None else f"{value:{number}}" if isinstance(value, float) else str(value)


# Control characters but tab and newline, halves of surrogate pairs, and characters that reorder text.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Text for a terminal: characters that would command it, in the name of a file for example, as escapes.

    >>> printable("a\x1b[2J.tif"), printable("caf\udce9"), printable("µm\n")
    ('a\\x1b[2J.tif', 'caf\\udce9', 'µm\n')
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def plural(noun: str) -> str:
    """The plural of the last word of ``noun``.

    >>> plural("validation image"), plural("class"), plural("category")
    ('validation images', 'classes', 'categories')
    """
    head, space, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        return head + space + _IRREGULAR[last]
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return head + space + last[:-1] + "ies"
    return head + space + last + "s"
