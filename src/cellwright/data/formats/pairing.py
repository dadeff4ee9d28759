"""Finding files: the annotation files under a folder, the image that belongs to one, and safe places for outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from cellwright.core.dataset import Sample
from cellwright.core.errors import InputError, OutputError
from cellwright.core.files import atomic_path, unreadable
from cellwright.data.formats.contract import ReadOptions
from cellwright.data.images.read import IMAGE_SUFFIXES, image_hw_of

# Folders that hold the images of annotations which lie in a folder of their own (MoNuSeg: "Tissue Images").
IMAGE_FOLDERS = ("images", "Images", "Tissue Images", "image", "imgs")

# Folder names that say which split lies below them.
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

# What marks a dataset or a prediction folder of ours, which the coco format reads.
OWN_FILES = ("dataset.json", "predictions.json")

# A sniff looks at no more files than this, so that it stays quick on a folder of a million.
SNIFF_LIMIT = 400
_SNIFF_LIMIT_PER_FOLDER = 40


def walk(root: Path, max_depth: int = 8, per_folder: int | None = None) -> Iterator[Path]:
    """Files under ``root``, sorted folder by folder, without hidden ones (``.ipynb_checkpoints``) and ``__MACOSX``.

    per_folder: give no more than the first so many of each folder. Links to folders are not followed, so a loop of
    links cannot trap a reader.
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
    """The first files of each folder under ``path``, ``limit`` in all; ``[path]`` for a file, ``[]`` for neither.

    For sniffs: never raises. Nothing for a folder of our own, which holds `OWN_FILES`: what lies beside these are
    exports.
    """
    try:
        if path.is_file():
            return [path]
        if not path.is_dir() or any((path / name).is_file() for name in OWN_FILES):
            return []
        return list(islice(walk(path, per_folder=_SNIFF_LIMIT_PER_FOLDER), limit))
    except (OSError, InputError):
        return []


def annotation_files(path: Path, wanted: Callable[[Path], bool], what: str) -> list[Path]:
    """The files under ``path`` (or ``path`` itself) that are ``wanted``; `InputError` where there is none."""
    if not path.exists():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    files = [path] if path.is_file() else [file for file in walk(path) if wanted(file)]
    if not files:
        raise InputError(f"no {what} here", where=path, expected=f"{what} in the folder or below it")
    return files


def root_of(path: Path) -> Path:
    """The folder that sample ids are relative to."""
    return path if path.is_dir() else path.parent


def split_ids(relative: Sequence[str], root_name: str) -> list[tuple[str, str | None]]:
    """Sample id and split of files or folders given by their paths below the root (``"."`` is called ``root_name``).

    A leading folder named as in `SPLITS` is the split and is no part of the id, unless two ids would then be the same.
    """
    parts = [name.partition("/") for name in relative]
    places = [
        (rest, SPLITS[head]) if rest and head in SPLITS else (head + slash + rest, None) for head, slash, rest in parts
    ]
    if len({sample_id for sample_id, _ in places}) < len(places):
        places = [(name, split) for name, (_, split) in zip(relative, places, strict=True)]
    return [(root_name if sample_id == "." else sample_id, split) for sample_id, split in places]


