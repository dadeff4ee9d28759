"""OME-Zarr folders and slides are images like others: predict, data info, annotations beside them."""

from __future__ import annotations

from pathlib import Path

import drawn_images as drawn
import numpy as np
import pytest
import tifffile
from drawn import run
from drawn_zarr import write

import cellwright as cw

pytest.importorskip("zarr")
pytest.importorskip("openslide")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with the field of nine nuclei as TIFF, as OME-Zarr and as a slide."""
    folder = tmp_path / "images"
    folder.mkdir()
    drawn.FIELDS["00_plain.tif"](folder / "plain.tif")
    write(folder / "well_01.ome.zarr", np.stack([drawn.GREY, drawn.BLANK]), "cyx", channels=[{"label": "DAPI"}, {"label": "GFP"}])  # fmt: skip # noqa: E501
    tifffile.imwrite(folder / "slide.svs", drawn.HE, tile=(64, 64), photometric="rgb", metadata=None)
    return folder


def test_predict(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "predictions"
    assert run("predict", images, "--model", "classical", "--channel", "DAPI|0", "--out", out) == 0
    names = {path.name for path in out.iterdir()}
    for name in ("plain", "slide", "well_01"):
        assert f"{name}_masks.tif" in names
        labels = tifffile.imread(out / f"{name}_masks.tif")
        assert labels.shape == drawn.GREY.shape
        assert name == "slide" or labels.max() == 9
    assert run("predict", images / "well_01.ome.zarr", "--model", "classical", "--channel", "DAPI", "--out", tmp_path / "one") == 0  # fmt: skip # noqa: E501
    assert tifffile.imread(tmp_path / "one" / "well_01_masks.tif").max() == 9


def test_data_info(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "info", images / "well_01.ome.zarr") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for fact in ("96 x 128 px, uint8", "2 (DAPI, GFP)", "0.5 um", "0: 96 x 128; 1: 48 x 64 (1/2)", "chunks of 32 x 40"):
        assert fact in printed
    assert run("data", "info", images / "slide.svs") == 0
    assert "tiles of 64 x 64, slide of" in " ".join(capsys.readouterr().out.split())


def test_annotations_beside_them(images: Path, tmp_path: Path) -> None:
    (images / "plain.tif").unlink()
    cells = cw.Instances.from_label_map(drawn.truth())
    for name in ("well_01", "slide"):
        cw.save(cells, images / f"{name}.geojson")
    assert run("data", "convert", images, "--copy-images", "--out", tmp_path / "data") == 0
    dataset = cw.read_dataset(tmp_path / "data")
    assert {sample.id: len(sample.read_instances()) for sample in dataset} == {"slide": 9, "well_01": 9}
    copied = {path.name for path in (tmp_path / "data" / "images").iterdir()}
    assert copied == {"slide.svs", "well_01.zarr"}
    image = cw.read_image(tmp_path / "data" / "images" / "well_01.zarr", channel="DAPI")
    np.testing.assert_array_equal(image.data[:, :, 0], drawn.GREY)
