"""Pictures of errors: the colour and line style of every kind, the legend, and the files of an evaluation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError
from cellwright.core.files import write_png
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.evaluation.errors_by_kind import PREDICTED_KINDS, TRUTH_KINDS
from cellwright.evaluation.evaluate import evaluate_images
from cellwright.evaluation.pairing import pair_datasets
from cellwright.report.draw import enlargement
from cellwright.report.error_picture import (
    CORRECT,
    IGNORED,
    INVOLVED,
    INVOLVED_KINDS,
    MARKS,
    PREDICTED_STYLES,
    SIDE_PX,
    TRUTH_STYLES,
    draw_errors,
    pictures_section,
    write_error_pictures,
)

HW = (60, 90)
SQUARE = 20


def squares(*places: tuple[int, int]) -> Instances:
    dense = np.zeros((len(places), *HW), bool)
    for k, (y, x) in enumerate(places):
        dense[k, y : y + SQUARE, x : x + SQUARE] = True
    return Instances.from_masks(MaskSet.from_dense(dense))


def draw(truth: Instances, predicted: Instances, truth_kinds: list[str], predicted_kinds: list[str]) -> np.ndarray:
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
    # The letters on the objects are white or grey.
    colours = {tuple(map(int, row)) for row in np.unique(part, axis=0)} - {(0, 0, 0)}
    return {colour for colour in colours if len(set(colour)) > 1 or colour == CORRECT.colour}


def test_styles_differ() -> None:
    styles = [CORRECT, INVOLVED, IGNORED, *TRUTH_STYLES.values(), *PREDICTED_STYLES.values()]
    assert len({style.name for style in styles}) == len(styles)
    assert len({(style.colour, style.pattern) for style in styles}) == len(styles)
    errors = [*TRUTH_STYLES.values(), *PREDICTED_STYLES.values()]
    # In greyscale print, errors differ by line pattern alone.
    assert all(a.pattern != b.pattern for a, b in itertools.combinations(errors, 2))
    # ... and by a letter.
    assert set(MARKS) == {*TRUTH_STYLES, *PREDICTED_STYLES}
    assert len(set(MARKS.values())) == len(MARKS)
    # Every kind has a style.
    assert {*TRUTH_STYLES, "correct", "ignored"} == set(TRUTH_KINDS)
    assert {*PREDICTED_STYLES, *INVOLVED_KINDS, "correct", "ignored"} == set(PREDICTED_KINDS)


@pytest.mark.parametrize("kind", sorted(TRUTH_STYLES))
def test_annotated_objects_with_errors_are_drawn_by_their_annotation(kind: str) -> None:
    picture = draw(squares((5, 5), (30, 40)), squares((5, 60)), [kind, "correct"], ["correct"])
    assert colours_in(picture, (5, 5)) - {CORRECT.colour} == {TRUTH_STYLES[kind].colour}
    assert not colours_in(picture, (30, 40))  # shown by its prediction instead
    assert CORRECT.colour in colours_in(picture, (5, 60))


@pytest.mark.parametrize("kind", [*sorted(PREDICTED_STYLES), *INVOLVED_KINDS])
def test_predictions_with_errors_are_drawn(kind: str) -> None:
    picture = draw(squares(), squares((5, 5)), [], [kind])
    if kind in PREDICTED_STYLES:
        assert colours_in(picture, (5, 5)) - {CORRECT.colour} == {PREDICTED_STYLES[kind].colour}
    else:
        assert (picture[: 4 * HW[0]] == INVOLVED.colour).all(-1).any()


def test_size_and_legend() -> None:
    empty = draw(squares(), squares(), [], [])
    factor = enlargement(HW, SIDE_PX)
    assert empty.shape[1] == factor * HW[1]
    assert not empty[: factor * HW[0]].any()
    assert empty[factor * HW[0] :].any()
    with pytest.raises(InputError, match="truth_kinds` has the wrong length"):
        draw(squares((0, 0)), squares(), [], [])
    with pytest.raises(InputError, match="differ in size"):
        draw_errors(
            Image.from_array(np.zeros((5, 5), np.uint8)),
            squares(),
            squares(),
            truth_kinds=np.zeros(0, "U9"),
            predicted_kinds=np.zeros(0, "U9"),
        )


class Notes:
    """A `ProgressReporter` that records notes."""

    quiet, log_format = True, "text"

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def track(self, items, description, total=None):
        return items


def test_the_worst_images_are_written_on_black_if_they_cannot_be_read(tmp_path: Path) -> None:
    write_png(tmp_path / "b.png", np.full(HW, 200, np.uint8))
    cells = squares((5, 5), (30, 40))
    truth = Dataset(
        tuple(Sample(name, path, HW, Loaded(cells)) for name, path in (("a", None), ("b", tmp_path / "b.png"))),
        ("cell",),
    )
    predictions = {"a": cells[:1], "b": cells[:0]}
    predicted = truth.with_samples([Sample(name, None, HW, Loaded(p)) for name, p in predictions.items()])
    images = pair_datasets("p", predicted, truth)
    screen = Notes()
    paths = write_error_pictures(images, evaluate_images(images), tmp_path / "errors", 2, screen)
    assert [path.name for path in paths] == ["b.png", "a.png"]
    assert screen.notes == ["1 of 2 pictures of errors drawn on black: the image could not be read"]
    assert pictures_section(paths, tmp_path)[1:] == ["![errors/b.png](errors/b.png)", "![errors/a.png](errors/a.png)"]
    assert pictures_section([], tmp_path) == []
    few = evaluate_images(images, metrics=["pq"])
    assert [path.name for path in write_error_pictures(images, few, tmp_path / "few", 2)] == ["b.png", "a.png"]
    assert write_error_pictures(images, evaluate_images(images), tmp_path / "none", 0) == []
    assert not (tmp_path / "none").exists()
