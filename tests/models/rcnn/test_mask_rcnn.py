"""Behaviour of the whole network that the parity tests do not cover."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from cellwright.config.conventions import DETECTRON2, TORCHVISION, Conventions
from cellwright.config.model_rcnn import MaskRCNNConfig
from cellwright.core.masks import MaskSet
from cellwright.models.build import build_mask_rcnn
from cellwright.models.contract import Network
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.ops.batch import Batch

SMALL: dict[str, Any] = {
    "backbone": {"depth": 18, "width": 8},
    "fpn": {"channels": 16},
    "anchors": {"sizes_px": ((8,), (16,), (32,), (64,), (128,))},
    "box_head": {"fc_channels": 32, "score_threshold": 0.0},
    "mask_head": {"channels": 16, "convs": 1},
}


def small(changes: dict[str, dict[str, Any]] | None = None, conventions: Conventions = TORCHVISION) -> MaskRCNN:
    sections = {name: {**SMALL.get(name, {}), **(changes or {}).get(name, {})} for name in {*SMALL, *(changes or {})}}
    torch.manual_seed(0)
    return build_mask_rcnn(MaskRCNNConfig.model_validate(sections), conventions, in_channels=3, n_classes=2)


def batch_of(masks: list[MaskSet], ignore: list[list[bool]] | None = None) -> Batch:
    layers = [mask_set.to_layers() for mask_set in masks]
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randn((len(masks), 3, 64, 96), generator=generator),
        image_hws=[mask_set.image_hw for mask_set in masks],
        boxes=[torch.from_numpy(mask_set.boxes).float() for mask_set in masks],
        class_ids=[torch.arange(len(mask_set)) % 2 for mask_set in masks],
        ignore=[
            torch.tensor((ignore or [[False] * len(o) for o in masks])[i], dtype=torch.bool)
            for i, o in enumerate(masks)
        ],
        layers=[torch.from_numpy(mask_set) for mask_set, _ in layers],
        layer_of=[torch.from_numpy(of) for _, of in layers],
        seed=7,
    )


def squares() -> MaskSet:
    """Six squares of 12 px, two of them overlapping."""
    labels = np.zeros((6, 60, 90), bool)
    for k, (y, x) in enumerate([(4, 4), (10, 10), (30, 5), (8, 40), (35, 50), (44, 70)]):
        labels[k, y : y + 12, x : x + 12] = True
    return MaskSet.from_dense(labels)


def test_is_a_network() -> None:
    assert isinstance(small(), Network)


@pytest.mark.parametrize("conventions", [TORCHVISION, DETECTRON2], ids=lambda c: c.name)
def test_images_without_objects(conventions: Conventions) -> None:
    network = small(conventions=conventions).train()
    losses = network.losses(batch_of([MaskSet.empty((60, 90)), MaskSet.empty((64, 96))]))
    assert losses["box"] == losses["mask"] == losses["rpn_box"] == 0
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    # Every parameter gets a gradient, as distributed training requires.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_batch_norm_in_heads_accepts_images_without_objects() -> None:
    network = small({"mask_head": {"norm": "batch_norm"}}).train()
    losses = network.losses(batch_of([MaskSet.empty((64, 96))]))
    assert losses["mask"] == 0
    torch.stack(list(losses.values())).sum().backward()


def test_no_proposals() -> None:
    network = small().eval()
    features = network.features(torch.zeros((1, 3, 64, 96)))
    (detected,) = network.boxes(features, [torch.zeros((0, 4))], [(64, 96)])
    assert detected.boxes.shape == (0, 4)
    (probs,) = network.masks_for(features, [detected.boxes], [detected.class_ids])
    assert probs.shape == (0, 28, 28)


def test_the_seed_determines_the_sample() -> None:
    network = small({"box_head": {"samples_per_image": 16}, "rpn": {"samples_per_image": 16}}).eval()
    batch = batch_of([squares()])
    first, again = network.losses(batch), network.losses(batch)
    other = network.losses(dataclasses.replace(batch, seed=8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_anchors_on_ignored_objects_are_not_used() -> None:
    """Anchors on pixels that are not annotated are no background; those on objects count."""
    network = small({"box_head": {"samples_per_image": 4096}, "rpn": {"samples_per_image": 65536}}).eval()
    masks = squares()
    ignored = batch_of([masks], [[False, False, False, False, True, True]])
    everything = batch_of([masks])
    without = batch_of([masks[:4]])
    features = network.features(ignored.images)
    anchors = torch.cat(network.rpn.anchors_of(features))
    labels, _ = network.rpn.anchor_targets(anchors, ignored, 0)
    labels_without, _ = network.rpn.anchor_targets(anchors, without, 0)
    unused = labels != labels_without
    assert unused.any()
    assert (labels[unused] == -1).all()
    centres = (anchors[unused, :2] + anchors[unused, 2:]) / 2
    assert ((centres > torch.tensor([46.0, 31.0])) & (centres < torch.tensor([86.0, 60.0]))).all()
    assert network.losses(ignored)["class"] != network.losses(everything)["class"]


def test_all_ignored() -> None:
    losses = small().losses(batch_of([squares()], [[True] * 6]))
    assert losses["mask"] == losses["box"] == 0
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": {"depth": 34, "norm": "group_norm"}, "fpn": {"norm": "group_norm"}},
        {"backbone": {"depth": 50, "norm": "frozen_batch_norm", "frozen_stages": 2}},
        {"backbone": {"depth": 50, "stride_in_1x1": True, "stem_channels": 16, "frozen_stages": 5}},
        {"fpn": {"first_level": 1}, "anchors": {"sizes_px": ((4,), (8,), (16,), (32,), (64,), (128,))}},
        {"box_head": {"class_agnostic": True, "convs": 2, "conv_channels": 16, "norm": "batch_norm"}},
        {"mask_head": {"class_agnostic": True, "norm": "group_norm", "convs": 0}},
        {"anchors": {"sizes_px": tuple((s, s * 1.4) for s in (8, 16, 32, 64, 128)), "ratios": (1.0,)}},
    ],
    ids=["gn", "frozen_bn", "frozen", "stride2", "agnostic_box", "agnostic_mask", "two_sizes"],
)
def test_variants_train_and_detect(changes: dict[str, dict[str, Any]]) -> None:
    network = small(changes).train()
    batch = batch_of([squares(), MaskSet.empty((64, 96))])
    losses = network.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    detected = network.eval().detect(batch.images, batch.image_hws, [(60, 90), (128, 192)])
    assert [instances.image_hw for instances in detected] == [(60, 90), (128, 192)]
    for instances in detected:
        assert (instances.masks.areas > 0).all()
        assert (np.diff(instances.scores) <= 0).all()


def test_frozen_stages_are_not_trained() -> None:
    network = small({"backbone": {"frozen_stages": 2}}).train()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    torch.stack(list(network.losses(batch_of([squares()])).values())).sum().backward()
    optimiser.step()
    after = network.backbone.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"res3", "res4", "res5"}


def test_chunks_do_not_change_results() -> None:
    batch = batch_of([squares()])
    whole, chunked = small().eval(), small({"roi": {"chunk": 7}}).eval()
    (a,), (b,) = (n.detect(batch.images, batch.image_hws, batch.image_hws) for n in (whole, chunked))
    assert len(a) > 20
    assert np.allclose(a.boxes_xyxy, b.boxes_xyxy, atol=1e-4)
    assert np.allclose(a.scores, b.scores, atol=1e-6)


def test_no_detection_above_the_score_threshold() -> None:
    network = small({"box_head": {"score_threshold": 1.0}}).eval()
    (detected,) = network.detect(torch.zeros((1, 3, 64, 96)), [(64, 96)], [(64, 96)])
    assert len(detected) == 0
    assert detected.scores is not None


def test_thousands_of_detections() -> None:
    """More detections than the defaults of either framework allow."""
    settings = {
        "rpn": {"pre_nms_test": 4000, "post_nms_test": 3000, "nms_iou": 1.0},
        "box_head": {"detections_per_image": 3000, "nms_iou": 1.0},
        "anchors": {"sizes_px": ((4,), (8,), (16,), (32,), (64,))},
    }
    network = small(settings).eval()
    torch.nn.init.constant_(network.mask_head.logits.bias, 2.0)  # masks that fill their boxes
    (detected,) = network.detect(torch.randn((1, 3, 256, 256)), [(256, 256)], [(256, 256)])
    assert len(detected) > 1862
    assert detected.ids.tolist() == list(range(1, len(detected) + 1))


@pytest.mark.slow
def test_learns_one_batch() -> None:
    """After 150 steps on two images of bright squares, the squares and their masks are detected."""
    masks = squares()
    batch = batch_of([masks, masks.flip("horizontal")])
    for image, mask_set in zip(batch.images, (masks, masks.flip("horizontal")), strict=True):
        image.mul_(0.1)[:, :60, :90] += torch.from_numpy(mask_set.foreground()).float() * 2
    network = small({"backbone": {"norm": "group_norm"}, "roi": {"sampling_ratio": 0}}).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(150):
        losses = network.losses(dataclasses.replace(batch, seed=step))
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    detected, _ = network.eval().detect(batch.images, batch.image_hws, batch.image_hws)
    i, _, iou = masks.iou(detected[detected.scores > 0.5].masks)
    best = np.zeros(len(masks))
    np.maximum.at(best, i, iou)
    assert (best > 0.7).sum() >= 5


@pytest.mark.parametrize(
    "rules",
    [{"score_threshold": 0.33, "detections_per_image": 12}, {"score_threshold": 0.0, "nms_iou": 0.2}],
    ids=["threshold and cap", "nms"],
)
def test_kept_candidates_are_the_detections(rules: dict[str, Any]) -> None:
    network = small({"box_head": rules}).eval()
    images = batch_of([squares()]).images
    hw, output_hw = (60, 90), (120, 180)
    (detected,) = network.detect(images, [hw], [output_hw])
    everywhere = torch.tensor([[0.0, 0.0, 180.0, 120.0]])
    candidates = network.candidates(images, hw, output_hw, everywhere)
    steps = candidates.columns["dropped_by"]
    kept = candidates[steps == "kept"].by_score()
    assert 0 < len(kept) < len(candidates)
    np.testing.assert_array_equal(kept.scores, detected.scores)
    np.testing.assert_array_equal(kept.class_ids, detected.class_ids)
    assert kept.masks == detected.masks
    assert set(steps[candidates.scores <= np.float32(rules["score_threshold"])]) <= {"threshold"}
    assert {"threshold", "cap"} <= set(steps) if "detections_per_image" in rules else {"nms"} <= set(steps)


def test_candidates_are_limited_to_the_given_boxes() -> None:
    network = small().eval()
    images = batch_of([squares()]).images
    assert len(network.candidates(images, (60, 90), (60, 90), torch.zeros((0, 4)))) == 0
    corner = torch.tensor([[0.0, 0.0, 3.0, 3.0]])
    in_corner = network.candidates(images, (60, 90), (60, 90), corner)
    everything = network.candidates(images, (60, 90), (60, 90), torch.tensor([[0.0, 0.0, 90.0, 60.0]]))
    assert 0 < len(in_corner) < len(everything)
    assert (in_corner.boxes_xyxy[:, :2] < 3).all()
