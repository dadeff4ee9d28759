"""Paths: annotation files below a folder, the image that belongs to an annotation, and safe output paths."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, OutputError
from cellwright.core.files import (
    FULL,
    atomic_path,
    first_bytes,
    is_gzip,
    is_zarr_folder,
    plain_suffix,
    stem_of,
    unreadable,
    walk,
)
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import ReadOptions
from cellwright.data.images.names import IMAGE_SUFFIXES, is_image_name, is_own_output
from cellwright.data.images.read import image_header
from cellwright.data.images.slide import SEVERAL_FILES

__all__ = [
    "AnnotatedImage",
    "GivenImages",
    "ImageFinder",
    "ImageIndex",
    "absolute_note",
    "annotated_hw",
    "annotation_files",
    "copy_image",
    "first_bytes",
    "first_files",
    "images_named",
    "is_file",
    "names_of",
    "output_path",
    "root_of",
    "split_ids",
    "split_named",
    "unannotated_note",
    "walk",
]

# Names (lower case) of folders that hold the images of annotations in another folder (MoNuSeg uses "Tissue Images").
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "tissue images", "jpegimages")
# Names (lower case) of folders that hold annotations, so that images are searched beside them.
ANNOTATION_FOLDERS = (
    "annotations", "annotation", "anns", "labels", "label", "json", "coco", "masks", "rois", "geojson",
)  # fmt: skip

# Folder names (lower case) that denote a split.
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip

# File names (without suffix) of label images.
_LABEL_NAME = re.compile(
    r"(.*[ _.-])?(masks?|labels?|segmentation|seg|gt|truth|instances?|annotations?)", re.IGNORECASE
)

# A folder with one of these files is a dataset or prediction folder of cellwright, which only the coco format reads.
OWN_FILES = ("dataset.json", "predictions.json")

# File systems allow 255 bytes in a name, endings such as _measurements.csv included.
MAX_NAME_BYTES = 220

# EXIF orientations that exchange height and width.
QUARTER_TURNS = (5, 6, 7, 8)

# The most files that `sniff` examines, so that it is fast even for a folder of a million files.
SNIFF_LIMIT = 400
_SNIFF_LIMIT_PER_FOLDER = 40


def first_files(path: Path, limit: int = SNIFF_LIMIT) -> list[Path]:
    """The first few files of each folder below ``path``, at most ``limit`` in total; ``[path]`` for a file.

    For `Format.sniff`: never raises. Empty for a path that does not exist, and for a dataset or prediction folder of
    cellwright (see `OWN_FILES`), whose other files are exports.
    """
    try:
        if path.is_file():
            return [path]
        if not path.is_dir() or any((path / name).is_file() for name in OWN_FILES):
            return []
        return list(islice(walk(path, per_folder=_SNIFF_LIMIT_PER_FOLDER, problems=[]), limit))
    except (OSError, InputError):
        return []


def annotation_files(path: Path, is_annotation: Callable[[Path], bool], what: str) -> list[Path]:
    """The files below ``path`` that satisfy ``is_annotation``, or ``path`` itself; `InputError` if there are none."""
    _check_exists(path)
    files = [path] if path.is_file() else [file for file in walk(path) if is_annotation(file)]
    if not files:
        raise InputError(f"no {what} here", where=path, expected=f"{what} in the folder or below it")
    return files


def root_of(path: Path) -> Path:
    """The folder that sample ids are relative to: ``path``, or the folder of that file. `InputError` if absent."""
    _check_exists(path)
    return path if path.is_dir() else path.parent


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise InputError("no such file or folder", where=path, remedy="check the path")


def split_ids(relative: Sequence[str], root_name: str) -> list[tuple[str, str | None]]:
    """Sample id and split of files or folders, from their paths relative to the root (``"."`` becomes ``root_name``).

    A leading folder named as in `SPLITS` is the split, also below a folder such as ``labels``. It is not part of the
    id, nor is the ``.ome`` that remains of ``.ome.tif``, unless ids would clash without them.

    >>> split_ids(["train/a", "labels/val/b.ome", "c"], "root")
    [('a', 'train'), ('b', 'val'), ('c', None)]
    """
    places = [_split_of(name) for name in relative]
    short = [(_without_ome(sample_id), split) for sample_id, split in places]
    for candidate in (short, places):
        if len({sample_id for sample_id, _ in candidate}) == len(candidate):
            places = candidate
            break
    else:
        places = [(name, split) for name, (_, split) in zip(relative, places, strict=True)]
    return [(root_name if sample_id == "." else sample_id, split) for sample_id, split in places]


def _split_of(name: str) -> tuple[str, str | None]:
    """A relative path without the folder that names its split, and that split."""
    folders, parts = 0, name.split("/")
    if parts[0].lower() in ANNOTATION_FOLDERS and len(parts) > 2:
        folders = 1
    split = SPLITS.get(parts[folders].lower()) if len(parts) > folders + 1 else None
    return ("/".join(parts[folders + 1 :]), split) if split else (name, None)


def _without_ome(sample_id: str) -> str:
    return sample_id[:-4] if sample_id.lower().endswith(".ome") and len(sample_id) > 4 else sample_id


def split_named(stem: str) -> str | None:
    """The split that a file name contains as a word, if exactly one.

    >>> split_named("instances_train2017"), split_named("livecell_coco_val"), split_named("result")
    ('train', 'val', None)
    """
    words = re.split(r"[^a-z]+", stem.lower())
    splits = {SPLITS[word] for word in words if word in SPLITS}
    return splits.pop() if len(splits) == 1 else None


# --- the image of an annotation -------------------------------------------------------------------------------------


def images_named(folder: Path, stem: str) -> list[Path]:
    """The image files ``folder/<stem>.png``, ``.tif``, ``.ome.tif``, ``.tif.gz`` and so on that exist."""
    known, start = _names_in(folder), folded(stem)
    likely = [ending for ending in _IMAGE_ENDINGS if f"{start}{ending.lower()}" in known]
    return _distinct([file for ending in likely if (file := folder / f"{stem}{ending}").is_file()])


_IMAGE_ENDINGS = tuple(
    ending for low in (*sorted(IMAGE_SUFFIXES), ".ome.tif", ".ome.tiff") for ending in (low, low.upper(), f"{low}.gz")
)
_SETTLED_NS = 3_000_000_000


def _names_in(folder: Path) -> frozenset[str]:
    """The names in a folder, `folded`; none if there is no such folder. They are kept until the folder changes."""
    try:
        changed_ns = folder.stat().st_mtime_ns
        # It may change again without a new time, as clocks of file systems are coarse.
        is_settled = time.time_ns() - changed_ns > _SETTLED_NS
        listed = _listed if is_settled else _listed.__wrapped__
        return listed(str(folder.absolute()), changed_ns)
    except OSError:
        return frozenset()


@lru_cache(maxsize=128)
def _listed(folder: str, changed_ns: int) -> frozenset[str]:
    del changed_ns  # another time is another list
    with os.scandir(folder) as entries:
        return frozenset(folded(entry.name) for entry in entries)


def _distinct(files: Sequence[Path]) -> list[Path]:
    # On a case-insensitive file system, a.tif and a.TIF are the same file.
    kept: list[Path] = []
    for file in files:
        if not any(file.samefile(other) for other in kept):
            kept.append(file)
    return kept


def folded(name: str) -> str:
    """A name as it is compared: composed (macOS decomposes umlauts in file names) and without regard to case."""
    return unicodedata.normalize("NFC", name).casefold()


def name_parts(name: str) -> list[str]:
    """The folders and the name in a path that another program wrote, folded: from Windows, absolute, or with ``..``.

    >>> name_parts(r"..\\media\\upload\\4\\B.png"), name_parts("C:/a/x.png"), name_parts("/data/?d=plate/x.png")
    (['media', 'upload', '4', 'b.png'], ['a', 'x.png'], ['plate', 'x.png'])
    """
    plain = name.rpartition("?d=")[2].replace("\\", "/")  # Label Studio's local files
    parts = [folded(part) for part in plain.split("/")]
    return [part for part in parts if part not in ("", ".", "..") and not re.fullmatch("[a-z]:", part)]


class ImageIndex:
    """Image files, found by the names that other programs give them: see `name_parts`."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for file in files:
            if not is_image_name(file.name) or is_own_output(file.name):
                continue
            self._by_name.setdefault(folded(file.name), []).append(file)
            for stem in {folded(file.stem), folded(stem_of(file))}:
                self._by_stem.setdefault(stem, []).append(file)

    def find(self, name: str) -> list[Path]:
        """The files called ``name``, with or without its suffix, that share most folders with it; several if equal."""
        parts = name_parts(name)
        if not parts:
            return []
        files = self._by_name.get(parts[-1]) or self._by_stem.get(parts[-1], [])
        scores = [_n_shared(parts, file) for file in files]
        best = [file for file, score in zip(files, scores, strict=True) if score == max(scores)]
        if len({folded(file.name) for file in best}) > 1:
            return best
        # Names that differ in case only.
        exact = [file for file in best if PurePosixPath(name.replace("\\", "/")).name in (file.name, file.stem)]
        return exact if len(exact) == 1 else best

    def similar(self, name: str) -> list[Path]:
        """The files whose names look most like ``name``: the same without its suffix, or almost the same."""
        wanted = (name_parts(name) or [""])[-1]
        same = self._by_stem.get(stem_of(wanted), [])
        close = get_close_matches(wanted, self._by_name, n=2, cutoff=0.75)
        return same or [self._by_name[match][0] for match in close]


