"""Results of `stardist.matching` and `cellpose.metrics` for seeded label maps, which the tests compare with.

Both need an older NumPy than cellwright, so this script runs in a separate environment and does not import cellwright:

    python -m venv references
    references/bin/pip install "stardist==0.9.1" "cellpose==3.1.1.2" "numpy<2" "setuptools<80"
    references/bin/python tests/evaluation/make_references.py tests/evaluation/references.json

`test_make_references.py` runs it as a slow test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = range(12)
THRESHOLDS = (0.1, 0.3, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def drawn_label_maps(seed: int, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth and prediction, label maps (size, size) int32 without gaps: discs, some moved, merged, lost or cut.

    Random numbers come from the PCG64 stream of NumPy, which is the same in every version.
    """
    rng = np.random.default_rng([20, seed])
    y, x = np.ogrid[:size, :size]
    truth, predicted = np.zeros((size, size), np.int32), np.zeros((size, size), np.int32)
    n = int(rng.integers(8, 40))
    for k in range(n):
        centre, radius = rng.random(2) * size, 3 + 6 * rng.random()
        moved, grown, fate = centre + (rng.random(2) - 0.5) * radius, radius * (0.75 + 0.5 * rng.random()), rng.random()
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
        if fate < 0.95:
            truth[disc & (truth == 0)] = k + 1
        shape = (y - moved[0]) ** 2 + (x - moved[1]) ** 2 <= grown**2
        if fate > 0.85:
            continue
        if fate > 0.7:
            predicted[shape & (predicted == 0) & (x >= moved[1])] = n + k + 1
        predicted[shape & (predicted == 0)] = k if fate < 0.1 and k else k + 1
    if seed == SEEDS[-1]:
        predicted[:] = 0
    return _without_gaps(truth), _without_gaps(predicted)


def _without_gaps(labels: np.ndarray) -> np.ndarray:
    # Cellpose takes the largest label as the number of objects, including gaps.
    return (
        np.unique(np.append(0, labels), return_inverse=True)[1].reshape(-1)[1:].reshape(labels.shape).astype(np.int32)
    )


def references() -> dict[str, Any]:
    """The results of both tools for every seed."""
    import cellpose
    import stardist
    from cellpose.metrics import aggregated_jaccard_index, average_precision
    from stardist.matching import matching

    cases = []
    for seed in SEEDS:
        truth, predicted = drawn_label_maps(seed)
        results = matching(truth, predicted, thresh=THRESHOLDS)
        ap = average_precision([truth], [predicted], threshold=list(THRESHOLDS))[0][0]
        cases.append(
            {
                "seed": seed,
                "stardist": {str(r.thresh): {name: _plain(getattr(r, name)) for name in METRICS} for r in results},
                "cellpose": {
                    "thresholds": list(THRESHOLDS),
                    "ap": [_plain(value) for value in ap],
                    "aji": _plain(aggregated_jaccard_index([truth], [predicted])[0]),
                },
            }
        )
    versions = {"stardist": stardist.__version__, "cellpose": _version(cellpose), "numpy": np.__version__}
    return {"made_with": versions, "cases": cases}


METRICS = (
    "tp",
    "fp",
    "fn",
    "precision",
    "recall",
    "accuracy",
    "f1",
    "panoptic_quality",
    "mean_matched_score",
    "mean_true_score",
)


def _plain(value: Any) -> float | int:
    return int(value) if isinstance(value, int | np.integer) else float(value)


def _version(package: Any) -> str:
    from importlib.metadata import version

    return version(package.__name__)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(references(), indent=1) + "\n")
