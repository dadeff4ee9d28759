"""The macro for ImageJ and the script for QuPath, which call the command line. ImageJ: ``./dev imagej``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from tests.cli.drawn import run

from cellwright.data.synthetic import FieldLook, draw_field

ROOT = Path(__file__).parents[1]
MACRO, SCRIPT = ROOT / "integrations/imagej/cellwright.ijm", ROOT / "integrations/qupath/cellwright.groovy"
IMAGEJ = Path("/usr/share/java/ij.jar")
needs_imagej = pytest.mark.skipif(
    not (IMAGEJ.is_file() and shutil.which("java") and shutil.which("xvfb-run") and shutil.which("xauth")),
    reason="needs ImageJ, Java and Xvfb: ./dev imagej",
)

# What ImageJ runs: it opens an image, runs our macro, and says what there is.
_CALLER = """
given = split(getArgument(), "\\n");
open(given[0]);
Stack.setPosition(1, 2, 1);
runMacro(given[1], "command=" + given[2] + "\\nmodel=" + given[3] + "\\nchannel=0");
for (i = 1; i <= nImages; i++) { selectImage(i); getStatistics(area, mean, min, max); print(getTitle() + ": " + max); }
if (nImages > 1) { print(Table.title + ": " + Table.size + " rows"); }
"""


@pytest.mark.parametrize("file", [MACRO, SCRIPT])
def test_the_options_are_those_of_predict(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "--help") == 0
    said = capsys.readouterr().out
    used = set(re.findall(r'(?<=")--[a-z-]+', file.read_text()))
    assert {"--model", "--out", "--channel"} <= used
    assert [option for option in used if not re.search(rf"{option}\b", said)] == []


def imagej(folder: Path, model: str) -> str:
    """What ImageJ prints after our macro has segmented the first channel of the second plane of a drawn stack."""
    image, _ = draw_field(1, (120, 150), 10, FieldLook(stain="fluorescence"))
    stack = np.zeros((3, 2, 120, 150), np.uint8)
    stack[1, 0] = image.data[:, :, 0]
    tifffile.imwrite(folder / "a stack.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    cv2.imwrite(str(folder / "plane.png"), stack[1, 0])
    command = folder / "cellwright"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cellwright "$@"\n')
    command.chmod(0o755)
    (folder / "caller.ijm").write_text(_CALLER)
    given = "\n".join(map(str, (folder / "a stack.tif", MACRO, command, model)))
    java = ["java", f"-Djava.io.tmpdir={folder}", "-cp", str(IMAGEJ), "ij.ImageJ", "-ijpath", str(folder)]
    words = ["xvfb-run", "-a", *java, "-batch", str(folder / "caller.ijm"), given]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    return done.stdout + done.stderr


@needs_imagej
def test_the_macro_shows_what_cellwright_finds(tmp_path: Path) -> None:
    said = imagej(tmp_path, "classical")
    assert run("predict", tmp_path / "plane.png", "--model", "classical", "--out", tmp_path / "out") == 0
    n = int(tifffile.imread(tmp_path / "out" / "plane_masks.tif").max())
    assert n > 5
    assert f"cellwright: {n} objects in a stack.tif, {n} ROIs" in said
    assert f"a stack.tif labels: {n}" in said
    assert f"a stack.tif measurements: {n} rows" in said


@needs_imagej
def test_the_macro_shows_why_cellwright_fails(tmp_path: Path) -> None:
    said = imagej(tmp_path, "nothing")
    assert "cellwright did not segment this image. It said:" in said
    assert "no such model" in said
