"""Stage by stage against Detectron2's own numbers (fixtures/pointrend_rcnn_X_101_FPN; its README gives the tolerances).

Points that Detectron2 drew at random are taken from the fixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2_fixture import (
    IMAGE_HW,
    OUTPUT_HW,
    Fixture,
    build,
    check_losses_and_gradients,
    read_fixture,
    unmatched,
)
from torch import Tensor

from cellwright.config.model_rcnn import CoarseMaskConfig, PointRendConfig
from cellwright.models.rcnn import pointrend
from cellwright.models.rcnn.heads import mask_coverage, mask_targets
from cellwright.models.rcnn.pointrend import PointHead, PointRend, sample_grid, subdivide
from cellwright.models.rcnn.regions import Regions
from cellwright.ops.batch import Batch
from cellwright.ops.placement import Placement
from cellwright.ops.points import points_in_boxes, sample_labels, uncertain_cells


def config(
    anchors_per_image: int = 256, regions_per_image: int = 512, region_fraction: float = 0.25
) -> PointRendConfig:
    """The fixture's config.yaml as a cellwright section."""
    return PointRendConfig.model_validate(
        {
            "kind": "pointrend",
            "backbone": {
                "depth": 50,
                "width": 8,
                "groups": 32,
                "group_width": 1,
                "stem_channels": 16,
                "norm": "frozen_batch_norm",
                "stride_in_1x1": False,
                "frozen_stages": 2,
            },
            "fpn": {"channels": 32},
            "rpn": {"samples_per_image": anchors_per_image},
            "box_head": {
                "fc_channels": 64,
                "score_threshold": 0.0,
                "samples_per_image": regions_per_image,
                "positive_fraction": region_fraction,
            },
            "mask_head": {"channels": 24, "fc_channels": 64},
            "point_head": {"channels": 32},
        }
    )


@pytest.fixture(scope="module")
def fixture(fixtures_root: Path) -> Fixture:
    return read_fixture(fixtures_root / "pointrend_rcnn_X_101_FPN")


@pytest.fixture(scope="module")
def network(fixture: Fixture) -> PointRend:
    network = build(fixture, config())
    assert isinstance(network, PointRend)
    return network


@pytest.fixture(scope="module")
def pyramid(fixture: Fixture) -> list[Tensor]:
    return [fixture.tensor(f"backbone_p{level}") for level in range(2, 7)]


@torch.no_grad()
def test_backbone_pyramid_and_anchor_scores(network: PointRend, fixture: Fixture, pyramid: list[Tensor]) -> None:
    for level, ours in zip(range(2, 7), network.features(fixture.tensor("preprocessed")), strict=True):
        assert np.abs(ours.numpy() - fixture.theirs[f"backbone_p{level}"]).max() < 2e-4
    logits, deltas = network.rpn.head(pyramid)
    for level in range(5):
        assert np.abs(logits[level].numpy() - fixture.theirs[f"rpn_logits_{level}"]).max() < 2e-4
        assert np.abs(deltas[level].numpy() - fixture.theirs[f"rpn_deltas_{level}"]).max() < 2e-4


def test_proposals_and_detections(network: PointRend, fixture: Fixture, pyramid: list[Tensor]) -> None:
    (proposals,) = network.proposals(pyramid, [IMAGE_HW])
    assert unmatched(proposals.numpy(), fixture.theirs["proposal_boxes"], 1e-2) == (0, 0)
    (ours,) = network.boxes(pyramid, [fixture.tensor("proposal_boxes")], [IMAGE_HW])
    assert np.abs(ours.boxes.numpy() - fixture.theirs["det_boxes"]).max() < 3e-3
    assert np.abs(ours.scores.numpy() - fixture.theirs["det_scores"]).max() < 1e-4
    assert np.array_equal(ours.class_ids.numpy(), fixture.theirs["det_classes"])


# --- masks --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_coarse_masks(network: PointRend, fixture: Fixture, pyramid: list[Tensor]) -> None:
    grid = sample_grid(pyramid[0], [fixture.tensor("det_boxes")], 14, network.fine_stride)
    ours = network.mask_head(grid)
    assert np.abs(ours.numpy() - fixture.theirs["coarse_mask_logits"]).max() < 2e-4


