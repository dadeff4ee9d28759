"""``data check`` lists the annotations that are most likely wrong, and writes them as a table with a contact sheet."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import draw_mask_folder, run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two drawn images; of one nucleus, only the outline is annotated."""
    draw_mask_folder(tmp_path / "source", 2)
    path = tmp_path / "source" / "field 1" / "masks" / "mask_003.png"
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    cv2.imwrite(str(path), mask - cv2.erode(mask, np.ones((3, 3), np.uint8)))
    return tmp_path / "source"


def test_suspects_are_listed_and_do_not_change_the_exit_code(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "suspects.csv"
    assert run("data", "check", source, "--out", out, "--quiet", "--log-format", "json") == 0
    printed = capsys.readouterr().out
    assert '"severity": "suspect", "where": "field 1, object 4", "what": "open? covers ' in printed
    with out.open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["rank"], first["sample"], first["object"], first["kind"]) == ("1", "field 1", "4", "open")
    sheet = cv2.imread(str(tmp_path / "suspects.png"))
    assert sheet is not None
    assert sheet.shape[2] == 3


def test_no_suspects_on_request(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "check", source, "--suspects", "0") == 0
    assert "suspect " not in capsys.readouterr().out


def test_outputs_are_checked_before_the_work_starts(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "check", source, "--out", tmp_path / "suspects.txt") == 2
    assert "expected" in capsys.readouterr().err
    (tmp_path / "suspects.png").write_bytes(b"mine")
    assert run("data", "check", source, "--out", tmp_path / "suspects.csv") == 2
    assert run("data", "check", source, "--out", tmp_path / "suspects.csv", "--dry-run", "--overwrite") == 0
    assert (tmp_path / "suspects.png").read_bytes() == b"mine"
    assert not (tmp_path / "suspects.csv").exists()
    assert run("data", "check", source, "--out", tmp_path / "suspects.csv", "--overwrite") == 0
    assert (tmp_path / "suspects.png").read_bytes() != b"mine"