def _n_shared(parts: list[str], file: Path) -> int:
    """How many folders above the name are the same in both."""
    shared = 0
    for wanted, folder in zip(reversed(parts[:-1]), reversed(file.parent.parts), strict=False):
        if wanted != folded(folder):
            break
        shared += 1
    return shared


@dataclass(frozen=True)
class AnnotatedImage:
    """The image of an annotation: its file (or None), its size in pixels, and its pixel size in microns (or None)."""

    path: Path | None
    image_hw: tuple[int, int]
    pixel_size_um: tuple[float, float] | None = None


class ImageFinder:
    """Finds the image of each annotation, by the rules of the read options.

    Images are searched among ``ReadOptions.images`` first, then next to the annotation, in a folder of images beside
    or below it, in all folders below, and finally in all folders below ``root``, the source. ``notes`` says what was
    assumed.
    """

    def __init__(self, options: ReadOptions, root: Path | None = None) -> None:
        self._root = root
        self._require = options.require_images
        self._series = options.series
        self._given = GivenImages(options.images) if options.images is not None else None
        self._folders: dict[Path, ImageIndex] = {}
        self._trees: dict[Path, ImageIndex] = {}
        # An image that was paired because there is no other -> the annotation, and the names in it.
        self._alone: dict[Path, tuple[Path, tuple[str, ...]]] = {}
        self._named: set[Path] = set()  # images that were found by name
        self.notes: tuple[Note, ...] = ()

    def find(
        self,
        annotation: Path,
        stem: str | tuple[str, ...],
        recorded_hw: tuple[int, int] | None = None,
        path: Path | None = None,
    ) -> AnnotatedImage:
        """The image called ``stem`` (with or without a suffix) that ``annotation`` belongs to.

        stem: several names are tried in order. path: the image beside the annotation, if it is known already; images
        that the user named come first. Without an image,
        ``recorded_hw`` (a size recorded in the annotation file) is enough if images are not required. Otherwise, and if
        the sizes disagree, raises `InputError`: decoding masks needs the size of their image.
        """
        names = (stem,) if isinstance(stem, str) else stem
        beside, path = path, None
        if self._given is not None:
            folder, given = self._folder_of(annotation), self._given
            found = next((one for name in names if (one := given.find(annotation, name, folder)) is not None), None)
            if isinstance(found, Sample):
                _check_sizes(annotation, recorded_hw, found.id, found.image_hw)
                return AnnotatedImage(found.image_path, found.image_hw, found.pixel_size_um)
            path = found
        if self._given is not None and path is None and self._given.is_file:
            path = self._pair_given(self._given.files[0], annotation, names)
        path = path or beside
        for name in names:
            path = path or self._search(annotation, name)
        if path is not None:
            self._claim(path, annotation, names)
        path = path or self._only_one(annotation, names, recorded_hw)
        if path is not None:
            return AnnotatedImage(path, annotated_hw(annotation, recorded_hw, path, self._series))
        if recorded_hw is not None and not self._require:
            return AnnotatedImage(None, recorded_hw)
        raise self._not_found(annotation, stem_of(names[0]) if "." in names[0] else names[0], recorded_hw)

    def _search(self, annotation: Path, stem: str) -> Path | None:
        """The image of this name next to ``annotation``, in the usual folders, or in any folder below the source."""
        here = annotation.parent
        relative = here / stem.replace("\\", "/")
        if plain_suffix(relative) in IMAGE_SUFFIXES and relative != annotation and is_file(relative):
            self.notes += absolute_note([stem], [relative], annotation)
            return relative
        for folder in self._near(here):
            files = [file for file in self._listed(folder).find(stem) if file != annotation]
            if files:
                return _only(files, annotation)
        above = here.parent.parent if _is_annotation_folder(here.parent) else here.parent
        tree = above if _is_annotation_folder(here) or _is_annotation_folder(here.parent) else here
        for folder in dict.fromkeys([tree, self._root or tree]):
            files = [file for file in self._below(folder).find(stem) if not _is_annotation_folder(file.parent)]
            files = [file for file in files if file != annotation and not _in_other_split(file, annotation, folder)]
            if files:
                return _only(files, annotation)
        return None

    def _near(self, here: Path) -> list[Path]:
        """The folder itself, folders of images next to and below it, and ``images/train`` for ``labels/train``."""
        folders = [here]
        for base, below in ((here.parent, ""), (here, ""), (here.parent.parent, here.name)):
            folders += [folder / below for folder in _image_folders(base) if (folder / below).is_dir()]
        return folders

    def _listed(self, folder: Path) -> ImageIndex:
        if folder not in self._folders:
            self._folders[folder] = ImageIndex(walk(folder, 0, zarr=True))
        return self._folders[folder]

    def _below(self, folder: Path) -> ImageIndex:
        if folder not in self._trees:
            self._trees[folder] = ImageIndex(walk(folder, 6, problems=[], zarr=True))
        return self._trees[folder]

    def _folder_of(self, annotation: Path) -> list[str]:
        """The folders of an annotation below the source, folded, without those that hold annotations or a split."""
        if self._root is None or not annotation.is_relative_to(self._root):
            return []
        parts = [folded(part) for part in annotation.parent.relative_to(self._root).parts]
        return [part for part in parts if part not in ANNOTATION_FOLDERS and part not in SPLITS]

    def _claim(self, image: Path, annotation: Path, names: tuple[str, ...]) -> None:
        """`InputError` if another annotation was paired with ``image``, which was found by name now."""
        self._named.add(image)
        other = self._alone.get(image, (annotation, names))
        if other != (annotation, names):
            raise self._not_found(other[0], other[1][0], None)

    def _only_one(self, annotation: Path, names: tuple[str, ...], recorded_hw: tuple[int, int] | None) -> Path | None:
        """The single image that was given, or that of a folder with a single annotation, whatever they are called."""
        if self._given is not None and len(self._given.files) == 1:
            return self._pair(self._given.files[0], annotation, names)
        files = [file for file in walk(annotation.parent, 0) if not is_own_output(file.name) or file == annotation]
        images = [file for file in files if file != annotation and _is_plain_image(file)]
        if not images:
            images = [file for folder in self._near(annotation.parent)[1:] for file in walk(folder, 0)]
            images = [file for file in images if _is_plain_image(file)]
        peers = [file for file in files if file not in images and plain_suffix(file) == plain_suffix(annotation)]
        if len(images) != 1 or peers != [annotation] or _is_plain_image(annotation):
            return None
        if (
            recorded_hw is not None
            and not self._require
            and image_header(images[0], self._series).image_hw != recorded_hw
        ):
            return None  # only its size would matter, which the annotation has
        return self._pair(images[0], annotation, names)

    def _pair_given(self, image: Path, annotation: Path, names: tuple[str, ...]) -> Path | None:
        """The single file that the user named, whatever it is called; None if it is that of another annotation."""
        path = self._pair(image, annotation, names)
        if path is None and image in self._alone:
            raise InputError(
                "one image was given for several annotations",
                where=annotation,
                got=f"{image}, and also {self._alone[image][0].name}",
                expected="an image for each",
                remedy="set `images` to the folder of the images",
            )
        return path

    def _pair(self, image: Path, annotation: Path, names: tuple[str, ...]) -> Path | None:
        """``image``, unless another annotation, or another image in the same file, was paired with it before."""
        if image in self._named or self._alone.setdefault(image, (annotation, names)) != (annotation, names):
            return None
        text = f"paired with {image.name}, the only image, although their names differ"
        kind = "an annotation was paired with the only image although their names differ"
        self.notes += (Note(kind, text, annotation.name),)
        return image

    def _not_found(self, annotation: Path, stem: str, recorded_hw: tuple[int, int] | None) -> InputError:
        similar = [
            *(self._given.index.similar(stem) if self._given is not None else ()),
            *(file for tree in (*self._folders.values(), *self._trees.values()) for file in tree.similar(stem)),
        ]
        names = list(dict.fromkeys(file.name for file in similar if file != annotation))[:3]
        return InputError(
            "cannot find the annotated image" if recorded_hw else "the size of the annotated image is unknown",
            where=annotation,
            expected=f"an image {stem}.tif or .png next to it, or in images/ or 'Tissue Images/' next to its folder",
            remedy=(f"did you mean {', '.join(names)}? " if names else "")
            + "give the image and its annotation the same name, or set `images` to the folder of the images",
        )


