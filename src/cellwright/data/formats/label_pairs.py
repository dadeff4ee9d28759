"""Find label images and the images they belong to, in the layouts that tools and datasets use: `find_pairs`.

- Two folders, side by side or below each other's splits, with the same names: ``images/`` and ``masks/``, ``raw/`` and
  ``label/``, ``x/`` and ``y/``, ``Training_source/`` and ``Training_target/`` and so on; see `IMAGE_WORDS` and
  `LABEL_WORDS`.
- One folder, where the names of label images begin or end with a word: ``x.tif`` and ``x_masks.tif``; see `_STRONG` and
  `_WEAK`.
- One folder per image: ``<id>/image.png`` and ``<id>/label.png``.

Capital letters, and spaces and hyphens instead of underscores, make no difference.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellwright.core.errors import InputError
from cellwright.core.files import plain_suffix
from cellwright.data.formats.label_io import LABEL_SUFFIXES
from cellwright.data.formats.paths import SPLITS, images_named, stem_of
from cellwright.data.images.names import CELL_MASKS
from cellwright.data.images.read import IMAGE_SUFFIXES, is_image_name, is_own_output

CELLPOSE = "_seg.npy"

IMAGE_WORDS = {
    "image", "images", "img", "imgs", "raw", "raw_image", "raw_images", "rawimages", "x", "source", "sources",
    "source_images", "input", "inputs", "tissue_image", "tissue_images", "photo", "photos", "frames", "original",
    "originals", "original_images", "imagestr", "imagests",
}  # fmt: skip
# If the label images of one image are in several folders, the first in this order is read.
LABEL_WORDS = (
    "instances", "instance", "instance_masks", "instance_mask", "instance_labels", "instance_maps", "instance_map",
    "inst_map", "inst_maps", "instances_ids", "label_masks", "label_mask", "label_images", "label_image", "label_maps",
    "labels", "label", "labelled", "labeled", "labelstr", "labelsts", "gt", "ground_truth", "groundtruth",
    "ground_truths", "target", "targets", "y", "masks", "mask", "segmentation", "segmentations", "seg",
    "segmentation_masks", "nuclei_masks", "cell_masks", "annotations", "annotation", "binary_masks", "mask_binary",
)  # fmt: skip
_SPLIT_WORDS = {**SPLITS, "tr": "train", "ts": "test"}

# Endings of the names of label images. After a weak one, an image of the remaining name must exist.
_STRONG = re.compile(r"(.+?)[-_. ](?:cp_masks|masks|mask|labels|label)", re.IGNORECASE)
_WEAK = re.compile(
    r"(.+?)[-_. ](?:gt|gts|ground_?truth|instances?|instance_(?:masks?|labels?|maps?|ids)|inst(?:_map)?|seg|segmented|"
    r"segmentation|labelled|labeled|label_?(?:img|image|map)s?|anno|annotations?|targets?|truth|cell_?masks?|"
    r"nuclei_?masks?)",
    re.IGNORECASE,
)
_WEAK_START = re.compile(r"(?:masks?|labels?|gt|seg|instances?|target)[-_. ](.+)", re.IGNORECASE)
_IMAGE_ENDING = re.compile(r"(.+?)[-_. ](?:img|image|raw|orig|original|0000)", re.IGNORECASE)
_IMAGE_START = re.compile(r"(?:img|image|im|raw)[-_. ](.+)", re.IGNORECASE)


@dataclass(frozen=True)
class LabelPair:
    """A label file, the name of its sample (a path relative to the root), and its image if that is known."""

    labels: Path
    name: str
    image: Path | None


@dataclass(frozen=True)
class LabelLayout:
    """What `find_pairs` found. unread: label files of images that have a better one. bare: names and files of the
    images beside the others that have no label file."""

    pairs: tuple[LabelPair, ...] = ()
    unread: tuple[Path, ...] = ()
    bare: tuple[tuple[str, Path], ...] = ()


def label_stem(file: Path) -> str | None:
    """The stem of the image that a file with the name of a label file belongs to, else None."""
    if file.name.endswith(CELLPOSE) and file.name != CELLPOSE:
        return file.name[: -len(CELLPOSE)]
    if file.name.endswith(CELL_MASKS):
        stem = file.name.removesuffix(CELL_MASKS)
        if images_named(file.parent, stem) and not images_named(file.parent, f"{stem}_cell"):
            return stem
    match = _STRONG.fullmatch(stem_of(file.name))
    return match[1] if match and _may_be_labels(file, lossy=True) else None


def role_of(name: str) -> tuple[str, str | None] | None:
    """``("image" or "label", split or None)`` of a folder with this name, or None.

    >>> role_of("Training_source"), role_of("label masks"), role_of("train")
    (('image', 'train'), ('label', None), None)
    """
    words = _normal(name).split("_")
    split = next((_SPLIT_WORDS[word] for word in (words[0], words[-1]) if word in _SPLIT_WORDS), None)
    rest = "_".join(word for word in words if word not in _SPLIT_WORDS)
    if rest in IMAGE_WORDS:
        return "image", split
    return ("label", split) if rest in LABEL_WORDS else None


def find_pairs(
    files: Iterable[Path], root: Path, *, others: Callable[[Path], Iterable[Path]] | None = None
) -> LabelLayout:
    """The label images among ``files`` (all below ``root``) and their images.

    others: the files of a folder of images, if ``files`` may lack some of them. Raises `InputError` if two images or
    two label images match.
    """
    files = [file for file in files if not is_own_output(file.name) or file.name.endswith("_masks.tif")]
    if others is not None:
        placed = ((file.parent, _place(file, root)) for file in files)
        folders = {folder for folder, place in placed if place is not None and place.role == "image"}
        files = list(dict.fromkeys([*files, *(file for folder in sorted(folders) for file in others(folder))]))
    cells = _cells_of_nuclei(files)
    files = [file for file in files if file not in cells]
    placed = [(file, _place(file, root)) for file in files]
    in_folders = _Folders([(file, place) for file, place in placed if place is not None])
    pairs, unread = in_folders.pairs()
    used = {pair.labels for pair in pairs} | {pair.image for pair in pairs} | set(unread)
    rest = [file for file in files if file not in used]
    marked, second = _marked(rest, root)
    by_folder, third = _one_folder_each(rest, root, {pair.labels for pair in marked})
    pairs = [*pairs, *marked, *by_folder]
    if not pairs:
        return LabelLayout()
    bare = _bare(files, root, pairs, {*unread, *second, *third})
    unread += [*second, *third, *sorted(cells)]
    return LabelLayout(tuple(sorted(pairs, key=lambda pair: pair.name)), tuple(unread), tuple(bare))


def _cells_of_nuclei(files: Sequence[Path]) -> set[Path]:
    """The label images of cells that were made from nuclei, whose own label image is beside them."""
    known = set(files)
    named = [file for file in files if file.name.endswith(CELL_MASKS)]
    return {file for file in named if file.with_name(file.name.removesuffix(CELL_MASKS) + "_masks.tif") in known}


@dataclass(frozen=True)
class _Place:
    """Where a file is: in a folder of images or labels. group: the parts of the path around that folder, with its
    split; rank: of a label folder, in the order of `LABEL_WORDS`."""

    role: str
    group: tuple[str, ...]
    rank: int


def _place(file: Path, root: Path) -> _Place | None:
    parents = file.relative_to(root).parts[:-1]
    for k in reversed(range(len(parents))):
        found = role_of(parents[k])
        if found is None:
            continue
        role, split = found
        group = (*parents[:k], *((split,) if split else ()), *parents[k + 1 :])
        rest = "_".join(word for word in _normal(parents[k]).split("_") if word not in _SPLIT_WORDS)
        return _Place(role, group, LABEL_WORDS.index(rest) if role == "label" else 0)
    return None


class _Folders:
    """Files in folders of images and folders of labels."""

    def __init__(self, placed: Sequence[tuple[Path, _Place]]) -> None:
        self._images: dict[tuple[tuple[str, ...], str], list[Path]] = {}
        self._labels: dict[Path, list[tuple[Path, _Place]]] = {}
        for file, place in placed:
            if place.role == "image" and is_image_name(file.name):
                for stem in _image_stems(file):
                    self._images.setdefault((_group_key(place.group), _key(stem)), []).append(file)
            elif place.role == "label" and (_may_be_labels(file, lossy=True) or file.name.endswith(CELLPOSE)):
                self._labels.setdefault(file.parent, []).append((file, place))

    def pairs(self) -> tuple[list[LabelPair], list[Path]]:
        """Pairs, and the label files that are not read since the image has others in a folder of better rank."""
        best: dict[str, tuple[int, LabelPair]] = {}
        unread = []
        for members in self._labels.values():
            found = [(place, *self._match(file, place)) for file, place in members]
            known = [pair for _, pair, is_known in found if is_known]
            if 2 * len(known) < len(members):
                continue  # files of another layout, such as one mask per object
            for place, pair, _ in found:
                other = best.get(pair.name)
                if (
                    other is not None
                    and other[0] == place.rank
                    and other[1].labels.suffix != ".npy" != pair.labels.suffix
                ):
                    raise _twice(other[1].labels, pair.labels)
                is_better = other is None or (place.rank, pair.labels.suffix == ".npy") < (
                    other[0], other[1].labels.suffix == ".npy"
                )  # fmt: skip
                if other is not None:
                    unread.append((other[1] if is_better else pair).labels)
                if is_better:
                    best[pair.name] = place.rank, pair
        return [pair for _, pair in best.values()], unread

    def _match(self, file: Path, place: _Place) -> tuple[LabelPair, bool]:
        for stem in _label_stems(file):
            images = self._images.get((_group_key(place.group), _key(stem)), [])
            exact = [image for image in images if _key(stem_of(image.name)) == _key(stem)] or images
            if len(exact) > 1:
                got = ", ".join(image.name for image in exact)
                raise InputError("two images match one label image", where=file, got=got, expected="one image")
            if exact:
                return LabelPair(file, "/".join((*place.group, stem)), exact[0]), True
        return LabelPair(file, "/".join((*place.group, _label_stems(file)[-1])), None), False


def _marked(files: Sequence[Path], root: Path) -> tuple[list[LabelPair], list[Path]]:
    """Label files that are marked as such by their names; a ``_seg.npy`` only without a label image of the same
    stem."""
    chosen: dict[Path, LabelPair] = {}
    unread = []
    for file in sorted(files, key=lambda file: file.suffix == ".npy"):
        stem, image = label_stem(file), None
        if stem is None:
            stem, image = _weak_stem(file)
        if stem is None:
            continue
        key = file.parent / stem
        other = chosen.setdefault(key, LabelPair(file, key.relative_to(root).as_posix(), image)).labels
        if other is not file and file.suffix != ".npy":
            raise _twice(other, file)
        if other is not file:
            unread.append(file)
    return list(chosen.values()), unread


def _weak_stem(file: Path) -> tuple[str | None, Path | None]:
    """The stem of the image, and the image, for names that only mark a label file if that image exists."""
    if not _may_be_labels(file):
        return None, None
    for pattern in (_WEAK, _WEAK_START):
        match = pattern.fullmatch(stem_of(file.name))
        if match is None:
            continue
        for stem in (match[1], f"{match[1]}_img", f"{match[1]}_image", f"img_{match[1]}", f"image_{match[1]}"):
            images = [image for image in images_named(file.parent, stem) if image != file]
            if len(images) == 1:
                return match[1], images[0]
    return None, None


def _one_folder_each(files: Sequence[Path], root: Path, used: set[Path]) -> tuple[list[LabelPair], list[Path]]:
    """``<id>/image.png`` and ``<id>/label.png``."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    pairs, unread = [], []
    for folder, members in folders.items():
        images = [
            file for file in members if _normal(stem_of(file.name)) in IMAGE_WORDS - {"x"} and is_image_name(file.name)
        ]
        labels = [
            file
            for file in members
            if _normal(stem_of(file.name)) in LABEL_WORDS
            and _normal(stem_of(file.name)) != "y"
            and _may_be_labels(file)
            and file not in used
        ]
        if len(images) == 1 and labels:
            labels.sort(key=lambda file: LABEL_WORDS.index(_normal(stem_of(file.name))))
            pairs.append(LabelPair(labels[0], folder.relative_to(root).as_posix(), images[0]))
            unread += labels[1:]
    return pairs, unread


