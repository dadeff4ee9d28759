"""A program of its own, run by test_fuzz.py under a memory limit: damages seed files and reads them.

    python fuzz_child.py SEEDS WORK FIRST COUNT

Case k damages one file of one seed as a pure function of k. A line of JSON goes out before each case and after it, so
that a crash or a hang can be told by the last line.
"""

from __future__ import annotations

import io
import json
import logging
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import zipfile
import zlib
from pathlib import Path

import numpy as np

from cellwright.core.errors import CellwrightError
from cellwright.data.formats import FORMATS, ReadOptions
from cellwright.data.images.read import read_image

SECONDS_A_CASE = 20
MEMORY_BYTES = 2 << 30
NUMBERS = [
    b"0",
    b"-1",
    b"99999999999",
    b"1e308",
    b"NaN",
    b"",
    b"3.7",
    b"1" * 5000,
    b"true",
    b"null",
    b'"x"',
    b"[]",
    b"65536",
]
WORDS = [b"\0", b"\xff" * 4, b"<", b'"', b",", b"\n", b"}", b"]]]]", b"PK\x03\x04", b"II*\0", b"\x80\x04c", b"\xf0\x9f"]


class TooSlow(BaseException):
    """Raised by the alarm; not an Exception, so that no reader swallows it."""


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One small damage, or a few."""
    for _ in range(rng.choice([1, 1, 1, 1, 2, 4])):
        data = DAMAGES[rng.integers(len(DAMAGES))](bytearray(data), rng)
    return data


def flip(data: bytearray, rng: np.random.Generator) -> bytes:
    for at in rng.integers(0, max(len(data), 1), rng.integers(1, 9)):
        if data:
            data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def extreme(data: bytearray, rng: np.random.Generator) -> bytes:
    width = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(0, max(len(data) - width, 1)))
    value = [b"\0" * width, b"\xff" * width, b"\x7f" + b"\xff" * (width - 1), b"\xff" * (width - 1) + b"\x7f"]
    data[at : at + width] = value[rng.integers(4)]
    return bytes(data)


def truncate(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: int(rng.integers(0, len(data) + 1))])


def splice(data: bytearray, rng: np.random.Generator) -> bytes:
    a, b, c = sorted(rng.integers(0, len(data) + 1, 3).tolist())
    choice = rng.integers(4)
    if choice == 0:
        return bytes(data[:a] + data[b:])
    if choice == 1:
        return bytes(data[:b] + data[a:c] + data[b:])
    if choice == 2:
        return bytes(data[:a] + WORDS[rng.integers(len(WORDS))] + data[a:])
    return bytes(data[:a] + data[b:c] + data[a:b] + data[c:])


def number(data: bytearray, rng: np.random.Generator) -> bytes:
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", bytes(data)))
    if not found:
        return extreme(data, rng)
    match = found[rng.integers(len(found))]
    return bytes(data[: match.start()] + NUMBERS[rng.integers(len(NUMBERS))] + data[match.end() :])


DAMAGES = [flip, extreme, truncate, splice, number, number]


def inside_zip(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage to one entry of a zip whose checksums then fit again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        chosen = names[rng.integers(len(names))]
        for name in names:
            content = old.read(name)
            new.writestr(name, damage(content, rng) if name == chosen else content)
        new.comment = damage(old.comment, rng)[:60_000]
    return buffer.getvalue()


def inside_png(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage to one chunk of a PNG whose checksums then fit again."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    k = int(rng.integers(len(chunks)))
    if chunks[k][:4] == b"IDAT":
        chunks[k] = b"IDAT" + zlib.compress(damage(zlib.decompress(chunks[k][4:]), rng))
    else:
        chunks[k] = chunks[k][:4] + damage(chunks[k][4:], rng)
    whole = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks]
    return data[:8] + b"".join(whole)


INSIDE = {".zip": inside_zip, ".png": inside_png}


def run(case: int, seeds: list[dict[str, object]], folder: Path, work: Path, images: object) -> dict[str, object]:
    """Damage and read; what came of it."""
    rng = np.random.default_rng([20, case])
    seed = seeds[case % len(seeds)]
    name, files = str(seed["format"]), list(seed["files"])  # type: ignore[call-overload]
    target = work / "case"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / str(seed["folder"]), target)
    victim = target / files[rng.integers(len(files))]
    harm = INSIDE.get(victim.suffix, damage) if rng.random() < 0.5 else damage
    victim.write_bytes(harm(victim.read_bytes(), rng))
    begin = time.perf_counter()
    try:
        options = ReadOptions(images=images, require_images=False)  # type: ignore[arg-type]
        FORMATS[name].sniff(target / str(seed["path"]))
        for sample in FORMATS[name].read(target / str(seed["path"]), options):
            sample.read_instances()
            if name == "image_folder":
                read_image(sample.image_path)
        outcome, text = "read", ""
    except CellwrightError as error:
        outcome, text = "refused", str(error)
    except TooSlow:
        outcome, text = "slow", traceback.format_exc()
    except Exception:
        outcome, text = "traceback", traceback.format_exc()
    seconds = time.perf_counter() - begin
    return {"case": case, "format": name, "file": victim.name, "outcome": outcome, "text": text, "seconds": seconds}


def main() -> None:
    folder, work = Path(sys.argv[1]), Path(sys.argv[2])
    first, count = int(sys.argv[3]), int(sys.argv[4])
    logging.disable(logging.CRITICAL)
    seeds = json.loads((folder / "seeds.json").read_text())
    images = FORMATS["coco"].read(folder / "truth", ReadOptions())
    for seed in seeds:  # compile what is compiled on first use before memory is limited
        options = ReadOptions(images=images, require_images=False)
        for sample in FORMATS[seed["format"]].read(folder / seed["folder"] / seed["path"], options):
            sample.read_instances()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    def alarm(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, alarm)
    for case in range(first, first + count):
        print(json.dumps({"case": case, "outcome": "begun"}), flush=True)
        signal.alarm(SECONDS_A_CASE)
        result = run(case, seeds, folder, work, images)
        signal.alarm(0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
