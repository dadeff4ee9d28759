"""Tiles of images against the same computed at once, with NumPy."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cellwright.core.errors import UsageError
from cellwright.data.images.source import open_image
from cellwright.serve.pixels import TILE, Channel, Kept, Pixels, parse_shown, rendered


def decoded(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def ramp(hw: tuple[int, int], top: int) -> np.ndarray:
    y, x = np.mgrid[: hw[0], : hw[1]]
    return ((y + 2 * x) * top / (hw[0] + 2 * hw[1])).astype(np.uint16 if top > 255 else np.uint8)


@pytest.mark.parametrize("how", [{}, {"tile": (256, 256)}, {"compression": "deflate"}], ids=["raw", "tiles", "strips"])
def test_levels_are_means_of_the_pixels(tmp_path: Path, how: dict) -> None:
    pixels = ramp((1100, 1337), 4000)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **how)
    view = Pixels(open_image(tmp_path / "a.tif"), Kept(1 << 26))
    assert view.n_levels == 3
    assert view.level_hw(2) == (275, 335)
    assert np.array_equal(view.raw(0, 1, 2)[:, :, 0], pixels[512:1024, 1024:])
    for level in (1, 2):
        step = 1 << level
        padded = np.pad(pixels, ((0, -1100 % step), (0, -1337 % step)), mode="edge").astype(float)
        means = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).mean((1, 3))
        shown = view.raw(level, 0, 0)[:, :, 0]
        assert np.abs(shown - means[:TILE, :TILE]).max() <= 1 + level


def test_levels_of_the_file_are_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(np.zeros((1200, 1000), np.uint8), tile=(256, 256), subifds=1)
        tif.write(np.full((600, 500), 50, np.uint8), tile=(256, 256), subfiletype=1)
    view = Pixels(open_image(tmp_path / "a.tif"), Kept(1 << 26))
    assert [np.unique(view.raw(level, 0, 0)).tolist() for level in (0, 1, 2)] == [[0], [50], [50]]


def test_channels_are_added_in_their_colours() -> None:
    raw = np.stack([ramp((40, 60), 1000), ramp((40, 60), 1000)[:, ::-1]], axis=2)
    shown = parse_shown(
        '[{"channel": 0, "colour": "#ff0000", "low": 100, "high": 600, "gamma": 0.5},'
        ' {"channel": 1, "colour": "#0080ff", "low": 0, "high": 1000, "invert": true}]'
    )
    first = np.clip((raw[:, :, 0].astype(float) - 100) / 500, 0, 1) ** 0.5
    second = 1 - np.clip(raw[:, :, 1] / 1000, 0, 1)
    expected = np.stack([255 * first, 128 * second, 255 * second], axis=2)
    assert np.abs(rendered(raw, shown) - expected).max() <= 1
    grey = rendered(raw.astype(np.float32), [Channel(channel=0, low=100, high=600)])
    assert np.abs(grey - 255 * np.clip((raw[:, :, 0].astype(float) - 100) / 500, 0, 1)).max() <= 1
    nothing = np.full((5, 5, 1), np.nan, np.float32)
    assert rendered(nothing, [Channel(channel=0, low=0, high=1)]).max() == 0


def test_8_bit_colour_is_shown_as_it_is(tmp_path: Path) -> None:
    rgb = np.stack([ramp((300, 400), 255), ramp((300, 400), 200), 255 - ramp((300, 400), 255)], axis=2)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[:, :, ::-1])
    view = Pixels(open_image(tmp_path / "a.png"), Kept(1 << 26))
    assert np.abs(decoded(view.tile(0, 0, 0)).astype(int) - rgb).max() < 16
    assert max(decoded(view.thumbnail()).shape) == 256
    assert [(facts.name, sum(facts.histogram)) for facts in view.facts()] == [(k, 300 * 400) for k in "RGB"]


@pytest.mark.parametrize("place", [(3, 0, 0), (0, 9, 0), (0, 0, 9), (-1, 0, 0), (0, -1, 0)])
def test_there_is_no_tile_outside(place: tuple[int, int, int]) -> None:
    view = Pixels(open_image(np.zeros((1100, 1337), np.uint8)), Kept(1 << 20))
    with pytest.raises(UsageError, match="no such tile"):
        view.tile(*place)


def test_what_is_kept_is_bounded_and_the_last_is_kept() -> None:
    kept, made = Kept(1000), []
    for key in [1, 2, 1, 3, 4, 1, 2]:
        kept.get(key, lambda key=key: made.append(key) or bytes(300))
    assert made == [1, 2, 3, 4, 2]
    assert len(kept.get("large", lambda: bytes(5000))) == 5000
    kept.get("large", pytest.fail)


def test_few_large_files_are_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4200, 4100), np.uint8))
    now, most = [], []

    def decode(*_: object) -> np.ndarray:
        now.append(1)
        most.append(len(now))
        time.sleep(0.02)
        now.pop()
        return np.zeros((TILE, TILE, 1), np.uint8)

    threads = []
    for _ in range(5):
        view = Pixels(open_image(tmp_path / "a.png"), Kept(1 << 26))
        monkeypatch.setattr(view.source, "decode", decode)
        threads.append(threading.Thread(target=view.raw, args=(0, 0, 0)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 2
