"""Test-time augmentation, ensembles and tuned thresholds: the accuracy and cost of each, in one table.

    python benchmarks/ensembles.py --data work/vrdl --model runs/flow --other runs/quick [--views flips]

Evaluated on the images of the split "val"; the tuned rows use the thresholds and the calibration that `cellwright tune`
finds on the split "train", so nothing is chosen on the reported images. The score of a tuned model is its expected IoU,
which makes the scores of two model families comparable. Seconds per image are the wall-clock time of the prediction
alone, with one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import cellwright as cw
from cellwright.api.models import Model, ensemble
from cellwright.api.tune import TunePlan
from cellwright.api.tune import run as tune
from cellwright.core.dataset import Loaded, Sample
from cellwright.evaluation.lost_recall import CAUSES, lost_recall
from cellwright.evaluation.matching import PairOptions, pair_image
from cellwright.evaluation.pairing import PairedImages
from cellwright.prediction.evaluate import candidates_of
from cellwright.prediction.fusion import FusionOptions
from tables import markdown

RANKED = ("AP50@100", "AP@100", "AP@all", "score_iou_spearman")
KEPT = ("accuracy@0.5", "aji", "pq")


def tuned(run: Path, args: argparse.Namespace, views: str | None) -> Model:
    """``run`` tuned on the training images with ``views``; an existing result is used."""
    folder = args.out / (f"{run.name}_tuned" + ("" if views is None else "_in_views"))
    if not (folder / "model.json").is_file():
        tune(TunePlan(run, data=args.data, out=folder, split="train", views=views))
    return cw.load_model(folder)


def lost(model: Model, sample: Sample, prediction: cw.Prediction) -> Counter[str]:
    """The number of missed objects of an image by cause."""
    threshold, names = model.options.score_threshold, model.class_names
    predicted = replace(sample, load=Loaded(prediction.candidates))
    candidates, _ = candidates_of(PairedImages("", (predicted,), (sample,), names, threshold), model.filtered)
    truth = sample.read_instances()
    pairs = pair_image(truth, prediction.candidates, sample.id, PairOptions()).above(threshold)
    return Counter(lost_recall(truth, candidates[0], pairs))


def row(name: str, model: Model, samples: Sequence[Sample]) -> dict[str, object]:
    """A row of the table."""
    predictions, seconds, causes = [], 0.0, Counter()
    for sample in samples:
        assert sample.image_path is not None
        image = cw.read_image(sample.image_path)
        start = time.perf_counter()
        predictions.append(model.predictions(image))
        seconds += time.perf_counter() - start
        causes += lost(model, sample, predictions[-1])
    truth = [sample.read_instances() for sample in samples]
    ranked = cw.evaluate([prediction.candidates for prediction in predictions], truth, metrics=["coco_ap", "ranking"])
    kept = cw.evaluate([prediction.instances for prediction in predictions], truth, metrics=["accuracy", "aji", "pq"])
    n = sum(map(len, truth))
    figures = {name: round(float(ranked[name]), 4) for name in RANKED}
    figures |= {name: round(float(kept[name]), 4) for name in KEPT}
    figures |= {f"lost: {cause}": round(causes[cause] / n, 3) for cause in CAUSES}
    return {"result": name, **figures, "s": round(seconds / len(samples), 2)}


def rows(args: argparse.Namespace, samples: Sequence[Sample]) -> Iterator[dict[str, object]]:
    """All rows, in order."""
    wbf, a, b = FusionOptions("wbf"), args.model.name, args.other.name

    def plain(run: Path) -> Model:
        return cw.load_model(run)

    def in_views(run: Path) -> Model:
        return cw.load_model(run).with_options(views=args.views)

    first = cw.read_image(samples[0].image_path or "")
    for run in (args.model, args.other):
        plain(run).predict(first)  # so that compilation at the first call is not counted
    for words, make in (("", plain), (", views", in_views)):
        yield row(a + words, make(args.model), samples)
        yield row(b + words, make(args.other), samples)
    both = ensemble([in_views(args.model), in_views(args.other)], wbf)
    yield row(f"{a} + {b}, views, wbf", both, samples)
    for words, views in ((", tuned", None), (", views, tuned", args.views)):
        yield row(a + words, tuned(args.model, args, views), samples)
        yield row(b + words, tuned(args.other, args, views), samples)
    both = ensemble([tuned(args.model, args, args.views), tuned(args.other, args, args.views)], wbf)
    yield row(f"{a} + {b}, views, wbf, tuned", both, samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset with the splits train and val")
    parser.add_argument("--model", type=Path, required=True, help="a run or a model folder")
    parser.add_argument("--other", type=Path, required=True, help="a run or model folder of another model family")
    parser.add_argument("--views", default="flips")
    parser.add_argument("--out", type=Path, default=Path("work/ensembles"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    done: list[dict[str, object]] = []
    for result in rows(args, cw.read_dataset(args.data).with_split("val").samples):
        done.append(result)
        print(json.dumps(result), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(done, indent=1) + "\n")
    print(markdown(done))


if __name__ == "__main__":
    main()
