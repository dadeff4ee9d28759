"""What commands take on small inputs in a new process: seconds and CPU seconds, the median of several.

    python benchmarks/start_up.py [--repeat 5]

Three label images of 256 x 256 px with 40 objects each are drawn, and converted, and evaluated against themselves;
one image is segmented with the bundled model and with the training-free method. The first call of each command, which
may compile kernels, is not counted. One thread; compare the CPU seconds on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cellwright.core.files import write_png
from cellwright.data.synthetic import draw_field


def timed(words: list[str], out: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of a command, which writes ``out``."""
    shutil.rmtree(out, ignore_errors=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "cellwright", *words]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder), Path(folder) / "out"
        for k in range(3):
            image, truth = draw_field(k, (256, 256), 40)
            for name, pixels in (("labels", truth.masks.to_label_map()), ("images", image.data)):
                (root / name).mkdir(exist_ok=True)
                write_png(root / name / f"{k}.png", pixels.astype("uint16") if name == "labels" else pixels)
        labels, image_path = str(root / "labels"), str(root / "images" / "0.png")
        commands = {
            "--help": ["--help"],
            "data convert, 3 label images": ["data", "convert", labels, "--out", str(out)],
            "evaluate, 3 label images": ["evaluate", labels, "--data", labels, "--out", str(out)],
            "predict, one image": ["predict", image_path, "--out", str(out)],
            "predict --model classical, one image": ["predict", image_path, "--model", "classical", "--out", str(out)],
        }
        print("| command | s | CPU s |\n|---|---:|---:|")
        for name, words in commands.items():
            times = [timed(words, out) for _ in range(repeat + 1)][1:]
            wall_s, cpu_s = (statistics.median(values) for values in zip(*times, strict=True))
            print(f"| `{name}` | {wall_s:.2f} | {cpu_s:.2f} |", flush=True)


if __name__ == "__main__":
    main()
