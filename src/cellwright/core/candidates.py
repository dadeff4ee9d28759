"""What a detector did with each of its candidates: a text column of `Instances` that explains lost recall."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.instances import Instances

DROPPED_BY = "dropped_by"
# In the info of predictions: False if they hold only the objects that reach the score threshold.
CANDIDATES = "candidates"
# The steps of a detector in order; each candidate stores the name of the step that removed it, or "kept".
STEPS = ("threshold", "nms", "cap", "kept")


def missing_candidates(info: Mapping[str, Any]) -> str | None:
    """What to say of predictions without candidates where uncertain objects count; None if they have them."""
    if info.get(CANDIDATES, True):
        return None
    return "the predictions hold no objects below their score threshold, which average precision needs too"


def with_steps(candidates: Instances, steps: np.ndarray) -> Instances:
    """The candidates with their steps, (N,) str of `STEPS`, as the column ``dropped_by``."""
    return dataclasses.replace(candidates, columns={DROPPED_BY: steps})


def no_candidates(image_hw: tuple[int, int]) -> Instances:
    """An image without candidates."""
    return with_steps(Instances.empty(image_hw, scored=True), np.zeros(0, "U9"))


def step_indices(candidates: Instances, image_id: str) -> np.ndarray:
    """Index (N,) int64 into `STEPS` for each candidate. `InputError` if the column is missing or has other values."""
    where = f"candidates of image {image_id}"
    if DROPPED_BY not in candidates.columns:
        raise InputError(
            f"candidates lack the column {DROPPED_BY!r}", where=where, got=sorted(candidates.columns), expected=STEPS
        )
    names = np.asarray(candidates.columns[DROPPED_BY]).astype(str)
    unknown = sorted(set(names.tolist()) - set(STEPS))
    if unknown:
        raise InputError(f"unknown value in column {DROPPED_BY!r}", where=where, got=unknown, expected=STEPS)
    return np.array([STEPS.index(name) for name in names], np.int64)
