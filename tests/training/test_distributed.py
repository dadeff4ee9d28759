"""Two processes that share every batch, against one process that has it whole."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellwright.config import recipe as recipes
from cellwright.config.conventions import CONVENTIONS
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Loaded, Sample
from cellwright.data.loader import LoaderConfig, TrainingLoader
from cellwright.data.synthetic import draw_field
from cellwright.models.build import build_network
from cellwright.models.layers import share_batch_norm
from cellwright.ops.ranks import Ranks
from cellwright.training.distributed import Place, Team
from cellwright.training.optimiser import build_optimiser
from cellwright.training.state import Position, TrainState
from cellwright.training.step import take_step
from ranks import together

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the ranks are forked, since imports take seconds")
RCNN = (
    *("augment.crop_px=null", "model.backbone.width=8", "model.fpn.channels=16", "model.rpn.post_nms_train=60"),
    *("model.rpn.samples_per_image=32", "model.box_head.samples_per_image=16"),
)
UNET = ("augment.crop_px=null", "augment.pad_to_crop=false", "model.width=8", "model.depth=2")
NETWORKS = {"mask_rcnn": ("synthetic/demo", RCNN), "flow": ("vrdl_nuclei/flow", UNET)}


def samples(folder: Path, n: int = 8) -> list[Sample]:
    """Drawn images of different sizes; one has no object."""
    import cv2

    listed = []
    for k in range(n):
        image, truth = draw_field(k, (96 + 8 * (k % 3), 128 - 16 * (k % 2)), 0 if k == 1 else 6 + k)
        cv2.imwrite(str(folder / f"{k}.png"), image.data[:, :, ::-1])
        listed.append(Sample(str(k), folder / f"{k}.png", image.data.shape[:2], Loaded(truth)))
    return listed


def recipe_of(name: str, *changes: str) -> Recipe:
    shipped, own = NETWORKS[name]
    loaded = recipes.load(shipped, (*own, "train.batch_size=4", "train.precision=float32", "data.workers=0", *changes))
    return loaded.resolved()


def stepped(
    recipe: Recipe, drawn: list[Sample], ranks: Ranks, place: Place, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """A step with the part of a place: its losses, norm and gradient, and the weights after it."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    network = build_network(recipe, 1).train().to(dtype)
    if ranks.n > 1:
        share_batch_norm(network)
    config = recipe.train
    state = TrainState(network, build_optimiser(network, config), Position(), None)
    loading = LoaderConfig(recipe.input, recipe.augment, recipe.data, CONVENTIONS[recipe.conventions].resize_rule,
                           network.stride, config.batch_size, 5, rank=place.rank, n_ranks=place.n)  # fmt: skip
    batches = TrainingLoader(drawn, loading).batches(0, config.accumulate)
    own = Team(Place(place.rank, ranks.n)).share(list(batches))
    outcome = take_step(state, [replace(batch, images=batch.images.to(dtype)) for batch in own], config, 0.01)
    return {
        "losses": outcome.losses,
        "norm": outcome.gradient_norm,
        "gradients": {name: None if p.grad is None else p.grad.numpy() for name, p in network.named_parameters()},
        "weights": {name: value.numpy() for name, value in network.state_dict().items()},
    }


def distance(of_one: dict[str, Any], of_two: dict[str, Any]) -> float:
    """The L2 distance of all tensors, relative to their norm."""
    assert of_one.keys() == of_two.keys()
    assert [name for name in of_one if of_one[name] is None] == [name for name in of_two if of_two[name] is None]
    pairs = [(of_one[name], of_two[name]) for name in of_one if of_one[name] is not None]
    difference = sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in pairs)
    return (difference / sum(float((a.astype(np.float64) ** 2).sum()) for a, _ in pairs)) ** 0.5


def halves(recipe: Recipe, drawn: list[Sample], folder: Path) -> dict[str, Any]:
    """The step of two processes, which end up with the same weights."""
    first, second = together(2, folder, lambda ranks, rank: stepped(recipe, drawn, ranks, Place(rank, 2)))
    assert distance(first["gradients"], second["gradients"]) == 0
    assert distance(first["weights"], second["weights"]) == 0
    return first


def assert_same(of_one: dict[str, Any], of_two: dict[str, Any]) -> None:
    assert distance(of_one["gradients"], of_two["gradients"]) < 1e-5
    assert distance(of_one["weights"], of_two["weights"]) < 1e-5
    assert of_two["losses"] == pytest.approx(of_one["losses"], rel=1e-5)
    assert of_two["norm"] == pytest.approx(of_one["norm"], rel=1e-5)


CASES = [
    ("mask_rcnn", ["model.backbone.norm=group_norm", "train.accumulate=2"]),
    ("mask_rcnn", ["model.backbone.norm=frozen_batch_norm", "train.clip_norm=0.1"]),
    ("flow", ["model.norm=none", "train.accumulate=2", "train.clip_norm=0.1"]),
]


@pytest.mark.parametrize(("name", "changes"), CASES, ids=["rcnn-group", "rcnn-frozen", "unet"])
def test_the_gradient_of_two_halves_is_that_of_the_whole_batch(name: str, changes: list[str], tmp_path: Path) -> None:
    """With augmentation, images of different sizes, and one without objects."""
    drawn, recipe = samples(tmp_path), recipe_of(name, *changes)
    assert_same(stepped(recipe, drawn, Ranks(), Place()), halves(recipe, drawn, tmp_path))


def test_batch_norm_over_both_halves_is_that_of_the_whole_batch_in_float64(tmp_path: Path) -> None:
    """torch's own batch norm on the CPU is not exact enough in float32 to compare with."""
    drawn, recipe = samples(tmp_path), recipe_of("flow")
    assert_same(stepped(recipe, drawn, Ranks(), Place(), torch.float64), halves(recipe, drawn, tmp_path))


def test_batch_norm_in_the_heads_of_an_rcnn_with_an_image_without_objects(tmp_path: Path) -> None:
    """The same layers over two halves, and over the whole batch: other rounding would change the proposals."""
    norms = ("model.backbone.norm=batch_norm", "model.mask_head.norm=batch_norm")
    drawn, recipe = samples(tmp_path), recipe_of("mask_rcnn", *norms, "train.batch_size=2")
    assert [len(sample.read_instances()) for sample in drawn[:2]].count(0) == 1
    (tmp_path / "whole").mkdir()
    (whole,) = together(1, tmp_path / "whole", lambda _, __: stepped(recipe, drawn, Ranks(2), Place()))
    assert_same(whole, halves(recipe, drawn, tmp_path))
