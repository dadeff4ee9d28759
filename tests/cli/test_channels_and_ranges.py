"""Channels and value ranges on the command line: each case gives its right answer, or a line says what was assumed."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn import run
from PIL import Image as Pillow
from scipy import ndimage

import cellwright as cw
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.weights.model_folder import read_model_info
from cellwright.models.weights.torch_io import read_weights, save_model

CASES = Path(__file__).parents[1] / "cases" / "channels"
TINY = ("--set=train.length=2 steps", "--set=train.warmup=null", "--set=augment.crop_px=64", "--set=train.batch_size=1")
SMALL = (*TINY, "--set=model.backbone.width=8", "--set=model.fpn.channels=16", "--set=train.evaluate_every=2 steps")
FLUORESCENCE = FieldLook(stain="fluorescence", touching=0.0, overlap=0.0)


def row_of(folder: Path, image: str | None = None) -> dict[str, str]:
    """The row of an image in summary.csv."""
    rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    return next(row for row in rows if image in (None, row["image"]))


def write_channels(path: Path, planes: dict[str, np.ndarray]) -> None:
    """An OME-TIFF of named channels."""
    metadata = {"axes": "CYX", "Channel": {"Name": list(planes)}}
    tifffile.imwrite(path, np.stack(list(planes.values())), metadata=metadata, photometric="minisblack", ome=True)


@pytest.fixture(scope="module")
def fixed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled network with fixed normalisation for 8-bit images like those of the case, from 13.8 to 154.4."""
    info = read_model_info("nuclei-fluorescence")
    low, high = 13.8 / 255, 154.4 / 255
    scaled = {"normalise": "fixed", "mean": [low] * 3, "std": [high - low] * 3, "diameter_px": 24}
    info = dataclasses.replace(info, recipe=info.recipe | {"input": scaled}, channels=(), values=None)
    return save_model(tmp_path_factory.mktemp("fixed") / "model", read_weights("nuclei-fluorescence"), info)


# Value ranges


