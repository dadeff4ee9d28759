"""COCO results: pycocotools loads what is written, and reading gives the same predictions again."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import coco_results
from cellwright.data.formats.coco import Coco
from cellwright.data.formats.coco_results import CocoResults
from cellwright.data.formats.contract import ReadOptions, WriteOptions

# pycocotools was compiled for NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HW = (20, 25)


def make_dataset(*, scored: bool) -> Dataset:
    rng = np.random.default_rng(1)
    samples = []
    for k, name in enumerate(["sub/a", "b", "none"]):
        n = 0 if name == "none" else 4
        dense = np.zeros((n, *HW), bool)
        for mask in dense:
            y, x = rng.integers(0, 15, 2)
            mask[y : y + 5, x : x + 6] = rng.random((5, 6)) < 0.8
        instances = Instances.from_masks(
            MaskSet.from_dense(dense) if n else MaskSet.empty(HW),
            class_ids=rng.integers(0, 2, n),
            scores=rng.random(n) if scored else None,
        )
        samples.append(Sample(name, Path(f"/data/{name}.png"), HW, Loaded(instances), 40 + k))
    return Dataset(tuple(samples), ("a", "b"))


def save_ids(path: Path, *names: str, **changes: object) -> Path:
    entries = [{"file_name": n, "id": 100 + k, "height": HW[0], "width": HW[1]} | changes for k, n in enumerate(names)]
    path.write_text(json.dumps(entries))
    return path


def test_pycocotools_loads_the_list(tmp_path: Path) -> None:
    truth, predicted = make_dataset(scored=False), make_dataset(scored=True)
    Coco().write(truth, tmp_path, WriteOptions())
    (out,) = CocoResults().write(predicted, tmp_path / "results.json", WriteOptions())
    loaded = COCO(str(tmp_path / "dataset.json")).loadRes(str(out))
    for sample in predicted:
        instances = sample.read_instances()
        annotations = loaded.loadAnns(loaded.getAnnIds([sample.image_id]))
        assert len(annotations) == len(instances)
        for k, annotation in enumerate(annotations):
            assert isinstance(json.loads(out.read_text())[0]["segmentation"]["counts"], str)
            np.testing.assert_array_equal(loaded.annToMask(annotation), instances.masks.to_dense()[k])
            assert np.float32(annotation["score"]) == instances.scores[k]
            assert annotation["category_id"] == instances.class_ids[k] + 1


def test_reading_gives_what_was_written(tmp_path: Path) -> None:
    truth, predicted = make_dataset(scored=False), make_dataset(scored=True)
    (out,) = CocoResults().write(predicted, tmp_path / "results.json", WriteOptions())
    again = CocoResults().read(out, ReadOptions(images=truth))
    for before, after in zip(predicted, again, strict=True):
        first, second = before.read_instances(), after.read_instances()
        assert first.masks == second.masks
        np.testing.assert_array_equal(first.scores, second.scores)
        np.testing.assert_array_equal(first.class_ids, second.class_ids)
        assert after.image_path == before.image_path


def test_submission_with_image_ids_in_a_zip(tmp_path: Path) -> None:
    ids = save_ids(tmp_path / "ids.json", "none.png", "a.png")
    predicted = make_dataset(scored=True)
    (out,) = CocoResults().write(predicted, tmp_path / "answer.zip", WriteOptions(image_ids=ids))
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["answer.json"]
        entries = json.loads(archive.read("answer.json"))
    assert {entry["image_id"] for entry in entries} == {101}
    assert len(entries) == 4
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    first = out.read_bytes()
    CocoResults().write(predicted, out, WriteOptions(image_ids=ids))
    assert out.read_bytes() == first


def test_predicted_images_that_are_not_listed_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predicted = make_dataset(scored=True)
    ids = save_ids(tmp_path / "ids.json", "a.png")
    CocoResults().write(predicted, tmp_path / "r.json", WriteOptions(image_ids=ids))
    assert caplog.messages == ["ids.json: 2 predicted images are not in this list and left out, such as b"]


def test_samples_match_by_path_by_file_name_and_by_id(tmp_path: Path) -> None:
    predicted = make_dataset(scored=True)
    bare = predicted.with_samples(
        [dataclasses.replace(s, image_path=None, id=s.id.rpartition("/")[2]) for s in predicted]
    )
    for name, dataset in (("sub/a.png", predicted), ("a.png", predicted), ("a.png", bare)):
        ids = save_ids(tmp_path / "ids.json", name)
        (out,) = CocoResults().write(dataset, tmp_path / "r.json", WriteOptions(image_ids=ids))
        assert len(json.loads(out.read_text())) == 4


def test_listed_images_without_prediction_or_of_another_size(tmp_path: Path) -> None:
    ids = save_ids(tmp_path / "ids.json", "a.png", "absent.png")
    options = WriteOptions(image_ids=ids)
    with pytest.raises(InputError, match=r"1 of the 2 listed images have no prediction(.|\n)*got: absent\.png"):
        CocoResults().write(make_dataset(scored=True), tmp_path / "r.json", options)
    save_ids(ids, "a.png", height=21)
    with pytest.raises(
        InputError, match=r"differ in size(.|\n)*a\.png\n  got: prediction 20 x 25(.|\n)*expected: 21 x 25"
    ):
        CocoResults().write(make_dataset(scored=True), tmp_path / "r.json", options)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"not a list of images(.|\n)*got: dict"),
        ('[{"id": 1}]', r"entry has no file name\n  where: .*entry 1"),
        ('[{"file_name": "a.png", "id": "x"}]', r"id is not a whole number(.|\n)*got: 'x'"),
        ('[{"file_name": "a.png", "id": 1}, {"file_name": "b.png", "id": 1}]', "two entries have the same id"),
        ('[{"file_name": "a.png"', "not valid JSON"),
    ],
)
def test_malformed_image_lists(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "ids.json").write_text(content)
    with pytest.raises(FormatError, match=message):
        coco_results.read_image_ids(tmp_path / "ids.json")


def test_writing_requires_scores_and_reading_requires_the_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"requires scores\n  where: sample sub/a\n  got: ground truth"):
        CocoResults().write(make_dataset(scored=False), tmp_path / "r.json", WriteOptions())
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(UsageError, match=r"does not say which images(.|\n)*`images`"):
        CocoResults().read(tmp_path / "r.json", ReadOptions())
    with pytest.raises(UsageError, match=r"expected: a name ending in \.json or \.zip"):
        CocoResults().write(make_dataset(scored=True), tmp_path / "r", WriteOptions())


def test_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[]")
    again = CocoResults().read(tmp_path / "r.json", ReadOptions(images=make_dataset(scored=False)))
    assert [len(sample.read_instances()) for sample in again] == [0, 0, 0]
    assert all(sample.read_instances().scores is not None for sample in again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 1}, r"belongs to no image(.|\n)*got: image_id 1"),
        ({"category_id": 3}, r"unknown category(.|\n)*got: category_id 3\n  expected: one of 1, 2"),
        ({"score": None}, r"some annotations have a score(.|\n)*got: 7 scores for 8"),
    ],
)
def test_entries_that_do_not_match_the_dataset(tmp_path: Path, change: dict, message: str) -> None:
    (out,) = CocoResults().write(make_dataset(scored=True), tmp_path / "r.json", WriteOptions())
    entries = json.loads(out.read_text())
    entries[2].update(change)
    out.write_text(json.dumps(entries))
    with pytest.raises(FormatError, match=message):
        CocoResults().read(out, ReadOptions(images=make_dataset(scored=False)))


def test_a_published_list_of_ids(vrdl_root: Path) -> None:
    entries = coco_results.read_image_ids(vrdl_root / "test_img_ids.json")
    assert [number for _, number, _ in entries] == [1, 2, 3, 4, 5, 6]
    assert {hw for _, _, hw in entries} == {(1000, 1000)}
