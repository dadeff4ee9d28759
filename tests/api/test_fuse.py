"""Fusing predictions in any format into one prediction folder; what cannot be fused, and the messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import cellwright as cw
from cellwright.api import fuse as module
from cellwright.api.fuse import FusePlan, fuse, run
from cellwright.api.read import read_dataset
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, InputError, OutputError, UsageError
from cellwright.core.files import read_json, write_bytes, write_json
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.data.synthetic import draw_field
from cellwright.prediction.fusion import FusionOptions
from cellwright.prediction.fusion import fuse as fuse_image

HW = (60, 80)
NAMES = ("field 1", "b", "empty")  # the last has no objects


class Notes:
    """A screen that records the notes."""

    quiet = True
    log_format = "text"

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def track(self, items, description, total=None):
        return items


def predicted_by(seed: int, k: int, n: int = 12) -> Instances:
    """Discs of image k, moved and scored at random by ``seed``; 0 is the ground truth."""
    if NAMES[k] == "empty":
        return Instances.empty(HW, scored=seed > 0)
    rng = np.random.default_rng([7, seed, k])
    y, x = np.mgrid[: HW[0], : HW[1]]
    labels = np.zeros(HW, np.int64)
    for i in range(n):
        cy, cx = 10 + 19 * (i // 4), 10 + 20 * (i % 4)
        moved = rng.integers(-1, 2, 2) if seed else (0, 0)
        if not seed or rng.random() < 0.85:
            labels[(y - cy - moved[0]) ** 2 + (x - cx - moved[1]) ** 2 <= 36] = i + 1
    masks, ids = MaskSet.from_label_map(labels)
    scores = rng.permutation(np.linspace(0.3, 0.95, len(masks))).astype(np.float32) if seed else None
    return Instances.from_masks(masks, ids=ids, scores=scores)


def dataset_of(images: Path, seed: int, class_names: tuple[str, ...] = ("cell",), names=NAMES) -> Dataset:
    import cv2

    samples = []
    for k, name in enumerate(NAMES):
        path = images / f"{name}.png"
        if not path.is_file():
            write_bytes(path, cv2.imencode(".png", np.full((*HW, 3), 90, np.uint8))[1].tobytes())
        samples.append(Sample(name, path, HW, Loaded(predicted_by(seed, k)), image_id=k + 1, split="val"))
    return Dataset(tuple(sample for sample in samples if sample.id in names), class_names, images)


def write(dataset: Dataset, name: str, out: Path) -> Path:
    target = out / "results.json" if name == "coco_results" else out
    to = FORMATS[name].write
    assert to(dataset, target, WriteOptions())
    return target


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``truth`` and the predictions of two tools (``a``, ``b``) as COCO folders."""
    root = tmp_path_factory.mktemp("fusing")
    for seed, name in enumerate(("truth", "a", "b")):
        write(dataset_of(root / "images", seed), "coco", root / name)
    return root


def job(out: Path, *predictions: Path, **changes: Any) -> FusePlan:
    return FusePlan(predictions, out=out, **changes)


def test_the_python_function() -> None:
    a, b = predicted_by(1, 0), predicted_by(2, 0)
    both = cw.fuse([a, b], method="wbf", iou=0.5, score=0.05)
    assert both.masks == fuse_image([a, b]).masks
    assert both.ids.tolist() == list(range(1, len(both) + 1))
    by_image = fuse([[a, predicted_by(1, 1)], [b, predicted_by(2, 1)]], weights=[1, 2])
    assert len(by_image) == 2
    expected = fuse_image([a, b], FusionOptions(weights=(1, 2)))
    assert by_image[0].scores.tolist() == expected.scores.tolist()
    with pytest.raises(UsageError, match="got: 1, 2 images"):
        fuse([[a], [b, b]])
    with pytest.raises(UsageError, match="1 lists and 1 single predictions"):
        fuse([[a], b])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="no predictions to fuse"):
        fuse([])
    with pytest.raises(UsageError, match="did you mean 'wbf'"):
        fuse([a, b], method="wbff")  # type: ignore[arg-type]


