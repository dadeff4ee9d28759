"""Ensembles: several predictors whose objects are fused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from cellwright.core.errors import UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.scores import Calibration
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.fusion import FusionOptions
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import Ensemble, FilteredPredictor
from cellwright.prediction.record import Prediction


@dataclass
class Square:
    """A predictor of one square, or of nothing in dark images."""

    x: int
    score: float
    diameter: Diameter | None = None

    @property
    def uses_diameter(self) -> bool:
        return self.diameter is not None

    def predict(self, images):
        return [Prediction.of(self._objects(image), diameter=self.diameter) for image in images]

    def with_diameter(self, px):
        return replace(self, diameter=Diameter(px, estimated=False))

    def _objects(self, image: Image) -> Instances:
        if not image.data.any():
            return Instances.empty(image.image_hw, scored=True)
        box = np.array([[self.x, 2, self.x + 10, 12]])
        masks = MaskSet.from_crops(box, [np.ones((10, 10))], image.image_hw)
        return Instances.from_masks(masks, scores=np.array([self.score]))


BRIGHT, DARK = (Image.from_array(np.full((20, 30), value, np.uint8)) for value in (9, 0))


def members(*predictors: object) -> tuple[Any, ...]:
    return predictors


def test_the_order_of_images_is_kept() -> None:
    both = Ensemble(members(Square(2, 0.9), Square(4, 0.3)), FusionOptions())
    predictions = both.predict([DARK, BRIGHT, DARK])
    assert [len(prediction.instances) for prediction in predictions] == [0, 1, 0]
    np.testing.assert_allclose(predictions[1].instances.boxes_xyxy, [[2.5, 2, 12.5, 12]], rtol=1e-6)
    assert both.predict([]) == []


def test_members_are_fused_on_calibrated_scores() -> None:
    """The second member always has score 1 and is known to be wrong: the first decides."""
    options = PredictOptions(calibration=Calibration((0.0, 1.0), (0.0, 0.2)))
    overconfident = FilteredPredictor(Square(4, 1.0), options)  # type: ignore[arg-type]
    both = Ensemble(members(Square(2, 0.6), overconfident), FusionOptions())
    fused = both.predict([BRIGHT])[0].instances
    assert fused.scores is not None
    assert fused.scores.tolist() == pytest.approx([0.4])
    assert fused.masks.boxes.tolist() == [[2, 2, 12, 12]]
    plain = Ensemble(members(Square(2, 0.6), Square(4, 1.0)), FusionOptions()).predict([BRIGHT])[0].instances
    assert plain.masks.boxes.tolist() == [[4, 2, 14, 12]]


def test_options_apply_to_the_fused_objects() -> None:
    ensemble = Ensemble(members(Square(2, 0.6), Square(20, 0.9)), FusionOptions())
    (prediction,) = FilteredPredictor(ensemble, PredictOptions(0.4)).predict([BRIGHT])
    assert prediction.instances.scores is not None
    assert prediction.instances.scores.tolist() == pytest.approx([0.45])
    assert prediction.n_low_score == 1


def test_the_number_of_weights_is_checked() -> None:
    with pytest.raises(UsageError, match="2 weights: 1, 2\n  expected: 1"):
        Ensemble(members(Square(2, 0.9)), FusionOptions(weights=(1, 2)))


def test_the_diameter_is_that_of_the_first_member_that_uses_one() -> None:
    by_12, by_24 = (Diameter(px, estimated=True, scale=24 / px, requested_scale=None) for px in (12.0, 24.0))
    three = members(Square(2, 0.9), FilteredPredictor(Square(4, 0.3, by_12)), Square(4, 0.3, by_24))  # type: ignore[arg-type]
    ensemble = Ensemble(three, FusionOptions())
    assert ensemble.predict([BRIGHT])[0].diameter == by_12
    assert Ensemble(three[:1], FusionOptions()).predict([BRIGHT])[0].diameter is None
    given = ensemble.with_diameter(30.0)
    assert given.members[0] is three[0], "it uses no diameter"
    assert given.predict([BRIGHT])[0].diameter == Diameter(30.0, estimated=False)
    with pytest.raises(UsageError, match="does not use a diameter"):
        Ensemble(three[:1], FusionOptions()).with_diameter(30.0)
