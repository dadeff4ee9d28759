"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017) as feature extractors, optionally with deformable convolutions.

The stages are named as in the paper: the stem (7x7, stride 2, followed by pooling), then res2, res3, res4 and res5,
whose outputs have strides of 4, 8, 16 and 32 px.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_rcnn import BLOCKS_PER_STAGE, BOTTLENECK_FROM_DEPTH, BackboneConfig
from cellwright.config.section import decided
from cellwright.models.layers import ConvNorm, DeformConvNorm, NormName, init_kaiming


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H/stride,W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, norm: NormName, norm_eps: float) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm, norm_eps=norm_eps, relu=True)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm, norm_eps=norm_eps, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H/stride,W/stride]."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, stage: int, config: BackboneConfig, norm: NormName
    ) -> None:
        """``stage``: 2 to 5; it sets the width of the 3x3 convolution and whether that is deformable."""
        super().__init__()
        first, second = (stride, 1) if decided(config.stride_in_1x1) else (1, stride)
        inner, eps = config.inner_width * 2 ** (stage - 2), config.norm_eps
        self.conv1 = ConvNorm(in_channels, inner, 1, stride=first, norm=norm, norm_eps=eps, relu=True)
        if stage in config.deformable_stages:
            self.conv2 = DeformConvNorm(inner, inner, config, stride=second, norm=norm)
        else:
            self.conv2 = ConvNorm(
                inner, inner, 3, stride=second, groups=config.groups, norm=norm, norm_eps=eps, relu=True
            )
        self.conv3 = ConvNorm(inner, out_channels, 1, norm=norm, norm_eps=eps, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x), inplace=True)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormName, norm_eps: float) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm, norm_eps=norm_eps, relu=False)


class ResNet(nn.Module):
    """Images to feature maps.

    Attributes:
        out_channels: channels of (stem, res2, res3, res4, res5), as ``forward`` returns them.
    """

    def __init__(self, config: BackboneConfig, in_channels: int) -> None:
        """``config`` must be resolved; ``in_channels`` is that of the image.

        A frozen stage is not trained, and its batch norm keeps its statistics (it becomes frozen batch norm).
        """
        super().__init__()
        bottlenecks = config.depth >= BOTTLENECK_FROM_DEPTH
        # Output channels of each stage; the stem is stage 1.
        channels = {1: decided(config.stem_channels)}
        channels |= {stage: config.width * 2 ** (stage - 2) * (4 if bottlenecks else 1) for stage in range(2, 6)}
        self.out_channels = tuple(channels.values())

        def norm_of(stage: int) -> NormName:
            frozen = config.norm == "batch_norm" and stage <= config.frozen_stages
            return "frozen_batch_norm" if frozen else config.norm

        def blocks(stage: int) -> nn.Sequential:
            layers, norm = [], norm_of(stage)
            for index in range(BLOCKS_PER_STAGE[config.depth][stage - 2]):
                entry = channels[stage - 1] if index == 0 else channels[stage]
                stride = 2 if stage > 2 and index == 0 else 1
                if bottlenecks:
                    block = Bottleneck(entry, channels[stage], stride, stage=stage, config=config, norm=norm)
                else:
                    block = BasicBlock(entry, channels[stage], stride, norm=norm, norm_eps=config.norm_eps)
                layers.append(block)
            return nn.Sequential(*layers)

        self.stem = ConvNorm(
            in_channels, channels[1], 7, stride=2, norm=norm_of(1), norm_eps=config.norm_eps, relu=True
        )
        self.res2, self.res3, self.res4, self.res5 = (blocks(stage) for stage in range(2, 6))
        init_kaiming(self)
        for frozen in [self.stem, self.res2, self.res3, self.res4, self.res5][: config.frozen_stages]:
            frozen.requires_grad_(False)

    def forward(self, images: Tensor, last_stage: int = 5) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> maps of the stem (stride 2, before pooling), res2 .. ``last_stage``, finest first."""
        maps = [self.stem(images)]
        x = F.max_pool2d(maps[0], kernel_size=3, stride=2, padding=1)
        for stage in (self.res2, self.res3, self.res4, self.res5)[: last_stage - 1]:
            x = stage(x)
            maps.append(x)
        return maps


def reach_of(config: BackboneConfig, last_stage: int) -> int:
    """How far from a pixel the image can influence the last of the maps, at most, px."""
    reach, convs = 5, 1 if config.depth >= BOTTLENECK_FROM_DEPTH else 2  # the stem and the pooling; 3x3 of a block
    for stage in range(2, last_stage + 1):
        reach += BLOCKS_PER_STAGE[config.depth][stage - 2] * convs * 2**stage
    return reach
