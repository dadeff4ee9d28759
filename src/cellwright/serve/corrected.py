"""``corrected/``: what was corrected on the page as a dataset, which every command reads.

`dataset.json` has the objects with their classes, and the regions that were not annotated in its `info`; beside it
lies a label image for each image. Both are written in the background, shortly after the last edit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, UsageError
from cellwright.core.files import atomic_path
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.core.memory import return_freed_memory
from cellwright.serve.annotation import Frozen
from cellwright.serve.edits import Points, box_around, inside
from cellwright.serve.layer import CHUNK, Box

if TYPE_CHECKING:
    from cellwright.serve.project import ImageRecord, Project

_IDLE_S, _LONGEST_S = 1.5, 30.0
_REGION_PX, _LARGE_PX = 2048, 1 << 24
_log = logging.getLogger(__name__)


class Corrected:
    """Writes the dataset of a project; see the module."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._changed: set[str] = set()
        self._lock, self._writing = threading.Condition(), threading.Lock()
        self._last, self._first, self._took_s = 0.0, 0.0, 0.0
        self._ended = False
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name="cellwright autosave", daemon=True)
        self._thread.start()

    def schedule(self, image_id: str) -> None:
        """Write an image again soon."""
        with self._lock:
            self._last = time.monotonic()
            if not self._changed:
                self._first = self._last
            self._changed.add(image_id)
            self._lock.notify()

    def is_waiting(self, image_id: str) -> bool:
        """Whether an image is to be written."""
        return image_id in self._changed

    def save(self, ids: Sequence[str] | None = None) -> Path:
        """Write all that has changed now; see `Project.save_corrected`."""
        self._write(ids)
        if not (self._project.corrected / "dataset.json").is_file():
            raise UsageError(
                "no image was corrected yet", expected="an image with an edit, or one that was accepted as it is"
            )
        return self._project.corrected

    def close(self) -> None:
        """Write what is left, and stop."""
        with self._lock:
            self._ended = True
            self._lock.notify()
        self._thread.join(timeout=60)
        self._write_quietly()

    def _run(self) -> None:
        while not self._ended:
            with self._lock:
                self._lock.wait_for(lambda: self._ended or bool(self._changed))
                if self._ended:
                    return
                now, rest = time.monotonic(), max(_IDLE_S, 5 * self._took_s)
                due = min(self._last + rest, max(self._first + _LONGEST_S, self._first + rest))
                if now < due:
                    self._lock.wait(due - now)
                    continue
            self._write_quietly()

    def _write_quietly(self) -> None:
        if not self._changed:
            return
        try:
            self._write(None)
            self.error = None
        except CellwrightError as error:  # the edits are in the journal; it is tried again after the next one
            self.error = str(error)
            _log.warning("corrected/ could not be written: %s", error)

    def _write(self, ids: Sequence[str] | None) -> None:
        with self._writing:
            began = time.monotonic()
            with self._lock:
                changed, self._changed = self._changed, set()
            try:
                self._write_images(changed | {*(ids or ())}, {*(ids or ())})
            except BaseException:
                with self._lock:
                    self._changed |= changed
                raise
            self._took_s = time.monotonic() - began

    def _write_images(self, changed: set[str], asked: set[str]) -> None:
        project = self._project
        folder = project.corrected
        for image_id in sorted(changed):
            self._refresh(image_id)
        before = _before(folder)
        wanted = [record for record in project.images if record.is_corrected or record.id in asked]
        dropped = [name for name in before if name not in {record.id for record in wanted}]
        if not changed and not dropped and len(before) == len(wanted):
            return
        samples = []
        for record in wanted:
            if record.id not in changed and record.id in before:
                samples.append(before[record.id])
            else:
                samples.append(self._sample(record))
        if not samples and not before:
            project.save()
            return
        dataset = Dataset(tuple(samples), project.classes, root=folder, info=_reading_of(wanted))
        from cellwright.data.formats import FORMATS, WriteOptions

        FORMATS["coco"].write(dataset, folder, WriteOptions())
        if any(sample.image_hw[0] * sample.image_hw[1] > _LARGE_PX for sample in samples):
            return_freed_memory()
        for name in dropped:
            (folder / f"{name}_masks.tif").unlink(missing_ok=True)
        project.save()

    def _refresh(self, image_id: str) -> None:
        """Whether an image is corrected, as its journal says: after a kill, the record of the project may be older."""
        project = self._project
        try:
            record = project.image(image_id)
            annotation = project.annotation(image_id)
        except CellwrightError as error:  # it was removed, or cannot be read: the page says so when it is opened
            _log.info("%s: %s", image_id, error)
            return
        project.note_counts(record, annotation)
        if not record.is_corrected:
            record.journal_bytes = annotation.journal.n_bytes

    def _sample(self, record: ImageRecord) -> Sample:
        frozen = self._project.annotation(record.id).snapshot()
        record.journal_bytes = frozen.journal_bytes
        write_labels(self._project.corrected / f"{record.id}_masks.tif", frozen)
        path, hw = self._project.path_of(record), frozen.pixels.image_hw
        return Sample(record.id, path, hw, _Loaded(instances_of(frozen)), source="cellwright serve")