def test_the_result_is_a_prediction_folder(places: Path, tmp_path: Path) -> None:
    screen = Notes()
    report = run(job(tmp_path / "both", places / "a", places / "b"), screen)
    assert report is not None
    assert report.n_images == 3
    assert report.counts.endswith("objects in 3 images")
    back = read_dataset(tmp_path / "both")
    assert [sample.id for sample in back] == list(NAMES)
    expected = fuse_image([predicted_by(1, 0), predicted_by(2, 0)])
    cells = back[0].read_instances()
    assert cells.masks == expected.masks
    np.testing.assert_array_equal(cells.scores, expected.scores)
    np.testing.assert_array_equal(cells.boxes_xyxy, expected.boxes_xyxy)
    assert not len(back.sample("empty").read_instances())
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert {"predictions.json", "summary.csv", "recipe.yaml", "contact_sheet.png"} < names
    assert {"field 1_masks.tif", "field 1_overlay.png", "empty_masks.tif"} < names
    assert tifffile.imread(tmp_path / "both" / "empty_masks.tif").max() == 0
    assert back.info["fused"]["members"] == ["a", "b"]
    assert str(tmp_path) not in (tmp_path / "both" / "predictions.json").read_text()
    assert any("not calibrated" in text and "a, b" in text for text in screen.said)
    # It is evaluated like any other, and better than one of its members.
    report = cw.evaluate(
        [sample.read_instances() for sample in back],
        [sample.read_instances() for sample in read_dataset(places / "truth")],
    )
    assert report.values["f1@0.5"] > 0.95
    written = (tmp_path / "both" / "predictions.json").stat().st_mtime_ns
    assert run(job(tmp_path / "both", places / "a", places / "b")) is not None
    assert (tmp_path / "both" / "predictions.json").stat().st_mtime_ns == written, "it was complete"
    with pytest.raises(OutputError, match="changed since: the predictions"):
        run(job(tmp_path / "both", places / "b", places / "b"))


@pytest.mark.parametrize("name", ["coco_results", "rle_csv", "label_images", "mask_folder", "geojson"])
def test_members_in_any_format(name: str, places: Path, tmp_path: Path) -> None:
    other = write(dataset_of(places / "images", 2), name, tmp_path / "other")
    screen = Notes()
    run(job(tmp_path / "both", places / "a", other), screen)
    second = predicted_by(2, 0)
    if name in ("label_images", "mask_folder"):  # formats without scores
        second = dataclasses.replace(second, scores=None)
        assert any("every object counts with score 1: other" in text for text in screen.said)
    expected = fuse_image([predicted_by(1, 0), second])
    cells = read_dataset(tmp_path / "both").sample("field 1").read_instances()
    assert cells.masks == expected.masks
    np.testing.assert_allclose(cells.scores, expected.scores, atol=1e-6)


def test_lists_with_the_dataset_they_were_made_for(places: Path, tmp_path: Path) -> None:
    lists = [write(dataset_of(places / "images", k), "coco_results", tmp_path / str(k)) for k in (1, 2)]
    with pytest.raises(UsageError, match="as `data`"):
        run(job(tmp_path / "both", *lists))
    run(job(tmp_path / "both", *lists, data=places / "truth", split="val"))
    back = read_dataset(tmp_path / "both")
    assert back[0].read_instances().masks == fuse_image([predicted_by(1, 0), predicted_by(2, 0)]).masks
    assert [sample.image_id for sample in back] == [1, 2, 3]


def test_duplicates_in_one_prediction_are_removed(places: Path, tmp_path: Path) -> None:
    run(job(tmp_path / "one", places / "a", method="mask_nms"))
    assert read_dataset(tmp_path / "one")[0].read_instances().masks == predicted_by(1, 0).by_score().masks


def test_thresholds_are_averaged_and_candidates_kept(places: Path, tmp_path: Path) -> None:
    """0.6 and 0, with weights 1 and 2: 0.2."""
    dataset = dataclasses.replace(dataset_of(places / "images", 1), info={"score_threshold": 0.6})
    strict = write(dataset, "coco", tmp_path / "strict")
    options: dict[str, Any] = {"method": "nms", "weights": (1, 2)}
    run(job(tmp_path / "both", strict, places / "b", **options))
    back = read_dataset(tmp_path / "both")
    assert back.info["score_threshold"] == pytest.approx(0.2)
    cells = back[0].read_instances()
    labels = tifffile.imread(tmp_path / "both" / "field 1_masks.tif")
    assert set(np.unique(labels)) - {0} == set(cells.ids[cells.scores >= np.float32(0.2)].tolist())
    assert (cells.scores < 0.2).any()
    run(job(tmp_path / "own", strict, places / "b", **options, threshold=0.0))
    assert read_dataset(tmp_path / "own").info["score_threshold"] == 0.0


