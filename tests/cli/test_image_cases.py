"""Image files as users have them, through ``cellwright predict``: nine nuclei, or a question that can be answered."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import drawn_images as images
import numpy as np
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.core.table import from_csv_cell

TRUTH = images.truth()


def predict(out: Path, *words: object) -> int:
    """Exit code of a prediction with the classical method."""
    return run("predict", *words, "--model", "classical", "--save", "masks", "--out", out)


def nuclei_found(labels: np.ndarray) -> int:
    """Number of the nine nuclei that a label image has, with an IoU of at least 0.6, if it has no other object."""
    assert len(np.unique(labels)) - 1 == 9
    found = 0
    for number in range(1, 10):
        own = [label for label in np.unique(labels[number == TRUTH]) if label]
        ious = [((labels == k) & (number == TRUTH)).sum() / ((labels == k) | (number == TRUTH)).sum() for k in own]
        found += max(ious, default=0) >= 0.6
    return found


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of all `FIELDS`, in one folder."""
    root = tmp_path_factory.mktemp("fields")
    (root / "in").mkdir()
    for name, write in images.FIELDS.items():
        write(root / "in" / name)
    assert predict(root / "out", root / "in") == 0
    return root / "out"


@pytest.mark.parametrize("name", images.FIELDS)
def test_every_file_shows_the_nine_nuclei(fields: Path, name: str) -> None:
    with (fields / "summary.csv").open(encoding="utf-8", newline="") as file:
        stems = (name, Path(name).stem, Path(name).stem.removesuffix(".ome"))
        rows = {from_csv_cell(row["image"]): row for row in csv.DictReader(file)}
    (image,) = [image for image in rows if image in stems]
    assert rows[image]["objects"] == "9"
    assert nuclei_found(tifffile.imread(fields / f"{image}_masks.tif")) == 9


_TZC = np.stack([np.stack([[images.BLANK] * 2] * 2), np.stack([[images.BLANK, images.GREY]] * 2)])
CHOICES = {
    "01_pages_max": (
        images.tiff(np.stack([images.BLANK, images.GREY, images.BLANK]), photometric="minisblack"),
        "--z max",
    ),
    "01_pages_as_channels": (
        images.tiff(np.stack([images.BLANK, images.GREY]), photometric="minisblack"),
        "--channel 1",
    ),
    "02_hyperstack_with_time": (
        images.tiff(_TZC, imagej=True, metadata={"axes": "TZCYX"}),
        "--channel 1 --z mean --t 1 --pixel-size 0.5,0.25",
    ),
    "05_other_sizes": (
        images.pages(np.ascontiguousarray(images.BLANK[:50, :60]), images.GREY, metadata=None),
        "--series 1",
    ),
    "01_pages": (images.tiff(np.stack([images.BLANK, images.GREY, images.BLANK]), photometric="minisblack"), "--z 1"),
    "02_hyperstack": (
        images.tiff(
            np.stack([[images.BLANK] * 2, [images.BLANK, images.GREY], [images.BLANK] * 2]),
            imagej=True,
            metadata={"axes": "ZCYX"},
        ),
        "--channel 1 --z 1",
    ),
    "03_channels_last": (images.tiff(np.dstack([images.GREY, images.BLANK])), "--channel 0"),
    "03_channels_last_16": (
        images.tiff(np.dstack([images.BLANK, images.GREY]).astype(np.uint16) * 16),
        "--channel 1",
    ),
    "04_one_by_one": (images.pages(images.BLANK, images.GREY, images.BLANK), "--z 1"),
    "04_appended": (images.appended(images.BLANK, images.GREY, images.BLANK), "--z 1"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_asked_for_and_then_taken(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write, options = CHOICES[name]
    write(tmp_path / "img.tif")
    assert predict(tmp_path / "asked", tmp_path / "img.tif", "--fail-fast") == 2
    message = capsys.readouterr().err
    for option in options.split()[::2]:
        assert option in message or option == "--pixel-size"
    assert predict(tmp_path / "out", tmp_path / "img.tif", *options.split()) == 0
    assert nuclei_found(tifffile.imread(tmp_path / "out" / "img_masks.tif")) == 9


def test_annotations_of_a_turned_picture(tmp_path: Path) -> None:
    """Drawn on the upright picture (128 x 96), which is stored as 96 x 128."""
    shown = np.ascontiguousarray(np.rot90(images.GREY))
    labels = np.rot90(TRUTH)
    images.jpeg_turned(shown, 6)(tmp_path / "photo.jpg")
    ys, xs = np.nonzero(labels == 5)
    x0, y0, x1, y1 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    box = [x0, y0, x1, y0, x1, y1, x0, y1]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [box], "bbox": [x0, y0, x1 - x0, y1 - y0]}
    annotation |= {"area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "photo.jpg", "width": 96, "height": 128}],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": [annotation],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert run("data", "convert", tmp_path / "a.json", "--out", tmp_path / "data") == 0
    (sample,) = cw.read_dataset(tmp_path / "data")
    image = cw.read_image(sample.image_path)
    assert sample.image_hw == image.image_hw == (128, 96)
    mask = sample.read_instances().masks.to_dense()[0]
    assert image.data[mask].mean() > 110
    assert image.data[~mask].mean() < 60
