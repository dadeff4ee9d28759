"""Where a model's lost recall went: its candidates near the objects that it did not find."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from cellwright.api.model import Model
from cellwright.api.sides import Sides
from cellwright.core.dataset import Sample
from cellwright.core.instances import Instances

if TYPE_CHECKING:
    from cellwright.core.image import Image
    from cellwright.predict.predictor import NetworkSegmenter

COLUMN = "dropped_by"


def candidates_of(model: Model, sides: Sides) -> Sequence[Instances] | None:
    """The candidates of every image, computed when indexed; None for a model that cannot tell.

    Images without a lost object are not looked at a second time, and only candidates that overlap a lost object are
    given: no other can be the reason of its loss.
    """
    from cellwright.models.contract import Explains
    from cellwright.predict.predictor import NetworkSegmenter

    segmenter = model.predictor.segmenter
    if not isinstance(segmenter, NetworkSegmenter) or not isinstance(segmenter.network, Explains):
        return None
    return _Candidates(model, segmenter, sides)


class _Candidates(Sequence[Instances]):
    def __init__(self, model: Model, segmenter: NetworkSegmenter, sides: Sides) -> None:
        self._model, self._segmenter, self._sides = model, segmenter, sides

    def __len__(self) -> int:
        return len(self._sides.truth)

    @overload
    def __getitem__(self, index: int) -> Instances: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Instances]: ...
    def __getitem__(self, index: int | slice) -> Instances | Sequence[Instances]:
        return [self._of(k) for k in range(len(self))[index]] if isinstance(index, slice) else self._of(index)

    def _of(self, index: int) -> Instances:
        truth = self._sides.truth[index].read_instances()
        lost = _lost(truth, self._sides.predicted[index].read_instances(), self._sides)
        none = Instances.empty(truth.image_hw, scored=True)
        if not len(lost):
            return dataclasses.replace(none, columns={COLUMN: np.zeros(0, "U9")})
        found = self._segmenter.candidates(_image(self._sides.truth[index]), lost.masks.boxes)
        assert found is not None, "candidates_of has asked"
        return _with_options(found, self._model)


def _lost(truth: Instances, predicted: Instances, sides: Sides) -> Instances:
    """The objects that count and are not matched at IoU .5, as the judge matches them."""
    from cellwright.evaluate.lost_recall import FOUND
    from cellwright.evaluate.match import PairOptions, one_to_one, pair_image

    pairs = pair_image(truth, predicted, "", PairOptions()).above(sides.score_threshold)
    keep, _ = pairs.counted()
    counted = truth[keep]
    lost = np.ones(len(counted), bool)
    lost[one_to_one(pairs.judged(), FOUND).truth] = False
    return counted[lost]


def _with_options(found: Instances, model: Model) -> Instances:
    """Candidates with the fate that the model's options gave them.

    A score or an area below the threshold names the cause first: suppression and cap go by score within a class, so
    that they treat what is above the threshold as if the rest had never been there.
    """
    options = model.options
    raw = dataclasses.replace(found, ids=np.arange(1, len(found) + 1))
    shown = options.calibrated(raw)
    kept = options.good(shown) & options.large(shown)
    fate = np.where(kept, shown.columns[COLUMN], "threshold")
    return dataclasses.replace(shown, columns={COLUMN: fate})


def _image(sample: Sample) -> Image:
    from cellwright.data.images import read_image

    assert sample.image_path is not None, "it was predicted on"
    return read_image(sample.image_path)
