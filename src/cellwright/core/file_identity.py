"""The identity of a file: its content, not its name or date."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cellwright.core.files import require_regular, unreadable

DIGEST_BYTES = 16
_BLOCK = 1 << 22


@dataclass(frozen=True)
class FileIdentity:
    """The content of a file: a digest, and its size and time, by which an unchanged file is recognised without reading.

    digest: of its bytes, or of the files in a folder (Zarr); "" if there is none. bytes, modified_ns: 0 for a folder.
    """

    digest: str = ""
    bytes: int = 0
    modified_ns: int = 0

    @staticmethod
    def of(path: Path | None, known: FileIdentity | None = None) -> FileIdentity:
        """The identity of a file or folder. known: as recorded earlier, kept if size and time are the same.

        A missing file has an empty digest. Raises `InputError` for a file that cannot be read.
        """
        if path is None or not path.exists():
            return FileIdentity()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            parts = [(file.relative_to(path).as_posix(), _digest_of_file(file)) for file in files]
            return FileIdentity(digest_of(repr(parts)))
        try:
            state = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        if known is not None and (known.bytes, known.modified_ns) == (state.st_size, state.st_mtime_ns):
            return known
        return FileIdentity(_digest_of_file(path), state.st_size, state.st_mtime_ns)


def digest_of(text: str) -> str:
    """A hash of a text."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _digest_of_file(path: Path) -> str:
    require_regular(path)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()
