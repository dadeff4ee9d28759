"""Names of files, listing folders, reading and writing.

Outputs are written atomically: to a temporary file beside the target, then renamed.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import json
import os
import re
import shutil
import socket
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from cellwright.core.errors import CellwrightError, FormatError, InputError, OutputError
from cellwright.core.memory import available_bytes, check_memory
from cellwright.core.result_folders import TILE_JOB, kind_of_result

if TYPE_CHECKING:
    import numpy as np

# Endings of two parts that count as one suffix.
_TWO_PARTS = re.compile(
    r"(?:\.ome)?\.zarr\.zip$|\.ome\.(?:tiff?|tf2|tf8|btf|zarr|ozx)(?:\.gz)?$|\.[^./]+\.gz$", re.IGNORECASE
)
_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# What is kept of a name in a temporary one, so that long names remain possible.
_KEPT, _LONGEST_SUFFIX = 120, ".safetensors"
# A temporary name: the process, and its machine, which earlier versions did not name.
_TEMPORARY = re.compile(r"^\..*\.(\d{1,9})(?:-([0-9a-f]{4}))?\.partial(?:\.[^.]*)?$")
# Error numbers of a full disk, or one that is full for this user.
FULL = (errno.ENOSPC, errno.EDQUOT)
# Bytes to which a compressed file may grow when it is read.
MAX_UNPACKED = 1 << 30
# How much a file of text shrinks when it is compressed, at most; small ones do not matter.
_MAX_TEXT_RATIO, _SMALL_TEXT = 100, 1 << 26
# Bytes that the values of JSON take per character: 10 for lists of coordinates, 24 at most.
_JSON_COST = 12
# What a path can have wrong with it, whatever is in the file.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EIO, errno.ESTALE)
UNLISTED = "cannot list this folder"


# --- names and folders ----------------------------------------------------------------------------------------------


def stem_of(path: Path | str) -> str:
    """The file name without its suffix; ``.ome.tif``, ``.json.gz`` and ``.ome.tif.gz`` count as one suffix.

    >>> stem_of("plate/well_01.ome.tif"), stem_of("a.json.gz"), stem_of("image.v2.png")
    ('well_01', 'a', 'image.v2')
    """
    return _stem((path if isinstance(path, PurePath) else PurePath(path)).name)


@lru_cache(maxsize=1 << 16)
def _stem(name: str) -> str:
    double = _TWO_PARTS.search(name)
    return name[: double.start()] if double and double.start() else PurePath(name).stem


def plain_suffix(path: Path | str) -> str:
    """The suffix in lower case; of a file ``x.json.gz`` that of its content.

    >>> plain_suffix("a.TIF"), plain_suffix("a.json.gz")
    ('.tif', '.json')
    """
    return _suffix((path if isinstance(path, PurePath) else PurePath(path)).name)


@lru_cache(maxsize=1 << 16)
def _suffix(name: str) -> str:
    name = name.lower()
    return PurePath(name.removesuffix(".gz")).suffix or PurePath(name).suffix


def as_utf8(name: Path | str) -> str:
    r"""A name as text that can be written: bytes that are not UTF-8 are shown as Python escapes.

    >>> as_utf8("caf\udce9.png")
    'caf\\udce9.png'
    """
    return str(name).encode("utf-8", "backslashreplace").decode()


def walk(
    root: Path,
    max_depth: int = 64,
    per_folder: int | None = None,
    *,
    problems: list[InputError] | None = None,
    zarr: bool = False,
    results: list[tuple[Path, str]] | None = None,
) -> Iterator[Path]:
    """Files below ``root``, sorted within each folder, without hidden ones (``.ipynb_checkpoints``) and ``__MACOSX``.

    Zarr folders, which hold many files, are skipped; with ``zarr`` each is listed like a file, the root too. Linked
    folders are followed, after the real ones and unless that leads to a folder that was listed before. Folders of
    results of cellwright below ``root`` are skipped, and a tile job also as the root; ``results`` receives them and
    what they are.
    per_folder: yield at most this many files per folder. problems: receives an error for each folder that cannot be
    listed, and for each entry that is neither a file nor a folder, such as a link to nothing or a pipe. Without it, a
    folder that cannot be listed raises `InputError`.
    """
    if is_zarr_folder(root):
        yield from [root] if zarr else []
        return
    seen: set[tuple[int, int]] = set()
    above = {_identity(folder) for folder in root.resolve().parents}
    pending = [(root, max_depth)]
    links: list[tuple[Path, int]] = []
    while pending or links:
        folder, depth = pending.pop() if pending else links.pop(0)
        try:
            identity = _identity(folder)
            if identity in seen or identity in above:
                continue
            seen.add(identity)
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            got, remedy = error.strerror or str(error), "check the folder's permissions"
            problem = InputError(UNLISTED, where=folder, got=got, remedy=remedy)
            if problems is None:
                raise problem from error
            problems.append(problem)
            continue
        kind = kind_of_result(folder, [entry.name for entry in entries])
        if kind is not None and (folder != root or kind == TILE_JOB):
            if results is not None:
                results.append((folder, kind))
            continue
        files: list[Path] = []
        folders: list[Path] = []
        for entry in entries:
            if is_hidden(entry.name):
                continue
            entry_kind = _kind_of(entry)
            if entry_kind == "file":
                files.append(entry)
            elif entry_kind != "folder" and problems is not None:
                problems.append(_not_a_file(entry, entry_kind))
            elif entry_kind == "folder" and not is_zarr_folder(entry):
                folders.append(entry)
            elif entry_kind == "folder" and zarr:
                files.append(entry)
        yield from islice(files, per_folder)
        if depth > 0:
            links += [(entry, depth - 1) for entry in folders if entry.is_symlink()]
            pending += [(entry, depth - 1) for entry in reversed(folders) if not entry.is_symlink()]


def is_zarr_folder(path: Path) -> bool:
    """Whether a folder is one array or image of many files, by its name."""
    return path.suffix.lower() == ".zarr"


def require_regular(path: Path | str) -> None:
    """Raise `InputError` for what cannot be opened, or only waited for: a pipe, a device, a broken link.

    Files, folders and paths at which there is nothing pass.
    """
    kind = _kind_of(Path(path))
    if kind not in ("file", "folder", "nothing"):
        raise _not_a_file(path, kind)


# What is at a path that is neither a file nor a folder, by its kind in the mode of the file.
_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _kind_of(path: Path) -> str:
    """``"file"``, ``"folder"``, ``"nothing"``, or what is there instead, which is not opened."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if os.path.islink(path) and error.errno in (errno.ENOENT, errno.ENOTDIR):  # noqa: PTH114 - this never raises
            return f"a link to {path.readlink()}, which does not exist"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "nothing"
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself"
        return error.strerror or str(error)
    except ValueError as error:  # a null byte
        return str(error)
    if kind == stat.S_IFREG:
        return "file"
    return "folder" if kind == stat.S_IFDIR else _SPECIAL.get(kind, "no file")


