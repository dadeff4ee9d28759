"""Tiles of an image: grid, ownership, and the decoders on tiles against the whole image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellwright.api.models import load_model
from cellwright.config.input import InputConfig
from cellwright.core.errors import FormatError
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note
from cellwright.data.images.source import open_image
from cellwright.data.network_input import network_window, resize_antialiased, resize_for_network
from cellwright.data.resize import resized, resized_window
from cellwright.data.synthetic import draw_field
from cellwright.data.views import PLAIN, View
from cellwright.models.dense import flow, semantic, stars, watershed
from cellwright.models.dense.labels import to_instances
from cellwright.prediction.tiling.facts import ImageFacts
from cellwright.prediction.tiling.grid import Grid, Tile
from cellwright.prediction.tiling.network_tiles import DenseTiles
from cellwright.prediction.tiling.seams import Seams, TileObjects, anchors_of, stored_objects
from cellwright.prediction.tiling.statistics import values_of
from cellwright.prediction.tiling.tile_file import TileRecord, read_tile, write_tile


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    source = draw(st.tuples(st.integers(1, 400), st.integers(1, 400)))
    scale = draw(st.sampled_from([1.0, 0.37, 0.8, 1.6, 2.3]))
    net = max(1, int(source[0] * scale + 0.5)), max(1, int(source[1] * scale + 0.5))
    stride = draw(st.sampled_from([1, 4, 16]))
    return Grid(source, net, stride, core_px=draw(st.integers(16, 128)), halo_px=draw(st.integers(4, 48)))


@settings(deadline=None)
@given(grids())
def test_cores_partition_the_image_and_outputs_cover_them(grid: Grid) -> None:
    ys, xs = np.mgrid[: grid.source_hw[0], : grid.source_hw[1]].reshape(2, -1)
    owners = grid.owner(ys, xs).reshape(grid.source_hw)
    counted = np.zeros(grid.net_hw, int)
    shapes = set()
    for tile in grid:
        counted[tile.core.y0 : tile.core.y1, tile.core.x0 : tile.core.x1] += 1
        shapes.add(tile.window.hw)
        assert all(edge % grid.stride == 0 for edge in tile.window)
        mine = np.argwhere(owners == tile.index)
        if len(mine):
            window = grid.source_window(tile.core)
            for (low, high), start, end in zip(
                zip(mine.min(0), mine.max(0), strict=True), window[:2], window[2:], strict=True
            ):
                assert start <= low
                assert high < end
            assert (tile.output.y0, tile.output.x0) <= tuple(mine.min(0))
            assert (mine.max(0) < (tile.output.y1, tile.output.x1)).all()
    assert (counted == 1).all()
    assert len(shapes) == 1


def test_anchors_are_the_pixels_nearest_to_the_mean() -> None:
    labels = np.zeros((9, 12), int)
    labels[1:4, 1:4], labels[2, 2] = 1, 0  # a ring, whose mean is in its hole
    labels[5:7, 6:8] = 2  # four pixels equally near
    labels[8, 11] = 3
    masks, _ = MaskSet.from_label_map(labels)
    assert anchors_of(masks).tolist() == [[1, 2], [5, 6], [8, 11]]


def tiled(grid: Grid, objects_in: dict[int, TileObjects]) -> tuple[np.ndarray, Seams]:
    """The label field (H, W) of what tiles stored, and the seams."""
    seams = Seams(grid, lambda index: objects_in[index])
    labels, start = np.zeros(grid.source_hw, np.int64), 0
    for _, objects in seams.objects():
        for k in range(len(objects)):
            x0, y0, x1, y1 = objects.masks.boxes[k]
            part, mask = labels[y0:y1, x0:x1], objects.masks.crop(k).astype(bool)
            assert not part[mask].any(), "two objects share a pixel"
            part[mask] = start + k + 1
        start += len(objects)
    return labels, seams


def in_source(objects: Instances, tile: Tile, grid: Grid) -> Instances:
    """The objects of a tile's output in pixels of the source."""
    masks = objects.masks.shift(tile.output.y0, tile.output.x0, grid.source_hw)
    return replace(objects, image_hw=grid.source_hw, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32))


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two label fields have the same objects, whatever their numbers."""
    if not np.array_equal(a > 0, b > 0):
        return False
    pairs = np.unique(np.stack([a[a > 0], b[b > 0]]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@st.composite
def label_fields(draw: st.DrawFn) -> np.ndarray:
    """Objects of all kinds: specks, bars, rings, blobs that touch."""
    seed, n = draw(st.integers(0, 2**31)), draw(st.integers(0, 60))
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 300, 2)
    labels = np.zeros((height, width), np.int32)
    for k in range(1, n + 1):
        y, x = rng.integers(0, height), rng.integers(0, width)
        h, w = rng.integers(1, 24, 2)
        match rng.integers(4):
            case 0:
                labels[y, x] = k
            case 1:
                labels[y : y + h, x : x + w] = k
            case 2:
                labels[y : y + h, x : x + w] = k
                labels[y + 1 : y + h - 1, x + 1 : x + w - 1] = 0
            case _:
                yy, xx = np.ogrid[:height, :width]
                labels[((yy - y) / h) ** 2 + ((xx - x) / w) ** 2 < 0.25] = k
    out, n_parts = np.zeros_like(labels), 0
    for k in np.unique(labels[labels > 0]):
        components, count = ndimage.label(labels == k, np.ones((3, 3)))
        out[components > 0] = components[components > 0] + n_parts
        n_parts += count
    return out


@settings(max_examples=15, deadline=None)
@given(label_fields(), st.integers(12, 80), st.sampled_from([1, 4, 16]), st.integers(0, 3))
def test_objects_of_a_perfect_network_survive_every_grid(
    labels: np.ndarray, core_px: int, stride: int, jitter: int
) -> None:
    """Whatever the grid, also of cores smaller than the objects: the same objects, none twice, none lost."""
    grid = Grid(labels.shape, labels.shape, stride, core_px=core_px, halo_px=32)
    rng = np.random.default_rng(jitter)
    stored = {}
    for tile in grid:
        o = tile.output
        masks, ids = MaskSet.from_label_map(labels[o.y0 : o.y1, o.x0 : o.x1])
        scores = np.where(jitter > 0, rng.random(len(ids)), 0.5).astype(np.float32)
        found = Instances.from_masks(masks, scores=scores).by_score()
        stored[tile.index] = stored_objects(in_source(found, tile, grid), grid, tile)
    result, seams = tiled(grid, stored)
    assert same_partition(result, labels)
    assert seams.n_adopted == 0


@pytest.mark.parametrize("target", [flow, watershed, semantic, stars])
@pytest.mark.parametrize(("core_px", "offset"), [(96, (0, 0)), (128, (17, 5)), (160, (31, 40))])
def test_decoders_find_the_same_objects_in_tiles(target, core_px: int, offset: tuple[int, int]) -> None:
    """On the same maps, noise included: the same pixels, and the same scores to the bit."""
    truth = draw_field(3, (420, 500), 120)[1].masks.to_label_map()[offset[0] :, offset[1] :]
    maps = target.encode(truth)
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.normal(size=maps.shape), (0, 2, 2)).astype(np.float32)
    maps = maps + 0.6 * noise / noise.std() * 0.3
    labels, scores = target.decode(maps)
    whole = to_instances(labels, scores)
    grid = Grid(truth.shape, truth.shape, 16, core_px=core_px, halo_px=64)
    stored = {}
    for tile in grid:
        o = tile.output
        found = to_instances(*target.decode(np.ascontiguousarray(maps[:, o.y0 : o.y1, o.x0 : o.x1])))
        stored[tile.index] = stored_objects(in_source(found, tile, grid), grid, tile)
    result, _ = tiled(grid, stored)
    assert same_partition(result, labels)
    found = np.sort(np.concatenate([o.scores for _, o in Seams(grid, lambda k: stored[k]).objects()]))
    np.testing.assert_array_equal(found, np.sort(whole.scores))


def test_an_object_that_nobody_owns_is_kept_once() -> None:
    """Both tiles place the anchor in the other's core; the better copy stays, and the other is dropped."""
    grid = Grid((64, 128), (64, 128), 1, core_px=64, halo_px=16)
    left, right = np.zeros((64, 128), int), np.zeros((64, 128), int)
    left[20:30, 60:70], right[20:30, 59:67] = 1, 1
    stored = {}
    for index, (labels, score) in enumerate(((left, 0.7), (right, 0.9))):
        found = Instances.from_masks(MaskSet.from_label_map(labels)[0], scores=np.array([score]))
        stored[index] = stored_objects(found, grid, grid[index])
        assert not stored[index].owned.any()
    result, seams = tiled(grid, stored)
    assert np.array_equal(result > 0, right > 0)
    assert (seams.n_copies, seams.n_adopted) == (1, 1)


