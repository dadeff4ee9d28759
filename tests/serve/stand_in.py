"""A project for tests of jobs: images, a dataset of corrections and predictions on the disk, without the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.data.synthetic import draw_field
from cellwright.serve.facts import ImageFacts, write_dataset


class DrawnProject:
    """Drawn fields of nuclei; those in ``corrected`` have their true objects as corrections."""

    def __init__(
        self, folder: Path, n_images: int, corrected: Sequence[int] = (), hw: tuple[int, int] = (96, 128)
    ) -> None:
        self.folder, self.class_names = folder, ("nucleus",)
        self.corrected = folder / "corrected"
        self.truth: dict[str, Instances] = {}
        self.images: dict[str, ImageFacts] = {}
        self.marked: list[str] = []
        images = folder.parent / "my images"
        images.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        for k in range(n_images):
            image, truth = draw_field(k, hw, 8)
            path = images / f"field {k}.png"
            if not path.exists():
                cv2.imwrite(str(path), image.data[:, :, ::-1])
            self.truth[f"field_{k}"] = truth
            self.images[f"field_{k}"] = ImageFacts(f"field_{k}", path, hw, "new")
        self.correct(*(f"field_{k}" for k in corrected))

    def correct(self, *ids: str, objects: Callable[[Instances], Instances] = lambda truth: truth) -> None:
        """Store the true objects, after ``objects``, as corrections."""
        for one in ids:
            self.truth[one] = objects(self.truth[one])
            self.images[one] = dataclasses.replace(self.images[one], state="corrected")

    def image_facts(self) -> list[ImageFacts]:
        return list(self.images.values())

    def save_corrected(self) -> None:
        samples = [
            Sample(image.id, image.path, image.hw, Loaded(self.truth[image.id]))
            for image in self.images.values()
            if image.is_corrected
        ]
        if samples:
            write_dataset(Dataset(tuple(samples), self.class_names), self.corrected)

    def adopt(self, folder: Path, ids: Sequence[str]) -> None:
        for one in ids:
            self.images[one] = dataclasses.replace(self.images[one], state="predicted", prediction=folder)

    def set_training(self, ids: Sequence[str], *, is_on: bool) -> None:
        self.marked.append(f"{' '.join(ids)} {is_on}")


def results(jobs: Any) -> list[tuple[str, str]]:
    """Id and state of all jobs."""
    return [(job["id"], job["state"]) for job in jobs.all()]
