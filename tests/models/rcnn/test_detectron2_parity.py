"""Stage by stage against Detectron2's own numbers (fixtures/mask_rcnn_R_50_FPN; its README gives the tolerances)."""

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

from cellwright.config.model_rcnn import MaskHeadConfig, MaskRCNNConfig
from cellwright.models.rcnn.heads import mask_coverage, mask_targets
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.ops.assign import FOREGROUND
from cellwright.ops.placement import Placement


def config(anchors_per_image: int = 256, regions_per_image: int = 512, region_fraction: float = 0.25) -> MaskRCNNConfig:
    """The fixture's config.yaml as a cellwright section."""
    return MaskRCNNConfig.model_validate(
        {
            "backbone": {"depth": 50, "width": 8, "stem_channels": 16, "norm": "frozen_batch_norm", "frozen_stages": 2},
            "fpn": {"channels": 32},
            "rpn": {"samples_per_image": anchors_per_image},
            "box_head": {
                "fc_channels": 64,
                "score_threshold": 0.0,
                "samples_per_image": regions_per_image,
                "positive_fraction": region_fraction,
            },
            "mask_head": {"channels": 32},
        }
    )


@pytest.fixture(scope="module")
def fixture(fixtures_root: Path) -> Fixture:
    return read_fixture(fixtures_root / "mask_rcnn_R_50_FPN")


@pytest.fixture(scope="module")
def network(fixture: Fixture) -> MaskRCNN:
    return build(fixture, config())


@pytest.fixture(scope="module")
def pyramid(fixture: Fixture) -> list[torch.Tensor]:
    return [fixture.tensor(f"backbone_p{level}") for level in range(2, 7)]


@torch.no_grad()
def test_backbone_and_pyramid(network: MaskRCNN, fixture: Fixture) -> None:
    images = fixture.tensor("preprocessed")
    maps = network.backbone(images)
    for stage, ours in zip(range(2, 6), maps[1:], strict=True):
        stored = fixture.theirs[f"bottom_up_res{stage}"]
        step = ours.shape[-1] // stored.shape[-1]
        assert np.abs(ours[:, :, ::step, ::step].numpy() - stored).max() < 2e-4
    for level, ours in zip(range(2, 7), network.features(images), strict=True):
        assert np.abs(ours.numpy() - fixture.theirs[f"backbone_p{level}"]).max() < 2e-4


@torch.no_grad()
def test_anchor_scores(network: MaskRCNN, fixture: Fixture, pyramid: list[torch.Tensor]) -> None:
    logits, deltas = network.rpn.head(pyramid)
    for level in range(5):
        assert np.abs(logits[level].numpy() - fixture.theirs[f"rpn_logits_{level}"]).max() < 2e-4
        assert np.abs(deltas[level].numpy() - fixture.theirs[f"rpn_deltas_{level}"]).max() < 2e-4


def test_proposals(network: MaskRCNN, fixture: Fixture, pyramid: list[torch.Tensor]) -> None:
    (ours,) = network.proposals(pyramid, [IMAGE_HW])
    assert ours.shape == (1000, 4)
    assert unmatched(ours.numpy(), fixture.theirs["proposal_boxes"], 1e-2) == (0, 0)


@torch.no_grad()
def test_box_head(network: MaskRCNN, fixture: Fixture, pyramid: list[torch.Tensor]) -> None:
    pooled = network.region_features(pyramid).pool([fixture.tensor("proposal_boxes")], 7)
    assert np.abs(pooled[:24].numpy() - fixture.theirs["box_pooled_0_first24"]).max() < 1e-5
    class_logits, deltas = network.box_head[0](pooled)
    assert np.abs(class_logits.numpy() - fixture.theirs["box_cls_logits_0"]).max() < 1e-4
    assert np.abs(deltas.numpy() - fixture.theirs["box_deltas_0"]).max() < 1e-4


def test_detections(network: MaskRCNN, fixture: Fixture, pyramid: list[torch.Tensor]) -> None:
    (ours,) = network.boxes(pyramid, [fixture.tensor("proposal_boxes")], [IMAGE_HW])
    assert np.abs(ours.boxes.numpy() - fixture.theirs["det_boxes"]).max() < 3e-3
    assert np.abs(ours.scores.numpy() - fixture.theirs["det_scores"]).max() < 1e-4
    assert np.array_equal(ours.class_ids.numpy(), fixture.theirs["det_classes"])


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
    assert np.array_equal(ours.class_ids, fixture.theirs[f"{name}_classes"][visible])
    assert (ours.masks.to_dense().astype(bool) != expected[visible]).sum() <= 10


def test_whole_flow(network: MaskRCNN, fixture: Fixture) -> None:
    (ours,) = network.detect(fixture.tensor("preprocessed"), [IMAGE_HW], [OUTPUT_HW])
    expected = fixture.pasted("post400x500")
    visible = expected.any(axis=(1, 2))
    assert unmatched(ours.boxes_xyxy, fixture.theirs["post400x500_boxes"][visible], 2e-2) == (0, 0)
    assert np.abs(ours.scores - fixture.theirs["post400x500_scores"][visible]).max() < 2e-4
    assert (ours.masks.to_dense().astype(bool) != expected[visible]).sum() < 200  # of about 400,000 pixels


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [0, 1])
def test_anchor_targets(network: MaskRCNN, fixture: Fixture, image: int) -> None:
    anchors = torch.cat(network.rpn.anchors_of([torch.zeros(1, 1, 64 >> i, 80 >> i) for i in range(5)]))
    batch = fixture.batch
    labels, matched = network.rpn.anchor_targets(anchors, batch, image)
    assert np.array_equal(labels.numpy(), fixture.targets[f"all_bitmask/anchor_labels_{image}"])
    expected = fixture.targets[f"all_bitmask/anchor_pos_gt_boxes_{image}"]
    assert np.array_equal(matched[labels == FOREGROUND].numpy(), expected)


def test_mask_targets_from_layers(fixture: Fixture) -> None:
    regions = fixture.regions("all_bitmask", "mask")
    coverage = mask_coverage(regions, fixture.batch, 28, aligned=True)
    ours = mask_targets(coverage, MaskHeadConfig(target="binary"))
    assert np.array_equal(ours.bool().numpy(), fixture.mask_targets("all_bitmask"))


def test_losses_and_gradients(fixture: Fixture) -> None:
    network = build(fixture, config(anchors_per_image=65536, regions_per_image=16384, region_fraction=0.5))
    check_losses_and_gradients(network, fixture, "all_bitmask", network.losses(fixture.batch))


def test_losses_of_the_stored_sample(network: MaskRCNN, fixture: Fixture) -> None:
    """Default sample sizes, with the regions that Detectron2 drew at random taken from the fixture."""
    with torch.no_grad():
        source = network.region_features(network.features(fixture.batch.images))
        losses, *_ = network.box_losses(source, fixture.regions("default_polygon", "roi"), fixture.batch)
    stored = fixture.losses["default_polygon"]["losses"]
    assert losses["class"].item() == pytest.approx(stored["loss_cls"], rel=1e-4)
    assert losses["box"].item() == pytest.approx(stored["loss_box_reg"], rel=1e-4)
