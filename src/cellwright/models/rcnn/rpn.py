"""Region proposal network (Ren et al. 2015) over one feature map or a pyramid.

Shape shorthand: B images, A anchors per cell, N anchors of all levels together (order: level, y, x, anchor).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cellwright.config.conventions import Conventions
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.section import decided
from cellwright.models.layers import WinogradConvNorm, init_normal
from cellwright.models.rcnn.losses import objectness_loss, smooth_l1_sum
from cellwright.ops.assign import BACKGROUND, FOREGROUND, UNUSED, assign, inside_ignored, sample
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import (
    Extent,
    cell_anchors,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    grid_anchors,
    large_enough,
)
from cellwright.ops.nms import grouped_nms

_DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class AnchorScores:
    """The head's predictions for every anchor.

    Attributes:
        anchors: FloatTensor[N,4] px, shared by all images.
        logits: FloatTensor[B,N], objectness.
        deltas: FloatTensor[B,N,4], coded relative to the anchors.
        per_level: anchors of each level; they sum to N.
    """

    anchors: Tensor
    logits: Tensor
    deltas: Tensor
    per_level: tuple[int, ...]


class RPNHead(nn.Module):
    """3x3 convolutions, then objectness and box deltas for every anchor of a cell; shared by all levels."""

    def __init__(self, channels: int, n_anchors: int, n_convs: int) -> None:
        super().__init__()
        layers = (WinogradConvNorm(channels, channels, 3, norm="none", relu=True) for _ in range(n_convs))
        self.convs = nn.Sequential(*layers)
        self.objectness = nn.Conv2d(channels, n_anchors, 1)
        self.deltas = nn.Conv2d(channels, n_anchors * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                init_normal(layer, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level FloatTensor[B,A,H_l,W_l] logits and FloatTensor[B,A*4,H_l,W_l] deltas."""
        hidden = [self.convs(feature) for feature in features]
        return [self.objectness(h) for h in hidden], [self.deltas(h) for h in hidden]


