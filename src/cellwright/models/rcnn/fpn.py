"""Feature pyramid network (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_rcnn import FPNConfig
from cellwright.models.layers import ConvNorm


class FPN(nn.Module):
    """Backbone maps to pyramid maps p_k .. p_6 of equal width, k = ``config.first_level``; level l has stride 2**l px.

    p_6 is p_5 at every second pixel; only the proposal network uses it.
    """

    def __init__(self, config: FPNConfig, backbone_channels: Sequence[int]) -> None:
        """``backbone_channels``: of the backbone's maps, from level 1 (stride 2 px) to level 5."""
        super().__init__()
        in_channels = backbone_channels[config.first_level - 1 :]
        layer = {"norm": config.norm, "relu": False}
        self.lateral = nn.ModuleList(ConvNorm(channels, config.channels, 1, **layer) for channels in in_channels)
        self.output = nn.ModuleList(ConvNorm(config.channels, config.channels, 3, **layer) for _ in in_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, backbone_maps: Sequence[Tensor]) -> list[Tensor]:
        """``backbone_maps``: FloatTensor[B,C_l,H_l,W_l], finest first, each half the size of the previous one; those
        finer than the pyramid are ignored. Returns the pyramid, finest first, p_6 last."""
        maps = backbone_maps[-len(self.lateral) :]
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
