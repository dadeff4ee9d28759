"""YOLO segmentation labels, as Ultralytics, Roboflow, CVAT and Label Studio write them.

    data.yaml            names: {0: nucleus}, train: images/train, val: images/val
    images/train/x.png   labels/train/x.txt        or        train/images/x.png   train/labels/x.txt

A line is one object: its class number, then x y x y ... as fractions of the width and height, then a score if it is a
prediction. A line of four numbers after the class is a box, which is skipped with a count; a source of boxes only is
refused. An image without a label file is not annotated, while an empty file says that it has no objects.

Written lines trace the edges of pixels, so that the masks are the same to the pixel when they are read again. Holes and
further parts are joined to the outline by lines that run back and forth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import first_bytes, read_text, walk, write_text
from cellwright.core.ignored import objects_only
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note
from cellwright.core.polygons import MultiPolygon
from cellwright.core.safe_yaml import parse_yaml
from cellwright.core.text import count
from cellwright.data.formats.contract import Format, ReadOptions, WriteOptions
from cellwright.data.formats.outlines import check_outlines, without_empty
from cellwright.data.formats.paths import (
    SPLITS,
    ImageFinder,
    copy_image,
    first_files,
    folded,
    images_named,
    name_parts,
    output_path,
    root_of,
)

DATA_FILE = "data.yaml"
_LABELS, _IMAGES = "labels", "images"
# Text files beside labels that are none.
_OTHER_TEXTS = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt", "obj.names")
# Each number matches in one way only, so that no line takes long to be refused.
_LINE = re.compile(rb"\s*\d+(?:\.0)?(?:\s+-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?){4,}\s*$")
_LIMITS = -0.5, 1.5
_MANY = 5
_SNIFFED_FILES = 20


class YoloSeg(Format):
    name = "yolo_seg"
    description = (
        "YOLO segmentation labels (Ultralytics, Roboflow): images/, labels/*.txt, data.yaml; loses ids, scores, "
        "ignore flags"
    )

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is or has a data file with class names beside labels, or text files of lines of labels."""
        files = first_files(path)
        if any(_is_data_file(file) for file in files if len(files) == 1 or file.parent == path):
            return True
        texts = [file for file in files if _may_be_labels(file) and _is_below_labels(file)]
        return any(_LINE.match(first_bytes(file).split(b"\n")[0]) for file in texts[:_SNIFFED_FILES])

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every label file at or below ``path``. Ids are 1..N by line.

        Class names are those of the data file, else of ``classes.txt``, else ``class0``, ``class1``, ... Splits are
        those of the data file, else of the folders.
        """
        root = root_of(path)
        given_file = path.is_file() and not _is_data_file(path)
        data = _read_data_file(path, root)
        files = [path] if given_file else _label_files(root, path)
        finder, found, images = ImageFinder(options, root), Facts(), []
        for file in options.track(files, "reading labels", len(files)):
            found.add(read_labels(file))
            names = ("/".join([*_without_labels(file, root)[:-1], file.stem]), file.stem)
            images.append(finder.find(file, names, None, _mirrored(file)))
        found.check(path)
        file_names = data.names or _listed_names(root) or [f"class{k}" for k in range(found.n_classes)]
        _check_classes(found, file_names, path)
        has_names = bool(data.names or _listed_names(root))
        names = options.select_classes(file_names, path) if has_names else options.name_classes(file_names, path)
        class_of = tuple(names.index(name) if name in names else -1 for name in file_names) if has_names else ()
        class_of = class_of or tuple(range(found.n_classes))
        samples = []
        for file, image, (sample_id, split) in zip(files, images, _places(files, root, data), strict=True):
            load = LoadLines(file, image.image_hw, class_of, found.scored)
            size_um = image.pixel_size_um
            samples.append(Sample(sample_id, image.path, image.image_hw, load, None, split, None, size_um, self.name))
        notes = (*finder.notes, *found.notes())
        return Dataset(tuple(samples), names, root, info={"format": self.name}, notes=notes)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/data.yaml``, ``out/labels/<split>/<sample id>.txt``, and with ``copy_images`` the images.

        Ids, scores, ignore flags and objects without a pixel are lost.
        """
        written = [out / DATA_FILE]
        splits = {split: f"{_IMAGES}/{split}" for split in dataset.splits} or {"train": _IMAGES, "val": _IMAGES}
        content = {"path": ".", **splits, "names": dict(enumerate(dataset.class_names))}
        write_text(out / DATA_FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        for sample in options.track(dataset, "writing labels", len(dataset)):
            folder = sample.split or ""
            target = output_path(out / _LABELS / folder, sample.id, ".txt")
            write_text(target, "".join(_lines(without_empty(objects_only(sample.read_instances()), sample.id))))
            written.append(target)
            if options.copy_images:
                written += copy_image(sample, output_path(out / _IMAGES / folder, sample.id, ""))
        return written


# Files


@dataclass(frozen=True)
class _DataFile:
    """The content of ``data.yaml``: class names, the split of image folders (folded parts) and of listed images."""

    names: list[str]
    folders: tuple[tuple[tuple[str, ...], str], ...] = ()
    listed: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _listed_by_stem(self) -> dict[str, list[tuple[str, str]]]:
        by_stem: dict[str, list[tuple[str, str]]] = {}
        for full, split in self.listed:
            by_stem.setdefault(full.rpartition("/")[2], []).append((full, split))
        return by_stem

    def split_of(self, label_file: Path) -> str | None:
        """The split of a label file (a relative path), if the data file assigns one."""
        folders = [folded(part) for part in label_file.parts[:-1]]
        image = tuple(_IMAGES if part == _LABELS else part for part in folders)
        name = "/".join([*image, folded(label_file.stem)])
        same_stem = self._listed_by_stem.get(folded(label_file.stem), [])
        splits = [split for full, split in same_stem if name.endswith(full) or full.endswith(name)]
        splits += [split for folder, split in self.folders if folder and image[: len(folder)] == folder]
        return splits[0] if len(set(splits)) == 1 else None


def _is_data_file(path: Path) -> bool:
    start = first_bytes(path, 1 << 14) if path.suffix.lower() in (".yaml", ".yml") else b""
    return all(re.search(rb"^" + key + rb"\s*:", start, re.MULTILINE) for key in (b"names", b"(train|val|test)"))


def _may_be_labels(file: Path) -> bool:
    return file.suffix.lower() == ".txt" and file.name.lower() not in _OTHER_TEXTS


def _is_below_labels(file: Path) -> bool:
    """Whether a text file lies below a folder of labels, or next to an image of its name."""
    return _LABELS in [part.lower() for part in file.parts[-5:-1]] or bool(images_named(file.parent, file.stem))


def _label_files(root: Path, path: Path) -> list[Path]:
    files = [file for file in walk(root) if _may_be_labels(file) and _is_below_labels(file)]
    if not files and not _is_data_file(path) and not any(_is_data_file(file) for file in walk(root, 0)):
        raise InputError(
            "no YOLO labels here", where=path, expected="labels/x.txt for each images/x.png, and data.yaml"
        )
    return files


def _read_data_file(path: Path, root: Path) -> _DataFile:
    """The data file at ``path``, in the folder or in the one above it; an empty one if there is none."""
    places = (
        [path] if _is_data_file(path) else [f for folder in (root, root.parent) for f in sorted(folder.glob("*.y*ml"))]
    )
    file = next((file for file in places if _is_data_file(file)), None)
    if file is None:
        return _DataFile([])
    try:
        content: Any = parse_yaml(read_text(file))
    except yaml.YAMLError as error:
        got = str(error).replace("\n", " ")[:200]
        raise FormatError("this data file is not valid YAML", where=file, got=got, remedy="export it again") from error
    if isinstance(content, dict) and "kpt_shape" in content:
        remedy = "export the segmentation"
        raise FormatError("these labels are poses, not outlines", where=file, got="kpt_shape", remedy=remedy)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names.get(k, names.get(str(k))) for k in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, int)) for name in names):
        expected = "names: {0: nucleus, 1: ...}, numbered from 0"
        raise FormatError("this data file has no class names", where=file, got=repr(names)[:60], expected=expected)
    texts = _distinct([str(name) for name in names], file)
    folders, listed = [], []
    for key, split in SPLITS.items():
        entries = content.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str) and entry.lower().endswith(".txt"):
                listed += [(name, split) for name in _listed_images(file.parent, content.get("path"), entry)]
            elif isinstance(entry, str):
                folders.append((tuple(name_parts(entry)), split))
    return _DataFile(texts, tuple(folders), tuple(listed))


