"""The dense family: a U-Net predicts maps, and a decoder turns them into objects.

    images -> U-Net -> maps -> decoder -> objects
    objects -> encoder -> maps to learn

What the maps are is decided by the target: `semantic`, `watershed`, `flow` or `stars`, each an encoder and its inverse
decoder.

Shape shorthand: B images, D maps of the target, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_dense import UNetConfig
from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.core.memory import available_bytes
from cellwright.data.views import View
from cellwright.models.contract import RenderView
from cellwright.models.dense.encoders import TimmUNet
from cellwright.models.dense.losses import border_weights, focal_loss, masked_mean, soft_dice_loss
from cellwright.models.dense.nested import NestedTimmUNet, NestedUNet
from cellwright.models.dense.target import target_of
from cellwright.models.dense.unet import UNet
from cellwright.ops.batch import Batch

# Memory at the peak of prediction per pixel and channel of full resolution, as measured: maps of all resolutions, and
# the decoder. Rather too low than too high.
BYTES_PER_CHANNEL = {"plain": 20.0, "nested": 32.0}
# Memory of the maps and of decoding, bytes per pixel: with three maps, and for each more, before and after resizing.
DECODING_BYTES, BYTES_PER_MAP = 100, 8
# One unit of the network's output is so long a ray, px: it learns lengths as fast as it learns other maps then.
RAY_UNIT_PX = 8.0
# The U-Net may take this share of the memory there is, and so many bytes; else it sees windows of one of these sides,
# px. An image of small objects, which is enlarged, needs no more memory than a large one then.
MEMORY_SHARE, LARGEST_BYTES, WINDOW_SIDES = 0.6, 3 << 29, (2048, 1536, 1024, 512)


class DenseNetwork(nn.Module):
    """A `Network` (see ``models/contract.py``) made from the recipe's ``model`` section.

    Attributes:
        target: names of the maps, their encoder and decoder.
        n_classes: K; with more than one, the U-Net predicts K class maps after those of the target.
    """

    def __init__(self, config: UNetConfig, *, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.config, self.target, self.n_classes = config, target_of(config.target), n_classes
        n_maps = len(self.target.channels) + (n_classes if n_classes > 1 else 0)
        self.unet = _unet_class(config)(config, in_channels=in_channels, out_channels=n_maps)

    @property
    def stride(self) -> int:
        """H and W of every image tensor must be multiples of it, px."""
        return self.unet.stride

    @property
    def reach_px(self) -> int | None:
        """How far from a pixel of the maps the image can influence it, at most, px of the input; None: unknown."""
        return getattr(self.unet, "reach_px", None)

    @property
    def bytes_per_pixel(self) -> float | None:
        """Memory that prediction takes at least at its peak, per pixel of the input; None with an encoder of timm.

        That of the maps and of decoding: the U-Net itself can run window by window, see `maps`.
        """
        return None if self.reach_px is None else DECODING_BYTES + self.bytes_of_maps

    @property
    def bytes_of_maps(self) -> float:
        """Memory of the maps beyond the first three, per pixel: of rays and classes."""
        return BYTES_PER_MAP * max(self.unet.out_channels - 3, 0)

    @property
    def bytes_of_channels(self) -> float:
        """Memory of the U-Net at its peak in prediction, per pixel, where all of the image is in memory."""
        return BYTES_PER_CHANNEL[self.config.skips] * self.config.width

    def window_side(self, image_hw: tuple[int, int]) -> int | None:
        """The side of the windows in which the U-Net runs so that it fits into memory; None: all at once."""
        reach, (height, width) = self.reach_px, image_hw
        if reach is None:
            return None
        per_pixel = self.bytes_of_channels
        budget = min(MEMORY_SHARE * available_bytes(), LARGEST_BYTES)
        if per_pixel * height * width <= budget:
            return None
        fitting = [side for side in WINDOW_SIDES if per_pixel * (side + 2 * reach) ** 2 <= budget]
        return max([*fitting, min(WINDOW_SIDES)])

    # --- training -------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar losses by kind of map: body, border, distance, flow, probability, rays and class.

        Pixels of ignored objects and of the padding do not count.
        """
        maps, classes, counted, pixel_weights = self.targets(batch)
        stages = self.unet(batch.images)
        total: dict[str, Tensor] = {}
        # Deep supervision: each coarser stage counts half as much as the one before, and the columns of nested skips,
        # which are of one size, count the same; the weights sum to 1.
        factor = 1.0 if self.config.skips == "nested" else 0.5
        shares = [factor**level for level in range(len(stages))]
        for share, stage in zip(shares, stages, strict=True):
            full = F.interpolate(stage, maps.shape[2:], mode="bilinear") if stage.shape[2:] != maps.shape[2:] else stage
            for name, loss in self._stage_losses(full.float(), maps, classes, counted, pixel_weights).items():
                total[name] = total.get(name, torch.zeros_like(loss)) + share / sum(shares) * loss
        return total

    def _stage_losses(
        self, logits: Tensor, maps: Tensor, classes: Tensor, counted: Tensor, pixel_weights: Tensor | None
    ) -> dict[str, Tensor]:
        config, channels, losses = self.config, self.target.channels, {}
        for index, name in enumerate(channels):
            predicted, target = logits[:, index], maps[:, index]
            match name:
                case "flow_y" | "flow_x":
                    loss = config.flow_weight * masked_mean((predicted - target) ** 2, counted)
                    losses["flow"] = losses.get("flow", 0.0) + loss
                case "distance":
                    losses[name] = config.distance_weight * masked_mean((predicted.sigmoid() - target).abs(), counted)
                case "ray_0":  # all rays at once; they are the last maps
                    rays = slice(index, len(channels))
                    error = (RAY_UNIT_PX * logits[:, rays] - maps[:, rays]).abs().mean(dim=1)
                    weights = counted * maps[:, channels.index("probability")]
                    losses["rays"] = config.ray_weight * masked_mean(error, weights)
                case _ if name.startswith("ray_"):
                    continue
                case _:
                    entropy = self._entropy(predicted, target)
                    if name in ("body", "probability") and pixel_weights is not None:
                        entropy = entropy * pixel_weights
                    losses[name] = config.cross_entropy_weight * masked_mean(entropy, counted)
                    dice = soft_dice_loss(predicted.sigmoid(), target, counted)
                    losses[name] = losses[name] + config.dice_weight * dice
        if self.n_classes > 1:
            entropy = F.cross_entropy(logits[:, len(channels) :], classes.clamp(min=0), reduction="none")
            losses["class"] = masked_mean(entropy, counted * (classes >= 0))
        return losses

    def _entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """FloatTensor[B,H,W] per pixel: cross-entropy, or the focal loss."""
        if self.config.body_loss == "focal":
            return focal_loss(logits, targets, gamma=self.config.focal_gamma, alpha=self.config.focal_alpha)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")

    @torch.no_grad()
    def targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The training targets of a batch.

        Returns:
            Maps FloatTensor[B,D,H,W]; the class of each pixel LongTensor[B,H,W], -1 outside objects; the pixels that
            count FloatTensor[B,H,W], 0 or 1; and `border_weights` FloatTensor[B,H,W], or None without them.
        """
        n_images, _, height, width = batch.images.shape
        maps = np.zeros((n_images, len(self.target.channels), height, width), np.float32)
        classes = np.full((n_images, height, width), -1, np.int64)
        counted = np.zeros((n_images, height, width), np.float32)
        weight, sigma_px = self.config.border_weight, self.config.border_sigma_px
        pixel_weights = np.ones((n_images, height, width), np.float32) if weight else None
        for image, (h, w) in enumerate(batch.image_hws):
            labels = first_of_layers(batch.layers[image].cpu().numpy())
            ignore = np.concatenate([[False], batch.ignore[image].cpu().numpy()])[labels]
            labels = np.where(ignore, 0, labels)
            maps[image, :, :h, :w] = self.target.encode(labels)
            classes[image, :h, :w] = np.concatenate([[-1], batch.class_ids[image].cpu().numpy()])[labels]
            counted[image, :h, :w] = ~ignore
            if pixel_weights is not None:
                pixel_weights[image, :h, :w] = border_weights(labels, weight=weight, sigma_px=sigma_px)

        def to_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(batch.images.device)

        weights = None if pixel_weights is None else to_device(pixel_weights)
        return to_device(maps), to_device(classes), to_device(counted), weights

    # --- inference ------------------------------------------------------------------------------------------------

    def pruned(self, depth: int) -> DenseNetwork:
        """The network of the levels 0 to ``depth`` alone, see `nested` and `Prunes`; it shares its weights."""
        config = self.config
        if config.skips != "nested" or not config.deep_supervision:
            raise UsageError(
                "this network cannot be pruned",
                got=f"model.skips: {config.skips}, model.deep_supervision: {str(config.deep_supervision).lower()}",
                expected="a U-Net that was trained with nested and true",
                remedy="omit `pruned_to`",
            )
        if not 1 <= depth <= config.depth:
            raise UsageError(
                "invalid `pruned_to`", got=depth, expected=f"1 to {config.depth}, the depth of the network"
            )
        if depth == config.depth:
            return self
        config = config.model_copy(update={"depth": depth})
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and replaced
            network = DenseNetwork(config, in_channels=self.unet.in_channels, n_classes=self.n_classes)
        own = self.state_dict()
        network.load_state_dict({name: own[name] for name in network.state_dict()}, assign=True)
        device = next(iter(own.values())).device
        return network.to(device).train(self.training)

    @torch.no_grad()
    def detect(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The objects of each image at the resolution ``output_hws``, best first; see `Network.detect`."""
        return [self.decode(maps) for maps in self.output_maps(self.maps(images), image_hws, output_hws)]

    @torch.no_grad()
    def detect_views(self, views: Sequence[View], render: RenderView, output_hw: tuple[int, int]) -> Instances:
        """The objects of one image with test-time augmentation, best first; see `DetectsViews.detect_views`."""
        return self.decode(self.mean_maps(views, render, output_hw))

    @torch.no_grad()
    def mean_maps(self, views: Sequence[View], render: RenderView, output_hw: tuple[int, int]) -> np.ndarray:
        """The input of `decode`, averaged over views after their maps are turned back; flows turn as vectors."""
        total = None
        for view in views:
            images, image_hw = render(view)
            turned_back = view.turn_maps_back(self.maps(images)[0].cpu().numpy(), self.target.channels)
            (maps,) = self.output_maps(torch.from_numpy(turned_back)[None], [image_hw], [output_hw])
            total = maps if total is None else np.add(total, maps, out=total)
        assert total is not None  # there is at least one view
        return np.divide(total, np.float32(len(views)), out=total)

    @torch.no_grad()
    def output_maps(
        self, maps: Tensor, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> Iterator[np.ndarray]:
        """The input of `decode` for the `maps` of each image at ``output_hws``: (D, H, W) float32, or (D + K, H, W)."""
        for of_image, image_hw, output_hw in zip(maps, image_hws, output_hws, strict=True):
            inside = of_image[:, : image_hw[0], : image_hw[1]]
            if image_hw != output_hw:
                inside = F.interpolate(inside[None], output_hw, mode="bilinear", antialias=True)[0]
            resized = inside.cpu().numpy()
            self.target.stretch(resized, image_hw, output_hw)
            yield resized

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """FloatTensor[B,C,H,W] -> FloatTensor[B,D,H,W] in the encoder's units, and K class probabilities if K > 1.

        On a CPU, the U-Net sees a large image in windows that overlap by its reach; the maps are the same.
        """
        height, width = images.shape[2:]
        side = self.window_side((height, width)) if images.device.type == "cpu" else None
        if side is None or self.reach_px is None:
            return self._maps(images)
        margin = -(-self.reach_px // self.stride) * self.stride
        whole: Tensor | None = None
        for y in range(0, height, side):
            for x in range(0, width, side):
                top, left = max(y - margin, 0), max(x - margin, 0)
                part = self._maps(images[:, :, top : y + side + margin, left : x + side + margin])
                if whole is None:
                    whole = part.new_empty((*part.shape[:2], height, width))
                target = whole[:, :, y : y + side, x : x + side]
                target.copy_(part[:, :, y - top : y - top + target.shape[2], x - left : x - left + target.shape[3]])
        assert whole is not None
        return whole

    def _maps(self, images: Tensor) -> Tensor:
        if isinstance(self.unet, UNet | NestedUNet) and images.device.type == "cpu":
            logits = self.unet.maps_in_strips(images).float()
        else:
            logits = self.unet(images)[0].float()
        parts = []
        for index, name in enumerate(self.target.channels):
            part = logits[:, index : index + 1]
            if name.startswith("ray_"):
                parts.append(RAY_UNIT_PX * part)
            else:
                parts.append(part if name.startswith("flow_") else part.sigmoid())
        if self.n_classes > 1:
            parts.append(logits[:, len(parts) :].softmax(dim=1))
        return torch.cat(parts, dim=1)

    def decode(self, maps: np.ndarray) -> Instances:
        """The objects of one image's maps (D, h, w) float32, or (D + K, h, w); see `Target.instances`."""
        return self.target.instances(maps)


def _unet_class(config: UNetConfig) -> type[UNet | NestedUNet | TimmUNet]:
    if config.skips == "nested":
        return NestedUNet if config.encoder is None else NestedTimmUNet
    return UNet if config.encoder is None else TimmUNet


def first_of_layers(layers: np.ndarray) -> np.ndarray:
    """Label layers (L, h, w) as one label map (h, w); where objects overlap, the first layer wins."""
    labels = layers[0]
    for layer in layers[1:]:
        labels = np.where(labels == 0, layer, labels)
    return labels
