"""Where other tools put COCO files and their images: CVAT, Datumaro, Roboflow, Label Studio, LIVECell, contests.

annotations/instances_default.json   images/default/x.png       CVAT, Datumaro
train/_annotations.coco.json         train/x.jpg                Roboflow; also valid/ and test/
result.json                          images/x.png               Label Studio
annotations/instances_train2017.json train2017/x.jpg            COCO
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellwright.core.errors import InputError
from cellwright.core.files import first_bytes, is_plain_utf8, plain_suffix, stem_of, walk
from cellwright.data.formats.contract import ReadOptions
from cellwright.data.formats.paths import (
    ANNOTATION_FOLDERS,
    OWN_FILES,
    SPLITS,
    GivenImages,
    ImageIndex,
    first_files,
    is_file,
    name_parts,
    split_named,
)

_SNIFF_BYTES = 1 << 16
_WORDS = (b'"annotations"', b'"images"', b'"categories"', b'"image_id"')
# A folder with more JSON files than this has one per image, which are not COCO files.
_MAX_FILES = 20
_MAX_DEPTH = 4
# COCO's other annotations of the same images, which lie in the same folder as the instances.
_OTHER_KINDS = ("person_keypoints", "captions", "panoptic", "stuff", "image_info")


# --- annotation files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CocoFile:
    """One of the files of a folder. name: a short one that is unique in the folder."""

    path: Path
    split: str | None
    name: str


def is_coco_file(path: Path, *, n_words: int = 1) -> bool:
    """Whether a file looks like COCO instances: a JSON object with at least ``n_words`` of its keys. Never raises."""
    if plain_suffix(path) != ".json" or not path.is_file():
        return False
    start = first_bytes(path, _SNIFF_BYTES)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
        return False
    both = start + _last_bytes(path)
    is_labelme = b'"shapes"' in both and (b'"imagePath"' in both or b'"imageHeight"' in both)
    return sum(word in both for word in _WORDS) >= n_words and not is_labelme


def has_coco_files(path: Path) -> bool:
    """Whether COCO files of other programs lie in a folder or a few folders below it. Never raises."""
    return bool(_coco_among(first_files(path), path))


def coco_files(root: Path) -> list[CocoFile]:
    """The COCO files in a folder: one, one per split, or one per folder. `InputError` for none, or any other files."""
    paths = _coco_among(walk(root, _MAX_DEPTH), root)
    if not paths:
        raise InputError("no COCO files here", where=root, expected="a .json file with images, annotations, categories")
    splits = [_split_of(path, root) for path in paths]
    folders = [path.parent.relative_to(root).as_posix() for path in paths]
    if len(paths) > 1 and len(set(folders)) < len(paths) and (None in splits or len(set(splits)) < len(paths)):
        shown = ", ".join(path.relative_to(root).as_posix() for path in paths[:4])
        raise InputError(
            "several COCO files, which are not one per split",
            where=root,
            got=shown + (f" and {len(paths) - 4} more" if len(paths) > 4 else ""),
            expected="one file, or one for each of train, val and test",
            remedy=f"give the path of one of them, such as {paths[0]}",
        )
    named = splits if None not in splits and len(set(splits)) == len(paths) else folders
    return [CocoFile(path, split, str(name)) for path, split, name in zip(paths, splits, named, strict=True)]


def _coco_among(files: Iterable[Path], root: Path) -> list[Path]:
    jsons = [file for file in files if plain_suffix(file) == ".json" and file.name not in OWN_FILES]
    jsons = [file for file in jsons if len(file.relative_to(root).parts) <= _MAX_DEPTH + 1]
    own = [file for file in jsons if any((file.parent / name).is_file() for name in OWN_FILES)]
    jsons = [file for file in jsons if file not in own]
    if len(jsons) > _MAX_FILES:
        return []
    found = [file for file in jsons if is_coco_file(file, n_words=2)]
    instances = [file for file in found if not file.name.startswith(_OTHER_KINDS)]
    return instances or found


def _split_of(path: Path, root: Path) -> str | None:
    folders = [SPLITS[part.lower()] for part in path.relative_to(root).parts[:-1] if part.lower() in SPLITS]
    return folders[0] if folders else split_named(stem_of(path))


def _last_bytes(path: Path) -> bytes:
    try:
        if not is_plain_utf8(path):
            return b""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _SNIFF_BYTES))
            return file.read()
    except (OSError, InputError):
        return b""


# --- images ---------------------------------------------------------------------------------------------------------


class CocoImages:
    """Finds the image files that a COCO file names.

    In our own files, paths are relative to the JSON file. For other files, images are searched next to it, in
    ``images``, in folders named after the file (``train2017`` for ``instances_train2017.json``), and finally, by the
    end of their path, in all folders below ``root`` or next to the folder of annotations. ``ReadOptions.images`` is
    searched before.
    """

    def __init__(self, json_path: Path, options: ReadOptions, root: Path | None, *, is_ours: bool) -> None:
        here, above, part = json_path.parent, json_path.parent.parent, stem_of(json_path).rpartition("_")[2]
        self._json, self._is_ours, self._required, self._part = json_path, is_ours, options.require_images, part
        # Without images, only names and sizes matter, which the file has.
        use_given = options.images is not None and options.require_images
        self._given = GivenImages(options.images) if use_given and options.images is not None else None
        folders = [here, here / "images", above, above / "images", above / part, here / part, above / "images" / part]
        self._folders = [here] if is_ours else [*folders, here / "images" / part]
        self._root = root or (above if here.name.lower() in ANNOTATION_FOLDERS else here)
        self._tree: ImageIndex | None = None

    def find_all(self, images: Sequence[dict[str, Any]]) -> list[Path | None]:
        """The file of each image record, or None.

        Raises `InputError` for missing files if images are required, for names that match several files, and for files
        that two records share.
        """
        paths = [None if image.get("has_image") is False else self._find(image) for image in images]
        missing = [
            image["file_name"]
            for image, path in zip(images, paths, strict=True)
            if path is None and image.get("has_image") is not False
        ]
        if missing and self._required:
            raise self._missing(missing, len(paths))
        if not self._is_ours:
            self._check_distinct(images, paths)
        return paths

    def _find(self, image: dict[str, Any]) -> Path | None:
        name: str = image["file_name"]
        if self._given is not None:
            sample_id = image.get("sample_id")
            found = self._given.find(self._json, sample_id) if isinstance(sample_id, str) else None
            found = found or self._given.find(self._json, name)
            path = found if isinstance(found, Path) or found is None else found.image_path
            if path is not None:
                return path
        plain = name.replace("\\", "/")
        for candidate in dict.fromkeys((name, plain)):
            for folder in self._folders:
                if is_file(folder / candidate):
                    return folder / candidate
        return None if self._is_ours else self._search(name)

    def _search(self, name: str) -> Path | None:
        files = self._index().find(name)
        if len(files) > 1:
            files = [file for file in files if file.parent.name.lower() not in ANNOTATION_FOLDERS] or files
        if len(files) > 1:  # images/train/x.png and images/val/x.png: the folder that the file is named after
            files = [file for file in files if self._part in file.parts] or files
        if len(files) <= 1:
            return files[0] if files else None
        if not self._required:
            return None
        raise InputError(
            "an image name matches several files",
            where=f"{self._json}, image {name}",
            got=", ".join(str(file) for file in files[:4]),
            expected="one file of this name",
            remedy="write file_name with the folder, or set `images` to the folder of the right ones",
        )

    def _index(self) -> ImageIndex:
        if self._tree is None:
            self._tree = ImageIndex(walk(self._root, problems=[]))
        return self._tree

    def _missing(self, missing: list[str], n_images: int) -> InputError:
        index = self._given.index if self._given is not None else self._index()
        similar = [file.name for file in index.similar(missing[0])]
        moved = "if the images of this dataset were moved, set `images` to their folder and convert it again"
        elsewhere = "put the images there, or set `images` to their folder"
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        hint = f"did you mean {', '.join(similar)} for {(name_parts(missing[0]) or [''])[-1]}? " if similar else ""
        return InputError(
            f"{len(missing)} of {n_images} images are missing",
            where=self._json,
            got=", ".join(missing[:3]) + more,
            expected="files relative to the folder of the JSON file, or in images/ next to it",
            remedy=hint + (moved if self._is_ours else elsewhere),
        )

    def _check_distinct(self, images: Sequence[dict[str, Any]], paths: Sequence[Path | None]) -> None:
        files = [path or image["file_name"] for image, path in zip(images, paths, strict=True)]
        counts = Counter(files)
        shared, n = counts.most_common(1)[0] if counts else (None, 0)
        if n < 2:
            return
        records = [
            f"image id {image['id']} ({image['file_name']})"
            for image, file in zip(images, files, strict=True)
            if file == shared
        ]
        raise InputError(
            "two images have the same file",
            where=self._json,
            got=" and ".join(records[:3]),
            expected="one record per file",
            remedy="write file_name with the folder of each image, such as A/img.png and B/img.png",
        )
