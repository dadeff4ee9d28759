"""What users do with a finished tile job, and results of cellwright given as inputs by accident."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import shapely
import tifffile
from drawn import run

import cellwright as cw
from cellwright.data.formats.large_labels import read_large_labels
from cellwright.measurement.table import measure_in_parts
from cellwright.prediction.tiling.job import JobFacts
from cellwright.prediction.tiling.label_writers import write_label_zarr
from cellwright.prediction.tiling.tissue import Tissue


@pytest.fixture(scope="module")
def mixed(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image beside a tile job, a prediction folder and an evaluation."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copyfile(job.parent / "field.tif", root / "field.tif")
    shutil.copytree(job, root / "job")
    words = ["predict", root / "field.tif", "--model=classical", "--quiet", "--out", root / "predictions"]
    assert run(*words) == 0
    words = ["evaluate", root / "predictions", "--data", root / "job", "--metrics=pq", "--pictures=0", "--quiet"]
    assert run(*words, "--out", root / "evaluation") == 0
    return root


@pytest.mark.parametrize("name", ["job", "predictions", "evaluation", "job/tiles"])
def test_results_are_not_predicted_on(name: str, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("predict", mixed / name, "--model=classical", "--out", tmp_path / "x") == 2
    assert "a result of cellwright" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["job/overview.png", "job/labels.tif", "predictions/field_overlay.png"])
def test_a_picture_of_results_is_not_predicted_on(name: str, mixed: Path, tmp_path: Path, capsys) -> None:
    assert run("predict", mixed / name, "--model=classical", "--out", tmp_path / "x") == 2
    assert "a result of cellwright" in capsys.readouterr().err
    copy = tmp_path / "overview.png"  # the user's own picture may have this name
    shutil.copyfile(mixed / "job" / "overview.png", copy)
    assert run("predict", copy, "--model=classical", "--dry-run", "--out", tmp_path / "x") == 0


def test_results_below_a_folder_are_skipped_and_named(mixed: Path, tmp_path: Path, capsys) -> None:
    assert run("predict", mixed, "--model=classical", "--dry-run", "--out", tmp_path / "x") == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "1 image, model" in err
    assert "job (a tile job), predictions (a prediction folder)" in err
    assert run("data", "info", mixed) == 0
    assert "skipped 3 folders of results" in " ".join(capsys.readouterr().err.split())
    assert run("data", "convert", mixed, "--out", tmp_path / "y") == 2
    assert "no annotations that cellwright recognises" in capsys.readouterr().err
    assert run("data", "convert", mixed / "evaluation", "--out", tmp_path / "y") == 2
    assert "this is an evaluation" in capsys.readouterr().err


def test_a_job_is_read_as_one_image_with_its_own_image(job: Path, tmp_path: Path, capsys) -> None:
    (sample,) = cw.read_dataset(job)
    assert (sample.id, sample.image_path) == ("field", job.parent / "field.tif")
    objects = sample.read_instances()
    labels = tifffile.imread(job / "labels.tif")
    assert np.array_equal(objects.to_label_map(), labels)
    table = cw.read_dataset(job).class_names, objects.scores
    assert table[0] == ("nucleus",)
    measured = tmp_path / "again.csv"
    assert run("measure", job, "--out", measured) == 0
    before = pd.read_parquet(job / "objects.parquet") if (job / "objects.parquet").exists() else None
    if before is not None:
        again = pd.read_csv(measured)
        assert np.allclose(again["intensity_mean_R"], before["intensity_mean_R"], rtol=1e-5)
        assert np.allclose(again["score"], before["score"])
        assert np.allclose(objects.scores, before["score"])
    assert run("data", "convert", job, "--out", tmp_path / "dataset") == 0
    assert "paired with" not in capsys.readouterr().err
    (converted,) = cw.read_dataset(tmp_path / "dataset")
    assert converted.image_path is not None
    assert converted.image_path.name == "field.tif"
    assert np.array_equal(converted.read_instances().masks.foreground(), labels > 0)


def test_a_large_image_is_measured_in_parts(job: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["measure", job, "--ring=3"]
    assert run(*words, "--out", tmp_path / "whole.csv") == 0
    monkeypatch.setattr("cellwright.api.measure.LARGE_PX", 1000)
    monkeypatch.setitem(measure_in_parts.__kwdefaults__, "part_px", 100)
    monkeypatch.setattr("cellwright.data.images.reading.read_image", None)
    assert run(*words, "--out", tmp_path / "parts.csv") == 0
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert run("measure", job, "--dry-run") == 0
    assert "has these measurements already" in capsys.readouterr().err


def test_a_region_of_a_job_is_drawn_with_the_borders_of_tiles(job: Path, tmp_path: Path, capsys) -> None:
    region = ["data", "show", job, "--roi=100,90,120,130"]
    assert run(*region, "--out", tmp_path / "plain.png") == 0
    assert run(*region, "--cores", "--out", tmp_path / "cores.png") == 0
    plain, cores = (np.asarray(PIL.Image.open(tmp_path / name)).astype(int) for name in ("plain.png", "cores.png"))
    factor = plain.shape[1] // 130
    changed = (plain != cores).any(axis=2)[: 120 * factor]
    grid = JobFacts.read(job).grid
    edges = {round(tile.core.x0 / grid.scale_yx[1]) - 90 for tile in grid}
    columns = set(np.flatnonzero(changed.mean(axis=0) > 0.5) // factor)
    assert columns
    assert columns == {edge for edge in edges if 0 < edge < 130}
    for bad in (["--roi=1,2,3"], ["--cores"], ["--roi=9000,0,10,10"]):
        assert run("data", "show", job, *bad, "--out", tmp_path / "x.png") == 2


def test_corrected_labels_count_and_edited_outlines_are_refused(job: Path, tmp_path: Path, capsys) -> None:
    edited = tmp_path / "job"
    shutil.copytree(job, edited)
    labels = tifffile.imread(edited / "labels.tif")
    labels[labels == 3] = 0
    labels[:12, :9] = 70_000
    tifffile.imwrite(edited / "labels.tif", labels)
    assert run("data", "info", edited) == 0
    assert "labels.tif was edited" in capsys.readouterr().err
    objects = cw.read_instances(edited)
    assert 3 not in objects.ids
    assert objects.scores is not None
    assert objects.scores[objects.ids == 70_000] == 1
    tifffile.imwrite(edited / "labels.tif", (labels > 0).astype(np.uint8) * 255)
    with pytest.raises(cw.InputError, match="no longer tells objects apart"):
        cw.read_instances(edited)
    (edited / "objects.geojson.gz").write_bytes(b"edited")
    assert run("data", "info", edited) == 2
    assert "the outlines of this job were edited" in capsys.readouterr().err


def test_large_labels_are_read_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 90, (17, 23)), np.ones((9, 7), int)).astype(np.uint32)
    labels[labels == 5] = 4_000_000_000
    write_label_zarr(tmp_path / "labels.zarr", labels.shape, lambda window: window.of(labels))
    monkeypatch.setattr("cellwright.data.formats.large_labels._PART_HW", (40, 50))
    tifffile.imwrite(tmp_path / "tiled.tif", labels, tile=(32, 16), compression="zlib")
    tifffile.imwrite(tmp_path / "strips.tif", labels, rowsperstrip=10)
    masks, ids = cw.MaskSet.from_label_map(labels)
    for name in ("labels.zarr", "tiled.tif", "strips.tif"):
        read, values = read_large_labels(tmp_path / name, labels.shape)
        assert read == masks, name
        assert np.array_equal(values, ids), name
    with pytest.raises(cw.InputError, match="another size"):
        read_large_labels(tmp_path / "tiled.tif", (10, 10))


def test_large_annotations_are_read_part_by_part(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = cw.read_dataset(job / "labels.tif", require_images=False)
    monkeypatch.setattr("cellwright.data.formats.large_labels.LARGE_PX", 1000)
    monkeypatch.setattr("cellwright.data.formats.label_images.read_labels", None)
    assert whole.read_instances().masks == cw.read_instances(job).masks


def test_ome_zarr_labels_are_annotations_and_no_images(job: Path, tmp_path: Path, capsys) -> None:
    zarr = pytest.importorskip("zarr")
    labels = tifffile.imread(job / "labels.tif")
    image = tmp_path / "field.zarr"
    field = zarr.open_group(image, mode="w", zarr_format=3)
    pixels = np.moveaxis(tifffile.imread(job.parent / "field.tif"), -1, 0)
    field.create_array("0", shape=pixels.shape, chunks=(3, 128, 128), dtype="uint8")[:] = pixels
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = {"type": "scale", "scale": [1, 1, 1]}
    levels = [{"path": "0", "coordinateTransformations": [scale]}]
    field.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    inside = image / "labels" / "cells"
    write_label_zarr(inside, labels.shape, lambda window: window.of(labels))
    (sample,) = cw.read_dataset(inside)
    assert sample.image_path == image
    assert np.array_equal(sample.read_instances().to_label_map(), labels)
    assert n_evaluated(job, inside, tmp_path / "evaluation") == labels.max()
    shutil.copytree(inside, tmp_path / "cells.zarr")
    words = ["predict", "--model=classical", "--dry-run", "--out", tmp_path / "x"]
    assert run(*words, tmp_path / "cells.zarr") == 2
    assert "this is a label image" in capsys.readouterr().err
    assert run(*words, "--channel=0", tmp_path) == 0
    err = capsys.readouterr().err
    assert "1 image, model" in err
    assert "skipped 1 label image" in err


def n_evaluated(job: Path, truth: Path, out: Path, *more: object) -> int:
    """The number of annotated objects that count."""
    words = ["evaluate", job, "--data", truth, "--metrics=pq", "--pictures=0", "--quiet", "--out", out, *more]
    assert run(*words) == 0
    return int(pd.read_csv(out / "per_image.csv")["n_truth"].item())


def test_only_the_part_that_was_predicted_is_evaluated(job: Path, tmp_path: Path) -> None:
    truth = tmp_path / "field_masks.tif"
    labels = tifffile.imread(job / "labels.tif")
    tifffile.imwrite(truth, labels)
    centres = pd.DataFrame([np.argwhere(labels == k).mean(axis=0) for k in range(1, labels.max() + 1)])
    inside = int(((centres[0] < 200) & (centres[1] < 250)).sum())
    assert n_evaluated(job, truth, tmp_path / "all") == len(centres)
    chosen = n_evaluated(job, truth, tmp_path / "roi", "--roi=0,0,200,250")
    assert abs(chosen - inside) <= 2  # an anchor may be on the other side than the mean
    record = json.loads((job / "job.json").read_text())
    region = {"words": ["0,0,200,250"], "area": "POLYGON ((0 0, 250 0, 250 200, 0 200, 0 0))"}
    part = tmp_path / "part"
    shutil.copytree(job, part)
    (part / "job.json").write_text(json.dumps(record | {"regions": region}))
    assert n_evaluated(part, truth, tmp_path / "regions") == chosen
    failed = tmp_path / "failed"
    shutil.copytree(job, failed)
    (failed / "tiles" / "0000000.tile").unlink()
    note = {"schema_version": 1, "problem": "damaged", "where": "", "got": "", "fix": ""}
    (failed / "tiles" / "0000000.failed.json").write_text(json.dumps(note))
    n_left = n_evaluated(failed, truth, tmp_path / "without")
    assert 0 < len(centres) - n_left < 12
    report = (tmp_path / "without" / "report.md").read_text()
    assert "objects in 1 tile that could not be predicted are left out" in report
    assert cw.evaluate(job, truth, metrics=["pq"], roi=[(0, 0, 200, 250)])["n_truth"] == chosen
    # Tiles without tissue were a choice of the prediction: what is annotated there was missed.
    skipped = tmp_path / "skipped"
    shutil.copytree(job, skipped)
    tissue = Tissue("my mask.png 0123", np.array([[True, False]]), (160.0, 400.0)).to_dict()
    (skipped / "job.json").write_text(json.dumps(record | {"tissue": tissue, "tiles": [0, 1, 2]}))
    assert n_evaluated(skipped, truth, tmp_path / "missed") == len(centres)
    report = (tmp_path / "missed" / "report.md").read_text()
    assert "tiles without tissue (my mask.png) were skipped: objects annotated there count as missed" in report


def test_the_part_of_a_large_image_with_most_errors_is_drawn(job: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cellwright.report.error_picture.LARGE_PX", 1000)
    monkeypatch.setattr("cellwright.report.error_picture.PART_PX", 128)
    labels = tifffile.imread(job / "labels.tif")
    labels[270:300, 10:40] = 5000  # missed
    tifffile.imwrite(tmp_path / "field_masks.tif", labels)
    words = ["evaluate", job, "--data", tmp_path / "field_masks.tif", "--pictures=1", "--quiet"]
    assert run(*words, "--out", tmp_path / "out") == 0
    picture = np.asarray(PIL.Image.open(tmp_path / "out" / "errors" / "field.png")).astype(int)
    assert picture.shape[1] == 128 * 4
    is_yellow = (picture[..., 0] > 200) & (picture[..., 1] > 180) & (picture[..., 2] < 100)
    assert is_yellow[: 128 * 4].sum() > 200


def test_a_job_becomes_a_spatialdata_store(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Read by the packages that SpatialData is made of; `spatialdata` 0.7.3 itself read the same store."""
    zarr = pytest.importorskip("zarr")
    parquet = pytest.importorskip("pyarrow.parquet")
    store = tmp_path / "field.zarr"
    assert run("export", job, "--to=spatialdata", "--out", store) == 0
    assert "not the pixels of the image" in capsys.readouterr().err
    assert run("export", job, "--to=spatialdata", "--out", tmp_path / "field.sd") == 2
    labels = tifffile.imread(job / "labels.tif")
    n = int(labels.max())
    root = zarr.open_group(store, mode="r")
    assert root.attrs["spatialdata_attrs"]["version"] == "0.2"
    (multiscale,) = root["labels/labels"].attrs["ome"]["multiscales"]
    assert np.array_equal(root["labels/labels"][multiscale["datasets"][0]["path"]][:], labels)
    assert [one["output"]["name"] for one in multiscale["coordinateTransformations"]] == ["global", "micrometers"]
    outlines = parquet.read_table(store / "shapes" / "outlines" / "shapes.parquet")
    geo = json.loads(outlines.schema.metadata[b"geo"])
    assert geo["columns"][geo["primary_column"]]["encoding"] == "WKB"
    shapes = shapely.from_wkb(outlines["geometry"].to_numpy())
    assert shapely.is_valid(shapes).all()
    assert outlines.to_pandas().index.tolist() == list(range(1, n + 1))
    areas = np.bincount(labels.ravel())[1:]
    assert np.array_equal(shapely.area(shapes), areas)
    table = root["tables/objects"]
    attrs = dict(table.attrs)
    assert (attrs["region"], attrs["region_key"], attrs["instance_key"]) == ("labels", "region", "label")
    names = table["var/_index"][:].tolist()
    assert np.array_equal(table["X"][:, names.index("area_px")], areas)
    assert table["obs/label"][:].tolist() == list(range(1, n + 1))
    assert table["obs/_index"][:].tolist() == list(map(str, range(1, n + 1)))
    assert table["obs/class/categories"][:][table["obs/class/codes"][:]].tolist() == ["nucleus"] * n
    x, y = table["obsm/spatial"][:].T
    centres = shapely.centroid(shapes)
    assert np.allclose([x, y], [shapely.get_x(centres), shapely.get_y(centres)])


