"""Functions shared by `nuclei_stardist.py` and `nuclei_cellpose.py`; they need only NumPy and tifffile."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile

Segment = Callable[[np.ndarray], np.ndarray]


@dataclass
class Budget:
    """The CPU time of this process, over all threads, that a training may use; pauses are not counted."""

    seconds: float
    start: float = field(default_factory=time.process_time)
    paused: float = 0.0
    _since: float | None = None

    def pause(self) -> None:
        """Stop counting."""
        self._since = time.process_time()

    def resume(self) -> None:
        """Continue counting."""
        if self._since is not None:
            self.paused += time.process_time() - self._since
            self._since = None

    def used(self) -> float:
        """CPU seconds used so far."""
        now = time.process_time() if self._since is None else self._since
        return now - self.start - self.paused

    def share(self) -> float:
        """The used share of the budget: 1 at its end."""
        return self.used() / self.seconds


@dataclass(frozen=True)
class Images:
    """A split: sample ids, images (H, W, 3) uint8, labels (H, W) int32."""

    ids: list[str]
    images: list[np.ndarray]
    labels: list[np.ndarray]


def read_split(folder: Path, split: str) -> Images:
    """A split as `nuclei.py prepare` wrote it."""
    paths = sorted((folder / "data" / split / "images").glob("*.tif"))
    images = [tifffile.imread(path) for path in paths]
    labels = [tifffile.imread(folder / "data" / split / "labels" / path.name) for path in paths]
    return Images([path.stem for path in paths], images, labels)


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write the file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sibling = path.with_name(path.name + ".part")
    sibling.write_text(json.dumps(facts, indent=1) + "\n")
    sibling.replace(path)


def predict_split(out: Path, split: Images, segment: Segment) -> dict[str, Any]:
    """Write the label TIFFs of a split to ``out`` and return the CPU seconds of each image.

    The first image of each size is predicted once before, so that compilation is not counted.
    """
    out.mkdir(parents=True, exist_ok=True)
    warm: set[tuple[int, ...]] = set()
    seconds = []
    for name, image in zip(split.ids, split.images, strict=True):
        if image.shape not in warm:
            segment(image)
            warm.add(image.shape)
        start = time.process_time()
        labels = segment(image)
        seconds.append(time.process_time() - start)
        tifffile.imwrite(out / f"{name}.tif", np.asarray(labels, np.int32), compression="zlib")
    return {"ids": split.ids, "cpu_seconds": seconds}


class Train(Protocol):
    """Trains on the split train, validates on val, writes to ``out``, and returns facts about the training."""

    def __call__(self, folder: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]: ...


class Load(Protocol):
    """Loads the trained model, tuned on val, and returns it with its thresholds."""

    def __call__(self, folder: Path, out: Path) -> tuple[Segment, dict[str, Any]]: ...


def run_peer(name: str, train: Train, load: Load, options: Sequence[tuple[str, type, Any]] = ()) -> None:
    """The command line of a tool: ``train FOLDER --core-minutes M`` and ``predict FOLDER --split test``."""
    parser = argparse.ArgumentParser(description=f"The {name} part of nuclei.py, which starts it")
    parser.add_argument("stage", choices=["train", "predict"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--core-minutes", type=float, default=30.0)
    parser.add_argument("--split", default="test")
    for flag, kind, default in options:
        parser.add_argument(flag, type=kind, default=default)
    args = parser.parse_args()
    out = args.folder / name
    out.mkdir(parents=True, exist_ok=True)
    if args.stage == "train":
        start = time.perf_counter()
        done = train(args.folder, out, args)
        write_json(out / "train.json", {**done, "wall_seconds": time.perf_counter() - start})
        return
    segment, tuned = load(args.folder, out)
    path = out / "predict.json"
    splits = json.loads(path.read_text())["splits"] if path.exists() else {}
    splits[args.split] = predict_split(out / args.split, read_split(args.folder, args.split), segment)
    write_json(path, {"tuned": tuned, "splits": splits})
