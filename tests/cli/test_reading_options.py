"""`--format`, `--z`, `--t` and `--series`: every verb that reads annotations takes them, and datasets record them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import roifile
import tifffile
from drawn import run
from PIL import Image as Pillow

import cellwright as cw
from cellwright.data.synthetic import draw_field


def draw_stacks(folder: Path, n_images: int = 2) -> None:
    """Label images of stacks with two time points and three planes; only t 1, z 2 shows the cells."""
    for k in range(n_images):
        image, truth = draw_field(k, (96, 112), 8)
        grey = image.data.mean(axis=2).astype(np.uint8)
        stack = np.zeros((2, 3, *grey.shape), np.uint8)
        stack[1, 2] = grey
        tifffile.imwrite(folder / f"s{k}.tif", stack, imagej=True, metadata={"axes": "TZYX"})
        tifffile.imwrite(folder / f"s{k}_masks.tif", truth.masks.to_label_map().astype(np.uint16))


@pytest.fixture
def two_formats(tmp_path: Path) -> Path:
    """A folder with label images of 8 cells, and ROIs of one."""
    folder = tmp_path / "both"
    for name in ("images", "masks", "rois"):
        (folder / name).mkdir(parents=True)
    image, truth = draw_field(3, (96, 112), 8)
    tifffile.imwrite(folder / "images/a.tif", image.data)
    tifffile.imwrite(folder / "masks/a.tif", truth.masks.to_label_map().astype(np.uint16))
    roi = roifile.ImagejRoi.frompoints(np.array([[5, 5], [20, 5], [20, 20], [5, 20]]), name="1")
    roifile.roiwrite(folder / "rois/a_RoiSet.zip", [roi], mode="w")
    return folder


def verbs(source: Path, out: Path) -> dict[str, tuple[object, ...]]:
    return {
        "info": ("data", "info", source),
        "check": ("data", "check", source, "--suspects", 0),
        "show": ("data", "show", source, "--dry-run", "--out", out / "sheet.png"),
        "split": ("data", "split", source, "--dry-run", "--out", out / "split"),
        "merge": ("data", "merge", source, "--dry-run", "--out", out / "merged"),
        "convert": ("data", "convert", source, "--dry-run", "--out", out / "set"),
        "export": ("export", source, "--to", "coco", "--out", out / "coco"),
        "evaluate": ("evaluate", source / "masks", "--data", source, "--dry-run", "--out", out / "eval"),
        "train": ("train", "synthetic/demo", "--data", source, "--dry-run", "--out", out / "run"),
        "tune": ("tune", "nuclei", "--data", source, "--dry-run", "--out", out / "tuned"),
        "measure": ("measure", source, "--dry-run", "--out", out / "table.csv"),
    }


@pytest.mark.parametrize("verb", list(verbs(Path(), Path())))
def test_every_verb_takes_the_format(verb, two_formats, tmp_path, capsys):
    words = verbs(two_formats, tmp_path)[verb]
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "label_images, imagej_roi" in error
    assert "--format label_images\n" in error  # an option of this verb
    code = run(*words, "--format", "imagej_roi")
    if verb == "tune":  # there is no validation split
        assert "no such split" in capsys.readouterr().err
        return
    assert code == 0


def test_predictions_of_two_formats_are_chosen_separately(two_formats, tmp_path, capsys):
    words = ("evaluate", two_formats, "--data", two_formats / "masks", "--pictures", 0, "--out", tmp_path / "eval")
    assert run(*words) == 2
    assert "--prediction-format label_images" in capsys.readouterr().err
    assert run(*words, "--prediction-format", "label_images") == 0
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["values"]["f1@0.5"] == 1
    words = ("fuse", two_formats, two_formats, "--dry-run", "--out", tmp_path / "fused")
    assert (run(*words), run(*words, "--format", "label_images")) == (2, 0)


def test_a_format_that_was_chosen_names_the_others(two_formats, tmp_path, capsys):
    assert run("data", "convert", two_formats, "--format", "label_images", "--out", tmp_path / "set") == 0
    assert "imagej_roi" in capsys.readouterr().err


def test_a_dataset_records_plane_and_time_point(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    draw_stacks(folder)
    assert run("data", "convert", folder, "--out", tmp_path / "set") == 2
    error = capsys.readouterr().err
    assert "--z (0 to 2" in error
    assert "--t (0 to 1" in error
    assert run("data", "convert", folder, "--z", 2, "--t", 1, "--out", tmp_path / "set") == 0
    data = tmp_path / "set"
    assert json.loads((data / "dataset.json").read_text())["info"] == {"z": 2, "t": 1}
    assert run("data", "show", data, "--out", tmp_path / "sheet.png") == 0
    assert run("data", "check", data, "--suspects", 5) == 0
    assert run("train", "synthetic/demo", "--data", data, "--dry-run", "--out", tmp_path / "run") == 0
    assert run("evaluate", "classical", "--data", data, "--pictures", 0, "--out", tmp_path / "eval") == 0


@pytest.mark.parametrize("verb", ["show", "info", "check", "train"])
def test_planes_are_chosen_where_they_are_needed(verb, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    draw_stacks(folder, 1)
    words = {
        "show": ("data", "show", folder, "--out", tmp_path / "sheet.png"),
        "info": ("data", "info", folder),
        "check": ("data", "check", folder, "--suspects", 0),
        "train": ("train", "synthetic/demo", "--data", folder, "--dry-run", "--out", tmp_path / "run"),
    }[verb]
    assert run(*words) == (3 if verb == "check" else 2)
    captured = capsys.readouterr()
    assert "--z" in captured.err + captured.out
    assert run(*words, "--z", "max", "--t", 1) == 0


def test_series_of_other_sizes_are_chosen_when_converting(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    image, truth = draw_field(0, (96, 112), 8)
    with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as tif:
        tif.write(np.zeros((40, 50), np.uint8), metadata={"Name": "empty", "axes": "YX"})
        tif.write(image.data[:, :, 2].copy(), metadata={"Name": "cells", "axes": "YX"})
    tifffile.imwrite(folder / "a_masks.tif", truth.masks.to_label_map().astype(np.uint16))
    assert run("data", "convert", folder, "--out", tmp_path / "set") == 2
    assert "--series" in capsys.readouterr().err
    assert run("data", "convert", folder, "--series", "cells", "--out", tmp_path / "set") == 0
    assert run("data", "info", tmp_path / "set") == 0
    assert "96 x 112" in capsys.readouterr().out
    assert run("data", "show", folder, "--series", 1, "--out", tmp_path / "sheet.png") == 0
    dataset = cw.read_dataset(folder, reading=cw.Reading(series="cells"))
    assert dataset[0].image_hw == (96, 112)
    assert dataset.info["series"] == "cells"


@pytest.mark.parametrize("verb", ["train", "check", "show", "info", "split", "merge"])
def test_what_was_skipped_is_said_without_converting(verb, two_formats, tmp_path, capsys):
    (two_formats / "notes.txt").write_text("patient 7")
    assert run(*verbs(two_formats, tmp_path)[verb], "--format", "label_images") == 0
    assert "notes.txt" in capsys.readouterr().err


def test_convert_says_what_it_read_of_each_source(tmp_path, capsys):
    for name, n_images in (("first", 1), ("second", 2)):
        (tmp_path / name).mkdir()
        for k in range(n_images):
            tifffile.imwrite(tmp_path / name / f"{name}{k}.tif", np.zeros((20, 30), np.uint8))
            labels = np.zeros((20, 30), np.uint16)
            labels[2:8, 2:8], labels[10:18, 10:20] = 1, 2
            tifffile.imwrite(tmp_path / name / f"{name}{k}_masks.tif", labels)
    (tmp_path / "second/notes.txt").write_text("patient 7")
    (tmp_path / "second/counts.xlsx").write_bytes(b"PK")
    (tmp_path / "second/README.txt").write_text("about")
    assert run("data", "convert", tmp_path / "first", tmp_path / "second", "--out", tmp_path / "set") == 0
    error = " ".join(capsys.readouterr().err.split())
    assert f"read {tmp_path / 'first'} as label_images: 1 image, 2 objects (cell 2)" in error
    assert f"read {tmp_path / 'second'} as label_images: 2 images, 4 objects (cell 4)" in error
    assert "skipped 2 files that label_images does not read: 1 .txt (notes.txt), 1 .xlsx (counts.xlsx)" in error


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_transparency_is_no_channel(suffix, tmp_path, capsys):
    pixels = np.full((20, 30, 4), 200, np.uint8)
    if suffix == "png":
        Pillow.fromarray(pixels).save(tmp_path / "a.png")
    else:
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert run("data", "info", tmp_path) == 0
    assert "8 bit, 3 channels and transparency" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("layout", ["images/ and masks/", "cellpose", "one mask per object", "ctc"])
def test_label_images_are_not_predicted_on(layout, tmp_path, capsys):
    image, truth = draw_field(3, (96, 112), 8)
    labels = truth.masks.to_label_map().astype(np.uint16)
    folder = tmp_path / "in"
    names = {
        "cellpose": ("a.png", "a_cp_masks.png"),
        "images/ and masks/": ("images/a.png", "masks/a.png"),
        "ctc": ("01/t000.tif", "01_GT/SEG/man_seg000.tif"),
    }
    original, annotated = names.get(layout, ("a/images/a.png", "a/masks"))
    for path in (original, annotated):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(image.data).save(folder / original)
    if layout == "one mask per object":
        (folder / annotated).mkdir()
        for label in (1, 2, 3):
            Pillow.fromarray((labels == label).astype(np.uint8) * 255).save(folder / annotated / f"{label}.png")
    else:
        Pillow.fromarray(labels).save(folder / annotated)
    assert run("predict", folder, "--model", "classical", "--dry-run", "--out", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert "1 image, model" in error
    assert f"skipped {3 if 'object' in layout else 1} label image" in error
