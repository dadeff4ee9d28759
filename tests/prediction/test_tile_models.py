"""Every kind of model finds the same objects in tiles as in the whole image."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from torch import Tensor, nn

from cellwright.api.models import Model, ensemble, load_model
from cellwright.config.input import InputConfig
from cellwright.config.model_dense import StarsTarget, UNetConfig
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Sample
from cellwright.core.errors import FormatError, UsageError
from cellwright.core.events import plain
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.images.reading import Reading
from cellwright.data.images.source import open_image
from cellwright.data.survey import survey_images
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.data.views import PLAIN, View
from cellwright.models.build import build_network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.prediction import RAY_UNIT_PX
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.ops.boxes import Extent
from cellwright.prediction.backends.torch import TorchPredictor
from cellwright.prediction.fusion import FusionOptions, Method
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import Predictor, SegmenterPredictor
from cellwright.prediction.tiling import methods
from cellwright.prediction.tiling.facts import ImageFacts
from cellwright.prediction.tiling.grid import Grid
from cellwright.prediction.tiling.models import tile_model, with_networks, without_networks
from cellwright.prediction.tiling.seams import Seams
from cellwright.prediction.tiling.work import TileWork


def squares(hw: tuple[int, int], n: int) -> Image:
    """Bright rectangles of 9 to 20 px on dark noise, which do not touch."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, hw)
    for k in range(n):
        y, x = rng.integers(0, hw[0] - 20), 24 * k + rng.integers(0, 3)
        h, w = rng.integers(9, 20, 2)
        pixels[y : y + h, x : x + w] = 200 + rng.integers(0, 40)
    return Image.from_array(pixels.astype(np.uint8))


def tiled(predictor: Predictor, image: Image, core_px: int) -> tuple[Grid, list[Instances]]:
    """The final objects of each tile."""
    model, source = tile_model(predictor), open_image(image)
    facts = model.facts(source)
    grid = model.grid(facts, core_px)
    work = TileWork(model, source, source, facts, grid, PredictOptions())
    records = [work.record(tile.index) for tile in grid]
    return grid, [objects for _, objects in Seams(grid, lambda tile: records[tile].stored).objects()]


def check_same(whole: Instances, tiles: Sequence[Instances]) -> None:
    """Every object of the whole image is one of a tile, to the pixel but for rounding, and there are no others."""
    masks = [objects.masks for objects in tiles]
    assert sum(map(len, masks)) == len(whole)
    found = np.zeros(len(whole), bool)
    for objects in tiles:
        i, j, iou = whole.masks.iou(objects.masks)
        same = (iou > 0.99) & (np.abs(whole.scores[i] - objects.scores[j]) < 1e-3)
        found[i[same]] = True
    assert found.all(), whole.masks.boxes[~found]


def seeing_squares(recipe: dict) -> MaskRCNN:
    """A random network whose proposals are the boxes of what is bright: what it says about them is local."""
    values = {"name": "tiny", "model": recipe, "conventions": "detectron2"}
    torch.manual_seed(0)
    network = build_network(Recipe.model_validate(values).resolved(), 1).eval()
    assert isinstance(network, MaskRCNN)
    with torch.no_grad():
        network.mask_head.logits.weight *= 100
    features, seen = network.features, []

    def features_of(images: Tensor) -> list[Tensor]:
        seen[:] = [images]
        return features(images)

    def proposals(_: Sequence[Tensor], extents: Sequence[Extent]) -> list[Tensor]:
        labels, _ = ndimage.label(seen[0][0, 0].numpy() > 0.4)
        return [torch.from_numpy(MaskSet.from_label_map(labels)[0].boxes.astype(np.float32)) for _ in extents]

    network.features, network.proposals = features_of, proposals  # type: ignore[method-assign]
    return network


BACKBONE = {"depth": 18, "width": 8, "norm": "frozen_batch_norm"}
PYRAMID = {
    "kind": "mask_rcnn",
    "backbone": BACKBONE,
    "fpn": {"channels": 8},
    "box_head": {"fc_channels": 16, "score_threshold": 0.0, "detections_per_image": 1000},
    "mask_head": {"convs": 1, "channels": 8},
}
C4 = {
    "kind": "mask_rcnn_c4",
    "backbone": BACKBONE | {"depth": 50, "width": 4},
    "box_head": {"score_threshold": 0.0, "detections_per_image": 1000},
    "mask_head": {"channels": 8},
}


