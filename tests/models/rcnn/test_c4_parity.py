"""Stage by stage against Detectron2's own numbers (fixtures/mask_rcnn_R_50_C4; its README gives the tolerances)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2_fixture import (
    IMAGE_HW,
    OUTPUT_HW,
    Fixture,
    build,
    check_losses,
    check_losses_and_gradients,
    read_fixture,
    unmatched,
)
from torchvision.ops import roi_align

from cellwright.config.model_rcnn import C4Config, C4MaskHeadConfig
from cellwright.models.rcnn.heads import mask_coverage, mask_targets
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.regions import BoxOutputs
from cellwright.ops.assign import FOREGROUND
from cellwright.ops.placement import Placement


def config(anchors_per_image: int = 256, regions_per_image: int = 512, region_fraction: float = 0.25) -> C4Config:
    """The fixture's config.yaml as a cellwright section."""
    return C4Config.model_validate(
        {
            "kind": "mask_rcnn_c4",
            "backbone": {
                "depth": 50,
                "width": 8,
                "stem_channels": 16,
                "norm": "frozen_batch_norm",
                "frozen_stages": 2,
            },
            "rpn": {"samples_per_image": anchors_per_image},
            "box_head": {
                "score_threshold": 0.0,
                "samples_per_image": regions_per_image,
                "positive_fraction": region_fraction,
            },
            "mask_head": {"channels": 32},
        }
    )


@pytest.fixture(scope="module")
def fixture(fixtures_root: Path) -> Fixture:
    return read_fixture(fixtures_root / "mask_rcnn_R_50_C4")


@pytest.fixture(scope="module")
def network(fixture: Fixture) -> MaskRCNN:
    return build(fixture, config())


@pytest.fixture(scope="module")
def res4(fixture: Fixture) -> list[torch.Tensor]:
    return [fixture.tensor("backbone_res4")]


@torch.no_grad()
def test_features_anchor_scores_and_proposals(network: MaskRCNN, fixture: Fixture, res4: list[torch.Tensor]) -> None:
    (ours,) = network.features(fixture.tensor("preprocessed"))
    assert np.abs(ours.numpy() - fixture.theirs["backbone_res4"]).max() < 2e-4
    (logits,), (deltas,) = network.rpn.head(res4)
    assert np.abs(logits.numpy() - fixture.theirs["rpn_logits_0"]).max() < 2e-4
    assert np.abs(deltas.numpy() - fixture.theirs["rpn_deltas_0"]).max() < 2e-4
    (proposals,) = network.proposals(res4, [IMAGE_HW])
    assert proposals.shape == (1000, 4)
    assert unmatched(proposals.numpy(), fixture.theirs["proposal_boxes"], 1e-2) == (0, 0)


@torch.no_grad()
def test_box_head_runs_on_res5(network: MaskRCNN, fixture: Fixture, res4: list[torch.Tensor]) -> None:
    pooled = network.region_features(res4).pool([fixture.tensor("proposal_boxes")], 14)
    assert np.abs(pooled[:24].numpy() - fixture.theirs["roi_res5_box_first24"]).max() < 2e-4
    class_logits, deltas = network.box_head[0](pooled)
    assert np.abs(class_logits.numpy() - fixture.theirs["box_cls_logits_0"]).max() < 1e-4
    assert np.abs(deltas.numpy() - fixture.theirs["box_deltas_0"]).max() < 1e-4


def test_detections(network: MaskRCNN, fixture: Fixture, res4: list[torch.Tensor]) -> None:
    (ours,) = network.boxes(res4, [fixture.tensor("proposal_boxes")], [IMAGE_HW])
    assert np.abs(ours.boxes.numpy() - fixture.theirs["det_boxes"]).max() < 3e-3
    assert np.abs(ours.scores.numpy() - fixture.theirs["det_scores"]).max() < 1e-4
    assert np.array_equal(ours.class_ids.numpy(), fixture.theirs["det_classes"])


@torch.no_grad()
def test_mask_head_runs_on_res5(network: MaskRCNN, fixture: Fixture, res4: list[torch.Tensor]) -> None:
    detections = fixture.detections()
    pooled = network.region_features(res4).pool([detections.boxes], 14)
    assert np.abs(pooled[:8].numpy() - fixture.theirs["roi_res5_mask_first8"]).max() < 2e-4
    assert np.abs(network.mask_head(pooled).numpy() - fixture.theirs["mask_logits_all_classes"]).max() < 2e-4
    (probs,) = network.masks_for(res4, [detections.boxes], [detections.class_ids])
    assert np.abs(probs.numpy() - fixture.theirs["mask_probs"]).max() < 1e-4


