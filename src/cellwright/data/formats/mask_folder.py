"""Mask folders: ``<id>/images/<image>`` and ``<id>/masks/*.png``, one file per object (Data Science Bowl 2018, VRDL).

Masks may have one to four channels and 8 or 16 bits: the pixels above half of the maximum belong to the object. The id
of an object is the number in its file name if all names in the folder are ``mask_<number>``, else 1..N in natural order
of the names. A folder with an empty ``masks`` is an image without objects; one without ``masks`` is skipped.
Hidden files and folders (such as ``.ipynb_checkpoints``) and files that are not images are ignored; ``data check``
lists them.
"""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import FormatError, InputError, OutputError, UsageError
from cellwright.core.files import atomic_path, plain_suffix
from cellwright.core.ignored import objects_only
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Clutter, Format, ReadOptions, WriteOptions
from cellwright.data.formats.mask_png import MASK_SUFFIXES, BoxAndCrop, MaskReader
from cellwright.data.formats.paths import SPLITS, copy_image, masked_hw, output_path, split_ids
from cellwright.data.images.read import image_hw_of, is_image_name, is_own_output

# With fewer masks, starting threads costs more than it saves.
MIN_MASKS_PER_THREAD = 64
MAX_THREADS = 4


class MaskFolder(Format):
    name = "mask_folder"
    description = "<id>/images/<image> and <id>/masks/*.png, one file per object (Data Science Bowl 2018, VRDL nuclei)"

    def sniff(self, path: Path) -> bool:
        """Whether a folder has a subfolder with ``images`` and ``masks`` in it.

        If the masks have the names of the images, they are label images (``train/images/x.tif`` and
        ``train/masks/x.tif``), which is another format.
        """
        folders = [folder for folder in _sample_folders(path) if (folder / "masks").is_dir()]
        return any(not _is_label_pair(folder) for folder in folders)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """All samples in the folder ``path``, sorted by id."""
        folders = _sample_folders(path)
        if not folders:
            raise InputError(
                "no sample folders here",
                where=path,
                expected="<id>/images/<image> and <id>/masks/*.png",
                remedy="use the folder that contains the <id> folders",
            )
        bare = [folder for folder in folders if not (folder / "masks").is_dir()]
        chosen = folders if options.no_objects else [folder for folder in folders if folder not in bare]
        if not chosen:
            raise InputError(
                "no sample has masks",
                where=path,
                got=f"{count(len(bare), 'sample')} without a folder masks",
                expected="<id>/masks/*.png beside <id>/images",
                remedy="to take them as images without objects, convert them with `no_objects=True`",
            )
        samples = []
        places = split_ids([folder.relative_to(path).as_posix() for folder in chosen], path.resolve().name)
        for folder, (sample_id, split) in zip(options.track(chosen, "reading image sizes"), places, strict=True):
            _check_masks(folder / "masks")
            image = _only_image(folder)
            image_hw = masked_hw(image, partial(_mask_hw, folder / "masks"), options.series)
            load = MaskFolderLoader(folder / "masks", image_hw)
            samples.append(Sample(sample_id, image, image_hw, load, split=split, source=self.name))
        class_names = options.name_classes((DEFAULT_CLASS,), path)
        notes = []
        if bare and not options.no_objects:
            text = (
                f"{count(len(bare), 'sample')} without a folder masks skipped, such as {bare[0].name}; "
                "`no_objects=True` takes them as images without objects"
            )
            notes = [Note("samples without masks were skipped", text, str(path))]
        loose = [file for folder in _split_folders(path) for file in folder.iterdir() if is_image_name(file.name)]
        if loose:
            text = (
                f"{count(len(loose), 'image')} without masks skipped, such as {loose[0].relative_to(path).as_posix()}"
            )
            notes.append(Note("images without masks were skipped", text, str(path)))
        return Dataset(tuple(samples), class_names, root=path, info={"format": self.name}, notes=tuple(notes))

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/<id>/images`` and ``out/<id>/masks/mask_<object id>.png`` (8 bit, 0 and 255). Images are copied.

        A ``/`` in the id of a sample becomes ``__``: programs for this layout expect all samples in one folder. Raises
        `UsageError` for several classes, which this format cannot store, and `OutputError` for two ids that become the
        same.
        """
        import cv2

        if len(dataset.class_names) > 1:
            raise UsageError(
                "mask folders cannot store the class of an object",
                where=out,
                got=f"{len(dataset.class_names)} classes: {', '.join(dataset.class_names)}",
                remedy="keep one class with `classes`, or choose another format",
            )
        folders = _folders(dataset, out)
        written = []
        samples = options.track(dataset.samples, "writing masks", total=len(dataset))
        for sample, folder in zip(samples, folders, strict=True):
            with atomic_path(folder) as temporary:
                _copy_image(sample, temporary / "images")
                (temporary / "masks").mkdir(parents=True)
                instances = objects_only(sample.read_instances())
                canvas = np.zeros(sample.image_hw, np.uint8)
                for i, number in enumerate(instances.ids.tolist()):
                    x0, y0, x1, y1 = instances.masks.boxes[i]
                    canvas[y0:y1, x0:x1] = instances.masks.crop(i) * np.uint8(255)
                    encoded = cv2.imencode(".png", canvas, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
                    (temporary / "masks" / f"mask_{number:04d}.png").write_bytes(encoded.tobytes())
                    canvas[y0:y1, x0:x1] = 0
                if folder.is_dir():  # a folder cannot be renamed to one that is not empty
                    shutil.rmtree(folder)
            written.append(folder)
        return written

    def clutter(self, root: Path) -> list[Clutter]:
        """Everything below ``root`` that `read` ignores."""
        ignored = []
        for entry in sorted(root.iterdir()):
            if entry.name.startswith("."):
                ignored.append(Clutter(entry, "hidden"))
            elif not (entry / "images").is_dir():
                ignored.append(Clutter(entry, "not a sample folder: it has no images folder"))
            else:
                ignored += _sample_clutter(entry)
        return ignored


@dataclass(frozen=True)
class MaskFolderLoader:
    """Reads the objects of one ``masks`` folder.

    Raises `FormatError` that names the file for a mask that is damaged, empty, or of another size than the image.
    """

    folder: Path
    image_hw: tuple[int, int]

    def __call__(self) -> Instances:
        files = mask_files(self.folder)
        boxes_and_crops = [mask for chunk in _in_threads(files, self.image_hw) for mask in chunk]
        empty = [file.name for file, (_, crop) in zip(files, boxes_and_crops, strict=True) if not crop.size]
        if empty:
            more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
            raise FormatError(
                "a mask is empty" if len(empty) == 1 else f"{len(empty)} masks are empty",
                where=self.folder,
                got=", ".join(empty[:3]) + more,
                expected="at least one pixel that is not black",
                remedy="delete these files",
            )
        boxes = np.array([box for box, _ in boxes_and_crops], np.int32).reshape(-1, 4)
        masks = MaskSet.from_crops(boxes, [crop for _, crop in boxes_and_crops], self.image_hw)
        return Instances.from_masks(masks, ids=_ids_of(files))


def mask_files(folder: Path) -> list[Path]:
    """The masks in a folder in natural order of their names; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_mask_name(entry.name)]
    return [folder / name for name in sorted(names, key=_natural)]


