"""COCO run-length encoding of crops: uncompressed counts, and the compressed strings of the COCO API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.geometry import check_cover
from cellwright.core.polygons import check_lengths

Flat = tuple[np.ndarray, np.ndarray, np.ndarray]


def encode(
    image_hw: tuple[int, int], boxes: np.ndarray, offsets: np.ndarray, crops: np.ndarray
) -> list[dict[str, Any]]:
    """Compressed RLE, one ``{"size": [h, w], "counts": str}`` per object."""
    from cellwright.core import _rle_kernels

    counts, starts = _rle_kernels.encode_runs(*image_hw, boxes, offsets, crops)
    text, ends = _rle_kernels.encode_strings(counts, starts)
    whole = text.tobytes().decode("ascii")
    spans = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return [{"size": list(image_hw), "counts": whole[first:last]} for first, last in spans]


def encode_counts(
    image_hw: tuple[int, int], boxes: np.ndarray, offsets: np.ndarray, crops: np.ndarray
) -> list[list[int]]:
    """Uncompressed counts of each object: run lengths along the columns, background first."""
    from cellwright.core import _rle_kernels

    counts, starts = _rle_kernels.encode_runs(*image_hw, boxes, offsets, crops)
    return [part.tolist() for part in np.split(counts, starts[1:-1])] if len(boxes) else []


def decode(objects: Sequence[dict[str, Any]], image_hw: tuple[int, int]) -> Flat:
    """Tight boxes, offsets and crops from RLE: compressed (str or bytes), uncompressed (a list of counts), or mixed.

    Raises a `FormatError` that names the first object whose size, string or sum of counts is wrong.
    """
    height, width = image_hw
    for k, item in enumerate(objects):
        if not isinstance(item, dict) or "counts" not in item or not _is_size(item.get("size"), image_hw):
            got = repr(item.get("size"))[:60] if isinstance(item, dict) else type(item).__name__
            raise FormatError(
                "an RLE and its image differ in size", where=f"object {k}", got=got, expected=[height, width]
            )
    return _decode(*_all_counts(objects), image_hw)


def decode_counts(counts: Sequence[np.ndarray], image_hw: tuple[int, int]) -> Flat:
    """As `decode`, from the uncompressed counts (R,) int64 of each object."""
    starts = np.cumsum([0] + [len(of_object) for of_object in counts])
    return _decode(np.concatenate([np.zeros(0, np.int64), *counts]), starts, image_hw)


def extents(objects: Sequence[dict[str, Any]], image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tight boxes (N, 4) int32 and areas (N,) int64 of RLE, without decoding pixels; raises as `decode` does."""
    counts, starts = _all_counts(objects)
    boxes, _ = _boxes(counts, starts, image_hw)
    counts = counts[: starts[-1]]
    foreground = (np.arange(counts.size) - np.repeat(starts[:-1], np.diff(starts))) % 2 * counts
    sums = np.concatenate([[0], np.cumsum(foreground)])
    return boxes, sums[starts[1:]] - sums[starts[:-1]]


def _decode(counts: np.ndarray, starts: np.ndarray, image_hw: tuple[int, int]) -> Flat:
    from cellwright.core import _rle_kernels

    boxes, offsets = _boxes(counts, starts, image_hw)
    check_cover(float(offsets[-1]), image_hw)
    return boxes, offsets, _rle_kernels.fill_runs(image_hw[0], counts, starts, boxes, offsets)


