"""A prediction folder read back: a dataset whose objects carry scores."""

from __future__ import annotations

from pathlib import Path

from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError
from cellwright.data.formats import FORMATS
from cellwright.data.formats.contract import ReadOptions
from cellwright.prediction.writer import PREDICTIONS_NAME


def is_prediction_folder(path: Path) -> bool:
    """Whether ``path`` is a finished prediction folder."""
    return (path / PREDICTIONS_NAME).is_file()


def read_predictions(folder: Path) -> Dataset:
    """The predictions of a finished folder, lazily; sample ids are those that were predicted on.

    Images may be absent: their samples then have no image path. `InputError` where the folder is unfinished or none.
    """
    if not is_prediction_folder(folder):
        unfinished = (folder / ".progress" / "job.json").is_file()
        raise InputError(
            "these predictions are not finished" if unfinished else "no predictions here",
            where=folder,
            expected=PREDICTIONS_NAME,
            remedy="run the predict command again: it goes on" if unfinished else "make them with: cellwright predict",
        )
    return FORMATS["coco"].read(folder / PREDICTIONS_NAME, ReadOptions(require_images=False))