def _not_a_file(path: Path | str, kind: str) -> InputError:
    remedy = "remove it, or put the file itself in its place"
    return InputError("this cannot be read as a file", where=path, got=kind, remedy=remedy)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is disregarded: hidden, or the ``__MACOSX`` of a zip made on a Mac."""
    return name.startswith(".") or name == "__MACOSX"


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


# --- writing --------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Context manager that yields a temporary path beside ``path`` and renames it to ``path`` on success.

    What is written is on the disk before it has its name, so that a power cut leaves the old file or the new one. The
    temporary name keeps the suffix, for writers that choose a codec by suffix, and names this process, so that
    `sweep` can remove it if the process is killed. On failure the temporary file or folder is removed, and an existing
    file at ``path`` is unchanged. An `OSError` becomes an `OutputError`.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_all(temporary)
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        remove(temporary)


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that names this process; see `sweep`.

    >>> temporary_path(Path("a.tif")).suffixes[-2:]
    ['.partial', '.tif']
    """
    suffix = path.suffix if len(path.suffix) <= len(_LONGEST_SUFFIX) else ""
    return path.with_name(f"{_beginning(path)}{os.getpid()}-{_host()}.partial{suffix}")


def _beginning(path: Path) -> str:
    """The first part of the temporary names of a file; long names are cut, for there is a limit of 255 bytes."""
    name = path.name.encode("utf-8", "surrogateescape")
    if len(name) > _KEPT:
        return f".{name[:_KEPT].decode('utf-8', 'ignore')}.{zlib.crc32(name):08x}."
    return f".{path.name}."


