"""`Instances`: everything that one image holds, checked on construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.masks import Index, MaskSet, SoftMasks
from cellwright.core.masks import concat as concat_masks


@dataclass(frozen=True, eq=False)
class Instances:
    """The objects of one image; N = 0 is always legal.

    image_hw: (H, W).
    ids: (N,) int64, above 0 and unique: object 17 is 17 in every file.
    boxes_xyxy: (N, 4) float32, absolute pixels, half open; a detector's own boxes, else the masks' tight boxes.
    masks: `MaskSet` of N.
    class_ids: (N,) int64, 0..K-1.
    scores: (N,) float32 in [0, 1], or None for ground truth.
    ignore: (N,) bool, crowd regions that the metrics neither reward nor punish.
    soft_masks: probabilities of N, or None. class_probs: (N, K) float32, or None.
    columns: named measurements, each (N,).

    Raises `InputError` naming the field that does not fit.
    """

    image_hw: tuple[int, int]
    ids: np.ndarray
    boxes_xyxy: np.ndarray
    masks: MaskSet
    class_ids: np.ndarray
    scores: np.ndarray | None
    ignore: np.ndarray
    soft_masks: SoftMasks | None = None
    class_probs: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.masks)
        if self.masks.image_hw != tuple(self.image_hw):
            raise InputError("masks of another image size", got=self.masks.image_hw, expected=self.image_hw)
        for name, shape, kinds in _FIELDS:
            value: np.ndarray | None = getattr(self, name)
            if value is None:
                continue
            if value.shape != (n, *shape) or value.dtype.kind not in kinds:
                raise InputError(
                    f"field {name} of Instances does not fit",
                    got=f"shape {value.shape}, {value.dtype}",
                    expected=f"shape {(n, *shape)}, dtype kind {kinds}",
                )
        if n and (self.ids.min() <= 0 or np.unique(self.ids).size != n):
            raise InputError(
                "object ids must be unique and above 0",
                got=f"{n} objects, lowest {self.ids.min()}",
                remedy="number the objects from 1",
            )
        if n and self.class_ids.min() < 0:
            raise InputError(
                "class ids must not be negative", got=int(self.class_ids.min()), remedy="number the classes from 0"
            )
        if self.scores is not None and n and not ((self.scores >= 0) & (self.scores <= 1)).all():
            bad = self.scores[~((self.scores >= 0) & (self.scores <= 1))][0]
            raise InputError("scores must lie in [0, 1]", got=bad, remedy="rescale the scores before giving them")
        sized = [("soft_masks", self.soft_masks), ("class_probs", self.class_probs), *self.columns.items()]
        for name, value in sized:
            if value is not None and len(value) != n:
                raise InputError(f"field {name} of Instances does not fit", got=f"{len(value)} rows", expected=n)

    @staticmethod
    def from_masks(
        masks: MaskSet,
        *,
        class_ids: np.ndarray | None = None,
        scores: np.ndarray | None = None,
        ids: np.ndarray | None = None,
        ignore: np.ndarray | None = None,
        boxes_xyxy: np.ndarray | None = None,
    ) -> Instances:
        """Objects from masks: class 0, ids 1..N, nothing ignored, tight boxes, unless given; scores None is truth."""
        n = len(masks)
        return Instances(
            masks.image_hw,
            np.arange(1, n + 1) if ids is None else np.asarray(ids, np.int64),
            np.asarray(masks.boxes if boxes_xyxy is None else boxes_xyxy, np.float32).reshape(n, 4),
            masks,
            np.zeros(n, np.int64) if class_ids is None else np.asarray(class_ids, np.int64),
            None if scores is None else np.asarray(scores, np.float32),
            np.zeros(n, bool) if ignore is None else np.asarray(ignore, bool),
        )

    @staticmethod
    def empty(image_hw: tuple[int, int], *, scored: bool = False) -> Instances:
        """No objects; ``scored`` makes it an (empty) prediction."""
        return Instances.from_masks(MaskSet.empty(image_hw), scores=np.zeros(0, np.float32) if scored else None)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Index) -> Instances:
        """The objects at an index array, a bool array or a slice."""
        if not isinstance(index, slice):
            index = np.asarray(index, bool if np.asarray(index).dtype == bool else np.int64).reshape(-1)
        rest: dict[str, Any] = {name: getattr(self, name) for name in _PER_OBJECT}
        rest = {name: None if value is None else value[index] for name, value in rest.items()}
        columns = {name: values[index] for name, values in self.columns.items()}
        return Instances(self.image_hw, columns=columns, **rest)

    def by_score(self) -> Instances:
        """Sorted by score, highest first, ties in the order they stand; truth is returned as it is."""
        return self if self.scores is None else self[np.argsort(-self.scores, kind="stable")]


_FIELDS = (
    ("ids", (), "i"),
    ("boxes_xyxy", (4,), "f"),
    ("class_ids", (), "i"),
    ("scores", (), "f"),
    ("ignore", (), "b"),
)
_PER_OBJECT = ("ids", "boxes_xyxy", "masks", "class_ids", "scores", "ignore", "soft_masks", "class_probs")


def concat(parts: Sequence[Instances]) -> Instances:
    """All objects of several parts of one image, in order, with ids 1..N; columns and soft masks are not kept.

    Parts are either all predictions or all truth.
    """
    scores = [part.scores for part in parts if part.scores is not None]
    if scores and len(scores) != len(parts):
        raise InputError(
            "predictions and truth cannot be joined",
            got="some parts without scores",
            remedy="join predictions with predictions, truth with truth",
        )
    return Instances.from_masks(
        concat_masks([part.masks for part in parts]),
        class_ids=np.concatenate([part.class_ids for part in parts]),
        scores=np.concatenate(scores) if scores else None,
        ignore=np.concatenate([part.ignore for part in parts]),
        boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
    )
