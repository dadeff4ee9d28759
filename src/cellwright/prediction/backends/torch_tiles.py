"""Prediction of one tile with a network: equal to the same part of the whole image's prediction.

window of the source -> normalise with the facts of the image -> resize -> network -> maps -> resize -> decode
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cellwright.config.input import InputConfig
from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.source import ImageSource
from cellwright.data.network_input import network_hw, network_window
from cellwright.data.resize import resized_window
from cellwright.data.views import View
from cellwright.models.dense.dense import DenseNetwork
from cellwright.prediction.backends.torch import NetworkPredictor
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.tiling.facts import ImageFacts, find_facts
from cellwright.prediction.tiling.grid import Grid, Tile, aligned_window
from cellwright.prediction.tiling.statistics import read_block

# Largest object that a halo holds, in diameters of the median object, and in network pixels where that is not known.
OBJECT_DIAMETERS, OBJECT_PX = 4, 160
# Margin of a network whose reach is not known, or that depends on statistics of all it sees, network px.
UNKNOWN_REACH_PX = 256


@dataclass(frozen=True, eq=False)
class NetworkTiles:
    """What all networks that predict tiles share: facts, grid, and the input of a window."""

    predictor: NetworkPredictor

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """The facts of an image; see `find_facts`."""
        predictor = self.predictor
        predictor.network.eval()
        with torch.inference_mode():
            return find_facts(
                source,
                self.config,
                predictor.resize_rule,
                predictor.detect_input,
                training=predictor.training,
                diameter_px=predictor.diameter_px,
                track=track,
            )

    def grid(self, facts: ImageFacts, core_px: int) -> Grid:
        """The tiles of an image. core_px: largest side of a core, network px."""
        config = self.config
        largest = OBJECT_PX if config.diameter_px is None else int(OBJECT_DIAMETERS * config.diameter_px)
        return Grid(facts.source_hw, facts.net_hw, self.stride, core_px, self.reach_px + largest)

    @property
    def config(self) -> InputConfig:
        """The network's input, at one scale for all images."""
        return self.predictor.input_config

    @property
    def stride(self) -> int:
        """Windows begin at multiples of it, network px."""
        return self.predictor.network.stride

    @property
    def reach_px(self) -> int:
        """How far the image influences what the network says about a pixel, network px."""
        raise NotImplementedError

    def net_hw(self, facts: ImageFacts, view: View) -> tuple[int, int]:
        """(h, w) of the whole image at the size of a view."""
        config = self.config
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

    def inputs(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Iterator[tuple[View, Window, np.ndarray]]:
        """For each view its window, cut to the image, and the pixels (C, h, w) in that, not turned or padded."""
        sizes: dict[object, tuple[Window, np.ndarray]] = {}
        for view in self.predictor.views:
            if view.size not in sizes:  # views of one size follow each other
                sizes.clear()
                window, (height, width) = self.window(facts, view, tile), self.net_hw(facts, view)
                inside = Window(window.y0, window.x0, min(window.y1, height), min(window.x1, width))
                sizes[view.size] = inside, self.pixels(source, facts, (height, width), inside)
            yield view, *sizes[view.size]

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

    @property
    def bytes_per_px(self) -> float:
        """As measured on 2.4 megapixels at width 16."""
        return 100 + 50 * self.network.config.width

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """All objects in a tile's output, in its pixels, best first."""
        if facts.diameter is not None and facts.diameter.is_noise:
            return Instances.empty(tile.output.hw, scored=True)
        total: np.ndarray | None = None
        for view, window, pixels in self.inputs(source, facts, tile):
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
        return view.turn_maps_back(maps, self.network.target.channels)[:, :height, :width]

    def _in_output(
        self, maps: np.ndarray, net_hw: tuple[int, int], window: Window, facts: ImageFacts, output: Window
    ) -> np.ndarray:
        """Maps of a window of network pixels in source pixels of the output."""

        def read(part: Window) -> np.ndarray:
            return maps[:, part.y0 - window.y0 : part.y1 - window.y0, part.x0 - window.x0 : part.x1 - window.x0]

        return np.ascontiguousarray(resized_window(read, net_hw, facts.source_hw, output))

    @property
    def network(self) -> DenseNetwork:
        """The network."""
        network = self.predictor.network
        assert isinstance(network, DenseNetwork)
        return network
