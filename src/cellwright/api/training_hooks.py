"""What training is handed, because its room imports neither the judge nor the model folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.api.models import network_model
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Dataset
from cellwright.evaluation.report import HEADLINE

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cellwright.models.contract import Network

RECORDED = (
    *("AP@all", "AP50@all", "AP75@all", "AP@100", "AP50@100", "AP75@100", "AR@all"),
    *("box_AP@all", "box_AP50@all", "box_AP75@all", "box_AP@100", "box_AP50@100", "box_AP75@100"),
    *("kaggle_score", "accuracy@0.5", "accuracy@0.75", "f1@0.5", "precision@0.5", "recall@0.5", "pq", "sq", "dq"),
    *("aji", "aji_plus", "aji_cellpose", "dice", "class_mean_pq", "score_iou_spearman", "score_calibration_error"),
)
RECORDED_PER_CLASS = ("AP@all", "AP50@all", "AP@100", "box_AP@all", "accuracy@0.5", "pq")


def shown_metrics(recipe: Recipe) -> tuple[str, ...]:
    """Names of the figures that are shown of every evaluation and kept with the model."""
    return tuple(dict.fromkeys((*HEADLINE, recipe.train.best_metric)))


def saver(
    recipe: Recipe, dataset: Dataset, folder: Path, environment: dict[str, object]
) -> Callable[[Network, dict[str, float]], None]:
    """Writes a network as the model folder ``folder``."""
    from cellwright import __version__
    from cellwright.models.weights.model_folder import ModelInfo, save_model

    git = environment.get("git")

    def save(network: Network, metrics: dict[str, float]) -> None:
        shown = {name: metrics[name] for name in shown_metrics(recipe) if name in metrics}
        info = ModelInfo(
            kind=recipe.model.kind,
            recipe=recipe.to_dict(),
            class_names=dataset.class_names,
            normalisation=recipe.input.model_dump(mode="json"),
            data_licence=dataset.licence,
            version=__version__,
            git_hash=git["commit"] if isinstance(git, dict) else None,
            metrics={name: value for name, value in shown.items() if math.isfinite(value)},
        )
        save_model(folder, network.state_dict(), info)

    return save


def evaluation(
    recipe: Recipe, dataset: Dataset, validation: Dataset, device: torch.device
) -> Callable[[Network], dict[str, float]]:
    """Scores a network on the validation images."""
    from cellwright.api.judge import judge_model

    def evaluate(network: Network) -> dict[str, float]:
        model = network_model(recipe.name, network, recipe, dataset.class_names, device)
        report = judge_model(model, validation, recipe.evaluate.metrics)
        best = recipe.train.best_metric
        return {**recorded(report.values, report.per_class), best: report[best]}

    return evaluate


def recorded(values: Mapping[str, float], per_class: pd.DataFrame) -> dict[str, float]:
    """The figures of a report that a run keeps of every evaluation: overall, and as ``name/class`` for each class.

    Left out are further thresholds, caps and size bands, numbers of objects, and the same figures pooled.
    """
    found = {name: values[name] for name in RECORDED if name in values}
    names = [name for name in RECORDED_PER_CLASS if name in per_class]
    classes = per_class.set_index("class")
    return found | {f"{name}/{one}": float(classes.loc[one, name]) for name in names for one in classes.index}
