"""Stage by stage against Detectron2's own numbers (fixtures/cascade_mask_rcnn_X_152_dconv_gn and its README)."""

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
    check_losses_and_gradients,
    read_fixture,
    unmatched,
)

from cellwright.config.model_rcnn import CascadeConfig
from cellwright.models.rcnn.cascade import relabel_regions
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.ops.placement import Placement


def config(anchors_per_image: int = 256, regions_per_image: int = 512, region_fraction: float = 0.25) -> CascadeConfig:
    """The fixture's config.yaml as a cellwright section."""
    return CascadeConfig.model_validate(
        {
            "kind": "cascade_mask_rcnn",
            "backbone": {
                "depth": 50,
                "width": 4,
                "groups": 32,
                "group_width": 1,
                "stem_channels": 16,
                "norm": "frozen_batch_norm",
                "stride_in_1x1": False,
                "frozen_stages": 2,
                "deformable_stages": [3, 4, 5],
            },
            "fpn": {"channels": 32},
            "rpn": {"samples_per_image": anchors_per_image, "post_nms_train": 2000},
            "box_head": {
                "convs": 4,
                "conv_channels": 64,
                "fcs": 1,
                "fc_channels": 32,
                "norm": "group_norm",
                "score_threshold": 0.0,
                "samples_per_image": regions_per_image,
                "positive_fraction": region_fraction,
            },
            "mask_head": {"convs": 8, "channels": 64, "norm": "group_norm"},
        }
    )


@pytest.fixture(scope="module")
def fixture(fixtures_root: Path) -> Fixture:
    return read_fixture(fixtures_root / "cascade_mask_rcnn_X_152_dconv_gn")


@pytest.fixture(scope="module")
def network(fixture: Fixture) -> MaskRCNN:
    return build(fixture, config())


@pytest.fixture(scope="module")
def pyramid(fixture: Fixture) -> list[torch.Tensor]:
    return [fixture.tensor(f"backbone_p{level}") for level in range(2, 7)]


@torch.no_grad()
def test_backbone_and_pyramid(network: MaskRCNN, fixture: Fixture) -> None:
    for level, ours in zip(range(2, 7), network.features(fixture.tensor("preprocessed")), strict=True):
        assert np.abs(ours.numpy() - fixture.theirs[f"backbone_p{level}"]).max() < 2e-4


def test_proposals(network: MaskRCNN, fixture: Fixture, pyramid: list[torch.Tensor]) -> None:
    (ours,) = network.proposals(pyramid, [IMAGE_HW])
    assert unmatched(ours.numpy(), fixture.theirs["proposal_boxes"], 1e-2) == (0, 0)


@torch.no_grad()
def test_three_stages(network: MaskRCNN, fixture: Fixture, pyramid: list[torch.Tensor]) -> None:
    """Features, logits and deltas of each stage, on the stored proposals refined by the previous stages."""
    source = network.region_features(pyramid)
    for stage in range(3):
        single = torch.nn.ModuleList(network.box_head[: stage + 1])
        part = build(fixture, config())
        part.box_head = single
        _, _, regions = part.classify(source, fixture.tensor("proposal_boxes"), IMAGE_HW)
        pooled = source.pool([regions], 7)
        assert np.abs(pooled[:24].numpy() - fixture.theirs[f"box_pooled_{stage}_first24"]).max() < 2e-3
        class_logits, deltas = network.box_head[stage](pooled)
        assert np.abs(class_logits.numpy() - fixture.theirs[f"box_cls_logits_{stage}"]).max() < 5e-3
        assert np.abs(deltas.numpy() - fixture.theirs[f"box_deltas_{stage}"]).max() < 5e-3


def test_detections_average_the_stages(network: MaskRCNN, fixture: Fixture, pyramid: list[torch.Tensor]) -> None:
    (ours,) = network.boxes(pyramid, [fixture.tensor("proposal_boxes")], [IMAGE_HW])
    assert unmatched(ours.boxes.numpy(), fixture.theirs["det_boxes"], 0.1) == (0, 0)
    assert np.abs(ours.scores.numpy() - fixture.theirs["det_scores"]).max() < 1e-3
    mean = np.mean([_softmax(fixture.theirs[f"box_cls_logits_{stage}"]) for stage in range(3)], axis=0)
    assert ours.scores[0].item() == pytest.approx(mean[:, :-1].max(), abs=1e-3)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@torch.no_grad()
def test_masks(network: MaskRCNN, fixture: Fixture, pyramid: list[torch.Tensor]) -> None:
    detections = fixture.detections()
    pooled = network.region_features(pyramid).pool([detections.boxes], 14)
    assert np.abs(pooled[:24].numpy() - fixture.theirs["mask_pooled_first24"]).max() < 1e-5
    assert np.abs(network.mask_head(pooled).numpy() - fixture.theirs["mask_logits_all_classes"]).max() < 2e-4
    (probs,) = network.masks_for(pyramid, [detections.boxes], [detections.class_ids])
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
    expected = fixture.theirs["post400x500_boxes"]
    missed, extra = unmatched(ours.boxes_xyxy, expected, 0.2)
    assert missed <= 2  # on one thread, Detectron2 itself keeps other boxes at the 100th rank
    assert extra <= 2


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2])
def test_later_stages_relabel_the_refined_boxes(network: MaskRCNN, fixture: Fixture, stage: int) -> None:
    stored = fixture.regions("all_bitmask", f"stage{stage}")
    boxes, iou = [region.boxes for region in stored], network.config.box_head.stage_ious[stage]
    ours = relabel_regions(boxes, fixture.batch, 4, foreground_iou=iou, ignore_ioa=0.5)
    for image in range(2):
        assert torch.equal(ours[image].boxes, stored[image].boxes)
        assert torch.equal(ours[image].class_ids, stored[image].class_ids)


def test_losses_and_gradients(fixture: Fixture) -> None:
    network = build(fixture, config(anchors_per_image=65536, regions_per_image=16384, region_fraction=0.5))
    # Bilinear sampling at learnt offsets is not smooth, so rounding can change a gradient; three stages amplify it.
    losses = network.losses(fixture.batch)
    check_losses_and_gradients(network, fixture, "all_bitmask", losses, gradient_rel=5e-3)


def test_losses_of_the_stored_sample(network: MaskRCNN, fixture: Fixture) -> None:
    with torch.no_grad():
        source = network.region_features(network.features(fixture.batch.images))
        losses, *_ = network.box_losses(source, fixture.regions("default_polygon", "roi"), fixture.batch)
    stored = fixture.losses["default_polygon"]["losses"]
    for stage in range(3):
        assert losses[f"class_stage{stage}"].item() == pytest.approx(stored[f"loss_cls_stage{stage}"], rel=1e-3)
        assert losses[f"box_stage{stage}"].item() == pytest.approx(stored[f"loss_box_reg_stage{stage}"], rel=1e-3)