class RPN(nn.Module):
    """Scores anchors, turns the best into proposals, and computes the losses of both."""

    def __init__(self, config: RCNNConfig, conventions: Conventions, channels: int, head: Any = None) -> None:
        """``config``: the whole resolved ``model`` section, for its ``rpn``, ``anchors`` and ``roi.ignore_ioa``;
        ``channels``: of the feature maps; ``head``: what computes as `RPNHead` does, None for a new one."""
        super().__init__()
        anchors = config.anchors
        self.config, self.ignore_ioa, self.first_level = config.rpn, config.roi.ignore_ioa, config.first_level
        # torchvision derives a level's stride from the sizes of its map and of the image instead of 2**level. They
        # differ if a side of the image is an odd multiple of the stride.
        self.infer_strides = conventions.infer_anchor_stride
        # Cell anchors FloatTensor[A,4] of each level. A level with fewer than others uses the head's first outputs.
        self.cells = tuple(
            cell_anchors(sizes, anchors.ratios, rounded=decided(anchors.rounded)) for sizes in anchors.sizes_px
        )
        self.head = RPNHead(channels, max(map(len, self.cells)), config.rpn.convs) if head is None else head

    def forward(self, features: Sequence[Tensor]) -> AnchorScores:
        """``features``: FloatTensor[B,C,H_l,W_l], one map per level of the anchors, finest first."""
        logits, deltas = self.head(features)
        logits = [level[:, : len(cell)] for level, cell in zip(logits, self.cells, strict=True)]
        deltas = [level[:, : 4 * len(cell)] for level, cell in zip(deltas, self.cells, strict=True)]
        anchors = self.anchors_of(features)
        return AnchorScores(
            anchors=torch.cat(anchors),
            logits=torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in logits], dim=1),
            deltas=torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, 4) for level in deltas], dim=1),
            per_level=tuple(len(level) for level in anchors),
        )

    def anchors_of(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Per level FloatTensor[h*w*A,4] px; ``features`` as in ``forward``."""
        padded = [side * 2**self.first_level for side in features[0].shape[2:]]
        anchors = []
        for level, (cell, feature) in enumerate(zip(self.cells, features, strict=True)):
            height, width = feature.shape[2:]
            stride = 2 ** (self.first_level + level)
            strides = (padded[0] // height, padded[1] // width) if self.infer_strides else (stride, stride)
            anchors.append(grid_anchors(cell.to(feature.device), (height, width), strides))
        return anchors

    @torch.no_grad()
    def proposals(
        self, scores: AnchorScores, image_hws: Sequence[Extent], *, training: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Per image FloatTensor[R,4] boxes inside the image and their logits FloatTensor[R], best first.

        The highest-scoring anchors of each level, non-maximum suppression inside each level, and the best of all
        levels. ``training`` selects the counts, ``pre_nms_train`` or ``pre_nms_test`` and so on; R may be 0.
        """
        config = self.config
        pre_nms = decided(config.pre_nms_train if training else config.pre_nms_test)
        post_nms = decided(config.post_nms_train if training else config.post_nms_test)
        boxes, logits = [], []
        for image, image_hw in enumerate(image_hws):
            index, level = _best_of_each_level(scores.logits[image], scores.per_level, pre_nms)
            kept = decode_boxes(scores.deltas[image, index], scores.anchors[index], _DELTA_WEIGHTS)
            score = scores.logits[image, index]
            finite = kept.isfinite().all(dim=1) & score.isfinite()
            kept = clip_boxes(kept, image_hw)
            usable = finite & large_enough(kept, decided(config.min_box_px))
            kept, score, level = kept[usable], score[usable], level[usable]
            best = grouped_nms(kept, score, level, config.nms_iou)[:post_nms]
            boxes.append(kept[best])
            logits.append(score[best])
        return boxes, logits

    def losses(self, scores: AnchorScores, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """The weighted losses ``rpn_class`` (objectness) and ``rpn_box`` over a random sample of anchors.

        ``generators``: on the CPU, one per image.
        """
        config = self.config
        logits, deltas, labels, targets = [], [], [], []
        for image, generator in enumerate(generators):
            label, matched = self.anchor_targets(scores.anchors, batch, image)
            drawn = sample(label, config.samples_per_image, config.positive_fraction, generator)
            positive = drawn[label[drawn] == FOREGROUND]
            logits.append(scores.logits[image, drawn])
            labels.append(label[drawn])
            deltas.append(scores.deltas[image, positive])
            targets.append(encode_boxes(matched[positive], scores.anchors[positive], _DELTA_WEIGHTS))
        if config.loss_normaliser == "sampled":
            normaliser = max(batch.ranks.count(sum(map(len, labels))), 1)
        else:
            normaliser = config.samples_per_image * batch.ranks.count(len(batch))
        class_loss = batch.ranks.total(objectness_loss(torch.cat(logits), torch.cat(labels), normaliser))
        of_boxes = smooth_l1_sum(torch.cat(deltas), torch.cat(targets), decided(config.smooth_l1_beta)) / normaliser
        box_loss = batch.ranks.total(of_boxes)
        return {"rpn_class": config.class_weight * class_loss, "rpn_box": config.box_weight * box_loss}

    @torch.no_grad()
    def anchor_targets(self, anchors: Tensor, batch: Batch, image: int) -> tuple[Tensor, Tensor]:
        """Labels Int8Tensor[N] (see ``ops.assign``) and the box FloatTensor[N,4] of each anchor's best object.

        Anchors inside regions that are not annotated are no background. Without objects, the boxes are all 0.
        """
        objects = batch.boxes[image][~batch.ignore[image]]
        assignment = assign(
            anchors,
            objects,
            foreground_iou=self.config.foreground_iou,
            background_iou=self.config.background_iou,
            keep_best=True,
        )
        unknown = inside_ignored(anchors, batch.ignored_pixels(image), self.ignore_ioa)
        unknown &= assignment.labels == BACKGROUND
        matched = objects[assignment.objects] if len(objects) else torch.zeros_like(anchors)
        return assignment.labels.masked_fill(unknown, UNUSED), matched


def _best_of_each_level(logits: Tensor, per_level: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """Indices and levels, LongTensor[T] each, of the ``count`` highest logits FloatTensor[N] of every level."""
    indices, levels, start = [], [], 0
    for number, level in enumerate(logits.split(list(per_level))):
        index = level.topk(min(count, len(level))).indices
        indices.append(index + start)
        levels.append(torch.full_like(index, number))
        start += len(level)
    return torch.cat(indices), torch.cat(levels)
