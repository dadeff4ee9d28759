"""The same masks give the same metrics in every format, as predictions and as ground truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cellwright.api.evaluate import EvaluatePlan, Evaluation, run
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import CellwrightError, InputError
from cellwright.core.files import write_bytes
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import FORMATS, WriteOptions

HW = (90, 120)
NAMES = ("field 1", "b", "empty")  # the last has annotated objects and no predictions
# Formats that store scores.
SCORED = ("coco", "coco_results", "rle_csv", "geojson", "imagej_roi")
# The Cell Tracking Challenge stores numbers of frames instead of the names of images: see tests/cli/test_ctc.py.
WRITABLE = [name for name, form in FORMATS.items() if form.is_writable and name != "ctc"]


def field(seed: int, n: int, *, scored: bool) -> Instances:
    """Discs that do not touch, so that every format can store them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: HW[0], : HW[1]]
    labels = np.zeros(HW, np.int64)
    for k in range(n):
        cy, cx = 10 + 22 * (k // 5), 12 + 24 * (k % 5)
        cy, cx = cy + rng.integers(-2, 3), cx + rng.integers(-2, 3)
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= rng.integers(5, 9) ** 2] = k + 1
    masks, ids = MaskSet.from_label_map(labels)
    scores = rng.permutation(np.linspace(0.1, 0.95, len(masks))).astype(np.float32) if scored else None
    return Instances.from_masks(masks, ids=ids, scores=scores)