class GivenImages:
    """The images that the user named: a folder, or a dataset."""

    def __init__(self, images: Dataset | Path | Sequence[Path]) -> None:
        self._samples: dict[str, list[Sample]] = {}
        self._known = images if isinstance(images, Dataset) else None
        self._folder_of: dict[Path, list[str]] = {}
        self.files: list[Path] = []
        self.is_file = False  # whether the user named one file
        if not isinstance(images, Dataset):
            paths = [images] if isinstance(images, Path) else images
            below = {path: list(walk(path, zarr=True)) if path.is_dir() else [path] for path in paths}
            self.files = [file for files in below.values() for file in files]
            self._folder_of = {file: _folders_below(file, path) for path, files in below.items() for file in files}
            self.is_file = isinstance(images, Path) and is_file(images)
            self.index = ImageIndex(self.files)
            return
        self.index = ImageIndex(sample.image_path for sample in images if sample.image_path is not None)
        for sample in images:
            for name in names_of(sample):
                self._samples.setdefault(name, []).append(sample)

    def find(self, annotation: Path, name: str, folder: Sequence[str] = ()) -> Sample | Path | None:
        """The sample or file called ``name``. Raises `InputError` if several match equally well.

        folder: the folders of the annotation below the source. Of several matches, the one at the same place is meant.
        """
        place = [*folder, *name_parts(name)[:-1]]
        if self._known is None:
            files = self.index.find(name)
            here = [file for file in files if self._folder_of.get(file) == place]
            return _only(here if len(files) > 1 and here else files, annotation) if files else None
        named = self._samples.get("/".join(name_parts(name))) or self._samples.get((name_parts(name) or [""])[-1], [])
        if len(named) > 1:
            files = self.index.find(name)
            named = [sample for sample in named if sample.image_path in files] if len(files) == 1 else named
        if len(named) > 1:
            named = [sample for sample in named if name_parts(sample.id)[:-1] == place] or named
        if len(named) > 1:
            raise _several([sample.id for sample in named], annotation)
        return named[0] if named else None


