"""Several segmenters behind one door."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from cellwright.core.errors import UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.scores import Calibration
from cellwright.models.contract import Segmenter
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.fused import FusedSegmenter
from cellwright.prediction.fusion import FusionOptions
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import Predictor


@dataclass
class Square:
    """A segmenter that finds one square, or nothing in dark images."""

    x: int
    score: float

    def predict(self, images):
        return [self._found(image) for image in images]

    def _found(self, image: Image) -> Instances:
        if not image.data.any():
            return Instances.empty(image.image_hw, scored=True)
        box = np.array([[self.x, 2, self.x + 10, 12]])
        masks = MaskSet.from_crops(box, [np.ones((10, 10))], image.image_hw)
        return Instances.from_masks(masks, scores=np.array([self.score]))


BRIGHT, DARK = (Image.from_array(np.full((20, 30), value, np.uint8)) for value in (9, 0))


def test_it_is_a_segmenter_and_keeps_the_order_of_images() -> None:
    both = FusedSegmenter((Square(2, 0.9), Square(4, 0.3)), FusionOptions())
    assert isinstance(both, Segmenter)
    found = both.predict([DARK, BRIGHT, DARK])
    assert [len(one) for one in found] == [0, 1, 0]
    np.testing.assert_allclose(found[1].boxes_xyxy, [[2.5, 2, 12.5, 12]], rtol=1e-6)
    assert both.predict([]) == []


def test_members_are_fused_on_calibrated_scores() -> None:
    """The second is always sure of itself, and is known to be wrong: the first decides."""
    boastful = Predictor(Square(4, 1.0), PredictOptions(calibration=Calibration((0.0, 1.0), (0.0, 0.2))))
    both = FusedSegmenter((Square(2, 0.6), boastful), FusionOptions())
    found = both.predict([BRIGHT])[0]
    assert found.scores.tolist() == pytest.approx([0.4])
    assert found.masks.boxes.tolist() == [[2, 2, 12, 12]]
    plain = FusedSegmenter((Square(2, 0.6), Square(4, 1.0)), FusionOptions()).predict([BRIGHT])[0]
    assert plain.masks.boxes.tolist() == [[4, 2, 14, 12]]


def test_options_of_a_result_apply_to_what_is_fused() -> None:
    both = Predictor(FusedSegmenter((Square(2, 0.6), Square(20, 0.9)), FusionOptions()), PredictOptions(0.4))
    outcome = both.outcomes([BRIGHT])[0]
    assert outcome.instances.scores.tolist() == pytest.approx([0.45])
    assert outcome.n_low_score == 1


def test_another_number_of_weights() -> None:
    with pytest.raises(UsageError, match="2 weights: 1, 2\n  expected: 1"):
        FusedSegmenter((Square(2, 0.9),), FusionOptions(weights=(1, 2)))


@dataclass
class Sized(Square):
    """One that resizes images by a diameter, and says so."""

    diameter: Diameter | None = None

    def find(self, images):
        return [(found, self.diameter) for found in self.predict(images)]


def test_the_diameter_of_the_first_member_that_goes_by_one_is_told() -> None:
    by_12, by_24 = (Diameter(px, estimated=True, scale=24 / px, wanted_scale=None) for px in (12.0, 24.0))
    members = (Square(2, 0.9), Predictor(Sized(4, 0.3, by_12)), Sized(4, 0.3, by_24))
    outcome = Predictor(FusedSegmenter(members, FusionOptions())).outcomes([BRIGHT])[0]
    assert outcome.diameter == by_12
    assert Predictor(FusedSegmenter(members[:1], FusionOptions())).outcomes([BRIGHT])[0].diameter is None
