"""The layer every block is made of: a convolution, plain or deformable, with its normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, deform_conv2d

NormName = Literal["none", "batch_norm", "frozen_batch_norm", "group_norm"]


def make_norm(name: NormName, channels: int, eps: float = 1e-5) -> nn.Module:
    """A normalisation of FloatTensor[B,channels,H,W]; "none" is the identity.

    Group norm has 32 groups (Wu & He 2018), as Detectron2 does, or groups of 8 channels where 32 does not divide them;
    ``channels`` must be a multiple of 8.
    """
    match name:
        case "none":
            return nn.Identity()
        case "batch_norm":
            return nn.BatchNorm2d(channels, eps=eps)
        case "frozen_batch_norm":
            return FrozenBatchNorm2d(channels, eps=eps)
        case "group_norm":
            return nn.GroupNorm(channels // 8 if channels % 32 else 32, channels, eps=eps)


class ConvNorm(nn.Module):
    """Convolution, normalisation and, where asked for, ReLU: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H',W'].

    The convolution has a bias only where there is no normalisation. Padding keeps H and W at stride 1, where
    the kernel is odd; a 2x2 has none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: NormName,
        norm_eps: float = 1e-5,
        relu: bool,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=norm == "none")
        self.norm = make_norm(norm, out_channels, norm_eps)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolve(x)
        # An image without objects gives a head no region at all: batch norm refuses that, and nothing is to be done.
        # Not `len`, which would fix the number of regions in an exported graph.
        x = self.norm(x) if x.shape[0] else x
        return F.relu(x, inplace=True) if self.relu else x

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return self.conv(x)


@dataclass(frozen=True, kw_only=True)
class Deformable:
    """How a deformable convolution samples.

    Attributes:
        groups: parts of the input's channels that have offsets of their own.
        modulated: every sample has a weight in [0, 1] too (version 2).
    """

    groups: int = 1
    modulated: bool = False


class DeformConvNorm(ConvNorm):
    """``ConvNorm`` whose 3x3 convolution reads where a second convolution tells it to, off the regular grid.

    Version 1 (Dai et al. 2017): ``offset`` predicts (dy, dx), px of the input, for each of the 9 samples of every
    output pixel: 18 channels a group. Version 2 (Zhu et al. 2019): 9 more, the logits of the samples' weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        deformable: Deformable,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: NormName,
        norm_eps: float = 1e-5,
        relu: bool,
    ) -> None:
        super().__init__(
            in_channels, out_channels, 3, stride=stride, groups=groups, norm=norm, norm_eps=norm_eps, relu=relu
        )
        self.n_offsets = 18 * deformable.groups
        n_weights = 9 * deformable.groups if deformable.modulated else 0
        self.stride = stride
        self.offset = nn.Conv2d(in_channels, self.n_offsets + n_weights, 3, stride, padding=1)
        self.start_regular()

    def start_regular(self) -> None:
        """Offsets of 0 everywhere, and weights of 1/2, as both papers start."""
        init_normal(self.offset, std=0.0)

    def convolve(self, x: Tensor) -> Tensor:
        # Positions need more digits than 16-bit floats have, and the CPU's kernel knows no bfloat16: under autocast
        # all of this runs in the weights' own type.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.conv.weight.dtype)
            predicted = self.offset(x)
            offsets, logits = predicted[:, : self.n_offsets], predicted[:, self.n_offsets :]
            return deform_conv2d(
                x,
                offsets,
                self.conv.weight,
                self.conv.bias,
                stride=(self.stride, self.stride),
                padding=(1, 1),
                mask=logits.sigmoid() if logits.shape[1] else None,
            )


def init_kaiming(module: nn.Module) -> None:
    """He et al. 2015, fan-out, for every convolution inside; biases 0. For layers followed by ReLU.

    Deformable convolutions start on the regular grid.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, DeformConvNorm):
            layer.start_regular()


def init_normal(layer: nn.Conv1d | nn.Conv2d | nn.Linear, std: float) -> None:
    """Normal weights of ``std`` and zero bias, as the papers set predictors."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
