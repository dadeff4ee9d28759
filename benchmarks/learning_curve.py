"""How many annotated images are needed: models of each family, trained for the same time on 1, 4 and 20 images.

    python benchmarks/learning_curve.py --data work/vrdl [--minutes 10] [--sizes 1,4,20] [--out work/learning_curve]

Each model is trained from scratch with its own recipe; only the length is changed, so that the training takes the
given time (some steps are timed first), and warm-up is 5 % of it. Each set of images contains the smaller ones. All
models are evaluated on the split "val", which is not used for any choice: the model of the last step is evaluated. An
interrupted command resumes; ``--only RECIPE:SIZE`` does one part of the work.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import cellwright as cw
from cellwright.api.evaluate import EvaluatePlan
from cellwright.api.evaluate import run as evaluate
from cellwright.core.dataset import Dataset
from tables import markdown

RECIPES = "vrdl_nuclei/quick,vrdl_nuclei/flow,vrdl_nuclei/unet_watershed"
METRICS = ("AP50@100", "AP@100", "AP@all", "accuracy@0.5", "aji", "pq", "score_iou_spearman")
TIMED_STEPS = 16


def subset(data: Dataset, n_images: int) -> Dataset:
    """``n_images`` of the training images and all validation images."""
    training = [sample for sample in data if sample.split == "train"]
    if n_images > len(training):
        raise SystemExit(f"--sizes asks for {n_images} images, but there are only {len(training)} training images")
    order = np.random.default_rng(0).permutation(len(training))[:n_images]
    return data.with_samples([training[k] for k in order] + [sample for sample in data if sample.split == "val"])


def step_seconds(folder: Path) -> list[float]:
    """The time of each step in the log of a run, seconds."""
    with (folder / "log.csv").open() as log:
        return [float(row["step_s"]) for row in csv.DictReader(log) if row["step_s"]]


def train_and_evaluate(recipe: str, n_images: int, args: argparse.Namespace) -> dict[str, float | str]:
    """One row: ``recipe`` trained on ``n_images``, evaluated on all validation images."""
    data, folder = cw.read_dataset(args.data), args.out / recipe.replace("/", "_") / f"{n_images}_images"
    chosen = subset(data, n_images)
    trial, run, evaluated = folder / "timing", folder / "run", folder / "evaluation"
    if not (trial / "DONE").is_file():
        short = (f"train.length={TIMED_STEPS} steps", *last_step_only(TIMED_STEPS))
        training_only = chosen.with_samples([sample for sample in chosen if sample.split == "train"])
        cw.train(recipe, training_only, out=trial, set=short)
    # The first steps are slower, because they decode images and load libraries.
    pace = statistics.median(step_seconds(trial)[TIMED_STEPS // 2 :])
    n_steps = round(60 * args.minutes / pace)
    if not (run / "DONE").is_file():
        cw.train(recipe, chosen, out=run, set=(f"train.length={n_steps} steps", *last_step_only(n_steps)))
    plan = EvaluatePlan((run,), data=args.data, out=evaluated, split="val", pictures=0, overwrite=True)
    result = evaluate(plan)
    assert result is not None
    values = {name: round(float(result.evaluations[0].report[name]), 4) for name in METRICS}
    minutes = round(sum(step_seconds(run)) / 60, 2)
    return {"recipe": recipe, "images": n_images, "steps": n_steps, "minutes": minutes, **values}


def last_step_only(n_steps: int) -> tuple[str, str]:
    """Recipe changes so that a run of ``n_steps`` is evaluated only at its end."""
    return "train.warmup=5%", f"train.evaluate_every={n_steps} steps"


def draw(rows: Sequence[dict], path: Path) -> None:
    """Plot AP@all and AJI over the number of images, one line per recipe."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    both = figure.subplots(1, 2)
    sizes = sorted({row["images"] for row in rows})
    for axes, metric in zip(both, ("AP@all", "aji"), strict=True):
        for style, recipe in zip(
            ("o-", "s--", "^:", "d-."), dict.fromkeys(row["recipe"] for row in rows), strict=False
        ):
            points = [(row["images"], row[metric]) for row in rows if row["recipe"] == recipe]
            axes.plot(*zip(*points, strict=True), style, label=recipe)
        axes.set(xlabel="training images", ylabel=metric, xscale="log", ylim=(0, None))
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    both[-1].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset with the splits train and val")
    parser.add_argument("--minutes", type=float, default=10, help="training time of each model, wall clock")
    parser.add_argument("--sizes", default="1,4,20", help="numbers of training images")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--only", action="append", help="RECIPE:SIZE; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("work/learning_curve"))
    args = parser.parse_args()
    cases = [(recipe, int(size)) for recipe in args.recipes.split(",") for size in args.sizes.split(",")]
    only = [(case.rsplit(":", 1)[0], int(case.rsplit(":", 1)[1])) for case in args.only or []]
    rows = []
    for recipe, size in only or cases:
        print(f"{recipe}, {size} images: {args.minutes:g} minutes", flush=True)
        rows.append(train_and_evaluate(recipe, size, args))
        print(json.dumps(rows[-1]), flush=True)
    if not only:
        (args.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        draw(rows, args.out / "learning_curve.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
