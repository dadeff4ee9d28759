"""Two sides brought together before they are judged: images paired, classes counted alike, thresholds at hand.

Either side may lie in any known format, from any tool. Objects are read when they are asked for, image by image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np

from cellwright.api.models import NAMED_MODELS
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress

# These name sizes and images only where their writers chose to; the other side can tell them.
LISTS = ("coco_results", "rle_csv", "rle_csv_submission", "dsb2018_csv", "xml_outlines", "imagej_roi", "geojson")
ONE_CLASS = "object"


class ObjectsOf(Sequence[Instances]):
    """The objects of samples, read each time they are indexed, so that one image is in memory at a time."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Instances: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Instances]: ...
    def __getitem__(self, index: int | slice) -> Instances | Sequence[Instances]:
        if isinstance(index, slice):
            return ObjectsOf(self._samples[index])
        return self._samples[index].read_instances()


@dataclass(frozen=True, eq=False)
class Sides:
    """What is judged: sample k of both sides is the same image.

    name: what the prediction is called. score_threshold: below it predictions count for average precision and ranking
    only; one number, or one a class. notes: what was decided on the way. tuned_on: where the thresholds of the
    predictions come from (``ModelInfo.tuned_on``), None where they were not tuned or nothing says so.
    """

    name: str
    predicted: tuple[Sample, ...]
    truth: tuple[Sample, ...]
    class_names: tuple[str, ...]
    score_threshold: float | tuple[float, ...] = 0.0
    notes: tuple[str, ...] = ()
    tuned_on: Mapping[str, Any] | None = None


def read_side(path: Path, other: Dataset | None, track: Track = no_progress) -> Dataset:
    """One side in whatever format it lies; images may be absent. ``other`` names the images where a list does not.

    `InputError` where there are only images: no objects at all would be judged as nothing found.
    """
    from cellwright.data.formats import ReadOptions, sniff

    found = sniff(path)
    if found.name == "image_folder":
        remedy = "give the masks; label images under unusual names are read once they are called <image>_masks"
        raise InputError("these are images without any objects", where=path, got=found.description, remedy=remedy)
    return found.read(path, ReadOptions(images=other, require_images=False, track=track))


def read_truth(path: Path, predictions: Sequence[Path], track: Track = no_progress) -> Dataset:
    """The truth. Where it is a list that may name no images, the first prediction that is none tells them.

    Predictions used as truth count from their score threshold on.
    """
    from cellwright.data.formats import sniff

    other = None
    if sniff(path).name in LISTS:
        tellers = [one for one in predictions if one.exists() and not _is_model_folder(one)]
        teller = next((one for one in tellers if sniff(one).name not in LISTS), None)
        other = None if teller is None else read_side(teller, None, track)
    return above_threshold(read_side(path, other, track))


def pair_sides(
    name: str, predicted: Dataset, truth: Dataset, wanted: Dataset, *, ignore_classes: bool = False
) -> Sides:
    """Bring predictions and truth together.

    truth: all there is; wanted: the part of it (a split) that is judged. Raises `InputError` where an image that is
    wanted has no prediction, or one that was predicted on has no truth at all: figures on what is left would mislead.
    """
    predicted, truth, wanted, notes = _same_classes(predicted, truth, wanted, ignore_classes=ignore_classes)
    found = partners(wanted, predicted)
    missing = [one.id for one, partner in zip(wanted, found, strict=True) if partner is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(wanted)} images have no prediction",
            where=name,
            got=f"predictions for {shown([one.id for one in predicted]) or 'no image'}",
            expected=shown(missing),
            remedy="predict on these images too, or judge a split that was predicted on (--split)",
        )
    lonely = [one.id for one, partner in zip(predicted, partners(predicted, truth), strict=True) if partner is None]
    if lonely:
        raise InputError(
            f"{len(lonely)} of {len(predicted)} images that were predicted on have no truth",
            where=name,
            got=shown(lonely),
            expected=f"images such as {shown([one.id for one in truth]) or '(the truth holds none)'}",
            remedy="annotate them (an image without objects too), or leave their predictions out",
        )
    return Sides(
        name=name,
        predicted=tuple(one for one in found if one is not None),
        truth=wanted.samples,
        class_names=wanted.class_names,
        score_threshold=threshold_of(predicted),
        notes=notes,
        tuned_on=predicted.info.get("tuned_on"),
    )


def digest(instances: Instances, sample_id: str) -> str:
    """What tells an annotated image again, in any format and under any name: its size and its objects' boxes and areas.

    An image without objects goes by the last part of its name.
    """
    rows = np.column_stack([instances.masks.boxes.astype(np.int64), instances.masks.areas.astype(np.int64)])
    rows = rows[np.lexsort(rows.T)]
    content = repr(tuple(map(int, instances.image_hw))).encode() + np.ascontiguousarray(rows).tobytes()
    if not len(rows):
        content += PurePosixPath(sample_id).name.encode()
    return hashlib.sha256(content).hexdigest()[:16]


def tuning_warning(sides: Sides) -> str | None:
    """A warning where images are judged that the thresholds were tuned on, else None."""
    if sides.tuned_on is None:
        return None
    seen = set(sides.tuned_on.get("images", ()))
    n = sum(digest(one.read_instances(), one.id) in seen for one in sides.truth)
    if not n:
        return None
    return (
        f"warning: {n} of these {len(sides.truth)} images are those that the thresholds and the calibration were tuned "
        f"on (split {sides.tuned_on.get('split')}): these figures flatter; report a split that was not tuned on"
    )