def test_the_images_that_members_were_tuned_on_are_recorded(places: Path, tmp_path: Path) -> None:
    folders = []
    for k, digests in enumerate((["x", "y"], ["y", "z"])):
        tuned = {"split": "val", "metric": "f1@0.5", "images": digests}
        dataset = dataclasses.replace(dataset_of(places / "images", k + 1), info={"tuned_on": tuned})
        folders.append(write(dataset, "coco", tmp_path / str(k)))
    screen = Notes()
    run(job(tmp_path / "both", *folders), screen)
    tuned_on = read_dataset(tmp_path / "both").info["tuned_on"]
    assert tuned_on == {"split": "val", "metric": "f1@0.5", "images": ["x", "y", "z"]}
    assert not any("calibrated" in text for text in screen.said)


def test_overlaps_are_resolved_on_request(places: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "nms", "iou": 0.9, "class_agnostic": True}
    run(job(tmp_path / "plain", places / "a", places / "b", **options))
    run(job(tmp_path / "apart", places / "a", places / "b", **options, resolve_overlaps=True))
    plain, apart = (read_dataset(tmp_path / name)[0].read_instances() for name in ("plain", "apart"))
    assert plain.masks.areas.sum() > plain.masks.foreground().sum()
    assert apart.masks.areas.sum() == apart.masks.foreground().sum() == plain.masks.foreground().sum()


def test_predictions_without_their_images(places: Path, tmp_path: Path) -> None:
    folders = []
    for k in (1, 2):
        dataset = dataset_of(places / "images", k)
        samples = [dataclasses.replace(sample, image_path=None) for sample in dataset]
        folders.append(write(dataset.with_samples(samples), "coco", tmp_path / str(k)))
    screen = Notes()
    run(job(tmp_path / "both", *folders), screen)
    back = read_dataset(tmp_path / "both", require_images=False)
    assert [sample.image_path for sample in back] == [None, None, None]
    assert [image["file_name"] for image in read_json(tmp_path / "both" / "predictions.json")["images"]] == list(NAMES)
    assert any("3 images cannot be read" in text for text in screen.said)


