"""Which part of a large image is predicted: regions, tissue, levels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from drawn import run

import cellwright as cw
from cellwright.api.predict_tiles import seen_source
from cellwright.data.synthetic import draw_field
from cellwright.prediction.tiling.seams import anchors_of
from cellwright.prediction.tiling.tissue import find_tissue

HW = (330, 400)
NO_GLASS = "the image has no bright, colourless background"
HOLED = [
    [[-40, 60], [200, 20], [220, 260], [60, 250], [-40, 60]],
    [[90.5, 110], [150, 100], [140, 180.25], [90.5, 110]],
]


def predict(image: Path, out: Path, *more: object) -> int:
    return run("predict", image, "--tile=160", "--diameter=24", "--labels=tiff", "--out", out, *more)


def outlines(root: Path) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress((root / "objects.geojson.gz").read_bytes()))["features"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of a whole field; ``field.tif`` beside it."""
    root = tmp_path_factory.mktemp("regions")
    pixels = draw_field(4, HW, HW[0] * HW[1] // 2500)[0].data
    tifffile.imwrite(root / "field.tif", pixels, tile=(64, 64), photometric="rgb", resolution=(20000, 20000))
    assert predict(root / "field.tif", root / "job", "--quiet") == 0
    return root / "job"


def feature(rings: list, **properties: object) -> dict[str, Any]:
    geometry = {"type": "Polygon", "coordinates": rings}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **properties}}


def masks_of(root: Path) -> cw.MaskSet:
    return cw.MaskSet.from_label_map(tifffile.imread(root / "labels.tif"))[0]


def test_objects_are_kept_by_their_anchor_in_polygons_with_holes(whole: Path, tmp_path: Path, capsys) -> None:
    from shapely.geometry import MultiPolygon, Point, Polygon

    far = [[300, 250], [390, 250], [390, 320], [300, 320], [300, 250]]
    ignored = feature(
        [[[330, 270], [350, 270], [350, 300], [330, 300], [330, 270]]], classification={"name": "Ignore*"}
    )
    multi = {"type": "Feature", "properties": None, "geometry": {"type": "MultiPolygon", "coordinates": [HOLED, [far]]}}
    point = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 1]}}
    flat = feature([[[5, 5], [50, 50], [9, 9], [5, 5]]])
    content = {"type": "FeatureCollection", "features": [multi, ignored, point, flat]}
    file = tmp_path / "drawn.geojson"
    file.write_text(json.dumps(content))
    assert predict(whole.parent / "field.tif", tmp_path / "job", "--roi", file) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "not regions: 1 feature without a polygon, 1 region without area" in said
    assert "beyond the image" in said
    assert "1 region of the class Ignore* cut out" in said
    area = MultiPolygon([(HOLED[0], [HOLED[1]]), (far, [])]).difference(Polygon(ignored["geometry"]["coordinates"][0]))
    everything = masks_of(whole)
    inside = [area.contains(Point(x + 0.5, y + 0.5)) for y, x in anchors_of(everything)]
    assert 5 < sum(inside) < len(everything) - 5
    expected = everything[np.array(inside)]
    assert np.array_equal(expected.foreground(), masks_of(tmp_path / "job").foreground())
    assert len(outlines(tmp_path / "job")) == len(expected)
    assert run("export", tmp_path / "job", "--to=geojson", "--out", tmp_path / "cells.geojson", "--quiet") == 0
    assert len(json.loads((tmp_path / "cells.geojson").read_text())["features"]) == len(expected)
    assert len(cw.read_dataset(tmp_path / "job")[0].read_instances()) == len(expected)
    # The file is part of what the job is, but no longer needed.
    (tmp_path / "job" / "overview.png").unlink()
    moved = file.rename(tmp_path / "moved.geojson")
    assert predict(whole.parent / "field.tif", tmp_path / "job", "--roi", file) == 0
    assert "its regions are those that the job has stored" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "job" / "overview.png").exists()
    file.write_text(json.dumps(feature([far])))
    assert predict(whole.parent / "field.tif", tmp_path / "job", "--roi", file) == 2
    assert "`roi`" in capsys.readouterr().err.replace("--roi", "`roi`")
    assert moved.exists()


