"""Regions of interest between the stages of a network: sampled for training, detected at inference, pooled for a head.

Shape shorthand: R regions, D detections, K classes, M side of pooled features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cellwright.config.conventions import Conventions
from cellwright.config.model_rcnn import PyramidRegionConfig, RCNNConfig
from cellwright.config.section import decided
from cellwright.ops.roi import Pooling, pool_boxes


@dataclass(frozen=True)
class Regions:
    """The regions of one image that a training step uses.

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
class BoxOutputs:
    """What the box head (the first one of a cascade) computed for the regions of a training step.

    Attributes:
        regions: per image; together R.
        pooled: FloatTensor[R,C,M,M], its input, image by image.
        deltas: FloatTensor[R,n_boxes*4], its predicted boxes.
    """

    regions: Sequence[Regions]
    pooled: Tensor
    deltas: Tensor

    def foreground(self, n_classes: int) -> BoxOutputs:
        """The outputs of the regions that contain an object."""
        chosen = [torch.nonzero(region.class_ids < n_classes).squeeze(1) for region in self.regions]
        starts = np.cumsum([0] + [len(region.boxes) for region in self.regions])
        index = torch.cat([own + int(start) for own, start in zip(chosen, starts[:-1], strict=True)])
        regions = [region[own] for region, own in zip(self.regions, chosen, strict=True)]
        return BoxOutputs(regions, self.pooled[index], self.deltas[index])


@dataclass(frozen=True)
class Detections:
    """One image's boxes FloatTensor[D,4] px, scores FloatTensor[D] and class_ids LongTensor[D], 0..K-1."""

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor

    def __getitem__(self, chosen: Tensor) -> Detections:
        return Detections(self.boxes[chosen], self.scores[chosen], self.class_ids[chosen])


@dataclass(frozen=True)
class RegionFeatures:
    """The feature maps that a head's regions are pooled from.

    Attributes:
        maps: FloatTensor[B,C,H_l,W_l], finest first.
        pooling: which map a box is pooled from, and how.
        stage: layers applied to the pooled features before any head (C4: res5, which halves their side), or None.
    """

    maps: Sequence[Tensor]
    pooling: Pooling
    stage: Callable[[Tensor], Tensor] | None = None

    def pool(self, boxes: Sequence[Tensor], resolution: int, n_levels: int | None = None) -> Tensor:
        """Features of the boxes (per image FloatTensor[R_i,4]), image by image: FloatTensor[R,C,M,M]; R may be 0.

        ``resolution``: side of the pooled grid; M is half of it in C4. ``n_levels``: use only the finest maps.
        """
        pooled = pool_boxes(self.maps[:n_levels], boxes, resolution, self.pooling)
        return pooled if self.stage is None else self.stage(pooled)

    def of_image(self, image: int) -> RegionFeatures:
        """The features of one image of the batch."""
        return RegionFeatures([level[image : image + 1] for level in self.maps], self.pooling, self.stage)


def pooling_of(config: RCNNConfig, conventions: Conventions) -> Pooling:
    """How a network with this resolved ``model`` section pools its regions."""
    roi = config.roi
    pyramid = roi if isinstance(roi, PyramidRegionConfig) else PyramidRegionConfig()  # irrelevant for a single map
    return Pooling(
        sampling_ratio=decided(roi.sampling_ratio),
        aligned=decided(roi.aligned),
        level_rule=conventions.level_rule,
        canonical_box_px=pyramid.canonical_box_px,
        canonical_level=pyramid.canonical_level,
        first_level=config.first_level,
    )
