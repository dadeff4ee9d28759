"""Prediction of one tile with a dense network: equal to the same part of the whole image's prediction.

window of the source -> normalise with the facts of the image -> resize -> U-Net -> maps -> resize -> decode
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.source import ImageSource
from cellwright.data.resize import resized_window
from cellwright.models.dense.dense import DenseNetwork
from cellwright.prediction.backends.torch import NetworkPredictor
from cellwright.prediction.tiling.facts import ImageFacts, find_facts
from cellwright.prediction.tiling.grid import Grid, Tile
from cellwright.prediction.tiling.statistics import read_block

# Largest object that a halo holds, in diameters of the median object, and in network pixels where that is not known.
OBJECT_DIAMETERS, OBJECT_PX = 4, 160


@dataclass(frozen=True, eq=False)
class DenseTiles:
    """A dense network that predicts tiles of sources, which have the channels that it sees."""

    predictor: NetworkPredictor

    def facts(self, source: ImageSource, *, track: Track = no_progress) -> ImageFacts:
        """The facts of an image; see `find_facts`."""
        predictor = self.predictor
        predictor.network.eval()
        with torch.inference_mode():
            return find_facts(
                source,
                predictor.input_config,
                predictor.resize_rule,
                predictor.detect_input,
                training=predictor.training,
                diameter_px=predictor.diameter_px,
                track=track,
            )

    def grid(self, facts: ImageFacts, core_px: int) -> Grid:
        """The tiles of an image. core_px: largest side of a core, network px."""
        config = self.predictor.input_config
        largest = OBJECT_PX if config.diameter_px is None else int(OBJECT_DIAMETERS * config.diameter_px)
        assert self.network.reach_px is not None  # other networks do not get here
        halo = self.network.reach_px + largest
        return Grid(facts.source_hw, facts.net_hw, self.network.stride, core_px, halo)

    def maps(self, source: ImageSource, facts: ImageFacts, window: Window) -> np.ndarray:
        """The maps (D, h, w) of a window of network pixels, which is aligned to the stride; zeros beyond the image."""
        height, width = facts.net_hw
        inside = Window(window.y0, window.x0, min(window.y1, height), min(window.x1, width))
        pixels = self._pixels(source, facts, inside)
        padded = np.zeros((1, len(pixels), *window.hw), np.float32)
        padded[0, :, : pixels.shape[1], : pixels.shape[2]] = pixels
        with torch.inference_mode():
            maps = self.network.maps(torch.from_numpy(padded).to(self.predictor.device))[0]
            return maps[:, : pixels.shape[1], : pixels.shape[2]].cpu().numpy()

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """All objects in a tile's output, in its pixels, best first."""
        if facts.diameter is not None and facts.diameter.is_noise:
            return Instances.empty(tile.output.hw, scored=True)
        maps, output = self.maps(source, facts, tile.window), tile.output
        if facts.net_hw != facts.source_hw:

            def read(window: Window) -> np.ndarray:
                y0, x0 = tile.window.y0, tile.window.x0
                return maps[:, window.y0 - y0 : window.y1 - y0, window.x0 - x0 : window.x1 - x0]

            maps = resized_window(read, facts.net_hw, facts.source_hw, output)
        else:
            y0, x0 = output.y0 - tile.window.y0, output.x0 - tile.window.x0
            maps = maps[:, y0 : y0 + output.hw[0], x0 : x0 + output.hw[1]]
        return self.network.decode(np.ascontiguousarray(maps))

    @property
    def network(self) -> DenseNetwork:
        """The network."""
        network = self.predictor.network
        assert isinstance(network, DenseNetwork)
        return network

    def _pixels(self, source: ImageSource, facts: ImageFacts, window: Window) -> np.ndarray:
        """The network's input (C, h, w) in a window of network pixels."""

        def read(part: Window) -> np.ndarray:
            return facts.normalised(read_block(source, part), self.predictor.input_config)

        return resized_window(read, facts.source_hw, facts.net_hw, window)
