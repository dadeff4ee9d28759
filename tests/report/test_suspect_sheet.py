"""The contact sheet of suspects."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cellwright.data.suspects import Suspect
from cellwright.data.synthetic import write_demo_dataset
from cellwright.report.colours import SKY_BLUE, YELLOW
from cellwright.report.suspects import COLUMNS, GROUND, SHOWN, TILE_PX, draw_suspects


def has(sheet: np.ndarray, colour: tuple[int, int, int], slack: int = 8) -> bool:
    return bool((np.abs(sheet.astype(int) - colour) <= slack).all(axis=2).any())


def test_every_suspect_has_a_tile_up_to_24(tmp_path: Path) -> None:
    dataset = write_demo_dataset(tmp_path, splits=(("train", 2),), n_objects=40)
    suspects = [Suspect(sample.id, i + 1, "merged", 0.5, "") for i in range(20) for sample in dataset]
    two, all_of_them = draw_suspects(dataset, suspects[:2]), draw_suspects(dataset, suspects)
    assert two.dtype == np.uint8
    assert two.shape[1] == all_of_them.shape[1] > COLUMNS * TILE_PX
    assert all_of_them.shape[0] > SHOWN // COLUMNS * TILE_PX > two.shape[0] > TILE_PX
    assert has(two, YELLOW)
    assert has(two, SKY_BLUE)


def test_without_an_image_the_outlines_stand_on_grey(tmp_path: Path) -> None:
    dataset = write_demo_dataset(tmp_path, splits=(("train", 3),), n_objects=10)
    absent, broken, other = dataset
    assert broken.image_path is not None
    assert other.image_path is not None
    broken.image_path.write_bytes(b"no image")
    (tmp_path / "small").mkdir()
    small = write_demo_dataset(tmp_path / "small", splits=(("train", 1),), image_hw=(64, 64), n_objects=1)[0]
    samples = (
        dataclasses.replace(absent, image_path=None),
        broken,
        dataclasses.replace(other, image_path=small.image_path),
    )
    dataset = dataset.with_samples(samples)
    sheet = draw_suspects(dataset, [Suspect(sample.id, 1, "open", 1.0, "") for sample in samples])
    grey = (sheet == GROUND).all(axis=2)
    assert grey.any(axis=0).sum() > 2 * TILE_PX
    assert has(sheet, YELLOW)


def test_no_suspects_give_a_sheet_that_says_so(tmp_path: Path) -> None:
    dataset = write_demo_dataset(tmp_path, splits=(("train", 1),), n_objects=2)
    assert draw_suspects(dataset, []).ndim == 3
