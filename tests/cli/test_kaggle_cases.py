"""`data convert` of Kaggle's tables as people save them, and `evaluate` of submissions with overlaps."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from drawn import run
from drawn_coco import AREAS, FIELD, LABELS

import cellwright as cw


@pytest.fixture
def convert(tmp_path, capsys):
    """Converts a table; returns the exit code, what was printed, and the dataset folder."""

    def convert(*words: object) -> tuple[int, str, Path]:
        out = tmp_path / "converted"
        code = run("data", "convert", *words, "--out", out, "--overwrite")
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split()), out

    return convert


def runs(mask: np.ndarray, order: str = "column", first: int = 1) -> str:
    flat = np.concatenate([[0], mask.ravel(order="F" if order == "column" else "C").astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) > 0), np.flatnonzero(np.diff(flat) < 0)
    return " ".join(f"{start + first} {end - start}" for start, end in zip(starts, ends, strict=True))


def rows(labels: np.ndarray = LABELS, order: str = "column", first: int = 1) -> list[str]:
    return [runs(labels == k, order, first) for k in range(1, int(labels.max()) + 1)]


def save(folder: Path, header: str, lines: list[str], name: str = "train.csv", encoding: str = "utf-8") -> Path:
    """A table and the image of the field."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FIELD / "img.png", folder / "img.png")
    data = ("\n".join([header, *lines]) + "\n").encode(encoding)
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


TABLES = {
    "plain": ("ImageId,EncodedPixels", "img,{}"),
    "semicolons": ("ImageId;EncodedPixels", "img;{}"),
    "tabs": ("ImageId\tEncodedPixels", "img\t{}"),
    "an index": (",ImageId,EncodedPixels", "0,img,{}"),
    "capitals": ("IMAGEID,ENCODEDPIXELS", "img,{}"),
    "names of files": ("ImageId,EncodedPixels", "img.png,{}"),
    "names with folders": ("file_name,EncodedPixels", "train/img.png,{}"),
    "windows": ("ImageId,EncodedPixels\r", "img,{}\r"),
    "HuBMAP": ("id,rle,data_source,img_height,img_width", "img,{},HPA,96,128"),
    "UW-Madison": ("id,class,segmentation", "img,n,{}"),
}


@pytest.mark.parametrize("case", TABLES)
def test_52_tables_as_people_save_them(case, convert, tmp_path):
    header, line = TABLES[case]
    code, printed, out = convert(save(tmp_path, header, [line.format(text) for text in rows()]))
    assert code == 0, printed
    (sample,) = cw.read_dataset(out)
    assert sample.id in ("img", "train/img")
    np.testing.assert_array_equal(sample.read_instances().to_label_map(), LABELS)
    assert "assumed to count pixels from 1" in printed


@pytest.mark.parametrize("case", ["utf-8-sig", "utf-16", "gzip"])
def test_52_encodings(case, convert, tmp_path):
    name, encoding = ("train.csv.gz", "utf-8") if case == "gzip" else ("train.csv", case)
    lines = [f"img,{text}" for text in rows()]
    code, printed, out = convert(save(tmp_path, "ImageId,EncodedPixels", lines, name, encoding))
    assert code == 0, printed
    assert cw.read_dataset(out)[0].read_instances().masks.areas.tolist() == AREAS


@pytest.mark.parametrize("nothing", ["", "-1", "nan", "None", "1 0"])
def test_52_no_object(nothing, convert, tmp_path):
    lines = [f"img,{text}" for text in rows()] + [f"empty,{nothing}"]
    path = save(tmp_path, "ImageId,EncodedPixels", lines)
    shutil.copy(FIELD / "img.png", tmp_path / "empty.png")
    code, printed, out = convert(path)
    assert code == 0, printed
    assert {sample.id: len(sample.read_instances()) for sample in cw.read_dataset(out)} == {"img": 9, "empty": 0}
    code, printed, _ = convert(save(tmp_path, "ImageId,EncodedPixels", [f"img,{nothing}"]))
    assert code == 2
    assert "--no-objects" in printed


def test_52_rows_instead_of_columns_are_refused(convert, tmp_path):
    path = save(tmp_path, "ImageId,EncodedPixels", [f"img,{text}" for text in rows(order="row")])
    code, printed, _ = convert(path)
    assert code == 2
    assert "set --rle-order row" in printed
    code, _, out = convert(path, "--rle-order", "row")
    assert code == 0
    assert cw.read_dataset(out)[0].read_instances().masks.areas.tolist() == AREAS


