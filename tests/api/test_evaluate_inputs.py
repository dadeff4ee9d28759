"""What `cellwright.evaluate` accepts: one image or lists, label arrays, `Instances`, paths, datasets; and what not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

import cellwright as cw
from cellwright.api.inputs import OBJECT_TYPES
from cellwright.core.dataset import Loaded
from cellwright.core.errors import InputError, UsageError
from cellwright.data.formats import FORMATS, WriteOptions

HW = (40, 50)
TRUTH = np.zeros(HW, np.int64)
for number, (top, left) in enumerate([(0, 0), (0, 20), (20, 0), (20, 20), (20, 40)]):
    TRUTH[top : top + 10, left : left + 10] = number + 1
PREDICTED = np.where(np.isin(TRUTH, [2, 4]), TRUTH + 100, 0)
PREDICTED[34:38, 25:29] = 7  # a prediction that matches no object
EMPTY = np.zeros(HW, np.uint8)
ACCURACY = 2 / 6  # TP 2, FP 1, FN 3


def instances(labels: np.ndarray, score: float | None = None) -> cw.Instances:
    masks, ids = cw.MaskSet.from_label_map(labels)
    scores = None if score is None else np.full(len(ids), score, np.float32)
    return cw.Instances.from_masks(masks, ids=ids, scores=scores)


def accuracy(*sides: object, **options: object) -> float:
    return cw.evaluate(*sides, metrics=["accuracy"], **options)["accuracy@0.5"]  # type: ignore[arg-type]


def test_one_image_without_brackets_is_one_image() -> None:
    """`Instances` are a sequence of objects; each object used to be evaluated as an image."""
    report = cw.evaluate(instances(PREDICTED), instances(TRUTH), metrics=["accuracy"])
    assert report["n_images"] == 1
    assert report["n_truth"] == 5
    assert report["accuracy@0.5"] == pytest.approx(ACCURACY)
    listed = cw.evaluate([instances(PREDICTED)], [instances(TRUTH)], metrics=["accuracy"])
    assert listed.values == pytest.approx(report.values, nan_ok=True)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_label_arrays_of_every_integer_type(dtype: str) -> None:
    assert accuracy(PREDICTED.astype(dtype), TRUTH.astype(dtype)) == pytest.approx(ACCURACY)
    assert accuracy(PREDICTED.astype(dtype), instances(TRUTH)) == pytest.approx(ACCURACY)


def test_lists_may_be_mixed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", PREDICTED.astype(np.uint16))
    predicted = [PREDICTED, instances(PREDICTED), tmp_path / "labels.tif", str(tmp_path / "labels.tif"), EMPTY]
    report = cw.evaluate(predicted, [TRUTH, instances(TRUTH), TRUTH, TRUTH, TRUTH], metrics=["accuracy"])
    assert report.per_image["accuracy@0.5"].tolist() == pytest.approx([ACCURACY] * 4 + [0])
    assert cw.evaluate(iter([PREDICTED]), (TRUTH,), metrics=["accuracy"])["n_images"] == 1
    assert accuracy(tmp_path / "labels.tif", TRUTH) == pytest.approx(ACCURACY)


def test_no_images_and_no_objects() -> None:
    assert cw.evaluate([], [])["n_images"] == 0
    report = cw.evaluate(EMPTY, EMPTY)
    assert np.isnan(report["accuracy@0.5"])
    assert "no annotated objects" in report.reasons["accuracy@0.5"]
    assert accuracy(EMPTY, TRUTH) == 0


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Dataset folders: predictions with scores and a score threshold, and annotations in two splits."""
    truth = [cw.Sample(name, None, HW, Loaded(instances(TRUTH)), split="val") for name in "abc"]
    truth[0] = cw.Sample("a", None, HW, Loaded(instances(TRUTH)), split="train")
    cells = {"c": PREDICTED, "b": EMPTY, "a": PREDICTED}  # in another order
    predicted = [cw.Sample(name, None, HW, Loaded(instances(labels, 0.5))) for name, labels in cells.items()]
    for name, samples in (("truth", truth), ("predicted", predicted)):
        FORMATS["coco"].write(cw.Dataset(tuple(samples), ("nucleus",)), tmp_path / name, WriteOptions())
    return tmp_path / "predicted", tmp_path / "truth"


def test_paths_and_datasets_are_paired_by_image(folders: tuple[Path, Path]) -> None:
    datasets = [cw.read_dataset(folder, require_images=False) for folder in folders]
    for predicted in (folders[0], str(folders[0]), datasets[0]):
        for truth in (folders[1], datasets[1]):
            report = cw.evaluate(predicted, truth, metrics=["accuracy"])
            assert report.per_image["image"].tolist() == ["a", "b", "c"]
            assert report.per_image["accuracy@0.5"].tolist() == pytest.approx([ACCURACY, 0, ACCURACY])
    part = datasets[0].with_samples(datasets[0].samples[:2])
    with pytest.raises(InputError, match="1 of 3 images have no prediction"):
        cw.evaluate(part, folders[1])
    report = cw.evaluate(part, folders[1], split="val", metrics=["accuracy"])
    assert report.per_image["image"].tolist() == ["b", "c"]
    assert report.data.class_names == ("nucleus",)


