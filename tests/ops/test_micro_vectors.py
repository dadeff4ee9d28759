"""Unit vectors made by Detectron2 (fixtures/micro): boxes, anchors, levels, RoIAlign, NMS, paste, targets, matcher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cellwright.core.masks import MaskSet
from cellwright.ops.assign import assign
from cellwright.ops.boxes import box_iou, cell_anchors, decode_boxes, encode_boxes, grid_anchors
from cellwright.ops.nms import grouped_nms
from cellwright.ops.paste import paste_masks
from cellwright.ops.roi import Pooling, box_levels, pool_boxes, sample_mask_targets

RATIOS = (0.5, 1.0, 2.0)
WEIGHTS = [(1, 1, 1, 1), (10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
FPN_POOLING = Pooling(
    sampling_ratio=0, aligned=True, level_rule="detectron2", canonical_box_px=224, canonical_level=4, first_level=2
)


@pytest.fixture(scope="module")
def micro(fixtures_root: Path) -> dict[str, np.ndarray]:
    with np.load(fixtures_root / "micro" / "micro.npz") as arrays:
        return dict(arrays)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.mark.parametrize("index", range(4))
def test_box_encoding(micro: dict[str, np.ndarray], index: int) -> None:
    references, targets = tensor(micro["box_src"]), tensor(micro["box_tgt"])
    encoded = encode_boxes(targets, references, WEIGHTS[index]).numpy()
    assert np.allclose(encoded, micro[f"box_encoded_w{index}"], rtol=1e-5, atol=1e-5)
    decoded = decode_boxes(tensor(micro["box_deltas_in"]), references, WEIGHTS[index]).numpy()
    assert np.allclose(decoded, micro[f"box_decoded_w{index}"], rtol=1e-5, atol=1e-3)


def test_iou(micro: dict[str, np.ndarray]) -> None:
    iou = box_iou(tensor(micro["box_src"]), tensor(micro["box_tgt"])).numpy()
    assert np.allclose(iou, micro["box_iou_src_tgt"], atol=1e-6)


def test_anchors(micro: dict[str, np.ndarray]) -> None:
    cells = [cell_anchors([size], RATIOS, rounded=False) for size in (32, 64, 128, 256, 512)]
    assert np.allclose(torch.cat(cells).numpy(), micro["anchors_fpn_cell"], atol=1e-4)
    for level, grid in enumerate([(8, 10), (4, 5), (2, 3), (1, 2), (1, 1)]):
        stride = 4 << level
        ours = grid_anchors(cells[level], grid, (stride, stride)).numpy()
        assert np.allclose(ours, micro[f"anchors_fpn_{level}"], atol=1e-4)
    one_map = grid_anchors(cell_anchors([32, 64, 128, 256, 512], RATIOS, rounded=False), (4, 5), (16, 16))
    assert np.allclose(one_map.numpy(), micro["anchors_c4_4x5"], atol=1e-4)


def test_levels(micro: dict[str, np.ndarray]) -> None:
    levels = box_levels(tensor(micro["lvl_boxes"]), 4, FPN_POOLING)
    assert np.array_equal(levels.numpy(), micro["lvl_assign_p2p5"])


@pytest.mark.parametrize(
    ("name", "resolution", "ratio", "aligned"),
    [
        ("ra_out7_scale16_sr0_aligned", 7, 0, True),
        ("ra_out14_scale16_sr0_aligned", 14, 0, True),
        ("ra_out7_scale16_sr2_aligned", 7, 2, True),
        ("ra_out7_scale16_sr0_unaligned", 7, 0, False),
    ],
)
def test_roi_align(micro: dict[str, np.ndarray], name: str, resolution: int, ratio: int, aligned: bool) -> None:
    rois = tensor(micro["ra_rois"])
    order = torch.argsort(rois[:, 0], stable=True)
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    pooling = Pooling(
        sampling_ratio=ratio,
        aligned=aligned,
        level_rule="detectron2",
        canonical_box_px=224,
        canonical_level=4,
        first_level=4,
    )
    pooled = pool_boxes([tensor(micro["ra_feat"])], boxes, resolution, pooling)
    assert np.allclose(pooled.numpy(), micro[name][order.numpy()], atol=1e-5)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("max_iou", [0.5, 0.7])
def test_nms(micro: dict[str, np.ndarray], size: str, max_iou: float) -> None:
    boxes, scores, groups = (tensor(micro[f"nms_{size}_{part}"]) for part in ("boxes", "scores", "idx"))
    assert np.array_equal(grouped_nms(boxes, scores, groups, max_iou).numpy(), micro[f"nms_{size}_keep_{max_iou}"])


def test_nms_keeps_equal_iou(micro: dict[str, np.ndarray]) -> None:
    boxes, scores = tensor(micro["nms_edge_boxes"]), tensor(micro["nms_edge_scores"])
    kept = grouped_nms(boxes, scores, torch.zeros(4, dtype=torch.int64), 0.5)
    assert np.array_equal(kept.numpy(), micro["nms_edge_keep_0.5"])


@pytest.mark.parametrize(
    ("masks", "packed"),
    [
        ("paste_masks", "paste_out_120x200_packed"),
        ("paste_masks7", "paste_out7_packed"),
        ("paste_masks14", "paste_out14_packed"),
        ("paste_masks112", "paste_out112_packed"),
    ],
)
def test_paste(micro: dict[str, np.ndarray], masks: str, packed: str) -> None:
    probs, boxes = tensor(micro[masks]), tensor(micro["paste_boxes"])
    ours = paste_masks(probs, boxes, (120, 200), rule="detectron2", threshold=0.5).to_dense().astype(bool)
    expected = np.unpackbits(micro[packed], axis=1).reshape(-1, 120, 200).astype(bool)
    assert (ours != expected).sum() <= 3
    assert expected.sum() > 1000


@pytest.mark.parametrize("resolution", [14, 28])
def test_mask_targets(micro: dict[str, np.ndarray], resolution: int) -> None:
    dense = np.unpackbits(micro["mt_bitmasks_packed"], axis=1).reshape(-1, 120, 160)
    layers, layer_of = MaskSet.from_dense(dense).to_layers()
    values = torch.arange(1, len(dense) + 1, dtype=torch.int32)
    boxes = tensor(micro["mt_boxes"])
    ours = sample_mask_targets(
        torch.from_numpy(layers), torch.from_numpy(layer_of), values, boxes, resolution, aligned=True
    )
    assert np.array_equal((ours >= 0.5).numpy(), micro[f"mt_bitmask_target{resolution}"])


def test_bitmasks_are_rasterised_polygons(fixtures_root: Path, micro: dict[str, np.ndarray]) -> None:
    """The bitmasks of the fixture are pycocotools' rasterisation of the polygons; `MaskSet` gives the same."""
    polygons = json.loads((fixtures_root / "micro" / "polygons.json").read_text())
    dense = np.unpackbits(micro["mt_bitmasks_packed"], axis=1).reshape(-1, 120, 160)
    ours = MaskSet.from_coco_polygons([[ring] if isinstance(ring[0], float) else ring for ring in polygons], (120, 160))
    assert np.array_equal(ours.to_dense(), dense)


