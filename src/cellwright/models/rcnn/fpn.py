"""Feature pyramid network (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.models.layers import ConvNorm, NormName


class FPN(nn.Module):
    """Bottom-up maps c_k .. c_5 to pyramid maps p_k .. p_6 of one width; level l has a stride of 2**l px.

    p_6 is p_5 at every second pixel; only the proposal network looks at it.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm: NormName) -> None:
        """``in_channels``: of the bottom-up maps, finest first."""
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(c, channels, 1, norm=norm, relu=False) for c in in_channels)
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3, norm=norm, relu=False) for _ in in_channels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``maps``: FloatTensor[B,C_l,H_l,W_l], finest first, each half the size of the one before."""
        merged = self.lateral[-1](maps[-1])
        pyramid = [self.output[-1](merged)]
        for lateral, output, bottom_up in zip(
            reversed(self.lateral[:-1]), reversed(self.output[:-1]), reversed(maps[:-1]), strict=True
        ):
            merged = lateral(bottom_up) + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            pyramid.append(output(merged))
        pyramid.reverse()
        pyramid.append(pyramid[-1][:, :, ::2, ::2])
        return pyramid
