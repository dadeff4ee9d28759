"""Reading and writing files. Outputs are written atomically: to a temporary file beside the target, then renamed."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError, OutputError

MAX_UNPACKED = 1 << 30  # bytes of a gzip file


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Context manager that yields a temporary path beside ``path`` and renames it to ``path`` on success.

    The temporary name keeps the suffix, for writers that choose a codec by suffix. On failure the temporary file or
    folder is removed, and an existing file at ``path`` is unchanged. An `OSError` becomes an `OutputError`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif os.path.lexists(temporary):  # unlink itself would raise if the parent is a file
            temporary.unlink(missing_ok=True)


def output_error(path: Path | str, error: OSError) -> OutputError:
    """The `OutputError` for an `OSError` raised while writing ``path``."""
    if error.errno == errno.ENOSPC:
        return OutputError("the disk is full", where=path, remedy="free some space and run the same command again")
    remedy = "check the permissions of the folder, or choose another `out`"
    return OutputError("cannot write this output", where=path, got=error.strerror or str(error), remedy=remedy)


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

    ordered = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]  # OpenCV expects blue first
    write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes())


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any, *, indent: int | None = 1) -> None:
    """Write ``value`` as strict JSON (no NaN), atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def gunzip(data: bytes, path: Path | str) -> bytes:
    """The content of a file that may be compressed with gzip, whatever its name.

    Raises `FormatError` if it is damaged, or unpacks to more than 1 GiB.

    >>> gunzip(gzip.compress(b"[]"), "a.json.gz"), gunzip(b"[]", "a.json")
    (b'[]', b'[]')
    """
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(
            "this gzip file is damaged", where=path, got=str(error), remedy="export or copy the file again"
        ) from error
    if len(content) > MAX_UNPACKED:
        got, expected = f"more than {MAX_UNPACKED} bytes unpacked", f"at most {MAX_UNPACKED}"
        raise FormatError("this gzip file is too large", where=path, got=got, expected=expected)
    return content


def read_json(path: Path | str) -> Any:
    """Parse a JSON file, which may be compressed with gzip.

    Raises `FormatError` with line and column if it is not valid JSON, and `InputError` if it cannot be read.
    """
    try:
        return json.loads(gunzip(Path(path).read_bytes(), path).decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise FormatError(
            "this file is not valid JSON", where=where, got=error.msg, remedy="export or copy the file again"
        ) from error
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a number with thousands of digits
        raise FormatError(
            "this file is not valid JSON", where=path, got=str(error), remedy="export or copy the file again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
