"""The story of the page in Chromium: images dropped, predicted, corrected, undone, redone, trained on, exported."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from browser import READY, Visitor, browser_or_skip, server, visit
from drawn import run
from scipy import ndimage

from cellwright.data.synthetic import draw_field

EDITS = 5


@pytest.fixture(scope="module")
def chromium() -> str:
    return browser_or_skip()


def draw_images(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"field {k}.png" for k in range(3)]
    for k, path in enumerate(paths):
        cv2.imwrite(str(path), draw_field(k, (160, 200), 14)[0].data[:, :, ::-1])
    return paths


def middle(labels: np.ndarray, number: int) -> tuple[float, float]:
    """A pixel well inside an object."""
    inside = ndimage.distance_transform_edt(np.pad(labels == number, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    return float(y) + 0.5, float(x) + 0.5


def neighbours(labels: np.ndarray) -> tuple[int, int]:
    """Two objects that lie close together."""
    apart, (rows, columns) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    nearest = labels[rows, columns]
    here, right = nearest[:, :-1], nearest[:, 1:]
    far = np.where(here == right, np.inf, apart[:, :-1] + apart[:, 1:])
    y, x = np.unravel_index(int(far.argmin()), far.shape)
    return int(here[y, x]), int(right[y, x])


def correct(visitor: Visitor) -> np.ndarray:
    """Delete two objects, merge two, split one, draw one; returns the labels."""
    labels = visitor.labels()
    first, second, *others = sorted(visitor.objects(), key=lambda row: -row["area"])
    visitor.press("x")
    for row in others[-2:]:
        visitor.click(middle(labels, row["id"]))
    labels = visitor.labels()
    pair = neighbours(labels)
    visitor.press("m")
    for number in pair:
        visitor.click(middle(labels, number))
    whole = next(row for row in (first, second) if row["id"] not in pair)
    x = middle(labels, whole["id"])[1]
    visitor.press("s")
    visitor.drag([(whole["y0"] - 2, x), (whole["y1"] + 2, x)])
    free = ndimage.distance_transform_edt(visitor.labels() == 0)
    free[:12], free[-12:], free[:, :12], free[:, -12:] = 0, 0, 0, 0
    y, x = np.unravel_index(int(free.argmax()), free.shape)
    visitor.press("d")
    visitor.drag([(y - 6, x - 6), (y - 6, x + 6), (y + 6, x + 6), (y + 6, x - 6), (y - 6, x - 6)])
    return visitor.labels()


def draw_with_keys(visitor: Visitor) -> None:
    """Draw a triangle in the middle of the picture with the crosshair, and take it back."""
    before = visitor.labels()
    visitor.press("d", "k", "Enter", *["ArrowRight"] * 9, "Enter", *["ArrowDown"] * 9, "Enter", "Shift+Enter", "k")
    assert (visitor.labels() != before).any()
    visitor.press("Control+z")
    assert (visitor.labels() == before).all()


def look_around(visitor: Visitor) -> None:
    """The slider hides objects at once; the table and the picture select the same object."""
    rows = sorted(visitor.objects(), key=lambda row: row["score"])
    limit = (rows[-2]["score"] + rows[-1]["score"]) / 2
    visitor.page.fill("#score-slider", f"{limit:.2f}")
    assert 0 < len(visitor.objects()) < len(rows)
    visitor.page.fill("#score-slider", "0")
    visitor.press("Alt+5")
    visitor.until("cellwrightPage.panels.measure.table")
    assert visitor.look("cellwrightPage.panels.measure.table.ids.length") == len(rows)
    visitor.press("v")
    visitor.click(middle(visitor.labels(), rows[0]["id"]))
    assert visitor.page.inner_text(".table-row[aria-selected=true] .cell") == str(rows[0]["id"])
    visitor.press("Escape", "Alt+2")


def add_class(visitor: Visitor) -> None:
    """A new class without the mouse: the dialog begins in its field, and Enter adds."""
    visitor.press("v")
    row = visitor.objects()[0]
    visitor.click(middle(visitor.labels(), row["id"]))
    visitor.page.select_option("#tool-bar select", "add")
    visitor.page.keyboard.type("mitotic")
    visitor.page.keyboard.press("Enter")
    visitor.until(f"cellwrightPage.classes[cellwrightPage.objects.row({row['id']}).class] === 'mitotic'")


def fail_for_one(visitor: Visitor, path: Path) -> None:
    """An image that cannot be predicted without more words is named, beside those that were predicted."""
    tifffile.imwrite(path, np.zeros((2, 64, 64), np.uint16), metadata={"axes": "CYX"})
    visitor.drop([path])
    visitor.until("cellwrightPage.images.images.length === 4")
    visitor.page.select_option("#model", "classical")
    visitor.job("predict", "#predict-all")
    assert "several channels" in visitor.page.inner_text("#panel-predict .problem")


def same_files(folder: Path, other: Path) -> None:
    """The files of two exports hold the same; names of GeoJSON objects are drawn by lot."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*") if ".cellwright" not in path.parts)
    assert names == sorted(path.relative_to(other) for path in other.rglob("*.*") if ".cellwright" not in path.parts)
    assert names
    for name in names:
        if name.suffix == ".geojson":
            mine, theirs = (json.loads((root / name).read_text()) for root in (folder, other))
            assert [f["geometry"] for f in mine["features"]] == [f["geometry"] for f in theirs["features"]]
        else:
            assert (tifffile.imread(folder / name) == tifffile.imread(other / name)).all()


