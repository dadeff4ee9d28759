"""What each built-in format keeps, for the conformance suite of `cellwright.testing`."""

from __future__ import annotations

from pathlib import Path

from cellwright.core.dataset import Dataset
from cellwright.core.instances import Instances
from cellwright.data.formats import FORMATS, ReadOptions, WriteOptions
from cellwright.testing import Carries
from cellwright.testing.objects import CLASS_NAMES, draw_objects

TABLE = {"ids": False, "scores": False, "ignore": False, "classes": False, "partial_files": True}
CARRIES = {
    "coco": Carries(annotation_files="dataset.json"),
    "coco_results": Carries(ids=False, ignore=False, ground_truth=False, out="out.json"),
    "mask_folder": Carries(classes=False, scores=False, ignore=False, nested_ids=False),
    "class_masks": Carries(class_names=False, scores=False, ignore=False, overlaps=False),
    "label_images": Carries(classes=False, scores=False, ignore=False, overlaps=False),
    "cellpose": Carries(classes=False, scores=False, ignore=False, overlaps=False),
    "rle_csv": Carries(ignore=False, partial_files=True),
    "rle_csv_submission": Carries(**TABLE, overlaps=False),
    "dsb2018_csv": Carries(**TABLE),
    "ctc": Carries(
        classes=False,
        ids=False,
        numbered_through=True,
        scores=False,
        ignore=False,
        overlaps=False,
        names=("01/t000", "01/t001", "01/t002"),
        annotation_files="mask*.tif",
    ),
    "imagej_roi": Carries(),
    "geojson": Carries(),
    "yolo_seg": Carries(ids=False, scores=False, ignore=False, partial_files=True, annotation_files="*.txt"),
}


def draw(name: str, seed: int, **settings: object) -> Instances:
    """Objects without overlaps that the format of this name can store: predictions for a format of predictions only."""
    n_classes = 2 if CARRIES[name].classes else 1
    scored = not CARRIES[name].ground_truth
    return draw_objects(seed, **{"overlaps": False, "scored": scored, "n_classes": n_classes} | settings)  # type: ignore[arg-type]


def class_names(name: str) -> tuple[str, ...]:
    return CLASS_NAMES if CARRIES[name].classes else CLASS_NAMES[:1]


def write(name: str, dataset: Dataset, folder: Path) -> Path:
    """The output of a format's writer, with copies of the images."""
    out = folder / CARRIES[name].out
    FORMATS[name].write(dataset, out, WriteOptions(copy_images=True))
    return out


def read(name: str, out: Path, original: Dataset) -> Dataset:
    """What the format reads from that output."""
    names = None if CARRIES[name].class_names else original.class_names
    return FORMATS[name].read(out, ReadOptions(images=original, class_names=names))
