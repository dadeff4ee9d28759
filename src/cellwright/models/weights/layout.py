"""How another framework names and orders the tensors of our networks: the type that each layout file fills in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEAF = r"(?P<leaf>weight|bias)"
"""Pattern of the last component of a parameter's name."""

Rule = tuple[str, str, int]
"""Pattern of a whole foreign name; our name, with the groups of the pattern; what the number ``n`` is counted from."""


@dataclass(frozen=True)
class Layout:
    """The tensor layout of one framework.

    Attributes:
        our_names: foreign names -> {foreign name: our name, or None if it is unknown}.
        background_first: the box classifier's first row is background; ours is the last.
        unused_background: box deltas and masks have a row for background, which is not loaded.
    """

    our_names: Callable[[Sequence[str]], dict[str, str | None]]
    background_first: bool = False
    unused_background: bool = False


def translate(name: str, rules: Sequence[Rule]) -> str | None:
    """Our name of a foreign tensor by the first rule whose pattern matches all of ``name``; None if none does."""
    for pattern, ours, first in rules:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            # A single box head is a cascade of one stage, k = 0.
            return ours.format(**{**groups, "n": int(groups.get("n") or 0) - first, "k": groups.get("k") or "0"})
    return None
