"""Stage by stage against Detectron2's own numbers (fixtures/mask_rcnn_R_50_FPN; its README gives the tolerances)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou as torchvision_iou

from cellwright.config.conventions import DETECTRON2
from cellwright.config.model_schema import MaskRCNNConfig
from cellwright.core.masks import MaskSet
from cellwright.models.box_head import Detections, Regions
from cellwright.models.build import build_mask_rcnn
from cellwright.models.foreign import load_foreign, read_foreign
from cellwright.models.mask_head import mask_targets
from cellwright.models.mask_rcnn import MaskRCNN
from cellwright.ops.assign import FOREGROUND
from cellwright.ops.batch import Batch
from cellwright.ops.roi import pool_boxes

IMAGE_HW, OUTPUT_HW = (256, 320), (400, 500)
LOSS_NAMES = {
    "class": "loss_cls",
    "box": "loss_box_reg",
    "mask": "loss_mask",
    "rpn_class": "loss_rpn_cls",
    "rpn_box": "loss_rpn_loc",
}


def config(anchors_per_image: int = 256, regions_per_image: int = 512, region_fraction: float = 0.25) -> MaskRCNNConfig:
    """The fixture's config.yaml in our words."""
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
def folder(fixtures_root: Path) -> Path:
    return fixtures_root / "mask_rcnn_R_50_FPN"


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return read_foreign(folder / "model.pkl")


def make(tensors: dict[str, torch.Tensor], **settings: float) -> MaskRCNN:
    network = build_mask_rcnn(config(**settings), DETECTRON2, in_channels=3, n_classes=4)
    load_foreign(network, tensors, "detectron2", fresh=(), where="fixture")
    return network.eval()


@pytest.fixture(scope="module")
def network(tensors: dict[str, torch.Tensor]) -> MaskRCNN:
    return make(tensors)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "infer_A.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def pyramid(theirs: dict[str, np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(theirs[f"backbone_p{level}"]) for level in range(2, 7)]


def boxes_unmatched(ours: np.ndarray, theirs: np.ndarray, tolerance_px: float) -> tuple[int, int]:
    """How many boxes of each side have no partner on the other within the tolerance (near-tied ranks swap)."""
    distance = np.abs(ours[:, None] - theirs[None]).max(axis=2)
    return int((distance.min(axis=1) > tolerance_px).sum()), int((distance.min(axis=0) > tolerance_px).sum())


def unpack(theirs: dict[str, np.ndarray], name: str) -> np.ndarray:
    shape = theirs[f"{name}_masks_shape"]
    bits = np.unpackbits(theirs[f"{name}_masks_packed"], axis=1)[:, : shape[1] * shape[2]]
    return bits.reshape(shape).astype(bool)


@torch.no_grad()
def test_backbone_and_pyramid(network: MaskRCNN, theirs: dict[str, np.ndarray]) -> None:
    images = torch.from_numpy(theirs["preprocessed"])
    maps = network.backbone(images)
    for stage, ours in zip(range(2, 6), maps[1:], strict=True):
        stored = theirs[f"bottom_up_res{stage}"]
        step = ours.shape[-1] // stored.shape[-1]
        assert np.abs(ours[:, :, ::step, ::step].numpy() - stored).max() < 2e-4
    for level, ours in zip(range(2, 7), network.features(images), strict=True):
        assert np.abs(ours.numpy() - theirs[f"backbone_p{level}"]).max() < 2e-4


@torch.no_grad()
def test_anchor_scores(network: MaskRCNN, theirs: dict[str, np.ndarray], pyramid: list[torch.Tensor]) -> None:
    logits, deltas = network.rpn.head(pyramid)
    for level in range(5):
        assert np.abs(logits[level].numpy() - theirs[f"rpn_logits_{level}"]).max() < 2e-4
        assert np.abs(deltas[level].numpy() - theirs[f"rpn_deltas_{level}"]).max() < 2e-4


def test_proposals(network: MaskRCNN, theirs: dict[str, np.ndarray], pyramid: list[torch.Tensor]) -> None:
    (ours,) = network.proposals(pyramid, [IMAGE_HW])
    assert ours.shape == (1000, 4)
    assert boxes_unmatched(ours.numpy(), theirs["proposal_boxes"], 1e-2) == (0, 0)