def dataset_of(root: Path, objects: dict[str, Instances], class_names: tuple[str, ...] = ("cell",)) -> Dataset:
    import cv2

    samples = []
    for k, (name, cells) in enumerate(objects.items()):
        path = root / f"{name}.png"
        write_bytes(path, cv2.imencode(".png", np.zeros((*HW, 3), np.uint8))[1].tobytes())
        samples.append(Sample(name, path, HW, Loaded(cells), image_id=k + 1))
    return Dataset(tuple(samples), class_names, root)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``truth`` and ``predicted`` in every format that can be written, one folder each."""
    root = tmp_path_factory.mktemp("formats")
    truth = dataset_of(root / "images", {name: field(k, 15, scored=False) for k, name in enumerate(NAMES)})
    cells = {name: field(10 + k, 20, scored=True) for k, name in enumerate(NAMES[:2])}
    cells["empty"] = Instances.empty(HW, scored=True)
    predicted = dataset_of(root / "images", cells)
    for name in WRITABLE:
        write = FORMATS[name].write
        for side, dataset in (("truth", truth), ("predicted", predicted)):
            if name == "coco_results" and side == "truth":
                continue
            out = root / name / side
            written = write(dataset, out / "results.json" if name == "coco_results" else out, WriteOptions())
            assert written
    return root


def place(drawn: Path, name: str, side: str) -> Path:
    folder = drawn / name / side
    return folder / "results.json" if name == "coco_results" else folder


def evaluated(out: Path, predicted: Path, truth: Path, **changes: object) -> Evaluation:
    plan = EvaluatePlan((predicted,), data=truth, out=out, pictures=0, overwrite=True)
    result = run(dataclasses.replace(plan, **changes))  # type: ignore[arg-type]
    assert result is not None
    return result.evaluations[0]


def score_free(evaluation: Evaluation) -> dict[str, float]:
    """The defined values that do not depend on scores."""
    values = {k: v for k, v in evaluation.report.values.items() if not np.isnan(v)}
    return {k: v for k, v in values.items() if "AP" not in k and "AR@" not in k and not k.startswith("score_")}


@pytest.fixture(scope="module")
def reference(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluated(tmp_path_factory.mktemp("ref"), drawn / "coco" / "predicted", drawn / "coco" / "truth")


@pytest.mark.parametrize("name", WRITABLE)
def test_predictions_in_every_format_give_the_same_values(
    drawn: Path, reference: Evaluation, name: str, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "out", place(drawn, name, "predicted"), drawn / "coco" / "truth")
    assert score_free(evaluation) == score_free(reference)
    assert 0 < evaluation.report["accuracy@0.5"] < 1
    assert evaluation.report.per_image["image"].tolist() == list(NAMES)
    if name in SCORED:
        assert evaluation.report.values == pytest.approx(reference.report.values, nan_ok=True)
    else:
        assert evaluation.report.reasons["AP@all"] == "the predictions have no scores"


@pytest.mark.parametrize("name", [name for name in WRITABLE if name != "coco_results"])
def test_truth_in_every_format_gives_the_same_values(
    drawn: Path, reference: Evaluation, name: str, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "out", drawn / "coco" / "predicted", place(drawn, name, "truth"))
    rows = {row.pop("image"): row for row in evaluation.report.per_image.to_dict("records")}
    expected = {row.pop("image"): row for row in reference.report.per_image.to_dict("records")}
    assert rows == {key: pytest.approx(row, nan_ok=True) for key, row in expected.items()}
    assert score_free(evaluation) == pytest.approx(score_free(reference), rel=1e-12)


def test_results_as_ground_truth_take_their_images_from_the_predictions(drawn: Path, tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path / "out", drawn / "coco" / "predicted", place(drawn, "coco_results", "predicted"))
    assert evaluation.report["accuracy@0.5"] == 1


def test_a_label_folder_of_another_tool(drawn: Path, reference: Evaluation, tmp_path: Path) -> None:
    """Only label images, named like the images."""
    import tifffile

    for name in NAMES:
        cells = field(10 + NAMES.index(name), 20, scored=True)
        labels = cells.masks.to_label_map() if name != "empty" else np.zeros(HW, np.uint32)
        (tmp_path / "labels").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "labels" / f"{name}.tif", labels.astype(np.uint16))
    evaluation = evaluated(tmp_path / "out", tmp_path / "labels", drawn / "coco" / "truth")
    assert score_free(evaluation) == score_free(reference)


def test_images_without_objects_are_refused(drawn: Path, tmp_path: Path) -> None:
    import tifffile

    (tmp_path / "images").mkdir()
    for name in NAMES:
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", np.random.default_rng(1).integers(0, 255, HW, np.uint8))
    with pytest.raises(InputError, match=r"images without any objects(.|\n)*got: \d images and nothing else"):
        evaluated(tmp_path / "out", tmp_path / "images", drawn / "coco" / "truth")


def test_label_images_without_objects_are_a_result(drawn: Path, tmp_path: Path) -> None:
    """A tool that found nothing; black images in a folder cannot mean anything else."""
    import tifffile

    (tmp_path / "zeros").mkdir()
    for name in NAMES:
        tifffile.imwrite(tmp_path / "zeros" / f"{name}.tif", np.zeros(HW, np.uint16))
    assert evaluated(tmp_path / "out", tmp_path / "zeros", drawn / "coco" / "truth").report["accuracy@0.5"] == 0


def test_images_of_another_size_are_refused(drawn: Path, tmp_path: Path) -> None:
    small = MaskSet.from_label_map(np.eye(8, dtype=np.int64))[0]
    objects = {name: Instances.from_masks(small) for name in NAMES}
    samples = tuple(Sample(name, None, (8, 8), Loaded(cells), k) for k, (name, cells) in enumerate(objects.items()))
    FORMATS["coco"].write(Dataset(samples, ("cell",)), tmp_path / "small", WriteOptions())
    with pytest.raises(CellwrightError, match="different sizes"):
        evaluated(tmp_path / "out", tmp_path / "small", drawn / "coco" / "truth")


def test_metrics_json_is_strict(drawn: Path, reference: Evaluation, tmp_path: Path) -> None:
    evaluated(tmp_path / "out", place(drawn, "dsb2018_csv", "predicted"), drawn / "coco" / "truth")
    content = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["values"]["AP@all"] is None
    assert "AP@all" in content["reasons"]