@dataclass(frozen=True, eq=False)
class _Above:
    """A `Sample.load` that keeps the predictions that reach the threshold (of their class)."""

    load: Callable[[], Instances]
    threshold: float | tuple[float, ...]

    def __call__(self) -> Instances:
        from cellwright.evaluation.match import reaches

        found = self.load()
        return found[reaches(found.scores, found.class_ids, self.threshold)]


def above_threshold(dataset: Dataset) -> Dataset:
    """Predictions without the candidates below their own score threshold; what has no threshold stays as it is."""
    threshold = threshold_of(dataset)
    if threshold == 0.0:
        return dataset
    samples = [dataclasses.replace(one, load=_Above(one.load, threshold)) for one in dataset]
    return dataclasses.replace(
        dataset, samples=tuple(samples), info={k: v for k, v in dataset.info.items() if k != "score_threshold"}
    )


def threshold_of(dataset: Dataset) -> float | tuple[float, ...]:
    """The score below which the dataset's objects are candidates only: one number, or one a class; 0 for none."""
    found = dataset.info.get("score_threshold", 0.0)
    return tuple(float(one) for one in found) if isinstance(found, list | tuple) else float(found)


def _same_classes(
    predicted: Dataset, truth: Dataset, wanted: Dataset, *, ignore_classes: bool
) -> tuple[Dataset, Dataset, Dataset, tuple[str, ...]]:
    """Both sides with the same class names, and what was decided.

    By name; one class on either side that the other does not know has no names to go by, and is judged without.
    """
    own, wanted_names = predicted.class_names, truth.class_names
    common = [name for name in own if name in wanted_names]
    if not ignore_classes and (own == wanted_names or common):
        names = (*wanted_names, *(name for name in own if name not in wanted_names))
        notes = () if len(names) == len(wanted_names) else (
            f"predicted classes that the truth does not know: {', '.join(names[len(wanted_names) :])}",
        )  # fmt: skip
        return named(predicted, names), named(truth, names), named(wanted, names), notes
    if not ignore_classes and min(len(own), len(wanted_names)) > 1:
        raise UsageError(
            "predictions and truth have no class in common",
            where=predicted.root,
            got=", ".join(own),
            expected=", ".join(wanted_names),
            remedy="rename classes with: cellwright data merge --map old=new, or give --ignore-classes",
        )
    if len(own) == len(wanted_names) == 1:
        # One thing was sought and one annotated, whatever each tool calls it.
        return dataclasses.replace(predicted, class_names=wanted_names), truth, wanted, ()
    note = f"judged without classes: predictions hold {', '.join(own)}, the truth {', '.join(wanted_names)}"
    return without_classes(predicted), without_classes(truth), without_classes(wanted), (note,)


def named(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """The dataset with classes ``names``, which hold all of its own; its thresholds follow."""
    from cellwright.data.merge import map_classes

    if dataset.class_names == names:
        return dataset
    threshold = threshold_of(dataset)
    mapped = map_classes(dataset, {}, names)
    if isinstance(threshold, tuple):
        by_name = dict(zip(dataset.class_names, threshold, strict=True))
        threshold = [by_name.get(name, 0.0) for name in names]
    return dataclasses.replace(mapped, info=mapped.info | {"score_threshold": threshold})


def without_classes(dataset: Dataset) -> Dataset:
    """The dataset with all objects of one class, `ONE_CLASS`.

    Thresholds that differ by class cannot be told any more once classes are gone: then they apply now.
    """
    from cellwright.data.merge import map_classes

    threshold = threshold_of(dataset)
    if isinstance(threshold, tuple) and len(set(threshold)) > 1:
        dataset, threshold = above_threshold(dataset), 0.0
    info = dataset.info | {"score_threshold": threshold[0] if isinstance(threshold, tuple) else threshold}
    named_anew = dataclasses.replace(dataset, info=info)
    return map_classes(named_anew, dict.fromkeys(dataset.class_names, ONE_CLASS), [ONE_CLASS])


def partners(samples: Dataset, others: Dataset) -> list[Sample | None]:
    """For each sample the one of ``others`` with its id, else with the last part of its id where that is unique."""
    by_id = {one.id: one for one in others}
    names = Counter(PurePosixPath(one.id).name for one in others)
    by_name = {PurePosixPath(one.id).name: one for one in others if names[PurePosixPath(one.id).name] == 1}
    own = Counter(PurePosixPath(one.id).name for one in samples)
    found = []
    for one in samples:
        name = PurePosixPath(one.id).name
        found.append(by_id.get(one.id) or (by_name.get(name) if own[name] == 1 else None))
    return found


def shown(ids: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def _is_model_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("model.json", "model/model.json"))


def is_model(path: Path) -> bool:
    """Whether ``path`` names a model that predicts first: one by name (``nuclei``), a model folder, or a run.

    `UsageError` where a file or folder here has a model's name: it could be either.
    """
    if str(path) in NAMED_MODELS and path.exists():
        remedy = f"give the whole path of the file or folder, or rename it to judge the model {path}"
        raise UsageError("this is the name of a model and of a file or folder here", got=str(path), remedy=remedy)
    return str(path) in NAMED_MODELS or _is_model_folder(path)