def _listed_images(here: Path, base: object, entry: str) -> list[str]:
    """The names, folded and without suffix, of the images in a list such as ``train.txt``."""
    for folder in (here / str(base or "."), here):
        if (folder / entry).is_file():
            lines = read_text(folder / entry, "list of images").split()
            return ["/".join(name_parts(line)).rpartition(".")[0] for line in lines]
    return []


def _listed_names(root: Path) -> list[str]:
    """Class names from ``classes.txt`` or ``obj.names``, one per line."""
    for folder in (root, root.parent, root / _LABELS):
        for name in ("classes.txt", "obj.names"):
            if (folder / name).is_file():
                names = [line.strip() for line in read_text(folder / name, "list of classes").splitlines()]
                return _distinct([name for name in names if name], folder / name)
    return []


def _distinct(names: list[str], file: Path) -> list[str]:
    """The names; raises `FormatError` if two are equal."""
    if len(set(names)) < len(names):
        raise FormatError(
            "two classes have the same name", where=file, got=", ".join(names), remedy="rename one of them"
        )
    return names


def _without_labels(file: Path, root: Path) -> list[str]:
    """The parts of the path of a label file below ``root``, without the folder ``labels``."""
    parts = list(file.relative_to(root).parts)
    for k, part in enumerate(parts[:-1]):
        if part.lower() == _LABELS:
            return parts[:k] + parts[k + 1 :]
    return parts


