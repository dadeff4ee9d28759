"""Zarr: OME-Zarr 0.4 and 0.5 (and earlier) with their axes, pyramids, channels and pixel sizes, and plain arrays.

Read with the package ``zarr`` (``pip install "cellwright[zarr]"``), from folders and zipped stores.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import CellwrightError, FormatError, InputError, UsageError
from cellwright.core.files import read_json
from cellwright.core.memory import check_memory
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.images.array_source import array_source
from cellwright.data.images.calibration import PixelSize, length, microns_per, pixel_size
from cellwright.data.images.plane_source import PlaneSource
from cellwright.data.images.planes import PlaneWindow, StoredPlane
from cellwright.data.images.regions import RegionSource, file_fingerprint
from cellwright.data.images.tiff import (
    Choice,
    Chosen,
    Meaning,
    TiffHeader,
    choose,
    chosen_image,
    damaged_image,
    is_reduced,
)
from cellwright.data.images.tiff_images import TiffImage

ZARR_SUFFIXES = (".zarr", ".zarr.zip", ".ozx")
INSTALL_ZARR = 'pip install "cellwright[zarr]"'
_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_MAX_LISTED, _MAX_STATED = 2_000_000, 4096


def is_zarr_name(name: str) -> bool:
    """Whether a file or folder is Zarr by its name."""
    return name.lower().endswith(ZARR_SUFFIXES)


def is_zarr(path: Path) -> bool:
    """Whether a path is Zarr: by its name, or a folder with metadata of Zarr, such as an image inside a plate."""
    if is_zarr_name(path.name):
        return True
    return path.is_dir() and any((path / name).is_file() for name in _METADATA)


def is_label_zarr(path: Path) -> bool:
    """Whether a folder is an OME-Zarr label image, by its metadata; nothing else of it is read."""
    for name in ("zarr.json", ".zattrs"):
        with suppress(CellwrightError, OSError, AttributeError, TypeError):
            content = read_json(path / name) if (path / name).is_file() else {}
            attributes = content.get("attributes", {}) if name == "zarr.json" else content
            if "image-label" in attributes or "image-label" in attributes.get("ome", {}):
                return True
    return False


def has_zarr() -> bool:
    """Whether the package ``zarr`` is installed."""
    return importlib.util.find_spec("zarr") is not None


def open_zarr_source(path: Path, choice: Choice) -> RegionSource:
    """The image of a Zarr store as a source.

    Raises `InputError` if ``zarr`` is not installed, or that asks for all choices that are missing (`read_image`), and
    `FormatError` for a store without images.
    """
    root = _open(path)
    if _is_array(root):
        for name, value in (("z", choice.z), ("t", choice.t), ("series", choice.series)):
            if value not in (None, 0, "0", "max", "mean", "all"):
                what, remedy = "this array is not a stack", f"omit `{name}`"
                raise UsageError(what, where=path, got=f"{name} = {value}", remedy=remedy)
        check_chunks(root, path)
        return array_source(root, path=str(path), axes=_axis_names(root))
    return ZarrSource(path, choice, _levels(root, path, choice))


def read_zarr_header(path: Path, choice: Choice) -> TiffHeader:
    """The header of the image of a Zarr store, which may be a stack."""
    root = _open(path)
    if _is_array(root):
        source = array_source(root, path=str(path), axes=_axis_names(root))
        return TiffHeader(source.image_hw, len(source.channels), 8 * root.dtype.itemsize)
    images, choice = _listed(root, path, choice)
    image, _ = chosen_image(images, choice, path)
    return TiffHeader(image.image_hw, image.extent("C"), 8 * image.dtype.itemsize)


class ZarrSource(PlaneSource):
    """An OME-Zarr image, of which only the chunks that a window needs are read."""

    def __init__(self, where: Path, choice: Choice, levels: Sequence[Chosen]) -> None:
        super().__init__(where, choice, levels)
        plane = levels[0].image.plane(levels[0].positions()[0])
        # Chunks of several planes are decoded one at a time, so that few planes that are not needed are in memory.
        self.batched = isinstance(plane, ZarrPlane) and plane.blocks.is_flat

    def open_levels(self) -> Sequence[Chosen]:
        """The levels, opened again."""
        return _levels(_open(self._where), self._where, self._choice)

    def layout_of(self, plane: StoredPlane) -> str:
        """How a plane is stored."""
        height, width = plane.tile_hw or (0, 0)
        return f"chunks of {height} x {width}, Zarr"

    def fingerprint(self) -> str:
        """Of the metadata, and of the names, sizes and times of the chunks (of a sample if there are many)."""
        facts = (self._choice, self.channels, self.levels)
        if self._where.is_file():
            return file_fingerprint(self._where, facts)
        return _folder_fingerprint(self._where, facts)


def _levels(root: Any, path: Path, choice: Choice) -> list[Chosen]:
    images, choice = _listed(root, path, choice)
    chosen = choose(images, choice, path, lambda image: Meaning("", ("grey",)))
    copies = sorted(chosen.image.reduced(), key=lambda copy: copy.image_hw, reverse=True)
    full = chosen.image
    return [chosen, *(replace(chosen, image=copy) for copy in copies if is_reduced(copy, full))]


def zarr_images(path: Path, choice: Choice) -> tuple[list[TiffImage], Choice]:
    """The images of a Zarr store, none of a plain array, and what remains to be chosen among them."""
    root = _open(path)
    return ([], choice) if _is_array(root) else _listed(root, path, choice)


def _listed(root: Any, path: Path, choice: Choice) -> tuple[list[TiffImage], Choice]:
    """The images of a store, and what remains to be chosen among them: of a plate only the chosen image."""
    try:
        if "plate" in (metadata := _metadata(root)):
            root, choice = root[_field(root, metadata["plate"], choice, path)], replace(choice, series=None)
        return list(_images(root, path)), choice
    except (InputError, UsageError):
        raise
    except Exception as error:  # metadata of any shape
        raise damaged_image(path, error) from error


# --- stores ---------------------------------------------------------------------------------------------------------


def _open(path: Path) -> Any:
    """The group or array at the root of a store."""
    if not path.exists():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    if not has_zarr():
        what = "reading Zarr needs the package zarr, which is not installed"
        raise InputError(what, where=path, remedy=INSTALL_ZARR)
    import zarr
    from zarr.storage import ZipStore

    try:
        if path.is_file():
            return zarr.open(ZipStore(path, read_only=True), mode="r", path=_folder_in_zip(path))
        return zarr.open(str(path), mode="r")
    except Exception as error:  # zarr raises many types for what is no store
        raise FormatError(
            "this is not a Zarr store",
            where=path,
            got=f"{type(error).__name__}: {error}"[:300],
            expected="zarr.json, .zgroup or .zarray in it",
            remedy="check the path, or copy the store again",
        ) from error


def _folder_in_zip(path: Path) -> str:
    """The folder of a zipped store that holds it: "" unless the whole folder was zipped."""
    with zipfile.ZipFile(path) as packed:
        places = [name.rpartition("/")[0] for name in packed.namelist() if name.rpartition("/")[2] in _METADATA]
    return min(places, key=lambda place: (place.count("/") + bool(place), place), default="")


def check_chunks(array: Any, path: Path) -> None:
    """Raise `InputError` for chunks that need more memory than there is, `FormatError` for chunks that are programs."""
    codecs = [*(getattr(array.metadata, "filters", None) or ()), getattr(array.metadata, "compressor", None)]
    if any("pickle" in str(getattr(codec, "codec_id", "")) for codec in codecs):
        expected = "numbers, compressed or not"
        raise FormatError("this array is stored as pickles, which are not read", where=path, expected=expected)
    check_memory(2.0 * math.prod(array.chunks) * array.dtype.itemsize, "a chunk of this image", where=path)


def _axis_names(array: Any) -> tuple[str, ...] | None:
    """The names of the axes of a plain array, where it has them (version 3, or written by xarray)."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return None if names is None or None in names else tuple(str(name).lower() for name in names)


