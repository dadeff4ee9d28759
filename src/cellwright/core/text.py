"""Wording shared by messages, tables and reports."""

from __future__ import annotations

_IRREGULAR = {"class": "classes", "box": "boxes", "nucleus": "nuclei", "index": "indices", "pass": "passes"}


def count(n: int, noun: str) -> str:
    """``n`` with the noun in the right number.

    >>> count(1, "image"), count(0, "image"), count(1500, "object"), count(2, "class")
    ('1 image', '0 images', '1,500 objects', '2 classes')
    """
    return f"{n:,} {noun if n == 1 else plural(noun)}"


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
