"""The same masks give the same figures whatever format they come in, on either side; classes; missing images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellwright.api.evaluate import EvaluatePlan, Evaluation, run
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import CellwrightError, InputError, UsageError
from cellwright.core.files import write_bytes
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.evaluation.pairing import PairedImages, annotation_digest, pair_datasets

HW = (90, 120)
NAMES = ("field 1", "b", "leer")  # the last has truth and no prediction
# Formats that keep scores.
SCORED = ("coco", "coco_results", "rle_csv", "geojson", "imagej_roi")
WRITABLE = [name for name, one in FORMATS.items() if one.is_writable]


def field(seed: int, n: int, *, scored: bool) -> Instances:
    """Discs that do not touch: every format can hold them."""
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
    """``truth`` and ``found`` in every format that can be written, one folder each."""
    root = tmp_path_factory.mktemp("formats")
    truth = dataset_of(root / "images", {name: field(k, 15, scored=False) for k, name in enumerate(NAMES)})
    found = {name: field(10 + k, 20, scored=True) for k, name in enumerate(NAMES[:2])}
    found["leer"] = Instances.empty(HW, scored=True)
    predicted = dataset_of(root / "images", found)
    for name in WRITABLE:
        write = FORMATS[name].write
        for side, dataset in (("truth", truth), ("found", predicted)):
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


def figures(evaluation: Evaluation) -> dict[str, float]:
    """All that does not depend on scores, undefined ones left out."""
    values = {k: v for k, v in evaluation.report.values.items() if not np.isnan(v)}
    return {k: v for k, v in values.items() if "AP" not in k and "AR@" not in k and not k.startswith("score_")}


@pytest.fixture(scope="module")
def reference(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluated(tmp_path_factory.mktemp("ref"), drawn / "coco" / "found", drawn / "coco" / "truth")


@pytest.mark.parametrize("name", WRITABLE)
def test_predictions_in_every_format_give_the_same_figures(
    drawn: Path, reference: Evaluation, name: str, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "out", place(drawn, name, "found"), drawn / "coco" / "truth")
    assert figures(evaluation) == figures(reference)
    assert 0 < evaluation.report["accuracy@0.5"] < 1
    assert evaluation.report.per_image["image"].tolist() == list(NAMES)
    if name in SCORED:
        assert evaluation.report.values == pytest.approx(reference.report.values, nan_ok=True)
    else:
        assert evaluation.report.reasons["AP@all"] == "the predictions have no scores"


@pytest.mark.parametrize("name", [name for name in WRITABLE if name != "coco_results"])
def test_truth_in_every_format_gives_the_same_figures(
    drawn: Path, reference: Evaluation, name: str, tmp_path: Path
) -> None:
    evaluation = evaluated(tmp_path / "out", drawn / "coco" / "found", place(drawn, name, "truth"))
    found = {row.pop("image"): row for row in evaluation.report.per_image.to_dict("records")}
    expected = {row.pop("image"): row for row in reference.report.per_image.to_dict("records")}
    assert found == {key: pytest.approx(row, nan_ok=True) for key, row in expected.items()}
    assert figures(evaluation) == pytest.approx(figures(reference), rel=1e-12)


def test_a_results_list_as_truth_is_read_against_the_predicted_images(drawn: Path, tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path / "out", drawn / "coco" / "found", place(drawn, "coco_results", "found"))
    assert evaluation.report["accuracy@0.5"] == 1


def test_a_label_folder_of_another_tool(drawn: Path, reference: Evaluation, tmp_path: Path) -> None:
    """Label images alone, under the images' names."""
    import tifffile

    for name in NAMES:
        cells = field(10 + NAMES.index(name), 20, scored=True)
        labels = cells.masks.to_label_map() if name != "leer" else np.zeros(HW, np.uint32)
        (tmp_path / "labels").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "labels" / f"{name}.tif", labels.astype(np.uint16))
    evaluation = evaluated(tmp_path / "out", tmp_path / "labels", drawn / "coco" / "truth")
    assert figures(evaluation) == figures(reference)