def absolute_note(names: Sequence[str], paths: Sequence[Path | None], annotation: Path) -> tuple[Note, ...]:
    """One line about images that were found where an annotation file names them by absolute paths."""
    pairs = zip(names, paths, strict=True)
    named = [path for name, path in pairs if path is not None and path == Path(name) and path.is_absolute()]
    if not named:
        return ()
    text = f"{count(len(named), 'image')} read from an absolute path in the annotations, such as {named[0]}"
    return (Note("images were read from absolute paths in the annotations", text, annotation.name),)


def names_of(sample: Sample) -> set[str]:
    """The names by which a sample is found, folded: its id, the name of its file, and both without folders."""
    names = {"/".join(name_parts(sample.id)), folded(PurePosixPath(sample.id).name)}
    if sample.image_path is not None:
        names |= {folded(sample.image_path.name), folded(stem_of(sample.image_path))}
    return names | {_without_ome(name) for name in names}


def _folders_below(file: Path, base: Path) -> list[str]:
    return [folded(part) for part in file.parent.relative_to(base).parts] if file != base else []


def _image_folders(base: Path) -> list[Path]:
    try:
        return [entry for entry in sorted(base.iterdir()) if entry.name.lower() in IMAGE_FOLDERS and entry.is_dir()]
    except OSError:
        return []


