"""Paths: annotation files below a folder, the image that belongs to an annotation, and safe output paths."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from cellwright.core.dataset import Sample
from cellwright.core.errors import InputError, OutputError
from cellwright.core.files import atomic_path, unreadable
from cellwright.data.formats.contract import ReadOptions
from cellwright.data.images.read import IMAGE_SUFFIXES, image_hw_of

# Names of folders that hold the images of annotations in another folder (MoNuSeg uses "Tissue Images").
IMAGE_FOLDERS = ("images", "Images", "Tissue Images", "image", "imgs")

# Folder names that denote a split.
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

# A folder with one of these files is a dataset or prediction folder of cellwright, which only the coco format reads.
OWN_FILES = ("dataset.json", "predictions.json")

# The most files that `sniff` examines, so that it is fast even for a folder of a million files.
SNIFF_LIMIT = 400
_SNIFF_LIMIT_PER_FOLDER = 40


def walk(root: Path, max_depth: int = 8, per_folder: int | None = None) -> Iterator[Path]:
    """Files below ``root``, sorted within each folder, without hidden ones (``.ipynb_checkpoints``) and ``__MACOSX``.

    per_folder: yield at most this many files per folder. Links to folders are not followed, which rules out cycles.
    """
    try:
        entries = sorted(root.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            "cannot list this folder",
            where=root,
            got=error.strerror or str(error),
            remedy="check the folder's permissions",
        ) from error
    visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    yield from islice((entry for entry in visible if entry.is_file()), per_folder)
    if max_depth > 0:
        for entry in visible:
            if entry.is_dir() and not entry.is_symlink():
                yield from walk(entry, max_depth - 1, per_folder)


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
        return list(islice(walk(path, per_folder=_SNIFF_LIMIT_PER_FOLDER), limit))
    except (OSError, InputError):
        return []


def first_bytes(path: Path, count: int = 4096) -> bytes:
    """The first bytes of a file, empty if it cannot be read. For `Format.sniff`: never raises."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def first_bytes_unpacked(path: Path, count: int = 4096) -> bytes:
    """The first bytes of a file, unpacked if it is compressed with gzip. For `Format.sniff`: never raises."""
    start = first_bytes(path, count)
    if not start.startswith(b"\x1f\x8b"):
        return start
    try:
        return zlib.decompressobj(wbits=31).decompress(start, count)
    except zlib.error:
        return b""


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

    A leading folder named as in `SPLITS` is the split. It is not part of the id, unless the ids would clash without it.
    """
    parts = [name.partition("/") for name in relative]
    places = [
        (rest, SPLITS[head]) if rest and head in SPLITS else (head + slash + rest, None) for head, slash, rest in parts
    ]
    if len({sample_id for sample_id, _ in places}) < len(places):
        places = [(name, split) for name, (_, split) in zip(relative, places, strict=True)]
    return [(root_name if sample_id == "." else sample_id, split) for sample_id, split in places]


def find_image(annotation: Path, stem: str) -> Path | None:
    """The image called ``stem`` next to an annotation, or in an image folder next to or below the annotation's folder.

    ``stem`` may include the extension of the image (``a.tif`` if there is also an ``a.png``). `InputError` if two
    images match equally well.
    """
    here = annotation.parent
    for folder in (here, *(here.parent / name for name in IMAGE_FOLDERS), *(here / name for name in IMAGE_FOLDERS)):
        exact = folder / stem
        if exact.suffix.lower() in IMAGE_SUFFIXES and exact.is_file() and exact != annotation:
            return exact
        images = [file for file in images_named(folder, stem) if file != annotation]
        if len(images) > 1:
            raise InputError(
                "two images match one annotation",
                where=annotation,
                got=", ".join(file.name for file in images),
                expected="one image of this name",
                remedy=f"name the annotation after the whole file name, such as {images[0].name}{annotation.suffix}",
            )
        if images:
            return images[0]
    return None


def images_named(folder: Path, stem: str) -> list[Path]:
    """The image files ``folder/<stem>.png``, ``.tif``, ``.ome.tif`` and so on that exist."""
    suffixes = [*sorted(IMAGE_SUFFIXES), ".ome.tif", ".ome.tiff"]
    names = [folder / f"{stem}{suffix}" for low in suffixes for suffix in (low, low.upper())]
    return _distinct([file for file in names if file.is_file()])


def stem_of(name: str) -> str:
    """The name of an image file without its suffix, of which ``.ome.tif`` is one.

    >>> stem_of("slide.ome.tif"), stem_of("a.b.png")
    ('slide', 'a.b')
    """
    stem = PurePosixPath(name).stem
    return stem[:-4] if name.lower().endswith((".ome.tif", ".ome.tiff")) else stem


def _distinct(files: Sequence[Path]) -> list[Path]:
    # On a case-insensitive file system, a.tif and a.TIF are the same file.
    kept: list[Path] = []
    for file in files:
        if not any(file.samefile(other) for other in kept):
            kept.append(file)
    return kept


@dataclass(frozen=True)
class AnnotatedImage:
    """The image of an annotation: its file (or None), its size in pixels, and its pixel size in microns (or None)."""

    path: Path | None
    image_hw: tuple[int, int]
    pixel_size_um: tuple[float, float] | None = None


class ImageFinder:
    """Finds the image of each annotation, by the rules of the read options."""

    def __init__(self, options: ReadOptions) -> None:
        self._require = options.require_images
        self._known: dict[str, list[Sample]] = {}
        for sample in options.images.samples if options.images is not None else ():
            for name in {sample.id, PurePosixPath(sample.id).name}:
                self._known.setdefault(name, []).append(sample)

    def find(
        self, annotation: Path, stem: str, recorded_hw: tuple[int, int] | None = None, path: Path | None = None
    ) -> AnnotatedImage:
        """The image called ``stem`` that ``annotation`` belongs to.

        The image is ``path`` if given, else the file that `find_image` returns, else the sample of
        ``ReadOptions.images`` whose id, or last part of it, is ``stem``. Without an image, ``recorded_hw`` (a size
        recorded in the annotation file) is enough if images are not required. Otherwise, and if the sizes disagree,
        raises `InputError`: decoding masks needs the size of their image.
        """
        path = path or find_image(annotation, stem)
        if path is not None:
            image_hw = image_hw_of(path)
            _check_sizes(annotation, recorded_hw, path, image_hw)
            return AnnotatedImage(path, image_hw)
        named = self._known.get(stem) or self._known.get(PurePosixPath(stem).name, [])
        if len(named) == 1:
            _check_sizes(annotation, recorded_hw, named[0].id, named[0].image_hw)
            return AnnotatedImage(named[0].image_path, named[0].image_hw, named[0].pixel_size_um)
        if recorded_hw is not None and not self._require:
            return AnnotatedImage(None, recorded_hw)
        raise InputError(
            "cannot find the annotated image" if recorded_hw else "the size of the annotated image is unknown",
            where=annotation,
            got=f"{len(named)} images named {stem}" if named else None,
            expected=f"an image {stem}.tif or .png next to it, or in images/ or 'Tissue Images/' next to its folder",
            remedy="put the image next to the annotation, under the same name",
        )


def _check_sizes(
    annotation: Path, recorded_hw: tuple[int, int] | None, image: object, image_hw: tuple[int, int]
) -> None:
    if recorded_hw is not None and image_hw != recorded_hw:
        raise InputError(
            "an annotation and its image differ in size",
            where=f"{annotation} and {image}",
            got=f"{recorded_hw[0]} x {recorded_hw[1]} and {image_hw[0]} x {image_hw[1]} (height x width)",
            expected="equal sizes",
            remedy="pair the annotation with the image it was made on",
        )


def output_path(out: Path, sample_id: str, ending: str) -> Path:
    """``out/<sample id><ending>``; `OutputError` if the id would lead outside ``out``."""
    relative = PurePosixPath(sample_id.replace("\\", "/"))
    if (
        not sample_id
        or relative.is_absolute()
        or ".." in relative.parts
        or ":" in relative.parts[0]
        or "\0" in sample_id
    ):
        raise OutputError(
            "a sample id would lead outside the output folder",
            where=out,
            got=repr(sample_id),
            remedy="rename the image, without .. in its name",
        )
    return out / relative.parent / f"{relative.name}{ending}"


def copy_image(sample: Sample, target: Path) -> list[Path]:
    """Copy a sample's image to ``target`` plus the suffix of the image; returns the paths written."""
    if sample.image_path is None:
        return []
    target = target.with_name(target.name + sample.image_path.suffix)
    try:
        data = sample.image_path.read_bytes()
    except OSError as error:
        raise unreadable(sample.image_path, error, "image") from error
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    return [target]
