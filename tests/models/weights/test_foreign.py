"""Weights of other frameworks in our networks: names, background rows, reports, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from detectron2_fixture import read_fixture
from torch import Tensor
from torchvision.models import resnet18

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.model_rcnn import MaskRCNNConfig, Part, PointRendConfig
from cellwright.core.errors import ModelError
from cellwright.models.build import build_mask_rcnn
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.rcnn.pointrend import PointRend
from cellwright.models.weights.detectron2 import detectron2_name
from cellwright.models.weights.foreign import CLASSES, PARTS, LoadReport, framework_of, load_foreign, our_names
from cellwright.models.weights.initial import start_from
from cellwright.models.weights.sources import read_foreign

BACKBONE = {"depth": 50, "width": 8, "stem_channels": 16, "norm": "frozen_batch_norm"}
FPN = {"backbone": BACKBONE, "fpn": {"channels": 32}, "box_head": {"fc_channels": 64}, "mask_head": {"channels": 32}}
SMALL = {**FPN, "backbone": {"depth": 18}}
POINTREND = {
    "kind": "pointrend",
    "backbone": {**BACKBONE, "groups": 32, "group_width": 1, "stride_in_1x1": False},
    "fpn": {"channels": 32},
    "box_head": {"fc_channels": 64},
    "mask_head": {"channels": 24, "fc_channels": 64},
    "point_head": {"channels": 32},
}


def make(model: dict = FPN, *, conventions: str = "detectron2", n_classes: int = 4) -> MaskRCNN:
    kind = PointRendConfig if model.get("kind") == "pointrend" else MaskRCNNConfig
    config = kind.model_validate(model)
    return build_mask_rcnn(config, CONVENTIONS[conventions], in_channels=3, n_classes=n_classes).eval()


def load(network: MaskRCNN, tensors: dict[str, Tensor], *fresh: str) -> LoadReport:
    framework = framework_of(tensors)
    assert framework is not None
    return load_foreign(network, tensors, framework, fresh=fresh, where="file")


@pytest.fixture(scope="module")
def detector(fixtures_root: Path) -> dict[str, Tensor]:
    return read_foreign(fixtures_root / "mask_rcnn_R_50_FPN" / "model.pkl")


def test_parts_are_those_of_the_recipe() -> None:
    assert {*PARTS, CLASSES} - {"backbone"} == set(get_args(Part))


# --- Caffe2 names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["msra", "fair"])
def test_caffe2_names_are_translated_to_detectron2_names(fixtures_root: Path, name: str) -> None:
    lines = (fixtures_root / "micro" / f"imagenet_c2_{name}.map.txt").read_text().splitlines()
    pairs = [line.split("\t")[:2] for line in lines]
    assert [detectron2_name(blob) for blob, _ in pairs] == [expected for _, expected in pairs]
    tensors = read_foreign(fixtures_root / "micro" / f"imagenet_c2_{name}.pkl")
    assert {blob for blob in tensors if not blob.endswith("_momentum")} == {blob for blob, _ in pairs}
    assert framework_of(tensors) == "caffe2"


@torch.no_grad()
def test_imagenet_weights_of_caffe2_give_the_features_of_detectron2(
    fixtures_root: Path, detector: dict[str, Tensor]
) -> None:
    fixture = read_fixture(fixtures_root / "mask_rcnn_R_50_FPN")
    images, reference = fixture.tensor("preprocessed"), make()
    load(reference, detector)
    # Folded batch norm is scaled by 1 / sqrt(1 + 1e-5) in each of 53 layers: 4.1e-4 at the end.
    for name, tolerance in (("msra", 0.0), ("fair", 4.5e-4)):
        network = make()
        report = load(network, read_foreign(fixtures_root / "micro" / f"imagenet_c2_{name}.pkl"))
        maps, expected = network.backbone(images), reference.backbone(images)
        relative = (maps[-1] - expected[-1]).abs().max() / expected[-1].abs().max()
        assert relative <= tolerance, name
        assert (maps[-1] - fixture.tensor("bottom_up_res5")).abs().max() < (2e-4 if name == "msra" else 5e-3)
        assert {record.ours.split(".")[0] for record in report.records if record.status == "missing"} == {
            "fpn",
            "rpn",
            "box_head",
            "mask_head",
        }
        unused = dict(report.skipped)
        filled = [record for record in report.records if record.status == "filled"]
        if name == "msra":
            assert unused == {"fc1000_w": "ImageNet classifier", "fc1000_b": "ImageNet classifier"}
            assert not filled
        else:
            assert unused.keys() == {"pred_w", "pred_b", "conv1_w_momentum"}
            assert len(filled) == 2 * 53  # mean and variance of every normalisation
            assert {record.why.partition(":")[0] for record in filled} == {"0", "1"}
            own = network.state_dict()
            assert own["backbone.res4.5.conv3.norm.running_var"].unique().tolist() == [1.0]


# Detectron1 names of everything but the backbone (rule 5 of zoo_keys/README.md).
DETECTRON1 = {
    "proposal_generator.rpn_head.conv": "conv_rpn_fpn2",
    "proposal_generator.rpn_head.objectness_logits": "rpn_cls_logits_fpn2",
    "proposal_generator.rpn_head.anchor_deltas": "rpn_bbox_pred_fpn2",
    "roi_heads.box_head.fc1": "fc6",
    "roi_heads.box_head.fc2": "fc7",
    "roi_heads.box_predictor.cls_score": "cls_score",
    "roi_heads.box_predictor.bbox_pred": "bbox_pred",
    "roi_heads.mask_head.mask_fcn1": "_[mask]_fcn1",
    "roi_heads.mask_head.mask_fcn2": "_[mask]_fcn2",
    "roi_heads.mask_head.mask_fcn3": "_[mask]_fcn3",
    "roi_heads.mask_head.mask_fcn4": "_[mask]_fcn4",
    "roi_heads.mask_head.deconv": "conv5_mask",
    "roi_heads.mask_head.predictor": "mask_fcn_logits",
    **{f"backbone.fpn_lateral{stage}": f"fpn_inner_res{stage}_1_sum_lateral" for stage in (2, 3, 4)},
    "backbone.fpn_lateral5": "fpn_inner_res5_2_sum",
    **{f"backbone.fpn_output{stage}": f"fpn_res{stage}_2_sum" for stage in (2, 3, 4, 5)},
}


def test_a_complete_detector_with_caffe2_names(fixtures_root: Path, detector: dict[str, Tensor]) -> None:
    blobs = read_foreign(fixtures_root / "micro" / "imagenet_c2_msra.pkl")
    for name, tensor in detector.items():
        layer, _, leaf = name.rpartition(".")
        if layer not in DETECTRON1:
            continue
        blob = tensor
        if layer.endswith("cls_score"):
            blob = tensor.roll(1, dims=0)  # background comes first there
        elif layer.endswith(("bbox_pred", "predictor")):
            blob = torch.cat([torch.full_like(tensor[: 4 if layer.endswith("bbox_pred") else 1], 9.0), tensor])
        blobs[f"{DETECTRON1[layer]}_{leaf[0]}"] = blob
    ours, reference = make(), make()
    load(reference, detector)
    report = load(ours, blobs)
    assert {record.status for record in report.records} == {"renamed", "unused"}
    expected = reference.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert our_names(["head_conv3_gn_s", "_mask_fcn2_b", "conv_rpn_w"], "caffe2") == {
        "head_conv3_gn_s": "box_head.0.convs.2.norm.weight",
        "_mask_fcn2_b": "mask_head.convs.1.conv.bias",
        "conv_rpn_w": "rpn.head.convs.0.conv.weight",
    }


def test_names_in_older_pointrend_files() -> None:
    old = {
        "roi_heads.mask_coarse_head.coarse_mask_fc2.weight": "mask_head.fcs.1.weight",
        "roi_heads.mask_coarse_head.reduce_spatial_dim_conv.bias": "mask_head.shrink.conv.bias",
        "roi_heads.mask_point_head.predictor.weight": "point_head.logits.weight",
    }
    assert our_names(old, "detectron2") == old


# --- rows ---------------------------------------------------------------------------------------------------------


def test_background_rows_are_added_and_removed_by_the_conventions(detector: dict[str, Tensor]) -> None:
    """Detectron2 weights in a network with torchvision conventions, and back: unused rows are 0, others unchanged."""
    wide, narrow = make(conventions="torchvision"), make()
    load(wide, detector)
    own = wide.state_dict()
    for layer, size in (("box_head.0.deltas", 4), ("mask_head.logits", 1)):
        assert len(own[f"{layer}.bias"]) == 5 * size
        assert not own[f"{layer}.weight"][-size:].any()
    load(narrow, own)
    expected = make()
    load(expected, detector)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(narrow.state_dict()[name], tensor), name


@torch.no_grad()
def test_background_rows_of_the_point_head_do_not_change_the_logits(fixtures_root: Path) -> None:
    tensors = read_foreign(fixtures_root / "pointrend_rcnn_X_101_FPN" / "model.pth")
    plain, wide = make(POINTREND), make(POINTREND, conventions="torchvision")
    for network in (plain, wide):
        load(network, tensors)
    torch.manual_seed(3)
    grid, fine = torch.randn(3, 32, 14, 14), torch.randn(3, 32, 20)
    coarse = [network.mask_head(grid) for network in (plain, wide)]
    assert (coarse[0] - coarse[1][:, :4]).abs().max() < 1e-5
    assert not coarse[1][:, 4].any()
    assert isinstance(plain, PointRend)
    assert isinstance(wide, PointRend)
    points = [
        point_head(fine, logits.flatten(2)[:, :, :20])
        for point_head, logits in zip((plain.point_head, wide.point_head), coarse, strict=True)
    ]
    assert (points[0] - points[1][:, :4]).abs().max() < 1e-4


def test_another_number_of_classes_needs_init_fresh(detector: dict[str, Tensor]) -> None:
    network = make(n_classes=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load(network, detector)
    assert "4 classes in the file, 2 classes in the recipe's network" in str(caught.value)
    assert "model.init_fresh=[classes]" in str(caught.value)
    assert "model.init_fresh=[box_head, mask_head]" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    report = load(network, detector, CLASSES)
    changed = [record for record in report.records if record.status == "re-initialised"]
    assert sorted(record.line() for record in changed)[0] == (
        "roi_heads.box_predictor.bbox_pred.bias -> box_head.0.deltas.bias 16: 8 here"
    )
    assert len(changed) == 6
    assert torch.equal(network.state_dict()["box_head.0.fcs.0.bias"], detector["roi_heads.box_head.fc1.bias"])
    report = load(make(n_classes=2), detector, "box_head", "mask_head")
    assert {name.split(".")[0] for name in report.fresh} == {"box_head", "mask_head"}

    pointrend = make(POINTREND, n_classes=2)
    with pytest.raises(ModelError, match=r"\[box_head, mask_head, point_head\]"):
        tensors = {name: torch.zeros(tuple(tensor.shape)) for name, tensor in make(POINTREND).state_dict().items()}
        load(pointrend, tensors)


def test_mask_scoring_starts_at_random_and_is_reported(detector: dict[str, Tensor]) -> None:
    report = load(make({**FPN, "mask_scoring": {"channels": 16}}), detector)
    missing = {record.ours.split(".")[0] for record in report.records if record.status == "missing"}
    assert missing == {"mask_scoring"}
    assert "missing (not in the file, starting at random)" in report.text()


# --- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({**FPN, "backbone": {**BACKBONE, "depth": 101}}, ["backbone.depth is 50 in the file, 101 in the recipe"]),
        ({**FPN, "mask_head": {"channels": 16}}, ["mask_head.channels is 32", "model.init_fresh=[mask_head]"]),
        ({**FPN, "fpn": {"channels": 16}}, ["model.fpn.channels is 32 in the file, 16 in the recipe"]),
        (
            {**FPN, "backbone": {**BACKBONE, "deformable_stages": [5]}},
            ["model.backbone.deformable_stages is None in the file, (5,) in the recipe"],
        ),
    ],
)
def test_another_architecture_lists_the_keys_that_differ(
    detector: dict[str, Tensor], model: dict, words: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        load(make(model), detector)
    assert "another architecture" in str(caught.value)
    assert "Mask R-CNN with FPN, ResNet-50, 4 classes" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_unknown_missing_and_wrong_tensors_are_errors() -> None:
    network, state = make(SMALL), resnet18(weights=None).state_dict()
    changes: list[tuple[dict[str, Tensor], str]] = [
        ({**state, "layer9.weight": torch.zeros(1)}, r"1 unknown tensor[\s\S]*layer9"),
        ({**state, "layer1.0.bn1.bias": torch.zeros(1, 2)}, r"backbone\.res2\.0\.conv1\.norm\.bias: 1x2 in the file"),
        ({name: tensor for name, tensor in state.items() if name != "bn1.bias"}, r"stem\.norm\.bias: not in the file"),
        ({**state, "backbone.body.bn1.bias": state["bn1.bias"]}, r"1 pair of duplicates[\s\S]*bn1\.bias and backbone"),
        ({"a": torch.zeros(1)}, "no tensor of these weights is known"),
    ]
    for changed, message in changes:
        with pytest.raises(ModelError, match=message):
            load_foreign(network, changed, "torchvision", fresh=(), where="x")


@pytest.mark.parametrize("name", ["backbone.bottom_up.res2.0.conv2.weight", "roi_heads.box_predictor.cls_score.bias"])
@pytest.mark.parametrize("shape", [None, (), (3,), (4, 0)])
def test_tensors_with_missing_or_wrong_dimensions_are_errors(
    detector: dict[str, Tensor], name: str, shape: tuple[int, ...] | None
) -> None:
    tensors = {theirs: tensor for theirs, tensor in detector.items() if theirs != name}
    with pytest.raises(ModelError, match="file"):
        load(make(), tensors if shape is None else {**tensors, name: torch.zeros(shape)})


def test_the_report_lists_every_tensor_of_file_and_network(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in resnet18(weights=None).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "parallel.pth")
    network = make(SMALL)
    report = start_from(network, f"torchvision:{tmp_path / 'parallel.pth'}")
    own = network.state_dict()
    assert torch.equal(own["backbone.res3.0.shortcut.conv.weight"], state["module.layer2.0.downsample.0.weight"])
    assert {theirs for theirs, _ in report.skipped} == {"fc.weight", "fc.bias"}
    assert {name.split(".")[0] for name in report.fresh} == {"fpn", "rpn", "box_head", "mask_head"}
    assert {record.ours for record in report.records} - {""} == set(own)
    assert {f"module.{record.theirs}" for record in report.records if record.theirs} == set(state)
    lines = report.text().splitlines()
    assert sum(line.startswith("  ") for line in lines) == len(report.records)
    assert lines[0] == f"120 renamed, {len(report.fresh)} missing, 2 unused tensors"
    assert "  fc.bias 1000: ImageNet classifier" in lines


def test_deformable_stages_start_on_the_regular_grid_with_an_imagenet_backbone() -> None:
    plain = make({**FPN, "backbone": {"depth": 50, "width": 8}}).state_dict()
    tensors = {name: tensor for name, tensor in plain.items() if name.startswith("backbone.")}
    network = make({**FPN, "backbone": {"depth": 50, "width": 8, "deformable_stages": [5]}})
    report = load(network, tensors)
    filled = [record.ours for record in report.records if record.status == "filled"]
    assert len(filled) == 6
    assert not any(network.state_dict()[name].any() for name in filled)
