"""Every format against the conformance suite."""

from __future__ import annotations

import logging
import pickle

import conformance as suite
import numpy as np
import pytest

from cellwright.core.dataset import Dataset
from cellwright.core.errors import CellwrightError, OutputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data import formats
from cellwright.data.formats import FORMATS, ReadOptions, WriteOptions

NAMES = sorted(suite.CARRIES)


def n_classes(name):
    return 2 if suite.CARRIES[name].classes else 1


def scored(name):
    return not suite.CARRIES[name].truth


def draw(name, seed, **kwargs):
    settings = {"overlaps": False, "scored": scored(name), "n_classes": n_classes(name)} | kwargs
    return suite.draw(seed, **settings)


def test_every_writable_format_says_what_it_carries():
    assert set(NAMES) == {name for name, one in FORMATS.items() if one.is_writable}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_known_by_its_own_name(name):
    assert FORMATS[name].name == name
    assert FORMATS[name].description


@pytest.mark.parametrize("name", NAMES)
def test_write_then_read_gives_the_same_objects(name, tmp_path):
    named = {"a": draw(name, 1), "b-2": draw(name, 2, image_hw=(70, 33)), "c": draw(name, 3, n=1)}
    dataset = suite.dataset_of(tmp_path / "in", named, n_classes(name))
    again = suite.read_back(name, suite.written(name, dataset, tmp_path), dataset)
    suite.check_round_trip(name, dataset, again)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_objects_stays(name, tmp_path):
    named = {"full": draw(name, 1), "none": Instances.empty((20, 31), scored=scored(name))}
    dataset = suite.dataset_of(tmp_path / "in", named, n_classes(name))
    suite.check_round_trip(name, dataset, suite.read_back(name, suite.written(name, dataset, tmp_path), dataset))


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_without_any_object_stays(name, tmp_path):
    dataset = suite.dataset_of(tmp_path / "in", {"none": Instances.empty((20, 31), scored=scored(name))}, 1)
    suite.check_round_trip(name, dataset, suite.read_back(name, suite.written(name, dataset, tmp_path), dataset))


@pytest.mark.parametrize("name", NAMES)
def test_names_in_any_script_with_spaces(name, tmp_path):
    named = {"Zellkern größe 1": draw(name, 4), "細胞 (2), b": draw(name, 5), "a.b c": draw(name, 6)}
    dataset = suite.dataset_of(tmp_path / "in ä", named, n_classes(name))
    suite.check_round_trip(name, dataset, suite.read_back(name, suite.written(name, dataset, tmp_path), dataset))


@pytest.mark.parametrize("name", [name for name in NAMES if suite.CARRIES[name].nested_ids])
def test_images_in_folders_keep_their_ids(name, tmp_path):
    dataset = suite.dataset_of(tmp_path / "in", {"day 1/a": draw(name, 7), "day 2/b": draw(name, 8)}, n_classes(name))
    suite.check_round_trip(name, dataset, suite.read_back(name, suite.written(name, dataset, tmp_path), dataset))


@pytest.mark.parametrize("name", [name for name in NAMES if suite.CARRIES[name].overlaps])
def test_overlaps_survive(name, tmp_path):
    dataset = suite.dataset_of(tmp_path / "in", {"a": draw(name, 9, n=25, overlaps=True)}, n_classes(name))
    suite.check_round_trip(name, dataset, suite.read_back(name, suite.written(name, dataset, tmp_path), dataset))


@pytest.mark.parametrize("name", [name for name in NAMES if not suite.CARRIES[name].overlaps])
def test_overlaps_are_resolved_by_score_and_said(name, tmp_path, caplog):
    cells = draw(name, 9, n=25, overlaps=True, scored=True, n_classes=1)
    dataset = suite.dataset_of(tmp_path / "in", {"a": cells}, 1)
    with caplog.at_level(logging.WARNING):
        again = suite.read_back(name, suite.written(name, dataset, tmp_path), dataset)
    assert "overlap" in caplog.text
    suite.check_objects(suite.CARRIES[name], dataset, suite.flattened(cells), again, again[0].read_instances())


