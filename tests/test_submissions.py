"""The submissions of two reports, with the commands of docs/recipes.md, on drawn data in the original formats."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellwright.cli.app import main
from cellwright.config import recipe as recipes
from drawn_formats import write_cells4, write_sartorius
from test_recipes import reduced

SHORT = ("--set=train.length=2 steps", "--set=train.warmup=null", "--set=train.lr=1e-6", "--quiet")


def run(*words: object) -> int:
    """Exit code of ``cellwright words...``."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return int(done.value.code or 0)


def train(name: str, data: Path, out: Path) -> Path:
    """Train a shipped recipe with a narrow network for a few steps."""
    values = reduced(name).to_dict()
    values["model"] |= {"init": None, "init_fresh": []}
    values["model"]["backbone"]["depth"] = 50  # test_recipes.py trains networks of the depth of the recipe
    # With random weights all scores are low; the test is about the workflow.
    for head in ("box_head", "rpn"):
        if "score_threshold" in values["model"].get(head, {}):
            values["model"][head]["score_threshold"] = 0.0
    out.mkdir(parents=True)
    file = out / "recipe.yaml"
    file.write_text(recipes.dump(recipes.from_dict(values, name)))
    assert run("train", file, "--data", data, "--out", out / "run", *SHORT) == 0
    return out / "run"


def convert(source: Path, data: Path) -> Path:
    assert run("data", "convert", source, "--out", data, "--quiet") == 0
    assert run("data", "split", data, "--val", "0.5", "--quiet") == 0
    return data


def test_sartorius_with_one_threshold_per_class(tmp_path: Path) -> None:
    data = convert(write_sartorius(tmp_path / "source"), tmp_path / "data")
    model = train("sartorius/row_09_brightness_contrast", data, tmp_path / "row_09")
    tuned, predictions, out = tmp_path / "tuned", tmp_path / "predictions", tmp_path / "submission.csv"
    assert run("tune", model, "--data", data, "--metric", "kaggle_score", "--out", tuned, "--quiet") == 0
    thresholds = json.loads((tuned / "model.json").read_text())["thresholds"]
    assert {name for name in thresholds if name.startswith("score/")} <= {"score/shsy5y", "score/astro", "score/cort"}
    assert run("predict", data, "--split", "val", "--model", tuned, "--out", predictions, "--quiet") == 0
    assert run("export", predictions, "--to", "rle_csv_submission", "--out", out, "--quiet") == 0
    table = pd.read_csv(out, keep_default_na=False)
    assert list(table.columns)[:2] == ["id", "predicted"]
    for _, rows in table.groupby("id"):
        pixels = np.zeros(128 * 160, int)
        for runs in rows["predicted"]:
            starts, lengths = np.array(runs.split(), int).reshape(-1, 2).T
            for start, length in zip(starts, lengths, strict=True):
                pixels[start - 1 : start - 1 + length] += 1
        assert pixels.max() <= 1, "the contest does not allow a pixel in two objects"


def test_cells4_by_fusing_two_models_with_views(tmp_path: Path) -> None:
    data = convert(write_cells4(tmp_path / "source"), tmp_path / "data")
    cascade = train("cells4/cascade_x152_dconv_gn", data, tmp_path / "cascade")
    points = train("cells4/pointrend_x101", data, tmp_path / "points")
    predictions, answer = tmp_path / "fused", tmp_path / "answer.zip"
    views = ("--views", "64,max160:mirror")
    words = ("--model", cascade, "--model", points, "--fuse", "wbf", "--score", "0", *views)
    assert run("predict", data, "--split", "val", *words, "--out", predictions, "--quiet") == 0
    ids = tmp_path / "test_image_name_to_ids.json"
    names = [
        Path(row["file_name"]).name for row in json.loads((predictions / "predictions.json").read_text())["images"]
    ]
    sizes = {"height": 128, "width": 160}
    ids.write_text(json.dumps([{"file_name": name, "id": 7 + k, **sizes} for k, name in enumerate(names)]))
    assert run("export", predictions, "--to", "coco_results", "--image-ids", ids, "--out", answer, "--quiet") == 0
    with zipfile.ZipFile(answer) as packed:
        (name,) = packed.namelist()
        results = json.loads(packed.read(name))
    assert {row["image_id"] for row in results} <= {7 + k for k in range(len(names))}
    assert all(set(row) >= {"image_id", "category_id", "segmentation", "score"} for row in results)
    assert len(results) > 0