@pytest.fixture(scope="module")
def depths(fixed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("depths") / "out"
    code = run("predict", CASES / "55_bit_depth", "--model", fixed_model, "--diameter=17", "--save=masks", "--out", out)
    assert code == 0
    return out


@pytest.mark.parametrize("name", ["u12", "u16", "f01", "f255", "f4095"])
def test_the_same_objects_in_every_depth(depths: Path, name: str) -> None:
    expected, got = (tifffile.imread(depths / f"{image}_masks.tif") for image in ("u8", name))
    assert len(np.unique(expected)) - 1 >= 8
    assert np.mean((expected > 0) == (got > 0)) > 0.995
    assert len(np.unique(got)) == len(np.unique(expected))
    assumed = {"u12": "4095", "f255": "255", "f4095": "4095"}
    notes = row_of(depths, name)["notes"]
    assert f"read as 0 to {assumed[name]}" in notes if name in assumed else notes == ""


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int16", "int64", "float16", "float32", "float64"])
def test_arrays_of_any_type_give_the_same_objects(fixed_model: Path, dtype: str) -> None:
    image = tifffile.imread(CASES / "55_bit_depth" / "u8.tif")
    model = cw.load_model(fixed_model, device="cpu").with_options(diameter=17)
    expected = model.predict(image)
    with pytest.warns(UserWarning, match="were read as 0 to 255"):
        got = model.predict(image.astype(dtype))
    assert len(got) == len(expected) >= 8
    assert np.mean((got.masks.foreground()) == expected.masks.foreground()) > 0.995


def test_training_on_12_bit_images_uses_their_range_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for k in range(3):
        image, truth = draw_field(k, (72, 80), 5, FLUORESCENCE)
        tifffile.imwrite(tmp_path / f"i{k}.tif", image.data[:, :, 0].astype(np.uint16) * 16)
        cw.save(truth, tmp_path / f"i{k}_masks.tif")
    assert run("data", "convert", tmp_path, "--out", tmp_path / "d") == 0
    capsys.readouterr()
    assert run("data", "check", tmp_path / "d", "--suspects=0", "--log-format=json") == 0
    assert "(0 to 4095), not 65535" in capsys.readouterr().out
    assert run("train", "synthetic/demo", "--data", tmp_path / "d", *SMALL, "--out", tmp_path / "r") == 0
    assert "input.full_range is 4095" in capsys.readouterr().err
    info = json.loads((tmp_path / "r" / "model" / "model.json").read_text())
    assert info["scale"] == 1.0
    assert info["recipe"]["input"]["full_range"] == 4095
    assert info["values"]["dtype"] == "uint16"
    # A much darker image is named; one of the same kind is not.
    tifffile.imwrite(tmp_path / "dark.tif", tifffile.imread(tmp_path / "i0.tif") // 20)
    sources = tmp_path / "dark.tif", tmp_path / "i0.tif"
    assert run("predict", *sources, "--model", tmp_path / "r", "--save=masks", "--out", tmp_path / "p") == 0
    assert "darker than the images that the model was trained on" in row_of(tmp_path / "p", "dark")["notes"]
    assert "darker" not in row_of(tmp_path / "p", "i0")["notes"]


# Channels


@pytest.fixture(scope="module")
def stains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A folder, nuclei of a field, and a bright structure that is not nuclei."""
    nuclei, _ = draw_field(3, (96, 128), 9, FLUORESCENCE)
    waves = 130 + 90 * np.sin(np.mgrid[:96, :128][1] / 7 + np.mgrid[:96, :128][0] / 11)
    return tmp_path_factory.mktemp("stains"), nuclei.data[:, :, 0], waves.astype(np.uint8)


def test_blue_is_assumed_in_a_picture_of_fluorescence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = CASES / "53_rgb_fluorescence" / "img.png"
    assert run("predict", image, "--save", "masks", "measurements", "--out", tmp_path / "p") == 0
    assert "blue was assumed to show the nuclei" in capsys.readouterr().err
    row = row_of(tmp_path / "p")
    assert row["objects"] == "9"
    assert "blue was assumed" in row["notes"]
    assert run("predict", image, "--channel", "b", "--save", "masks", "--out", tmp_path / "q") == 0
    assert row_of(tmp_path / "q")["notes"] == ""
    labels = [tifffile.imread(tmp_path / name / "img_masks.tif") for name in "pq"]
    assert np.array_equal(*labels)
    table = (tmp_path / "p" / "img_measurements.csv").read_text().splitlines()[0]
    assert all(f"intensity_mean_{channel}" in table for channel in "RGB")


def test_one_stain_in_colour_and_red_with_green_are_not_blue(stains: tuple, tmp_path: Path) -> None:
    """A green picture of nuclei is one stain; without blue, the three colours are used, with a note."""
    from PIL import Image as Pillow

    _, nuclei, waves = stains
    black = np.zeros_like(nuclei)
    for name, planes in {"green": (black, nuclei, black), "two": (waves, nuclei, black)}.items():
        Pillow.fromarray(np.stack(planes, axis=2)).save(tmp_path / f"{name}.png")
    assert run("predict", tmp_path, "--save=masks", "--out", tmp_path / "p", "--diameter=20") == 0
    assert row_of(tmp_path / "p", "green")["notes"] == ""
    assert 'channel="B"' in row_of(tmp_path / "p", "two")["notes"]


def test_the_nuclear_channel_is_assumed_and_all_are_measured(stains: tuple, tmp_path: Path) -> None:
    _, nuclei, waves = stains
    write_channels(tmp_path / "a.ome.tif", {"actin": waves, "DAPI": nuclei})
    assert run("predict", tmp_path / "a.ome.tif", "--ring=3", "--save", "measurements", "--out", tmp_path / "p") == 0
    assert "channel DAPI of actin, DAPI was assumed" in row_of(tmp_path / "p")["notes"]
    rows = list(csv.DictReader((tmp_path / "p" / "a_measurements.csv").read_text().splitlines()))
    assert len(rows) > 4
    for row in rows:
        assert float(row["intensity_mean_DAPI"]) > float(row["ring_mean_DAPI"])
    assert {"intensity_mean_actin", "ring_mean_actin"} <= set(rows[0])


def test_doubt_about_channels_is_asked_with_the_command(stains: tuple, tmp_path: Path) -> None:
    _, nuclei, waves = stains
    write_channels(tmp_path / "a.ome.tif", {"GFP": waves, "Cy5": nuclei})
    assert run("predict", tmp_path / "a.ome.tif", "--fail-fast", "--out", tmp_path / "p") == 2
    words = "--channel=Hoechst|cy5", "--model=classical", "--save=masks"
    assert run("predict", tmp_path / "a.ome.tif", *words, "--out", tmp_path / "q") == 0
    assert int(row_of(tmp_path / "q")["objects"]) > 4


def test_two_channels_are_trained_on_predicted_and_evaluated(tmp_path: Path) -> None:
    data, model = tmp_path / "d", tmp_path / "r"
    assert run("data", "convert", CASES / "07_train_2_or_5_channels" / "ch2", "--out", data) == 0
    assert run("data", "split", data, "--val=.34", "--seed=0") == 0
    two = "--set=input.channels=2", "--set=input.mean=[.5,.5]", "--set=input.std=[.2,.2]"
    assert run("train", "synthetic/demo", "--data", data, *SMALL, *two, "--out", model) == 0
    assert json.loads((model / "model" / "model.json").read_text())["channels"] == ["0", "1"]
    assert run("predict", data, "--model", model, "--save=masks", "--out", tmp_path / "p") == 0
    assert run("evaluate", model, "--data", data, "--split=val", "--out", tmp_path / "e") == 0
    assert run("tune", model, "--data", data, "--split=val", "--out", tmp_path / "t") == 0


def test_five_channels_are_found_by_name_in_another_order(tmp_path: Path) -> None:
    names = ["DAPI", "GFP", "RFP", "Cy5", "BF"]
    for k in range(2):
        image, truth = draw_field(k, (72, 80), 5, FLUORESCENCE)
        planes = {name: image.data[:, :, 0] // (n + 1) for n, name in enumerate(names)}
        write_channels(tmp_path / f"i{k}.ome.tif", planes)
        cw.save(truth, tmp_path / f"i{k}.ome_masks.tif")
    write_channels(tmp_path / "other.ome.tif", dict(reversed(planes.items())))
    assert run("data", "convert", tmp_path, "--out", tmp_path / "d") == 0
    five = "--channel", *names, "--set=input.normalise=percentile"
    words = "train", "synthetic/demo", "--data", tmp_path / "d", *SMALL, *five
    assert run(*words, "--out", tmp_path / "r") == 0
    info = json.loads((tmp_path / "r" / "model" / "model.json").read_text())
    assert info["channels"] == names
    assert info["recipe"]["input"]["channels"] == 5
    assert run("predict", tmp_path / "other.ome.tif", "--model", tmp_path / "r", "--out", tmp_path / "p") == 0
    assert "channels DAPI, GFP, RFP, Cy5, BF of BF, Cy5, RFP, GFP, DAPI" in row_of(tmp_path / "p")["notes"]


def test_a_dataset_records_its_channel(stains: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _, nuclei, waves = stains
    for k in range(2):
        write_channels(tmp_path / f"i{k}.tif", {"GFP": waves, "Cy5": np.roll(nuclei, 3 * k)})
        tifffile.imwrite(tmp_path / f"i{k}_masks.tif", (np.roll(nuclei, 3 * k) > 90).astype(np.uint16) * 7)
    data = tmp_path / "d"
    assert run("data", "convert", tmp_path, "--foreground=split", "--channel=none", "--out", data) == 2
    assert run("data", "convert", tmp_path, "--foreground=split", "--channel=cy5", "--out", data) == 0
    assert json.loads((data / "dataset.json").read_text())["info"]["channel"] == ["cy5"]
    capsys.readouterr()
    assert run("data", "info", data, "--log-format=json") == 0
    assert '"Cy5"' in capsys.readouterr().out
    assert run("data", "show", data, "--out", tmp_path / "s.png") == 0
    assert run("data", "check", data) == 0
    assert run("predict", data, "--model=classical", "--save=masks", "--out", tmp_path / "p") == 0
    assert run("predict", data, "--model=classical", "--channel=GFP", "--save=masks", "--out", tmp_path / "q") == 0
    assert row_of(tmp_path / "p")["objects"] != row_of(tmp_path / "q")["objects"]
    assert run("train", "synthetic/demo", "--data", data, *SMALL, "--out", tmp_path / "r") == 0
    info = json.loads((tmp_path / "r" / "model" / "model.json").read_text())
    assert info["channels"] == ["cy5"]
    assert run("data", "convert", data, "--channel=DAPI|Cy5", "--out", tmp_path / "d2") == 0
    assert run("data", "merge", data, tmp_path / "d2", "--out", tmp_path / "m") == 0
    assert json.loads((tmp_path / "m" / "dataset.json").read_text())["info"]["channel"] == ["cy5|DAPI|Cy5"]


# Empty fields, objects at the border, measure


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases, and further kinds of noise: blurred, compressed, with dust on a gradient, in colour."""
    folder = tmp_path_factory.mktemp("empty")
    shutil.copytree(CASES / "11_empty_field", folder / "in")
    rng = np.random.default_rng(0)
    tifffile.imwrite(folder / "in" / "bright.tif", rng.normal(100, 3, (384, 384)).clip(0, 255).astype(np.uint8))
    tifffile.imwrite(folder / "in" / "small.tif", rng.poisson(200, (192, 192)).astype(np.uint16))
    hw = (128, 140)
    for sigma in (0.7, 1.5, 3):
        blurred = ndimage.gaussian_filter(rng.normal(0, 1, hw), sigma)
        tifffile.imwrite(folder / "in" / f"blurred_{sigma}.tif", (100 + 12 * blurred / blurred.std()).astype(np.uint8))
    flat = Pillow.fromarray((110 + rng.normal(0, 3, hw)).astype(np.uint8))
    flat.save(folder / "in" / "compressed.jpg", quality=50)
    flat.save(folder / "in" / "blocks.jpg", quality=20)
    dust = np.linspace(60, 150, hw[1]) + rng.normal(0, 2, hw)
    for y, x in rng.integers(5, 120, (8, 2)):
        dust[y : y + 2, x : x + 2] -= 50
    tifffile.imwrite(folder / "in" / "dust.tif", dust.astype(np.uint8))
    colours = np.stack([ndimage.gaussian_filter(rng.normal(0, 30, hw), 1.5) for _ in range(3)], axis=2)
    Pillow.fromarray((180 + colours).astype(np.uint8)).save(folder / "in" / "colours.png")
    assert run("predict", folder / "in", "--save=masks", "--out", folder / "out") == 0
    return folder / "out"


NOISE = ["empty_normal", "empty_poisson", "bright", "small", "compressed", "blocks", "dust", "colours"]


@pytest.mark.parametrize("name", [*NOISE, "blurred_0.7", "blurred_1.5", "blurred_3"])
def test_noise_has_no_objects(empty: Path, name: str) -> None:
    row = row_of(empty, name)
    assert (row["objects"], row["diameter_px"]) == ("0", "")
    if name.startswith(("blurred", "blocks")):
        assert "no object stands out from the background" in row["notes"]


@pytest.mark.parametrize("tile", ["none", "400"])
def test_nuclei_in_few_levels_are_found(tmp_path: Path, tile: str) -> None:
    """An image of 14 levels is dim, and one of 5 is rounding."""
    pixels = draw_field(3, (160, 192), 20, FieldLook(stain="fluorescence"))[0].data[:, :, 0].astype(float)
    shares = (pixels - pixels.min()) / np.ptp(pixels)
    rows = {}
    for n_levels in (5, 14):
        image, out = tmp_path / f"{n_levels}.tif", tmp_path / f"out_{n_levels}"
        tifffile.imwrite(image, (40 + n_levels * shares).round().astype(np.uint8))
        assert run("predict", image, "--tile", tile, "--save=masks", "--out", out) == 0
        rows[n_levels] = row_of(out)
    assert 15 <= int(rows[14]["objects"]) <= 22
    assert rows[5]["objects"] == "0"
    assert "its values differ by only 5 levels" in rows[5]["notes"]


def test_a_given_diameter_needs_no_evidence(empty: Path, tmp_path: Path) -> None:
    image = empty.parent / "in" / "blurred_1.5.tif"
    assert run("predict", image, "--diameter", "5", "--save=masks", "--out", tmp_path / "p") == 0
    assert int(row_of(tmp_path / "p")["objects"]) > 20


def test_objects_at_the_border_are_marked_and_removed(tmp_path: Path) -> None:
    image = np.zeros((60, 80), np.uint8)
    image[20:34, 20:34] = image[0:12, 40:52] = image[40:52, 68:80] = 200
    tifffile.imwrite(tmp_path / "a.tif", image)
    words = "predict", tmp_path / "a.tif", "--model=classical"
    assert run(*words, "--out", tmp_path / "p") == 0
    assert run(*words, "--remove-border", "--out", tmp_path / "q") == 0
    assert (row_of(tmp_path / "p")["objects"], row_of(tmp_path / "q")["objects"]) == ("3", "1")
    assert row_of(tmp_path / "q")["left_out_border"] == "2"
    rows = list(csv.DictReader((tmp_path / "p" / "a_measurements.csv").read_text().splitlines()))
    assert sorted(row["touches_border"] for row in rows) == ["False", "True", "True"]
    model = cw.load_model("classical")
    assert len(model.predict(image, remove_border=True)) == 1
    # Annotations that stop a pixel before the border: their predictions still count.
    truth = np.zeros((60, 80), np.uint16)
    truth[20:34, 20:34], truth[1:12, 40:52] = 1, 2
    (tmp_path / "gt").mkdir()
    tifffile.imwrite(tmp_path / "gt" / "a.tif", truth)
    assert run("evaluate", tmp_path / "p", "--data", tmp_path / "gt", "--remove-border", "--out", tmp_path / "e") == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())["values"]
    assert metrics["precision@0.5"] == metrics["recall@0.5"] == 1


def test_measure_writes_one_table_of_all_channels(stains: tuple, tmp_path: Path) -> None:
    _, nuclei, waves = stains
    for k in range(2):
        write_channels(tmp_path / f"i{k}.tif", {"actin": waves, "DAPI": np.roll(nuclei, 5 * k, axis=1)})
    images = tmp_path / "i0.tif", tmp_path / "i1.tif"
    assert run("predict", *images, "--model=classical", "--save=masks", "--out", tmp_path / "p") == 0
    words = "measure", tmp_path / "p", "--ring=4", "--pixel-size=.5"
    assert run(*words, "--out", tmp_path / "t.csv") == 0
    assert run(*words, "--out", tmp_path / "t.csv") == 0, "already complete"
    assert run(*words[:2], "--ring=5", "--pixel-size=.5", "--out", tmp_path / "t.csv") == 2, "another request"
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert {row["image"] for row in rows} == {"i0", "i1"}
    labels = tifffile.imread(tmp_path / "p" / "i0_masks.tif")
    own = [row for row in rows if row["image"] == "i0"]
    assert len(own) == labels.max()
    for row in own:
        mask = labels == int(row["label"])
        assert float(row["intensity_mean_actin"]) == pytest.approx(waves[mask].mean(), rel=1e-5)
        assert float(row["area_um2"]) == pytest.approx(mask.sum() / 4)
        assert float(row["score"]) > 0
    only = "measure", tmp_path / "p", "--channel=dapi", "--out", tmp_path / "u.csv"
    assert run(*only) == 0
    assert "actin" not in (tmp_path / "u.csv").read_text().splitlines()[0]
    # Label images alone: their images are named, or intensities are missing with a word.
    masks = tmp_path / "elsewhere" / "masks"
    masks.mkdir(parents=True)
    shutil.copy(tmp_path / "p" / "i0_masks.tif", masks / "i0.tif")
    assert run("measure", masks, "--ring=2", "--out", tmp_path / "v.csv") == 2
    assert run("measure", masks, "--images", tmp_path / "i0.tif", "--ring=2", "--out", tmp_path / "v.csv") == 0
    assert "ring_mean_DAPI" in (tmp_path / "v.csv").read_text().splitlines()[0]
