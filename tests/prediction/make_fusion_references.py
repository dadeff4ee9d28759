"""Results of `ensemble-boxes` for random boxes, as references for the tests.

It is no dependency of cellwright, so this runs in an environment of its own and imports nothing of ours:

    python -m venv references
    references/bin/pip install "ensemble-boxes==1.0.9"
    references/bin/python tests/predict/make_fusion_references.py tests/predict/fusion_references.json

`test_make_fusion_references.py` does that when asked for slow tests.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DECIMALS = 10
THRESHOLD, SIGMA = 0.3, 0.5  # of soft suppression


@dataclass(frozen=True)
class Case:
    """The number of members and classes, weights, IoU and score threshold."""

    seed: int
    n_members: int
    n_classes: int
    weights: tuple[float, ...] | None
    iou: float
    score: float


CASES = (
    Case(0, 2, 1, None, 0.5, 0.05),
    Case(1, 3, 2, (1.0, 2.0, 0.5), 0.5, 0.05),
    Case(2, 4, 4, None, 0.55, 0.3),
    Case(3, 2, 1, (1.0, 10.0), 0.3, 0.0),  # a member with a large weight and several boxes of an object: scores above 1
    Case(4, 1, 2, None, 0.4, 0.1),
    Case(5, 3, 1, (3.0, 1.0, 2.0), 0.7, 0.05),
)


def drawn_boxes(case: Case) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes (N, 4) in [0, 1], scores (N,) and classes (N,) of every member: the same objects with different errors,
    some of them twice, and random boxes. No two scores are equal, and no box leaves the unit square."""
    rng = np.random.default_rng([21, case.seed])
    places, sides = 0.1 + 0.8 * rng.random((25, 2)), 0.03 + 0.05 * rng.random((25, 2))
    kinds = rng.integers(0, case.n_classes, 25)
    members = []
    for _ in range(case.n_members):
        detected = np.flatnonzero(rng.random(25) < 0.8)
        detected = np.concatenate([detected, detected[rng.random(len(detected)) < 0.3]])
        centres = np.concatenate(
            [places[detected] + 0.6 * sides[detected] * (rng.random((len(detected), 2)) - 0.5), rng.random((6, 2))]
        )
        extents = np.concatenate(
            [sides[detected] * (0.85 + 0.3 * rng.random((len(detected), 2))), 0.02 + 0.1 * rng.random((6, 2))]
        )
        boxes = np.concatenate([centres - extents / 2, centres + extents / 2], axis=1).clip(0, 1)
        classes = np.concatenate([kinds[detected], rng.integers(0, case.n_classes, 6)])
        members.append((boxes, 0.02 + 0.98 * rng.random(len(boxes)), classes))
    return members


def references() -> dict[str, Any]:
    """The results for every case; for suppression the unchanged scores of the boxes that are kept, which identify
    them."""
    from importlib.metadata import version

    from ensemble_boxes import nms, soft_nms, weighted_boxes_fusion

    answers = []
    for case in CASES:
        members = drawn_boxes(case)
        columns = [[member[k] for member in members] for k in range(3)]
        fused = weighted_boxes_fusion(*columns, weights=case.weights, iou_thr=case.iou, skip_box_thr=case.score)
        boxes, scores, classes = (np.asarray(values, np.float64).round(DECIMALS) for values in fused)
        suppressed = {
            "nms": nms(*_copies(columns), iou_thr=case.iou),
            "soft_nms_linear": soft_nms(*_copies(columns), method=1, iou_thr=case.iou, thresh=THRESHOLD),
            "soft_nms_gaussian": soft_nms(*_copies(columns), method=2, sigma=SIGMA, thresh=THRESHOLD),
        }
        answers.append(
            {
                "seed": case.seed,
                "wbf": {"boxes": boxes.tolist(), "scores": scores.tolist(), "classes": classes.astype(int).tolist()},
                **{name: sorted(kept[1].round(DECIMALS).tolist()) for name, kept in suppressed.items()},
            }
        )
    return {"made_with": {"ensemble-boxes": version("ensemble-boxes"), "numpy": np.__version__}, "cases": answers}


def _copies(columns: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    return [[values.copy() for values in column] for column in columns]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(references()) + "\n")
