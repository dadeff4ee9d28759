"""What a prediction folder says about all images: pooled table, contact sheet, counts, wells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from cellwright.api.predict import PredictPlan, run
from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.table import frame_csv
from cellwright.data.images.read import find_images
from cellwright.prediction import summaries
from cellwright.prediction.pooled_table import pool_tables, write_parquet
from cellwright.prediction.summaries import evenly_chosen, well_table, wells_of
from cellwright.report.plate import draw_counts, draw_plate

HW = (48, 64)
pytestmark = pytest.mark.usefixtures("real_charts")


class Notes:
    """A `ProgressReporter` that records notes."""

    quiet, log_format = True, "text"

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def track(self, items, description, total=None):
        return items


def write_images(folder: Path, names: list[str]) -> Path:
    """Images with 1 + k % 3 bright squares; the k-th is called ``names[k]``."""
    for k, name in enumerate(names):
        pixels = np.full(HW, 10, np.uint8)
        for n in range(1 + k % 3):
            pixels[10:22, 4 + 20 * n : 16 + 20 * n] = 200
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(pixels).save(path)
    return folder


def predict(images: Path, out: Path, **options) -> Notes:
    screen = Notes()
    run(PredictPlan((images,), model=("classical",), out=out, **{"save": ("measurements",), **options}), screen)
    return screen


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Notes]:
    """A prediction of six wells with two fields each, on two rows."""
    root = tmp_path_factory.mktemp("plate")
    names = [f"{row}{column:02d}_s{field}" for row in "BC" for column in (2, 3, 10) for field in (1, 2)]
    return root / "out", predict(write_images(root / "images", names), root / "out")


def test_one_table_has_the_objects_of_all_images(plate: tuple[Path, Notes]) -> None:
    out, _ = plate
    pooled = pd.read_csv(out / "measurements.csv")
    parts = [pd.read_csv(path) for path in sorted(out.glob("*_measurements.csv"))]
    pd.testing.assert_frame_equal(pooled, pd.concat(parts, ignore_index=True))
    summary = pd.read_csv(out / "summary.csv").set_index("image")["objects"]
    assert pooled.groupby("image").size().to_dict() == summary.to_dict()
    assert list(pooled)[:4] == ["image", "label", "class", "score"]
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(out / "measurements.parquet")
    pd.testing.assert_frame_equal(table.to_pandas(), pooled, check_dtype=False)
    kinds = {name: str(table.schema.field(name).type) for name in ("image", "label", "area_px", "bbox_x0_px", "score")}
    assert kinds == {"image": "string", "label": "int64", "area_px": "int64", "bbox_x0_px": "int64", "score": "double"}


def test_parquet_has_texts_and_empty_cells_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, with names that the CSV protects from spreadsheets; without rows there are still columns."""
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("cellwright.prediction.pooled_table._BLOCK_BYTES", 200)
    frame = pd.DataFrame({"image": ["=1+1", 'a "b"\nc'] * 20, "label": range(40), "class": ["-x", ""] * 20})
    frame["touches_border"], frame["solidity"] = [True, False] * 20, [0.5, np.nan] * 20
    for rows in (40, 0):
        (tmp_path / "t.csv").write_text(frame_csv(frame[:rows]))
        write_parquet(tmp_path / "t.csv", tmp_path / "t.parquet")
        read = pq.read_table(tmp_path / "t.parquet").to_pandas()
        pd.testing.assert_frame_equal(read, frame[:rows], check_dtype=rows > 0)


def test_without_pyarrow_there_is_only_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellwright.prediction.pooled_table.find_spec", lambda name: None)
    screen = predict(write_images(tmp_path / "images", ["a", "b"]), tmp_path / "out")
    assert "measurements.parquet needs another package, so there is only measurements.csv" in " ".join(screen.notes)
    assert not (tmp_path / "out" / "measurements.parquet").exists()