@torch.no_grad()
def test_box_head(network: MaskRCNN, theirs: dict[str, np.ndarray], pyramid: list[torch.Tensor]) -> None:
    proposals = torch.from_numpy(theirs["proposal_boxes"])
    pooled = pool_boxes(pyramid[:-1], [proposals], 7, network.rules.pooling)
    assert np.abs(pooled[:24].numpy() - theirs["box_pooled_0_first24"]).max() < 1e-5
    class_logits, deltas = network.box_head(pooled)
    assert np.abs(class_logits.numpy() - theirs["box_cls_logits_0"]).max() < 1e-4
    assert np.abs(deltas.numpy() - theirs["box_deltas_0"]).max() < 1e-4


def test_detections(network: MaskRCNN, theirs: dict[str, np.ndarray], pyramid: list[torch.Tensor]) -> None:
    (ours,) = network.boxes(pyramid, [torch.from_numpy(theirs["proposal_boxes"])], [IMAGE_HW])
    assert np.abs(ours.boxes.numpy() - theirs["det_boxes"]).max() < 3e-3
    assert np.abs(ours.scores.numpy() - theirs["det_scores"]).max() < 1e-4
    assert np.array_equal(ours.class_ids.numpy(), theirs["det_classes"])


@torch.no_grad()
def test_masks(network: MaskRCNN, theirs: dict[str, np.ndarray], pyramid: list[torch.Tensor]) -> None:
    boxes, class_ids = torch.from_numpy(theirs["det_boxes"]), torch.from_numpy(theirs["det_classes"])
    pooled = pool_boxes(pyramid[:-1], [boxes], 14, network.rules.pooling)
    assert np.abs(pooled[:24].numpy() - theirs["mask_pooled_first24"]).max() < 1e-5
    assert np.abs(network.mask_head(pooled).numpy() - theirs["mask_logits_all_classes"]).max() < 2e-4
    (probs,) = network.masks_for(pyramid, [boxes], [class_ids])
    assert np.abs(probs.numpy() - theirs["mask_probs"]).max() < 1e-4


@pytest.mark.parametrize(("name", "output_hw"), [("post", IMAGE_HW), ("post400x500", OUTPUT_HW)])
def test_pasted_pixels(network: MaskRCNN, theirs: dict[str, np.ndarray], name: str, output_hw: tuple[int, int]) -> None:
    found = Detections(*(torch.from_numpy(theirs[f"det_{field}"]) for field in ("boxes", "scores", "classes")))
    ours = network.place(found, torch.from_numpy(theirs["mask_probs"]), IMAGE_HW, output_hw)
    expected = unpack(theirs, name)
    visible = expected.any(axis=(1, 2))
    assert np.abs(ours.boxes_xyxy - theirs[f"{name}_boxes"][visible]).max() < 1e-3
    assert np.array_equal(ours.class_ids, theirs[f"{name}_classes"][visible])
    assert (ours.masks.to_dense().astype(bool) != expected[visible]).sum() <= 10


def test_whole_flow(network: MaskRCNN, theirs: dict[str, np.ndarray]) -> None:
    (ours,) = network.detect(torch.from_numpy(theirs["preprocessed"]), [IMAGE_HW], [OUTPUT_HW])
    expected = unpack(theirs, "post400x500")
    visible = expected.any(axis=(1, 2))
    assert boxes_unmatched(ours.boxes_xyxy, theirs["post400x500_boxes"][visible], 2e-2) == (0, 0)
    assert np.abs(ours.scores - theirs["post400x500_scores"][visible]).max() < 2e-4
    assert (ours.masks.to_dense().astype(bool) != expected[visible]).sum() < 200  # of about 400,000 pixels


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(folder: Path, theirs: dict[str, np.ndarray]) -> SimpleNamespace:
    """The fixture's batch [A, B]: images, objects, and everything Detectron2 stored about the step."""
    with np.load(folder / "image_B.npz") as arrays:
        image_b = arrays["preprocessed"]
    images = torch.zeros((2, 3, *IMAGE_HW))
    images[0] = torch.from_numpy(theirs["preprocessed"][0])
    images[1, :, : image_b.shape[2], : image_b.shape[3]] = torch.from_numpy(image_b[0])
    truth = json.loads((folder / "gt.json").read_text())
    objects = [truth["A"], truth["B"]]
    masks = [MaskSet.from_rle(one["bitmask_rle"], tuple(one["size_hw"])) for one in objects]
    layers = [one.to_layers() for one in masks]
    batch = Batch(
        images=images,
        image_hws=[tuple(one["size_hw"]) for one in objects],
        boxes=[torch.tensor(one["boxes_xyxy"]) for one in objects],
        class_ids=[torch.tensor(one["classes"]) for one in objects],
        ignore=[torch.zeros(len(one["classes"]), dtype=torch.bool) for one in objects],
        layers=[torch.from_numpy(one) for one, _ in layers],
        layer_of=[torch.from_numpy(of) for _, of in layers],
        seed=0,
    )
    with np.load(folder / "train_targets.npz") as arrays:
        targets = dict(arrays)
    return SimpleNamespace(batch=batch, targets=targets, losses=json.loads((folder / "losses.json").read_text()))