def _mask_hw(folder: Path) -> tuple[int, int] | None:
    """The size of the first mask, or None."""
    masks = mask_files(folder)
    return image_hw_of(masks[0]) if masks else None


def _is_label_pair(folder: Path) -> bool:
    masks = {file.stem for file in mask_files(folder / "masks")}
    return bool(masks) and masks <= {entry.stem for entry in (folder / "images").iterdir()}


def _sample_clutter(folder: Path) -> list[Clutter]:
    others = [entry for entry in sorted(folder.iterdir()) if entry.name not in ("images", "masks")]
    ignored = [Clutter(entry, "neither images nor masks") for entry in others]
    for part, is_valid, why in (
        ("images", is_image_name, "not an image"),
        ("masks", _is_mask_name, "not a mask"),
    ):
        if not (folder / part).is_dir():
            continue
        for entry in sorted((folder / part).iterdir()):
            if entry.name.startswith("."):
                ignored.append(Clutter(entry, "hidden"))
            elif entry.is_dir() or not is_valid(entry.name):
                ignored.append(Clutter(entry, why))
    return ignored


def _sample_folders(path: Path) -> list[Path]:
    """The folders with images in them, also below folders named after splits."""
    if not path.is_dir():
        return []
    entries = sorted(e for e in path.iterdir() if not e.name.startswith(".") and e.is_dir())
    below = [e for split in _split_folders(path) for e in sorted(split.iterdir()) if not e.name.startswith(".")]
    return [entry for entry in (*entries, *below) if (entry / "images").is_dir()]


