"""`cellwright fuse` on the command line: its output is evaluated and exported like any prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from drawn import draw_mask_folder, run

import cellwright as cw
from cellwright.api.read import read_dataset


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn images, and two predictions of the classical method: all objects, and only the large ones."""
    root = tmp_path_factory.mktemp("fuse")
    draw_mask_folder(root / "source", 3)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    common = ["predict", root / "data", "--model", "classical", "--quiet"]
    assert run(*common, "--out", root / "all") == 0
    assert run(*common, "--min-area", "300", "--out", root / "large") == 0
    return root


def test_a_fused_prediction_is_used_like_any_other(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = job / "both"
    words = ["--method", "wbf", "--iou", ".5", "--score", ".05", "--weights", "1,2", "--out", out]
    assert run("fuse", job / "all", job / "large", *words) == 0
    printed = capsys.readouterr()
    assert "objects in 3 images, fused from 2 predictions" in printed.out
    assert "scores that are not calibrated" in printed.err
    back = read_dataset(out)
    plain = [read_dataset(job / name)[0].read_instances() for name in ("all", "large")]
    cells = back[0].read_instances()
    assert len(cells) == len(plain[0]) > len(plain[1])
    # An object in both predictions keeps its score; one in the first only, with weight 1 of 3, gets a third of it.
    best = np.sort(plain[0].scores)[::-1]
    assert cells.scores.max() == pytest.approx(best[0], abs=1e-6)
    assert (cells.scores < 0.4).sum() >= len(plain[0]) - len(plain[1])
    settings = yaml.safe_load((out / "recipe.yaml").read_text())["fuse"]
    assert (settings["members"], settings["method"], settings["weights"]) == (["all", "large"], "wbf", [1.0, 2.0])
    assert run("evaluate", out, "--data", job / "data", "--pictures", "0", "--quiet", "--out", job / "eval") == 0
    assert json.loads((job / "eval" / "metrics.json").read_text())["values"]["n_predicted"] > 0
    assert run("export", out, "--to", "rle_csv_submission", "--quiet", "--out", job / "submission.csv") == 0
    assert set(pd.read_csv(job / "submission.csv")["id"]) == {sample.id for sample in back}
    assert run("fuse", job / "all", job / "large", *words) == 0, "it is complete"
    assert "already complete" in capsys.readouterr().err
    assert run("fuse", job / "all", job / "large", *(".4" if word == ".5" else word for word in words)) == 2
    assert "changed since: the recipe" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["nms", "soft_nms", "mask_nms", "mask_vote"])
def test_every_method_runs(job: Path, method: str) -> None:
    words = ["--method", method, "--decay", "linear", "--over-smaller", "--resolve-overlaps", "--save", "masks"]
    out = job / method
    assert run("fuse", job / "all", job / "large", *words, "--threshold", "0", "--quiet", "--out", out) == 0
    for sample in read_dataset(out):
        cells = sample.read_instances()
        assert len(cells)
        assert cells.masks.areas.sum() == cells.masks.foreground().sum()
    assert not list(out.glob("*_overlay.png"))


def test_all_files_of_an_image_contain_the_same_objects(job: Path, tmp_path: Path) -> None:
    for sample in read_dataset(job / "all"):
        cells = sample.read_instances()
        table = pd.read_csv(job / "all" / f"{sample.id}_measurements.csv", index_col="label")
        assert list(table.columns[:3]) == ["image", "class", "score"]
        assert dict(table["area_px"]) == dict(zip(cells.ids, cells.masks.areas, strict=True))
        assert any("intensity" in name for name in table)
        outlines = cw.read_instances(job / "all" / f"{sample.id}.geojson")
        assert sorted(outlines.masks.areas) == sorted(cells.masks.areas)
        rois = cw.read_instances(job / "all" / f"{sample.id}_rois.zip")
        assert sorted(rois.masks.areas) == sorted(cells.masks.areas)
    # Without the images, such as for predictions from elsewhere, intensities are not measured.
    lists = [job / "all", job / "large"]
    moved = [shutil.copytree(path, tmp_path / path.name) for path in lists]
    for path in moved:
        content = json.loads((path / "predictions.json").read_text())
        for image in content["images"]:
            image.pop("cellwright", None)
            image["file_name"] = f"gone/{image['file_name'].split('/')[-1]}"
        (path / "predictions.json").write_text(json.dumps(content))
    assert run("fuse", *moved, "--save", "measurements", "--quiet", "--out", tmp_path / "fused") == 0
    for path in (tmp_path / "fused").rglob("*_measurements.csv"):
        assert not any("intensity" in name for name in pd.read_csv(path))