@pytest.mark.parametrize(
    ("recipe", "scale", "views"),
    [
        (PYRAMID, 1.0, PLAIN),
        (PYRAMID, 0.8, PLAIN),
        (PYRAMID, 1.0, (View(horizontal_flip=True, quarter_turns=1), View(scale=0.9))),
        (C4, 1.0, PLAIN),
    ],
)
def test_rcnn(recipe: dict, scale: float, views: tuple[View, ...]) -> None:
    config = InputConfig(channels=3, scale=scale)
    predictor = TorchPredictor(seeing_squares(recipe), config, "detectron2").with_views(views)
    image = squares((90, 1700), 68)
    (whole,) = predictor.predict([image])
    assert len(whole.instances) > 40
    grid, tiles = tiled(predictor, image, 200)
    assert grid[1].window.hw[1] < grid.net_hw[1]
    check_same(whole.instances, tiles)


class Discs(nn.Module):
    """In place of a U-Net: a polygon of 6 px around every bright pixel."""

    reach_px, stride = 4, 4

    def forward(self, images: Tensor) -> list[Tensor]:
        rays = torch.full_like(images[:, :1], 6 / RAY_UNIT_PX)
        return [torch.cat([8 * images[:, :1] - 4, rays.expand(-1, 32, -1, -1)], dim=1)]


@pytest.mark.parametrize("views", [PLAIN, (View(quarter_turns=1), View(scale=0.9))])
def test_rays_are_as_long_in_tiles(views: tuple[View, ...]) -> None:
    """At half the resolution, rays of 6 px are 12 px in the image, and 13.3 px in the smaller view."""
    network = DenseNetwork(UNetConfig(width=4, depth=2, target=StarsTarget()), in_channels=3, n_classes=1)
    network.unet = Discs()  # type: ignore[assignment]
    predictor = TorchPredictor(network, InputConfig(channels=3, scale=0.5), "torchvision").with_views(views)
    y, x = np.mgrid[:90, :600]
    spots = 250 * np.exp(-((y - 40 - 5 * np.sin(x / 31)) ** 2 + (x % 30 - 15) ** 2) / 60)
    image = Image.from_array(spots.astype(np.uint8))
    (whole,) = predictor.predict([image])
    assert len(whole.instances) == 20
    share_of_disc = np.median(whole.instances.masks.areas) / (np.pi * 12**2)
    assert share_of_disc == pytest.approx(1.0 if views == PLAIN else 1.11, abs=0.03)
    check_same(whole.instances, tiled(predictor, image, 64)[1])


def test_a_short_side_needs_the_scale_of_training() -> None:
    network = seeing_squares(PYRAMID)
    predictor = TorchPredictor(network, InputConfig(short_side=45), "detectron2")
    with pytest.raises(UsageError, match="scale"):
        tile_model(predictor)
    image = squares((90, 400), 15)
    (whole,) = predictor.predict([image])
    grid, tiles = tiled(replace(predictor, scale=0.5), image, 300)
    assert grid.net_hw == (45, 200)
    assert tile_model(replace(predictor, scale=0.5)).whole_bytes_per_px == 0, "the size of the input does not grow"
    assert tile_model(TorchPredictor(network, InputConfig())).whole_bytes_per_px > 200
    check_same(whole.instances, tiles)
    (tall,) = replace(predictor, input_config=InputConfig(short_side=90)).predict([image])
    assert len(tall.instances) != 0
    with pytest.raises(UsageError, match="factors"):
        tile_model(predictor.with_views((View(short_side=64),)))


