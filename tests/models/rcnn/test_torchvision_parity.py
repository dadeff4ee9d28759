"""Against torchvision's Mask R-CNN v1, v2 and the light v2 of a report, with equal, calibrated weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.ops import MultiScaleRoIAlign

from cellwright.config.conventions import TORCHVISION
from cellwright.config.model_rcnn import MaskRCNNConfig
from cellwright.core.masks import MaskSet
from cellwright.models.build import build_mask_rcnn
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.regions import Detections
from cellwright.models.weights.foreign import load_foreign
from cellwright.ops.batch import Batch, stack_images

N_CLASSES = 4
LOSS_NAMES = {
    "class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
    "rpn_class": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
}
EVERYTHING = 1 << 20  # lifts a sampler's cap
N_DETECTIONS = 30  # per image, of 120 proposals: most of the time is spent on what is pooled
# v2: batch norm in the pyramid and the heads, two RPN convolutions, a 4 conv + 1 fc box head (Li et al. 2021).
V2 = {
    "fpn": {"norm": "batch_norm"},
    "rpn": {"convs": 2},
    "box_head": {"convs": 4, "fcs": 1, "norm": "batch_norm"},
    "mask_head": {"norm": "batch_norm"},
}
# The box head of the light version uses only the two finest levels.
LIGHT_V2 = V2 | {"box_head": V2["box_head"] | {"pooled_levels": 2}}
VERSIONS = {"v1": {}, "v2": V2, "light_v2": LIGHT_V2}
PARAMETERS = {"v1": 43_991_661, "v2": 45_896_557, "light_v2": 45_896_557}


def picture(height: int, width: int, seed: int) -> Tensor:
    """A smooth random image with some noise, FloatTensor[3,H,W]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, 9, 11), generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (smooth + 0.1 * torch.rand((3, height, width), generator=generator)).clamp(0, 1)


def calibrate(model: nn.Module, images: list[Tensor]) -> None:
    """Set batch-norm statistics from data, and scale the predictors so that no probability saturates."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.backbone.train()
    with torch.no_grad():
        model.backbone(model.transform(images)[0].tensors)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
    goals = [
        (model.rpn.head.cls_logits, 1.5),
        (model.rpn.head.bbox_pred, 0.3),
        (model.roi_heads.box_predictor.cls_score, 1.5),
        (model.roi_heads.box_predictor.bbox_pred, 1.2),
        (model.roi_heads.mask_predictor.mask_fcn_logits, 2.0),
    ]
    handles = [layer.register_forward_hook(partial(rescale, goal=std)) for layer, std in goals]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()


def rescale(layer: nn.Module, inputs: object, output: Tensor, *, goal: float) -> Tensor | None:
    """Set the layer's scale from its first output, so that later layers get the same input as in the test."""
    if getattr(layer, "calibrated", False):
        return None
    layer.calibrated = True
    factor = goal / (output - layer.bias.view(-1, *[1] * (output.dim() - 2))).std()
    layer.weight.mul_(factor)
    layer.bias.zero_()
    return output * factor  # biases are initially 0 or close to it


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return [picture(96, 160, seed=1), picture(90, 150, seed=2)]


