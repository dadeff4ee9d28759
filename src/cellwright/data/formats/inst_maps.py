"""Instance maps in MATLAB files, as CoNSeP, Kumar, CPM and Lizard publish them: ``Images/x.png`` and ``Labels/x.mat``.

A file contains ``inst_map`` (H, W), the ids of the objects, and their classes: ``type_map`` (H, W), or ``inst_type`` or
``class`` with one number per object. Without classes all objects belong to one. Lizard's files also have ``bbox`` and
``centroid``, which tell them from others, and documented classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions
from cellwright.data.formats.label_io import as_raster
from cellwright.data.formats.label_kinds import Meaning, examine, examined
from cellwright.data.formats.mat_files import mat_names, read_mat
from cellwright.data.formats.paths import ImageFinder, annotation_files, first_files, root_of, split_ids

# The classes 1 to 6 of Lizard, as its authors name them.
LIZARD = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
_LIZARD_ONLY = {"class", "bbox", "centroid"}
_VARIABLES = ("inst_map", "type_map", "inst_type", "id", "class")


class InstanceMaps(Format):
    name = "inst_maps"
    description = "CoNSeP, Kumar, Lizard: Images/x.png and Labels/x.mat with inst_map and type_map"
    published = True

    def sniff(self, path: Path) -> bool:
        """Whether one of the first MATLAB files contains ``inst_map``."""
        files = [file for file in first_files(path) if file.suffix.lower() == ".mat"]
        return any(names is None or "inst_map" in names for names in map(mat_names, files[:3]))

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every ``.mat`` with an ``inst_map``, at or below ``path``."""
        root = root_of(path)
        files = annotation_files(path, lambda file: file.suffix.lower() == ".mat", "MATLAB files")
        chosen = examined(files)
        rasters = ((str(file), as_raster(_read(file)["inst_map"], file)) for file in chosen)
        meaning, notes = examine(options.track(rasters, "examining instance maps", len(chosen)), options, path)
        types = sorted({int(v) for file in files for v in np.unique(_types(_read(file), file)[1]) if v > 0})
        is_lizard = _LIZARD_ONLY.issubset(mat_names(files[0]) or ()) and 0 < max(types, default=0) <= len(LIZARD)
        defaults = [LIZARD[value - 1] if is_lizard else f"type{value}" for value in types]
        if is_lizard and options.class_names is None:
            text = f"the classes {', '.join(map(str, types))} were named as in Lizard: {', '.join(defaults)}"
            notes = (*notes, Note("classes were named as in Lizard", text, str(path)))
        names = options.name_classes(defaults or [DEFAULT_CLASS], path)
        places = split_ids([_name(file, root) for file in files], root.resolve().name)
        finder, samples = ImageFinder(options, root), []
        for file, (sample_id, split) in zip(files, places, strict=True):
            height, width = _read(file)["inst_map"].shape
            image = finder.find(file, file.stem, (height, width))
            load = LoadInstanceMap(file, image.image_hw, meaning, tuple(types))
            samples.append(Sample(sample_id, image.path, image.image_hw, load, split=split, source=self.name))
        notes = (*notes, *finder.notes)
        return Dataset(tuple(samples), names, root, info={"format": self.name}, notes=notes)


@dataclass(frozen=True)
class LoadInstanceMap:
    """Reads the objects of one file; ``types`` are the numbers of the classes in the order of their ids."""

    path: Path
    image_hw: tuple[int, int]
    meaning: Meaning
    types: tuple[int, ...]

    def __call__(self) -> Instances:
        content = _read(self.path)
        instances = self.meaning.objects(as_raster(content["inst_map"], self.path), self.path)
        if instances.image_hw != tuple(self.image_hw):
            raise FormatError(
                "an instance map has another size than its image",
                where=self.path,
                got=instances.image_hw,
                expected=self.image_hw,
            )
        ids, of_type = _types(content, self.path)
        if not len(self.types) or not len(instances):
            return instances
        if ids is None:  # a type map
            found = [
                int(np.bincount(of_type[y0:y1, x0:x1][instances.masks.crop(k) > 0].astype(np.int64)).argmax())
                for k, (x0, y0, x1, y1) in enumerate(instances.masks.boxes.tolist())
            ]
        else:
            known = dict(zip(ids.tolist(), of_type.tolist(), strict=False))
            found = [int(known.get(number, 0)) for number in instances.ids.tolist()]
        unknown = [number for number, kind in zip(instances.ids.tolist(), found, strict=True) if kind not in self.types]
        if unknown:
            where = f"{self.path}, object {unknown[0]}"
            raise FormatError("an object has no class", where=where, expected="a type for each object")
        return dataclasses.replace(instances, class_ids=np.array([self.types.index(kind) for kind in found], np.int64))


def _name(file: Path, root: Path) -> str:
    """Relative path without the folder ``Labels`` and the suffix."""
    parts = file.relative_to(root).with_suffix("").parts
    return "/".join(part for k, part in enumerate(parts) if k == len(parts) - 1 or part.lower() != "labels")


def _read(path: Path) -> dict[str, Any]:
    """The arrays of a file. Raises `FormatError` for a file that is damaged or has no ``inst_map``."""
    content = read_mat(path, _VARIABLES)
    labels = content.get("inst_map")
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or not labels.size or labels.dtype.kind not in "biuf":
        got = f"an array of shape {labels.shape}" if isinstance(labels, np.ndarray) else "none"
        raise FormatError("no instance map in this file", where=path, got=got, expected="inst_map (height, width)")
    return content


def _types(content: dict[str, Any], path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """Object ids and their types, or None and a type map (H, W); an empty array without types."""
    shape = content["inst_map"].shape
    type_map = content.get("type_map")
    if isinstance(type_map, np.ndarray) and type_map.dtype.kind in "biuf":
        if type_map.shape != shape or not np.isfinite(type_map).all() or type_map.min() < 0 or type_map.max() > 1000:
            got = f"shape {type_map.shape}"
            raise FormatError("invalid type_map", where=path, got=got, expected=f"numbers up to 1000, shape {shape}")
        return None, type_map
    types = next((content[name] for name in ("inst_type", "class") if isinstance(content.get(name), np.ndarray)), None)
    if types is None or types.dtype.kind not in "biuf" or not np.isfinite(types).all():
        return None, np.zeros(0)
    ids = content.get("id")
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "biuf" or ids.size != types.size:
        ids = np.unique(content["inst_map"])
        ids = ids[ids > 0]
    if ids.size != types.size:
        got = f"{types.size} types for {ids.size} objects"
        raise FormatError("the types do not match the objects", where=path, got=got, expected="one type per object")
    return ids.ravel(), types.ravel()
