"""``demo``: shows what cellwright does, on a new machine without data or network access."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from cellwright.api import evaluate, predict
from cellwright.api import train as training
from cellwright.api.outputs import FolderOutput, earlier_output
from cellwright.core.files import write_png
from cellwright.core.progress import SILENT, ProgressReporter

if TYPE_CHECKING:
    from cellwright.evaluation.report import Report

MODEL = "nuclei"
RECIPE = "synthetic/demo"
MARKER = "DEMO"  # of earlier versions
IMAGES = ("cell", "coins", "synthetic")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Segment three example images, or train and evaluate a small model on synthetic images."""

    train: bool = False
    """Generate a synthetic dataset, train a small model on it for about two minutes, evaluate it and predict."""
    out: Path = Path("work/demo")
    """Folder to write: images and predictions; with training, also the dataset, the run and the evaluation."""
    overwrite: bool = False
    """Start from scratch if the folder contains a finished demo."""


@dataclass(frozen=True, eq=False)
class Demo:
    """A finished demo: its prediction folder, and with training the evaluation on the validation images."""

    predictions: Path
    report: Report | None = None


def run(plan: DemoPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Demo | None:
    """Write the demo; None after a dry run. An interrupted demo resumes, and a finished one is kept."""
    # Names that earlier versions of the demo wrote.
    earlier = earlier_output(
        "demo", MARKER, *(f"images/{name}.png" for name in IMAGES), "data/images/field_0??.png", "data/dataset.*"
    )
    names = "data, run, evaluation, predictions" if plan.train else "images, predictions"
    output = FolderOutput(plan.out, "demo", inputs=(), overwrite=plan.overwrite, earlier=earlier)
    request = {"options": {"train": plan.train}}
    is_there = output.answers(request)
    screen.note(f"will write {plan.out}/: {names}" + (" (trains for about two minutes)" if plan.train else ""))
    if dry_run:
        return None
    write = _write_data if plan.train else _write_images
    if not is_there:
        with output.write(request) as folder:
            write(folder)
    return _train(plan, screen) if plan.train else _segment(plan, screen)


def _write_images(folder: Path) -> None:
    """Write a cell and coins (both from scikit-image) and synthetic nuclei."""
    from skimage import data

    from cellwright.data.synthetic import draw_field

    synthetic, _ = draw_field(0, (512, 512), 220)
    for name, pixels in zip(IMAGES, (data.cell(), data.coins(), synthetic.data), strict=True):
        write_png(folder / "images" / f"{name}.png", pixels)


def _segment(plan: DemoPlan, screen: ProgressReporter) -> Demo:
    """Segment the images with the bundled pretrained model."""
    images, predictions = plan.out / "images", plan.out / "predictions"
    request = predict.PredictPlan((images,), model=(MODEL,), out=predictions, overwrite=plan.overwrite)
    predict.run(request, screen)
    return Demo(predictions)


def _write_data(folder: Path) -> None:
    """Write a synthetic dataset."""
    from cellwright.data.formats import FORMATS, WriteOptions
    from cellwright.data.synthetic import write_demo_dataset

    splits = (("train", 12), ("val", 2), ("test", 2))
    dataset = write_demo_dataset(folder / "data", splits=splits, image_hw=(384, 384), n_objects=110)
    FORMATS["coco"].write(dataset, folder / "data", WriteOptions())


def _train(plan: DemoPlan, screen: ProgressReporter) -> Demo:
    """Train ``synthetic/demo`` on the dataset, evaluate, and predict on images not used in training."""
    data, run_folder, predictions = plan.out / "data", plan.out / "run", plan.out / "predictions"
    training.run(training.TrainPlan(RECIPE, data=data, out=run_folder, overwrite=plan.overwrite), screen)
    evaluation = plan.out / "evaluation"
    to_evaluate = evaluate.EvaluatePlan((run_folder,), data=data, split="val", out=evaluation, overwrite=True)
    result = evaluate.run(to_evaluate, screen)
    assert result is not None  # not a dry run
    model = (str(run_folder),)
    test = predict.PredictPlan((data,), model=model, out=predictions, split="test", overwrite=plan.overwrite)
    predict.run(test, screen)
    return Demo(predictions, result.evaluations[0].report)