# What v2 differs in from v1, the light v2 does too.
@pytest.fixture(scope="module", params=["v1", pytest.param("v2", marks=pytest.mark.slow), "light_v2"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs(images: list[Tensor], version: str) -> nn.Module:
    torch.manual_seed(0)
    build = maskrcnn_resnet50_fpn if version == "v1" else maskrcnn_resnet50_fpn_v2
    pooler = {"box_roi_pool": MultiScaleRoIAlign(["0", "1"], 7, 2)} if version == "light_v2" else {}
    model = build(
        **pooler,
        weights=None,
        weights_backbone=None,
        num_classes=N_CLASSES + 1,
        min_size=96,
        max_size=160,
        box_score_thresh=0.0,
        box_detections_per_img=N_DETECTIONS,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=120,
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=60,
        rpn_batch_size_per_image=EVERYTHING,
        box_batch_size_per_image=EVERYTHING,
        rpn_positive_fraction=0.5,
        box_positive_fraction=0.5,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    calibrate(model, images)
    return model


@pytest.fixture(scope="module")
def ours(theirs: nn.Module, version: str) -> MaskRCNN:
    counts = {"pre_nms_test": 300, "post_nms_test": 120, "pre_nms_train": 200, "post_nms_train": 60}
    sections = VERSIONS[version]
    config = MaskRCNNConfig.model_validate(
        sections
        | {
            "rpn": {**sections.get("rpn", {}), **counts, "samples_per_image": EVERYTHING},
            "box_head": {
                **sections.get("box_head", {}),
                "score_threshold": 0.0,
                "detections_per_image": N_DETECTIONS,
                "samples_per_image": EVERYTHING,
                "positive_fraction": 0.5,
            },
            "roi": {"chunk": 50},  # so that chunked and whole heads are compared too
        }
    )
    network = build_mask_rcnn(config, TORCHVISION, in_channels=3, n_classes=N_CLASSES)
    report = load_foreign(network, theirs.state_dict(), "torchvision", fresh=(), where="torchvision")
    assert not report.fresh
    assert not report.skipped
    return network


def test_the_number_of_parameters_equals_torchvision(theirs: nn.Module, ours: MaskRCNN, version: str) -> None:
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters()) == PARAMETERS[version]


def prepared(images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    return stack_images([(image - 0.5) / 0.25 for image in images], stride=32)


@torch.no_grad()
def test_detections(theirs: nn.Module, ours: MaskRCNN, images: list[Tensor]) -> None:
    theirs.eval()
    ours.eval()
    # Boxes before they are scaled to the image, and masks before they are pasted.
    transformed, _ = theirs.transform(images)
    stacked, image_hws = transformed.tensors, transformed.image_sizes
    maps = theirs.backbone(stacked)
    regions, _ = theirs.rpn(transformed, maps)
    expected, _ = theirs.roi_heads(maps, regions, image_hws)

    features = ours.features(stacked)
    for our_map, their_map in zip(features, maps.values(), strict=True):
        assert (our_map - their_map).abs().max() < 1e-4
    detected = ours.boxes(features, ours.proposals(features, image_hws), image_hws)
    probs = ours.masks_for(features, [f.boxes for f in detected], [f.class_ids for f in detected])
    for own, mask, other in zip(detected, probs, expected, strict=True):
        assert len(own.boxes) == len(other["boxes"]) == N_DETECTIONS
        partner = partners(own, other)
        assert partner.unique().numel() == N_DETECTIONS
        assert (own.boxes - other["boxes"][partner]).abs().max() < 1e-2
        assert (own.scores - other["scores"][partner]).abs().max() < 1e-4
        assert (mask - other["masks"][partner, 0]).abs().max() < 1e-3
        assert 0.05 < own.scores.min() < own.scores.max() < 0.999


def partners(own: Detections, other: dict[str, Tensor]) -> Tensor:
    """For each of our detections, the closest of theirs of the same class: near-tied scores may swap ranks."""
    distance = (own.boxes[:, None] - other["boxes"]).abs().amax(dim=2)
    other_class = own.class_ids[:, None] != other["labels"] - 1
    return distance.masked_fill(other_class, torch.inf).argmin(dim=1)


@torch.no_grad()
def test_pasted_pixels(theirs: nn.Module, ours: MaskRCNN, images: list[Tensor]) -> None:
    """The image is 66 x 110 and enlarged for the network, so boxes and masks are scaled back."""
    picture_hw = (66, 110)
    small = nn.functional.interpolate(images[0][None], picture_hw, mode="bilinear")[0]
    theirs.eval()
    ours.eval()
    transformed, _ = theirs.transform([small])
    (detected,) = ours.detect(transformed.tensors, transformed.image_sizes, [picture_hw])
    (expected,) = theirs([small])
    pixels = expected["masks"][:, 0] > 0.5
    visible = pixels.any(dim=2).any(dim=1)
    own = Detections(*(torch.from_numpy(v) for v in (detected.boxes_xyxy, detected.scores, detected.class_ids)))
    partner = partners(own, {"boxes": expected["boxes"][visible], "labels": expected["labels"][visible]})
    assert len(detected) == visible.sum()
    assert partner.unique().numel() == len(detected)
    differing = detected.masks.to_dense().astype(bool) != pixels[visible][partner].numpy()
    assert differing.sum() <= 6
    assert pixels.sum() > 1_000


@pytest.fixture(scope="module")
def batch(images: list[Tensor]) -> Batch:
    stacked, image_hws = prepared(images)
    per_image = []
    for seed, (height, width) in enumerate(image_hws):
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = torch.rand((9, 2), generator=generator) * torch.tensor([height - 60.0, width - 60.0]) + 30
        radii = torch.rand((9, 2), generator=generator) * 20 + 6
        discs = ((y - centres[:, 0, None, None]) / radii[:, 0, None, None]) ** 2
        discs = discs + ((x - centres[:, 1, None, None]) / radii[:, 1, None, None]) ** 2 < 1
        per_image.append(MaskSet.from_dense(discs.numpy()))  # they overlap, so there are several layers
    layers = [masks.to_layers() for masks in per_image]
    assert any(len(layer) > 1 for layer, _ in layers)
    return Batch(
        images=stacked,
        image_hws=image_hws,
        boxes=[torch.from_numpy(masks.boxes).float() for masks in per_image],
        class_ids=[torch.arange(len(masks)) % N_CLASSES for masks in per_image],
        ignore=[torch.zeros(len(masks), dtype=torch.bool) for masks in per_image],
        layers=[torch.from_numpy(layer) for layer, _ in layers],
        layer_of=[torch.from_numpy(of) for _, of in layers],
        seed=5,
    )


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_losses(theirs: nn.Module, ours: MaskRCNN, images: list[Tensor], batch: Batch, training: bool) -> None:
    """Every loss, with running and with batch statistics."""
    targets = []
    for image in range(2):
        layer_of, layers = batch.layer_of[image], batch.layers[image]
        values = torch.arange(1, len(layer_of) + 1)[:, None, None]
        masks = (layers[layer_of] == values).to(torch.uint8)
        targets.append({"boxes": batch.boxes[image], "labels": batch.class_ids[image] + 1, "masks": masks})
    theirs.train()
    ours.train()
    theirs.transform._skip_resize = True
    for model in (theirs.backbone, ours.backbone, ours.fpn):
        model.train(training)
    expected = theirs(images, targets)
    losses = ours.losses(batch)
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[LOSS_NAMES[name]].item(), rel=1e-4), name


@torch.no_grad()
def test_odd_sizes(theirs: nn.Module, ours: MaskRCNN) -> None:
    """352 px is an odd number of strides: torchvision then gives p6 a stride of 58 px."""
    image = picture(224, 352, seed=3)
    theirs.eval()
    ours.eval()
    from torchvision.models.detection.image_list import ImageList

    stacked = image[None]
    features = ours.features(stacked)
    expected = theirs.rpn.anchor_generator(ImageList(stacked, [(224, 352)]), features)[0]
    assert torch.equal(torch.cat(ours.rpn.anchors_of(features)), expected)
