"""COCO instances JSON, which is also the format of cellwright's own datasets: ``DATASET/dataset.json``.

Reads compressed and uncompressed RLE, polygons, crowds (they become ``ignore``), annotations as a list or as a mapping
(LIVECell), and images in any of COCO's usual places. Classes are the categories in ascending order of their ids.

A ``dataset.json`` has these fields beyond COCO's: ``schema_version``, ``kind`` ("truth" or "predictions") and
``licence``; per image ``sample_id``, ``split``, ``group``, ``source`` and ``pixel_size_um``; per annotation
``object_id``. Masks are compressed RLE, and image paths are relative to the JSON file. The ``predictions.json`` of a
prediction folder is the same format with scores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.files import atomic_path, unreadable
from cellwright.core.instances import Instances
from cellwright.data.formats.coco_index import CocoIndex, open_index, whole_number, write_sidecar
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.image_folder import sample_ids
from cellwright.data.formats.paths import copy_image, output_path
from cellwright.data.images.read import image_hw_of, walk_visible

SCHEMA_VERSION = 1
DATASET_NAME = "dataset.json"
PREDICTIONS_NAME = "predictions.json"
SNIFF_BYTES = 1 << 16


class Coco(Format):
    name = "coco"
    description = "COCO instances JSON (RLE or polygons), and cellwright's own dataset folder"

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is a COCO instances file, or a folder with a ``dataset.json`` or ``predictions.json``."""
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

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """The samples of a COCO file or of a dataset folder."""
        json_path = _json_in(path)
        index = open_index(json_path)
        names = [category["name"] for category in index.categories]
        class_names = options.select_classes(names, json_path)
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
                    source=image.get("source", self.name),
                )
            )
        id_of = {category["name"]: category["id"] for category in index.categories}
        info = {k: v for k, v in _info(index).items() if k not in ("format", "category_ids")}
        info |= {"format": self.name, "category_ids": [id_of[name] for name in class_names]}
        return Dataset(tuple(samples), class_names, json_path.parent, _licence(index), info)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/dataset.json`` with its sidecar index, and the images if ``copy_images`` is set.

        If ``out`` ends in .json, it is the file to write; it gets a sidecar only if its name is ``dataset.json``.
        ``dataset`` may have been read from the same file: that file is replaced once the new one is complete.
        """
        json_path = out if out.suffix == ".json" else out / DATASET_NAME
        images, image_files = _image_records(dataset, json_path, options)
        categories = [
            {"id": number, "name": name}
            for number, name in zip(category_ids_of(dataset), dataset.class_names, strict=True)
        ]
        info = {key: value for key, value in dataset.info.items() if key not in ("format", "category_ids")}
        sections = {"schema_version": SCHEMA_VERSION, "kind": "truth", "info": info, "licence": dataset.licence}
        stream = _AnnotationStream(dataset, images, categories, options)
        # The first sample determines the kind; a file without samples is ground truth.
        sections["kind"] = "predictions" if stream.scored else "truth"
        with atomic_path(json_path) as temporary, temporary.open("wb") as file:
            spans, starts = stream.write(file, sections)
        index = CocoIndex(json_path, images, categories, sections, starts, spans, stream.scored)
        sidecar = [write_sidecar(index)] if json_path.name == DATASET_NAME else []
        return [json_path, *sidecar, *image_files]


def is_own_folder(path: Path) -> bool:
    """Whether a folder is a dataset or prediction folder of cellwright, whatever else is in it."""
    return any((path / name).is_file() for name in (DATASET_NAME, PREDICTIONS_NAME))


def category_ids_of(dataset: Dataset) -> list[int]:
    """The COCO id of each class: the ids it was read with if they still ascend with the classes, else 1..K."""
    ids = dataset.info.get("category_ids")
    if isinstance(ids, list) and len(ids) == len(dataset.class_names) and ids == sorted(set(ids)):
        return ids
    return list(range(1, len(dataset.class_names) + 1))


def image_ids_of(dataset: Dataset) -> list[int]:
    """The COCO id of each sample: its own if every sample has one and they are distinct, else 1..N."""
    ids = [sample.image_id for sample in dataset]
    whole = [number for number in ids if number is not None]
    return whole if len(whole) == len(ids) == len(set(whole)) else list(range(1, len(ids) + 1))


def category_map(categories: Sequence[dict[str, Any]], class_names: Sequence[str]) -> dict[int, int]:
    """Category id -> class id, for the categories whose names are among ``class_names``."""
    return {
        whole_number(c["id"], "id", "categories"): class_names.index(c["name"])
        for c in categories
        if c["name"] in class_names
    }


# Reading the objects of one image


@dataclass(frozen=True, eq=False)
class CocoLoader:
    """Reads the objects of one image from their positions in a COCO file (dataset, instances or results).

    image_id: the image id that its annotations must have. spans: (n, 2) int64, first and last-plus-one byte of each
    annotation, in file order. class_of: category id -> class id; objects of other categories are dropped.
    scored: whether the objects are predictions.

    Raises `FormatError` that names file, annotation and field. An annotation with an empty mask gives an empty mask.
    """

    path: Path
    image_id: int
    image_hw: tuple[int, int]
    spans: np.ndarray
    class_of: dict[int, int]
    scored: bool

    def __call__(self) -> Instances:
        return Instances.from_coco(
            self._annotations(), self.image_hw, categories=self.class_of, scored=self.scored, source=self.path
        )

    def _annotations(self) -> list[dict[str, Any]]:
        if not len(self.spans):
            return []
        try:
            with self.path.open("rb") as file:
                texts = _read_spans(file, self.spans)
        except OSError as error:
            raise unreadable(self.path, error) from error
        try:
            annotations: list[Any] = [json.loads(text) for text in texts]
        except ValueError:
            annotations = [None]
        if not all(isinstance(a, dict) and a.get("image_id") == self.image_id for a in annotations):
            raise FormatError(
                "this file has changed since it was opened",
                where=self.path,
                got="annotations at positions that its index does not list",
                remedy="open the dataset again; if there is a .index file next to it, delete that file first",
            )
        return annotations


def _read_spans(file: BinaryIO, spans: np.ndarray) -> list[bytes]:
    """The bytes of each span, read at once if the spans are close together."""
    first, last = int(spans[:, 0].min()), int(spans[:, 1].max())
    if last - first <= 2 * int((spans[:, 1] - spans[:, 0]).sum()) + (1 << 16):
        file.seek(first)
        block = file.read(last - first)
        return [block[start - first : end - first] for start, end in spans.tolist()]
    texts = []
    for start, end in spans.tolist():
        file.seek(start)
        texts.append(file.read(end - start))
    return texts


# Reading the images


def _json_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (DATASET_NAME, PREDICTIONS_NAME):
        if (path / name).is_file():
            return path / name
    remedy = "create one with: cellwright data convert"
    raise InputError("no dataset here", where=path, expected=DATASET_NAME, remedy=remedy)


def _info(index: CocoIndex) -> dict[str, Any]:
    info = index.sections.get("info")
    return info if isinstance(info, dict) else {}


def _licence(index: CocoIndex) -> str:
    if isinstance(index.sections.get("licence"), str):
        return index.sections["licence"]
    licences = index.sections.get("licenses")
    if not isinstance(licences, list):
        return ""
    names = [licence.get("name") for licence in licences if isinstance(licence, dict)]
    return "; ".join(name for name in names if isinstance(name, str))


def _sample_ids(index: CocoIndex) -> list[str]:
    if all(isinstance(image.get("sample_id"), str) for image in index.images):
        return [image["sample_id"] for image in index.images]
    return sample_ids([Path(image["file_name"]) for image in index.images], Path())


def _image_hw(image: dict[str, Any], path: Path | None, json_path: Path) -> tuple[int, int]:
    if image.get("height") is not None and image.get("width") is not None:
        return image["height"], image["width"]
    if path is None:
        raise FormatError(
            "the size of an image is unknown",
            where=f"{json_path}, image {image['file_name']}",
            got="no width and height, and no file",
            remedy="add width and height to the record of the image",
        )
    return image_hw_of(path)


def _image_paths(index: CocoIndex, json_path: Path, *, required: bool) -> list[Path | None]:
    """The file of each image, or None; `InputError` that names the missing files if images are required."""
    find = _finder(json_path, is_ours="schema_version" in index.sections)
    paths = [None if image.get("has_image") is False else find(image["file_name"]) for image in index.images]
    missing = [image["file_name"] for image, path in zip(index.images, paths, strict=True) if path is None]
    if required and missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{len(missing)} of {len(paths)} images are missing",
            where=json_path,
            got=", ".join(missing[:3]) + more,
            expected="files relative to the folder of the JSON file, or in images/ next to it",
            remedy="put the images there; if the dataset was moved without its images, convert it again",
        )
    return paths


def _finder(json_path: Path, *, is_ours: bool) -> Callable[[str], Path | None]:
    """A function that returns the path of an image file name, or None.

    In our own files, paths are relative to the JSON file. For other files, images are searched next to it, in
    ``images``, in COCO's ``../train2017`` for ``instances_train2017.json``, and finally in all folders below.
    """
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
        candidates = below.get(Path(file_name).name, [])
        return candidates[0] if len(candidates) == 1 else None

    return find


# Writing


class _AnnotationStream:
    """Writes the file sample by sample and records the position of each annotation."""

    def __init__(
        self, dataset: Dataset, images: list[dict[str, Any]], categories: list[dict[str, Any]], options: WriteOptions
    ) -> None:
        self._dataset, self._images, self._categories, self._options = dataset, images, categories, options
        self._first = dataset[0].read_instances() if len(dataset) else None
        self.scored = self._first is not None and self._first.scores is not None

    def write(self, file: BinaryIO, sections: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the spans (A, 2) and starts (I + 1,) of the annotations written, as in `CocoIndex`."""
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
                    "a dataset cannot contain both predictions and ground truth",
                    where=f"sample {sample.id}",
                    got="objects " + ("with" if instances.scores is not None else "without") + " scores",
                    remedy="write them to two datasets",
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