def test_an_object_that_both_tiles_own_is_kept_once() -> None:
    grid = Grid((64, 128), (64, 128), 1, core_px=64, halo_px=16)
    left, right = np.zeros((64, 128), int), np.zeros((64, 128), int)
    left[20:30, 58:68], right[20:30, 60:70] = 1, 1
    stored = {}
    for index, labels in enumerate((left, right)):
        found = Instances.from_masks(MaskSet.from_label_map(labels)[0], scores=np.array([0.5]))
        stored[index] = stored_objects(found, grid, grid[index])
        assert stored[index].owned.all()
    result, _ = tiled(grid, stored)
    assert np.array_equal(result > 0, left > 0)


def test_shared_pixels_go_to_the_better_object() -> None:
    grid = Grid((64, 128), (64, 128), 1, core_px=64, halo_px=16)
    left, right = np.zeros((64, 128), int), np.zeros((64, 128), int)
    left[20:40, 40:66], right[20:40, 62:90] = 1, 1
    stored = {}
    for index, (labels, score) in enumerate(((left, 0.6), (right, 0.8))):
        found = Instances.from_masks(MaskSet.from_label_map(labels)[0], scores=np.array([score]))
        stored[index] = stored_objects(found, grid, grid[index])
    result, _ = tiled(grid, stored)
    assert np.array_equal(result > 0, (left + right) > 0)
    assert (result[20:40, 62:66] == 2).all()