@torch.no_grad()
def logits_after(network: PointRend, fixture: Fixture, subdivisions: int) -> Tensor:
    """Our logits for the classes of the first twelve detections, from the stored coarse masks."""
    detections, coarse = fixture.detections(), fixture.tensor("coarse_mask_logits")
    config = network.point_head.config.model_copy(update={"subdivisions": subdivisions})
    fine = fixture.tensor("backbone_p2")
    return subdivide(coarse[:12], network.point_head, fine, detections.boxes[:12], detections.class_ids[:12], config, 4)


@pytest.mark.parametrize(("subdivisions", "side"), [(2, 28), (3, 56)])
def test_logits_of_the_predicted_class(network: PointRend, fixture: Fixture, subdivisions: int, side: int) -> None:
    """Detectron2 refines the maps of all classes, ours only that of the predicted class, which decides the points."""
    theirs = fixture.theirs[f"pr_logits_{side}"][np.arange(12), fixture.theirs["det_classes"][:12]]
    assert np.abs(logits_after(network, fixture, subdivisions).numpy() - theirs).max() < 2e-4


@pytest.mark.parametrize("step", [1, 2, 3])
def test_chosen_points(network: PointRend, fixture: Fixture, step: int) -> None:
    logits = logits_after(network, fixture, step + 1)[:, None]
    enlarged = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    cells, _ = uncertain_cells(enlarged, 784)
    for ours, theirs in zip(cells.tolist(), fixture.theirs[f"pr_point_indices_step{step}"].tolist(), strict=True):
        assert len(set(ours) - set(theirs)) <= 2  # near ties at the last rank


def test_mask_probabilities(network: PointRend, fixture: Fixture, pyramid: list[Tensor]) -> None:
    detections = fixture.detections()
    (probs,) = network.masks_for(pyramid, [detections.boxes], [detections.class_ids])
    assert probs.shape == (100, 224, 224)
    # Where a near tie is resolved differently, a cell is interpolated instead of computed.
    assert (np.abs(probs[:12].numpy() - fixture.theirs["mask_probs_first12"]) > 1e-4).sum() <= 24


@pytest.mark.parametrize(("name", "output_hw"), [("post", IMAGE_HW), ("post400x500", OUTPUT_HW)])
def test_pasted_pixels(
    network: PointRend, fixture: Fixture, pyramid: list[Tensor], name: str, output_hw: tuple[int, int]
) -> None:
    """From the stored maps and boxes, so that only the masks can differ."""
    detections = fixture.detections()
    (probs,) = network.masks_for(pyramid, [detections.boxes], [detections.class_ids])
    ours = network.place(detections, probs, Placement.whole(IMAGE_HW, output_hw))
    expected = fixture.pasted(name)
    visible = expected.any(axis=(1, 2))
    assert np.abs(ours.boxes_xyxy - fixture.theirs[f"{name}_boxes"][visible]).max() < 1e-3
    assert np.array_equal(ours.class_ids, fixture.theirs[f"{name}_classes"][visible])
    assert (ours.masks.to_dense().astype(bool) != expected[visible]).sum() <= 10


def test_whole_flow(network: PointRend, fixture: Fixture) -> None:
    """Near-tied objects swap ranks between Detectron2's own runs (2283 of 78188 mask pixels differ rank by rank), so
    every object is compared with the one of the same box."""
    (ours,) = network.detect(fixture.tensor("preprocessed"), [IMAGE_HW], [IMAGE_HW])
    expected, boxes = fixture.pasted("post"), fixture.theirs["post_boxes"]
    visible = expected.any(axis=(1, 2))
    expected, boxes = expected[visible], boxes[visible]
    assert unmatched(ours.boxes_xyxy, boxes, 2e-2) == (0, 0)
    partner = np.abs(ours.boxes_xyxy[:, None] - boxes[None]).max(axis=2).argmin(axis=1)
    assert np.abs(ours.scores - fixture.theirs["post_scores"][visible][partner]).max() < 2e-4
    assert (ours.masks.to_dense().astype(bool) != expected[partner]).sum() <= 200


# --- training -----------------------------------------------------------------------------------------------------


def mask_regions(fixture: Fixture, tag: str) -> list[Regions]:
    """Foreground regions at the boxes predicted for them, in the order of the stored points."""
    regions = []
    for image, region in enumerate(fixture.regions(tag, "roi")):
        foreground = region[torch.nonzero(region.class_ids < 4).squeeze(1)]
        boxes = torch.from_numpy(fixture.targets[f"{tag}/mask_boxes_{image}"])
        assert np.array_equal(foreground.class_ids.numpy(), fixture.targets[f"{tag}/mask_classes_{image}"])
        regions.append(replace(foreground, boxes=boxes))
    return regions


