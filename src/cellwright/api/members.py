"""Predictions brought together before they are fused: the same images, the same classes, from any format."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.api.models import load_model
from cellwright.api.paths import LIST_FORMATS, is_model, read_objects, short_names
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.data.formats.contract import DEFAULT_CLASS
from cellwright.evaluation.pairing import partners, score_threshold_of, shown_ids, with_class_names, without_classes

# These name a class only where an object has it, and these may name none.
BY_OBJECTS = ("rle_csv", "xml_outlines", "imagej_roi", "geojson")
NAMELESS = ("label_images", "mask_folder", "rle_csv")


@dataclass(frozen=True, eq=False)
class Members:
    """What is fused. names: short and distinct, one a member. images: what the result is for.

    found: for each image one sample a member. thresholds: of each member, one number or one a class, 0 for none.
    notes: what a user should know, one sentence each. tuned_on: where thresholds of tuned members come from, or None.
    """

    names: tuple[str, ...]
    images: tuple[Sample, ...]
    found: tuple[tuple[Sample, ...], ...]
    class_names: tuple[str, ...]
    thresholds: tuple[float | tuple[float, ...], ...]
    notes: tuple[str, ...]
    tuned_on: dict[str, Any] | None


@dataclass(frozen=True)
class MemberPlan:
    """Where members lie. data: the images, for lists that do not name them, and to fuse on fewer than the members have.
    ignore_classes: an object is an object."""

    predictions: tuple[Path, ...]
    data: Path | None = None
    split: str | None = None
    ignore_classes: bool = False
    device: str = "auto"


def read_members(plan: MemberPlan, screen: ProgressReporter = SILENT) -> Members:
    """Read what is fused; objects are read when they are asked for, those of models are made now.

    Raises `UsageError` for members with different classes or without a hint which images they are for, `InputError`
    where images are missing in one or have different sizes, `FormatError` where objects have boxes and no masks.
    """
    wanted = _wanted(plan, screen)
    datasets = _read_all(plan, wanted, screen)
    names = short_names(plan.predictions)
    classes = _same_classes(names, datasets, ignore_classes=plan.ignore_classes)
    images, found = _same_images(names, classes, wanted)
    return Members(
        names=tuple(names),
        images=tuple(_best_known(one, of_image) for one, of_image in zip(images, found, strict=True)),
        found=tuple(found),
        class_names=classes[0].class_names,
        thresholds=tuple(score_threshold_of(one) for one in classes),
        notes=_notes(names, classes),
        tuned_on=joined_tuning([one.info.get("tuned_on") for one in classes]),
    )


def _wanted(plan: MemberPlan, screen: ProgressReporter) -> Dataset | None:
    """The images of --data."""
    if plan.data is None:
        if plan.split is not None:
            remedy = "name it with --data, or leave --split out"
            raise UsageError("only a dataset has splits", got=f"--split {plan.split}", remedy=remedy)
        return None
    from cellwright.data.formats import ReadOptions, sniff

    data = sniff(plan.data).read(plan.data, ReadOptions(require_images=False, track=screen.track))
    return data if plan.split is None else data.with_split(plan.split)


def _read_all(plan: MemberPlan, wanted: Dataset | None, screen: ProgressReporter) -> list[Dataset]:
    """Every member: first those that name their images, then lists, then models, which predict on the same images."""
    from cellwright.data.formats import sniff

    models = {path for path in plan.predictions if is_model(path)}
    lists = {path for path in plan.predictions if path not in models and sniff(path).name in LIST_FORMATS}
    read: dict[Path, Dataset] = {}
    tell = wanted
    for path in sorted(dict.fromkeys(plan.predictions), key=lambda one: (one in models, one in lists)):
        if path in models:
            if tell is None:
                remedy = "name them with --data"
                raise UsageError("nothing says on which images the models predict", got=str(path), remedy=remedy)
            read[path] = _predicted(path, tell, plan.device, screen)
        else:
            read[path] = read_objects(
                path, _images_of(tell) if path in lists and tell is not None else None, screen.track
            )
        tell = read[path] if tell is None else tell
    return [read[path] for path in plan.predictions]


def _images_of(dataset: Dataset) -> Dataset:
    """The dataset without what is said of its own scores: a list that is read for its images has scores of its own."""
    info = {key: value for key, value in dataset.info.items() if key not in ("score_threshold", "tuned_on")}
    return dataclasses.replace(dataset, info=info)


def _predicted(path: Path, images: Dataset, device: str, screen: ProgressReporter) -> Dataset:
    from cellwright.prediction.evaluate import predict_dataset

    model = load_model(path, device=device)
    predictor = dataclasses.replace(model.predictor, options=model.options)
    return predict_dataset(predictor, images, model.class_names, tuned_on=model.tuned_on, track=screen.track)


def _same_classes(names: Sequence[str], datasets: Sequence[Dataset], *, ignore_classes: bool) -> list[Dataset]:
    """All members with the same class names in the same order: those of the first that lists its classes."""
    if ignore_classes:
        return [without_classes(one) for one in datasets]
    listing = [
        k for k, one in enumerate(datasets) if not _is_nameless(one) and one.info.get("format") not in BY_OBJECTS
    ]
    known = datasets[listing[0]].class_names if listing else _all_names(datasets)
    for k, (name, one) in enumerate(zip(names, datasets, strict=True)):
        own = set(one.class_names)
        fits = own == set(known) if k in listing else own <= set(known)
        if not fits and not (_is_nameless(one) and len(known) == 1):
            raise UsageError(
                "predictions with different classes cannot be fused",
                got=f"{name}: {', '.join(one.class_names)}",
                expected=", ".join(known) + (f", as in {names[listing[0]]}" if listing else ""),
                remedy="rename classes with: cellwright data merge --map old=new, or give --ignore-classes",
            )
    return [
        dataclasses.replace(one, class_names=known)
        if _is_nameless(one) and len(known) == 1
        else with_class_names(one, known)
        for one in datasets
    ]


def _is_nameless(dataset: Dataset) -> bool:
    """Whether classes have no names here, as in label images."""
    return dataset.info.get("format") in NAMELESS and dataset.class_names == (DEFAULT_CLASS,)


def _all_names(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    found = dict.fromkeys(name for one in datasets if not _is_nameless(one) for name in one.class_names)
    return tuple(found) or (DEFAULT_CLASS,)


def _same_images(
    names: Sequence[str], datasets: Sequence[Dataset], wanted: Dataset | None
) -> tuple[Dataset, list[tuple[Sample, ...]]]:
    """The images and each member's sample of every one. Without --data no member may lack what another one has."""
    base = datasets[0] if wanted is None else wanted
    if not len(base):
        raise InputError(
            "there are no images to fuse on",
            where=names[0] if wanted is None else wanted.root,
            remedy="give predictions on one image at least, or another --split",
        )
    columns = [partners(base, one) for one in datasets]
    lacking = {name: _unpaired(base, column) for name, column in zip(names, columns, strict=True)}
    if wanted is None:
        lacking[names[0]] = list(dict.fromkeys(id_ for one in datasets for id_ in _unpaired(one, partners(one, base))))
    lacking = {name: missing for name, missing in lacking.items() if missing}
    if lacking:
        raise InputError(
            "these predictions are not for the same images",
            got="; ".join(f"{name} lacks {len(missing)}: {shown_ids(missing)}" for name, missing in lacking.items()),
            expected="every image in every prediction; one without objects too",
            remedy="predict on the same images, or choose with --data (and --split) which are fused",
        )
    found = [tuple(one for one in row if one is not None) for row in zip(*columns, strict=True)]
    _check_sizes(names, base, found)
    return base, found