def drawn_record() -> TileRecord:
    grid = Grid((64, 128), (64, 128), 1, core_px=64, halo_px=16)
    labels = np.zeros((64, 128), int)
    labels[3:9, 4:12], labels[20:30, 58:70] = 1, 2
    found = Instances.from_masks(MaskSet.from_label_map(labels)[0], scores=np.array([0.5, 0.25]))
    found = replace(found, columns={"area_um2": np.array([1.5, np.nan])})
    return TileRecord(stored_objects(found, grid, grid[0]), (Note("k", "text", "a.tif"),))


def test_a_tile_file_gives_back_what_was_written(tmp_path: Path) -> None:
    record, path = drawn_record(), tmp_path / "0.tile"
    write_tile(path, record, "job")
    back = read_tile(path, "job")
    assert back.stored.objects.masks == record.stored.objects.masks
    np.testing.assert_array_equal(back.stored.owned, record.stored.owned)
    np.testing.assert_array_equal(back.stored.objects.scores, record.stored.objects.scores)
    np.testing.assert_array_equal(back.stored.objects.columns["area_um2"], record.stored.objects.columns["area_um2"])
    assert back.notes == record.notes
    with pytest.raises(FormatError, match="another job"):
        read_tile(path, "other")


def test_a_damaged_tile_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "0.tile"
    write_tile(path, drawn_record(), "job")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        at = int(rng.integers(len(content)))
        damaged = bytearray(content[: at + 1]) if rng.random() < 0.3 else bytearray(content)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="damaged"):
            read_tile(path, "job")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_streamed_percentiles_are_those_of_all_values(dtype: type) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 900, (70, 90, 2)).astype(dtype)
    source = open_image(values)
    found = values_of(source, lambda region: region.data, (0.1, 50.0, 99.8), (1.0, 99.0))
    np.testing.assert_allclose(found.percentiles, np.percentile(values, (0.1, 50, 99.8), axis=(0, 1)).T, rtol=1e-6)
    np.testing.assert_allclose(found.pooled, np.percentile(values, (1, 99)), rtol=1e-6)
    assert found.highest == pytest.approx(values.max(), rel=0.01)


