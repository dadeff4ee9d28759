"""Cellpose's ``_seg.npy``: a pickled dictionary per image, which its GUI opens, corrects and saves.

Reading is that of `label_images`, by the restricted `read_npy_object`. What is written opens in the GUI of Cellpose 3
if the image lies beside it; the file that the GUI saves is read again.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset
from cellwright.core.files import atomic_path, plain_suffix
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.label_images import read_label_images
from cellwright.data.formats.label_io import LABEL_SUFFIXES, flat_labels
from cellwright.data.formats.label_pairs import CELLPOSE, label_stem
from cellwright.data.formats.paths import copy_image, first_files, output_path

# What the GUI shows of flows where there are none.
_NO_FLOWS: list[list[Any]] = [[], [], [], [], [[]]]


class CellposeSeg(Format):
    name = "cellpose"
    description = "Cellpose's _seg.npy beside the images, for its GUI; loses classes, scores, ignored regions, overlaps"
    published = True

    def sniff(self, path: Path) -> bool:
        """Whether the annotations are ``_seg.npy`` files, and no label images."""
        files = first_files(path)
        masks = [file for file in files if plain_suffix(file) in LABEL_SUFFIXES and label_stem(file) is not None]
        return any(file.name.endswith(CELLPOSE) for file in files) and not masks

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """As `LabelImages.read`."""
        return read_label_images(path, options, self.name)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/<sample id>_seg.npy`` with the ids as labels, and the image next to it if ``copy_images`` is set.

        Overlapping objects are flattened, with a warning. Classes, scores and ignored regions are lost.
        """
        written: list[Path] = []
        for sample in options.track(dataset, "writing _seg.npy", len(dataset)):
            target = output_path(out, sample.id, CELLPOSE)
            instances = sample.read_instances()
            labels = flat_labels(instances[~instances.ignore], sample.id)
            copied = copy_image(sample, output_path(out, sample.id, "")) if options.copy_images else []
            name = copied[0].name if copied else sample.image_path.name if sample.image_path else ""
            with atomic_path(target) as path:
                path.write_bytes(seg_file(labels, name))
            written += [target, *copied]
        return written


def seg_file(labels: np.ndarray, image_name: str) -> bytes:
    """The content of a ``_seg.npy``. labels: (H, W), 0 for background; image_name: of the image, without a folder."""
    areas = np.bincount(labels.ravel(), minlength=1)[1:]
    diameter_px = float(np.median(np.sqrt(4 / np.pi * areas[areas > 0]))) if areas.any() else 30.0
    dtype = np.uint16 if len(areas) < 1 << 16 else np.uint32
    content = {
        "masks": labels.astype(dtype),
        "outlines": np.where(_is_outline(labels), labels, 0).astype(dtype),
        "chan_choose": [0, 0],
        "ismanual": np.zeros(len(areas), bool),
        "filename": image_name,
        "flows": _NO_FLOWS,
        "est_diam": diameter_px,
    }
    file = io.BytesIO()
    np.save(file, np.array(content, dtype=object), allow_pickle=True)
    return file.getvalue()


def _is_outline(labels: np.ndarray) -> np.ndarray:
    """Which pixels (H, W) bool of objects have a neighbour of another label, or the edge of the image, at a side."""
    padded, inside = np.pad(labels, 1), (slice(1, -1), slice(1, -1))
    differs = [np.roll(padded, step, axis)[inside] != labels for axis in (0, 1) for step in (-1, 1)]
    return np.logical_or.reduce(differs) & (labels > 0)