def test_results_take_the_names_of_their_images_from_the_other_side(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    FORMATS["coco_results"].write(cw.read_dataset(folders[0], require_images=False), results, WriteOptions())
    report = cw.evaluate(results, folders[1], metrics=["coco_ap"])
    assert report.per_image["image"].tolist() == ["a", "b", "c"]
    assert report["n_predicted"] == 6
    assert cw.evaluate(folders[0], results, metrics=["accuracy"])["accuracy@0.5"] == 1


def test_a_dataset_and_a_list_are_paired_in_order(folders: tuple[Path, Path]) -> None:
    report = cw.evaluate([PREDICTED, EMPTY, TRUTH], folders[1], metrics=["accuracy"])
    assert report.per_image["image"].tolist() == ["a", "b", "c"]
    assert report.per_image["accuracy@0.5"].tolist() == pytest.approx([ACCURACY, 0, 1])
    with pytest.raises(InputError, match=r"got: 1 image\n[\s\S]*expected: 3 images"):
        cw.evaluate(PREDICTED, folders[1])


def test_a_recorded_score_threshold_is_used_unless_one_is_given() -> None:
    sample = cw.Sample("a", None, HW, Loaded(instances(PREDICTED, 0.5)))
    truth = cw.Dataset((cw.Sample("a", None, HW, Loaded(instances(TRUTH))),), ("cell",))
    for recorded, given, expected in ((0.6, None, 0), (0.4, None, ACCURACY), (0.6, 0.0, ACCURACY), (0.0, 0.7, 0)):
        predicted = cw.Dataset((sample,), ("cell",), info={"score_threshold": recorded})
        for side in (truth, TRUTH):
            assert accuracy(predicted, side, score=given) == pytest.approx(expected)


def test_classes_may_be_ignored() -> None:
    predicted, masks = instances(PREDICTED, 0.5), instances(TRUTH).masks
    truth = cw.Instances.from_masks(masks, class_ids=np.arange(5) % 2)
    report = cw.evaluate(predicted, truth, ignore_classes=True)
    assert report.data.class_names == ("object",)
    assert report["AP50@all"] > 0
    classed = cw.Instances.from_masks(predicted.masks, class_ids=np.array([0, 1, 1]), scores=predicted.scores)
    assert cw.evaluate(classed, truth, ignore_classes=True, score=(0.1, 0.9))["n_predicted"] == 1


@pytest.mark.parametrize("value", [3, None, {"labels": TRUTH}, 1.5, object()])
def test_other_types_are_refused_and_the_accepted_ones_named(value: object) -> None:
    for sides, name in (
        ((value, TRUTH), "predictions"),
        ((TRUTH, value), "truth"),
        (([value], [TRUTH]), "predictions"),
    ):
        with pytest.raises(UsageError, match=f"invalid `{name}`") as caught:
            cw.evaluate(*sides)  # type: ignore[arg-type]
        assert f"{OBJECT_TYPES}; a Dataset; or a list" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.stack([TRUTH, TRUTH]), "list(labels)"),
        (TRUTH[None], "labels.squeeze()"),
        (TRUTH > 0, "skimage.measure.label"),
        (TRUTH.astype(float), "astype"),
    ],
)
def test_arrays_that_are_not_label_arrays_are_refused_with_advice(array: np.ndarray, remedy: str) -> None:
    with pytest.raises(InputError, match="not a label array") as caught:
        cw.evaluate(array, array)
    assert remedy in str(caught.value)
    assert str(array.shape) in str(caught.value)


def test_a_list_of_label_arrays_is_a_list_of_images() -> None:
    stack = np.stack([TRUTH, TRUTH])
    assert cw.evaluate(list(stack), list(stack), metrics=["accuracy"])["n_images"] == 2


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), (0.5, float("nan")), [0.2, 7.0], "high"])
def test_invalid_score_thresholds_are_refused(threshold: object) -> None:
    with pytest.raises(UsageError, match="invalid `score`"):
        cw.evaluate(PREDICTED, TRUTH, score=threshold)  # type: ignore[arg-type]


def test_unequal_lengths_and_sizes_are_refused_with_both() -> None:
    with pytest.raises(InputError, match=r"got: 2 images\n[\s\S]*expected: 1 image,"):
        cw.evaluate([TRUTH, TRUTH], [TRUTH])
    with pytest.raises(InputError, match=r"image second[\s\S]*got: 40 x 40\n[\s\S]*expected: 40 x 50"):
        cw.evaluate([TRUTH, TRUTH[:, :40]], [TRUTH, TRUTH], image_ids=["first", "second"])
    with pytest.raises(InputError, match=r"`image_ids`[\s\S]*got: 1\n[\s\S]*expected: 2"):
        cw.evaluate([TRUTH, TRUTH], [TRUTH, TRUTH], image_ids=["first"])


def test_options_for_datasets_and_for_lists(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="only a dataset has splits"):
        cw.evaluate(TRUTH, TRUTH, split="val")
    for option in ("class_names", "image_ids"):
        with pytest.raises(UsageError, match="their own class names"):
            cw.evaluate(*folders, **{option: ["a", "b", "c"]})  # type: ignore[arg-type]
    report = cw.evaluate(PREDICTED, TRUTH, class_names=["cell"], image_ids=["x"])
    assert report.data.class_names == ("cell",)
    assert report.per_image["image"].tolist() == ["x"]


def test_annotations_that_are_the_predictions_themselves_are_noticed() -> None:
    report = cw.evaluate([PREDICTED, TRUTH, EMPTY], [TRUTH, TRUTH, EMPTY])
    (warning,) = [note for note in report.notes if note.startswith("warning: ")]
    assert "the same to the pixel in 1 of 3 images" in warning
    assert not [note for note in cw.evaluate(PREDICTED, TRUTH).notes if note.startswith("warning: ")]
