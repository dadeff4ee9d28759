"""Files that claim, name or hide something end in one error, or are read for what they hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import run
from PIL import Image as Pillow

from cellwright.data.formats import ReadOptions, read_dataset
from cellwright.data.synthetic import draw_field

FORMULA = "=HYPERLINK(A1)\x1b[2J"


def coco(folder: Path, hw: tuple[int, int], *segmentations: Any, name: str = "a.png") -> Path:
    """A COCO file with one image."""
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "segmentation": segmentation}
        for k, segmentation in enumerate(segmentations, 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": name, "height": hw[0], "width": hw[1]}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": annotations,
    }
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


BIG, WIDE = 2**33, 10_000
CLAIMS = {
    "a width beyond 32 bits": ((1, BIG), [{"size": [1, BIG], "counts": [2**32 + 5, 3, BIG - 2**32 - 8]}]),
    "no size": ((10, 10), [{"size": None, "counts": [100]}]),
    "a size that is text": ((10, 10), [{"size": "10", "counts": [100]}]),
    "counts beyond 64 bits": ((10, 10), [{"size": [10, 10], "counts": [50, 2**61, 2**61, 2**61, 2**61, 50]}]),
    "boxes of gigabytes": ((WIDE, WIDE), [{"size": [WIDE, WIDE], "counts": [0, 1, WIDE**2 - 2, 1]}] * 200),
    "an outline of a million pixels a hundred times": ((500, 500), [[[0, 0, 500, 500, 0, 500] * 7000]]),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_annotations_that_claim_too_much(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    hw, segmentations = CLAIMS[name]
    path = coco(tmp_path, hw, *segmentations)
    assert run("evaluate", path, "--data", path, "--out", tmp_path / "out") == 2
    assert "a.json" in capsys.readouterr().err


def test_images_named_by_absolute_paths_are_used_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    image = tmp_path / "elsewhere" / "a.png"
    Pillow.fromarray(np.zeros((10, 10), np.uint8)).save(image)
    path = coco(tmp_path / "here", (10, 10), [[1, 1, 8, 1, 8, 8]], name=str(image))
    assert run("data", "convert", path, "--out", tmp_path / "out") == 0
    assert f"1 image read from an absolute path in the annotations, such as {image}" in capsys.readouterr().err
    path = read_dataset(tmp_path / "out")[0].image_path
    assert path is not None
    assert path.samefile(image)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 2024-99-99", "month must be in 1..12"),
        (f"classes: {'9' * 5000}", "a number of 5000 characters"),
        ("".join(f"x{k}: &b{k} [{','.join([f'*b{k - 1}' if k else 'lol'] * 9)}]\n" for k in range(10)), "values"),
        (f"name: [{', '.join(['abc'] * 9000)}]", "name: Input should be a valid string, got ['abc'"),
    ],
)
def test_recipes_of_anyone(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert run("train", tmp_path / "r.yaml", "--data", tmp_path, "--dry-run") == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed) < 3000


def test_names_are_no_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither for the terminal nor for a spreadsheet; our own reader gives them back."""
    image, _ = draw_field(1, (64, 80), 6)
    (tmp_path / "in").mkdir()
    Pillow.fromarray(image.data).save(tmp_path / "in" / f"{FORMULA}.png")
    (tmp_path / "in" / "-bad\x1b[31m.png").write_bytes(b"no image")
    assert run("predict", tmp_path / "in", "--model", "classical", "--save", "masks", "--out", tmp_path / "out") == 3
    assert run("export", tmp_path / "out", "--to", "rle_csv", "--out", tmp_path / "t.csv") == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert r"-bad\x1b[31m" in printed.err
    for table, cell in (
        ("out/summary.csv", f"'{FORMULA}"),
        ("out/failures.csv", "'-bad\x1b[31m"),
        ("t.csv", f"'{FORMULA}"),
    ):
        with (tmp_path / table).open(newline="") as file:
            first = list(csv.reader(file))[1]
        assert first[0] == cell
    table = read_dataset(tmp_path / "t.csv", ReadOptions(images=tmp_path / "in"))
    assert [sample.id for sample in table] == [FORMULA]
    assert len(table[0].read_instances()) > 3
