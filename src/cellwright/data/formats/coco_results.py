"""COCO results: a JSON list of predictions, as pycocotools' ``loadRes`` and contest servers read it.

Each entry has ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score`` and ``segmentation`` (RLE with
``counts`` as text). The list does not contain the images, so reading it requires the dataset it was made for. If the
output path ends in .zip, the archive contains ``<its name>.json``, as submission pages expect.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, UsageError
from cellwright.core.files import atomic_path, first_bytes, plain_suffix, read_json
from cellwright.core.ignored import objects_only
from cellwright.core.text import count
from cellwright.data.formats.coco import (
    CocoLoader,
    annotations_of,
    category_ids_of,
    category_map,
    image_ids_of,
    texts_of,
)
from cellwright.data.formats.coco_index import build_index, whole_number
from cellwright.data.formats.coco_quirks import check
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.paths import names_of

_log = logging.getLogger(__name__)

SNIFF_BYTES = 1 << 12


class CocoResults(Format):
    name = "coco_results"
    description = "COCO results: a JSON list of predictions (.json, or .zip for a submission)"

    def sniff(self, path: Path) -> bool:
        """Whether a .json file is an empty list, or a list whose first entry has an image id or category id."""
        if plain_suffix(path) != ".json" or not path.is_file():
            return False
        head = first_bytes(path, SNIFF_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head[:1] != b"[":
            return False
        is_empty = head[1:].lstrip()[:1] == b"]"
        return is_empty or b'"image_id"' in head or b'"category_id"' in head

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Predictions for the images of ``options.images``; an image without entries has an empty prediction.

        Raises `UsageError` without that dataset, and `FormatError` for entries of other images or categories.
        """
        images = options.images
        if not isinstance(images, Dataset):
            raise UsageError(
                "a list of results does not say which images it is for",
                where=path,
                got=None if images is None else "files, which have no image ids",
                remedy="give the dataset that it was made for, as `data` (or as `images` when converting it)",
            )
        numbers = image_ids_of(images)
        categories = [
            {"id": number, "name": name}
            for number, name in zip(category_ids_of(images), images.class_names, strict=True)
        ]
        names = [names_of(sample) for sample in images]
        once = Counter(name for of_sample in names for name in of_sample)
        names = [frozenset(name for name in of_sample if once[name] == 1) for of_sample in names]
        aliases = {name: number for of_sample, number in zip(names, numbers, strict=True) for name in of_sample}
        records = [
            {"id": number, "file_name": sample.id, "height": sample.image_hw[0], "width": sample.image_hw[1]}
            for number, sample in zip(numbers, images, strict=True)
        ]
        index = build_index(path, images=records, categories=categories, aliases=aliases)
        if index.facts is not None:
            check(index.facts, path, scored=True)
        class_names = options.select_classes(images.class_names, path)
        class_of = category_map(categories, class_names)
        samples = []
        for k, sample in enumerate(images):
            spans, hw = index.spans_of(k), sample.image_hw
            load = CocoLoader(path, numbers[k], hw, spans, class_of, True, texts_of(index, spans), names=names[k])
            samples.append(dataclasses.replace(sample, load=load, image_id=numbers[k], source=self.name))
        info = images.info | {"format": self.name}
        notes = (*images.notes, *index.notes)
        return dataclasses.replace(images, samples=tuple(samples), class_names=class_names, info=info, notes=notes)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write a list of results to ``out`` (.json, or a .zip that contains one), with masks as RLE text.

        With ``options.image_ids``, exactly the images of that list are written, with its ids; a warning counts the
        others. Raises `UsageError` for objects without scores, and `InputError` if a listed image has no prediction or
        another size.
        """
        if out.suffix.lower() not in (".json", ".zip"):
            raise UsageError("a list of results is a single file", where=out, expected="a name ending in .json or .zip")
        chosen = _chosen(dataset, options.image_ids)
        with atomic_path(out) as temporary:
            entries = _entries(dataset, chosen, options)
            if out.suffix.lower() == ".json":
                with temporary.open("wb") as file:
                    _write_list(file, entries)
            else:
                # With a fixed date, equal predictions give equal bytes.
                member = zipfile.ZipInfo(f"{out.stem}.json", date_time=(1980, 1, 1, 0, 0, 0))
                member.compress_type = zipfile.ZIP_DEFLATED
                with zipfile.ZipFile(temporary, "w") as archive, archive.open(member, "w", force_zip64=True) as file:
                    _write_list(file, entries)
        return [out]


def _entries(dataset: Dataset, chosen: list[tuple[Sample, int]], options: WriteOptions) -> Iterator[dict[str, Any]]:
    category_ids = category_ids_of(dataset)
    for sample, number in options.track(chosen, "writing results", total=len(chosen)):
        instances = objects_only(sample.read_instances())
        if instances.scores is None:
            raise UsageError(
                "a list of results requires scores",
                where=f"sample {sample.id}",
                got="ground truth",
                remedy="export predictions, or choose the format coco",
            )
        for annotation in annotations_of(instances, number, category_ids):
            yield {key: annotation[key] for key in ("image_id", "category_id", "bbox", "score", "segmentation")}


def _write_list(file: BinaryIO | Any, entries: Iterator[dict[str, Any]]) -> None:
    file.write(b"[")
    for k, entry in enumerate(entries):
        file.write((b",\n" if k else b"\n") + json.dumps(entry, allow_nan=False).encode("ascii"))
    file.write(b"\n]\n")


def _chosen(dataset: Dataset, image_ids: Path | None) -> list[tuple[Sample, int]]:
    """The samples to write and their image ids."""
    if image_ids is None:
        return list(zip(dataset, image_ids_of(dataset), strict=True))
    listed = read_image_ids(image_ids)
    by_name = _samples_by_name(dataset)
    samples = {name: by_name.get(name) or by_name.get(name.rpartition(".")[0]) for name, _, _ in listed}
    missing = [name for name, sample in samples.items() if sample is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{len(missing)} of the {len(listed)} listed images have no prediction",
            where=image_ids,
            got=", ".join(missing[:3]) + more,
            expected=f"names such as {', '.join(list(by_name)[:2]) or '(there are no predictions)'}",
            remedy="predict all images of the list first",
        )
    named = {name: sample for name, sample in samples.items() if sample is not None}
    written = {sample.id for sample in named.values()}
    omitted = [sample.id for sample in dataset if sample.id not in written]
    if omitted:
        verb = "is" if len(omitted) == 1 else "are"
        text = f"{count(len(omitted), 'predicted image')} {verb} not in this list and left out, such as {omitted[0]}"
        _log.warning("%s: %s", image_ids.name, text)
    chosen = []
    for name, number, image_hw in listed:
        sample = named[name]
        if image_hw is not None and image_hw != sample.image_hw:
            raise InputError(
                "a listed image and its prediction differ in size",
                where=f"{image_ids}, {name}",
                got=f"prediction {sample.image_hw[0]} x {sample.image_hw[1]} (height x width)",
                expected=f"{image_hw[0]} x {image_hw[1]}",
                remedy="predict the image of the list, not a resized copy",
            )
        chosen.append((sample, number))
    return chosen


def read_image_ids(path: Path) -> list[tuple[str, int, tuple[int, int] | None]]:
    """(file name, id, (height, width) or None) of each entry of an image list; `FormatError` if it is not a list of
    images."""
    listed = read_json(path)
    expected = '[{"file_name": "a.png", "id": 1, "height": 512, "width": 512}, ...]'
    if not isinstance(listed, list) or not listed:
        raise FormatError("not a list of images", where=path, got=type(listed).__name__, expected=expected)
    entries = []
    for k, entry in enumerate(listed):
        where = f"{path}, entry {k + 1}"
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise FormatError("an entry has no file name", where=where, got=str(entry)[:60], expected=expected)
        image_hw = None
        if entry.get("height") is not None and entry.get("width") is not None:
            image_hw = whole_number(entry["height"], "height", where), whole_number(entry["width"], "width", where)
        entries.append((entry["file_name"], whole_number(entry.get("id"), "id", where), image_hw))
    for what, values in (("file name", [e[0] for e in entries]), ("id", [e[1] for e in entries])):
        duplicates = sorted((value for value, n in Counter(values).items() if n > 1), key=str)
        if duplicates:
            raise FormatError(
                f"two entries have the same {what}", where=path, got=duplicates[0], remedy="remove one of them"
            )
    return entries


def _samples_by_name(dataset: Dataset) -> dict[str, Sample]:
    """Samples by the relative path of their image and, if it is unique, by its bare file name."""
    by_name: dict[str, Sample] = {}
    bare: dict[str, list[Sample]] = {}
    for sample in dataset:
        if sample.image_path is None:
            by_name[sample.id] = sample  # without a file there is only the id
            continue
        name = sample.image_path.name
        bare.setdefault(name, []).append(sample)
        parent = sample.id.rpartition("/")[0]
        by_name[f"{parent}/{name}" if parent else name] = sample
    for name, samples in bare.items():
        if len(samples) == 1:
            by_name.setdefault(name, samples[0])
    return by_name
