"""``evaluate``, ``fuse`` and ``export`` say why values are undefined or 0, and how much they are about."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.core.dataset import Loaded
from cellwright.data.formats import FORMATS, WriteOptions

CASES = Path(__file__).parents[1] / "cases" / "models"
HW = (60, 60)


def squares(*corners: tuple[int, int], side: int = 10, **fields: object) -> cw.Instances:
    """Squares by their upper left corners (y, x)."""
    dense = np.zeros((len(corners), *HW), bool)
    for k, (y, x) in enumerate(corners):
        dense[k, y : y + side, x : x + side] = True
    return cw.Instances.from_masks(cw.MaskSet.from_dense(dense), **fields)  # type: ignore[arg-type]


def write(folder: Path, images: list[cw.Instances], names: tuple[str, ...] = ("cell",), form: str = "coco") -> Path:
    """A dataset with one sample per entry of ``images``."""
    samples = [cw.Sample(f"im{k}", None, HW, Loaded(cells)) for k, cells in enumerate(images)]
    return FORMATS[form].write(cw.Dataset(tuple(samples), names), folder, WriteOptions())[0].parent


def evaluated(out: Path, predictions: Path | list[Path], truth: Path, *words: object) -> dict:
    """metrics.json of an evaluation without pictures."""
    paths = predictions if isinstance(predictions, list) else [predictions]
    assert run("evaluate", *paths, "--data", truth, "--pictures", "0", "--out", out, *words) == 0
    return json.loads((out / "metrics.json").read_text()) if len(paths) == 1 else {}


def test_no_annotated_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CASES / "15_undefined_and_zero_without_reason"
    values = evaluated(tmp_path, folder / "ok.json", folder / "gt_without_objects.json")["values"]
    printed = capsys.readouterr()
    assert values["AP@all"] is None
    assert values["accuracy@0.5"] == 0
    assert re.search(r"ok: 3 images, 0 annotated objects, 8 predictions", printed.out)
    assert re.search(r"AP@all .*undefined", printed.out)
    assert "undefined: AP@all, AP50@all (no annotated objects)" in printed.err
    assert "there are no annotated objects, so all 8 predictions are wrong" in printed.err


def test_no_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CASES / "15_undefined_and_zero_without_reason"
    values = evaluated(tmp_path, folder / "empty.json", folder / "gt.json")["values"]
    printed = capsys.readouterr()
    assert values["AP@all"] == values["accuracy@0.5"] == 0
    assert "empty: 3 images, 8 annotated objects, 0 predictions" in printed.out
    assert "there are no predictions at all" in printed.err
    assert "there are no predictions at all" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("folder", ["zeros", "zeros_named"])
def test_label_images_without_objects_are_a_result(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES / "13_nothing_found_as_label_images"
    values = evaluated(tmp_path, case / folder, case / "truth")["values"]
    assert values["accuracy@0.5"] == 0
    assert f"{folder}: 2 images, 24 annotated objects, 0 predictions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "problem", "got"),
    [
        ("no_scores", "no entry of this file has a score", "8 entries"),
        ("score_is_text", "score is not a number", "'0.9'"),
        ("too high", "score is out of range", "90"),
        ("null", "no entry of this file has a score", "8 entries"),
    ],
)
def test_what_is_wrong_with_scores(
    tmp_path: Path, name: str, problem: str, got: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES / "14_score_messages"
    results = case / f"{name}.json"
    if not results.exists():
        entries = json.loads((case / "no_scores.json").read_text())
        entries = [{**entry, "score": 90 if name == "too high" else None} for entry in entries]
        results = tmp_path / "results.json"
        results.write_text(json.dumps(entries))
    assert run("evaluate", results, "--data", case / "gt.json", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"error: {problem}" in error
    assert f"got: {got}" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([squares((0, 0), scores=[0.2])], "the only prediction is below the score threshold 0.5"),
        ([squares((0, 0), (30, 30), scores=[0.2, 0.3])], "all 2 predictions are below the score threshold 0.5"),
        ([squares((40, 40), scores=[0.9])], "no prediction touches an annotated object"),
        ([squares((0, 6), scores=[0.9])], "reaches IoU 0.5 with an annotated object; the highest IoU is 0.25"),
        ([squares((0, 0), scores=[0.9], class_ids=[1])], "match objects of other classes only"),
    ],
)
def test_reasons_for_zero(
    tmp_path: Path, images: list[cw.Instances], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write(tmp_path / "truth", [squares((0, 0))], ("a", "b"))
    predicted = write(tmp_path / "predicted", images, ("a", "b"))
    evaluated(tmp_path / "out", predicted, truth, "--score", "0.5")
    assert text in capsys.readouterr().err


def test_nothing_is_explained_where_something_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "truth", [squares((0, 0), (20, 20))])
    predicted = write(tmp_path / "predicted", [squares((0, 0), scores=[0.9])])
    evaluated(tmp_path / "out", predicted, truth)
    printed = capsys.readouterr()
    assert "predicted: 1 image, 2 annotated objects, 1 prediction" in printed.out
    assert not re.search("undefined|no prediction|there are no", printed.out + printed.err)


def test_a_table_with_overlaps_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CASES / "18_kaggle_overlap"
    metrics = evaluated(tmp_path / "out", folder / "overlap.csv", folder / "gt.csv")
    text = "masks overlap in 2 images (2 pairs of masks, 24 pixels): the competitions reject such a table"
    assert text in capsys.readouterr().err
    assert any(text in note for note in metrics["notes"])
    (tmp_path / "images").mkdir()
    evaluated(tmp_path / "pq", folder / "overlap.csv", folder / "gt.csv", "--metrics", "pq")
    assert text in capsys.readouterr().err
    # `fuse` resolves them, and what is then exported is accepted without a word.
    for name in "ab":
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", np.zeros((20, 20), np.uint8))
    words = ("--data", tmp_path / "images", "--method", "mask_nms", "--iou", "0.9", "--resolve-overlaps")
    assert run("fuse", folder / "overlap.csv", *words, "--out", tmp_path / "resolved") == 0
    words = ("--to", "rle_csv_submission", "--out", tmp_path / "resolved.csv")
    assert run("export", tmp_path / "resolved", *words) == 0
    capsys.readouterr()
    evaluated(tmp_path / "again", tmp_path / "resolved.csv", folder / "gt.csv")
    assert "masks overlap" not in capsys.readouterr().err


def test_overlaps_elsewhere_are_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlapping = squares((0, 0), (0, 5), scores=[0.9, 0.8])
    truth = write(tmp_path / "truth", [squares((0, 0))])
    evaluated(tmp_path / "out", write(tmp_path / "predicted", [overlapping]), truth)
    assert "masks overlap" not in capsys.readouterr().err


# --- paired comparisons ---------------------------------------------------------------------------------------------


def pair_of_results(root: Path, n_images: int) -> tuple[list[Path], Path]:
    """One prediction that finds every object, and one that finds none."""
    truth = [squares((0, 0), (30, 30)) for _ in range(n_images)]
    good = [squares((0, 0), (30, 30), scores=[0.9, 0.8]) for _ in range(n_images)]
    bad = [squares((0, 40), (30, 0), scores=[0.9, 0.8]) for _ in range(n_images)]
    return [write(root / "good", good), write(root / "bad", bad)], write(root / "truth", truth)


@pytest.mark.parametrize("n_images", [1, 3, 5])
def test_few_images_have_no_p_value(tmp_path: Path, n_images: int, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, truth = pair_of_results(tmp_path, n_images)
    evaluated(tmp_path / "out", predictions, truth)
    printed = capsys.readouterr()
    assert f"n = {n_images} image{'s' * (n_images > 1)} is too small for a p value" in printed.err
    assert ("95 % intervals from n" in printed.err) == (n_images > 1)
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table["p"].isna().all()
    assert table["difference"].tolist() == [-1.0] * len(table)
    assert "is too small for a p value" in (tmp_path / "out" / "report.md").read_text()
    assert not re.search(r"0\.001\d* *│", printed.out)
    assert "bad: no prediction touches an annotated object" in printed.err


def test_six_images_have_a_p_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, truth = pair_of_results(tmp_path, 6)
    evaluated(tmp_path / "out", predictions, truth)
    assert "too small" not in capsys.readouterr().err
    assert (pd.read_csv(tmp_path / "out" / "comparison.csv")["p"] == 0.001).all()


# --- options --------------------------------------------------------------------------------------------------------


def test_score_replaces_the_recorded_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "truth", [squares((0, 0), (30, 30))])
    predicted = write(tmp_path / "predicted", [squares((0, 0), (30, 30), scores=[0.9, 0.4])])
    assert evaluated(tmp_path / "a", predicted, truth)["values"]["accuracy@0.5"] == 1
    strict = evaluated(tmp_path / "b", predicted, truth, "--score", "0.5")["values"]
    assert strict["accuracy@0.5"] == 0.5
    assert strict["AP@all"] == pytest.approx(1)
    assert "1 prediction below the score threshold" in capsys.readouterr().err
    assert run("evaluate", predicted, "--data", truth, "--score", "1.5", "--out", tmp_path / "c") == 2
    assert "--score" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "im0.tif", squares((0, 0)).to_label_map().astype(np.uint16))
    evaluated(tmp_path / "d", tmp_path / "im0.tif", truth, "--score", "0.5")
    assert "the predictions have no scores, so --score has no effect" in capsys.readouterr().err


def test_views_and_score_of_a_model_that_predicts_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    cells = squares((5, 5), (35, 30), side=12)
    Image.fromarray((200 * (cells.to_label_map() > 0)).astype(np.uint8)).save(tmp_path / "im0.png")
    tifffile.imwrite(tmp_path / "im0_masks.tif", cells.to_label_map().astype(np.uint16))
    words = ("--data", tmp_path, "--pictures", "0")
    # The baseline has no views; the nuclei model has them.
    assert run("evaluate", "classical", *words, "--views", "flips", "--out", tmp_path / "a") == 2
    assert "views" in capsys.readouterr().err
    assert run("evaluate", tmp_path / "im0_masks.tif", *words, "--views", "flips", "--out", tmp_path / "b") == 2
    assert "--views needs a model that predicts" in capsys.readouterr().err
    assert run("evaluate", "classical", *words, "--views", "flops", "--out", tmp_path / "c") == 2
    assert run("evaluate", "classical", *words, "--score", "1", "--out", tmp_path / "d") == 0
    n_predicted = json.loads((tmp_path / "d" / "metrics.json").read_text())["values"]["n_predicted"]
    assert run("evaluate", "classical", *words, "--score", "0", "--out", tmp_path / "e") == 0
    assert n_predicted < json.loads((tmp_path / "e" / "metrics.json").read_text())["values"]["n_predicted"] == 2


def test_single_classes_are_one_class_in_evaluate_and_fuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "first", [squares((0, 0), scores=[0.9])], ("nucleus",))
    second = write(tmp_path / "second", [squares((0, 0), scores=[0.8])], ("Nuclei",))
    values = evaluated(tmp_path / "out", first, second)["values"]
    assert values["AP@all"] == pytest.approx(1)
    assert "the only class of the predictions (nucleus) is treated as that of the ground truth (Nuclei)" in (
        capsys.readouterr().err
    )
    assert run("fuse", first, second, "--save", "masks", "--out", tmp_path / "fused") == 0
    assert "classes nucleus, Nuclei are treated as one class, nucleus" in capsys.readouterr().err
    fused = cw.read_dataset(tmp_path / "fused", require_images=False)
    assert fused.class_names == ("nucleus",)
    cells = fused[0].read_instances()
    assert len(cells) == 1
    assert cells.scores == pytest.approx([0.85])  # one object found by both, not two


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "n_objects", "n_images"), [("geojson", 3, 3), ("coco", 4, 3), ("label_images", 3, 3), ("rle_csv", 3, 3)]
)
def test_export_says_how_many_objects_it_wrote(
    tmp_path: Path, form: str, n_objects: int, n_images: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        squares((0, 0), (30, 30), scores=[0.9, 0.2]),
        squares(scores=np.zeros(0)),
        squares((0, 0), (20, 0), scores=[1, 1]),
    ]
    samples = [cw.Sample(f"im{k}", None, HW, Loaded(cells)) for k, cells in enumerate(images)]
    dataset = cw.Dataset(tuple(samples), ("cell",), info={"score_threshold": 0.5})
    FORMATS["coco"].write(dataset, tmp_path / "source", WriteOptions())
    out = tmp_path / ("out.csv" if form == "rle_csv" else "out.json" if form == "coco" else "out")
    assert run("export", tmp_path / "source", "--to", form, "--out", out) == 0
    text = capsys.readouterr().out
    assert f"with {n_objects} objects in {n_images} images ({form})" in text
    assert ("1 object below the score threshold omitted" in text) == (n_objects == 3)


def test_warnings_come_first_and_name_their_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two predictions is the ground truth itself."""
    truth = write(tmp_path / "truth", [squares((5, 5), (30, 30))] * 2)
    own = write(tmp_path / "own", [squares((5, 5), (30, 30))] * 2)
    other = write(tmp_path / "other", [squares((6, 5), (31, 30))] * 2)
    assert run("evaluate", own, other, "--data", truth, "--pictures=0", "--out", tmp_path / "e") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("warning: own: annotations and predictions are the same to the pixel in 2 of 2 images")
    assert not any("warning: other" in line for line in lines)
