"""Sources of images that are stored as planes: TIFF here, OME-Zarr in `cellwright.data.images.zarr`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import is_gzip
from cellwright.core.image import Image, supported_dtype
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.images.array_source import WholeSource
from cellwright.data.images.planes import DecodedPlane, PagePlane, PlaneWindow, StoredPlane
from cellwright.data.images.regions import (
    Facts,
    Level,
    RegionSource,
    cell_of,
    check_unchanged,
    downsamples,
    file_fingerprint,
    region_dtype,
    state_of,
)
from cellwright.data.images.tiff import (
    Choice,
    Chosen,
    choose,
    chosen_image,
    damaged_image,
    is_reduced,
    open_tiff,
    read_tiff,
    stored_plane,
    tiff_meaning,
    with_page_channels,
)

if TYPE_CHECKING:
    import tifffile

    from cellwright.data.images.tiff_images import TiffImage


class PlaneSource(RegionSource):
    """An image whose levels are planes. A copy in another process opens the file again."""

    def __init__(self, where: Path, choice: Choice, levels: Sequence[Chosen]) -> None:
        self._where, self._choice = where, choice
        self._channel_numbers: tuple[int, ...] | None = None
        self._lock = threading.Lock()
        self._levels: Sequence[Chosen] | None = levels
        first = levels[0]
        supported_dtype(np.zeros((), first.dtype), str(where))
        planes = [_first_plane(level) for level in levels]
        sizes = [level.image.image_hw for level in levels]
        tile_hw = planes[0].tile_hw or (1, sizes[0][1])
        facts = Facts(
            str(where),
            first.channels,
            region_dtype(first.dtype),
            downsamples(sizes),
            (min(tile_hw[0], sizes[0][0]), min(tile_hw[1], sizes[0][1])),
            self.layout_of(planes[0]),
            first.image.pixel_size_um,
            first.notes,
        )
        n_bytes = len(first.channels) * first.dtype.itemsize
        tiles = [plane.tile_hw for plane in planes]
        cells = [None if tile is None else cell_of(tile, hw, n_bytes) for tile, hw in zip(tiles, sizes, strict=True)]
        super().__init__(facts, cells)

    def open_levels(self) -> Sequence[Chosen]:
        """The levels, opened again."""
        raise NotImplementedError

    def layout_of(self, plane: StoredPlane) -> str:
        """How a plane is stored."""
        raise NotImplementedError

    def decode(self, level: int, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, C) of a window of a level."""
        chosen = self._opened()[level]
        if self._channel_numbers is not None:
            chosen = replace(chosen, planes={**chosen.planes, "C": self._channel_numbers})
        return chosen.pixels(window)

    def with_channels(self, indices: Sequence[int], names: Sequence[str], notes: Sequence[Note] = ()) -> RegionSource:
        """This source with only these channels; planes of others are not read."""
        chosen = self._opened()[0]
        numbers = self._channel_numbers or tuple(chosen.planes.get("C", (0,)))
        if len(numbers) != len(self.channels) or len(numbers) == 1:
            return super().with_channels(indices, names, notes)
        source = super().with_channels(range(len(names)), names, notes)
        assert isinstance(source, PlaneSource)
        source._picked = None
        source._channel_numbers = tuple(numbers[k] for k in indices)
        return source

    def _opened(self) -> Sequence[Chosen]:
        with self._lock:
            if self._levels is None:
                self._levels = self.open_levels()
            return self._levels

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_levels": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()


def _first_plane(chosen: Chosen) -> StoredPlane:
    return stored_plane(chosen.image, chosen.positions()[0], chosen.path)


