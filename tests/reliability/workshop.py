"""A folder with one of everything that cellwright writes, made by its own commands from three small drawn images.

source/       images and label images      data/   the dataset, with splits
pred/, pred2/ predictions of the images    run/    a finished training     stopped/ one that was stopped at step 1
tiny.yaml     the recipe                   pred_all/  predictions with all files per image
field.tif     an image of several tiles    job/, half_job/  its tile job, finished and half done
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import tifffile

SHARED = Path(__file__).parents[3] / "shared"
N_IMAGES, IMAGE_HW = 3, (48, 64)
RECIPE = """
name: tiny
model: {kind: unet, width: 4, depth: 2, target: {kind: semantic, body_threshold: 0.3}}
augment: {crop_px: 32}
data: {workers: 0}
train:
  {length: 4 steps, batch_size: 2, lr: 0.03, warmup: 1 step, evaluate_every: 2 steps, checkpoint_every: 1 step,
  ema_decay: 0.9, threads: 1}
"""
TRAIN = ("train", "tiny.yaml", "--data", "data", "--device", "cpu")
TILES = ("predict", "field.tif", "--model", "run", "--device", "cpu", "--tile", "128", "--labels", "tiff")
LONGER = ("train.length=24 steps", "train.evaluate_every=24 steps", "train.checkpoint_every=12 steps")  # finds nuclei


PREDICT_BROKEN = ("predict", "broken", "--model", "classical", "--save", "masks")
IMPORT_RECIPE = """
name: imported
conventions: detectron2
classes: 4
input: {colour_order: bgr, mean: [0.406, 0.456, 0.485], std: [0.00392156863, 0.00392156863, 0.00392156863]}
model:
  kind: mask_rcnn
  backbone: {depth: 50, width: 8, stem_channels: 16, norm: frozen_batch_norm, frozen_stages: 2}
  fpn: {channels: 32}
  box_head: {fc_channels: 64}
  mask_head: {channels: 32}
"""


def command(*words: object) -> tuple[int, str]:
    """Exit code and output of ``cellwright words...`` in this process."""
    from cellwright.cli.app import main

    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            return int(stop.code or 0), printed.getvalue()
    raise AssertionError("main always exits")


def draw_source(folder: Path) -> None:
    """Grey images with bright discs, and label images beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: IMAGE_HW[0], : IMAGE_HW[1]]
    for k in range(N_IMAGES):
        labels = np.zeros(IMAGE_HW, np.uint16)
        for number, (cy, cx) in enumerate([(10, 12), (12, 40 + k), (33, 20), (35, 50 - k)], start=1):
            labels[(y - cy) ** 2 + (x - cx) ** 2 <= (6 + (number + k) % 3) ** 2] = number
        noise = np.random.default_rng(k).normal(0, 3, IMAGE_HW)
        pixels = np.clip(20 + 150 * cv2.blur((labels > 0).astype(np.float32), (3, 3)) + noise, 0, 255)
        cv2.imwrite(str(folder / f"i{k}.png"), pixels.astype(np.uint8))
        tifffile.imwrite(folder / f"i{k}_masks.tif", labels, compression="zlib")


def make(root: str) -> None:
    """Fill ``root``, which becomes the working directory of this process and of its children."""
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        draw_source(Path("source"))
        one = tifffile.imread(Path("source") / "i0_masks.tif") > 0
        tifffile.imwrite("field.tif", np.tile(one, (3, 4)).astype(np.uint8) * 150 + 20, tile=(64, 64))
        Path("tiny.yaml").write_text(RECIPE)
        Path("import.yaml").write_text(IMPORT_RECIPE)
        weights = Path(os.environ.get("CELLWRIGHT_DATA", SHARED)) / "fixtures" / "mask_rcnn_R_50_FPN" / "model.pkl"
        if weights.is_file():
            shutil.copy(weights, "weights.pkl")
        commands = (
            ("data", "convert", "source", "--out", "data"),
            ("data", "convert", "source", "--copy-images", "--out", "copies"),
            ("data", "split", "data", "--val", ".34", "--seed", "0"),
            ("predict", "data", "--model", "classical", "--out", "pred_all"),
            ("predict", "data", "--model", "classical", "--save", "masks", "--out", "pred"),
            ("predict", "data", "--model", "classical", "--save", "masks", "--min-area", "90", "--out", "pred2"),
            (*TRAIN, *(f"--set={change}" for change in LONGER), "--out", "run"),
            (*TRAIN, "--out", "stopped", "--max-minutes", "0.000001"),
            ("evaluate", "pred2", "--data", "data", "--metrics", "pq", "--pictures", "0", "--out", "evaluated"),
            ("export", "pred2", "--to", "geojson", "--out", "exported"),
            (*TILES, "--out", "job"),
            (*TILES, "--shard", "1/2", "--out", "half_job"),
        )
        for words in commands:
            code, printed = command(*words)
            assert code == 0, f"{words}: {printed}"
        Path("broken").mkdir()
        for name in ("i0.png", "i1.png"):
            shutil.copy(Path("source") / name, "broken")
        Path("broken/last.png").write_text("no image")
        code, printed = command(*PREDICT_BROKEN, "--fail-fast", "--out", "half")
        assert code == 2, printed
