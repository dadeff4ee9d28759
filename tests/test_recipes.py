"""Every shipped recipe is built, at reduced width but with its structure, and trains a step on its kind of data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from cellwright.api.read import read_dataset
from cellwright.config import recipe as recipes
from cellwright.config.conventions import CONVENTIONS
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Dataset
from cellwright.data.loader import LoaderConfig, TrainingLoader
from cellwright.models.build import build_network
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.training.optimiser import build_optimiser
from cellwright.training.schedule import Timeline, learning_rate
from cellwright.training.state import Position, TrainState, initial_average
from cellwright.training.step import take_step
from drawn_formats import write_cells4, write_livecell, write_mask_folder, write_sartorius

SHIPPED = recipes.shipped_names()
# Recipes that differ from another one only in the section train: slow, as the other one is tested in CI.
_ROWS = (
    "03_lr_1e-3", "04_save_best", "05_cosine_2e-3", "06_cosine_3e-3", "07_livecell_1e-3", "08_livecell_5e-4",
    "11_all_images_5e-4", "12_all_images_2e-4",
)  # fmt: skip
SAME = {
    "cells4/light_v2": "cells4/light",
    "vrdl_nuclei/standard": "vrdl_nuclei/quick",
    "vrdl_nuclei/r101_no_warmup": "vrdl_nuclei/r101_fpn",
    "vrdl_nuclei/r50_200_epochs": "vrdl_nuclei/r50_fpn",
} | {f"sartorius/row_{row}": "sartorius/row_01_1000_steps" for row in _ROWS}
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SAME else ()) for name in SHIPPED]
# Widths and counts of a network small enough for a test; fields that a section lacks are ignored.
SMALL: dict[str, dict[str, Any]] = {
    "backbone": {"width": 8, "stem_channels": 8},
    "fpn": {"channels": 16},
    "rpn": {"pre_nms_train": 200, "post_nms_train": 100, "pre_nms_test": 200, "post_nms_test": 100},
    "box_head": {"conv_channels": 16, "fc_channels": 16, "samples_per_image": 64, "detections_per_image": 50},
    "mask_head": {"channels": 16, "fc_channels": 16},
    "point_head": {"channels": 16},
    "mask_scoring": {"channels": 16, "fc_channels": 16},
}
SHRINK = 8  # images by this, but crops to no less than 64 px


def reduced(name: str) -> Recipe:
    """A shipped recipe with a narrow network on small images; everything else is unchanged."""
    values = recipes.load(name).to_dict()
    for section, smaller in SMALL.items():
        own = values["model"].get(section)
        if own is not None:
            own |= {key: value for key, value in smaller.items() if key in own}
    if "width" in values["model"]:
        values["model"]["width"] = 4
    elif values["model"]["backbone"]["groups"] > 1:
        values["model"]["backbone"]["group_width"] = 1
    for section in ("input", "augment"):
        for key in ("short_side", "max_side", "max_side_px", "crop_px", "crop_source_px"):
            if values[section].get(key) is not None:
                values[section][key] = max(values[section][key] // SHRINK, 64)
    values["train"]["precision"] = "float32"  # whatever this machine would choose
    values["augment"]["short_sides_px"] = [side // SHRINK for side in values["augment"]["short_sides_px"]]
    return recipes.from_dict(values, name)


@pytest.fixture(scope="module")
def dataset_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Dataset]:
    """A tiny dataset in the format of a recipe's data."""
    writers: dict[str, Callable[[Path], Path]] = {
        "sartorius": write_sartorius,
        "sartorius/livecell_pretrain": write_livecell,
        "cells4": write_cells4,
        "dsb2018": lambda root: write_mask_folder(root, alpha=True),
        "synthetic": write_mask_folder,
        "nuclei": write_mask_folder,
        "cells": write_mask_folder,
        "cellpose": write_mask_folder,
        "stardist": write_mask_folder,
        "vrdl_nuclei": write_mask_folder,
    }

    @functools.cache
    def written(key: str) -> Dataset:
        return read_dataset(writers[key](tmp_path_factory.mktemp("source") / key.replace("/", "_")))

    return lambda name: written(name if name in writers else name.partition("/")[0])


