"""PointRend (Kirillov et al. 2020): coarse masks from few cells, refined at the points where they are least certain.

Shape shorthand: R regions, K classes, P points per region, C channels of the finest map, M side of a mask. Unit points
are (x, y) in [0, 1], which spans a region's box. ``stride``, px, is that of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.config.conventions import Conventions
from cellwright.config.model_rcnn import CoarseMaskConfig, PointHeadConfig, PointRendConfig
from cellwright.config.section import decided
from cellwright.models.layers import ConvNorm, init_kaiming, init_normal
from cellwright.models.rcnn.fpn import FPN
from cellwright.models.rcnn.heads import BoxHead, counted_cells, mask_coverage, mask_targets
from cellwright.models.rcnn.losses import mask_loss, of_class
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.regions import BoxOutputs, Detections, RegionFeatures, Regions
from cellwright.models.rcnn.resnet import ResNet
from cellwright.models.rcnn.rpn import RPN
from cellwright.ops.batch import Batch
from cellwright.ops.boxes import decode_boxes
from cellwright.ops.points import (
    grid_points,
    points_in_boxes,
    sample_labels,
    sample_map,
    sample_masks,
    uncertain_cells,
)

# Maximum number of values in memory while masks are rendered, besides the result: below 200 MB.
_CHUNK_VALUES = 48_000_000


class PointRend(MaskRCNN):
    """`MaskRCNN` whose masks are predicted coarsely and then refined, both from the finest map."""

    def __init__(self, config: PointRendConfig, conventions: Conventions, *, in_channels: int, n_classes: int) -> None:
        """``config`` must be resolved."""
        nn.Module.__init__(self)  # the parts are not those of `MaskRCNN`
        self.config, self.conventions, self.n_classes = config, conventions, n_classes
        channels, n_rows = config.fpn.channels, n_classes + conventions.background_rows
        self.backbone = ResNet(config.backbone, in_channels)
        self.fpn = FPN(config.fpn, self.backbone.out_channels)
        # Created here but registered last: the order of creation determines the random weights of a new network, and
        # the order of registration that of its tensors.
        point_head = PointHead(config.point_head, in_channels=channels, n_masks=n_rows)
        self.rpn = RPN(config, conventions, channels)
        self.box_head = nn.ModuleList(
            [BoxHead(config.box_head, in_channels=channels, n_classes=n_classes, n_rows=n_rows)]
        )
        self.mask_head = CoarseMaskHead(config.mask_head, in_channels=channels, n_masks=n_rows)
        self.point_head = point_head
        self.fine_stride = 2**config.first_level
        """Of the finest map, px."""

    def mask_losses(
        self, source: RegionFeatures, boxes: BoxOutputs, batch: Batch, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """The losses ``mask`` (coarse) and ``point`` of the foreground regions, at the boxes predicted for them."""
        return self.point_losses(source, self._at_predicted_boxes(boxes), batch, generators)

    def point_losses(
        self, source: RegionFeatures, regions: Sequence[Regions], batch: Batch, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """The same for given foreground regions, whose boxes may leave the image."""
        config, head, fine = self.config.mask_head, self.point_head, source.maps[0]
        boxes = [region.boxes for region in regions]
        coarse = self.mask_head(sample_grid(fine, boxes, config.resolution, self.fine_stride))
        side, aligned = coarse.shape[-1], decided(config.target_aligned)
        targets = mask_targets(mask_coverage(regions, batch, side, aligned=aligned), config)
        counted = counted_cells(regions, batch, side, aligned=aligned)
        class_ids = torch.cat([region.class_ids for region in regions])
        of_images = of_class(coarse, class_ids).split([len(own) for own in boxes])
        drawn = [draw_points(own, head.config, generator) for own, generator in zip(of_images, generators, strict=True)]
        points = torch.cat(drawn)
        point = loss_at_points(coarse, head, fine, regions, batch, points, self.fine_stride)
        return {
            "mask": config.weight * mask_loss(coarse, class_ids, targets, counted, batch.ranks),
            "point": head.config.weight * point,
        }

    @torch.no_grad()
    def _at_predicted_boxes(self, boxes: BoxOutputs) -> list[Regions]:
        """Foreground regions moved to the boxes predicted for their classes, which may leave the image."""
        deltas = boxes.deltas
        per_box = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
        own = of_class(per_box, torch.cat([region.class_ids for region in boxes.regions]))
        (weights,) = self.config.box_head.stage_delta_weights
        parts = zip(boxes.regions, own.split([len(region.boxes) for region in boxes.regions]), strict=True)
        return [replace(region, boxes=decode_boxes(delta, region.boxes, weights)) for region, delta in parts]

    def masks(self, source: RegionFeatures, detections: Detections) -> tuple[Detections, Tensor]:
        """Masks FloatTensor[D,M,M] in [0, 1] of one image's detections, after all subdivisions."""
        fine, boxes = source.maps[0], detections.boxes
        coarse = self.mask_head(sample_grid(fine, [boxes], self.config.mask_head.resolution, self.fine_stride))
        head, class_ids = self.point_head, detections.class_ids
        return detections, render_masks(coarse, head, fine, boxes, class_ids, head.config, self.fine_stride)


