"""U-Net++ (Zhou et al. 2018): a U-Net whose skip connections are nested and dense.

    X[0,0] -> X[0,1] -> X[0,2] -> X[0,3] -> maps     width channels
      X[1,0] -> X[1,1] -> X[1,2]                     2 width
        X[2,0] -> X[2,1]                             4 width
          X[3,0]                                     8 width, at depth 3

X[i,0] is the encoder's output at level i. X[i,j] is a block on X[i,0] to X[i,j-1] and on X[i+1,j-1], upsampled. With
deep supervision, each X[0,j] predicts the maps. It depends on the levels 0 to j alone: they are a network of depth j by
themselves, which is what remains of a pruned one, with the same names of its weights.

Shape shorthand: B images, C channels, D predicted maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_dense import UNetConfig
from cellwright.core.errors import RecipeError
from cellwright.models.dense.encoders import TimmUNet
from cellwright.models.dense.unet import Block, Rows, strips
from cellwright.models.layers import init_kaiming, init_normal


class NestedDecoder(nn.Module):
    """The nodes X[i,j] with j >= 1.

    Args:
        channels: of the encoder's output at each level, finest first.
    """

    def __init__(self, config: UNetConfig, channels: Sequence[int]) -> None:
        super().__init__()
        self.depth = len(channels) - 1
        self.upsample, self.blocks = nn.ModuleDict(), nn.ModuleDict()
        for level, (own, coarser) in enumerate(pairwise(channels)):
            width = config.width * 2**level
            for column in range(1, self.depth - level + 1):
                name = f"{level}_{column}"
                self.upsample[name] = nn.ConvTranspose2d(coarser if column == 1 else 2 * width, width, 2, 2)
                self.blocks[name] = Block(config, own + column * width, width)
        init_kaiming(self)

    def node(self, level: int, row: Sequence[Tensor], coarser: Tensor) -> Tensor:
        """X[i,j] from X[i,0] to X[i,j-1], FloatTensor[B,C,H,W], and X[i+1,j-1], FloatTensor[B,C,H/2,W/2]."""
        name = f"{level}_{len(row)}"
        return self.blocks[name](torch.cat([*row, self.upsample[name](coarser)], dim=1))

    def forward(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        """X[0,0], X[1,0] and so on -> X[0,1], X[0,2] and so on, FloatTensor[B,width,H,W] each."""
        rows = [[x] for x in encoded]
        for column in range(1, self.depth + 1):
            for level in range(self.depth - column + 1):
                rows[level].append(self.node(level, rows[level], rows[level + 1][column - 1]))
        return rows[0][1:]


class NestedUNet(nn.Module):
    """Predicts maps of the size of the image; has the attributes of `unet.UNet`."""

    def __init__(self, config: UNetConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depth, self.stride = config.depth, 2**config.depth
        self.in_channels, self.out_channels = in_channels, out_channels
        # No way through the nodes is longer than the one down to the coarsest level and straight up, that of a U-Net.
        self.reach_px: int | None = 2 * (2 * self.stride - 1) + 2 * (self.stride - 1) + self.stride
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.encoder = nn.ModuleList(Block(config, a, b) for a, b in pairwise([in_channels, *widths]))
        init_kaiming(self.encoder)
        self.decoder = NestedDecoder(config, widths)
        self.maps = map_layers(config, out_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> [FloatTensor[B,D,H,W]], the maps before any activation.

        In training with deep supervision, the maps of the columns before the last follow, of the same size.
        """
        encoded = [self.encoder[0](images.contiguous(memory_format=torch.channels_last))]
        for block in self.encoder[1:]:
            encoded.append(block(F.max_pool2d(encoded[-1], 2)))
        return predict_columns(self.maps, self.decoder(encoded), training=self.training)

    @torch.no_grad()
    def maps_in_strips(self, images: Tensor) -> Tensor:
        """The first result of `forward` outside training, to the bit, with a fraction of its memory.

        Each node runs in strips of rows. Only those of the coarser levels are kept whole: the nodes of level 0, which
        are the largest, run one after the other on a strip with all the rows that they see.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        height, last = images.shape[2], list(self.maps)[-1]
        pooled, maps = Rows(height // 2), Rows(height)
        for y, end, top, bottom in strips(height):
            strip = self.encoder[0](images[:, :, top:bottom])[:, :, y - top : end - top]
            pooled.put(y // 2, F.max_pool2d(strip, 2))
        coarser = self._level(pooled, 1)
        for y, end, top, bottom in strips(height, 2 * self.depth):
            above, below = max(top - 2, 0), min(bottom + 2, height)
            row = [self.encoder[0](images[:, :, above:below])[:, :, top - above : bottom - above]]
            for x in coarser:
                row.append(self.decoder.node(0, row, x[:, :, top // 2 : bottom // 2]))
            maps.put(y, self.maps[last](row[-1][:, :, y - top : end - top]))
        return maps.take()

    def _level(self, inputs: Rows, level: int) -> list[Tensor]:
        """All nodes of a level from the encoder's input there, which is let go."""
        x, first = inputs.take(), Rows(inputs.height)
        for y, end, top, bottom in strips(inputs.height):
            first.put(y, self.encoder[level](x[:, :, top:bottom])[:, :, y - top : end - top])
        del x
        row = [first.take()]
        if level == self.depth:
            return row
        coarser = self._level(Rows.of(F.max_pool2d(row[0], 2)), level + 1)
        while coarser:
            node, from_below = Rows(inputs.height), coarser.pop(0)
            for y, end, top, bottom in strips(inputs.height):
                seen = [x[:, :, top:bottom] for x in row]
                strip = self.decoder.node(level, seen, from_below[:, :, top // 2 : bottom // 2])
                node.put(y, strip[:, :, y - top : end - top])
            row.append(node.take())
        return row


class NestedTimmUNet(TimmUNet):
    """A U-Net++ with an encoder of timm, which must have a map of every stride from 2 on.

    Raises as `TimmUNet`.
    """

    def add_decoder(self, config: UNetConfig, channels: dict[int, int]) -> None:
        """See `TimmUNet`."""
        strides = [2**level for level in range(config.depth + 1)]
        if missing := [stride for stride in strides if stride not in channels]:
            raise RecipeError(
                "this encoder has no feature maps for some nodes of a U-Net with nested skips",
                where=f"timm:{self.name}",
                got=f"none of stride {', '.join(map(str, missing))}",
                expected=f"strides that double, from 2 to {self.stride}",
                remedy="choose another encoder, such as timm:resnet18, or set model.skips: plain",
            )
        self.decoder = NestedDecoder(config, [channels[stride] for stride in strides])
        self.maps = map_layers(config, self.out_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> the maps before any activation, FloatTensor[B,D,H,W] each, as in `NestedUNet`."""
        encoded = self.encode(images)
        columns = self.decoder([encoded[stride] for stride in sorted(encoded)])
        return predict_columns(self.maps, columns, training=self.training)


def map_layers(config: UNetConfig, out_channels: int) -> nn.ModuleDict:
    """The last layers, by the column whose node they see: of all columns with deep supervision, or of the last."""
    columns = range(1 if config.deep_supervision else config.depth, config.depth + 1)
    layers = {str(column): nn.Conv2d(config.width, out_channels, 1) for column in columns}
    for layer in layers.values():
        init_normal(layer, std=0.01)
    return nn.ModuleDict(layers)


def predict_columns(layers: nn.ModuleDict, columns: Sequence[Tensor], *, training: bool) -> list[Tensor]:
    """The maps of the nodes X[0,1], X[0,2] and so on, last first; only those of the last outside training."""
    names = list(layers)[::-1]
    return [layers[name](columns[int(name) - 1]) for name in (names if training else names[:1])]
