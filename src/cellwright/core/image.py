"""`Image`: the pixels of one microscopy image in their own dtype, with channel names and pixel size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.notes import Note
from cellwright.core.public import public
from cellwright.core.text import count

# Names of the channels of an image that does not name them, by the number of channels.
CHANNEL_NAMES = {1: ("grey",), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}
LARGEST_EXACT = 2**24  # float32 holds all integers up to here


@public
@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """One image.

    data: (H, W, C), uint8, uint16 or float32; the values are those of the file, which reading never rescales.
    channels: C names, such as ``("R", "G", "B")`` or ``("DAPI",)``.
    pixel_size_um: (y, x) in microns, or None if unknown.
    path: the file that the image was read from, for error messages; None for an array.
    notes: what was assumed or found unusual while reading.

    Raises `InputError` if ``data`` does not have three axes or has no pixels, or if the number of names is not C.

    >>> Image(np.zeros((60, 80, 2), np.uint16), ("DAPI", "actin"), pixel_size_um=(0.325, 0.325))
    Image(60 x 80, uint16, 2 channels (DAPI, actin), 0.325 um/px)
    """

    data: np.ndarray
    channels: tuple[str, ...]
    pixel_size_um: tuple[float, float] | None = None
    path: str | None = None
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or 0 in self.data.shape[:2]:
            raise InputError(
                "an image needs three axes (H, W, C) and at least one pixel",
                where=self.path,
                got=f"shape {self.data.shape}",
                remedy="pass a greyscale (H, W) or colour (H, W, C) array to Image.from_array",
            )
        if len(self.channels) != self.data.shape[2]:
            raise InputError(
                "the number of channel names differs from the number of channels",
                where=self.path,
                got=count(len(self.channels), "name"),
                expected=count(self.data.shape[2], "channel"),
            )

    @staticmethod
    def from_array(array: np.ndarray, *, pixel_size_um: tuple[float, float] | None = None) -> Image:
        """An image from a greyscale (H, W) or channel-last (H, W, C) array.

        Values are kept, in a type that holds them (`supported_dtype`). One channel is named "grey", three are R, G, B,
        four are R, G, B, A; other numbers of channels are named c0, c1, ...

        Raises `InputError` for an array with other axes, without pixels, or with complex numbers or text.

        >>> Image.from_array(np.zeros((60, 80, 3), np.uint8), pixel_size_um=(0.325, 0.325))
        Image(60 x 80, uint8, 3 channels (R, G, B), 0.325 um/px)
        """
        array = np.asarray(array)
        data = array[:, :, None] if array.ndim == 2 else array
        data, notes = supported_dtype(data)
        n_channels = data.shape[2] if data.ndim == 3 else 0
        names = CHANNEL_NAMES.get(n_channels, tuple(f"c{i}" for i in range(n_channels)))
        return Image(data, names, pixel_size_um, notes=notes)

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.data.shape[0]), int(self.data.shape[1])

    @property
    def n_channels(self) -> int:
        """Number of channels, including an alpha channel."""
        return int(self.data.shape[2])

    def without_alpha(self) -> Image:
        """This image without its last channel if that is named "A" and is not the only one."""
        if self.n_channels < 2 or self.channels[-1] != "A":
            return self
        return dataclasses.replace(self, data=self.data[:, :, :-1], channels=self.channels[:-1])

    def with_channels(self, indices: Sequence[int]) -> Image:
        """This image with only the channels at these indices, in this order."""
        names = tuple(self.channels[k] for k in indices)
        return dataclasses.replace(self, data=self.data[:, :, list(indices)], channels=names)

    def describe(self) -> str:
        """Size (height x width), dtype, channels and pixel size in one line: ``"60 x 80, uint8, 1 channel (grey)"``."""
        height, width = self.image_hw
        names = ", ".join(self.channels)
        text = f"{height} x {width}, {self.data.dtype}, {count(self.n_channels, 'channel')} ({names})"
        if self.pixel_size_um is not None:
            y, x = self.pixel_size_um
            text += f", {y:g} um/px" if y == x else f", {y:g} x {x:g} um/px (y x)"
        return text

    def __repr__(self) -> str:
        return f"Image({self.describe()}{'' if self.path is None else f', {self.path}'})"


def channel_index(channels: tuple[str, ...], channel: str | int, where: object = None) -> int:
    """Index of a channel given by its name, by its 0-based index, or by alternatives (the first that exists).

    A name is matched exactly first, then in any case if only one channel matches. Raises a `UsageError` that
    lists the channels and names ``where``, the file.

    >>> names = ("DAPI", "actin")
    >>> channel_index(names, "actin"), channel_index(names, "Actin"), channel_index(names, 0)
    (1, 1, 0)
    >>> channel_index(names, "Hoechst|DAPI")
    0
    """
    choices = [channel, *channel.split("|")] if isinstance(channel, str) else [channel]
    for choice in choices:
        name = choice.strip() if isinstance(choice, str) else choice
        if name in channels:
            return channels.index(name)
        alike = [k for k, known in enumerate(channels) if known.casefold() == str(name).casefold()]
        if len(alike) == 1:
            return alike[0]
        if str(name).isdecimal() and int(name) < len(channels):
            return int(name)
    last, names = len(channels) - 1, ", ".join(channels)
    numbered = channels == tuple(map(str, range(len(channels))))
    expected = names if numbered else f"{names} (or 0 to {last})"
    raise UsageError("no such channel", where=where, got=channel, expected=expected)


def supported_dtype(data: np.ndarray, where: object = None) -> tuple[np.ndarray, tuple[Note, ...]]:
    """The pixels as uint8, uint16 or float32, with equal values.

    bool becomes 0 and 255. Other integers become uint8 or uint16 if their values fit, otherwise float32; float16 and
    float64 become float32. A note says if float32 had to round integers. Raises `InputError` for complex numbers and
    other types, and for values beyond the range of float32.

    >>> [supported_dtype(np.array([low, 4000], np.int16))[0].dtype.name for low in (0, -100)]
    ['uint16', 'float32']
    """
    kind = data.dtype.kind
    if data.dtype in (np.uint8, np.uint16, np.float32):
        return data.astype(data.dtype.newbyteorder("="), copy=False).view(data.dtype.type), ()  # "uint16", not "<u2"
    if kind == "b":
        return data.astype(np.uint8) * np.uint8(255), ()
    if kind in "iu":
        low, high = (int(data.min()), int(data.max())) if data.size else (0, 0)
        if low >= 0 and high <= 255 and data.dtype.itemsize == 1:
            return data.astype(np.uint8), ()
        if low >= 0 and high <= 65535:
            return data.astype(np.uint16), ()
        if max(-low, high) <= LARGEST_EXACT:
            return data.astype(np.float32), ()
        text = f"values from {low} to {high} were rounded to 24 bits"
        return data.astype(np.float32), (Note("large values were rounded to 24 bits", text),)
    if kind == "f":
        with np.errstate(over="ignore"):
            narrow = data.astype(np.float32)
        if np.isinf(narrow).sum() > np.isinf(data).sum():
            raise InputError(
                "the values of this image are too large",
                where=where,
                got=f"{data.dtype}, up to {np.abs(data[np.isfinite(data)]).max():g}",
                expected="values within the range of float32",
                remedy="divide the image by a constant, and save it as 32-bit float",
            )
        return narrow, ()
    raise InputError(
        "this pixel type is not supported",
        where=where,
        got=data.dtype,
        expected="integers or floating-point numbers",
        remedy="save the magnitude as 32-bit float" if kind == "c" else "save the image as 16-bit or 32-bit float",
    )