def first_bytes(path: Path, count: int = 4096) -> bytes:
    """The start of a file, empty where it cannot be read. For sniffs: never raises."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def find_image(annotation: Path, stem: str) -> Path | None:
    """The image called ``stem`` beside an annotation, or in an image folder beside or below the annotation's folder.

    ``stem`` may keep the image's extension (``a.tif`` where ``a.png`` lies beside it). `InputError` where two images
    fit equally well.
    """
    here = annotation.parent
    for folder in (here, *(here.parent / name for name in IMAGE_FOLDERS), *(here / name for name in IMAGE_FOLDERS)):
        exact = folder / stem
        if exact.suffix.lower() in IMAGE_SUFFIXES and exact.is_file() and exact != annotation:
            return exact
        found = [file for file in images_named(folder, stem) if file != annotation]
        if len(found) > 1:
            raise InputError(
                "two images fit one annotation",
                where=annotation,
                got=", ".join(file.name for file in found),
                expected="one image of this name",
                remedy=f"name the annotation after the whole file, such as {found[0].name}{annotation.suffix}",
            )
        if found:
            return found[0]
    return None


def images_named(folder: Path, stem: str) -> list[Path]:
    """The image files ``folder/<stem>.png``, ``.tif`` and so on that exist."""
    names = [folder / f"{stem}{suffix}" for low in sorted(IMAGE_SUFFIXES) for suffix in (low, low.upper())]
    return _distinct([file for file in names if file.is_file()])


def _distinct(files: Sequence[Path]) -> list[Path]:
    # On a file system that ignores case, a.tif and a.TIF are one file.
    kept: list[Path] = []
    for file in files:
        if not any(file.samefile(other) for other in kept):
            kept.append(file)
    return kept


@dataclass(frozen=True)
class Picture:
    """What is known of an annotated image: its file (or None), its size, and its pixel size in microns (or None)."""

    path: Path | None
    image_hw: tuple[int, int]
    pixel_size_um: tuple[float, float] | None = None


class Pictures:
    """Finds the image of each annotation of one reading."""

    def __init__(self, options: ReadOptions) -> None:
        self._require = options.require_images
        self._known: dict[str, list[Sample]] = {}
        for sample in options.images.samples if options.images is not None else ():
            for name in {sample.id, PurePosixPath(sample.id).name}:
                self._known.setdefault(name, []).append(sample)

    def of(
        self, annotation: Path, stem: str, recorded_hw: tuple[int, int] | None = None, path: Path | None = None
    ) -> Picture:
        """The image called ``stem`` that ``annotation`` outlines: ``path`` where the caller knows it.

        Else sought beside the annotation (`find_image`), then in ``ReadOptions.images`` by its id or the last part of
        it. Without either, ``recorded_hw`` (a size that the annotation file itself tells) serves where images are not
        required. `InputError` says what is missing: masks need the size of their image.
        """
        path = path or find_image(annotation, stem)
        if path is not None:
            image_hw = image_hw_of(path)
            _check_sizes(annotation, recorded_hw, path, image_hw)
            return Picture(path, image_hw)
        named = self._known.get(stem) or self._known.get(PurePosixPath(stem).name, [])
        if len(named) == 1:
            _check_sizes(annotation, recorded_hw, named[0].id, named[0].image_hw)
            return Picture(named[0].image_path, named[0].image_hw, named[0].pixel_size_um)
        if recorded_hw is not None and not self._require:
            return Picture(None, recorded_hw)
        raise InputError(
            "the annotated image is not found" if recorded_hw else "the size of the annotated image is not known",
            where=annotation,
            got=f"{len(named)} images named {stem}" if named else None,
            expected=f"an image {stem}.tif or .png beside it, or in images/ or 'Tissue Images/' beside its folder",
            remedy="put the image beside the annotation, under the same name",
        )


def _check_sizes(
    annotation: Path, recorded_hw: tuple[int, int] | None, image: object, image_hw: tuple[int, int]
) -> None:
    if recorded_hw is not None and image_hw != recorded_hw:
        raise InputError(
            "an annotation and its image differ in size",
            where=f"{annotation} and {image}",
            got=f"{recorded_hw[0]} x {recorded_hw[1]} and {image_hw[0]} x {image_hw[1]} (height x width)",
            expected="one size",
            remedy="pair the annotation with the image it was made on",
        )


def output_path(out: Path, sample_id: str, ending: str) -> Path:
    """``out/<sample id><ending>``; `OutputError` for an id that would leave ``out``."""
    relative = PurePosixPath(sample_id.replace("\\", "/"))
    if (
        not sample_id
        or relative.is_absolute()
        or ".." in relative.parts
        or ":" in relative.parts[0]
        or "\0" in sample_id
    ):
        raise OutputError(
            "a sample's id would leave the output folder",
            where=out,
            got=repr(sample_id),
            remedy="rename the image, without .. in its name",
        )
    return out / relative.parent / f"{relative.name}{ending}"


def copy_image(sample: Sample, target: Path) -> list[Path]:
    """Copy a sample's image to ``target`` (its suffix is replaced by the image's); the paths written."""
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
