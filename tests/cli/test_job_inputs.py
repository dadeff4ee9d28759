"""What users do with a finished tile job, and results of cellwright given as inputs by accident."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.data.formats.large_labels import read_large_labels
from cellwright.prediction.tiling.label_writers import write_label_zarr


@pytest.fixture(scope="module")
def mixed(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image beside a tile job, a prediction folder and an evaluation."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copyfile(job.parent / "field.tif", root / "field.tif")
    shutil.copytree(job, root / "job")
    words = ["predict", root / "field.tif", "--model=classical", "--quiet", "--out", root / "predictions"]
    assert run(*words) == 0
    words = ["evaluate", root / "predictions", "--data", root / "job", "--pictures=1", "--quiet"]
    assert run(*words, "--out", root / "evaluation") == 0
    return root


@pytest.mark.parametrize("name", ["job", "predictions", "evaluation", "evaluation/errors"])
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
