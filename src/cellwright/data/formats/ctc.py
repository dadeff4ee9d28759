"""Cell Tracking Challenge: ``01/t000.tif`` and ``01_GT/SEG/man_seg000.tif`` (or ``01_ST/SEG``, ``01_RES/mask000.tif``).

The reference segmentation (``GT``) is read where a frame has one, else the silver one (``ST``), else the result
(``RES``). ``TRA`` holds markers for tracking, not outlines, and is not read; neither are the tracks.
"""

from __future__ import annotations

import re
from pathlib import Path

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.contract import DEFAULT_CLASS, Format, ReadOptions
from cellwright.data.formats.label_images import LoadLabels
from cellwright.data.formats.label_io import read_labels
from cellwright.data.formats.label_kinds import examine, examined
from cellwright.data.formats.paths import first_files, root_of, split_ids, walk
from cellwright.data.images.read import image_hw_of

_LABELS = re.compile(r"(?:man_seg|mask)(\d+)\.tif", re.IGNORECASE)
_FRAME = re.compile(r"t(\d+)\.tif", re.IGNORECASE)
_SEQUENCE = re.compile(r"(\d+)_(GT|ST|ERR_SEG|RES)", re.IGNORECASE)
_ORDER = ("gt", "st", "err_seg", "res")


class CellTrackingChallenge(Format):
    name = "ctc"
    description = "Cell Tracking Challenge: 01/t000.tif and 01_GT/SEG/man_seg000.tif (or 01_ST, 01_RES); no tracks"
    published = True

    def sniff(self, path: Path) -> bool:
        """Whether there is a label image such as ``01_GT/SEG/man_seg000.tif`` or ``01_RES/mask000.tif``."""
        return path.is_dir() and any(_place(file) is not None for file in first_files(path))

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        """Every annotated frame; the others are skipped and counted, or have no objects if ``no_objects`` is set."""
        root = root_of(path)
        frames, labels = _files(root)
        if not labels:
            raise InputError("no label images here", where=path, expected="01/t000.tif and 01_GT/SEG/man_seg000.tif")
        missing = [key for key in labels if key not in frames]
        if missing and options.require_images:
            raise InputError(
                "a label image has no frame",
                where=labels[missing[0]][1],
                got=f"{count(len(missing), 'label image')} without a frame",
                expected=f"{missing[0][1]}/t{missing[0][2]}.tif beside its folder",
                remedy="put the frames beside the annotations",
            )
        files = examined([file for _, file in labels.values()])
        rasters = ((str(file), read_labels(file)) for file in files)
        meaning, notes = examine(options.track(rasters, "examining label images", len(files)), options, path)
        bare = [key for key in frames if key not in labels]
        keys = [*labels, *(bare if options.no_objects else [])]
        names = ["/".join((*key[0].relative_to(root).parts, key[1], f"t{key[2]}")) for key in keys]
        samples = []
        for key, (sample_id, split) in zip(keys, split_ids(names, root.resolve().name), strict=True):
            image = frames.get(key)
            hw = image_hw_of(image if image is not None else labels[key][1])
            load = LoadLabels(labels[key][1], hw, meaning) if key in labels else Loaded(Instances.empty(hw))
            samples.append(
                Sample(sample_id, image, hw, load, split=split, group=f"{key[0]}/{key[1]}", source=self.name)
            )
        classes = options.name_classes(meaning.class_names or [DEFAULT_CLASS], path)
        notes = (*notes, *_notes(labels, bare, options, str(path)))
        return Dataset(tuple(samples), classes, root, info={"format": self.name}, notes=notes)


_Key = tuple[Path, str, str]  # folder of the sequence, its number, and the number of the frame


def _place(file: Path) -> tuple[_Key, int] | None:
    """Sequence and frame of a label image, and the rank of its source in `_ORDER`."""
    name = _LABELS.fullmatch(file.name)
    folder = file.parent.parent if file.parent.name.upper() == "SEG" else file.parent
    sequence = _SEQUENCE.fullmatch(folder.name)
    if name is None or sequence is None:
        return None
    return (folder.parent, sequence[1], name[1]), _ORDER.index(sequence[2].lower())


def _files(root: Path) -> tuple[dict[_Key, Path], dict[_Key, tuple[int, Path]]]:
    """The frames, and the best label image of each annotated frame with its rank."""
    frames: dict[_Key, Path] = {}
    labels: dict[_Key, tuple[int, Path]] = {}
    for file in walk(root):
        frame, place = _FRAME.fullmatch(file.name), _place(file)
        if place is not None:
            key, rank = place
            if key not in labels or rank < labels[key][0]:
                labels[key] = rank, file
        elif frame is not None and file.parent.name.isdecimal():
            frames[file.parent.parent, file.parent.name, frame[1]] = file
    return frames, labels


def _notes(labels: dict[_Key, tuple[int, Path]], bare: list[_Key], options: ReadOptions, where: str) -> list[Note]:
    notes = []
    ranks = sorted({rank for rank, _ in labels.values()})
    if ranks != [0]:
        read = " and ".join(_ORDER[rank].upper() for rank in ranks)
        notes.append(Note("other than reference labels were read", f"the labels of {read} were read", where))
    if bare and not options.no_objects:
        text = f"{count(len(bare), 'frame')} without a label image skipped"
        notes.append(Note("frames without a label image were skipped", text, where))
    return notes
