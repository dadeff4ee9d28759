"""Sources of arrays, in memory or read by slices (Dask, Zarr, HDF5), and of files that are decoded whole."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.image import CHANNEL_NAMES, Image, supported_dtype
from cellwright.data.images.planes import PlaneWindow
from cellwright.data.images.regions import Facts, Level, RegionSource, cell_of, file_fingerprint, region_dtype

_DIGEST_BYTES = 16
# The sample of an array whose digest stands for all: so many rows and columns in memory, windows of so many elsewhere.
_SAMPLED, _WINDOW = 512, 64


class ArraySource(RegionSource):
    """An array (H, W) or (H, W, C), or (C, H, W) where that is plain, that is read by slices.

    array: of NumPy, Dask, Zarr or HDF5, or any object with ``shape``, ``dtype`` and slices that NumPy understands.
    """

    batched = True

    def __init__(self, array: Any, facts: Facts, channel_axis: int | None) -> None:
        self._array, self._channel_axis = array, channel_axis
        chunk_hw = None if isinstance(array, np.ndarray) else _chunk_hw(array, channel_axis)
        n_bytes = len(facts.channels) * np.dtype(array.dtype).itemsize
        super().__init__(facts, [None if chunk_hw is None else cell_of(chunk_hw, facts.levels[0].image_hw, n_bytes)])

    def decode(self, level: int, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, C) of a window, a copy."""
        y0, x0, h, w = window
        index: list[slice] = [slice(y0, y0 + h), slice(x0, x0 + w)]
        if self._channel_axis is not None:
            index.insert(self._channel_axis, slice(None))
        part: Any = self._array[tuple(index)]
        # Not the scheduler of a surrounding Dask cluster, whose workers may be reading this.
        pixels = np.array(part.compute(scheduler="threads") if _is_dask(part) else part)
        return pixels[:, :, None] if self._channel_axis is None else np.moveaxis(pixels, self._channel_axis, 2)

    def fingerprint(self) -> str:
        """Of the shape, the type and a sample of the pixels."""
        height, width = self.image_hw
        digest = hashlib.blake2b(repr((self._array.shape, str(self._array.dtype))).encode(), digest_size=_DIGEST_BYTES)
        if isinstance(self._array, np.ndarray):
            steps = {0: slice(None, None, max(height // _SAMPLED, 1)), 1: slice(None, None, max(width // _SAMPLED, 1))}
            index = list(steps.values())
            if self._channel_axis is not None:
                index.insert(self._channel_axis, slice(None))
            samples = [self._array[tuple(index)]]
        else:
            rows, columns = min(height, _WINDOW), min(width, _WINDOW)
            places = [(y, x) for y in (0, (height - rows) // 2, height - rows) for x in (0, width - columns)]
            samples = [self.decode(0, (y, x, rows, columns)) for y, x in places]
        for sample in samples:
            digest.update(np.ascontiguousarray(sample).tobytes())
        return f"array:{digest.hexdigest()}"

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state | {"_array": _MappedFile.of(self._array) or self._array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self._array, _MappedFile):
            self._array = self._array.open()


class _MappedFile:
    """A memory-mapped array, which is pickled as the place in its file."""

    def __init__(self, path: str, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.offset, self.shape = path, dtype, offset, shape

    @staticmethod
    def of(array: Any) -> _MappedFile | None:
        """Of an array as `np.load` and `np.memmap` return it; None for others, and for parts of a mapping."""
        if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
            return None
        if isinstance(array.base, np.memmap):  # a part, whose place in the file is not recorded
            return None
        return _MappedFile(str(array.filename), array.dtype, int(array.offset), array.shape)

    def open(self) -> np.memmap:
        """The array, mapped again."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def array_source(
    array: Any,
    pixel_size_um: tuple[float, float] | None = None,
    path: str | None = None,
    axes: tuple[str, ...] | None = None,
) -> ArraySource:
    """A source for an array (H, W), (H, W, C), or (C, H, W) where that is plain.

    axes: names of the axes, of which "y" and "x" tell where the channels are. Channels are named as by
    `Image.from_array`. Raises `InputError` for another shape or type.
    """
    shape = tuple(int(n) for n in array.shape)
    dtype = np.dtype(array.dtype)
    supported_dtype(np.zeros((), dtype), path)
    places = [] if axes is None else [k for k, name in enumerate(axes) if name not in ("y", "x")]
    is_named = axes is not None and [name for name in axes if name in ("y", "x")] == ["y", "x"] and len(places) < 2
    axis = (places[0] if places else None) if is_named else channel_axis(shape)
    sizes = [n for k, n in enumerate(shape) if k != axis]
    n_channels = 1 if axis is None else shape[axis]
    if 0 in shape:
        raise InputError("this array has no pixels", where=path, got=f"shape {shape}", expected="(H, W) or (H, W, C)")
    names = CHANNEL_NAMES.get(n_channels, tuple(f"c{k}" for k in range(n_channels)))
    image_hw = (sizes[0], sizes[1])
    is_memory = isinstance(array, np.ndarray)
    chunk_hw = None if is_memory else _chunk_hw(array, axis)
    layout = "an array in memory" if is_memory else f"chunks of {chunk_hw[0]} x {chunk_hw[1]}" if chunk_hw else "rows"
    tile_hw = image_hw if is_memory else chunk_hw or (1, image_hw[1])
    facts = Facts(path, names, region_dtype(dtype), (Level(image_hw),), tile_hw, layout, pixel_size_um)
    return ArraySource(array, facts, axis)


def image_source(image: Image) -> ArraySource:
    """A source for an image in memory."""
    hw, layout = image.image_hw, "an array in memory"
    dtype = region_dtype(image.data.dtype)
    facts = Facts(image.path, image.channels, dtype, (Level(hw),), hw, layout, image.pixel_size_um, image.notes)
    return ArraySource(image.data, facts, 2)


def channel_axis(shape: tuple[int, ...], *, is_tensor: bool = False) -> int | None:
    """Which axis of an array holds the channels: 0, the last (2), or None for (H, W).

    An array is channel-first (C, H, W) only if that is plain: C is 1, 3 or 4 and H and W are larger, and its last axis
    cannot be that of channels. is_tensor: channel-first is as usual as channel-last.

    Raises `InputError` for a shape that is not an image, or that is ambiguous.

    >>> channel_axis((20, 30)), channel_axis((20, 30, 3)), channel_axis((3, 20, 30))
    (None, 2, 0)
    """
    if len(shape) == 2:
        return None
    if len(shape) != 3:
        remedy = "give a list of images: list(batch)" if len(shape) == 4 else "give one plane or channel of it"
        raise InputError("not one image", got=f"shape {shape}", expected="(H, W) or (H, W, C)", remedy=remedy)
    first, height, last = shape
    channel_last = last <= 4 or last <= min(first, height)
    channel_first = first in (1, 3, 4) and first < min(height, last)
    if channel_first and not channel_last:
        return 0
    if channel_last and not (channel_first and is_tensor):
        return 2
    raise InputError(
        "the channels of this image could be on its first or its last axis",
        got=f"shape {shape}",
        expected="(H, W) or (H, W, C)",
        remedy="np.moveaxis(array, 0, -1) makes a channel-first array channel-last; Image.from_array(array) takes a "
        "channel-last array of any shape",
    )


def _chunk_hw(array: Any, axis: int | None) -> tuple[int, int] | None:
    """(height, width) of the pieces in which a lazy array is stored or computed; None if it does not say."""
    chunks = getattr(array, "chunks", None)
    if not isinstance(chunks, tuple) or len(chunks) != len(array.shape):
        return None
    sizes = [max(chunk) if isinstance(chunk, tuple) else int(chunk) for k, chunk in enumerate(chunks) if k != axis]
    return (sizes[0], sizes[1])


def _is_dask(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "dask"


# --- files that are decoded whole -----------------------------------------------------------------------------------


class WholeSource(RegionSource):
    """A file that is decoded whole the first time a region of it is read, and then kept.

    read: decodes it; can be pickled.
    """

    def __init__(self, facts: Facts, read: Callable[[], Image]) -> None:
        super().__init__(facts, [None])
        self._read = read
        self._image: Image | None = None
        self._lock = threading.Lock()

    def decode(self, level: int, window: PlaneWindow) -> np.ndarray:
        """The pixels (h, w, C) of a window, a copy."""
        y0, x0, h, w = window
        return self._whole().data[y0 : y0 + h, x0 : x0 + w].copy()

    def fingerprint(self) -> str:
        """Of the file."""
        return file_fingerprint(self.path or "", self.channels, self.image_hw)

    def _whole(self) -> Image:
        with self._lock:
            if self._image is None:
                image = self._read()
                if image.data.shape != (*self.image_hw, image.n_channels):
                    got, expected = " x ".join(map(str, image.image_hw)), " x ".join(map(str, self.image_hw))
                    remedy = "open it again"
                    what = "this image changed since it was opened"
                    raise InputError(what, where=self.path, got=got, expected=expected, remedy=remedy)
                self._image = image
            return self._image

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_image": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()