def is_file(path: Path) -> bool:
    """Whether a path is that of a file or a Zarr folder, for any path that a file may name."""
    try:
        return path.is_file() or (is_zarr_folder(path) and path.is_dir())
    except (OSError, ValueError):  # a name that is too long, or contains a null byte
        return False


def _is_plain_image(file: Path) -> bool:
    """Whether a file has the suffix of an image and is not named as a label image."""
    return plain_suffix(file) in IMAGE_SUFFIXES and _LABEL_NAME.fullmatch(stem_of(file)) is None


def _in_other_split(image: Path, annotation: Path, root: Path) -> bool:
    """Whether the folders of two files below ``root`` name different splits."""
    splits = [
        {SPLITS[part.lower()] for part in file.relative_to(root).parts[:-1] if part.lower() in SPLITS}
        if file.is_relative_to(root)
        else set()
        for file in (image, annotation)
    ]
    return bool(splits[0] and splits[1] and splits[0] != splits[1])


def _is_annotation_folder(folder: Path) -> bool:
    return folder.name.lower() in ANNOTATION_FOLDERS


def _only(files: Sequence[Path], annotation: Path) -> Path:
    distinct = _distinct(files)
    if len(distinct) > 1:  # MoNuSAC has each image as a slide, too
        distinct = [file for file in distinct if plain_suffix(file) in IMAGE_SUFFIXES] or distinct
    if len(distinct) == 1:
        return distinct[0]
    named_alike = len({file.name for file in distinct}) == 1
    raise _several([str(file) for file in distinct], annotation, None if named_alike else distinct[0])