def test_images_are_scaled_to_the_pixel_size_of_training() -> None:
    """As if the recipe had that scale, in tiles too."""
    network, image = seeing_squares(PYRAMID), replace(squares((90, 700), 25), pixel_size_um=(0.4, 0.4))
    predictor = TorchPredictor(network, InputConfig(), "detectron2", pixel_size_um=0.5)
    (whole,) = predictor.predict([image])
    (note,) = whole.notes
    assert "pixels of 0.4 um, where the training images have 0.5 um: scaled by 0.8" in note.text
    (expected,) = replace(predictor, input_config=InputConfig(scale=0.8), pixel_size_um=None).predict([image])
    assert len(expected.instances) > 15
    assert whole.instances.masks == expected.instances.masks
    grid, tiles = tiled(predictor, image, 200)
    assert grid.net_hw == (72, 560)
    check_same(whole.instances, tiles)
    facts = tile_model(predictor).facts(open_image(image))
    assert ImageFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    assert facts.notes == whole.notes
    for size, text in (((0.51, 0.51), ""), ((25.0, 25.0), "not scaled"), (None, "")):
        (prediction,) = predictor.predict([replace(image, pixel_size_um=size)])
        assert text in "".join(note.text for note in prediction.notes)
        (plain,) = replace(predictor, pixel_size_um=None).predict([image])
        assert prediction.instances.masks == plain.instances.masks


def test_training_records_the_pixel_size_of_its_images(tmp_path: Path) -> None:
    samples = []
    for k, per_cm in enumerate((20000, 20400, 40000)):
        path, hw = tmp_path / f"{k}.tif", (40, 50)
        tifffile.imwrite(path, np.zeros(hw, np.uint8), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
        samples.append(Sample(str(k), path, hw, lambda: Instances.empty((40, 50))))
    for n, expected in ((2, pytest.approx(0.495, abs=1e-3)), (3, None)):
        survey = survey_images(samples[:n], InputConfig(channels=1), Reading())
        assert survey.pixel_size_um == expected
    assert survey_images(samples, InputConfig(channels=1), Reading(pixel_size=0.3)).pixel_size_um == 0.3


class Threshold:
    """A method of the user's own."""

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        found = []
        for image in images:
            labels, _ = ndimage.label(image.data.mean(axis=2) < 120)
            masks, _ = MaskSet.from_label_map(labels)
            found.append(Instances.from_masks(masks, scores=np.minimum(masks.areas / 1000, 1)))
        return found


@pytest.mark.parametrize("stain", ["he", "fluorescence"])
def test_classical(stain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thresholds are those of the whole image, also where they come from several regions."""
    monkeypatch.setattr(methods, "blocks", partial(methods.blocks, side=256))
    image, _ = draw_field(3, (160, 1200), 100, FieldLook(touching=0.3, stain=stain))
    predictor = load_model("classical").predictor
    (whole,) = predictor.predict([image])
    assert len(whole.instances) > 60
    model = tile_model(predictor)
    source = open_image(image)
    facts = model.facts(source)
    assert ImageFacts.from_dict(json.loads(json.dumps(plain(facts.to_dict())))) == facts
    for damage in ({"diameter": "x"}, {"diameter": 0}, {"signal": 3}, {"level": []}, {"more": 1}):
        with pytest.raises(FormatError, match="damaged"):
            model.grid(replace(facts, method={**facts.method, **damage}), 100)
    grid = model.grid(facts, 100)
    assert grid[6].window.hw[1] < 1000
    check_same(whole.instances, tiled(predictor, image, 100)[1])


def test_a_method_of_ones_own_sees_windows() -> None:
    image, _ = draw_field(3, (200, 800), 60)
    predictor = SegmenterPredictor(Threshold())
    (whole,) = predictor.predict([image])
    grid, tiles = tiled(predictor, image, 100)
    assert grid[3].window.hw[1] < 800
    check_same(whole.instances, tiles)
    (note,) = tile_model(predictor).facts(open_image(image)).notes
    assert "Threshold sees windows" in note.text


@pytest.mark.parametrize("method", ["wbf", "mask_vote"])
def test_ensemble(method: Method) -> None:
    """Members at different scales; the tiles are those of the first."""
    image, _ = draw_field(3, (150, 900), 60)
    dense = load_model("nuclei", device="cpu").with_options(diameter=30)
    members = [Model.from_segmenter(Threshold(), dense.class_names), dense]
    predictor = ensemble(members, FusionOptions(method)).predictor
    if method == "wbf":  # as in another process
        sent = pickle.dumps(without_networks(predictor, iter(["Threshold", "nuclei"])))
        assert len(sent) < 10_000
        predictor = with_networks(pickle.loads(sent), "cpu")
    (whole,) = predictor.predict([image])
    assert len(whole.instances) > 30
    _, tiles = tiled(predictor, image, 150)
    check_same(whole.instances, tiles)
