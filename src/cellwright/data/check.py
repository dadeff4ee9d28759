"""Check a dataset for problems before training: `check_dataset`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, InputError
from cellwright.core.ignored import annotated_px, counted_objects
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.core.text import count
from cellwright.data.formats import FORMATS
from cellwright.data.images.reading import Reading
from cellwright.data.value_range import ImageValues, depth_of, dtype_scale

Severity = Literal["error", "warning", "suspect", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "suspect", "note")

# Two masks with at least this IoU are the same object annotated twice.
NEARLY_SAME_IOU = 0.9
# No nucleus is smaller than this at any usual magnification; such masks are fragments of a larger one.
FRAGMENT_PX = 4
# An image is much darker than the others if its brightest values are smaller by this factor.
DARKER = 10
# Number of object ids listed in one finding.
SHOWN_IDS = 5


@dataclass(frozen=True)
class Finding:
    """One problem: its severity, where it is, what it is, and how to fix it."""

    severity: Severity
    where: str
    what: str
    remedy: str


def check_dataset(dataset: Dataset, *, track: Track = no_progress) -> list[Finding]:
    """All problems of a dataset, by severity and then in the order of the samples; empty if there are none.

    Each image and mask is decoded once. Invalid content raises no error; it is reported as a finding.
    """
    findings: list[Finding] = []
    first_with: dict[bytes, Sample] = {}
    values: dict[str, ImageValues] = {}
    n_objects, all_read = 0, True
    for sample in track(dataset.samples, "checking", total=len(dataset)):
        findings += _check_image(sample, first_with, dataset, values)
        try:
            instances = sample.read_instances()
        except CellwrightError as error:
            findings.append(_from_error(error, sample, dataset.root))
            all_read = False
            continue
        n_objects += len(counted_objects(instances))
        findings += _check_objects(sample, instances, dataset)
    if all_read and not n_objects:
        findings.append(_no_objects(dataset))
    findings += _check_values(values)
    findings += _clutter(dataset)
    findings += [Finding("note", note.where, note.text, "") for note in dataset.notes]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def require_objects(dataset: Dataset) -> None:
    """Raise `InputError` if no sample has an object. Reads samples until one has."""
    if not any(len(counted_objects(sample.read_instances())) for sample in dataset):
        finding = _no_objects(dataset)
        raise InputError(
            finding.what, where=finding.where, got=f"{count(len(dataset), 'image')}, 0 objects", remedy=finding.remedy
        )


def _no_objects(dataset: Dataset) -> Finding:
    return Finding(
        "error",
        str(dataset.root or "dataset"),
        "this dataset has no objects",
        "check that the masks are where the format expects them, or run cellwright data convert with another format",
    )


def _check_image(
    sample: Sample, first_with: dict[bytes, Sample], dataset: Dataset, values: dict[str, ImageValues]
) -> Iterator[Finding]:
    """Findings about the image file.

    first_with: digest of pixels -> first sample with it; values: those of each sample. Both are updated.
    """
    root = dataset.root
    if sample.image_path is None:
        yield Finding(
            "warning", sample.id, "it has no image file", "convert the dataset again with its images in place"
        )
        return
    try:
        image = Reading.recorded(dataset.info).of(sample).chosen(sample.image_path)
    except CellwrightError as error:
        yield _from_error(error, sample, root)
        return
    for note in image.notes:
        yield Finding("note", _shown(sample.image_path, root), note.text, "")
    if image.image_hw != sample.image_hw:
        got, expected = (f"{height} x {width}" for height, width in (image.image_hw, sample.image_hw))
        yield Finding(
            "error",
            _shown(sample.image_path, root),
            f"the image is {got} (height x width), but its annotations are for {expected}",
            "replace it with the annotated image, or annotate this one",
        )
    values[sample.id] = ImageValues.of(image.without_alpha())
    content = hashlib.blake2b(np.ascontiguousarray(image.data).tobytes(), digest_size=16)
    content.update(repr((image.data.shape, image.data.dtype.str)).encode())
    first = first_with.setdefault(content.digest(), sample)
    if first is not sample:
        leaks = first.split != sample.split
        yield Finding(
            "error" if leaks else "warning",
            _shown(sample.image_path, root),
            f"the same pixels as {first.id}"
            + (f", in different splits ({first.split}, {sample.split})" if leaks else ""),
            "remove one of them, or put both in the same group and split again",
        )


def _check_values(values: dict[str, ImageValues]) -> Iterator[Finding]:
    """Findings about the range of the images' values, which networks with input.normalise fixed depend on."""
    depths: dict[tuple[str, float], list[str]] = {}
    for name, image in values.items():
        depths.setdefault((image.dtype, depth_of([image]) or image.highest), []).append(name)
    types = {dtype for dtype, _ in depths}
    deepest = {dtype: max(depth for of_type, depth in depths if of_type == dtype) for dtype in types}
    remedy = "no action needed for recipes with input.normalise percentile, the default"
    for dtype, depth in sorted(deepest.items()):
        if depth != dtype_scale(dtype):
            highest = max(image.highest for image in values.values() if image.dtype == dtype)
            what = f"the {dtype} values reach {highest:.5g} (0 to {depth:g}), not {dtype_scale(dtype):g}"
            yield Finding("note", "dataset", what, remedy)
    if len(types) > 1:
        counts = {dtype: sum(image.dtype == dtype for image in values.values()) for dtype in sorted(types)}
        what = "images of different pixel types: " + ", ".join(f"{dtype} ({n})" for dtype, n in counts.items())
        yield Finding("note", "dataset", what, remedy)
    bright = {name: image.bright / deepest[image.dtype] for name, image in values.items() if deepest[image.dtype]}
    usual = float(np.median(list(bright.values()))) if bright else 0.0
    dark = [name for name, share in bright.items() if share < usual / DARKER]
    if dark:
        what = f"{count(len(dark), 'image')} much darker than the others: {', '.join(dark[:SHOWN_IDS])}"
        yield Finding("note", dark[0], what, "check their exposure; " + remedy)


