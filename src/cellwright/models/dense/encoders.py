"""A U-Net with an encoder of timm (PyTorch Image Models), whose feature maps are the skip connections.

    image -> block ---------------------------> width -> maps      stride 1
      encoder map ---------------------> 2 width                   stride 2
        encoder map ------------> 4 width                          stride 4
          encoder map                                              stride 8, at depth 3

The decoder is that of `unet.UNet`. A stage has no skip if the encoder has no map of its stride (2 in a ConvNeXt). The
skip at full resolution is a block on the image itself, so that outlines are as sharp as those of a plain U-Net.

Needs the extra ``timm``. Only `published_weights` downloads anything.

Shape shorthand: B images, D predicted maps.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cellwright.config.model_dense import UNetConfig
from cellwright.core.errors import ModelError, RecipeError, UsageError
from cellwright.models.dense.unet import Block, predict_maps
from cellwright.models.layers import init_kaiming, init_normal

_SUGGESTION = "choose a convolutional network, such as timm:resnet18 or timm:convnext_atto"


class TimmUNet(nn.Module):
    """Predicts maps of the size of the image; has the attributes of `unet.UNet`.

    ``config.encoder`` names the encoder, ``config.depth`` selects its coarsest map; width, style and norm are those of
    the decoder. The encoder starts with random weights.

    Raises:
        RecipeError: timm has no such network, or it does not give a pyramid of feature maps.
        UsageError: timm is not installed.
    """

    def __init__(self, config: UNetConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride, self.in_channels, self.out_channels = 2**config.depth, in_channels, out_channels
        self.reach_px: int | None = None  # not known: some encoders look at the whole image
        self.name = str(config.encoder).removeprefix("timm:")
        self.encoder = make_encoder(self.name, in_channels=in_channels, stride=self.stride)
        channels = channels_of(self.encoder)
        self.strides = tuple(channels)
        self.image: Block | None = None
        if 1 not in channels:
            self.image = Block(config, in_channels, config.width)
            channels[1] = config.width
        self.add_decoder(config, channels)
        if self.image is not None:
            init_kaiming(self.image)

    def add_decoder(self, config: UNetConfig, channels: dict[int, int]) -> None:
        """Create the decoder and the layers of the maps. channels: of the encoder's map of each stride."""
        coarser, upsample, decoder, maps = channels[self.stride], nn.ModuleList(), nn.ModuleList(), []
        for stride in (2**level for level in reversed(range(config.depth))):
            own = config.width * stride
            upsample.append(nn.ConvTranspose2d(coarser, own, 2, 2))
            decoder.append(Block(config, own + channels.get(stride, 0), own))
            maps.append(nn.Conv2d(own, self.out_channels, 1))
            coarser = own
        self.upsample, self.decoder = upsample, decoder
        self.maps = nn.ModuleList(maps if config.deep_supervision else maps[-1:])
        for part in (upsample, decoder):
            init_kaiming(part)
        for layer in maps:
            init_normal(layer, std=0.01)

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """FloatTensor[B,C,H,W] -> the encoder's maps by their stride s, FloatTensor[B,C_s,H/s,W/s]."""
        images = images.contiguous(memory_format=torch.channels_last)
        encoded = dict(zip(self.strides, self.encoder(images), strict=True))
        if self.image is not None:
            encoded[1] = self.image(images)
        return encoded

    def forward(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> the maps before any activation, FloatTensor[B,D,H,W] first, as in `unet.UNet`."""
        skips = self.encode(images)
        x, stages, stride = skips.pop(self.stride), [], self.stride
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            stride //= 2
            x = upsample(x)
            x = block(torch.cat([skips[stride], x], dim=1) if stride in skips else x)
            stages.append(x)
        return predict_maps(self.maps, stages, training=self.training)


def make_encoder(name: str, *, in_channels: int, stride: int, pretrained: bool = False) -> Any:
    """A timm network that returns its feature maps, one per stride, finest first.

    FloatTensor[B,in_channels,H,W] -> FloatTensor[B,C_s,H/s,W/s] for every stride s that the network has up to
    ``stride``, of which H and W must be multiples. Layers after the last map are removed; in some networks
    (EfficientNet, MobileNet) timm keeps them unused.

    Args:
        name: of the network, such as "resnet18" or "convnext_atto".
        in_channels: channels of the images.
        stride: of the coarsest map, px.
        pretrained: load timm's published weights, from its cache or from the network.

    Raises as `TimmUNet`, and whatever timm raises when weights are not available.
    """
    encoder = _create(name, in_channels)
    strides = encoder.feature_info.reduction()
    # Of several maps with one stride, the last is the deepest.
    indices = {s: index for index, s in enumerate(strides) if s <= stride}
    if stride not in indices or len(set(strides)) < 2 or any(s & (s - 1) for s in indices):
        raise RecipeError(
            "this encoder does not fit a U-Net of this depth",
            where=f"timm:{name}",
            got=f"maps of stride {', '.join(map(str, strides))}",
            expected=f"strides that double, up to {stride} (2 to the power of model.depth)",
            remedy=f"change model.depth, or {_SUGGESTION}",
        )
    if pretrained or len(indices) < len(strides):
        encoder = _create(name, in_channels, out_indices=tuple(indices.values()), pretrained=pretrained)
    _check(encoder, name, in_channels, stride)
    return encoder


def channels_of(encoder: Any) -> dict[int, int]:
    """Number of channels of each feature map by its stride, px, finest first."""
    return dict(zip(encoder.feature_info.reduction(), encoder.feature_info.channels(), strict=True))


def published_weights(network: TimmUNet, name: str) -> dict[str, Tensor]:
    """The published timm weights ``name`` (such as "resnet18.a1_in1k") for the network's encoder, by tensor name.

    timm downloads them once, and adapts the first convolution to the number of input channels.

    Raises:
        ModelError: the weights are not available.
        RecipeError: as in `TimmUNet`.
    """
    try:
        encoder = make_encoder(name, in_channels=network.in_channels, stride=network.stride, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            "cannot load timm's weights",
            where=f"timm:{name}",
            got=_first_line(error),
            remedy="check the name, and that this machine is online: timm downloads weights once, then caches them",
        ) from error
    return encoder.state_dict()


def _create(
    name: str, in_channels: int, *, out_indices: tuple[int, ...] | None = None, pretrained: bool = False
) -> Any:
    try:
        import timm
    except ImportError as error:
        remedy = 'pip install "cellwright[timm]"'
        raise UsageError("timm encoders need another package", got=f"no {error.name}", remedy=remedy) from error
    if not timm.is_model(name):
        similar = get_close_matches(name, timm.list_models(), n=3)
        remedy = f"did you mean {' or '.join(similar)}?" if similar else "timm.list_models() in Python lists them"
        raise RecipeError("timm has no such network", where=f"timm:{name}", remedy=remedy)
    try:
        return timm.create_model(
            name, features_only=True, in_chans=in_channels, out_indices=out_indices, pretrained=pretrained
        )
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if pretrained:
            raise
        raise RecipeError(
            "timm cannot create this encoder",
            where=f"timm:{name}",
            got=_first_line(error),
            remedy="choose another timm network, one with feature maps",
        ) from error


def _check(encoder: Any, name: str, in_channels: int, stride: int) -> None:
    """Run a small image that is not square; raise `RecipeError` if a map's shape is not what the encoder declares."""
    expected = [(1, channels, 2 * stride // s, 3 * stride // s) for s, channels in channels_of(encoder).items()]
    training = encoder.training
    try:
        with torch.no_grad():
            shapes = [tuple(m.shape) for m in encoder.eval()(torch.zeros(1, in_channels, 2 * stride, 3 * stride))]
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        shapes = _first_line(error)
    encoder.train(training)
    if shapes != expected:
        raise RecipeError(
            "this encoder does not return the feature maps that a U-Net needs for images of any size",
            where=f"timm:{name}",
            got=shapes,
            expected=f"maps {expected}",
            remedy=_SUGGESTION,
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
