"""Files that nobody would put into a folder of images, and images that do not fit: each fails by itself."""

from __future__ import annotations

import csv
import os
import socket
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from drawn import run

from cellwright.core.errors import InputError
from cellwright.core.files import UNLISTED, walk
from cellwright.data.synthetic import draw_field

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names and kinds of files that Windows lacks")

LONG = "n" * 240


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two plain images, around others."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "z"):
        cv2.imwrite(str(folder / f"{name}.png"), 255 - draw_field(0, (64, 64), 6)[0].data[:, :, 1])
    return folder


def predict(images: Path, out: Path, *words: object) -> int:
    return run("predict", images, "--model", "classical", "--save", "masks", "--out", out, *words)


def column(path: Path, name: str) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["image"]: row[name] for row in csv.DictReader(file)}


def test_each_bad_file_fails_by_itself(images: Path, tmp_path: Path) -> None:
    png = (images / "a.png").read_bytes()
    (images / "loop.png").symlink_to("loop.png")
    (images / "broken.png").symlink_to("nowhere.png")
    (images / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(images / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(images)  # the names of sockets are short
        server.bind("socket.png")
        os.chdir(here)
    try:
        Path(os.fsdecode(os.fsencode(images) + b"/latin\xe9.png")).write_bytes(png)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    assert predict(images, tmp_path / "out") == 3
    got = column(tmp_path / "out" / "failures.csv", "got")
    assert got == {
        "broken": "a link to nowhere.png, which does not exist",
        "latin\\udce9": "",
        "loop": "a link that leads back to itself",
        "pipe": "a named pipe",
        "socket": "a socket",
        "zero": "a device",
    }
    assert list(column(tmp_path / "out" / "summary.csv", "objects")) == ["a", "z"]
    for path in images.iterdir():
        if path.name not in ("a.png", "z.png"):
            path.unlink()
    (images / "broken.png").write_bytes(png)
    assert predict(images, tmp_path / "out") == 0, "the same command goes on"
    assert list(column(tmp_path / "out" / "summary.csv", "objects")) == ["a", "broken", "z"]


@pytest.mark.parametrize("verb", ["predict", "data convert"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert run(*verb.split(), tmp_path / "pipe.png", "--out", tmp_path / "out") == 2
    assert "a named pipe" in capsys.readouterr().err


def test_odd_names_have_results(images: Path, tmp_path: Path) -> None:
    """The files of a long name get a shortened one, which is said."""
    (images / "a.png").rename(images / "12:30 a.png")
    (images / "z.png").rename(images / f"{LONG}.png")
    assert predict(images, tmp_path / "out") == 0
    notes = column(tmp_path / "out" / "summary.csv", "notes")
    (masks,) = tmp_path.glob("out/nnn*_masks.tif")
    assert (tmp_path / "out" / "12:30 a_masks.tif").is_file()
    assert masks.name.removesuffix("_masks.tif") in notes[LONG]
    labels = tifffile.imread(masks)
    tifffile.imwrite(masks, np.where(labels == 1, 0, labels))
    assert run("data", "convert", tmp_path / "out", "--out", tmp_path / "data") == 0  # finds the corrected file


@pytest.mark.parametrize("size", ["nan", "inf", "-1", "1e-30", "0"])
def test_a_pixel_size_that_cannot_be_true_is_unknown_and_said(images: Path, tmp_path: Path, size: str) -> None:
    pixels = cv2.imread(str(images / "a.png"), cv2.IMREAD_GRAYSCALE)
    path = images / "a.ome.tif"
    tifffile.imwrite(path, pixels, metadata={"axes": "YX"})
    with tifffile.TiffFile(path) as file:
        xml = file.ome_metadata
    xml = xml.replace("<Pixels ", f'<Pixels PhysicalSizeX="{size}" PhysicalSizeY="{size}" ')
    tifffile.imwrite(path, pixels, description=xml, metadata=None)
    assert predict(path, tmp_path / "out") == 0
    assert f"stated as {size} µm" in column(tmp_path / "out" / "summary.csv", "notes")["a"]
    with tifffile.TiffFile(tmp_path / "out" / "a_masks.tif") as file:
        assert file.pages[0].tags["ResolutionUnit"].value == 1


def test_an_image_that_does_not_fit_in_memory_fails_before_it_is_read(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(images / "huge.png"), np.zeros((6000, 6000, 3), np.uint8))
    monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", "0.06")
    assert predict(images, tmp_path / "out") == 3
    problems = column(tmp_path / "out" / "failures.csv", "problem")
    assert "needs more memory than there is" in problems["huge"]
    assert "tile by tile" in column(tmp_path / "out" / "failures.csv", "fix")["huge"]
    assert list(column(tmp_path / "out" / "summary.csv", "objects")) == ["a", "z"]


def test_a_folder_that_cannot_be_listed_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = images / "locked"
    locked.mkdir()
    plain = Path.iterdir

    def iterdir(folder: Path):
        if folder == locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return plain(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)  # root can list every folder
    assert predict(images, tmp_path / "out") == 3
    assert column(tmp_path / "out" / "failures.csv", "problem") == {"locked": UNLISTED}
    assert run("data", "convert", images, "--no-objects", "--out", tmp_path / "data") == 2
    assert UNLISTED in capsys.readouterr().err


def test_walk_reports_what_it_leaves_out(images: Path) -> None:
    os.mkfifo(images / "pipe")
    problems: list[InputError] = []
    assert [file.name for file in walk(images, problems=problems)] == ["a.png", "z.png"]
    assert [(error.where, error.got) for error in problems] == [(images / "pipe", "a named pipe")]


def test_a_folder_moved_while_it_is_written_is_an_error(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cellwright.prediction.image_writer import ImageWriter

    out, write = tmp_path / "out", ImageWriter.write

    def write_and_move(writer: ImageWriter, source: Any, number: int, *args, **kwargs) -> Any:
        done = write(writer, source, number, *args, **kwargs)
        if number == 1:
            out.rename(tmp_path / "elsewhere")
        return done

    monkeypatch.setattr(ImageWriter, "write", write_and_move)
    assert predict(images, out) == 2
    assert "moved or removed while it was" in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "elsewhere" / "predictions.json").exists()


def test_inputs_and_corrections_below_the_folder_are_protected(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "A", tmp_path / "B"
    for out in (first, second):
        assert predict(images, out) == 0
    link = tmp_path / "link"
    link.symlink_to("A")
    before = {path.name: path.read_bytes() for path in first.glob("*.*") if path.is_file()}
    for words in (("--out", first), ("--out", link), ("--out", first, "--dry-run")):
        assert run("fuse", first, second, "--save", "masks", "--overwrite", *words) == 2
        assert "an input of this command is part of the output" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in first.glob("*.*") if path.is_file()} == before
    labels = tifffile.imread(first / "a_masks.tif")
    tifffile.imwrite(first / "a_masks.tif", np.where(labels == 1, 0, labels))
    for words in (("--dry-run",), ()):
        assert predict(images, first, "--overwrite", *words) == 2
        message = capsys.readouterr().err
        assert "1 file (a_masks.tif)" in message
        assert "move the changed files to another folder" in message
    assert predict(images, first) == 0
    assert "changed since and kept: a_masks.tif" in capsys.readouterr().err
    (first / "a_masks.tif").unlink()
    assert predict(images, link, "--overwrite") == 0
    assert link.is_symlink()
    assert (first / "a_masks.tif").is_file()


def test_images_and_tiles_do_not_replace_each_other_unasked(images: Path, tmp_path: Path) -> None:
    tiles = ("predict", images / "a.png", "--tile", 128, "--diameter", 12, "--out")
    assert run(*tiles, tmp_path / "tiles") == 0
    assert predict(images, tmp_path / "tiles") == 2
    assert run(*tiles, tmp_path / "tiles") == 0
    assert predict(images, tmp_path / "whole") == 0
    assert run(*tiles, tmp_path / "whole") == 2
    assert predict(images, tmp_path / "whole") == 0
    assert predict(images, tmp_path / "tiles", "--overwrite") == 0
    assert not (tmp_path / "tiles" / "job.json").exists()
