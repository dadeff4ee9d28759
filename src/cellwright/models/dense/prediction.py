"""Prediction with a dense network, whatever computes its maps: windows, sizes, views and decoding. NumPy only.

    images -> maps -> maps at the size of the result -> objects

`DenseNetwork` computes maps with PyTorch, `OpenVINONetwork` with OpenVINO.

Shape shorthand: B images, D maps of the target, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from cellwright.config.model_dense import AnyDenseConfig, UNetConfig
from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.core.memory import available_bytes
from cellwright.data.resize import resized
from cellwright.data.views import View
from cellwright.models.dense.labels import Place
from cellwright.models.dense.target import Target

# Memory at the peak of prediction per pixel and channel of full resolution, as measured: maps of all resolutions, and
# the decoder. Rather too low than too high.
BYTES_PER_CHANNEL = {"plain": 20.0, "nested": 32.0}
# Memory of the maps and of decoding, bytes per pixel: with three maps, and for each more, before and after resizing.
DECODING_BYTES, BYTES_PER_MAP = 100, 8
# One unit of the network's output is so long a ray, px: it learns lengths as fast as it learns other maps then.
RAY_UNIT_PX = 8.0
# Units of the output of Cellpose's network per unit of flow.
CELLPOSE_FLOW = 5.0
# The U-Net may take this share of the memory there is, and so many bytes; else it sees windows of one of these sides,
# px. An image of small objects, which is enlarged, needs no more memory than a large one then.
MEMORY_SHARE, LARGEST_BYTES, WINDOW_SIDES = 0.6, 3 << 29, (2048, 1536, 1024, 512)


def linear_units(config: AnyDenseConfig, channel: str) -> float | None:
    """Units of the network's output per unit of a map; None for a map that is a probability, through a sigmoid."""
    if channel.startswith("flow_"):
        return CELLPOSE_FLOW if config.kind == "cellpose" else 1.0
    if channel.startswith("ray_"):
        return 1.0 if config.kind == "stardist" else 1 / RAY_UNIT_PX
    return 1.0 if channel == "cellprob" else None


