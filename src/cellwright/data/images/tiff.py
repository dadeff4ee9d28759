"""Read TIFF, OME-TIFF and ImageJ TIFF.

The flow of `read_tiff`: the images of the file (`tiff_images`) -> the one that is meant -> its planes -> what their
numbers mean -> pixels (H, W, C).
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

import numpy as np

from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.files import is_gzip, plain_size, read_plain, require_regular, unreadable
from cellwright.core.image import CHANNEL_NAMES, Image, supported_dtype
from cellwright.core.memory import check_memory
from cellwright.core.notes import Note, with_where
from cellwright.core.text import count
from cellwright.data.images.pixels import apply_palette, cmyk_to_rgb, inverted, shows_colours

if TYPE_CHECKING:
    import tifffile

    from cellwright.data.images.planes import PlaneWindow, StoredPlane
    from cellwright.data.images.tiff_images import TiffImage

# Limits of a valid file: pages per file, and bytes of decoded pixels per byte of the file.
MAX_DIRECTORIES = 100_000
MAX_CODEC_RATIO = 20_000
# Copies of the decoded pixels that are held at a time.
_COPIES = 2

# Values of TIFF's PhotometricInterpretation and Compression.
MIN_IS_WHITE, RGB, PALETTE, SEPARATED, YCBCR = 0, 2, 3, 5, 6
PLANE_BY_PLANE = 2  # a planar configuration
LAB_SPACES = {8: "CIELAB", 9: "ICCLAB", 10: "ITULAB"}
JPEG_CODECS = frozenset({6, 7, 33003, 33004, 33005, 33007, 34712, 50001, 50002})

Plane: TypeAlias = int | Literal["max", "mean"]
"""A 0-based plane of a stack, or a projection of all planes."""
AnyPlane: TypeAlias = int | Literal["max", "mean", "all"]
"""The same, or every plane by itself."""
AnyTime: TypeAlias = int | Literal["all"]
"""A 0-based time point, or every one by itself."""


@dataclass(frozen=True)
class TiffHeader:
    """Size, number of channels (the last may be transparency) and bits per value of an image, before decoding."""

    image_hw: tuple[int, int]
    n_channels: int
    bits: int
    has_alpha: bool = False


@dataclass(frozen=True)
class Choice:
    """What the user chose; see `read_image`.

    channel: whether channels were chosen, so that a question about planes does not ask for them too.
    """

    z: AnyPlane | None = None
    t: AnyTime | None = None
    series: int | str | None = None
    channel: bool = False


def read_tiff_header(path: Path, choice: Choice) -> TiffHeader:
    """The header of an image. Raises `FormatError` if the file is not a readable TIFF, and errors as `read_tiff`."""
    from cellwright.data.images.tiff_images import images_of

    with open_tiff(path) as tif:
        try:
            image, _ = chosen_image(images_of(tif, path, merge_pages=choice.series is None), choice, path)
            names = tiff_meaning(image, tif, path).names
        except InputError:
            raise
        except Exception as error:  # a damaged directory raises IndexError, struct.error, ValueError, ...
            raise damaged_image(path, error) from error
        n_channels, has_alpha = image.extent("C") * len(names), len(names) > 1 and names[-1] == "A"
        return TiffHeader(image.image_hw, n_channels, 8 * image.dtype.itemsize, has_alpha)


def read_tiff(path: Path, choice: Choice) -> Image:
    """The image with all channels, and notes about what was assumed.

    Raises `InputError` that asks for all choices that are missing, `UsageError` for one that does not exist, and
    `FormatError` for a damaged file and for a colour space that cannot be read.
    """
    from cellwright.data.images.tiff_images import images_of

    with open_tiff(path) as tif:
        try:
            images = images_of(tif, path, merge_pages=choice.series is None)
        except InputError:
            raise
        except Exception as error:  # as in `read_chosen`
            raise damaged_image(path, error) from error
        return read_chosen(images, choice, path, lambda image: tiff_meaning(image, tif, path))


def read_chosen(
    images: Sequence[TiffImage], choice: Choice, path: Path, meaning_of: Callable[[TiffImage], Meaning]
) -> Image:
    """The image of a file that is meant, decoded; see `read_tiff`. meaning_of: what its numbers mean."""
    chosen = choose(images, choice, path, meaning_of)
    image = chosen.image
    try:
        check_claim(float(image.n_planes) * math.prod(image.image_hw) * image.samples * image.dtype.itemsize, path)
        data = chosen.pixels()
    except (InputError, UsageError):
        raise
    except Exception as error:  # tifffile and its codecs raise many types for damaged files
        raise damaged_image(path, error) from error
    data, rounded = supported_dtype(data, path)
    notes = (*chosen.notes, *with_where(rounded, str(path)))
    return Image(data, chosen.channels, image.pixel_size_um, str(path), notes)


@dataclass(frozen=True)
class Chosen:
    """The image and the planes of a file that are meant, and what their numbers mean; nothing is decoded yet."""

    image: TiffImage
    planes: Mapping[str, Sequence[int]]
    choice: Choice
    meaning: Meaning
    path: Path
    notes: tuple[Note, ...] = ()

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels of `pixels`."""
        return _channel_names(self.image, self.meaning.names)

    @property
    def dtype(self) -> np.dtype:
        """The type of `pixels`."""
        if self.choice.z == "mean":
            return np.dtype(np.float32)
        return _converted(np.zeros((1, 1, self.image.samples), self.image.dtype), self.meaning).dtype

    def positions(self) -> list[dict[str, int]]:
        """The number of every plane along each axis."""
        stack = self.image.stack_axis
        (t,) = self.planes.get("T", (0,))
        channels, numbers = self.planes.get("C", (0,)), self.planes.get(stack, (0,))
        return [{"Q": 0, "Z": 0, "T": t, "C": c, stack: z} for c in channels for z in numbers]

    def pixels(self, window: PlaneWindow | None = None) -> np.ndarray:
        """(H, W, C) of the chosen planes or of a window of them, in the dtype of the file unless they are averaged."""
        positions = self.positions()
        n_channels = len(self.planes.get("C", (0,)))
        depth = len(positions) // n_channels
        channels = []
        for c in range(n_channels):
            of_channel = positions[c * depth : (c + 1) * depth]
            planes = (_plane(self.image, at, self.meaning, self.path, window) for at in of_channel)
            channels.append(_projected(planes, self.choice.z))
        return channels[0] if len(channels) == 1 else np.concatenate(channels, axis=2)