def export(visitor: Visitor, project: Path, name: str) -> tuple[Path, str]:
    """Export all images; returns the folder of the files, and the command that the page shows."""
    visitor.page.select_option("#export-format", name)
    job = visitor.job("export", "#export")
    assert job["result"]["n_files"] == 3, job
    return project / job["result"]["folder"], job["command"]


def test_story(chromium: str, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images")
    project = tmp_path / "project"
    with server("--out", project) as link, visit(link, chromium) as visitor:
        visitor.drop(images)
        visitor.until(f"({READY}) && cellwrightPage.images.images.length === 3")
        visitor.page.select_option("#model", "classical")
        visitor.job("predict", "#predict-all")
        visitor.until("cellwrightPage.objects.count")
        predicted = visitor.labels()
        look_around(visitor)
        other = Visitor(visitor.page.context.new_page())
        other.page.goto(visitor.page.url)
        other.until(READY)
        visitor.page.bring_to_front()
        corrected = correct(visitor)
        other.until(f"cellwrightPage.editor.rev === {visitor.look('cellwrightPage.editor.rev')}")
        assert other.objects() == visitor.objects()
        other.page.close()
        in_parts = visitor.drawn()
        visitor.look("cellwrightPage.viewer.invalidate()")
        visitor.saved()
        assert visitor.drawn() == in_parts  # an edit draws the changed boxes only
        assert len(visitor.objects()) == len(np.unique(predicted)) - 1 - 2 - 1 + 1 + 1
        visitor.press(*["Control+z"] * EDITS)
        assert (visitor.labels() == predicted).all()
        visitor.page.reload()
        visitor.until(READY)
        visitor.press(*["Control+Shift+z"] * EDITS)
        assert (visitor.labels() == corrected).all()
        draw_with_keys(visitor)
        visitor.press("Alt+6")
        exported = [export(visitor, project, name) for name in ("geojson", "label_images")]
        visitor.press(".", "q", "Alt+3")  # another corrected image, which is held out
        visitor.until("cellwrightPage.panels.train.candidates.length === 2")
        visitor.page.fill("#minutes", "0.02")
        trained = visitor.job("train", "#train", 120)["result"]
        assert trained["held_out"]
        assert set(trained["before"]) == set(trained["after"])
        visitor.press(",", "Alt+2")
        visitor.page.select_option("#model", trained["model"])
        visitor.job("predict", "#predict-one")
        visitor.until("cellwrightPage.editor.undoName?.includes('predict')")
        visitor.press("Control+z")
        assert (visitor.labels() == corrected).all()
        add_class(visitor)
        fail_for_one(visitor, tmp_path / "two.tif")
        assert visitor.problems == []
    for k, (folder, command) in enumerate(exported):
        words = shlex.split(command)
        words[words.index("--out") + 1] = str(tmp_path / f"export {k}")
        assert run(*words[1:]) == 0
        same_files(folder, tmp_path / f"export {k}")
    (masks,) = exported[1][0].rglob("field?0*.tif")
    assert (tifffile.imread(masks) == corrected).all()
    run("predict", tmp_path / "images", "--model", "classical", "--save", "masks", "--out", tmp_path / "cli", "--quiet")
    assert (tifffile.imread(tmp_path / "cli" / "field 0_masks.tif") == predicted).all()
