"""The page under load: clients that read tiles of a large image while one edits; times of tiles and edits, and memory.

    python benchmarks/page.py FOLDER [--side 10000] [--clients 20] [--seconds 30]

FOLDER is written to: a drawn image with its labels, and the project. Each client reads a tile of the image or of its
labels every 0.2 s, at random places and levels as someone who looks around; one more client draws a stroke every 0.5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import tifffile

TILE = 512


def draw(folder: Path, side: int) -> None:
    """A tiled TIFF of discs on noise, and their label image."""
    rng = np.random.default_rng(0)
    labels = np.zeros((TILE, TILE), np.uint32)
    centres = [(y, x) for y in range(20, 500, 42) for x in range(20, 500, 42)]
    for k, (y, x) in enumerate(centres, 1):
        radius = int(rng.integers(12, 19))
        v, u = np.ogrid[-radius : radius + 1, -radius : radius + 1]
        labels[y - radius : y + radius + 1, x - radius : x + radius + 1][v * v + u * u <= radius * radius] = k
    pixels = (rng.random((TILE, TILE)) * 200).astype(np.uint16) + (labels > 0).astype(np.uint16) * 400
    n = (-(-side // TILE)) ** 2
    common = {"shape": (side, side), "tile": (TILE, TILE), "compression": "zlib"}
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "a.tif", (pixels for _ in range(n)), dtype=np.uint16, **common)
    numbered = (np.where(labels > 0, labels + k * len(centres), 0).astype(np.uint32) for k in range(n))
    tifffile.imwrite(folder / "a_masks.tif", numbered, dtype=np.uint32, **common)


class Client:
    """A connection that stays open."""

    def __init__(self, host: str, cookie: str) -> None:
        self._connection = HTTPConnection(host, timeout=600)
        self._headers = {"Cookie": cookie, "Origin": f"http://{host}", "Content-Type": "application/json"}

    def ask(self, path: str, body: object = None) -> tuple[float, bytes]:
        """Seconds until the answer was read, and the answer."""
        begun = time.perf_counter()
        content = None if body is None else json.dumps(body)
        self._connection.request("GET" if body is None else "POST", path, content, self._headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {data[:200]!r}")
        return time.perf_counter() - begun, data


def look_around(client: Client, facts: dict, seed: int, end: float, times: dict[str, list[float]]) -> None:
    rng = random.Random(seed)
    while time.monotonic() < end:
        level = rng.choice([0, 0, 0, 1, 1, 2, len(facts["levels"]) - 1])
        height, width = facts["levels"][level]["hw"]
        kind = rng.choice(["tiles", "labels"])
        row, column = rng.randrange(-(-height // TILE)), rng.randrange(-(-width // TILE))
        query = f"?v={facts['version']}" if kind == "tiles" else ""
        times[kind].append(client.ask(f"/api/images/a/{kind}/{level}/{row}/{column}{query}")[0])
        time.sleep(0.2)


def edit(client: Client, side: int, end: float, times: list[float]) -> None:
    rng = random.Random(0)
    while time.monotonic() < end:
        y, x = rng.uniform(100, side - 200), rng.uniform(100, side - 200)
        path = [[y + 3 * k, x + 8 * np.sin(k / 3)] for k in range(25)]
        times.append(client.ask("/api/images/a/edits", {"op": "brush", "path": path, "radius": 8})[0])
        time.sleep(0.5)


def memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shown(name: str, seconds: list[float]) -> str:
    ms = np.array(seconds) * 1000
    return (
        f"{name}: {len(ms)}, median {np.median(ms):.1f} ms, p95 {np.percentile(ms, 95):.1f} ms, max {ms.max():.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    images, project = args.folder / f"images_{args.side}", args.folder / "project"
    if not images.is_dir():
        draw(images, args.side)
    shutil.rmtree(project, ignore_errors=True)
    command = [sys.executable, "-m", "cellwright", "serve", images, "--out", project, "--log-format", "json"]
    server = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    try:
        url = next(event["url"] for event in map(json.loads, server.stdout or ()) if "url" in event)
        host, _, query = url.removeprefix("http://").partition("/")
        connection = HTTPConnection(host)
        connection.request("GET", f"/{query}")
        cookie = (connection.getresponse().getheader("set-cookie") or "").split(";")[0]
        seconds, answer = Client(host, cookie).ask("/api/images/a")
        facts = json.loads(answer)
        print(f"opened in {seconds:.1f} s, {cpu_s(server.pid):.1f} s of CPU, {memory_mb(server.pid):.0f} MB")
        before_s = cpu_s(server.pid)
        times: dict[str, list[float]] = {"tiles": [], "labels": []}
        strokes: list[float] = []
        end = time.monotonic() + args.seconds
        threads = [
            threading.Thread(target=look_around, args=(Client(host, cookie), facts, seed, end, times))
            for seed in range(args.clients)
        ]
        threads.append(threading.Thread(target=edit, args=(Client(host, cookie), args.side, end, strokes)))
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            time.sleep(min(args.seconds / 6, max(end - time.monotonic(), 0.01)))
            print(f"memory {memory_mb(server.pid):.0f} MB")
        for thread in threads:
            thread.join()
        print(f"{cpu_s(server.pid) - before_s:.1f} s of CPU")
        for name, values in (*times.items(), ("strokes", strokes)):
            if not values:
                continue
            print(shown(name, values))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