class DensePrediction:
    """What prediction with a dense network is; a subclass computes the maps of a window.

    Attributes:
        config: the recipe's ``model`` section.
        target: names of the maps, their encoder and decoder.
        n_classes: K; with more than one, the U-Net predicts K class maps after those of the target.
    """

    config: AnyDenseConfig
    target: Target
    n_classes: int

    @property
    @abstractmethod
    def stride(self) -> int:
        """H and W of the images must be multiples of it, px."""

    @property
    @abstractmethod
    def reach_px(self) -> int | None:
        """How far from a pixel of the maps the image can influence it, at most, px of the input; None: unknown."""

    @abstractmethod
    def compute(self, images: Any) -> np.ndarray:
        """The maps of images that are seen at once, as `maps` returns them."""

    @property
    def sees_windows(self) -> bool:
        """Whether a large image is seen window by window."""
        return True

    @property
    def bytes_per_pixel(self) -> float | None:
        """Memory that prediction takes at least at its peak, per pixel of the input; None with an encoder of timm.

        That of the maps and of decoding: the U-Net itself can run window by window, see `maps`.
        """
        return None if self.reach_px is None else DECODING_BYTES + self.bytes_of_maps

    @property
    def n_maps(self) -> int:
        """D, and K where there are several classes."""
        return len(self.target.channels) + (self.n_classes if self.n_classes > 1 else 0)

    @property
    def bytes_of_maps(self) -> float:
        """Memory of the maps beyond the first three, per pixel: of rays and classes."""
        return BYTES_PER_MAP * max(self.n_maps - 3, 0)

    @property
    def bytes_of_channels(self) -> float:
        """Memory of the U-Net at its peak in prediction, per pixel, where all of the image is in memory."""
        return BYTES_PER_CHANNEL[getattr(self.config, "skips", "plain")] * self.config.width

    @property
    def input_multiple_px(self) -> int:
        """To a multiple of this, H and W are padded with zeros before the network sees an image, px."""
        return self.stride

    @property
    def pad_mode(self) -> Literal["constant", "reflect"]:
        """How images are padded, as in `numpy.pad`: with zeros, or by reflection, as StarDist does."""
        return "reflect" if self.config.kind == "stardist" else "constant"

    @property
    def needs_zooms(self) -> bool:
        """Whether `detect` and `detect_views` take ``zooms``."""
        return self.target.needs_place

    def window_side(self, image_hw: tuple[int, int]) -> int | None:
        """The side of the windows in which the U-Net runs so that it fits into memory; None: all at once."""
        reach, (height, width) = self.reach_px, image_hw
        if reach is None:
            return None
        per_pixel = self.bytes_of_channels
        budget = min(MEMORY_SHARE * available_bytes(), LARGEST_BYTES)
        if per_pixel * height * width <= budget:
            return None
        fitting = [side for side in WINDOW_SIDES if per_pixel * (side + 2 * reach) ** 2 <= budget]
        return max([*fitting, min(WINDOW_SIDES)])

    def maps(self, images: Any, image_hws: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """(B, C, H, W) -> (B, D, H, W) float32 in the encoder's units, and K class probabilities if K > 1.

        images: an array, or a tensor for a network of PyTorch. image_hws: without padding; () if there is none. On a
        CPU, the U-Net sees a large image in windows that overlap by its reach; the maps are the same.
        """
        height, width = images.shape[2:]
        side = self.window_side((height, width)) if self.sees_windows else None
        if side is None or self.reach_px is None:
            return self.compute(images)
        margin = -(-self.reach_px // self.stride) * self.stride
        whole: np.ndarray | None = None
        for y in range(0, height, side):
            for x in range(0, width, side):
                top, left = max(y - margin, 0), max(x - margin, 0)
                part = self.compute(images[:, :, top : y + side + margin, left : x + side + margin])
                if whole is None:
                    whole = np.empty((*part.shape[:2], height, width), np.float32)
                target = whole[:, :, y : y + side, x : x + side]
                target[:] = part[:, :, y - top : y - top + target.shape[2], x - left : x - left + target.shape[3]]
        assert whole is not None
        return whole

    def detect(
        self,
        images: Any,
        image_hws: Sequence[tuple[int, int]],
        output_hws: Sequence[tuple[int, int]],
        zooms: Sequence[float] = (),
    ) -> list[Instances]:
        """The objects of each image at the resolution ``output_hws``, best first; see `Network.detect`.

        zooms: pixels of each image per pixel of the network's input; () if the decoder does not need them, or if all
        are 1.
        """
        maps = self.output_maps(self.maps(images, image_hws), image_hws, output_hws)
        sizes = zip(image_hws, output_hws, zooms or [1.0] * len(output_hws), strict=True)
        places = [Place.whole(own, zoom, self.padded_hw(input_hw, own)) for input_hw, own, zoom in sizes]
        return [self.decode(of_image, place) for of_image, place in zip(maps, places, strict=True)]

    def padded_hw(self, input_hw: tuple[int, int], output_hw: tuple[int, int]) -> tuple[int, int]:
        """The size to which the network pads its input, at the scale of the output."""
        height, width = (
            -(-side // self.stride) * self.stride * output // side
            for side, output in zip(input_hw, output_hw, strict=True)
        )
        return height, width

    def detect_views(
        self, views: Sequence[View], render: Any, output_hw: tuple[int, int], zooms: Sequence[float] = (1.0,)
    ) -> Instances:
        """The objects of one image with test-time augmentation, best first; see `DetectsViews.detect_views`."""
        return self.decode(self.mean_maps(views, render, output_hw), Place.whole(output_hw, zooms[0], output_hw))

    def mean_maps(self, views: Sequence[View], render: Any, output_hw: tuple[int, int]) -> np.ndarray:
        """The input of `decode`, averaged over views after their maps are turned back; flows turn as vectors."""
        total = None
        for view in views:
            images, image_hw = render(view)
            turned_back = view.turn_maps_back(self.maps(images)[0], self.target.channels)
            (maps,) = self.output_maps(turned_back[None], [image_hw], [output_hw])
            total = maps if total is None else np.add(total, maps, out=total)
        assert total is not None  # there is at least one view
        return np.divide(total, np.float32(len(views)), out=total)

    def output_maps(
        self, maps: np.ndarray, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> Iterator[np.ndarray]:
        """The input of `decode` for the `maps` of each image at ``output_hws``: (D, H, W) float32, or (D + K, H, W)."""
        for of_image, image_hw, output_hw in zip(maps, image_hws, output_hws, strict=True):
            inside = of_image[:, : image_hw[0], : image_hw[1]]
            if image_hw != output_hw:
                inside = resized(inside, output_hw, antialias=self.target.antialias)
            own = np.ascontiguousarray(inside)
            self.target.stretch(own, image_hw, output_hw)
            yield own

    def decode(self, maps: np.ndarray, place: Place | None = None) -> Instances:
        """The objects of one image's maps (D, h, w) float32, or (D + K, h, w); see `Target.instances`."""
        return self.target.instances(maps, place)

    def pruned_config(self, depth: int) -> UNetConfig:
        """The configuration of the levels 0 to ``depth`` alone. Raises `UsageError` where that is not possible."""
        config = self.config
        if not isinstance(config, UNetConfig) or config.skips != "nested" or not config.deep_supervision:
            got = f"model.kind: {config.kind}"
            if isinstance(config, UNetConfig):
                got = f"model.skips: {config.skips}, model.deep_supervision: {str(config.deep_supervision).lower()}"
            raise UsageError(
                "this network cannot be pruned",
                got=got,
                expected="a U-Net that was trained with nested and true",
                remedy="omit `pruned_to`",
            )
        if not 1 <= depth <= config.depth:
            raise UsageError(
                "invalid `pruned_to`", got=depth, expected=f"1 to {config.depth}, the depth of the network"
            )
        return config.model_copy(update={"depth": depth})
