"""Every format that cellwright reads and writes, in one literal table."""

from __future__ import annotations

from pathlib import Path

from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError, did_you_mean
from cellwright.data.formats import (
    class_masks,
    coco,
    coco_results,
    geojson,
    image_folder,
    imagej_roi,
    label_images,
    mask_folder,
    rle_csv,
    xml_outlines,
)
from cellwright.data.formats.contract import Clutter, Format, ReadOptions, WriteOptions

__all__ = ["FORMATS", "Clutter", "Format", "ReadOptions", "WriteOptions", "format_named", "read_dataset", "sniff"]

FORMATS: dict[str, Format] = {
    "coco": coco.FORMAT,
    "coco_results": coco_results.FORMAT,
    "mask_folder": mask_folder.FORMAT,
    "class_masks": class_masks.FORMAT,
    "rle_csv": rle_csv.FORMAT,
    "rle_csv_submission": rle_csv.FORMAT_SUBMISSION,
    "dsb2018_csv": rle_csv.FORMAT_DSB2018,
    "label_images": label_images.FORMAT,
    "label_folder": label_images.FORMAT_ALONE,
    "xml_outlines": xml_outlines.FORMAT,
    "imagej_roi": imagej_roi.FORMAT,
    "geojson": geojson.FORMAT,
    "image_folder": image_folder.FORMAT,
}

# A folder may hold any number of files; a message names only a few.
SHOWN_ENTRIES = 8


def format_named(name: str) -> Format:
    """The format that ``--format`` or ``--to`` names; `UsageError` with the nearest name or all of them."""
    if name not in FORMATS:
        raise UsageError("no such format", got=repr(name), remedy=did_you_mean(name, FORMATS))
    return FORMATS[name]


def sniff(path: Path) -> Format:
    """The one format that fits ``path``. `InputError` says what was found where none or several fit."""
    if not path.exists():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    if path.is_dir() and coco.is_own_folder(path):
        return coco.FORMAT  # a prediction folder also holds its label images, outlines and tables
    fitting = [one for one in FORMATS.values() if one.sniff(path)]
    specific = [one for one in fitting if not one.generic]
    chosen = specific or fitting
    if len(chosen) == 1:
        return chosen[0]
    known = "\n".join(f"    {one.name}: {one.describe}" for one in FORMATS.values())
    if chosen:
        names = ", ".join(one.name for one in chosen)
        raise InputError(
            "several formats fit", where=path, got=names, remedy=f"say which with --format, one of {names}"
        )
    inner = [folder.name for folder in sorted(path.iterdir()) if folder.is_dir()] if path.is_dir() else []
    inner = [name for name in inner if any(one.sniff(path / name) for one in FORMATS.values())][:SHOWN_ENTRIES]
    remedy = f"give one of the folders in it: {', '.join(inner)}" if inner else None
    raise InputError("no known format", where=path, got=_found(path), expected=f"one of\n{known}", remedy=remedy)


def read_dataset(path: Path, options: ReadOptions | None = None, *, name: str | None = None) -> Dataset:
    """The dataset at ``path``, in the format called ``name`` or the one that fits."""
    chosen = sniff(path) if name is None else format_named(name)
    return chosen.read(path, ReadOptions() if options is None else options)


def _found(path: Path) -> str:
    if path.is_file():
        return f"a file {path.name} of {path.stat().st_size} bytes"
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    more = f" and {len(entries) - SHOWN_ENTRIES} more" if len(entries) > SHOWN_ENTRIES else ""
    return "a folder with " + (", ".join(entries[:SHOWN_ENTRIES]) + more if entries else "nothing in it")