def sweep(folder: Path, of: Path | None = None) -> None:
    """Remove what killed processes of this machine left under temporary names in ``folder``, or only those of a file.

    Files in subfolders are not touched.
    """
    if not folder.is_dir():
        return
    beginning = "." if of is None else _beginning(of)
    for path in folder.iterdir():
        owner = _TEMPORARY.search(path.name) if path.name.startswith(beginning) else None
        if owner and owner[2] in (None, _host()) and not is_alive(int(owner[1])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, link or folder if it exists; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):  # unlink itself would raise if the parent is a file
        path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine; True where that cannot be found out (Windows)."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        return True
    return pid > 0


def flush(path: Path) -> None:
    """Have the system write the content of a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # not possible there
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot be told to
            raise
    finally:
        os.close(descriptor)


def _flush_all(path: Path) -> None:
    """Have the system write a file, or all of a folder, to the disk."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            flush(Path(folder) / name)
        flush(Path(folder))
    if not path.is_dir():
        flush(path)


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()) & 0xFFFF:04x}"


def output_error(path: Path | str, error: OSError) -> OutputError:
    """The `OutputError` for an `OSError` raised while writing ``path``."""
    if error.errno in FULL:
        return OutputError("the disk is full", where=path, remedy="free some space and run the same command again")
    remedy = "check the permissions of the folder, or choose another `out`"
    return OutputError("cannot write this output", where=path, got=error.strerror or str(error), remedy=remedy)


def place_error(error: OSError) -> CellwrightError | None:
    """The error for a place that cannot be used, such as a folder without permission; None for other problems."""
    if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
        return output_error(error.filename or "", error)
    if error.filename is None or error.errno not in _UNUSABLE:
        return None
    return unreadable(as_utf8(os.fsdecode(error.filename)), error, "file or folder")


def unreadable(path: Path | str | None, error: OSError, what: str = "file") -> InputError:
    """The `InputError` for an `OSError` raised while reading ``path``."""
    got = error.strerror or str(error)
    return InputError(f"cannot read this {what}", where=path, got=got, remedy="check the path and its permissions")


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_png(path: Path | str, pixels: np.ndarray) -> None:
    """Write greyscale (H, W) or RGB (H, W, 3) pixels, uint8 or uint16, as PNG, atomically."""
    import cv2
    import numpy as np

    ordered = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]  # OpenCV expects blue first
    write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes())


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically. Raises `OutputError` for names of files that are not text."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        got = as_utf8(text[max(error.start - 40, 0) : error.end + 40])
        remedy = "rename the file, for example with convmv"
        raise OutputError(
            "a file name that is not UTF-8 cannot be recorded", where=path, got=got, remedy=remedy
        ) from error
    write_bytes(path, content)


