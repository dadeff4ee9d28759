"""Prediction folders that were corrected, as inputs of the commands."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.data.synthetic import draw_field

SAVE = ("masks", "geojson", "rois")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """``images/`` with a and b, and ``pred/`` of the classical method with candidates below the threshold."""
    root = tmp_path_factory.mktemp("job")
    (root / "images").mkdir()
    for k, name in enumerate("ab"):
        tifffile.imwrite(root / "images" / f"{name}.tif", draw_field(k, (96, 128), 10)[0].data)
    model = cw.load_model("classical").with_options(score=0.72)
    cw.predict_folder(root / "images", model=model, out=root / "pred", save=SAVE)
    return root


@pytest.fixture
def pred(job, tmp_path):
    """A copy of the prediction folder, in which object 1 of image a was deleted from the label image."""
    folder = shutil.copytree(job, tmp_path / "job") / "pred"
    labels = tifffile.imread(folder / "a_masks.tif")
    tifffile.imwrite(folder / "a_masks.tif", np.where(labels == 1, 0, labels).astype(np.uint16))
    return folder


def delete_from_rois(folder, number):
    import zipfile

    import roifile

    path = folder / "a_rois.zip"
    rois = [roi for roi in roifile.roiread(path) if int(roi.name) != number]
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for roi in rois:
            archive.writestr(f"{roi.name}.roi", roi.tobytes())


def test_convert_takes_the_correction_and_what_the_run_reported(pred, tmp_path, capsys):
    before = tifffile.imread(pred / "b_masks.tif")
    n_candidates = len(cw.read_dataset(pred).sample("b").read_instances())
    assert run("data", "convert", pred, "--out", tmp_path / "out") == 0
    assert "a: a_masks.tif was edited, so its objects were read" in capsys.readouterr().err
    dataset = cw.read_dataset(tmp_path / "out")
    a, b = (dataset.sample(name).read_instances() for name in "ab")
    np.testing.assert_array_equal(a.to_label_map(), tifffile.imread(pred / "a_masks.tif"))
    np.testing.assert_array_equal(b.to_label_map(), before)
    assert len(b) < n_candidates
    assert a.scores is None
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["kind"] == "truth"


def test_only_the_image_with_two_different_edits_is_not_converted(pred, tmp_path, capsys):
    delete_from_rois(pred, 2)
    assert run("data", "convert", pred, "--out", tmp_path / "out") == 3
    printed = capsys.readouterr()
    assert "a_rois.zip and a_masks.tif of one image were edited differently" in printed.err
    assert "--prefer rois or --prefer masks" in printed.err
    assert "1 image not converted" in printed.out
    assert [sample.id for sample in cw.read_dataset(tmp_path / "out")] == ["b"]
    assert run("data", "convert", pred, "--prefer", "rois", "--out", tmp_path / "rois") == 0
    ids = cw.read_dataset(tmp_path / "rois").sample("a").read_instances().ids.tolist()
    assert (1 in ids, 2 in ids) == (True, False)


def test_evaluate_takes_the_correction_on_either_side(job, pred, tmp_path, capsys):
    """Against the original, one object of image a is missing."""
    options = ("--metrics", "pq", "--pictures", 0)
    assert run("evaluate", pred, "--data", job / "pred", *options, "--out", tmp_path / "first") == 0
    assert "a_masks.tif was edited" in capsys.readouterr().err
    assert run("evaluate", job / "pred", "--data", pred, *options, "--out", tmp_path / "second") == 0
    values = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "second")]
    n = len(np.unique(tifffile.imread(job / "pred" / "a_masks.tif"))) - 1
    recalls = [value["values"]["recall@0.5"] for value in values]
    np.testing.assert_allclose(recalls, [((n - 1) / n + 1) / 2, 1])  # the mean over images


def test_only_the_image_with_two_different_edits_is_skipped(job, pred, tmp_path, capsys):
    """By every verb, on either side, with the way out; a second time too."""
    delete_from_rois(pred, 2)
    evaluate = ("--metrics", "pq", "--pictures", 0, "--out")
    commands = {
        "evaluated": ("evaluate", pred, "--data", job / "pred", *evaluate, tmp_path / "first"),
        "also evaluated": ("evaluate", job / "pred", "--data", pred, *evaluate, tmp_path / "second"),
        "exported": ("export", pred, "--to", "label_images", "--out", tmp_path / "labels"),
        "measured": ("measure", pred, "--out", tmp_path / "measured.csv"),
        "fused": ("fuse", pred, job / "pred", "--save", "masks", "--out", tmp_path / "fused"),
    }
    for words in commands.values():
        for _ in range(2):
            assert run(*words) == 3
            printed = capsys.readouterr().err
            assert "1 image (a): a_rois.zip and a_masks.tif of one image were edited differently" in printed
            assert "--prefer rois or --prefer masks" in printed
    assert len((tmp_path / "first" / "per_image.csv").read_text().splitlines()) == 2
    assert "so the image was skipped" in (tmp_path / "first" / "report.md").read_text()
    assert sorted(path.name for path in (tmp_path / "labels").glob("*.tif")) == ["b_masks.tif"]
    assert [sample.id for sample in cw.read_dataset(tmp_path / "fused", require_images=False)] == ["b"]
    for words in commands.values():
        out = words[-1].with_name(f"chosen {words[-1].name}")
        assert run(*words[:-1], out, "--prefer", "masks") == 0


def test_export_and_fuse_take_the_correction(pred, tmp_path, capsys):
    assert run("export", pred, "--to", "label_images", "--out", tmp_path / "labels") == 0
    assert "a_masks.tif was edited" in capsys.readouterr().err
    expected = tifffile.imread(pred / "a_masks.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "labels" / "a_masks.tif"), expected)
    assert run("fuse", pred, "--method", "mask_nms", "--save", "masks", "--out", tmp_path / "fused") == 0
    assert "a_masks.tif was edited" in capsys.readouterr().err
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "fused" / "a_masks.tif") > 0, expected > 0)


def test_measure_and_read_instances_take_the_correction(job, pred, tmp_path):
    folder = tmp_path / "one"
    model = cw.load_model("classical").with_options(score=0.72)
    cw.predict_folder(job / "images" / "a.tif", model=model, out=folder, save=SAVE)
    shutil.copy(pred / "a_masks.tif", folder)
    ids = np.unique(tifffile.imread(pred / "a_masks.tif"))[1:].tolist()
    assert sorted(cw.read_instances(folder).ids.tolist()) == ids
    assert sorted(cw.measure(folder).index.tolist()) == ids
