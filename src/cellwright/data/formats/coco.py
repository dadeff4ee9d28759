"""COCO instances JSON, and our own dataset on disk, which is one: ``DATASET/dataset.json``.

Ours adds to COCO: ``schema_version``, ``kind`` (truth or predictions), ``licence``, and in each image ``sample_id``,
``split``, ``group``, ``source`` and ``pixel_size_um``; in each annotation ``object_id``. Masks are compressed RLE,
image paths are relative to the JSON. A prediction folder's ``predictions.json`` is the same file with scores.

Read: compressed and uncompressed RLE, polygons, crowds (they become ``ignore``), annotations as a list or as a mapping
(LIVECell), images in any of COCO's usual places. Classes are the categories in ascending order of their ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.files import atomic_path
from cellwright.data.formats.class_names import named_classes
from cellwright.data.formats.coco_index import CocoIndex, open_index, write_sidecar
from cellwright.data.formats.coco_objects import CocoLoader, annotations_of, category_map
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.image_folder import sample_ids
from cellwright.data.formats.pairing import copy_image, output_path
from cellwright.data.images.read import image_hw_of, walk_visible

SCHEMA_VERSION = 1
DATASET_NAME = "dataset.json"
PREDICTIONS_NAME = "predictions.json"
SNIFF_BYTES = 1 << 16


def sniff(path: Path) -> bool:
    """Whether ``path`` is a COCO instances file, or a folder with our ``dataset.json`` or ``predictions.json``."""
    if path.is_dir():
        return is_own_folder(path)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(SNIFF_BYTES)
        file.seek(max(0, path.stat().st_size - SNIFF_BYTES))
        both = head + file.read()
    is_object = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return is_object and any(word in both for word in (b'"annotations"', b'"images"', b'"categories"'))


def is_own_folder(path: Path) -> bool:
    """Whether a folder is a dataset or prediction folder of ours, whatever else lies in it."""
    return any((path / name).is_file() for name in (DATASET_NAME, PREDICTIONS_NAME))


def read(path: Path, options: ReadOptions) -> Dataset:
    """The samples of a COCO file (or of our folder); objects are decoded when a sample's are read."""
    json_path = _json_in(path)
    index = open_index(json_path)
    found = [category["name"] for category in index.categories]
    class_names = named_classes(found, options, json_path)
    class_of = category_map(index.categories, class_names)
    image_paths = _image_paths(index, json_path, required=options.require_images)
    ids = _sample_ids(index)
    samples = []
    for k, image in enumerate(options.track(index.images, "reading images", total=len(index.images))):
        image_hw = _image_hw(image, image_paths[k], json_path)
        pixel_size = image.get("pixel_size_um")
        samples.append(
            Sample(
                id=ids[k],
                image_path=image_paths[k],
                image_hw=image_hw,
                load=CocoLoader(json_path, image["id"], image_hw, index.spans_of(k), class_of, index.scored),
                image_id=image["id"],
                split=image.get("split"),
                group=image.get("group"),
                pixel_size_um=(float(pixel_size[0]), float(pixel_size[1])) if pixel_size else None,
                source=image.get("source", FORMAT.name),
            )
        )
    id_of = {category["name"]: category["id"] for category in index.categories}
    info = {k: v for k, v in _facts(index).items() if k not in ("format", "category_ids")}
    info |= {"format": FORMAT.name, "category_ids": [id_of[name] for name in class_names]}
    return Dataset(tuple(samples), class_names, json_path.parent, _licence(index), info)


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
    """Write a dataset: ``out/dataset.json`` with its sidecar, and the images where they are to be copied.

    An ``out`` that ends in .json is the file itself; it gets a sidecar only where it is called ``dataset.json``. The
    dataset may be the one that is read from that file: it is replaced when the new one is whole.
    """
    json_path = out if out.suffix == ".json" else out / DATASET_NAME
    images, written = _image_records(dataset, json_path, options)
    categories = [
        {"id": number, "name": name} for number, name in zip(category_ids_of(dataset), dataset.class_names, strict=True)
    ]
    info = {key: value for key, value in dataset.info.items() if key not in ("format", "category_ids")}
    sections = {"schema_version": SCHEMA_VERSION, "kind": "truth", "info": info, "licence": dataset.licence}
    stream = _Stream(dataset, images, categories, options)
    # The kind is known once the first sample has been read; a file without samples is truth.
    sections["kind"] = "predictions" if stream.scored else "truth"
    with atomic_path(json_path) as temporary, temporary.open("wb") as file:
        spans, starts = stream.write(file, sections)
    index = CocoIndex(json_path, images, categories, sections, starts, spans, stream.scored)
    sidecar = [write_sidecar(index)] if json_path.name == DATASET_NAME else []
    return [json_path, *sidecar, *written]


