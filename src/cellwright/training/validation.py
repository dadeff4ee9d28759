"""Validation during training: the metrics of a network, which evaluation is the best, and when to stop early."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.input import AugmentConfig
from cellwright.config.recipe import Recipe
from cellwright.config.training import TrainConfig
from cellwright.core.dataset import Dataset
from cellwright.core.errors import RecipeError, did_you_mean
from cellwright.data.images.reading import Reading
from cellwright.data.loader import LoaderConfig, TrainingLoader
from cellwright.data.value_range import TrainingValues
from cellwright.evaluation.data import HEADLINE
from cellwright.evaluation.evaluate import evaluate_pairs
from cellwright.models.contract import Network
from cellwright.prediction.backends.torch import network_predictor
from cellwright.prediction.evaluate import evaluate_dataset
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import FilteredPredictor
from cellwright.training.state import Position
from cellwright.training.step import losses_of

if TYPE_CHECKING:
    import pandas as pd

RECORDED = (
    *("AP@all", "AP50@all", "AP75@all", "AP@100", "AP50@100", "AP75@100", "AR@all"),
    *("box_AP@all", "box_AP50@all", "box_AP75@all", "box_AP@100", "box_AP50@100", "box_AP75@100"),
    *("kaggle_score", "accuracy@0.5", "accuracy@0.75", "f1@0.5", "precision@0.5", "recall@0.5", "pq", "sq", "dq"),
    *("aji", "aji_plus", "aji_cellpose", "dice", "class_mean_pq", "score_iou_spearman", "score_calibration_error"),
)
VAL_LOSS = "val_loss"
RECORDED_PER_CLASS = ("AP@all", "AP50@all", "AP@100", "box_AP@all", "accuracy@0.5", "pq")

# The parts of augmentation that the loss on validation images keeps, so that it is comparable with that of training.
_CROPS = ("crop_relative", "crop_source_px", "crop_px", "pad_to_crop")
_CACHE_MB = 256


@dataclass(frozen=True, eq=False)
class Validation:
    """Evaluates a network on the validation images.

    Attributes:
        recipe: the resolved recipe; its ``evaluate.metrics`` are computed.
        dataset: the validation images with their ground truth.
        device: where the network runs.
        stride: of the network, see `Network.stride`.
        reading: which part of each image file is used.
        training: the values of the training images; None if they are not known.
        trained_channels: the names of the channels that the network is trained on.
    """

    recipe: Recipe
    dataset: Dataset
    device: torch.device
    stride: int
    reading: Reading = Reading()  # noqa: RUF009 - frozen
    training: TrainingValues | None = None
    trained_channels: tuple[str, ...] = ()

    @property
    def headline(self) -> tuple[str, ...]:
        """Names of the metrics that are shown after every evaluation and saved with the model."""
        return tuple(dict.fromkeys((*HEADLINE, self.recipe.train.best_metric, VAL_LOSS)))

    def metrics(self, network: Network) -> dict[str, float]:
        """The metrics of ``network`` by name, those of a class as ``name/class``; undefined ones are NaN.

        All candidates count for average precision, whatever their score.
        """
        predict = self.recipe.predict
        options = PredictOptions(predict.score_threshold, predict.min_area_px)
        facts = {"training": self.training, "trained_channels": self.trained_channels}
        predictor = FilteredPredictor(network_predictor(network, self.recipe, self.device, **facts), options)
        report = evaluate_dataset(
            predictor,
            self.dataset,
            self.dataset.class_names,
            metrics=self.recipe.evaluate.metrics,
            reading=self.reading,
        )
        values = {**recorded(report.values, report.per_class), VAL_LOSS: self.loss(network)}
        best = self.recipe.train.best_metric
        return values if best in values else {**values, best: report[best]}

    @torch.no_grad()
    def loss(self, network: Network) -> float:
        """The mean over the validation images of the sum of all losses; each image as in training, unchanged.

        Images are cropped where the recipe crops training images, always at the same place.
        """
        totals = []
        for batch in self._loader.batches(0, len(self.dataset)):
            losses = losses_of(network, batch.to(self.device), self.recipe.train)
            totals.append(sum(float(loss) for loss in losses.values()))
        return fmean(totals)

    def expected_s(self, network: Network) -> float:
        """Seconds that `metrics` will probably take, from those of the first image."""
        first = self.dataset.samples[:1]
        one_image = replace(self, dataset=self.dataset.with_samples(first))
        seconds = 0.0
        for _ in range(2):  # the first time also loads and compiles
            started = time.perf_counter()
            one_image.metrics(network)
            seconds = time.perf_counter() - started
        area, all_areas = math.prod(first[0].image_hw), sum(math.prod(sample.image_hw) for sample in self.dataset)
        return seconds * all_areas / area

    @cached_property
    def _loader(self) -> TrainingLoader:
        """One validation image per batch, in the same order every time."""
        augment = self.recipe.augment
        crops = {name: getattr(augment, name) for name in _CROPS}
        cache_mb = min(self.recipe.data.cache_mb, _CACHE_MB)
        config = LoaderConfig(
            input=self.recipe.input,
            augment=AugmentConfig(horizontal_flip=0, min_visible=augment.min_visible, **crops),
            data=self.recipe.data.model_copy(
                update={"workers": 0, "cache_mb": cache_mb, "repeat_factor_threshold": None}
            ),
            resize_rule=CONVENTIONS[self.recipe.conventions].resize_rule,
            stride=self.stride,
            batch_size=1,
            seed=0,
            reading=self.reading,
        )
        return TrainingLoader(self.dataset.samples, config)


def recorded(values: Mapping[str, float], per_class: pd.DataFrame) -> dict[str, float]:
    """The metrics of a report that a run records: overall, and as ``name/class`` for each class.

    Further thresholds, caps and size bands, object counts and pooled metrics are omitted.
    """
    overall = {name: values[name] for name in RECORDED if name in values}
    names = [name for name in RECORDED_PER_CLASS if name in per_class]
    classes = per_class.set_index("class")
    return overall | {f"{name}/{label}": float(classes.loc[label, name]) for name in names for label in classes.index}


def check_best_metric(recipe: Recipe, class_names: Sequence[str]) -> None:
    """Raise `RecipeError` if ``train.best_metric`` is not among the metrics that the recipe computes."""
    known = [VAL_LOSS, *evaluate_pairs([], [], metrics=recipe.evaluate.metrics, class_names=class_names).values]
    if recipe.train.best_metric not in known:
        raise RecipeError(
            "the metric that selects the best model is not computed",
            where="train.best_metric, evaluate.metrics",
            got=f"{recipe.train.best_metric!r} with metrics {', '.join(recipe.evaluate.metrics)}",
            remedy=did_you_mean(recipe.train.best_metric, known),
        )


def lower_is_better(metric: str) -> bool:
    """Whether a lower value is better, judging by the name: losses, errors, and shares of lost recall."""
    name = metric.partition("/")[0]  # without the class
    return name.startswith(("loss", "errors_", "lost_recall_")) or name.endswith(("_loss", "_error"))


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether ``value`` is better than ``best``. Any value is better than None or NaN; NaN is better than no number."""
    if best is None or math.isnan(best):
        return True
    return value < best if lower_is_better(metric) else value > best


def count_patience(position: Position, metric: str, value: float) -> None:
    """Update the patience after a scheduled evaluation; an undefined metric is no improvement.

    The evaluation at the end of a call with ``max_minutes`` is not counted: interrupting a run must not shorten it.
    """
    if math.isfinite(value) and is_better(metric, value, position.patience_best):
        position.patience_best, position.patience_spent = value, 0
    else:
        position.patience_spent += 1


def is_out_of_patience(position: Position, config: TrainConfig) -> bool:
    """Whether the last ``config.patience`` scheduled evaluations brought no improvement."""
    return config.patience is not None and position.patience_spent >= config.patience