def test_wells_have_their_own_table(plate: tuple[Path, Notes]) -> None:
    out, screen = plate
    wells = pd.read_csv(out / "wells.csv").set_index("well")
    assert wells.index.tolist() == ["B02", "B03", "B10", "C02", "C03", "C10"]
    assert (wells["images"] == 2).all()
    summary = pd.read_csv(out / "summary.csv")
    summary["well"] = summary["image"].str[:3]
    assert wells["objects"].to_dict() == summary.groupby("well")["objects"].sum().to_dict()
    assert wells["objects_per_image"].tolist() == (wells["objects"] / 2).tolist()
    pooled = pd.read_csv(out / "measurements.csv")
    areas = pooled.groupby(pooled["image"].str[:3])["area_px"].mean()
    assert wells["mean_area_px"].to_dict() == pytest.approx(areas.to_dict())
    assert "mean_intensity_mean_grey" in wells
    assert not any(name.startswith(("mean_bbox", "mean_centroid", "mean_label", "mean_score")) for name in wells)
    assert "image names were taken for 6 wells on 1 plate: see wells.csv and plate.png" in screen.notes
    with Pillow.open(out / "plate.png") as picture:
        assert picture.size[0] > picture.size[1]  # columns 2 to 10, rows B and C


def test_pictures_of_the_folder_are_not_taken_for_images(plate: tuple[Path, Notes]) -> None:
    out, _ = plate
    assert {path.name for path in out.glob("*.png")} == {"contact_sheet.png", "counts.png", "plate.png"}
    with pytest.raises(InputError, match="this is a prediction folder"):
        find_images(out)


def test_several_plates(tmp_path: Path) -> None:
    names = [f"{plate}/A{column:02d}" for plate in ("control 1", "drug") for column in (1, 2, 3)]
    predict(write_images(tmp_path / "images", names), tmp_path / "out", save=("masks",))
    wells = pd.read_csv(tmp_path / "out" / "wells.csv")
    assert list(wells)[:4] == ["plate", "well", "images", "objects"] or list(wells)[:2] == ["plate", "well"]
    assert wells["plate"].tolist() == ["control 1"] * 3 + ["drug"] * 3
    assert not any(name.startswith("mean_") for name in wells)  # nothing was measured
    assert (tmp_path / "out" / "control_1_plate.png").is_file()
    assert (tmp_path / "out" / "drug_plate.png").is_file()
    assert not (tmp_path / "out" / "measurements.csv").exists()
    assert [path.suffix for path in find_images(tmp_path / "images")] == [".png"] * 6


@pytest.mark.parametrize(
    ("ids", "wells"),
    [
        (["A1", "A2", "H12"], ["A01", "A02", "H12"]),
        (["exp_b03_w1", "exp_B04_w1"], ["B03", "B04"]),
        (["r01c01f01", "r01c02f01", "r02c24f09"], ["A01", "A02", "B24"]),
        (["A01/site1", "A02/site1"], ["A01", "A02"]),
        (["A2_2024/C05 s1", "A2_2024/D05 s1"], ["C05", "D05"]),  # A2 is in every name
        (["p384_P24", "p384_A01"], ["P24", "A01"]),
        (["B03_C1", "B03_C2", "B04_C1", "B04_C2"], ["B03", "B03", "B04", "B04"]),  # C1 and C2 are channels
    ],
)
def test_names_of_wells(ids: list[str], wells: list[str]) -> None:
    found = wells_of(ids)
    assert found is not None
    assert [well.name for well in found] == wells


@pytest.mark.parametrize(
    "ids",
    [
        [],
        ["A01"],
        ["A01_1", "A01_2"],  # one well
        ["A01", "cells"],  # not all
        ["DAPI1", "DAPI2"],  # longer words
        ["Q01", "Q02"],
        ["A25", "A26"],
        ["A00", "B00"],
        ["image_001", "image_002"],
        ["0a1b2c", "3d4e5f"],
        ["IMG_A012", "IMG_A013"],
    ],
)
def test_other_names_are_no_wells(ids: list[str], tmp_path: Path) -> None:
    assert wells_of(ids) is None
    assert tmp_path.is_dir()


def test_plates_are_what_precedes_the_well() -> None:
    plates = [well.plate for well in wells_of(["p1_A01_1", "p1_A02_1", "p2_A01_1", "p2_A02_1"]) or ()]
    assert plates == ["p1", "p1", "p2", "p2"]
    numbered = [well.plate for well in wells_of(["001_A01", "002_A02", "003_A03"]) or ()]
    assert numbered == ["", "", ""]


