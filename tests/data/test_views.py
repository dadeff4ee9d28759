"""Views: exact inverses for arrays, boxes and flows, and how they are written as text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellwright.config.input import InputConfig
from cellwright.core.errors import UsageError
from cellwright.data.views import ORIENTATIONS, PLAIN, View, as_views, parse_views
from cellwright.models.dense import flow, stars
from cellwright.models.dense.labels import connected_components

EIGHT = [View(horizontal_flip=flip, quarter_turns=turns) for turns in range(4) for flip in (False, True)]
eight = pytest.mark.parametrize(
    "view", EIGHT, ids=lambda v: f"{'mirrored' if v.horizontal_flip else 'as is'}{v.quarter_turns}"
)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def discs(image_hw: tuple[int, int], seed: int) -> np.ndarray:
    """(H, W) int32: labels of up to 12 ellipses, later ones on top, some cut by the edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    labels = np.zeros(image_hw, np.int32)
    for k in range(12):
        cy, cx = rng.uniform(0, image_hw)
        ry, rx = rng.uniform(3, 9, 2)
        labels[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = k + 1
    return labels


def tight(mask: np.ndarray) -> list[int]:
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


@eight
@given(size=sizes, seed=st.integers(0, 99))
def test_turning_arrays_and_maps_back_is_exact(view: View, size: tuple[int, int], seed: int) -> None:
    array = np.random.default_rng(seed).standard_normal((4, *size)).astype(np.float32)
    turned = view.turn(array)
    assert turned.shape[1:] == view.turned_hw(size)
    assert np.array_equal(view.turn_back(turned), array)
    channels = ("body", "flow_y", "flow_x")
    assert np.array_equal(view.turn_maps_back(view.turn_maps(array, channels), channels), array)
    assert np.array_equal(view.turn_maps(array, ("body", "border"))[0], turned[0]), "values without direction only move"


@eight
@given(size=sizes, corners=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_turn_with_their_pixels_and_back(view: View, size: tuple[int, int], corners: list[float]) -> None:
    height, width = size
    y0, x0 = int(corners[0] * (height - 1)), int(corners[1] * (width - 1))
    y1, x1 = y0 + 1 + int(corners[2] * (height - 1 - y0)), x0 + 1 + int(corners[3] * (width - 1 - x0))
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    boxes = np.array([[x0, y0, x1, y1], [x0 + 0.25, y0 + 0.5, x1 + 0.75, y1]], np.float32)
    turned = view.turn_boxes(boxes, size)
    assert turned[0].tolist() == tight(view.turn(mask))
    assert np.array_equal(view.turn_boxes_back(turned, size), boxes)
    assert view.turn_boxes(boxes[:0], size).shape == (0, 4)


@eight
@pytest.mark.parametrize("image_hw", [(47, 61), (40, 40)])
def test_flows_turn_as_vectors(view: View, image_hw: tuple[int, int]) -> None:
    """The encoder's maps of a turned image are the turned maps of the image."""
    labels = discs(image_hw, seed=sum(image_hw))
    turned = view.turn_maps(flow.encode(labels), flow.CHANNELS)
    again = flow.encode(view.turn(labels))
    # The source of an object whose mean is between two pixels is one of them, depending on their order.
    untied = np.isin(view.turn(labels), one_source(labels))
    assert untied.sum() > 0.9 * (labels > 0).sum()
    assert np.array_equal(turned[2], again[2])
    np.testing.assert_allclose(turned[:2, untied], again[:2, untied], atol=2e-4)


@eight
def test_rays_change_places(view: View) -> None:
    """The encoder's maps of a turned image are the turned maps of the image."""
    labels = discs((31, 40), seed=5)
    names = stars.channels(12)
    maps = stars.encode(labels, n_rays=12)
    turned = view.turn_maps(maps, names)
    np.testing.assert_allclose(turned, stars.encode(view.turn(labels), n_rays=12), atol=1e-5)
    assert np.array_equal(view.turn_maps_back(turned, names), maps)


def one_source(labels: np.ndarray) -> list[int]:
    """The connected labels with a unique pixel nearest to the mean."""
    chosen = []
    for label in np.unique(labels[labels > 0]):
        y, x = np.nonzero(labels == label)
        distances = np.sort((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
        if (
            len(y) > 1
            and distances[1] - distances[0] > 1e-6
            and connected_components((labels == label).astype(np.int32))[1] == 1
        ):
            chosen.append(int(label))
    return chosen


def test_the_eight_orientations_differ_and_match_their_names() -> None:
    array = np.arange(6).reshape(2, 3)
    assert len({view.turn(array).tobytes() for view in EIGHT}) == 8
    turned = {
        name: [View(horizontal_flip=f, quarter_turns=t).turn(array) for f, t in of] for name, of in ORIENTATIONS.items()
    }
    for own, expected in zip(turned["flips"], (array, array[:, ::-1], array[::-1], array[::-1, ::-1]), strict=True):
        assert np.array_equal(own, expected)
    assert len(turned["turns"]) == 8
    assert np.array_equal(turned["turns"][2], np.rot90(array))


def test_views_as_text() -> None:
    assert parse_views("flips")[0] == View()
    assert [len(parse_views(text)) for text in ("mirror", "flips", "turns")] == [2, 4, 8]
    assert parse_views(" 0.8, 1 ,1.25") == (View(scale=0.8), View(), View(scale=1.25))
    assert parse_views("400,500:mirror") == (
        View(short_side=400),
        View(short_side=400, horizontal_flip=True),
        View(short_side=500),
        View(short_side=500, horizontal_flip=True),
    )
    report = parse_views("400,500,600,700,800,900,max1600:mirror")
    assert len(report) == 12
    assert {view.max_side for view in report} == {1600}
    assert parse_views("1") == PLAIN
    assert parse_views("400,400") == (View(short_side=400),), "the same view counts once"
    assert as_views([View(), View()]) == PLAIN


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("flip", "did you mean 'flips'"),
        ("400:trns", "did you mean 'turns'"),
        ("diagonal", "known: flips, mirror, turns"),
        ("", "flips, 0.8,1,1.25:mirror"),
        ("400:", "flips, 0.8,1,1.25:mirror"),
        ("4oo:flips", "'4oo'"),
        ("400,,500", "such as"),
        ("12", "short sides whole numbers of at least 16 px"),
        ("400.5", "whole numbers"),
        ("0.01", "1/8 to 8"),
        ("nan", "known:"),
        ("1,nan", "1/8 to 8"),
        ("1e9", "at least 16 px"),
        ("0.8,max1600", "short sides"),
        ("max1600:flips", "short sides"),
        ("400,max800,max900", "short sides"),
        ("400,max300", "no less than a short_side"),
    ],
)
def test_invalid_text_is_explained(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="view") as caught:
        parse_views(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"quarter_turns": 4},
        {"scale": 9.0},
        {"scale": float("nan")},
        {"short_side": 8},
        {"short_side": 40, "scale": 2.0},
    ],
)
def test_views_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        View(**fields)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`views` is empty"):
        as_views([])


def test_sizes_follow_the_recipe() -> None:
    sided = InputConfig(short_side=800, max_side=1333)
    assert View().input_config(sided) == sided
    half = View(scale=0.5).input_config(sided)
    assert (half.short_side, half.max_side) == (400, 667)
    short = View(short_side=400).input_config(sided)
    assert (short.short_side, short.max_side) == (400, 667), "the cap keeps the recipe's proportion"
    capped = View(short_side=900, max_side=1600).input_config(sided)
    assert (capped.short_side, capped.max_side) == (900, 1600)
    scaled = InputConfig(scale=2.0)
    assert View(scale=0.5).input_config(scaled).scale == 1.0
    assert View(short_side=64).input_config(scaled).short_side == 64
    with pytest.raises(UsageError, match="factors such as"):
        View(short_side=64).input_config(InputConfig(diameter_px=24))
