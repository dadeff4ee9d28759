"""Tile jobs on the page: their labels stay where they are, and edits lie above them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

pytest.importorskip("fastapi")
from drawn import run
from page_client import open_page
from test_project import edit, labels_of

import cellwright as cw
from cellwright.core.claim import Claim
from cellwright.core.file_identity import FileIdentity
from cellwright.data.synthetic import draw_field
from cellwright.serve.starts import start_of_job

HW = (600, 700)


def write_job(folder: Path, seed: int = 0) -> Path:
    """The folder of a job that predicted the upper left 400 x 500 pixels of ``field.tif``, which lies beside it."""
    image, truth = draw_field(seed, HW, 40)
    folder.mkdir(parents=True)
    tifffile.imwrite(folder.parent / "field.tif", image.data, photometric="rgb")
    inside = truth.masks.window(0, 0, 400, 500)
    labels = np.zeros(HW, np.uint32)
    labels[:400, :500] = inside.to_label_map()
    tifffile.imwrite(folder / "labels.tif", labels, tile=(64, 64), compression="zlib")
    cells = cw.Instances.from_label_map(labels)
    x0, y0, x1, y1 = cells.masks.boxes.T
    columns = {"bbox_x0_px": x0, "bbox_y0_px": y0, "bbox_x1_px": x1, "bbox_y1_px": y1, "area_px": cells.masks.areas}
    table = pd.DataFrame({"label": cells.ids, "class": "nucleus", "score": 0.5, **columns})
    table.to_csv(folder / "objects.csv.gz", index=False)
    source = {"path": str(folder.parent / "field.tif"), "fingerprint": "", "image_hw": HW, "pixel_size_um": None}
    area = shapely.to_wkt(shapely.box(0, 0, 500, 400), rounding_precision=-1)
    content = {"source": source, "request": {"options": {"roi": ["0,0,400,500"]}}, "class_names": ["nucleus"]}
    regions = {"words": ["0,0,400,500"], "area": area}
    (folder / "job.json").write_text(json.dumps(content | {"regions": regions}))
    Claim("predict", {}, "complete", {"labels.tif": FileIdentity.of(folder / "labels.tif")}).write(folder)
    return folder


def test_a_tile_job_is_corrected_where_it_lies(tmp_path: Path) -> None:
    job, project = write_job(tmp_path / "job"), tmp_path / "project"
    before, expected = (job / "labels.tif").read_bytes(), tifffile.imread(job / "labels.tif")
    with open_page(job, project) as client:
        facts = client.get("/api/images/field").json()
        assert "not predicted is marked" in facts["notes"][0]
        assert np.array_equal(labels_of(client, "field"), expected)
        assert np.array_equal(labels_of(client, "field", level=1), expected[::2, ::2])
        objects = client.get("/api/images/field/objects").json()
        assert objects["area"] == np.bincount(expected.ravel())[objects["id"]].tolist()
        edit(client, "delete", image="field", ids=objects["id"][:1])
        edit(client, "draw", image="field", outline=[[450, 10], [450, 40], [480, 40], [480, 10]])
        after = labels_of(client, "field")
        assert {*np.unique(expected)} - {*np.unique(after)} == {objects["id"][0]}
    assert (project / "edits" / "field.journal").stat().st_size < 3000
    with open_page(job, project) as client:
        assert np.array_equal(labels_of(client, "field"), after)
    assert (job / "labels.tif").read_bytes() == before
    cells = cw.read_dataset(project / "corrected")[0].read_instances()
    not_annotated = np.ones(HW, bool)
    not_annotated[:400, :500] = False
    assert np.array_equal(cells[cells.ignore].masks.foreground(), not_annotated)
    assert np.array_equal(cells[~cells.ignore].to_label_map(), after)


def test_edits_of_a_job_that_has_changed_are_refused(tmp_path: Path) -> None:
    job, project = write_job(tmp_path / "job"), tmp_path / "project"
    with open_page(job, project) as client:
        edit(client, "delete", image="field", ids=[1])
    other = tifffile.imread(write_job(tmp_path / "elsewhere" / "job", seed=1) / "labels.tif")
    tifffile.imwrite(job / "labels.tif", other, tile=(64, 64), compression="zlib")
    for _ in range(2):  # changed by hand, and then by a new job
        with open_page(job, project) as client:
            answer = client.get("/api/images/field/objects")
            assert answer.status_code == 422
            assert "the predicted labels have changed since they were edited" in answer.text
        Claim("predict", {}, "complete", {"labels.tif": FileIdentity.of(job / "labels.tif")}).write(job)


def test_a_damaged_job_is_named(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    content = bytearray((job / "labels.tif").read_bytes())
    with tifffile.TiffFile(job / "labels.tif") as tif:
        (start, *_), (size, *_) = tif.pages[0].dataoffsets, tif.pages[0].databytecounts
    content[start : start + size] = bytes(size)
    (job / "labels.tif").write_bytes(content)
    Claim("predict", {}, "complete", {"labels.tif": FileIdentity.of(job / "labels.tif")}).write(job)
    with open_page(job, tmp_path / "project") as client:
        answer = client.get("/api/images/field/labels/0/0/0")
        assert answer.status_code == 422
        assert "this label image is damaged" in answer.text
    (job / "objects.csv.gz").write_bytes(b"damaged")
    with open_page(job, tmp_path / "other") as client:
        answer = client.get("/api/images/field/objects")
        assert (answer.status_code, "the table of objects is damaged" in answer.text) == (422, True)


def test_a_tile_that_failed_is_not_annotated(tmp_path: Path) -> None:
    """Nothing was found there, which is not to be learned as background."""
    image, job = tmp_path / "field.tif", tmp_path / "job"
    pixels = draw_field(4, (700, 800), 224)[0].data
    tifffile.imwrite(image, pixels, tile=(64, 64), photometric="rgb", compression="jpeg")
    with tifffile.TiffFile(image) as tif:
        page = tif.pages.first
        start, size = page.dataoffsets[-1], page.databytecounts[-1]
    content = bytearray(image.read_bytes())
    content[start : start + size - 2] = bytes(size - 2)
    image.write_bytes(content)
    words = ("--diameter=24", "--tile=160", "--labels=tiff", "--roi=0,0,160,160,690,790,10,10", "--out", job, "--quiet")
    assert run("predict", image, *words) == 3
    n_failed = len(pd.read_csv(job / "failures.csv"))
    regions = start_of_job(job, (700, 800), ["nucleus"]).state.regions
    area = shapely.union_all([shapely.Polygon([(x, y) for y, x in region]) for region in regions])
    assert n_failed > 0
    assert area.contains(shapely.Point(795, 695))
    assert not area.intersects(shapely.box(0, 0, 100, 100))
