"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017) as feature extractors, with deformable convolutions.

Stages in the paper's words: stem (7x7, stride 2, then pooled), res2, res3, res4, res5 with strides 4, 8, 16, 32 px.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.models.layers import ConvNorm, Deformable, DeformConvNorm, NormName, init_kaiming

BLOCKS_PER_STAGE: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_FROM_DEPTH = 50


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H/stride,W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, norm: NormName, norm_eps: float) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm, norm_eps=norm_eps, relu=True)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm, norm_eps=norm_eps, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x), inplace=True)


@dataclass(frozen=True, kw_only=True)
class BottleneckStyle:
    """What the bottlenecks of a network have in common.

    Attributes:
        channels: of the 3x3 convolutions in res2; twice as many in each stage that follows.
        groups: of these convolutions (ResNeXt).
        stride_in_1x1: the first 1x1 takes the stride (the paper, Detectron2's zoo) instead of the 3x3 (torchvision).
        deformable: how these convolutions sample in ``deformable_stages``, of 2 to 5; plain ones elsewhere.
    """

    channels: int
    groups: int
    stride_in_1x1: bool
    deformable: Deformable
    deformable_stages: tuple[int, ...]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H/stride,W/stride]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        stage: int,
        style: BottleneckStyle,
        norm: NormName,
        norm_eps: float,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if style.stride_in_1x1 else (1, stride)
        inner = style.channels * 2 ** (stage - 2)
        spatial = {"stride": second, "groups": style.groups, "norm": norm, "norm_eps": norm_eps, "relu": True}
        self.conv1 = ConvNorm(in_channels, inner, 1, stride=first, norm=norm, norm_eps=norm_eps, relu=True)
        if stage in style.deformable_stages:
            self.conv2 = DeformConvNorm(inner, inner, style.deformable, **spatial)
        else:
            self.conv2 = ConvNorm(inner, inner, 3, **spatial)
        self.conv3 = ConvNorm(inner, out_channels, 1, norm=norm, norm_eps=norm_eps, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm, norm_eps)

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

    def __init__(
        self,
        *,
        depth: int,
        in_channels: int,
        width: int,
        stem_channels: int,
        bottlenecks: BottleneckStyle,
        norm: NormName,
        norm_eps: float,
        frozen_stages: int,
    ) -> None:
        """See ``BackboneConfig`` for the keywords; ``in_channels`` is that of the image.

        A frozen stage is not trained, and its batch norm keeps its statistics (it becomes frozen batch norm).
        """
        super().__init__()
        expansion = 4 if depth >= BOTTLENECK_FROM_DEPTH else 1
        # channels[s] is what stage s puts out, the stem being stage 1.
        channels = {1: stem_channels} | {stage: width * 2 ** (stage - 2) * expansion for stage in range(2, 6)}
        self.out_channels = tuple(channels.values())
        norms: dict[int, NormName] = {
            stage: "frozen_batch_norm" if norm == "batch_norm" and stage <= frozen_stages else norm
            for stage in channels
        }

        def blocks(stage: int) -> nn.Sequential:
            normal = {"norm": norms[stage], "norm_eps": norm_eps}
            layers = []
            for index in range(BLOCKS_PER_STAGE[depth][stage - 2]):
                entry = channels[stage - 1] if index == 0 else channels[stage]
                stride = 2 if stage > 2 and index == 0 else 1
                if depth >= BOTTLENECK_FROM_DEPTH:
                    block = Bottleneck(entry, channels[stage], stride, stage=stage, style=bottlenecks, **normal)
                else:
                    block = BasicBlock(entry, channels[stage], stride, **normal)
                layers.append(block)
            return nn.Sequential(*layers)

        self.stem = ConvNorm(in_channels, stem_channels, 7, stride=2, norm=norms[1], norm_eps=norm_eps, relu=True)
        self.res2, self.res3, self.res4, self.res5 = (blocks(stage) for stage in range(2, 6))
        init_kaiming(self)
        for frozen in [self.stem, self.res2, self.res3, self.res4, self.res5][:frozen_stages]:
            frozen.requires_grad_(False)

    def forward(self, images: Tensor, last_stage: int = 5) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> maps of the stem (stride 2, before pooling), res2, .. ``last_stage`` (4 .. 32 px)."""
        maps = [self.stem(images)]
        x = F.max_pool2d(maps[0], kernel_size=3, stride=2, padding=1)
        for stage in (self.res2, self.res3, self.res4, self.res5)[: last_stage - 1]:
            x = stage(x)
            maps.append(x)
        return maps
