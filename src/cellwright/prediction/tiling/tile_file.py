"""The file in which a tile's result is stored: complete and undamaged, or an error.

The first line is ``cellwright-tile VERSION DIGEST``, where the digest is that of the rest, a safetensors file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError
from cellwright.core.files import unreadable, write_bytes
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.notes import Note
from cellwright.prediction.tiling.seams import TileObjects

_MAGIC = b"cellwright-tile 1 "
_COLUMN = "column."


@dataclass(frozen=True, eq=False)
class TileRecord:
    """What one tile left.

    stored: its candidates, in source pixels, with measurements as columns. notes: what a user should know.
    """

    stored: TileObjects
    notes: tuple[Note, ...] = ()


def write_tile(path: Path, record: TileRecord, job: str) -> None:
    """Write a record atomically; when this returns, it is on the disk. job: what identifies the job."""
    from safetensors.numpy import save

    objects = record.stored.objects
    assert objects.scores is not None
    tensors = {
        "boxes": objects.masks.boxes,
        "masks": objects.masks.pack(),
        "class_ids": objects.class_ids,
        "scores": objects.scores,
        "owned": record.stored.owned.astype(np.uint8),
        **{_COLUMN + name: np.asarray(values, np.float64) for name, values in objects.columns.items()},
    }
    header = {
        "image_hw": objects.image_hw,
        "columns": list(objects.columns),
        "job": job,
        "notes": [asdict(note) for note in record.notes],
    }
    arrays = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    content = save(arrays, {"cellwright": json.dumps(header)})
    write_bytes(path, _MAGIC + _digest(content) + b"\n" + content)


def read_tile(path: Path, job: str) -> TileRecord:
    """Read a record. Raises `FormatError` if it is damaged or of another job, `InputError` if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, "tile") from error
    try:
        first, _, content = content.partition(b"\n")
        if first != _MAGIC + _digest(content):
            raise ValueError("another content than was written")
        tensors, header = load(content), _header(content)
        if header["job"] != job:
            raise ValueError("it belongs to another job")
        image_hw = int(header["image_hw"][0]), int(header["image_hw"][1])
        masks = MaskSet.unpack(image_hw, tensors["boxes"], tensors["masks"])
        objects = Instances.from_masks(
            masks,
            class_ids=tensors["class_ids"],
            scores=tensors["scores"],
        )
        objects = replace(objects, columns={name: tensors[_COLUMN + name] for name in header["columns"]})
        notes = tuple(Note(**note) for note in header["notes"])
        return TileRecord(TileObjects(objects, tensors["owned"].astype(bool)), notes)
    except (SafetensorError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        remedy = "remove it and run the same command again"
        raise FormatError("this tile's result is damaged", where=path, got=str(error), remedy=remedy) from error


def _header(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["cellwright"]))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()
