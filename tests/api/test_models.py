"""Models and ensembles: what they accept, options, thresholds, classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import cellwright as cw
from cellwright.api.models import Model, ensemble
from cellwright.api.predict import model_notes, recipe_yaml
from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import write_png
from cellwright.core.scores import Calibration
from cellwright.data.synthetic import draw_field
from cellwright.prediction.fusion import FusionOptions, fuse


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Model]:
    """The classical method, and a tuned one with scores half as high, which omits small objects."""
    plain = cw.load_model("classical")
    tuned = dataclasses.replace(
        plain.options, score_threshold=(0.1,), min_area_px=(200,), calibration=Calibration((0.0, 1.0), (0.0, 0.5))
    )
    tuned_on = {"split": "val", "metric": "f1@0.5", "images": ["a"]}
    return plain, dataclasses.replace(plain, name="tuned", options=tuned, tuned_on=tuned_on)


def test_an_ensemble_equals_the_fused_results_of_its_members(pair: tuple[Model, Model]) -> None:
    image, _ = draw_field(4, (128, 160), 12)
    options = FusionOptions(weights=(1, 2))
    both = ensemble(pair, options)
    predicted = both.predictions(image).instances
    alone = [
        dataclasses.replace(member, options=dataclasses.replace(member.options, score_threshold=0.0))
        .predictions(image)
        .instances
        for member in pair
    ]
    assert len(alone[1]) < len(alone[0])
    expected = fuse(alone, options)
    assert both.options.score_threshold == pytest.approx(((0.3 + 2 * 0.1) / 3,))
    kept = expected.scores >= np.float32(both.options.score_threshold)
    assert predicted.masks == expected[kept].masks
    np.testing.assert_array_equal(predicted.scores, expected.scores[kept])
    assert both.name == "classical + tuned"
    assert both.tuned_on == pair[1].tuned_on


def test_the_recipe_of_an_ensemble_has_all_members(pair: tuple[Model, Model]) -> None:
    content = yaml.safe_load(recipe_yaml(pair, FusionOptions(weights=(1, 2))))
    assert content["fuse"]["weights"] == [1.0, 2.0]
    assert [member["name"] for member in content["models"]] == ["classical", "tuned"]
    assert content["models"][0]["recipe"] == yaml.safe_load(recipe_yaml(pair[:1], FusionOptions()))


def test_uncalibrated_scores_are_noted(pair: tuple[Model, Model]) -> None:
    (note,) = model_notes(pair[0], pair, None)
    assert "scores that are not calibrated are compared as they are: classical (" in note
    assert model_notes(pair[0], pair[:1], None) == []
    (note,) = model_notes(pair[1], pair[1:] * 2, None)
    assert note == (
        "keeps objects with a score of at least 0.1 and 200 pixels or more; a score is the expected overlap with the "
        "true outline (IoU); change with `score`"
    )
    _, other = model_notes(pair[1], pair[1:] * 2, "flips")
    assert "other views than flips" in other


def test_an_ensemble_of_one_model_is_that_model(pair: tuple[Model, Model]) -> None:
    assert ensemble(pair[:1], FusionOptions()) is pair[0]


def test_models_with_different_classes_are_named(pair: tuple[Model, Model]) -> None:
    other = dataclasses.replace(pair[1], class_names=("cell",))
    with pytest.raises(UsageError, match="got: tuned: cell\n  expected: nucleus, as classical"):
        ensemble((pair[0], other), FusionOptions())
    with pytest.raises(UsageError, match="got: 1 weight: 1"):
        ensemble(pair, FusionOptions(weights=(1,)))


# --- Model ----------------------------------------------------------------------------------------------------------


def two_squares() -> np.ndarray:
    image = np.zeros((40, 50), np.uint8)
    image[5:15, 5:15] = image[20:32, 18:30] = 200
    return image


def test_every_type_of_image_gives_the_same_objects(tmp_path: Path) -> None:
    image, model = two_squares(), cw.load_model("classical")
    expected = model.predict(image)
    assert len(expected) == 2
    write_png(tmp_path / "a.png", image)
    for same in (cw.Image.from_array(image), tmp_path / "a.png", str(tmp_path / "a.png"), torch.from_numpy(image)):
        assert model.predict(same).masks == expected.masks
    predicted = model.predict([image, tmp_path / "a.png"])
    assert [instances.masks == expected.masks for instances in predicted] == [True, True]
    assert model.predict([]) == []
    with pytest.raises(UsageError, match="not an image"):
        model.predict([image, None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="cannot read this image"):
        model.predict("nowhere.png")


def test_a_channel_is_chosen() -> None:
    model, dark = cw.load_model("classical"), np.zeros((40, 50), np.uint8)
    image = cw.Image(np.stack([dark, two_squares(), dark], axis=2), ("actin", "spots", "tubulin"))
    assert len(model.predict(image, channel="spots")) == len(model.predict(image, channel=1)) == 2
    assert len(model.predict([image, image], channel="actin")[1]) == 0


def test_options_of_a_prediction() -> None:
    image, model = two_squares(), cw.load_model("classical")
    scores = model.predict(image, score=0).scores
    assert scores is not None
    assert len(model.predict(image, score=float(scores[0]))) == 1
    assert model.predict(image, min_area=120).masks.areas.min() >= 120
    assert len(model.predict(image, max_objects=1)) == 1
    assert len(model.with_options(max_objects=1).predict(image)) == 1
    assert len(model.predict(image)) == 2, "the model itself is unchanged"
    for options in ({"score": 1.5}, {"min_area": -1}, {"max_objects": 0}):
        with pytest.raises(UsageError, match=f"`{next(iter(options))}` is out of range"):
            model.predict(image, **options)  # type: ignore[arg-type]
    prediction = model.with_options(min_area=120).predictions(image)
    assert (len(prediction.instances), prediction.n_small) == (1, 1)
    assert len(model.predictions([image, image])) == 2


def test_a_model_shows_itself_in_one_line(pair: tuple[Model, Model]) -> None:
    assert repr(pair[0]) == "Model('classical', classical method, classes: nucleus, score 0.3)"
    assert repr(pair[1]) == "Model('tuned', classical method, classes: nucleus, tuned on split val for f1@0.5)"


class Threshold:
    """A segmenter of the user's own."""

    class_names = ("spot",)

    def predict(self, images: Sequence[cw.Image]) -> list[cw.Instances]:
        masks = [cw.MaskSet.from_label_map((image.data[:, :, 0] > 100).astype(np.uint8))[0] for image in images]
        return [cw.Instances.from_masks(own, scores=np.full(len(own), 0.9)) for own in masks]


def test_a_segmenter_of_ones_own_is_a_model() -> None:
    model = Model.from_segmenter(Threshold())
    assert repr(model) == "Model('Threshold', a segmenter of your own, classes: spot, score 0)"
    assert len(model.predict(two_squares())) == 1
    assert Model.from_segmenter(Threshold(), class_names=["dot"]).class_names == ("dot",)
    with pytest.raises(UsageError, match="does not use a diameter"):
        model.predict(two_squares(), diameter=12)
    for wrong in (3, Threshold):
        with pytest.raises(UsageError, match=r"not a model[\s\S]*predict\(images\)"):
            Model.from_segmenter(wrong)  # type: ignore[arg-type]


def test_loading_a_model_changes_nothing_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """malloc stays as it is: the C library, which the function that changes it calls, is never asked for."""
    cw.load_model("nuclei", device="cpu")  # imports what opens libraries of its own
    opened = []
    monkeypatch.setattr("ctypes.CDLL", lambda *args, **_: opened.append(args))
    cw.load_model("nuclei", device="cpu")
    assert opened == []
