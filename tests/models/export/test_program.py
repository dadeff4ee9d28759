"""``decode.py``, which is written beside exported dense networks, does what cellwright does, to the pixel."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from cellwright.config.input import InputConfig
from cellwright.config.model_dense import FlowTarget, SemanticTarget, WatershedTarget
from cellwright.config.recipe import Recipe
from cellwright.core.image import Image
from cellwright.data.network_input import rescale, resize_for_network, to_network
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.dense import flow, semantic, watershed
from cellwright.models.dense.target import target_of
from cellwright.models.export.program import why_no_program
from cellwright.models.export.standalone import decode as program

FLOW = FlowTarget(body_threshold=0.3, outline_share=0.55, max_error=0.3, min_area_px=8)
IMAGE, TRUTH = draw_field(4, (97, 121), 14, FieldLook(diameter_px=20, overlap=0))


def blurred_maps(module: ModuleType, noise: float) -> np.ndarray:
    """Maps as of a network that is not sure."""
    perfect = module.encode(TRUTH.masks.to_label_map().astype(np.int32))
    drawn = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 3, perfect.shape), (0, 1.5, 1.5))
    maps = (perfect + noise * drawn).astype(np.float32)
    return np.concatenate([maps[:2], maps[2:].clip(0, 1)]) if module is flow else maps.clip(0, 1)


@pytest.mark.parametrize("noise", [0, 0.3, 0.6])
@pytest.mark.parametrize(
    ("module", "target"), [(flow, FLOW), (watershed, WatershedTarget(min_area_px=8)), (semantic, SemanticTarget())]
)
def test_labels_are_the_same(module: ModuleType, target: Any, noise: float) -> None:
    maps = blurred_maps(module, noise)
    own = np.stack([maps[0] * 0 + 0.4, maps[-1]])  # of two classes
    expected = target_of(target).instances(np.concatenate([maps, own]))
    assert expected.scores is not None
    kept = (expected.scores >= np.float32(0.2)) & (expected.masks.areas >= np.where(expected.class_ids == 1, 90, 0))
    rules = {
        "decoder": {"target": target.kind, "maps": len(maps), **target.model_dump(exclude={"kind"})},
        "class_names": ["a", "b"],
        "result": {"score_threshold": 0.2, "min_area_px": 0, "thresholds": {"min_area_px/b": 90}, "calibration": None},
    }
    labels, scores = program.decode(np.concatenate([maps, own]), rules)
    np.testing.assert_array_equal(labels, expected[kept].masks.to_label_map())
    np.testing.assert_array_equal(scores, expected.scores[kept])
    assert len(scores) > 0


def test_nothing_is_found_in_empty_maps() -> None:
    for decode, n, target in ((program.flow, 3, FLOW), (program.watershed, 3, WatershedTarget())):
        labels, scores = decode(np.zeros((n, 20, 30), np.float32), **target.model_dump(exclude={"kind"}))
        assert (labels.shape, labels.max(), scores.shape) == ((20, 30), 0, (0,))


@pytest.mark.parametrize("px", [12.0, 20.0, 33.0])
@pytest.mark.parametrize("percentiles_of", ["image", "channel"])
def test_the_input_of_the_network_is_the_same(percentiles_of: str, px: float) -> None:
    config = InputConfig(diameter_px=20, percentiles_of=percentiles_of)
    pixels = program.normalised(IMAGE.data, config.model_dump(mode="json"))
    np.testing.assert_array_equal(pixels, to_network(IMAGE, config))
    new_hw = program.network_hw(pixels.shape[1:], config.model_dump(mode="json"), px, None)
    np.testing.assert_array_equal(program.resized(pixels, new_hw), rescale(pixels, 20 / px))


def test_other_sizes_and_normalisation() -> None:
    config = InputConfig(channels=1, full_range=255, mean=(0.4,), std=(0.2,), short_side=64, max_side=70)
    image = Image.from_array(IMAGE.data[:, :, 1])
    expected = resize_for_network(image, config, "torchvision")
    rules = config.model_dump(mode="json")
    pixels = program.normalised(image.data, rules)
    new_hw = program.network_hw(pixels.shape[1:], rules, None, None)
    np.testing.assert_allclose(program.resized(pixels, new_hw, antialias=False), expected, atol=1e-5)


def test_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 channels; the network takes 2"):
        program.normalised(IMAGE.data, InputConfig(channels=2).model_dump(mode="json"))


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"diameter_px": 20}, None),
        ({"diameter_px": 20, "resampling": "linear"}, "antialiasing"),
        ({"diameter_px": 20, "missing_channels": "zeros"}, "channels that an image lacks"),
    ],
)
def test_there_is_no_program_where_it_would_see_something_else(section: dict[str, Any], reason: str | None) -> None:
    recipe = Recipe.model_validate({"name": "t", "input": section, "model": {"kind": "unet"}})
    said = why_no_program(recipe)
    assert said is None if reason is None else reason in (said or "")


def test_a_diameter_that_is_not_given() -> None:
    rules = InputConfig(diameter_px=20).model_dump(mode="json")
    with pytest.raises(ValueError, match="needs `diameter_px`"):
        program.network_hw((40, 60), rules, None, None)
    assert program.network_hw((40, 60), rules | {"default_diameter_px": 40.0}, None, None) == [20, 30]
