"""``cellwright predict | fuse | tune | evaluate | export``: what makes, judges and hands on results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cellwright.api.export import ExportPlan
from cellwright.cli.console import Common, Show
from cellwright.prediction.saves import SAVES

if TYPE_CHECKING:
    from cellwright.api.judge import Judgement

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


def tune(
    model: Path,
    /,
    *,
    data: Path,
    split: str = "val",
    metric: str = "accuracy@0.5",
    views: str | None = None,
    device: str = "auto",
    out: Path = Path("work/tuned"),
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Find score thresholds and smallest areas for each class, and calibrate scores, on a validation split.

    Parameters
    ----------
    model:
        nuclei, a model folder, or a run; it stays as it is.
    data:
        Dataset folder that holds the split.
    split:
        Split to tune on; do not report figures on it afterwards.
    metric:
        What to maximise, as a mean over images: accuracy@T or f1@T for T from 0.5 to 0.95, or kaggle_score.
    views:
        As for `predict`; the tuned model then looks in these views wherever it predicts.
    device:
        auto, cpu, cuda:N or mps.
    out:
        Model folder to write: a copy with thresholds and calibration, used by default wherever it is loaded.
    overwrite:
        Replace a model folder that exists at --out.
    """
    from cellwright.api import tuning

    show = common.show
    show.note(f"tunes {model} on split {split} of {data} for {metric}; writes {out}")
    if not common.dry_run:
        plan = tuning.TunePlan(model, data, out, split, metric, views, device, overwrite)
        done = tuning.run_plan(plan, screen=show)
        show.table(*done.table())
        show.result(f"tuned model: {out}", {"out": str(out)})


def evaluate(
    prediction: list[Path],
    /,
    *,
    data: Path,
    split: str | None = None,
    metrics: list[str] | None = None,
    pictures: int | Literal["all"] = 12,
    ignore_classes: Flag = False,
    device: str = "auto",
    out: Path | None = None,
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Judge masks against truth with the field's metrics; two predictions are compared.

    Parameters
    ----------
    prediction:
        A prediction folder, label images, a COCO results file, a Kaggle table or anything else that `data convert`
        reads, from any tool; or a model or run (which predicts first). Two give a paired comparison.
    data:
        The truth: a dataset folder, or any source that `data convert` reads.
    split:
        Only this split of the truth.
    metrics:
        Groups of metrics; left away, all.
    pictures:
        Draw the errors of so many images, the worst first; 0 draws none, "all" every one.
    ignore_classes:
        Judge as if all objects were of one class.
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
        pictures=pictures,
        ignore_classes=ignore_classes,
        device=device,
        overwrite=overwrite,
    )
    show.note(f"writes {plan.out}")
    if common.dry_run:
        return
    judged = judge.run_plan(plan, screen=show)
    _show_judgement(judged, show)
    show.result(f"everything: {plan.out / 'report.md'}", {"out": str(plan.out)})


def _show_judgement(judged: Judgement, show: Show) -> None:
    """Six figures, or those of two side by side; what to know about them."""
    if judged.comparison is None:
        (one,) = judged.verdicts
        found = one.limits.itertuples(index=False)
        rows = [(metric, value, _interval(low, high)) for metric, value, low, high in found]
        show.table(one.name, ("metric", "value", "95 % interval"), rows)
    else:
        names = [one.name for one in judged.verdicts]
        rows = [
            (metric, first, second, difference, _interval(low, high), p)
            for metric, first, second, difference, low, high, p in judged.comparison.itertuples(index=False)
        ]
        columns = ("metric", *names, "difference", "95 % interval", "p")
        show.table(f"{names[1]} against {names[0]}", columns, rows)
    notes = dict.fromkeys(note for one in judged.verdicts for note in one.report.notes)
    for note in notes:
        show.note(note)


def _interval(low: float, high: float) -> str:
    """``0.4120 to 0.5631``; a dash with fewer than two images."""
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def export(plan: ExportPlan, *, common: Common = PLAIN) -> None:
    """Show the paths of the files written."""
    from cellwright.api.export import run

    screen = common.screen(plan)
    if paths := run(plan, screen, dry_run=common.dry_run):
        screen.result("\n".join(map(str, paths)), {"out": [str(path) for path in paths]})
