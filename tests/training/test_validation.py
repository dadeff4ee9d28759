"""Which metrics a run records, which value is better, and when a run is out of patience."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from cellwright.config import recipe as recipes
from cellwright.config.training import TrainConfig
from cellwright.core.errors import RecipeError
from cellwright.training.state import Position
from cellwright.training.validation import (
    check_best_metric,
    count_patience,
    is_better,
    is_out_of_patience,
    lower_is_better,
    recorded,
)


@pytest.mark.parametrize(
    "metric", ["loss", "loss_mask", "errors_missed/astro", "lost_recall_nms", "score_calibration_error"]
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


def test_the_best_metric_must_be_computed() -> None:
    recipe = recipes.load("synthetic/demo").resolved()
    check_best_metric(recipe, ("nucleus",))
    other = recipes.load("synthetic/demo", ("train.best_metric=AP50@al",)).resolved()
    with pytest.raises(RecipeError, match="did you mean 'AP50@all'"):
        check_best_metric(other, ("nucleus",))
