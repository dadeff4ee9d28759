"""``evaluate`` and ``tune`` on the command line, with drawn nuclei and a model trained for a few steps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from drawn import TINY, draw_mask_folder, run

from cellwright.api.evaluate import evaluate
from cellwright.api.models import load_model
from cellwright.api.read import read_dataset


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 6 images in two splits and a run of four steps on it."""
    root = tmp_path_factory.mktemp("evaluate")
    draw_mask_folder(root / "source", 6)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    assert run("data", "split", root / "data", "--val", "0.5") == 0
    assert run("train", "synthetic/demo", "--data", root / "data", "--out", root / "run", "--quiet", *TINY) == 0
    return root


@pytest.fixture(scope="module")
def evaluated(job: Path) -> Path:
    """The evaluation of the classical method, with two pictures."""
    words = ["--data", job / "data", "--split", "val", "--pictures", "2"]
    assert run("evaluate", "classical", "--out", job / "eval", *words) == 0
    return job / "eval"


@pytest.fixture(scope="module")
def tuned(job: Path) -> Path:
    assert run("tune", job / "run", "--data", job / "data", "--out", job / "tuned") == 0
    return job / "tuned"


def test_files_of_an_evaluation(evaluated: Path) -> None:
    names = {path.name for path in evaluated.iterdir()}
    tables = {"metrics.json", "per_image.csv", "per_class.csv", "objects.csv"}
    assert names == {*tables, "pr_curve.png", "errors", "report.md", "report.html", ".cellwright"}
    objects = pd.read_csv(evaluated / "objects.csv")
    per_image = pd.read_csv(evaluated / "per_image.csv").sort_values("accuracy@0.5", kind="stable")
    assert set(objects["image"]) <= set(per_image["image"])
    # The two worst images are drawn, and the report links to the pictures, worst first.
    drawn = [f"errors/{name}.png" for name in per_image["image"][:2]]
    page = (evaluated / "report.md").read_text()
    links = [re.sub("%20", " ", link) for link in re.findall(r"!\[.*?\]\((.*?)\)", page)]
    assert links == ["pr_curve.png", *drawn]
    assert {path.name for path in (evaluated / "errors").iterdir()} == {Path(name).name for name in drawn}
    picture = cv2.imread(str(evaluated / drawn[0]))
    assert picture.shape[1] % 160 == 0
    assert picture.shape[0] > picture.shape[1] * 128 / 160  # the legend below