def annotations_of(instances: Instances, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO annotations of the objects of one image, in order, with compressed RLE but without ``id``.

    ``object_id`` stores the id of the object: COCO's ``id`` is unique in the file, ours in the image. Numbers are
    written such that reading gives the same float32.
    """
    boxes = instances.boxes_xyxy.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = [short_float(v) for v in instances.columns.get("area", instances.masks.areas)]
    annotations = []
    for k, runs in enumerate(instances.masks.to_rle()):
        annotation = {
            "image_id": image_id,
            "category_id": category_ids[instances.class_ids[k]],
            "object_id": int(instances.ids[k]),
            "bbox": [short_float(v) for v in (*boxes[k, :2], *sides[k])],
            "area": areas[k],
            "iscrowd": int(instances.ignore[k]),
            "segmentation": runs,
        }
        if instances.scores is not None:
            annotation["score"] = short_float(instances.scores[k])
        annotations.append(annotation)
    return annotations


def short_float(value: float) -> float | int:
    """The shortest number that reads back as the same float32; an int if it is whole."""
    value = float(f"{float(value):.9g}")
    return int(value) if value.is_integer() else value


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode("ascii")


def _image_records(dataset: Dataset, json_path: Path, options: WriteOptions) -> tuple[list[dict[str, Any]], list[Path]]:
    """The ``images`` section, and the image files written if images are copied."""
    records, copies = [], []
    for sample, number in zip(dataset, image_ids_of(dataset), strict=True):
        target = sample.image_path
        if options.copy_images and sample.image_path is not None:
            (target,) = copy_image(sample, output_path(json_path.parent / "images", sample.id, ""))
            copies.append(target)
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
    return records, copies


def _relative(image: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(image.resolve(), folder.resolve())).as_posix()
    except ValueError as error:
        raise OutputError(
            "the images and the dataset are on different drives, so relative paths cannot refer to the images",
            where=image,
            remedy="copy them with `copy_images=True`",
        ) from error
