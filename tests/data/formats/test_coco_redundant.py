"""Fields of COCO annotations that differ from the outlines: boxes, areas and ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cellwright.core.errors import FormatError
from cellwright.core.notes import Note
from cellwright.data.formats.coco import Coco
from cellwright.data.formats.coco_results import CocoResults
from cellwright.data.formats.contract import ReadOptions

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HW = (200, 300)
OPTIONS = ReadOptions(require_images=False)


def annotations(n: int = 30, *, as_rle: bool = False) -> list[dict[str, Any]]:
    """Discs with the boxes and areas that pycocotools computes, in two images."""
    rng, found = np.random.default_rng(0), []
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for k in range(n):
        centre, radius = rng.uniform((40, 40), (260, 160)), rng.uniform(5, 30)
        part = np.round(centre + radius * np.column_stack([np.cos(angles), np.sin(angles)]), 2).ravel().tolist()
        runs = coco_mask.frPyObjects([part], *HW)[0]
        segmentation = {"size": list(HW), "counts": runs["counts"].decode()} if as_rle else [part]
        box, area = coco_mask.toBbox(runs).tolist(), float(coco_mask.area(runs))
        found.append({"id": k + 1, "image_id": 1 + k % 2, "category_id": 1, "iscrowd": 0, "bbox": box, "area": area})
        found[-1]["segmentation"] = segmentation
    return found


def save(folder: Path, listed: list[dict[str, Any]], **sections: Any) -> Path:
    images = [{"id": k, "file_name": f"{k}.png", "width": HW[1], "height": HW[0]} for k in (1, 2)]
    content = {"images": images, "annotations": listed, "categories": [{"id": 1, "name": "cell"}], **sections}
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def notes_of(folder: Path, listed: list[dict[str, Any]], start: str, **sections: Any) -> list[Note]:
    notes = Coco().read(save(folder, listed, **sections), OPTIONS).notes
    return [note for note in notes if note.kind.startswith(start)]


CONVENTIONS = {
    "pixels": lambda x, y, w, h: [x, y, w, h],
    "last pixel": lambda x, y, w, h: [x, y, w - 1, h - 1],
    "plus one": lambda x, y, w, h: [x, y, w + 1, h + 1],
    "from 1": lambda x, y, w, h: [x + 1, y + 1, w, h],
    "whole": lambda x, y, w, h: [round(x), round(y), round(w), round(h)],
}


@pytest.mark.parametrize("as_rle", [False, True])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_conventions_of_rounding_are_no_difference(tmp_path: Path, convention: str, as_rle: bool) -> None:
    listed = annotations(as_rle=as_rle)
    for each in listed:
        each["bbox"] = CONVENTIONS[convention](*each["bbox"])
    notes = Coco().read(save(tmp_path, listed), OPTIONS).notes
    assert not [note for note in notes if "differs" in note.kind or "ids" in note.kind]


OTHERS = {
    "x1, y1, x2, y2": lambda x, y, w, h: [x, y, x + w, y + h],
    "centre x, centre y, width, height": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    "x, y, width, height in parts of the image": lambda x, y, w, h: [x / HW[1], y / HW[0], w / HW[1], h / HW[0]],
    "": lambda x, y, w, h: [4 * x, 4 * y, 4 * w, 4 * h],
}


@pytest.mark.parametrize("as_rle", [False, True])
@pytest.mark.parametrize("reading", OTHERS)
def test_boxes_of_another_convention_are_named(tmp_path: Path, reading: str, as_rle: bool) -> None:
    listed = annotations(as_rle=as_rle)
    expected = ", ".join(f"{value:.5g}" for value in listed[0]["bbox"])
    for each in listed:
        each["bbox"] = OTHERS[reading](*each["bbox"])
    (note,) = notes_of(tmp_path, listed, "bbox differs")
    got = ", ".join(f"{value:.5g}" for value in listed[0]["bbox"])
    assert note.where == "instances.json"
    assert "the bbox of 30 of 30 objects" in note.text
    assert "annotation id 1 of image 1.png" in note.text
    assert f"got {got}" in note.text
    assert f"expected {expected} " in note.text or not as_rle
    assert (f"they fit {reading}." in note.text) if reading else ("they fit" not in note.text)


def test_one_wrong_box_is_counted_and_shown(tmp_path: Path) -> None:
    listed = annotations()
    listed[4]["bbox"] = [0, 0, 0, 0]
    del listed[5]["bbox"]
    (note,) = notes_of(tmp_path, listed, "bbox differs")
    assert "the bbox of 1 of 29 objects" in note.text
    assert "annotation id 5 of image 1.png: got 0, 0, 0, 0, expected" in note.text


def test_boxes_and_outlines_that_are_cut_at_the_border_agree(tmp_path: Path) -> None:
    listed = annotations(2)
    listed[0] |= {"segmentation": [[-60, 10, 40, 10, 40, 50, -60, 50]], "bbox": [0, 10, 40, 40], "area": 1600}
    assert not notes_of(tmp_path, listed, "bbox differs")
    assert not notes_of(tmp_path, listed, "area differs")
    assert notes_of(tmp_path, [{**listed[0], "bbox": [20, 10, 20, 40]}], "bbox differs")


def test_areas_of_another_unit_or_of_boxes(tmp_path: Path) -> None:
    listed = annotations()
    assert not notes_of(tmp_path, listed, "area differs")
    listed[3]["area"] *= 0.325**2
    listed[7]["segmentation"] = [[50, 50, 60, 50, 150, 140, 150, 150, 140, 150, 50, 60]]
    listed[7] |= {"bbox": [50, 50, 100, 100], "area": 10000}
    (note,) = notes_of(tmp_path, listed, "area differs")
    assert "the area of 2 of 30 objects" in note.text
    assert "annotation id 4 of image 2.png" in note.text
    path = save(tmp_path, listed)
    assert Coco().read(path, OPTIONS)[1].read_instances().columns["area"][1] == np.float64(listed[3]["area"])


def test_repeated_ids_are_counted(tmp_path: Path) -> None:
    listed = annotations(6)
    assert not notes_of(tmp_path, listed, "annotation ids")
    for each, number in zip(listed, [7, 7, 8, 7, 7, 9], strict=True):
        each["id"] = number  # image 1: 7, 8, 7; image 2: 7, 7, 9
    (note,) = notes_of(tmp_path, listed, "annotation ids")
    assert "2 annotation ids cannot be kept, for example id 7 of image 2.png, which occurs twice" in note.text or (
        "2 annotation ids cannot be kept, for example id 7 of image 1.png, which occurs twice" in note.text
    )
    assert "the objects of 2 images are numbered 1, 2, 3" in note.text
    dataset = Coco().read(save(tmp_path, listed), OPTIONS)
    assert [sample.read_instances().ids.tolist() for sample in dataset] == [[1, 2, 3], [1, 2, 3]]


def test_ids_that_repeat_only_between_images_are_kept(tmp_path: Path) -> None:
    listed = annotations(6)
    for k, each in enumerate(listed):
        each["id"] = 5 + k // 2
    assert not notes_of(tmp_path, listed, "annotation ids")
    dataset = Coco().read(save(tmp_path, listed), OPTIONS)
    assert [sample.read_instances().ids.tolist() for sample in dataset] == [[5, 6, 7], [5, 6, 7]]


@pytest.mark.parametrize("number", [0, -3, "a", 1.5])
def test_ids_that_are_not_positive_whole_numbers(tmp_path: Path, number: Any) -> None:
    listed = annotations(4)
    listed[2]["id"] = number
    (note,) = notes_of(tmp_path, listed, "annotation ids")
    assert "1 annotation id cannot be kept, for example that of annotation 3 of image 1.png" in note.text
    for each in listed:
        del each["id"]
    assert not notes_of(tmp_path, listed, "annotation ids")


def test_differences_are_found_after_the_first_annotations_of_a_large_file(tmp_path: Path) -> None:
    listed = [dict(each) for each in annotations(20) for _ in range(300)]
    for k, each in enumerate(listed):
        each["id"] = k + 1
        if k >= 5000:
            each["bbox"] = OTHERS["x1, y1, x2, y2"](*each["bbox"])
    (note,) = notes_of(tmp_path, listed, "bbox differs")
    n_compared = 4096 + sum(k % 16 == 0 for k in range(4096, 6000))
    n_wrong = sum(k % 16 == 0 for k in range(5000, 6000))
    assert f"the bbox of {n_wrong} of {n_compared:,} objects" in note.text.replace(f"{n_compared}", f"{n_compared:,}")


def test_own_file_that_another_program_changed(tmp_path: Path) -> None:
    listed = annotations(4)
    for each in listed:
        each["object_id"] = 1
    sections = {"schema_version": 1, "kind": "truth"}
    assert notes_of(tmp_path, listed, "annotation ids", **sections)
    listed[1]["bbox"] = [1, 1, 1, 1]
    assert notes_of(tmp_path, listed, "bbox differs", **sections)


@pytest.mark.parametrize(("n_wrong", "noted"), [(0, False), (10, False), (20, True)])
def test_boxes_of_results_count_if_most_differ(tmp_path: Path, n_wrong: int, noted: bool) -> None:
    listed = annotations(30, as_rle=True)
    data = Coco().read(save(tmp_path, listed), OPTIONS)
    entries = [{key: each[key] for key in ("image_id", "category_id", "bbox", "segmentation")} for each in listed]
    for each in entries[:n_wrong]:
        each["bbox"] = OTHERS["x1, y1, x2, y2"](*each["bbox"])
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**each, "score": 0.5} for each in entries]))
    notes = CocoResults().read(path, ReadOptions(images=data)).notes
    found = [note for note in notes if note.kind.startswith("bbox differs")]
    assert bool(found) is noted
    assert all("of 30 objects" in note.text for note in found)


def test_results_with_coordinates_between_0_and_1_are_refused(tmp_path: Path) -> None:
    listed = annotations(4)
    data = Coco().read(save(tmp_path, listed), OPTIONS)
    for each in listed:
        each["segmentation"] = [[value / 300 for value in each["segmentation"][0]]]
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**each, "score": 0.5} for each in listed]))
    with pytest.raises(FormatError, match="between 0 and 1"):
        CocoResults().read(path, ReadOptions(images=data))


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": {"size": [200, 300]}},
        {"segmentation": {"size": [200, 300], "counts": {}}},
        {"segmentation": {"size": [[1], None], "counts": "a"}},
        {"segmentation": {"size": [0, 300], "counts": [0]}},
        {"segmentation": [[1e400, 1, 5, 1, 5, -1e400, 2, 2]]},
        {"segmentation": [["a", 1, 5, 1, 5, 9]]},
        {"segmentation": [[1, 1, 5, 1, 5, 9, 3]]},
        {"segmentation": [5, {}, "x"]},
        {"bbox": [1e400, -1e400, 1e400, 1]},
        {"bbox": {"x": 1}},
        {"bbox": [1, 2]},
        {"area": "large"},
        {"area": 10**400},
        {"id": {"a": 1}},
        {"id": 10**30},
    ],
)
@pytest.mark.filterwarnings("error")
def test_malformed_fields_are_left_to_the_decoder(tmp_path: Path, change: dict[str, Any]) -> None:
    listed = annotations(4)
    listed[1] |= change
    dataset = Coco().read(save(tmp_path, listed), OPTIONS)
    assert len(dataset[0].read_instances()) == 2
