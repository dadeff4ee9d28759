"""One microscopy image as it was read: own dtype, named channels, pixel size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellwright.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Image:
    """An image in its own dtype.

    data: (H, W, C), 8- or 16-bit unsigned or float32; never rescaled on reading.
    channels: C names, such as ("R", "G", "B") or ("DAPI",).
    pixel_size_um: (y, x) in microns, or None where the file does not say.
    path: the file it came from, for messages; None for an array.
    """

    data: np.ndarray
    channels: tuple[str, ...]
    pixel_size_um: tuple[float, float] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or 0 in self.data.shape[:2]:
            raise InputError(
                "an image needs three axes (H, W, C) and at least one pixel",
                where=self.path,
                got=f"shape {self.data.shape}",
                remedy="give a grey (H, W) or a colour (H, W, C) array to Image.from_array",
            )
        if len(self.channels) != self.data.shape[2]:
            raise InputError(
                "channel names do not fit the image",
                where=self.path,
                got=f"{len(self.channels)} names",
                expected=f"{self.data.shape[2]} channels",
            )

    @staticmethod
    def from_array(array: np.ndarray, *, pixel_size_um: tuple[float, float] | None = None) -> Image:
        """Wrap a grey (H, W) or channel-last (H, W, C) array; float64 becomes float32, bool becomes 0 and 255."""
        array = np.asarray(array)
        data = array[:, :, None] if array.ndim == 2 else array
        if data.dtype == bool:
            data = data.astype(np.uint8) * np.uint8(255)
        elif data.dtype == np.float64:
            data = data.astype(np.float32)
        n_channels = data.shape[2] if data.ndim == 3 else 0
        names = {1: ("grey",), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}
        return Image(data, names.get(n_channels, tuple(f"c{i}" for i in range(n_channels))), pixel_size_um)

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.data.shape[0]), int(self.data.shape[1])

    @property
    def n_channels(self) -> int:
        """Number of channels, an alpha channel included."""
        return int(self.data.shape[2])

    def describe(self) -> str:
        """What was read, in one line: ``"1000 x 800, uint16, 3 channels (R, G, B), 0.325 um/px"``."""
        height, width = self.image_hw
        plural = "" if self.n_channels == 1 else "s"
        text = f"{height} x {width}, {self.data.dtype}, {self.n_channels} channel{plural} ({', '.join(self.channels)})"
        if self.pixel_size_um is not None:
            y, x = self.pixel_size_um
            text += f", {y:g} um/px" if y == x else f", {y:g} x {x:g} um/px (y x)"
        return text