def take_statistics(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Give frozen norms suitable statistics, as pretrained weights have them."""

    def measure(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, FrozenBatchNorm2d)
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    frozen = [module for module in network.modules() if isinstance(module, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in frozen]
    if frozen:
        with torch.no_grad():
            network.backbone(images)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_a_step_on_its_kind_of_data(name: str, dataset_of: Callable[[str], Dataset]) -> None:
    recipe, dataset = reduced(name).resolved(), dataset_of(name)
    assert recipe.classes in (None, len(dataset.class_names))
    torch.manual_seed(0)
    network = build_network(recipe, len(dataset.class_names))
    config = LoaderConfig(
        input=recipe.input,
        augment=recipe.augment,
        data=recipe.data,
        resize_rule=CONVENTIONS[recipe.conventions].resize_rule,
        stride=network.stride,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
    )
    batches = list(TrainingLoader(dataset.samples, config).batches(0, 1))
    take_statistics(network, batches[0].images)
    averaged = initial_average(network) if recipe.train.ema_decay is not None else None
    state = TrainState(network.train(), build_optimiser(network, recipe.train), Position(), averaged)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    timeline = Timeline.of(recipe.train, 1000)
    # The learning rate of the first warm-up step is too low to change anything: use the one after warm-up.
    rate = learning_rate(recipe.train, timeline.total_steps // 8, timeline)
    outcome = take_step(state, batches, recipe.train, rate)
    assert outcome.problem is None
    assert len(outcome.losses) >= (2 if "width" in recipe.to_dict()["model"] else 5)
    assert all(np.isfinite(value) and value > 0 for value in outcome.losses.values()), outcome.losses
    after = network.state_dict()
    trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    statistics = {key for key in moved if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert moved - statistics <= trained
    parts = {key.split(".")[0] for key in trained}
    assert {key.split(".")[0] for key in moved} == parts, "every part of the network is trained"


@pytest.mark.parametrize("name", CASES)
def test_the_reduced_network_has_the_structure_of_the_full_one(name: str) -> None:
    """The full network is built without memory, from tensors without data."""
    recipe = recipes.load(name)
    n_classes = recipe.classes or 1
    with torch.device("meta"):
        whole, small = build_network(recipe, n_classes), build_network(reduced(name), n_classes)
    assert [key for key, _ in small.named_parameters()] == [key for key, _ in whole.named_parameters()]
    assert [type(module) for module in small.modules()] == [type(module) for module in whole.modules()]
    if isinstance(whole, MaskRCNN):
        assert isinstance(small, MaskRCNN)
        assert small.config.box_head.stage_ious == whole.config.box_head.stage_ious


@pytest.mark.parametrize(("name", "other"), SAME.items())
def test_recipes_that_differ_only_in_their_training(name: str, other: str) -> None:
    first, second = (recipes.load(recipe).to_dict() for recipe in (name, other))
    for section in ("model", "conventions", "input", "augment", "data", "classes"):
        assert first[section] == second[section], section
    for key in ("optimiser", "batch_size", "accumulate", "ema_decay", "precision", "clip_norm"):
        assert first["train"][key] == second["train"][key], key


def anchor_sides(name: str) -> list[set[int]]:
    """The anchor sizes (square root of the area, px) of a recipe's network, level by level."""
    network = build_network(reduced(name), 4)
    assert isinstance(network, MaskRCNN)
    features = [torch.zeros(1, 16, 64 // 2**level, 64 // 2**level) for level in range(5)]
    sides = ((level[:, 2:] - level[:, :2]).prod(dim=1).sqrt() for level in network.rpn.anchors_of(features))
    return [set(level.round().int().tolist()) for level in sides]


def test_configured_anchors_are_used() -> None:
    """In the report, they were passed to an argument that ignored them."""
    assert [min(level) for level in anchor_sides("cells4/warmup")] == [32, 64, 128, 256, 512]
    # Sides are rounded to whole pixels, as in torchvision: 4 px with a ratio of 2 are 6 x 2.
    small, smaller = anchor_sides("cells4/small_anchors"), anchor_sides("cells4/smaller_anchors")
    assert [max(level) for level in small] == [4, 8, 16, 32, 64]
    assert [max(level) for level in smaller] == [4, 8, 16, 32, 64]
    assert min(smaller[0]) < min(small[0])
    assert smaller[1:] == small[1:]


def test_light_v2_has_as_many_parameters_as_torchvision() -> None:
    with torch.device("meta"):
        network = build_network(recipes.load("cells4/light_v2"), 4)
    assert sum(parameter.numel() for parameter in network.parameters()) == 45_896_557


def test_the_schedules_are_those_of_the_reports() -> None:
    """Learning rates at selected steps (0-based), with 24 and 20 images."""

    def rates(name: str, n_images: int, *steps: int) -> list[float]:
        train = recipes.load(name).train
        timeline = Timeline.of(train, n_images)
        return [learning_rate(train, step, timeline) for step in steps]

    dense = rates("vrdl_nuclei/c4_dense_r50", 24, 72, 479, 480, 1199, 1200, 1920, 2160, 2399)
    np.testing.assert_allclose(dense, [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-6])
    first = rates("vrdl_nuclei/r50_fpn", 20, 60, 399, 400, 1000, 1600, 1800, 2399)
    np.testing.assert_allclose(first, [1e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-6])
    np.testing.assert_allclose(rates("vrdl_nuclei/r101_no_warmup", 20, 0), [1e-2])
    cascade = rates("cells4/cascade_x152_dconv_gn", 100, 0, 1000, 6999, 7000, 9000)
    np.testing.assert_allclose(cascade, [1e-7, 1e-4, 1e-4, 1e-5, 1e-6])
    light = rates("cells4/light_v2", 400, 250, 2625, 4999)  # 5,000 steps
    np.testing.assert_allclose(light, [5e-3, 2.5e-3, 0], atol=1e-8)
    falling = rates("cells4/default", 400, 0, 299, 300, 600)
    np.testing.assert_allclose(falling, [1e-4, 1e-4, 1e-5, 1e-6])


def test_best_metrics_are_computed_metrics() -> None:
    from cellwright.api.evaluate import evaluate

    for name in recipes.shipped_names():
        recipe = recipes.load(name)
        known = evaluate([], [], metrics=recipe.evaluate.metrics, class_names=["a"]).values
        assert recipe.train.best_metric in known, name


def test_frozen_layers_without_weights_give_a_warning() -> None:
    from cellwright.api.train import init_warnings, load_recipe

    def warned(name: str, *changes: str, init: str | None = None) -> bool:
        return any("stay random" in warning for warning in init_warnings(load_recipe(name, changes, init)))

    thawed = "model.backbone.norm=group_norm", "model.backbone.frozen_stages=0"
    assert warned("vrdl_nuclei/r50_fpn")
    assert not warned("vrdl_nuclei/r50_fpn", *thawed)
    assert not warned("vrdl_nuclei/r50_fpn", init="detectron2:R-50.pkl")
    assert not warned("vrdl_nuclei/quick")
