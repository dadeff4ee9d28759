"""Prediction of one tile with a network: equal to the same part of the whole image's prediction.

window of the source -> normalise with the facts of the image -> resize -> network -> maps -> resize -> decode
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.memory import return_freed_memory
from cellwright.core.notes import Note
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.source import ImageSource
from cellwright.data.network_input import network_hw, network_window, scaled_hw
from cellwright.data.resize import resized_window
from cellwright.data.value_range import OUTLIERS
from cellwright.data.views import PLAIN, View
from cellwright.models.dense.labels import Place
from cellwright.models.dense.prediction import DensePrediction
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.network import NetworkPredictor
from cellwright.prediction.tiling.facts import ImageFacts, find_facts
from cellwright.prediction.tiling.grid import Grid, Tile, aligned_window
from cellwright.prediction.tiling.statistics import read_block

# Largest object that a halo holds, in diameters of the median object, and in network pixels where that is not known.
OBJECT_DIAMETERS, OBJECT_PX = 4, 160
# Margin of a network whose reach is not known, or that depends on statistics of all it sees, network px.
UNKNOWN_REACH_PX = 256
FIELD_STATISTICS = "the network depends on statistics of all it sees"
FIXED_SCALE = "a fixed scale instead of a short side"


@dataclass(frozen=True, eq=False)
class NetworkTiles:
    """What all networks that predict tiles share: facts, grid, and the input of a window."""

    predictor: NetworkPredictor

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """The facts of an image; see `find_facts`."""
        predictor, short_side = self.predictor, self.predictor.input_config.short_side
        with predictor.running([source.image_hw]):
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
        if predictor.cuts_off_values:
            facts = replace(facts, notes=tuple(note for note in facts.notes if note.kind != OUTLIERS))
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
        return scaled_hw(facts.source_hw, scale, self.config.resampling)

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
            window, maps = self._seen(source, facts, tile, view, input_of)
            maps = self._in_output(maps, self.net_hw(facts, view), window, facts, tile.output)
            total = maps if total is None else np.add(total, maps, out=total)
        assert total is not None  # there is at least one view
        if len(self.predictor.views) > 1:
            total /= np.float32(len(self.predictor.views))
        zoom = 1.0 if facts.diameter is None else 1 / facts.diameter.scale
        origin, padded_hw = (tile.output.y0, tile.output.x0), facts.source_hw
        if self.predictor.views == PLAIN:
            padded_hw = self.network.padded_hw(facts.net_hw, facts.source_hw)
        return self.network.decode(total, Place(origin, facts.source_hw, zoom, padded_hw))

    def _seen(
        self,
        source: ImageSource,
        facts: ImageFacts,
        tile: Tile,
        view: View,
        input_of: Callable[[View], tuple[Window, np.ndarray]],
    ) -> tuple[Window, np.ndarray]:
        """The window that the network sees for a tile, cut to the image, and its maps (D, h, w)."""
        window, pixels = input_of(view)
        return window, self._maps(view, pixels)

    def _maps(self, view: View, pixels: np.ndarray) -> np.ndarray:
        """The maps (D, h, w) of a window that begins at a multiple of the stride; padding beyond the image."""
        stride, (height, width) = self.stride, pixels.shape[1:]
        beyond = [(0, 0), (0, -height % stride), (0, -width % stride)]
        padded = np.pad(pixels, beyond, mode=self.network.pad_mode)
        with self.predictor.running([(height, width)]):
            maps = self.network.maps(self.predictor.as_input(view.turn(padded)[None]))[0]
        return_freed_memory(collect=False)  # decoding reuses what the network had
        return view.turn_maps_back(maps, self.network.target.channels)[:, :height, :width]

    def _in_output(
        self, maps: np.ndarray, net_hw: tuple[int, int], window: Window, facts: ImageFacts, output: Window
    ) -> np.ndarray:
        """Maps of a window of network pixels in source pixels of the output."""

        def read(part: Window) -> np.ndarray:
            return maps[:, part.y0 - window.y0 : part.y1 - window.y0, part.x0 - window.x0 : part.x1 - window.x0]

        antialias = self.network.target.antialias
        resized = np.array(resized_window(read, net_hw, facts.source_hw, output, antialias=antialias), order="C")
        self.network.target.stretch(resized, net_hw, facts.source_hw)
        return resized

    @property
    def network(self) -> DensePrediction:
        """The network."""
        network = self.predictor.network
        assert isinstance(network, DensePrediction)
        return network


@dataclass(frozen=True, eq=False)
class FixedTiles(DenseTiles):
    """A dense network that is defined on tiles of its own, which lie as in the whole image: see `fixed_tiles`."""

    @property
    def reach_px(self) -> int:
        """0: the tiles of the network are read beyond the window."""
        return 0

    @property
    def sees_the_field(self) -> bool:
        """Its tiles are those of the whole image."""
        return False

    @property
    def bytes_per_px(self) -> float:
        """Of the maps and of decoding; the network sees a few tiles at once, whatever the size of the window."""
        return 200.0

    def _seen(
        self,
        source: ImageSource,
        facts: ImageFacts,
        tile: Tile,
        view: View,
        input_of: Callable[[View], tuple[Window, np.ndarray]],
    ) -> tuple[Window, np.ndarray]:
        """See `DenseTiles`; views were refused."""
        (height, width), window = facts.net_hw, tile.window
        inside = Window(window.y0, window.x0, min(window.y1, height), min(window.x1, width))
        with self.predictor.running([inside.hw]):
            maps = self.predictor.network.region_maps(
                lambda part: self.pixels(source, facts, facts.net_hw, part), facts.net_hw, inside
            )
        return inside, maps
