"""Random damage to files, for checking that a reader reports it.

Besides bytes, parts are damaged inside files whose other parts remain valid: a field of JSON or YAML, a number, a file
of a zip archive, a chunk of a PNG, the header of a safetensors file, the content of a gzip file.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = [
    b"0", b"-1", b"99999999999", b"1e308", b"NaN", b"", b"3.7", b"1" * 5000, b"true", b"null", b'"x"', b"[]", b"65536",
]  # fmt: skip
WORDS = [b"\0", b"\xff" * 4, b"<", b'"', b",", b"\n", b"}", b"]]]]", b"PK\x03\x04", b"II*\0", b"\x80\x04c", b"\xf0\x9f"]


VALUES = [
    None, True, 0, -1, 0.5, -1e308, 1e-300, 7, 65536, 2**31, 2**33, 2**53 + 1, 2**63, 10**30, float("nan"), "", "x",
    "1", "a/../../b", "\x1b[31m", "9" * 400, [], {}, [[]], [1, 2], {"a": 1}, [None], [[[[[[[[0]]]]]]]],
]  # fmt: skip


def damage_file(path: Path, rng: np.random.Generator) -> None:
    """Damage a file; in half of the cases a part of it such that the rest remains valid, if it has a known suffix."""
    change = _INSIDE.get(path.suffix, damage) if rng.random() < 0.5 else damage
    path.write_bytes(change(path.read_bytes(), rng))


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """``data`` with one small change, or a few."""
    for _ in range(rng.choice([1, 1, 1, 1, 2, 4])):
        data = _CHANGES[rng.integers(len(_CHANGES))](bytearray(data), rng)
    return data


def _flip_bits(data: bytearray, rng: np.random.Generator) -> bytes:
    for at in rng.integers(0, max(len(data), 1), rng.integers(1, 9)):
        if data:
            data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _set_extreme_value(data: bytearray, rng: np.random.Generator) -> bytes:
    width = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(0, max(len(data) - width, 1)))
    values = [b"\0" * width, b"\xff" * width, b"\x7f" + b"\xff" * (width - 1), b"\xff" * (width - 1) + b"\x7f"]
    data[at : at + width] = values[rng.integers(4)]
    return bytes(data)


def _truncate(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: int(rng.integers(0, len(data) + 1))])


def _splice(data: bytearray, rng: np.random.Generator) -> bytes:
    a, b, c = sorted(rng.integers(0, len(data) + 1, 3).tolist())
    choice = rng.integers(4)
    if choice == 0:
        return bytes(data[:a] + data[b:])
    if choice == 1:
        return bytes(data[:b] + data[a:c] + data[b:])
    if choice == 2:
        return bytes(data[:a] + WORDS[rng.integers(len(WORDS))] + data[a:])
    return bytes(data[:a] + data[b:c] + data[a:b] + data[c:])


def _replace_number(data: bytearray, rng: np.random.Generator) -> bytes:
    matches = list(re.finditer(rb"-?\d+(?:\.\d+)?", bytes(data)))
    if not matches:
        return _set_extreme_value(data, rng)
    match = matches[rng.integers(len(matches))]
    return bytes(data[: match.start()] + NUMBERS[rng.integers(len(NUMBERS))] + data[match.end() :])


_CHANGES = [_flip_bits, _set_extreme_value, _truncate, _splice, _replace_number, _replace_number]


def _damage_in_zip(data: bytes, rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        chosen = names[rng.integers(len(names))]
        for name in names:
            content = old.read(name)
            new.writestr(name, damage(content, rng) if name == chosen else content)
        new.comment = damage(old.comment, rng)[:60_000]
    return buffer.getvalue()


def _damage_in_png(data: bytes, rng: np.random.Generator) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    if not chunks:  # of a file that was cut before
        return damage(data, rng)
    k = int(rng.integers(len(chunks)))
    kind, content = chunks[k][:4], chunks[k][4:]
    pixels = None
    if kind == b"IDAT":
        with suppress(zlib.error):  # part of a stream, or damaged before
            pixels = zlib.decompress(content)
    chunks[k] = kind + (damage(content, rng) if pixels is None else zlib.compress(damage(pixels, rng)))
    whole = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks]
    return data[:8] + b"".join(whole)


def _damage_in_gzip(data: bytes, rng: np.random.Generator) -> bytes:
    return gzip.compress(damage(gzip.decompress(data), rng), mtime=0)


def _damage_in_json(data: bytes, rng: np.random.Generator) -> bytes:
    return json.dumps(_damage_value(json.loads(data), rng), ensure_ascii=False).encode(errors="surrogatepass")


def _damage_in_yaml(data: bytes, rng: np.random.Generator) -> bytes:
    import yaml

    return yaml.safe_dump(_damage_value(yaml.safe_load(data), rng), sort_keys=False).encode()


def _damage_in_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = _damage_in_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _damage_value(value: Any, rng: np.random.Generator) -> Any:
    """JSON values in which one field is replaced, removed, renamed or repeated; all fields are as likely."""
    places = _fields(value)
    if not places:
        return VALUES[rng.integers(len(VALUES))]
    inside, key = places[rng.integers(len(places))]
    other, other_key = places[rng.integers(len(places))]
    choice = int(rng.integers(6))
    if choice == 0:
        del inside[key]
    elif choice == 1 and isinstance(inside, dict):
        inside[f"{key}_"] = inside.pop(key)
    elif choice == 1:
        inside.insert(key, inside[key])
    elif choice == 2:
        inside[key] = json.loads(json.dumps(other[other_key]))
    else:
        inside[key] = VALUES[rng.integers(len(VALUES))]
    return value


def _fields(value: Any) -> list[tuple[Any, Any]]:
    """Each field below ``value``: the dict or list that contains it, and its key or position."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, inner in items for place in ((value, key), *_fields(inner))]


_INSIDE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    ".zip": _damage_in_zip,
    ".png": _damage_in_png,
    ".gz": _damage_in_gzip,
    ".json": _damage_in_json,
    ".geojson": _damage_in_json,
    ".yaml": _damage_in_yaml,
    ".safetensors": _damage_in_safetensors,
}
