"""The story of the page in Chromium: images dropped, predicted, gated, corrected, exported, evaluated, trained on.

One server, one worker and one browser do all of it, as starting them takes longer than what they do. See `test_jobs`.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from browser import READY, Visitor, visit
from drawn import run
from page_client import serve
from scipy import ndimage

from cellwright.data.synthetic import draw_field

EDITS = 5
HOST = "cellwrightPage.viewer.host.getBoundingClientRect()"
# The names of files that are dropped in folders.
NAMED = """import("/static/images.js").then(({named}) => {
  const files = ["p/y.png", "p/b/x.png", "p/c/x.png", "p/z.png", "q/z.png"].map((name) => [name, null]);
  return named(files).map(([name]) => name);
})"""
# What the pointer meets over the picture instead of the picture.
COVERED = f"""(() => {{
  const {{left, top, right, bottom}} = {HOST}, met = new Set();
  for (let y = top + 2; y < bottom; y += 8) for (let x = left + 2; x < right; x += 8) {{
    const element = document.elementFromPoint(x, y);
    if (!element.closest(".openseadragon-canvas")) met.add(element.id || element.className);
  }}
  return [...met];
}})()"""


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
    visitor.press("0")  # the crosshair begins in the middle of what is seen, which undo has moved
    visitor.at_rest()
    visitor.press("d", "k", "Enter", *["ArrowRight"] * 9, "Enter", *["ArrowDown"] * 9, "Enter", "Shift+Enter", "k")
    assert (visitor.labels() != before).any()
    visitor.press("Control+z")
    assert (visitor.labels() == before).all()


def gate(visitor: Visitor, project: Path) -> None:
    """Sliders hide objects at once; a range of the histogram is a filter of the export; the table leads to objects."""
    rows = sorted(visitor.objects(), key=lambda row: row["score"])
    scores = np.array([row["score"] for row in rows])
    limit = scores[np.diff(scores).argmax() :][:2].mean()  # in the widest gap: the slider has two decimals
    visitor.page.fill("#score-slider", f"{limit:.2f}")
    assert 0 < len(visitor.objects()) < len(rows)
    visitor.page.fill("#score-slider", "0")
    visitor.press("Alt+5")
    visitor.until("cellwrightPage.panels.measure.table")
    assert visitor.look("cellwrightPage.panels.measure.table.ids.length") == len(rows)
    visitor.press("v")
    visitor.click(middle(visitor.labels(), rows[0]["id"]))
    assert visitor.page.inner_text(".table-row[aria-selected=true] .cell") == str(rows[0]["id"])
    plot = visitor.page.locator(".plots canvas").first.bounding_box()
    assert plot is not None
    across = [plot["x"] + share * plot["width"] for share in (0.4, 0.7)]
    visitor.page.mouse.move(across[0], plot["y"] + 90)
    visitor.page.mouse.down()
    visitor.page.mouse.move(across[1], plot["y"] + 90, steps=3)
    visitor.page.mouse.up()
    (chosen,) = visitor.look("cellwrightPage.panels.measure.gates")
    assert chosen["column"] == "area_px"
    inside = {row["id"] for row in rows if chosen["low"] <= row["area"] <= chosen["high"]}
    assert 0 < len(inside) < len(rows)
    assert {row["id"] for row in visitor.objects()} == inside
    visitor.press("Alt+6")
    folder, _ = export(visitor, project, "label_images")
    for path in sorted((project / "predictions").glob("*/*_masks.tif")):
        labels = tifffile.imread(path)
        areas = np.bincount(labels.ravel())
        kept = np.flatnonzero((areas >= chosen["low"]) & (areas <= chosen["high"]))
        (exported,) = folder.rglob(f"{path.name.removesuffix('_masks.tif')}*.tif")
        assert (tifffile.imread(exported) == np.where(np.isin(labels, kept[kept > 0]), labels, 0)).all()
    visitor.press("Alt+5")
    visitor.page.click("#panel-measure button:has-text('Clear')")
    visitor.press("Escape", "Alt+2")
    assert len(visitor.objects()) == len(rows)


def paint(visitor: Visitor) -> None:
    """Nothing lies over the picture: the brush and the eraser reach its corner. Two fingers move it with any tool."""
    visitor.look("cellwrightPage.viewer.osd.viewport.zoomTo(2, null, true)")
    visitor.look("import('/static/dom.js').then(({toast}) => toast('A message'))")
    assert visitor.look(COVERED) == []
    left, top, right, bottom = visitor.look(f"(({{left, top, right, bottom}}) => [left, top, right, bottom])({HOST})")
    before, rev = visitor.labels(), visitor.look("cellwrightPage.editor.rev")
    corner = [(right - 4, bottom - 4), (right - 60, bottom - 4)]
    visitor.press("b")
    changed = []
    for tool in ("b", "e"):
        visitor.press(tool)
        visitor.page.mouse.move(*corner[0])
        visitor.page.mouse.down()
        visitor.page.mouse.move(*corner[1], steps=4)
        visitor.page.mouse.up()
        visitor.saved()
        changed.append(visitor.labels())
    (drawn,) = set(np.unique(changed[0])) - set(np.unique(before))
    y, x = visitor.look(f"cellwrightPage.viewer.imageOf({{clientX: {right - 5}, clientY: {bottom - 5}}})")
    assert changed[0][int(y), int(x)] == drawn
    assert not (changed[1] == drawn).any()
    x, y = (left + right) / 2, (top + bottom) / 2
    visitor.press("b")
    visitor.touch([(x, y)], [(x + 30, y)], [(x + 60, y)])
    assert visitor.look("cellwrightPage.editor.rev") == rev + 3
    zoom = visitor.look("cellwrightPage.viewer.place.zoom")
    visitor.touch([(x, y)], [(x + 2, y)], [(x, y), (x + 50, y)], [(x - 25, y), (x + 75, y)])
    assert visitor.look("cellwrightPage.viewer.place.zoom") == pytest.approx(2 * zoom, rel=0.1)
    visitor.press(*["Control+z"] * 3, "0")
    assert (visitor.labels() == before).all()
    visitor.at_rest()


def see_the_focus(visitor: Visitor) -> None:
    """Whatever has the focus has a ring whose contrast with what was there is at least 3:1 (AA)."""
    visitor.look("cellwrightPage.viewer.osd.viewport.zoomTo(3, null, true)")
    visitor.press("Alt+1")
    for name in ("#picture", ".segment[aria-pressed=true]", ".segment[aria-pressed=false]", ".tool[aria-pressed=true]"):
        one = visitor.page.locator(name).first
        box = one.bounding_box()
        assert box is not None
        clip = {"x": box["x"] - 4, "y": box["y"] - 4, "width": box["width"] + 8, "height": box["height"] + 8}
        lights = []
        for focus in (False, True):
            visitor.look("document.activeElement?.blur()")
            if focus:
                one.evaluate("(element) => element.focus({focusVisible: true})")
            picture = cv2.imdecode(np.frombuffer(visitor.page.screenshot(clip=clip), np.uint8), cv2.IMREAD_COLOR)
            part = picture / 255
            linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
            lights.append(linear @ [0.0722, 0.7152, 0.2126] + 0.05)
        contrast = np.maximum(*lights) / np.minimum(*lights)
        inside = 2 * (box["width"] + box["height"] - 12)  # a ring of one pixel within the element
        assert (contrast >= 3).sum() > inside, name
    visitor.press("0", "Escape")


def train(visitor: Visitor) -> dict[str, Any]:
    """Start a training, cancel it after some steps, and resume it; returns the result."""
    latest = "cellwrightPage.jobs.latest('train')"
    visitor.page.fill("#minutes", "0.9")
    visitor.page.click("#train")
    visitor.until(f"{latest}?.events.length")
    visitor.page.click("#panel-train button:has-text('Cancel')")
    visitor.until(f"{latest}.state === 'cancelled'")
    steps = visitor.look(f"{latest}.events.at(-1).step")
    visitor.page.fill("#minutes", "0.02")
    visitor.page.click("#panel-train button:has-text('Resume')")
    visitor.until(f"{latest}.state === 'done'", 180)
    job = visitor.look(latest)
    assert job["events"][-1]["step"] > steps
    assert job["result"]["held_out"]
    assert set(job["result"]["before"]) == set(job["result"]["after"])
    return job["result"]


def evaluate(visitor: Visitor) -> None:
    """The errors of the stored predictions are listed, and lead to their places; the report has its style."""
    visitor.press("Alt+4")
    visitor.job("evaluate", "#evaluate")
    visitor.page.click("#panel-evaluate .error-list button >> nth=0")
    visitor.until("cellwrightPage.marks.length")
    error = visitor.look("cellwrightPage.panels.evaluate.errors[0]")
    assert visitor.look("cellwrightPage.info.id") == error["image"]
    visitor.at_rest()
    y0, x0, y1, x1 = error["box"]
    (left, top), (right, bottom) = (
        visitor.look(f"cellwrightPage.viewer.screenOf([{y}, {x}])") for y, x in ((y0, x0), (y1, x1))
    )
    width, height = visitor.look(
        "(({clientWidth, clientHeight}) => [clientWidth, clientHeight])(cellwrightPage.viewer.host)"
    )
    assert 0 < left < right < width
    assert 0 < top < bottom < height
    with visitor.page.context.expect_page() as opened:
        visitor.page.click("text=Report of the evaluation")
    report = Visitor(opened.value)
    report.page.wait_for_load_state()
    assert report.page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "960px"
    assert report.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert report.problems == []
    report.page.close()
    visitor.press("Escape", "0")


def add_class(visitor: Visitor) -> None:
    """A new class without the mouse: the dialog begins in its field, and Enter adds."""
    visitor.press("v")
    row = visitor.objects()[0]
    visitor.click(middle(visitor.labels(), row["id"]))
    visitor.look("cellwrightPage.reload()")  # as the end of a job does, whenever it comes: the selection stays
    visitor.page.select_option("#tool-bar select", "add")
    visitor.page.keyboard.type("mitotic")
    visitor.page.keyboard.press("Enter")
    visitor.until(f"cellwrightPage.classes[cellwrightPage.objects.row({row['id']}).class] === 'mitotic'")


def fail_for_one(visitor: Visitor, folder: Path) -> None:
    """A folder of the server is opened; its image cannot be predicted without more words, which is said."""
    folder.mkdir()
    tifffile.imwrite(folder / "two.tif", np.zeros((2, 64, 64), np.uint16), metadata={"axes": "CYX"})
    visitor.page.click("nav [aria-label='Open a folder']")
    visitor.page.click(".folder-list button")
    visitor.page.click(f".folder-list button:has-text('{folder.name}')")
    visitor.until(f"document.querySelector('.dialog input').value.endsWith('{folder.name}')")
    visitor.page.click(".dialog .primary")
    visitor.until("cellwrightPage.images.images.length === 4")
    visitor.page.select_option("#model", "classical")
    visitor.job("predict", "#predict-all")
    assert "several channels" in visitor.page.inner_text("#panel-predict .job-panel .problem")


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


def undo_and_redo(visitor: Visitor, predicted: np.ndarray, corrected: np.ndarray) -> None:
    """All edits are undone, and done again after the page was loaded again."""
    visitor.press(*["Control+z"] * EDITS)
    assert (visitor.labels() == predicted).all()
    visitor.page.reload()
    visitor.until(READY)
    visitor.press(*["Control+Shift+z"] * EDITS)
    assert (visitor.labels() == corrected).all()


def correct_beside_another_tab(visitor: Visitor) -> np.ndarray:
    """`correct`, which another tab sees."""
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
    return corrected


def tell(tmp_path: Path, chromium: str, worker: Any) -> None:
    """The whole story. worker: see `JobQueue`."""
    images = draw_images(tmp_path / "images")
    project = tmp_path / "project"
    with serve(project, tmp_path, worker) as link, visit(link, chromium) as visitor:
        (tmp_path / "images" / "notes.txt").touch()
        visitor.drop([tmp_path / "images"])
        visitor.until(f"({READY}) && cellwrightPage.images.images.length === {len(images)}")
        assert "3 images added; 1 other file left out" in visitor.page.inner_text("#toasts")
        assert visitor.look(NAMED) == ["y.png", "b_x.png", "c_x.png", "p_z.png", "q_z.png"]
        visitor.page.select_option("#model", "classical")
        visitor.job("predict", "#predict-all")
        visitor.until("cellwrightPage.objects.count")
        predicted = visitor.labels()
        gate(visitor, project)
        corrected = correct_beside_another_tab(visitor)
        assert len(visitor.objects()) == len(np.unique(predicted)) - 1 - 2 - 1 + 1 + 1
        undo_and_redo(visitor, predicted, corrected)
        draw_with_keys(visitor)
        paint(visitor)
        see_the_focus(visitor)
        visitor.press("Alt+6")
        exported = [export(visitor, project, name) for name in ("geojson", "label_images")]
        evaluate(visitor)
        visitor.press(".", "q", "Alt+3")  # another corrected image, which is held out
        visitor.until("cellwrightPage.panels.train.candidates.length === 2")
        trained = train(visitor)
        visitor.press(",", "Alt+2")
        visitor.page.select_option("#model", trained["model"])
        visitor.job("predict", "#predict-one")
        visitor.until("cellwrightPage.editor.undoName?.includes('predict')")
        visitor.press("Control+z")
        assert (visitor.labels() == corrected).all()
        add_class(visitor)
        fail_for_one(visitor, tmp_path / "plate")
        assert visitor.problems == []
    check_exports(exported, corrected, tmp_path)
    run("predict", tmp_path / "images", "--model", "classical", "--save", "masks", "--out", tmp_path / "cli", "--quiet")
    assert (tifffile.imread(tmp_path / "cli" / "field 0_masks.tif") == predicted).all()


def check_exports(exported: list[tuple[Path, str]], corrected: np.ndarray, folder: Path) -> None:
    """The commands that the page showed write the same files."""
    for k, (files, command) in enumerate(exported):
        words = shlex.split(command)
        words[words.index("--out") + 1] = str(folder / f"export {k}")
        assert run(*words[1:]) == 0
        same_files(files, folder / f"export {k}")
    (masks,) = exported[1][0].rglob("field 0*.tif")
    assert (tifffile.imread(masks) == corrected).all()