def _split_folders(path: Path) -> list[Path]:
    folders = (entry for entry in sorted(path.iterdir()) if entry.name.lower() in SPLITS and entry.is_dir())
    return [folder for folder in folders if not (folder / "images").is_dir()]


def _check_masks(folder: Path) -> None:
    """Raise `InputError` for a folder of masks with files, of which none can be read as a mask."""
    if not folder.is_dir():
        return
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file()]
    if names and not any(_is_mask_name(name) for name in names):
        raise InputError(
            "no file in this folder can be read as a mask",
            where=folder,
            got=", ".join(sorted(names)[:3]),
            expected=f"files ending in {', '.join(sorted(MASK_SUFFIXES))}",
            remedy="save the masks as PNG",
        )


def _only_image(folder: Path) -> Path:
    entries = sorted((folder / "images").iterdir())
    images = [
        e
        for e in entries
        if is_image_name(e.name) and not is_own_output(e.name) and not e.name.startswith(".") and e.is_file()
    ]
    if len(images) != 1:
        raise FormatError(
            "a sample must have exactly one image",
            where=folder / "images",
            got=", ".join(e.name for e in images[:5]) or "none",
            expected="one image file",
            remedy="give each image its own <id> folder, or remove the folder",
        )
    return images[0]


def _in_threads(files: list[Path], image_hw: tuple[int, int]) -> list[list[BoxAndCrop]]:
    """Box and crop of each file, in order, as one list per thread."""
    n_threads = max(1, min(MAX_THREADS, os.cpu_count() or 1, len(files) // MIN_MASKS_PER_THREAD))

    def read_chunk(chunk: list[Path]) -> list[BoxAndCrop]:
        reader = MaskReader()
        return [reader.read(file, image_hw) for file in chunk]

    if n_threads == 1:
        return [read_chunk(files)]
    ends = [len(files) * k // n_threads for k in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(read_chunk, [files[a:b] for a, b in pairwise(ends)]))


def _ids_of(files: list[Path]) -> np.ndarray:
    numbers = [re.fullmatch(r"mask_0*([1-9]\d{0,17})", file.stem) for file in files]
    ids = [int(match[1]) for match in numbers if match]
    if len(set(ids)) == len(files):
        return np.array(ids, np.int64)
    return np.arange(1, len(files) + 1)


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts mask_2 before mask_10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts], name


def _is_mask_name(name: str) -> bool:
    return not name.startswith(".") and plain_suffix(name) in MASK_SUFFIXES


def _folders(dataset: Dataset, out: Path) -> list[Path]:
    """The folder of each sample. Raises `OutputError` if two are the same, or if one is not in ``out``."""
    folders = [output_path(out, sample.id.replace("/", "__"), "") for sample in dataset]
    first: dict[str, str] = {}
    for sample, folder in zip(dataset, folders, strict=True):
        other = first.setdefault(folder.name, sample.id)
        if other != sample.id:
            raise OutputError(
                "two samples would have the same folder",
                where=folder,
                got=f"{other} and {sample.id}",
                remedy="rename one of the images",
            )
    return folders


def _copy_image(sample: Sample, folder: Path) -> None:
    if sample.image_path is None:
        raise InputError(
            "a mask folder must contain the image",
            where=f"sample {sample.id}",
            got="no image path",
            remedy="use the dataset that has the images",
        )
    folder.mkdir(parents=True)
    copy_image(sample, folder / sample.image_path.stem)
