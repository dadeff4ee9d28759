"""The recipe that `cellwright plan` writes, the shipped recipe and default settings, at equal CPU time on one dataset.

    python benchmarks/plan.py --data work/vrdl --recipe vrdl_nuclei/flow [--init none] [--core-minutes 4]
        [--seeds 0,1,2] [--out work/plan]

Default settings are those of a U-Net of flows of which a recipe says nothing. Each arm has as many steps as fit into
the core-minutes: short trials say what a step takes, CPU time of one thread. Warm-up is 5 % of the steps. The model
of the last step is evaluated on the split "val", with the thresholds of its recipe. ``--init none`` is for data on
which the bundled model was trained. A finished part is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tables import markdown

METRICS = ("accuracy@0.5", "accuracy@0.75", "aji", "pq")
DEFAULT = "name: default\nmodel: {kind: unet, target: {kind: flow}}\n"
TRIALS = (4, 4, 20)  # the first one fills caches


def cellwright(*words: object) -> float:
    """Run a command with one thread and return its CPU seconds."""
    command = [sys.executable, "-m", "cellwright", *map(str, words)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(recipe: str, args: argparse.Namespace, out: Path, n_steps: int, seed: int) -> float:
    """Train for a number of steps and return the CPU seconds, the evaluation at the end included."""
    facts = out.with_suffix(".json")
    if not facts.is_file():
        length = (f"train.length={n_steps} steps", "train.warmup=5%", f"train.evaluate_every={n_steps} steps")
        sets = [word for change in (*length, f"train.seed={seed}") for word in ("--set", change)]
        seconds = cellwright("train", recipe, "--data", args.data, *sets, "--out", out)
        facts.write_text(json.dumps({"steps": n_steps, "cpu_seconds": seconds}))
    return json.loads(facts.read_text())["cpu_seconds"]


def trial(recipe: str, data: Path, n_steps: int) -> float:
    """CPU seconds of a training without validation images, in this process."""
    import torch

    import cellwright as cw

    torch.set_num_threads(1)
    dataset = cw.read_dataset(data)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        length = (f"train.length={n_steps} steps", "train.warmup=null", f"train.evaluate_every={n_steps} steps")
        cw.train(
            recipe, dataset.with_samples(dataset.with_split("train").samples), out=Path(folder) / "run", set=length
        )
    return time.process_time() - start


def n_steps_of(recipe: str, args: argparse.Namespace, folder: Path) -> int:
    """How many steps fit into the core-minutes."""
    path = folder / "step.json"
    if not path.is_file():
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            _, short, long = pool.starmap(trial, [(recipe, args.data, n) for n in TRIALS], chunksize=1)
        path.write_text(json.dumps((long - short) / (TRIALS[2] - TRIALS[1])))
    return round(60 * args.core_minutes / json.loads(path.read_text()))


def scores(run: Path, args: argparse.Namespace) -> dict[str, float]:
    """The metrics of a trained model on val."""
    out = run.with_name(run.name + "_evaluated")
    if not out.is_dir():
        cellwright("evaluate", run, "--data", args.data, "--split", "val", "--out", out)
    values = json.loads((out / "metrics.json").read_text())["values"]
    return {name: values[name] for name in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset with the splits train and val")
    parser.add_argument("--recipe", required=True, help="the shipped recipe for such data")
    parser.add_argument("--init", help="as for `plan`")
    parser.add_argument("--core-minutes", type=float, default=4)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("work/plan"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    planned, default = args.out / "planned.yaml", args.out / "default.yaml"
    if not planned.is_file():
        cellwright("plan", args.data, *(() if args.init is None else ("--init", args.init)), "--out", planned)
    default.write_text(DEFAULT)
    arms, rows = {"plan": str(planned), args.recipe: args.recipe, "default settings": str(default)}, []
    folders = {name: args.out / name.replace("/", "_").replace(" ", "_") for name in arms}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    lengths = {name: n_steps_of(recipe, args, folders[name]) for name, recipe in arms.items()}
    for name, recipe in arms.items():
        n_steps, folder, found = lengths[name], folders[name], []
        for seed in map(int, args.seeds.split(",")):
            run = folder / f"seed_{seed}"
            seconds = train(recipe, args, run, n_steps, seed)
            found.append(scores(run, args))
            print(json.dumps({"recipe": name, "seed": seed, "steps": n_steps, "cpu_seconds": seconds, **found[-1]}))
        means = {metric: round(float(np.mean([one[metric] for one in found])), 3) for metric in METRICS}
        spread = round(float(np.ptp([one["accuracy@0.5"] for one in found])), 3)
        rows.append({"recipe": name, "steps": n_steps, **means, "range of accuracy@0.5": spread})
    print(markdown(rows))


if __name__ == "__main__":
    main()
