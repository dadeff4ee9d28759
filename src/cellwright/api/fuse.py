"""Fusing as a job: predictions of any origin on the same images in, one prediction folder out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import yaml

from cellwright.api.members import MemberPlan, Members, mean_threshold, read_members
from cellwright.core.dataset import Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.prediction.fusion import FusionOptions, Method
from cellwright.prediction.fusion import fuse as fuse_image
from cellwright.prediction.saves import SAVES

if TYPE_CHECKING:
    from cellwright.prediction.writer import Job


@dataclass(frozen=True)
class FusePlan:
    """What is fused how, and where it goes.

    threshold: fused objects that score less are candidates only; None takes the weighted mean of the members' own.
    resolve_overlaps: every shared pixel goes to the object that scores higher. save: what is left for each image.
    """

    members: MemberPlan
    out: Path
    options: FusionOptions = field(default_factory=FusionOptions)
    threshold: float | None = None
    resolve_overlaps: bool = False
    save: tuple[str, ...] = SAVES
    overwrite: bool = False


@dataclass(frozen=True)
class Fused:
    """What a job did, and one line about it."""

    n_images: int
    n_objects: int
    text: str


@overload
def fuse(
    members: Sequence[Instances],
    *,
    method: Method = "wbf",
    iou: float = 0.5,
    score: float = 0.05,
    weights: Sequence[float] | None = None,
    class_agnostic: bool = False,
) -> Instances: ...
@overload
def fuse(
    members: Sequence[Sequence[Instances]],
    *,
    method: Method = "wbf",
    iou: float = 0.5,
    score: float = 0.05,
    weights: Sequence[float] | None = None,
    class_agnostic: bool = False,
) -> list[Instances]: ...
def fuse(members, *, method: Method = "wbf", iou=0.5, score=0.05, weights=None, class_agnostic=False):
    """What several members found on one image, as one result, best first; with a list for each member, image by image.

    method: ``wbf`` (weighted boxes fusion, masks averaged alike), ``nms``, ``soft_nms``, ``mask_nms``, ``mask_vote``.
    iou: above it two objects are taken for one. score: objects that score less are left out first. weights: one a
    member, None for all alike. Members of different families need calibrated scores: see ``docs/guide.md``.

    Raises `UsageError` for an unknown method, a number out of range, or another number of weights or images,
    `InputError` for images of different sizes.
    """
    options = FusionOptions(
        method=method,
        iou=iou,
        score=score,
        weights=None if weights is None else tuple(weights),
        class_agnostic=class_agnostic,
    )
    if all(isinstance(one, Instances) for one in members):
        return fuse_image(members, options)
    counts = [len(one) for one in members]
    if len(set(counts)) > 1:
        got = f"{', '.join(map(str, counts))} images"
        raise UsageError("members have results for different numbers of images", got=got, expected="one an image each")
    return [fuse_image(of_image, options) for of_image in zip(*members, strict=True)]


def run_plan(plan: FusePlan, screen: ProgressReporter = SILENT) -> Fused:
    """Carry out a plan; the same plan goes on where it stopped.

    Raises `OutputError` for a finished folder, and what `read_members` and `FusionOptions` raise.
    """
    from cellwright.api.predict import makers
    from cellwright.prediction.options import select
    from cellwright.prediction.writer import PredictionFolder

    weights = plan.options.weights_of(len(plan.members.predictions))
    members = read_members(plan.members, screen)
    for note in members.notes:
        screen.note(note)
    threshold = mean_threshold(members.thresholds, weights) if plan.threshold is None else plan.threshold
    job = _job(plan, members, threshold)
    folder = PredictionFolder(plan.out, job, makers(members.class_names), overwrite=plan.overwrite)
    unread = []
    for index, found in enumerate(screen.track(members.found, "fusing", len(members.found))):
        if folder.is_done(index):
            continue
        fused = fuse_image([one.read_instances() for one in found], plan.options)
        image, was_read = _picture(members.images[index])
        unread += [] if was_read else [members.images[index].id]
        folder.write(index, image, select(fused, job.options), blank=not was_read)
    rows = folder.finish()
    if unread:
        screen.note(f"{len(unread)} image(s) are not there or cannot be read: overlays on black, no intensities")
    n_objects = sum(row["objects"] for row in rows)
    text = f"{n_objects} objects in {len(rows)} images, fused from {len(members.names)} predictions: {plan.out}"
    return Fused(len(rows), n_objects, text)


def parse_weights(text: str) -> tuple[float, ...]:
    """``"1,2"`` as numbers; `UsageError` where it holds something else."""
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError as error:
        expected = "numbers with commas between them, one for each prediction, such as 1,2"
        raise UsageError("these are no weights", got=repr(text), expected=expected) from error


def describe(plan: FusePlan) -> str:
    """What will be read and written."""
    names = ", ".join(map(str, plan.members.predictions))
    files = ", ".join(("predictions.json", "summary.csv", *plan.save))
    return f"fuses {names} by {plan.options.method}; writes {plan.out}/ ({files})"


def _job(plan: FusePlan, members: Members, threshold: float | tuple[float, ...]) -> Job:
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.sources import Source
    from cellwright.prediction.writer import Job

    settings = {"members": list(members.names), **plan.options.as_values(len(members.names))}
    sources = [
        Source(one.id, one.image_path or Path("no image", one.id), one.image_id, one.group, one.split)
        for one in members.images
    ]
    return Job(
        sources=tuple(sources),
        class_names=members.class_names,
        recipe_yaml=yaml.safe_dump({"fuse": settings}, sort_keys=False),
        model=hashlib.sha256("\n".join(map(_state, plan.members.predictions)).encode()).hexdigest(),
        options=PredictOptions(threshold, resolve_overlaps=plan.resolve_overlaps),
        reading={},
        save=plan.save,  # type: ignore[arg-type] - checked by Job
        info={"fused": settings} | ({} if members.tuned_on is None else {"tuned_on": members.tuned_on}),
    )


def _picture(sample: Sample) -> tuple[Image, bool]:
    """The image to draw on, and whether it could be read; black where it is not there."""
    from cellwright.data.images.read import read_image

    black = Image.from_array(np.zeros(sample.image_hw, np.uint8), pixel_size_um=sample.pixel_size_um)
    if sample.image_path is None:
        return black, False
    try:
        image = read_image(sample.image_path)
    except (InputError, UsageError):
        return black, False
    return (image, True) if image.image_hw == tuple(sample.image_hw) else (black, False)


def _state(path: Path) -> str:
    """What tells a member from another one at the same place: its files, their sizes and times."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    # An index is made beside a COCO file when it is read.
    states = [(one.as_posix(), one.stat()) for one in files if one.is_file() and one.suffix != ".index"]
    return repr([str(path), *((name, state.st_size, state.st_mtime_ns) for name, state in states)])
