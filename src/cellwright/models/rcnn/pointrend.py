"""PointRend (Kirillov et al. 2020): a coarse mask from few cells, refined at the points where it is least certain.

Shape shorthand: R regions, K classes, P points a region, C channels of the finest map, M side of a mask. Unit points
are (x, y) in [0, 1], which spans a region's box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellwright.models.layers import ConvNorm, init_kaiming, init_normal
from cellwright.models.rcnn.losses import mask_loss, of_class
from cellwright.models.rcnn.regions import Regions
from cellwright.ops.batch import Batch
from cellwright.ops.points import (
    grid_points,
    points_in_boxes,
    sample_labels,
    sample_map,
    sample_masks,
    uncertain_cells,
)

# Values that the rendering of masks holds at once besides its result: below 200 MB.
_CHUNK_VALUES = 48_000_000


@dataclass(frozen=True, kw_only=True)
class PointRules:
    """See ``PointHeadConfig``. ``stride``: of the finest map, px."""

    stride: int
    train_points: int
    oversample: float
    uncertain_fraction: float
    subdivisions: int
    test_points: int
    weight: float


class CoarseMaskHead(nn.Module):
    """A grid of features to coarse masks: 1x1 (where channels shrink), 2x2 of stride 2, fully connected layers."""

    def __init__(
        self, *, in_channels: int, resolution: int, channels: int, fc_channels: Sequence[int], n_masks: int
    ) -> None:
        super().__init__()
        self.side, self.n_masks = resolution // 2, n_masks
        self.reduce = nn.Identity()
        if channels < in_channels:
            self.reduce = ConvNorm(in_channels, channels, 1, norm="none", relu=True)
            in_channels = channels
        self.shrink = ConvNorm(in_channels, channels, 2, stride=2, norm="none", relu=True)
        widths = [channels * self.side**2, *fc_channels]
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
    """Features of points to mask logits: the same small network at every point, which sees the coarse logits anew in
    every layer."""

    def __init__(self, *, in_channels: int, channels: int, n_layers: int, n_masks: int) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * n_layers
        self.channels = channels
        self.fcs = nn.ModuleList(nn.Conv1d(a + n_masks, b, 1) for a, b in pairwise(widths))
        self.logits = nn.Conv1d(channels + n_masks, n_masks, 1)
        init_kaiming(self)
        init_normal(self.logits, std=0.001)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """FloatTensor[R,C,P] and coarse logits FloatTensor[R,n_masks,P] at the points -> FloatTensor[R,n_masks,P]."""
        x = fine
        for fc in self.fcs:
            x = F.relu(fc(torch.cat([x, coarse], dim=1)), inplace=True)
        return self.logits(torch.cat([x, coarse], dim=1))


def sample_grid(fine: Tensor, boxes: Sequence[Tensor], resolution: int, rules: PointRules) -> Tensor:
    """The finest map at a regular grid of every box: FloatTensor[R,C,resolution,resolution], image by image.

    ``fine``: FloatTensor[B,C,H,W]; ``boxes``: per image FloatTensor[R_i,4] px.
    """
    grid = grid_points(resolution, fine.device)
    points = grid.expand(sum(len(own) for own in boxes), -1, -1)
    return _fine_at(fine, boxes, points, rules.stride).unflatten(2, (resolution, resolution))


def point_loss(
    coarse: Tensor,
    head: PointHead,
    fine: Tensor,
    regions: Sequence[Regions],
    batch: Batch,
    rules: PointRules,
    generator: torch.Generator,
) -> Tensor:
    """Mean binary cross-entropy at points drawn where the coarse mask is uncertain.

    Args:
        coarse: logits FloatTensor[R,n_masks,M,M] of all images' regions.
        head: the point head.
        fine: FloatTensor[B,C,H,W].
        regions: foreground only; their boxes may leave the image.
        batch: its label layers hold the objects.
        rules: how many points, and which.
        generator: of the CPU.

    Returns:
        A scalar; 0 without regions.
    """
    class_ids = torch.cat([region.class_ids for region in regions])
    points = draw_points(of_class(coarse, class_ids), rules, generator)
    return loss_at_points(coarse, head, fine, regions, batch, points, rules.stride)


@torch.no_grad()
def draw_points(logits: Tensor, rules: PointRules, generator: torch.Generator) -> Tensor:
    """Unit points FloatTensor[R,P,2] to learn from: the most uncertain of many candidates, and uniform ones.

    ``logits``: FloatTensor[R,M,M], the coarse masks of the regions' own classes, which the candidates read.
    """
    n, device = len(logits), logits.device
    n_uncertain = int(rules.uncertain_fraction * rules.train_points)
    candidates = torch.rand((n, int(rules.oversample * rules.train_points), 2), generator=generator).to(device)
    uncertainty = -sample_masks(logits[:, None], candidates)[:, 0].abs()
    chosen = uncertainty.topk(n_uncertain, dim=1).indices[:, :, None].expand(-1, -1, 2)
    uniform = torch.rand((n, rules.train_points - n_uncertain, 2), generator=generator).to(device)
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
    """``point_loss`` at given unit points FloatTensor[R,P,2]; labels are the objects' masks there, between 0 and 1."""
    boxes = [region.boxes for region in regions]
    logits = head(_fine_at(fine, boxes, points, stride), sample_masks(coarse, points))
    labels = []
    places = points_in_boxes(points, torch.cat(boxes)).split([len(own) for own in boxes])
    for image, (region, place) in enumerate(zip(regions, places, strict=True)):
        layers, layer_of = batch.layers[image], batch.layer_of[image][region.objects]
        labels.append(sample_labels(layers, layer_of, (region.objects + 1).to(layers.dtype), place))
    return mask_loss(logits, torch.cat([region.class_ids for region in regions]), torch.cat(labels))


