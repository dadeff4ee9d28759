"""Pictures that people show: lines on a pale stain, scale bars, legends of every size, figures of an evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.synthetic import draw_field
from cellwright.evaluation.evaluate import evaluate_images, evaluate_pairs
from cellwright.evaluation.pairing import pair_datasets
from cellwright.evaluation.tables import confusion
from cellwright.report.colours import CLASS_COLOURS, YELLOW
from cellwright.report.draw import draw_overlay, draw_picture, line_width
from cellwright.report.error_picture import draw_errors
from cellwright.report.evaluation_figures import draw_pr_curves, figures_section, write_figures
from cellwright.report.legend import draw_scale_bar, legend_strip, text_size

PALE = (238, 222, 232)  # the ground of an H&E stain


def squares(hw: tuple[int, int], corners: list[tuple[int, int]], side: int, **fields: object) -> Instances:
    labels = np.zeros(hw, np.int32)
    for k, (y, x) in enumerate(corners):
        labels[y : y + side, x : x + side] = k + 1
    return Instances.from_masks(MaskSet.from_label_map(labels)[0], **fields)  # type: ignore[arg-type]


def luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_every_line_has_dark_pixels_beside_it_on_a_pale_stain() -> None:
    cells = squares((60, 60), [(10, 10), (10, 30)], 15)
    pale = Image.from_array(np.broadcast_to(np.array(PALE, np.uint8), (60, 60, 3)).copy())
    picture = draw_overlay(pale, cells, legend=False)
    y, x = np.nonzero((picture == YELLOW).all(-1))
    assert len(y) > 100
    grey = np.pad(luminance(picture), 1, constant_values=255)
    darkest = np.min([grey[y + dy, x + dx] for dy in (0, 1, 2) for dx in (0, 1, 2)], axis=0)
    assert (luminance(np.array(YELLOW)) - darkest > 100).all()
    assert (picture[0, 0] == PALE).all()  # away from objects the image is unchanged


def test_halos_do_not_hide_the_lines_of_neighbours() -> None:
    cells = squares((40, 60), [(10, 10), (10, 25)], 15, class_ids=np.array([0, 1]))  # they touch at x = 25
    white = Image.from_array(np.full((40, 60, 3), 255, np.uint8))
    picture = draw_overlay(white, cells, legend=False)
    assert (picture[12:22, 24] == CLASS_COLOURS[0]).all()
    assert (picture[12:22, 25] == CLASS_COLOURS[1]).all(-1).sum() >= 5  # dashed


@pytest.mark.parametrize("n", [2, 3, 7])
def test_class_colours_are_seen_on_159_small_objects(n: int) -> None:
    corners = [(14 * (k // 13) + 2, 14 * (k % 13) + 2) for k in range(159)]
    cells = squares((184, 184), corners, 7, class_ids=np.arange(159) % n)
    pale = Image.from_array(np.broadcast_to(np.array(PALE, np.uint8), (184, 184, 3)).copy())
    picture = draw_picture(pale, cells)
    factor = picture.shape[1] // 184
    for k, (y, x) in enumerate(corners):
        own = picture[factor * y : factor * (y + 7), factor * x : factor * (x + 7)].reshape(-1, 3)
        n_coloured = (own == CLASS_COLOURS[k % n]).all(1).sum()
        assert n_coloured >= 0.35 * 4 * 7 * factor, f"object {k}"


def test_lines_fit_picture_and_objects() -> None:
    many, few = [(k * 80, 0) for k in range(10)], [(0, 0)]
    large, small = squares((4000, 900), few, 100).masks, squares((900, 900), many, 60).masks
    assert line_width(large) > line_width(small) >= 1
    assert line_width(squares((4000, 900), many, 8).masks) == 1  # small objects keep their inside
    assert line_width(MaskSet.empty((4000, 4000))) == 1


@pytest.mark.parametrize("width", [90, 400, 1000, 4000])
def test_legends_are_legible_at_every_size(width: int) -> None:
    image = Image.from_array(np.zeros((40, width, 3), np.uint8))
    picture = draw_overlay(image, Instances.empty((40, width)), class_names=["tumour", "stroma", "lymphocyte"])
    rows = picture.shape[0] - 40
    assert picture.shape[1] == width
    # Text has at least 13 px, and 1.3 % of the width where the picture is reduced to a screen.
    assert text_size(width) >= max(13, 0.013 * width)
    assert rows >= 1.5 * text_size(width)
    assert (picture[40:] < 100).any()


def test_captions_name_the_image_and_grow_the_strip_by_one_row() -> None:
    plain, captioned = legend_strip(400, []), legend_strip(400, [], caption="plate1/B03: 12 objects")
    assert plain.shape[0] == 0
    assert captioned.shape[0] >= text_size(400)
    assert (captioned < 100).any()
    assert legend_strip(60, [], caption="a" * 300).shape[1] == 60


@pytest.mark.parametrize(
    ("um_per_px", "width", "length_um"), [(0.5, 1000, 100), (0.25, 4000, 200), (1.3, 300, 50), (20, 800, 2000)]
)
def test_a_scale_bar_has_a_round_length_of_at_most_a_fifth(um_per_px: float, width: int, length_um: float) -> None:
    canvas = np.full((width, width, 3), 90, np.uint8)
    draw_scale_bar(canvas, um_per_px)
    white = (canvas == 255).all(-1)
    longest = max(int(row.sum()) for row in white)
    assert abs(longest - length_um / um_per_px) <= 2
    assert longest <= 0.2 * width + 2
    assert not (canvas[: width // 2] != 90).any()


def test_only_calibrated_images_have_a_scale_bar() -> None:
    image, cells = draw_field(0, (128, 160), 10)
    plain = draw_picture(replace(image, pixel_size_um=None), cells, caption="a.tif")
    calibrated = draw_picture(replace(image, pixel_size_um=(0.5, 0.5)), cells, caption="a.tif")
    changed = (plain != calibrated).any(-1)
    assert changed.any()
    assert not changed[: plain.shape[0] // 2].any()
    assert plain.shape == calibrated.shape
    tiny = np.full((12, 12, 3), 9, np.uint8)
    draw_scale_bar(tiny, 0.5)
    assert (tiny == 9).all()  # no room for one


def test_error_kinds_differ_in_grey_on_dark_ground() -> None:
    hw = (200, 200)
    corner = squares(hw, [(60, 60)], 50)
    dark, none = Image.from_array(np.full(hw, 0, np.uint8)), corner[:0]
    pictures = []
    for kind in ("missed", "merged", "split", "poorly_outlined", "wrong_class"):
        pictures.append(_grey(draw_errors(dark, corner, none, truth_kinds=np.array([kind]), predicted_kinds=NO_KINDS)))
    for kind in ("duplicate", "spurious", "correct"):
        pictures.append(_grey(draw_errors(dark, none, corner, truth_kinds=NO_KINDS, predicted_kinds=np.array([kind]))))
    for i, first in enumerate(pictures):
        assert first.max() > 100  # bright enough on black
        for second in pictures[i + 1 :]:
            assert np.count_nonzero(np.abs(first - second) > 60) > 30


NO_KINDS = np.zeros(0, "U15")


def _grey(picture: np.ndarray) -> np.ndarray:
    return luminance(picture[:800])  # without the legend


def scored(truth: Instances, class_ids: np.ndarray) -> Instances:
    return replace(truth, class_ids=class_ids, scores=np.linspace(1, 0.5, len(truth)).astype(np.float32))


def test_the_confusion_of_classes() -> None:
    hw = (60, 200)
    truth = squares(hw, [(5, 25 * k + 2) for k in range(7)], 15, class_ids=np.array([0, 0, 0, 1, 1, 1, 1]))
    found = scored(truth[:6], np.array([0, 0, 1, 1, 1, 0]))
    stray = scored(squares(hw, [(40, 100)], 10), np.array([1]))
    labels = np.concatenate([found.masks.to_dense(), stray.masks.to_dense()])
    predicted = Instances.from_masks(
        MaskSet.from_dense(labels), class_ids=np.array([0, 0, 1, 1, 1, 0, 1]), scores=np.full(7, 0.9)
    )
    report = evaluate_pairs([predicted], [truth], class_names=["a", "b"])
    table = confusion(report.data)
    assert table.to_numpy().tolist() == [[2, 1, 0], [1, 2, 1], [0, 1, 0]]
    assert table.iloc[:2].sum().sum() == len(truth)
    assert report.tables["confusion"]["annotation"].tolist() == ["a", "b", "(no match)"]
    assert "confusion" not in evaluate_pairs([predicted], [truth], metrics=["pq"]).tables


def test_figures_are_written_where_there_is_something_to_show(tmp_path: Path) -> None:
    image, truth = draw_field(1, (128, 160), 12)
    predicted = scored(truth[:8], np.zeros(8, np.int64))
    report = evaluate_pairs([predicted], [truth])
    paths = write_figures(report, tmp_path)
    assert [path.name for path in paths] == ["pr_curve.png"]  # with one class, there is nothing to confuse
    classes = np.arange(12) % 2
    two = evaluate_pairs([scored(truth[:8], classes[:8])], [replace(truth, class_ids=classes)], class_names=["a", "b"])
    paths = write_figures(two, tmp_path)
    assert [path.name for path in paths] == ["pr_curve.png", "confusion.png"]
    for path in paths:
        with Pillow.open(path) as picture:
            assert min(picture.size) > 300
    assert [line[:2] for line in figures_section(paths, tmp_path)] == ["##", "![", "!["]
    assert figures_section([], tmp_path) == []
    several = draw_pr_curves([("one", report), ("two", report)], tmp_path / "both.png")
    assert several.stat().st_size > 5000
    unscored = evaluate_pairs([replace(predicted, scores=None)], [truth])
    assert write_figures(unscored, tmp_path / "b") == []
    assert write_figures(evaluate_pairs([predicted], [truth], metrics=["pq"]), tmp_path / "c") == []
    assert write_figures(evaluate_pairs([predicted[:0]], [truth[:0]]), tmp_path / "d") == []
    assert image.image_hw == (128, 160)


def test_the_confusion_of_unmatched_images_pairs(tmp_path: Path) -> None:
    """Classes that only the predictions have get a row and a column too."""
    _, truth = draw_field(2, (64, 64), 4)
    sample = Sample("a", None, (64, 64), Loaded(truth))
    predicted = Dataset((replace(sample, load=Loaded(scored(truth, np.ones(len(truth), np.int64)))),), ("x", "y"))
    report = evaluate_images(pair_datasets("p", predicted, Dataset((sample,), ("x",))))
    assert confusion(report.data).to_numpy().tolist() == [[0, len(truth), 0], [0, 0, 0], [0, 0, 0]]
    assert json.dumps(report.tables["confusion"].to_dict("records"))
    assert len(write_figures(report, tmp_path)) == 2
