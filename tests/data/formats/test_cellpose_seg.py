"""Cellpose's ``_seg.npy`` out of a dataset, corrected as its GUI does it, and back; through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn import draw_mask_folder, run

from cellwright import read_dataset
from cellwright.data.formats.cellpose_seg import seg_file


def test_corrections_made_in_the_gui_of_cellpose_come_back(tmp_path: Path) -> None:
    draw_mask_folder(tmp_path / "source", 1)
    assert run("export", tmp_path / "source", "--to", "cellpose", "--out", tmp_path / "gui", "--quiet") == 0
    (path,) = (tmp_path / "gui").rglob("*_seg.npy")
    content = np.load(path, allow_pickle=True).item()
    image = path.with_name(content["filename"])
    assert image.is_file()
    labels = read_dataset(tmp_path / "source")[0].read_instances().masks.to_label_map()
    assert np.array_equal(content["masks"], labels)
    # What the GUI does on loading: a colour per label, and the outlines, which are parts of their objects.
    assert content["masks"].dtype == content["outlines"].dtype == np.uint16
    assert len(content["ismanual"]) == content["masks"].max()
    outline = content["outlines"] > 0
    assert np.array_equal(content["outlines"][outline], labels[outline])
    assert not outline[1:-1, 1:-1][(labels[1:-1, 1:-1] == labels[:-2, 1:-1]) & (labels[1:-1, 1:-1] == labels[2:, 1:-1])
        & (labels[1:-1, 1:-1] == labels[1:-1, :-2]) & (labels[1:-1, 1:-1] == labels[1:-1, 2:])].any()  # fmt: skip

    content["masks"][labels == 1] = 0
    content["masks"][:4, :4] = labels.max() + 1
    more = {"colors": np.zeros((3, 3), np.uint8), "manual_changes": [], "normalize_params": {"percentile": [1.0, 99.0]}}
    np.save(path, content | more)
    corrected = read_dataset(tmp_path / "gui")[0]
    assert corrected.image_path == image
    assert np.array_equal(corrected.read_instances().to_label_map(), content["masks"])


def test_many_labels_and_none(tmp_path: Path) -> None:
    for labels, dtype in ((np.arange(70_000).reshape(250, 280), np.uint32), (np.zeros((3, 4), int), np.uint16)):
        (tmp_path / "x_seg.npy").write_bytes(seg_file(labels, "x.tif"))
        content = np.load(tmp_path / "x_seg.npy", allow_pickle=True).item()
        assert content["masks"].dtype == dtype
        assert np.array_equal(content["masks"], labels)


def test_a_seg_file_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("this must not run",)

    tifffile.imwrite(tmp_path / "x.tif", np.zeros((4, 5), np.uint8))
    np.save(tmp_path / "x_seg.npy", np.array({"masks": np.eye(4, 5, dtype=np.uint16), "more": Attack()}, dtype=object))
    assert run("data", "info", tmp_path, "--format", "cellpose") == 2
    printed = capsys.readouterr()
    assert "more than data" in printed.err
    assert "this must not run" not in printed.out + printed.err
