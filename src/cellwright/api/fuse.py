"""``fuse``: several predictions of the same images, from any tools, fused into one prediction folder (ensemble)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, overload

import numpy as np
import yaml
from cyclopts import Group, Parameter

from cellwright.api.inputs import ObjectsLike, as_instances, is_list
from cellwright.api.models import Model, joined_seen, load_model
from cellwright.api.paths import LIST_FORMATS, HowToRead, content_of, is_model, read_objects, short_names
from cellwright.api.predict import files_written, pictures
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.events import plain
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.scores import ScoreThreshold
from cellwright.core.text import count
from cellwright.core.versions import versions
from cellwright.data.formats.contract import DEFAULT_CLASS, Prefer
from cellwright.data.formats.predictions import SEEN, images_in_conflict
from cellwright.data.images.reading import Reading
from cellwright.data.merge import class_advice
from cellwright.evaluation.pairing import partners, score_threshold_of, shown_ids, with_class_names, without_classes
from cellwright.prediction.folder import FolderReport, PredictionFolder
from cellwright.prediction.fusion import Decay, FusionOptions, Method, mean_threshold
from cellwright.prediction.fusion import fuse as fuse_image
from cellwright.prediction.job import MADE_BY, SAVES, Job, Save
from cellwright.prediction.options import PredictOptions, select
from cellwright.prediction.record import Prediction
from cellwright.prediction.sources import Source, sources_of_dataset

# Formats that name a class only if an object has it, and formats without class names.
BY_OBJECTS = ("rle_csv", "xml_outlines", "imagej_roi", "geojson")
NAMELESS = ("label_images", "cellpose", "mask_folder", "rle_csv")
MODEL = "model"  # the "format" in the info of a member that is a model
METHODS = Group("Details of the methods", sort_key=1)
INPUTS = Group("Which images and classes", sort_key=2)


@Parameter(name="*")
@dataclass(frozen=True)
class FusePlan:
    """Fuse several predictions of the same images (ensemble), or remove duplicates."""

    predictions: tuple[Path, ...]
    """Prediction folders, label images, COCO results files, Kaggle tables or anything else that `evaluate` takes, or
    models, which predict first."""
    _: KW_ONLY
    method: Method = "wbf"
    """wbf is Weighted Boxes Fusion; nms and soft_nms compare boxes, mask_nms and mask_vote compare masks."""
    iou: float = 0.5
    """Overlap above which two objects are treated as one."""
    score: float = 0.05
    """Omit objects with a lower score, before weights are applied."""
    weights: tuple[float, ...] | None = None
    """One weight per prediction (default: all equal)."""
    threshold: float | None = None
    """Fused objects with a lower score appear only in predictions.json (default: weighted mean of the thresholds)."""
    resolve_overlaps: bool = False
    """Assign each shared pixel to the object with the higher score."""
    save: tuple[Save, ...] = SAVES
    """Files per image: masks (label image), overlay (picture), geojson (QuPath), rois (ImageJ), measurements (CSV)."""
    out: Path = Path("work/fused")
    """Folder to write: an ordinary prediction folder."""
    overwrite: bool = False
    """Replace predictions that exist in the folder."""
    class_agnostic: Annotated[bool, Parameter(group=METHODS)] = False
    """Let objects of different classes compete too."""
    decay: Annotated[Decay, Parameter(group=METHODS)] = "gaussian"
    """For soft_nms: how scores are lowered, linear (above `iou`) or gaussian (of width `sigma`)."""
    sigma: Annotated[float, Parameter(group=METHODS)] = 0.5
    """For soft_nms: width of the gaussian decay."""
    over_smaller: Annotated[bool, Parameter(group=METHODS)] = False
    """For mask_nms: use the intersection over the smaller mask, which also removes fragments inside an object."""
    data: Annotated[Path | None, Parameter(group=INPUTS)] = None
    """Dataset or folder with the images: for predictions that do not name theirs, or to fuse only these images."""
    split: Annotated[str | None, Parameter(group=INPUTS)] = None
    """Only this split of `data`."""
    format: Annotated[str | None, Parameter(group=INPUTS)] = None
    """Format of the predictions; detected by default."""
    prefer: Annotated[Prefer | None, Parameter(group=INPUTS)] = None
    """Which file of an image to read if several in a prediction folder were edited differently."""
    ignore_classes: Annotated[bool, Parameter(group=INPUTS)] = False
    """Treat all objects as one class."""
    device: Annotated[str, Parameter(group=INPUTS)] = "auto"
    """auto, cpu, cuda:N or mps, for models."""

    @property
    def options(self) -> FusionOptions:
        """How the objects of an image are fused. Raises `UsageError` for a value out of range."""
        return FusionOptions(
            method=self.method,
            iou=self.iou,
            score=self.score,
            weights=self.weights,
            class_agnostic=self.class_agnostic,
            decay=self.decay,
            sigma=self.sigma,
            over_smaller=self.over_smaller,
        )


def run(plan: FusePlan, reporter: ProgressReporter = SILENT, *, dry_run: bool = False) -> FolderReport | None:
    """Check the request, fuse, and write the prediction folder; None after a dry run. The same plan resumes.

    Raises `OutputError` if the folder cannot be written, `UsageError` for an option out of range, different classes, or
    predictions that do not name their images, and `InputError` for different images.
    """
    weights = plan.options.weights_of(len(plan.predictions))
    members = read_members(plan, reporter)
    threshold = mean_threshold(members.thresholds, weights) if plan.threshold is None else plan.threshold
    job = _job(plan, members, threshold)
    folder = PredictionFolder(
        plan.out,
        job,
        pictures(members.class_names),
        overwrite=plan.overwrite,
        verb="fuse",
        inputs=[path for path in plan.predictions if path.exists()],
    )
    if (done := folder.describe()) is not None:
        reporter.note(done)
    if folder.is_complete:
        return None if dry_run else folder.report()
    images = count(len(members.images), "image")
    what = f"{count(len(members.names), 'prediction')} of {images}, fused by {plan.method}"
    reporter.note(f"{what}: will write {files_written(plan.out, plan.save)}")
    for note in members.notes:
        reporter.note(note)
    if dry_run:
        return None
    folder.start()
    n_missing = 0
    try:
        left = folder.left
        for index in reporter.track(left, "fusing", len(left)):
            try:
                instances = [sample.read_instances() for sample in members.samples[index]]
            except InputError as error:  # such as two files of one image that were edited differently
                folder.fail(index, error)
                continue
            image, is_blank = _image_to_draw_on(members.images[index])
            n_missing += is_blank
            fused = select(Prediction.of(fuse_image(instances, plan.options)), job.options)
            folder.write(index, image, fused, blank=is_blank)
        report = folder.finish()
    finally:
        folder.close()
    if n_missing:
        reporter.note(
            f"{count(n_missing, 'image')} cannot be read: overlays are black, and no intensities are measured"
        )
    return report


@overload
def fuse(
    predictions: Sequence[ObjectsLike],
    *,
    method: Method = "wbf",
    iou: float = 0.5,
    score: float = 0.05,
    weights: Sequence[float] | None = None,
    class_agnostic: bool = False,
    decay: Decay = "gaussian",
    sigma: float = 0.5,
    over_smaller: bool = False,
    resolve_overlaps: bool = False,
) -> Instances: ...
@overload
def fuse(
    predictions: Sequence[Sequence[ObjectsLike]],
    *,
    method: Method = "wbf",
    iou: float = 0.5,
    score: float = 0.05,
    weights: Sequence[float] | None = None,
    class_agnostic: bool = False,
    decay: Decay = "gaussian",
    sigma: float = 0.5,
    over_smaller: bool = False,
    resolve_overlaps: bool = False,
) -> list[Instances]: ...
def fuse(  # noqa: PLR0913 - the options of the command
    predictions,
    *,
    method: Method = "wbf",
    iou=0.5,
    score=0.05,
    weights=None,
    class_agnostic=False,
    decay: Decay = "gaussian",
    sigma=0.5,
    over_smaller=False,
    resolve_overlaps=False,
):
    """Fuse several predictions of the same image, or of the same images (ensemble).

    Args:
        predictions: one entry per member, at least one. For one image, each is `Instances`, a label array (H, W) of
            integers with 0 as background, or the path of a label image. For several images, each is a list of these,
            one per image in the same order.
        method: ``wbf`` (Weighted Boxes Fusion; masks are averaged likewise), ``nms``, ``soft_nms``, ``mask_nms`` or
            ``mask_vote``.
        iou: overlap above which two objects are treated as one, 0 to 1.
        score: objects with a lower score are omitted first, 0 to 1. Objects without scores count with score 1.
        weights: one per member, above 0; None: all equal.
        class_agnostic: objects of different classes compete too.
        decay, sigma: for ``soft_nms``: how scores are lowered, "linear" (above ``iou``) or "gaussian" of width
            ``sigma``.
        over_smaller: for ``mask_nms``: use the intersection over the smaller mask, which also removes fragments inside
            an object.
        resolve_overlaps: assign each shared pixel to the object with the higher score.

    Members of different model families need calibrated scores: see ``docs/guide.md``.

    Returns:
        `Instances`, best first, ids 1..N; for several images a list of them. An empty result is valid.

    Raises:
        UsageError: an unknown method, a value out of range, or different numbers of weights, members or images.
        InputError: the members' predictions have different sizes, or an array is not a label array.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> first, second = np.zeros((2, 20, 20), int)
        >>> first[2:10, 2:10] = 1
        >>> second[2:10, 3:11] = 1
        >>> second[14:18, 14:18] = 2
        >>> fused = cw.fuse([first, second])
        >>> fused.scores.round(2).tolist(), fused.masks.areas.tolist()
        ([1.0, 0.5], [72, 16])
        >>> [len(instances) for instances in cw.fuse([[first, second], [first, first]])]
        [1, 2]
    """
    options = FusionOptions(
        method=method,
        iou=iou,
        score=score,
        weights=None if weights is None else tuple(weights),
        class_agnostic=class_agnostic,
        decay=decay,
        sigma=sigma,
        over_smaller=over_smaller,
    )
    members = list(predictions) if is_list(predictions) else [predictions]
    several = [is_list(member) for member in members]
    if not any(several):
        return _fused([as_instances(member) for member in members], options, resolve_overlaps=resolve_overlaps)
    if not all(several):
        raise UsageError(
            "predictions of one image and of several images cannot be fused",
            got=f"{several.count(True)} lists and {several.count(False)} single predictions",
            expected="one prediction per member, or a list per member with one prediction per image",
        )
    members = [[as_instances(of_image) for of_image in member] for member in members]
    if len({len(member) for member in members}) > 1:
        got = f"{', '.join(str(len(member)) for member in members)} images"
        raise UsageError("members have predictions for different numbers of images", got=got, expected="equal numbers")
    images = zip(*members, strict=True)
    return [_fused(of_image, options, resolve_overlaps=resolve_overlaps) for of_image in images]


def _fused(members: Sequence[Instances], options: FusionOptions, *, resolve_overlaps: bool) -> Instances:
    fused = fuse_image(members, options)
    if not resolve_overlaps:
        return fused
    return select(Prediction.of(fused), PredictOptions(resolve_overlaps=True)).instances


@dataclass(frozen=True, eq=False)
class Members:
    """The predictions to fuse. names: short and distinct, one per member. images: those of the result.

    samples: for each image one sample per member. thresholds: of each member, one number or one per class, 0 for none.
    notes: what a user should know, one sentence each. seen: what the members were trained and tuned on.
    """

    names: tuple[str, ...]
    images: tuple[Sample, ...]
    samples: tuple[tuple[Sample, ...], ...]
    class_names: tuple[str, ...]
    thresholds: tuple[ScoreThreshold, ...]
    notes: tuple[str, ...]
    seen: dict[str, Any]


def read_members(plan: FusePlan, reporter: ProgressReporter = SILENT) -> Members:
    """Find the predictions of a plan. Their objects are read, or predicted by a model, later and image by image.

    Raises `UsageError` for members with different classes or that do not name their images; `InputError` for images
    that a member lacks or that have different sizes; `FormatError` for objects with boxes but no masks.
    """
    selected = _selected_images(plan, reporter)
    datasets = _read_all(plan, selected, reporter)
    names = short_names(plan.predictions)
    same, class_notes = _with_same_classes(names, datasets, ignore_classes=plan.ignore_classes)
    images, samples = _same_images(names, same, selected)
    return Members(
        names=tuple(names),
        images=tuple(_completed(image, of_image) for image, of_image in zip(images, samples, strict=True)),
        samples=tuple(samples),
        class_names=same[0].class_names,
        thresholds=tuple(score_threshold_of(dataset) for dataset in same),
        notes=(
            *summarise(note for dataset in datasets for note in dataset.notes),
            *class_notes,
            *_score_notes(names, same),
        ),
        seen=joined_seen([dataset.info for dataset in same]),
    )


def _selected_images(plan: FusePlan, reporter: ProgressReporter) -> Dataset | None:
    """The images of ``plan.data``."""
    if plan.data is None:
        if plan.split is not None:
            remedy = "give the dataset as `data`, or omit `split`"
            raise UsageError("only a dataset has splits", got=f'`split="{plan.split}"`', remedy=remedy)
        return None
    from cellwright.data.formats import ReadOptions, sniff

    data = sniff(plan.data).read(plan.data, ReadOptions(require_images=False, track=reporter.track))
    return data if plan.split is None else data.with_split(plan.split)


def _read_all(plan: FusePlan, selected: Dataset | None, reporter: ProgressReporter) -> list[Dataset]:
    """Every member: first those that name their images, then those that need them named, then models."""
    from cellwright.data.formats import sniff

    models = {path for path in plan.predictions if is_model(path)}
    names = {path: plan.format or sniff(path).name for path in plan.predictions if path not in models}
    lists = {path for path, name in names.items() if name in LIST_FORMATS}
    datasets: dict[Path, Dataset] = {}
    images = selected
    for path in sorted(dict.fromkeys(plan.predictions), key=lambda path: (path in models, path in lists)):
        if path in models:
            if images is None:
                remedy = "give the images as `data`"
                raise UsageError("a model needs images to predict on", got=str(path), remedy=remedy)
            datasets[path] = _predicted(path, images, plan.device)
        else:
            named_by = _without_scores(images) if path in lists and images is not None else None
            how = HowToRead(plan.prefer, plan.format, track=reporter.track)
            datasets[path] = read_objects(path, how, named_by)
        images = datasets[path] if images is None else images
    return [datasets[path] for path in plan.predictions]


def _without_scores(dataset: Dataset) -> Dataset:
    """The dataset without its score threshold: predictions that are read for its images have scores of their own."""
    info = {key: value for key, value in dataset.info.items() if key not in ("score_threshold", *SEEN)}
    return dataclasses.replace(dataset, info=info)


def _predicted(path: Path, images: Dataset, device: str) -> Dataset:
    """A model as a member: it predicts on an image when the objects of that image are read."""
    model = load_model(path, device=device)
    complete = model.with_options(score=0.0)
    loads = [_Predict(complete, source.path) for source in sources_of_dataset(images)]
    samples = [dataclasses.replace(image, load=load) for image, load in zip(images, loads, strict=True)]
    info = {"score_threshold": model.options.score_threshold, "format": MODEL} | model.seen
    return Dataset(tuple(samples), model.class_names, None, info=info)


@dataclass(frozen=True, eq=False)
class _Predict:
    """A `Sample.load` that predicts on the image."""

    model: Model
    path: Path

    def __call__(self) -> Instances:
        return self.model.predict(self.path)


def _with_same_classes(
    names: Sequence[str], datasets: Sequence[Dataset], *, ignore_classes: bool
) -> tuple[list[Dataset], list[str]]:
    """All members with the same class names in the same order: those of the first member that lists its classes.

    Members with a single class each have the same class, whatever each calls it; a note says so.
    """
    if ignore_classes:
        return [without_classes(dataset) for dataset in datasets], []
    listing = [
        k
        for k, dataset in enumerate(datasets)
        if not _is_nameless(dataset) and dataset.info.get("format") not in BY_OBJECTS
    ]
    known = datasets[listing[0]].class_names if listing else _all_class_names(datasets)
    if all(len(dataset.class_names) == 1 for dataset in datasets):
        own = dict.fromkeys(dataset.class_names[0] for dataset in datasets if not _is_nameless(dataset))
        notes = [f"classes {', '.join(own)} are treated as one class, {known[0]}"] if len(own) > 1 else []
        return [dataclasses.replace(dataset, class_names=known[:1]) for dataset in datasets], notes
    for k, (name, dataset) in enumerate(zip(names, datasets, strict=True)):
        own = set(dataset.class_names)
        fits = own == set(known) if k in listing else own <= set(known)
        if not fits and not (_is_nameless(dataset) and len(known) == 1):
            raise UsageError(
                "predictions with different classes cannot be fused",
                got=f"{name}: {', '.join(dataset.class_names)}",
                expected=", ".join(known) + (f", as in {names[listing[0]]}" if listing else ""),
                remedy=f"{class_advice(dataset.class_names, known)}; or use `ignore_classes=True`",
            )
    return [with_class_names(dataset, known) for dataset in datasets], []


def _is_nameless(dataset: Dataset) -> bool:
    """Whether classes have no names, as in label images."""
    return dataset.info.get("format") in NAMELESS and dataset.class_names == (DEFAULT_CLASS,)


def _all_class_names(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    names = dict.fromkeys(name for dataset in datasets if not _is_nameless(dataset) for name in dataset.class_names)
    return tuple(names) or (DEFAULT_CLASS,)


def _same_images(
    names: Sequence[str], datasets: Sequence[Dataset], selected: Dataset | None
) -> tuple[Dataset, list[tuple[Sample, ...]]]:
    """The images, and each member's sample of every image. Without ``selected``, all members need the same images."""
    base = datasets[0] if selected is None else selected
    if not len(base):
        raise InputError(
            "no images to fuse",
            where=names[0] if selected is None else selected.root,
            remedy="give predictions of at least one image, or another `split`",
        )
    columns = [partners(base, dataset) for dataset in datasets]
    lacking = {name: _unpaired(base, column) for name, column in zip(names, columns, strict=True)}
    if selected is None:
        further = (image_id for dataset in datasets for image_id in _unpaired(dataset, partners(dataset, base)))
        lacking[names[0]] = list(dict.fromkeys(further))
    lacking = {name: missing for name, missing in lacking.items() if missing}
    if lacking:
        raise InputError(
            "the predictions are not for the same images",
            got="; ".join(f"{name} lacks {len(missing)}: {shown_ids(missing)}" for name, missing in lacking.items()),
            expected="every image in every prediction, including images without objects",
            remedy="predict on the same images, or select those to fuse with `data` (and `split`)",
        )
    samples = [tuple(sample for sample in row if sample is not None) for row in zip(*columns, strict=True)]
    _check_sizes(names, base, samples)
    return base, samples


