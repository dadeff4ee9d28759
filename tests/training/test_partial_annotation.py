"""Fine-tuning on a corner of an image: the rest, which is not annotated, is not unlearned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

import cellwright as cw
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.ignored import counted_objects, with_regions
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import draw_field

FEW_STEPS = (
    "train.length=60 steps", "train.warmup=5 steps", "train.ema_decay=null", "train.lr=1e-3", "augment.crop_px=128",
    "train.evaluate_every=60 steps", "train.checkpoint_every=60 steps", "data.workers=0",
)  # fmt: skip


@pytest.mark.slow
def test_twenty_nuclei_in_a_corner_do_not_unlearn_the_rest(tmp_path: Path) -> None:
    image, cells = draw_field(4, (320, 480), 110)
    tifffile.imwrite(tmp_path / "a.tif", image.data, photometric="rgb")
    corner, left = np.zeros((2, 320, 480), bool)
    corner[:150, :200], left[:, :240] = True, True
    annotated = MaskSet.from_dense(corner[None])
    in_part = with_regions(cells, MaskSet.empty(cells.image_hw), annotated)
    objects = counted_objects(in_part)
    assert 12 <= len(objects) <= 30
    other_half = with_regions(cells, MaskSet.from_dense(left[None]))

    def accuracy(truth: Instances | None, name: str) -> float:
        model = cw.load_model("nuclei")
        if truth is not None:
            sample = Sample("a", tmp_path / "a.tif", cells.image_hw, Loaded(truth))
            data = Dataset((sample,), ("nucleus",))
            model = cw.train("nuclei/finetune", data, out=tmp_path / name, set=FEW_STEPS, device="cpu").model
        return float(cw.evaluate(model.predict(tmp_path / "a.tif"), other_half)["accuracy@0.5"])

    before, region, naive = accuracy(None, ""), accuracy(in_part, "region"), accuracy(objects, "naive")
    assert region >= before - 0.02
    assert naive < region - 0.2
