"""What every model offers, whatever its family.

``Segmenter`` is what users and the predictor meet: images in, objects out. ``Network`` is a trainable module behind a
segmenter: it turns a batch into losses and padded image tensors into objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.ops.batch import Batch


@runtime_checkable
class Segmenter(Protocol):
    """Finds the objects of whole images. The classical baseline implements it directly."""

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        """One ``Instances`` an image, at the image's own resolution, with scores in [0, 1], highest first.

        An image without objects gives ``Instances`` of length 0; an empty sequence gives an empty list.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A network that can tell what became of its own candidates."""

    def candidates(
        self, images: Tensor, image_hw: tuple[int, int], output_hw: tuple[int, int], near: Tensor
    ) -> Instances:
        """The candidates of one image whose boxes overlap one of ``near`` (FloatTensor[N,4], pixels of the output).

        A column ``dropped_by`` says "threshold", "nms", "cap" or "kept"; other arguments as in ``Network.detect``.
        """
        ...


@runtime_checkable
class Network(Protocol):
    """A trainable ``nn.Module``. ``train()`` and ``eval()`` change normalisation layers only, never a return type."""

    stride: int
    """H and W of every image tensor must be multiples of it, px."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; the training loop sums them. Finite for images without objects."""
        ...

    def detect(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The objects of each image.

        Args:
            images: FloatTensor[B,C,H,W], normalised and zero-padded as in ``Batch.images``.
            image_hws: unpadded (h, w) of each image, px.
            output_hws: (height, width) at which boxes and masks are given, px: usually that of the original image.

        Returns:
            Per image ``Instances`` sorted by falling score, masks pasted straight into a ``MaskSet`` of ``output_hw``.
        """
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def train(self, mode: bool = True) -> nn.Module: ...

    def eval(self) -> nn.Module: ...

    def to(self, device: torch.device | str) -> nn.Module: ...
