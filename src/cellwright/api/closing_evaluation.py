"""The evaluation at the end of a training: the best model, and the one it started from, on the validation images.

It is in the folder ``validation`` of a run, with the files of an evaluation, and those of a comparison where training
started from a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellwright.api.models import Model, load_model
from cellwright.core.claim import remove_ours
from cellwright.core.errors import CellwrightError
from cellwright.core.files import write_text
from cellwright.core.progress import ProgressReporter
from cellwright.core.table import frame_csv
from cellwright.training.run_output import files_of

if TYPE_CHECKING:
    import torch

    from cellwright.core.dataset import Dataset
    from cellwright.evaluation.pairing import PairedImages
    from cellwright.evaluation.report import Report
    from cellwright.training.run_folder import RunFolder

NAMES = ("before", "after")
_PICTURES = 4  # of images with errors, and of images that differ


def write_validation(
    run: RunFolder,
    truth: Dataset,
    *,
    step: int,
    start: str | None,
    metrics: tuple[str, ...],
    device: torch.device,
    screen: ProgressReporter,
) -> None:
    """Evaluate the best model of a run and write the folder.

    truth: the validation images, which record how they are read. step: of the best model. start: the model that
    training started from, to compare with; None if there is none. metrics: to compute.
    """
    from cellwright.evaluation.bootstrap import compare, intervals
    from cellwright.evaluation.report import write_report
    from cellwright.report.change_picture import write_changes
    from cellwright.report.error_picture import write_error_pictures

    folder = run.validation
    images, report = _evaluated(load_model(run.root, device=str(device)), truth, metrics, screen)
    earlier = None if start is None else _evaluated_before(start, truth, metrics, device, screen)
    for name in files_of(run):
        if name.startswith(f"{folder.name}/"):
            remove_ours(run.root, name)
    write_error_pictures(images, report, folder / "errors", _PICTURES, screen)
    about: dict[str, object] = {"step": step}
    if earlier is not None:
        warnings = [note for note in earlier[1].notes if note.startswith("warning: ") and note not in report.notes]
        about["warnings_before"] = [note.replace("the model", "the model before", 1) for note in warnings]
    write_report(report, folder, limits=intervals(report), made_by=about)
    if earlier is not None:
        before, report_before = earlier
        table = compare(report_before, report).rename(columns=dict(zip(("first", "second"), NAMES, strict=True)))
        write_changes([before, images], [report_before, report], NAMES, folder, _PICTURES)
        write_text(folder / "comparison.csv", frame_csv(table))


def _evaluated_before(
    start: str, truth: Dataset, metrics: tuple[str, ...], device: torch.device, screen: ProgressReporter
) -> tuple[PairedImages, Report] | None:
    """The evaluation of the model that training started from; None if it cannot predict on these images."""
    try:
        return _evaluated(load_model(start, device=str(device)), truth, metrics, screen)
    except CellwrightError as error:  # such as other classes, or channels
        screen.note(f"no comparison with the model that training started from: {error.problem}")
        return None


def _evaluated(
    model: Model, truth: Dataset, metrics: tuple[str, ...], screen: ProgressReporter
) -> tuple[PairedImages, Report]:
    from cellwright.evaluation.evaluate import evaluate_images
    from cellwright.evaluation.pairing import pair_datasets
    from cellwright.prediction.evaluate import predict_dataset

    predicted = predict_dataset(model.filtered, truth, model.class_names, seen=model.seen, track=screen.track)
    images = pair_datasets(model.name, predicted, truth)
    return images, evaluate_images(images, metrics, track=screen.track)
