"""The last points: one model, views, two families fused, tuned thresholds, each with its cost, in one table.

    python benchmarks/last_points.py --data work/vrdl --model runs/flow --other runs/quick [--views flips]

Every image of the split "val" is judged by what was chosen on the other images of that split: for the tuned rows each
model is tuned as often as there are images, each time without the one that it is then judged on. The score of a tuned
model is the IoU to expect, so that two families may be compared. Seconds an image: wall clock of predicting alone, one
thread, each row from scratch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import cellwright as cw
from cellwright.api.fused_model import fused_model
from cellwright.api.lost import candidates_of
from cellwright.api.model import Model
from cellwright.api.sides import Sides
from cellwright.api.tuning import TunePlan
from cellwright.api.tuning import run_plan as tune
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.data.formats import coco
from cellwright.data.formats.contract import WriteOptions
from cellwright.evaluate.lost_recall import lost_recall
from cellwright.evaluate.match import PairOptions, pair_image
from cellwright.predict.fusion import FusionOptions
from cellwright.predict.options import Outcome
from cellwright.predict.views import parse_views
from tables import markdown

RANKED = ("AP50@100", "AP@100", "AP@all", "score_iou_spearman")
KEPT = ("accuracy@0.5", "aji", "pq")


def without(data: Dataset, sample: Sample, folder: Path) -> Path:
    """The dataset without an image, on disk."""
    path = folder / sample.id
    rest = data.with_samples([one for one in data if one.id != sample.id])
    path.mkdir(parents=True, exist_ok=True)
    coco.write(replace(rest, root=path), path / "dataset.json", WriteOptions())
    return path


def tuned(run: Path, views: str | None, data: Path, folder: Path) -> Path:
    """``run`` tuned on a dataset's split "val"; what is there already is taken."""
    name = run.name + ("" if views is None else "_views")
    if not (folder / name / "model.json").is_file():
        tune(TunePlan(run, data, folder / name, views=views))
    return folder / name


def lost(model: Model, sample: Sample, outcome: Outcome) -> Counter[str]:
    """Objects of an image that were lost, by cause."""
    threshold, names = model.options.score_threshold, model.class_names
    found = replace(sample, load=Loaded(outcome.candidates))
    candidates, _ = candidates_of(Sides("", (found,), (sample,), names, threshold), model)
    truth = sample.read_instances()
    pairs = pair_image(truth, outcome.candidates, sample.id, PairOptions()).above(threshold)
    return Counter(lost_recall(truth, candidates[0], pairs))


def row(name: str, model_of: Callable[[Sample], Model], samples: list[Sample]) -> dict[str, object]:
    """A row of the table; ``model_of`` gives the model for each image."""
    outcomes, seconds, causes = [], 0.0, Counter()
    for sample in samples:
        assert sample.image_path is not None
        model, image = model_of(sample), cw.read_image(sample.image_path)
        predictor = replace(model.predictor, options=model.options)
        start = time.perf_counter()
        outcomes.append(predictor.outcomes([image])[0])
        seconds += time.perf_counter() - start
        causes += lost(model, sample, outcomes[-1])
    truth = [sample.read_instances() for sample in samples]
    ranked = cw.evaluate([one.candidates for one in outcomes], truth, metrics=["coco_ap", "ranking"])
    kept = cw.evaluate([one.instances for one in outcomes], truth, metrics=["accuracy", "aji", "pq"])
    n = sum(map(len, truth))
    shares = {cause.replace("_", " "): round(causes[cause] / n, 3) for cause in ("never_proposed", "threshold", "nms")}
    taken = round((causes["cap"] + causes["taken"]) / n, 3)
    figures = {
        metric: round(float(report[metric]), 4) for report, of in ((ranked, RANKED), (kept, KEPT)) for metric in of
    }
    return {"result": name, **figures, **shares, "cap or taken": taken, "s": round(seconds / len(samples), 2)}


def rows(args: argparse.Namespace, data: Dataset, samples: list[Sample]):
    """The rows, one after the other."""
    runs = {"model": args.model, "other": args.other}
    folds = {sample.id: without(data, sample, args.out / "without") for sample in samples}
    wbf = FusionOptions("wbf")

    def plain(which: str, views: str | None) -> Model:
        model = cw.load_model(runs[which])
        return model if views is None else replace(model, predictor=model.predictor.with_views(parse_views(views)))

    def tuned_of(sample: Sample, which: str, views: str | None) -> Model:
        return cw.load_model(tuned(runs[which], views, folds[sample.id], args.out / "tuned" / sample.id))

    a, b, views = args.model.name, args.other.name, args.views
    first, second = plain("model", None), plain("other", None)
    yield row(a, lambda _: first, samples)
    yield row(b, lambda _: second, samples)
    first, second = plain("model", views), plain("other", views)
    yield row(f"{a}, views", lambda _: first, samples)
    yield row(f"{b}, views", lambda _: second, samples)
    both = fused_model([first, second], wbf)
    yield row(f"{a} + {b}, views, wbf", lambda _: both, samples)
    yield row(f"{a}, tuned", lambda one: tuned_of(one, "model", None), samples)
    yield row(f"{b}, tuned", lambda one: tuned_of(one, "other", None), samples)
    yield row(f"{a}, views, tuned", lambda one: tuned_of(one, "model", views), samples)
    yield row(f"{b}, views, tuned", lambda one: tuned_of(one, "other", views), samples)
    yield row(
        f"{a} + {b}, views, wbf, tuned",
        lambda one: fused_model([tuned_of(one, "model", views), tuned_of(one, "other", views)], wbf),
        samples,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset with a split val of two images or more")
    parser.add_argument("--model", type=Path, required=True, help="a run or a model folder")
    parser.add_argument("--other", type=Path, required=True, help="one of another family")
    parser.add_argument("--views", default="flips")
    parser.add_argument("--out", type=Path, default=Path("work/last_points"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = cw.read_dataset(args.data).with_split("val")
    done: list[dict[str, object]] = []
    for one in rows(args, data, list(data)):
        done.append(one)
        print(json.dumps(one), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(done, indent=1) + "\n")
    print(markdown(done))


if __name__ == "__main__":
    main()