def save_square(folder: Path, order: str, *, visible: bool = True, header: str = "ImageId,EncodedPixels") -> Path:
    labels = LABELS[:, :96]
    path = save(folder, header, [f"img,{runs(labels == k, order)}" for k in np.unique(labels)[1:]])
    pixels = cw.read_image(folder / "img.png").data[:, :96] if visible else np.zeros((96, 96), np.uint8)
    (folder / "img.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    return path


def test_52_in_square_images_the_pixels_tell_the_order(convert, tmp_path):
    code, printed, _ = convert(save_square(tmp_path / "row", "row"))
    assert code == 2
    assert "stand out from the background in row order only" in printed
    code, printed, out = convert(save_square(tmp_path / "column", "column"))
    assert code == 0
    assert "mirrored" not in printed
    np.testing.assert_array_equal(cw.read_dataset(out)[0].read_instances().masks.foreground(), LABELS[:, :96] > 0)


def test_the_order_of_a_column_without_convention_is_seen_in_square_images(convert, tmp_path):
    for order in ("row", "column"):
        code, printed, out = convert(save_square(tmp_path / order, order, header="id,rle"))
        assert code == 0, printed
        assert f"runs were read along {order}s" in printed
        np.testing.assert_array_equal(cw.read_dataset(out)[0].read_instances().masks.foreground(), LABELS[:, :96] > 0)


def test_the_order_in_square_images_without_contrast_is_said(convert, tmp_path):
    code, printed, _ = convert(save_square(tmp_path / "a", "column", visible=False))
    assert code == 0
    assert "runs were assumed to follow columns" in printed
    code, printed, _ = convert(save_square(tmp_path / "b", "column", visible=False, header="id,rle"))
    assert code == 2
    assert "--rle-order" in printed


def touching() -> np.ndarray:
    """Labels of objects that touch the upper and the left border."""
    labels = np.zeros((96, 128), np.uint8)
    labels[0:9, 20:40], labels[30:50, 0:12] = 1, 2
    return labels


@pytest.mark.parametrize("order", ["row", "column"])
def test_52_counting_from_0_shows_at_the_border(order, convert, tmp_path):
    header = "ImageId,EncodedPixels" if order == "column" else "id,annotation"
    lines = [f"img,{text}" for text in rows(touching(), order, first=0)]
    code, printed, out = convert(save(tmp_path, header, lines))
    assert code == 0, printed
    assert "counting pixels from 0" in printed
    np.testing.assert_array_equal(cw.read_dataset(out)[0].read_instances().to_label_map(), touching())


def test_52_counting_from_1_shows_at_the_border(convert, tmp_path):
    labels = touching()[::-1]
    code, printed, out = convert(save(tmp_path, "ImageId,EncodedPixels", [f"img,{text}" for text in rows(labels)]))
    assert code == 0
    assert "counting pixels" not in printed
    assert "assumed" not in printed
    np.testing.assert_array_equal(cw.read_dataset(out)[0].read_instances().to_label_map(), labels)


def test_52_a_start_of_0_and_the_choice(convert, tmp_path):
    labels = np.zeros((96, 128), np.uint8)
    labels[:5, :5] = 1
    path = save(tmp_path, "ImageId,EncodedPixels", [f"img,{text}" for text in rows(labels, first=0)])
    code, printed, _ = convert(path)
    assert (code, "a run starts at 0" in printed) == (0, True)
    path = save(tmp_path, "ImageId,EncodedPixels", [f"img,{text}" for text in rows(first=0)])
    code, _, out = convert(path, "--rle-first", 0)
    assert code == 0
    np.testing.assert_array_equal(cw.read_dataset(out)[0].read_instances().to_label_map(), LABELS)


def test_one_mask_per_image_is_split_on_request(convert, tmp_path):
    path = save(tmp_path, "id,rle", [f"img,{runs(LABELS > 0)}"])
    code, printed, _ = convert(path)
    assert code == 2
    assert "one mask of several parts" in printed
    assert "--foreground split" in printed
    code, printed, out = convert(path, "--foreground", "split")
    assert code == 0, printed
    assert sorted(cw.read_dataset(out)[0].read_instances().masks.areas.tolist()) == sorted(AREAS)


def test_a_linked_folder_of_images_beside_the_table(convert, tmp_path):
    save(tmp_path / "elsewhere", "", [])
    path = tmp_path / "in" / "train.csv"
    path.parent.mkdir()
    path.write_text("\n".join(["id,annotation,width,height", *(f"img,{t},128,96" for t in rows(order="row"))]))
    (tmp_path / "in" / "train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    code, printed, out = convert(path)
    assert code == 0, printed
    assert cw.read_dataset(out)[0].read_instances().masks.areas.tolist() == AREAS