class CoarseMaskHead(nn.Module):
    """A grid of features to coarse masks: 1x1 (if channels shrink), 2x2 of stride 2, fully connected layers."""

    def __init__(self, config: CoarseMaskConfig, *, in_channels: int, n_masks: int) -> None:
        super().__init__()
        channels = config.channels
        self.side, self.n_masks = config.resolution // 2, n_masks
        self.reduce = nn.Identity()
        if channels < in_channels:
            self.reduce = ConvNorm(in_channels, channels, 1, norm="none", relu=True)
            in_channels = channels
        self.shrink = ConvNorm(in_channels, channels, 2, stride=2, norm="none", relu=True)
        widths = [channels * self.side**2] + [config.fc_channels] * config.fcs
        fcs = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.fcs, self.logits = nn.ModuleList(fcs), nn.Linear(widths[-1], n_masks * self.side**2)
        init_kaiming(self)
        for fc in fcs:
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
        init_normal(self.logits, std=0.001)

    def forward(self, grid: Tensor) -> Tensor:
        """FloatTensor[R,C,2M,2M] -> logits FloatTensor[R,n_masks,M,M]; R may be 0."""
        x = self.shrink(self.reduce(grid)).flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x), inplace=True)
        return self.logits(x).unflatten(1, (self.n_masks, self.side, self.side))


class PointHead(nn.Module):
    """Features of points to mask logits: the same small network at each point; all layers see the coarse logits."""

    def __init__(self, config: PointHeadConfig, *, in_channels: int, n_masks: int) -> None:
        super().__init__()
        self.config = config
        widths = [in_channels] + [config.channels] * config.fcs
        self.fcs = nn.ModuleList(nn.Conv1d(a + n_masks, b, 1) for a, b in pairwise(widths))
        self.logits = nn.Conv1d(widths[-1] + n_masks, n_masks, 1)
        init_kaiming(self)
        init_normal(self.logits, std=0.001)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """FloatTensor[R,C,P] and coarse logits FloatTensor[R,n_masks,P] at the points -> FloatTensor[R,n_masks,P]."""
        x = fine
        for fc in self.fcs:
            x = F.relu(fc(torch.cat([x, coarse], dim=1)), inplace=True)
        return self.logits(torch.cat([x, coarse], dim=1))


# --- points -------------------------------------------------------------------------------------------------------


def sample_grid(fine: Tensor, boxes: Sequence[Tensor], resolution: int, stride: int) -> Tensor:
    """The finest map at a regular grid of every box: FloatTensor[R,C,resolution,resolution], image by image.

    ``fine``: FloatTensor[B,C,H,W]; ``boxes``: per image FloatTensor[R_i,4] px.
    """
    grid = grid_points(resolution, fine.device)
    points = grid.expand(sum(len(own) for own in boxes), -1, -1)
    return _fine_at(fine, boxes, points, stride).unflatten(2, (resolution, resolution))


@torch.no_grad()
def draw_points(logits: Tensor, config: PointHeadConfig, generator: torch.Generator) -> Tensor:
    """Unit points FloatTensor[R,P,2] for the loss: the most uncertain of many candidates, and uniform ones.

    ``logits``: FloatTensor[R,M,M], the coarse masks of the regions' own classes; ``generator``: on the CPU.
    """
    n, device = len(logits), logits.device
    n_uncertain = int(config.uncertain_fraction * config.train_points)
    candidates = torch.rand((n, int(config.oversample * config.train_points), 2), generator=generator).to(device)
    uncertainty = -sample_masks(logits[:, None], candidates)[:, 0].abs()
    chosen = uncertainty.topk(n_uncertain, dim=1).indices[:, :, None].expand(-1, -1, 2)
    uniform = torch.rand((n, config.train_points - n_uncertain, 2), generator=generator).to(device)
    return torch.cat([candidates.gather(1, chosen), uniform], dim=1)


