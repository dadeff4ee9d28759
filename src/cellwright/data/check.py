"""What is wrong with a dataset, found before training finds it: `check_dataset`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import CellwrightError, InputError
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.data.formats import FORMATS
from cellwright.data.images.read import read_image

Severity = Literal["error", "warning", "suspect", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "suspect", "note")

# Two masks this alike outline one object twice, drawn by two hands or saved at two sizes.
NEARLY_SAME_IOU = 0.9
# No nucleus is that small at any magnification in use; such masks are crumbs of a larger one.
CRUMB_PX = 4
# Objects named in one finding; the rest are counted.
SHOWN_IDS = 5


@dataclass(frozen=True)
class Finding:
    """One thing to know: how bad it is, where, what was found, and what to do about it."""

    severity: Severity
    where: str
    what: str
    remedy: str


def check_dataset(dataset: Dataset, *, track: Track = no_progress) -> list[Finding]:
    """Everything wrong or worth knowing, worst first, in the order of the samples. An empty list is a clean dataset.

    Every image and mask is decoded once. Nothing is raised for bad content: it becomes a finding.
    """
    findings: list[Finding] = []
    seen: dict[bytes, Sample] = {}
    n_objects, all_read = 0, True
    for sample in track(dataset.samples, "checking", total=len(dataset)):
        findings += _check_image(sample, seen, dataset.root)
        try:
            instances = sample.read_instances()
        except CellwrightError as error:
            findings.append(_from_error(error, sample, dataset.root))
            all_read = False
            continue
        n_objects += len(instances)
        findings += _check_objects(sample, instances, dataset)
    if all_read and not n_objects:
        findings.append(_no_objects(dataset))
    findings += _clutter(dataset)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def require_objects(dataset: Dataset) -> None:
    """Raise `InputError` where no sample holds an object; reads samples until one does."""
    if not any(len(sample.read_instances()) for sample in dataset):
        finding = _no_objects(dataset)
        raise InputError(
            finding.what, where=finding.where, got=f"{len(dataset)} images, 0 objects", remedy=finding.remedy
        )


def _no_objects(dataset: Dataset) -> Finding:
    return Finding(
        "error",
        str(dataset.root or "dataset"),
        "this dataset has no objects",
        "check that the masks lie where the format expects them (cellwright data convert --format ...)",
    )


def _check_image(sample: Sample, seen: dict[bytes, Sample], root: Path | None) -> Iterator[Finding]:
    """Findings about the image file; ``seen`` gathers the pixels' digests of the samples so far."""
    if sample.image_path is None:
        yield Finding("warning", sample.id, "no image file is known", "convert the dataset again beside its images")
        return
    try:
        image = read_image(sample.image_path)
    except CellwrightError as error:
        yield _from_error(error, sample, root)
        return
    if image.image_hw != sample.image_hw:
        got, expected = (f"{height} x {width}" for height, width in (image.image_hw, sample.image_hw))
        yield Finding(
            "error",
            _shown(sample.image_path, root),
            f"the image is {got} (height x width), its annotations are for {expected}",
            "put the annotated image there, or annotate this one",
        )
    content = hashlib.blake2b(np.ascontiguousarray(image.data).tobytes(), digest_size=16)
    content.update(repr((image.data.shape, image.data.dtype.str)).encode())
    first = seen.setdefault(content.digest(), sample)
    if first is not sample:
        leaks = first.split != sample.split
        yield Finding(
            "error" if leaks else "warning",
            _shown(sample.image_path, root),
            f"the same pixels as {first.id}" + (f", in another split ({first.split}, {sample.split})" if leaks else ""),
            "remove one of them, or give both the same group and split again",
        )


def _check_objects(sample: Sample, instances: Instances, dataset: Dataset) -> Iterator[Finding]:
    where = sample.id
    if not len(instances):
        yield Finding("note", where, "no objects in this image", "right for a background image; else add its masks")
        return
    areas = instances.masks.areas
    for chosen, what, remedy in (
        (areas == 0, "with an empty mask", "delete these objects: they outline nothing"),
        ((areas > 0) & (areas < CRUMB_PX), f"of fewer than {CRUMB_PX} px", "delete them where they are crumbs"),
        (instances.class_ids >= len(dataset.class_names), "of a class without a name", "name all classes"),
    ):
        if chosen.any():
            yield Finding("warning", where, f"{_objects(instances.ids[chosen])} {what}", remedy)
    i, j, iou = instances.masks.iou(instances.masks)
    once = i < j
    i, j, iou = i[once], j[once], iou[once]
    for chosen, what in (
        (iou == 1, "outlined twice"),
        ((iou < 1) & (iou >= NEARLY_SAME_IOU), f"outlined nearly twice (IoU {NEARLY_SAME_IOU:g} and above)"),
    ):
        if chosen.any():
            yield Finding("warning", where, f"{_objects(instances.ids[j[chosen]])} {what}", "delete one of each pair")
    partly = iou < NEARLY_SAME_IOU
    if partly.any():
        n = np.unique(np.concatenate([i[partly], j[partly]])).size
        yield Finding(
            "note",
            where,
            f"{n} objects overlap others ({int(partly.sum())} pairs)",
            "nothing here; formats with one label a pixel give shared pixels to one object",
        )


def _objects(ids: np.ndarray) -> str:
    """``"object 3"``, ``"2 objects (3, 9)"``."""
    if len(ids) == 1:
        return f"object {int(ids[0])}"
    more = ", ..." if len(ids) > SHOWN_IDS else ""
    return f"{len(ids)} objects ({', '.join(map(str, ids[:SHOWN_IDS].tolist()))}{more})"


def _clutter(dataset: Dataset) -> Iterator[Finding]:
    chosen = FORMATS.get(str(dataset.info.get("format")))
    if chosen is None or dataset.root is None or not dataset.root.is_dir():
        return
    for one in chosen.clutter(dataset.root):
        yield Finding(
            "note", _shown(one.path, dataset.root), f"passed over: {one.why}", "delete it where it is a stray"
        )


def _from_error(error: CellwrightError, sample: Sample, root: Path | None) -> Finding:
    where = _shown(error.where, root) if isinstance(error.where, Path) else str(error.where or sample.id)
    facts = [("got", error.got), ("expected", error.expected)]
    said = "; ".join(f"{name} {value}" for name, value in facts if value is not None)
    what = f"{error.problem} ({said})" if said else error.problem
    return Finding("error", where, what, error.remedy or "mend the file, or take the sample out")


def _shown(path: Path, root: Path | None) -> str:
    return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else str(path)