def test_the_contact_sheet_samples_the_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellwright.report import draw

    shown = {}

    def record(tiles, *, title="", styles=(), **options):
        shown.update(captions=[caption for caption, _ in tiles], title=title)
        return np.zeros((5, 5, 3), np.uint8)

    monkeypatch.setattr(draw, "contact_sheet", record)
    names = [f"field {k:03d}" for k in range(60)]
    predict(write_images(tmp_path / "images", names), tmp_path / "out", save=("masks",))
    assert shown["title"] == "24 of 60 images"
    assert len(shown["captions"]) == 24
    assert shown["captions"][0].startswith("field 000: ")
    assert shown["captions"][-1].startswith("field 059: ")
    numbers = [int(caption[6:9]) for caption in shown["captions"]]
    assert set(np.diff(numbers)) <= {2, 3}
    assert numbers == evenly_chosen(60, 24)


def test_tables_with_other_columns_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image,label,x\n"a, 1",1,0.5\n', encoding="utf-8")
    (tmp_path / "b.csv").write_text("image,label,y\nb,1,7\nb,2,\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text("image,label,x\n", encoding="utf-8")
    pool_tables([tmp_path / name for name in ("a.csv", "b.csv", "c.csv")], tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_text() == 'image,label,x,y\n"a, 1",1,0.5,\nb,1,,7\nb,2,,\n'


def test_the_means_of_wells_do_not_depend_on_how_much_is_read_at_once(tmp_path: Path, monkeypatch) -> None:
    names = [f"B0{1 + k % 3}_{k}" for k in range(6)]
    table = pd.DataFrame({"image": np.repeat(names, 5), "area_px": np.arange(30) ** 2, "score": 1.0})
    table["solidity"] = np.where(np.arange(30) % 4 == 0, np.nan, np.arange(30) / 7)
    table.to_csv(tmp_path / "all.csv", index=False)
    wells = wells_of(names)
    assert wells is not None
    rows = [{"image": name, "objects": 5} for name in names]
    whole = well_table(wells, rows, tmp_path / "all.csv")
    monkeypatch.setattr(summaries, "TABLE_ROWS", 4)
    pd.testing.assert_frame_equal(well_table(wells, rows, tmp_path / "all.csv"), whole)
    expected = table.assign(well=table["image"].str[:3]).groupby("well")[["area_px", "solidity"]].mean()
    assert np.allclose(whole[["mean_area_px", "mean_solidity"]], expected)


@pytest.mark.parametrize("n", [2, 60, 300])
@pytest.mark.parametrize("classes", [("cell",), ("a", "b", "c")])
def test_counts_as_bars(n: int, classes: tuple[str, ...]) -> None:
    counts = np.random.default_rng(0).integers(0, 200, (n, len(classes)))
    picture = draw_counts([f"a long name of an image {k:04d}" for k in range(n)], counts, classes)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert 100 < picture.shape[0] < 2000
    colours = {tuple(row) for row in picture.reshape(-1, 3)[::7].tolist()}
    assert (0, 114, 178) in colours
    assert draw_counts(["a", "b"], np.zeros((2, 1), int), ["cell"]).shape[2] == 3


def test_a_plate_shows_wells_in_their_places() -> None:
    tiles = {(1, 1): ("B02: 3 objects", np.full((30, 40, 3), (200, 0, 0), np.uint8))}
    tiles[3, 11] = "D12: 4 objects", np.full((60, 40, 3), (0, 0, 200), np.uint8)
    picture = draw_plate(tiles, "plate")
    red, blue = ((picture == colour).all(-1) for colour in ((200, 0, 0), (0, 0, 200)))
    assert red.sum() > 1000
    assert np.nonzero(red)[0].max() < np.nonzero(blue)[0].min()
    assert np.nonzero(red)[1].max() < np.nonzero(blue)[1].min()
    assert max(picture.shape[:2]) < 2600
    assert draw_plate({(15, 23): tiles[1, 1], (0, 0): tiles[3, 11]}).shape[1] < 2100


def test_one_image_has_no_figure_of_counts(tmp_path: Path) -> None:
    predict(write_images(tmp_path / "images", ["only"]), tmp_path / "out")
    assert not (tmp_path / "out" / "counts.png").exists()
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    assert len(pd.read_csv(tmp_path / "out" / "measurements.csv")) == 1
    masks = MaskSet.empty(HW)
    assert len(Instances.from_masks(masks)) == 0
