"""Reports: one HTML page each, complete in itself, the same for the same results."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.config import recipe as recipes
from cellwright.core.claim import Claim
from cellwright.core.files import write_json, write_text
from cellwright.data.synthetic import write_demo_dataset
from cellwright.report.job_report import job_page
from cellwright.report.page import MAX_LISTED, Command, Page, Section, Table
from cellwright.report.prediction_report import MAX_PICTURES, prediction_page
from cellwright.report.run_report import run_page
from cellwright.report.svg import Interval, Line, bars, histogram, intervals, line_chart

NAMES = ("<script>alert(1)<", 'a & "b"', "=2+3")
VOID = {"meta", "img", "br", "link"}


class Tags(HTMLParser):
    """Checks that elements are closed in order, and collects what a page refers to and says."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.references: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += " " + data if "style" not in self.open else ""


def checked(html: str) -> Tags:
    """A page that is well formed, and needs no network and no script."""
    assert html.startswith("<!DOCTYPE html>")
    tags = Tags(html)
    assert all(reference.startswith("data:image/") for reference in tags.references)
    assert not tags.seen & {"script", "iframe", "link", "object", "embed", "form", "base"}
    assert not re.search(r"url\(|@import|https?://|file://", html)
    return tags


class Blobs:
    """Bright objects; the upper ones are of the first class."""

    class_names = ("<b>round</b>", "=1+1")

    def predict(self, images: Any) -> list[cw.Instances]:
        found = []
        for image in images:
            bright = (image.data[:, :, 0] > 99).astype(np.uint8)
            masks, _ = cw.MaskSet.from_label_map(cv2.connectedComponents(bright)[1])
            upper = (masks.boxes[:, 1] > 30).astype(int)
            found.append(cw.Instances.from_masks(masks, scores=np.linspace(0.5, 0.9, len(masks)), class_ids=upper))
        return found