@torch.no_grad()
def render_masks(
    coarse: Tensor, head: PointHead, fine: Tensor, boxes: Tensor, class_ids: Tensor, rules: PointRules
) -> Tensor:
    """Probabilities FloatTensor[R,M,M] of one image's boxes after all subdivisions.

    Args:
        coarse: logits FloatTensor[R,n_masks,m,m]; M is m times 2 to the number of subdivisions.
        head: the point head.
        fine: FloatTensor[1,C,H,W].
        boxes: FloatTensor[R,4] px.
        class_ids: LongTensor[R], which class's mask is wanted.
        rules: how many subdivisions, and points in each.
    """
    side = coarse.shape[-1] * 2**rules.subdivisions
    # The point head's inputs and outputs, with a copy of each; a map, its enlargement and the search in it.
    per_point = 3 * (fine.shape[1] + coarse.shape[1] + head.channels)
    at_once = max(1, _CHUNK_VALUES // (per_point * max(rules.test_points, coarse.shape[-1] ** 2) + 5 * side**2))
    probs = coarse.new_empty((len(boxes), side, side), dtype=torch.float32)
    for start in range(0, len(boxes), at_once):
        part = slice(start, start + at_once)
        probs[part] = subdivide(coarse[part], head, fine, boxes[part], class_ids[part], rules).sigmoid()
    return probs


def subdivide(
    coarse: Tensor, head: PointHead, fine: Tensor, boxes: Tensor, class_ids: Tensor, rules: PointRules
) -> Tensor:
    """Logits FloatTensor[R,M,M] as ``render_masks`` has them, all regions at once.

    Uncertain is what the wanted class's logits say, so the other classes' maps are never made: each is enlarged and
    overwritten by itself.
    """

    def logits_at(points: Tensor) -> Tensor:
        logits = head(_fine_at(fine, [boxes], points, rules.stride), sample_masks(coarse, points))
        return of_class(logits, class_ids).float()

    side, doublings = coarse.shape[-1], rules.subdivisions
    # A subdivision that computes every cell anew needs no smaller mask before it.
    while doublings > 0 and (2 * side) ** 2 <= rules.test_points:
        side, doublings = 2 * side, doublings - 1
    grid = grid_points(side, coarse.device).expand(len(boxes), -1, -1)
    logits = logits_at(grid).unflatten(1, (side, side))
    for _ in range(doublings):
        logits = F.interpolate(logits[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        cells, points = uncertain_cells(logits, rules.test_points)
        logits = logits.flatten(1).scatter(1, cells, logits_at(points)).view_as(logits)
    return logits


def _fine_at(fine: Tensor, boxes: Sequence[Tensor], points: Tensor, stride: int) -> Tensor:
    """FloatTensor[R,C,P]: the finest map at unit points FloatTensor[R,P,2] of the boxes, image by image."""
    places = points_in_boxes(points, torch.cat(list(boxes))).split([len(own) for own in boxes])
    return torch.cat([sample_map(fine[i : i + 1], place, stride) for i, place in enumerate(places)])
