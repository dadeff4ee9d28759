"""Prediction of one tile with a network of the R-CNN family, in PyTorch; see `tiling/network_tiles.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.data.images.source import ImageSource
from cellwright.data.views import PLAIN, View
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.ops.placement import Placement
from cellwright.prediction.tiling.cut import cut_to
from cellwright.prediction.tiling.facts import ImageFacts
from cellwright.prediction.tiling.grid import Tile
from cellwright.prediction.tiling.network_tiles import NetworkTiles

# The caps of a recipe, on proposals, are meant for images of about so many pixels at the network's scale.
CAPPED_PX = 1 << 20
# Boxes grow when masks are pasted, by less than this, source px.
PASTE_PX = 256


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
        config, is_on_cpu = self.predictor.input_config, self.predictor.is_on_cpu
        return self.bytes_per_px * config.scale**2 if config.short_side is None and is_on_cpu else 0.0

    def objects(self, source: ImageSource, facts: ImageFacts, tile: Tile) -> Instances:
        """All objects in a tile's output, in its pixels, best first."""
        if facts.diameter is not None and facts.diameter.is_noise:
            return Instances.empty(tile.output.hw, scored=True)
        views, canvas, input_of = self.predictor.views, self._canvas(facts, tile), self.inputs(source, facts, tile)

        def render(view: View) -> tuple[Any, tuple[int, int]]:
            return self.predictor.turned(input_of(view)[1], view)

        def place(view: View, _: tuple[int, int]) -> Placement:
            window = input_of(view)[0]
            return Placement(self.net_hw(facts, view), facts.source_hw, (window.y0, window.x0), canvas)

        with self.predictor.running([tile.window.hw]):
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
