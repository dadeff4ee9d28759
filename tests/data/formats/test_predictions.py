"""Prediction folders whose files were edited."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import roifile
import tifffile

import cellwright as cw
from cellwright.api.models import as_model
from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import ReadOptions, read_dataset, sniff
from cellwright.data.formats.predictions import CONFLICT, as_annotations, without_conflicts

HW = (40, 60)
# x0, y0, x1, y1, class, score. The last two overlap; one is a candidate below the threshold of .5.
OBJECTS = [
    (2, 2, 10, 9, 0, 0.9),
    (14, 3, 22, 12, 1, 0.8),
    (30, 20, 38, 30, 0, 0.7),
    (36, 20, 46, 28, 1, 0.6),
    (50, 30, 58, 38, 0, 0.2),
]
SAVE = ("masks", "geojson", "rois")


class Drawn:
    """Finds the same rectangles in every image."""

    def __init__(self, class_names):
        self.class_names = class_names

    def predict(self, images):
        masks = np.zeros((len(OBJECTS), *HW), bool)
        for mask, (x0, y0, x1, y1, _, _) in zip(masks, OBJECTS, strict=True):
            mask[y0:y1, x0:x1] = True
        classes = [0 if len(self.class_names) == 1 else entry[4] for entry in OBJECTS]
        cells = Instances.from_masks(MaskSet.from_dense(masks), class_ids=classes, scores=[o[5] for o in OBJECTS])
        return [cells for _ in images]


def predict(folder, class_names):
    images = folder / "images"
    images.mkdir()
    for name in ("a", "b"):
        tifffile.imwrite(images / f"{name}.tif", np.zeros(HW, np.uint8))
    model = as_model(Drawn(class_names)).with_options(score=0.5)
    cw.predict_folder(images, model=model, out=folder / "pred", save=SAVE)
    return folder


@pytest.fixture(scope="module")
def one_class(tmp_path_factory):
    return predict(tmp_path_factory.mktemp("one"), ("nucleus",))


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    return predict(tmp_path_factory.mktemp("two"), ("tumor", "stroma"))


@pytest.fixture
def folder(one_class, tmp_path):
    """A prediction folder of images a and b: 4 objects above the threshold and 1 below."""
    return shutil.copytree(one_class, tmp_path / "job") / "pred"


@pytest.fixture
def folder_two(two_classes, tmp_path):
    return shutil.copytree(two_classes, tmp_path / "job") / "pred"


def forget_what_was_written(folder):
    """As older versions wrote folders: without digests."""
    value = json.loads((folder / "predictions.json").read_text())
    del value["info"]["written"]
    (folder / "predictions.json").write_text(json.dumps(value))


# Edits of image a. `delete` removes object 1, `add` draws a new one, in each kind of file.


def edit_masks(folder, *, delete=(), add=(), **options):
    path = folder / "a_masks.tif"
    labels = tifffile.imread(path)
    labels[np.isin(labels, list(delete))] = 0
    for k, (x0, y0, x1, y1) in enumerate(add):
        labels[y0:y1, x0:x1] = labels.max() + 1 + k
    tifffile.imwrite(path, labels.astype(options.pop("dtype", np.uint32)), **options)


def edit_rois(folder, *, delete=(), add=(), **fields):
    path = folder / "a_rois.zip"
    rois = [roi for roi in roifile.roiread(path) if int(roi.name) not in delete]
    for x0, y0, x1, y1 in add:
        box = {"left": x0, "top": y0, "right": x1, "bottom": y1}
        rois.append(roifile.ImagejRoi(roitype=roifile.ROI_TYPE.RECT, name="0007-0123", **box, **fields))
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:  # neither compressed, nor with our comment
        for roi in reversed(rois):
            archive.writestr(f"{roi.name}.roi", roi.tobytes())


def edit_geojson(folder, *, delete=(), add=(), change=None):
    path = folder / "a.geojson"
    features = json.loads(path.read_text())
    features = features["features"] if isinstance(features, dict) else features
    features = [feature for feature in features if int(feature["properties"]["name"]) not in delete]
    for feature in features:
        if change and feature["properties"]["name"] in change:
            feature["properties"]["classification"] = {"name": change[feature["properties"]["name"]]}
    for x0, y0, x1, y1 in add:
        geometry = {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}
        features.append({"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}})
    path.write_text(json.dumps(features, indent=4))  # a list, without our member


def edit_json(folder, *, delete=(), add=()):
    path = folder / "predictions.json"
    value = json.loads(path.read_text())
    number = next(image["id"] for image in value["images"] if image["sample_id"] == "a")
    kept = [a for a in value["annotations"] if a["image_id"] != number or a["object_id"] not in delete]
    for k, (x0, y0, x1, y1) in enumerate(add):
        polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        new = {"id": 1000 + k, "image_id": number, "category_id": 1, "object_id": 50 + k, "score": 1.0}
        kept.append(new | {"segmentation": polygon, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0})
    value["annotations"] = kept
    path.write_text(json.dumps(value, indent=2, sort_keys=True))


EDITS = {
    "masks": (edit_masks, "a_masks.tif"),
    "rois": (edit_rois, "a_rois.zip"),
    "geojson": (edit_geojson, "a.geojson"),
    "json": (edit_json, "predictions.json"),
}
NEW = (44, 2, 54, 12)


def texts(dataset):
    return [f"{note.where}: {note.text}" for note in dataset.notes]


def test_an_unedited_folder_has_all_candidates(folder):
    assert sniff(folder).name == "predictions"
    dataset = cw.read_dataset(folder)
    assert (texts(dataset), dataset.info["score_threshold"], dataset.class_names) == ([], 0.5, ("nucleus",))
    assert [len(sample.read_instances()) for sample in dataset] == [5, 5]
    assert "written" not in dataset.info


@pytest.mark.parametrize("is_old", [False, True])
def test_saving_a_file_again_is_no_edit(is_old, folder):
    if is_old:
        forget_what_was_written(folder)
    edit_rois(folder)
    edit_geojson(folder)
    edit_json(folder)
    for options in (
        {"dtype": np.uint16},
        {"dtype": np.float32, "compression": "lzw"},
        {"dtype": np.int64, "tile": (16, 16)},
    ):
        edit_masks(folder, **options)
        dataset = cw.read_dataset(folder)
        assert texts(dataset) == []
        assert len(dataset[0].read_instances()) == 5


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("kind", EDITS)
def test_the_edited_file_is_read(kind, is_old, folder):
    if is_old:
        forget_what_was_written(folder)
    edit, name = EDITS[kind]
    edit(folder, delete={1}, add=[NEW])
    dataset = cw.read_dataset(folder)
    assert len(dataset[1].read_instances()) == 5
    if kind == "json" and not is_old:
        assert texts(dataset) == []  # it is always read unless another file was edited
    else:
        assert texts(dataset)[0] == f"a: {name} was edited, so its objects were read"
    drawn = ["a: 1 annotation beside 3 detections read as objects too"] if kind == "geojson" else []
    assert texts(dataset)[1:] == drawn
    reported = as_annotations(dataset)[0].read_instances()
    assert reported.scores is None
    x0, y0, x1, y1 = NEW
    new = [k for k in range(len(reported)) if reported.masks.boxes[k].tolist() == list(NEW)]
    assert len(new) == 1
    assert reported.masks.areas[new[0]] == (x1 - x0) * (y1 - y0)
    old = np.delete(np.arange(len(reported)), new)
    assert sorted(reported.ids[old].tolist()) == [2, 3, 4]  # the ids stay
    cells = dataset[0].read_instances()
    score_of = dict(zip(cells.ids.tolist(), cells.scores.tolist(), strict=True))
    np.testing.assert_allclose([score_of[k] for k in (2, 3, 4)], [0.8, 0.7, 0.6], atol=1e-6)
    assert score_of[int(reported.ids[new[0]])] == 1.0
    assert pickle.loads(pickle.dumps(dataset[0].load))().ids.tolist() == cells.ids.tolist()


def test_a_redrawn_object_keeps_its_score_and_a_split_one_has_a_new_part(folder):
    labels = tifffile.imread(folder / "a_masks.tif")
    labels[labels == 2] = 0
    labels[4:12, 14:23] = 2  # redrawn
    labels[20:23][labels[20:23] == 3] = 9  # the smaller part of a cut object
    tifffile.imwrite(folder / "a_masks.tif", labels)
    cells = cw.read_dataset(folder)[0].read_instances()
    assert cells.ids.tolist() == [1, 2, 3, 4, 9]
    np.testing.assert_allclose(cells.scores, [0.9, 0.8, 0.7, 0.6, 1.0], atol=1e-6)


def test_overlaps_that_a_label_image_cannot_store_are_no_edit(folder):
    areas = cw.read_instances(folder / "a_masks.tif").masks.areas
    reported = as_annotations(cw.read_dataset(folder))[0].read_instances()
    assert areas.sum() < reported.masks.areas.sum()
    edit_masks(folder, dtype=np.uint16)
    assert texts(cw.read_dataset(folder)) == []


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(EDITS, 2)))
def test_two_edited_files(first, second, folder):
    for kind, delete in ((first, {1}), (second, {1})):
        EDITS[kind][0](folder, delete=delete)
    dataset = cw.read_dataset(folder)
    assert len(texts(dataset)) == 1  # the same edit twice
    assert [len(sample.read_instances()) for sample in as_annotations(dataset)] == [3, 4]
    EDITS[second][0](folder, delete={2})
    dataset = cw.read_dataset(folder)
    (note,) = dataset.notes
    assert (note.kind, note.where) == (CONFLICT, "a")
    with pytest.raises(InputError) as caught:
        dataset[0].read_instances()
    for word in (EDITS[first][1], EDITS[second][1], f'`prefer="{first}"`', f'`prefer="{second}"`'):
        assert word in str(caught.value)
    assert len(dataset[1].read_instances()) == 5
    readable, errors = without_conflicts(dataset)
    assert ([sample.id for sample in readable], len(errors)) == (["b"], 1)
    for prefer, n in ((first, 3), (second, 2)):
        reported = as_annotations(read_dataset(folder, ReadOptions(prefer=prefer)))[0].read_instances()
        assert len(reported) == n


def test_files_that_were_not_written_or_were_deleted(folder):
    edit_masks(folder, delete={1})
    for name in ("a_rois.zip", "a.geojson"):
        (folder / name).unlink()
    assert len(as_annotations(cw.read_dataset(folder))[0].read_instances()) == 3
    (folder / "a_masks.tif").unlink()
    assert len(as_annotations(cw.read_dataset(folder))[0].read_instances()) == 4


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a_masks.tif", b"II*\0\0", "a_masks.tif"),
        ("a_rois.zip", b"PK\x05\x06", "a_rois.zip"),
        ("a.geojson", b"{", "not valid JSON"),
    ],
)
def test_a_damaged_file_fails_its_image_only(name, content, words, folder):
    (folder / name).write_bytes(content)
    dataset = cw.read_dataset(folder)
    with pytest.raises(InputError, match=words):
        dataset[0].read_instances()
    assert len(dataset[1].read_instances()) == 5


def test_a_label_image_of_another_size_fails(folder):
    tifffile.imwrite(folder / "a_masks.tif", np.ones((20, 30), np.uint8))
    with pytest.raises(InputError, match="another size"):
        cw.read_dataset(folder)[0].read_instances()


def test_a_foreground_mask_in_place_of_the_labels_fails(folder):
    labels = tifffile.imread(folder / "a_masks.tif")
    labels[30:34, 2:6] = 7
    tifffile.imwrite(folder / "a_masks.tif", (labels > 0).astype(np.uint8) * 255)
    with pytest.raises(InputError, match="no longer tells objects apart") as caught:
        cw.read_dataset(folder)[0].read_instances()
    assert "1 value in many separate parts" in str(caught.value)
    tifffile.imwrite(folder / "a_masks.tif", (labels == 2).astype(np.uint8))  # all objects but one were deleted
    assert len(cw.read_dataset(folder)[0].read_instances()) == 1
    tifffile.imwrite(folder / "a_masks.tif", np.zeros(HW, np.uint8))
    assert len(cw.read_dataset(folder)[0].read_instances()) == 0


# Classes


def classes_of(dataset, index=0):
    cells = as_annotations(dataset)[index].read_instances()
    return {int(k): dataset.class_names[c] for k, c in zip(cells.ids, cells.class_ids, strict=True)}


def test_a_label_image_takes_classes_from_the_predictions(folder_two):
    edit_masks(folder_two, delete={1})
    assert classes_of(cw.read_dataset(folder_two)) == {2: "stroma", 3: "tumor", 4: "stroma"}
    edit_masks(folder_two, add=[NEW])
    with pytest.raises(InputError, match="new object in a label image has no class") as caught:
        cw.read_dataset(folder_two)[0].read_instances()
    assert "tumor, stroma" in str(caught.value)


def test_another_class_is_an_edit(folder_two):
    edit_geojson(folder_two, change={"1": "stroma"})
    dataset = cw.read_dataset(folder_two)
    assert texts(dataset) == ["a: a.geojson was edited, so its objects were read"]
    assert classes_of(dataset) == {1: "stroma", 2: "stroma", 3: "tumor", 4: "stroma"}


def test_different_classes_in_two_files_are_a_conflict_whatever_the_label_image_says(folder_two):
    edit_masks(folder_two, delete={2})
    edit_rois(folder_two, delete={2})
    edit_geojson(folder_two, delete={2}, change={"1": "stroma"})
    dataset = cw.read_dataset(folder_two)
    assert [note.kind for note in dataset.notes] == [CONFLICT]
    dataset = read_dataset(folder_two, ReadOptions(prefer="json"))
    assert texts(dataset) == ['a: predictions.json was read, as `prefer="json"` says']
    assert classes_of(dataset)[2] == "stroma"


def test_new_classes_follow_the_others(folder_two):
    edit_geojson(folder_two, change={"1": "debris"})
    (folder_two / "b.geojson").write_text((folder_two / "a.geojson").read_text().replace("debris", "artefact"))
    dataset = cw.read_dataset(folder_two)
    assert dataset.class_names == ("tumor", "stroma", "debris", "artefact")
    assert classes_of(dataset)[1] == "debris"
    assert classes_of(dataset, 1)[1] == "artefact"
    selected = read_dataset(folder_two, ReadOptions(class_names=("artefact", "stroma")))
    assert classes_of(selected, 1) == {1: "artefact", 2: "stroma", 4: "stroma"}
    assert classes_of(selected) == {2: "stroma", 4: "stroma"}


def test_an_object_drawn_without_a_class_takes_the_only_one(folder):
    edit_rois(folder, add=[NEW])
    assert cw.read_dataset(folder).class_names == ("nucleus",)
    edit_geojson(folder, add=[NEW])
    dataset = cw.read_dataset(folder)
    assert (dataset.class_names, len(as_annotations(dataset)[0].read_instances())) == (("nucleus",), 5)


def test_the_group_of_a_drawn_roi_is_its_class(folder_two):
    edit_rois(folder_two, add=[NEW], group=2)
    dataset = cw.read_dataset(folder_two)
    assert dataset.class_names == ("tumor", "stroma")
    assert classes_of(dataset)[5] == "stroma"


def test_an_object_moved_to_a_class_with_a_higher_threshold_stays(folder_two):
    value = json.loads((folder_two / "predictions.json").read_text())
    value["info"]["score_threshold"] = [0.5, 0.55]
    (folder_two / "predictions.json").write_text(json.dumps(value))
    edit_geojson(folder_two, change={"3": "stroma"})
    assert classes_of(cw.read_dataset(folder_two))[3] == "stroma"


def test_other_datasets_are_annotations_already(folder):
    dataset = cw.read_dataset(folder / "a_rois.zip", require_images=False)
    assert as_annotations(dataset) is dataset