@pytest.mark.parametrize(("name", "output_hw"), [("post", IMAGE_HW), ("post400x500", OUTPUT_HW)])
def test_pasted_pixels(network: MaskRCNN, fixture: Fixture, name: str, output_hw: tuple[int, int]) -> None:
    ours = network.place(fixture.detections(), fixture.tensor("mask_probs"), Placement.whole(IMAGE_HW, output_hw))
    expected = fixture.pasted(name)
    visible = expected.any(axis=(1, 2))
    assert np.abs(ours.boxes_xyxy - fixture.theirs[f"{name}_boxes"][visible]).max() < 1e-3
    assert (ours.masks.to_dense().astype(bool) != expected[visible]).sum() <= 10


def test_whole_flow(network: MaskRCNN, fixture: Fixture) -> None:
    (ours,) = network.detect(fixture.tensor("preprocessed"), [IMAGE_HW], [OUTPUT_HW])
    expected = fixture.pasted("post400x500")
    visible = expected.any(axis=(1, 2))
    assert unmatched(ours.boxes_xyxy, fixture.theirs["post400x500_boxes"][visible], 2e-2) == (0, 0)
    assert np.abs(ours.scores - fixture.theirs["post400x500_scores"][visible]).max() < 2e-4
    assert (ours.masks.to_dense().astype(bool) != expected[visible]).sum() < 200


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [0, 1])
def test_anchor_targets(network: MaskRCNN, fixture: Fixture, image: int) -> None:
    (anchors,) = network.rpn.anchors_of([torch.zeros(1, 1, 16, 20)])
    batch = fixture.batch
    labels, matched = network.rpn.anchor_targets(anchors, batch, image)
    assert np.array_equal(labels.numpy(), fixture.targets[f"all_bitmask/anchor_labels_{image}"])
    expected = fixture.targets[f"all_bitmask/anchor_pos_gt_boxes_{image}"]
    assert np.array_equal(matched[labels == FOREGROUND].numpy(), expected)


def test_mask_targets_from_layers(fixture: Fixture) -> None:
    coverage = mask_coverage(fixture.regions("all_bitmask", "mask"), fixture.batch, 14, aligned=True)
    ours = mask_targets(coverage, C4MaskHeadConfig(target="binary"))
    assert np.array_equal(ours.bool().numpy(), fixture.mask_targets("all_bitmask"))


def build_for_all_samples(fixture: Fixture) -> MaskRCNN:
    return build(fixture, config(anchors_per_image=65536, regions_per_image=16384, region_fraction=0.5))


@torch.no_grad()
def test_losses(fixture: Fixture) -> None:
    check_losses(fixture, "all_bitmask", build_for_all_samples(fixture).losses(fixture.batch))


@pytest.mark.slow  # those of the network with a pyramid are checked always
def test_losses_and_gradients(fixture: Fixture) -> None:
    network = build_for_all_samples(fixture)
    check_losses_and_gradients(network, fixture, "all_bitmask", network.losses(fixture.batch))


def test_masks_reuse_the_box_heads_res5_features(fixture: Fixture) -> None:
    """In training, res5 runs once for both heads; a second run on the foreground boxes gives the same features."""
    network = build(fixture, config())
    with torch.no_grad():
        source = network.region_features(network.features(fixture.batch.images))
        regions = fixture.regions("all_bitmask", "mask")
        shared_features = source.pool([region.boxes for region in regions], 14)
        boxes = BoxOutputs(regions, shared_features, torch.zeros(0))
        own_features = MaskRCNN.mask_features(network, source, boxes)
        shared = network.mask_losses(source, boxes, fixture.batch, torch.Generator())["mask"]
    assert network.mask_features(source, boxes) is shared_features
    assert torch.equal(own_features, shared_features)
    assert shared.item() == pytest.approx(fixture.losses["all_bitmask"]["losses"]["loss_mask"], rel=2e-4)


def test_pooling_at_28_cells_doubles_the_masks(fixture: Fixture) -> None:
    """As one report can be read: regions are pooled again, at 28 cells, for the masks."""
    fine = config().model_copy(update={"mask_head": config().mask_head.model_copy(update={"resolution": 28})})
    network = build(fixture, fine)
    detections = fixture.detections()
    (probs,) = network.masks_for([fixture.tensor("backbone_res4")], [detections.boxes], [detections.class_ids])
    rois = torch.cat([torch.zeros(100, 1), detections.boxes], dim=1)
    with torch.no_grad():
        pooled = roi_align(fixture.tensor("backbone_res4"), rois, 28, 1 / 16, 0, True)
        expected = network.mask_head(network.backbone.res5(pooled))[torch.arange(100), detections.class_ids].sigmoid()
    assert probs.shape == (100, 28, 28)
    torch.testing.assert_close(probs, expected, atol=1e-5, rtol=0)
    assert all(torch.isfinite(loss) for loss in network.losses(fixture.batch).values())
