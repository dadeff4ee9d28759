"""Several models behind one: options, thresholds, classes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml

import cellwright as cw
from cellwright.api.fused_model import calibration_note, fused_model, fused_recipe
from cellwright.api.models import Model
from cellwright.core.errors import UsageError
from cellwright.core.scores import Calibration
from cellwright.data.synthetic import draw_field
from cellwright.prediction.fusion import FusionOptions, fuse


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Model]:
    """The classical method, and a tuned one that knows its scores to be half as good and leaves out what is small."""
    plain = cw.load_model("classical")
    tuned = dataclasses.replace(
        plain.options, score_threshold=(0.1,), min_area_px=(200,), calibration=Calibration((0.0, 1.0), (0.0, 0.5))
    )
    tuned_on = {"split": "val", "metric": "f1@0.5", "images": ["a"]}
    return plain, dataclasses.replace(plain, name="tuned", options=tuned, tuned_on=tuned_on)


def test_members_are_fused_as_their_results_are(pair: tuple[Model, Model]) -> None:
    image, _ = draw_field(4, (128, 160), 12)
    options = FusionOptions(weights=(1, 2))
    both = fused_model(pair, options)
    found = both.predict(image)
    alone = [
        dataclasses.replace(one, options=dataclasses.replace(one.options, score_threshold=0.0)).predict(image)
        for one in pair
    ]
    assert len(alone[1]) < len(alone[0])
    expected = fuse(alone, options)
    assert both.options.score_threshold == pytest.approx(((0.3 + 2 * 0.1) / 3,))
    kept = expected.scores >= np.float32(both.options.score_threshold)
    assert found.masks == expected[kept].masks
    np.testing.assert_array_equal(found.scores, expected.scores[kept])
    assert both.name == "classical + tuned"
    assert both.tuned_on == pair[1].tuned_on


def test_what_is_written_of_them(pair: tuple[Model, Model]) -> None:
    content = yaml.safe_load(fused_recipe(pair, FusionOptions(weights=(1, 2))))
    assert content["fuse"]["weights"] == [1.0, 2.0]
    assert [one["name"] for one in content["models"]] == ["classical", "tuned"]
    assert content["models"][0]["recipe"] == yaml.safe_load(fused_recipe(pair[:1], FusionOptions()))
    assert "not calibrated, and are compared as they are: classical (" in (calibration_note(pair) or "")
    assert calibration_note(pair[:1]) is None
    assert calibration_note(pair[1:] * 2) is None


def test_one_member_is_itself(pair: tuple[Model, Model]) -> None:
    assert fused_model(pair[:1], FusionOptions()) is pair[0]


def test_different_classes_name_both(pair: tuple[Model, Model]) -> None:
    other = dataclasses.replace(pair[1], class_names=("cell",))
    with pytest.raises(UsageError, match="got: tuned: cell\n  expected: nucleus, as classical"):
        fused_model((pair[0], other), FusionOptions())
    with pytest.raises(UsageError, match="got: 1 weights: 1"):
        fused_model(pair, FusionOptions(weights=(1,)))
