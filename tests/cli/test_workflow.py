"""The whole workflow on the command line, on drawn nuclei: convert, check, split, train, evaluate, predict, export."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from drawn import TINY, draw_mask_folder, run
from pycocotools.coco import COCO

from cellwright.api.read import read_dataset


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole workflow has been run."""
    root = tmp_path_factory.mktemp("job")
    draw_mask_folder(root / "source", 4)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    assert run("data", "split", root / "data", "--val", "0.25") == 0
    assert run("train", "synthetic/demo", "--data", root / "data", "--out", root / "run", "--quiet", *TINY) == 0
    images = root / "images"
    images.mkdir()
    for sample in read_dataset(root / "data").with_split("val"):
        assert sample.image_path is not None
        (images / sample.image_path.name).write_bytes(sample.image_path.read_bytes())
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    predict = ["predict", images, "--model", root / "run", "--out", root / "pred", "--score", "0.05"]
    assert run(*predict) == 3
    return root


def test_the_run_folder_contains_the_documented_files(job: Path) -> None:
    run_folder = job / "run"
    for name in ("recipe.yaml", "environment.json", "log.csv", "metrics.json", "DONE", "curves/losses.png"):
        assert (run_folder / name).is_file(), name
    for name in ("weights.safetensors", "model.json", "README.md"):
        assert (run_folder / "model" / name).is_file(), name
    header, *rows = (run_folder / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4"]
    assert {"loss_rpn_class", "loss_mask", "lr", "gradient_norm", "AP50@all"} <= set(header.split(","))
    assert str(job) not in (run_folder / "environment.json").read_text()


def test_the_predictions_agree_with_each_other(job: Path) -> None:
    predicted = read_dataset(job / "pred", require_images=False)
    (sample,) = predicted
    cells = sample.read_instances()
    labels = tifffile.imread(job / "pred" / f"{sample.id}_masks.tif")
    assert labels.dtype == np.uint32
    assert labels.shape == sample.image_hw == (128, 160)
    assert predicted.info["score_threshold"] == 0.05
    assert cells.scores is not None
    shown = cells[cells.scores >= 0.05]
    assert set(np.unique(labels)) - {0} <= set(shown.ids.tolist())
    np.testing.assert_array_equal(labels > 0, shown.masks.foreground())
    assert (job / "pred" / f"{sample.id}_overlay.png").is_file()
    assert (job / "pred" / "contact_sheet.png").is_file()
    assert "broken" in (job / "pred" / "failures.csv").read_text()
    assert sample.id in (job / "pred" / "summary.csv").read_text()


def test_the_trained_model_predicts_tiles(job: Path, tmp_path: Path) -> None:
    (image,) = (path for path in (job / "images").iterdir() if path.stem != "broken")
    words = ("--model", job / "run", "--score=0.05", "--tile=128", "--labels=tiff", "--out", tmp_path / "tiles")
    assert run("predict", image, *words) == 0
    assert len(pd.read_csv(tmp_path / "tiles" / "summary.csv")) == 1
    labels = tifffile.imread(tmp_path / "tiles" / "labels.tif")
    whole = tifffile.imread(next((job / "pred").glob("*_masks.tif")))
    assert np.array_equal(labels > 0, whole > 0)


def test_a_finished_output_is_not_replaced(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (job / "pred" / "predictions.json").read_bytes()
    predict = ("predict", job / "images", "--model", job / "run", "--out", job / "pred")
    assert run(*predict, "--score", "0.05") == 3, "the broken image is tried again"
    printed = capsys.readouterr().err
    assert "1 image done before, 1 to do" in printed
    assert "failed: 1 image (broken): this image cannot be decoded" in printed
    assert run(*predict, "--score", "0.5") == 2
    assert "0.5 instead of 0.05" in capsys.readouterr().err
    assert (job / "pred" / "predictions.json").read_bytes() == before
    assert run("train", "synthetic/demo", "--data", job / "data", "--out", job / "run", *TINY) == 0
    assert "already complete" in capsys.readouterr().err


def test_a_run_and_its_predictions_have_the_same_metrics(job: Path) -> None:
    common = ["--data", job / "data", "--split", "val", "--quiet"]
    assert run("evaluate", job / "run", "--out", job / "eval_run", *common) == 0
    assert run("predict", job / "data", "--split", "val", "--model", job / "run", "--out", job / "pred_val") == 0
    assert run("evaluate", job / "pred_val", "--out", job / "eval_pred", *common) == 0
    first, second = (json.loads((job / name / "metrics.json").read_text()) for name in ("eval_run", "eval_pred"))
    of_run, of_predictions = ({k: v for k, v in each["values"].items() if v is not None} for each in (first, second))
    assert of_run == pytest.approx(of_predictions, rel=1e-6)
    assert first["values"]["n_images"] == 1
    assert first["values"]["AP_ceiling@100"] == 1


def test_an_export_loads_in_pycocotools(job: Path) -> None:
    (sample,) = read_dataset(job / "pred", require_images=False)
    ids = job / "ids.json"
    ids.write_text(json.dumps([{"file_name": f"{sample.id}.png", "id": 41, "height": 128, "width": 160}]))
    assert run("export", job / "pred", "--to", "coco_results", "--image-ids", ids, "--out", job / "answer.zip") == 0
    with zipfile.ZipFile(job / "answer.zip") as packed:
        (name,) = packed.namelist()
        results = json.loads(packed.read(name))
    truth = COCO()
    truth.dataset = {"images": [{"id": 41}], "annotations": [], "categories": [{"id": 1}], "info": {}}
    truth.createIndex()
    assert {result["image_id"] for result in results} <= {41}
    if results:
        loaded = truth.loadRes(results)
        assert len(loaded.anns) == len(results)
    assert run("export", job / "pred", "--to", "coco_results", "--out", job / "answer.zip") == 2


def test_exports_contain_the_objects_of_the_label_images(job: Path) -> None:
    (sample,) = read_dataset(job / "pred", require_images=False)
    cells = sample.read_instances()
    assert cells.scores is not None
    median = float(np.median(cells.scores)) if len(cells) else 0.5
    images = ["predict", job / "data", "--split", "val", "--model", job / "run"]
    assert run(*images, "--score", median, "--out", job / "half") == 0
    assert run("export", job / "half", "--to", "geojson", "--out", job / "geo") == 0
    assert run("export", job / "half", "--to", "geojson", "--out", job / "geo") == 0, "it is complete"
    assert run("export", job / "half", "--to", "geojson", "--out", job / "geo", "--overwrite") == 0
    (file,) = (job / "geo").rglob("*.geojson")
    (half,) = read_dataset(job / "half", require_images=False)
    scores = half.read_instances().scores
    assert scores is not None
    n_shown = int((scores >= np.float32(median)).sum())
    assert len(json.loads(file.read_text())["features"]) == n_shown < len(scores)


def test_info_check_and_show(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "info", job / "data") == 0
    assert "4 images" in capsys.readouterr().out
    (job / "source" / "field 1" / "masks" / ".hidden.png").write_bytes(b"")
    assert run("data", "check", job / "source") == 0
    assert "hidden" in capsys.readouterr().out
    assert run("data", "show", job / "data", "--out", job / "sheet.png") == 0
    assert cv2.imread(str(job / "sheet.png")).shape[2] == 3


def test_json_lines_and_dry_run(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "info", job / "data", "--log-format", "json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["event"] == "table"
    assert run("predict", job / "images", "--model", "classical", "--out", job / "never", "--dry-run") == 0
    assert not (job / "never").exists()


def test_model_inspect_and_lists(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "inspect", job / "run") == 0
    assert "mask_rcnn" in capsys.readouterr().out
    assert run("model", "list") == 0
    assert run("recipes", "list") == 0
    assert "vrdl_nuclei/quick" in capsys.readouterr().out
    assert run("recipes", "copy", "vrdl_nuclei/quick", "--out", job / "mine.yaml") == 0
    assert run("recipes", "copy", "vrdl_nuclei/quick", "--out", job / "mine.yaml") == 0, "it is complete"
    assert run("recipes", "copy", "vrdl_nuclei/flow", "--out", job / "mine.yaml") == 2
    assert run("doctor") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "vrdl_nuclei/quik", "--data", "DATA"], "did you mean 'vrdl_nuclei/quick'"),
        (["train", "synthetic/demo", "--data", "DATA", "--set", "train.lrr=1"], "did you mean 'lr'"),
        (["train", "synthetic/demo", "--data", "DATA", "--set", "classes=3"], "different numbers of classes"),
        (["train", "synthetic/demo", "--data", "NOWHERE"], "no such file or folder"),
        (["predict", "DATA", "--model", "NOWHERE"], "no such model"),
        (["predict", "DATA", "--model", "DATA"], "no model here"),
        (["predict", "NOWHERE", "--model", "classical"], "NOWHERE"),
        (["evaluate", "RUN", "--data", "DATA", "--split", "test"], "no such split"),
        (["evaluate", "RUN", "--data", "DATA", "--metrics", "ap"], "unknown metric"),
        (["export", "PRED", "--to", "coco_result", "--out", "x"], "did you mean 'coco_results'"),
    ],
)
def test_wrong_arguments_give_one_message_and_exit_code_2(
    job: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    places = {"DATA": job / "data", "RUN": job / "run", "PRED": job / "pred", "NOWHERE": tmp_path / "NOWHERE"}
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    assert run(*[places.get(word, word) for word in words], *out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "DONE").exists()


def test_a_dataset_without_objects_is_refused(job: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bare = tmp_path / "only_images"
    bare.mkdir()
    cv2.imwrite(str(bare / "a.png"), np.zeros((64, 64, 3), np.uint8))
    assert run("data", "convert", bare, "--out", tmp_path / "data") == 2
    assert "--no-objects" in capsys.readouterr().err
    assert run("data", "convert", bare, "--no-objects", "--out", tmp_path / "data") == 0
    assert "without objects: 1 of 1 image" in capsys.readouterr().err
    assert run("train", "synthetic/demo", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY) == 2
    assert "this dataset has no objects" in capsys.readouterr().err


def test_help_and_unknown_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "predict" in capsys.readouterr().out
    assert run("predict", "--no-such-flag") == 2
    assert run("frobnicate") == 2


def test_a_bug_of_ours_saves_a_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(plan: object) -> list[tuple[str, str]]:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("cellwright.api.doctor.facts", broken)
    assert run("doctor") == 1
    error = capsys.readouterr().err
    assert "a bug of ours" in error
    report = Path(error.split("report: ")[1].strip())
    assert "Traceback" in report.read_text()
    report.unlink()


def test_only_the_command_line_changes_malloc_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("cellwright.cli.app.keep_freed_memory", lambda: calls.append(1))
    assert run("model", "list") == 0
    assert calls == [1]


def test_interruption_prints_the_command_that_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(plan: object) -> list[tuple[str, str]]:
        raise KeyboardInterrupt

    monkeypatch.setattr("cellwright.api.doctor.facts", interrupted)
    assert run("doctor", "--quiet") == 130
    assert "cellwright doctor --quiet" in capsys.readouterr().err