def _places(files: Sequence[Path], root: Path, data: _DataFile) -> list[tuple[str, str | None]]:
    """Sample id and split of each label file. The folder that names the split is no part of the id, if ids differ."""
    full = [_without_labels(file, root) for file in files]
    short, splits = [], []
    for file, parts in zip(files, full, strict=True):
        named = next((part for part in parts[:-1] if part.lower() in SPLITS), None)
        splits.append(data.split_of(file.relative_to(root)) or (SPLITS[named.lower()] if named is not None else None))
        rest = list(parts[:-1])
        if named is not None:
            rest.remove(named)
        short.append("/".join([*rest, file.stem]))
    if len(set(short)) == len(short):
        return list(zip(short, splits, strict=True))
    return [("/".join([*parts[:-1], file.stem]), s) for file, parts, s in zip(files, full, splits, strict=True)]


def _mirrored(file: Path) -> Path | None:
    """The image of ``labels/train/x.txt`` in ``images/train``, by Ultralytics' rule, if it is the only one."""
    parts = list(file.parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k].lower() == _LABELS:
            for folder in (_IMAGES, "Images"):
                images = images_named(Path(*parts[:k], folder, *parts[k + 1 : -1]), file.stem)
                if len(images) == 1:
                    return images[0]
    return None


# Lines


@dataclass(frozen=True, eq=False)
class Line:
    """One object: its class number, its outline (n, 2) as fractions of width and height (None for a box), its score."""

    class_number: int
    outline: np.ndarray | None
    score: float | None
    where: str