def test_windows_of_a_resized_image_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(5, 200, 2)
        scale = np.exp(rng.uniform(-1.5, 1.5))
        new_hw = max(1, int(height * scale)), max(1, int(width * scale))
        pixels = rng.random((2, height, width), np.float32)
        whole = resized(pixels, new_hw)
        pillow = resize_antialiased(pixels.transpose(1, 2, 0), new_hw).transpose(2, 0, 1)
        np.testing.assert_allclose(whole, pillow, atol=2e-7)
        (y0, y1), (x0, x1) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in new_hw)
        window = Window(y0, x0, y1, x1)
        part = resized_window(
            lambda needed, all_of=pixels: needed.of(all_of), (int(height), int(width)), new_hw, window
        )
        np.testing.assert_array_equal(part, window.of(whole))


@pytest.mark.parametrize("normalise", ["fixed", "percentile"])
@pytest.mark.parametrize("rule", ["torchvision", "detectron2"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_windows_of_the_network_input_are_those_of_the_whole(normalise: str, rule: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for scale in (0.37, 0.8, 1.7):
        config = InputConfig(normalise=normalise, scale=scale)
        pixels = (rng.random((90, 71, 3)) * 200).astype(dtype)
        image = Image.from_array(pixels)
        whole = resize_for_network(image, config, rule)
        limits = [tuple(np.percentile(pixels[..., c], config.percentiles)) for c in range(3)]
        window = Window(3, 5, whole.shape[1] - 4, whole.shape[2])
        part = network_window(
            lambda w, all_of=pixels: Image(all_of[w.y0 : w.y1, w.x0 : w.x1], ("R", "G", "B")),
            config,
            rule,
            limits if normalise == "percentile" else None,
            ((90, 71), whole.shape[1:]),
            window,
        )
        np.testing.assert_allclose(part, window.of(whole), rtol=0, atol=2e-6 * max(1, np.abs(whole).max()))


@pytest.mark.parametrize(
    ("diameter", "views"),
    [
        (None, PLAIN),
        (18.0, PLAIN),
        (30.0, (View(scale=0.8, quarter_turns=1), View(horizontal_flip=True))),
    ],
)
def test_tiles_of_a_network_are_parts_of_the_whole_prediction(diameter: float | None, views: tuple[View, ...]) -> None:
    """Maps of tiles equal those of the whole image, and so do the objects, at scales below and above 1."""
    # Percentiles of each channel, and of all together, in a coloured image.
    predictor = load_model("nuclei-stained" if diameter == 18 else "nuclei-fluorescence", device="cpu").predictor
    predictor = predictor if diameter is None else predictor.with_diameter(diameter)
    predictor = predictor.with_views(views)
    image = draw_field(4, (300, 280), 40)[0]
    image = Image((image.data * np.array([1, 0.6, 0.8])).astype(np.uint8), image.channels)
    (whole,) = predictor.predict([image])
    tiles = DenseTiles(predictor)
    source = open_image(image)
    facts = tiles.facts(source)
    assert ImageFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    assert facts.diameter == whole.diameter
    grid = replace(tiles.grid(facts, 128), halo_px=144)
    assert len(grid) >= 4
    stored = {}
    for tile in grid:
        objects = in_source(tiles.objects(source, facts, tile), tile, grid)
        stored[tile.index] = stored_objects(objects, grid, tile)
    result, _ = tiled(grid, stored)
    assert len(whole.instances) > 10
    assert same_partition(result, whole.instances.masks.to_label_map())