def _unpaired(samples: Dataset, others: Sequence[Sample | None]) -> list[str]:
    return [sample.id for sample, other in zip(samples, others, strict=True) if other is None]


def _check_sizes(names: Sequence[str], base: Dataset, samples: Sequence[tuple[Sample, ...]]) -> None:
    for image, row in zip(base, samples, strict=True):
        sizes = [sample.image_hw for sample in row]
        if len({*sizes, image.image_hw}) > 1:
            each = [f"{name}: {h} x {w}" for name, (h, w) in zip(names, sizes, strict=True)]
            raise InputError(
                "the predictions of an image have different sizes (height x width)",
                where=f"image {image.id}",
                got=", ".join(each),
                expected=f"{image.image_hw[0]} x {image.image_hw[1]}",
                remedy="predict on the image at its original size with every member",
            )


def _completed(image: Sample, of_members: Sequence[Sample]) -> Sample:
    """The image with its file, number, group, split and pixel size, from the first member that has them."""
    known = dict[str, Any]()
    for name in ("image_path", "image_id", "group", "split", "pixel_size_um"):
        values = (getattr(sample, name) for sample in (image, *of_members))
        known[name] = next((value for value in values if value is not None), None)
    return dataclasses.replace(image, **known)


def _score_notes(names: Sequence[str], datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """What the scores mean. Reading one image of each member also shows early which member cannot be read."""
    notes = []
    unscored, uncalibrated = [], []
    for name, dataset in zip(names, datasets, strict=True):
        conflicting = images_in_conflict(dataset)
        samples = [s for s in dataset if s.id not in conflicting] if dataset.info.get("format") != MODEL else []
        first = next((objects for objects in (sample.read_instances() for sample in samples) if len(objects)), None)
        if first is not None and first.scores is None:
            unscored.append(name)
        elif not dataset.info.get("tuned_on"):
            uncalibrated.append(name)
    if unscored:
        notes.append(f"without scores, so every object counts with score 1: {', '.join(unscored)}")
    if uncalibrated and len(names) > 1:
        notes.append(
            f"scores that are not calibrated are compared as they are: {', '.join(uncalibrated)} (cellwright tune "
            "calibrates the scores of a model to the expected IoU)"
        )
    return tuple(notes)


def _job(plan: FusePlan, members: Members, threshold: ScoreThreshold) -> Job:
    settings = {"members": list(members.names), **plan.options.as_values(len(members.names))}
    sources = [
        Source(
            image.id,
            image.image_path or Path("no image", image.id),
            image.image_id,
            image.group,
            image.split,
            z=image.z,
            t=image.t,
        )
        for image in members.images
    ]
    return Job(
        sources=tuple(sources),
        class_names=members.class_names,
        recipe_yaml=yaml.safe_dump({"fuse": settings}, sort_keys=False),
        model=" ".join(map(content_of, plan.predictions)),
        made_by="the predictions",
        options=PredictOptions(threshold, resolve_overlaps=plan.resolve_overlaps),
        save=plan.save,
        info={"fused": settings} | members.seen | {MADE_BY: _made_by(plan, members)},
    )


def _made_by(plan: FusePlan, members: Members) -> dict[str, Any]:
    """What reports say about how a fusion was made."""
    elsewhere = ("predictions", "out", "overwrite", "device", "data")
    fields = [field for field in dataclasses.fields(plan) if field.name not in elsewhere]
    chosen = {field.name: getattr(plan, field.name) for field in fields}
    chosen = {field.name: chosen[field.name] for field in fields if chosen[field.name] != field.default}
    data = {} if plan.data is None else {"data": plan.data.name}
    names = list(members.names)
    return {"verb": "fuse", "predictions": names, "options": plain(chosen | data), "versions": versions()}


def _image_to_draw_on(sample: Sample) -> tuple[Image, bool]:
    """The image, and False; a black one and True if it is missing or cannot be used."""
    black = Image.from_array(np.zeros(sample.image_hw, np.uint8), pixel_size_um=sample.pixel_size_um)
    if sample.image_path is None:
        return black, True
    try:
        image = Reading().of(sample).read(sample.image_path)
    except (InputError, UsageError):
        return black, True
    return (image, False) if image.image_hw == tuple(sample.image_hw) else (black, True)
