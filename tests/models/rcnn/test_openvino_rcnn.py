"""Mask R-CNN with OpenVINO's layers gives the maps and objects of PyTorch, whatever the recipe and the size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cellwright.config.conventions import DETECTRON2, TORCHVISION, Conventions
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, PointRendConfig
from cellwright.models.build import build_mask_rcnn
from cellwright.models.openvino_graph import Precision, has_bf16
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.openvino_parts import why_not
from cellwright.models.rcnn.openvino_rcnn import OpenVINOMaskRCNN

SMALL: dict[str, Any] = {
    "backbone": {"depth": 18, "width": 8},
    "fpn": {"channels": 16},
    "anchors": {"sizes_px": ((8,), (16,), (32,), (64,), (128,))},
    "box_head": {"fc_channels": 32, "score_threshold": 0.0, "detections_per_image": 20},
    "mask_head": {"channels": 16, "convs": 1},
}
BATCH_NORM = {"norm": "batch_norm"}
NETWORKS: dict[str, tuple[dict[str, dict[str, Any]], Conventions]] = {
    "basic blocks": ({}, TORCHVISION),
    "bottlenecks, frozen, and norms in the heads": (
        {
            "backbone": {"depth": 50, "norm": "frozen_batch_norm", "norm_eps": 0.0},
            "fpn": BATCH_NORM,
            "rpn": {"convs": 2},
            "box_head": BATCH_NORM | {"convs": 2, "conv_channels": 12, "fcs": 1, "pooled_levels": 2},
            "mask_head": BATCH_NORM,
        },
        TORCHVISION,
    ),
    "groups, stride in 1x1, level 1": (
        {
            "backbone": {"depth": 50, "groups": 4, "group_width": 4, "stem_channels": 12},
            "fpn": {"first_level": 1},
            "anchors": {"sizes_px": ((4,), (8,), (16,), (32,), (64,), (128,))},
            "mask_head": {"class_agnostic": True, "convs": 0},
        },
        DETECTRON2,
    ),
}


def both(name: str, precision: Precision = "f32") -> tuple[MaskRCNN, OpenVINOMaskRCNN]:
    """The same network in PyTorch and in OpenVINO, with norms that are not the identity."""
    changes, conventions = NETWORKS[name]
    sections = {part: {**SMALL.get(part, {}), **changes.get(part, {})} for part in {*SMALL, *changes}}
    config, sizes = MaskRCNNConfig.model_validate(sections), {"in_channels": 2, "n_classes": 3}
    assert why_not(config) is None
    torch.manual_seed(0)
    network = build_mask_rcnn(config, conventions, **sizes).eval()
    with torch.no_grad():
        for layer in network.modules():
            if hasattr(layer, "running_var"):
                for tensor in (layer.weight, layer.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (layer.bias, layer.running_mean):
                    tensor.normal_(std=0.3)
        box, mask_head = network.box_head[0], network.mask_head
        for predictor in (network.rpn.head.objectness, box.class_logits, box.deltas, mask_head.logits):
            nn.init.normal_(predictor.weight, std=0.3)  # type: ignore[arg-type]
    arrays = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    return network, OpenVINOMaskRCNN(config, conventions, arrays, **sizes, threads=1, precision=precision)


@torch.inference_mode()
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_and_objects_equal_those_of_pytorch(name: str) -> None:
    expected, network = both(name)
    for hw in ((64, 96), (160, 64)):
        images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, *hw)).astype(np.float32))
        features = expected.features(images)
        scores = expected.rpn(features)
        pairs = list(zip(network.features(images), features, strict=True))
        pairs += [(getattr(network.rpn(features), part), getattr(scores, part)) for part in ("logits", "deltas")]
        for own, there in pairs:
            torch.testing.assert_close(own, there, atol=1e-5 * float(there.abs().max()), rtol=0)
        for n in (3, 0):
            pooled = torch.rand((n, 16, 7, 7)), torch.rand((n, 16, 14, 14))
            boxes = zip(network.box_head[0](pooled[0]), expected.box_head[0](pooled[0]), strict=True)
            for own, there in (*boxes, (network.mask_head(pooled[1]), expected.mask_head(pooled[1]))):
                torch.testing.assert_close(own, there, atol=1e-5, rtol=1e-5)
        found, objects = (one.detect(images, [hw, hw], [(80, 70), (50, 90)]) for one in (network, expected))
        for own, there in zip(found, objects, strict=True):
            assert len(own) == len(there) > 5
            assert (own.masks.to_dense() != there.masks.to_dense()).mean() < 1e-3
            np.testing.assert_allclose(own.scores, there.scores, atol=1e-3)


@torch.inference_mode()
@pytest.mark.skipif(not has_bf16(), reason="the processor has no bf16")
@pytest.mark.parametrize("name", NETWORKS)
def test_in_bf16_maps_differ_by_its_rounding(name: str) -> None:
    expected, network = both(name, "bf16")
    assert network.backend == "openvino-bf16"
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 64, 96)).astype(np.float32))
    features = expected.features(images)
    pairs = list(zip(network.features(images), features, strict=True))
    scores, own_scores = expected.rpn(features), network.rpn(features)
    pairs += [(getattr(own_scores, part), getattr(scores, part)) for part in ("logits", "deltas")]
    pooled = torch.rand((3, 16, 7, 7)), torch.rand((3, 16, 14, 14))
    pairs += zip(network.box_head[0](pooled[0]), expected.box_head[0](pooled[0]), strict=True)
    pairs.append((network.mask_head(pooled[1]), expected.mask_head(pooled[1])))
    for own, there in pairs:
        assert own.dtype == torch.float32
        assert 1e-5 < float((own - there).std() / there.std()) < 0.05, "bf16 keeps 8 bits"
    assert network.mask_head(pooled[1][:0]).shape[0] == 0
    (found,) = network.detect(images[:1], [(64, 96)], [(80, 70)])
    assert len(found) > 5


def test_networks_that_pytorch_runs() -> None:
    group_norm = {"norm": "group_norm"}
    reasons = {
        "of the kind mask_rcnn_c4": C4Config(),
        "of the kind cascade_mask_rcnn": CascadeConfig(),
        "of the kind pointrend": PointRendConfig(),
        "with mask scoring": MaskRCNNConfig.model_validate({"mask_scoring": {}}),
        "with deformable convolutions": MaskRCNNConfig.model_validate({"backbone": {"deformable_stages": [4]}}),
    }
    for part in ({"backbone": group_norm}, {"fpn": group_norm}, {"mask_head": group_norm}):
        assert why_not(MaskRCNNConfig.model_validate(part)) == "with group normalisation"
    assert why_not(MaskRCNNConfig.model_validate({"box_head": group_norm})) is None  # it has no convolutions
    assert {why_not(config): config for config in reasons.values()} == reasons
