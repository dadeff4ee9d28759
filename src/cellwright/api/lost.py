"""Where a model's lost recall went: its candidates near the objects that it did not find."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cellwright.api.models import Model
from cellwright.api.sides import ObjectsOf, Sides
from cellwright.core.dataset import Sample
from cellwright.core.instances import Instances

if TYPE_CHECKING:
    from cellwright.core.image import Image
    from cellwright.prediction.predictor import NetworkSegmenter

COLUMN = "dropped_by"
WRITTEN = "lost recall is told from what was predicted: what suppression or a cap took away counts as never proposed"


def candidates_of(sides: Sides, model: Model | None = None) -> tuple[Sequence[Instances], tuple[str, ...]]:
    """The candidates of every image, computed when indexed, and what to know about them.

    A model that explains itself, and sees images as they are, is asked: images without a lost object are not looked at
    a second time, and only candidates that overlap a lost object are given, since no other can be the reason of its
    loss. Else they are the predictions, those below their score threshold included.
    """
    from cellwright.data.views import PLAIN
    from cellwright.models.contract import Explains
    from cellwright.prediction.predictor import NetworkSegmenter

    of_image, notes = partial(_predicted, sides), (WRITTEN,)
    if model is not None:
        finder = model.predictor.segmenter
        if isinstance(finder, NetworkSegmenter) and finder.views == PLAIN and isinstance(finder.network, Explains):
            of_image, notes = partial(_asked, sides, model, finder), ()
    samples = [dataclasses.replace(one, load=partial(of_image, k)) for k, one in enumerate(sides.predicted)]
    return ObjectsOf(samples), notes


def _predicted(sides: Sides, index: int) -> Instances:
    """Everything that was predicted, by whether it reaches the threshold."""
    from cellwright.evaluation.match import reaches

    found = sides.predicted[index].read_instances()
    kept = np.ones(len(found), bool)
    if found.scores is not None:
        kept = reaches(found.scores, found.class_ids, sides.score_threshold)
    return dataclasses.replace(found, columns={COLUMN: np.where(kept, "kept", "threshold")})


def _asked(sides: Sides, model: Model, segmenter: NetworkSegmenter, index: int) -> Instances:
    """What the network says about its candidates near the objects of an image that it lost."""
    truth = sides.truth[index].read_instances()
    lost = _lost(truth, sides.predicted[index].read_instances(), sides)
    if not len(lost):
        none = Instances.empty(truth.image_hw, scored=True)
        return dataclasses.replace(none, columns={COLUMN: np.zeros(0, "U9")})
    found = segmenter.candidates(_image(sides.truth[index]), lost.masks.boxes)
    assert found is not None, "candidates_of has asked"
    return _with_options(found, model)


def _lost(truth: Instances, predicted: Instances, sides: Sides) -> Instances:
    """The objects that count and are not matched at IoU .5, as the judge matches them."""
    from cellwright.evaluation.lost_recall import FOUND
    from cellwright.evaluation.match import PairOptions, one_to_one, pair_image

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
    from cellwright.data.images.read import read_image

    assert sample.image_path is not None, "it was predicted on"
    return read_image(sample.image_path)