def test_rows_of_a_spatialdata_table_are_written_by_chunk(job: Path, tmp_path: Path, monkeypatch) -> None:
    zarr = pytest.importorskip("zarr")
    monkeypatch.setattr("cellwright.prediction.tiling.spatialdata_store._ROWS_PER_CHUNK", 10)
    assert run("export", job, "--to=spatialdata", "--quiet", "--out", tmp_path / "field.zarr") == 0
    obs = zarr.open_group(tmp_path / "field.zarr", mode="r")["tables/objects/obs"]
    assert obs["label"].chunks == (10,)
    assert obs["label"][:].tolist() == list(range(1, obs["label"].shape[0] + 1))
    assert len(set(obs["tile"][:].tolist())) > 3


def test_corrected_labels_are_not_exported_as_they_were(job: Path, tmp_path: Path, capsys) -> None:
    edited = tmp_path / "job"
    shutil.copytree(job, edited)
    labels = tifffile.imread(edited / "labels.tif")
    labels[labels == 3] = 0
    tifffile.imwrite(edited / "labels.tif", labels)
    assert run("export", edited, "--to=geojson", "--out", tmp_path / "x.geojson") == 2
    assert "the labels of this job were edited" in capsys.readouterr().err
    assert run("data", "convert", edited, "--out", tmp_path / "dataset") == 0
    assert 3 not in cw.read_instances(tmp_path / "dataset").ids
