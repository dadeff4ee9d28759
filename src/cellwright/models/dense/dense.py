"""The dense family: a U-Net predicts maps, and a decoder turns them into objects.

    images -> U-Net -> maps -> decoder -> objects
    objects -> encoder -> maps to learn

What the maps are is decided by the target: `semantic`, `watershed`, `flow`, `stars` or `cellpose`, each an encoder and
its inverse decoder. The U-Net is our own, or has the layers of another tool's.

Shape shorthand: B images, D maps of the target, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.model_dense import AnyDenseConfig, CellposeConfig, StarDistConfig, UNetConfig
from cellwright.models.dense.cellpose_network import CellposeUNet
from cellwright.models.dense.encoders import TimmUNet
from cellwright.models.dense.losses import border_weights, focal_loss, masked_mean, soft_dice_loss
from cellwright.models.dense.nested import NestedTimmUNet, NestedUNet
from cellwright.models.dense.prediction import DensePrediction, linear_units
from cellwright.models.dense.stardist_network import StarDistUNet
from cellwright.models.dense.target import target_of
from cellwright.models.dense.unet import UNet
from cellwright.ops.batch import Batch
from cellwright.ops.ranks import ALONE, Ranks


class DenseNetwork(DensePrediction, nn.Module):
    """A `Network` (see ``models/contract.py``) made from the recipe's ``model`` section.

    Attributes: see `DensePrediction`.
    """

    def __init__(self, config: AnyDenseConfig, *, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.config, self.target, self.n_classes = config, target_of(config.target), n_classes
        n_maps = len(self.target.channels) + (n_classes if n_classes > 1 else 0)
        self.unet = _unet(config, in_channels=in_channels, out_channels=n_maps)

    @property
    def stride(self) -> int:
        """H and W of every image tensor must be multiples of it, px."""
        return self.unet.stride

    @property
    def reach_px(self) -> int | None:
        """How far from a pixel of the maps the image can influence it, at most, px of the input; None: unknown."""
        return getattr(self.unet, "reach_px", None)

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
        factor = 1.0 if getattr(self.config, "skips", "") == "nested" else 0.5
        shares = [factor**level for level in range(len(stages))]
        for share, stage in zip(shares, stages, strict=True):
            full = F.interpolate(stage, maps.shape[2:], mode="bilinear") if stage.shape[2:] != maps.shape[2:] else stage
            for name, loss in self._stage_losses(
                full.float(), maps, classes, counted, pixel_weights, batch.ranks
            ).items():
                total[name] = total.get(name, torch.zeros_like(loss)) + share / sum(shares) * loss
        return total

    def _stage_losses(
        self,
        logits: Tensor,
        maps: Tensor,
        classes: Tensor,
        counted: Tensor,
        pixel_weights: Tensor | None,
        ranks: Ranks = ALONE,
    ) -> dict[str, Tensor]:
        config, channels, losses = self.config, self.target.channels, {}
        for index, name in enumerate(channels):
            predicted, target = logits[:, index], maps[:, index]
            units = linear_units(config, name)
            match name:
                case "flow_y" | "flow_x":
                    loss = config.flow_weight * masked_mean((predicted / (units or 1) - target) ** 2, counted, ranks)
                    losses["flow"] = losses.get("flow", 0.0) + loss
                case "distance":
                    error = (predicted.sigmoid() - target).abs()
                    losses[name] = config.distance_weight * masked_mean(error, counted, ranks)
                case "ray_0":  # all rays at once; they are the last maps
                    rays = slice(index, len(channels))
                    error = (logits[:, rays] / (units or 1) - maps[:, rays]).abs().mean(dim=1)
                    weights = counted * maps[:, channels.index("probability")]
                    losses["rays"] = config.ray_weight * masked_mean(error, weights, ranks)
                case _ if name.startswith("ray_"):
                    continue
                case _:
                    entropy = self._entropy(predicted, target)
                    if name in ("body", "cellprob", "probability") and pixel_weights is not None:
                        entropy = entropy * pixel_weights
                    losses[name] = config.cross_entropy_weight * masked_mean(entropy, counted, ranks)
                    dice = soft_dice_loss(predicted.sigmoid(), target, counted, ranks)
                    losses[name] = losses[name] + config.dice_weight * dice
        if self.n_classes > 1:
            entropy = F.cross_entropy(logits[:, len(channels) :], classes.clamp(min=0), reduction="none")
            losses["class"] = masked_mean(entropy, counted * (classes >= 0), ranks)
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

    @property
    def sees_windows(self) -> bool:
        """On a CPU."""
        return next(self.unet.parameters(), torch.empty(0)).device.type == "cpu"

    def pruned(self, depth: int) -> DenseNetwork:
        """The network of the levels 0 to ``depth`` alone, see `nested` and `Prunes`; it shares its weights."""
        config = self.pruned_config(depth)
        if config == self.config:
            return self
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and replaced
            network = DenseNetwork(config, in_channels=self.unet.in_channels, n_classes=self.n_classes)
        own = self.state_dict()
        network.load_state_dict({name: own[name] for name in network.state_dict()}, assign=True)
        device = next(iter(own.values())).device
        return network.to(device).train(self.training)

    @torch.no_grad()
    def compute(self, images: Tensor) -> np.ndarray:
        """See `DensePrediction`; images FloatTensor[B,C,H,W] on the device of the network."""
        if isinstance(self.unet, UNet | NestedUNet) and images.device.type == "cpu":
            logits = self.unet.maps_in_strips(images).float()
        else:
            logits = self.unet(images)[0].float()
        return self.activated(logits).cpu().numpy()

    def activated(self, logits: Tensor) -> Tensor:
        """FloatTensor[B,D+K,H,W] of the U-Net -> the maps in the units of the target, and class probabilities."""
        parts = []
        for index, name in enumerate(self.target.channels):
            part, units = logits[:, index : index + 1], linear_units(self.config, name)
            parts.append(part.sigmoid() if units is None else part / units)
        if self.n_classes > 1:
            parts.append(logits[:, len(parts) :].softmax(dim=1))
        return torch.cat(parts, dim=1)


def _unet(
    config: AnyDenseConfig, *, in_channels: int, out_channels: int
) -> UNet | NestedUNet | TimmUNet | CellposeUNet | StarDistUNet:
    sizes = {"in_channels": in_channels, "out_channels": out_channels}
    match config:
        case CellposeConfig():
            return CellposeUNet(config, **sizes)
        case StarDistConfig():
            return StarDistUNet(config, **sizes)
        case UNetConfig(skips="nested", encoder=None):
            return NestedUNet(config, **sizes)
        case UNetConfig(skips="nested"):
            return NestedTimmUNet(config, **sizes)
        case UNetConfig(encoder=None):
            return UNet(config, **sizes)
        case UNetConfig():
            return TimmUNet(config, **sizes)


def first_of_layers(layers: np.ndarray) -> np.ndarray:
    """Label layers (L, h, w) as one label map (h, w); where objects overlap, the first layer wins."""
    labels = layers[0]
    for layer in layers[1:]:
        labels = np.where(labels == 0, layer, labels)
    return labels
