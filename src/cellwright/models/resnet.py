"""ResNet-18, 34, 50 and 101 (He et al. 2016) as a feature extractor.

Stages in the paper's words: stem (7x7, stride 2, then pooled), res2, res3, res4, res5 with strides 4, 8, 16, 32 px.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.models.layers import ConvNorm, NormName, init_kaiming

BLOCKS_PER_STAGE: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
BOTTLENECK_FROM_DEPTH = 50


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: FloatTensor[B,C_in,H,W] -> FloatTensor[B,width,H/stride,W/stride]."""

    def __init__(self, in_channels: int, width: int, stride: int, *, norm: NormName, norm_eps: float) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, 3, stride=stride, norm=norm, norm_eps=norm_eps, relu=True)
        self.conv2 = ConvNorm(width, width, 3, norm=norm, norm_eps=norm_eps, relu=False)
        self.shortcut = _shortcut(in_channels, width, stride, norm, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut: FloatTensor[B,C_in,H,W] -> FloatTensor[B,4*width,H/stride,W/stride].

    ``stride_in_1x1``: the first 1x1 takes the stride (the paper, Detectron2's zoo) instead of the 3x3 (torchvision).
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, *, stride_in_1x1: bool, norm: NormName, norm_eps: float
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        out_channels = 4 * width
        self.conv1 = ConvNorm(in_channels, width, 1, stride=first, norm=norm, norm_eps=norm_eps, relu=True)
        self.conv2 = ConvNorm(width, width, 3, stride=second, norm=norm, norm_eps=norm_eps, relu=True)
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm, norm_eps=norm_eps, relu=False)
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
        norm: NormName,
        norm_eps: float,
        stride_in_1x1: bool,
        frozen_stages: int,
    ) -> None:
        """See ``BackboneConfig`` for the keywords; ``in_channels`` is that of the image.

        A frozen stage is not trained, and its batch norm keeps its statistics (it becomes frozen batch norm).
        """
        super().__init__()
        norms: list[NormName] = [
            "frozen_batch_norm" if norm == "batch_norm" and stage < frozen_stages else norm for stage in range(5)
        ]
        expansion = 4 if depth >= BOTTLENECK_FROM_DEPTH else 1
        outs = [width * 2**stage * expansion for stage in range(4)]
        self.out_channels = (stem_channels, *outs)

        def stage(number: int) -> nn.Sequential:
            layers = []
            for index in range(BLOCKS_PER_STAGE[depth][number]):
                entry = self.out_channels[number] if index == 0 else outs[number]
                stride = 2 if number > 0 and index == 0 else 1
                style = {"norm": norms[number + 1], "norm_eps": norm_eps}
                if depth >= BOTTLENECK_FROM_DEPTH:
                    block = Bottleneck(entry, width * 2**number, stride, stride_in_1x1=stride_in_1x1, **style)
                else:
                    block = BasicBlock(entry, width * 2**number, stride, **style)
                layers.append(block)
            return nn.Sequential(*layers)

        self.stem = ConvNorm(in_channels, stem_channels, 7, stride=2, norm=norms[0], norm_eps=norm_eps, relu=True)
        self.res2, self.res3, self.res4, self.res5 = (stage(number) for number in range(4))
        init_kaiming(self)
        for frozen in [self.stem, self.res2, self.res3, self.res4, self.res5][:frozen_stages]:
            frozen.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> five maps of stride 2 (stem, before pooling), 4, 8, 16, 32 px."""
        stem = self.stem(images)
        res2 = self.res2(F.max_pool2d(stem, kernel_size=3, stride=2, padding=1))
        res3 = self.res3(res2)
        res4 = self.res4(res3)
        return [stem, res2, res3, res4, self.res5(res4)]
