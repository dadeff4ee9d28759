"""Cell Tracking Challenge: ``01/t000.tif`` and ``01_GT/SEG/man_seg000.tif`` (or ``01_ST/SEG``, ``01_RES/mask000.tif``).

The reference segmentation (``GT``) is read where a frame has one, else the silver one (``ST``). The reference of real
videos often outlines only some of the cells; the markers in ``TRA`` tell, and such frames are read from ``ST`` where
that is possible. Results (``RES``) are read if there is no reference, or if their folder is given. Markers are no
outlines: they are read only if the folder ``TRA`` itself is given. The labels of ``RES`` and ``TRA`` are the numbers of
tracks; see `ctc_tracks` for their tables.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.files import plain_suffix, stem_of
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions, WriteOptions
from cellwright.data.formats.ctc_tracks import TRACKS, read_tracks, write_results
from cellwright.data.formats.label_images import LoadLabels
from cellwright.data.formats.label_io import read_labels
from cellwright.data.formats.label_kinds import examine, examined
from cellwright.data.formats.paths import GivenImages, first_files, root_of, split_ids, walk
from cellwright.data.images.read import image_hw_of
from cellwright.data.images.tiff import open_tiff

_FRAME = re.compile(r"t(\d+)", re.IGNORECASE)
_SEQUENCE = re.compile(r"(\d+)_(GT|ST|ERR_SEG|RES)", re.IGNORECASE)
_NAMES = re.compile(r"(man_seg|man_track|mask)_?(\d+)(_\d+)?", re.IGNORECASE)
# What the label images of a frame can be, best first; the kinds in one group may be read together.
_GROUPS = (("GT", "ST"), ("RES",), ("ERR_SEG",), ("TRA",))
_TABLES = {"RES": "res_track.txt", "TRA": "man_track.txt"}
_DESCRIBED = {
    "GT": "the reference segmentation (GT/SEG)",
    "ST": "the silver reference (ST/SEG)",
    "ERR_SEG": "the segmentation with errors (ERR_SEG)",
    "RES": "results (RES)",
    "TRA": "tracking markers (TRA)",
}
_FLAT = "save one plane of each frame and of its label image as 2-D TIFF, such as with ImageJ"


@dataclass(frozen=True, order=True)
class _Frame:
    """A frame: the folder of the dataset, the number of the sequence, and that of the frame, as in the file names."""

    folder: Path
    sequence: str
    number: str

    def name(self, root: Path) -> str:
        """``"01/t000"``, below the folder of the dataset if that is below ``root``."""
        above = self.folder.relative_to(root).parts if self.folder.is_relative_to(root) else ()
        return "/".join((*above, self.sequence, f"t{self.number}"))


class CellTrackingChallenge(Format):
    name = "ctc"
    description = (
        "Cell Tracking Challenge: 01/t000.tif and 01_GT/SEG/man_seg000.tif (or 01_ST, 01_RES); loses classes, scores, "
        "ignore flags, overlaps"
    )
    published = True

    def sniff(self, path: Path) -> bool:
        """Whether there is a label image such as ``01_GT/SEG/man_seg000.tif`` or ``01_RES/mask000.tif``."""
        return path.is_dir() and any(place_of(file) is not None for file in first_files(_absolute(path)))

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every annotated frame; the others are skipped and counted, or have no objects if ``no_objects`` is set.

        For results, and for markers, ``info["tracks"]`` has the table of each sequence: label, first and last frame,
        and the label of the parent or 0.
        """
        root = _absolute(root_of(path))
        files = _Files.below(root, path)
        labels, notes = files.chosen(options, path)
        samples_of = _images(files, labels, options)
        examined_files = examined([file for _, file in labels.values()])
        rasters = ((str(file), read_labels(file)) for file in examined_files)
        meaning, more = examine(options.track(rasters, "examining label images", len(examined_files)), options, path)
        bare = sorted(frame for frame in files.frames if frame not in labels)
        frames = [*labels, *(bare if options.no_objects else [])]
        samples = []
        names = split_ids([frame.name(root) for frame in frames], root.name)
        for frame, (sample_id, split) in zip(frames, names, strict=True):
            image = samples_of.get(frame, files.frames.get(frame))
            hw = image_hw_of(labels[frame][1]) if image is None else image_hw_of(image, options.series)
            load = LoadLabels(labels[frame][1], hw, meaning) if frame in labels else Loaded(Instances.empty(hw))
            group = frame.name(root).rpartition("/")[0]
            samples.append(Sample(sample_id, image, hw, load, split=split, group=group, source=self.name))
        classes = options.name_classes(meaning.class_names or [DEFAULT_CLASS], path)
        info = {"format": self.name, **_tracks(labels, [sample.id for sample in samples])}
        notes = (*notes, *more, *_bare_note(bare, options, str(path)))
        return Dataset(tuple(samples), classes, root, info=info, notes=notes)

    def write(self, dataset: Dataset, out: Path, options: WriteOptions) -> list[Path]:
        """Write ``out/01_RES/mask000.tif`` (uint16) for each frame, and ``res_track.txt``.

        Sample ids such as ``01/t000`` give sequence and frame; other images are numbered in the order of their names,
        each folder as a sequence of its own. Objects keep their ids if the dataset has tracks; otherwise each object
        is a track of its own, which lasts one frame. Classes, scores and ignore flags are lost, and pixels shared by
        several objects go to one of them, with warnings. Raises `OutputError` for more than 65,535 tracks.
        """
        return write_results(dataset, out, options)


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """The frames, and the label images of each frame by source. sliced: the first annotation of a single plane."""

    frames: dict[_Frame, Path]
    labels: dict[_Frame, dict[str, Path]]
    sliced: Path | None = None

    @staticmethod
    def below(root: Path, path: Path) -> _Files:
        """The files below a folder, and the frames beside it if it holds annotations only."""
        frames: dict[_Frame, Path] = {}
        labels: dict[_Frame, dict[str, Path]] = {}
        sliced = None
        for file in walk(root):
            place = place_of(file)
            frame = _FRAME.fullmatch(stem_of(file)) if _is_tiff(file) else None
            if place is not None and place[2]:
                sliced = sliced or file
            elif place is not None:
                labels.setdefault(place[0], {})[place[1]] = file
            elif frame is not None and file.parent.name.isdecimal():
                frames[_Frame(file.parent.parent, file.parent.name, frame[1])] = file
        if not labels and sliced is None:
            raise InputError("no label images here", where=path, expected="01/t000.tif and 01_GT/SEG/man_seg000.tif")
        outside = {folder / sequence for folder, sequence in {(frame.folder, frame.sequence) for frame in labels}}
        for folder in sorted(folder for folder in outside if not folder.is_relative_to(root) and folder.is_dir()):
            for file in walk(folder, 0):
                frame = _FRAME.fullmatch(stem_of(file)) if _is_tiff(file) else None
                if frame is not None:
                    frames[_Frame(folder.parent, folder.name, frame[1])] = file
        return _Files(frames, dict(sorted(labels.items())), sliced)

    def chosen(self, options: ReadOptions, path: Path) -> tuple[dict[_Frame, tuple[str, Path]], list[Note]]:
        """Source and file of the best label image of each frame, and notes of what was read.

        Raises `InputError` for 3-D sequences, and for markers without outlines unless their folder is ``path``.
        """
        if self.sliced is not None:
            got = f"{self.sliced.name}, the annotation of one plane"
            raise InputError("this sequence is three-dimensional", where=self.sliced, got=got, remedy=_FLAT)
        present = {source for files in self.labels.values() for source in files}
        group = next(group for group in _GROUPS if present.intersection(group))
        if group == ("TRA",) and _absolute(path).name.upper() != "TRA":
            first = next(iter(self.labels.values()))["TRA"]
            raise InputError(
                "there are only markers here, which are not the outlines of cells",
                where=path,
                got=f"{count(len(self.labels), 'image')} of tracking markers (TRA)",
                expected="01_GT/SEG, 01_ST/SEG or 01_RES",
                remedy=f"to read the markers as objects all the same, give their folder: {first.parent}",
            )
        partial = _partly_outlined(self.labels, options)
        labels = {}
        for frame, files in self.labels.items():
            usable = [source for source in group if source in files]
            if usable[1:] and frame in partial:
                usable = usable[1:]
            if usable:
                labels[frame] = usable[0], files[usable[0]]
        for file in dict(labels.values()).values():
            _check_flat(file)
        others = sorted(present.difference(group, {"TRA"}))
        return labels, [_read_note(labels, others, str(path)), *_partial_notes(partial, labels, str(path))]