@pytest.mark.parametrize("image", [0, 1])
def test_anchor_targets(network: MaskRCNN, training: SimpleNamespace, image: int) -> None:
    anchors = torch.cat(network.rpn.anchors_of([torch.zeros(1, 1, 64 >> i, 80 >> i) for i in range(5)]))
    batch = training.batch
    labels, matched = network.rpn.anchor_targets(anchors, batch.boxes[image], batch.ignore[image])
    assert np.array_equal(labels.numpy(), training.targets[f"all_bitmask/anchor_labels_{image}"])
    expected = training.targets[f"all_bitmask/anchor_pos_gt_boxes_{image}"]
    assert np.array_equal(matched[labels == FOREGROUND].numpy(), expected)


def stored_regions(training: SimpleNamespace, tag: str, kind: str) -> list[Regions]:
    """Regions as Detectron2 drew them; objects are found again by their boxes."""
    regions = []
    for image, objects in enumerate(training.batch.boxes):
        boxes = torch.from_numpy(training.targets[f"{tag}/{kind}_boxes_{image}"])
        class_ids = torch.from_numpy(training.targets[f"{tag}/{kind}_classes_{image}"]).long()
        if kind == "roi":
            own = torch.from_numpy(training.targets[f"{tag}/roi_gt_boxes_{image}"])
            matched = torch.cdist(own, objects, p=1).argmin(dim=1)
        else:
            matched = torchvision_iou(boxes, objects).argmax(dim=1)
        regions.append(Regions(boxes, class_ids, matched))
    return regions


def test_mask_targets_from_layers(training: SimpleNamespace) -> None:
    regions = stored_regions(training, "all_bitmask", "mask")
    ours = mask_targets(regions, training.batch, 28, aligned=True, binary=True).bool().numpy()
    expected = []
    for image in range(2):
        packed = training.targets[f"all_bitmask/mask_targets_packed_{image}"]
        shape = training.targets[f"all_bitmask/mask_targets_shape_{image}"]
        expected.append(np.unpackbits(packed, axis=1)[:, : shape[1] * shape[2]].reshape(shape).astype(bool))
    assert np.array_equal(ours, np.concatenate(expected))


def test_losses_and_gradients(tensors: dict[str, torch.Tensor], training: SimpleNamespace) -> None:
    network = make(tensors, anchors_per_image=65536, regions_per_image=16384, region_fraction=0.5)
    losses = network.losses(training.batch)
    stored = training.losses["all_bitmask"]
    for ours, name in LOSS_NAMES.items():
        assert losses[ours].item() == pytest.approx(stored["losses"][name], rel=1e-4), ours
    torch.stack(list(losses.values())).sum().backward()

    report = load_foreign(network, tensors, "detectron2", fresh=(), where="fixture")
    own = dict(network.named_parameters())
    name_of = {theirs: ours for theirs, ours, _ in report.taken}
    assert set(stored["grad_l2_norm"]) == {theirs for theirs, ours in name_of.items() if ours in own}
    for name, expected in stored["grad_l2_norm"].items():
        if expected is None:  # frozen there
            assert not own[name_of[name]].requires_grad, name
        else:
            ours = own[name_of[name]].grad.norm().item()
            assert ours == pytest.approx(expected, rel=1e-3, abs=1e-5), name


def test_losses_of_the_stored_sample(network: MaskRCNN, training: SimpleNamespace) -> None:
    """Stock sample sizes: the regions that Detectron2 drew at random are taken from the fixture."""
    with torch.no_grad():
        features = network.features(training.batch.images)
        losses = network.box_losses(features, stored_regions(training, "default_polygon", "roi"), training.batch)
    stored = training.losses["default_polygon"]["losses"]
    assert losses["class"].item() == pytest.approx(stored["loss_cls"], rel=1e-4)
    assert losses["box"].item() == pytest.approx(stored["loss_box_reg"], rel=1e-4)
