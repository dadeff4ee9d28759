"""Shared by the tests against Detectron2's numbers: the arrays, batch and stored regions of a fixture folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from cellwright.config.conventions import DETECTRON2
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.core.masks import MaskSet
from cellwright.models.build import build_mask_rcnn
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.regions import Detections, Regions
from cellwright.models.weights.foreign import load_foreign
from cellwright.models.weights.sources import read_foreign
from cellwright.ops.batch import Batch

IMAGE_HW, OUTPUT_HW = (256, 320), (400, 500)
_STEMS = {"class": "loss_cls", "box": "loss_box_reg"}
_NAMES = {"mask": "loss_mask", "point": "loss_mask_point", "rpn_class": "loss_rpn_cls", "rpn_box": "loss_rpn_loc"}


@dataclass(frozen=True)
class Fixture:
    """One folder of ``shared/fixtures``; ``theirs`` has all arrays of the inference on image A."""

    folder: Path
    tensors: dict[str, torch.Tensor]
    theirs: dict[str, np.ndarray]
    batch: Batch
    targets: dict[str, np.ndarray]
    losses: dict[str, Any]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.theirs[name])

    def detections(self) -> Detections:
        return Detections(*(self.tensor(f"det_{field}") for field in ("boxes", "scores", "classes")))

    def pasted(self, name: str) -> np.ndarray:
        """The masks of all detections, (N, H, W) bool, at the size of ``post`` or ``post400x500``."""
        shape = self.theirs[f"{name}_masks_shape"]
        bits = np.unpackbits(self.theirs[f"{name}_masks_packed"], axis=1)[:, : shape[1] * shape[2]]
        return bits.reshape(shape).astype(bool)

    def mask_targets(self, tag: str) -> np.ndarray:
        """The targets of both images, (N, M, M) bool."""
        parts = []
        for image in range(2):
            shape = self.targets[f"{tag}/mask_targets_shape_{image}"]
            bits = np.unpackbits(self.targets[f"{tag}/mask_targets_packed_{image}"], axis=1)
            parts.append(bits[:, : shape[1] * shape[2]].reshape(shape).astype(bool))
        return np.concatenate(parts)

    def regions(self, tag: str, kind: str) -> list[Regions]:
        """Regions that Detectron2 drew (kind: roi, stage1, stage2, mask); objects are identified by their boxes."""
        regions = []
        for image, objects in enumerate(self.batch.boxes):
            boxes = torch.from_numpy(self.targets[f"{tag}/{kind}_boxes_{image}"])
            class_ids = torch.from_numpy(self.targets[f"{tag}/{kind}_classes_{image}"]).long()
            if kind == "roi":
                own = torch.from_numpy(self.targets[f"{tag}/roi_gt_boxes_{image}"])
                matched = torch.cdist(own, objects, p=1).argmin(dim=1)
            else:
                matched = box_iou(boxes, objects).argmax(dim=1)
            regions.append(Regions(boxes, class_ids, matched))
        return regions


def read_fixture(folder: Path) -> Fixture:
    with np.load(folder / "infer_A.npz") as arrays:
        theirs = dict(arrays)
    with np.load(folder / "train_targets.npz") as arrays:
        targets = dict(arrays)
    losses = json.loads((folder / "losses.json").read_text())
    return Fixture(folder, read_foreign(folder / "model.pth"), theirs, _batch(folder, theirs), targets, losses)


def _batch(folder: Path, theirs: dict[str, np.ndarray]) -> Batch:
    """The training batch [A, B] of a fixture; B is padded to the size of A."""
    with np.load(folder / "image_B.npz") as arrays:
        image_b = arrays["preprocessed"]
    images = torch.zeros((2, 3, *IMAGE_HW))
    images[0] = torch.from_numpy(theirs["preprocessed"][0])
    images[1, :, : image_b.shape[2], : image_b.shape[3]] = torch.from_numpy(image_b[0])
    truth = json.loads((folder / "gt.json").read_text())
    objects = [truth["A"], truth["B"]]
    masks = [MaskSet.from_rle(own["bitmask_rle"], tuple(own["size_hw"])) for own in objects]
    layers = [mask_set.to_layers() for mask_set in masks]
    return Batch(
        images=images,
        image_hws=[tuple(own["size_hw"]) for own in objects],
        boxes=[torch.tensor(own["boxes_xyxy"]) for own in objects],
        class_ids=[torch.tensor(own["classes"]) for own in objects],
        ignore=[torch.zeros(len(own["classes"]), dtype=torch.bool) for own in objects],
        layers=[torch.from_numpy(own) for own, _ in layers],
        layer_of=[torch.from_numpy(of) for _, of in layers],
        seed=0,
    )


def build(fixture: Fixture, config: RCNNConfig) -> MaskRCNN:
    """Our network with Detectron2's weights; every tensor of the file is used."""
    network = build_mask_rcnn(config, DETECTRON2, in_channels=3, n_classes=4)
    load_foreign(network, fixture.tensors, "detectron2", fresh=(), where="fixture")
    return network.eval()


def their_loss(ours: str) -> str:
    """Detectron2's name of one of our losses."""
    stem, _, stage = ours.partition("_stage")
    if stem in _STEMS:
        return _STEMS[stem] + (f"_stage{stage}" if stage else "")
    return _NAMES[ours]


def check_losses(fixture: Fixture, tag: str, losses: dict[str, torch.Tensor]) -> None:
    """Every loss against ``losses.json``."""
    stored = fixture.losses[tag]["losses"]
    assert {their_loss(ours) for ours in losses} == set(stored)
    for ours, loss in losses.items():
        assert loss.item() == pytest.approx(stored[their_loss(ours)], rel=2e-4), ours


def check_losses_and_gradients(
    network: MaskRCNN, fixture: Fixture, tag: str, losses: dict[str, torch.Tensor], gradient_rel: float = 2e-3
) -> None:
    """Every loss, and the L2 norm of every parameter's gradient of their sum, against ``losses.json``."""
    check_losses(fixture, tag, losses)
    stored = fixture.losses[tag]
    torch.stack(list(losses.values())).sum().backward()

    report = load_foreign(network, fixture.tensors, "detectron2", fresh=(), where="fixture")
    own = dict(network.named_parameters())
    name_of = {theirs: ours for theirs, ours, _ in report.taken}
    assert set(stored["grad_l2_norm"]) == {theirs for theirs, ours in name_of.items() if ours in own}
    for name, expected in stored["grad_l2_norm"].items():
        if expected is None:  # frozen in Detectron2
            assert not own[name_of[name]].requires_grad, name
        else:
            ours = own[name_of[name]].grad.norm().item()
            assert ours == pytest.approx(expected, rel=gradient_rel, abs=1e-5), name


def unmatched(ours: np.ndarray, theirs: np.ndarray, tolerance_px: float) -> tuple[int, int]:
    """Number of boxes on each side without a partner within the tolerance (near-tied ranks may swap)."""
    distance = np.abs(ours[:, None] - theirs[None]).max(axis=2)
    return int((distance.min(axis=1) > tolerance_px).sum()), int((distance.min(axis=0) > tolerance_px).sum())
