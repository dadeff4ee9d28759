"""The position of each annotation in a COCO JSON file, so that the objects of one image can be read on their own.

The index consists of the images, the categories and the byte span of each annotation, grouped by image. For most files
it is built in one streaming pass when the file is opened. Our own ``dataset.json`` has a sidecar, ``dataset.index``,
which is memory-mapped, so that a dataset of a million objects opens in an instant. The sidecar is used if it is intact
(it contains a digest of itself) and the JSON file still has the same length and the same bytes before its first and
after its last annotation; otherwise the index is built again. The annotations themselves are always read from the JSON
file, and `CocoLoader` checks that each belongs to its image. A compressed or UTF-16 file
is decoded into memory instead.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.coco import whole
from cellwright.core.errors import FormatError, did_you_mean
from cellwright.core.files import is_plain_utf8, not_utf8, read_text, unreadable, write_bytes
from cellwright.core.geometry import MAX_SIDE
from cellwright.core.notes import Note
from cellwright.core.text import count
from cellwright.data.formats.coco_quirks import Facts
from cellwright.data.formats.json_stream import Element, stream_json
from cellwright.data.formats.paths import folded

MAGIC = b"cellwright index 2\n"
ALIGNMENT = 64
_DIGEST_BYTES = 16
LARGEST = 1 << 62  # ids that are text are numbered from here on while a file is indexed
STREAMED = frozenset({"images", "annotations"})


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """The contents of a file, in file order.

    images, categories: their records. sections: every other top-level value.
    starts: (I + 1,) int64; the annotations of image i are ``spans[starts[i]:starts[i + 1]]``, in file order.
    spans: (A, 2) int64, first and last-plus-one byte of each annotation.
    scored: whether the annotations have scores, that is, are predictions.
    facts: counts over the annotations of a file of another program; None for our own.
    used_categories: the ids of categories that have an annotation; None for our own files.
    content: the decoded content of a file that is compressed or UTF-16, to which the spans refer.
    notes: about fields that differ from the outlines; none if a sidecar was read, which only our own files have.
    """

    path: Path
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    sections: dict[str, Any]
    starts: np.ndarray
    spans: np.ndarray
    scored: bool
    facts: Facts | None = None
    used_categories: frozenset[int] | None = None
    content: bytes | None = None
    notes: tuple[Note, ...] = ()

    def spans_of(self, image: int) -> np.ndarray:
        """Spans (n, 2) int64 of the annotations of the image at this position."""
        return self.spans[int(self.starts[image]) : int(self.starts[image + 1])]


class _Collector:
    """Collects the annotations of a stream, at 8 bytes per number instead of one dict per annotation."""

    def __init__(self, path: Path, aliases: Mapping[str, int]) -> None:
        self.path = path
        self.images: list[dict[str, Any]] = []
        self.image_ids, self.category_ids, self.spans = array("q"), array("q"), array("q")
        self.n_scored = 0
        self.facts, self.outlined = Facts(), array("b")
        self._aliases, self._numbers = aliases, dict[str, int]()
        self._texts: list[str] = []

    def add_annotation(self, element: Element) -> None:
        value = element.value
        where = f"{self.path}, annotation {len(self.image_ids) + 1}"
        if not isinstance(value, dict):
            raise FormatError("an annotation is not an object", where=where, got=type(value).__name__, expected="{...}")
        self.image_ids.append(self.number_of(value.get("image_id"), "image_id", where))
        self.category_ids.append(whole_number(value.get("category_id"), "category_id", where))
        self.spans.append(element.start)
        self.spans.append(element.end)
        self.n_scored += value.get("score") is not None
        self.outlined.append(self.facts.add(value, element.end - element.start))

    def number_of(self, image_id: Any, field: str, where: object) -> int:
        """An image id as a number; each text that is not a number (a file name) gets one from `LARGEST` on."""
        if not isinstance(image_id, str) or whole(image_id) is not None or not image_id:
            return whole_number(image_id, field, where)
        text = id_text(image_id)
        if folded(text) in self._aliases:
            return self._aliases[folded(text)]
        if text not in self._numbers:
            self._numbers[text] = LARGEST + len(self._texts)
            self._texts.append(text)
        return self._numbers[text]

    def id_of(self, number: int) -> int | str:
        """The image id in the file for a number of `number_of`."""
        return self._texts[number - LARGEST] if number >= LARGEST else number


def open_index(path: Path, *, may_be_empty: bool = False) -> CocoIndex:
    """The index of a dataset file: its sidecar if that is up to date, else built by reading the file once.

    may_be_empty: accept a file without images.
    """
    return read_sidecar(path) or build_index(path, may_be_empty=may_be_empty)


def build_index(
    path: Path,
    *,
    images: Sequence[dict[str, Any]] | None = None,
    categories: Sequence[dict[str, Any]] | None = None,
    aliases: Mapping[str, int] | None = None,
    may_be_empty: bool = False,
) -> CocoIndex:
    """Read a file once, keeping only the positions of its annotations.

    images, categories: needed for a list of results, which contains none itself. aliases: names that may stand for the
    ids of the images. may_be_empty: accept a file without images. Annotations without an outline in a ground truth file
    of another program are omitted.
    Raises `FormatError` for malformed JSON, records with missing fields, sizes that are not positive whole numbers,
    duplicate image ids, and annotations of an unknown image or category.
    """
    content = None if is_plain_utf8(path) else read_text(path).encode()
    collector = _Collector(path, aliases or {})
    sections: dict[str, Any] = {}
    for element in stream_json(path, STREAMED, content):
        if element.whole:
            sections[element.section] = _decoded(element, path)
        elif element.section == "images":
            collector.images.append(_checked_image(_decoded(element, path), collector))
        else:
            collector.add_annotation(element)
    records = list(images) if images is not None else collector.images
    known = list(categories) if categories is not None else _checked_categories(sections.pop("categories", None), path)
    # A file of ours may be empty: every image of a job may have failed.
    if images is None and not records and not may_be_empty and "schema_version" not in sections:
        raise _no_images(path, sections)
    image_of = _images_of(collector, [image["id"] for image in records])
    _check_categories_known(collector, [category["id"] for category in known])
    scored = collector.n_scored > 0 or sections.get("kind") == "predictions" or images is not None
    _check_scores(collector, scored=scored)
    is_ours = "schema_version" in sections
    kept = np.ones(len(image_of), bool) if is_ours or scored else np.array(collector.outlined, bool)
    order = np.argsort(image_of, kind="stable")
    spans = np.array(collector.spans, np.int64).reshape(-1, 2)[order[kept[order]]]
    starts = np.concatenate([[0], np.cumsum(np.bincount(image_of[kept], minlength=len(records)))]).astype(np.int64)
    records = [{**image, "id": collector.id_of(image["id"])} for image in records]
    facts = None if is_ours else collector.facts
    used = None if is_ours else frozenset(collector.category_ids)
    notes = tuple(collector.facts.redundant.notes(path, image_of, records, kept, scored=scored))
    return CocoIndex(path, records, known, sections, starts, spans, scored, facts, used, content, notes)


def sidecar_path(path: Path) -> Path:
    """The path of the sidecar of a dataset file."""
    return path.with_suffix(".index")


def write_sidecar(index: CocoIndex) -> Path:
    """Write the sidecar of a file that has just been written; returns its path."""
    head = {
        "length": index.path.stat().st_size,
        "outside": _outside_digest(index.path, index.spans),
        "scored": index.scored,
        "images": index.images,
        "categories": index.categories,
        "sections": index.sections,
    }
    text = MAGIC + json.dumps(head).encode() + b"\n"
    text += b" " * (-len(text) % ALIGNMENT)
    arrays = index.starts.astype("<i8").tobytes() + index.spans.astype("<i8").tobytes()
    content = len(text).to_bytes(8, "little") + text + arrays
    path = sidecar_path(index.path)
    write_bytes(path, content[:8] + _digest(content).ljust(ALIGNMENT - 8, b"\0") + content[8:])
    return path


def read_sidecar(path: Path) -> CocoIndex | None:
    """The memory-mapped index next to ``path``; None if there is none, if it is damaged, or describes another file."""
    if not sidecar_path(path).is_file():
        return None
    try:
        # A plain array over the memory map is cheaper to slice than np.memmap, and pickles only its own content.
        content = np.asarray(np.memmap(sidecar_path(path), np.uint8, "r"))
    except (OSError, ValueError):  # it is empty, or may not be read
        return None
    length, digest = int.from_bytes(content[:8], "little"), content[8 : 8 + _DIGEST_BYTES].tobytes()
    text = content[ALIGNMENT : ALIGNMENT + min(length, len(content))].tobytes()
    if not text.startswith(MAGIC) or _digest(content[:8], content[ALIGNMENT:]) != digest:
        return None
    try:
        head = json.loads(text[len(MAGIC) :])
        collector = _Collector(path, {})
        images = [_checked_image(image, collector) for image in head["images"]]
        categories = _checked_categories(head["categories"], path)
        sections, scored, n_bytes = dict(head["sections"]), head["scored"] is True, head["length"]
        starts, spans = np.split(content[ALIGNMENT + length :].view("<i8"), [len(images) + 1])
        spans = spans.reshape(-1, 2)
    except (FormatError, KeyError, TypeError, ValueError, RecursionError, OverflowError):
        return None  # not what `write_sidecar` writes
    first, last = spans[:, 0], spans[:, 1]
    is_sound = (
        "schema_version" in sections and starts[0] == 0 and starts[-1] == len(spans) and (np.diff(starts) >= 0).all()
    )
    try:
        n_bytes_now = path.stat().st_size
        is_sound &= ((first >= 0) & (first <= last) & (last <= n_bytes_now)).all()
        if not is_sound or n_bytes_now != n_bytes or _outside_digest(path, spans) != head.get("outside"):
            return None
    except OSError as error:
        raise unreadable(path, error) from error
    return CocoIndex(path, images, categories, sections, starts, spans, scored)


def _digest(*parts: bytes | np.ndarray) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.data)
    return digest.digest()


def whole_number(value: Any, field: str, where: object) -> int:
    """``value`` as int; 7, 7.0 and "7" are accepted, anything else raises a `FormatError` that names the field."""
    number = whole(value)
    if number is not None:
        return number
    got = "nothing" if value is None else repr(value)
    raise FormatError(
        f"{field} is not a whole number",
        where=where,
        got=got,
        expected="a whole number",
        remedy="write the file again with whole numbers in this field",
    )


def id_text(text: str) -> str:
    """Text in an element as it was parsed (see `json_stream`), decoded as UTF-8 if it can be."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _outside_digest(path: Path, spans: np.ndarray) -> str:
    """Digest of the bytes before the first and after the last annotation; of the whole file if it has none."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if not len(spans):
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(file.read(int(spans[:, 0].min())))
        file.seek(int(spans[:, 1].max()))
        digest.update(file.read())
    return digest.hexdigest()


def _decoded(element: Element, path: Path) -> Any:
    try:
        return element.text_value()
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, offset=element.start) from error


def _checked_image(image: Any, collector: _Collector) -> dict[str, Any]:
    where = f"{collector.path}, image {len(collector.images) + 1}"
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        got = type(image).__name__ if not isinstance(image, dict) else repr(image.get("file_name"))
        raise FormatError("an image has no file name", where=where, got=got, expected='"file_name": "..."')
    checked = {**image, "id": collector.number_of(image.get("id"), "id", where)}
    for field in ("width", "height"):
        if image.get(field) is None:
            continue
        checked[field] = whole_number(image[field], field, f"{where} ({image['file_name']})")
        if not 0 < checked[field] <= MAX_SIDE:
            place = f"{where} ({image['file_name']})"
            problem = f"{field} is {'too large' if checked[field] > 0 else 'not positive'}"
            raise FormatError(problem, where=place, got=checked[field], expected=f"pixels, 1 to {MAX_SIDE}")
    return checked


def _checked_categories(categories: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(categories, list) or not categories:
        raise FormatError(
            "this file has no categories",
            where=path,
            got="nothing" if categories is None else repr(categories)[:40],
            expected='"categories": [{"id": 1, "name": "nucleus"}]',
            remedy="add a categories list",
        )
    checked = []
    for k, category in enumerate(categories):
        where = f"{path}, category {k + 1}"
        if not isinstance(category, dict) or not isinstance(category.get("name"), str):
            raise FormatError("a category has no name", where=where, got=repr(category)[:60], expected='"name": "..."')
        checked.append({**category, "id": whole_number(category.get("id"), "id", where)})
    for field in ("id", "name"):
        values = [category[field] for category in checked]
        if len(set(values)) != len(values):
            raise FormatError(
                f"two categories have the same {field}", where=path, got=values, remedy="rename or renumber one of them"
            )
    return sorted(checked, key=lambda category: category["id"])


def _no_images(path: Path, sections: dict[str, Any]) -> FormatError:
    return FormatError(
        "this file lists no images",
        where=path,
        got=f"sections {', '.join(sections) or 'none'}",
        expected='"images": [...], "annotations": [...], "categories": [...]',
        remedy=did_you_mean("images", sections) if sections else "give a COCO instances file",
    )


def _check_scores(collector: _Collector, *, scored: bool) -> None:
    n, n_scored = len(collector.image_ids), collector.n_scored
    if not scored or n_scored == n:
        return
    if not n_scored:
        raise FormatError(
            "no entry of this file has a score",
            where=collector.path,
            got=count(n, "entry"),
            expected='"score": a number from 0 to 1, in every entry',
            remedy="export the predictions with their scores, or give the file as ground truth",
        )
    raise FormatError(
        "some annotations have a score and others have none",
        where=collector.path,
        got=f"{n_scored} scores for {n} annotations",
        expected="predictions (all with a score) or ground truth (none)",
    )


def _images_of(collector: _Collector, known_ids: list[int]) -> np.ndarray:
    """The position (A,) in ``known_ids`` of the image of each annotation."""
    ids = np.array(known_ids, np.int64)
    if np.unique(ids).size != ids.size:
        values, counts = np.unique(ids, return_counts=True)
        raise FormatError(
            "two images have the same id",
            where=collector.path,
            got=collector.id_of(int(values[counts > 1][0])),
            remedy="give each image its own id",
        )
    annotated = np.array(collector.image_ids, np.int64)
    ranks = np.argsort(ids, kind="stable")
    places = np.searchsorted(ids[ranks], annotated)
    unknown = (
        (places >= ids.size) | (ids[ranks[np.minimum(places, ids.size - 1)]] != annotated)
        if ids.size
        else (np.ones(annotated.size, bool))
    )
    if unknown.any():
        k = int(np.flatnonzero(unknown)[0])
        raise FormatError(
            "an annotation belongs to no image",
            where=f"{collector.path}, annotation {k + 1}",
            got=f"image_id {collector.id_of(int(annotated[k]))}",
            expected=_known_ids(ids, collector),
            remedy="use the images for which these annotations were made",
        )
    return ranks[places] if annotated.size else np.zeros(0, np.int64)


def _known_ids(ids: np.ndarray, collector: _Collector) -> str:
    if not ids.size:
        return "one of 0 image ids"
    low, high = (collector.id_of(int(value)) for value in (ids.min(), ids.max()))
    return f"one of {count(ids.size, 'image id')}, {low} to {high}"


def _check_categories_known(collector: _Collector, known_ids: list[int]) -> None:
    used = np.array(collector.category_ids, np.int64)
    unknown = ~np.isin(used, np.array(known_ids, np.int64))
    if unknown.any():
        k = int(np.flatnonzero(unknown)[0])
        raise FormatError(
            "an annotation has an unknown category",
            where=f"{collector.path}, annotation {k + 1}",
            got=f"category_id {int(used[k])}",
            expected=f"one of {', '.join(map(str, known_ids))}",
            remedy="add the category to the file's categories, or correct the annotation",
        )
