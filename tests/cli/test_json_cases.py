"""`data convert` of COCO files as other tools write them: the right objects, an error with the way out, or a line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import run
from drawn_coco import AREAS, FIELD, LABELS, counts_of, document, each, outlines, pairs, save

import cellwright as cw

NAN = float("nan")


@pytest.fixture
def convert(tmp_path, capsys):
    """Converts sources; returns the exit code, what was printed, and the dataset folder."""

    def convert(*words: object) -> tuple[int, str, Path]:
        out = tmp_path / "converted"
        code = run("data", "convert", *words, "--out", out)
        printed = capsys.readouterr()
        return code, flat(printed.out + printed.err), out

    return convert


def flat(printed: str) -> str:
    """What was printed, without line breaks."""
    return " ".join(printed.split())


def areas(out: Path) -> list[list[int]]:
    return [sample.read_instances().masks.areas.tolist() for sample in cw.read_dataset(out)]


# --- what annotations look like -------------------------------------------------------------------------------------


def with_segmentations(segmentations: list[Any], **changes: Any) -> dict[str, Any]:
    content = document()
    for annotation, segmentation in zip(content["annotations"], segmentations, strict=True):
        annotation.update({"segmentation": segmentation} | changes)
    return content


def rle(**changes: Any) -> dict[str, Any]:
    runs = [{"counts": counts_of(label == LABELS), "size": [96, 128]} for label in range(1, 10)]
    return with_segmentations(runs, **changes)


def with_ids(kind: Callable[[int], Any]) -> dict[str, Any]:
    content = document()
    content["images"][0]["id"] = kind(1)
    content["categories"][0]["id"] = kind(1)
    for annotation in content["annotations"]:
        annotation.update(image_id=kind(1), category_id=kind(1))
    return content


def with_image_id(image_id: str) -> dict[str, Any]:
    content = each({"image_id": image_id})
    content["images"][0]["id"] = image_id
    return content


NULLS = {"bbox": None, "area": None, "iscrowd": None}
READ = {
    "20 polygons": document(),
    "21 uncompressed rle": rle(),
    "25 a part of two points": with_segmentations([[outline, [60, 40, 61, 41]] for outline in outlines()]),
    "25 a part of one point": with_segmentations([[outline, [60, 40]] for outline in outlines()]),
    "27 no area, bbox, iscrowd, id": each(dict.fromkeys(("area", "bbox", "iscrowd", "id"), "REMOVE")),
    "27 nulls": each(NULLS),
    "27 float ids": with_ids(float),
    "27 text ids": with_ids(str),
    "27 names as ids": with_image_id("img.png"),
    "27 names with umlauts as ids": with_image_id("Zellkörper 1"),
    "27 iscrowd as false": each({"iscrowd": False}),
    "27 iscrowd as text 0": each({"iscrowd": "0"}),
    "27 empty bbox": each({"bbox": []}),
    "29 a mapping as LIVECell": document(annotations={str(a["id"]): a for a in document()["annotations"]}),
    "68 pairs": with_segmentations([pairs(outline) for outline in outlines()]),
    "68 pairs in a list": with_segmentations([[pairs(outline)] for outline in outlines()]),
    "68 flat": with_segmentations(outlines()),
    "68 x and y": with_segmentations([[{"x": x, "y": y} for x, y in pairs(outline)] for outline in outlines()]),
    "75 area nan": each({"area": NAN}),
    "75 area infinite": each({"area": float("inf")}),
    "a comment in cp1252": json.dumps(each({"comment": "groß"})),
}


@pytest.mark.parametrize("case", READ)
def test_the_same_objects_however_they_are_written(case, convert, tmp_path):
    path = save(tmp_path, READ[case])
    if case == "a comment in cp1252":
        path.write_bytes(json.dumps(each({"comment": "groß"}), ensure_ascii=False).encode("cp1252"))
    code, printed, out = convert(path)
    assert code == 0, printed
    np.testing.assert_array_equal(cw.read_dataset(out)[0].read_instances().to_label_map(), LABELS)


def crowd_of_cvat(share: int) -> dict[str, Any]:
    """The first ``share`` objects as RLE with iscrowd, the others as polygons, all with CVAT's attributes."""
    content, runs = document(), rle()
    for k, annotation in enumerate(content["annotations"]):
        annotation["attributes"] = {"occluded": False}
        if k < share:
            annotation.update(segmentation=runs["annotations"][k]["segmentation"], iscrowd=1)
    return content


