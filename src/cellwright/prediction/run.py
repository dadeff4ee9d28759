"""Predict a list of images into a folder: one after the other, each recorded as it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cellwright.core.errors import CellwrightError, InputError
from cellwright.core.image import Image
from cellwright.core.progress import Track, no_progress
from cellwright.prediction.predictor import Predictor
from cellwright.prediction.writer import Job, Makers, PredictionFolder


@dataclass(frozen=True)
class FolderReport:
    """What a job did.

    n_images: images with a result, of which n_resumed were there before this run. n_objects: objects in all of them.
    failures: (source id, error) of every image without a result. notes: what a user should know, one sentence each.
    """

    n_images: int
    n_resumed: int
    n_objects: int
    failures: tuple[tuple[str, CellwrightError], ...]
    notes: tuple[str, ...]


def predict_to_folder(
    predictor: Predictor,
    job: Job,
    out: Path,
    *,
    read: Callable[[Path], Image],
    makers: Makers,
    overwrite: bool = False,
    fail_fast: bool = False,
    track: Track = no_progress,
) -> FolderReport:
    """Leave the prediction folder ``out``; go on where the same job stopped.

    An image that cannot be read or does not fit the model is recorded in failures.csv and the rest goes on, unless
    ``fail_fast``: then its `InputError` is raised and the folder stays unfinished. Raises `OutputError` as
    `PredictionFolder`, and where the disk is full.
    """
    folder = PredictionFolder(out, job, makers, overwrite=overwrite)
    failures: list[tuple[str, CellwrightError]] = []
    n_resumed = 0
    for index, source in enumerate(track(job.sources, "predicting", len(job.sources))):
        if folder.is_done(index):
            n_resumed += 1
            continue
        try:
            image = read(source.path)
            outcome = predictor.outcomes([image])[0]
        except InputError as error:
            if fail_fast:
                raise
            folder.fail(index, error)
            failures.append((source.id, error))
            continue
        folder.write(index, image, outcome)
    rows = folder.finish()
    return FolderReport(
        n_images=len(rows),
        n_resumed=n_resumed,
        n_objects=sum(row["objects"] for row in rows),
        failures=tuple(failures),
        notes=_notes(rows),
    )


def _notes(rows: list[dict[str, object]]) -> tuple[str, ...]:
    def count(column: str) -> tuple[int, int]:
        values = [int(str(row[column])) for row in rows if row[column]]
        return len(values), sum(values)

    notes = []
    images, _ = count("model_cap_reached")
    if images:
        caps = max(int(str(row["model_cap_reached"])) for row in rows if row["model_cap_reached"])
        notes.append(f"{images} image(s) reached the model's own cap of {caps} objects: some may be missing")
    images, objects = count("left_out_max_objects")
    if images:
        notes.append(f"--max-objects left out {objects} object(s) in {images} image(s)")
    images, pixels = count("overlap_pixels_lost_in_label_image")
    if images:
        notes.append(
            f"{pixels} pixel(s) of overlapping objects in {images} image(s) went to the higher score in the label "
            "images; predictions.json keeps them all"
        )
    return (*notes, *_diameter_notes(rows))


def _diameter_notes(rows: list[dict[str, object]]) -> list[str]:
    """By which diameters images were resized."""
    sized = [row for row in rows if row["diameter_from"]]
    found = [float(str(row["diameter_px"])) for row in sized if row["diameter_px"] is not None]
    notes = []
    if found:
        low, high, source = min(found), max(found), sized[0]["diameter_from"]
        shown = f"diameter {low:.1f} px" if f"{low:.1f}" == f"{high:.1f}" else f"diameters {low:.1f} to {high:.1f} px"
        notes.append(f"{shown} ({source}){', each in summary.csv' if low < high else ''}")
    if len(found) < len(sized):
        notes.append(
            f"{len(sized) - len(found)} image(s) held nothing to measure a diameter on: seen at their own size"
        )
    limited = sum(row["network_scale_wanted"] is not None for row in sized)
    if limited:
        notes.append(
            f"{limited} image(s) were resized less than their diameter asks for (network_scale in summary.csv), which "
            "costs quality: large images of tiny objects are better cut into parts"
        )
    return notes
