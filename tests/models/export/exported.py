"""Runs an exported R-CNN from its folder alone: export.json, ONNX Runtime, NumPy, and RoIAlign and NMS of torchvision.

It does not import cellwright, so that it fails if anything is missing in ``export.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torchvision.ops import batched_nms, roi_align

Array = np.ndarray


class Exported:
    """An exported model: with a pyramid (either convention, with or without cascade and mask scoring), or C4."""

    def __init__(self, folder: Path) -> None:
        self.rules: dict[str, Any] = json.loads((folder / "export.json").read_text())
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / graph["file"], providers=["CPUExecutionProvider"])
            for name, graph in self.rules["graphs"].items()
        }

    def run(self, graph: str, **inputs: Array) -> dict[str, Array]:
        names = list(self.rules["graphs"][graph]["outputs"])
        return dict(zip(names, self.sessions[graph].run(names, inputs), strict=True))

    def detect(self, image: Array, image_hw: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
        """Boxes (N, 4), scores (N,), class ids (N,) and mask probabilities (N, M, M) of a normalised, padded image."""
        features = self.run("features", images=image[None])
        boxes = self.proposals(features, image.shape[1:], image_hw)
        rules, scores, deltas = self.rules["boxes"], [], np.zeros((0, 4), np.float32)
        for stage, graph in enumerate(rules["graphs"]):
            if stage:
                boxes = clipped(self.decoded(deltas, boxes, rules["delta_weights"][stage - 1]), image_hw)
            head = self.run(graph, pooled=self.pooled(features, boxes, rules["resolution"], rules["pooled_maps"]))
            deltas = head["deltas"]
            logits = np.exp(head["class_logits"] - head["class_logits"].max(1, keepdims=True))
            scores.append((logits / logits.sum(1, keepdims=True))[:, :-1])
        score = np.mean(scores, axis=0)
        row, class_ids = np.nonzero(score > rules["score_threshold"])
        own = deltas.reshape(len(deltas), -1, 4)
        own = own[row, class_ids if own.shape[1] > 1 else 0]
        boxes = clipped(self.decoded(own, boxes[row], rules["delta_weights"][-1]), image_hw)
        score = score[row, class_ids]
        large = (boxes[:, 2:] - boxes[:, :2] >= rules["min_box_px"]).all(1)
        kept = suppressed(boxes[large], score[large], class_ids[large], rules["nms_iou"])[: rules["per_image"]]
        boxes, score, class_ids = boxes[large][kept], score[large][kept], class_ids[large][kept]
        return boxes, *self.masks(features, boxes, score, class_ids)

    def masks(self, features: dict[str, Array], boxes: Array, scores: Array, class_ids: Array):
        pooled = self.pooled(features, boxes, self.rules["masks"]["resolution"], None)
        logits = self.run("mask_head", pooled=pooled)["mask_logits"]
        logits = logits[np.arange(len(logits)), class_ids if logits.shape[1] > 1 else 0]
        if "mask_scoring" in self.rules:
            quality = self.run("mask_scoring", pooled=pooled, own_mask_logits=logits)["quality"]
            scores = scores * quality[np.arange(len(quality)), class_ids].clip(0, 1)
        return scores, class_ids, 1 / (1 + np.exp(-logits))

    def proposals(self, features: dict[str, Array], padded_hw: tuple[int, ...], image_hw: tuple[int, int]) -> Array:
        rules = self.rules["proposals"]
        boxes, scores, levels = [], [], []
        for index, level in enumerate(rules["levels"]):
            logits, deltas = features[level["logits"]][0], features[level["deltas"]][0]
            n_anchors, height, width = logits.shape
            stride_y = stride_x = level["stride_px"]
            if rules["stride_from_sizes"]:
                stride_y, stride_x = padded_hw[0] // height, padded_hw[1] // width
            y, x = np.mgrid[:height, :width].reshape(2, -1, 1) * np.array([stride_y, stride_x]).reshape(2, 1, 1)
            anchors = np.array(level["cell_anchors_xyxy_px"]) + np.stack([x, y, x, y], axis=-1)
            score = logits.transpose(1, 2, 0).reshape(-1)
            coded = deltas.reshape(n_anchors, 4, height, width).transpose(2, 3, 0, 1).reshape(-1, 4)
            best = np.argsort(-score, kind="stable")[: rules["pre_nms_per_level"]]
            boxes.append(self.decoded(coded[best], anchors.reshape(-1, 4)[best], rules["delta_weights"]))
            scores.append(score[best])
            levels.append(np.full(len(best), index))
        box, score, level = clipped(np.concatenate(boxes), image_hw), np.concatenate(scores), np.concatenate(levels)
        sides, least = box[:, 2:] - box[:, :2], rules["min_box_px"]
        large = (sides >= least if least > 0 else sides > 0).all(1)
        box, score, level = box[large], score[large], level[large]
        return box[suppressed(box, score, level, rules["nms_iou"])[: rules["post_nms"]]]

    def pooled(self, features: dict[str, Array], boxes: Array, resolution: int, n_maps: int | None) -> Array:
        rules = self.rules["pooling"]
        maps, first = rules["maps"][:n_maps], rules["levels"][0]
        size = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)) / rules["canonical_box_px"]
        level = np.log2(size + rules["size_epsilon"]) + rules["level_epsilon"]
        level = np.floor(rules["canonical_level"] + level).clip(first, first + len(maps) - 1) - first
        result = np.zeros((len(boxes), features[maps[0]].shape[1], resolution, resolution), np.float32)
        for index, name in enumerate(maps):
            rois = torch.from_numpy(np.insert(boxes[level == index], 0, 0, axis=1).astype(np.float32))
            scale, ratio = 1 / rules["strides_px"][index], rules["sampling_ratio"]
            feature_map = torch.from_numpy(features[name])
            result[level == index] = roi_align(feature_map, rois, resolution, scale, ratio, rules["aligned"]).numpy()
        return result

    def decoded(self, deltas: Array, boxes: Array, weights: list[float]) -> Array:
        shift, scale = np.split(deltas / np.array(weights, np.float32), 2, axis=1)
        size = boxes[:, 2:] - boxes[:, :2]
        centre = boxes[:, :2] + size / 2 + shift * size
        half = np.exp(np.minimum(scale, self.rules["boxes"]["max_log_scale"])) * size / 2
        return np.concatenate([centre - half, centre + half], axis=1)


def clipped(boxes: Array, image_hw: tuple[int, int]) -> Array:
    return boxes.clip(0, [image_hw[1], image_hw[0], image_hw[1], image_hw[0]])


def suppressed(boxes: Array, scores: Array, groups: Array, max_iou: float) -> Array:
    tensors = (torch.from_numpy(np.ascontiguousarray(array)) for array in (boxes, scores.astype(boxes.dtype), groups))
    return batched_nms(*tensors, max_iou).numpy()