def test_coarse_targets(fixture: Fixture) -> None:
    coverage = mask_coverage(mask_regions(fixture, "all_bitmask"), fixture.batch, 7, aligned=True)
    ours = mask_targets(coverage, CoarseMaskConfig(target="binary"))
    assert np.array_equal(ours.bool().numpy(), fixture.mask_targets("all_bitmask"))


@pytest.mark.parametrize("tag", ["all_bitmask", "default_bitmask"])
def test_point_labels_from_layers(fixture: Fixture, tag: str) -> None:
    regions = mask_regions(fixture, tag)
    points = torch.from_numpy(fixture.targets[f"{tag}/point_coords"])
    places = points_in_boxes(points, torch.cat([region.boxes for region in regions]))
    labels = []
    for image, (region, place) in enumerate(zip(regions, places.split([15, 11]), strict=True)):
        layers, layer_of = fixture.batch.layers[image], fixture.batch.layer_of[image][region.objects]
        labels.append(sample_labels(layers, layer_of, (region.objects + 1).to(layers.dtype), place))
    theirs = fixture.targets[f"{tag}/point_labels"]
    assert np.abs(torch.cat(labels).numpy() - theirs).max() < 1e-5
    assert ((theirs > 0) & (theirs < 1)).any()  # not binarised


def inject_points(monkeypatch: pytest.MonkeyPatch, fixture: Fixture, tag: str) -> None:
    """Use the fixture's points instead of our random ones; each region is identified by its box."""
    stored = torch.cat([region.boxes for region in mask_regions(fixture, tag)])
    points, ours = torch.from_numpy(fixture.targets[f"{tag}/point_coords"]), pointrend.loss_at_points

    def at_stored_points(
        coarse: Tensor,
        head: PointHead,
        fine: Tensor,
        regions: Sequence[Regions],
        batch: Batch,
        drawn: Tensor,
        stride: int,
    ) -> Tensor:
        distance = torch.cdist(torch.cat([region.boxes for region in regions]), stored, p=torch.inf)
        assert (distance.min(dim=1).values < 0.01).all()
        chosen = points[distance.argmin(dim=1)]
        assert chosen.shape == drawn.shape
        return ours(coarse, head, fine, regions, batch, chosen, stride)

    monkeypatch.setattr(pointrend, "loss_at_points", at_stored_points)


def test_losses_and_gradients(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(fixture, config(anchors_per_image=65536, regions_per_image=16384, region_fraction=0.5))
    inject_points(monkeypatch, fixture, "all_bitmask")
    check_losses_and_gradients(network, fixture, "all_bitmask", network.losses(fixture.batch))


def test_losses_of_the_stored_sample(network: PointRend, fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    inject_points(monkeypatch, fixture, "default_bitmask")
    with torch.no_grad():
        source = network.region_features(network.features(fixture.batch.images))
        losses, *_ = network.box_losses(source, fixture.regions("default_bitmask", "roi"), fixture.batch)
        regions = mask_regions(fixture, "default_bitmask")
        losses |= network.point_losses(source, regions, fixture.batch, fixture.batch.generators())
    stored = fixture.losses["default_bitmask"]["losses"]
    assert losses["class"].item() == pytest.approx(stored["loss_cls"], rel=1e-4)
    assert losses["box"].item() == pytest.approx(stored["loss_box_reg"], rel=1e-4)
    assert losses["mask"].item() == pytest.approx(stored["loss_mask"], rel=1e-4)
    assert losses["point"].item() == pytest.approx(stored["loss_mask_point"], rel=1e-4)


@torch.no_grad()
def test_stored_points_are_the_uncertain_ones_first(network: PointRend, fixture: Fixture) -> None:
    """Detectron2 puts the uncertain points first; the uniform rest is drawn independently of the candidates."""
    regions, fine = mask_regions(fixture, "all_bitmask"), network.features(fixture.batch.images)[0]
    coarse = network.mask_head(sample_grid(fine, [region.boxes for region in regions], 14, network.fine_stride))
    own = coarse[torch.arange(26), torch.cat([region.class_ids for region in regions])]
    points = torch.from_numpy(fixture.targets["all_bitmask/point_coords"])
    size = pointrend.sample_masks(own[:, None], points)[:, 0].abs()
    assert (size[:, :147].diff(dim=1) > -1e-4).all()
    assert (size[:, 147:] < size[:, 146:147]).float().mean() == pytest.approx(0.25, abs=0.05)