def test_confidence_intervals_of_the_headline_metrics(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    rows = {row["metric"]: row for row in metrics["intervals_95"]}
    assert list(rows) == ["AP@all", "AP50@all", "kaggle_score", "accuracy@0.5", "pq", "aji"]
    for name, row in rows.items():
        assert row["value"] == metrics["values"][name]
        assert row["low"] <= row["value"] <= row["high"]
    assert "95 % CI from" in (evaluated / "report.md").read_text()


def test_all_pictures_or_none(job: Path) -> None:
    common = ["--data", job / "data", "--quiet"]
    assert run("evaluate", "classical", *common, "--pictures", "all", "--out", job / "eval_all") == 0
    assert len(list((job / "eval_all" / "errors").iterdir())) == 6
    assert run("evaluate", "classical", *common, "--pictures", "0", "--out", job / "eval_none") == 0
    assert not (job / "eval_none" / "errors").exists()
    assert run("evaluate", "classical", *common, "--metrics", "pq", "--out", job / "eval_pq") == 0
    # Pictures and kinds of objects do not depend on the metrics; only the values that were asked for are given.
    assert len(list((job / "eval_pq" / "errors").iterdir())) == 6
    assert set(pd.read_csv(job / "eval_pq" / "objects.csv")["side"]) == {"truth", "prediction"}
    assert not any(name.startswith("errors") for name in pd.read_csv(job / "eval_pq" / "per_image.csv").columns)


def test_two_predictions_are_compared(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = job / "both"
    words = ["--data", job / "data", "--split", "val", "--pictures", "1", "--out", out]
    assert run("evaluate", job / "run", "classical", *words) == 0
    assert "95 % interval" in capsys.readouterr().out
    table = pd.read_csv(out / "comparison.csv")
    assert list(table.columns) == ["metric", "run", "classical", "difference", "low", "high", "p"]
    np.testing.assert_allclose(table["classical"] - table["run"], table["difference"])
    for name in ("run", "classical"):
        values = json.loads((out / name / "metrics.json").read_text())["values"]
        assert [values[metric] for metric in table["metric"]] == pytest.approx(table[name].tolist())
        assert (out / name / "report.md").is_file()
    assert "classical compared with run" in (out / "report.md").read_text()
    assert run("evaluate", "classical", "classical", "classical", *words, "--overwrite") == 2


def test_a_prediction_does_not_differ_from_itself(job: Path) -> None:
    out = job / "twice"
    words = ["--data", job / "data", "--pictures", "0", "--quiet", "--out", out]
    assert run("evaluate", "classical", "classical", *words) == 0
    table = pd.read_csv(out / "comparison.csv")
    assert (table["difference"] == 0).all()
    assert (table["p"] == 1).all()
    assert {path.parent.name for path in out.glob("*/report.md")} == set(table.columns[1:3])


def test_causes_of_lost_recall_sum_to_the_loss(job: Path) -> None:
    out = job / "eval_run"
    words = ["--data", job / "data", "--split", "val", "--pictures", "0", "--quiet", "--out", out]
    assert run("evaluate", job / "run", *words) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    causes = {row["cause"]: row["objects"] for row in metrics["tables"]["lost_recall"]}
    assert set(causes) == {"never_proposed", "threshold", "nms", "cap", "taken"} == set(metrics["lost_recall"])
    lost = pd.read_csv(out / "per_image.csv")["fn@0.5"].sum()
    assert sum(causes.values()) == lost > 0
    assert sum(metrics["lost_recall"].values()) == pytest.approx(lost / metrics["values"]["n_truth"])
    report = (out / "report.md").read_text()
    assert "Why annotated objects were not found" in report
    assert "| 0 |" not in report.split("Why annotated")[1].split("##")[0]


def test_stored_predictions_explain_losses_by_the_score_threshold(job: Path, tmp_path: Path) -> None:
    words = ["--data", job / "data", "--split", "val", "--quiet"]
    assert run("predict", job / "data", "--split", "val", "--model", "classical", "--score", "0.6", "--save", "masks",
               "--out", tmp_path / "pred", "--quiet") == 0  # fmt: skip
    assert run("evaluate", tmp_path / "pred", *words, "--pictures", "0", "--out", tmp_path / "eval") == 0
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    # Computed in another way: the recall of all predictions, whatever their score.
    recall = metrics["values"]["recall@0.5"]
    of_all = evaluate(tmp_path / "pred", job / "data", split="val", score=0)["recall@0.5"]
    assert of_all > recall
    lost = metrics["lost_recall"]
    assert lost["nms"] == lost["cap"] == 0
    assert sum(lost.values()) == pytest.approx(1 - recall)
    assert lost["threshold"] == pytest.approx(of_all - recall)
    assert "was removed by the score threshold" in (tmp_path / "eval" / "report.md").read_text()


def test_missing_predictions_and_annotations(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = job / "part"
    assert run("predict", job / "data", "--split", "val", "--model", "classical", "--out", part) == 0
    assert run("evaluate", part, "--data", job / "data", "--split", "val", "--out", job / "e1", "--quiet") == 0
    assert run("evaluate", part, "--data", job / "data", "--out", job / "e2") == 2
    assert "3 of 6 images have no prediction" in capsys.readouterr().err
    # Predictions on images that are not annotated.
    assert run("evaluate", job / "data", "--data", part, "--out", job / "e3") == 2
    assert "3 of 6 images with predictions have no ground truth" in capsys.readouterr().err
    assert not (job / "e2" / "metrics.json").exists()


def test_a_tuned_model_shows_its_thresholds(job: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = json.loads((tuned / "model.json").read_text())
    (name,) = info["class_names"]
    assert set(info["thresholds"]) == {f"score/{name}", f"min_area_px/{name}"}
    assert info["tuned_on"]["split"] == "val"
    assert len(info["tuned_on"]["images"]) == 3
    assert (tuned / "weights.safetensors").read_bytes() == (job / "run" / "model" / "weights.safetensors").read_bytes()
    model, plain = load_model(tuned, device="cpu"), load_model(job / "run", device="cpu")
    assert plain.tuned_on is None
    assert plain.options.calibration is None
    knots = info["calibration"]
    expected = np.interp(info["thresholds"][f"score/{name}"], knots["scores"], knots["expected_iou"])
    assert model.options.score_threshold == pytest.approx((expected,), abs=1e-6)
    out = job / "pred_tuned"
    assert run("predict", job / "data", "--split", "val", "--model", tuned, "--out", out) == 0
    score = f"{expected:.3g}"
    shown = capsys.readouterr().err
    assert f"keeps objects with a score of at least {score}" in shown
    assert "expected overlap" in shown
    assert run("model", "inspect", tuned) == 0
    shown = capsys.readouterr().out
    assert "on split val for accuracy@0.5" in shown
    assert f"{score} or more" in shown
    assert "backbone.stem" not in shown
    assert "tensors" in shown
    card = (tuned / "README.md").read_text()
    assert "accuracy@0.5" in card
    assert f": {score} (" in card
    info = read_dataset(out, require_images=False).info
    assert info["score_threshold"] == list(model.options.score_threshold)


def test_tuned_scores_are_calibrated_scores(job: Path, tuned: Path) -> None:
    from cellwright.data.images.read import read_image

    model, plain = load_model(tuned, device="cpu"), load_model(job / "run", device="cpu")
    sample = read_dataset(job / "data")[0]
    image = read_image(sample.image_path)
    raw = plain.predictor.predict([image])[0].instances
    shown = model.predict(image)
    assert model.options.calibration is not None
    info = json.loads((tuned / "model.json").read_text())
    score, area = info["thresholds"].values()
    kept = raw[(raw.scores >= np.float32(score)) & (raw.masks.areas >= area)]
    assert len(kept) == len(shown)
    np.testing.assert_array_equal(shown.scores, model.options.calibration(kept.scores))


def test_a_warning_on_the_split_that_was_used_for_tuning(
    job: Path, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", job / "data", "--pictures", "0"]
    assert run("evaluate", tuned, *common, "--split", "val", "--out", job / "w1") == 0
    assert "were tuned on 3 of these 3 images" in capsys.readouterr().err
    assert "warning" in (job / "w1" / "report.md").read_text()
    assert run("evaluate", tuned, *common, "--split", "train", "--out", job / "w2") == 0
    shown = capsys.readouterr().err
    assert "tuned on" not in shown
    assert "trained on 3 of these 3 images" in shown
    # Predictions of the tuned model have this information, too.
    assert run("predict", job / "data", "--split", "val", "--model", tuned, "--out", job / "pred_w") == 0
    assert run("evaluate", job / "pred_w", *common, "--split", "val", "--out", job / "w3") == 0
    assert "were tuned on 3 of these 3 images" in capsys.readouterr().err
    first, second = (json.loads((job / name / "metrics.json").read_text())["values"] for name in ("w1", "w3"))
    direct, stored = ({k: v for k, v in values.items() if v is not None} for values in (first, second))
    assert direct == pytest.approx(stored, rel=1e-6)


def test_a_tuned_model_is_tuned_from_its_original_scores(job: Path, tuned: Path) -> None:
    assert run("tune", tuned, "--data", job / "data", "--out", job / "again", "--quiet") == 0
    first, second = (json.loads((folder / "model.json").read_text()) for folder in (tuned, job / "again"))
    assert first == second


def test_a_model_tuned_with_views_uses_them(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tuned"
    words = ["--data", job / "data", "--split", "val"]
    assert run("tune", job / "run", *words, "--views", "nonsense", "--out", out) == 2
    assert run("tune", job / "run", *words, "--views", "mirror", "--out", out) == 0
    info = json.loads((out / "model.json").read_text())
    assert info["tuned_on"]["views"] == "mirror"
    plain, tuned = load_model(job / "run", device="cpu"), load_model(out, device="cpu")
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    own, expected = tuned.predict(picture, score=0.0), plain.predict(picture, views="mirror", score=0.0)
    assert len(own) > 0
    assert own.boxes_xyxy.tolist() == expected.boxes_xyxy.tolist()
    capsys.readouterr()
    common = ["predict", job / "data", "--split", "val", "--model", out, "--save", "masks"]
    assert run(*common, "--out", tmp_path / "own") == 0
    messages = capsys.readouterr().err
    assert "uses the views mirror, with which the model was tuned" in messages
    assert "other views" not in messages
    assert run(*common, "--views", "1", "--out", tmp_path / "other") == 0
    assert "tuned with other views than 1: its thresholds" in capsys.readouterr().err
    assert run("tune", out, *words, "--out", tmp_path / "again") == 0
    assert json.loads((tmp_path / "again" / "model.json").read_text()) == info
    assert run("evaluate", out, *words, "--pictures", "0", "--out", tmp_path / "eval") == 0
    assert "was removed by the score threshold" in (tmp_path / "eval" / "report.md").read_text()


def test_what_cannot_be_tuned(job: Path, tuned: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ["--data", job / "data"]
    assert run("tune", "classical", *common, "--out", tmp_path / "a") == 2
    assert run("tune", job / "run", *common, "--metric", "accuracy@0.55x", "--out", tmp_path / "a") == 2
    assert "did you mean 'accuracy@0.55'" in capsys.readouterr().err
    assert run("tune", job / "run", *common, "--out", job / "run" / "model", "--overwrite") == 2
    assert run("tune", job / "run", *common, "--out", tuned) == 0, "it is complete"
    assert run("tune", job / "run", *common, "--metric", "f1@0.5", "--out", tuned) == 2
    assert "--metric f1@0.5 instead of accuracy@0.5" in capsys.readouterr().err
    assert run("tune", job / "run", *common, "--split", "test", "--out", tmp_path / "a") == 2
    assert "no such split" in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(tuned, broken)
    info = json.loads((broken / "model.json").read_text())
    info["calibration"]["scores"] = [0.5, 0.1]
    (broken / "model.json").write_text(json.dumps(info))
    assert run("predict", job / "data", "--model", broken, "--out", tmp_path / "p") == 2
    assert "the tuning in this model folder is damaged" in capsys.readouterr().err


def test_an_invalid_request_leaves_the_old_output(job: Path, tuned: Path, evaluated: Path) -> None:
    page, info = evaluated / "report.md", tuned / "model.json"
    before = page.read_bytes(), info.read_bytes()
    common = ["--data", job / "data", "--quiet", "--overwrite"]
    for words in (["--metrics", "pqq"], ["--split", "test"], ["--dry-run"]):
        assert run("evaluate", "classical", *common, *words, "--out", evaluated) == (0 if words == ["--dry-run"] else 2)
    for words in (["--metric", "pqq"], ["--split", "test"], ["--dry-run"]):
        assert run("tune", job / "run", *common, *words, "--out", tuned) == (0 if words == ["--dry-run"] else 2)
    assert (page.read_bytes(), info.read_bytes()) == before