class TiffSource(PlaneSource):
    """A TIFF file, of which only the strips or tiles that a window needs are read."""

    def __init__(self, where: Path, choice: Choice, levels: Sequence[Chosen], state: tuple[int, int]) -> None:
        self._state = state
        super().__init__(where, choice, levels)

    def open_levels(self) -> Sequence[Chosen]:
        """The levels, opened again."""
        return _tiff_levels(self._where, self._choice)

    def layout_of(self, plane: StoredPlane) -> str:
        """How a plane is stored."""
        return plane.layout if isinstance(plane, PagePlane) else "rows, uncompressed"

    def decode(self, level: int, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, C) of a window of a level. Raises `InputError` if the file changed."""
        check_unchanged(str(self._where), self._state)
        return super().decode(level, window)

    def fingerprint(self) -> str:
        """Of the file and what was chosen in it."""
        return file_fingerprint(self._where, self._choice, self.channels, self.levels)


def open_tiff_source(path: Path, choice: Choice) -> RegionSource:
    """The image of a TIFF file as a source; see `read_tiff` for choices and errors."""
    state = state_of(path)
    levels = _tiff_levels(path, choice)
    chosen = levels[0]
    if is_gzip(path) or isinstance(_first_plane(chosen), DecodedPlane):
        return whole_source(chosen, partial(read_tiff, path, choice))
    return TiffSource(path, choice, levels, state)


def whole_source(chosen: Chosen, read: Callable[[], Image]) -> WholeSource:
    """A source for an image of planes that can only be decoded whole."""
    image_hw = chosen.image.image_hw
    facts = Facts(
        str(chosen.path),
        chosen.channels,
        region_dtype(chosen.dtype),
        (Level(image_hw),),
        image_hw,
        "one piece",
        chosen.image.pixel_size_um,
        chosen.notes,
    )
    return WholeSource(facts, read)


def _tiff_levels(path: Path, choice: Choice) -> list[Chosen]:
    """The chosen image and its smaller copies, from the largest. The file is closed again."""
    from cellwright.data.images.tiff_images import images_of

    levels, n_unreadable = [], 0
    with open_tiff(path) as tif:
        try:
            images = images_of(tif, path, merge_pages=choice.series is None)
            chosen = choose(images, choice, path, lambda image: tiff_meaning(image, tif, path))
            levels = [_prepared(chosen)]
        except (InputError, UsageError):
            raise
        except Exception as error:  # a damaged directory raises IndexError, struct.error, ValueError, ...
            raise damaged_image(path, error) from error
        try:
            copies = _copies(tif, images, choice, path)
        except Exception:  # noqa: BLE001 - as above; the image itself can be read without its smaller copies
            copies, n_unreadable = [], 1
        for copy in copies:
            try:
                level = replace(chosen, image=copy, meaning=tiff_meaning(copy, tif, path))
                if (level.channels, level.dtype) == (chosen.channels, chosen.dtype):
                    levels.append(_prepared(level))
            except Exception:  # noqa: BLE001
                n_unreadable += 1
    if n_unreadable:
        text = f"{count(n_unreadable, 'smaller copy')} of the image cannot be read and will not be used"
        note = Note("smaller copies of the image cannot be read", text, str(path))
        levels[0] = replace(levels[0], notes=(*levels[0].notes, note))
    return levels


def _copies(tif: tifffile.TiffFile, images: Sequence[TiffImage], choice: Choice, path: Path) -> list[TiffImage]:
    """The smaller copies of the chosen image, from the largest: declared ones, and images of its proportions."""
    from cellwright.data.images.tiff_images import is_name_of_thumbnail, reduced_copies

    image, _ = chosen_image(images, choice, path)
    copies = reduced_copies(tif, image)
    full = [other for other in images if not other.is_thumbnail]
    if all(other is image or is_reduced(other, image) for other in full):
        copies += [other for other in images if other is not image and not is_name_of_thumbnail(other.name)]
    by_size = {copy.image_hw: copy for copy in copies if is_reduced(copy, image)}
    return [with_page_channels(by_size[image_hw], choice) for image_hw in sorted(by_size, reverse=True)]


def _prepared(chosen: Chosen) -> Chosen:
    """The image with its chosen planes at hand, so that they can be read when the file is closed."""
    planes = {}
    for at in chosen.positions():
        plane = stored_plane(chosen.image, at, chosen.path)
        if isinstance(plane, PagePlane):
            plane.prepare()
        planes[tuple(sorted(at.items()))] = plane

    def plane_at(at: Mapping[str, int]) -> StoredPlane:
        return planes[tuple(sorted(at.items()))]

    return replace(chosen, image=replace(chosen.image, plane=plane_at, reduced=tuple))
