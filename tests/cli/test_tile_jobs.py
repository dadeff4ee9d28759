"""Images of any size on the command line: tile jobs, their resume, faults and status."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.core.folder_lock import FolderLock
from cellwright.data.synthetic import draw_field
from cellwright.prediction.tiling.job import JobFacts
from cellwright.prediction.tiling.tile_file import TileRecord
from cellwright.prediction.tiling.work import TileWork

HW = (320, 400)


def write_field(path: Path, *, seed: int = 4, hw: tuple[int, int] = HW, broken: bool = False) -> Path:
    """A drawn field as a tiled TIFF; broken: with a tile that cannot be decoded."""
    pixels = draw_field(seed, hw, hw[0] * hw[1] // 2500)[0].data
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="jpeg", resolution=(20000, 20000))
    if broken:
        with tifffile.TiffFile(path) as tif:
            page = tif.pages[0]
            start, size = page.dataoffsets[-1], page.databytecounts[-1]
        content = bytearray(path.read_bytes())
        content[start : start + size - 2] = bytes(size - 2)
        path.write_bytes(content)
    return path


def predict(image: Path, out: Path, *more: object) -> int:
    return run("predict", image, "--tile=160", "--diameter=24", "--labels=tiff", "--quiet", "--out", out, *more)


def test_tiles_give_the_objects_of_the_whole_image(job: Path) -> None:
    labels = tifffile.imread(job / "labels.tif")
    whole = cw.load_model("nuclei").predict(job.parent / "field.tif", diameter=24)
    assert len(whole) > 20
    expected = whole.to_label_map()
    assert np.array_equal(labels > 0, expected > 0)
    assert len(np.unique(np.stack([labels, expected]).reshape(2, -1), axis=1).T) == len(whole) + 1
    table = pd.read_parquet(job / "objects.parquet") if (job / "objects.parquet").is_file() else None
    if table is not None:
        assert table["label"].tolist() == list(range(1, len(whole) + 1))
        assert table["tile"].nunique() > 3


def test_the_same_command_says_already_complete(job: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in job.rglob("*") if path.is_file()}
    image = job.parent / "field.tif"
    assert run("predict", image, "--tile=160", "--diameter=24", "--labels=tiff", "--out", job) == 0
    assert "already complete" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in job.rglob("*") if path.is_file()}


def test_another_option_or_a_changed_image_is_refused(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = job.parent / "field.tif"
    assert predict(image, job, "--score=0.9") == 2
    assert "another job" in capsys.readouterr().err
    assert predict(write_field(tmp_path / "changed.tif", seed=5), job) == 2
    assert "the image" in capsys.readouterr().err


def test_status_tells_what_is_done(job: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("job", "status", job) == 0
    out = capsys.readouterr().out
    assert "complete" in out
    assert "0 failed" in out


def test_a_lost_or_damaged_tile_is_predicted_again(job: Path, tmp_path: Path) -> None:
    """As after a kill: the claim says unfinished, one tile is missing and one is cut short."""
    image, root = job.parent / "field.tif", tmp_path / "again"
    shutil.copytree(job, root)
    tiles = sorted((root / "tiles").glob("*.tile"))
    tiles[0].unlink()
    tiles[1].write_bytes(tiles[1].read_bytes()[:50])
    claim = json.loads((root / ".cellwright" / "claim.json").read_text())
    claim |= {"state": "writing", "files": {}}
    (root / ".cellwright" / "claim.json").write_text(json.dumps(claim))
    assert predict(image, root) == 0
    for name in ("labels.tif", "summary.csv", "objects.geojson.gz"):
        assert (root / name).read_bytes() == (job / name).read_bytes(), name
    record = JobFacts.read(root)
    assert not record.ledger(root).left()
    other = dataclasses.replace(record, request={}, key="")
    assert len(other.ledger(root).left(verify=True)) == len(record.tiles), "tiles of another job never count"


def test_a_tile_that_cannot_be_decoded_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = write_field(tmp_path / "broken.tif", hw=(700, 800), broken=True)
    assert predict(image, tmp_path / "job", "--roi=0,0,160,160,690,790,10,10") == 3
    failures = pd.read_csv(tmp_path / "job" / "failures.csv")
    assert len(failures) == 1
    assert "broken.tif" in failures["where"].iloc[0]
    labels = tifffile.imread(tmp_path / "job" / "labels.tif")
    assert labels[:200, :200].any()
    assert run("job", "status", tmp_path / "job") == 3


def test_shards_that_run_at_the_same_time_finish_a_job_together(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shard 2 runs as a whole while shard 1 predicts its first tile."""
    image, out, record, others = job.parent / "field.tif", tmp_path / "shards", TileWork.record, ["2/2"]

    def record_meanwhile(work: TileWork, tile: int) -> TileRecord:
        if others:
            assert predict(image, out, f"--shard={others.pop()}") == 0
            assert len(list(out.glob("tiles/*.tile"))) > 1
            assert not (out / "labels.tif").exists()
        return record(work, tile)

    monkeypatch.setattr(TileWork, "record", record_meanwhile)
    assert predict(image, out, "--shard=1/2") == 0
    for name in ("labels.tif", "summary.csv", "objects.geojson.gz", "job.json"):
        assert (out / name).read_bytes() == (job / name).read_bytes(), name
    assert not others