def _absolute(path: Path) -> Path:
    """The path with the names of all folders above it, which say what a file is."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - without following links, whose names count


def _is_tiff(file: Path) -> bool:
    return plain_suffix(file) in (".tif", ".tiff")


def place_of(file: Path) -> tuple[_Frame, str, bool] | None:
    """Frame and source of a label image, and whether it holds one plane of a 3-D frame; None for other files."""
    name = _NAMES.fullmatch(stem_of(file))
    if name is None or not _is_tiff(file):
        return None
    inner = file.parent.name.upper()
    folder = file.parent.parent if inner in ("SEG", "TRA") else file.parent
    sequence = _SEQUENCE.fullmatch(folder.name)
    expected = {"SEG": "man_seg", "TRA": "man_track"}.get(inner, "mask")
    if sequence is None or name[1].lower() != expected:
        return None
    source = "TRA" if inner == "TRA" else sequence[2].upper()
    return _Frame(folder.parent, sequence[1], name[2]), source, name[3] is not None


def _check_flat(file: Path) -> None:
    """Raise `FormatError` for a label image of several planes. Other faults are found when it is read."""
    try:
        with open_tiff(file) as tif:
            n_pages = len(tif.pages)
    except Exception:  # noqa: BLE001 - a damaged file raises whatever its parser raises; `read_labels` reports it
        return
    if n_pages > 1:
        got = count(n_pages, "plane")
        raise FormatError(
            "this sequence is three-dimensional", where=file, got=got, expected="2-D label images", remedy=_FLAT
        )


def _images(files: _Files, labels: Mapping[_Frame, object], options: ReadOptions) -> dict[_Frame, Path]:
    """The images of annotated frames among ``options.images``. Raises `InputError` if a frame has no image."""
    found = {}
    if options.images is not None:
        given = GivenImages(options.images)
        sequences = {frame.sequence for frame in labels}
        for frame in labels:
            image = given.find(frame.folder, f"{frame.sequence}/t{frame.number}")
            image = image.image_path if isinstance(image, Sample) else image
            if image is not None and (len(sequences) == 1 or frame.sequence in image.parts):
                found[frame] = image
    missing = [frame for frame in labels if frame not in files.frames and frame not in found]
    if missing and options.require_images:
        first = missing[0]
        raise InputError(
            "a label image has no frame",
            where=first.folder,
            got=f"{count(len(missing), 'label image')} without a frame",
            expected=f"{first.sequence}/t{first.number}.tif beside the folder of annotations",
            remedy="put the frames beside the annotations, or set `images` to their folder",
        )
    return found


# --- what is annotated ----------------------------------------------------------------------------------------------


def _partly_outlined(
    labels: Mapping[_Frame, Mapping[str, Path]], options: ReadOptions
) -> dict[_Frame, tuple[int, int]]:
    """Frames whose reference segmentation covers fewer cells than are marked: numbers of both."""
    both = [(frame, files["GT"], files["TRA"]) for frame, files in labels.items() if {"GT", "TRA"} <= files.keys()]
    partial = {}
    for frame, outlines, markers in options.track(both, "comparing outlines with markers", len(both)):
        marked, inside = read_labels(markers).values, read_labels(outlines).values != 0
        if marked.shape != inside.shape:
            continue  # `LoadLabels` compares the outlines with the frame
        numbers, index = np.unique(marked, return_inverse=True)
        index = index.reshape(marked.shape)
        covered = 2 * np.bincount(index[inside], minlength=len(numbers)) >= np.bincount(index.ravel())
        n_covered, n_marked = int((covered & (numbers > 0)).sum()), int((numbers > 0).sum())
        if n_covered < n_marked:
            partial[frame] = n_covered, n_marked
    return partial


def _partial_notes(
    partial: Mapping[_Frame, tuple[int, int]], labels: Mapping[_Frame, tuple[str, Path]], where: str
) -> list[Note]:
    replaced = [counts for frame, counts in partial.items() if labels[frame][0] != "GT"]
    kept = [counts for frame, counts in partial.items() if labels[frame][0] == "GT"]
    notes = []
    for frames, consequence in (
        (replaced, "the silver reference was read there"),
        (kept, "all others count as background there, which misleads training and evaluation"),
    ):
        if frames:
            covered, marked = (sum(numbers) for numbers in zip(*frames, strict=True))
            text = f"the reference segmentation outlines {covered} of {count(marked, 'cell')} that are marked in TRA "
            text += f"({count(len(frames), 'frame')}): {consequence}"
            notes.append(Note(f"frames with outlines of some cells only: {consequence}", text, where))
    return notes


def _read_note(labels: Mapping[_Frame, tuple[str, Path]], others: Sequence[str], where: str) -> Note:
    numbers = Counter(source for source, _ in labels.values())
    read = [f"{_DESCRIBED[source]} of {count(n, 'frame')}" for source, n in numbers.items()]
    text = f"read {' and '.join(read)}"
    if "TRA" in numbers:
        text += ", which mark cells without covering them"
    if others:
        text += f"; {' and '.join(_DESCRIBED[source] for source in others)} not read: give their folder to read them"
    return Note("which labels of the Cell Tracking Challenge were read", text, where)


def _bare_note(bare: Sequence[_Frame], options: ReadOptions, where: str) -> list[Note]:
    if not bare or options.no_objects:
        return []
    text = f"{count(len(bare), 'frame')} without a label image skipped"
    return [Note("frames without a label image were skipped", text, where)]


def _tracks(labels: Mapping[_Frame, tuple[str, Path]], sample_ids: Sequence[str]) -> dict[str, object]:
    """``{"tracks": {sequence: table}}`` of the sequences whose labels are the numbers of tracks, else nothing."""
    tables = {}
    for (source, file), sample_id in zip(labels.values(), sample_ids, strict=False):
        sequence = sample_id.rpartition("/")[0]
        table = file.with_name(_TABLES.get(source, file.name))
        if sequence not in tables and source in _TABLES and table.is_file():
            tables[sequence] = read_tracks(table)
    return {TRACKS: tables} if tables else {}