def _bare(files: Sequence[Path], root: Path, pairs: Sequence[LabelPair], unread: set[Path]) -> list[tuple[str, Path]]:
    """The images without labels, in folders of images and in the folders of marked label files."""
    labels = {pair.labels for pair in pairs} | unread
    paired = {pair.image for pair in pairs if pair.image is not None}
    stems: dict[Path, set[str]] = {}
    for pair in pairs:
        if pair.image is None or pair.image.parent == pair.labels.parent:
            stems.setdefault(pair.labels.parent, set()).add(_key(Path(pair.name).name))
    bare = []
    for file in files:
        if file in labels or file in paired or not is_image_name(file.name) or is_own_output(file.name):
            continue
        place, own = _place(file, root), {_key(stem) for stem in _image_stems(file)}
        if place is not None and place.role == "image" and file.parent not in stems:
            bare.append(("/".join((*place.group, stem_of(file.name))), file))
        elif file.parent in stems and not own & stems[file.parent]:
            derived = any(_key(stem_of(file)).startswith(stem + mark) for stem in stems[file.parent] for mark in "_-. ")
            if not derived:  # x_flows.tif and the like, beside x.tif
                bare.append((file.relative_to(root).with_name(stem_of(file.name)).as_posix(), file))
    return bare


def _twice(first: Path, second: Path) -> InputError:
    return InputError(
        "two label images belong to the same image",
        where=first.parent,
        got=f"{first.name} and {second.name}",
        expected="one label image per image",
        remedy="remove one of them",
    )


def _may_be_labels(file: Path, *, lossy: bool = False) -> bool:
    suffix = plain_suffix(file)
    return suffix in LABEL_SUFFIXES or (lossy and suffix in IMAGE_SUFFIXES)


def _image_stems(file: Path) -> list[str]:
    """The names that the label file of an image may have, the whole stem first."""
    stem = stem_of(file.name)
    matches = [pattern.fullmatch(stem) for pattern in (_IMAGE_ENDING, _IMAGE_START)]
    return list(dict.fromkeys([stem, *(match[1] for match in matches if match)]))


def _label_stems(file: Path) -> list[str]:
    """The names that the image of a file in a folder of labels may have, the whole stem first."""
    stem = file.name[: -len(CELLPOSE)] if file.name.endswith(CELLPOSE) else stem_of(file.name)
    matches = [pattern.fullmatch(stem) for pattern in (_STRONG, _WEAK, _WEAK_START)]
    return list(dict.fromkeys([stem, *(match[1] for match in matches if match)]))


def _key(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def _group_key(group: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_key, group))


def _normal(name: str) -> str:
    return re.sub(r"[\s_.-]+", "_", name.strip().casefold())