def choose(
    images: Sequence[TiffImage], choice: Choice, path: Path, meaning_of: Callable[[TiffImage], Meaning]
) -> Chosen:
    """The image and the planes of a file that are meant; see `read_tiff`."""
    try:
        image, notes = chosen_image(images, choice, path)
        image = with_page_channels(image, choice)
        planes = _chosen_planes(image, choice, path)
        meaning = meaning_of(image)
    except (InputError, UsageError):
        raise
    except Exception as error:  # as in `read_chosen`
        raise damaged_image(path, error) from error
    all_notes = with_where((*notes, *image.notes, *meaning.notes), str(path))
    return Chosen(image, planes, choice, meaning, path, all_notes)


# --- which image and planes -----------------------------------------------------------------------------------------


def chosen_image(images: Sequence[TiffImage], choice: Choice, path: Path) -> tuple[TiffImage, tuple[Note, ...]]:
    """The image that is meant: the one chosen, the only one that is no thumbnail, or the full size of a pyramid."""
    if not images:
        raise FormatError("this TIFF has no pixels", where=path, remedy="save it again, or remove it")
    if choice.series is not None:
        return images[_series_number(images, choice.series, path)], ()
    full = [image for image in images if not image.is_thumbnail] or list(images)
    largest = max(full, key=lambda image: image.image_hw[0] * image.image_hw[1])
    if any(image is not largest and not is_reduced(image, largest) for image in full):
        raise _missing([f"`series` (0 to {len(images) - 1}, or a name)"], _listed(images), path)
    if len(images) == 1:
        return largest, ()
    text = f"of the {count(len(images), 'image')} in the file, the one of {_size(largest)} was read, not "
    text += " or ".join(dict.fromkeys(_size(image) for image in images if image is not largest))
    return largest, (Note("thumbnails or reduced copies in the file were skipped", text),)


