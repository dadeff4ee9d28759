"""The Cell Tracking Challenge, both ways, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn import run

from cellwright.data.formats import ctc_tracks

HW = (40, 60)
# Frame -> label -> column of a cell; cell 1 divides into 2 and 3, and cell 4 appears late.
CELLS = {0: {1: 10}, 1: {1: 20}, 2: {2: 14, 3: 30}, 3: {2: 12, 3: 34, 4: 50}}
TRACKS = ["1 0 1 0", "2 2 3 1", "3 2 3 1", "4 3 3 0"]


def labels(cells: dict[int, int], radius: int = 4) -> np.ndarray:
    image = np.zeros(HW, np.uint16)
    for label, x in cells.items():
        image[20 - radius : 20 + radius, x - radius : x + radius] = label
    return image


def draw(root: Path, *sources: str, frames: tuple[int, ...] = (0, 1, 2, 3)) -> Path:
    """A sequence with label images of these sources: GT, ST, RES, TRA."""
    (root / "01").mkdir(parents=True, exist_ok=True)
    for k in CELLS:
        tifffile.imwrite(root / "01" / f"t{k:03d}.tif", np.full(HW, k, np.uint8))
    for source in sources:
        folder, name = {
            "GT": ("01_GT/SEG", "man_seg"), "ST": ("01_ST/SEG", "man_seg"), "RES": ("01_RES", "mask"),
            "TRA": ("01_GT/TRA", "man_track"),
        }[source]  # fmt: skip
        (root / folder).mkdir(parents=True)
        for k in frames if source == "GT" else CELLS:
            tifffile.imwrite(root / folder / f"{name}{k:03d}.tif", labels(CELLS[k], 1 if source == "TRA" else 4))
        if source in ("RES", "TRA"):
            table = "res_track.txt" if source == "RES" else "man_track.txt"
            (root / folder / table).write_text("\n".join(TRACKS) + "\n")
    return root


def counts(out: Path) -> dict[str, int]:
    content = json.loads((out / "dataset.json").read_text())
    numbers = [annotation["image_id"] for annotation in content["annotations"]]
    return {image["sample_id"]: numbers.count(image["id"]) for image in content["images"]}


def test_frames_with_outlines_of_some_cells_only_are_read_from_the_silver_reference(tmp_path, capsys):
    root = draw(tmp_path / "in", "GT", "ST", "TRA", frames=(0, 3))
    tifffile.imwrite(root / "01_GT/SEG/man_seg003.tif", labels({3: 34}))
    assert run("data", "convert", root, "--out", tmp_path / "out") == 0
    assert counts(tmp_path / "out") == {"01/t000": 1, "01/t001": 1, "01/t002": 2, "01/t003": 3}
    error = " ".join(capsys.readouterr().err.split())
    assert "(GT/SEG) of 1 frame and the silver reference (ST/SEG) of 3 frames" in error
    assert "outlines 1 of 3 cells that are marked in TRA (1 frame): the silver reference was read there" in error


def test_incomplete_outlines_without_a_silver_reference_are_counted(tmp_path, capsys):
    root = draw(tmp_path / "in", "GT", "TRA", frames=(3,))
    tifffile.imwrite(root / "01_GT/SEG/man_seg003.tif", labels({3: 34}))
    assert run("data", "convert", root, "--out", tmp_path / "out") == 0
    assert counts(tmp_path / "out") == {"01/t003": 1}
    assert "1 of 3 cells" in capsys.readouterr().err


def test_markers_are_read_only_if_asked_for(tmp_path, capsys):
    root = draw(tmp_path / "in", "TRA")
    assert run("data", "convert", root, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "only markers" in error
    assert "01_GT/TRA" in error.replace("\n", "")
    assert run("data", "convert", root / "01_GT/TRA", "--out", tmp_path / "out") == 0
    assert counts(tmp_path / "out")["01/t003"] == 3
    assert "mark cells without covering them" in " ".join(capsys.readouterr().err.split())


def test_results_are_no_annotations_beside_a_reference(tmp_path, capsys):
    root = draw(tmp_path / "in", "GT", "RES", frames=(1,))
    assert run("data", "convert", root, "--out", tmp_path / "out") == 0
    assert counts(tmp_path / "out") == {"01/t001": 1}
    assert "results (RES) not read: give their folder" in " ".join(capsys.readouterr().err.split())


def test_results_with_tracks_survive_the_round_trip(tmp_path, monkeypatch):
    root = draw(tmp_path / "in", "GT", "RES")
    monkeypatch.chdir(root / "01_RES")
    assert run("data", "convert", ".", "--out", tmp_path / "set") == 0
    assert counts(tmp_path / "set") == {f"01/t{k:03d}": len(cells) for k, cells in CELLS.items()}
    assert run("export", tmp_path / "set", "--to", "ctc", "--out", tmp_path / "again") == 0
    for k, cells in CELLS.items():
        written = tifffile.imread(tmp_path / "again/01_RES" / f"mask{k:03d}.tif")
        assert written.dtype == np.uint16
        assert (written == labels(cells)).all()
    assert (tmp_path / "again/01_RES/res_track.txt").read_text().splitlines() == TRACKS
    assert run("evaluate", tmp_path / "again", "--data", root, "--pictures", 0, "--out", tmp_path / "eval") == 0
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["values"]["f1@0.5"] == 1


def test_objects_without_tracks_become_tracks_of_one_frame(tmp_path, capsys):
    for k, name in enumerate(["b_10", "b_9", "a"]):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros(HW, np.uint8))
        tifffile.imwrite(tmp_path / f"{name}_masks.tif", labels({2: 10, 7: 30 + k}))
    assert run("data", "convert", tmp_path, "--out", tmp_path / "set") == 0
    assert run("export", tmp_path / "set", "--to", "ctc", "--out", tmp_path / "out") == 0
    table = (tmp_path / "out/01_RES/res_track.txt").read_text().splitlines()
    assert table == [f"{label} {(label - 1) // 2} {(label - 1) // 2} 0" for label in range(1, 7)]
    second = tifffile.imread(tmp_path / "out/01_RES/mask001.tif")  # b_9, before b_10
    assert (np.unique(second) == [0, 3, 4]).all()
    assert (second[20, 31] == 4).all()
    error = " ".join(capsys.readouterr().err.split())
    assert "each object became a track of one frame" in error
    assert "01/t000 is a" in error


def test_more_labels_than_16_bits_hold_are_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    root = draw(tmp_path / "in", "GT")
    monkeypatch.setattr(ctc_tracks, "MAX_LABEL", 6)
    assert run("export", root, "--to", "ctc", "--out", tmp_path / "out") == 2
    assert "label_images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["one plane", "stack"])
def test_three_dimensional_sequences_are_refused(kind, tmp_path, capsys):
    root = draw(tmp_path / "in", "GT")
    if kind == "stack":
        tifffile.imwrite(root / "01_GT/SEG/man_seg003.tif", np.stack([labels(CELLS[3])] * 2))
    else:
        (root / "01_GT/SEG/man_seg000.tif").rename(root / "01_GT/SEG/man_seg_000_012.tif")
    assert run("data", "convert", root, "--out", tmp_path / "out") == 2
    assert "three-dimensional" in capsys.readouterr().err


def test_a_damaged_table_of_tracks_is_named_with_its_line(tmp_path, capsys):
    root = draw(tmp_path / "in", "RES")
    (root / "01_RES/res_track.txt").write_text("1 0 1 0\n2 3 x 1\n")
    assert run("data", "convert", root, "--out", tmp_path / "out") == 2
    assert "line 2" in capsys.readouterr().err
