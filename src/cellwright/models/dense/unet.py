"""U-Net (Ronneberger et al. 2015): an encoder that halves the resolution, a decoder that doubles it, and skip
connections. `nested` has the U-Net with nested ones.

    width --------------------------------> width -> maps
      2 width -------------------> 2 width
        4 width ------> 4 width
          8 width

Shape shorthand: B images, C channels of a stage, D predicted maps. Convolutions are padded, unlike in the paper, so the
maps are as large as the image.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_dense import UNetConfig
from cellwright.models.layers import ConvNorm, init_kaiming, init_normal

# Rows that the finest stage computes at once where memory matters.
STRIP_PX = 128


class Block(nn.Module):
    """Two 3x3 convolutions: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H,W].

    ``config.style`` "residual" adds the input to their output (He et al. 2016), through a 1x1 convolution where the
    numbers of channels differ.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        residual, norm = config.style == "residual", config.norm
        self.conv1 = ConvNorm(in_channels, out_channels, 3, norm=norm, relu=True)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm, relu=not residual)
        self.shortcut: nn.Module | None = None
        if residual:
            same = in_channels == out_channels
            self.shortcut = nn.Identity() if same else ConvNorm(in_channels, out_channels, 1, norm=norm, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(self.conv1(x))
        return hidden if self.shortcut is None else F.relu(hidden + self.shortcut(x), inplace=True)


class UNet(nn.Module):
    """Predicts maps of the size of the image.

    Attributes:
        stride: H and W of the images must be multiples of it, px.
        in_channels: channels of the images.
        out_channels: D, the number of maps.
        reach_px: how far from a pixel of the maps the image can influence it, at most.
    """

    def __init__(self, config: UNetConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride, self.in_channels, self.out_channels = 2**config.depth, in_channels, out_channels
        # Two 3x3 convolutions at each resolution, on the way down and up, and the coarsest cell itself.
        self.reach_px: int | None = 2 * (2 * self.stride - 1) + 2 * (self.stride - 1) + self.stride
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        inputs = [in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(Block(config, a, b) for a, b in zip(inputs, widths, strict=True))
        # Coarse to fine: stage k of the decoder has ``widths[depth - 1 - k]`` channels.
        finer = widths[-2::-1]
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in finer)
        self.decoder = nn.ModuleList(Block(config, 2 * c, c) for c in finer)
        # Deep supervision (Lee et al. 2015): in training the coarser decoder stages predict the maps too.
        maps = [nn.Conv2d(c, out_channels, 1) for c in (finer if config.deep_supervision else finer[-1:])]
        self.maps = nn.ModuleList(maps)
        init_kaiming(self)
        for layer in maps:
            init_normal(layer, std=0.01)

    def forward(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> [FloatTensor[B,D,H,W]], the maps before any activation.

        In training with deep supervision, the maps of the coarser stages follow: FloatTensor[B,D,H/2,W/2] and so on.
        """
        # Channels last: 1.3 times faster on a CPU, twice as fast with bf16.
        skips = [self.encoder[0](images.contiguous(memory_format=torch.channels_last))]
        for block in self.encoder[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        x, stages = skips.pop(), []
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), upsample(x)], dim=1))
            stages.append(x)
        return predict_maps(self.maps, stages, training=self.training)

    @torch.no_grad()
    def maps_in_strips(self, images: Tensor) -> Tensor:
        """The first result of `forward` outside training, to the bit, with a quarter of its memory.

        Each stage runs in strips of rows, with the rows around them that its two convolutions see. Only its output is
        kept whole, and not that of the finest encoder, which is the largest: it is computed again for the decoder.
        """
        return self._stage(Rows.of(images.contiguous(memory_format=torch.channels_last)), 0, self.maps[-1])

    def _stage(self, inputs: Rows, level: int, then: nn.Module) -> Tensor:
        """The decoder's output at a level, after ``then``, from the encoder's input there, which is let go."""
        x = inputs.take()
        height, is_coarsest = x.shape[2], level == len(self.decoder)
        skip, pooled = Rows(height), Rows(height // 2)
        for y, end, top, bottom in strips(height):
            strip = self.encoder[level](x[:, :, top:bottom])[:, :, y - top : end - top]
            if level > 0 or is_coarsest:
                skip.put(y, strip)
            if not is_coarsest:
                pooled.put(y // 2, F.max_pool2d(strip, 2))
        if is_coarsest:
            return skip.take()
        finest = x if level == 0 else None
        del x
        coarser = self._stage(pooled, level + 1, nn.Identity())
        upsample, block, out = self.upsample[-1 - level], self.decoder[-1 - level], Rows(height)
        for y, end, top, bottom in strips(height):
            finer = upsample(coarser[:, :, top // 2 : bottom // 2])
            if finest is None:
                own = skip.all[:, :, top:bottom]
            else:
                above, below = max(top - 2, 0), min(bottom + 2, height)
                own = self.encoder[0](finest[:, :, above:below])[:, :, top - above : bottom - above]
            strip = block(torch.cat([own, finer], dim=1))
            out.put(y, then(strip[:, :, y - top : end - top]))
        return out.take()


class Rows:
    """A tensor of which rows are put one strip after the other; it is made with the first."""

    all: Tensor

    def __init__(self, height: int) -> None:
        self.height = height

    @classmethod
    def of(cls, tensor: Tensor) -> Rows:
        """A whole tensor."""
        rows = cls(tensor.shape[2])
        rows.all = tensor
        return rows

    def put(self, y: int, strip: Tensor) -> None:
        """Copy a strip to the rows from ``y`` on."""
        if not hasattr(self, "all"):
            n, channels, _, width = strip.shape
            self.all = torch.empty((n, channels, self.height, width), memory_format=torch.channels_last).to(strip)
        self.all[:, :, y : y + strip.shape[2]] = strip

    def take(self) -> Tensor:
        """The tensor, which is no longer kept here."""
        tensor = self.all
        del self.all
        return tensor


def strips(height: int, margin: int = 2) -> Iterator[tuple[int, int, int, int]]:
    """First and last row of each strip, then with the rows that are seen around it; all are even.

    margin: rows above and below, even; two 3x3 convolutions see 2.
    """
    for y in range(0, height, STRIP_PX):
        end = min(y + STRIP_PX, height)
        yield y, end, max(y - margin, 0), min(end + margin, height)


def predict_maps(layers: nn.ModuleList, stages: list[Tensor], *, training: bool) -> list[Tensor]:
    """The maps of the decoder's ``stages`` (coarse to fine), finest first; only the finest outside training."""
    n = len(layers) if training else 1
    return [layer(stage) for layer, stage in zip(layers[-n:], stages[-n:], strict=True)][::-1]
