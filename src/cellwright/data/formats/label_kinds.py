"""What the values of label images mean: object ids, a foreground mask, classes, or a picture.

A label image gives every object a number of its own. Many files with the same look do not: masks of 0 and 255, class
masks, masks with a value for "void", labels that count the background as 1 or -1, photographs saved in the wrong
folder. Read as labels, each of them gives wrong objects without an error. They are recognised here by the connected
parts of
equal value: a label image has about as many parts as values.

A source is examined as a whole (`examine`), since one image with one nucleus cannot show whether its 255 is an object
id or the foreground. The result, a `Meaning`, then reads every image of the source in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.errors import FormatError, InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import ReadOptions
from cellwright.data.formats.label_io import Raster

_log = logging.getLogger(__name__)

# Values with more connected parts than this, on average, are not object ids.
PARTS_PER_VALUE = 2.5
MAX_CLASSES = 12  # a class mask has at most this many values
EXAMINED_FILES = 200  # of a larger source, evenly spaced
EXAMINED_SIDE = 4096  # of a larger image, its centre
_SPECK_PX = 16  # a smaller part is a speck if it is also below a tenth of the largest part of its value
_VOID = 255
_FAR_BELOW_VOID = 200  # if all other labels are at most this, 255 is hardly the number of an object

Kind = Literal["empty", "labels", "values", "smooth", "picture"]


# --- what one image shows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What the pixels of one label image show. A part is a connected region of one value; specks do not count.

    areas: pixels of each value, the background included. parts: the number of parts of each value.
    largest, encoding: as in `Raster`. smooth: a foreground mask with intermediate values along its edges.
    part_px: the median area of the parts of all values but 0. n_void: pixels of the void value.
    """

    name: str
    encoding: str
    largest: int
    areas: dict[int, int]
    parts: dict[int, int]
    smooth: bool = False
    part_px: float = 0.0
    n_void: int = 0
    background: int = 0

    @property
    def values(self) -> list[int]:
        """All values but the background."""
        return [value for value in self.areas if value != self.background]

    @property
    def n_parts(self) -> int:
        return sum(n for value, n in self.parts.items() if value != self.background)

    @property
    def kind(self) -> Kind:
        """What this image alone looks like; "values" are few values in many parts, or numbers used several times."""
        n_values, n_parts = len(self.values), self.n_parts
        if self.smooth or not n_values:
            return "smooth" if self.smooth else "empty"
        tiny = self.part_px < (12 if self.encoding == "colours" else 4)
        in_order = n_parts == n_values == max(self.values) - min(self.values) + 1
        if n_values > MAX_CLASSES and tiny and not in_order:
            return "picture"
        return "values" if n_parts > max(PARTS_PER_VALUE * n_values, n_values + 1) else "labels"


def facts_of(raster: Raster, name: str, void: int | None = None) -> Facts:
    """Count the values of a label image and their connected parts (8 neighbours)."""
    values = _centre(raster.values)
    if void is None and raster.encoding != "colours" and (mask := _smooth_mask(values, raster.largest)) is not None:
        raster, values = replace(raster, values=mask), mask
        smooth = True
    else:
        smooth = False
    numbers, index = _indexed(values)
    parts = _connected(index + 1)  # the background is counted, too
    areas = np.bincount(parts.ravel())
    owner = np.zeros(areas.size, np.int64)
    owner[parts.ravel()] = index.ravel()
    areas, owner = areas[1:], owner[1:]
    largest = np.zeros(numbers.size, np.int64)
    np.maximum.at(largest, owner, areas)
    real = areas >= np.minimum(_SPECK_PX, largest[owner] / 10)
    n_parts = np.bincount(owner[real], minlength=numbers.size)
    n_pixels = np.bincount(index.ravel(), minlength=numbers.size)
    kept = [k for k, number in enumerate(numbers.tolist()) if number != void]
    counted = areas[real & (numbers[owner] != 0)]
    return Facts(
        name,
        raster.encoding,
        raster.largest,
        {int(numbers[k]): int(n_pixels[k]) for k in kept},
        {int(numbers[k]): int(n_parts[k]) for k in kept},
        smooth,
        float(np.median(counted)) if counted.size else 0.0,
        values.size - int(n_pixels[kept].sum()),
    )


