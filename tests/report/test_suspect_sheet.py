"""The contact sheet of suspects."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cellwright.data.suspects import Suspect
from cellwright.data.synthetic import write_demo_dataset
from cellwright.report.colours import SKY_BLUE, YELLOW
from cellwright.report.suspect_sheet import COLUMNS, NO_IMAGE_GREY, SHOWN, TILE_PX, draw_suspects


def has_colour(sheet: np.ndarray, colour: tuple[int, int, int], tolerance: int = 8) -> bool:
    return bool((np.abs(sheet.astype(int) - colour) <= tolerance).all(axis=2).any())


def test_up_to_24_suspects_have_a_tile(tmp_path: Path) -> None:
    dataset = write_demo_dataset(tmp_path, splits=(("train", 2),), n_objects=40)
    suspects = [Suspect(sample.id, i + 1, "merged", 0.5, "") for i in range(20) for sample in dataset]
    two, full = draw_suspects(dataset, suspects[:2]), draw_suspects(dataset, suspects)
    assert two.dtype == np.uint8
    assert two.shape[1] == full.shape[1] > COLUMNS * TILE_PX
    assert full.shape[0] > SHOWN // COLUMNS * TILE_PX > two.shape[0] > TILE_PX
    assert has_colour(two, YELLOW)
    assert has_colour(two, SKY_BLUE)


def test_outlines_are_drawn_on_grey_if_the_image_cannot_be_shown(tmp_path: Path) -> None:
    dataset = write_demo_dataset(tmp_path, splits=(("train", 3),), n_objects=10)
    absent, broken, other = dataset
    assert broken.image_path is not None
    assert other.image_path is not None
    broken.image_path.write_bytes(b"not an image")
    (tmp_path / "small").mkdir()
    small = write_demo_dataset(tmp_path / "small", splits=(("train", 1),), image_hw=(64, 64), n_objects=1)[0]
    samples = (
        dataclasses.replace(absent, image_path=None),
        broken,
        dataclasses.replace(other, image_path=small.image_path),
    )
    dataset = dataset.with_samples(samples)
    sheet = draw_suspects(dataset, [Suspect(sample.id, 1, "open", 1.0, "") for sample in samples])
    grey = (sheet == NO_IMAGE_GREY).all(axis=2)
    assert grey.any(axis=0).sum() > 2 * TILE_PX
    assert has_colour(sheet, YELLOW)


def test_without_suspects_there_is_a_sheet_all_the_same(tmp_path: Path) -> None:
    dataset = write_demo_dataset(tmp_path, splits=(("train", 1),), n_objects=2)
    assert draw_suspects(dataset, []).ndim == 3
