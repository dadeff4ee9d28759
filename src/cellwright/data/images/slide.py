"""Whole-slide images of scanners, read with OpenSlide (``pip install "cellwright[slides]"``)."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import first_bytes
from cellwright.data.images.calibration import pixel_size
from cellwright.data.images.planes import PlaneWindow
from cellwright.data.images.regions import (
    Facts,
    Level,
    RegionSource,
    check_unchanged,
    file_fingerprint,
    state_of,
)

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide"})
# Slides whose pixels are in other files beside them.
SEVERAL_FILES = frozenset({".mrxs", ".vms", ".vmu"})
_PICTURE = re.compile(r"^[^=\n]+=[ \t]*(\S.*\.jpe?g)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
INSTALL_SLIDES = 'pip install "cellwright[slides]"'


def has_openslide() -> bool:
    """Whether ``openslide-python`` is installed."""
    return importlib.util.find_spec("openslide") is not None


class SlideSource(RegionSource):
    """A slide: RGB, with transparent pixels (where nothing was scanned) in the background colour of the file.

    Coordinates of level 0 are those of OpenSlide and QuPath. A smaller level whose scale is not a whole number is
    decoded in fixed cells, so that a pixel does not depend on the window in which it is read.
    """

    batched = True

    def __init__(self, path: Path) -> None:
        self._where, self._state = path, state_of(path)
        self._lock = threading.Lock()
        self._slide: Any = None
        slide = self._opened()
        levels = tuple(
            Level((int(height), int(width)), (float(down), float(down)) if k else (1.0, 1.0))
            for k, ((width, height), down) in enumerate(
                zip(slide.level_dimensions, slide.level_downsamples, strict=True)
            )
        )
        cells = [_tile_hw(slide.properties, k) for k in range(len(levels))]
        size = pixel_size(*(_number(slide.properties.get(f"openslide.mpp-{axis}")) for axis in "yx"))
        vendor = slide.properties.get("openslide.vendor", "unknown vendor")
        layout = f"tiles of {cells[0][0]} x {cells[0][1]}, slide of {vendor}"
        super().__init__(Facts(str(path), ("R", "G", "B"), np.dtype(np.uint8), levels, cells[0], layout, size), cells)

    def decode(self, level: int, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, 3) of a window of a level."""
        check_unchanged(str(self._where), self._state)
        y0, x0, h, w = window
        down, (height, width) = self.levels[level].downsample[0], self._cells[level] or (h, w)
        if down == round(down):
            return self._region(level, window)
        pixels = np.empty((h, w, 3), np.uint8)
        image_h, image_w = self.levels[level].image_hw
        for top in range(y0 // height * height, y0 + h, height):
            for left in range(x0 // width * width, x0 + w, width):
                cell = self._region(level, (top, left, min(height, image_h - top), min(width, image_w - left)))
                inside = pixels[max(top - y0, 0) : top - y0 + height, max(left - x0, 0) : left - x0 + width]
                inside[:] = cell[max(y0 - top, 0) :, max(x0 - left, 0) :][: inside.shape[0], : inside.shape[1]]
        return pixels

    def fingerprint(self) -> str:
        """Of the file, and OpenSlide's hash of the files that belong to it."""
        return file_fingerprint(self._where, self._opened().properties.get("openslide.quickhash-1"), self.levels)

    def _region(self, level: int, window: PlaneWindow) -> np.ndarray:
        y0, x0, h, w = window
        down = self.levels[level].downsample[0]
        slide = self._opened()
        try:
            region = slide.read_region((round(x0 * down), round(y0 * down)), level, (w, h))
        except Exception as error:  # OpenSlideError; after one, the slide has to be opened again
            with self._lock:
                self._slide = None
            raise FormatError(
                "a tile of this slide cannot be decoded",
                where=self._where,
                got=f"rows {y0} to {y0 + h - 1}, columns {x0} to {x0 + w - 1} of level {level}: {error}",
                expected="complete image data",
                remedy="copy or download the slide again",
            ) from error
        pixels = np.asarray(region)
        colours, alpha = pixels[:, :, :3], pixels[:, :, 3:]
        if (alpha == 255).all():
            return np.ascontiguousarray(colours)
        share = alpha.astype(np.float32) / 255
        return np.rint(colours * share + _background(slide.properties) * (1 - share)).astype(np.uint8)

    def _opened(self) -> Any:
        with self._lock:
            if self._slide is None:
                self._slide = _open(self._where)
            return self._slide

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_slide": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()


def parts_of_slides(files: Sequence[Path]) -> set[Path]:
    """The pictures among files that are parts of a slide in the same folder (Hamamatsu VMS), not images themselves."""
    indices = [file for file in files if file.suffix.lower() in (".vms", ".vmu")]
    return {
        file.parent / name
        for file in indices
        for name in _PICTURE.findall(first_bytes(file, 1 << 16).decode("utf-8", "replace"))
    }


def _open(path: Path) -> Any:
    if not has_openslide():
        what = "reading slides needs the package openslide-python, which is not installed"
        raise InputError(
            what, where=path, remedy=f"{INSTALL_SLIDES}, or export regions as OME-TIFF, for example with QuPath"
        )
    import openslide

    try:
        return openslide.OpenSlide(path)
    except Exception as error:  # OpenSlideError, and ctypes' own for names that cannot be passed on
        raise FormatError(
            "OpenSlide cannot read this slide",
            where=path,
            got=f"{type(error).__name__}: {error}",
            expected="a slide of Aperio, Hamamatsu, MIRAX, Leica or Ventana with all its files",
            remedy="copy it again with the files that belong to it, or export it as OME-TIFF, for example with QuPath",
        ) from error


def _tile_hw(properties: Any, level: int) -> tuple[int, int]:
    sizes = [_number(properties.get(f"openslide.level[{level}].tile-{side}")) for side in ("height", "width")]
    height, width = (int(size) if size and 64 <= size <= 2048 else 256 for size in sizes)
    return height, width


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _background(properties: Any) -> np.ndarray:
    """The colour (3,) of what was not scanned; white unless the file names one."""
    text = str(properties.get("openslide.background-color", "FFFFFF"))
    try:
        return np.frombuffer(bytes.fromhex(text[-6:]), np.uint8).astype(np.float32)
    except ValueError:
        return np.full(3, 255, np.float32)