def category_ids_of(dataset: Dataset) -> list[int]:
    """The COCO number of every class: those it was read with where they still rise with the classes, else 1..K."""
    ids = dataset.info.get("category_ids")
    if isinstance(ids, list) and len(ids) == len(dataset.class_names) and ids == sorted(set(ids)):
        return ids
    return list(range(1, len(dataset.class_names) + 1))


def image_ids_of(dataset: Dataset) -> list[int]:
    """The COCO number of every sample: its own where all have one and no two the same, else 1..N."""
    ids = [sample.image_id for sample in dataset]
    whole = [number for number in ids if number is not None]
    return whole if len(whole) == len(ids) == len(set(whole)) else list(range(1, len(ids) + 1))


class _Stream:
    """Writes the file sample by sample and remembers where each annotation went."""

    def __init__(
        self, dataset: Dataset, images: list[dict[str, Any]], categories: list[dict[str, Any]], options: WriteOptions
    ) -> None:
        self._dataset, self._images, self._categories, self._options = dataset, images, categories, options
        self._first = dataset[0].read_instances() if len(dataset) else None
        self.scored = self._first is not None and self._first.scores is not None

    def write(self, file: BinaryIO, sections: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Spans (A, 2) and starts (I + 1,) of what was written."""
        file.write(b"{\n")
        for name, value in sections.items():
            file.write(_json_bytes(name) + b": " + _json_bytes(value) + b",\n")
        file.write(b'"categories": ' + _json_bytes(self._categories) + b",\n")
        file.write(b'"images": [\n' + b",\n".join(map(_json_bytes, self._images)) + b'\n],\n"annotations": [')
        spans: list[tuple[int, int]] = []
        starts, at, separator = [0], file.tell(), b"\n"
        category_ids = [category["id"] for category in self._categories]
        samples = self._options.track(self._dataset.samples, "writing objects", total=len(self._dataset))
        for k, sample in enumerate(samples):
            instances = self._first if k == 0 and self._first is not None else sample.read_instances()
            if (instances.scores is not None) != self.scored:
                raise InputError(
                    "predictions and truth cannot stand in one dataset",
                    where=f"sample {sample.id}",
                    got="objects " + ("with" if instances.scores is not None else "without") + " scores",
                    remedy="keep them in two files",
                )
            for annotation in annotations_of(instances, self._images[k]["id"], category_ids):
                text = _json_bytes({"id": len(spans) + 1, **annotation})
                file.write(separator + text)
                at += len(separator)
                spans.append((at, at + len(text)))
                at, separator = at + len(text), b",\n"
            starts.append(len(spans))
        file.write(b"\n]\n}\n")
        return np.array(spans, np.int64).reshape(-1, 2), np.array(starts, np.int64)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode("ascii")


def _image_records(dataset: Dataset, json_path: Path, options: WriteOptions) -> tuple[list[dict[str, Any]], list[Path]]:
    """The images section, and the image files written where they are copied."""
    records, written = [], []
    for sample, number in zip(dataset, image_ids_of(dataset), strict=True):
        target = sample.image_path
        if options.copy_images and sample.image_path is not None:
            copied = copy_image(sample, output_path(json_path.parent / "images", sample.id, ""))
            written += copied
            target = copied[0]
        record = {
            "id": number,
            "file_name": _relative(target, json_path.parent) if target is not None else f"{sample.id}",
            "width": sample.image_hw[1],
            "height": sample.image_hw[0],
            "sample_id": sample.id,
        }
        optional = {
            "split": sample.split,
            "group": sample.group,
            "pixel_size_um": list(sample.pixel_size_um) if sample.pixel_size_um else None,
            "source": sample.source or None,
            "has_image": None if target is not None else False,
        }
        records.append(record | {key: value for key, value in optional.items() if value is not None})
    return records, written


def _relative(image: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(image.resolve(), folder.resolve())).as_posix()
    except ValueError as error:
        raise OutputError(
            "the images lie on another drive than the dataset, so no relative path leads to them",
            where=image,
            remedy="copy them with --copy-images",
        ) from error


def _json_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (DATASET_NAME, PREDICTIONS_NAME):
        if (path / name).is_file():
            return path / name
    remedy = "make one with: cellwright data convert"
    raise InputError("no dataset here", where=path, expected=DATASET_NAME, remedy=remedy)


def _facts(index: CocoIndex) -> dict[str, Any]:
    info = index.sections.get("info")
    return info if isinstance(info, dict) else {}


def _licence(index: CocoIndex) -> str:
    if isinstance(index.sections.get("licence"), str):
        return index.sections["licence"]
    licences = index.sections.get("licenses")
    if not isinstance(licences, list):
        return ""
    return "; ".join(one["name"] for one in licences if isinstance(one, dict) and isinstance(one.get("name"), str))


def _sample_ids(index: CocoIndex) -> list[str]:
    if all(isinstance(image.get("sample_id"), str) for image in index.images):
        return [image["sample_id"] for image in index.images]
    return sample_ids([Path(image["file_name"]) for image in index.images], Path())


def _image_hw(image: dict[str, Any], path: Path | None, json_path: Path) -> tuple[int, int]:
    if image.get("height") is not None and image.get("width") is not None:
        return image["height"], image["width"]
    if path is None:
        raise FormatError(
            "an image's size is not known",
            where=f"{json_path}, image {image['file_name']}",
            got="no width and height, and no file",
            remedy="add width and height to the image's record",
        )
    return image_hw_of(path)


def _image_paths(index: CocoIndex, json_path: Path, *, required: bool) -> list[Path | None]:
    """The file of every image, or None; `InputError` naming the missing ones where images are required."""
    find = _finder(json_path, is_ours="schema_version" in index.sections)
    paths = [None if image.get("has_image") is False else find(image["file_name"]) for image in index.images]
    wanted = [image["file_name"] for image, path in zip(index.images, paths, strict=True) if path is None]
    if required and wanted:
        more = f" and {len(wanted) - 3} more" if len(wanted) > 3 else ""
        raise InputError(
            f"{len(wanted)} of {len(paths)} images are missing",
            where=json_path,
            got=", ".join(wanted[:3]) + more,
            expected="files relative to the JSON's folder, or in images/ beside it",
            remedy="put the images there; a dataset that was moved without its images can be converted again",
        )
    return paths


def _finder(json_path: Path, *, is_ours: bool) -> Callable[[str], Path | None]:
    """A function that gives the path of an image's file name, or None. Ours are relative to the JSON; others lie
    beside it, in ``images``, in COCO's ``../train2017`` for ``instances_train2017.json``, or anywhere below."""
    here, above = json_path.parent, json_path.parent.parent
    if is_ours:
        folders = [here]
    else:
        part = json_path.stem.rpartition("_")[2]
        folders = [here, here / "images", above, above / "images", above / part, here / part]
    below: dict[str, list[Path]] = {}

    def find(file_name: str) -> Path | None:
        for folder in folders:
            if (folder / file_name).is_file():
                return folder / file_name
        if is_ours:
            return None
        if not below:
            for file in walk_visible(here):
                below.setdefault(file.name, []).append(file)
        found = below.get(Path(file_name).name, [])
        return found[0] if len(found) == 1 else None

    return find


FORMAT = Format(
    name="coco",
    describe="COCO instances JSON (RLE or polygons), and cellwright's own dataset folder",
    sniff=sniff,
    read=read,
    write=write,
)