def test_rectangles_and_polygons_keep_the_same(whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "square.json"
    file.write_text(json.dumps([feature([[[160, 0], [320, 0], [320, 160], [160, 160], [160, 0]]])]))
    image = whole.parent / "field.tif"
    assert predict(image, tmp_path / "a", "--roi=0,160,160,160", "--quiet") == 0
    source = cw.open_image(image)
    model = cw.load_model("nuclei").with_options(diameter=24.0)
    job = cw.predict_tiles(source, model=model, out=tmp_path / "b", tile=160, labels="tiff", roi=file)
    for name in ("labels.tif", "objects.geojson.gz", "summary.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    summary = pd.read_csv(tmp_path / "a" / "summary.csv").iloc[0]
    assert summary["objects"] == job.n_objects > 0
    assert summary["tiles_skipped"] > 0
    ys, xs = anchors_of(masks_of(tmp_path / "a")).T
    assert ys.max() < 160 <= xs.min() <= xs.max() < 320


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (feature([[[600, 600], [690, 600], [650, 690], [600, 600]]]), "outside the image"),
        (feature([[[9000, 9000], [9900, 9000], [9500, 9900], [9000, 9000]]]), "full resolution"),
        (feature([[[5, 5], [50, 50], [9, 9], [5, 5]]]), "no regions"),
        (feature([[[0, 0], [9, 0], [0, 9], [0, 0]]], objectType="detection"), "1 detection"),
        (feature([[[0, "a"], [9, 0], [0, 9]]]), "malformed"),
        ({"type": "FeatureCollection", "features": []}, "no regions"),
        ({"some": "thing"}, "not a GeoJSON"),
        (None, "no such file of regions"),
    ],
)
def test_files_without_usable_regions_are_refused(content: object, text: str, whole: Path, tmp_path, capsys) -> None:
    file = tmp_path / "regions.geojson"
    if content is not None:
        file.write_text(json.dumps(content))
    assert predict(whole.parent / "field.tif", tmp_path / "job", "--roi", file) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert text in said
    assert "regions.geojson" in said
    assert not (tmp_path / "job").exists()


def test_nan_is_seen_as_in_whole_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """NaN is the smallest value of the whole image, not of a tile, and measured as what it is."""
    pixels = draw_field(4, (200, 330), 20)[0].data.astype(np.float32).mean(axis=2) / 300
    pixels[40:90, 30:280] = np.nan
    pixels[150, 300:], pixels[151, 300:] = np.inf, -np.inf
    tifffile.imwrite(tmp_path / "nan.tif", pixels, tile=(64, 64))
    words = ["predict", tmp_path / "nan.tif", "--diameter=24", "--labels=tiff"]
    assert run(*words, "--tile=160", "--out", tmp_path / "job") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "12,560 pixels with NaN or infinity: the model saw the smallest value" in said
    assert "12,560 pixels" in (tmp_path / "job" / "summary.csv").read_text()
    assert run(*words[:3], "--out", tmp_path / "whole") == 0
    labels, expected = (tifffile.imread(tmp_path / name) for name in ("job/labels.tif", "whole/nan_masks.tif"))
    assert 5 < expected.max() == labels.max()
    assert np.array_equal(labels > 0, expected > 0)
    words[2] = "--model=classical"
    assert run(*words, "--tile=160", "--out", tmp_path / "classical") == 0
    assert run(*words[:3], "--out", tmp_path / "at_once") == 0
    labels, expected = (tifffile.imread(tmp_path / name) for name in ("classical/labels.tif", "at_once/nan_masks.tif"))
    assert 2 < expected.max() == labels.max()
    assert np.array_equal(labels > 0, expected > 0)
    pixels[:] = np.nan
    tifffile.imwrite(tmp_path / "none.tif", pixels)
    assert run("predict", tmp_path / "none.tif", "--tile=160", "--out", tmp_path / "none") == 2
    assert "no finite pixel" in capsys.readouterr().err


# --- tissue ---------------------------------------------------------------------------------------------------------


