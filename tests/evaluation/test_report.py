"""The report: names, reasons, tables, lazy reading, files, messages."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellwright.core.errors import InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.evaluation.data import METRICS
from cellwright.evaluation.evaluate import evaluate_pairs
from cellwright.evaluation.report import Report

Boxes = Callable[..., Instances]
Draw = Callable[..., tuple[Instances, Instances]]


@pytest.fixture(scope="module")
def fields() -> tuple[list[Instances], list[Instances]]:
    from drawn_pairs import draw_pair

    rng = np.random.default_rng(8)
    pairs = [draw_pair(rng, n_truth=n) for n in (15, 25, 0, 8)]
    return [predicted for _, predicted in pairs], [truth for truth, _ in pairs]


@pytest.fixture(scope="module")
def report(fields: tuple[list[Instances], list[Instances]]) -> Report:
    return evaluate_pairs(*fields, class_names=["a", "b", "c"], image_ids=["w", "x", "y", "z"])


def test_metric_names(report: Report) -> None:
    # fmt: off
    names = [
        "AP@100", "AP@all", "AP50@all", "AP75@100", "AP_small@all", "AP_smallest_third@all", "AR@100", "box_AP@100",
        "AP_ceiling@100", "accuracy@0.5", "accuracy@0.95", "f1@0.75", "precision@0.5", "recall@0.5", "kaggle_score",
        "pq", "sq", "dq", "aji", "aji_plus", "aji_cellpose", "dice", "mean_matched_iou@0.5", "boundary_iou@2px",
        "pooled_pq", "class_mean_pq", "errors_merged", "score_iou_spearman", "score_calibration_error",
    ]
    # fmt: on
    for name in names:
        assert math.isfinite(report[name]), name
    assert [name for name, _ in report.headline()] == [
        "AP@all",
        "AP50@all",
        "kaggle_score",
        "accuracy@0.5",
        "pq",
        "aji",
    ]


def test_means_are_over_the_images_where_a_metric_is_defined(report: Report) -> None:
    assert report.per_image["image"].tolist() == ["w", "x", "y", "z"]
    for name in ("accuracy@0.5", "pq", "aji", "boundary_iou@2px", "kaggle_score"):
        assert report[name] == pytest.approx(report.per_image[name].mean())  # pandas ignores NaN, too
    sums = report.per_image[["tp@0.5", "fp@0.5", "fn@0.5"]].sum()
    assert report["pooled_accuracy@0.5"] == pytest.approx(sums["tp@0.5"] / sums.sum())


def test_classes_and_objects(report: Report) -> None:
    assert report.per_class["class"].tolist() == ["a", "b", "c"]
    assert report["AP@all"] == pytest.approx(report.per_class["AP@all"].mean())
    assert report["class_mean_pq"] == pytest.approx(report.per_class["pooled_pq"].mean())
    assert report.per_class["n_truth"].sum() == report["n_truth"]
    truth = report.objects[report.objects["side"] == "truth"]
    assert (truth["kind"] == "missed").sum() == report["errors_missed"] == report.per_image["errors_missed"].sum()
    counted = report.objects[report.objects.kind != "ignored"]
    assert (counted.side == "prediction").sum() == report["n_predicted"]
    matched = truth[truth["kind"] == "correct"]
    assert (matched["partner_id"] > 0).all()
    assert (matched["iou"] >= 0.5).all()


def test_a_class_has_the_metrics_of_its_objects_alone(
    fields: tuple[list[Instances], list[Instances]], report: Report
) -> None:
    alone = [
        [
            replace(s, class_ids=0 * s.class_ids)
            for s in (cells[(cells.class_ids == 1) | cells.ignore] for cells in side)
        ]
        for side in fields
    ]
    of_class = evaluate_pairs(*alone)
    row = report.per_class.set_index("class").loc["b"]
    for name in ("AP@all", "box_AP75@100", "pooled_aji", "pq", "dice", "pooled_boundary_iou@2px"):
        assert row[name] == pytest.approx(of_class[name]), name


def test_worst_images(report: Report) -> None:
    worst = report.worst_images()["accuracy@0.5"].dropna().tolist()
    assert worst == sorted(worst)
    assert len(report.worst_images(2)) == 2


def test_without_scores_ap_is_undefined(boxes: Boxes) -> None:
    cells = boxes((0, 0, 10, 10))
    report = evaluate_pairs([cells], [cells])
    assert math.isnan(report["AP@all"])
    assert "have no scores" in report.reasons["AP@all"]
    assert "undefined: AP@all, AP50@all (the predictions have no scores)" in report.notes
    assert report["accuracy@0.5"] == 1


def test_every_undefined_metric_has_a_reason(boxes: Boxes) -> None:
    cells = boxes((0, 0, 10, 10), scores=np.ones(1))
    none, truth = Instances.empty((64, 64), scored=True), replace(cells, scores=None)
    for pairs in (
        [],
        [(none, truth)],
        [(cells, truth[:0])],
        [(none, truth[:0])],
        [(cells, replace(truth, ignore=~truth.ignore))],
    ):
        report = evaluate_pairs([p for p, _ in pairs], [t for _, t in pairs])
        undefined = {name for name, value in report.values.items() if math.isnan(value)}
        assert undefined
        assert undefined == set(report.reasons)
        assert not any(reason == "" for reason in report.reasons.values())


def test_a_note_on_the_ceiling_of_ap() -> None:
    from cellwright.core.masks import MaskSet

    labels = np.zeros((48, 48), np.int64)
    labels[::4, ::4] = np.arange(1, 145).reshape(12, 12)
    truth = Instances.from_masks(MaskSet.from_label_map(labels)[0])
    report = evaluate_pairs([replace(truth, scores=np.ones(144, np.float32))], [truth], metrics=["coco_ap"])
    assert report["AP@all"] == pytest.approx(1)
    assert report["AP@100"] == pytest.approx(report["AP_ceiling@100"]) == pytest.approx(70 / 101)
    assert any("more than 100 objects of a class in 1 of 1 image:" in note for note in report.notes)


def test_only_requested_metrics_are_computed(boxes: Boxes) -> None:
    cells = boxes((0, 0, 10, 10), scores=np.ones(1))
    truth = replace(cells, scores=None)
    few = evaluate_pairs([cells], [truth], metrics=["accuracy"])
    assert "kaggle_score" in few.values  # counts are always computed
    assert not any(name.startswith(("AP", "aji", "errors", "boundary")) for name in few.values)
    assert few.objects["side"].tolist() == ["truth", "prediction"]
    assert evaluate_pairs([cells], [truth], metrics=["boundary_iou@4px"])["boundary_iou@4px"] == 1
    for name in METRICS:
        evaluate_pairs([cells], [truth], metrics=[name])


def test_a_score_threshold_does_not_apply_to_ap(boxes: Boxes) -> None:
    predicted = boxes((0, 0, 10, 10), (20, 20, 30, 30), scores=np.array([0.9, 0.2]))
    truth = replace(predicted, scores=None)
    report = evaluate_pairs([predicted], [truth], score_threshold=0.5)
    assert report["AP@all"] == pytest.approx(1)
    assert report["accuracy@0.5"] == report["aji"] == 0.5
    assert report["dice"] == pytest.approx(2 / 3)
    assert any("1 prediction below the score threshold" in note for note in report.notes)


def test_lost_recall_needs_candidates(boxes: Boxes) -> None:
    truth = boxes((0, 0, 10, 10), (20, 20, 30, 30), (40, 40, 50, 50))
    predicted = replace(truth[:1], scores=np.ones(1, np.float32))
    candidates = replace(truth[:2], columns={"dropped_by": np.array(["kept", "nms"])})
    report = evaluate_pairs([predicted], [truth], candidates=[candidates])
    assert report["lost_recall_nms"] == report["lost_recall_never_proposed"] == pytest.approx(1 / 3)
    lost = sum(value for name, value in report.values.items() if name.startswith("lost_recall_"))
    assert lost == pytest.approx(1 - report["recall@0.5"])
    assert report.tables["lost_recall"]["objects"].sum() == 2


def test_each_image_is_read_once(fields: tuple[list[Instances], list[Instances]]) -> None:
    class Reader(Sequence[Instances]):
        def __init__(self, images: list[Instances]) -> None:
            self.images, self.read = images, []

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, k: int) -> Instances:  # type: ignore[override]
            self.read.append(k)
            return self.images[k]

    readers = [Reader(side) for side in fields]
    evaluate_pairs(*readers)
    assert [reader.read for reader in readers] == [[0, 1, 2, 3]] * 2


def test_values_need_neither_pandas_nor_torch() -> None:
    code = """import sys, numpy as np
