"""Every kind of R-CNN through the public API: train, save, load and predict, on a crop of a real VRDL image."""

from __future__ import annotations

from pathlib import Path

import cv2
import network_conformance as suite
import pytest

import cellwright as cw
from cellwright.cli.app import main
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances

SOURCE, CROP = "TCGA-CH-5767-01Z-00-DX1", (400, 400, 528, 560)
TRAIN = {
    "length": "2 steps",
    "batch_size": 1,
    "optimiser": "adamw",
    "lr": 1e-3,
    "warmup": None,
    "checkpoint_every": "2 steps",
    "evaluate_every": "2 steps",
    "threads": 1,
}
# Frozen norms need pretrained weights.
KINDS = {
    "mask_rcnn": ("fpn_r18", {}),
    "mask_rcnn_c4": ("c4_r50", {"norm": "group_norm", "frozen_stages": 0}),
    "cascade_mask_rcnn": ("cascade_x50_dconv_gn", {"norm": "group_norm", "frozen_stages": 0}),
    "pointrend": ("pointrend_x50", {"norm": "group_norm", "frozen_stages": 0}),
    "mask_scoring": ("mask_scoring", {}),
    "mask_scoring_cascade": ("mask_scoring_cascade", {}),
}


@pytest.fixture(scope="module")
def crop(vrdl_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The crop as training and as validation image, with its annotated nuclei."""
    folder = tmp_path_factory.mktemp("crop")
    (folder / "source").mkdir()
    (folder / "source" / SOURCE).symlink_to(vrdl_root / "train" / SOURCE, target_is_directory=True)
    (whole,) = cw.read_dataset(folder / "source")
    y0, x0, y1, x1 = CROP
    pixels = cw.read_image(whole.image_path or "").data[y0:y1, x0:x1]
    cv2.imwrite(str(folder / "crop.png"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    masks = whole.read_instances().masks.window(*CROP)
    objects = Instances.from_masks(masks[masks.areas > 0])
    assert len(objects) > 5
    samples = [
        Sample(split, folder / "crop.png", objects.image_hw, Loaded(objects), split=split) for split in ("train", "val")
    ]
    return Dataset(tuple(samples), ("nucleus",), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_saves_loads_and_predicts(kind: str, crop: Dataset, tmp_path: Path) -> None:
    name, backbone = KINDS[kind]
    small = suite.CASES[name].recipe({"backbone": backbone}).to_dict()
    recipe = Recipe.model_validate(small | {"train": TRAIN, "augment": {"crop_px": 96}})
    run = cw.train(recipe, crop, out=tmp_path / "run", device="cpu")
    assert run.finished
    assert "AP50@all" in run.metrics
    image = cw.read_image(crop[0].image_path or "")
    (prediction,) = cw.load_model(tmp_path / "run", device="cpu").predictor.predict([image])
    cells = prediction.instances
    suite.check_detections(cells, image.image_hw)
    assert 0 < len(cells) <= suite.CAP

    words = ["predict", crop[0].image_path, "--model", tmp_path / "run", "--out", tmp_path / "predictions"]
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in (*words, "--score", 0, "--save", "masks", "--device", "cpu", "--quiet")])
    assert not done.value.code
    (again,) = cw.read_dataset(tmp_path / "predictions")
    predicted = again.read_instances()
    assert predicted.masks == cells.masks
    assert predicted.scores is not None
    assert cells.scores is not None
    assert predicted.scores.tolist() == pytest.approx(cells.scores.tolist(), abs=1e-5)
