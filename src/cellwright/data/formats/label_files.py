"""Which image files in a folder are annotations of the others: `labels_among`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellwright.core.errors import InputError
from cellwright.core.files import is_zarr_folder, stem_of
from cellwright.data.formats.ctc import place_of
from cellwright.data.formats.label_images import file_looks_annotated, image_stem
from cellwright.data.formats.label_pairs import LabelLayout, find_pairs
from cellwright.data.images.zarr import is_label_zarr

# Folders of masks, and the folder of images beside each.
_MASK_FOLDERS = {"masks": "images", "SegmentationObject": "JPEGImages", "SegmentationClass": "JPEGImages"}
_MAX_DECODED = 4


def labels_among(files: Sequence[Path], root: Path) -> set[Path]:
    """The label images and masks among image files below ``root``, which belong to other images there.

    They are recognised by their names and folders. None are if a few of them, which are decoded, do not look like
    labels or masks. OME-Zarr labels say what they are.
    """
    marked = {file for file in files if is_zarr_folder(file) and is_label_zarr(file)}
    files = [file for file in files if file not in marked]
    try:
        layout = find_pairs(files, root)
    except InputError:  # ambiguous names
        layout = LabelLayout()
    stems = {(file.parent, stem_of(file)) for file in files}
    labels = set(layout.unread)
    for pair in layout.pairs:
        if pair.image is not None or (pair.labels.parent, image_stem(pair)) in stems:
            labels.add(pair.labels)
    labels |= {file for file in files if _is_mask(file) or place_of(file) is not None}
    labels &= set(files)
    step = max(len(labels) // _MAX_DECODED, 1)
    decoded = sorted(labels)[::step][:_MAX_DECODED]
    is_rest = len(labels) < len(files) and all(file_looks_annotated(file) is not False for file in decoded)
    return (labels if is_rest else set()) | marked


def _is_mask(file: Path) -> bool:
    images = _MASK_FOLDERS.get(file.parent.name)
    return images is not None and (file.parent.parent / images).is_dir()
