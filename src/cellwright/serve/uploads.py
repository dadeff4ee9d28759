"""Files that are dropped onto the page: written aside, checked, and moved to ``images/`` of the project."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

from cellwright.core.errors import InputError
from cellwright.core.files import flush, output_error, plain_suffix, remove, stem_of, temporary_path
from cellwright.core.memory import check_memory
from cellwright.data.images.names import IMAGE_SUFFIXES, is_image_name
from cellwright.data.images.reading import Reading

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]+')
_MAX_NAME = 120


def safe_name(name: str) -> str:
    """The name under which a file is kept. Raises `InputError` if it is not that of an image."""
    base = re.split(r"[/\\]", name)[-1]
    cleaned = _UNSAFE.sub("_", base).strip(" .")
    cleaned = cleaned.encode("utf-8", "ignore").decode()
    if not cleaned or not is_image_name(cleaned) or plain_suffix(cleaned).startswith(".zarr"):
        expected = f"an image file: {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise InputError("this is not the name of an image", got=ascii(base)[:120], expected=expected)
    stem, suffix = stem_of(cleaned), cleaned[len(stem_of(cleaned)) :]
    return f"{stem[:_MAX_NAME]}{suffix}"


async def receive(folder: Path, name: str, body: AsyncIterator[bytes]) -> tuple[Path, Path]:
    """Write a body to a temporary file; returns it, and where it is to be. On an error nothing is left."""
    target = folder / safe_name(name)
    temporary = temporary_path(target)
    n = 0
    while temporary.exists():
        n += 1
        temporary = temporary_path(target.with_name(f"{stem_of(target)}-{n}{target.name[len(stem_of(target)) :]}"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            async for part in body:
                file.write(part)
        return temporary, target
    except OSError as error:
        remove(temporary)
        raise output_error(target, error) from error
    except BaseException:
        remove(temporary)
        raise


def keep(temporary: Path, target: Path) -> Path:
    """Check an image that was received, and move it to its place under a name that is free.

    Raises `InputError` for what cannot be read, or needs more memory than there is; the file is then removed.
    """
    try:
        source = Reading().open(temporary)
        height, width = source.image_hw
        if source.tile_hw == source.image_hw:
            n_bytes = height * width * len(source.channels) * source.dtype.itemsize
            check_memory(3 * n_bytes, f"this image of {height} x {width} pixels", where=target.name)
        source.read(0, 0, min(height, 64), min(width, 64))
        flush(temporary)
        stem, number = stem_of(target), 1
        suffix = target.name[len(stem) :]
        place = target
        while True:
            try:
                os.link(temporary, place)
                break
            except FileExistsError:
                number += 1
                place = target.with_name(f"{stem}-{number}{suffix}")
            except OSError:  # no hard links here
                if not place.exists():
                    temporary.replace(place)
                    break
                number += 1
                place = target.with_name(f"{stem}-{number}{suffix}")
        return place
    finally:
        remove(temporary)
