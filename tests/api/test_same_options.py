"""Python and the command line take the same options under the same names; each exception has a reason here."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import pytest

import cellwright as cw
from cellwright.api.evaluate import EvaluatePlan
from cellwright.api.fuse import FusePlan
from cellwright.api.measure import MeasurePlan
from cellwright.api.plan_recipe import RecipePlan
from cellwright.api.predict import PredictPlan
from cellwright.api.train import TrainPlan
from cellwright.api.tune import TunePlan

# Reasons why an option of the command line is no parameter of a function.
FILES = "the function returns its result; files are written by save, Report.save or predict_folder"
READ = "read the image with read_image(path, z=...), or the annotations with read_dataset"
LOADED = "load_model"
OPTIONS = "Model.with_options, or Model.predict"
JOBS = "predict_tiles"
ONE_RUN = "call it once per seed: set=['train.seed=1']"
# Reasons why a parameter of a function is no option of the command line.
ARRAYS = "names for arrays, which have none"

COMMAND_LINE_ONLY = {
    "predict_folder": {
        **dict.fromkeys(["diameter", "score", "min_area", "max_objects", "remove_border", "views"], OPTIONS),
        **dict.fromkeys(["smooth", "fill_holes", "expand", "pruned_to", "no_candidates"], OPTIONS),
        **dict.fromkeys(["z", "t", "series", "pixel_size"], "fields of a Reading"),
        **dict.fromkeys(["tile", "level", "roi", "tissue"], JOBS),
        "shard": "for several commands at the same time; workers and dask are for one",
        **dict.fromkeys(["device", "backend"], LOADED),
    },
    "predict_tiles": {
        **dict.fromkeys(["diameter", "score", "min_area", "max_objects", "remove_border", "views"], OPTIONS),
        **dict.fromkeys(["smooth", "fill_holes", "expand", "pruned_to"], OPTIONS),
        **dict.fromkeys(["z", "t", "series", "pixel_size", "level"], "open_image"),
        **dict.fromkeys(["sources", "split", "save", "fail_fast", "no_candidates", "stitch"], "for one image"),
        **dict.fromkeys(["device", "backend"], LOADED),
    },
    "Model.predict": {
        **dict.fromkeys(["tile", "roi", "tissue", "labels", "workers", "shard", "dask"], JOBS),
        **dict.fromkeys(["save", "out", "overwrite", "fail_fast"], FILES),
        **dict.fromkeys(["z", "t", "series", "pixel_size", "level", "split"], READ),
        **dict.fromkeys(["model", "device", "backend"], LOADED),
        **dict.fromkeys(["fuse", "weights"], "predict with each model, then fuse"),
        "ring": "measure(cells, image, ring=...)",
        "stitch": "join_planes",
        **dict.fromkeys(["smooth", "fill_holes", "expand"], "methods of Instances; Model.with_options"),
        "pruned_to": "Model.with_options",
        "no_candidates": "the result has none",
    },
    "fuse": {
        **dict.fromkeys(["save", "out", "overwrite"], FILES),
        **dict.fromkeys(["data", "split", "prefer", "format"], READ),
        "threshold": "compare with the scores of the result",
        "ignore_classes": "class_agnostic, and objects of one class",
        "device": LOADED,
    },
    "evaluate": {
        **dict.fromkeys(["pictures", "out", "overwrite"], FILES),
        **dict.fromkeys(["format", "prediction_format", "z", "t", "series"], READ),
        "views": OPTIONS,
        **dict.fromkeys(["device", "backend"], LOADED),
    },
    "measure": {
        **dict.fromkeys(["out", "overwrite"], FILES),
        **dict.fromkeys(["z", "t", "series", "prefer", "format"], READ),
    },
    "plan": {
        **dict.fromkeys(["out", "overwrite"], "PlannedRecipe.save"),
        **dict.fromkeys(["format", "z", "t", "series"], READ),
    },
    "train": {"repeat": ONE_RUN, **dict.fromkeys(["format", "z", "t", "series"], READ)},
    "tune": dict.fromkeys(["format", "z", "t", "series"], READ),
}
FOR_JOBS = ("tile", "roi", "tissue", "labels", "workers", "shard", "dask")
PYTHON_ONLY = {
    "predict_tiles": {"image": "the only one of the sources", "progress": "the command line shows it"},
    "predict_folder": {"reading": "z, t, series and pixel_size in one"},
    "evaluate": dict.fromkeys(["class_names", "image_ids"], ARRAYS),
    "measure": {"class_names": ARRAYS},
}
# The same thing, which is a path on the command line.
RENAMED = {"sources": "images", "data": "truth", "images": "image", "predictions": "cells"}

PAIRS = [
    ("predict_folder", PredictPlan, cw.predict_folder),
    ("predict_tiles", PredictPlan, cw.predict_tiles),
    ("Model.predict", PredictPlan, cw.Model.predict),
    ("fuse", FusePlan, cw.fuse),
    ("evaluate", EvaluatePlan, cw.evaluate),
    ("measure", MeasurePlan, cw.measure),
    ("plan", RecipePlan, cw.plan),
    ("train", TrainPlan, cw.train),
    ("tune", TunePlan, cw.tune),
]


@pytest.mark.parametrize(("name", "plan", "function"), PAIRS, ids=[name for name, _, _ in PAIRS])
def test_python_and_the_command_line_take_the_same_options(name: str, plan: type, function: Callable) -> None:
    parameters = inspect.signature(function).parameters.keys() - {"self"}
    options = {field.name for field in dataclasses.fields(plan)}
    options = {RENAMED[option] if RENAMED.get(option) in parameters else option for option in options}
    assert options - parameters == COMMAND_LINE_ONLY[name].keys()
    assert parameters - options == PYTHON_ONLY.get(name, {}).keys()


@pytest.mark.parametrize(("name", "plan", "function"), PAIRS, ids=[name for name, _, _ in PAIRS])
def test_defaults_are_the_same(name: str, plan: type, function: Callable) -> None:
    """None, False and empty lists all mean that nothing was chosen."""
    parameters = inspect.signature(function).parameters
    for field in dataclasses.fields(plan):
        if field.name not in parameters or field.default is dataclasses.MISSING or field.name == "out":
            continue
        own = parameters[field.name].default
        given = field.default[0] if field.name == "model" else field.default
        assert own == given or not (own or given), f"{name}: {field.name}"


def test_with_options_takes_what_predict_takes() -> None:
    options = inspect.signature(cw.Model.with_options).parameters.keys()
    assert inspect.signature(cw.Model.predict).parameters.keys() - options == {"images", "channel"}
    assert (
        set(COMMAND_LINE_ONLY["predict_folder"])
        - {"z", "t", "series", "pixel_size", "level", "device", "backend"}
        - set(FOR_JOBS)
        <= options
    )
