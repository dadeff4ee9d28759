"""Label images: one TIFF or PNG per image whose pixel values are object ids, as Cellpose and StarDist use them.

`label_pairs` lists the layouts in which label images and their images are found. A Cellpose ``_seg.npy`` is read if
there is no label image for the same stem. A folder of label images only, or a single one, is read if images are not
required: the predictions of another tool. `label_kinds` recognises files that are no label images although they look
alike.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import CellwrightError, FormatError, InputError
from cellwright.core.files import is_gzip, plain_suffix, stem_of
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.label_io import (
    LABEL_SUFFIXES,
    Raster,
    as_raster,
    flat_labels,
    read_labels,
    read_raster,
    write_label_map,
)
from cellwright.data.formats.label_kinds import EXAMINED_SIDE, Meaning, examine, examined, looks_annotated
from cellwright.data.formats.label_pairs import (
    LabelLayout,
    LabelPair,
    find_pairs,
    label_stem,
    role_of,
)
from cellwright.data.formats.large_labels import LargeLabels, large_label_hw, read_centre
from cellwright.data.formats.paths import (
    ImageFinder,
    copy_image,
    first_files,
    masked_hw,
    output_path,
    root_of,
    split_ids,
    walk,
)
from cellwright.data.formats.regions import write_ignore_mask
from cellwright.data.images.names import IGNORE_MASK
from cellwright.data.images.read import IMAGE_SUFFIXES, image_hw_of

_ONE_CLASS = re.compile(r"class\d+")  # the label maps of `class_masks`
_SEVERAL = "some images have several label files"
_MAX_DECODED = 4  # how many files with arbitrary names `sniff` decodes


class LabelImages(Format):
    name = "label_images"
    description = (
        "images and label TIFF/PNG (_masks, images/ + masks/, Cellpose _seg.npy) with ignore masks; loses classes, "
        "scores, overlaps"
    )

    def sniff(self, path: Path) -> bool:
        """Whether there are label images with one of the names listed above (see `LabelFolder` for other names)."""
        files = first_files(path)
        if not files:
            return False
        root = path if path.is_dir() else path.parent
        try:
            pairs = find_pairs(files, root, others=_files_of).pairs if path.is_dir() else ()
        except CellwrightError:  # ambiguous names, which `read` reports
            return True
        if any(pair.image is not None for pair in pairs):
            return True
        return any(label_stem(file) is not None for file in files) and not _is_mask_folder(files, path)

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every label image at or below ``path`` with its image; the labels are the ids, and there is one class."""
        return read_label_images(path, options)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/<sample id>_masks.tif``, uint32, with the ids as labels; and the image next to it if
        ``copy_images`` is set.

        Ignored regions are written to ``out/<sample id>_ignore.png``. Overlapping objects are flattened, with a warning
        (see `flat_labels`). Classes and scores are lost.
        """
        written: list[Path] = []
        for sample in options.track(dataset, "writing label images", len(dataset)):
            target = output_path(out, sample.id, "_masks.tif")
            instances = sample.read_instances()
            write_label_map(target, flat_labels(instances[~instances.ignore], sample.id))
            written.append(target)
            if instances.ignore.any():
                written.append(output_path(out, sample.id, IGNORE_MASK))
                write_ignore_mask(written[-1], instances)
            if options.copy_images:
                written += copy_image(sample, output_path(out, sample.id, ""))
        return written


class LabelFolder(Format):
    name = "label_folder"
    description = "label images alone, under any names (the predictions of another tool); loses what label_images loses"

    def sniff(self, path: Path) -> bool:
        """Whether the TIFF and PNG files, whatever their names, look like label images: regions of equal values."""
        listed = first_files(path)
        files = [file for file in listed if plain_suffix(file) in LABEL_SUFFIXES]
        # If the folder itself is called "labels" or "masks", that says nothing about the layout below it.
        if not files or len(files) < len(listed) or any(_is_marked(file, path) for file in files):
            return False
        if LabelImages().sniff(path):
            return False
        answers = [file_looks_annotated(file) for file in files[:_MAX_DECODED]]
        return True in answers and False not in answers

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """As `LabelImages.read`."""
        return read_label_images(path, options)


class NuInsSeg(Format):
    name = "nuinsseg"
    description = "NuInsSeg: <organ>/tissue images/x.png and <organ>/label masks/x.tif"
    published = True

    def sniff(self, path: Path) -> bool:
        """Whether there are label images in ``label masks/`` beside ``tissue images/``."""
        return path.is_dir() and any(
            file.parent.name.lower() == "label masks" and (file.parent.parent / "tissue images").is_dir()
            for file in first_files(path)
        )

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """As `LabelImages.read`; the note says that binary masks and ROIs of the same objects are not read."""
        dataset = read_label_images(path, options)
        text = "label masks/ was read; the binary masks, distance maps and ImageJ ROIs of the same nuclei were not"
        notes = tuple(note for note in dataset.notes if note.kind != _SEVERAL)
        note = Note("one of several kinds of annotations was read", text, str(path))
        return dataclasses.replace(dataset, info={"format": self.name}, notes=(*notes, note))


def _is_marked(file: Path, path: Path) -> bool:
    in_role = file.parent != path and role_of(file.parent.name) is not None
    return (
        in_role or label_stem(file) is not None or stem_of(file) == "image" or bool(_ONE_CLASS.fullmatch(stem_of(file)))
    )


def file_looks_annotated(path: Path) -> bool | None:
    """As `looks_annotated`, for a file; False if it cannot be read."""
    try:
        return looks_annotated(read_raster(path))
    except InputError:
        return False


def are_all_zero(path: Path) -> bool:
    """Whether every file below a folder is a label image without objects, as tools write them that found nothing."""
    files = list(walk(path)) if path.is_dir() else [path]
    if not files or any(plain_suffix(file) not in LABEL_SUFFIXES for file in files):
        return False
    try:
        rasters = map(read_raster, files)
        return all(raster.encoding == "numbers" and not raster.values.any() for raster in rasters)
    except InputError:
        return False


def _is_mask_folder(files: Sequence[Path], path: Path) -> bool:
    """Whether ``images/`` and ``masks/`` below ``path`` contain one image and one file per object: ``mask_folder``."""
    below = [file for file in files if file.parent != path]
    return any(file.parent.name == "masks" and plain_suffix(file) in LABEL_SUFFIXES for file in below)


def _files_of(folder: Path) -> list[Path]:
    return list(walk(folder, max_depth=0))


def _layout(path: Path) -> LabelLayout:
    root = root_of(path)
    files = list(walk(root)) if path.is_dir() else [path]
    layout = find_pairs(files, root)
    if not layout.pairs:
        alone = [file for file in files if plain_suffix(file) in LABEL_SUFFIXES]
        pairs = [LabelPair(file, _relative_stem(file, root), None) for file in alone]
        layout = LabelLayout(tuple(pairs))
    if not layout.pairs:
        raise InputError(
            "no label images here",
            where=path,
            expected="x.tif next to x_masks.tif, or images/x.tif and masks/x.tif, or label images only",
        )
    return layout


def _relative_stem(file: Path, root: Path) -> str:
    relative = file.relative_to(root)
    return (relative.with_suffix("") if is_gzip(file) else relative).with_suffix("").as_posix()


def read_label_images(path: Path, options: ReadOptions, name: str = "label_images") -> Dataset:
    """The label images at or below ``path``, as `LabelImages.read`. name: of the format."""
    root, layout = root_of(path), _layout(path)
    meaning, notes = examine(_rasters(layout, options), options, path)
    names = options.name_classes(meaning.class_names or [DEFAULT_CLASS], path)
    finder = ImageFinder(options, root)
    bare = layout.bare if options.no_objects else ()
    places = split_ids([*(pair.name for pair in layout.pairs), *(name for name, _ in bare)], root.resolve().name)
    samples = []
    pairs = options.track(list(zip(layout.pairs, places, strict=False)), "reading headers", len(layout.pairs))
    for pair, (sample_id, split) in pairs:
        image_path, size_um = pair.image, None
        if image_path is None or options.images is not None:
            image_hw = _labels_hw(pair.labels)
            image = finder.find(pair.labels, image_stem(pair), image_hw, image_path)
            image_path, image_hw, size_um = image.path, image.image_hw, image.pixel_size_um
        else:
            image_hw = masked_hw(image_path, partial(_labels_hw, pair.labels), options.series)
        load = LoadLabels(pair.labels, image_hw, meaning)
        samples.append(Sample(sample_id, image_path, image_hw, load, None, split, None, size_um, name))
    for (_, file), (sample_id, split) in zip(bare, places[len(layout.pairs) :], strict=True):
        image_hw = image_hw_of(file, options.series)
        samples.append(Sample(sample_id, file, image_hw, Loaded(Instances.empty(image_hw)), None, split))
    notes = (*notes, *finder.notes, *_layout_notes(layout, root, options))
    return Dataset(tuple(samples), names, root, info={"format": name}, notes=notes)


def _rasters(layout: LabelLayout, options: ReadOptions) -> Iterator[tuple[str, Raster]]:
    pairs = examined(layout.pairs)
    for pair in options.track(pairs, "examining label images", len(pairs)):
        yield str(pair.labels), _examined_raster(pair.labels)


def _examined_raster(path: Path) -> Raster:
    """The values of a label image, of a large one those in its middle."""
    if (image_hw := large_label_hw(path)) is not None:
        return as_raster(read_centre(path, image_hw, EXAMINED_SIDE), path)
    return read_labels(path)


def _layout_notes(layout: LabelLayout, root: Path, options: ReadOptions) -> Iterator[Note]:
    if layout.bare and not options.no_objects:
        text = (
            f"{count(len(layout.bare), 'image')} without a label image left out, such as "
            f"{layout.bare[0][1].relative_to(root).as_posix()}; `no_objects=True` takes them as images without objects"
        )
        yield Note("images without a label image were left out", text, str(root))
    if layout.unread:
        first, read = layout.unread[0].relative_to(root).as_posix(), layout.pairs[0].labels.relative_to(root).as_posix()
        text = f"some images have several label files: {read} and the like were read, {first} and the like were not"
        yield Note(_SEVERAL, text, str(root))


def image_stem(pair: LabelPair) -> str:
    """The stem of the image of a label file that is marked by its name."""
    stem = Path(pair.name).name
    if any((pair.labels.parent / f"{stem}_img{suffix}").is_file() for suffix in IMAGE_SUFFIXES):
        return f"{stem}_img"  # the names in Cellpose's own training folders
    return stem


@dataclass(frozen=True)
class LoadLabels:
    """Reads one label file, whose size must be ``image_hw``."""

    path: Path
    image_hw: tuple[int, int]
    meaning: Meaning

    def large(self) -> LargeLabels | None:
        """The labels, if they are object ids and too many to be read at once."""
        is_large = self.meaning == Meaning() and large_label_hw(self.path) == self.image_hw
        return LargeLabels(self.path, self.image_hw) if is_large else None

    def __call__(self) -> Instances:
        if (large := self.large()) is not None:
            return large()
        raster = read_labels(self.path)
        if raster.values.shape != self.image_hw:
            raise FormatError(
                "a label image and its image differ in size",
                where=self.path,
                got=f"{raster.values.shape[0]} x {raster.values.shape[1]} (height x width)",
                expected=f"{self.image_hw[0]} x {self.image_hw[1]}",
                remedy="pair the labels with the image they were made on",
            )
        return self.meaning.objects(raster, self.path)


def _labels_hw(path: Path) -> tuple[int, int]:
    if path.suffix != ".npy":
        return image_hw_of(path)
    height, width = read_labels(path).values.shape
    return height, width
