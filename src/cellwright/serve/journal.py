"""The journal of an image: every edit as a record that is on the disk before it is acknowledged.

A journal is a file to which records are only appended. Each is framed by a mark, its length and its CRC-32:

    MARK (8 bytes)   length (u32)   crc (u32)   length of the head (u32)   head (zlib, JSON)   blobs

The head says what was done; the blobs are pixels, one for each box, compressed by themselves so that none needs much
memory. What a kill or a power cut leaves of the last record was never acknowledged: it is moved to a file of its own
and the journal ends before it. Damage anywhere else is an error, and nothing is changed.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cellwright.core.errors import FormatError
from cellwright.core.files import flush, output_error, unreadable, write_bytes
from cellwright.core.text import count

MARK = b"\x89CWEDIT\n"
_FRAME = struct.Struct("<8sIII")
_MAX_RECORD = 1 << 31
_MAX_HEAD = 1 << 28


@dataclass(frozen=True)
class Record:
    """A record. offset: where it begins in the file."""

    head: dict[str, Any]
    blobs: tuple[bytes, ...]
    offset: int = -1


def has_edits(path: Path) -> bool:
    """Whether a journal has more than its first record; no more than the beginning of the file is read."""
    try:
        with path.open("rb") as file:
            frame = file.read(_FRAME.size)
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return len(frame) == _FRAME.size and size > _FRAME.size + _FRAME.unpack(frame)[1]


class Journal:
    """A journal that is open for appending; see the module. ``torn``: where the end of a torn record was moved to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn: Path | None = None
        is_new = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            self._file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
            if is_new:
                flush(path.parent)
            self._end = os.fstat(descriptor).st_size
        except OSError as error:
            raise output_error(path, error) from error

    def read(self) -> Iterator[Record]:
        """All records in order. Cuts off a torn end; raises `FormatError` for damage before it."""
        at, n = 0, 0
        while at < self._end:
            record = self._record_at(at)
            if record is None:
                self._cut(at, n)
                return
            yield record[0]
            at, n = record[1], n + 1

    def record(self, offset: int) -> Record:
        """The record that begins there."""
        found = self._record_at(offset)
        if found is None:
            raise self._damaged(offset, None)
        return found[0]

    def append(self, head: dict[str, Any], blobs: Sequence[bytes] = ()) -> int:
        """Append a record and have the system write it to the disk; returns its offset.

        Raises `OutputError` if that is not possible (a full disk); the journal is then as it was.
        """
        head = head | {"blobs": [len(blob) for blob in blobs]}
        packed = zlib.compress(json.dumps(head, allow_nan=False).encode(), 1)
        length = len(packed) + sum(map(len, blobs))
        crc = zlib.crc32(packed)
        for blob in blobs:
            crc = zlib.crc32(blob, crc)
        offset = self._end
        data = b"".join([_FRAME.pack(MARK, length, crc, len(packed)), packed, *blobs])
        try:
            self._file.seek(offset)
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) or 0 :]
            getattr(os, "fdatasync", os.fsync)(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # what is written is incomplete, and is cut off when the journal is read
                self._file.truncate(offset)
            raise output_error(self.path, error) from error
        self._end = offset + len(data)
        return offset

    @property
    def n_bytes(self) -> int:
        """The size of the file."""
        return self._end

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _record_at(self, at: int) -> tuple[Record, int] | None:
        """The record at an offset, and where the next begins; None if it is damaged."""
        self._file.seek(at)
        frame = self._file.read(_FRAME.size)
        if len(frame) < _FRAME.size:
            return None
        mark, length, crc, head_length = _FRAME.unpack(frame)
        if mark != MARK or length > min(_MAX_RECORD, self._end - at) or head_length > min(length, _MAX_HEAD):
            return None
        content = self._file.read(length)
        if len(content) < length or zlib.crc32(content) != crc:
            return None
        try:
            head = json.loads(zlib.decompress(content[:head_length]))
            place, blobs = head_length, []
            for size in head["blobs"]:
                blobs.append(content[place : place + size])
                place += size
        except (zlib.error, ValueError, KeyError, TypeError):
            return None
        return Record(head, tuple(blobs), at), at + _FRAME.size + length

    def _cut(self, at: int, n: int) -> None:
        """Move what begins there to another file, if no whole record comes after it."""
        self._file.seek(at)
        rest = self._file.read(self._end - at)
        place = rest.find(MARK, 1)
        while place >= 0:
            if self._record_at(at + place) is not None:
                raise self._damaged(at, n)
            place = rest.find(MARK, place + 1)
        number = 1
        while (aside := self.path.with_suffix(f".torn{number}")).exists():
            number += 1
        write_bytes(aside, rest)
        self._file.truncate(at)
        os.fsync(self._file.fileno())
        self._end, self.torn = at, aside

    def _damaged(self, at: int, n: int | None) -> FormatError:
        before = "" if n is None else f"; {count(n, 'record')} before it can be read, and there are others after it"
        return FormatError(
            "the journal of the edits of this image is damaged",
            where=self.path,
            got=f"an invalid record at byte {at}{before}",
            expected="what cellwright serve wrote",
            remedy="restore this file from a backup; or move it to another folder, and the image opens as predicted",
        )
