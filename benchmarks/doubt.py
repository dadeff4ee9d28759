"""Do scores tell which images to doubt? Accuracy by the median expected IoU, and how often the diameter is right.

    python benchmarks/doubt.py DATASET [--model nuclei] [--split val] [--least 0.6]

For images that the model was not trained on, by the first part of their names (the name of a merged dataset).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import cellwright as cw
from cellwright.prediction.doubt import FEW, LEAST_OBJECT, LEAST_OF_FEW, LEAST_SCORE
from tables import markdown

CLOSE = 1.25  # an estimated diameter within this factor of the true median is right


def accuracy(truth: cw.Instances, predicted: cw.Instances) -> float:
    """accuracy@0.5: hits over hits, misses and false alarms; objects do not overlap, so that no two match one."""
    n_hits = int((truth.masks.iou(predicted.masks)[2] > 0.5).sum())
    return n_hits / max(len(truth) + len(predicted) - n_hits, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--split", default="val")
    parser.add_argument("--least", type=float, default=LEAST_SCORE)
    args = parser.parse_args()
    model, groups, values = cw.load_model(args.model), [], []
    for sample in cw.read_dataset(args.dataset):
        truth = sample.load()
        if sample.split != args.split or not len(truth) or sample.image_path is None:
            continue
        prediction = model.predictions(sample.image_path)
        scores = prediction.instances.scores
        scores = scores[scores >= LEAST_OBJECT]
        median = float(np.median(scores)) if len(scores) else 1.0
        if len(scores) < FEW:
            median += LEAST_SCORE - LEAST_OF_FEW  # as if the limit were the same
        true_px = float(np.median(2 * np.sqrt(truth.masks.areas / np.pi)))
        px = None if prediction.diameter is None else prediction.diameter.px
        is_close = px is not None and 1 / CLOSE < px / true_px < CLOSE
        groups.append(sample.id.split("/")[0] if "/" in sample.id else "")
        values.append((median, accuracy(truth, prediction.instances), float(is_close)))
    table, names = np.array(values), np.array(groups)
    print(f"correlation of median score and accuracy@0.5: {np.corrcoef(table[:, 0], table[:, 1])[0, 1]:.2f}")
    rows = []
    for name in [*sorted(set(groups)), None]:
        of_group = table if name is None else table[names == name]
        flagged = of_group[:, 0] < args.least
        accuracies = [
            f"{part.mean():.3f}" if len(part) else "" for part in (of_group[flagged, 1], of_group[~flagged, 1])
        ]
        rows.append(
            {"images": "all" if name is None else name, "number": len(of_group), "doubted": int(flagged.sum())}
            | {"accuracy@0.5 of these": accuracies[0], "of the others": accuracies[1]}
            | {f"diameter within {CLOSE}": f"{of_group[:, 2].mean():.2f}"}
        )
    print(markdown(rows))


if __name__ == "__main__":
    main()