from cellwright.core.instances import Instances
from cellwright.evaluation.evaluate import evaluate_pairs
cells = Instances.empty((8, 8), scored=True)
assert np.isnan(evaluate_pairs([cells], [cells])["AP@all"])
print(*[name for name in ("pandas", "torch") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_files(report: Report, tmp_path: Path) -> None:
    paths = report.save(tmp_path / "out")
    names = {"metrics.json", "per_image.csv", "per_class.csv", "objects.csv", "report.md"}
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "out").iterdir()} == names
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["schema_version"] == 1
    assert stored["values"]["AP@all"] == report["AP@all"]
    assert pd.read_csv(tmp_path / "out" / "per_image.csv").shape == report.per_image.shape
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| AP@all |" in page
    assert "Worst images" in page


def test_files_without_images(tmp_path: Path) -> None:
    stored = evaluate_pairs([], []).save(tmp_path)[0].read_text()
    assert json.loads(stored)["values"]["AP@all"] is None
    assert json.loads(stored)["reasons"]["AP@all"] == "no images"


def test_the_repr_has_three_lines_at_most(report: Report) -> None:
    lines = repr(report).splitlines()
    assert (
        lines[0]
        == f"Report: 4 images, {report['n_truth']:.0f} annotated objects, {report['n_predicted']:.0f} predictions"
    )
    assert lines[1].startswith(f"  AP@all {report['AP@all']:.4f}, AP50@all ")
    assert len(lines) == 2
    assert max(map(len, lines)) < 120
    assert repr(evaluate_pairs([], [])).splitlines()[0] == "Report: 0 images, 0 annotated objects, 0 predictions"


def test_unknown_metrics_are_answered_with_suggestions(report: Report) -> None:
    for name, suggestion in (
        ("AP@al", "did you mean 'AP@all'?"),
        ("accuracy@.5", "did you mean 'accuracy@0.5'?"),
        ("lost", "AP@all, AP50@all, kaggle_score"),
        ("box", "box_AP@100, box_AP50@100"),
        (0, "AP@all, AP50@all, kaggle_score"),
    ):
        with pytest.raises(UsageError, match="no such metric") as caught:
            report[name]  # type: ignore[index]
        assert suggestion in str(caught.value)
        assert len(str(caught.value)) < 250
        assert name not in report
    assert "AP@all" in report


def test_messages(boxes: Boxes) -> None:
    cells = boxes((0, 0, 10, 10), class_ids=np.array([2]))
    with pytest.raises(UsageError, match="did you mean 'coco_ap'"):
        evaluate_pairs([cells], [cells], metrics=["cocoap"])
    with pytest.raises(InputError, match="different numbers of images"):
        evaluate_pairs([cells, cells], [cells])
    with pytest.raises(InputError, match="class id without a name") as caught:
        evaluate_pairs([cells], [cells], class_names=["a", "b"], image_ids=["first"])
    assert "image first" in str(caught.value)
