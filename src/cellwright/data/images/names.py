"""Which files are images, by their names."""

from __future__ import annotations

from cellwright.core.files import plain_suffix
from cellwright.data.images.raster import RASTER_SUFFIXES
from cellwright.data.images.vendor import is_readable

TIFF_SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".tf2", ".tf8"})
IMAGE_SUFFIXES = TIFF_SUFFIXES | RASTER_SUFFIXES

# Files that cellwright writes beside images; they are never used as input images.
IGNORE_MASK = "_ignore.png"  # x_ignore.png beside x.tif: where the image is not annotated
CELL_MASKS = "_cell_masks.tif"  # the cells of the nuclei in x_masks.tif
OUTPUT_ENDINGS = ("_masks.tif", "_overlay.png", "_plate.png", IGNORE_MASK)
OUTPUT_NAMES = frozenset({"contact_sheet.png", "counts.png", "plate.png", "pr_curve.png", "confusion.png"})


def is_image_name(name: str) -> bool:
    """Whether a name is that of an image that can be read (vendors' images, slides and Zarr with their extras)."""
    return plain_suffix(name) in IMAGE_SUFFIXES or is_readable(name)


def is_own_output(name: str) -> bool:
    """Whether a file name is that of an output of cellwright."""
    return name in OUTPUT_NAMES or name.endswith(OUTPUT_ENDINGS)
