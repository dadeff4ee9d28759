"""Files that are whole or absent: every output is written to a temporary name beside its place and renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.core.errors import FormatError, InputError, OutputError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block ends well.

    The temporary name keeps the suffix, so that writers which choose a codec by suffix work. On any failure it is
    removed (a folder too) and what stood at ``path`` is untouched. An `OSError` becomes an `OutputError`.
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
        elif os.path.lexists(temporary):  # unlink would raise anew where the parent is a file
            temporary.unlink(missing_ok=True)


def output_error(path: Path | str, error: OSError) -> OutputError:
    """The `OutputError` for an `OSError` met while writing ``path``."""
    if error.errno == errno.ENOSPC:
        return OutputError("the disk is full", where=path, remedy="free some space and run the same command again")
    remedy = "check the folder's permissions, or choose another --out"
    return OutputError("cannot write this output", where=path, got=error.strerror or str(error), remedy=remedy)


def unreadable(path: Path | str | None, error: OSError, what: str = "file") -> InputError:
    """The `InputError` for an `OSError` met while reading ``path``."""
    got = error.strerror or str(error)
    return InputError(f"cannot read this {what}", where=path, got=got, remedy="check the path and its permissions")


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_png(path: Path | str, pixels: np.ndarray) -> None:
    """Write (H, W) grey or (H, W, 3) RGB pixels, uint8 or uint16, as PNG, atomically."""
    import cv2

    written = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]  # OpenCV writes blue first
    write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(written))[1].tobytes())


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any, *, indent: int | None = 1) -> None:
    """Write ``value`` as strict JSON (no NaN), atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file; `FormatError` names file, line and column, `InputError` a file that cannot be read."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}, column {error.colno}"
        raise FormatError(
            "this file is not valid JSON", where=place, got=error.msg, remedy="export or copy the file again"
        ) from error
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a number of thousands of digits
        raise FormatError(
            "this file is not valid JSON", where=path, got=str(error), remedy="export or copy the file again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
