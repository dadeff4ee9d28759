"""Which folders hold results of cellwright, recognised by their files, so that none is read as data by accident."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

JOB_FILE, REPORT = "job.json", "report.html"
TILE_JOB = "a tile job"
# Files of a finished job, one of which is there even if the user removed others to save space.
_OF_JOBS = frozenset({"tiles", "labels.tif", "labels.zarr", "objects.geojson.gz", ".cellwright"})
# Each kind, the names that all are there, and those of which at least one is.
_KINDS: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    (TILE_JOB, frozenset({JOB_FILE}), _OF_JOBS),
    ("a prediction folder", frozenset({"predictions.json"}), frozenset()),
    ("an evaluation", frozenset({"report.md"}), frozenset({"metrics.json", "comparison.csv"})),
    ("a comparison of runs", frozenset({"compare.md", "compare.png"}), frozenset()),
    ("a run", frozenset({"recipe.yaml"}), frozenset({"log.csv", "environment.json"})),
    ("a model folder", frozenset({"model.json", "weights.safetensors"}), frozenset()),
)
_DATASET = "dataset.json"
RESULT_NAMES = frozenset({_DATASET}.union(*(every | some for _, every, some in _KINDS)))


def kind_of_result(folder: Path, names: Collection[str] | None = None) -> str | None:
    """``"a tile job"``, ``"an evaluation"`` and so on; None for any other folder, and for datasets, which are inputs.

    names: of the entries of the folder, if they are known.
    """
    if names is None:
        names = [name for name in RESULT_NAMES if (folder / name).exists()]
    present = RESULT_NAMES.intersection(names)
    if _DATASET in present:
        return None
    kinds = (kind for kind, every, some in _KINDS if every <= present and (not some or some & present))
    return next(kinds, None)


def is_job_folder(folder: Path) -> bool:
    """Whether a folder is that of an image that was predicted tile by tile, finished or not."""
    return kind_of_result(folder) == TILE_JOB