def _series_number(images: Sequence[TiffImage], series: int | str, path: Path) -> int:
    names = [image.name.casefold() for image in images]
    if isinstance(series, str) and names.count(series.casefold()) == 1:
        return names.index(series.casefold())
    if str(series).isdecimal() and int(series) < len(images):
        return int(series)
    raise UsageError("no such series", where=path, got=f"series = {series}", expected=_listed(images))


def is_reduced(image: TiffImage, full: TiffImage) -> bool:
    """Whether an image can be a reduced copy of another: same planes and proportions, at most two thirds as wide."""
    (height, width), (full_height, full_width) = image.image_hw, full.image_hw
    same = (image.dtype, image.samples, dict(image.numbers)) == (full.dtype, full.samples, dict(full.numbers))
    scale = (full_height / height + full_width / width) / 2
    near = abs(height * scale - full_height) <= scale and abs(width * scale - full_width) <= scale
    return same and near and scale >= 1.5


def with_page_channels(image: TiffImage, choice: Choice) -> TiffImage:
    """The image with its unnamed pages as channels, if channels were chosen and no plane."""
    if not choice.channel or choice.z is not None or image.extent("Q") == 1 or image.extent("C") > 1:
        return image
    numbers = {axis: of_axis for axis, of_axis in image.numbers.items() if axis not in "QC"} | {"C": image.numbers["Q"]}
    text = f"its {count(image.extent('Q'), 'unnamed page')} were treated as channels"
    return replace(
        image,
        numbers=numbers,
        channels=tuple(map(str, numbers["C"])),
        plane=lambda at: image.plane({**at, "Q": at["C"], "C": 0}),
        notes=(*image.notes, Note("unnamed pages were treated as channels", text)),
    )


def _chosen_planes(image: TiffImage, choice: Choice, path: Path) -> dict[str, Sequence[int]]:
    """The numbers to read along each axis; several along Z or Q are to be projected."""
    if image.other_axes or (image.extent("Z") > 1 and image.extent("Q") > 1):
        raise InputError(
            "this file has more axes than can be read",
            where=path,
            got=image.describe(),
            expected="channels, planes (Z) and time points (T)",
            remedy="save it with named axes, such as tifffile.imwrite(path, array, metadata={'axes': 'TZCYX'}), or "
            "each image as a separate file",
        )
    planes = dict(image.numbers)
    missing = []
    if image.extent("C") > 1 and not choice.channel and not _has_one_nuclear(image.channels):
        missing.append("`channel`")
    n_optional = len(missing)
    for axis, name, chosen in ((image.stack_axis, "z", choice.z), ("T", "t", choice.t)):
        numbers = image.numbers.get(axis, (0,))
        if chosen in ("max", "mean", "all") and image.elsewhere and axis == "Z":
            raise _spread(image, path)
        if chosen in ("max", "mean"):
            continue
        if chosen in (None, "all") and len(numbers) == 1:
            continue
        if chosen is None:
            either = ', "max" or "mean"' if name == "z" else ""
            missing.append(f'`{name}` ({_range(numbers)}{either}; "all" predicts each)')
        elif chosen == "all":
            got, expected = f'{name} = "all"', f"one of {_range(numbers)} ({image.describe()})"
            remedy = "predict them one by one, and give the predictions"
            raise UsageError("one plane is read at a time", where=path, got=got, expected=expected, remedy=remedy)
        elif chosen not in numbers:
            samples = f", {image.samples} samples per pixel" if image.samples > 1 else ""
            expected = f"{_range(numbers)} ({image.describe()}{samples})"
            raise UsageError("no such plane", where=path, got=f"{name} = {chosen}", expected=expected)
        else:
            planes[axis] = (int(chosen),)
    if len(missing) > n_optional:
        raise _missing(missing, image.describe(), path, unnamed=image.extent("Q") > 1)
    return planes


