"""The network of Cellpose 3: a residual U-Net whose decoder sees a style vector, the mean of the coarsest features.

    image -> 32 ------------------------> 32 -> maps     encoder: residual blocks, halved by max pooling
               64 --------------> 64                     decoder: residual blocks, doubled by repetition; the encoder's
                 128 ----> 128                           features are added, and the style to each convolution's input
                     256 -> style

Source: Stringer, Wang, Michaelos and Pachitariu, Nature Methods 2021; Stringer and Pachitariu, Nature Methods 2025.
Convolutions follow batch norm and ReLU (He et al. 2016, "Identity mappings").

Shape shorthand: B images, C channels of a stage, S channels of the style, D predicted maps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_dense import CellposeConfig
from cellwright.models.layers import init_kaiming, init_normal

LEVELS = 4
MOMENTUM = 0.05


class NormConv(nn.Module):
    """Batch norm, ReLU, and a convolution: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H,W]."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 3, *, relu: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, momentum=MOMENTUM)
        self.relu = relu
        self.conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return self.conv(F.relu(normed, inplace=True) if self.relu else normed)


class EncoderBlock(nn.Module):
    """Two residual units of two convolutions; the first has a projection."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.shortcut = NormConv(in_channels, channels, 1, relu=False)
        self.convs = nn.ModuleList(NormConv(in_channels if k == 0 else channels, channels) for k in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(x) + self.convs[1](self.convs[0](x))
        return x + self.convs[3](self.convs[2](x))


class DecoderBlock(nn.Module):
    """As `EncoderBlock`; all convolutions but the first see their input plus a linear map of the style."""

    def __init__(self, in_channels: int, channels: int, style_channels: int) -> None:
        super().__init__()
        self.shortcut = NormConv(in_channels, channels, 1, relu=False)
        self.convs = nn.ModuleList(NormConv(in_channels if k == 0 else channels, channels) for k in range(4))
        self.styles = nn.ModuleList(nn.Linear(style_channels, channels) for _ in range(3))

    def forward(self, x: Tensor, skip: Tensor, style: Tensor) -> Tensor:
        shifts = [linear(style)[:, :, None, None] for linear in self.styles]
        x = self.shortcut(x) + self.convs[1](self.convs[0](x) + skip + shifts[0])
        return x + self.convs[3](self.convs[2](x + shifts[1]) + shifts[2])


class CellposeUNet(nn.Module):
    """Predicts maps of the size of the image, as `unet.UNet`. Its style depends on all that it sees."""

    reach_px: int | None = None

    def __init__(self, config: CellposeConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride, self.in_channels, self.out_channels = 2 ** (LEVELS - 1), in_channels, out_channels
        widths = [config.width * 2**level for level in range(LEVELS)]
        self.encoder = nn.ModuleList(
            EncoderBlock(a, b) for a, b in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        # Fine to coarse, like the encoder; the coarsest block gets the coarsest features twice.
        coarser = [*widths[1:], widths[-1]]
        self.decoder = nn.ModuleList(DecoderBlock(a, b, widths[-1]) for a, b in zip(coarser, widths, strict=True))
        self.maps = NormConv(widths[0], out_channels, 1)
        init_kaiming(self)
        init_normal(self.maps.conv, std=0.01)

    def forward(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> [FloatTensor[B,D,H,W]], the maps before any activation."""
        skips = [self.encoder[0](images.contiguous(memory_format=torch.channels_last))]
        for block in self.encoder[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        mean = skips[-1].mean(dim=(2, 3))
        style = mean / (mean**2).sum(dim=1, keepdim=True).sqrt()
        x = skips[-1]
        for level in range(LEVELS - 1, -1, -1):
            if level < LEVELS - 1:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = self.decoder[level](x, skips[level], style)
        return [self.maps(x)]
