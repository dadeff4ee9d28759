"""Find image files and read them as `Image`: pixels with the values of the file, named channels, pixel size.

TIFF is decoded in `cellwright.data.images.tiff`, PNG, JPEG, BMP and WebP in `cellwright.data.images.raster`. An image
of three channels stays as it is; `cellwright.data.network_input` fits it to a network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cellwright.core.claim import CONTROL, Claim
from cellwright.core.errors import InputError
from cellwright.core.files import UNLISTED, plain_suffix, require_regular, walk
from cellwright.core.geometry import MAX_SIDE
from cellwright.core.image import Image
from cellwright.core.result_folders import JOB_FILE, TILE_JOB, kind_of_result
from cellwright.data.images.calibration import as_pixel_size
from cellwright.data.images.channels import ChannelChoice, select_channels
from cellwright.data.images.names import IMAGE_SUFFIXES, TIFF_SUFFIXES, is_image_name, is_own_output
from cellwright.data.images.passed_over import passed_over_note, results_note
from cellwright.data.images.raster import RASTER_SUFFIXES, not_an_image, raster_header, read_raster
from cellwright.data.images.slide import SLIDE_SUFFIXES, SlideSource, parts_of_slides
from cellwright.data.images.source import check_no_stack, open_image, read_whole
from cellwright.data.images.tiff import AnyPlane, AnyTime, Choice, damaged_image, read_tiff, read_tiff_header
from cellwright.data.images.vendor import PLUGINS, read_vendor, read_vendor_header
from cellwright.data.images.zarr import has_zarr, is_label_zarr, is_zarr, read_zarr_header

# How far above a file results are looked for: those of images in subfolders lie in subfolders.
_LEVELS = 4


@dataclass(frozen=True)
class ImageHeader:
    """The facts in the header of an image file.

    image_hw: (height, width) upright, as `read_image` returns it. has_alpha: whether the last of the channels is
    transparency. orientation: of EXIF, 1 to 8; 5 to 8 were stored with height and width exchanged.
    """

    image_hw: tuple[int, int]
    n_channels: int
    bits: int
    orientation: int = 1
    has_alpha: bool = False


# --- reading --------------------------------------------------------------------------------------------------------


def read_image(
    path: Path | str,
    *,
    channel: ChannelChoice | None = None,
    z: AnyPlane | None = None,
    t: AnyTime | None = None,
    series: int | str | None = None,
    pixel_size: float | Sequence[float] | None = None,
    keep_channels: bool = False,
    level: int = 0,
) -> Image:
    """Read an image file, slide or Zarr folder with the values of the file and all channels.

    channel: the channels to keep (see `select_channels`); None keeps all.
    z: 0-based plane of a z stack, or "max" or "mean" of all planes. t: 0-based time point.
    series: the number or the name of one image in a file of several.
    pixel_size: microns per pixel, one number or (y, x), instead of what the file says.
    keep_channels: ``channel`` only tells that channels will be chosen later; all are kept.
    level: 0 for the full size, or one of the smaller copies that the file has (`open_image` lists them).

    What was assumed is in ``notes``. Raises `InputError` if the file does not exist, or if a required choice is missing
    (it asks for all of them), and `FormatError` if the file is truncated, damaged, or in a colour space that cannot be
    read. ``docs/formats.md`` lists what is read, refused and assumed.
    """
    path = Path(path)
    suffix = plain_suffix(path)
    if level or is_zarr(path) or suffix in SLIDE_SUFFIXES:
        source = open_image(
            path, channel=channel, z=z, t=t, series=series, pixel_size=pixel_size, keep_channels=keep_channels
        )
        return read_whole(source, level)
    if suffix in TIFF_SUFFIXES:
        image = read_tiff(path, Choice(z, t, series, channel is not None))
    elif suffix in PLUGINS:
        image = read_vendor(path, Choice(z, t, series, channel is not None))
    elif suffix in RASTER_SUFFIXES:
        check_no_stack(path, Choice(z, t, series))
        image = read_raster(path)
    else:
        raise not_an_image(path, IMAGE_SUFFIXES)
    if (size := as_pixel_size(pixel_size)) is not None:
        image = dataclasses.replace(image, pixel_size_um=size)
    return image if channel is None or keep_channels else select_channels(image, channel)


def image_header(path: Path | str, series: int | str | None = None) -> ImageHeader:
    """Size, channels and bit depth from the header of a file. Raises `InputError` or `FormatError` that names it.

    series: the image that is meant in a file of several, as for `read_image`.
    """
    path = Path(path)
    suffix = plain_suffix(path)
    of_planes = read_zarr_header if is_zarr(path) else read_tiff_header if suffix in TIFF_SUFFIXES else None
    of_planes = read_vendor_header if suffix in PLUGINS else of_planes
    if of_planes is not None:
        planes = of_planes(path, Choice(series=series))
        header = ImageHeader(planes.image_hw, planes.n_channels, planes.bits, has_alpha=planes.has_alpha)
    elif suffix in SLIDE_SUFFIXES:
        header = ImageHeader(SlideSource(path).image_hw, 3, 8)
    elif suffix in RASTER_SUFFIXES:
        raster = raster_header(path)
        has_alpha = raster.n_channels in (2, 4)
        header = ImageHeader(raster.image_hw, raster.n_channels, raster.bits, raster.orientation, has_alpha)
    else:
        raise not_an_image(path, IMAGE_SUFFIXES)
    if not all(0 < side <= MAX_SIDE for side in header.image_hw):
        height, width = header.image_hw
        raise damaged_image(path, ValueError(f"a height of {height} and a width of {width}"))
    return header


def image_hw_of(path: Path | str, series: int | str | None = None) -> tuple[int, int]:
    """(height, width) from the header of a file. series: as for `image_header`."""
    return image_header(path, series).image_hw


# --- finding files --------------------------------------------------------------------------------------------------


def find_images(path: Path | str, problems: list[InputError] | None = None) -> list[Path]:
    """The image file or Zarr folder at ``path``, or all of them below a folder, sorted.

    Linked folders are followed; hidden files and folders (such as ``.ipynb_checkpoints``) and outputs of cellwright are
    skipped. problems: receives an error for each folder that cannot be listed, and for each image that is a broken
    link, a pipe or the like; without it, the first of them is raised. Raises `InputError` if there is no image at all,
    and for results of cellwright.
    """
    path = Path(path)
    require_regular(path)
    _refuse_results(path)
    if is_single(path):
        if not (is_image_name(path.name) or (is_zarr(path) and has_zarr())):
            raise not_an_image(path, IMAGE_SUFFIXES)
        if path.is_dir() and is_label_zarr(path):
            remedy = "give the image from which the labels were made"
            raise InputError(
                "this is a label image, not an image to read", where=path, expected="images", remedy=remedy
            )
        return [path]
    if not path.is_dir():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    unread: list[InputError] = []
    files = list(walk(path, problems=unread, zarr=True))
    parts = parts_of_slides(files)
    images = sorted(file for file in files if _is_input(file.name) and file not in parts)
    unread = [error for error in unread if _is_input(Path(str(error.where)).name) or error.problem == UNLISTED]
    if unread and problems is None:
        raise unread[0]
    if problems is not None:
        problems += unread
    if not images and not unread:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        notes = [note.text for note in (passed_over_note(path), results_note(path)) if note is not None]
        expected = f"files ending in {known}"
        raise InputError("this folder has no images", where=path, got="; ".join(notes) or None, expected=expected)
    return images


def is_single(path: Path) -> bool:
    """Whether a path is one file or one Zarr folder, rather than a folder of images."""
    return path.is_file() or (path.is_dir() and is_zarr(path))


def _refuse_results(path: Path) -> None:
    """Raise `InputError` for a folder of results of cellwright, and for a picture, label image or folder in one."""
    kind = kind_of_result(path) if path.is_dir() else None
    is_part = kind is None
    if is_part:
        above = (_kind_that_wrote(path, folder) for folder in path.resolve().parents[:_LEVELS])
        kind = next((kind for kind in above if kind is not None), None)
    if kind is not None:
        raise InputError(
            f"this is {'part of ' * is_part}{kind}, a result of cellwright, not an image to read",
            where=path,
            expected="images",
            remedy="give the images from which it was made; evaluate, measure and export take predictions",
        )


def _kind_that_wrote(path: Path, folder: Path) -> str | None:
    """What a folder above ``path`` is, if it holds results and ``path`` is one of them rather than the user's."""
    if not any((folder / name).exists() for name in (CONTROL, JOB_FILE, "predictions.json")):
        return None  # most folders of images, of which many may be given one by one
    kind = kind_of_result(folder)
    if kind is None:
        return None
    claim = None
    with suppress(InputError, OSError):
        claim = Claim.read(folder)
    if claim is None:  # a copy without hidden files, or of an earlier version
        return kind if kind == TILE_JOB or is_own_output(path.name) else None
    name = path.resolve().relative_to(folder).as_posix()
    return kind if any(file == name or file.startswith(f"{name}/") for file in claim.files) else None


def _is_input(name: str) -> bool:
    return is_image_name(name) and not is_own_output(name)