def _several(names: Sequence[str], annotation: Path, example: Path | None = None) -> InputError:
    remedy = ""
    if example is not None:
        stem = stem_of(example)
        ending = annotation.name[len(stem) :] if annotation.name.startswith(stem) else annotation.suffix
        remedy = f"name the annotation after the whole file name, such as {example.name}{ending}, or "
    return InputError(
        f"{count(len(names), 'image')} match one annotation",
        where=annotation,
        got=", ".join(names[:4]),
        expected="one image of this name",
        remedy=remedy + "set `images` to the folder of the right ones",
    )


def annotated_hw(
    annotation: Path, recorded_hw: tuple[int, int] | None, image: Path, series: int | str | None = None
) -> tuple[int, int]:
    """The size (H, W) on which an image was annotated; `InputError` if a recorded size is not that of the image.

    A picture that its EXIF orientation turns may have been annotated as it is stored (see `orientation`).
    """
    header = image_header(image, series)
    if recorded_hw is not None and header.orientation in QUARTER_TURNS and recorded_hw == header.image_hw[::-1]:
        return recorded_hw
    _check_sizes(annotation, recorded_hw, image, header.image_hw)
    return header.image_hw


def masked_hw(
    image: Path, mask_hw: Callable[[], tuple[int, int] | None], series: int | str | None = None
) -> tuple[int, int]:
    """The size (H, W) that the masks of an image must have: its own, or as it is stored if the masks have that size.

    mask_hw: gives the size of a mask, or None; it is called only if the image is turned.
    """
    header = image_header(image, series)
    if header.orientation not in QUARTER_TURNS:
        return header.image_hw
    height, width = header.image_hw
    return (width, height) if mask_hw() == (width, height) else (height, width)


