"""Whether loading data slows down training: the loader of a recipe alone, and its share of a short training.

    python benchmarks/loader.py --data work/vrdl [--recipe vrdl_nuclei/quick] [--steps 40] [--out FILE.json]

First the loader without a network, in the training process: samples per second in the first epoch (which decodes the
files) and in the next epochs (decoded images are kept in memory). Then a training of ``--steps`` steps, whose log has
the time of each step and the time that the loop waited for its batch; the first epoch is reported separately.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import cellwright as cw
from cellwright.config.conventions import CONVENTIONS
from cellwright.config.recipe import load
from cellwright.core.dataset import Dataset
from cellwright.data.loader import LoaderConfig, TrainingLoader

STRIDE = 64


def alone(dataset: Dataset, recipe_name: str, n_epochs: int = 4) -> dict[str, float]:
    """Samples per second of the loader alone."""
    recipe = load(recipe_name)
    rule = CONVENTIONS[recipe.conventions].resize_rule
    size, seed = recipe.train.batch_size, recipe.train.seed
    loader = TrainingLoader(
        dataset.samples, LoaderConfig(recipe.input, recipe.augment, recipe.data, rule, STRIDE, size, seed)
    )
    epoch = math.ceil(loader.n_samples / size)
    started = time.perf_counter()
    first = sum(len(batch) for batch in loader.batches(0, epoch))
    decoded = time.perf_counter()
    rest = sum(len(batch) for batch in loader.batches(epoch, (1 + n_epochs) * epoch))
    return {
        "first_epoch_samples_per_s": first / (decoded - started),
        "samples_per_s": rest / (time.perf_counter() - decoded),
    }


def in_training(dataset: Dataset, recipe_name: str, n_steps: int) -> dict[str, float]:
    """Median time of a step and of the wait for its batch after the first epoch, and the wait in the first epoch."""
    with tempfile.TemporaryDirectory() as folder:
        changes = (f"train.length={n_steps} steps", "train.warmup=1 step")
        cw.train(recipe_name, dataset, out=Path(folder) / "run", set=changes)
        with (Path(folder) / "run" / "log.csv").open() as log:
            rows = [row for row in csv.DictReader(log) if row["step_s"]]
    epoch = math.ceil(len(dataset) / load(recipe_name).train.batch_size)
    first, later = rows[:epoch], rows[epoch:]
    if not later:
        raise SystemExit(f"--steps {n_steps} is not more than one epoch ({epoch} steps)")
    return {
        "step_s": statistics.median(float(row["step_s"]) for row in later),
        "data_s": statistics.median(float(row["data_s"]) for row in later),
        "first_epoch_data_s": statistics.median(float(row["data_s"]) for row in first),
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="vrdl_nuclei/quick")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("work/bench/loader.json"))
    chosen = parser.parse_args()
    dataset = cw.read_dataset(chosen.data)
    dataset = dataset.with_split("train") if "train" in dataset.splits else dataset
    result = {"recipe": chosen.recipe, "images": len(dataset), **alone(dataset, chosen.recipe)}
    result |= in_training(dataset, chosen.recipe, chosen.steps)
    result["share_of_step"] = result["data_s"] / result["step_s"]
    print(f"{chosen.recipe}, {len(dataset)} images")
    print(f"loader alone: {result['first_epoch_samples_per_s']:.1f} samples/s in the first epoch, ", end="")
    print(f"{result['samples_per_s']:.0f} samples/s afterwards")
    print(f"training: {result['step_s']:.3f} s per step, {result['data_s']:.4f} s of it waiting for the batch ", end="")
    print(f"({result['share_of_step']:.1%}; {result['first_epoch_data_s']:.3f} s in the first epoch)")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {chosen.out}")


if __name__ == "__main__":
    main()
