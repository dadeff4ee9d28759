"""What a new machine with no data and no network can see: segmented images, and the whole job on drawn nuclei."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cellwright.api import judge, predict, training
from cellwright.api.outputs import claim_folder
from cellwright.core.files import write_png, write_text
from cellwright.core.progress import SILENT, Screen

if TYPE_CHECKING:
    from cellwright.evaluation.report import Report

MODEL = "nuclei"
RECIPE = "synthetic/demo"
MARKER = "DEMO"


def demo(out: Path, *, overwrite: bool = False, screen: Screen = SILENT) -> Path:
    """Segment a cell, coins (both shipped by scikit-image) and drawn nuclei with the model in the box, in seconds.

    Leaves ``out/images`` and ``out/predictions``; returns the latter. Raises `OutputError` for a demo that is finished.
    """
    from skimage import data

    from cellwright.data.synthetic import draw_field

    predictions = _claimed(out, overwrite)
    images = out / "images"
    images.mkdir(exist_ok=True)
    drawn, _ = draw_field(0, (512, 512), 220)
    for name, pixels in (("cell", data.cell()), ("coins", data.coins()), ("drawn", drawn.data)):
        write_png(images / f"{name}.png", pixels)
    predict.run_plan(predict.PredictPlan((images,), MODEL, predictions), screen)
    return predictions


def demo_training(out: Path, *, overwrite: bool = False, screen: Screen = SILENT) -> tuple[Report, Path]:
    """Draw a dataset, train ``synthetic/demo`` on it, evaluate, predict on fields never seen.

    Leaves ``out/data``, ``out/run``, ``out/evaluation``, ``out/predictions``. An interrupted demo goes on with its run.
    Returns the evaluation and the prediction folder. Raises `OutputError` for a demo that is finished.
    """
    from cellwright.data.formats import coco
    from cellwright.data.formats.contract import WriteOptions
    from cellwright.data.synthetic import write_demo_dataset

    predictions = _claimed(out, overwrite)
    drawn = write_demo_dataset(
        out / "data", splits=(("train", 12), ("val", 2), ("test", 2)), image_hw=(384, 384), n_objects=110
    )
    coco.write(drawn, out / "data", WriteOptions())
    run = out / "run"
    if not (run / "DONE").is_file():
        training.run_plan(training.TrainPlan(RECIPE, out / "data", run), screen)
    judged = judge.run_plan(
        judge.JudgePlan((run,), out / "data", out / "evaluation", split="val", overwrite=True), screen
    )
    plan = predict.PredictPlan((out / "data",), str(run), predictions, split="test")
    predict.run_plan(plan, screen)
    return judged.verdicts[0].report, predictions


def _claimed(out: Path, overwrite: bool) -> Path:
    """The prediction folder of a demo at ``out``, which is new, unfinished, or emptied."""
    predictions = out / "predictions"
    if overwrite or (predictions / "predictions.json").is_file() or not (out / MARKER).is_file():
        claim_folder(out, MARKER, overwrite=overwrite)
    write_text(out / MARKER, "made by: cellwright demo\n")
    return predictions