def _has_one_nuclear(channels: Sequence[str]) -> bool:
    from cellwright.data.images.channels import means_nuclei

    return sum(map(means_nuclei, channels)) == 1


def _missing(choices: list[str], got: str, path: Path, *, unnamed: bool = False) -> InputError:
    remedy = "choose " + ", ".join(choices[:-1]) + (" and " if len(choices) > 1 else "") + choices[-1]
    if unnamed:
        remedy += "; if the unnamed pages are channels, choose one of them with `channel` instead"
    return InputError(
        "this file contains several images or planes, and none was chosen", where=path, got=got, remedy=remedy
    )


def _spread(image: TiffImage, path: Path) -> InputError:
    return InputError(
        "the planes of this stack are in several files",
        where=path,
        got=f"planes {_range(image.numbers['Z'])} here, others in {', '.join(image.elsewhere[:3])}",
        remedy="save the stack as one file, for example with Fiji, or omit `z` to read the planes of each file",
    )


def _range(numbers: Sequence[int]) -> str:
    """``"0 to 4"``, ``"3"`` or ``"1, 5, 6"``."""
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _listed(images: Sequence[TiffImage]) -> str:
    shown = [f"{k}: {image.name + ', ' if image.name else ''}{image.describe()}" for k, image in enumerate(images[:12])]
    more = [f"and {len(images) - 12} more"] if len(images) > 12 else []
    return f"{count(len(images), 'image')} ({'; '.join(shown + more)})"


def _size(image: TiffImage) -> str:
    return f"{image.image_hw[0]} x {image.image_hw[1]}"


# --- pixels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """How stored values become pixels, and the names of the samples of one plane after that."""

    convert: Literal["", "invert", "palette", "cmyk"]
    names: tuple[str, ...]
    bits: int = 8
    colours: np.ndarray | None = None
    notes: tuple[Note, ...] = ()


def tiff_meaning(image: TiffImage, tif: tifffile.TiffFile, path: Path) -> Meaning:
    """What the tags of a page say about its numbers. Raises `FormatError` for colour spaces that cannot be read."""
    page, samples = image.keyframe, image.samples
    photometric, notes = int(page.photometric), (*_orientation_note(page), *_sparse_note(page))
    if photometric in LAB_SPACES or (photometric == YCBCR and int(page.compression) not in JPEG_CODECS):
        space = LAB_SPACES.get(photometric, "YCbCr without JPEG compression")
        raise FormatError("this colour space cannot be read", where=path, got=space, remedy="save the image as RGB")
    if photometric == PALETTE and samples == 1 and page.colormap is not None:
        colours = np.asarray(page.colormap).T
        colours = (colours >> 8 if colours.max(initial=0) > 255 else colours).astype(np.uint8)
        if page.is_ome or page.dtype not in (np.uint8, np.uint16) or len(colours) > 256:
            return Meaning("", ("grey",), notes=notes)
        more = apply_palette(np.zeros((1, 1), np.uint8), colours)[1]
        names = CHANNEL_NAMES[3 if shows_colours(colours) else 1]
        return Meaning("palette", names, colours=colours, notes=(*notes, *more))
    # ImageJ writes this for a lookup table, and tifffile for every bool array: there it says nothing about the numbers.
    by_habit = tif.is_imagej or (tif.is_shaped and page.dtype == bool)
    if (
        photometric == MIN_IS_WHITE
        and samples == 1
        and not by_habit
        and page.dtype is not None
        and page.dtype.kind in "bu"
    ):
        bits = page.bitspersample if isinstance(page.bitspersample, int) else page.bitspersample[0]
        return Meaning("invert", ("grey",), bits=bits, notes=notes)
    if photometric == SEPARATED and samples >= 4 and _tag(page, "InkSet", 1) == 1:
        return Meaning("cmyk", ("R", "G", "B"), notes=notes)
    is_rgb = photometric in (RGB, YCBCR) and samples >= 3
    names, more = _sample_names(samples, 3 if is_rgb else 1, tuple(map(int, page.extrasamples)))
    if is_rgb and tif.is_shaped and int(page.planarconfig) == PLANE_BY_PLANE:  # any array (3, H, W) or (4, H, W)
        text = (
            f"its {samples} planes were read as {', '.join(names[:-1])} and {names[-1]}, as the file says; if they are "
            "other channels or the planes of a stack, save them with photometric='minisblack'"
        )
        more = (*more, Note("planes of a TIFF that tifffile wrote were read as colours", text))
    return Meaning("", names, notes=(*notes, *more))


