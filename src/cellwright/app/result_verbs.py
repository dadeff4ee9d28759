"""``cellwright predict | evaluate | export``: what makes, judges and hands on results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cellwright.app.console import Common

PLAIN = Common()
Flag = Annotated[bool, Parameter(negative="")]


def predict(
    source: list[Path],
    /,
    *,
    model: str,
    split: str | None = None,
    channel: str | None = None,
    z: int | None = None,
    score: float | None = None,
    min_area: int | None = None,
    max_objects: int | None = None,
    save: tuple[str, ...] = ("masks", "overlay"),
    device: str = "auto",
    fail_fast: Flag = False,
    out: Path = Path("work/predictions"),
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> int:
    """Find the objects of images; the same command goes on where an interrupted one stopped.

    Parameters
    ----------
    source:
        Images, folders of images, or a dataset.
    model:
        classical, a model folder, or a run.
    split:
        Only this split of a dataset.
    channel:
        Name or number of the channel to use, where there are several that are not RGB.
    z:
        Plane of a stack, counted from 0.
    score:
        Leave out objects that score less, 0 to 1; left away, the model's own threshold.
    min_area:
        Leave out smaller objects, pixels.
    max_objects:
        Keep at most so many objects an image, best first; left away, all that the model finds.
    save:
        What to leave for each image: masks, overlay.
    device:
        auto, cpu, cuda:N or mps.
    fail_fast:
        Stop at the first image that fails instead of noting it in failures.csv.
    out:
        Folder to write.
    overwrite:
        Begin again where the folder holds predictions.
    """
    from cellwright.api import predicting

    show = common.show
    plan = predicting.PredictPlan(
        sources=tuple(source),
        model=model,
        out=out,
        split=split,
        channel=channel,
        z=z,
        score=score,
        min_area_px=min_area,
        max_objects=max_objects,
        save=save,
        device=device,
        fail_fast=fail_fast,
        overwrite=overwrite,
    )
    if common.dry_run:
        show.note(predicting.describe(plan))
        return 0
    done = predicting.run_plan(plan, screen=show)
    show.result(done.text, {"out": str(out), "images": done.n_images, "failed": done.n_failed})
    return 3 if done.n_failed else 0


def evaluate(
    prediction: list[Path],
    /,
    *,
    data: Path,
    split: str | None = None,
    metrics: list[str] | None = None,
    device: str = "auto",
    out: Path | None = None,
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Judge masks against truth with the field's metrics.

    Parameters
    ----------
    prediction:
        A prediction folder, a dataset, a COCO results file, or a model or run (which predicts first).
    data:
        The truth: a dataset folder, or any source that `data convert` reads.
    split:
        Only this split of the truth.
    metrics:
        Groups of metrics; left away, all.
    device:
        auto, cpu, cuda:N or mps, where a model predicts first.
    out:
        Folder to write; left away, work/evaluation.
    overwrite:
        Replace an evaluation that exists.
    """
    from cellwright.api import judge

    show = common.show
    plan = judge.JudgePlan(
        predictions=tuple(prediction),
        data=data,
        out=out or Path("work/evaluation"),
        split=split,
        metrics=tuple(metrics or ()) or None,
        device=device,
        overwrite=overwrite,
    )
    show.note(f"writes {plan.out}")
    if common.dry_run:
        return
    report = judge.run_plan(plan, screen=show)
    show.table(str(prediction[0]), ("metric", "value"), report.headline())
    for note in report.notes:
        show.note(note)
    show.result(f"everything: {plan.out / 'report.md'}", {"out": str(plan.out)})


def export(
    prediction: Path,
    /,
    *,
    to: str,
    image_ids: Path | None = None,
    out: Path,
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Write predictions in another format, for a submission or another tool.

    Parameters
    ----------
    prediction:
        A prediction folder, or anything that `data convert` reads.
    to:
        Format, such as coco_results.
    image_ids:
        JSON list of file_name, id, height, width that fixes the images of a submission.
    out:
        File or folder to write; .zip packs a submission.
    overwrite:
        Replace what exists.
    """
    from cellwright.api import results

    show = common.show
    show.note(f"writes {out}")
    if not common.dry_run:
        paths = results.export(prediction, to=to, image_ids=image_ids, out=out, overwrite=overwrite, track=show.track)
        show.result("\n".join(map(str, paths)), {"out": [str(path) for path in paths]})


VERBS = {"predict": predict, "evaluate": evaluate, "export": export}
