"""A small job of a prediction folder: images, a segmenter that can be interrupted, and pictures of one colour."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image as Pillow

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.prediction.folder import PredictionFolder
from cellwright.prediction.image_writer import Pictures
from cellwright.prediction.job import Job
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import FilteredPredictor, SegmenterPredictor
from cellwright.prediction.run_folder import predict_into


def draw_images(root: Path) -> Path:
    """``a.png`` beside ``a.tif``, and ``deep/b.png``."""
    (root / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (20, 30)), ("deep/b.png", (16, 16))):
        Pillow.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / name)
    tifffile.imwrite(root / "a.tif", rng.integers(0, 9, (24, 24), dtype=np.uint16))
    return root


class Capped(SegmenterPredictor):
    """With a limit of 2 objects."""

    def predict(self, images):
        return [replace(prediction, model_cap=2) for prediction in super().predict(images)]


@dataclass
class Squares:
    """A segmenter that finds two overlapping squares in every image, and can be interrupted."""

    stop_at: int | None = None
    names: list = field(default_factory=list)

    def predict(self, images):
        self.names += [Path(image.path).name for image in images]
        if self.stop_at is not None and len(self.names) > self.stop_at:
            raise KeyboardInterrupt
        return [squares(image.image_hw) for image in images]


def squares(image_hw) -> Instances:
    dense = np.zeros((2, *image_hw), bool)
    dense[0, 2:8, 2:8] = True
    dense[1, 5:12, 5:12] = True
    boxes = np.array([[1.25, 2, 8.5, 8], [5, 5, 12.1, 12]], np.float32)
    masks = MaskSet.from_dense(dense)
    return Instances.from_masks(masks, scores=np.array([0.4, 0.8]), class_ids=np.array([0, 1]), boxes_xyxy=boxes)


PICTURES = Pictures(
    overlay=lambda image, objects, _: np.full((*image.image_hw, 3), len(objects), np.uint8),
    thumbnail=lambda image, cells: np.full((*image.image_hw, 3), 100 + len(cells), np.uint8),
    sheet=lambda tiles, title: np.full((10 * len(tiles), len(title), 3), 7, np.uint8),
    plate=lambda tiles, title: np.full((10 * len(tiles), len(title), 3), 7, np.uint8),
    counts=lambda names, counts, classes: np.full((len(names), 10 * len(classes), 3), int(counts.sum()), np.uint8),
    report=lambda folder, about_all: (about_all / "summary.csv").read_text(),
)


def job_for(sources, **changes) -> Job:
    facts = {"recipe_yaml": "name: test\n", "model": "m1", "options": PredictOptions()}
    return Job(tuple(sources), ("round", "long"), **{**facts, **changes})


def run(job, out, segmenter=None, *, overwrite=False, pictures=PICTURES, **options):
    predictor = FilteredPredictor(Capped(segmenter or Squares()), job.options)
    folder = PredictionFolder(out, job, pictures, overwrite=overwrite)
    return predict_into(folder, predictor, **options)


def files_in(folder: Path) -> list[str]:
    """All but those in ``.cellwright``, which contain times."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(file.as_posix() for file in files if file.parts[0] != ".cellwright")