def _check_regions(where: str, instances: Instances) -> Iterator[Finding]:
    if not instances.ignore.any():
        return
    if not annotated_px(instances):
        what = "no pixel of this image is annotated, so it counts neither in training nor in evaluation"
        yield Finding("warning", where, what, "remove it, or make its regions that are not annotated smaller")
    inside = np.setdiff1d(instances.ids[~instances.ignore], counted_objects(instances).ids)
    if inside.size:
        what = f"{_objects(inside)} mostly in regions that are not annotated, which do not count"
        yield Finding("note", where, what, "no action needed, unless they were annotated: then make the region smaller")


def _check_objects(sample: Sample, instances: Instances, dataset: Dataset) -> Iterator[Finding]:
    where = sample.id
    yield from _check_regions(where, instances)
    instances = instances[~instances.ignore]
    if not len(instances):
        yield Finding(
            "note", where, "no objects in this image", "correct for a background image; otherwise add its masks"
        )
        return
    areas = instances.masks.areas
    for chosen, what, remedy in (
        (areas == 0, "with an empty mask", "delete these objects"),
        ((areas > 0) & (areas < FRAGMENT_PX), f"of fewer than {FRAGMENT_PX} px", "delete them if they are fragments"),
        (instances.class_ids >= len(dataset.class_names), "of a class without a name", "add names for all classes"),
    ):
        if chosen.any():
            yield Finding("warning", where, f"{_objects(instances.ids[chosen])} {what}", remedy)
    scattered = instances.ids[[_lies_in_far_parts(instances.masks.crop(k)) for k in range(len(instances))]]
    if scattered.size:
        what = f"{_objects(scattered)} in separate parts that are far apart"
        yield Finding("warning", where, what, "give each part its own number if they are different objects")
    i, j, iou = instances.masks.iou(instances.masks)
    once = i < j
    i, j, iou = i[once], j[once], iou[once]
    for chosen, what in (
        (iou == 1, "annotated twice"),
        (
            (iou < 1) & (iou >= NEARLY_SAME_IOU),
            f"annotated twice almost identically (IoU at least {NEARLY_SAME_IOU:g})",
        ),
    ):
        if chosen.any():
            yield Finding("warning", where, f"{_objects(instances.ids[j[chosen]])} {what}", "delete one of each pair")
    partly = iou < NEARLY_SAME_IOU
    if partly.any():
        n = np.unique(np.concatenate([i[partly], j[partly]])).size
        yield Finding(
            "note",
            where,
            f"{count(n, 'object')} overlap others ({count(int(partly.sum()), 'pair')})",
            "no action needed; formats with one label per pixel assign shared pixels to one of the objects",
        )


def _lies_in_far_parts(mask: np.ndarray) -> bool:
    """Whether the two largest connected parts of a mask (h, w) are at least half a diameter apart."""
    import cv2

    if not mask.size:  # OpenCV crashes on empty arrays
        return False
    n, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if n < 3:  # the background is the first
        return False
    areas = stats[1:, cv2.CC_STAT_AREA]
    first, second = 1 + np.argsort(-areas, kind="stable")[:2]
    if areas[second - 1] < max(FRAGMENT_PX, 0.1 * areas[first - 1]):
        return False
    (x0, y0, w0, h0), (x1, y1, w1, h1) = stats[first, :4], stats[second, :4]
    gap = max(x1 - x0 - w0, x0 - x1 - w1, y1 - y0 - h0, y0 - y1 - h1)
    return bool(gap >= np.sqrt(areas[first - 1] / np.pi))


def _objects(ids: np.ndarray) -> str:
    """``"object 3"``, ``"2 objects (3, 9)"``."""
    if len(ids) == 1:
        return f"object {int(ids[0])}"
    more = ", ..." if len(ids) > SHOWN_IDS else ""
    return f"{count(len(ids), 'object')} ({', '.join(map(str, ids[:SHOWN_IDS].tolist()))}{more})"


def _clutter(dataset: Dataset) -> Iterator[Finding]:
    chosen = FORMATS.get(str(dataset.info.get("format")))
    if chosen is None or dataset.root is None or not dataset.root.is_dir():
        return
    for clutter in chosen.clutter(dataset.root):
        where = _shown(clutter.path, dataset.root)
        yield Finding("note", where, f"skipped: {clutter.why}", "delete it if it is not needed")


def _from_error(error: CellwrightError, sample: Sample, root: Path | None) -> Finding:
    where = _shown(error.where, root) if isinstance(error.where, Path) else str(error.where or sample.id)
    facts = [("got", error.got), ("expected", error.expected)]
    details = "; ".join(f"{name} {value}" for name, value in facts if value is not None)
    what = f"{error.problem} ({details})" if details else error.problem
    return Finding("error", where, what, error.remedy or "fix the file, or remove the sample")


def _shown(path: Path, root: Path | None) -> str:
    return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else str(path)