def write_json(path: Path | str, value: Any, *, indent: int | None = 1) -> None:
    """Write ``value`` as strict JSON (no NaN), atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


# --- reading --------------------------------------------------------------------------------------------------------


def gunzip(data: bytes, path: Path | str) -> bytes:
    """The content of a file that may be compressed with gzip, whatever its name.

    Raises `FormatError` if it is damaged, or unpacks to more than 1 GiB or a quarter of the memory there is.

    >>> gunzip(gzip.compress(b"[]"), "a.json.gz"), gunzip(b"[]", "a.json")
    (b'[]', b'[]')
    """
    if not data.startswith(b"\x1f\x8b"):
        return data
    most = min(MAX_UNPACKED, available_bytes() // 4)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(
            "this gzip file is damaged", where=path, got=str(error), remedy="export or copy the file again"
        ) from error
    if len(content) > most:
        got, expected = f"more than {most} bytes unpacked", f"at most {most}"
        remedy = "unpack it with gunzip"
        raise FormatError("this gzip file is too large", where=path, got=got, expected=expected, remedy=remedy)
    return content


def read_json(path: Path | str) -> Any:
    """Parse a JSON file in UTF-8 or UTF-16, which may be compressed with gzip.

    Raises `FormatError` with line and column if it is not valid JSON, and `InputError` if it cannot be read.
    """
    text = read_text(path)
    check_memory(_JSON_COST * len(text), "this file of JSON", where=path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise FormatError(
            "this file is not valid JSON", where=where, got=error.msg, remedy="export or copy the file again"
        ) from error
    except (ValueError, RecursionError) as error:  # ValueError: a number with thousands of digits
        raise FormatError(
            "this file is not valid JSON", where=path, got=str(error), remedy="export or copy the file again"
        ) from error


def read_text(path: Path | str, what: str = "file") -> str:
    """The content of a text file in UTF-8 or UTF-16, which may be compressed with gzip.

    Raises `FormatError` if it is in another encoding or damaged, and `InputError` if it cannot be read.
    """
    content = read_plain(path, what)
    if len(content) > max(_SMALL_TEXT, _MAX_TEXT_RATIO * Path(path).stat().st_size):
        got, expected = f"{len(content)} bytes unpacked", f"at most {_MAX_TEXT_RATIO} times as many as packed"
        remedy = "unpack it with gunzip"
        raise FormatError(f"this {what} is no text", where=path, got=got, expected=expected, remedy=remedy)
    try:
        return content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, what) from error


def read_plain(path: Path | str, what: str = "file") -> bytes:
    """The bytes of a file, decompressed if it is compressed with gzip."""
    require_regular(path)
    try:
        return gunzip(Path(path).read_bytes(), path)
    except OSError as error:
        raise unreadable(path, error, what) from error


def is_gzip(path: Path | str) -> bool:
    """Whether the name of a file says that it is compressed with gzip.

    >>> is_gzip("a.tif.gz"), is_gzip("a.tif")
    (True, False)
    """
    return str(path).lower().endswith(".gz")


def plain_size(path: Path | str) -> int:
    """The number of bytes of a file, decompressed; of a file that `read_plain` has read."""
    path = Path(path)
    if not is_gzip(path):
        return path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            return path.stat().st_size
        file.seek(-4, os.SEEK_END)  # the last word of a gzip file is its length (RFC 1952)
        return int.from_bytes(file.read(4), "little")


def first_bytes(path: Path, n: int = 4096) -> bytes:
    """The first bytes of a file, decompressed, and as UTF-8 if they are UTF-16; empty if it cannot be read.

    For `Format.sniff`: never raises.
    """
    if not path.is_file():
        return b""  # a pipe would be waited for
    try:
        with path.open("rb") as file:
            start = file.read(n)
        if start.startswith(_GZIP):
            start = zlib.decompressobj(wbits=31).decompress(start, n)
        if start.startswith(_UTF16):
            start = start[: len(start) // 2 * 2].decode("utf-16", "ignore").encode()
    except (OSError, zlib.error):
        return b""
    return start


def is_plain_utf8(path: Path) -> bool:
    """Whether the content of a text file can be used where it lies: it is neither compressed nor UTF-16."""
    try:
        with path.open("rb") as file:
            return not file.read(2).startswith((_GZIP, *_UTF16))
    except OSError as error:
        raise unreadable(path, error) from error


def not_utf8(path: Path | str, error: UnicodeDecodeError, what: str = "file", *, offset: int = 0) -> FormatError:
    """The `FormatError` for text at ``offset`` in a file that is neither UTF-8 nor UTF-16."""
    begin = max(error.start - 12, 0)
    shown = error.object[begin : error.end + 12].decode("cp1252", "replace")
    return FormatError(
        f"this {what} is not UTF-8 text",
        where=f"{path}, byte {offset + error.start}",
        got=f"{shown!r} if it is Windows-1252 (cp1252, Latin-1)",
        expected="UTF-8",
        remedy="save it as UTF-8: in an editor with Save as, or with iconv -f cp1252 -t utf-8",
    )
