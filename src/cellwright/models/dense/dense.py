"""The dense family: a network that predicts maps, and a decoder that makes objects of them. The whole flow.

    images -> U-Net -> maps -> decoder -> objects
    objects -> encoder -> maps to learn

What the maps are is the target's matter: ``models/semantic.py``, ``watershed.py`` and ``flow.py`` each hold an encoder
and a decoder that are inverse to each other. Here is what they share.

Shape shorthand: B images, D maps of the target, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.core.instances import Instances
from cellwright.data.views import View
from cellwright.models.contract import RenderView
from cellwright.models.dense.encoders import TimmUNet
from cellwright.models.dense.losses import border_weights, focal_loss, soft_dice_loss
from cellwright.models.dense.semantic import to_instances
from cellwright.models.dense.unet import UNet
from cellwright.ops.batch import Batch


@dataclass(frozen=True)
class Target:
    """What a network learns and how objects come back from it.

    Attributes:
        channels: names of the maps, in order. Those of flows hold values, all others probabilities or shares.
        encode: labels (h, w) int, 0 being background -> maps (D, h, w) float32.
        decode: maps (D, h, w) float32 -> labels (h, w) int32 counted 1..N, and scores (N,) float32 in [0, 1].
    """

    channels: tuple[str, ...]
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class DenseWeights:
    """Weights of the losses, and what stands in for plain cross-entropy; see ``UNetConfig``.

    focal_gamma: that of the focal loss; None for cross-entropy. focal_alpha: None for no balance.
    border: how much more the body's pixels between objects count, 0 for as much as others.
    """

    cross_entropy: float
    dice: float
    flow: float
    distance: float
    focal_gamma: float | None = None
    focal_alpha: float | None = None
    border: float = 0.0
    border_sigma_px: float = 5.0


class DenseNetwork(nn.Module):
    """A ``Network`` (see ``models/contract.py``); ``models/build.py`` makes one from a recipe."""

    def __init__(self, unet: UNet | TimmUNet, target: Target, *, n_classes: int, weights: DenseWeights) -> None:
        """``unet`` predicts D maps and, for more than one class, K class maps after them."""
        super().__init__()
        self.unet, self.target, self.n_classes, self.weights = unet, target, n_classes, weights
        self.stride = unet.stride

    # --- training -------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalars by the kind of map: ``body``, ``border``, ``distance``, ``flow``, and ``class``.

        Pixels of ignored objects and of the padding count for nothing.
        """
        maps, classes, counted, between = self.targets(batch)
        stages = self.unet(batch.images)
        total: dict[str, Tensor] = {}
        # Coarser stages (deep supervision) count half of the one before, and all together count 1.
        shares = [2.0**-level for level in range(len(stages))]
        for share, stage in zip(shares, stages, strict=True):
            full = F.interpolate(stage, maps.shape[2:], mode="bilinear") if stage.shape[2:] != maps.shape[2:] else stage
            for name, loss in self._stage_losses(full.float(), maps, classes, counted, between).items():
                total[name] = total.get(name, torch.zeros_like(loss)) + share / sum(shares) * loss
        return total

    def _stage_losses(
        self, logits: Tensor, maps: Tensor, classes: Tensor, counted: Tensor, between: Tensor | None
    ) -> dict[str, Tensor]:
        weights, channels, losses = self.weights, self.target.channels, {}
        for index, name in enumerate(channels):
            predicted, wanted = logits[:, index], maps[:, index]
            match name:
                case "flow_y" | "flow_x":
                    value = weights.flow * _mean((predicted - wanted) ** 2, counted)
                    losses["flow"] = losses.get("flow", 0.0) + value
                case "distance":
                    losses[name] = weights.distance * _mean((predicted.sigmoid() - wanted).abs(), counted)
                case _:
                    entropy = self._entropy(predicted, wanted)
                    if name == "body" and between is not None:
                        entropy = entropy * between
                    losses[name] = weights.cross_entropy * _mean(entropy, counted)
                    losses[name] = losses[name] + weights.dice * soft_dice_loss(predicted.sigmoid(), wanted, counted)
        if self.n_classes > 1:
            entropy = F.cross_entropy(logits[:, len(channels) :], classes.clamp(min=0), reduction="none")
            losses["class"] = _mean(entropy, counted * (classes >= 0))
        return losses

    def _entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """FloatTensor[B,H,W] of each pixel: cross-entropy, or the focal loss."""
        gamma, alpha = self.weights.focal_gamma, self.weights.focal_alpha
        if gamma is None:
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return focal_loss(logits, targets, gamma=gamma, alpha=alpha)

    @torch.no_grad()
    def targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What a batch teaches: maps FloatTensor[B,D,H,W], the class of each pixel LongTensor[B,H,W] (-1 where there is
        no object), which pixels count FloatTensor[B,H,W], and `border_weights` FloatTensor[B,H,W], None without."""
        n_images, _, height, width = batch.images.shape
        maps = np.zeros((n_images, len(self.target.channels), height, width), np.float32)
        classes = np.full((n_images, height, width), -1, np.int64)
        counted = np.zeros((n_images, height, width), np.float32)
        between = np.ones((n_images, height, width), np.float32)
        weight, sigma_px = self.weights.border, self.weights.border_sigma_px
        for image, (h, w) in enumerate(batch.image_hws):
            labels = first_of_layers(batch.layers[image].cpu().numpy())
            ignore = np.concatenate([[False], batch.ignore[image].cpu().numpy()])[labels]
            labels = np.where(ignore, 0, labels)
            maps[image, :, :h, :w] = self.target.encode(labels)
            classes[image, :h, :w] = np.concatenate([[-1], batch.class_ids[image].cpu().numpy()])[labels]
            counted[image, :h, :w] = ~ignore
            if weight:
                between[image, :h, :w] = border_weights(labels, weight=weight, sigma_px=sigma_px)
        made = [torch.from_numpy(one).to(batch.images.device) for one in (maps, classes, counted, between)]
        return made[0], made[1], made[2], made[3] if weight else None

    # --- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The objects of each image at ``output_hws``, best first; see ``Network.detect``."""
        return [self.decode(maps) for maps in self.output_maps(images, image_hws, output_hws)]

    @torch.no_grad()
    def detect_views(self, views: Sequence[View], render: RenderView, output_hw: tuple[int, int]) -> Instances:
        """The objects of one image with test-time augmentation, best first; see ``DetectsViews.detect_views``."""
        return self.decode(self.mean_maps(views, render, output_hw))

    @torch.no_grad()
    def mean_maps(self, views: Sequence[View], render: RenderView, output_hw: tuple[int, int]) -> np.ndarray:
        """What `decode` takes, averaged over the views: each view's maps are turned back, flows as vectors."""
        total = None
        for view in views:
            images, image_hw = render(view)
            (turned,) = self.output_maps(images, [image_hw], [view.turned_hw(output_hw)])
            maps = view.turn_maps_back(turned, self.target.channels)
            total = maps if total is None else np.add(total, maps, out=total)
        assert total is not None  # there is at least one view
        return np.divide(total, np.float32(len(views)), out=total)

    @torch.no_grad()
    def output_maps(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> Iterator[np.ndarray]:
        """What `decode` takes, of each image at ``output_hws``: (D, H, W) float32, or (D + K, H, W)."""
        for maps, image_hw, output_hw in zip(self.maps(images), image_hws, output_hws, strict=True):
            inside = maps[:, : image_hw[0], : image_hw[1]]
            if image_hw != output_hw:
                inside = F.interpolate(inside[None], output_hw, mode="bilinear", antialias=True)[0]
            yield inside.cpu().numpy()

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """FloatTensor[B,C,H,W] -> FloatTensor[B,D,H,W] as the target's encoder makes them, then K class probabilities
        where there is more than one class."""
        logits = self.unet(images)[0].float()
        parts = [
            logits[:, index : index + 1] if name.startswith("flow_") else logits[:, index : index + 1].sigmoid()
            for index, name in enumerate(self.target.channels)
        ]
        if self.n_classes > 1:
            parts.append(logits[:, len(parts) :].softmax(dim=1))
        return torch.cat(parts, dim=1)

    def decode(self, maps: np.ndarray) -> Instances:
        """One image's maps (D, h, w) float32, and class probabilities after them, to objects, best first.

        An object has the class whose probability is the highest on average over its pixels.
        """
        depth = len(self.target.channels)
        labels, scores = self.target.decode(np.ascontiguousarray(maps[:depth]))
        return to_instances(labels, scores, maps[depth:] if self.n_classes > 1 else None)


def first_of_layers(layers: np.ndarray) -> np.ndarray:
    """Label layers (L, h, w) as one (h, w): where objects overlap the first layer's stays."""
    labels = layers[0]
    for layer in layers[1:]:
        labels = np.where(labels == 0, layer, labels)
    return labels


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over the pixels that count; 0 where none does."""
    return (values * counted).sum() / counted.sum().clamp(min=1)