@dataclass
class Facts:
    """Counts over all lines of a source."""

    n: int = 0
    n_boxes: int = 0
    n_scored: int = 0
    n_quadrilaterals: int = 0
    n_classes: int = 0
    first_of_highest: str = ""
    first_scored: str = ""
    first_unscored: str = ""

    def add(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self.n += 1
            self.n_boxes += line.outline is None
            self.n_scored += line.score is not None
            if line.score is None:
                self.first_unscored = self.first_unscored or line.where
            else:
                self.first_scored = self.first_scored or line.where
            self.n_quadrilaterals += line.outline is not None and len(line.outline) == 4
            if line.class_number >= self.n_classes:
                self.n_classes, self.first_of_highest = line.class_number + 1, line.where

    @property
    def scored(self) -> bool:
        return self.n_scored > 0

    def check(self, path: Path) -> None:
        """`FormatError` for boxes only, and if some objects have a score and others have none."""
        if self.n and self.n_boxes == self.n:
            raise FormatError(
                "these labels are boxes without outlines",
                where=path,
                got=count(self.n, "line") + " of a class and 4 numbers",
                expected="a class and at least 3 vertices x y, as fractions of width and height",
                remedy="export the segmentation: the outline of a cell cannot be made from its box",
            )
        if 0 < self.n_scored < self.n:
            raise FormatError(
                "some objects have a score and others have none",
                where=self.first_scored if 2 * self.n_scored <= self.n else self.first_unscored,
                got=f"{count(self.n_scored, 'line')} of {self.n} with an odd number of coordinates, the last a score",
                expected="predictions (all with a score) or ground truth (none)",
                remedy="complete the coordinates of this line, or add or remove scores",
            )

    def notes(self) -> list[Note]:
        notes = []
        if self.n_boxes:
            text = f"{self.n_boxes} of {count(self.n, 'object')} have a box but no outline and were skipped"
            notes.append(Note("objects with a box but no outline were skipped", text))
        if self.n_quadrilaterals >= _MANY and self.n_quadrilaterals == self.n - self.n_boxes:
            text = f"all {count(self.n_quadrilaterals, 'outline')} have 4 vertices: are they boxes (YOLO OBB)?"
            notes.append(Note("all outlines have 4 vertices", text))
        if self.n_scored:
            notes.append(Note("scores", "the objects have scores and were read as predictions"))
        return notes


def _check_classes(found: Facts, names: Sequence[str], path: Path) -> None:
    if found.n_classes > len(names):
        raise FormatError(
            "a class number has no name",
            where=found.first_of_highest,
            got=found.n_classes - 1,
            expected=f"0 to {len(names) - 1}, for {', '.join(names)}",
            remedy=f"add its name to the classes of {path.name}",
        )


def read_labels(path: Path) -> list[Line]:
    """The lines of one label file; `FormatError` names the line that is malformed."""
    lines = []
    for k, text in enumerate(read_text(path, "label file").splitlines()):
        tokens = text.split()
        if tokens:
            lines.append(_line(tokens, f"{path}, line {k + 1}"))
    return lines


def _line(tokens: list[str], where: str) -> Line:
    try:
        values = np.array(tokens, np.float64)
    except ValueError:
        values = np.array([np.nan])
    n = len(values) - 1
    if n < 4 or not np.isfinite(values).all() or values[0] != int(values[0]) or not 0 <= values[0] < 1_000_000:
        expected = "a class number and x y x y ... (at least 3 vertices)"
        raise FormatError("this is not a YOLO label", where=where, got=" ".join(tokens)[:60], expected=expected)
    number, values = int(values[0]), values[1:]
    score = None
    if n % 2:
        score, values = float(values[-1]), values[:-1]
        if not 0 <= score <= 1:
            expected = "an even number of coordinates, or a score from 0 to 1 after them"
            raise FormatError("this is not a YOLO label", where=where, got=f"{n} numbers", expected=expected)
    if values.min() < _LIMITS[0] or values.max() > _LIMITS[1]:
        raise FormatError(
            "the coordinates of a label are not fractions of width and height",
            where=where,
            got=f"{values.max():g}",
            expected="0 to 1",
            remedy="divide x by the width and y by the height of the image",
        )
    return Line(number, None if len(values) == 4 else values.reshape(-1, 2), score, where)


@dataclass(frozen=True)
class LoadLines:
    """Reads the objects of one label file. class_of: class id of each class number, or -1 to drop its objects."""

    path: Path
    image_hw: tuple[int, int]
    class_of: tuple[int, ...]
    scored: bool

    def __call__(self) -> Instances:
        lines = [line for line in read_labels(self.path) if line.outline is not None]
        if any(line.class_number >= len(self.class_of) for line in lines):
            raise FormatError("this file has changed since it was opened", where=self.path, remedy="read it again")
        lines = [line for line in lines if self.class_of[line.class_number] >= 0]
        rings = [[line.outline * self.image_hw[::-1]] for line in lines if line.outline is not None]
        check_outlines(rings, self.image_hw, self.path)
        instances = Instances.from_masks(
            MaskSet.from_polygons([[ring] for ring in rings], self.image_hw),
            class_ids=np.array([self.class_of[line.class_number] for line in lines], np.int64),
            scores=np.array([line.score for line in lines], np.float32) if self.scored else None,
        )
        return without_empty(instances, self.path)


def _lines(instances: Instances) -> list[str]:
    height, width = instances.image_hw
    lines = []
    for polygons, class_id in zip(instances.masks.to_polygons(), instances.class_ids.tolist(), strict=True):
        fractions = one_ring(polygons) / (width, height)
        numbers = " ".join(f"{value:.7f}".rstrip("0").rstrip(".") for value in fractions.ravel())
        lines.append(f"{class_id} {numbers}\n")
    return lines


def one_ring(polygons: MultiPolygon) -> np.ndarray:
    """All rings of an object as one (n, 2), which encloses the same pixels by the even-odd rule.

    From the vertex of the first ring that is nearest to another ring, a line runs down or up and then across to that
    ring and, after going around it, back the same way, so that it encloses nothing.

    >>> square, hole = [[0, 0], [4, 0], [4, 4], [0, 4]], [[1, 1], [1, 2], [2, 2], [2, 1]]
    >>> one_ring([[square, hole]]).tolist()[:7]
    [[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
    """
    from scipy.spatial import KDTree

    first, *others = [np.asarray(ring) for rings in polygons for ring in rings]
    nearest: Any = KDTree(first) if others else None
    detours: dict[int, list[np.ndarray]] = {}
    for ring in others:
        assert nearest is not None
        distances, vertices = nearest.query(ring, p=1)
        j = int(distances.argmin())
        i = int(vertices[j])
        around = np.concatenate([ring[j:], ring[: j + 1]])
        corner = np.array([[first[i, 0], ring[j, 1]]])
        detours.setdefault(int(i), []).append(np.concatenate([corner, around, corner, first[[i]]]))
    parts = []
    for k, vertex in enumerate(first):
        parts += [vertex[None], *detours.get(k, [])]
    return np.concatenate(parts)
