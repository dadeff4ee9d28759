"""What the outline formats share: checked rings, a limit on the area they may fill, ids from names, classes."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.geometry import check_cover
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS

_log = logging.getLogger(__name__)


def checked_ring(points: object, image_hw: tuple[int, int], where: str) -> np.ndarray:
    """Vertices (n, 2) float64 x, y of an open or closed ring, with n >= 3, or n = 0 if it encloses nothing.

    Raises `FormatError` for anything but a list of number pairs, and for a vertex farther from the image than the image
    is wide or high: such an outline belongs to another image or another magnification.
    """
    ring: Any
    try:
        ring = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        ring = np.zeros(0)
    if ring.ndim != 2 or ring.shape[1] not in (2, 3) or not np.isfinite(ring).all():
        raise FormatError("an outline is malformed", where=where, got=str(points)[:60], expected="pairs of finite x, y")
    ring = ring[:, :2]
    reach = max(image_hw)
    far = (ring < -reach).any(1) | (ring > 2 * reach).any(1)
    if far.any():
        x, y = ring[np.flatnonzero(far)[0]]
        raise FormatError(
            "an outline is far outside its image",
            where=where,
            got=f"a vertex at x {x:g}, y {y:g}",
            expected=f"about 0 to {image_hw[1]} in x and 0 to {image_hw[0]} in y",
            remedy="check that the outlines were drawn on this image at full resolution",
        )
    if len(ring) and np.array_equal(ring[0], ring[-1]):
        ring = ring[:-1]
    return ring if len(ring) >= 3 else np.zeros((0, 2))


def check_outlines(objects: Sequence[Sequence[np.ndarray]], image_hw: tuple[int, int], where: object) -> None:
    """`FormatError` if the boxes of the objects, each given as its rings, cover the image too many times.

    Filling them checks that too, but does not know the file.
    """
    total = 0.0
    for rings in objects:
        points = np.concatenate([ring for ring in rings if len(ring)] or [np.zeros((1, 2))])
        low = points.min(0).clip(0, image_hw[::-1])
        high = points.max(0).clip(0, image_hw[::-1])
        total += float(np.prod(high - low))
    check_cover(total, image_hw, where)


def points_inside(ring: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points (N, 2) are inside ``ring`` (n, 2), by the even-odd rule: (N,) bool.

    >>> points_inside(np.array([[0, 0], [4, 0], [0, 4]]), np.array([[1, 1], [3, 3]]))
    array([ True, False])
    """
    from cellwright.core import _polygon_kernels

    return _polygon_kernels.inside(np.asarray(ring, np.float64), np.asarray(points, np.float64).reshape(-1, 2))


def ids_from_names(names: Sequence[object]) -> np.ndarray | None:
    """The names as ids (N,) int64: those that are whole numbers, and the numbers after these for the others.

    None (which gives ids 1..N) if no name is a whole number, or if two are the same or one is 0.

    >>> ids_from_names(["7", "new cell", "3"]).tolist()
    [7, 8, 3]
    """
    numbers = [_number(name) for name in names]
    given = [number for number in numbers if number is not None]
    if not given or 0 in given or len(set(given)) < len(given):
        return None
    following = itertools.count(max(given) + 1)
    return np.array([next(following) if number is None else number for number in numbers], np.int64)


def repeated_ids(names: Iterable[object]) -> list[Note]:
    """A note if names that are whole numbers repeat, so that `ids_from_names` does not use them.

    >>> [note.text for note in repeated_ids(["3", "3", "cell", "4"])]
    ['id 3 occurs 2 times: the objects are numbered 1, 2, 3, ... instead']
    """
    counts = Counter(number for name in names if (number := _number(name)))
    repeated = [(number, n) for number, n in counts.items() if n > 1]
    if not repeated:
        return []
    others = f" and {count(len(repeated) - 1, 'other id')} too" if len(repeated) > 1 else ""
    text = f"id {repeated[0][0]} occurs {repeated[0][1]} times{others}: the objects are numbered 1, 2, 3, ... instead"
    return [Note("ids that repeat were replaced by 1, 2, 3, ...", text)]


def _number(name: object) -> int | None:
    if isinstance(name, int):
        return name
    return int(name) if isinstance(name, str) and name.isascii() and name.isdecimal() and len(name) < 16 else None


def class_of_unclassified(names: Set[str], n_without: int, class_names: Sequence[str] | None) -> tuple[str, list[Note]]:
    """The class of objects without one, and a note: that of the others if all of these have the same, else "cell".

    names: the classes of the others. n_without: number of objects without a class. class_names: those to keep, or None.
    """
    if len(names) == 1:
        name, why = next(iter(names)), "the class of all others"
    else:
        name, why = DEFAULT_CLASS, f"beside {', '.join(sorted(names)[:4])}"
    if not n_without or not names or (class_names is not None and name not in class_names):
        return name, []
    text = f"{count(n_without, 'object')} without a class read as {name}, {why}"
    return name, [Note("objects without a class", text)]


def without_empty(instances: Instances, where: object) -> Instances:
    """The objects that have at least one pixel; a warning names the others."""
    filled = instances.masks.areas > 0
    if filled.all():
        return instances
    dropped = ", ".join(map(str, instances.ids[~filled][:5].tolist()))
    _log.warning("%s: %s without a pixel dropped: %s", where, count(int((~filled).sum()), "object"), dropped)
    return instances[filled]


def concat_in_order(first: MaskSet, second: MaskSet, is_first: Sequence[bool]) -> MaskSet:
    """The masks of two sets of one image, interleaved: ``is_first[i]`` says which set object i comes from."""
    flags = np.asarray(is_first, bool)
    index = np.empty(len(flags), np.int64)
    index[flags] = np.arange(len(first))
    index[~flags] = len(first) + np.arange(len(second))
    return concat([first, second])[index]
