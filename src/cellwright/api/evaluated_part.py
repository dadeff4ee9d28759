"""The part of an image that is evaluated: regions that were chosen, and what of a tile job was predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.core.errors import UsageError
from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.result_folders import is_job_folder
from cellwright.core.text import count, listed
from cellwright.evaluation.pairing import PairedImages

if TYPE_CHECKING:
    from cellwright.prediction.tiling.regions import Regions


@dataclass(frozen=True, eq=False)
class EvaluatedPart:
    """Which objects are evaluated, by their anchor: those in all of ``regions`` and in none of the ``failed`` tiles."""

    regions: tuple[Regions, ...]
    failed: tuple[Window, ...]

    def is_outside(self, objects: Instances) -> np.ndarray:
        """Which objects (N,) bool are not evaluated."""
        from cellwright.prediction.tiling.seams import anchors_of

        ys, xs = anchors_of(objects.masks).T
        outside = np.zeros(len(objects), bool)
        for regions in self.regions:
            outside |= ~regions.contain(ys, xs)
        for y0, x0, y1, x1 in self.failed:
            outside |= (ys >= y0) & (ys < y1) & (xs >= x0) & (xs < x1)
        return outside

    @property
    def words(self) -> list[str]:
        """The regions in words, which identify them."""
        return [word for regions in self.regions for word in regions.words]

    def of(self, images: PairedImages) -> PairedImages:
        """The images without the objects elsewhere, with a note."""
        why = []
        if self.regions:
            why.append(f"outside {listed(self.words)}")
        if self.failed:
            why.append(f"in {count(len(self.failed), 'tile')} that could not be predicted")
        return images.without(self.is_outside, f"objects {' and '.join(why)} are left out")


def find_part(
    paths: Iterable[Path], roi: Sequence[str], images_hw: Sequence[tuple[int, int]]
) -> tuple[EvaluatedPart | None, list[Note]]:
    """What is evaluated of predictions at ``paths``; None for everything. images_hw: the sizes of the images.

    roi: as `roi_words` gives it. Raises `UsageError` for regions where there are several images.
    """
    from cellwright.prediction.tiling.job import JobFacts
    from cellwright.prediction.tiling.regions import Regions, find_regions

    regions, failed, notes = list[Regions](), dict[Window, None](), list[Note]()
    if roi:
        if len(images_hw) != 1:
            got, remedy = count(len(images_hw), "image"), "evaluate one image, or omit `roi`"
            raise UsageError("`roi` is for one image", got=got, remedy=remedy)
        chosen, notes = find_regions(roi, images_hw[0])
        regions += [] if chosen is None else [chosen]
    for path in paths:
        if not is_job_folder(path):
            continue
        job = JobFacts.read(path)
        regions += [] if job.regions is None else [job.regions]
        for failure in job.ledger(path).failures():
            failed[job.grid.source_window(job.grid[failure.tile].core)] = None
    part = EvaluatedPart(tuple(regions), tuple(failed))
    return (part if regions or failed else None), notes