def test_images_alone_are_no_prediction(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images without any objects"):
        evaluated(tmp_path / "out", drawn / "images", drawn / "coco" / "truth")


def paired(predicted: Dataset, truth: Dataset, **options: bool) -> PairedImages:
    return pair_datasets("it", predicted, truth, **options)


@pytest.fixture
def classed(tmp_path: Path) -> Callable[..., Dataset]:
    def made(names: tuple[str, ...], class_ids: list[int], info: dict[str, object] | None = None) -> Dataset:
        cells = field(0, 4, scored=True)
        cells = dataclasses.replace(cells, class_ids=np.array(class_ids))
        return dataclasses.replace(dataset_of(tmp_path, {"a": cells}, names), info=info or {})

    return made


def test_classes_are_paired_by_name(classed: Callable[..., Dataset]) -> None:
    truth = classed(("live", "dead"), [0, 0, 1, 1])
    images = paired(classed(("dead", "live"), [1, 1, 0, 0], {"score_threshold": [0.2, 0.7]}), truth)
    assert images.class_names == ("live", "dead")
    assert images.predicted[0].read_instances().class_ids.tolist() == [0, 0, 1, 1]
    assert images.score_threshold == (0.7, 0.2)
    more = paired(classed(("dead", "live", "odd"), [1, 1, 0, 2]), truth)
    assert more.class_names == ("live", "dead", "odd")
    assert "odd" in more.notes[0]


def test_classes_that_have_no_names_in_common(classed: Callable[..., Dataset]) -> None:
    truth = classed(("live", "dead"), [0, 0, 1, 1])
    unnamed = paired(classed(("cell",), [0, 0, 0, 0], {"score_threshold": 0.3}), truth)
    assert unnamed.class_names == ("object",)
    assert unnamed.score_threshold == 0.3
    assert "classes are ignored" in unnamed.notes[0]
    assert set(unnamed.truth[0].read_instances().class_ids.tolist()) == {0}
    alone = paired(classed(("nucleus",), [0, 0, 0, 0]), classed(("cell",), [0, 0, 0, 0]))
    assert alone.class_names == ("cell",)
    assert alone.notes == ()
    with pytest.raises(UsageError, match="no class in common"):
        paired(classed(("x", "y"), [0, 0, 1, 1]), truth)
    forced = paired(classed(("x", "y"), [0, 0, 1, 1], {"score_threshold": [0.0, 1.0]}), truth, ignore_classes=True)
    # Once classes are gone, thresholds that differ by class have to have been applied.
    assert len(forced.predicted[0].read_instances()) == 2
    assert forced.score_threshold == 0.0


def test_images_are_paired_by_name_only_where_it_is_unique(tmp_path: Path) -> None:
    cells = field(0, 3, scored=True)
    truth = dataset_of(tmp_path, {"a/x": cells, "b/x": cells})
    with pytest.raises(InputError, match="2 of 2 images have no prediction"):
        paired(dataset_of(tmp_path, {"x": cells}), truth)
    deeper = dataset_of(tmp_path, {"deep/er/a/x": cells, "deep/er/b/y": cells})
    assert len(paired(deeper, dataset_of(tmp_path, {"x": cells, "y": cells})).truth) == 2
    with pytest.raises(InputError, match="1 of 3 images with predictions have no ground truth") as caught:
        paired(dataset_of(tmp_path, dict.fromkeys("xyz", cells)), dataset_of(tmp_path, dict.fromkeys("xy", cells)))
    assert "got: z" in str(caught.value)


def test_images_of_another_size_are_refused(drawn: Path, tmp_path: Path) -> None:
    small = MaskSet.from_label_map(np.eye(8, dtype=np.int64))[0]
    objects = {name: Instances.from_masks(small) for name in NAMES}
    samples = tuple(Sample(name, None, (8, 8), Loaded(one), k) for k, (name, one) in enumerate(objects.items()))
    write = FORMATS["coco"].write
    write(Dataset(samples, ("cell",)), tmp_path / "small", WriteOptions())
    with pytest.raises(CellwrightError, match="different sizes"):
        evaluated(tmp_path / "out", tmp_path / "small", drawn / "coco" / "truth")


def test_a_digest_goes_by_objects_not_by_names() -> None:
    cells, other = field(0, 5, scored=False), field(1, 5, scored=False)
    assert annotation_digest(cells, "a") == annotation_digest(cells[::-1], "folder/b")
    assert annotation_digest(cells, "a") != annotation_digest(other, "a")
    none = Instances.empty(HW)
    assert annotation_digest(none, "x/a") == annotation_digest(none, "a") != annotation_digest(none, "b")


def test_metrics_json_is_strict(drawn: Path, reference: Evaluation, tmp_path: Path) -> None:
    evaluated(tmp_path / "out", place(drawn, "dsb2018_csv", "found"), drawn / "coco" / "truth")
    content = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["values"]["AP@all"] is None
    assert "AP@all" in content["reasons"]
