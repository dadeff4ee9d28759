"""Which metrics a run records, which value is better, and when a run is out of patience."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cellwright.config import recipe as recipes
from cellwright.config.conventions import CONVENTIONS
from cellwright.config.input import AugmentConfig
from cellwright.config.training import TrainConfig
from cellwright.core.errors import RecipeError
from cellwright.data.augment import augment
from cellwright.data.decode import decode_sample, frame_of, network_pixels
from cellwright.data.loader import collate
from cellwright.data.synthetic import write_demo_dataset
from cellwright.models.build import build_network
from cellwright.training.state import Position
from cellwright.training.validation import (
    Validation,
    check_best_metric,
    count_patience,
    is_better,
    is_out_of_patience,
    lower_is_better,
    recorded,
)


@pytest.mark.parametrize(
    "metric", ["loss", "loss_mask", "errors_missed/astro", "lost_recall_nms", "score_calibration_error", "val_loss"]
)
def test_metrics_of_which_less_is_better(metric: str) -> None:
    assert lower_is_better(metric)
    assert is_better(metric, 0.1, 0.2)
    assert not is_better(metric, 0.2, 0.1)


@pytest.mark.parametrize("metric", ["AP@all", "accuracy@0.5/loss", "aji", "recall@0.5"])
def test_metrics_of_which_more_is_better(metric: str) -> None:
    assert not lower_is_better(metric)
    assert is_better(metric, 0.2, 0.1)
    assert not is_better(metric, 0.1, 0.1)


def test_an_undefined_metric_is_better_than_none_only() -> None:
    assert is_better("aji", math.nan, None)
    assert is_better("aji", 0.0, math.nan)
    assert not is_better("aji", math.nan, 0.0)


def test_patience() -> None:
    config, position = TrainConfig(patience=2), Position()
    for value, spent in ((0.5, 0), (0.4, 1), (0.6, 0), (math.nan, 1), (0.6, 2)):
        assert not is_out_of_patience(position, config)
        count_patience(position, "aji", value)
        assert position.patience_spent == spent
    assert is_out_of_patience(position, config)
    assert not is_out_of_patience(position, TrainConfig())


def test_recorded_metrics_are_overall_and_per_class() -> None:
    per_class = pd.DataFrame({"class": ["a", "b"], "pq": [0.25, 0.75], "n_truth": [3, 4]})
    values = {"pq": 0.5, "pooled_pq": 0.4, "AP@all": 0.3, "n_images": 2.0}
    assert recorded(values, per_class) == {"pq": 0.5, "AP@all": 0.3, "pq/a": 0.25, "pq/b": 0.75}


@pytest.mark.parametrize("name", ["synthetic/demo", "nuclei/finetune"])
def test_the_validation_loss_is_that_of_whole_unchanged_images(name: str, tmp_path: Path) -> None:
    """Against the losses of batches put together here."""
    changes = ["augment.crop_px=null", "train.precision=float32"]
    changes += ["model.backbone.width=8", "model.fpn.channels=16"] if name == "synthetic/demo" else ["model.init=null"]
    recipe = recipes.load(name, changes).resolved()
    dataset = write_demo_dataset(tmp_path, splits=(("val", 2),), image_hw=(96, 128), n_objects=6)
    torch.manual_seed(0)
    network = build_network(recipe, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert isinstance(network, torch.nn.Module)
    network.eval()
    validation = Validation(recipe, dataset, torch.device("cpu"), network.stride)
    loss = validation.loss(network)
    assert validation.loss(network) == loss, "nothing in it is random"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    losses = []
    for sample in dataset:
        decoded = decode_sample(sample, recipe.input, recipe.data)
        frame = frame_of(decoded, recipe.input, CONVENTIONS[recipe.conventions].resize_rule)
        off = AugmentConfig(horizontal_flip=0, min_visible=recipe.augment.min_visible)
        pixels, objects = augment(decoded.pixels, decoded.labels, off, np.random.default_rng(0), frame)
        image = torch.from_numpy(network_pixels(pixels, decoded, recipe.input))
        batch = collate([image], [objects], stride=network.stride, seed=0)
        losses.append(sum(float(value.detach()) for value in network.losses(batch).values()))
    # Detectors sample regions at random, here with another seed.
    assert loss == pytest.approx(np.mean(losses), rel=0.02 if name == "synthetic/demo" else 1e-5)
    assert validation.metrics(network)["val_loss"] == loss
    assert validation.expected_s(network) > 0


def test_the_best_metric_must_be_computed() -> None:
    recipe = recipes.load("synthetic/demo").resolved()
    check_best_metric(recipe, ("nucleus",))
    check_best_metric(recipes.load("synthetic/demo", ("train.best_metric=val_loss",)).resolved(), ("nucleus",))
    other = recipes.load("synthetic/demo", ("train.best_metric=AP50@al",)).resolved()
    with pytest.raises(RecipeError, match="did you mean 'AP50@all'"):
        check_best_metric(other, ("nucleus",))