def test_coco_results_need_their_dataset(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = [job / "all.json", job / "large.json"]
    for path in lists:
        assert run("export", job / path.stem, "--to", "coco_results", "--quiet", "--out", path) == 0
    assert run("fuse", *lists, "--out", job / "from_lists") == 2
    assert "give the dataset that it was made for, as --data" in capsys.readouterr().err
    assert run("fuse", *lists, "--data", job / "data", "--quiet", "--out", job / "from_lists") == 0
    assert run("fuse", job / "all", job / "large", "--quiet", "--out", job / "from_folders") == 0
    first, second = (read_dataset(job / name) for name in ("from_lists", "from_folders"))
    for a, b in zip(first, second, strict=True):
        assert a.read_instances().masks == b.read_instances().masks


def test_an_ensemble_of_models_is_fused_during_prediction(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = job / "source" / "field 0" / "images" / "field 0.png"
    words = ["--fuse", "mask_vote", "--weights", "1,1", "--out", job / "two"]
    assert run("predict", image, "--model", "classical", "--model", "classical", *words) == 0
    assert "model classical + classical" in capsys.readouterr().err
    settings = yaml.safe_load((job / "two" / "recipe.yaml").read_text())
    assert settings["fuse"]["method"] == "mask_vote"
    assert [model["name"] for model in settings["models"]] == ["classical", "classical"]
    # Two equal models give the objects of one of them, above the threshold.
    back = read_dataset(job / "two")
    assert back.info["score_threshold"] == pytest.approx(0.3)
    alone = read_dataset(job / "all").sample("field 0").read_instances()
    cells = back[0].read_instances()
    assert cells.masks == alone[alone.scores >= np.float32(0.05)].masks
    np.testing.assert_allclose(cells.scores, alone.scores[alone.scores >= np.float32(0.05)], atol=1e-6)
    again = ["predict", image, "--model", "classical", "--model", "classical", "--out", job / "three"]
    for more, message in (
        (["--fuse", "vote"], 'Invalid value "vote" for --fuse'),
        (["--weights", "1,2,3"], "3 weights: 1, 2, 3"),
        (["--diameter", "20"], "does not use a diameter"),
        (["--views", "flips"], "only networks support test-time augmentation"),
    ):
        assert run(*again, *more) == 2, more
        assert message in capsys.readouterr().err
    assert not (job / "three").exists()


def test_wrong_usage(job: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    both = [job / "all", job / "large", "--out", tmp_path / "x"]
    for words, message in (
        (["--method", "wfb"], 'Invalid value "wfb" for --method'),
        (["--weights", "1,2,3"], "3 weights: 1, 2, 3"),
        (["--weights", "1;2"], "--weights"),
        (["--weights", "1,-2"], "weights"),
        (["--iou", "1.5"], "out of range"),
        (["--decay", "cubic"], 'Invalid value "cubic" for --decay'),
        (["--split", "val"], "only a dataset has splits"),
        (["--save", "maps"], 'Invalid value "maps" for --save'),
    ):
        assert run("fuse", *both, *words) == 2, words
        assert message in capsys.readouterr().err
    assert run("fuse", job / "all", job / "nowhere") == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert run("fuse", *both, "--dry-run") == 0
    assert not (tmp_path / "x").exists()
