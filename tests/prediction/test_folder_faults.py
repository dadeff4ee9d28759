"""What the prediction folder does after faults, and with files that its user changed or added: nothing is lost."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn_job import Squares, draw_images, files_in, job_for, run

import cellwright as cw
from cellwright.api import fuse
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.sources import sources_of_paths
from killed import every_kill

SAVE = ("masks", "geojson", "measurements")
CONTROL = ".cellwright"


@pytest.fixture
def images(tmp_path) -> Path:
    return draw_images(tmp_path / "images")


def job_of(images: Path, **changes):
    return job_for(sources_of_paths([images]), **({"save": SAVE} | changes))


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def every_file(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def half_done(images: Path, out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(job_of(images), out, Squares(stop_at=2))


def wait_for(out: Path, n: int) -> None:
    """Until so many images are written, which happens while the next one is predicted."""
    until = time.monotonic() + 60
    while len(list((out / CONTROL / "progress").glob("*.done"))) < n and time.monotonic() < until:
        time.sleep(0.01)


def failed_once(images: Path, out: Path) -> None:
    """A job in which a.tif failed; the file is whole again."""
    whole = (images / "a.tif").read_bytes()
    (images / "a.tif").write_bytes(whole[:100])
    assert len(run(job_of(images), out).failures) == 1
    (images / "a.tif").write_bytes(whole)


# --- kills and power cuts


def test_a_killed_job_ends_in_the_same_files(images, tmp_path):
    job, whole, out = job_of(images), tmp_path / "whole", tmp_path / "out"
    run(job, whole)
    for _ in every_kill(out, lambda: run(job, out), step=47):
        assert run(job, out).n_images == 3
        assert content(out) == content(whole)
        assert not [name for name in every_file(out) if "partial" in name]


def test_a_file_that_the_user_puts_where_a_killed_job_would_write_is_never_replaced(images, tmp_path):
    job, out = job_of(images), tmp_path / "out"
    run(job, tmp_path / "whole")
    names = [name for name in files_in(tmp_path / "whole") if not (out / name).exists()]
    n_refused = 0
    for at in every_kill(out, lambda: run(job, out), step=29):
        free = [name for name in names if not (out / name).exists()]
        if not free or not (out / CONTROL / "claim.json").exists():
            continue
        mine = out / free[at % len(free)]
        mine.parent.mkdir(exist_ok=True)
        mine.write_bytes(b"drawn by hand")
        with pytest.raises(OutputError, match="did not write|changed"):
            run(job, out)
        assert mine.read_bytes() == b"drawn by hand"
        mine.unlink()
        run(job, out)
        assert content(out) == content(tmp_path / "whole")
        n_refused += 1
    assert n_refused > 3


def test_a_killed_replacement_leaves_the_old_result_or_the_new_one(images, tmp_path):
    old, new, out = job_of(images), job_of(images, options=PredictOptions(0.5)), tmp_path / "out"
    run(new, tmp_path / "whole")
    run(old, out)
    both = content(out), content(tmp_path / "whole")
    for _ in every_kill(out, lambda: run(new, out, overwrite=True), step=61):
        try:
            assert cw.read_dataset(out, require_images=False)
        except InputError as error:
            assert "half replaced by a new one" in str(error)
        run(new, out, overwrite=True)
        assert content(out) == both[1]
        assert not [name for name in every_file(out) if "partial" in name or "/new/" in name]


def test_a_killed_fusion_ends_in_the_same_files(images, tmp_path):
    for name in ("A", "B"):
        run(job_of(images / "a.png", save=("masks",)), tmp_path / name)
    out = tmp_path / "out"
    plan = fuse.FusePlan((tmp_path / "A", tmp_path / "B"), save=("masks",), out=out)
    fuse.run(replace(plan, out=tmp_path / "whole"))
    for _ in every_kill(out, lambda: fuse.run(plan), step=13):
        fuse.run(plan)
        assert content(out) == content(tmp_path / "whole")


def test_an_interrupted_replacement_is_resumed_and_a_failed_one_changes_nothing(images, tmp_path):
    old, new, out = job_of(images), job_of(images, options=PredictOptions(0.5)), tmp_path / "out"
    run(old, out)
    before = content(out)
    with pytest.raises(KeyboardInterrupt):
        run(new, out, Squares(stop_at=2), overwrite=True)
    assert content(out) == before
    assert run(old, out).n_resumed == 3, "the old result is still that of the old command"
    rest = Squares()
    report = run(new, out, rest, overwrite=True)
    assert (rest.names, report.n_resumed) == (["b.png"], 2)
    assert run(new, out).n_resumed == 3


def test_a_file_emptied_by_a_power_cut_is_never_a_result(images, tmp_path):
    job, whole, out = job_of(images), tmp_path / "whole", tmp_path / "out"
    run(job, whole)
    for prepare in (half_done, lambda images, out: run(job_of(images), out)):
        prepare(images, tmp_path / "before")
        for name in every_file(tmp_path / "before"):
            shutil.copytree(tmp_path / "before", out)
            (out / name).write_bytes(b"")
            try:
                run(job, out)
            except (OutputError, FormatError) as error:
                assert Path(name).name in str(error), name
            else:
                assert content(out) == content(whole), name
            shutil.rmtree(out)
        shutil.rmtree(tmp_path / "before")


def test_a_finished_job_with_an_emptied_file_is_made_again_on_request(images, tmp_path):
    job, out = job_of(images), tmp_path / "out"
    run(job, out)
    before = content(out)
    (out / "deep" / "b_masks.tif").write_bytes(b"")
    with pytest.raises(OutputError, match=r"1 file missing or empty \(deep/b_masks.tif\)[\s\S]*`overwrite=True`"):
        run(job, out)
    run(job, out, overwrite=True)
    assert content(out) == before


@pytest.mark.parametrize("what", ["moved", "removed"])
def test_a_folder_that_vanishes_while_it_is_written_is_an_error(images, tmp_path, what):
    job, out = job_of(images), tmp_path / "out"

    class Vanishing(Squares):
        def predict(self, images):
            if len(self.names) == 2:
                wait_for(out, 2)
                out.rename(tmp_path / "elsewhere") if what == "moved" else shutil.rmtree(out)
            return super().predict(images)

    with pytest.raises(OutputError, match="moved or removed while it was written"):
        run(job, out, Vanishing())
    assert not out.exists()
    assert run(job, out).n_images == 3
    if what == "moved":
        assert run(job, tmp_path / "elsewhere").n_resumed == 2


def test_a_record_that_vanishes_is_an_error_and_no_shorter_result(images, tmp_path):
    job, out = job_of(images), tmp_path / "out"

    class Removing(Squares):
        def predict(self, images):
            if len(self.names) == 2:
                wait_for(out, 2)
                next((out / CONTROL / "progress").glob("*.json")).unlink()
            return super().predict(images)

    with pytest.raises(OutputError, match="nothing for 1 image"):
        run(job, out, Removing())
    assert run(job, out).n_resumed == 2


# --- files of the user


def correct(path: Path) -> bytes:
    """Remove object 1 from a label image, as a user would."""
    labels = tifffile.imread(path)
    tifffile.imwrite(path, np.where(labels == 1, 0, labels).astype(np.uint16))
    return path.read_bytes()


def test_a_corrected_file_is_not_replaced(images, tmp_path):
    job, out = job_of(images), tmp_path / "out"
    run(job, out)
    corrected = correct(out / "a.png_masks.tif")
    with pytest.raises(OutputError, match=r"changed after they were written[\s\S]*1 file \(a.png_masks.tif\)"):
        run(job, out, overwrite=True)
    assert (out / "a.png_masks.tif").read_bytes() == corrected
    assert run(job, out).n_images == 3, "it is still complete"
    (out / "a.png_masks.tif").rename(tmp_path / "mine.tif")
    run(job, out, overwrite=True)


def test_corrections_are_kept_while_failed_images_are_tried_again(images, tmp_path):
    out = tmp_path / "out"
    failed_once(images, out)
    corrected = correct(out / "a.png_masks.tif")
    assert run(job_of(images), out).n_resumed == 2
    assert (out / "a.png_masks.tif").read_bytes() == corrected
    data = cw.read_dataset(out, require_images=False)
    assert [len(sample.read_instances()) for sample in data] == [1, 2, 2]
    with pytest.raises(OutputError, match="changed after they were written"):
        run(job_of(images, save=("masks",)), out, overwrite=True)


@pytest.mark.parametrize("name", ["a.png_measurements.csv", "summary.csv", "a.png_masks.tif"])
def test_other_changed_files_are_named_and_not_written_over(images, tmp_path, name):
    """A table with a further column; a label image that can no longer be read."""
    out = tmp_path / "out"
    failed_once(images, out)
    path = out / name
    path.write_bytes(path.read_bytes()[:-40] + b"mine")
    with pytest.raises(OutputError, match=rf"changed after they were written[\s\S]*1 file \({name}\)"):
        run(job_of(images), out)
    assert path.read_bytes().endswith(b"mine")
    path.rename(tmp_path / "mine")
    assert run(job_of(images), out).n_images == 3


def test_a_file_that_the_user_made_for_a_failed_image_is_not_written_over(images, tmp_path):
    out = tmp_path / "out"
    failed_once(images, out)
    (out / "a.tif_masks.tif").write_bytes(b"drawn by hand")
    with pytest.raises(OutputError, match=r"did not write[\s\S]*1 file \(a.tif_masks.tif\)"):
        run(job_of(images), out)
    assert (out / "a.tif_masks.tif").read_bytes() == b"drawn by hand"


def test_only_our_files_are_replaced(images, tmp_path):
    """Also below the folder, through links, and under the names of files that this job would have written."""
    out, mine = tmp_path / "out", tmp_path / "mine"
    run(job_of(images), out)
    mine.mkdir()
    (mine / "b_masks.tif").write_bytes(b"mine")
    shutil.rmtree(out / "deep")
    (out / "deep").symlink_to(mine)
    (out / "notes.txt").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"deep/b_geojson|deep/b"):
        run(job_of(images), out, overwrite=True)
    (out / "deep").unlink()
    run(job_of(images / "a.png"), out, overwrite=True)
    assert (mine / "b_masks.tif").read_bytes() == (out / "notes.txt").read_bytes() == b"mine"
    assert not (out / "a.png_masks.tif").exists()


def test_inputs_below_the_folder_stay(images, tmp_path):
    out = tmp_path / "out"
    run(job_of(images), out)
    shutil.copytree(images, out / "raw")
    run(job_of(out / "raw"), out, overwrite=True)
    assert files_in(out / "raw") == ["a.png", "a.tif", "deep/b.png"]
    with pytest.raises(InputError, match="part of a prediction folder"):
        run(job_of(out / "a.png_masks.tif"), out, overwrite=True)


# --- folders of earlier versions


def as_earlier(out: Path, *, is_finished: bool) -> None:
    """The folder as versions without claims wrote it."""
    (out / "report.html").unlink(missing_ok=True)
    control = out / CONTROL
    record = {"schema_version": 1, "request": json.loads((control / "claim.json").read_text())["request"]}
    if is_finished:
        images = json.loads((control / "progress" / "images.json").read_text())["images"]
        facts = ("file", "pixels", "objects")
        record["images"] = {name: {fact: one[fact] for fact in facts} for name, one in images.items()}
    else:
        (control / "progress").rename(out / ".progress")
    (out / ".job.json").write_text(json.dumps(record))
    shutil.rmtree(control)


def test_a_finished_folder_of_an_earlier_version(images, tmp_path):
    job, out = job_of(images), tmp_path / "out"
    run(job, out)
    as_earlier(out, is_finished=True)
    assert run(job, out).n_resumed == 3
    with pytest.raises(OutputError, match="`save` masks instead of"):
        run(job_of(images, save=("masks",)), out)
    corrected = correct(out / "a.png_masks.tif")
    (out / "notes.txt").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"changed after they were written[\s\S]*a.png_masks.tif"):
        run(job, out, overwrite=True)
    assert (out / "a.png_masks.tif").read_bytes() == corrected
    (out / "a.png_masks.tif").unlink()
    run(job_of(images, save=("masks",)), out, overwrite=True)
    assert "a.png_measurements.csv" not in files_in(out)
    assert {"notes.txt", "a.png_masks.tif"} <= set(files_in(out))
    assert ".job.json" not in files_in(out)


def test_an_unfinished_folder_of_an_earlier_version(images, tmp_path):
    job, out = job_of(images), tmp_path / "out"
    half_done(images, out)
    as_earlier(out, is_finished=False)
    with pytest.raises(OutputError, match="unfinished predictions of an earlier version"):
        run(job, out)
    run(job, out, overwrite=True)
    run(job, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_a_predictions_file_of_another_program_is_not_ours(images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.json").write_text('{"images": [], "annotations": [], "info": {}}')
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not an output of this command"):
            run(job_of(images), out, overwrite=overwrite)
