"""The prediction folder from end to end: files, names, failures, resuming, refusals, reading back."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn_job import PICTURES, Squares, draw_images, files_in, job_for, run, squares
from PIL import Image as Pillow

import cellwright as cw
from cellwright.core.dataset import Dataset
from cellwright.core.errors import FormatError, InputError, OutputError, UsageError
from cellwright.data.images.reading import Reading
from cellwright.data.synthetic import write_demo_dataset
from cellwright.prediction.folder import PredictionFolder
from cellwright.prediction.job import PREDICTIONS
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import SegmenterPredictor
from cellwright.prediction.run_folder import predict_into
from cellwright.prediction.sources import Source, read_and_choose, sources_of_dataset, sources_of_paths


@pytest.fixture
def images(tmp_path) -> Path:
    """``a.png`` beside ``a.tif``, and ``deep/b.png``."""
    return draw_images(tmp_path / "images")


def is_complete(folder: Path) -> bool:
    return (folder / PREDICTIONS).is_file()


def read_predictions(folder: Path) -> Dataset:
    return cw.read_dataset(folder, require_images=False)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_folder_contains_the_documented_files(images, tmp_path):
    out = tmp_path / "pred"
    report = run(job_for(sources_of_paths([images])), out)
    assert (report.n_images, report.n_resumed, report.n_objects, report.failures) == (3, 0, 6, ())
    endings = ("_masks.tif", "_overlay.png", ".geojson", "_rois.zip", "_measurements.csv")
    outputs = [f"{stem}{ending}" for stem in ("a.png", "a.tif", "deep/b") for ending in endings]
    shared = ["contact_sheet.png", "failures.csv", "predictions.json", "recipe.yaml", "summary.csv"]
    shared += ["counts.png", "measurements.csv", "measurements.parquet", "report.html"]
    assert set(files_in(out)) == {*outputs, *shared}
    assert (out / "recipe.yaml").read_text() == "name: test\n"
    assert rows(out / "failures.csv") == []
    text = (out / "predictions.json").read_text()
    assert str(tmp_path) not in text, "no absolute path"
    content = json.loads(text)
    assert content["schema_version"] == 1
    assert {category["name"] for category in content["categories"]} == {"round", "long"}
    assert len(content["annotations"]) == 6
    assert all("score" in annotation for annotation in content["annotations"])


def test_labels_are_the_ids_and_the_higher_score_wins_where_objects_overlap(images, tmp_path):
    out = tmp_path / "pred"
    report = run(job_for(sources_of_paths([images / "a.png"])), out)
    labels = tifffile.imread(out / "a_masks.tif")
    assert labels.dtype == np.uint32
    expected = np.zeros((20, 30), np.uint32)
    expected[2:8, 2:8] = 2  # the lower score
    expected[5:12, 5:12] = 1
    assert np.array_equal(labels, expected)
    with tifffile.TiffFile(out / "a_masks.tif") as file:
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
    row = rows(out / "summary.csv")[0]
    assert row["overlap_pixels_lost_in_label_image"] == "9"
    assert (row["image"], row["objects"], row["objects_round"], row["objects_long"]) == ("a", "2", "1", "1")
    assert row["model_cap_reached"] == "2"
    assert any("9 pixels" in note for note in report.notes)
    assert any("1 image reached the model's own limit of 2 objects" in note for note in report.notes)


def test_options_are_applied_and_a_cap_is_shown(images, tmp_path):
    captions = []
    pictures = replace(
        PICTURES, sheet=lambda tiles, title: (captions.extend(t for t, _ in tiles), PICTURES.sheet(tiles, title))[1]
    )
    job = job_for(sources_of_paths([images / "a.png"]), options=PredictOptions(max_objects=1))
    report = run(job, tmp_path / "p", pictures=pictures)
    assert report.n_objects == 1
    assert rows(tmp_path / "p" / "summary.csv")[0]["left_out_max_objects"] == "1"
    assert captions == ["a: 1 object, 1 over the maximum omitted, the model's cap of 2 reached"]
    assert "`max_objects` omitted 1 object in 1 image" in report.notes


def test_predictions_are_read_back_unchanged(images, tmp_path):
    run(job_for(sources_of_paths([images])), tmp_path / "pred")
    assert is_complete(tmp_path / "pred")
    data = read_predictions(tmp_path / "pred")
    assert data.class_names == ("round", "long")
    assert sorted(sample.id for sample in data) == ["a.png", "a.tif", "deep/b"]
    sample = data.sample("deep/b")
    assert sample.image_path.resolve() == images / "deep" / "b.png"
    back, expected = sample.read_instances(), squares((16, 16)).by_score()
    assert back.masks == expected.masks
    assert np.array_equal(back.scores, expected.scores)
    assert np.array_equal(back.boxes_xyxy, expected.boxes_xyxy)
    assert back.class_ids.tolist() == [1, 0]
    assert back.ids.tolist() == [1, 2]


def test_predictions_can_be_read_without_their_images(images, tmp_path):
    run(job_for(sources_of_paths([images / "a.png"])), tmp_path / "pred")
    (images / "a.png").unlink()
    sample = read_predictions(tmp_path / "pred")[0]
    assert sample.image_path is None
    assert len(sample.read_instances()) == 2


def test_a_dataset_keeps_its_ids_numbers_and_splits(tmp_path):
    drawn = write_demo_dataset(tmp_path / "d", splits=(("train", 1), ("val", 1)), image_hw=(32, 32), n_objects=3)
    numbered = drawn.with_samples([replace(sample, image_id=70 + k) for k, sample in enumerate(drawn)])
    run(job_for(sources_of_dataset(numbered)), tmp_path / "pred")
    back = read_predictions(tmp_path / "pred")
    assert [(sample.id, sample.image_id, sample.split) for sample in back] == [
        ("images/field_000", 70, "train"),
        ("images/field_001", 71, "val"),
    ]
    assert (tmp_path / "pred" / "images" / "field_001_masks.tif").is_file()


def test_an_image_that_fails_is_recorded_and_the_job_continues(images, tmp_path):
    whole = (images / "a.png").read_bytes()
    (images / "a.png").write_bytes(whole[: len(whole) // 2])
    report = run(job_for(sources_of_paths([images])), tmp_path / "pred")
    assert report.n_images == 2
    assert [name for name, _ in report.failures] == ["a.png"]
    failure = rows(tmp_path / "pred" / "failures.csv")[0]
    assert failure["image"] == "a.png"
    assert failure["problem"]
    assert str(tmp_path) not in failure["where"]
    numbers = {sample.id: sample.image_id for sample in read_predictions(tmp_path / "pred")}
    assert numbers == {"a.tif": 2, "deep/b": 3}, "numbers do not move where one fails"


def test_fail_fast_stops_at_the_first_failure(images, tmp_path):
    (images / "a.png").write_bytes(b"")
    with pytest.raises(InputError):
        run(job_for(sources_of_paths([images])), tmp_path / "pred", fail_fast=True)
    assert not is_complete(tmp_path / "pred")


def test_a_job_in_which_all_images_fail(images, tmp_path):
    (images / "a.png").write_bytes(b"")
    report = run(job_for(sources_of_paths([images / "a.png"])), tmp_path / "pred")
    assert (report.n_images, len(report.failures)) == (0, 1)
    assert len(read_predictions(tmp_path / "pred")) == 0


def test_a_resumed_job_writes_the_same_files(images, tmp_path):
    job, whole, torn = job_for(sources_of_paths([images])), tmp_path / "whole", tmp_path / "torn"
    run(job, whole)
    with pytest.raises(KeyboardInterrupt):
        run(job, torn, Squares(stop_at=1))
    assert not is_complete(torn)
    rest, totals = Squares(), []
    report = run(job, torn, rest, track=lambda items, what, total: (totals.append(total), items)[1])
    assert rest.names == ["a.tif", "b.png"]
    assert totals == [2]  # so that the remaining time shown is right
    assert report.n_resumed == 1
    assert files_in(whole) == files_in(torn)
    for name in files_in(whole):
        assert (whole / name).read_bytes() == (torn / name).read_bytes(), name


def test_a_missing_file_of_an_unfinished_job_is_written_again(images, tmp_path):
    job, out = job_for(sources_of_paths([images])), tmp_path / "pred"
    with pytest.raises(KeyboardInterrupt):
        run(job, out, Squares(stop_at=2))
    (out / "a.png_overlay.png").unlink()
    rest = Squares()
    run(job, out, rest)
    assert rest.names == ["a.png", "b.png"]


def test_a_complete_folder_is_kept_unless_the_job_is_another(images, tmp_path):
    job, out = job_for(sources_of_paths([images])), tmp_path / "pred"
    run(job, out)
    before = {name: (out / name).stat().st_mtime_ns for name in files_in(out)}
    again = Squares()
    report = run(job, out, again)
    assert (report.n_images, report.n_resumed, report.n_objects, again.names) == (3, 3, 6, [])
    assert {name: (out / name).stat().st_mtime_ns for name in files_in(out)} == before
    with pytest.raises(OutputError, match=r"the images: 2 images fewer \(a.png, a.tif\)[\s\S]*`overwrite=True`"):
        run(job_for(job.sources[2:]), out)
    Pillow.new("RGB", (16, 16)).save(images / "deep" / "c.png")
    with pytest.raises(OutputError, match=r"the images: 1 image more \(deep/c\)"):
        run(job_for(sources_of_paths([images])), out)
    (images / "deep" / "c.png").unlink()
    (out / "my_masks.tif").write_bytes(b"mine")
    run(job_for(sources_of_paths([images / "a.png"])), out, overwrite=True)
    assert not (out / "deep").exists()
    assert (out / "my_masks.tif").read_bytes() == b"mine"
    assert len(read_predictions(out)) == 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"options": PredictOptions(score_threshold=0.2)}, "`score` 0.2 instead of 0"),
        ({"model": "m2"}, "the model"),
        ({"recipe_yaml": "name: other\n"}, "the recipe"),
        ({"save": ("masks",)}, "`save` masks instead of geojson masks measurements overlay rois"),
        ({"predicting": {"diameter": 20.0}}, "`diameter` 20 instead of none"),
        ({"reading": {"z": 3}}, "`z` 3 instead of none, which changes 1 image"),
    ],
)
def test_an_unfinished_folder_of_another_job_is_refused(images, tmp_path, changes, word):
    sources = sources_of_paths([images])
    with pytest.raises(KeyboardInterrupt):
        run(job_for(sources), tmp_path / "pred", Squares(stop_at=1))
    with pytest.raises(OutputError, match=word):
        run(job_for(sources, **changes), tmp_path / "pred")
    with pytest.raises(OutputError, match="the images: 1 image fewer"):
        run(job_for(sources[1:]), tmp_path / "pred")


def test_a_folder_in_which_nothing_is_done_takes_another_job(images, tmp_path):
    """A typing error costs nothing, whether the job was interrupted at once or every image failed."""
    sources = sources_of_paths([images])
    with pytest.raises(KeyboardInterrupt):
        run(job_for(sources), tmp_path / "a", Squares(stop_at=0))
    job = job_for(sources, options=PredictOptions(score_threshold=0.5), save=("masks",))
    assert run(job, tmp_path / "a").n_objects == 3
    assert not (tmp_path / "a" / "deep" / "b_overlay.png").exists()
    whole = (images / "a.png").read_bytes()
    (images / "a.png").write_bytes(b"")
    run(job_for(sources[:1]), tmp_path / "b")
    (images / "a.png").write_bytes(whole)
    report = run(job, tmp_path / "b")
    assert (report.n_images, report.n_resumed, report.failures) == (3, 0, ())
    assert rows(tmp_path / "b" / "failures.csv") == []


def test_failed_images_are_tried_again_and_done_ones_stay(images, tmp_path):
    sources, out = sources_of_paths([images]), tmp_path / "pred"
    whole = (images / "a.tif").read_bytes()
    (images / "a.tif").write_bytes(whole[:100])
    assert len(run(job_for(sources), out).failures) == 1
    assert is_complete(out)
    still, rest = Squares(), Squares()
    assert len(run(job_for(sources), out, still).failures) == 1
    assert still.names == []
    (images / "a.tif").write_bytes(whole)
    Pillow.new("RGB", (16, 16)).save(images / "c.png")  # a further image is no obstacle either
    report = run(job_for(sources_of_paths([images])), out, rest)
    assert (report.n_images, report.n_resumed, report.failures) == (4, 2, ())
    assert rest.names == ["a.tif", "c.png"]
    run(job_for(sources_of_paths([images])), tmp_path / "whole")
    assert files_in(out) == files_in(tmp_path / "whole")
    for name in files_in(out):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_another_way_of_reading_is_accepted_where_it_gives_the_same_pixels(images, tmp_path):
    """A stack beside plain images: without a plane, the stack fails; with one, the plain images have none to choose."""
    tifffile.imwrite(images / "stack.tif", np.zeros((3, 24, 24), np.uint16), imagej=True, metadata={"axes": "ZYX"})
    sources, out = sources_of_paths([images]), tmp_path / "pred"

    def predict(**choices):
        reading, segmenter = Reading(**choices), Squares()
        predictor = SegmenterPredictor(segmenter)
        job = job_for(sources, reading=reading.to_dict())
        see = partial(read_and_choose, predictor=predictor, reading=reading)
        folder = PredictionFolder(out, job, PICTURES, see=see)
        return predict_into(folder, predictor, reading=reading), segmenter.names

    assert [name for name, _ in predict()[0].failures] == ["stack"]
    report, names = predict(z=1)
    assert (names, report.n_images, report.failures) == (["stack.tif"], 4, ())
    assert predict(z=1)[1] == []
    with pytest.raises(OutputError, match=r"`z` 2 instead of 1, which changes"):
        predict(z=2)
    with pytest.raises(OutputError, match=r"`z` none instead of 1, which changes 1 image \(stack\)"):
        predict()


def test_images_are_compared_by_content(images, tmp_path):
    job, out = job_for(sources_of_paths([images])), tmp_path / "pred"
    run(job, out)
    for path in images.rglob("*.*"):
        os.utime(path, ns=(1, 1))
    again = Squares()
    run(job, out, again)
    assert again.names == []
    pixels = np.asarray(Pillow.open(images / "deep" / "b.png"))
    Pillow.fromarray(255 - pixels).save(images / "deep" / "b.png")
    with pytest.raises(OutputError, match=r"the content of 1 image \(deep/b\)"):
        run(job, out)


def test_a_complete_folder_without_all_its_files(images, tmp_path):
    job, out = job_for(sources_of_paths([images])), tmp_path / "pred"
    run(job, out)
    (out / "a.png_overlay.png").write_bytes(b"")
    with pytest.raises(OutputError, match=r"1 file missing or empty \(a.png_overlay.png\)"):
        run(job, out)
    assert run(job, out, overwrite=True).n_resumed == 0
    assert run(job, out).n_resumed == 3
    (out / ".cellwright" / "progress" / "images.json").write_text('{"images": []}')
    with pytest.raises(FormatError, match="damaged"):
        run(job, out)


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
def test_two_jobs_in_one_folder(images, tmp_path):
    """The case 16: the second one is told so, before it works in vain."""
    job, out = job_for(sources_of_paths([images])), tmp_path / "pred"

    class Intruder(Squares):
        def predict(self, images):
            with pytest.raises(OutputError, match="in use by cellwright predict"):
                run(job, out)
            return super().predict(images)

    assert run(job, out, Intruder()).n_images == 3
    assert run(job, out).n_resumed == 3


def test_folders_with_other_files_are_never_changed(images, tmp_path):
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not an output of this command"):
            run(job_for(sources_of_paths([images])), images, overwrite=overwrite)
    with pytest.raises(OutputError, match="file"):
        run(job_for(sources_of_paths([images])), images / "a.png")
    assert files_in(images) == ["a.png", "a.tif", "deep/b.png"]


def test_only_the_requested_files_are_written(images, tmp_path):
    run(job_for(sources_of_paths([images / "a.png"]), save=("masks",)), tmp_path / "pred")
    assert "a_overlay.png" not in files_in(tmp_path / "pred")
    assert {"a_masks.tif", "contact_sheet.png"} <= set(files_in(tmp_path / "pred"))
    with pytest.raises(UsageError, match="geojsn"):
        job_for([], save=("geojsn",))


def test_hidden_files_and_outputs_are_skipped(images, tmp_path):
    (images / ".ipynb_checkpoints").mkdir()
    (images / ".ipynb_checkpoints" / "a.png").write_bytes((images / "a.png").read_bytes())
    run(job_for(sources_of_paths([images])), images / "out")
    assert [source.id for source in sources_of_paths([images])] == ["a.png", "a.tif", "deep/b"]
    assert [source.id for source in sources_of_paths([images, images / "a.png"])] == ["a.png", "a.tif", "deep/b"]


def test_equal_names_in_two_folders_get_different_ids(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Pillow.new("L", (4, 4)).save(tmp_path / name / "x.png")
    ids = [source.id for source in sources_of_paths([tmp_path / "one", tmp_path / "two"])]
    assert ids == ["one/x", "two/x"]
    with pytest.raises(UsageError, match="same output files"):
        sources_of_paths([tmp_path / "one" / "x.png", tmp_path / "two" / "x.png"])


def test_a_sample_without_an_image_is_named(tmp_path):
    drawn = write_demo_dataset(tmp_path, splits=(("train", 1),), image_hw=(32, 32), n_objects=1)
    with pytest.raises(InputError, match="field_000"):
        sources_of_dataset(drawn.with_samples([replace(drawn[0], image_path=None)]))


def test_the_label_image_has_the_pixel_size(tmp_path):
    tifffile.imwrite(
        tmp_path / "x.tif", np.zeros((16, 16), np.uint8), resolution=(4e4, 2e4), resolutionunit="CENTIMETER"
    )
    folder = PredictionFolder(tmp_path / "p", job_for([Source("x", tmp_path / "x.tif")]), PICTURES)
    predict_into(folder, SegmenterPredictor(Squares()))
    with tifffile.TiffFile(tmp_path / "p" / "x_masks.tif") as file:
        tags = file.pages[0].tags
        assert tags["XResolution"].value[0] / tags["XResolution"].value[1] == pytest.approx(1e4 / 0.25)
        assert tags["YResolution"].value[0] / tags["YResolution"].value[1] == pytest.approx(1e4 / 0.5)
    assert read_predictions(tmp_path / "p")[0].pixel_size_um == (0.5, 0.25)