def _sample_names(samples: int, n_colours: int, extra: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[Note, ...]]:
    """Names of the samples of a pixel: grey or R, G, B, then alpha where the file says so, other samples by number."""
    colours = CHANNEL_NAMES[n_colours]
    if samples == n_colours:
        return colours, ()
    if samples == n_colours + 1 and extra[-1:] in ((1,), (2,)):
        return (*colours, "A"), ()
    if samples == 4 and n_colours == 3:
        text = "its fourth sample beside R, G, B is not declared and was treated as transparency"
        return (*colours, "A"), (Note("a fourth sample was treated as transparency", text),)
    if n_colours == 3:
        return (*colours, *(str(k) for k in range(3, samples))), ()
    return tuple(map(str, range(samples))), ()


def stored_plane(image: TiffImage, at: Mapping[str, int], path: Path) -> StoredPlane:
    """A plane of an image. Raises `InputError` if the file does not hold it."""
    plane = image.plane(at)
    if plane is None:
        number = ", ".join(f"{axis} {n}" for axis, n in at.items() if image.extent(axis) > 1) or "the only one"
        raise InputError(
            "a plane of this image is not in the file",
            where=path,
            got=f"plane {number} of {image.describe()}"
            + (f"; others in {image.elsewhere[0]}" if image.elsewhere else ""),
            remedy="copy the file again, or save the planes that you need as a separate file",
        )
    return plane


def _plane(
    image: TiffImage, at: Mapping[str, int], meaning: Meaning, path: Path, window: PlaneWindow | None
) -> np.ndarray:
    """The pixels (H, W, C) of a plane or of a window of it, converted as ``meaning`` says."""
    plane = stored_plane(image, at, path)
    stored = plane.whole() if window is None else plane.window(window)
    image_hw = image.image_hw if window is None else window[2:]
    if stored.shape != (*image_hw, image.samples):
        raise ValueError(f"pixels of shape {stored.shape}, but a header of {(*image_hw, image.samples)}")
    return _converted(stored, meaning)


def _converted(stored: np.ndarray, meaning: Meaning) -> np.ndarray:
    """Stored values (h, w, samples) as pixels (h, w, C)."""
    match meaning.convert:
        case "palette":
            assert meaning.colours is not None
            return apply_palette(stored[:, :, 0], meaning.colours)[0]
        case "invert":
            return inverted(stored, meaning.bits)
        case "cmyk":
            return cmyk_to_rgb(stored[:, :, :4])
    return stored


def _projected(planes, choice: AnyPlane | None) -> np.ndarray:
    """One plane as it is; of several the largest values, or the means as float32."""
    first, n = next(planes), 1
    if choice == "mean":
        total = first.astype(np.float64)
        for plane in planes:
            total += plane
            n += 1
        return (total / n).astype(np.float32)
    for plane in planes:
        first = np.maximum(first, plane)
    return first


def _channel_names(image: TiffImage, samples: tuple[str, ...]) -> tuple[str, ...]:
    if image.extent("C") == 1:
        own = image.channels[0] if image.channels else "0"
        return samples if len(samples) > 1 or own == "0" else (own,)
    if len(samples) == 1:
        return image.channels
    return tuple(f"{name}.{sample}" for name in image.channels for sample in samples)


