"""Pictures of errors: every kind in its own colour and line, where it belongs, and counted in the legend."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.evaluation.errors_by_kind import PREDICTED_KINDS, TRUTH_KINDS
from cellwright.report.error_picture import (
    CORRECT,
    IGNORED,
    INVOLVED,
    INVOLVED_KINDS,
    PREDICTED_STYLES,
    SIDE_PX,
    TRUTH_STYLES,
    draw_errors,
)

HW = (60, 90)
SQUARE = 20


def squares(*places: tuple[int, int]) -> Instances:
    dense = np.zeros((len(places), *HW), bool)
    for k, (y, x) in enumerate(places):
        dense[k, y : y + SQUARE, x : x + SQUARE] = True
    return Instances.from_masks(MaskSet.from_dense(dense))


def drawn(truth: Instances, predicted: Instances, truth_kinds: list[str], predicted_kinds: list[str]) -> np.ndarray:
    return draw_errors(
        Image.from_array(np.zeros((*HW, 3), np.uint8)),
        truth,
        predicted,
        truth_kinds=np.array(truth_kinds, "U15"),
        predicted_kinds=np.array(predicted_kinds, "U15"),
    )


def colours_in(picture: np.ndarray, place: tuple[int, int]) -> set[tuple[int, ...]]:
    factor = picture.shape[1] // HW[1]
    y, x = (factor * part for part in place)
    part = picture[y : y + factor * SQUARE, x : x + factor * SQUARE].reshape(-1, 3)
    return {tuple(map(int, row)) for row in np.unique(part, axis=0)} - {(0, 0, 0)}


def test_styles_are_told_apart() -> None:
    styles = [CORRECT, INVOLVED, IGNORED, *TRUTH_STYLES.values(), *PREDICTED_STYLES.values()]
    assert len({style.name for style in styles}) == len(styles)
    assert len({(style.colour, style.pattern) for style in styles}) == len(styles)
    errors = [*TRUTH_STYLES.values(), *PREDICTED_STYLES.values()]
    # In grey print colours are gone: the lines alone tell errors apart.
    assert all(a.pattern != b.pattern for a, b in itertools.combinations(errors, 2))
    # Every kind that the judge knows has a style.
    assert {*TRUTH_STYLES, "correct", "ignored"} == set(TRUTH_KINDS)
    assert {*PREDICTED_STYLES, *INVOLVED_KINDS, "correct", "ignored"} == set(PREDICTED_KINDS)


@pytest.mark.parametrize("kind", sorted(TRUTH_STYLES))
def test_errors_of_truth_are_drawn_on_the_truth(kind: str) -> None:
    picture = drawn(squares((5, 5), (30, 40)), squares((5, 60)), [kind, "correct"], ["correct"])
    assert colours_in(picture, (5, 5)) == {TRUTH_STYLES[kind].colour}
    assert colours_in(picture, (30, 40)) == set()  # shown by its prediction
    assert colours_in(picture, (5, 60)) == {CORRECT.colour}


@pytest.mark.parametrize("kind", [*sorted(PREDICTED_STYLES), *INVOLVED_KINDS])
def test_errors_of_predictions_are_drawn_on_the_prediction(kind: str) -> None:
    picture = drawn(squares(), squares((5, 5)), [], [kind])
    assert colours_in(picture, (5, 5)) == {PREDICTED_STYLES.get(kind, INVOLVED).colour}


def test_size_and_legend() -> None:
    empty = drawn(squares(), squares(), [], [])
    factor = round(SIDE_PX / max(HW))
    assert empty.shape[1] == factor * HW[1]
    assert not empty[: factor * HW[0]].any()
    assert empty[factor * HW[0] :].any()
    with pytest.raises(InputError, match="truth_kinds` has the wrong length"):
        drawn(squares((0, 0)), squares(), [], [])
    with pytest.raises(InputError, match="differ in size"):
        draw_errors(
            Image.from_array(np.zeros((5, 5), np.uint8)),
            squares(),
            squares(),
            truth_kinds=np.zeros(0, "U9"),
            predicted_kinds=np.zeros(0, "U9"),
        )
