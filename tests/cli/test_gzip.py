"""Images and label images that are compressed with gzip, through the command line."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn import run
from PIL import Image as Pillow

import cellwright as cw
from cellwright.core import files
from cellwright.core.errors import FormatError
from cellwright.data.images.source import open_image


def squares() -> np.ndarray:
    labels = np.zeros((40, 60), np.uint16)
    labels[4:14, 4:14], labels[20:34, 30:50] = 1, 2
    return labels


def save(path: Path, pixels: np.ndarray) -> Path:
    """Save as TIFF or PNG, compressed with gzip if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain, buffer = path.name.removesuffix(".gz"), io.BytesIO()
    if plain.endswith(".png"):
        Pillow.fromarray(pixels).save(buffer, format="PNG")
    else:
        tifffile.imwrite(buffer, pixels, photometric="minisblack", ome=plain.endswith(".ome.tif"))
    data = buffer.getvalue()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def converted(source: Path, out: Path, *options: str) -> dict[str, int]:
    assert run("data", "convert", source, "--out", out, *options) == 0
    content = json.loads((out / "dataset.json").read_text())
    numbers = [annotation["image_id"] for annotation in content["annotations"]]
    return {image["sample_id"]: numbers.count(image["id"]) for image in content["images"]}


@pytest.mark.parametrize(
    ("image", "labels", "name"),
    [
        ("a.tif.gz", "a_masks.tif.gz", "a"),
        ("a.png", "a_masks.tif.gz", "a"),
        ("images/a.png.gz", "masks/a.png.gz", "a"),
        ("a.ome.tif.gz", "a_masks.tif", "a"),
        ("train/images/a.tif.gz", "train/masks/a.tif.gz", "a"),
        ("a/image.tif.gz", "a/class1.tif.gz", "a"),
        ("01/t000.tif.gz", "01_GT/SEG/man_seg000.tif.gz", "01/t000"),
        ("JPEGImages/a.png.gz", "SegmentationObject/a.png.gz", "a"),
    ],
)
def test_compressed_images_and_labels_are_read(image, labels, name, tmp_path):
    pixels = (squares() * 100).astype(np.uint8)
    save(tmp_path / "in" / image, pixels)
    save(tmp_path / "in" / labels, squares().astype(np.uint8) if "png" in labels else squares())
    assert converted(tmp_path / "in", tmp_path / "out") == {name: 2}
    dataset = cw.read_dataset(tmp_path / "out")
    path = dataset[0].image_path
    assert path is not None
    assert (cw.read_image(path).data[:, :, 0] == pixels).all()
    assert (open_image(path).read(3, 5, 20, 30).data[:, :, 0] == pixels[3:23, 5:35]).all()


def test_compressed_files_are_used_like_others(tmp_path):
    image = save(tmp_path / "in/a.tif.gz", (squares() * 100).astype(np.uint8))
    masks = save(tmp_path / "in/a_masks.tif.gz", squares())
    assert len(cw.read_instances(masks)) == 2
    assert run("predict", image, "--model", "classical", "--save", "masks", "--out", tmp_path / "pred") == 0
    assert (tmp_path / "pred/a_masks.tif").is_file()
    assert run("evaluate", tmp_path / "pred", "--data", tmp_path / "in", "--pictures", 0, "--out", tmp_path / "e") == 0
    assert run("data", "convert", tmp_path / "in", "--copy-images", "--out", tmp_path / "set") == 0
    assert (tmp_path / "set/images/a.tif.gz").read_bytes() == image.read_bytes()


def test_damaged_and_too_large_files_are_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.tif.gz", squares())
    monkeypatch.setattr(files, "MAX_UNPACKED", 1000)
    with pytest.raises(FormatError, match=r"too large(.|\n)*gunzip"):
        cw.read_image(path)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(FormatError, match=r"a\.tif\.gz"):
        cw.read_image(path)
    with pytest.raises(FormatError, match=r"a\.tif\.gz"):
        cw.read_instances(path)