def _orientation_note(page: tifffile.TiffPage) -> tuple[Note, ...]:
    if _tag(page, "Orientation", 1) == 1:
        return ()
    text = "its orientation tag was not applied, as in ImageJ: the image is read as its pixels are stored"
    return (Note("the orientation tag of a TIFF was not applied", text),)


def _sparse_note(page: tifffile.TiffPage) -> tuple[Note, ...]:
    empty = sum(not size for size in page.databytecounts)
    if not empty:
        return ()
    text = f"{empty} of its {len(page.databytecounts)} strips or tiles are not stored; their pixels are read as 0"
    return (Note("strips or tiles that are not stored were read as 0", text),)


def _tag(page: tifffile.TiffPage, name: str, default: int) -> int:
    return int(page.tags[name].value) if name in page.tags else default


# --- opening --------------------------------------------------------------------------------------------------------


def open_tiff(path: Path | str) -> tifffile.TiffFile:
    """An open file, in memory if it is compressed with gzip.

    tifffile is kept from understanding the descriptions that name other files, which it would open wherever they are,
    and that claim any number of planes; `tiff_images` reads those of OME. Raises `InputError` if the file cannot be
    read, and `FormatError` if it is not a TIFF.
    """
    import tifffile

    require_regular(path)
    try:
        content = read_plain(path, "image") if is_gzip(path) else None
        with Path(path).open("rb") if content is None else io.BytesIO(content) as file:
            check_directories(file, path)
        source = path if content is None else io.BytesIO(content)
        return tifffile.TiffFile(source, is_ome=False, is_mmstack=False, is_ndtiff=False)
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error, "image") from error
    except Exception as error:  # a damaged header raises TiffFileError, struct.error, ValueError, ...
        raise damaged_image(path, error) from error


def check_directories(file: BinaryIO, path: Path | str) -> None:
    """Raise `FormatError` for a TIFF whose directories form a loop, which a reader would follow forever."""
    head = file.read(16)
    order, big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
    counts, offsets, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    word = struct.calcsize(offsets)
    link = head[8:16] if big else head[4:8]
    visited: set[int] = set()
    while len(link) == word:
        (start,) = struct.unpack(order + offsets, link)
        if start in visited or len(visited) > MAX_DIRECTORIES:
            raise damaged_image(path, ValueError("its directories form a loop"))
        visited.add(start)
        file.seek(min(start, 1 << 60))
        n_entries = file.read(struct.calcsize(counts))
        if not start or len(n_entries) < struct.calcsize(counts):
            return
        file.seek(min(entry * struct.unpack(order + counts, n_entries)[0], 1 << 40), 1)
        link = file.read(word)


def check_claim(decoded_bytes: float, path: Path | str, *, max_ratio: float = MAX_CODEC_RATIO) -> None:
    """Raise `FormatError` for a file that claims more pixels than its codec compresses to its size.

    Raises `InputError` if decoding the pixels needs more memory than there is.
    """
    check_plausible(decoded_bytes, path, max_ratio=max_ratio)
    check_memory(_COPIES * decoded_bytes, "this image", where=path)


def check_plausible(decoded_bytes: float, path: Path | str, *, max_ratio: float = MAX_CODEC_RATIO) -> None:
    """Raise `FormatError` for a file that claims more pixels than its codec compresses to its size."""
    size = plain_size(path)
    if decoded_bytes > max_ratio * size:
        raise damaged_image(path, ValueError(f"{decoded_bytes:.3g} bytes of pixels in a file of {size} bytes"))


def damaged_image(path: Path | str, error: Exception) -> FormatError:
    """The error for a file that is truncated, damaged or not an image."""
    return FormatError(
        "this image cannot be decoded",
        where=path,
        got=f"{type(error).__name__}: {error}",
        expected="a complete image file",
        remedy="copy or download the file again, or remove it from the folder",
    )