@pytest.mark.parametrize(
    ("kind", "foreground", "background", "keep_best"), [("rpn", 0.7, 0.3, True), ("roi", 0.5, 0.5, False)]
)
def test_matcher(
    micro: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, kind: str, foreground: float, background: float,
    keep_best: bool,
) -> None:  # fmt: skip
    """The fixture gives an IoU matrix instead of boxes: it replaces the IoU of 64 boxes, in three chunks."""
    iou = tensor(micro["match_iou"])
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(64, 1) + torch.arange(64)[:, None] * 0
    boxes[:, 2] = 1 + torch.arange(64)  # the width names the box
    objects = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(6, 1)
    objects[:, 3] = 1 + torch.arange(6)  # the height names the object
    monkeypatch.setattr("cellwright.ops.assign._CHUNK", 25)
    monkeypatch.setattr(
        "cellwright.ops.assign.box_iou", lambda a, b: iou[(a[:, 3] - 1).long()[:, None], (b[:, 2] - 1).long()]
    )
    ours = assign(boxes, objects, foreground_iou=foreground, background_iou=background, keep_best=keep_best)
    assert np.array_equal(ours.labels.numpy(), micro[f"match_{kind}_label"])
    assert np.array_equal(ours.objects.numpy(), micro[f"match_{kind}_idx"])
