"""The objects of one image: label pixels, rows and regions, with a history that every edit goes through.

An edit is a `Change`: boxes of pixels as the XOR of before and after, the rows of objects before and after, and the
limits and regions before and after. So undo and redo are exact whatever the edit was, and opening an image replays its
journal. The record is on the disk before an edit is answered.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.serve.edits import changed_box
from cellwright.serve.journal import Journal, Record
from cellwright.serve.layer import Box, Chunks, Row, Snapshot, Table, columns_of, packed, unpacked

VERSION = 1
# Answers with more changed boxes, or pixels, only say that everything is to be fetched again.
MAX_BOXES, MAX_ANSWER_PX = 64, 1 << 22
_REMEMBERED = 500


@dataclass(frozen=True)
class State:
    """What belongs to an image besides its objects.

    min_score, min_area: predicted objects below are not shown. regions: outlines [[y, x], ...] of what was not
    annotated. accepted: the user has looked at all of it.
    """

    min_score: float = 0.0
    min_area: int = 0
    regions: tuple[tuple[tuple[float, float], ...], ...] = ()
    accepted: bool = False

    @staticmethod
    def of(values: Mapping[str, Any]) -> State:
        regions = tuple(tuple((float(y), float(x)) for y, x in region) for region in values["regions"])
        return State(float(values["min_score"]), int(values["min_area"]), regions, bool(values["accepted"]))


@dataclass
class Change:
    """An edit that is being made. pixels: boxes with their labels before and after; rows: before and after, by id."""

    name: str
    pixels: list[tuple[Box, np.ndarray, np.ndarray]] = field(default_factory=list)
    rows: dict[int, tuple[Row | None, Row | None]] = field(default_factory=dict)
    state: State | None = None
    message: str = ""
    drawn: dict[int, Row] = field(default_factory=dict)  # new objects: class and origin, until their pixels are known
    automatic: frozenset[int] = frozenset()  # objects that stay predicted ones though their pixels change

    def set_pixels(self, box: Box, old: np.ndarray, new: np.ndarray) -> None:
        """Record the pixels of a box, of which only the changed part is kept."""
        part = changed_box(old, new)
        if part:
            inner = (slice(part.y0, part.y1), slice(part.x0, part.x1))
            y0, x0 = box.y0 + part.y0, box.x0 + part.x0
            self.pixels.append((Box(y0, x0, y0 + part.hw[0], x0 + part.hw[1]), old[inner], new[inner]))


@dataclass(frozen=True)
class Applied:
    """What an edit, an undo or a redo has changed. reload: too much to list: fetch everything again."""

    rev: int
    boxes: tuple[Box, ...]
    rows: dict[int, Row | None]
    message: str
    reload: bool = False
    is_state: bool = False


@dataclass(frozen=True)
class _Entry:
    """is_prediction: new objects of a model took the place of all; kept: with objects that were drawn by hand."""

    rev: int
    name: str
    offset: int
    is_prediction: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Start:
    """The objects with which an image begins. chunks: packed labels by row and column; base: see `Chunks`.

    source: what they were read from, for a `base`, which is not stored: its identity must stay the same.
    """

    name: str
    table: Table
    state: State
    chunks: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    base: Callable[[int, int], np.ndarray] | None = None
    source: str | None = None
    message: str = ""

    def with_classes(self, numbers: Sequence[int]) -> Start:
        """These objects with other class ids: ``numbers`` by the class ids that they have."""
        columns = dict(self.table.columns())
        columns["class_id"] = np.asarray(numbers, np.int32)[columns["class_id"]]
        return replace(self, table=Table(columns))


@dataclass(frozen=True)
class Frozen:
    """An annotation as it was at a revision. hidden: the ids of objects that the limits leave out, sorted.

    journal_bytes: the size of the journal then.
    """

    rev: int
    journal_bytes: int
    pixels: Snapshot
    columns: Mapping[str, np.ndarray]
    hidden: np.ndarray
    state: State
    next_id: int


class Conflict(UsageError):
    """An edit of objects that have changed since the page has seen them."""


class Annotation:
    """The objects of an image and their history; see the module. Safe for threads.

    start: called for an image without a journal, and for one whose objects lie elsewhere (`Start.source`).

    Raises `FormatError` for a damaged journal, `InputError` for one of another image or whose objects have changed.
    """

    def __init__(self, path: Path, image_hw: tuple[int, int], start: Callable[[], Start]) -> None:
        self.lock, self.is_open = threading.RLock(), True
        self.image_hw = image_hw
        self.journal = Journal(path)
        self.table, self.state, self.rev = Table(), State(), 0
        self.uid, self.notes = uuid.uuid4().hex[:12], list[str]()
        self._done: list[_Entry] = []
        self._undone: list[_Entry] = []
        self._last_changed: dict[int, int] = {}
        self._recent: deque[tuple[int, tuple[Box, ...] | None, frozenset[int]]] = deque(maxlen=_REMEMBERED)
        self._edit_ids: deque[tuple[str, Applied]] = deque(maxlen=_REMEMBERED)
        self.chunks = Chunks(image_hw)
        try:
            if not self._replay(start):
                self._begin(start())
        except BaseException:
            self.journal.close()
            raise

    # --- what is there

    @property
    def is_edited(self) -> bool:
        """Whether the user has changed or accepted anything."""
        since = 0
        for k, entry in enumerate(self._done):
            since = k + (not entry.kept) if entry.is_prediction else since
        return len(self._done) > since or self.state.accepted

    def history(self) -> dict[str, list[str]]:
        """The names of what can be undone and redone, the next one last."""
        with self.lock:
            names = [[entry.name for entry in entries[-_REMEMBERED:]] for entries in (self._done, self._undone)]
            return {"undo": names[0], "redo": names[1]}

    def next_steps(self) -> dict[str, str | None]:
        """The names of what is undone and redone next."""
        return {
            "undo": self._done[-1].name if self._done else None,
            "redo": self._undone[-1].name if self._undone else None,
        }

    def snapshot(self) -> Frozen:
        """All as it is now, for threads that do not lock."""
        with self.lock:
            columns = self.table.columns()
            hidden = np.array(sorted(self.hidden()), np.uint32)
            size = self.journal.n_bytes
            return Frozen(self.rev, size, self.chunks.snapshot(), columns, hidden, self.state, self.table.next_id)

    def hidden(self) -> set[int]:
        """The ids of predicted objects that the limits leave out."""
        return self.table.hidden(self.state.min_score, self.state.min_area)

    def changed_since(self, ids: Iterable[int], rev: int) -> list[int]:
        """Those of these objects that were changed after a revision."""
        return [number for number in ids if self._last_changed.get(number, 0) > rev]

    def boxes_since(self, rev: int) -> Applied:
        """What was changed after a revision."""
        later = [entry for entry in self._recent if entry[0] > rev]
        known = len(later) == self.rev - rev and all(boxes is not None for _, boxes, _ in later)
        boxes = tuple(box for _, of_one, _ in later for box in of_one or ()) if known else ()
        ids = {number for _, _, numbers in later for number in numbers}
        rows = {number: self.table.get(number) for number in ids}
        return Applied(self.rev, boxes, rows, "", reload=not known or _is_much(boxes))

    def was_applied(self, edit_id: str | None) -> Applied | None:
        """The answer to an edit that was sent before (the answer was lost)."""
        return next((applied for known, applied in self._edit_ids if known == edit_id), None) if edit_id else None

    # --- changing

    def apply(self, change: Change, edit_id: str | None = None) -> Applied:
        """Make an edit; returns once it is on the disk. Raises `OutputError`, and changes nothing, if it cannot be."""
        with self.lock:
            for box, old, new in change.pixels:
                self.chunks.xor(box, old ^ new)
            try:
                self._complete_rows(change)
                before = self.state
                head: dict[str, Any] = {
                    "kind": "edit",
                    "rev": self.rev + 1,
                    "name": change.name,
                    "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "boxes": [list(box) for box, _, _ in change.pixels],
                    "rows": [[number, *pair] for number, pair in change.rows.items()],
                }
                if edit_id:
                    head["edit_id"] = edit_id
                if change.state is not None:
                    head["state"] = [asdict(before), asdict(change.state)]
                blobs = [packed(old ^ new) for _, old, new in change.pixels]
                offset = self.journal.append(head, blobs)
            except BaseException:
                for box, old, new in change.pixels:
                    self.chunks.xor(box, old ^ new)
                raise
            for number, (_, after) in change.rows.items():
                self.table.put(number, after)
            self.state = before if change.state is None else change.state
            self._done.append(_Entry(self.rev + 1, change.name, offset))
            self._undone.clear()
            rows = {number: after for number, (_, after) in change.rows.items()}
            applied = self._advanced(tuple(box for box, _, _ in change.pixels), rows, change.message)
            applied = replace(applied, is_state=change.state is not None)
            if edit_id:
                self._edit_ids.append((edit_id, applied))
            return applied

    def predict(self, start: Start) -> Applied:
        """Let new objects take the place of all but those drawn or changed by hand, as one edit.

        Of the new ones, those of which half or more is covered by objects that stay are left out.
        """
        from cellwright.serve.replace import replaced

        with self.lock:
            new = replaced(self, start)
            head = {
                "kind": "edit",
                "rev": self.rev + 1,
                "name": "predict",
                "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "boxes": [list(box) for box, _ in new.pixels],
                "rows": [[number, *pair] for number, pair in new.rows.items()],
                "state": [asdict(self.state), asdict(new.state)],
                "is_prediction": True,
                "kept": new.n_kept > 0,
            }
            record = Record(head, tuple(blob for _, blob in new.pixels))
            offset = self.journal.append(head, record.blobs)
            rows = self._play(record)
            self._done.append(_Entry(self.rev + 1, "predict", offset, True, new.n_kept > 0))
            self._undone.clear()
            boxes = tuple(box for box, _ in new.pixels)
            return replace(self._advanced(boxes, rows, new.message), is_state=True)

    def undo(self) -> Applied:
        """Take back the last edit. Raises `UsageError` if there is none."""
        with self.lock:
            if not self._done:
                raise UsageError("there is nothing to undo", expected="an edit of this image")
            entry = self._done[-1]
            applied = self._turn(entry, "undo", f"undone: {entry.name}")
            self._undone.append(self._done.pop())
            return applied

    def redo(self) -> Applied:
        """Make the edit again that was taken back last. Raises `UsageError` if there is none."""
        with self.lock:
            if not self._undone:
                raise UsageError("there is nothing to redo", expected="an edit that was undone")
            entry = self._undone[-1]
            applied = self._turn(entry, "redo", f"redone: {entry.name}")
            self._done.append(self._undone.pop())
            return applied

    def close(self) -> None:
        """Close the journal."""
        with self.lock:
            self.is_open = False
            self.journal.close()

    def _turn(self, entry: _Entry, kind: str, message: str) -> Applied:
        record = self.journal.record(entry.offset)
        self.journal.append({"kind": kind, "rev": self.rev + 1, "of": entry.rev})
        rows = self._play(record, back=kind == "undo")
        boxes = tuple(Box(*box) for box in record.head["boxes"])
        return replace(self._advanced(boxes, rows, message), is_state="state" in record.head)

    def _advanced(self, boxes: tuple[Box, ...], rows: dict[int, Row | None], message: str) -> Applied:
        self.rev += 1
        much = _is_much(boxes)
        self._recent.append((self.rev, None if much else boxes, frozenset(rows)))
        self._last_changed.update(dict.fromkeys(rows, self.rev))
        return Applied(self.rev, () if much else boxes, rows, message, reload=much)

    def _complete_rows(self, change: Change) -> None:
        """The rows of all objects whose pixels a change has, which are in place already."""
        counts: dict[int, int] = {}
        touched: dict[int, Box] = {}
        shrunk: set[int] = set()
        for box, old, new in change.pixels:
            differs = old != new
            for values, sign in ((old[differs], -1), (new[differs], 1)):
                numbers, times = np.unique(values, return_counts=True)
                for number, n in zip(numbers.tolist(), times.tolist(), strict=True):
                    if number:
                        counts[number] = counts.get(number, 0) + sign * n
                        of_pixels = _extent(new == number, box) if sign > 0 else box
                        touched[number] = touched.get(number, of_pixels).united(of_pixels)
                        shrunk |= {number} if sign < 0 else set()
        for number, box in touched.items():
            before = self.table.get(number)
            given = change.rows.get(number, (before, before))[1]
            row = change.drawn.get(number) or given
            if row is None:
                if counts[number]:
                    raise AssertionError(f"object {number} has pixels and no row")
                change.rows[number] = (before, None)
                continue
            area = (0 if before is None else before.area) + counts[number]
            if area == 0:
                change.rows[number] = (before, None)
                continue
            region = box if before is None else box.united(before.box)
            y0, x0, y1, x1 = _extent(self.chunks.read(region) == number, region) if number in shrunk else region
            manual = row.manual or number not in change.automatic
            change.rows[number] = (before, row._replace(y0=y0, x0=x0, y1=y1, x1=x1, area=area, manual=manual))

    # --- the journal

    def _begin(self, start: Start) -> None:
        head = {"kind": "begin", "version": VERSION, "uid": self.uid, "image_hw": list(self.image_hw)}
        if start.source is None:
            head |= {"rows": [[row.id, None, row] for row in start.table.all_rows()]}
        places = sorted(start.chunks)
        head |= {"name": start.name, "source": start.source, "chunks": places, "state": asdict(start.state)}
        self.journal.append(head, [start.chunks[place] for place in places])
        self._take(start)

    def _take(self, start: Start) -> None:
        self.chunks = Chunks(self.image_hw, start.base)
        for (row, column), data in start.chunks.items():
            self.chunks.put_packed(row, column, data)
        self.table, self.state = start.table, start.state
        if start.message:
            self.notes.append(start.message)

    def _replay(self, start: Callable[[], Start]) -> bool:
        """Do all that the journal says; False if it is empty."""
        entries: dict[int, _Entry] = {}
        is_begun = False
        for record in self.journal.read():
            head = record.head
            try:
                if not is_begun:
                    self._replay_begin(record, start)
                    is_begun = True
                    continue
                self.rev = int(head["rev"])
                if head["kind"] == "edit":
                    self._play(record)
                    kind = bool(head.get("is_prediction")), bool(head.get("kept"))
                    entries[self.rev] = _Entry(self.rev, str(head["name"]), record.offset, *kind)
                    self._done.append(entries[self.rev])
                    self._undone.clear()
                    if "edit_id" in head:
                        self._edit_ids.append((str(head["edit_id"]), Applied(self.rev, (), {}, "", reload=True)))
                else:
                    self._replay_turn(entries[int(head["of"])], head["kind"])
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise FormatError(
                    "the journal of the edits of this image is damaged",
                    where=self.journal.path,
                    got=f"a record at byte {record.offset} that makes no sense ({type(error).__name__})",
                    expected="what cellwright serve wrote",
                    remedy="restore this file from a backup, or move it to another folder",
                ) from error
        if self.journal.torn is not None:
            self.notes.append(
                f"the last edit was not complete when cellwright serve ended, and was never shown as saved; what there "
                f"is of it was moved to {self.journal.torn.name}"
            )
        return is_begun

    def _replay_begin(self, record: Record, start: Callable[[], Start]) -> None:
        head = record.head
        if head["kind"] != "begin" or head["version"] != VERSION:
            raise ValueError("no beginning")
        if list(head["image_hw"]) != list(self.image_hw):
            raise InputError(
                "the edits are of an image of another size",
                where=self.journal.path,
                got=f"{self.image_hw[0]} x {self.image_hw[1]}",
                expected=f"{head['image_hw'][0]} x {head['image_hw'][1]}",
                remedy="put the image back that was edited",
            )
        self.uid = str(head["uid"])
        if head["source"] is not None:
            begun = start()
            if begun.source != head["source"]:
                raise InputError(
                    "the predicted labels have changed since they were edited",
                    where=self.journal.path,
                    remedy="put the folder of the prediction back as it was, or begin a new project",
                )
            self._take(begun)
            return
        rows = [Row(*after) for _, _, after in head["rows"]]
        chunks = {(int(row), int(column)): blob for (row, column), blob in zip(head["chunks"], record.blobs)}  # noqa: B905
        self._take(Start(str(head["name"]), Table(columns_of(rows)), State.of(head["state"]), chunks))

    def _replay_turn(self, entry: _Entry, kind: str) -> None:
        source, target = (self._done, self._undone) if kind == "undo" else (self._undone, self._done)
        if not source or source[-1].rev != entry.rev:
            raise ValueError("not the last edit")
        self._play(self.journal.record(entry.offset), back=kind == "undo")
        target.append(source.pop())

    def _play(self, record: Record, *, back: bool = False) -> dict[int, Row | None]:
        """Do what a record says, or take it back; returns the rows that it set."""
        head = record.head
        for box, blob in zip(head["boxes"], record.blobs, strict=True):
            of_pixels = Box(*map(int, box))
            self.chunks.xor(of_pixels, unpacked(blob, of_pixels.hw))
        rows: dict[int, Row | None] = {}
        for number, before, after in head["rows"]:
            values = before if back else after
            rows[int(number)] = None if values is None else Row(*values)
            self.table.put(int(number), rows[int(number)])
            self.table.next_id = max(self.table.next_id, int(number) + 1)
        if "state" in head:
            self.state = State.of(head["state"][0 if back else 1])
        return rows


def _extent(mask: np.ndarray, region: Box) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y0, x0 = region.y0, region.x0
    return Box(y0 + int(rows[0]), x0 + int(columns[0]), y0 + int(rows[-1]) + 1, x0 + int(columns[-1]) + 1)


def _is_much(boxes: tuple[Box, ...]) -> bool:
    return len(boxes) > MAX_BOXES or sum(box.hw[0] * box.hw[1] for box in boxes) > MAX_ANSWER_PX