def _unpaired(samples: Dataset, others: Sequence[Sample | None]) -> list[str]:
    return [one.id for one, other in zip(samples, others, strict=True) if other is None]


def _check_sizes(names: Sequence[str], base: Dataset, found: Sequence[tuple[Sample, ...]]) -> None:
    for image, row in zip(base, found, strict=True):
        sizes = [one.image_hw for one in row]
        if len({*sizes, image.image_hw}) > 1:
            each = [f"{name}: {h} x {w}" for name, (h, w) in zip(names, sizes, strict=True)]
            raise InputError(
                "an image has different sizes (height x width) in the predictions",
                where=f"image {image.id}",
                got=", ".join(each),
                expected=f"{image.image_hw[0]} x {image.image_hw[1]}",
                remedy="predict on the image at its own size with all of them",
            )


def _best_known(image: Sample, found: Sequence[Sample]) -> Sample:
    """The image with its file, number, group, split and pixel size, from whoever knows them."""
    known = dict[str, Any]()
    for name in ("image_path", "image_id", "group", "split", "pixel_size_um"):
        values = (getattr(one, name) for one in (image, *found))
        known[name] = next((value for value in values if value is not None), None)
    return dataclasses.replace(image, **known)


def _notes(names: Sequence[str], datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """Whose scores mean what; reading one image of each also shows early what cannot be read at all."""
    notes = []
    unscored, plain = [], []
    for name, one in zip(names, datasets, strict=True):
        first = next((cells for cells in (sample.read_instances() for sample in one) if len(cells)), None)
        if first is not None and first.scores is None:
            unscored.append(name)
        elif not one.info.get("tuned_on"):
            plain.append(name)
    if unscored:
        notes.append(f"without scores, so every object counts with score 1: {', '.join(unscored)}")
    if plain and len(names) > 1:
        notes.append(
            f"scores that are not calibrated, and are compared as they are: {', '.join(plain)} (predictions of a model "
            "that cellwright tune made show the IoU to expect)"
        )
    return tuple(notes)


def mean_threshold(thresholds: Sequence[float | tuple[float, ...]], weights: np.ndarray) -> float | tuple[float, ...]:
    """The weighted mean of the members' thresholds: one number, or one a class where a member has them."""
    n_classes = max((len(one) for one in thresholds if isinstance(one, tuple)), default=1)
    per_class = np.stack([np.broadcast_to(np.array(one, np.float64), n_classes) for one in thresholds])
    mean = np.average(per_class, axis=0, weights=weights)
    return tuple(mean.tolist()) if any(isinstance(one, tuple) for one in thresholds) else float(mean[0])


def joined_tuning(members: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The images that any member was tuned on, so that judging them is warned of; None where none was tuned."""
    tuned = [one for one in members if one]
    if not tuned:
        return None
    views = {"views": ", ".join(dict.fromkeys(str(one.get("views", "none")) for one in tuned))}
    return (views if any("views" in one for one in tuned) else {}) | {
        "split": ", ".join(dict.fromkeys(str(one.get("split")) for one in tuned)),
        "metric": ", ".join(dict.fromkeys(str(one.get("metric")) for one in tuned)),
        "images": sorted({digest for one in tuned for digest in one.get("images", ())}),
    }
