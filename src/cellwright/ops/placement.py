"""Where the input of a network lies in the image that its objects are given for.

image -> resized to the network's scale -> a window of that, the input
boxes of the input -> boxes of the image, or of a window of it, the canvas
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cellwright.core.geometry import Window
from cellwright.ops.boxes import scale_boxes


@dataclass(frozen=True)
class Placement:
    """See the module's docstring.

    resized_hw: (h, w) of the whole image at the network's scale. image_hw: (H, W) of the whole image. start_yx: the
    first pixel of the input, network px. canvas: the window of the image that objects are given in, px of the image.
    """

    resized_hw: tuple[int, int]
    image_hw: tuple[int, int]
    start_yx: tuple[int, int]
    canvas: Window

    @staticmethod
    def whole(resized_hw: tuple[int, int], image_hw: tuple[int, int]) -> Placement:
        """For the whole image."""
        return Placement(resized_hw, image_hw, (0, 0), Window(0, 0, *image_hw))

    @property
    def output_hw(self) -> tuple[int, int]:
        """(height, width) of the canvas."""
        return self.canvas.hw

    @property
    def is_whole(self) -> bool:
        """Whether the input is the whole image."""
        return self.start_yx == (0, 0) and self.canvas == Window(0, 0, *self.image_hw)

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes FloatTensor[N,4] of the input, in pixels of the canvas; not clipped.

        >>> placement = Placement((50, 50), (100, 100), (20, 10), Window(30, 0, 100, 100))
        >>> placement.boxes(torch.tensor([[0.0, 0, 5, 5]])).tolist()
        [[20.0, 10.0, 30.0, 20.0]]
        """
        if self.is_whole:
            return scale_boxes(boxes, self.resized_hw, self.image_hw)
        # In float64: far from the origin of a large image, float32 is too coarse.
        placed = scale_boxes(boxes.double() + _twice(self.start_yx, boxes), self.resized_hw, self.image_hw)
        return (placed - _twice((self.canvas.y0, self.canvas.x0), boxes)).to(boxes)

    def boxes_back(self, boxes: Tensor) -> Tensor:
        """The inverse of `boxes`."""
        if self.is_whole:
            return scale_boxes(boxes, self.image_hw, self.resized_hw)
        placed = boxes.double() + _twice((self.canvas.y0, self.canvas.x0), boxes)
        return (scale_boxes(placed, self.image_hw, self.resized_hw) - _twice(self.start_yx, boxes)).to(boxes)


def _twice(yx: tuple[int, int], like: Tensor) -> Tensor:
    return torch.tensor([yx[1], yx[0], yx[1], yx[0]], dtype=torch.float64, device=like.device)
