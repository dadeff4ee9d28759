"""A dense network that is defined on tiles of a fixed size, as Cellpose's is: maps of images of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.core.geometry import Window
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.fixed_tiles import maps_of_region


class TiledNetwork(DenseNetwork):
    """Its maps are those of `fixed_tiles`; in training it sees crops at once."""

    @property
    def input_multiple_px(self) -> int:
        """See `DensePrediction`; it pads images itself."""
        return 1

    def maps(self, images: Any, image_hws: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """See `DensePrediction`; zeros beyond each image."""
        pixels = images.cpu().numpy() if isinstance(images, Tensor) else images
        whole = np.zeros((len(pixels), self.n_maps, *pixels.shape[2:]), np.float32)
        for index, (height, width) in enumerate(image_hws or [pixels.shape[2:]] * len(pixels)):
            region = Window(0, 0, height, width)
            whole[index, :, :height, :width] = self.region_maps(
                lambda window, image=pixels[index]: window.of(image), region.hw, region
            )
        return whole

    def region_maps(
        self, read: Callable[[Window], np.ndarray], image_hw: tuple[int, int], region: Window
    ) -> np.ndarray:
        """The maps (D + K, h, w) float32 of a region, in the encoder's units; see `maps_of_region`."""
        with torch.no_grad():
            logits = maps_of_region(read, image_hw, region, self._output)
            return self.activated(torch.from_numpy(logits)[None])[0].numpy()

    def _output(self, tiles: np.ndarray) -> np.ndarray:
        device = next(self.unet.parameters()).device
        return self.unet(torch.from_numpy(tiles).to(device))[0].float().cpu().numpy()
