"""Reading through the public functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

import cellwright as cw


class NumberedBoxes(cw.Format):
    """Lines "x0 y0 x1 y1" in a .boxes file: one image of 20 x 30 px."""

    name, description = "boxes", "one box per line"

    def sniff(self, path: Path) -> bool:
        return path.suffix == ".boxes"

    def read(self, path: Path, options: cw.ReadOptions) -> cw.Dataset:
        labels = np.zeros((20, 30), np.uint16)
        for k, line in enumerate(path.read_text().splitlines()):
            x0, y0, x1, y1 = map(int, line.split())
            labels[y0:y1, x0:x1] = k + 1
        cells = cw.Instances.from_label_map(labels)
        return cw.Dataset((cw.Sample(path.stem, None, (20, 30), lambda: cells),), options.name_classes(["cell"]))


def test_a_format_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "a.boxes"
    path.write_text("1 2 5 9\n10 10 12 12\n")
    dataset = cw.read_dataset(path, format=NumberedBoxes())
    assert dataset[0].read_instances().masks.areas.tolist() == [28, 4]
    with pytest.raises(cw.UsageError, match="pass an instance"):
        cw.read_dataset(path, format=NumberedBoxes)  # type: ignore[arg-type]
    with pytest.raises(cw.InputError, match="unknown format"):
        cw.read_dataset(path)


def test_the_objects_of_one_image_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((20, 30), np.uint8))
        tifffile.imwrite(tmp_path / f"{name}_masks.tif", np.eye(20, 30, dtype=np.uint16))
    assert len(cw.read_instances(tmp_path / "a_masks.tif")) == 1
    with pytest.raises(cw.UsageError, match=r"exactly one image[\s\S]*2 images[\s\S]*read_dataset"):
        cw.read_instances(tmp_path)


def test_missing_images_are_optional(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a_masks.tif", np.eye(20, 30, dtype=np.uint16))
    dataset = cw.read_dataset(tmp_path, require_images=False)
    assert [sample.image_path for sample in dataset] == [None]
