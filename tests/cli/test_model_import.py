"""``cellwright model inspect`` and ``model import`` for weights of other frameworks, on the command line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from drawn import run

from cellwright import load_model

RECIPE = """
name: imported
conventions: detectron2
classes: 4
input: {colour_order: bgr, mean: [0.406, 0.456, 0.485], std: [0.00392156863, 0.00392156863, 0.00392156863]}
model:
  kind: mask_rcnn
  backbone: {depth: 50, width: 8, stem_channels: 16, norm: frozen_batch_norm, frozen_stages: 2}
  fpn: {channels: 32}
  box_head: {fc_channels: 64, score_threshold: 0.0}
  mask_head: {channels: 32}
predict: {score_threshold: 0.0}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "imported.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    ("name", "network", "tensors"),
    [
        ("mask_rcnn_R_50_C4/model.pkl", "Mask R-CNN C4, ResNet-50, 4 classes", 279),
        ("mask_rcnn_R_50_FPN/model.pth", "Mask R-CNN with FPN, ResNet-50, 4 classes", 307),
        (
            "cascade_mask_rcnn_X_152_dconv_gn/model.pth",
            "Cascade Mask R-CNN, ResNeXt-50 32x1d, deformable v1 in res3, res4, res5, group norm, 4 classes",
            390,
        ),
        ("pointrend_rcnn_X_101_FPN/model.pth", "PointRend, ResNeXt-50 32x1d, 4 classes", 313),
        ("micro/imagenet_c2_fair.pkl", "ResNet-50 backbone only", 162),
    ],
)
def test_inspect_recognises_the_network(
    fixtures_root: Path, name: str, network: str, tensors: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("model", "inspect", fixtures_root / name, "--tensors", "--log-format", "json") == 0
    facts, keys, rows = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {"what": "network", "value": network} in facts["rows"]
    assert {row["key"]: row["value"] for row in keys["rows"]}["model.backbone.depth"] == "50"
    assert len(rows["rows"]) == tensors
    assert not [row for row in rows["rows"] if row["name in cellwright"] == "none: unknown"]


def test_an_imported_model_predicts_what_detectron2_predicts(
    fixtures_root: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, names = fixtures_root / "mask_rcnn_R_50_FPN", tmp_path / "model", tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n")
    words = ["model", "import", folder / "model.pkl", "--recipe", recipe, "--out", out, "--classes", names]
    assert run(*words, "--dry-run") == 0
    assert not out.exists()
    assert run(*words) == 0
    assert "import_report.txt" in capsys.readouterr().err
    report = (out / "import_report.txt").read_text()
    assert "307 renamed tensors" in report
    assert "backbone.bottom_up.stem.conv1.weight -> backbone.stem.conv.weight 16x3x7x7" in report
    card = (out / "README.md").read_text()
    assert "imported from model.pkl (detectron2, sha256 " in card
    assert str(tmp_path) not in card + (out / "model.json").read_text() + report
    assert run(*words) == 0
    assert "already complete" in capsys.readouterr().err
    names.write_text("a\nb\nc\ne\n")
    assert run(*words) == 2
    assert "this output already exists" in capsys.readouterr().err
    names.write_text("a\nb\nc\nd\n")
    assert run(*words, "--overwrite", "--quiet") == 0

    with np.load(folder / "infer_A.npz") as arrays:
        image, boxes, scores = arrays["image_bgr_u8"][:, :, ::-1], arrays["post_boxes"], arrays["post_scores"]
        drawn = np.unpackbits(arrays["post_masks_packed"], axis=1).any(axis=1)
    model = load_model(out, device="cpu")
    assert model.class_names == ("a", "b", "c", "d")
    cells = model.predict(np.ascontiguousarray(image))
    distance = np.abs(cells.boxes_xyxy[:, None] - boxes[None, drawn]).max(axis=2)
    assert cells.scores is not None
    assert len(cells) == drawn.sum()
    assert distance.min(axis=1).max() < 2e-2
    assert np.abs(np.sort(cells.scores) - np.sort(scores[drawn])).max() < 1e-3


def test_invalid_imports(fixtures_root: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = fixtures_root / "mask_rcnn_R_50_FPN" / "model.pkl", tmp_path / "model"
    short = tmp_path / "short.txt"
    short.write_text("a\nb\n")
    for words, message in (
        ((file, "--set", "classes=2"), "4 in the file, 2 in the recipe"),
        ((file, "--set", "model.backbone.depth=101"), "model.backbone.depth is 50 in the file, 101 in the recipe"),
        ((file, "--classes", short), "expected: 4 different names"),
        ((fixtures_root / "micro" / "imagenet_c2_msra.pkl",), "only a backbone"),
    ):
        assert run("model", "import", *words, "--recipe", recipe, "--out", out) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    words = (file, "--set", "classes=2", "--set", "model.init_fresh=[classes]")
    assert run("model", "import", *words, "--recipe", recipe, "--out", out) == 0
    notes = capsys.readouterr().err
    assert "the classes are called class_1 to class_2" in notes
    assert "6 tensors initialised randomly (box_head, mask_head): train the model before you predict" in notes


class _Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must not run",)


@pytest.mark.parametrize("verb", ["inspect", "import"])
def test_a_hostile_pickle_is_refused(
    recipe: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.zeros(2)}, "b": _Attack()}))
    more = [] if verb == "inspect" else ["--recipe", recipe, "--out", tmp_path / "model"]
    assert run("model", verb, path, *more) == 2
    printed = capsys.readouterr()
    assert "this pickle contains more than data" in printed.err
    assert "this must not run" not in printed.out + printed.err
    assert not (tmp_path / "model").exists()