def write_slide(path: Path, *, stained: bool = True) -> Path:
    """A pyramid of glass with a stained field in a corner, and one pale nucleus far from it, at row 330, column 450."""
    rng = np.random.default_rng(0)
    pixels = 242 + rng.normal(0, 1.5, (384, 512, 3))
    pixels[:128, :128] = draw_field(3, (128, 128), 9)[0].data
    ys, xs = np.mgrid[:384, :512]
    pixels[(ys - 330) ** 2 + (xs - 450) ** 2 < 36] -= (30, 45, 20)
    pixels = np.rint(pixels if stained else 255 - pixels).clip(0, 255).astype(np.uint8)
    with tifffile.TiffWriter(path) as tif:
        options = {"tile": (64, 64), "photometric": "rgb"}
        tif.write(pixels, subifds=2, **options)
        for step in (2, 4):
            small = pixels.reshape(384 // step, step, 512 // step, step, 3).mean(axis=(1, 3)).astype(np.uint8)
            tif.write(small, subfiletype=1, **options)
    return path


def test_tiles_that_are_only_glass_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    slide = write_slide(tmp_path / "slide.tif")
    words = ["predict", slide, "--tile=128", "--diameter=24", "--labels=tiff"]
    assert run(*words, "--out", tmp_path / "job") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "4 of 12 tiles are only glass and are skipped, as tissue.png shows; --tissue none predicts them" in said
    job = json.loads((tmp_path / "job" / "job.json").read_text())
    assert job["tiles"] == [0, 1, 4, 5, 6, 7, 10, 11]
    assert pd.read_csv(tmp_path / "job" / "summary.csv")["tiles_skipped"].item() == 4
    picture = cw.read_image(tmp_path / "job" / "tissue.png").data
    assert picture[350, 60].mean() < 160 < picture[300, 300].mean()
    labels = tifffile.imread(tmp_path / "job" / "labels.tif")
    assert len(np.unique(labels[:128, :128])) > 4
    # Found once: the next run takes what is stored.
    (tmp_path / "job" / "overview.png").unlink()
    assert run(*words, "--out", tmp_path / "job") == 0
    assert "looking for tissue" not in capsys.readouterr().err
    assert (tmp_path / "job" / "tissue.png").is_file()
    assert run(*words, "--tissue=auto", "--roi=0,0,99,99", "--out", tmp_path / "part") == 0
    assert "no tile is skipped as background: there is tissue in or near all" in " ".join(
        capsys.readouterr().err.split()
    )
    assert run(*words, "--tissue=none", "--out", tmp_path / "job") == 2
    assert "--tissue none instead of default" in capsys.readouterr().err


def test_fluorescence_and_fields_are_never_skipped(tmp_path: Path) -> None:
    assert find_tissue(cw.open_image(write_slide(tmp_path / "dark.tif", stained=False))) == NO_GLASS
    unstained = np.random.default_rng(0).normal(235, 2, (600, 600, 3)).astype(np.uint8)
    unstained[200:300, 200:300] += 9
    assert find_tissue(cw.open_image(unstained)) == "what is not glass is hardly darker than it"
    field = draw_field(3, (500, 500), 60)[0]
    assert isinstance(find_tissue(cw.open_image(field)), str)
    assert "8 bits" in str(find_tissue(cw.open_image(unstained.astype(np.uint16))))


def test_a_mask_says_where_tissue_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    slide = write_slide(tmp_path / "slide.tif")
    words = ["predict", slide, "--model=classical", "--tile=128", "--labels=tiff", "--out", tmp_path / "job"]
    mask = np.zeros((38, 51), np.uint8)
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    assert run(*words, "--tissue", tmp_path / "mask.png") == 2
    assert "no tissue" in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / "mask.png"), mask[:, :40])
    assert run(*words, "--tissue", tmp_path / "mask.png") == 2
    assert "38 x 40 px" in capsys.readouterr().err
    mask[2:8, 2:8] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    assert run(*words, "--tissue", tmp_path / "mask.png") == 0
    assert "8 of 12 tiles have no tissue and are skipped" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "job" / "job.json").read_text())["tiles"] == [0, 1, 4, 5]
    (tmp_path / "job" / "overview.png").unlink()
    (tmp_path / "mask.png").unlink()
    assert run(*words, "--tissue", tmp_path / "mask.png") == 0
    assert "the tissue is that which the job has stored" in " ".join(capsys.readouterr().err.split())
    assert run(*words[:-1], tmp_path / "other", "--tissue", tmp_path / "mask.png") == 2
    assert "no such mask" in capsys.readouterr().err
    # The picture of a job that was replaced before it was finished is not that of its successor.
    claim = tmp_path / "job" / ".cellwright" / "claim.json"
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"state": "writing"}))
    assert run(*words, "--tissue=none", "--roi=0,0,90,90", "--overwrite") == 0
    assert not (tmp_path / "job" / "tissue.png").exists()


