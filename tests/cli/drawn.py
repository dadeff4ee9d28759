"""Drawn annotations in VRDL's layout, and options for a very short training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cellwright.cli.app import main
from cellwright.data.synthetic import draw_field

TINY = (
    "--set=train.length=4 steps",
    "--set=train.warmup=1 step",
    "--set=train.evaluate_every=4 steps",
    "--set=train.checkpoint_every=2 steps",
    "--set=augment.crop_px=96",
    "--set=model.backbone.width=8",
    "--set=model.fpn.channels=16",
    "--set=model.rpn.post_nms_test=200",
    "--set=model.box_head.detections_per_image=100",
)


def run(*words: object) -> int:
    """Exit code of ``cellwright words...``."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return int(done.value.code or 0)


def draw_mask_folder(root: Path, n_images: int) -> None:
    """VRDL's layout: ``<id>/images/<id>.png`` and one PNG per nucleus; the names contain spaces."""
    for k in range(n_images):
        image, truth = draw_field(k, (128, 160), 14)
        folder = root / f"field {k}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        cv2.imwrite(str(folder / "images" / f"field {k}.png"), image.data[:, :, ::-1])
        for i, mask in enumerate(truth.masks.to_dense()):
            cv2.imwrite(str(folder / "masks" / f"mask_{i:03d}.png"), mask.astype(np.uint8) * 255)