def loss_at_points(
    coarse: Tensor,
    head: PointHead,
    fine: Tensor,
    regions: Sequence[Regions],
    batch: Batch,
    points: Tensor,
    stride: int,
) -> Tensor:
    """Mean binary cross-entropy at unit points FloatTensor[R,P,2]; 0 without regions.

    The targets are the objects' masks at the points, interpolated to values in [0, 1].

    Args:
        coarse: logits FloatTensor[R,n_masks,M,M] of all images' regions.
        head: the point head.
        fine: FloatTensor[B,C,H,W].
        regions: foreground only; their boxes may leave the image.
        batch: its label layers hold the objects.
        points: see `draw_points`.
        stride: of ``fine``, px.
    """
    boxes = [region.boxes for region in regions]
    logits = head(_fine_at(fine, boxes, points, stride), sample_masks(coarse, points))
    labels, known = [], []
    places = points_in_boxes(points, torch.cat(boxes)).split([len(own) for own in boxes])
    for image, (region, place) in enumerate(zip(regions, places, strict=True)):
        layers, layer_of = batch.layers[image], batch.layer_of[image][region.objects]
        labels.append(sample_labels(layers, layer_of, (region.objects + 1).to(layers.dtype), place))
        ignored = batch.ignored_pixels(image)
        if ignored is None:
            known.append(None)
        else:
            values = torch.ones_like(region.objects, dtype=torch.int32)
            known.append(sample_labels(ignored.to(torch.int32)[None], torch.zeros_like(layer_of), values, place) < 0.5)
    counted = None
    if any(part is not None for part in known):
        parts = zip(known, labels, strict=True)
        counted = torch.cat([torch.ones_like(own, dtype=torch.bool) if part is None else part for part, own in parts])
    class_ids = torch.cat([region.class_ids for region in regions])
    return mask_loss(logits, class_ids, torch.cat(labels), counted, batch.ranks)


@torch.no_grad()
def render_masks(
    coarse: Tensor,
    head: PointHead,
    fine: Tensor,
    boxes: Tensor,
    class_ids: Tensor,
    config: PointHeadConfig,
    stride: int,
) -> Tensor:
    """Probabilities FloatTensor[R,M,M] of one image's boxes after all subdivisions.

    Args:
        coarse: logits FloatTensor[R,n_masks,m,m]; M is m times 2 to the power of the number of subdivisions.
        head: the point head.
        fine: FloatTensor[1,C,H,W].
        boxes: FloatTensor[R,4] px.
        class_ids: LongTensor[R], the class of each mask.
        config: the number of subdivisions, and of points in each.
        stride: of ``fine``, px.
    """
    side = coarse.shape[-1] * 2**config.subdivisions
    # The point head's inputs and outputs, with a copy of each; a map, its enlargement and the search in it.
    per_point = 3 * (fine.shape[1] + coarse.shape[1] + config.channels)
    at_once = max(1, _CHUNK_VALUES // (per_point * max(config.test_points, coarse.shape[-1] ** 2) + 5 * side**2))
    probs = coarse.new_empty((len(boxes), side, side), dtype=torch.float32)
    for start in range(0, len(boxes), at_once):
        part = slice(start, start + at_once)
        logits = subdivide(coarse[part], head, fine, boxes[part], class_ids[part], config, stride)
        probs[part] = logits.sigmoid()
    return probs


def subdivide(
    coarse: Tensor,
    head: PointHead,
    fine: Tensor,
    boxes: Tensor,
    class_ids: Tensor,
    config: PointHeadConfig,
    stride: int,
) -> Tensor:
    """Logits FloatTensor[R,M,M], all regions at once; arguments as in `render_masks`.

    Only the logits of the region's own class decide which points are uncertain, and each class is refined
    independently, so the maps of the other classes are not computed.
    """

    def logits_at(points: Tensor) -> Tensor:
        logits = head(_fine_at(fine, [boxes], points, stride), sample_masks(coarse, points))
        return of_class(logits, class_ids).float()

    side, doublings = coarse.shape[-1], config.subdivisions
    # A subdivision that recomputes every cell does not depend on the smaller mask: start there.
    while doublings > 0 and (2 * side) ** 2 <= config.test_points:
        side, doublings = 2 * side, doublings - 1
    grid = grid_points(side, coarse.device).expand(len(boxes), -1, -1)
    logits = logits_at(grid).unflatten(1, (side, side))
    for _ in range(doublings):
        logits = F.interpolate(logits[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        cells, points = uncertain_cells(logits, config.test_points)
        logits = logits.flatten(1).scatter(1, cells, logits_at(points)).view_as(logits)
    return logits


def _fine_at(fine: Tensor, boxes: Sequence[Tensor], points: Tensor, stride: int) -> Tensor:
    """FloatTensor[R,C,P]: the finest map at unit points FloatTensor[R,P,2] of the boxes, image by image."""
    places = points_in_boxes(points, torch.cat(list(boxes))).split([len(own) for own in boxes])
    return torch.cat([sample_map(fine[i : i + 1], place, stride) for i, place in enumerate(places)])