def test_an_interrupted_job_is_resumed(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    calls = []

    def stop(members, options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fuse_image(members, options)

    plan = job(tmp_path / "both", places / "a", places / "b")
    monkeypatch.setattr(module, "fuse_image", stop)
    with pytest.raises(KeyboardInterrupt):
        run(plan)
    with pytest.raises(OutputError, match="unfinished predictions"):
        run(dataclasses.replace(plan, iou=0.4))
    run(plan)
    assert len(calls) == 4  # the first image was done
    run(job(tmp_path / "again", places / "a", places / "b"))
    first, second = ((tmp_path / name / "field 1_masks.tif").read_bytes() for name in ("both", "again"))
    assert first == second


# --- what cannot be fused -------------------------------------------------------------------------------------------


def test_different_classes_are_named(places: Path, tmp_path: Path) -> None:
    other = write(dataset_of(places / "images", 2, ("nucleus", "debris")), "coco", tmp_path / "other")
    with pytest.raises(UsageError) as raised:
        run(job(tmp_path / "both", places / "a", other))
    assert "got: other: nucleus, debris" in str(raised.value)
    assert "expected: cell, as in a" in str(raised.value)
    assert not (tmp_path / "both").exists()
    run(job(tmp_path / "both", places / "a", other, ignore_classes=True))
    assert read_dataset(tmp_path / "both").class_names == ("object",)


def test_classes_in_another_order_are_the_same(places: Path, tmp_path: Path) -> None:
    folders = []
    for k, names in ((1, ("a", "b")), (2, ("b", "a"))):
        dataset = dataset_of(places / "images", k, names)
        threshold = {"score_threshold": [0.2 * (1 + names.index(name)) for name in ("a", "b")]}
        folders.append(write(dataclasses.replace(dataset, info=threshold), "coco", tmp_path / f"m{k}"))
    run(job(tmp_path / "both", *folders, method="nms"))
    back = read_dataset(tmp_path / "both")
    assert back.class_names == ("a", "b")
    assert set(back[0].read_instances().class_ids) == {0, 1}  # every object has the first class of its file
    assert back.info["score_threshold"] == pytest.approx([0.2, 0.4])


def test_classes_of_formats_that_do_not_list_them(places: Path, tmp_path: Path) -> None:
    """Label images have no class names; a Kaggle table has only those of its objects."""
    nuclei = write(dataset_of(places / "images", 1, ("nucleus",)), "coco", tmp_path / "nuclei")
    labels = write(dataset_of(places / "images", 2), "label_images", tmp_path / "labels")
    run(job(tmp_path / "one", labels, nuclei))
    assert read_dataset(tmp_path / "one").class_names == ("nucleus",)
    both = write(dataset_of(places / "images", 1, ("debris", "nucleus")), "coco", tmp_path / "both_classes")
    table = write(dataset_of(places / "images", 2, ("debris", "nucleus")), "rle_csv", tmp_path / "table")
    run(job(tmp_path / "two", table, both))
    assert read_dataset(tmp_path / "two").class_names == ("debris", "nucleus")
    with pytest.raises(UsageError, match="got: labels: cell\n  expected: debris, nucleus, as in both_classes"):
        run(job(tmp_path / "three", labels, both))


def test_a_list_of_results_has_its_own_threshold(places: Path, tmp_path: Path) -> None:
    """It takes the images of another prediction, not its threshold."""
    dataset = dataclasses.replace(dataset_of(places / "images", 1), info={"score_threshold": 0.6})
    strict = write(dataset, "coco", tmp_path / "strict")
    other = write(dataset_of(places / "images", 2), "coco_results", tmp_path / "list")
    run(job(tmp_path / "both", strict, other))
    assert read_dataset(tmp_path / "both").info["score_threshold"] == pytest.approx(0.3)


def test_other_images_are_named(places: Path, tmp_path: Path) -> None:
    part = write(dataset_of(places / "images", 2, names=("b",)), "coco", tmp_path / "part")
    with pytest.raises(InputError, match="part lacks 2: field 1, empty"):
        run(job(tmp_path / "both", places / "a", part))
    with pytest.raises(InputError, match="part lacks 2: field 1, empty"):  # in any order
        run(job(tmp_path / "both", part, places / "a"))
    # Unless the images are selected.
    only = write(dataset_of(places / "images", 0, names=("b",)), "coco", tmp_path / "only")
    run(job(tmp_path / "both", places / "a", part, data=only))
    assert [sample.id for sample in read_dataset(tmp_path / "both")] == ["b"]
    with pytest.raises(UsageError, match="only a dataset has splits"):
        run(job(tmp_path / "x", places / "a", part, split="val"))


def test_another_size_is_named(places: Path, tmp_path: Path) -> None:
    dataset = dataset_of(places / "images", 2)
    small = Loaded(Instances.empty((30, 40), scored=True))
    samples = [dataclasses.replace(sample, image_hw=(30, 40), image_path=None, load=small) for sample in dataset]
    other = write(dataset.with_samples(samples), "coco", tmp_path / "other")
    with pytest.raises(InputError, match="image field 1\n  got: a: 60 x 80, other: 30 x 40"):
        run(job(tmp_path / "both", places / "a", other))


def test_boxes_alone_say_what_is_missing(places: Path, tmp_path: Path) -> None:
    path = write(dataset_of(places / "images", 2), "coco_results", tmp_path)
    entries = [{key: entry[key] for key in entry if key != "segmentation"} for entry in read_json(path)]
    path.unlink()
    write_json(tmp_path / "boxes.json", entries)
    with pytest.raises(FormatError, match="has no segmentation") as raised:
        run(job(tmp_path / "both", places / "a", tmp_path / "boxes.json"))
    assert "boxes alone are not enough" in str(raised.value)
    assert not (tmp_path / "both").exists()


def test_weights_that_do_not_fit(places: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got: 3 weights: 1, 2, 3\n  expected: 2"):
        run(job(tmp_path / "both", places / "a", places / "b", weights=(1, 2, 3)))


def test_a_folder_of_images_is_not_a_prediction(places: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images without any objects"):
        run(job(tmp_path / "both", places / "a", places / "images"))


def test_only_models_need_the_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the images as `data`"):
        run(job(tmp_path / "both", Path("classical")))


def test_a_model_predicts_on_the_images_of_the_others(tmp_path: Path) -> None:
    import cv2

    image, truth = draw_field(3, (128, 160), 10)
    write_bytes(tmp_path / "images" / "a.png", cv2.imencode(".png", image.data[:, :, ::-1])[1].tobytes())
    scored = dataclasses.replace(truth, scores=np.full(len(truth), 0.8, np.float32))
    sample = Sample("a", tmp_path / "images" / "a.png", image.image_hw, Loaded(scored))
    write(Dataset((sample,), ("nucleus",)), "coco", tmp_path / "other")
    run(job(tmp_path / "both", tmp_path / "other", Path("classical")))
    content = json.loads((tmp_path / "both" / "predictions.json").read_text())
    assert content["info"]["fused"]["members"] == ["other", "classical"]
    model = cw.load_model("classical")
    expected = fuse_image([scored, model.predict(image, score=0)])
    assert read_dataset(tmp_path / "both")[0].read_instances().masks == expected.masks
