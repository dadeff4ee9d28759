"""Segment every cell or nucleus in a microscopy image as its own object.

Importing this loads no torch: names are looked up when they are first used. Notes and warnings go to the logger
``cellwright``, which shows nothing by itself.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellwright.api.evaluate import evaluate
    from cellwright.api.fuse import fuse
    from cellwright.api.join_planes import join_planes
    from cellwright.api.measure import measure
    from cellwright.api.models import Model, load_model
    from cellwright.api.plan_recipe import PlannedRecipe, plan
    from cellwright.api.predict import predict_folder
    from cellwright.api.predict_tiles import predict_tiles
    from cellwright.api.read import open_image, read_dataset, read_image, read_instances
    from cellwright.api.save import save
    from cellwright.api.show import show
    from cellwright.api.tile_jobs import Job
    from cellwright.api.train import Run, train
    from cellwright.api.tune import tune
    from cellwright.core.dataset import Dataset, Sample
    from cellwright.core.errors import (
        CellwrightError,
        FormatError,
        InputError,
        ModelError,
        OutputError,
        RecipeError,
        TrainingDiverged,
        UsageError,
    )
    from cellwright.core.image import Image
    from cellwright.core.instances import Instances
    from cellwright.core.masks import MaskSet, SoftMasks
    from cellwright.core.memory import keep_freed_memory
    from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
    from cellwright.data.images.reading import Reading
    from cellwright.data.images.regions import ImageSource
    from cellwright.data.views import View
    from cellwright.evaluation.report import Report
    from cellwright.models.contract import Segmenter
    from cellwright.prediction.record import Prediction

__version__ = "0.2.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "CellwrightError",
    "Dataset",
    "Format",
    "FormatError",
    "Image",
    "ImageSource",
    "InputError",
    "Instances",
    "Job",
    "MaskSet",
    "Model",
    "ModelError",
    "OutputError",
    "PlannedRecipe",
    "Prediction",
    "ReadOptions",
    "Reading",
    "RecipeError",
    "Report",
    "Run",
    "Sample",
    "Segmenter",
    "SoftMasks",
    "TrainingDiverged",
    "UsageError",
    "View",
    "WriteOptions",
    "evaluate",
    "fuse",
    "join_planes",
    "keep_freed_memory",
    "load_model",
    "measure",
    "open_image",
    "plan",
    "predict_folder",
    "predict_tiles",
    "read_dataset",
    "read_image",
    "read_instances",
    "save",
    "show",
    "train",
    "tune",
]

_HOMES = {
    "CellwrightError": "core.errors",
    "Dataset": "core.dataset",
    "Format": "data.formats.contract",
    "FormatError": "core.errors",
    "Image": "core.image",
    "ImageSource": "data.images.regions",
    "InputError": "core.errors",
    "Instances": "core.instances",
    "MaskSet": "core.masks",
    "Job": "api.tile_jobs",
    "Model": "api.models",
    "ModelError": "core.errors",
    "OutputError": "core.errors",
    "PlannedRecipe": "api.plan_recipe",
    "Prediction": "prediction.record",
    "ReadOptions": "data.formats.contract",
    "Reading": "data.images.reading",
    "RecipeError": "core.errors",
    "Report": "evaluation.report",
    "Run": "api.train",
    "Sample": "core.dataset",
    "Segmenter": "models.contract",
    "SoftMasks": "core.masks",
    "TrainingDiverged": "core.errors",
    "UsageError": "core.errors",
    "View": "data.views",
    "WriteOptions": "data.formats.contract",
    "evaluate": "api.evaluate",
    "fuse": "api.fuse",
    "join_planes": "api.join_planes",
    "keep_freed_memory": "core.memory",
    "load_model": "api.models",
    "measure": "api.measure",
    "open_image": "api.read",
    "plan": "api.plan_recipe",
    "predict_folder": "api.predict",
    "predict_tiles": "api.predict_tiles",
    "read_dataset": "api.read",
    "read_image": "api.read",
    "read_instances": "api.read",
    "save": "api.save",
    "show": "api.show",
    "train": "api.train",
    "tune": "api.tune",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'cellwright' has no attribute {name!r}")
    return getattr(import_module(f"cellwright.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
