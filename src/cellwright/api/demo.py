"""``demo``: shows what cellwright does, on a new machine without data or network access."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from cellwright.api import evaluate, predict
from cellwright.api import train as training
from cellwright.api.outputs import OutputFolder
from cellwright.core.files import write_png, write_text
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.training.run_folder import RunFolder

if TYPE_CHECKING:
    from cellwright.evaluation.report import Report

MODEL = "nuclei"
RECIPE = "synthetic/demo"
MARKER = "DEMO"


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
    names = "data, run, evaluation, predictions" if plan.train else "images, predictions"
    output = OutputFolder(plan.out, MARKER, overwrite=plan.overwrite)
    screen.note(f"will write {plan.out}/: {names}" + (" (trains for about two minutes)" if plan.train else ""))
    if dry_run:
        return None
    if plan.overwrite:
        output.remove()
    write_text(plan.out / MARKER, "made by: cellwright demo\n")
    return _train(plan.out, screen) if plan.train else _segment(plan.out, screen)


def _segment(out: Path, screen: ProgressReporter) -> Demo:
    """Segment a cell and coins (both from scikit-image) and synthetic nuclei with the bundled pretrained model."""
    from skimage import data

    from cellwright.data.synthetic import draw_field

    images = out / "images"
    images.mkdir(exist_ok=True)
    synthetic, _ = draw_field(0, (512, 512), 220)
    for name, pixels in (("cell", data.cell()), ("coins", data.coins()), ("synthetic", synthetic.data)):
        write_png(images / f"{name}.png", pixels)
    predictions = out / "predictions"
    predict.run(predict.PredictPlan((images,), model=(MODEL,), out=predictions), screen)
    return Demo(predictions)


def _train(out: Path, screen: ProgressReporter) -> Demo:
    """Generate a dataset, train ``synthetic/demo`` on it, evaluate, and predict on images not used in training."""
    from cellwright.data.formats import FORMATS, WriteOptions
    from cellwright.data.synthetic import write_demo_dataset

    dataset = write_demo_dataset(
        out / "data", splits=(("train", 12), ("val", 2), ("test", 2)), image_hw=(384, 384), n_objects=110
    )
    FORMATS["coco"].write(dataset, out / "data", WriteOptions())
    folder = out / "run"
    if not RunFolder(folder).done.is_file():
        training.run(training.TrainPlan(RECIPE, data=out / "data", out=folder), screen)
    plan = evaluate.EvaluatePlan((folder,), data=out / "data", split="val", out=out / "evaluation", overwrite=True)
    result = evaluate.run(plan, screen)
    assert result is not None  # not a dry run
    predictions = out / "predictions"
    test = predict.PredictPlan((out / "data",), model=(str(folder),), out=predictions, split="test")
    predict.run(test, screen)
    return Demo(predictions, result.evaluations[0].report)
