"""The layer that every block consists of: a convolution, plain or deformable, with its normalisation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_rcnn import BackboneConfig
from cellwright.ops.winograd import convolve_3x3, is_faster

NormName = Literal["none", "batch_norm", "frozen_batch_norm", "group_norm"]


def make_norm(name: NormName, channels: int, eps: float = 1e-5) -> nn.Module:
    """A normalisation layer for FloatTensor[B,channels,H,W]; "none" is the identity.

    Group norm has 32 groups (Wu & He 2018), as in Detectron2, or groups of 8 channels where 32 does not divide
    ``channels``, which must be a multiple of 8.
    """
    match name:
        case "none":
            return nn.Identity()
        case "batch_norm":
            return nn.BatchNorm2d(channels, eps=eps)
        case "frozen_batch_norm":
            from torchvision.ops import FrozenBatchNorm2d  # takes two seconds, and dense networks do without

            return FrozenBatchNorm2d(channels, eps=eps)
        case "group_norm":
            return nn.GroupNorm(channels // 8 if channels % 32 else 32, channels, eps=eps)


class ConvNorm(nn.Module):
    """Convolution, normalisation and optional ReLU: FloatTensor[B,C_in,H,W] -> FloatTensor[B,C_out,H',W'].

    The convolution has a bias only if ``norm`` is "none". Odd kernels are padded so that stride 1 keeps H and W; a 2x2
    kernel has no padding.

    Attributes:
        normalises_nothing: whether the norm is called for B = 0 in training, too; see `share_batch_norm`.
    """

    normalises_nothing = False

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
        # A head may get no regions (images without objects), which batch norm rejects.
        # `x.shape[0]` and not `len(x)`, which would fix the number of regions in an exported graph.
        x = self.norm(x) if x.shape[0] or (self.training and self.normalises_nothing) else x
        return F.relu(x, inplace=True) if self.relu else x

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return self.conv(x)


def share_batch_norm(network: nn.Module) -> None:
    """Prepare ``network`` for `Ranks.shared_batch_norm`: a head without regions still has to answer other ranks."""
    for layer in network.modules():
        if isinstance(layer, ConvNorm):
            layer.normalises_nothing = isinstance(layer.norm, nn.BatchNorm2d)


class WinogradConvNorm(ConvNorm):
    """A ``ConvNorm`` whose 3x3 convolution has fewer multiplications on the CPU in float32, and differs by rounding.

    For few channels or cells it is the usual one.
    """

    def convolve(self, x: Tensor) -> Tensor:
        if not is_faster(self.conv, x):
            return self.conv(x)
        return convolve_3x3(x, self.conv.weight, self.conv.bias)


class DeformConvNorm(ConvNorm):
    """A ``ConvNorm`` whose 3x3 convolution samples the input at offsets that a second convolution predicts.

    Version 1 (Dai et al. 2017): ``offset`` predicts (dy, dx), px of the input, for each of the 9 samples of every
    output pixel: 18 channels per deformable group. Version 2 (Zhu et al. 2019), ``config.deformable_modulated``: 9
    more, the logits of the samples' weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: BackboneConfig,
        *,
        stride: int,
        norm: NormName,
        relu: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            3,
            stride=stride,
            groups=config.groups,
            norm=norm,
            norm_eps=config.norm_eps,
            relu=relu,
        )
        self.n_offsets = 18 * config.deformable_groups
        n_weights = 9 * config.deformable_groups if config.deformable_modulated else 0
        self.stride = stride
        self.offset = nn.Conv2d(in_channels, self.n_offsets + n_weights, 3, stride, padding=1)
        self.start_regular()

    def start_regular(self) -> None:
        """Set the offsets to 0 and the weights to 1/2, the initial state in both papers."""
        init_normal(self.offset, std=0.0)

    def convolve(self, x: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d

        # Positions need more precision than 16-bit floats offer, and the CPU kernel does not support bfloat16: under
        # autocast, all of this runs in the type of the weights.
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
    """Initialise every convolution in ``module`` for ReLU (He et al. 2015, fan-out); biases are 0.

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
    """Initialise a predictor with normal weights of standard deviation ``std`` and zero bias, as in the papers."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