def _check_sizes(
    annotation: Path, recorded_hw: tuple[int, int] | None, image: object, image_hw: tuple[int, int]
) -> None:
    if recorded_hw is None or image_hw == recorded_hw:
        return
    swapped = image_hw == recorded_hw[::-1]
    raise InputError(
        "an annotation and its image differ in size" + (": height and width are swapped" if swapped else ""),
        where=f"{annotation} and {image}",
        got=f"{recorded_hw[0]} x {recorded_hw[1]} and {image_hw[0]} x {image_hw[1]} (height x width)",
        expected="equal sizes",
        remedy="pair the annotation with the image it was made on" + (", or correct the annotation" if swapped else ""),
    )


def unannotated_note(dataset: Dataset) -> Note | None:
    """One line about images next to annotated ones that have no annotation; None if there are none."""
    used = {sample.image_path.resolve() for sample in dataset if sample.image_path is not None}
    folders = {sample.image_path.parent for sample in dataset if sample.image_path is not None}
    bare = [
        file
        for folder in sorted(folders)
        for file in walk(folder, 0, problems=[])
        if _is_plain_image(file) and not is_own_output(file.name) and file.resolve() not in used
    ]
    if not bare:
        return None
    text = (
        f"{count(len(bare), 'image')} next to annotated ones {'has' if len(bare) == 1 else 'have'} no annotation and "
        f"{'was' if len(bare) == 1 else 'were'} skipped, such as {bare[0].name}"
    )
    return Note("images without annotation were skipped", text)


def output_path(out: Path, sample_id: str, ending: str) -> Path:
    """``out/<sample id><ending>``, shortened if it is long; `OutputError` if the id would lead outside ``out``."""
    relative = PurePosixPath(sample_id.replace("\\", "/"))
    if (
        not relative.name
        or relative.is_absolute()
        or ".." in relative.parts
        or (os.name == "nt" and ":" in sample_id)
        or "\0" in sample_id
    ):
        raise OutputError(
            "a sample id would lead outside the output folder",
            where=out,
            got=repr(sample_id),
            remedy="rename the image, without .. in its name",
        )
    return out / relative.parent / f"{short_name(relative.name)}{ending}"


def short_name(name: str) -> str:
    """``name``, or its beginning and a digest if file systems would refuse it with an ending: at most 220 bytes.

    >>> short_name("field_1"), short_name("n" * 300)[-14:]
    ('field_1', 'nnnnn~306fffda')
    """
    encoded = name.encode("utf-8", "backslashreplace")
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.blake2b(encoded, digest_size=4).hexdigest()
    return f"{encoded[: MAX_NAME_BYTES - 9].decode('utf-8', 'ignore')}~{digest}"


def copy_image(sample: Sample, target: Path) -> list[Path]:
    """Copy a sample's image to ``target`` plus the suffix of the image; returns the paths written.

    Raises `InputError` for an image that is several files, or one plane of a file.
    """
    if sample.image_path is None:
        return []
    image = sample.image_path
    if sample.z is not None or sample.t is not None:
        raise InputError(
            "an image that is one plane of a stack cannot be copied",
            where=image,
            got=f"sample {sample.id}",
            remedy="save each plane as an image, and predict these, or leave the images where they are",
        )
    suffix = Path(image.stem).suffix + image.suffix if is_gzip(image) else image.suffix
    target = target.with_name(target.name + suffix)
    if image.suffix.lower() in SEVERAL_FILES:
        raise InputError(
            "this slide consists of several files, which cannot be copied",
            where=image,
            remedy="refer to the images where they are, without `copy_images`",
        )
    with atomic_path(target) as temporary:
        try:
            (shutil.copytree if image.is_dir() else shutil.copyfile)(image, temporary)
        except OSError as error:
            # What could not be written is reported as such; a full disk is reported with the name of the source.
            if str(error.filename) != str(image) or error.errno in FULL:
                raise
            raise unreadable(image, error, "image") from error
    return [target]