@pytest.mark.parametrize("name", [name for name in NAMES if suite.CARRIES[name].scores])
def test_predictions_keep_their_scores(name, tmp_path):
    cells = {"a": draw(name, 10, scored=True), "none": Instances.empty((20, 31), scored=True)}
    dataset = suite.dataset_of(tmp_path / "in", cells, n_classes(name))
    suite.check_round_trip(name, dataset, suite.read_back(name, suite.written(name, dataset, tmp_path), dataset))


@pytest.mark.parametrize("name", NAMES)
def test_loading_survives_pickling(name, tmp_path):
    dataset = suite.dataset_of(tmp_path / "in", {"a": draw(name, 11)}, n_classes(name))
    again = suite.read_back(name, suite.written(name, dataset, tmp_path), dataset)
    load = pickle.loads(pickle.dumps(again[0].load))
    assert load().masks == again[0].read_instances().masks


@pytest.mark.parametrize("name", [name for name in NAMES if name != "coco_results"])
def test_the_output_is_recognised(name, tmp_path):
    dataset = suite.dataset_of(tmp_path / "in", {"a": draw(name, 12), "b": draw(name, 13)}, n_classes(name))
    assert formats.sniff(suite.written(name, dataset, tmp_path)).name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.97])
def test_a_truncated_file_is_one_clear_error(name, share, tmp_path):
    dataset = suite.dataset_of(tmp_path / "in", {"a": draw(name, 14)}, n_classes(name))
    out = suite.written(name, dataset, tmp_path)
    files = [out] if out.is_file() else [file for file in out.rglob("*") if is_annotation(name, file)]
    assert files
    before = dataset[0].read_instances()
    for file in files:
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    text = name.startswith(("rle_csv", "dsb2018"))
    try:
        again = suite.read_back(name, out, dataset)
        after = [sample.read_instances() for sample in again]
    except CellwrightError as error:
        message = str(error)
    else:
        message = "where"
        # A table that ends early at the end of a number is a shorter table, and a PNG without its last chunk is whole;
        # anything else must notice.
        assert text or suite.ordered(after[0]).masks == suite.ordered(before).masks, "a truncated file was read"
        assert sum(len(cells) for cells in after) <= len(before)
    assert "where" in message


def is_annotation(name, file):
    if name == "mask_folder":
        return file.parent.name == "masks" and file.is_file()
    if name == "coco":
        return file.name == "dataset.json"
    return file.is_file() and file.name not in ("a.png", "image.png")


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_path_is_an_input_error(name, tmp_path):
    original = Dataset((), ("cell",))
    with pytest.raises(CellwrightError) as caught:
        FORMATS[name].read(tmp_path / "absent.json", ReadOptions(images=original))
    assert "absent.json" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("coco", "coco_results", "mask_folder")])
def test_an_id_that_would_leave_the_output_is_refused(name, tmp_path):
    dataset = suite.dataset_of(tmp_path / "in", {"a": draw(name, 15)}, n_classes(name))
    sample = dataset[0]
    for bad in ("../a", "/a", "x/../../a"):
        moved = dataset.with_samples([type(sample)(bad, sample.image_path, sample.image_hw, sample.load)])
        with pytest.raises(OutputError, match="would lead outside the output folder"):
            FORMATS[name].write(moved, tmp_path / "deep" / "out", WriteOptions(copy_images=True))


@pytest.mark.parametrize("name", ["rle_csv", "dsb2018_csv", "rle_csv_submission", "geojson", "imagej_roi"])
def test_objects_without_a_pixel_are_left_out_and_said(name, tmp_path, caplog):
    cells = draw(name, 16, n=3)
    boxes = np.vstack([cells.masks.boxes, np.zeros((1, 4), np.int32)])
    crops = [*(cells.masks.crop(k) for k in range(len(cells))), np.zeros((0, 0))]
    more = Instances.from_masks(MaskSet.from_crops(boxes, crops, cells.image_hw))
    dataset = suite.dataset_of(tmp_path / "in", {"a": more}, 1)
    with caplog.at_level(logging.WARNING):
        again = suite.read_back(name, suite.written(name, dataset, tmp_path), dataset)
    assert "without a pixel" in caplog.text
    assert len(again[0].read_instances()) == len(cells)
