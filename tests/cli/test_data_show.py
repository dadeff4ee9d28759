"""``data show`` on the command line: a contact sheet of images, and one of variants by a recipe."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import draw_mask_folder, run

RECIPE = """
extends: synthetic/demo
name: mine
augment: {crop_px: 96, rotation_deg: 30, elastic_amplitude_px: 4, elastic_smoothness_px: 32, brightness: 0.3}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn images and a recipe."""
    root = tmp_path_factory.mktemp("show")
    draw_mask_folder(root / "source", 3)
    (root / "mine.yaml").write_text(RECIPE)
    return root


def test_one_row_per_image_with_its_variants(folder: Path) -> None:
    out = folder / "variants.png"
    words = ["data", "show", folder / "source", "--augment", folder / "mine.yaml", "--variants", "3", "--quiet"]
    assert run(*words, "--max-images", "2", "--out", out) == 0
    sheet = cv2.imread(str(out))
    assert sheet is not None
    rows, columns = 2, 4
    assert sheet.shape[1] == pytest.approx(columns * 320, rel=0.05)
    assert sheet.shape[0] == pytest.approx(rows * 340, rel=0.1)
    tiles = [sheet[60:340, 8 + 328 * k : 320 + 328 * k].astype(int) for k in range(columns)]
    assert all(np.abs(a - b).mean() > 5 for k, a in enumerate(tiles) for b in tiles[:k])
    # The same command draws the same picture, and another seed a different one.
    again, other = folder / "again.png", folder / "other.png"
    assert run(*words, "--max-images", "2", "--out", again) == 0
    assert again.read_bytes() == out.read_bytes()
    (folder / "seed.yaml").write_text(RECIPE + "train: {seed: 5}\n")
    words[4] = folder / "seed.yaml"
    assert run(*words, "--max-images", "2", "--out", other) == 0
    assert other.read_bytes() != out.read_bytes()


def test_without_a_recipe_every_image_is_drawn_once(folder: Path) -> None:
    out = folder / "sheet.png"
    assert run("data", "show", folder / "source", "--out", out, "--quiet") == 0
    assert cv2.imread(str(out)) is not None


def test_invalid_requests(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "none.png"
    show = ["data", "show", folder / "source", "--out", out]
    assert run(*show, "--augment", "no/such") == 2
    assert run(*show, "--augment", "synthetic/demo", "--variants", "0") == 2
    assert run(*show, "--augment", "synthetic/demo", "--split", "val") == 2
    assert run(*show, "--augment", "synthetic/demo", "--dry-run") == 0
    message = capsys.readouterr().err
    assert "no such recipe" in message
    assert "--variants 0" in message
    assert not out.exists()
