"""The layer every block is made of: a convolution with its normalisation."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

NormName = Literal["none", "batch_norm", "frozen_batch_norm", "group_norm"]


def make_norm(name: NormName, channels: int, eps: float = 1e-5) -> nn.Module:
    """A normalisation of FloatTensor[B,channels,H,W]; "none" is the identity.

    Group norm has 32 groups (Wu & He 2018), or groups of 8 channels where there are fewer than 256.
    """
    match name:
        case "none":
            return nn.Identity()
        case "batch_norm":
            return nn.BatchNorm2d(channels, eps=eps)
        case "frozen_batch_norm":
            return FrozenBatchNorm2d(channels, eps=eps)
        case "group_norm":
            return nn.GroupNorm(min(32, channels // 8), channels, eps=eps)


class ConvNorm(nn.Module):
    """Convolution, normalisation and, where asked for, ReLU: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H',W'].

    The convolution has a bias only where there is no normalisation. Padding keeps H and W at stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        norm: NormName,
        norm_eps: float = 1e-5,
        relu: bool,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=norm == "none")
        self.norm = make_norm(norm, out_channels, norm_eps)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        # An image without objects gives a head no region at all: batch norm refuses that, and nothing is to be done.
        x = self.norm(x) if len(x) else x
        return F.relu(x, inplace=True) if self.relu else x


def init_kaiming(module: nn.Module) -> None:
    """He et al. 2015, fan-out, for every convolution inside; biases 0. For layers followed by ReLU."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Normal weights of ``std`` and zero bias, as the papers set predictors."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
