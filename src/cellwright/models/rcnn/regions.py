"""Regions of interest between the stages: what is learnt from, what is found, and where their features come from.

Shape shorthand: R regions, K classes, M side of pooled features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from cellwright.ops.roi import Pooling, pool_boxes


@dataclass(frozen=True)
class Regions:
    """The regions of one image that a step learns from.

    Attributes:
        boxes: FloatTensor[R,4] px.
        class_ids: LongTensor[R], 0..K; K is background.
        objects: LongTensor[R], index into the image's objects; 0 for background.
    """

    boxes: Tensor
    class_ids: Tensor
    objects: Tensor

    def __getitem__(self, chosen: Tensor) -> Regions:
        return Regions(self.boxes[chosen], self.class_ids[chosen], self.objects[chosen])


@dataclass(frozen=True)
class Detections:
    """One image's, best first: boxes FloatTensor[D,4] px, scores FloatTensor[D], class_ids LongTensor[D]."""

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor

    def __getitem__(self, chosen: Tensor) -> Detections:
        return Detections(self.boxes[chosen], self.scores[chosen], self.class_ids[chosen])


@dataclass(frozen=True)
class RegionFeatures:
    """Where a head's features come from: maps that boxes are pooled from and, in C4, the stage behind the pooling.

    Attributes:
        maps: FloatTensor[B,C,H_l,W_l], finest first.
        pooling: which map a box is pooled from, and how.
        stage: res5 for C4, which halves the pooled resolution; None for a pyramid.
    """

    maps: Sequence[Tensor]
    pooling: Pooling
    stage: Callable[[Tensor], Tensor] | None = None

    def pool(self, boxes: Sequence[Tensor], resolution: int, n_levels: int | None = None) -> Tensor:
        """Features of boxes (per image FloatTensor[R_i,4]), image by image: FloatTensor[R,C,M,M]; R may be 0.

        ``resolution``: side of the pooled grid; M is half of it in C4. ``n_levels``: the finest maps only.
        """
        pooled = pool_boxes(self.maps[:n_levels], boxes, resolution, self.pooling)
        return pooled if self.stage is None else self.stage(pooled)

    def of_image(self, image: int) -> RegionFeatures:
        """Those of one image of the batch."""
        return RegionFeatures([one[image : image + 1] for one in self.maps], self.pooling, self.stage)
