"""What a user can do to the objects of an image: from a checked request to a `Change` and its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cellwright.core.errors import UsageError
from cellwright.core.text import count, listed
from cellwright.serve import edits
from cellwright.serve.annotation import Annotation, Applied, Change, Conflict
from cellwright.serve.layer import Box, Row

MAX_POINTS, MAX_IDS, MAX_REGIONS = 20_000, 1_000_000, 1_000
MAX_BOX_PX = 1 << 26
_FAR = 1 << 25

Coordinate = Annotated[float, Field(ge=-_FAR, le=_FAR, allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate]
Number = Annotated[int, Field(ge=1, lt=1 << 32)]
Op = Literal[
    "delete",
    "delete_rect",
    "draw",
    "brush",
    "erase",
    "merge",
    "split",
    "fill_holes",
    "smooth",
    "set_class",
    "ignore_region",
    "unignore",
    "filter",
    "accept",
    "undo",
    "redo",
]


class Shown(BaseModel):
    """The limits below which the page does not show predicted objects."""

    model_config = ConfigDict(extra="forbid")
    min_score: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    min_area: int = Field(0, ge=0, lt=1 << 50)


class Edit(BaseModel):
    """A request to edit. rev: the revision that the page shows. edit_id: sent again with the same edit. over: paint
    over other objects. client: of which tab, for the events.
    """

    model_config = ConfigDict(extra="forbid")
    op: Op
    rev: int | None = Field(None, ge=0)
    ids: list[Number] | None = Field(None, max_length=MAX_IDS)
    id: Number | None = None
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None
    shown_ids: list[Number] | None = Field(None, max_length=MAX_IDS)
    outline: list[Point] | None = Field(None, min_length=3, max_length=MAX_POINTS)
    path: list[Point] | None = Field(None, min_length=1, max_length=MAX_POINTS)
    line: list[Point] | None = Field(None, min_length=2, max_length=MAX_POINTS)
    radius: float | None = Field(None, ge=0.5, le=500, allow_inf_nan=False)
    class_id: int | str | None = Field(None, alias="class")
    index: int | None = Field(None, ge=0)
    min_score: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    min_area: int = Field(0, ge=0, lt=1 << 50)
    over: bool = False
    accepted: bool = True
    shown: Shown | None = None
    client: str | None = Field(None, max_length=64)
    edit_id: str | None = Field(None, max_length=64)

    @field_validator("class_id")
    @classmethod
    def _short(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and len(value) > 200:
            raise ValueError("at most 200 characters")
        return value


@dataclass(frozen=True)
class _Context:
    """An edit while it is made. hidden: objects that are not shown, which count as not there."""

    annotation: Annotation
    edit: Edit
    class_names: Sequence[str]
    hidden: set[int]

    @property
    def rev(self) -> int:
        return self.annotation.rev if self.edit.rev is None else self.edit.rev

    def object_rows(self, numbers: Iterable[int] | None, *, least: int = 1) -> list[Row]:
        """The objects of a request. Raises `Conflict` if one has changed since, `UsageError` if one is not there."""
        wanted = list(dict.fromkeys(numbers or ()))
        if len(wanted) < least:
            got, expected = count(len(wanted), "object"), f"at least {least}"
            raise UsageError(f"{self.edit.op} needs objects", where="`ids`", got=got, expected=expected)
        self.check_unchanged(wanted)
        rows = self.annotation.table.rows(wanted)
        if len(rows) < len(wanted):
            missing = sorted({*wanted} - {row.id for row in rows})
            raise UsageError("there is no such object", got=listed([*map(str, missing)]), expected="ids of the objects")
        return rows

    def check_unchanged(self, numbers: Iterable[int]) -> None:
        changed = self.annotation.changed_since(numbers, self.rev)
        if changed:
            raise Conflict(
                "this was changed in another window in the meantime",
                got=f"object {listed([*map(str, changed)])}",
                expected=f"as in revision {self.rev}",
                remedy="look at it as it is now, and repeat the edit",
            )

    def box(self, box: Box) -> Box:
        """The part of a box in the image. Raises `UsageError` if there is none, or too much."""
        clipped = box.clipped(self.annotation.image_hw)
        if not clipped:
            raise UsageError("this is outside the image", got=_shown_box(box), expected="a place in the image")
        return checked_box(clipped)

    def free(self, labels: np.ndarray, number: int | None = None) -> np.ndarray:
        """Pixels that are background or not shown, or belong to this object; all if the user paints over others."""
        if self.edit.over:
            return np.ones(labels.shape, bool)
        numbers = [k for k in np.unique(labels).tolist() if k in (0, number) or k in self.hidden]
        return np.isin(labels, np.array(numbers, np.uint32))

    def change(self, name: str) -> Change:
        return Change(name, automatic=frozenset(self.hidden))

    def class_of(self, value: int | str | None) -> int:
        """The class id of a name or a number; the first class for None."""
        names = self.class_names
        if value is None:
            return 0
        if isinstance(value, str) and value in names:
            return list(names).index(value)
        if isinstance(value, int) and 0 <= value < len(names):
            return value
        raise UsageError("there is no such class", got=str(value), expected=listed(names))

    def required(self, name: str) -> None:
        """Raise `UsageError` unless a field is given."""
        if getattr(self.edit, name) is None:
            raise UsageError(f"{self.edit.op} needs `{name}`", expected=f"`{name}` in the request")


def make(annotation: Annotation, edit: Edit, class_names: Sequence[str]) -> Applied:
    """Do what a request asks for.

    Raises `Conflict` if the objects were changed after ``edit.rev``, `UsageError` for what is not possible.
    """
    with annotation.lock:
        if (again := annotation.was_applied(edit.edit_id)) is not None:
            return again
        state = annotation.state
        limits = state if edit.shown is None else edit.shown
        hidden = annotation.table.hidden(limits.min_score, limits.min_area)
        context = _Context(annotation, edit, class_names, hidden)
        if edit.op in ("undo", "redo"):
            if context.rev != annotation.rev:
                raise Conflict(
                    "this image was edited in another window in the meantime",
                    got=f"revision {annotation.rev}",
                    expected=f"revision {context.rev}",
                    remedy=f"look at it as it is now, and {edit.op} again",
                )
            return annotation.undo() if edit.op == "undo" else annotation.redo()
        change = _ACTIONS[edit.op](context)
        if not change.pixels and not change.rows and change.state in (None, state):
            return Applied(annotation.rev, (), {}, change.message or "nothing to change")
        return annotation.apply(change, edit.edit_id)


def _delete(context: _Context) -> Change:
    rows = context.object_rows(context.edit.ids)
    return _without(context, rows, f"delete {count(len(rows), 'object')}")


def _delete_rect(context: _Context) -> Change:
    context.required("box")
    edit, annotation = context.edit, context.annotation
    y0, x0, y1, x1 = edit.box or (0, 0, 0, 0)
    given = Box(math.floor(min(y0, y1)), math.floor(min(x0, x1)), math.ceil(max(y0, y1)), math.ceil(max(x0, x1)))
    box = context.box(given)
    inside = np.unique(annotation.chunks.read(box))
    numbers = [k for k in inside.tolist() if k and k not in context.hidden]
    if edit.shown_ids is not None:
        numbers = sorted({*numbers} & {*edit.shown_ids})
    context.check_unchanged(numbers)
    rows = annotation.table.rows(numbers)
    return _without(context, rows, f"delete {count(len(rows), 'object')} in a rectangle")


def _without(context: _Context, rows: Sequence[Row], name: str) -> Change:
    change = context.change(name)
    for row in rows:
        old = _read(context, row.box)
        change.set_pixels(row.box, old, edits.relabelled(old, [row.id], 0))
    change.message = f"deleted {count(len(rows), 'object')}"
    return change


def _draw(context: _Context) -> Change:
    context.required("outline")
    outline = context.edit.outline or []
    box = context.box(edits.box_around(outline, 0))
    where = edits.inside(outline, box)
    return _paint(context, box, where, None, "draw an object")


def _brush(context: _Context) -> Change:
    context.required("path")
    edit = context.edit
    path, radius = edit.path or [], 5.0 if edit.radius is None else edit.radius
    number = edit.id
    if number is not None:
        context.object_rows([number])
    box = context.box(edits.box_around(path, radius))
    return _paint(context, box, edits.stroke(path, radius, box), number, "brush")


def _paint(context: _Context, box: Box, where: np.ndarray, number: int | None, name: str) -> Change:
    """Add pixels to an object, or to a new one."""
    annotation, change = context.annotation, context.change(name)
    old = annotation.chunks.read(box)
    if context.edit.over:
        shown = np.unique(old[where]).tolist()
        context.check_unchanged(k for k in shown if k and k not in context.hidden)
    new_number = annotation.table.next_id if number is None else number
    new = edits.painted(old, where, new_number, context.free(old, number))
    change.set_pixels(box, old, new)
    if not change.pixels:
        change.message = "all these pixels belong to other objects" if where.any() else "this does not cover any pixel"
        return change
    if number is None:
        class_id = context.class_of(context.edit.class_id)
        change.drawn[new_number] = Row(new_number, 0, 0, 0, 0, 0, None, class_id, True)
        if (parts := edits.n_parts(new == new_number)) > 1:
            change.message = f"the new object has {parts} separate parts, because other objects lie between them"
    return change


def _erase(context: _Context) -> Change:
    context.required("path")
    edit, annotation = context.edit, context.annotation
    path, radius = edit.path or [], 5.0 if edit.radius is None else edit.radius
    if edit.id is not None:
        context.object_rows([edit.id])
    box = context.box(edits.box_around(path, radius))
    old = annotation.chunks.read(box)
    where = edits.stroke(path, radius, box)
    kept = np.isin(old, np.array(sorted({*np.unique(old).tolist()} & context.hidden), np.uint32))
    new = edits.erased(old, where, edit.id, kept)
    context.check_unchanged(np.unique(old[old != new]).tolist())
    change = context.change("erase")
    change.set_pixels(box, old, new)
    return change


def _merge(context: _Context) -> Change:
    rows = context.object_rows(context.edit.ids, least=2)
    change = context.change(f"merge {count(len(rows), 'object')}")
    first, largest = rows[0], max(rows, key=lambda row: row.area)
    around = Box(0, 0, 0, 0)
    for row in rows[1:]:
        old = _read(context, row.box)
        change.set_pixels(row.box, old, edits.relabelled(old, [row.id], first.id))
    for row in rows:
        around = around.united(row.box)
    change.rows[first.id] = (first, first._replace(class_id=largest.class_id, score=largest.score, manual=True))
    pixels = _read(context, around)
    n = edits.n_parts(np.isin(pixels, np.array([row.id for row in rows], np.uint32)))
    if n > 1:
        change.message = f"merged; the object has {n} separate parts: fill the gap with the brush"
    if len({row.class_id for row in rows}) > 1:
        change.message += f"{'; ' if change.message else ''}class {context.class_names[largest.class_id]}"
    return change


def _split(context: _Context) -> Change:
    context.required("id")
    context.required("line")
    (row,) = context.object_rows([context.edit.id or 0])
    line = [(y - row.y0, x - row.x0) for y, x in context.edit.line or []]
    old = _read(context, row.box)
    first = context.annotation.table.next_id
    new, n = edits.split(old, row.id, line, first)
    if n < 2:
        raise UsageError(
            "this line does not cut the object into two", expected="a line from outside to outside across the object"
        )
    change = context.change("split an object")
    change.set_pixels(row.box, old, new)
    for number in range(first, first + n - 1):
        change.drawn[number] = row._replace(id=number, area=0, manual=True)
    change.message = f"split into {n}"
    return change


def _each(context: _Context, name: str, operate: Callable[[np.ndarray, int, np.ndarray], np.ndarray]) -> Change:
    """Change objects one after the other; each sees what the ones before have changed."""
    rows = context.object_rows(context.edit.ids)
    change = context.change(f"{name} {count(len(rows), 'object')}")
    for row in rows:
        box = checked_box(row.box.grown(3).clipped(context.annotation.image_hw))
        old = context.annotation.chunks.read(box)
        for other, _, values in change.pixels:
            if other.meets(box):
                part = Box(max(box.y0, other.y0), max(box.x0, other.x0), min(box.y1, other.y1), min(box.x1, other.x1))
                old[part.within(box)] = values[part.within(other)]
        change.set_pixels(box, old, operate(old, row.id, context.free(old)))
    return change


def _set_class(context: _Context) -> Change:
    context.required("class_id")
    rows, class_id = context.object_rows(context.edit.ids), context.class_of(context.edit.class_id)
    change = context.change(f"class of {count(len(rows), 'object')}")
    for row in rows:
        if row.class_id != class_id:
            change.rows[row.id] = (row, row._replace(class_id=class_id, manual=True))
    if change.rows:
        verb = "is" if len(change.rows) == 1 else "are"
        change.message = f"{count(len(change.rows), 'object')} {verb} now {context.class_names[class_id]}"
    return change


def _ignore_region(context: _Context) -> Change:
    context.required("outline")
    state, outline = context.annotation.state, context.edit.outline or []
    box = context.box(edits.box_around(outline, 0))
    if not edits.inside(outline, box).any():
        raise UsageError("this outline does not contain any pixel", expected="an outline around part of the image")
    if len(state.regions) >= MAX_REGIONS:
        raise UsageError("too many regions", got=len(state.regions), expected=f"at most {MAX_REGIONS} of an image")
    change = context.change("mark a region as not annotated")
    change.state = replace(state, regions=(*state.regions, tuple(outline)))
    return change


def _unignore(context: _Context) -> Change:
    context.required("index")
    state, index = context.annotation.state, context.edit.index or 0
    if context.rev != context.annotation.rev and context.edit.rev is not None:
        raise Conflict("this image was edited in another window in the meantime", remedy="choose the region again")
    if index >= len(state.regions):
        raise UsageError("there is no such region", got=index, expected=f"below {len(state.regions)}")
    change = context.change("mark a region as annotated")
    change.state = replace(state, regions=(*state.regions[:index], *state.regions[index + 1 :]))
    return change


def _filter(context: _Context) -> Change:
    edit, annotation = context.edit, context.annotation
    numbers = annotation.table.hidden(edit.min_score, edit.min_area)
    rows = annotation.table.rows(sorted(numbers))
    change = _without(replace(context, hidden=numbers), rows, "accept the limits of score and area")
    change.state = replace(annotation.state, min_score=float(np.float32(edit.min_score)), min_area=edit.min_area)
    change.message = f"removed {count(len(rows), 'object')} below the limits"
    return change


def _accept(context: _Context) -> Change:
    is_accepted = context.edit.accepted
    change = context.change("accept the objects of this image" if is_accepted else "no longer accept this image")
    change.state = replace(context.annotation.state, accepted=is_accepted)
    change.message = "accepted" if is_accepted else "no longer accepted"
    return change


_ACTIONS: dict[str, Callable[[_Context], Change]] = {
    "delete": _delete,
    "delete_rect": _delete_rect,
    "draw": _draw,
    "brush": _brush,
    "erase": _erase,
    "merge": _merge,
    "split": _split,
    "fill_holes": lambda context: _each(context, "fill the holes of", edits.filled),
    "smooth": lambda context: _each(context, "smooth", edits.smoothed),
    "set_class": _set_class,
    "ignore_region": _ignore_region,
    "unignore": _unignore,
    "filter": _filter,
    "accept": _accept,
}


def checked_box(box: Box) -> Box:
    """The box itself. Raises `UsageError` if it is too large to be edited at once."""
    height, width = box.hw
    if height * width > MAX_BOX_PX:
        raise UsageError(
            "this is too large to be edited at once",
            got=f"{height} x {width} pixels",
            expected=f"at most {MAX_BOX_PX} pixels",
            remedy="edit it in several smaller steps",
        )
    return box


def _read(context: _Context, box: Box) -> np.ndarray:
    return context.annotation.chunks.read(checked_box(box))


def _shown_box(box: Box) -> str:
    return f"rows {box.y0} to {box.y1}, columns {box.x0} to {box.x1}"
