"""The images of a prediction folder that were corrected after the prediction, as a report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.formats import FORMATS
from cellwright.data.formats.contract import ReadOptions
from cellwright.data.formats.predictions import images_in_conflict, without_conflicts
from cellwright.data.images.reading import Reading
from cellwright.evaluation.pairing import above_threshold
from cellwright.measurement.cells import measure_with_cells, same_ids
from cellwright.measurement.table import measure_instances
from cellwright.report.distributions import Columns
from cellwright.report.draw import draw_picture


@dataclass(frozen=True)
class Corrections:
    """The corrected objects of a prediction folder. samples: the images with corrections, by id.

    conflicts: images that cannot be read, and why. class_names: with those that corrections added. expand: the distance
    by which cells were made of the objects, which are nuclei; None for objects alone.
    """

    samples: Mapping[str, Sample]
    conflicts: Mapping[str, str]
    class_names: tuple[str, ...]
    reading: Reading
    expand: str | None = None

    @staticmethod
    def of(folder: Path) -> Corrections:
        """Read the folder, all of it. Objects are compared, not bytes: saving a file again is no correction."""
        dataset: Dataset = FORMATS["predictions"].read(folder, ReadOptions(require_images=False))
        failing = images_in_conflict(dataset)
        conflicts = {str(note.where): note.text for note in dataset.notes if note.where in failing}
        edited = {note.where for note in dataset.notes} - failing
        readable, _ = without_conflicts(above_threshold(dataset))
        samples = {sample.id: sample for sample in readable if sample.id in edited}
        expand = dataset.info.get("expand")
        expand = expand if isinstance(expand, str) else None
        return Corrections(samples, conflicts, dataset.class_names, Reading.recorded(dataset.info), expand)

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of summary.csv with the numbers of the corrected objects; of other images as it is."""
        known = dict(row)
        if len(self.class_names) > 1 and f"objects_{self.class_names[0]}" not in known:
            known[f"objects_{self.class_names[0]}"] = known["objects"]  # of a single class until now
        if row["image"] not in self.samples:
            return known
        objects = self._objects(row["image"])
        n, scores = len(objects), objects.scores
        counts = np.bincount(objects.class_ids, minlength=len(self.class_names)).tolist()
        if len(self.class_names) > 1:
            known |= {f"objects_{name}": count for name, count in zip(self.class_names, counts, strict=True)}
        return known | {
            "objects": n,
            "mean_score": float(scores.mean()) if n and scores is not None else None,
            "median_area_px": float(np.median(objects.masks.areas)) if n else None,
            "foreground_share": float(objects.masks.foreground().mean()),
        }

    def tables(self) -> list[Columns]:
        """The measurements of the corrected images; intensities where the image is there."""
        tables = []
        for sample in self.samples.values():
            objects, image = self._objects(sample.id), self._image(sample, chosen=False)
            given = {"class_names": self.class_names, "pixel_size_um": sample.pixel_size_um}
            cells = self._cells(sample, objects)
            if cells is None:
                table = measure_instances(objects, image, **given)
            else:
                table = measure_with_cells(same_ids(objects, cells), image, **given)
            tables.append({str(name): table[name].to_numpy() for name in table})
        return tables

    def _cells(self, sample: Sample, objects: Instances) -> Instances | None:
        if self.expand is None:
            return None
        return objects.expand(self.expand, pixel_size=sample.pixel_size_um, where=sample.id)

    def _objects(self, image_id: str) -> Instances:
        objects = self.samples[image_id].read_instances()
        return objects[~objects.ignore]

    def picture(self, image_id: str) -> np.ndarray:
        """A picture of a corrected image, uint8 RGB, on black if the image is missing."""
        sample = self.samples[image_id]
        image = self._image(sample, chosen=True)
        drawn_on = Image.from_array(np.zeros(sample.image_hw, np.uint8)) if image is None else image
        objects: Instances = sample.read_instances()
        cells = self._cells(sample, objects[~objects.ignore])
        return draw_picture(drawn_on, objects, class_names=self.class_names, cells=cells)

    def _image(self, sample: Sample, *, chosen: bool) -> Image | None:
        if sample.image_path is None or not sample.image_path.is_file():
            return None
        with suppress(InputError, UsageError):
            reading = self.reading.of(sample)
            image = reading.chosen(sample.image_path) if chosen else reading.read(sample.image_path)
            return image if image.image_hw == tuple(sample.image_hw) else None
        return None
