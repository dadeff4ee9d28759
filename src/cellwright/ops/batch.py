"""The tensors of one training step: the loader collates them, and ``Network.losses`` takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from cellwright.ops.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Batch:
    """B images with their objects, as tensors. Images without objects are valid: N = 0.

    Attributes:
        images: FloatTensor[B,C,H,W], normalised, zero-padded right and bottom so that H and W are multiples of the
            network's stride.
        image_hws: unpadded (height, width) of each image, px; ``h <= H`` and ``w <= W``.
        boxes: per image FloatTensor[N,4], ``x0 y0 x1 y1`` half open, px, inside the unpadded image.
        class_ids: per image LongTensor[N], 0..K-1, without background.
        ignore: per image BoolTensor[N]; true for regions that are not annotated, neither object nor background.
        layers: per image label layers IntTensor[L,h,w], L >= 1: object k has the value k + 1, and 0 is background. L is
            1 unless objects overlap.
        layer_of: per image LongTensor[N], the layer that holds object k.
        seed: of all random draws inside the model; see `generator`.
        first: the place of the first image in the whole batch, of which other processes may have the rest.
        ranks: the processes that share the whole batch.

    Raises `ValueError` if shapes or lengths disagree.
    """

    images: Tensor
    image_hws: list[tuple[int, int]]
    boxes: list[Tensor]
    class_ids: list[Tensor]
    ignore: list[Tensor]
    layers: list[Tensor]
    layer_of: list[Tensor]
    seed: int
    first: int = 0
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ValueError(f"Batch.images must be (B, C, H, W), got shape {tuple(self.images.shape)}")
        for name in ("image_hws", "boxes", "class_ids", "ignore", "layers", "layer_of"):
            if len(getattr(self, name)) != len(self.images):
                raise ValueError(f"Batch.{name} has {len(getattr(self, name))} entries for {len(self.images)} images")
        for i, boxes in enumerate(self.boxes):
            counts = {len(boxes), len(self.class_ids[i]), len(self.ignore[i]), len(self.layer_of[i])}
            if len(counts) != 1 or boxes.shape[1:] != (4,):
                raise ValueError(f"image {i} of the batch: boxes, class_ids, ignore and layer_of disagree on N")
            if tuple(self.layers[i].shape[1:]) != tuple(self.image_hws[i]):
                got, expected = tuple(self.layers[i].shape), tuple(self.image_hws[i])
                raise ValueError(f"image {i} of the batch: layers are {got}, the image is {expected}")

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with all tensors on ``device``; copies from pinned memory are asynchronous."""

        def moved(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.to(device, non_blocking=True) for tensor in tensors]

        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            boxes=moved(self.boxes),
            class_ids=moved(self.class_ids),
            ignore=moved(self.ignore),
            layers=moved(self.layers),
            layer_of=moved(self.layer_of),
        )

    def ignored_pixels(self, image: int) -> Tensor | None:
        """BoolTensor[h,w], the pixels of an image that are not annotated; None if there are none."""
        ignore = self.ignore[image]
        if not ignore.any():
            return None
        values = torch.cat([ignore.new_zeros(1), ignore])
        return values[self.layers[image].long()].any(dim=0)

    def generator(self, image: int = 0) -> torch.Generator:
        """A new CPU generator for an image, so that it always draws the same samples, whichever process has it."""
        return torch.Generator().manual_seed(self.seed + self.first + image)

    def generators(self) -> list[torch.Generator]:
        """The `generator` of each image."""
        return [self.generator(image) for image in range(len(self))]

    def padded(self, height: int, width: int) -> Batch:
        """The same batch with images of at least this size; see ``images``."""
        below, right = max(height - self.images.shape[2], 0), max(width - self.images.shape[3], 0)
        return replace(self, images=functional.pad(self.images, (0, right, 0, below))) if below or right else self


def stack_images(images: Sequence[Tensor], stride: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Stack images of different sizes into one zero-padded tensor.

    Args:
        images: FloatTensor[C,h,w] each, normalised, with equal C; at least one.
        stride: H and W of the result are multiples of it, px.

    Returns:
        FloatTensor[B,C,H,W], padded with zeros at the right and at the bottom (0 is the mean colour, since images are
        normalised), and the unpadded (h, w) of each image.

    Raises:
        ValueError: there is no image.

    >>> stacked, image_hws = stack_images([torch.ones(3, 60, 90), torch.ones(3, 64, 40)], stride=32)
    >>> tuple(stacked.shape), image_hws
    ((2, 3, 64, 96), [(60, 90), (64, 40)])
    """
    if not images:
        raise ValueError("stack_images needs at least one image")
    hws = [(int(image.shape[1]), int(image.shape[2])) for image in images]
    height = -(-max(h for h, _ in hws) // stride) * stride
    width = -(-max(w for _, w in hws) // stride) * stride
    stacked = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    for target, image, (h, w) in zip(stacked, images, hws, strict=True):
        target[:, :h, :w] = image
    return stacked, hws