def _is_array(node: Any) -> bool:
    return hasattr(node, "shape")


def _folder_fingerprint(root: Path, facts: object) -> str:
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    names = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        names += [os.path.join(folder, name) for name in sorted(files)]  # noqa: PTH118 - a million names
        if len(names) > _MAX_LISTED:
            break
    for name in names:
        if os.path.basename(name) in _METADATA:  # noqa: PTH119
            digest.update(name[len(str(root)) :].encode() + Path(name).read_bytes())
    for name in names[:: max(len(names) // _MAX_STATED, 1)]:
        state = os.stat(name)  # noqa: PTH116
        digest.update(f"{name[len(str(root)) :]}:{state.st_size}:{state.st_mtime_ns};".encode())
    return f"{len(names)}:zarr:{digest.hexdigest()}"


# --- images ---------------------------------------------------------------------------------------------------------


def _images(root: Any, path: Path) -> Iterator[TiffImage]:
    """The images of a store: of its own metadata, of the fields of a plate, or of the groups in it."""
    groups = list(_image_groups(root, path))
    if not groups:
        arrays = sorted(name for name, _ in root.arrays())
        got = f"arrays {', '.join(arrays[:8])}" if arrays else "no image"
        remedy = f"give the path of one array, such as {path / arrays[0]}" if arrays else "check the path"
        what = "this Zarr group has no OME-Zarr image (multiscales)"
        raise FormatError(what, where=path, got=got, expected="OME-Zarr 0.1 to 0.5", remedy=remedy)
    for place, group in groups:
        metadata = _metadata(group)
        several = len(metadata["multiscales"]) > 1
        for number, multiscale in enumerate(metadata["multiscales"]):
            name = place or str(multiscale.get("name") or "")
            name = f"{name} {number}".strip() if several else name
            yield _image(group, multiscale, metadata.get("omero"), (name, path))


def _image_groups(root: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Groups with images, and their places in the store ("" for the root)."""
    metadata = _metadata(root)
    if "multiscales" in metadata:
        yield "", root
    else:
        for place in sorted(root.group_keys(), key=lambda name: (not name.isdecimal(), len(name), name)):
            if "multiscales" in _metadata(root[place]):
                yield place, root[place]


def _field(root: Any, plate: Mapping[str, Any], choice: Choice, path: Path) -> str:
    """The place of the image of a plate that is meant: the one chosen, or the only one."""
    places = [
        f"{well['path']}/{image['path']}"
        for well in plate["wells"]
        for image in _metadata(root[well["path"]])["well"]["images"]
    ]
    series = choice.series
    if series is None and len(places) == 1:
        return places[0]
    if series in places:
        return str(series)
    if series is not None and str(series).isdecimal() and int(series) < len(places):
        return places[int(series)]
    listed = f"{count(len(places), 'image')} ({', '.join(places[:6])}{', ...' if len(places) > 6 else ''})"
    if series is not None:
        raise UsageError("no such image in this plate", where=path, got=f"series = {series}", expected=listed)
    remedy = f'choose one with `series`, such as `series="{places[0]}"`' if places else "check the path"
    raise InputError("this is a plate of several images, and none was chosen", where=path, got=listed, remedy=remedy)


def _metadata(group: Any) -> Mapping[str, Any]:
    """The OME metadata of a group: below "ome" since version 0.5."""
    attributes = dict(group.attrs)
    ome = attributes.get("ome")
    return ome if isinstance(ome, Mapping) else attributes


@dataclass(frozen=True)
class _Axes:
    """The letters of the axes of an array in order ("?" for others), and their units."""

    letters: str
    units: tuple[str | None, ...]

    @staticmethod
    def of(multiscale: Mapping[str, Any], n_axes: int) -> _Axes:
        """As the metadata says; before version 0.3 they are always T, C, Z, Y, X."""
        axes = multiscale.get("axes")
        if axes is None:
            return _Axes("TCZYX"[-n_axes:], (None,) * n_axes)
        named = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in axes]
        letters = [str(axis["name"]).upper() for axis in named]
        kinds = {"time": "T", "channel": "C"}
        letters = [
            name if name in "TCZYX" else kinds.get(str(axis.get("type")), "?")
            for name, axis in zip(letters, named, strict=True)
        ]
        if len(letters) != n_axes or any(letters.count(axis) != 1 for axis in "YX"):
            raise ValueError(f"axes {', '.join(str(axis['name']) for axis in named)} of an array of {n_axes}")
        return _Axes("".join(letters), tuple(axis.get("unit") for axis in named))


def _image(group: Any, multiscale: Mapping[str, Any], omero: Any, named: tuple[str, Path]) -> TiffImage:
    """An image as the metadata describes it, with its smaller copies. named: its name, and the store."""
    name, path = named
    datasets = multiscale["datasets"]
    arrays = [group[dataset["path"]] for dataset in datasets]
    axes = _Axes.of(multiscale, len(arrays[0].shape))
    extents = dict(zip(axes.letters, arrays[0].shape, strict=True))
    channels, notes = _channels(omero, extents.get("C", 1), arrays[0].dtype)

    def of_level(number: int) -> TiffImage:
        array = arrays[number]
        blocks = _Blocks(array, axes.letters, path)
        sizes = dict(zip(axes.letters, array.shape, strict=True))
        size_um, unit_note = _pixel_size(multiscale, datasets[number], axes)
        return TiffImage(
            name,
            (int(sizes["Y"]), int(sizes["X"])),
            np.dtype(array.dtype),
            1,
            {axis: range(int(sizes[axis])) for axis in "TCZ" if axis in sizes},
            lambda at: ZarrPlane(blocks, at),
            None,  # type: ignore[arg-type] - no tags say what the numbers mean
            channels,
            size_um,
            other_axes="".join(
                axis for axis, n in zip(axes.letters, array.shape, strict=True) if axis == "?" and n > 1
            ),
            notes=(*notes, *unit_note),
            z_step_um=_z_step(multiscale, datasets[number], axes),
        )

    return replace(of_level(0), reduced=lambda: [of_level(number) for number in range(1, len(arrays))])


def _pixel_size(
    multiscale: Mapping[str, Any], dataset: Mapping[str, Any], axes: _Axes
) -> tuple[PixelSize | None, tuple[Note, ...]]:
    """(y, x) in microns, from the scales of a level and of all levels."""
    scale, stated = _scale(multiscale, dataset, len(axes.letters))
    units = [axes.units[axes.letters.index(axis)] for axis in "YX"]
    microns = [None if unit is None else microns_per(str(unit)) for unit in units]
    if stated and None in microns:
        shown = "no unit" if units[0] is None else f"the unit {units[0]!r}, which is not a length"
        text = f"its pixel size has {shown}, so it is unknown"
        return None, (Note("the unit of the pixel size is not known", text),)
    if not stated or microns[0] is None or microns[1] is None:
        return None, ()
    y, x = (float(scale[axes.letters.index(axis)]) for axis in "YX")
    return pixel_size(y * microns[0], x * microns[1]), ()


def _scale(multiscale: Mapping[str, Any], dataset: Mapping[str, Any], n_axes: int) -> tuple[np.ndarray, bool]:
    """The scale of each axis (1 if none is stated), and whether one is stated."""
    scale, stated = np.ones(n_axes), False
    for transform in (*dataset.get("coordinateTransformations", ()), *multiscale.get("coordinateTransformations", ())):
        if transform.get("type") == "scale" and len(transform.get("scale", ())) == n_axes:
            scale = scale * np.asarray(transform["scale"], float)
            stated = True
    return scale, stated


def _z_step(multiscale: Mapping[str, Any], dataset: Mapping[str, Any], axes: _Axes) -> float | None:
    """The distance of planes in microns; None if it is not known."""
    if "Z" not in axes.letters:
        return None
    z = axes.letters.index("Z")
    scale, stated = _scale(multiscale, dataset, len(axes.letters))
    microns = microns_per(str(axes.units[z]))
    return length(float(scale[z]) * microns) if stated and microns is not None else None


def _channels(omero: Any, n: int, dtype: Any) -> tuple[tuple[str, ...], tuple[Note, ...]]:
    """The names of the channels: of the viewer's settings (``omero``), else their numbers."""
    listed = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(listed, list) or len(listed) != n:
        return tuple(map(str, range(n))), ()
    labels = [str(channel.get("label") or "").strip() for channel in listed]
    unnamed = [label.lower() in ("", str(k), f"channel {k}") for k, label in enumerate(labels)]
    if n == 1:
        return ("0",) if unnamed[0] else (labels[0],), ()
    colours = [str(channel.get("color") or "").upper() for channel in listed]
    if np.dtype(dtype) == np.uint8 and colours == ["FF0000", "00FF00", "0000FF"]:
        if [label.lower() for label in labels] in (["r", "g", "b"], ["red", "green", "blue"]):
            return ("R", "G", "B"), ()
        if all(unnamed):
            text = "its three unnamed channels in red, green and blue were treated as R, G, B"
            return ("R", "G", "B"), (Note("unnamed channels were treated as R, G, B", text),)
    names = tuple(label or str(k) for k, label in enumerate(labels))
    return names if len(set(names)) == n else tuple(f"{k} {name}" for k, name in enumerate(names)), ()


# --- planes ---------------------------------------------------------------------------------------------------------


class _Blocks:
    """The pixels of an array that chunks hold together, of which the last block is kept for its other planes."""

    def __init__(self, array: Any, letters: str, where: Path) -> None:
        self.array, self.letters = array, letters
        check_chunks(array, where)
        self._chunks = dict(zip(letters, array.chunks, strict=True))
        self._extents = dict(zip(letters, array.shape, strict=True))
        self._lock = threading.Lock()
        self._kept: tuple[Any, np.ndarray | None] = (None, None)

    @property
    def tile_hw(self) -> tuple[int, int]:
        """(height, width) of a chunk."""
        return int(self._chunks["Y"]), int(self._chunks["X"])

    @property
    def is_flat(self) -> bool:
        """Whether a chunk holds one plane."""
        return all(min(self._chunks[axis], self._extents[axis]) == 1 for axis in self.letters if axis not in "YX")

    def plane(self, at: Mapping[str, int], window: PlaneWindow) -> np.ndarray:
        """A window (h, w) of one plane."""
        y0, x0, h, w = window
        ranges = {axis: self._range(axis, at.get(axis, 0)) for axis in self.letters if axis not in "YX"}
        key = (tuple(ranges.items()), window)
        with self._lock:
            block = self._kept[1] if self._kept[0] == key else None
        if block is None:
            chosen = {"Y": slice(y0, y0 + h), "X": slice(x0, x0 + w)}
            chosen |= {axis: slice(first, end) for axis, (first, end) in ranges.items()}
            block = np.asarray(self.array[tuple(chosen[axis] for axis in self.letters)])
            with self._lock:
                self._kept = (key, block if block.size > h * w else None)
        index = tuple(slice(None) if axis in "YX" else at.get(axis, 0) - ranges[axis][0] for axis in self.letters)
        pixels = block[index]
        return pixels if self.letters.index("Y") < self.letters.index("X") else pixels.T

    def _range(self, axis: str, number: int) -> tuple[int, int]:
        """The numbers along an axis that are read together: those of a chunk."""
        size = int(self._chunks[axis])
        first = number // size * size
        return first, min(first + size, int(self._extents[axis]))


@dataclass(frozen=True)
class ZarrPlane:
    """One plane of an array."""

    blocks: _Blocks
    at: Mapping[str, int]

    @property
    def tile_hw(self) -> tuple[int, int]:
        """(height, width) of a chunk."""
        return self.blocks.tile_hw

    def whole(self) -> np.ndarray:
        """All pixels (H, W, 1)."""
        sizes = dict(zip(self.blocks.letters, self.blocks.array.shape, strict=True))
        return self.window((0, 0, int(sizes["Y"]), int(sizes["X"])))

    def window(self, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, 1) of a window."""
        return self.blocks.plane(self.at, window)[:, :, None]
