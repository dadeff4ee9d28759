"""Which planes and time points an image file holds, for predictions of each of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import plain_suffix
from cellwright.data.images.names import TIFF_SUFFIXES
from cellwright.data.images.tiff import Choice, chosen_image, damaged_image, open_tiff, with_page_channels
from cellwright.data.images.vendor import PLUGINS, scenes_of
from cellwright.data.images.zarr import is_zarr, zarr_images

if TYPE_CHECKING:
    from cellwright.data.images.tiff_images import TiffImage


@dataclass(frozen=True)
class StackFacts:
    """The planes (z) and time points (t) of an image, by their numbers in the file; one of each for a plain image.

    z_step_um: the distance of two planes in microns; None if the file does not say it.
    """

    z: tuple[int, ...] = (0,)
    t: tuple[int, ...] = (0,)
    z_step_um: float | None = None


def stack_facts(path: Path, choice: Choice) -> StackFacts:
    """The planes and time points of an image file; nothing is decoded. Unnamed pages are planes.

    Raises `InputError` if the file cannot be read, or if a choice among its images is missing.
    """
    image = _image(path, choice)
    if image is None:
        return StackFacts()
    planes = tuple(image.numbers.get(image.stack_axis, (0,)))
    return StackFacts(planes, tuple(image.numbers.get("T", (0,))), image.z_step_um)


def _image(path: Path, choice: Choice) -> TiffImage | None:
    """The image that is meant; None for a file of one plane."""
    from cellwright.data.images.tiff_images import images_of

    if is_zarr(path):
        images, choice = zarr_images(path, choice)
    elif plain_suffix(path) in PLUGINS:
        images = scenes_of(path)
    elif plain_suffix(path) in TIFF_SUFFIXES:
        with open_tiff(path) as tif:
            try:
                images = images_of(tif, path, merge_pages=choice.series is None)
                return with_page_channels(chosen_image(images, choice, path)[0], choice)
            except (InputError, UsageError):
                raise
            except Exception as error:  # a damaged directory raises IndexError, struct.error, ValueError, ...
                raise damaged_image(path, error) from error
    else:
        return None
    return with_page_channels(chosen_image(images, choice, path)[0], choice) if images else None