@pytest.fixture(autouse=True)
def draws_charts() -> None:
    """Not here: the charts of pages are SVG."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for k, name in enumerate(NAMES):
        pixels = np.zeros((64, 80), np.uint8)
        for x in range(5, 70, 20):
            cv2.circle(pixels, (x + k, 15 + 25 * (x % 2 == k % 2)), 6, 200, -1)
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return folder


@pytest.fixture(scope="module")
def predicted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predicted") / "out"
    cw.predict_folder(images, model=Blobs(), out=out)
    return out


def test_a_prediction_leaves_its_report_which_is_the_same_each_time(
    images: Path, predicted: Path, tmp_path: Path
) -> None:
    html = (predicted / "report.html").read_text()
    tags = checked(html)
    assert "12 objects in 3 images" in tags.text
    assert "<b>round" not in html
    expected = "No image failed", "cellwright predict IMAGES", "circularity", "python 3."
    for text in (*NAMES, *Blobs.class_names, *expected):
        assert text in tags.text, text
    assert len(tags.references) == 3
    assert "report.html" in getattr(Claim.read(predicted), "files", {})
    cw.predict_folder(images, model=Blobs(), out=tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_text() == html
    assert run("report", predicted, "--out", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text() == html
    assert run("report", predicted, "--out", predicted / "report.html") == 2  # it belongs to the prediction


def test_corrected_objects_are_shown(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cw.predict_folder(images, model=Blobs(), out=out)
    before = prediction_page(out)
    masks = out / f"{NAMES[1]}_masks.tif"
    labels = tifffile.imread(masks)
    labels[labels > 2] = 0
    tifffile.imwrite(masks, labels)
    page = prediction_page(out)
    assert (before.title, page.title) == ("12 objects in 3 images", "10 objects in 3 images")
    tags = checked(page.html())
    assert f"objects of 1 image ({NAMES[1]}) were corrected after the prediction" in tags.text
    assert "2 objects, corrected" in tags.text
    tifffile.imwrite(masks, np.full((64, 80), 9, np.uint32))
    (out / f"{NAMES[1]}_rois.zip").write_bytes(b"damaged")
    assert "corrections of 1 image (a &amp; &#34;b&#34;) are not shown: " in prediction_page(out).html()


def test_a_prediction_without_objects_and_one_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "empty.png"), np.zeros((40, 40), np.uint8))
    (folder / "<i>broken.png").write_bytes(b"no picture")
    assert run("predict", folder, "--model", "classical", "--out", tmp_path / "out") == 3
    tags = checked((tmp_path / "out" / "report.html").read_text())
    for text in (
        "0 objects in 1 image",
        "1 image could not be predicted and is missing here",
        "<i>broken",
        "no objects",
    ):
        assert text in tags.text, text
    (folder / "empty.png").unlink()
    assert run("predict", folder, "--model", "classical", "--out", tmp_path / "none") == 3
    assert "0 objects in 0 images" in checked((tmp_path / "none" / "report.html").read_text()).text


def test_at_most_some_images_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(50):
        cv2.imwrite(str(folder / f"{k:02d}.png"), np.full((8, 8), 4 * k, np.uint8))
    cw.predict_folder(folder, model=Blobs(), out=tmp_path / "out", save=["overlay"])
    tags = checked((tmp_path / "out" / "report.html").read_text())
    assert len(tags.references) == MAX_PICTURES
    assert f"{MAX_PICTURES} of 50 images, evenly spaced" in tags.text
    assert f"The first {MAX_LISTED} of 50 rows; summary.csv has them all." in tags.text
    assert "Measurements were not written" in tags.text


def test_an_evaluation_and_a_comparison(predicted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    cw.predict_folder(cw.read_dataset(predicted), model=Blobs(), out=other, save=["masks"])
    words = ("--data", predicted, "--out", tmp_path / "eval")
    assert run("evaluate", other, *words) == 0
    html = (tmp_path / "eval" / "report.html").read_text()
    tags = checked(html)
    for text in (
        "12 predictions against 12 annotated objects",
        "95 % confidence intervals",
        "Errors by kind",
        "AP@all",
    ):
        assert text in tags.text, text
    assert "cellwright evaluate other --data out --out EVALUATION" in tags.text
    assert run("report", tmp_path / "eval", "--out", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text() == html
    assert run("evaluate", other, predicted, "--data", predicted, "--pictures", "0", "--out", tmp_path / "two") == 0
    both = checked((tmp_path / "two" / "report.html").read_text()).text
    assert "out compared with other" in both
    assert both.count("the same to the pixel") == 1  # a note on both predictions
    assert "1.000" in checked((tmp_path / "two" / "out" / "report.html").read_text()).text


def test_a_tile_job(tmp_path: Path) -> None:
    pixels = np.zeros((200, 260), np.uint8)
    for y in range(20, 190, 40):
        for x in range(20, 250, 40):
            cv2.circle(pixels, (x, y), 8, 180, -1)
    tifffile.imwrite(tmp_path / "large.tif", pixels, imagej=True, resolution=(2, 2), metadata={"unit": "um"})
    out = tmp_path / "job"
    model = cw.Model.from_segmenter(Blobs()).with_options(score=0.2)
    cw.predict_tiles(tmp_path / "large.tif", model=model, out=out, tile=128, labels="tiff")
    html = (out / "report.html").read_text()
    tags = checked(html)
    for text in ("30 objects in large.tif", "0.1 x 0.13", "median area, µm²", "density within 20 px of a seam"):
        assert text in tags.text, text
    assert "cellwright predict large.tif --model Blobs --score 0.2 --tile 128 --labels tiff --out JOB" in tags.text
    assert run("report", out, "--out", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text() == html
    assert str(tmp_path) not in html
    tifffile.imwrite(out / "labels.tif", np.zeros((200, 260), np.uint32))
    assert "The label image was corrected after the prediction" in checked(job_page(out).html()).text
    (out / "summary.csv").unlink()
    assert "This job is not finished" in checked(job_page(out).html()).text


def _run_folder(folder: Path, *, last: str = "0.5") -> Path:
    write_text(folder / "recipe.yaml", recipes.dump(recipes.load("synthetic/demo").resolved()))
    environment: dict[str, Any] = {
        "inputs": {"data": "d1"},
        "sources": ["our own", "a & b"],
        "device": "cpu",
        "versions": {"torch": "2.9", "timm": None},
    }
    write_json(folder / "environment.json", environment)
    rows = [f"{k},0.01,{2 / (k + 1)},{1 / (k + 1)},{1 / (k + 1)},0.9" for k in range(400)]
    header = "step,lr,loss,loss_mask,loss_box,step_s"
    write_text(folder / "log.csv", "\n".join([header, *rows, f"400,0.01,{last},0.2,0.3,0.9"]) + "\n")
    return folder


def test_a_training_that_is_not_finished_or_diverged(tmp_path: Path) -> None:
    tags = checked(run_page(_run_folder(tmp_path / "stopped")).html())
    for text in (
        "This run is not finished: stopped at step 400",
        "Parts of the loss",
        "no validation images",
        "torch 2.9",
        "own, a & b",
    ):
        assert text in tags.text, text
    assert "0.9" not in re.findall(r"step_s.{9}", tags.text)
    diverged = checked(run_page(_run_folder(tmp_path / "diverged", last="nan")).html())
    assert "This run diverged at step 400" in diverged.text
    assert run("report", tmp_path / "stopped", "--out", tmp_path / "page.html") == 0


def test_a_training_shows_the_errors_of_its_best_model_and_what_it_changed(
    tmp_path: Path, closing_evaluation: None
) -> None:
    data = write_demo_dataset(tmp_path / "data", splits=(("train", 1), ("val", 2)), image_hw=(64, 64), n_objects=4)
    small = ["model.backbone.width=8", "model.fpn.channels=16", "augment.crop_px=64", "train.batch_size=1"]
    plan = {"data": data, "set": [*small, "train.length=1 step", "train.warmup=null"], "device": "cpu"}
    first = cw.train("synthetic/demo", out=tmp_path / "first", **plan)
    tags = checked((first.folder / "report.html").read_text())
    for text in ("95 % confidence intervals", "matching threshold", "Objects per image", "Letters: P poorly outlined"):
        assert text in tags.text, text
    assert "Before and after" not in tags.text
    assert len(tags.references) == 2  # both validation images
    second = cw.train("synthetic/demo", out=tmp_path / "second", init=str(first.folder), **plan)
    validation = second.folder / "validation"
    rows = (validation / "comparison.csv").read_text().splitlines()
    assert rows[0].startswith("metric,before,after,difference")
    values = dict(row.split(",")[::2][:2] for row in rows[1:])  # metric: after
    assert float(values["accuracy@0.5"]) == pytest.approx(second.metrics["accuracy@0.5"])
    assert "Before: the model that training started from." in (second.folder / "report.html").read_text()
    files = getattr(Claim.read(second.folder), "files", {})
    assert {f"validation/{name}" for name in ("metrics.json", "comparison.csv", "per_image.csv")} <= set(files)


def test_runs_with_several_seeds(tmp_path: Path) -> None:
    for seed, value in enumerate((0.4, 0.6)):
        folder = _run_folder(tmp_path / f"seed_{seed}")
        (folder / "DONE").write_text("400 of 400 steps\n")
        best = {"step": 400, "chosen_by": "pq", "metrics": {"pq": value, "sq": 0.5}}
        write_json(folder / "metrics.json", {"schema_version": 1, "step": 400, "metrics": {}, "best": best})
    runs = [{"seed": seed, "folder": f"seed_{seed}"} for seed in range(3)]
    write_json(tmp_path / "repeat.json", {"runs": runs})
    assert run("report", tmp_path, "--out", tmp_path / "page.html") == 0
    tags = checked((tmp_path / "page.html").read_text())
    for text in ("2 of 3 runs are finished", "0.500 ± 0.141", "panoptic quality", "--repeat 3", "own, a & b"):
        assert text in tags.text, text


def test_a_folder_that_is_no_result(predicted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", tmp_path, "--out", tmp_path / "page.html") == 2
    assert "there is no report on this" in capsys.readouterr().err
    write_json(tmp_path / "repeat.json", {"runs": []})
    assert run("report", tmp_path, "--out", tmp_path / "page.html") == 2
    assert "contains no run" in capsys.readouterr().err
    shutil.copytree(predicted, tmp_path / "damaged")
    (tmp_path / "damaged" / "summary.csv").write_bytes(b"image,objects\n\xff,x\n")
    assert run("report", tmp_path / "damaged", "--out", tmp_path / "page.html") == 2
    assert "damaged" in capsys.readouterr().err
    Claim("predict", {}, "writing").write(tmp_path / "begun")
    assert run("report", tmp_path / "begun", "--out", tmp_path / "page.html") == 2
    assert "not complete" in capsys.readouterr().err


def test_everything_on_a_page_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>\x1b[2J\udce9"
    command = Command(
        "predict", [evil], {"score": 0.5, "channel": ["DAPI", evil], "views": None, "remove_border": True}
    )
    parts = [Table((evil, "n"), [(evil, 3)], title=evil, note=evil), command]
    html = Page(evil, evil, [(evil, evil)], [Section(evil, parts), Section("nothing", [])], evil, evil).html()
    tags = checked(html)
    assert "img" not in tags.seen
    assert "nothing" not in tags.text
    assert "--score 0.5 --channel DAPI '<img" in tags.text
    assert tags.text.rstrip().count("--remove-border") == 1


def test_charts_show_their_values() -> None:
    counts = histogram({"<a>": np.array([1.0] * 3 + [2.0] * 5), "b": np.zeros(0)}, "<x>", whole=True)
    assert "&lt;x&gt;" in counts
    assert "<a>" not in counts
    assert ">1,234<" in bars(["one", "two"], {"n": [1234, 0], "m": [2, np.nan]}, "objects")
    assert ">0.500<" in intervals([Interval("AP", 0.5, 0.4, 0.6), Interval("none", np.nan, np.nan, np.nan)])
    steps = np.arange(5000.0)
    long = line_chart({"loss": Line(steps, np.exp(-steps / 900))}, "step", "loss")
    assert len(long) < 30_000
    for empty in (histogram({}, "x"), bars([], {}, "x"), intervals([]), line_chart({}, "x", "y")):
        Tags(str(empty))
    constant = histogram({"a": np.zeros(4)}, "x"), line_chart({"a": Line(np.ones(1), np.ones(1))}, "x", "y", log_y=True)
    assert not any(re.search(r"\bnan\b", chart) for chart in constant)


def test_notebooks_show_pictures() -> None:
    labels = np.zeros((900, 1200), int)
    labels[5:300, 700:900], labels[400:402, 1:3] = 1, 2
    cells = cw.Instances.from_label_map(labels, scores=[0.9, 0.8])
    nothing = cw.Instances.empty((10, 12), scored=True)
    report = cw.evaluate(cells, cells, image_ids=["<b>"])
    undefined = cw.evaluate([], [], class_names=["<b>"])
    for shown in (cells, nothing, cw.Prediction.of(cells), cw.Prediction.of(nothing), report, undefined):
        html = getattr(shown, "_repr_html_")()  # noqa: B009 - as notebooks do
        tags = Tags(html)
        assert tags.seen & {"img", "svg"}
        assert not tags.seen & {"script", "b2"}
        assert len(html) < 20_000
    assert "2 objects" in getattr(cells, "_repr_html_")()  # noqa: B009
    assert json.dumps("2 correct")[1:-1] in getattr(report, "_repr_html_")()  # noqa: B009
