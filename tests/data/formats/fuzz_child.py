"""Damage files and read them. Run by test_fuzz.py as a program of its own, under a memory limit:

    python fuzz_child.py SEEDS WORK FIRST COUNT

Case k damages one file of one seed, and depends on k only. One line of JSON is printed before each case and one after
it, so that the last line identifies the case of a crash or hang.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from cellwright.core.errors import CellwrightError
from cellwright.data.formats import FORMATS, ReadOptions
from cellwright.data.images.read import read_image
from cellwright.testing.damage import damage_file

SECONDS_PER_CASE = 20
MEMORY_BYTES = 2 << 30


class TooSlow(BaseException):
    """Raised by the alarm; not an Exception, so that no reader catches it."""


def run(case: int, seeds: list[dict[str, object]], folder: Path, work: Path, images: object) -> dict[str, object]:
    """Damage and read; returns the outcome."""
    rng = np.random.default_rng([20, case])
    seed = seeds[case % len(seeds)]
    name, files = str(seed["format"]), list(seed["files"])  # type: ignore[call-overload]
    target = work / "case"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / str(seed["folder"]), target)
    file = target / files[rng.integers(len(files))]
    damage_file(file, rng)
    start = time.perf_counter()
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
    seconds = time.perf_counter() - start
    return {"case": case, "format": name, "file": file.name, "outcome": outcome, "text": text, "seconds": seconds}


def main() -> None:
    folder, work = Path(sys.argv[1]), Path(sys.argv[2])
    first, count = int(sys.argv[3]), int(sys.argv[4])
    logging.disable(logging.CRITICAL)
    seeds = json.loads((folder / "seeds.json").read_text())
    images = FORMATS["coco"].read(folder / "truth", ReadOptions())
    for seed in seeds:  # before memory is limited, so that code compiled on first use is compiled
        options = ReadOptions(images=images, require_images=False)
        for sample in FORMATS[seed["format"]].read(folder / seed["folder"] / seed["path"], options):
            sample.read_instances()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    def alarm(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, alarm)
    for case in range(first, first + count):
        print(json.dumps({"case": case, "outcome": "started"}), flush=True)
        signal.alarm(SECONDS_PER_CASE)
        result = run(case, seeds, folder, work, images)
        signal.alarm(0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
