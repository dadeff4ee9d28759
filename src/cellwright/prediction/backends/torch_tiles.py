"""Prediction of one tile with a network: equal to the same part of the whole image's prediction.

window of the source -> normalise with the facts of the image -> resize -> network -> maps -> resize -> decode
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cellwright.config.input import InputConfig
from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.memory import return_freed_memory
from cellwright.core.notes import Note
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.source import ImageSource
from cellwright.data.network_input import network_hw, network_window
from cellwright.data.resize import resized_window
from cellwright.data.views import PLAIN, View
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.ops.batch import stack_images
from cellwright.ops.placement import Placement
from cellwright.prediction.backends.torch import NetworkPredictor, turned
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.tiling.cut import cut_to
from cellwright.prediction.tiling.facts import ImageFacts, find_facts
from cellwright.prediction.tiling.grid import Grid, Tile, aligned_window
from cellwright.prediction.tiling.statistics import read_block

# Largest object that a halo holds, in diameters of the median object, and in network pixels where that is not known.
OBJECT_DIAMETERS, OBJECT_PX = 4, 160
# Margin of a network whose reach is not known, or that depends on statistics of all it sees, network px.
UNKNOWN_REACH_PX = 256
FIELD_STATISTICS = "the network depends on statistics of all it sees"
FIXED_SCALE = "a fixed scale instead of a short side"
# The caps of a recipe, on proposals, are meant for images of about so many pixels at the network's scale.
CAPPED_PX = 1 << 20
# Boxes grow when masks are pasted, by less than this, source px.
PASTE_PX = 256


@dataclass(frozen=True, eq=False)
class NetworkTiles:
    """What all networks that predict tiles share: facts, grid, and the input of a window."""

    predictor: NetworkPredictor

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """The facts of an image; see `find_facts`."""
        predictor, short_side = self.predictor, self.predictor.input_config.short_side
        predictor.network.eval()
        with torch.inference_mode():
            facts = find_facts(
                source,
                self.config,
                predictor.resize_rule,
                predictor.detect_input,
                training=predictor.training,
                diameter_px=predictor.diameter_px,
                trained_um=predictor.pixel_size_um,
                track=track,
            )
        if self.sees_the_field:
            text = "the network depends on statistics of all it sees: tiles and the whole image give similar objects"
            facts = replace(facts, notes=(*facts.notes, Note(FIELD_STATISTICS, text)))
        if short_side is None:
            return facts
        text = (
            f"the model resizes whole images to a short side of {short_side} px; tile by tile it sees "
            f"{predictor.scale:.3g} pixels per pixel of the image, as in training"
        )
        return replace(facts, notes=(*facts.notes, Note(FIXED_SCALE, text)))

    def grid(self, facts: ImageFacts, core_px: int) -> Grid:
        """The tiles of an image. core_px: largest side of a core, network px."""
        return Grid(facts.source_hw, facts.net_hw, self.stride, core_px, self.reach_px + self.object_px)

    def covering(self, facts: ImageFacts, core: Window, output: Window) -> Tile:
        """See `TileModel`."""
        (height, width), (h, w) = facts.source_hw, facts.net_hw
        ys, xs = (y * h / height for y in core[::2]), (x * w / width for x in core[1::2])
        (y0, y1), (x0, x1) = ((math.floor(low), math.ceil(high)) for low, high in (ys, xs))
        window = aligned_window(output, facts.source_hw, facts.net_hw, self.stride, self.reach_px)
        return Tile(0, 0, 0, Window(y0, x0, y1, x1), window, output)

    @property
    def object_px(self) -> int:
        """The largest object that is expected, network px."""
        diameter_px = self.config.diameter_px
        return OBJECT_PX if diameter_px is None else int(OBJECT_DIAMETERS * diameter_px)

    @property
    def config(self) -> InputConfig:
        """The network's input, at one scale for all images."""
        config, scale = self.predictor.input_config, self.predictor.scale
        if config.short_side is None or scale is None:  # without a scale, `tile_model` does not get here
            return config
        return config.model_copy(update={"short_side": None, "max_side": None, "scale": scale})

    @property
    def stride(self) -> int:
        """Windows begin at multiples of it, network px."""
        return self.predictor.network.stride

    @property
    def reach_px(self) -> int:
        """How far the image influences what the network says about a pixel, network px."""
        raise NotImplementedError

    @property
    def sees_the_field(self) -> bool:
        """Whether the network depends on statistics of all it sees, and is defined on windows of one size."""
        raise NotImplementedError

    def net_hw(self, facts: ImageFacts, view: View) -> tuple[int, int]:
        """(h, w) of the whole image at the size of a view."""
        config = facts.config(self.config)
        if facts.diameter is None:
            return network_hw(facts.source_hw, view.input_config(config), self.predictor.resize_rule)
        px, scale = facts.diameter.px, view.scale
        if px is not None:
            scale = Diameter.of(px / view.scale, (1, 1), config, estimated=False).scale
        height, width = (max(1, int(side * scale + 0.5)) for side in facts.source_hw)
        return height, width

    def window(self, facts: ImageFacts, view: View, tile: Tile) -> Window:
        """What the network sees of a view for a tile, network px at the size of the view."""
        net_hw = self.net_hw(facts, view)
        if net_hw == facts.net_hw:
            return tile.window
        return aligned_window(tile.output, facts.source_hw, net_hw, self.stride, self.reach_px)

    def inputs(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Callable[[View], tuple[Window, np.ndarray]]:
        """The function from a view to its window, cut to the image, and the pixels (C, h, w) in that: neither turned
        nor padded. Those of one size are kept until another is asked for."""
        kept: dict[object, tuple[Window, np.ndarray]] = {}

        def input_of(view: View) -> tuple[Window, np.ndarray]:
            if view.size not in kept:
                kept.clear()
                window, (height, width) = self.window(facts, view, tile), self.net_hw(facts, view)
                inside = Window(window.y0, window.x0, min(window.y1, height), min(window.x1, width))
                kept[view.size] = inside, self.pixels(source, facts, (height, width), inside)
            return kept[view.size]

        return input_of

    def pixels(self, source: ImageSource, facts: ImageFacts, net_hw: tuple[int, int], window: Window) -> np.ndarray:
        """The network's input (C, h, w) in a window of network pixels, of which the whole image has ``net_hw``."""
        return network_window(
            lambda part: read_block(source, part),
            facts.config(self.config),
            self.predictor.resize_rule,
            facts.limits or None,
            (facts.source_hw, net_hw),
            window,
        )


@dataclass(frozen=True, eq=False)
class DenseTiles(NetworkTiles):
    """A dense network that predicts tiles of sources, which have the channels that it sees."""

    @property
    def reach_px(self) -> int:
        """That of the U-Net."""
        reach = self.network.reach_px
        return UNKNOWN_REACH_PX if reach is None else reach

    # A U-Net sees a whole image in windows where memory is short.
    whole_bytes_per_px = 0.0

    @property
    def sees_the_field(self) -> bool:
        """Encoders of timm may."""
        return self.network.reach_px is None

    @property
    def bytes_per_px(self) -> float:
        """As measured on 2.4 megapixels at width 16, with plain skips."""
        return 100 + 2.5 * self.network.bytes_of_channels + self.network.bytes_of_maps

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """All objects in a tile's output, in its pixels, best first."""
        if facts.diameter is not None and facts.diameter.is_noise:
            return Instances.empty(tile.output.hw, scored=True)
        total: np.ndarray | None = None
        input_of = self.inputs(source, facts, tile)
        for view in self.predictor.views:
            window, pixels = input_of(view)
            maps = self._in_output(self._maps(view, pixels), self.net_hw(facts, view), window, facts, tile.output)
            total = maps if total is None else np.add(total, maps, out=total)
        assert total is not None  # there is at least one view
        if len(self.predictor.views) > 1:
            total /= np.float32(len(self.predictor.views))
        return self.network.decode(total)

    def _maps(self, view: View, pixels: np.ndarray) -> np.ndarray:
        """The maps (D, h, w) of a window that begins at a multiple of the stride; zeros beyond the image."""
        stride, (height, width) = self.stride, pixels.shape[1:]
        padded = np.pad(pixels, [(0, 0), (0, -height % stride), (0, -width % stride)])
        with torch.inference_mode():
            turned = torch.from_numpy(view.turn(padded))[None].to(self.predictor.device)
            maps = self.network.maps(turned)[0].cpu().numpy()
        return_freed_memory(collect=False)  # decoding reuses what the network had
        return view.turn_maps_back(maps, self.network.target.channels)[:, :height, :width]

    def _in_output(
        self, maps: np.ndarray, net_hw: tuple[int, int], window: Window, facts: ImageFacts, output: Window
    ) -> np.ndarray:
        """Maps of a window of network pixels in source pixels of the output."""

        def read(part: Window) -> np.ndarray:
            return maps[:, part.y0 - window.y0 : part.y1 - window.y0, part.x0 - window.x0 : part.x1 - window.x0]

        resized = np.array(resized_window(read, net_hw, facts.source_hw, output), order="C")
        self.network.target.stretch(resized, net_hw, facts.source_hw)
        return resized

    @property
    def network(self) -> DenseNetwork:
        """The network."""
        network = self.predictor.network
        assert isinstance(network, DenseNetwork)
        return network


@dataclass(frozen=True, eq=False)
class RCNNTiles(NetworkTiles):
    """A network of the R-CNN family that predicts tiles.

    Boxes are placed in the image as those of the whole image are, and masks pasted there.
    """

    @property
    def stride(self) -> int:
        """Also that of the coarsest anchors."""
        return self.network.window_stride

    @property
    def reach_px(self) -> int:
        """That of the features and proposals."""
        return self.network.reach_px

    @property
    def sees_the_field(self) -> bool:
        """With group normalisation in the backbone or the pyramid."""
        config = self.network.config
        return "group_norm" in (config.backbone.norm, getattr(getattr(config, "fpn", None), "norm", None))

    @property
    def bytes_per_px(self) -> float:
        """Maps of the stem, of res2 and of the finest level of the pyramid."""
        config = self.network.config
        pyramid = getattr(config, "fpn", None)
        channels = 64 if pyramid is None else pyramid.channels
        return 200 + 4 * (3 * config.backbone.width / 4 + config.backbone.width + channels / 3)

    @property
    def whole_bytes_per_px(self) -> float:
        """At the scale of the whole image; with a short side, or on a GPU, its size does not matter."""
        config, is_on_cpu = self.predictor.input_config, torch.device(self.predictor.device).type == "cpu"
        return self.bytes_per_px * config.scale**2 if config.short_side is None and is_on_cpu else 0.0

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """All objects in a tile's output, in its pixels, best first."""
        if facts.diameter is not None and facts.diameter.is_noise:
            return Instances.empty(tile.output.hw, scored=True)
        views, canvas, input_of = self.predictor.views, self._canvas(facts, tile), self.inputs(source, facts, tile)

        def render(view: View) -> tuple[Tensor, tuple[int, int]]:
            stacked, (input_hw,) = stack_images([torch.from_numpy(input_of(view)[1])], self.predictor.network.stride)
            return turned(stacked.to(self.predictor.device), view), input_hw

        def place(view: View, _: tuple[int, int]) -> Placement:
            window = input_of(view)[0]
            return Placement(self.net_hw(facts, view), facts.source_hw, (window.y0, window.x0), canvas)

        with torch.inference_mode():
            height, width = tile.window.hw
            factor = max(height * width / CAPPED_PX, 1.0)
            if views == PLAIN:
                network = self.network.for_window(factor, self._near(tile))
                images, input_hw = render(views[0])
                (found,) = network.detect_placed(images, [input_hw], [place(views[0], input_hw)])
            else:
                found = self.network.for_window(factor).detect_views_placed(views, render, place)
        return cut_to(found, canvas, tile.output)

    def _near(self, tile: Tile) -> Window:
        """Where objects are that may be the tile's, and those that compete with them, px of its window."""
        (y0, x0, y1, x1), (top, left, _, _), margin = tile.core, tile.window, self.object_px
        return Window(y0 - top - margin, x0 - left - margin, y1 - top + margin, x1 - left + margin)

    def _canvas(self, facts: ImageFacts, tile: Tile) -> Window:
        """The part of the image in which objects are placed: up to its end, and from before the first box on."""
        starts = []
        for view in self.predictor.views:
            window, net_hw = self.window(facts, view, tile), self.net_hw(facts, view)
            for axis, (side, whole) in enumerate(zip(net_hw, facts.source_hw, strict=True)):
                starts.append((axis, max(int(window[axis] * whole / side) - PASTE_PX, 0)))
        y0, x0 = (min(start for own, start in starts if own == axis) for axis in (0, 1))
        return Window(y0, x0, *facts.source_hw)

    @property
    def network(self) -> MaskRCNN:
        """The network."""
        network = self.predictor.network
        assert isinstance(network, MaskRCNN)
        return network
