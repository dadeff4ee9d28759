"""Results of the Cell Tracking Challenge: ``01_RES/mask000.tif`` and the table of tracks ``res_track.txt``.

A row of the table is a track: its label, its first and its last frame, and the label of its parent, or 0.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, OutputError
from cellwright.core.files import atomic_path, read_text, write_text
from cellwright.core.ignored import objects_only
from cellwright.core.instances import Instances
from cellwright.core.text import count
from cellwright.data.formats.contract import WriteOptions
from cellwright.data.formats.label_io import flat_labels
from cellwright.data.formats.paths import output_path

_log = logging.getLogger(__name__)

TRACKS = "tracks"  # in the info of a dataset: the table of each sequence
MAX_LABEL = 65535
_FRAME_ID = re.compile(r"(?:(?P<above>.*)/)?t(?P<number>\d+)")
_MIN_DIGITS = 3


def read_tracks(path: Path) -> list[list[int]]:
    """The rows of ``res_track.txt`` or ``man_track.txt``: label, first frame, last frame, parent.

    Raises `FormatError` that names the line.
    """
    rows: list[list[int]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where, expected = f"{path}, line {number}", "label, first frame, last frame and parent (0 for none)"
        if len(words) != 4 or not all(re.fullmatch(r"\d{1,9}", word) for word in words):
            raise FormatError("not a track", where=where, got=repr(line[:60]), expected=expected)
        row = [int(word) for word in words]
        if not row[0] or row[1] > row[2]:
            raise FormatError("not a track", where=where, got=repr(line[:60]), expected=expected)
        rows.append(row)
    return rows


def write_results(dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
    """Write masks and tables of all sequences; see `CellTrackingChallenge.write`."""
    import tifffile

    sequences = _sequences(dataset)
    known = dataset.info.get(TRACKS)
    tables = [_Tracks.of(name, known) for name, _ in sequences]
    for table, (name, frames) in zip(tables, sequences, strict=True):
        table.check(name, [sample for _, sample in frames])
    digits = max([_MIN_DIGITS, *(len(number) for _, frames in sequences for number, _ in frames)])
    written: list[Path] = []
    progress = iter(options.track(dataset, "writing label images", len(dataset)))
    for table, (name, frames) in zip(tables, sequences, strict=True):
        for number, sample in frames:
            next(progress, None)
            labels = flat_labels(table.numbered(objects_only(sample.read_instances())), sample.id)
            table.add(int(number), labels)
            written.append(output_path(out, f"{name}_RES/mask{number.zfill(digits)}", ".tif"))
            with atomic_path(written[-1]) as temporary:
                tifffile.imwrite(
                    temporary, labels.astype(np.uint16), compression="zlib", photometric="minisblack", metadata=None
                )
        written.append(output_path(out, f"{name}_RES/res_track", ".txt"))
        write_text(written[-1], "".join(f"{' '.join(map(str, row))}\n" for row in table.rows()))
    for _ in progress:
        pass
    lost = sum(not table.is_linked for table in tables)
    if lost:
        _log.warning(
            "there are no tracks in these data, so each object became a track of one frame (%s); link them with a "
            "tracking tool", count(lost, "sequence"),
        )  # fmt: skip
    return written


def _sequences(dataset: Dataset) -> list[tuple[str, list[tuple[str, Sample]]]]:
    """The name of each sequence, such as ``01``, and its frames with their numbers."""
    places = [_FRAME_ID.fullmatch(sample.id) for sample in dataset]
    named: dict[str, list[tuple[str, Sample]]] = {}
    if all(place is not None and (place["above"] or "01").rpartition("/")[2].isdecimal() for place in places):
        for place, sample in zip(places, dataset, strict=True):
            assert place is not None
            named.setdefault(place["above"] or "01", []).append((place["number"], sample))
        ordered = [(name, sorted(frames, key=lambda frame: int(frame[0]))) for name, frames in sorted(named.items())]
        if all(len({int(number) for number, _ in frames}) == len(frames) for _, frames in ordered):
            return ordered
    folders: dict[str, list[Sample]] = {}
    for sample in dataset:
        folders.setdefault(sample.id.rpartition("/")[0], []).append(sample)
    sequences = []
    for k, samples in enumerate(folders.values(), start=1):
        samples.sort(key=lambda sample: _natural(sample.id))
        sequences.append((f"{k:02d}", [(str(number), sample) for number, sample in enumerate(samples)]))
    if len(dataset):
        name, frames = sequences[0]
        _log.warning(
            "the images are not called like frames (01/t000), so they were numbered in the order of their names: "
            "%s/t000 is %s", name, ", ".join(f"{sample.id}" for _, sample in frames[:1]),
        )  # fmt: skip
    return sequences


def _natural(name: str) -> list[Any]:
    """Sorts a2 before a10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


@dataclass
class _Tracks:
    """The labels of one sequence while it is written.

    parents: the parent of each known label. is_linked: whether the ids of objects are the numbers of tracks.
    seen: first and last frame of each label that was written.
    """

    is_linked: bool
    parents: dict[int, int]
    seen: dict[int, list[int]] = field(default_factory=dict)
    used: int = 0

    @staticmethod
    def of(name: str, known: object) -> _Tracks:
        """The tracks that a dataset records for a sequence. Raises `FormatError` if they are no table."""
        rows = known.get(name) if isinstance(known, Mapping) else None
        if rows is None:
            return _Tracks(False, {})
        is_table = isinstance(rows, list) and all(
            isinstance(row, list) and len(row) == 4 and all(type(value) is int for value in row) for row in rows
        )
        if not is_table:
            got, expected = repr(rows)[:80], "rows of label, first frame, last frame and parent"
            raise FormatError(f"the dataset records invalid tracks of sequence {name}", got=got, expected=expected)
        return _Tracks(True, {label: parent for label, _, _, parent in rows})

    def check(self, name: str, samples: Sequence[Sample]) -> None:
        """Raise `OutputError` if the labels of a sequence do not fit into 16 bits; prepares `numbered`."""
        n_new, highest = 0, max(self.parents, default=0)
        for sample in samples:
            ids = objects_only(sample.read_instances()).ids
            n_new += sum(number not in self.parents for number in ids.tolist())
        self.used = highest if self.is_linked else 0
        if self.used + n_new <= MAX_LABEL:
            return
        raise OutputError(
            "too many tracks for the 16-bit label images of the Cell Tracking Challenge",
            where=f"sequence {name}",
            got=f"labels up to {self.used + n_new:,}",
            expected=f"at most {MAX_LABEL:,}",
            remedy="link the objects of the frames with a tracking tool, export fewer frames, or write label_images, "
            "which have 32 bits",
        )

    def numbered(self, instances: Instances) -> Instances:
        """The objects with their labels as ids: tracks keep theirs, all others get new ones."""
        ids = []
        for number in instances.ids.tolist():
            self.used += number not in self.parents
            ids.append(number if number in self.parents else self.used)
        return replace(instances, ids=np.array(ids, np.int64))

    def add(self, number: int, labels: np.ndarray) -> None:
        """Record the labels of a frame as written."""
        for label in np.unique(labels[labels > 0]).tolist():
            self.seen.setdefault(int(label), [number, number])[1] = number

    def rows(self) -> list[tuple[int, int, int, int]]:
        """The rows of the table; a parent counts only if it ends before its child begins."""
        rows = []
        for label, (first, last) in sorted(self.seen.items()):
            parent = self.parents.get(label, 0)
            is_before = parent in self.seen and self.seen[parent][1] < first
            rows.append((label, first, last, parent if is_before else 0))
        return rows