def _centre(values: np.ndarray) -> np.ndarray:
    y, x = (max(0, (side - EXAMINED_SIDE) // 2) for side in values.shape)
    return values[y : y + EXAMINED_SIDE, x : x + EXAMINED_SIDE]


def _indexed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, ascending, and the index of each pixel's value among them (H, W) int32."""
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * values.size + 65536:
        numbers, index = np.unique(values, return_inverse=True)
        return numbers.astype(np.int64), index.reshape(values.shape).astype(np.int32)
    shifted = values.astype(np.int64) - low
    is_used = np.bincount(shifted.ravel(), minlength=high - low + 1) > 0
    return np.flatnonzero(is_used) + low, (np.cumsum(is_used) - 1).astype(np.int32)[shifted]


def _connected(values: np.ndarray) -> np.ndarray:
    """The 8-connected parts of equal values but 0, (H, W) int32 from 1; as scikit-image's `label`, without SciPy."""
    from cellwright.core._component_kernels import connected_components

    return connected_components(np.ascontiguousarray(values, np.int64))[0]


def _smooth_mask(values: np.ndarray, largest: int) -> np.ndarray | None:
    """0 and the maximum (H, W) if the values are a foreground mask with smooth edges, else None."""
    highest = int(values.max(initial=0))
    if not largest or highest <= largest / 2 or values.min() < 0:
        return None
    between = values[(values > 0.1 * highest) & (values < 0.9 * highest)]
    if len(np.unique(between)) < 3 or not is_smooth(values):
        return None
    return np.where(values > highest / 2, highest, 0)


def is_smooth(values: np.ndarray) -> bool:
    """Whether an array (H, W) is 0 and one plateau, with other values only where antialiasing or JPEG leave them:
    intermediate ones along the edges, and noise near them.
    """
    import cv2

    def grown(area: np.ndarray, distance_px: int) -> np.ndarray:
        side = 2 * distance_px + 1
        return cv2.dilate(area.astype(np.uint8), np.ones((side, side), np.uint8)) > 0

    highest = float(values.max(initial=0))
    ground, plateau = values <= 0.1 * highest, values >= 0.9 * highest
    between, noise = ~ground & ~plateau, ground & (values > 0)
    at_edges = between & grown(ground, 2) & grown(plateau, 2)
    near = noise & grown(plateau, 16)
    n_between, n_plateau = int(between.sum()), int(plateau.sum())
    is_thin = n_between <= 4 * n_plateau + 16  # in a small object, the edge has more pixels than the rest
    return highest >= 32 and is_thin and at_edges.sum() >= 0.8 * n_between and near.sum() >= 0.95 * noise.sum()


def looks_annotated(raster: Raster) -> bool | None:
    """Whether an image alone looks like labels, a foreground mask or a class mask. None for one value everywhere."""
    facts = facts_of(raster, "")
    if facts.kind == "empty" or len(facts.areas) < 2:
        return None
    return facts.kind in ("labels", "smooth") or (facts.kind == "values" and len(facts.values) <= MAX_CLASSES)


# --- what the values of a source mean ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """How the values of the label images of a source become objects.

    background: the value of the background. shift: what is added to every value first.
    split: whether each connected part is an object. Its class is the position of its value in ``classes``, or 0 if
        there are none. Otherwise the values are object ids, or, if ``renumber``, the objects are numbered from 1.
    smooth: whether the mask is what exceeds half of the maximum. void: the value of pixels that become an ignored
        object.
    """

    background: int = 0
    shift: int = 0
    split: bool = False
    classes: tuple[int, ...] = ()
    renumber: bool = False
    smooth: bool = False
    void: int | None = None

    @property
    def class_names(self) -> list[str]:
        """``["class1", "class2"]`` (or colours, "#ff0000") if the values are classes, else empty."""
        in_colour = self.renumber
        names = [_shown(value, in_colour) if in_colour else f"class{value}" for value in self.classes]
        return names if len(names) > 1 else []

    def objects(self, raster: Raster, where: object) -> Instances:
        """The objects of one image. Raises `FormatError` for values that contradict the meaning."""
        if self == Meaning() and raster.values.dtype.kind == "u":
            return self._labelled(raster.values)
        values = raster.values.astype(np.int64)
        void = None if self.void is None else values == self.void
        if void is not None:
            values[void] = self.background - self.shift
        if values.min() < -self.shift or (self.shift and values.min() >= 0):
            raise FormatError(
                "a label is out of range" if values.min() < 0 else "the background is not -1, as in other images",
                where=where,
                got=f"{values.min()} to {values.max()}",
                expected="-1 for background, and 0 or more for objects" if self.shift else "0 or more",
                remedy="if a value marks pixels to ignore, name it with `void`",
            )
        values += self.shift
        values[values == self.background] = 0
        if self.smooth:
            values = (values > values.max() / 2).astype(np.int64)
        instances = self._split(values, where) if self.split else self._labelled(values)
        return instances if void is None or not void.any() else _with_void(instances, void, int(self.void or 0))

    def _labelled(self, values: np.ndarray) -> Instances:
        masks, ids = MaskSet.from_label_map(values)
        return Instances.from_masks(masks, ids=None if self.renumber else ids)

    def _split(self, values: np.ndarray, where: object) -> Instances:
        masks, _ = MaskSet.from_label_map(_connected(values))
        if not self.classes or self.smooth:
            return Instances.from_masks(masks)
        rows = [np.flatnonzero(masks.crop(k)[0])[0] for k in range(len(masks))]  # the box is tight
        found = [int(values[box[1], box[0] + x]) for box, x in zip(masks.boxes, rows, strict=True)]
        unknown = sorted(set(found) - set(self.classes))
        if unknown:
            raise FormatError(
                "this value does not occur in the other masks",
                where=where,
                got=unknown[0],
                expected=", ".join(map(str, self.classes)),
                remedy="convert masks with other classes separately, or name a value to ignore with `void`",
            )
        return Instances.from_masks(masks, class_ids=[self.classes.index(value) for value in found])


def _with_void(instances: Instances, void: np.ndarray, value: int) -> Instances:
    """The objects and one region of no class for the void pixels, whose id is their value if that is free."""
    region = MaskSet.from_dense(void[None])
    highest = int(instances.ids.max(initial=0))
    own_id = value if value > 0 and value not in instances.ids else highest + 1
    return Instances.from_masks(
        concat([instances.masks, region]),
        class_ids=np.append(instances.class_ids, NO_CLASS),
        ids=np.append(instances.ids, own_id),
        ignore=np.append(instances.ignore, True),
    )


def examined(files: Sequence[Any]) -> list[Any]:
    """The files that represent a source: all of them, or `EXAMINED_FILES` evenly spaced ones."""
    if len(files) <= EXAMINED_FILES:
        return list(files)
    return [files[k] for k in np.linspace(0, len(files) - 1, EXAMINED_FILES).round().astype(int)]


def examine(
    rasters: Iterable[tuple[str, Raster]], options: ReadOptions, where: object
) -> tuple[Meaning, tuple[Note, ...]]:
    """What the values of the label images of one source mean, and notes of what was assumed.

    rasters: path and values of each image. where: the source. Raises `InputError` where the values are not object ids,
    with the choices there are.
    """
    facts = [facts_of(raster, name, options.void) for name, raster in rasters]
    source, void = str(where), options.void
    notes = _encoding_notes(facts, source)
    if void is not None and facts and not any(fact.n_void for fact in facts):
        notes.append(Note("the void value does not occur", f"the value {void} (`void`) does not occur", source))
    shift, background = _find_background(facts, source, notes)
    if shift:
        facts = [_shifted(fact, shift) for fact in facts]
    facts = [replace(fact, background=background) for fact in facts]
    meaning = Meaning(background, shift, void=void, renumber=any(fact.encoding == "colours" for fact in facts))
    questions = _void_question(facts, source, notes) if void is None else []
    facts = [_without(fact, _VOID) for fact in facts] if questions else facts
    problem = _problem(facts)
    if problem is None and not questions:
        if all(len(fact.values) <= 1 for fact in facts):
            _check_polarity(facts, source)
        if options.foreground == "split" and facts and all(len(fact.values) <= 1 for fact in facts):
            meaning = replace(meaning, split=True)  # one value in few parts
        elif options.foreground == "split":
            text = 'these are label images, so `foreground="split"` changes nothing'
            notes.append(Note("label images need no splitting", text, source))
        return meaning, tuple(notes)
    if problem is not None and (problem.cannot_be_split or options.foreground != "split"):
        raise problem.error(source, len(facts), questions, refuse=options.foreground == "refuse")
    if questions:
        raise InputError(
            "the value 255 may mark pixels to ignore, rather than an object", where=source,
            got="255 in several parts, beside smaller labels", expected="labels of objects",
            remedy=questions[0] + "; if it is the label of an object, renumber it",
        )  # fmt: skip
    _check_polarity(facts, source)
    values = sorted({value for fact in facts for value in fact.values})
    is_repeated = len(values) > MAX_CLASSES
    is_smooth = any(fact.smooth for fact in facts)
    classes = () if is_repeated or is_smooth else tuple(values)
    meaning = replace(meaning, split=True, classes=classes, smooth=is_smooth)
    text = "each connected part of the masks was taken as one object"
    if meaning.class_names:
        text += f"; their values became the classes {', '.join(meaning.class_names)}, which `classes` can name"
    return meaning, (*notes, Note("masks were split", text, source))


def single_image(
    raster: Raster, where: object, *, foreground: Literal["split", "refuse"] | None = None, void: int | None = None
) -> Instances:
    """The objects of one label image that belongs to no source; what was assumed about it is logged as a warning."""
    meaning, notes = examine([(str(where), raster)], ReadOptions(foreground=foreground, void=void), where)
    for note in notes:
        _log.warning("%s: %s", where, note.text)
    return meaning.objects(raster, where)


def _encoding_notes(facts: Sequence[Facts], source: str) -> list[Note]:
    notes = []
    for encoding, kind, text in (
        (
            "grey",
            "labels in three channels",
            "the label numbers are stored in three equal channels; one of them was read",
        ),
        ("colours", "colours as labels", "the label images are in colour: each colour was taken as one object"),
    ):
        n = sum(fact.encoding == encoding for fact in facts)
        if n:
            notes.append(Note(kind, f"{text} ({count(n, 'image')})", source))
    return notes


def _find_background(facts: Sequence[Facts], source: str, notes: list[Note]) -> tuple[int, int]:
    """What is added to all values, and the value of the background after that; appends notes."""
    used = [fact for fact in facts if fact.areas]
    lowest = min((min(fact.areas) for fact in used), default=0)
    if lowest < 0:
        with_negative = [fact for fact in used if min(fact.areas) < 0]
        area = {value: sum(fact.areas.get(value, 0) for fact in with_negative) for value in (-1, 0)}
        if lowest < -1 or area[-1] <= area[0]:
            raise FormatError(
                "a label is negative",
                where=with_negative[0].name,
                got=lowest,
                expected="0 for the background, then object ids",
                remedy=f"if the value marks pixels to ignore, give `void={lowest}`",
            )
        text = "the background is -1 and the first object is 0, as in Cellpose 0.x: 1 was added to all labels"
        notes.append(Note("background -1", text, source))
        return 1, 0
    if not used or any(0 in fact.areas for fact in used):
        return 0, 0
    largest = {max(fact.areas, key=fact.areas.__getitem__) for fact in used}
    candidate = min(largest)
    if len(largest) == 1 and all(_dominates(fact, candidate) for fact in used):
        name = _named([candidate], in_colour=used[0].encoding == "colours")
        text = f"no pixel is 0; {name}, which covers the largest area, was taken as background"
        notes.append(Note("the background is not 0", text, source))
        return 0, candidate
    text = "no pixel is 0, so every pixel was taken as part of an object"
    notes.append(Note("there is no background", text, source))
    return 0, 0


def _dominates(fact: Facts, value: int) -> bool:
    others = [area for other, area in fact.areas.items() if other != value]
    return bool(others) and fact.areas[value] >= 2 * max(others)


def _shifted(fact: Facts, shift: int) -> Facts:
    areas = {value + shift: area for value, area in fact.areas.items()}
    return replace(fact, areas=areas, parts={value + shift: n for value, n in fact.parts.items()})


def _without(fact: Facts, value: int) -> Facts:
    areas = {other: area for other, area in fact.areas.items() if other != value}
    return replace(fact, areas=areas, parts={other: n for other, n in fact.parts.items() if other != value})


def _void_question(facts: Sequence[Facts], source: str, notes: list[Note]) -> list[str]:
    """A remedy if 255 stands alone far above the other labels and in several parts; a note if it is in one part."""
    marked = [fact for fact in facts if fact.encoding != "colours" and _VOID in fact.values]
    others = {value for fact in facts for value in fact.values} - {_VOID}
    if not marked or not others or max(others) > _FAR_BELOW_VOID or any(fact.smooth for fact in facts):
        return []
    if any(fact.parts[_VOID] > 1 for fact in marked):
        return [f"`void={_VOID}` ignores the pixels of value {_VOID}"]
    text = f"the value {_VOID} was taken as an object, like the labels up to {max(others)}; `void={_VOID}` ignores it"
    notes.append(Note("255 was taken as an object", text, source))
    return []


@dataclass(frozen=True)
class _Problem:
    """Why the values of a source are not object ids."""

    what: str
    got: str
    images: int
    cannot_be_split: bool = False

    def error(self, source: str, n_images: int, questions: Sequence[str], *, refuse: bool) -> InputError:
        remedy = "give label images"
        if self.cannot_be_split:
            remedy = "replace them by label images, in which every object has its own number"
        elif not refuse:
            remedy = (
                'choose `foreground="split"` (in cellwright data convert) to make each connected part an object '
                "(touching objects become one); or give label images"
            )
        got = f"{self.got} in {self.images} of {count(n_images, 'image')}"
        return InputError(
            self.what,
            where=source,
            got=got,
            expected="a number of its own for each object, 0 for the background",
            remedy="; ".join([*questions, remedy]),
        )


def _problem(facts: Sequence[Facts]) -> _Problem | None:
    """Why the values are not object ids; None if they are."""
    used = [fact for fact in facts if fact.kind != "empty"]
    values = sorted({value for fact in used for value in fact.values})
    n_parts = sum(fact.n_parts for fact in used)
    odd = [fact for fact in used if fact.kind != "labels"]
    pictures = [fact for fact in used if fact.kind == "picture"]
    in_colour = any(fact.encoding == "colours" for fact in used)
    what = f"{_named(values, in_colour=in_colour)} in {count(n_parts, 'separate part')}"
    if len(values) == 1 and values[0] in {fact.largest for fact in used} and n_parts > len(used):
        odd = used  # 255 alone is no object id, even if it is only in a few parts
    if not odd:
        return None
    if pictures:
        first = pictures[0]
        got = f"{len(first.values):,} values in {first.n_parts:,} scattered parts ({_file_name(first)})"
        return _Problem("these are pictures, not label images", got, len(pictures), cannot_be_split=True)
    if any(fact.smooth for fact in odd) and all(len(fact.values) == 1 for fact in used):
        return _Problem("these are foreground masks with smooth edges, not label images", what, len(used))
    if len(values) <= MAX_CLASSES and n_parts > sum(len(fact.values) for fact in used):
        if len(values) == 1:
            return _Problem("these are foreground masks, not label images", what, len(used))
        if sum(len(fact.values) for fact in used) * PARTS_PER_VALUE < n_parts:
            return _Problem("these are class masks, not label images", what, len(used))
    if len(odd) == len(used):
        return _Problem("labels occur in several separate parts", what, len(used))
    strong = [fact for fact in odd if fact.smooth or fact.n_parts >= len(fact.values) + 5]
    if not strong:
        return None
    first = strong[0]
    got = (
        f"{_named(first.values, in_colour=in_colour)} in {count(first.n_parts, 'separate part')} ({_file_name(first)})"
    )
    return _Problem("some of these files are masks, and others label images", got, len(strong), cannot_be_split=True)


def _named(values: Sequence[int], *, in_colour: bool = False) -> str:
    noun = "colour" if in_colour else "value"
    if len(values) > MAX_CLASSES:
        return count(len(values), noun)
    return f"the {noun}{'s' * (len(values) > 1)} {', '.join(_shown(value, in_colour) for value in values)}"


def _file_name(fact: Facts) -> str:
    return PurePath(fact.name).name


def _shown(value: int, in_colour: bool) -> str:
    return f"#{value:0{6 if value < 1 << 24 else 12}x}" if in_colour else str(value)


def _check_polarity(facts: Sequence[Facts], source: str) -> None:
    """Raise `InputError` if the foreground of masks to be split seems to be the background."""
    used = [fact for fact in facts if fact.values and 0 in fact.areas]
    area = sum(fact.areas[value] for fact in used for value in fact.values)
    ground = sum(fact.areas[0] for fact in used)
    n_parts, n_holes = (sum(f.n_parts for f in used), sum(f.parts[0] for f in used))
    if area > ground and n_holes > n_parts and n_holes >= 3:
        raise InputError(
            "the objects in these masks seem to be black on white",
            where=source,
            got=f"{area / (area + ground):.0%} of the pixels in {count(n_parts, 'part')}, the rest in {n_holes}",
            expected="objects that are not 0 on a background of 0",
            remedy="invert the masks; or, if the objects touch each other everywhere, give label images",
        )