@dataclass(frozen=True, eq=False)
class _Loaded:
    instances: Instances

    def __call__(self) -> Instances:
        return self.instances


def _before(folder: Path) -> dict[str, Sample]:
    """What the dataset has, by id."""
    from cellwright.api.read import read_dataset

    if not (folder / "dataset.json").is_file():
        return {}
    try:
        return {sample.id: sample for sample in read_dataset(folder, require_images=False)}
    except CellwrightError:  # it is made from the edits, so it can be written again
        return {}


def _reading_of(records: Sequence[ImageRecord]) -> dict[str, object]:
    """The choice of channel, plane and so on, if it is the same for all images."""
    readings = [record.reading for record in records]
    return dict(readings[0]) if readings and all(reading == readings[0] for reading in readings) else {}


def instances_of(frozen: Frozen) -> Instances:
    """The objects that are shown, as annotations; and the regions that are not annotated, of no class."""
    hw = frozen.pixels.image_hw
    parts, numbers = [MaskSet.empty(hw)], [np.zeros(0, np.int64)]
    for box, pixels in frozen.pixels:
        if pixels is not None:
            masks, ids = MaskSet.from_label_map(pixels)
            parts.append(masks.shift(box.y0, box.x0, hw))
            numbers.append(ids)
    together = np.concatenate(numbers)
    masks, ids = concat(parts).union(together), np.unique(together)
    shown = ~np.isin(ids, frozen.hidden)
    class_ids = frozen.columns["class_id"][np.searchsorted(frozen.columns["id"], ids[shown])].astype(np.int64)
    regions = concat([MaskSet.empty(hw), *(part for region in frozen.state.regions for part in _filled(region, hw))])
    return Instances.from_masks(
        concat([masks[shown], regions]),
        ids=np.concatenate([ids[shown], np.arange(frozen.next_id, frozen.next_id + len(regions))]),
        class_ids=np.concatenate([class_ids, np.full(len(regions), NO_CLASS)]),
        ignore=np.concatenate([np.zeros(len(class_ids), bool), np.ones(len(regions), bool)]),
    )


def _filled(region: Points, hw: tuple[int, int]) -> Iterator[MaskSet]:
    """The pixels of a region, in parts, for it may be most of a large image."""
    around = box_around(region, 0).clipped(hw)
    for y0 in range(around.y0, around.y1, _REGION_PX):
        for x0 in range(around.x0, around.x1, _REGION_PX):
            box = Box(y0, x0, min(y0 + _REGION_PX, around.y1), min(x0 + _REGION_PX, around.x1))
            mask = inside(region, box)
            if mask.any():
                yield MaskSet.from_dense(mask[None]).shift(y0, x0, hw)


def write_labels(path: Path, frozen: Frozen) -> None:
    """Write the label image, uint32, without the objects that are hidden; chunk by chunk."""
    import tifffile

    height, width = frozen.pixels.image_hw
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            frozen.pixels.packed(frozen.hidden),  # zlib, as in the file
            shape=(height, width),
            dtype=np.uint32,
            tile=(CHUNK, CHUNK),
            compression="zlib",
            byteorder="<",
            photometric="minisblack",
            metadata=None,
            bigtiff=height * width * 4 > 1 << 31,
        )