def test_the_last_shard_waits_for_the_folder_and_finishes(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, out = job.parent / "field.tif", tmp_path / "shards"
    assert predict(image, out, "--shard=2/2") == 0
    assert not (out / "labels.tif").exists()
    assert predict(image, out, "--shard=1/2", "--overwrite") == 2
    assert "shards cannot replace a result" in capsys.readouterr().err
    lock = FolderLock.take(out / ".cellwright" / "lock", out, "predict")
    monkeypatch.setattr("cellwright.api.predict_tiles.time.sleep", lambda seconds: lock.release())
    words = ("predict", image, "--tile=160", "--diameter=24", "--labels=tiff", "--shard=1/2", "--out", out)
    assert run(*words) == 0
    assert "waiting: this folder is in use by cellwright predict" in " ".join(capsys.readouterr().err.split())
    assert (out / "labels.tif").read_bytes() == (job / "labels.tif").read_bytes()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--tile=7"], "invalid"),
        (["--roi=1,2,3"], "y0,x0,height,width"),
        (["--shard=3/2"], "i/n"),
        (["--tile=none", "--labels=tiff"], "tile by tile"),
        (["--workers=2", "--dask=local"], "exclude each other"),
        (["--views=64:mirror", "--tile=256"], "diameter of the objects determines the size"),
        (["--roi=9000,9000,10,10", "--tile=256"], "outside the image"),
    ],
)
def test_bad_options_are_refused(words: list[str], text: str, job: Path, tmp_path: Path, capsys) -> None:
    assert run("predict", job.parent / "field.tif", "--out", tmp_path / "x", *words) == 2
    assert text in " ".join(capsys.readouterr().err.split())


def test_python_runs_the_same_job_and_can_stop_it(job: Path, tmp_path: Path) -> None:
    source, seen = cw.open_image(job.parent / "field.tif"), []
    model = cw.load_model("nuclei").with_options(diameter=24)

    def stop_after_two(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        cw.predict_tiles(source, model=model, out=tmp_path / "job", tile=160, labels="tiff", progress=stop_after_two)
    n_tiles = len(list((job / "tiles").iterdir()))
    assert seen == [(1, n_tiles), (2, n_tiles)]
    found = cw.predict_tiles(source, model=model, out=tmp_path / "job", tile=160, labels="tiff")
    assert (found.n_tiles, found.n_left, found.is_complete) == (n_tiles, 0, True)
    assert len(found.objects()) == found.n_objects
    assert (tmp_path / "job" / "labels.tif").read_bytes() == (job / "labels.tif").read_bytes()


def test_a_job_is_exported_to_other_formats(job: Path, tmp_path: Path) -> None:
    n = pd.read_csv(job / "summary.csv")["objects"].item()
    assert run("export", job, "--to=labels_tiff", "--out", tmp_path / "labels.tif") == 0
    assert np.array_equal(tifffile.imread(tmp_path / "labels.tif"), tifffile.imread(job / "labels.tif"))
    assert run("export", job, "--to=geojson", "--out", tmp_path / "cells.geojson") == 0
    assert len(json.loads((tmp_path / "cells.geojson").read_text())["features"]) == n
    assert run("export", job, "--to=coco_results", "--out", tmp_path / "results.json") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == n
    masks = cw.MaskSet.from_rle([entry["segmentation"] for entry in results], HW)
    assert np.array_equal(masks.foreground(), tifffile.imread(job / "labels.tif") > 0)
    assert run("export", job, "--to=yolo", "--out", tmp_path / "x") == 2


def test_an_image_beyond_memory_is_predicted_by_tiles_or_fails_with_the_reason(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellwright.api.predict.available_bytes", lambda: 1 << 24)
    image = job.parent / "field.tif"
    assert run("predict", image, "--diameter=24", "--dry-run", "--out", tmp_path / "auto") == 0
    assert "tile by tile (at once it would need about" in capsys.readouterr().err
    monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", "0.00001")
    monkeypatch.setattr("cellwright.core.memory._SMALL", 0)
    assert run("predict", image, "--model=classical", "--out", tmp_path / "whole") in (2, 3)
    assert "memory" in capsys.readouterr().err


def test_several_models_are_fused_in_tiles(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Another way of fusing is another job."""
    image, models = write_field(tmp_path / "field.tif", hw=(150, 250)), ("--model=classical", "--model=nuclei")
    assert predict(image, tmp_path / "both", *models, "--fuse=mask_vote") == 0
    labels = tifffile.imread(tmp_path / "both" / "labels.tif")
    whole = ("--tile=none", "--save=masks", "--diameter=24", "--out", tmp_path / "whole")
    assert run("predict", image, *models, "--fuse=mask_vote", *whole) == 0
    assert np.array_equal(labels > 0, tifffile.imread(tmp_path / "whole" / "field_masks.tif") > 0)
    capsys.readouterr()
    assert predict(image, tmp_path / "both", *models) == 2
    assert "fuse" in capsys.readouterr().err
