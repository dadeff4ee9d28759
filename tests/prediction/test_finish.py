"""From the tile files of a job to its outputs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from shapely.geometry import shape

from cellwright.core.geometry import Window
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.images.source import open_image
from cellwright.data.synthetic import draw_field
from cellwright.measurement.table import measure_instances
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.tiling.facts import ImageFacts
from cellwright.prediction.tiling.finish import FinalTiles, LabelPainter, resolve, write_objects_table, write_outlines
from cellwright.prediction.tiling.grid import Grid, Tile
from cellwright.prediction.tiling.label_writers import write_label_tiff, write_label_zarr
from cellwright.prediction.tiling.ledger import Ledger
from cellwright.prediction.tiling.seam_report import SeamReport
from cellwright.prediction.tiling.seams import anchors_of
from cellwright.prediction.tiling.work import TileWork

IMAGE, TRUTH = draw_field(5, (700, 900), 150)
LABELS = TRUTH.masks.to_label_map()


class Perfect:
    """A model that finds the drawn objects."""

    def objects(self, source: object, facts: object, tile: Tile) -> Instances:
        o = tile.output
        masks, ids = MaskSet.from_label_map(LABELS[o.y0 : o.y1, o.x0 : o.x1])
        return Instances.from_masks(masks, scores=0.5 + (ids % 97) / 200).by_score()


def drawn_job(root: Path, *, options: PredictOptions | None = None, pixel_size: float = 0.5) -> tuple[Ledger, TileWork]:
    source = open_image(IMAGE, pixel_size=pixel_size)
    grid = Grid(IMAGE.image_hw, IMAGE.image_hw, 16, core_px=160, halo_px=64)
    facts = ImageFacts(IMAGE.image_hw, IMAGE.image_hw)
    work = TileWork(Perfect(), source, source, facts, grid, options or PredictOptions())
    ledger = Ledger(root, range(len(grid)), "job")
    for tile in range(len(grid)):
        ledger.write(tile, work.record(tile))
    return ledger, work


def finished(root: Path, **options: int) -> tuple[FinalTiles, TileWork]:
    ledger, work = drawn_job(root / "job")
    final = Ledger(root / "final", ledger.tiles, "job")
    return resolve(ledger, final, work.grid, work.source, **options), work


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> FinalTiles:
    return finished(tmp_path_factory.mktemp("finish"))[0]


def same_objects(labels: np.ndarray) -> bool:
    pairs = np.unique(np.stack([labels[LABELS > 0], LABELS[LABELS > 0]]), axis=1)
    n = len(np.unique(LABELS)) - 1
    return np.array_equal(labels > 0, LABELS > 0) and pairs.shape[1] == n == len(np.unique(pairs[0]))


@pytest.mark.parametrize("writer", [write_label_tiff, write_label_zarr])
def test_labels_are_those_of_the_whole_image(writer: Callable, final: FinalTiles, tmp_path: Path) -> None:
    path = tmp_path / ("labels.tif" if writer is write_label_tiff else "labels.zarr")
    writer(path, IMAGE.image_hw, LabelPainter(final), pixel_size_um=(0.5, 0.25))
    if writer is write_label_tiff:
        with tifffile.TiffFile(path) as tif:
            labels = tif.asarray()
            page = tif.pages[0]
            assert page.is_tiled
            assert page.tags["XResolution"].value[0] / page.tags["XResolution"].value[1] == 40000
    else:
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(path, mode="r")
        described = group.attrs["ome"]
        levels = [group[one["path"]][:] for one in described["multiscales"][0]["datasets"]]
        labels = levels[0]
        assert described["multiscales"][0]["datasets"][1]["coordinateTransformations"][0]["scale"] == [1.0, 0.5]
    assert labels.dtype == np.uint32
    assert same_objects(labels)
    assert sorted(np.unique(labels)) == list(range(final.n_objects + 1))


@pytest.mark.parametrize("name", ["objects.parquet", "objects.csv.gz"])
def test_the_table_has_the_measurements_of_the_whole_image(name: str, final: FinalTiles, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    write_objects_table(tmp_path / name, final, ("nucleus",))
    table = (pd.read_parquet if name.endswith("parquet") else pd.read_csv)(tmp_path / name)
    assert table["label"].tolist() == list(range(1, final.n_objects + 1))
    assert set(table["class"]) == {"nucleus"}
    whole = Instances.from_label_map(LABELS)
    expected = measure_instances(whole, replace(IMAGE, pixel_size_um=(0.5, 0.5)))
    order = ["centroid_y_px", "centroid_x_px"]
    found, expected = (frame.sort_values(order).reset_index(drop=True) for frame in (table, expected))
    for column in expected.columns.difference(["class", "score"]):
        np.testing.assert_allclose(found[column].astype(float), expected[column].astype(float), rtol=1e-6, atol=1e-6)


def test_outlines_are_valid_geojson_with_the_ids_of_the_labels(final: FinalTiles, tmp_path: Path) -> None:
    path = tmp_path / "objects.geojson.gz"
    write_outlines(path, final, ("nucleus",), image_name="a.tif", sample_id="a")
    features = json.loads(gzip.decompress(path.read_bytes()))["features"]
    labels = LabelPainter(final)(Window(0, 0, *IMAGE.image_hw))
    assert len(features) == final.n_objects
    for feature in features[::7]:
        polygon = shape(feature["geometry"])
        assert polygon.is_valid
        assert polygon.area == (labels == int(feature["properties"]["name"])).sum()


def test_only_the_best_objects_are_kept(tmp_path: Path) -> None:
    final, _ = finished(tmp_path, max_objects=20)
    scores = np.concatenate([objects.scores for _, objects in final])
    n = len(TRUTH)
    expected = np.sort((0.5 + (np.arange(1, n + 1) % 97) / 200).astype(np.float32))[::-1][:20]
    assert final.n_objects == 20
    np.testing.assert_allclose(np.sort(scores)[::-1], expected)


def test_objects_at_the_border_of_the_image_are_removed_and_those_at_tiles_are_not(tmp_path: Path) -> None:
    ledger, work = drawn_job(tmp_path / "job", options=PredictOptions(remove_border=True))
    final = resolve(ledger, Ledger(tmp_path / "final", ledger.tiles, "job"), work.grid, work.source)
    assert final.n_objects == int((~TRUTH.masks.touches_border).sum()) < len(TRUTH)


def test_an_object_larger_than_the_halo_is_whole(tmp_path: Path) -> None:
    """Its tile is predicted again with a wider halo."""

    class Bar:
        def objects(self, source: object, facts: object, tile: Tile) -> Instances:
            labels = np.zeros(IMAGE.image_hw, int)
            labels[300:310, 240:400] = 1
            o = tile.output
            masks, ids = MaskSet.from_label_map(labels[o.y0 : o.y1, o.x0 : o.x1])
            return Instances.from_masks(masks, scores=np.full(len(ids), 0.9))

    _, work = drawn_job(tmp_path / "job")
    work = replace(work, model=Bar())
    ledger = Ledger(tmp_path / "bar", range(len(work.grid)), "job")
    for tile in ledger.tiles:
        ledger.write(tile, work.record(tile))
    final = resolve(ledger, Ledger(tmp_path / "final", ledger.tiles, "job"), work.grid, work.source)
    (found,) = [objects for _, objects in final if len(objects)]
    assert found.masks.areas.tolist() == [1600]
    assert not final.notes


def test_an_object_that_no_window_holds_is_said_to_be_cut_off(tmp_path: Path) -> None:
    class Bar:
        def objects(self, source: object, facts: object, tile: Tile) -> Instances:
            masks = MaskSet.from_label_map(np.ones(tile.output.hw, int))[0]
            return Instances.from_masks(masks, scores=np.array([0.9]))

    _, work = drawn_job(tmp_path / "job")
    work = replace(work, model=Bar(), grid=replace(work.grid, halo_px=16))
    ledger = Ledger(tmp_path / "bar", range(len(work.grid)), "job")
    for tile in ledger.tiles:
        ledger.write(tile, work.record(tile))
    final = resolve(ledger, Ledger(tmp_path / "final", ledger.tiles, "job"), work.grid, work.source)
    assert any("may be cut off" in note.text and note.where == "tile 0" for note in final.notes)


def many_objects(cut: bool) -> tuple[Grid, list[Instances]]:
    """A dense field of squares, predicted in tiles; cut: at the borders of cores, as by a wrong rule of ownership."""
    rng = np.random.default_rng(0)
    side = 1200
    grid = Grid((side, side), (side, side), 16, core_px=224, halo_px=64)
    labels = np.zeros((side, side), np.int32)
    n = 0
    for top in range(0, side - 20, 17):
        for left in range(0, side - 20, 17):
            n += 1
            y, x = top + rng.integers(6), left + rng.integers(6)
            h, w = rng.integers(6, 12, 2)
            labels[y : y + h, x : x + w] = n
    found = []
    for tile in grid:
        c = tile.core
        part = np.zeros_like(labels)
        if cut:
            part[c.y0 : c.y1, c.x0 : c.x1] = labels[c.y0 : c.y1, c.x0 : c.x1]
        else:
            masks, ids = MaskSet.from_label_map(labels)
            ys, xs = anchors_of(masks).T
            mine = ids[grid.owner(ys, xs) == tile.index]
            part = np.where(np.isin(labels, mine), labels, 0)
        masks, ids = MaskSet.from_label_map(part)
        objects = Instances.from_masks(masks, scores=np.full(len(ids), 0.9))
        columns = measure_instances(objects)
        names = ["centroid_y_px", "centroid_x_px"]
        found.append(replace(objects, columns={name: columns[name].to_numpy() for name in names}))
    return grid, found


def test_the_seam_report_is_quiet_for_whole_objects_and_loud_for_cut_ones() -> None:
    for cut in (False, True):
        grid, found = many_objects(cut)
        report = SeamReport.of(grid, enumerate(found))
        assert min(report.near, report.far) > 100
        assert bool(report.warnings()) == cut, report
        if cut:
            assert report.density_ratio > 1.15
            assert "seams of tiles show" in report.warnings()[0]
