"""COCO instances JSON, which is also the format of cellwright's own datasets: ``DATASET/dataset.json``.

Reads compressed and uncompressed RLE, polygons, crowds and ``info.regions`` (both become ``ignore``), annotations as a
list or as a mapping (LIVECell), and images in any of COCO's usual places. Classes are the categories in ascending order
of their ids.

A ``dataset.json`` has these fields beyond COCO's: ``schema_version``, ``kind`` ("truth" or "predictions") and
``licence``; per image ``sample_id``, ``split``, ``group``, ``source``, ``pixel_size_um``, and ``z`` and ``t`` where
each plane or time point of a file is an image by itself; per annotation ``object_id``; ``info.regions`` has the regions
of no class. Masks are compressed RLE, and image paths are relative to the JSON file. The ``predictions.json`` of a
prediction folder is the same format with scores.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cellwright.core.class_ids import NO_CLASS
from cellwright.core.coco import whole
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError, UsageError
from cellwright.core.files import atomic_path, unreadable
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.scores import check_threshold
from cellwright.data.formats.coco_index import CocoIndex, open_index, whole_number, write_sidecar
from cellwright.data.formats.coco_layout import (
    CocoFile,
    CocoImages,
    coco_files,
    has_coco_files,
    is_coco_file,
)
from cellwright.data.formats.coco_quirks import check, grouping_categories
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.image_folder import sample_ids
from cellwright.data.formats.paths import absolute_note, annotated_hw, copy_image, folded, output_path
from cellwright.data.formats.regions import WithRegions, coco_regions, region_of, region_records
from cellwright.data.merge import keep_classes, merge_datasets

SCHEMA_VERSION = 1
DATASET_NAME = "dataset.json"
PREDICTIONS_NAME = "predictions.json"
WRITTEN = "written"  # in the info of a predictions.json: what was written for each image, see `Predictions`


class Coco(Format):
    name = "coco"
    description = "COCO instances JSON (RLE or polygons), folders of them, and cellwright's own dataset folder"

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is a COCO instances file, or a folder with a ``dataset.json`` or with COCO files."""
        if path.is_dir():
            return (path / DATASET_NAME).is_file() or has_coco_files(path)
        return is_coco_file(path)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """The samples of a COCO file or of a dataset folder, or of all COCO files in a folder with their splits."""
        if not path.is_dir() or is_own_folder(path):
            return _read_file(open_index(_json_in(path)), options, None)
        files = coco_files(path)
        if len(files) > 1:
            return _read_files(files, path, options)
        return _in_split(_read_file(open_index(files[0].path), options, path), files[0].split)

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
        passing = ("format", "category_ids", *(() if json_path.name == PREDICTIONS_NAME else (WRITTEN,)))
        info = {key: value for key, value in dataset.info.items() if key not in passing}
        sections = {"schema_version": SCHEMA_VERSION, "kind": "truth", "info": info, "licence": dataset.licence}
        stream = _AnnotationStream(dataset, images, categories, options)
        # The first sample determines the kind; a file without samples is ground truth.
        sections["kind"] = "predictions" if stream.scored else "truth"
        with atomic_path(json_path) as temporary, temporary.open("w+b") as file:
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
    scored: whether the objects are predictions. texts: the annotations, if the spans do not refer to the file itself.
    crowds_are_objects: disregard ``iscrowd``. names: what may stand for the image id (see `build_index`).

    Raises `FormatError` that names file, annotation and field. An annotation with an empty mask gives an empty mask.
    """

    path: Path
    image_id: int | str
    image_hw: tuple[int, int]
    spans: np.ndarray
    class_of: dict[int, int]
    scored: bool
    texts: tuple[bytes, ...] | None = None
    crowds_are_objects: bool = False
    names: frozenset[str] = frozenset()

    def __call__(self) -> Instances:
        annotations = self._annotations()
        if self.crowds_are_objects:
            annotations = [{**annotation, "iscrowd": 0} for annotation in annotations]
        return Instances.from_coco(
            annotations, self.image_hw, categories=self.class_of, scored=self.scored, source=self.path
        )

    def _annotations(self) -> list[dict[str, Any]]:
        if not len(self.spans):
            return []
        texts: Sequence[bytes] | None = self.texts
        if texts is None:
            try:
                with self.path.open("rb") as file:
                    texts = _read_spans(file, self.spans)
            except OSError as error:
                raise unreadable(self.path, error) from error
        try:
            # Text in another encoding, such as a comment, does not matter here.
            annotations: list[Any] = [json.loads(text.decode(errors="replace")) for text in texts]
        except ValueError:
            annotations = [None]
        if not all(isinstance(a, dict) and self._is_own(a.get("image_id")) for a in annotations):
            raise FormatError(
                "this file has changed since it was opened",
                where=self.path,
                got="annotations at positions that its index does not list",
                remedy="open the dataset again; if there is a .index file next to it, delete that file first",
            )
        return annotations

    def _is_own(self, image_id: Any) -> bool:
        number = whole(image_id)
        if number is not None:
            return number == self.image_id
        return isinstance(image_id, str) and (image_id == self.image_id or folded(image_id) in self.names)


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


def _read_file(index: CocoIndex, options: ReadOptions, root: Path | None) -> Dataset:
    """The samples of one COCO file. root: the folder that the user named, below which images are searched too."""
    json_path, is_ours = index.path, "schema_version" in index.sections
    notes = [] if index.facts is None else check(index.facts, json_path, scored=index.scored)
    notes += index.notes
    used = index.used_categories
    grouping = [] if used is None else grouping_categories(index.categories, used)
    categories = [category for category in index.categories if category["name"] not in grouping]
    if grouping:
        text = f"category {', '.join(grouping)} was skipped: it groups other categories and no object has it"
        notes.append(Note("categories that only group others were skipped", text, json_path.name))
    class_names = options.select_classes([category["name"] for category in categories], json_path)
    class_of = category_map(categories, class_names)
    finder = CocoImages(json_path, options, root, is_ours=is_ours)
    paths = finder.find_all(index.images)
    notes += absolute_note([image["file_name"] for image in index.images], paths, json_path)
    check_sizes = options.require_images and (not is_ours or options.images is not None)
    series = options.series if options.series is not None else _info(index).get("series")
    crowds_are_objects = index.facts is not None and index.facts.crowds_are_objects
    samples, ids = [], _sample_ids(index)
    regions = coco_regions(_info(index), index.images, json_path)
    for k, image in enumerate(options.track(index.images, "reading images", total=len(index.images))):
        image_hw = _image_hw(image, paths[k], json_path, check=check_sizes, series=series)
        pixel_size = image.get("pixel_size_um")
        number = image["id"]
        spans = index.spans_of(k)
        load = CocoLoader(
            json_path, number, image_hw, spans, class_of, index.scored, texts_of(index, spans), crowds_are_objects
        )
        samples.append(
            Sample(
                id=ids[k],
                image_path=paths[k],
                image_hw=image_hw,
                load=WithRegions(load, tuple(region_of(r, image_hw) for r in regions[k])) if k in regions else load,
                image_id=number if isinstance(number, int) else None,
                split=image.get("split") if isinstance(image.get("split"), str) else None,
                group=image.get("group"),
                pixel_size_um=(float(pixel_size[0]), float(pixel_size[1])) if pixel_size else None,
                source=image.get("source", Coco.name),
                z=_plane_of(image, "z", json_path) if is_ours else None,
                t=_plane_of(image, "t", json_path) if is_ours else None,
            )
        )
    id_of = {category["name"]: category["id"] for category in categories}
    info = {k: v for k, v in _info(index).items() if k not in ("format", "category_ids")}
    recorded = info.pop("regions", None)  # the samples have them
    if recorded is not None and not isinstance(recorded, list):  # those of QuPath, as earlier versions wrote them
        info["qupath_regions"] = recorded
    info |= {"format": Coco.name, "category_ids": [id_of[name] for name in class_names]}
    _check_recorded_threshold(info, len(categories), json_path)
    return Dataset(tuple(samples), class_names, root or json_path.parent, _licence(index), info, tuple(notes))


def _check_recorded_threshold(info: Mapping[str, Any], n_classes: int, path: Path) -> None:
    """Raise `FormatError` if the score threshold of predictions is not one number, or one per class."""
    recorded = info.get("score_threshold", 0.0)
    try:
        threshold = check_threshold(recorded)
    except UsageError:
        threshold = None
    if threshold is None or (isinstance(threshold, tuple) and len(threshold) != n_classes):
        expected = "a number from 0 to 1, or one per class"
        raise FormatError("invalid score_threshold", where=path, got=repr(recorded)[:60], expected=expected)


def _read_files(files: Sequence[CocoFile], root: Path, options: ReadOptions) -> Dataset:
    """The samples of several COCO files in one folder: one per split, or one per folder."""
    everything = dataclasses.replace(options, class_names=None)
    parts: dict[str, Dataset] = {}
    notes: list[Note] = []
    for file in files:
        index = open_index(file.path, may_be_empty=True)
        if not index.images or (index.facts is not None and not index.facts.n):
            text = f"{file.path.relative_to(root).as_posix()} was skipped: it lists no images or no annotations"
            notes.append(Note("a COCO file without images or annotations was skipped", text))
        else:
            parts[file.name] = _in_split(_read_file(index, everything, root), file.split)
    if not parts:
        got = ", ".join(file.name for file in files)
        raise InputError("no COCO file here has annotations", where=root, got=got, expected="at least one with objects")
    counts = Counter(sample.id for part in parts.values() for sample in part)
    if max(counts.values(), default=1) > 1:
        parts = {
            name: part.with_samples([dataclasses.replace(sample, id=f"{name}/{sample.id}") for sample in part])
            for name, part in parts.items()
        }
    merged = merge_datasets(list(parts.values()))
    merged = dataclasses.replace(merged, root=root, info={"format": Coco.name}, notes=(*notes, *merged.notes))
    return merged if options.class_names is None else keep_classes(merged, options.class_names)


def _in_split(dataset: Dataset, split: str | None) -> Dataset:
    """The dataset with this split for samples that have none."""
    if split is None:
        return dataset
    samples = [s if s.split is not None else dataclasses.replace(s, split=split) for s in dataset]
    return dataset.with_samples(samples)


def texts_of(index: CocoIndex, spans: np.ndarray) -> tuple[bytes, ...] | None:
    """The annotations themselves, if their spans refer to decoded content rather than to the file."""
    if index.content is None:
        return None
    return tuple(index.content[start:end] for start, end in spans.tolist())


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
    plain = [_plain_name(image["file_name"]) for image in index.images]
    full = [image["file_name"].replace("\\", "/") for image in index.images]
    return sample_ids([Path(name) for name in (plain if len(set(plain)) == len(plain) else full)], Path())


def _plain_name(file_name: str) -> str:
    """The relative path of an image; only its name if the path is absolute or leads elsewhere (Label Studio)."""
    parts = file_name.rpartition("?d=")[2].replace("\\", "/").split("/")
    is_relative = parts[0] not in ("", "..") and ":" not in parts[0] and ".." not in parts
    return "/".join(part for part in parts if part not in ("", ".")) if is_relative else parts[-1]


def _plane_of(image: dict[str, Any], axis: str, path: Path) -> int | None:
    """The plane or time point of a file that an image is; None if it is the whole file."""
    number = image.get(axis)
    if number is None or (isinstance(number, int) and not isinstance(number, bool) and number >= 0):
        return number
    where, expected = f"{path}, image {image['file_name']}", "a number from 0, or none"
    raise FormatError(f"invalid {axis}", where=where, got=repr(number)[:60], expected=expected)


def _image_hw(
    image: dict[str, Any], path: Path | None, json_path: Path, *, check: bool, series: int | str | None
) -> tuple[int, int]:
    """The recorded size of an image, or that of its file. check: `InputError` if the two differ."""
    recorded = None
    if image.get("height") is not None and image.get("width") is not None:
        recorded = image["height"], image["width"]
    if recorded is not None and (path is None or not check):
        return recorded
    if path is not None:
        return annotated_hw(json_path, recorded, path, series)
    raise FormatError(
        "the size of an image is unknown",
        where=f"{json_path}, image {image['file_name']}",
        got="no width and height, and no file",
        remedy="add width and height to the record of the image",
    )


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
        """Returns the spans (A, 2) and starts (I + 1,) of the annotations written, as in `CocoIndex`.

        ``sections["info"]`` gets the regions of no class.
        """
        start = _json_start(sections)
        file.write(start)
        file.write(b'"categories": ' + _json_bytes(self._categories) + b",\n")
        file.write(b'"images": [\n' + b",\n".join(map(_json_bytes, self._images)) + b'\n],\n"annotations": [')
        spans: list[tuple[int, int]] = []
        starts, at, separator = [0], file.tell(), b"\n"
        regions: list[dict[str, Any]] = []
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
            regions += region_records(instances, self._images[k]["id"])
            starts.append(len(spans))
        file.write(b"\n]\n}\n")
        moved = 0
        if regions:
            sections["info"] = {**sections["info"], "regions": regions}
            moved = _replace_start(file, len(start), _json_start(sections))
        return np.array(spans, np.int64).reshape(-1, 2) + moved, np.array(starts, np.int64)


def _json_start(sections: dict[str, Any]) -> bytes:
    return b"{\n" + b"".join(_json_bytes(k) + b": " + _json_bytes(v) + b",\n" for k, v in sections.items())


def _replace_start(file: BinaryIO, length: int, start: bytes) -> int:
    """Replace the first ``length`` bytes of a file by a longer start, and return by how much the rest moved."""
    moved, end = len(start) - length, file.seek(0, os.SEEK_END)
    while end > length:
        begin = max(length, end - (1 << 24))
        file.seek(begin)
        block = file.read(end - begin)
        file.seek(begin + moved)
        file.write(block)
        end = begin
    file.seek(0)
    file.write(start)
    return moved


def annotations_of(instances: Instances, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO annotations of the objects of one image, in order, with compressed RLE but without ``id``.

    Regions of no class, and so of no category, are left out; see `region_records`.
    ``object_id`` stores the id of the object: COCO's ``id`` is unique in the file, ours in the image. Numbers are
    written such that reading gives the same float32.
    """
    instances = instances[instances.class_ids != NO_CLASS]
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
    folder = json_path.parent
    for sample, number in zip(dataset, image_ids_of(dataset), strict=True):
        target, place = sample.image_path, folder if options.place is None else options.place
        if options.copy_images and sample.image_path is not None:
            (target,) = copy_image(sample, output_path(folder / "images", sample.id, ""))
            copies.append(target)
            place = folder
        if sample.image_path is None and sample.pixels is not None:
            target = output_path(folder / "images", sample.id, ".tif")
            write_pixels(target, sample.pixels())
            copies.append(target)
            place = folder
        record = {
            "id": number,
            "file_name": _relative(target, place) if target is not None else f"{sample.id}",
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
            "z": sample.z,
            "t": sample.t,
        }
        records.append(record | {key: value for key, value in optional.items() if value is not None})
    return records, copies


def write_pixels(path: Path, pixels: np.ndarray) -> None:
    """Write an image (H, W, C) as TIFF, atomically."""
    import tifffile

    photometric = "rgb" if pixels.shape[2] == 3 else "minisblack"
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, pixels, photometric=photometric, compression="zlib", metadata=None)


def _relative(image: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(image.resolve(), folder.resolve())).as_posix()
    except ValueError as error:
        raise OutputError(
            "the images and the dataset are on different drives, so relative paths cannot refer to the images",
            where=image,
            remedy="copy them with `copy_images=True`",
        ) from error
