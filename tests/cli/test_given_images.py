"""Which image belongs to an annotation: `--images` comes first, equal names in several folders, the only image."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.core.errors import FormatError, InputError
from cellwright.data.formats import ReadOptions, get_format, read_dataset
from cellwright.data.formats.contract import WriteOptions

LABELS = np.zeros((40, 60), np.uint16)
LABELS[5:15, 5:20], LABELS[20:35, 30:45] = 1, 2


def save_image(path: Path, value: int = 9, hw: tuple[int, int] = (40, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.full(hw, value, np.uint8)))
    return path


def save_labels(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, LABELS)
    return path


def runs(label: int) -> str:
    flat = np.concatenate([[0], (label == LABELS).ravel(order="F").astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) > 0), np.flatnonzero(np.diff(flat) < 0)
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(starts, ends, strict=True))


def table(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name},{runs(label)}\n" for name in names for label in (1, 2)]
    (folder / "train.csv").write_text("ImageId,EncodedPixels\n" + "".join(lines))
    return folder / "train.csv"


def image_of(source: Path, images: Path) -> Path | None:
    return read_dataset(source, ReadOptions(images=images))[0].image_path


# --- --images comes first -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["a_masks.tif", "../masks/a.tif"])
def test_label_images_belong_to_the_given_images_and_not_to_those_beside_them(tmp_path: Path, labels: str) -> None:
    save_image(tmp_path / "in/images/a.png")
    save_labels((tmp_path / "in/images" / labels).resolve())
    assert image_of(tmp_path / "in", save_image(tmp_path / "new/a.png").parent) == tmp_path / "new/a.png"


def test_yolo_labels_belong_to_the_given_images(tmp_path: Path) -> None:
    save_image(tmp_path / "in/images/train/a.png")
    (tmp_path / "in/labels/train").mkdir(parents=True)
    (tmp_path / "in/labels/train/a.txt").write_text("0 .1 .1 .5 .2 .2 .7\n")
    assert image_of(tmp_path / "in", save_image(tmp_path / "new/a.png").parent) == tmp_path / "new/a.png"


def test_class_masks_without_an_image_find_it_by_the_name_of_their_folder(tmp_path: Path) -> None:
    save_labels(tmp_path / "in/a/class1.tif")
    save_labels(tmp_path / "in/s1/a/class1.tif")
    save_image(tmp_path / "new/s1/a.png")
    save_image(tmp_path / "new/a.png")
    data = read_dataset(tmp_path / "in", ReadOptions(images=tmp_path / "new"))
    assert {sample.id: sample.image_path for sample in data} == {
        "a": tmp_path / "new/a.png",
        "s1/a": tmp_path / "new/s1/a.png",
    }
    with pytest.raises(InputError, match="a folder of class masks has no image") as caught:
        read_dataset(tmp_path / "in", ReadOptions(images=tmp_path / "in"))
    assert "images" in str(caught.value.expected)


def test_measure_uses_the_one_image_that_is_given_whatever_it_is_called(tmp_path: Path) -> None:
    labels, _ = save_labels(tmp_path / "in/a_masks.tif"), save_image(tmp_path / "in/a.png", 9)
    given, small = save_image(tmp_path / "other.png", 77), save_image(tmp_path / "small.png", 1, (3, 3))
    assert run("measure", labels, "--images", given, "--out", tmp_path / "a.csv") == 0
    assert [line.split(",")[0] for line in (tmp_path / "a.csv").read_text().splitlines()[1:]] == ["a", "a"]
    assert "77" in (tmp_path / "a.csv").read_text().splitlines()[1].split(",")
    assert run("measure", labels, "--images", small, "--out", tmp_path / "b.csv") == 2


def test_one_image_for_several_annotations_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        save_labels(tmp_path / f"in/{name}_masks.tif")
        save_image(tmp_path / f"in/{name}.png")
    with pytest.raises(InputError, match="one image was given for several annotations"):
        read_dataset(tmp_path / "in", ReadOptions(images=save_image(tmp_path / "other.png")))


def test_an_image_that_is_not_among_the_given_ones_is_noted(tmp_path: Path) -> None:
    for name in "ab":
        save_labels(tmp_path / f"in/{name}_masks.tif")
        save_image(tmp_path / f"in/{name}.png")
    save_image(tmp_path / "new/c.png")
    data = read_dataset(tmp_path / "in", ReadOptions(images=save_image(tmp_path / "new/a.png").parent))
    texts = [note.text for note in data.notes]
    assert texts == [f"its image is not among those of `images`; {tmp_path / 'in/b.png'} was read"]


def test_class_masks_beside_an_image_belong_to_the_given_one(tmp_path: Path) -> None:
    save_labels(tmp_path / "in/a/class1.tif")
    own, given = save_image(tmp_path / "in/a/image.png"), save_image(tmp_path / "new/a.png")
    assert image_of(tmp_path / "in", given.parent) == given
    assert image_of(tmp_path / "in", save_image(tmp_path / "others/b.png").parent) == own


@pytest.mark.parametrize("name", ["class_masks", "mask_folder", "npy_stacks"])
def test_a_format_that_uses_its_own_image_says_so(tmp_path: Path, name: str) -> None:
    source = tmp_path / "in"
    if name == "npy_stacks":
        source.mkdir()
        np.save(source / "images.npy", np.full((1, 40, 60, 3), 9, np.uint8))
        labels = np.stack([LABELS, (LABELS > 0).astype(np.uint16)], axis=-1)
        np.save(source / "labels.npy", labels[None])
    else:
        save_image(source / ("a/image.png" if name == "class_masks" else "a/images/a.png"))
        save_labels(source / ("a/class1.tif" if name == "class_masks" else "a/masks/1.tif"))
    others = save_image(tmp_path / "new/b.png").parent
    kind = "the image is not among those of `images`; the one that belongs to the annotation was read"
    data = read_dataset(source, ReadOptions(images=others), format=name)
    assert [note.kind for note in data.notes].count(kind) == 1
    assert kind not in [note.kind for note in read_dataset(source, ReadOptions(), format=name).notes]


# --- equal names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco", "class_masks", "label_images", "cellpose", "rle_csv", "yolo_seg", "geojson"])
def test_images_of_equal_names_in_several_folders_are_matched_by_place(tmp_path: Path, name: str) -> None:
    for place in ("a.png", "s1/a.png", "s2/a.png"):
        save_image(tmp_path / "images" / place)
        save_labels(tmp_path / "masks" / place.replace(".png", ".tif"))
    truth = read_dataset(tmp_path / "masks", ReadOptions(images=tmp_path / "images"))
    places = {"a": "a.png", "s1/a": "s1/a.png", "s2/a": "s2/a.png"}
    expected = {sample_id: tmp_path / "images" / place for sample_id, place in places.items()}
    assert {sample.id: sample.image_path for sample in truth} == expected
    out = tmp_path / ("x.csv" if name == "rle_csv" else "x")
    get_format(name).write(truth, out, WriteOptions())
    again = read_dataset(out, ReadOptions(images=tmp_path / "images"))
    assert {sample.id: sample.image_path for sample in again} == expected
    known = read_dataset(out, ReadOptions(images=truth, require_images=False))
    assert {sample.id: sample.image_path.resolve() for sample in known if sample.image_path is not None} == expected


def test_the_remedy_for_two_images_of_one_stem_is_a_name_that_is_found(tmp_path: Path) -> None:
    save_labels(tmp_path / "masks/a_masks.tif")
    save_image(tmp_path / "images/a.png")
    tifffile.imwrite(tmp_path / "images/a.tif", LABELS * 20)
    with pytest.raises(InputError, match="2 images match one annotation") as caught:
        image_of(tmp_path / "masks", tmp_path / "images")
    assert "such as a.png_masks.tif" in str(caught.value.remedy)
    (tmp_path / "masks/a_masks.tif").rename(tmp_path / "masks/a.png_masks.tif")
    assert image_of(tmp_path / "masks", tmp_path / "images") == tmp_path / "images/a.png"


# --- the only image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("x", "y"), ("a", "y"), ("y", "a")])
def test_a_table_of_several_images_is_not_paired_with_the_only_image(tmp_path: Path, names: tuple[str, ...]) -> None:
    save_image(tmp_path / "a.png")
    with pytest.raises(InputError) as caught:
        read_dataset(table(tmp_path, *names))
    assert f"{'x' if 'x' in names else 'y'}.tif" in str(caught.value.expected) or "y.tif" in str(caught.value.expected)
    assert read_dataset(table(tmp_path, "y"))[0].image_path == tmp_path / "a.png"


# --- labels in planes -----------------------------------------------------------------------------------------------


def test_labels_of_three_planes_are_not_colours(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    planes = np.stack([LABELS, np.roll(LABELS, 3, 1), LABELS * 0])
    tifffile.imwrite(tmp_path / "a_masks.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(FormatError, match="not a label image") as caught:
        read_dataset(tmp_path)
    assert "3 planes that differ" in str(caught.value.got)
    tifffile.imwrite(tmp_path / "a_masks.tif", np.stack([LABELS] * 3), photometric="rgb", planarconfig="separate")
    assert len(read_dataset(tmp_path)[0].read_instances()) == 2


def test_planes_that_tifffile_declared_as_colours_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    stack = np.random.default_rng(0).integers(0, 999, (3, 40, 60)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="rgb", planarconfig="separate")
    (note,) = cw.read_image(tmp_path / "a.tif").notes
    assert "its 3 planes were read as R, G and B" in note.text
    assert run("predict", tmp_path / "a.tif", "--model", "classical", "--z", "all", "--out", tmp_path / "out") == 0
    assert "no image has several planes or time points" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(stack, 0, -1), photometric="rgb")
    assert cw.read_image(tmp_path / "b.tif").notes == ()
