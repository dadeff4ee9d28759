"""A U-Net that halves with a network of timm (PyTorch Image Models): its maps are the skips.

    image -> block ---------------------------> width -> maps      stride 1
      the encoder's map ---------------> 2 width                   stride 2
        the encoder's map ------> 4 width                          stride 4
          the encoder's map                                        stride 8, at depth 3

The decoder is that of `unet.UNet`. A stage whose stride the encoder has no map of (2, in a ConvNeXt) has no skip; at
full resolution a block of the image's own pixels is one, so that outlines are as sharp as a U-Net's.

Needs the extra ``timm``. Nothing is downloaded but by `published_weights`.

Shape shorthand: B images, D maps that are predicted.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cellwright.core.errors import ModelError, RecipeError, UsageError
from cellwright.models.dense.unet import Block, BlockName
from cellwright.models.layers import NormName, init_kaiming, init_normal

_OTHERS = "take a convolutional network, such as timm:resnet18 or timm:convnext_atto"


class TimmUNet(nn.Module):
    """Images to maps of their size; as ``unet.UNet``, whose attributes it has.

    ``name`` and ``depth`` say which encoder, and which of its maps is the coarsest.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int,
        out_channels: int,
        width: int,
        depth: int,
        style: BlockName,
        norm: NormName,
        deep_supervision: bool,
    ) -> None:
        """``name``: timm's, such as "resnet18" or "convnext_atto"; its weights start at random.

        ``width``: channels of the decoder at full resolution; they double with each of the ``depth`` halvings.
        Raises ``RecipeError`` where timm has no such network, or it makes no pyramid of maps, and ``UsageError``
        where timm is not installed.
        """
        super().__init__()
        self.stride, self.in_channels, self.out_channels = 2**depth, in_channels, out_channels
        self.name = name
        self.encoder = make_encoder(name, in_channels=in_channels, stride=self.stride)
        skips = channels_of(self.encoder)
        self.strides = tuple(skips)
        self.image: Block | None = None
        if 1 not in skips:
            self.image = Block(in_channels, width, style=style, norm=norm)
            skips[1] = width
        entry, self.upsample, self.decoder, maps = skips[self.stride], nn.ModuleList(), nn.ModuleList(), []
        for stride in (2**level for level in reversed(range(depth))):
            channels = width * stride
            self.upsample.append(nn.ConvTranspose2d(entry, channels, 2, 2))
            self.decoder.append(Block(channels + skips.get(stride, 0), channels, style=style, norm=norm))
            maps.append(nn.Conv2d(channels, out_channels, 1))
            entry = channels
        self.maps = nn.ModuleList(maps if deep_supervision else maps[-1:])
        for part in (self.image, self.upsample, self.decoder):
            if part is not None:
                init_kaiming(part)
        for layer in maps:
            init_normal(layer, std=0.01)

    def forward(self, images: Tensor) -> list[Tensor]:
        """FloatTensor[B,C,H,W] -> maps before any activation, FloatTensor[B,D,H,W] first, as `unet.UNet` gives them."""
        images = images.contiguous(memory_format=torch.channels_last)
        skips = dict(zip(self.strides, self.encoder(images), strict=True))
        if self.image is not None:
            skips[1] = self.image(images)
        x, stages, stride = skips.pop(self.stride), [], self.stride
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            stride //= 2
            x = upsample(x)
            x = block(torch.cat([skips[stride], x], dim=1) if stride in skips else x)
            stages.append(x)
        wanted = stages[-len(self.maps) :] if self.training else stages[-1:]
        layers = self.maps if self.training else self.maps[-1:]
        return [layer(stage) for layer, stage in zip(layers, wanted, strict=True)][::-1]


def make_encoder(name: str, *, in_channels: int, stride: int, pretrained: bool = False) -> Any:
    """timm's network as a module that gives maps, finest first, the last of ``stride``: one a stride.

    FloatTensor[B,in_channels,H,W] -> FloatTensor[B,C_s,H/s,W/s] for every stride s that it has, H and W being multiples
    of ``stride``. With ``pretrained`` timm reads its published weights, from its cache or from the network. Layers
    behind the last map are left out; of some networks (EfficientNet, MobileNet) timm keeps them, and they idle.
    Raises as `TimmUNet`, and what timm raises where weights cannot be had.
    """
    encoder = _create(name, in_channels)
    # Of equal strides the last map has seen the most.
    places = {made: place for place, made in enumerate(encoder.feature_info.reduction()) if made <= stride}
    if stride not in places or len(places) < 2 or any(made & (made - 1) for made in places):
        raise RecipeError(
            "this encoder does not fit a U-Net of this depth",
            where=f"timm:{name}",
            got=f"maps of stride {', '.join(map(str, encoder.feature_info.reduction()))}",
            expected=f"strides that double, up to {stride} (2 to the power of model.depth)",
            remedy=f"change model.depth, or {_OTHERS}",
        )
    if pretrained or len(places) < len(encoder.feature_info.reduction()):
        encoder = _create(name, in_channels, out_indices=tuple(places.values()), pretrained=pretrained)
    _check(encoder, name, in_channels, stride)
    return encoder


def channels_of(encoder: Any) -> dict[int, int]:
    """Channels of each map by its stride, px, finest first."""
    return dict(zip(encoder.feature_info.reduction(), encoder.feature_info.channels(), strict=True))


def published_weights(network: TimmUNet, name: str) -> dict[str, Tensor]:
    """timm's weights ``name`` (such as "resnet18.a1_in1k") for the network's encoder, under its own tensors' names.

    timm downloads them once, and fits the first convolution to the number of input channels.
    Raises ``ModelError`` where they cannot be had, and `RecipeError` as `TimmUNet`.
    """
    try:
        encoder = make_encoder(name, in_channels=network.in_channels, stride=network.stride, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            "timm's weights cannot be had",
            where=f"timm:{name}",
            got=_first_line(error),
            remedy="check the name, and that this machine is online: timm downloads them once, and keeps them",
        ) from error
    return encoder.state_dict()


def _create(
    name: str, in_channels: int, *, out_indices: tuple[int, ...] | None = None, pretrained: bool = False
) -> Any:
    try:
        import timm
    except ImportError as error:
        remedy = 'pip install "cellwright[timm]"'
        raise UsageError("an encoder of timm needs more packages", got=f"no {error.name}", remedy=remedy) from error
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() in Python lists them"
        raise RecipeError("timm has no such network", where=f"timm:{name}", remedy=remedy)
    try:
        return timm.create_model(
            name, features_only=True, in_chans=in_channels, out_indices=out_indices, pretrained=pretrained
        )
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if pretrained:
            raise
        raise RecipeError(
            "timm cannot make this encoder",
            where=f"timm:{name}",
            got=_first_line(error),
            remedy="choose another name of timm, one with feature maps",
        ) from error


def _check(encoder: Any, name: str, in_channels: int, stride: int) -> None:
    """Try a small image that is not square; `RecipeError` where a map is not what the encoder says of it."""
    expected = [(1, channels, 2 * stride // s, 3 * stride // s) for s, channels in channels_of(encoder).items()]
    training = encoder.training
    try:
        with torch.no_grad():
            found = [tuple(one.shape) for one in encoder.eval()(torch.zeros(1, in_channels, 2 * stride, 3 * stride))]
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        found = _first_line(error)
    encoder.train(training)
    if found != expected:
        raise RecipeError(
            "this encoder does not give a U-Net maps of images of any size",
            where=f"timm:{name}",
            got=found,
            expected=f"maps {expected}",
            remedy=_OTHERS,
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
