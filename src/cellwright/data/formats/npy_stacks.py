"""Stacks of images and masks in NumPy files: PanNuke (``images.npy``, ``masks.npy``) and CoNIC (``images.npy``,
``labels.npy``).

PanNuke's masks (N, H, W, 6) have a channel of object ids per class, and one for the background, which is not read.
CoNIC's labels (N, H, W, 2) are the object ids and the class of each pixel. The images are no files of their own, so the
dataset that is written contains copies of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import unreadable
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.core.notes import Note
from cellwright.data.formats.class_masks import unique_ids
from cellwright.data.formats.contract import Format, ReadOptions
from cellwright.data.formats.paths import annotation_files, first_files, root_of

_PANNUKE = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
_CONIC = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
_NAMES = {"masks.npy", "labels.npy"}


class NpyStacks(Format):
    name = "npy_stacks"
    description = "PanNuke and CoNIC: images.npy with masks.npy (N, H, W, 6) or labels.npy (N, H, W, 2)"
    published = True

    def sniff(self, path: Path) -> bool:
        """Whether there is a ``masks.npy`` or ``labels.npy`` of such a shape."""
        return any(_is_stack(file) for file in first_files(path) if file.name.lower() in _NAMES)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every field of every stack. Its folder (a fold) is part of the ids; each of several folds is one group."""
        root = root_of(path)
        files = annotation_files(path, lambda file: file.name.lower() in _NAMES, "masks.npy or labels.npy")
        shapes = {_open(file).shape[-1] for file in files}
        if len(shapes) > 1 or not shapes <= {2, 6}:
            got = ", ".join(map(str, sorted(shapes)))
            raise FormatError("unknown masks", where=path, got=f"{got} channels", expected="6 (PanNuke) or 2 (CoNIC)")
        names = options.name_classes(_PANNUKE if shapes == {6} else _CONIC, path)
        samples: list[Sample] = []
        for file in files:
            masks, images = _open(file), _images_of(file)
            if images is not None and _open(images).shape[:3] != masks.shape[:3]:
                got = f"images {_open(images).shape} and masks {masks.shape}"
                raise FormatError("images and masks differ in number or size", where=file, got=got, expected="equal")
            if images is None and options.require_images:
                raise InputError("masks without images", where=file, expected="images.npy beside it")
            above = file.parent.relative_to(root).parts
            folder = "_".join(part for part in above if part.lower() not in ("masks", "labels"))
            for k in range(len(masks)):
                sample_id = f"{folder}/{k:05d}".lstrip("/")
                pixels = None if images is None else ReadField(images, k)
                hw = (int(masks.shape[1]), int(masks.shape[2]))
                load = LoadField(file, k)
                group = folder if len(files) > 1 else None  # a single fold can be split
                samples.append(Sample(sample_id, None, hw, load, group=group, source=self.name, pixels=pixels))
        text = "the images are in a NumPy file; copies of them are written with the dataset"
        note = Note("images are copied", text, str(path))
        return Dataset(tuple(samples), names, root, info={"format": self.name}, notes=(note,))


@dataclass(frozen=True)
class LoadField:
    """Reads the objects of one field of a stack of masks."""

    path: Path
    index: int

    def __call__(self) -> Instances:
        field = np.asarray(_open(self.path)[self.index])
        whole = np.nan_to_num(field, nan=-1.0, posinf=-1.0, neginf=-1.0)
        if whole.min() < 0 or whole.max() > 2**32 - 1 or (whole != np.floor(whole)).any():
            where = f"{self.path}, field {self.index}"
            raise FormatError("a label is not a whole number", where=where, expected="object ids, 0 for background")
        labels = whole.astype(np.int64)
        if labels.shape[2] == 2:
            return self._with_types(labels[:, :, 0], labels[:, :, 1])
        parts = [MaskSet.from_label_map(labels[:, :, k]) for k in range(len(_PANNUKE))]
        class_ids = np.concatenate([np.full(len(ids), k, np.int64) for k, (_, ids) in enumerate(parts)])
        ids = unique_ids(np.concatenate([ids for _, ids in parts]), class_ids)
        return Instances.from_masks(concat([masks for masks, _ in parts]), class_ids=class_ids, ids=ids)

    def _with_types(self, labels: np.ndarray, types: np.ndarray) -> Instances:
        masks, ids = MaskSet.from_label_map(labels)
        class_ids = np.zeros(len(ids), np.int64)
        for k, (x0, y0, x1, y1) in enumerate(masks.boxes.tolist()):
            under = types[y0:y1, x0:x1][masks.crop(k) > 0]
            if not ((under >= 0) & (under <= len(_CONIC))).all() or not under.any():
                where = f"{self.path}, field {self.index}, object {ids[k]}"
                raise FormatError("an object has no valid class", where=where, expected=f"1 to {len(_CONIC)}")
            class_ids[k] = int(np.bincount(under[under > 0]).argmax()) - 1
        return Instances.from_masks(masks, class_ids=class_ids, ids=ids)


@dataclass(frozen=True)
class ReadField:
    """Reads the pixels (H, W, C) of one field of a stack of images; floats that are bytes become bytes."""

    path: Path
    index: int

    def __call__(self) -> np.ndarray:
        pixels = np.asarray(_open(self.path)[self.index])
        as_bytes = np.nan_to_num(pixels).clip(0, 255).astype(np.uint8)
        return as_bytes if (as_bytes == pixels).all() else pixels.astype(np.float32)


def _images_of(masks: Path) -> Path | None:
    """``images.npy`` beside the masks, or in ``images/fold1/`` for ``masks/fold1/``."""
    candidates = [masks.with_name("images.npy")]
    for k, part in enumerate(masks.parts[:-1]):
        if part.lower() in ("masks", "labels"):
            candidates.append(Path(*masks.parts[:k], "images", *masks.parts[k + 1 : -1], "images.npy"))
    return next((file for file in candidates if file.is_file()), None)


def _open(path: Path) -> np.ndarray:
    """The stack (N, H, W, C), read from the disk where it is used."""
    try:
        stack = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged header raises whatever its parser raises
        got = f"{type(error).__name__}: {error}"[:200]
        raise FormatError("this .npy file cannot be read", where=path, got=got, remedy="get a fresh copy") from error
    if not isinstance(stack, np.ndarray) or stack.ndim != 4 or not stack.size or stack.dtype.kind not in "buif":
        got = f"{type(stack).__name__} {getattr(stack, 'shape', '')}"
        raise FormatError("not a stack of images or masks", where=path, got=got, expected="numbers (N, H, W, C)")
    return stack


def _is_stack(file: Path) -> bool:
    try:
        return _open(file).shape[-1] in (2, 6)
    except InputError:
        return False