# --- levels ---------------------------------------------------------------------------------------------------------


def test_whether_colours_are_separate_stains_is_decided_once_for_all_levels(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide.tif")
    stains = np.zeros((192, 256, 3), np.uint8)
    stains[20:90, 20:90, 0] = stains[60:150, 100:200, 2] = 200
    with tifffile.TiffFile(slide) as tif:
        full = tif.asarray()
    with tifffile.TiffWriter(slide) as tif:
        tif.write(full, subifds=1, tile=(64, 64), photometric="rgb")
        tif.write(stains, subfiletype=1, tile=(64, 64), photometric="rgb")
    model, own = cw.load_model("nuclei"), cw.open_image(stains)
    assert seen_source(own, model, None).channels == ("B",)
    for level in (0, 1):
        assert seen_source(cw.open_image(slide, level=level), model, None).channels == ("R", "G", "B")


def test_a_level_is_predicted_in_its_own_pixels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    slide = write_slide(tmp_path / "slide.tif")
    words = ["--tile=128", "--diameter=12", "--labels=tiff"]
    region = ["--roi=0,0,128,110", "--pixel-size=0.25"]
    assert run("predict", slide, *words, *region, "--level=1", "--out", tmp_path / "level") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "level 1 (1/2): sizes and positions are in its pixels, 192 x 256 of 0.5 um" in said
    tifffile.imwrite(tmp_path / "small.tif", tifffile.imread(slide, level=1), photometric="rgb")
    region = ["--roi=0,0,64,55", "--pixel-size=0.5"]
    assert run("predict", tmp_path / "small.tif", *words, *region, "--tissue=auto", "--out", tmp_path / "own") == 0
    labels, expected = (tifffile.imread(tmp_path / name / "labels.tif") for name in ("level", "own"))
    assert labels.shape == (192, 256)
    assert np.array_equal(labels, expected)
    assert labels.max() > 2
    with tifffile.TiffFile(tmp_path / "level" / "labels.tif") as tif:
        assert tif.pages[0].tags["XResolution"].value == (20000, 1)
    sample = cw.read_dataset(tmp_path / "level")[0]
    assert (sample.image_hw, sample.pixel_size_um) == ((192, 256), (0.5, 0.5))
    assert run("measure", tmp_path / "level", "--out", tmp_path / "table.csv", "--quiet") == 0
    table, first = pd.read_csv(tmp_path / "table.csv"), outlines(tmp_path / "level")[0]["properties"]["measurements"]
    assert table["area_um2"].iloc[0] == pytest.approx(table["area_px"].iloc[0] * 0.25) == first["area_um2"]
    assert table["intensity_mean_R"].iloc[0] == pytest.approx(first["intensity_mean_R"])
    # QuPath shows outlines on the full size.
    for outline, small in zip(outlines(tmp_path / "level"), outlines(tmp_path / "own"), strict=True):
        double = [[[2 * x, 2 * y] for x, y in ring] for ring in small["geometry"]["coordinates"]]
        assert outline["geometry"]["coordinates"] == double
        assert outline["properties"]["measurements"]["area_um2"] == small["properties"]["measurements"]["area_um2"]
    source = cw.open_image(slide, level=1, pixel_size=0.25)
    assert (source.image_hw, source.pixel_size_um, len(source.levels)) == ((192, 256), (0.5, 0.5), 2)
    assert np.array_equal(source.read(8, 9, 50, 60, 1).data, tifffile.imread(slide, level=2)[8:58, 9:69])
    for level, text in (("3", "0 (384 x 512), 1 (192 x 256), 2 (96 x 128)"), ("-1", "no such level")):
        assert run("predict", slide, f"--level={level}", "--out", tmp_path / "none") == 2
        assert text in " ".join(capsys.readouterr().err.split())