def some(change: dict[str, Any], n: int = 2) -> dict[str, Any]:
    content = document()
    for annotation in content["annotations"][:n]:
        annotation.update(change)
    return content


def with_scores() -> dict[str, Any]:
    return each({"score": 0.9})


RECTANGLES = [[[5 * k, 5, 5 * k + 4, 5, 5 * k + 4, 12, 5 * k, 12]] for k in range(9)]
GROUPING = [{"id": 0, "name": "cells-ab", "supercategory": "none"}, {"id": 1, "name": "n", "supercategory": "cells-ab"}]
SAID = {
    "every RLE is a crowd": (rle(iscrowd=1), 9, 0, "iscrowd is 1 for every RLE object, as older versions of CVAT"),
    "every polygon is a crowd": (each({"iscrowd": "1"}), 9, 0, "iscrowd is 1 for every object"),
    "every RLE of CVAT is a crowd": (crowd_of_cvat(3), 9, 0, "iscrowd is 1 for every RLE object"),
    "true crowds": (some({"iscrowd": 1}), 9, 2, "2 of 9 objects are crowd regions"),
    "crowds as text": (some({"iscrowd": "1"}), 9, 2, "2 of 9 objects are crowd regions"),
    "24 some boxes only": (some({"segmentation": []}), 7, 0, "2 of 9 objects have a box but no outline"),
    "24 null outlines": (some({"segmentation": None}), 7, 0, "2 of 9 objects have a box but no outline"),
    "25 only two points": (some({"segmentation": [[1, 2, 3, 4]]}), 7, 0, "2 of 9 objects have a box but no outline"),
    "67 some empty": (some({"segmentation": [], "bbox": []}), 7, 0, "2 annotations with neither outline nor box"),
    "22 a grouping category": (document(categories=GROUPING), 9, 0, "category cells-ab was skipped"),
    "27 scores": (with_scores(), 9, 0, "the objects have scores and were read as predictions"),
    "boxes as outlines": (with_segmentations(RECTANGLES), 9, 0, "all 9 outlines are upright rectangles"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_was_assumed_or_left_out_is_said(case, convert, tmp_path):
    content, n_objects, n_ignored, said = SAID[case]
    code, printed, out = convert(save(tmp_path, content))
    assert code == 0, printed
    assert said in printed
    dataset = cw.read_dataset(out)
    instances = dataset[0].read_instances()
    assert (len(instances), int(instances.ignore.sum())) == (n_objects, n_ignored)
    assert len(dataset.class_names) == 1


def swapped() -> dict[str, Any]:
    content = document()
    content["images"][0].update(width=96, height=128)
    return content


def normalised() -> dict[str, Any]:
    scaled = [[[value / (96 if k % 2 else 128) for k, value in enumerate(outline)]] for outline in outlines()]
    return with_segmentations(scaled)


REFUSED = {
    "24 boxes only": (each({"segmentation": []}), "boxes without outlines", "9 boxes", "export masks or polygons"),
    "24 boxes only, no key": (each({"segmentation": "REMOVE"}), "boxes without outlines", "9 boxes", "export masks"),
    "28 swapped": (swapped(), "height and width are swapped", "128 x 96 and 96 x 128", "img.png"),
    "32 normalised": (normalised(), "between 0 and 1", "9 outlines", "multiply x by the width"),
    "75 a vertex is nan": (
        some({"segmentation": [[NAN, 27.0, 18.5, 27.0, 17.0, 26.5]]}, 1),
        "invalid polygon", "annotation id 1 of image id 1", "finite numbers",
    ),
    "iscrowd 7": (some({"iscrowd": 7}), "iscrowd is neither 0 nor 1", "annotation id 1", "got: 7"),
    "name as category": (each({"category_id": "nucleus"}), "category_id is not a whole number", "nucleus"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_way_out(case, convert, tmp_path):
    content, *said = REFUSED[case]
    code, printed, out = convert(save(tmp_path, content))
    assert code == 2, printed
    assert all(text in printed for text in said), printed
    assert not out.exists()


def test_28_another_size_is_refused(convert, tmp_path):
    content = document()
    content["images"][0].update(width=256, height=192)
    code, printed, _ = convert(save(tmp_path, content))
    assert code == 2
    assert "192 x 256 and 96 x 128" in printed


def test_32_outlines_are_cut_at_the_border(convert, tmp_path):
    content = document()
    content["annotations"][0]["segmentation"] = [[-5, -5, 30, -5, 30, 30, -5, 30]]
    code, _, out = convert(save(tmp_path, content))
    assert code == 0
    assert areas(out)[0][0] == 30 * 30


def test_69_overlapping_parts_are_a_union(convert, tmp_path):
    content = document()
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0]["segmentation"] = [
        [10, 10, 30, 10, 30, 30, 10, 30],
        [20, 20, 40, 20, 40, 40, 20, 40],
    ]
    code, _, out = convert(save(tmp_path, content))
    assert code == 0
    assert areas(out) == [[20 * 20 + 20 * 20 - 10 * 10]]


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be with mark", "gzip", "gzip and utf-16"])
def test_encodings_and_compression(encoding, convert, tmp_path):
    text = json.dumps(document(categories=[{"id": 1, "name": "Zellkörper"}]), ensure_ascii=False)
    path = save(tmp_path, "", "img.json.gz" if "gzip" in encoding else "img.json")
    if "be" in encoding:
        path.write_bytes(b"\xfe\xff" + text.encode("utf-16-be"))
    elif "gzip" in encoding:
        path.write_bytes(gzip.compress(text.encode("utf-16" if "16" in encoding else "utf-8")))
    else:
        path.write_bytes(text.encode(encoding))
    code, printed, out = convert(path)
    assert code == 0, printed
    dataset = cw.read_dataset(out)
    assert dataset.class_names == ("Zellkörper",)
    np.testing.assert_array_equal(dataset[0].read_instances().to_label_map(), LABELS)


def test_74_a_class_name_in_cp1252_is_refused(convert, tmp_path):
    text = json.dumps(document(categories=[{"id": 1, "name": "Zellkörper"}]), ensure_ascii=False)
    path = save(tmp_path, "")
    path.write_bytes(text.encode("cp1252"))
    code, printed, _ = convert(path)
    assert code == 2
    assert "not UTF-8" in printed
    assert "Zellkörper" in printed


def test_a_damaged_gzip_file_is_refused(convert, tmp_path):
    path = save(tmp_path, "", "img.json.gz")
    path.write_bytes(gzip.compress(json.dumps(document()).encode())[:-40])
    code, printed, _ = convert("--format", "coco", path)
    assert code == 2
    assert "gzip file is damaged" in printed


# --- layouts and images ---------------------------------------------------------------------------------------------


def named(file_name: str) -> dict[str, Any]:
    content = document()
    content["images"][0]["file_name"] = file_name
    return content


LAYOUTS = {
    "20 CVAT": ("annotations/instances_default.json", "img.png", "images/default/img.png"),
    "20 Datumaro": ("annotations/instances_train.json", "img.png", "images/train/img.png"),
    "COCO": ("annotations/instances_train2017.json", "img.png", "train2017/img.png"),
    "23 Label Studio on Windows": ("result.json", r"images\img.png", "images/img.png"),
    "23 Label Studio's uploads": ("result.json", r"..\..\label-studio\media\upload\4\img.png", "images/img.png"),
    "Label Studio's local files": ("result.json", "/data/local-files/?d=plate/img.png", "images/img.png"),
    "an absolute path": ("instances.json", r"C:\Users\me\Desktop\img.png", "pictures/img.png"),
    "29 LIVECell": ("livecell.json", "img.png", "livecell_train_val_images/BV2/img.png"),
    "30 decomposed": ("img.json", "Zellkörper.png", unicodedata.normalize("NFD", "Zellkörper.png")),
    "30 composed": ("img.json", unicodedata.normalize("NFD", "Zellkörper.png"), "Zellkörper.png"),
    "another case": ("img.json", "IMG.PNG", "img.png"),
    "images beside annotations": ("annotations/img.json", "img.png", "pictures/day 1/img.png"),
}


@pytest.mark.parametrize("source", ["file", "folder"])
@pytest.mark.parametrize("case", LAYOUTS)
def test_images_are_found(case, source, convert, tmp_path):
    json_name, file_name, image = LAYOUTS[case]
    root = tmp_path / "export"
    path = save(root, named(file_name), json_name, image)
    code, printed, out = convert(path if source == "file" else root)
    assert code == 0, printed
    (sample,) = cw.read_dataset(out)
    assert sample.image_path is not None
    assert sample.image_path.samefile(root / image)
    assert len(sample.read_instances()) == 9


def test_22b_splits_of_folders_are_kept(convert, tmp_path):
    for folder in ("train", "valid", "test"):
        content = named(f"{folder}.png")
        content["images"][0]["id"] = 0
        for annotation in content["annotations"]:
            annotation["image_id"] = 0
        save(tmp_path / "export", content, f"{folder}/_annotations.coco.json", f"{folder}/{folder}.png")
    code, printed, out = convert(tmp_path / "export")
    assert code == 0, printed
    samples = {sample.id: sample for sample in cw.read_dataset(out)}
    assert {name: sample.split for name, sample in samples.items()} == {
        "train": "train",
        "valid": "val",
        "test": "test",
    }
    assert [sum(map(len, areas(out)))] == [27]


def test_splits_of_file_names_equal_image_names_and_a_split_without_annotations(convert, tmp_path):
    root = tmp_path / "contest"
    for split in ("train", "val"):
        save(root, document(), f"annotations/instances_{split}.json", f"images/{split}/img.png")
    save(root, document(annotations=[]), "annotations/test.json", "images/test/img.png")
    code, printed, out = convert(root)
    assert code == 0, printed
    assert [(sample.id, sample.split) for sample in cw.read_dataset(out)] == [
        ("train/img", "train"),
        ("val/img", "val"),
    ]
    assert "annotations/test.json was skipped" in printed
    for sample in cw.read_dataset(out):
        assert sample.image_path is not None
        assert sample.image_path.parent.name == sample.split


def test_several_folders_as_sources_are_splits(convert, tmp_path):
    for folder in ("train", "val"):
        save(tmp_path, named(f"{folder}.png"), f"{folder}/_annotations.coco.json", f"{folder}/{folder}.png")
    code, printed, out = convert(tmp_path / "train", tmp_path / "val")
    assert code == 0, printed
    assert cw.read_dataset(out).splits == ("train", "val")


def test_several_files_that_are_no_splits_are_refused(convert, tmp_path):
    save(tmp_path / "in", document(), "first.json")
    save(tmp_path / "in", document(), "second.json")
    code, printed, _ = convert(tmp_path / "in")
    assert code == 2
    assert "first.json, second.json" in printed
    assert "give the path of one of them" in printed


def two_images(*names: str) -> dict[str, Any]:
    content = document()
    content["images"] = [{"id": k + 1, "file_name": name, "width": 128, "height": 96} for k, name in enumerate(names)]
    content["annotations"] += [{**annotation, "image_id": 2} for annotation in content["annotations"]]
    return content


def test_26_equal_names_in_two_folders(convert, tmp_path):
    path = save(tmp_path, two_images("A/img.png", "B/img.png"), image="A/img.png")
    save(tmp_path, "", "B/empty", "B/img.png")
    code, _, out = convert(path)
    assert code == 0
    assert [sample.id for sample in cw.read_dataset(out)] == ["A/img", "B/img"]
    save(tmp_path, two_images("img.png", "img.png"))
    (tmp_path / "img.png").unlink()
    code, printed, _ = convert("--overwrite", path)
    assert code == 2
    assert "A/img.png" in printed
    assert "B/img.png" in printed


def test_26_two_records_of_one_file_are_refused(convert, tmp_path):
    code, printed, _ = convert(save(tmp_path, two_images("img.png", "./img.png")))
    assert code == 2
    assert "image id 1 (img.png) and image id 2 (./img.png)" in printed


def test_a_missing_image_names_what_is_similar(convert, tmp_path):
    code, printed, _ = convert(save(tmp_path, named("imq.png")))
    assert code == 2
    assert "did you mean img.png for imq.png?" in printed
    assert "--images" in printed
    code, printed, _ = convert(save(tmp_path, named("img.jpg")))
    assert "did you mean img.png for img.jpg?" in printed


@pytest.mark.parametrize("links", ["to the images", "in a circle"])
def test_linked_folders_are_followed(links, convert, tmp_path):
    path = save(tmp_path / "in", document(), "annotations.json", None)
    save(tmp_path / "elsewhere", "", "empty", "img.png")
    (tmp_path / "in" / "pictures").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    if links == "in a circle":
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in", target_is_directory=True)
        (tmp_path / "in" / "up").symlink_to(tmp_path, target_is_directory=True)
    code, printed, out = convert(path)
    assert code == 0, printed
    assert areas(out) == [AREAS]


# --- images given by the user ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["folder", "folder above", "file", "dataset"])
def test_08_images_elsewhere_are_given(given, convert, tmp_path):
    path = save(tmp_path / "annotations", document(), "ann.json", None)
    save(tmp_path / "pictures", "", "empty", "plate 1/img.png")
    folder = tmp_path / "pictures" / "plate 1"
    images: Path = {"folder": folder, "folder above": folder.parent, "file": folder / "img.png"}.get(given, folder)
    if given == "dataset":
        images = tmp_path / "images only"
        assert run("data", "convert", folder, "--format", "image_folder", "--no-objects", "--out", images) == 0
    code, printed, out = convert(path, "--images", images)
    assert code == 0, printed
    image_path = cw.read_dataset(out)[0].image_path
    assert image_path is not None
    assert image_path.samefile(folder / "img.png")
    assert areas(out) == [AREAS]


def test_08_a_dataset_whose_images_moved(convert, tmp_path):
    code, _, out = convert(save(tmp_path / "in", document()))
    assert code == 0
    (tmp_path / "in").rename(tmp_path / "moved")
    code = run("data", "convert", out, "--out", tmp_path / "again")
    assert code == 2
    code = run("data", "convert", out, "--images", tmp_path / "moved", "--out", tmp_path / "again")
    assert code == 0
    assert areas(tmp_path / "again") == [AREAS]
    assert cw.read_dataset(tmp_path / "again")[0].image_path is not None


def test_an_image_and_its_annotation_as_two_sources(convert, tmp_path):
    save(tmp_path, "", "empty", "photo.png")
    shutil.copy(FIELD / "labels.tif", tmp_path / "photo_labels.tif")
    shutil.copy(FIELD / "labels.tif", tmp_path / "other name_masks.tif")
    code, printed, out = convert(tmp_path / "photo.png", tmp_path / "photo_labels.tif")
    assert code == 0, printed
    assert areas(out) == [AREAS]
    code, printed, out = convert("--overwrite", tmp_path / "photo.png", tmp_path / "other name_masks.tif")
    assert code == 0, printed
    assert areas(out) == [AREAS]
    assert "paired with photo.png, the only image, although their names differ" in printed


def test_65_ome_tif_is_one_suffix(convert, tmp_path):
    save(tmp_path, "", "empty", "img.png")
    pixels = cw.read_image(tmp_path / "img.png").data
    (tmp_path / "img.png").unlink()
    import tifffile

    for name, labels in (("lab", "slide_masks.tif"), ("cp", "slide.ome_cp_masks.tif")):
        folder = tmp_path / name
        folder.mkdir()
        tifffile.imwrite(folder / "slide.ome.tif", pixels[:, :, 0])
        shutil.copy(FIELD / "labels.tif", folder / labels)
        code, printed, out = convert("--overwrite", folder)
        assert code == 0, printed
        assert [sample.id for sample in cw.read_dataset(out)] == ["slide"]
        assert areas(out) == [AREAS]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_walk_lists_every_folder_once(tmp_path):
    from cellwright.core.files import walk

    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x").touch()
    (tmp_path / "0 link").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "deep" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._x").touch()
    assert [file.relative_to(tmp_path).as_posix() for file in walk(tmp_path)] == ["a/deep/x"]


# --- labelme and YOLO -----------------------------------------------------------------------------------------------


def shapes(image: str) -> dict[str, Any]:
    """The file of labelme for the field."""
    drawn = [{"label": "n", "points": pairs(outline), "shape_type": "polygon"} for outline in outlines()]
    return {"shapes": drawn, "imagePath": image, "imageData": None, "imageHeight": 96, "imageWidth": 128}


def test_49_labelme(convert, tmp_path):
    save(tmp_path / "in", shapes("img.png"))
    code, printed, out = convert(tmp_path / "in")
    assert code == 0, printed
    assert cw.read_dataset(out).class_names == ("n",)
    np.testing.assert_array_equal(cw.read_dataset(out)[0].read_instances().to_label_map(), LABELS)


@pytest.mark.parametrize("source", [".", "data.yaml"])
def test_49_yolo_and_back(source, convert, tmp_path):
    root = tmp_path / "in"
    scale = np.tile([1 / 128, 1 / 96], 200)
    lines = [" ".join(["0", *(f"{v:.5f}" for v in np.array(o) * scale[: len(o)])]) for o in outlines()]
    for split in ("train", "val"):
        save(root, "\n".join(lines), f"labels/{split}/{split}1.txt", f"images/{split}/{split}1.png")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames:\n  0: nucleus\n")
    code, printed, out = convert(root / source)
    assert code == 0, printed
    dataset = cw.read_dataset(out)
    assert [(sample.id, sample.split) for sample in dataset] == [("train1", "train"), ("val1", "val")]
    assert dataset.class_names == ("nucleus",)
    np.testing.assert_array_equal(dataset[1].read_instances().to_label_map(), LABELS)
    assert run("export", out, "--to", "yolo_seg", "--out", tmp_path / "yolo") == 0
    code, printed, again = convert("--overwrite", tmp_path / "yolo", "--images", root / "images")
    assert code == 0, printed
    for sample in cw.read_dataset(again):
        np.testing.assert_array_equal(sample.read_instances().to_label_map(), LABELS)


def test_objects_without_a_pixel_are_left_out_with_a_count(convert, tmp_path):
    speck = [[3.1, 3.1, 3.3, 3.1, 3.3, 3.3]]
    code, printed, out = convert(save(tmp_path, some({"segmentation": speck})))
    assert code == 0, printed
    assert areas(out) == [AREAS[2:]]
    assert "skipped 2 objects without a pixel" in printed
    code, printed, _ = convert("--overwrite", save(tmp_path, each({"segmentation": speck})))
    assert code == 2
    assert "no image of this source has an object" in printed


# --- what is passed over --------------------------------------------------------------------------------------------


def test_51_files_that_are_not_read_are_counted(convert, tmp_path, capsys):
    save(tmp_path / "in", "", "notes.txt", "a.png")
    for name in ("b.czi", "c.lif", "d.nd2", "e.qptiff", "f.heic"):
        save(tmp_path / "in", "x", name, None)
    shutil.copy(FIELD / "img.png", tmp_path / "in" / "my_overlay.png")
    said = "6 files were not read: 1 .czi, 1 .heic, 1 .lif, 1 .nd2, 1 .qptiff, 1 named like an output of cellwright"
    out = tmp_path / "predictions"
    assert run("predict", tmp_path / "in", "--model", "classical", "--out", out, "--dry-run") == 0
    assert said in flat(capsys.readouterr().err)
    code, printed, _ = convert(tmp_path / "in", "--no-objects")
    assert code == 0
    assert said in printed
    save(tmp_path / "in", shapes("a.png"), "a.json", "a.png")
    for verb in ("convert", "info", "check"):
        words = ("--out", tmp_path / "again") if verb == "convert" else ()
        run("data", verb, tmp_path / "in", *words)
        printed = capsys.readouterr()
        assert "5 files were not read: 1 .czi" in flat(printed.out + printed.err), verb


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_50_images_without_annotation_are_counted(kind, convert, tmp_path):
    save(tmp_path / "in", document() if kind == "coco" else shapes("img.png"))
    for k in range(4):
        shutil.copy(FIELD / "img.png", tmp_path / "in" / f"x{k}.png")
    code, printed, out = convert(tmp_path / "in")
    assert code == 0, printed
    assert len(cw.read_dataset(out)) == 1
    assert "4 images next to annotated ones have no annotation and were skipped, such as x0.png" in printed


def test_other_annotations_in_a_folder_are_named(convert, tmp_path):
    save(tmp_path / "in", document())
    (tmp_path / "in" / "train.csv").write_text("ImageId,EncodedPixels\nimg,1 2\n")
    code, printed, out = convert(tmp_path / "in", "--format", "coco")
    assert code == 0, printed
    assert "were read as coco; other annotations in the folder were not: train.csv (dsb2018_csv)" in printed
    assert areas(out) == [AREAS]


def test_read_dataset_takes_images(tmp_path):
    path = save(tmp_path / "annotations", document(), "ann.json", None)
    save(tmp_path / "pictures", "", "empty", "img.png")
    for images in (tmp_path / "pictures", str(tmp_path / "pictures" / "img.png")):
        (sample,) = cw.read_dataset(path, images=images)
        assert sample.image_path == tmp_path / "pictures" / "img.png"
