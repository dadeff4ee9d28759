"""The network of StarDist: a U-Net on a grid of every second, fourth, ... pixel, which predicts star-convex polygons.

    image -> convolutions, halved until the grid -> U-Net -> features -> probability, rays

Source: Schmidt, Weigert, Broaddus and Myers, MICCAI 2018. The decoder doubles by repetition, and sees the coarser
features before those of the encoder. Maps are given at all pixels: between the points of the grid, which are the pixels
at its multiples, they are interpolated.

Shape shorthand: B images, C channels of a stage, D predicted maps, g the grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_dense import StarDistConfig
from cellwright.models.layers import init_kaiming, init_normal


class Convs(nn.Sequential):
    """3x3 convolutions, each with ReLU; ``widths`` are the channels before the first, between and after the last."""

    def __init__(self, widths: Iterable[int]) -> None:
        super().__init__(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in the base class
        for conv in self:
            input = F.relu(conv(input), inplace=True)  # noqa: A001
        return input


class StarDistUNet(nn.Module):
    """Predicts maps of the size of the image, as `unet.UNet`."""

    def __init__(self, config: StarDistConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.grid, self.in_channels, self.out_channels = config.grid, in_channels, out_channels
        self.stride = config.grid * 2**config.depth
        width, depth, n = config.width, config.depth, config.convs
        widths = [width * 2**level for level in range(depth + 1)]
        halvings = config.grid.bit_length() - 1
        self.shrink = nn.ModuleList(Convs([width if k else in_channels] + [width] * n) for k in range(halvings))
        inputs = [width if halvings else in_channels, *widths[:-2]]
        self.encoder = nn.ModuleList(Convs([a] + [b] * n) for a, b in zip(inputs, widths[:-1], strict=True))
        # The last convolution of the middle and of each stage of the decoder has the channels of the next finer one.
        self.middle = Convs([widths[-2]] + [widths[-1]] * (n - 1) + [widths[-2]])
        finer = [widths[0], *widths[:-2]]
        self.decoder = nn.ModuleList(
            Convs([2 * a] + [a] * (n - 1) + [b]) for a, b in zip(widths[:-1], finer, strict=True)
        )
        self.features = Convs([width, config.features] if config.features else [width])
        last = config.features or width
        self.maps = nn.ModuleList([nn.Conv2d(last, 1, 1), nn.Conv2d(last, out_channels - 1, 1)])
        steps = [n * 2**k for k in range(halvings)] + [2 * n * config.grid * 2**level for level in range(depth)]
        self.reach_px = sum(steps) + (n + 2) * self.stride + 3 * config.grid
        init_kaiming(self)
        for layer in self.maps:
            init_normal(layer, std=0.01)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> [FloatTensor[B,D,H,W]], the maps before any activation."""
        x = images.contiguous(memory_format=torch.channels_last)
        for convs in self.shrink:
            x = F.max_pool2d(convs(x), 2)
        skips = []
        for block in self.encoder:
            skips.append(block(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        x = self.features(x)
        return [between_points(torch.cat([layer(x) for layer in self.maps], dim=1), self.grid)]


def between_points(maps: Tensor, grid: int) -> Tensor:
    """FloatTensor[B,D,h,w] of points, which are ``grid`` pixels apart from the first on -> [B,D,h*g,w*g], bilinear.

    >>> between_points(torch.tensor([[[[0.0, 2.0]]]]), 2).tolist()
    [[[[0.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.0]]]]
    """
    if grid == 1:
        return maps
    height, width = maps.shape[2] * grid, maps.shape[3] * grid
    beyond = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    return F.interpolate(beyond, (height + 1, width + 1), mode="bilinear", align_corners=True)[:, :, :height, :width]
