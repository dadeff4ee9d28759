"""``cellwright predict | fuse | tune | evaluate | export``: what makes, judges and hands on results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cellwright.api.evaluate import EvaluatePlan
from cellwright.api.export import ExportPlan
from cellwright.api.tune import TunePlan
from cellwright.cli.console import Common
from cellwright.prediction.saves import SAVES

PLAIN = Common()
Flag = Annotated[bool, Parameter(negative="")]


def predict(
    source: list[Path],
    /,
    *,
    model: tuple[str, ...] = ("nuclei",),
    fuse: str = "wbf",
    weights: str | None = None,
    split: str | None = None,
    channel: str | None = None,
    z: int | None = None,
    diameter: float | None = None,
    views: str | None = None,
    score: float | None = None,
    min_area: int | None = None,
    max_objects: int | None = None,
    save: tuple[str, ...] = SAVES,
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
        nuclei (finds nuclei only), classical, a model folder, or a run; repeated, what several find is fused.
    fuse:
        How several models are fused, at IoU .5: wbf, nms, soft_nms, mask_nms or mask_vote.
    weights:
        How much each of several models counts, such as 1,2; left away, all alike.
    split:
        Only this split of a dataset.
    channel:
        Name or number of the channel to use, where there are several that are not RGB.
    z:
        Plane of a stack, counted from 0.
    diameter:
        Median diameter of the image's objects, pixels, for models that go by it; left away, estimated for each image.
    views:
        Look at each image several times and average: mirror, flips or turns, and sizes before them, as factors
        (0.8,1,1.25:flips) or short sides (400,600,800,max1600:mirror).
    score:
        Leave out objects that score less, 0 to 1; left away, the model's own threshold.
    min_area:
        Leave out smaller objects, pixels.
    max_objects:
        Keep at most so many objects an image, best first; left away, all that the model finds.
    save:
        What to leave for each image: masks (label image), overlay, geojson (QuPath), rois (ImageJ), measurements (CSV).
    device:
        auto, cpu, cuda:N or mps.
    fail_fast:
        Stop at the first image that fails instead of noting it in failures.csv.
    out:
        Folder to write.
    overwrite:
        Begin again where the folder holds predictions.
    """
    from cellwright.api import fuse as fusing
    from cellwright.api import predict as predicting

    show = common.show
    plan = predicting.PredictPlan(
        sources=tuple(source),
        model=model[0],
        others=model[1:],
        fusion=fusing.FusionOptions(
            fuse,  # type: ignore[arg-type] - checked there
            weights=None if weights is None else fusing.parse_weights(weights),
        ),
        out=out,
        split=split,
        channel=channel,
        z=z,
        diameter_px=diameter,
        views=views,
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


def fuse(
    prediction: list[Path],
    /,
    *,
    method: str = "wbf",
    iou: float = 0.5,
    score: float = 0.05,
    weights: str | None = None,
    class_agnostic: Flag = False,
    decay: str = "gaussian",
    sigma: float = 0.5,
    over_smaller: Flag = False,
    threshold: float | None = None,
    resolve_overlaps: Flag = False,
    data: Path | None = None,
    split: str | None = None,
    ignore_classes: Flag = False,
    save: tuple[str, ...] = SAVES,
    device: str = "auto",
    out: Path = Path("work/fused"),
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Make one result of several on the same images, from any tools, or suppress what lies double in one.

    Parameters
    ----------
    prediction:
        Prediction folders, label images, COCO results files, Kaggle tables or anything else that `evaluate` takes, or
        models, which predict first.
    method:
        wbf (weighted boxes fusion), nms or soft_nms by boxes, mask_nms or mask_vote by masks.
    iou:
        Overlap above which two objects are taken for one.
    score:
        Leave out objects that score less, before weights.
    weights:
        How much each prediction counts, such as 1,2; left away, all alike.
    class_agnostic:
        Let objects of different classes compete too.
    decay:
        Of soft_nms: linear (above --iou) or gaussian (of width --sigma).
    sigma:
        Of soft_nms with gaussian decay.
    over_smaller:
        Of mask_nms: go by the intersection over the smaller mask, so that fragments inside an object go too.
    threshold:
        Fused objects that score less stay in predictions.json only; left away, the weighted mean of the predictions'
        own thresholds.
    resolve_overlaps:
        Give every shared pixel to the object that scores higher.
    data:
        The images: a dataset or a folder. For lists that do not name theirs, and to fuse on part of them.
    split:
        Only this split of --data.
    ignore_classes:
        Fuse as if all objects were of one class.
    save:
        What to leave for each image: masks (label image), overlay, geojson (QuPath), rois (ImageJ), measurements (CSV).
    device:
        auto, cpu, cuda:N or mps, where a model predicts first.
    out:
        Folder to write: an ordinary prediction folder.
    overwrite:
        Begin again where the folder holds predictions.
    """
    from cellwright.api import fuse as fusing

    show = common.show
    plan = fusing.FusePlan(
        members=fusing.MemberPlan(tuple(prediction), data, split, ignore_classes, device),
        out=out,
        options=fusing.FusionOptions(
            method=method,  # type: ignore[arg-type] - checked there
            iou=iou,
            score=score,
            weights=None if weights is None else fusing.parse_weights(weights),
            class_agnostic=class_agnostic,
            decay=decay,  # type: ignore[arg-type]
            sigma=sigma,
            over_smaller=over_smaller,
        ),
        threshold=threshold,
        resolve_overlaps=resolve_overlaps,
        save=save,
        overwrite=overwrite,
    )
    show.note(fusing.describe(plan))
    if not common.dry_run:
        done = fusing.run_plan(plan, screen=show)
        show.result(done.text, {"out": str(out), "images": done.n_images})


def tune(plan: TunePlan, *, common: Common = PLAIN) -> None:
    """Show the thresholds of every class."""
    from cellwright.api.tune import run

    screen = common.screen(plan)
    if result := run(plan, screen, dry_run=common.dry_run):
        screen.table(*result.table())
        screen.result(f"tuned model: {result.folder}", {"out": str(result.folder)})


def evaluate(plan: EvaluatePlan, *, common: Common = PLAIN) -> None:
    """Show the headline metrics, or those of two predictions side by side, and the notes."""
    from cellwright.api.evaluate import MARKER, run

    screen = common.screen(plan)
    result = run(plan, screen, dry_run=common.dry_run)
    if result is None:
        return
    if result.comparison is None:
        (evaluation,) = result.evaluations
        rows = [
            (metric, value, _interval(low, high))
            for metric, value, low, high in evaluation.intervals.itertuples(index=False)
        ]
        screen.table(evaluation.name, ("metric", "value", "95 % interval"), rows)
    else:
        names = [evaluation.name for evaluation in result.evaluations]
        rows = [
            (metric, first, second, difference, _interval(low, high), p)
            for metric, first, second, difference, low, high, p in result.comparison.itertuples(index=False)
        ]
        columns = ("metric", *names, "difference", "95 % interval", "p")
        screen.table(f"{names[1]} compared with {names[0]}", columns, rows)
    for note in dict.fromkeys(note for evaluation in result.evaluations for note in evaluation.report.notes):
        screen.note(note)
    screen.result(f"report: {plan.out / MARKER}", {"out": str(plan.out)})


def _interval(low: float, high: float) -> str:
    """``0.4120 to 0.5631``; a dash with fewer than two images."""
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def export(plan: ExportPlan, *, common: Common = PLAIN) -> None:
    """Show the paths of the files written."""
    from cellwright.api.export import run

    screen = common.screen(plan)
    if paths := run(plan, screen, dry_run=common.dry_run):
        screen.result("\n".join(map(str, paths)), {"out": [str(path) for path in paths]})