def _boxes(counts: np.ndarray, starts: np.ndarray, image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    from cellwright.core import _rle_kernels

    height, width = image_hw
    bad, boxes, offsets = _rle_kernels.boxes_of_runs(height, width, counts, starts)
    if bad >= 0:
        total = sum(counts[starts[bad] : starts[bad + 1]].tolist())
        raise FormatError(
            "the counts of an RLE do not add up to the size of its image",
            where=f"object {bad}",
            got=f"sum {total}",
            expected=f"{height} x {width} = {height * width}, and no negative count",
        )
    return boxes, offsets


def _is_size(size: object, image_hw: tuple[int, int]) -> bool:
    return isinstance(size, list | tuple) and list(size) == list(image_hw)


def coco_polygon_runs(objects: Sequence[Sequence[Sequence[float]]], image_hw: tuple[int, int]) -> list[dict[str, Any]]:
    """One RLE per object from COCO polygons: the union of its parts, rasterised by pycocotools' rule."""
    from faster_coco_eval.core import mask as coco_mask

    height, width = image_hw
    # The rasteriser multiplies coordinates by 5 in C integers: clip distant vertices to avoid an overflow.
    limits = -4 * max(image_hw), 5 * max(image_hw)
    runs: list[dict[str, Any]] = []
    for k, parts in enumerate(objects):
        if not isinstance(parts, (list, tuple)):
            raise FormatError(
                "a polygon segmentation is not a list",
                where=f"object {k}",
                got=type(parts).__name__,
                remedy="export the file again: a segmentation is a list of lists x, y, x, y, ...",
            )
        checked = []
        for part in parts:
            try:
                xy = np.asarray(part, np.float64) if _is_flat_numbers(part) else np.zeros(0)
            except OverflowError:  # an integer of hundreds of digits
                xy = np.zeros(0)
            if xy.size < 6 or xy.size % 2 or not np.isfinite(xy).all():
                expected = "a flat list x, y, x, y, ... of at least 3 vertices, finite numbers"
                raise FormatError("invalid polygon", where=f"object {k}", got=str(part)[:60], expected=expected)
            checked.append(xy.reshape(-1, 2).clip(*limits))
        if not parts:
            runs.append({"size": [height, width], "counts": [height * width]})
            continue
        check_lengths(checked)
        parts_runs: Any = coco_mask.frPyObjects([ring.ravel().tolist() for ring in checked], height, width)
        runs.append(coco_mask.merge(parts_runs))
    return runs


def _is_flat_numbers(part: Any) -> bool:
    return isinstance(part, (list, tuple, np.ndarray)) and all(isinstance(v, (int, float, np.number)) for v in part)


def _all_counts(objects: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The counts of all objects in one flat int64 array, and their starts (N + 1,)."""
    from cellwright.core import _rle_kernels

    texts = [_text(item["counts"], k) for k, item in enumerate(objects)]
    ends = np.cumsum([0] + [len(text) for text in texts])
    bad, counts, starts = _rle_kernels.decode_strings(np.frombuffer(b"".join(texts), np.uint8), ends)
    if bad >= 0:
        raise FormatError(
            "invalid RLE string", where=f"object {bad}", got=repr(texts[bad][:40]), remedy="export the file again"
        )
    if all(isinstance(item["counts"], (str, bytes)) for item in objects):
        return counts, starts
    parts = [
        _integers(item["counts"], k)
        if not isinstance(item["counts"], (str, bytes))
        else counts[starts[k] : starts[k + 1]]
        for k, item in enumerate(objects)
    ]
    return np.concatenate(parts), np.cumsum([0] + [part.size for part in parts])


def _text(counts: Any, k: int) -> bytes:
    if isinstance(counts, str):
        if not counts.isascii():
            raise FormatError(
                "invalid RLE string", where=f"object {k}", got=repr(counts[:40]), remedy="export the file again"
            )
        return counts.encode("ascii")
    return counts if isinstance(counts, bytes) else b""


def _integers(counts: Any, k: int) -> np.ndarray:
    whole = isinstance(counts, (list, tuple, np.ndarray)) and all(
        isinstance(v, (int, np.integer)) and not isinstance(v, bool) and abs(int(v)) < 2**62 for v in counts
    )
    if not whole:
        raise FormatError(
            "the counts of an RLE are not integers",
            where=f"object {k}",
            got=str(counts)[:60],
            remedy="export the file again",
        )
    return np.asarray(counts, np.int64)
