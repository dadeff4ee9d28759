"""Edits against slow versions of them, with undo, redo, other levels, and the journal read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_edits as slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skimage import measure

from cellwright.core.errors import UsageError
from cellwright.core.instances import Instances
from cellwright.serve import layer
from cellwright.serve.actions import Edit, make
from cellwright.serve.annotation import Annotation, Applied, Conflict, Start
from cellwright.serve.edits import split
from cellwright.serve.layer import Box
from cellwright.serve.starts import start_from

HW = (37, 49)
CLASSES = ("a", "b")
# Numbers whose distances to centres of pixels are no ties.
places = st.tuples(st.integers(-4, 42), st.integers(-4, 54)).map(lambda p: (p[0] + 0.137, p[1] + 0.271))
radii = st.integers(1, 9).map(lambda r: r + 0.377)


def drawn(seed: int) -> Instances:
    """Discs with scores, some of which overlap."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: HW[0], : HW[1]]
    masks = [(yy - y) ** 2 + (xx - x) ** 2 <= r * r for y, x, r in rng.uniform((0, 0, 2), (37, 49, 7), (14, 3))]
    from cellwright.core.masks import MaskSet

    masks = [mask & ~((yy - 18) ** 2 + (xx - 24) ** 2 < 9) for mask in masks]
    scores = np.round(rng.uniform(0.1, 1, 14), 2).astype(np.float32)
    return Instances.from_masks(MaskSet.from_dense(np.array(masks)), scores=scores, class_ids=rng.integers(0, 2, 14))


def slow_image(start: Start, labels: np.ndarray) -> slow.SlowImage:
    rows = start.table.rows(start.table.columns()["id"].tolist())
    objects = {row.id: (row.class_id, row.score, row.manual) for row in rows}
    return slow.SlowImage(labels, objects, start.state.min_score)


def whole(annotation: Annotation) -> np.ndarray:
    return annotation.chunks.read(Box(0, 0, *HW))


def check(annotation: Annotation, expected: slow.SlowImage) -> None:
    labels = whole(annotation)
    assert np.array_equal(labels, expected.labels)
    table = annotation.table
    rows = {row.id: row for row in table.rows(table.columns()["id"].tolist())}
    for region in measure.regionprops(labels.astype(np.int64)):
        row = rows.pop(region.label)
        assert (row.area, tuple(row.box)) == (region.area, region.bbox)
        assert (row.class_id, row.score, row.manual) == expected.objects[row.id]
    assert rows == {}
    assert len(table) == len(expected.objects)
    state = annotation.state
    assert (state.min_score, state.min_area) == (np.float32(expected.min_score), expected.min_area)
    assert [list(region) for region in state.regions] == expected.regions
    for level in range(annotation.chunks.n_levels):
        pixels = labels[:: 1 << level, :: 1 << level]
        for row, column in annotation.chunks.chunks_of(Box(0, 0, *annotation.chunks.level_hw(level))):
            part = annotation.chunks.box_of(row, column, level)
            assert np.array_equal(annotation.chunks.chunk(row, column, level), pixels[part.within(Box(0, 0, *HW))])


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    op = draw(st.sampled_from(sorted(DOES)))
    fields: dict[str, Any] = {"op": op}
    if op in ("delete", "merge", "fill_holes", "smooth", "set_class"):
        fields["ids"] = draw(st.lists(st.integers(1, 16), min_size=2, max_size=3, unique=True))
    if op == "set_class":
        fields["class"] = draw(st.integers(0, 1))
    if op == "delete_rect":
        (y0, x0), (y1, x1) = draw(places), draw(places)
        fields["box"] = [y0, x0, y1, x1]
    if op in ("draw", "ignore_region"):
        fields["outline"] = draw(st.lists(places, min_size=3, max_size=7, unique=True))
        fields["class"] = draw(st.integers(0, 1))
    if op in ("brush", "erase"):
        fields["path"] = draw(st.lists(places, min_size=1, max_size=4))
        fields["radius"] = draw(radii)
        fields["id"] = draw(st.none() | st.integers(1, 16))
    if op == "filter":
        fields |= {"min_score": draw(st.sampled_from([0.0, 0.3, 0.5])), "min_area": draw(st.sampled_from([0, 40]))}
    if op == "unignore":
        fields["index"] = draw(st.integers(0, 2))
    return fields


def existing(image: slow.SlowImage, ids: list[int]) -> list[int]:
    return ids if all(number in image.objects for number in ids) else []


def delete(image: slow.SlowImage, request: dict[str, Any], _: set[int]) -> None:
    image.labels[np.isin(image.labels, existing(image, request["ids"]))] = 0


def delete_rect(image: slow.SlowImage, request: dict[str, Any], hidden: set[int]) -> None:
    y0, x0, y1, x1 = request["box"]
    rows, columns = sorted((y0, y1)), sorted((x0, x1))
    inside = np.zeros(HW, bool)
    low, high = np.floor([rows[0], columns[0]]).astype(int).clip(0), np.ceil([rows[1], columns[1]]).astype(int).clip(0)
    inside[low[0] : high[0], low[1] : high[1]] = True
    image.labels[np.isin(image.labels, [*({*np.unique(image.labels[inside])} - hidden - {0})])] = 0


def draw_outline(image: slow.SlowImage, request: dict[str, Any], hidden: set[int]) -> None:
    image.paint(slow.inside_outline(request["outline"], HW), None, request["class"], hidden)


def brush(image: slow.SlowImage, request: dict[str, Any], hidden: set[int]) -> None:
    if request["id"] is None or request["id"] in image.objects:
        image.paint(slow.near_path(request["path"], request["radius"], HW), request["id"], 0, hidden)


def erase(image: slow.SlowImage, request: dict[str, Any], hidden: set[int]) -> None:
    where = slow.near_path(request["path"], request["radius"], HW)
    number = request["id"]
    image.labels[where & (~np.isin(image.labels, [*hidden]) if number is None else image.labels == number)] = 0


def merge(image: slow.SlowImage, request: dict[str, Any], _: set[int]) -> None:
    ids = existing(image, request["ids"])
    if ids:
        largest = max(ids, key=lambda number: (image.labels == number).sum())
        image.objects[ids[0]] = (*image.objects[largest][:2], True)
        image.labels[np.isin(image.labels, ids)] = ids[0]


def fill_holes(image: slow.SlowImage, request: dict[str, Any], hidden: set[int]) -> None:
    for number in existing(image, request["ids"]):
        mask = image.labels == number
        image.labels[slow.with_holes_filled(mask) & np.isin(image.labels, [0, *hidden])] = number


def smooth(image: slow.SlowImage, request: dict[str, Any], hidden: set[int]) -> None:
    for number in existing(image, request["ids"]):
        mask = image.labels == number
        result, free = slow.smoothed(mask), np.isin(image.labels, [0, *hidden])
        if (result & (mask | free)).any():
            image.labels[mask & ~result] = 0
            image.labels[result & free] = number


def set_class(image: slow.SlowImage, request: dict[str, Any], _: set[int]) -> None:
    for number in existing(image, request["ids"]):
        if image.objects[number][0] != request["class"]:
            image.objects[number] = (request["class"], image.objects[number][1], True)


def ignore(image: slow.SlowImage, request: dict[str, Any], _: set[int]) -> None:
    if slow.inside_outline(request["outline"], HW).any():
        image.regions.append(request["outline"])


def unignore(image: slow.SlowImage, request: dict[str, Any], _: set[int]) -> None:
    if request["index"] < len(image.regions):
        del image.regions[request["index"]]


def filter_(image: slow.SlowImage, request: dict[str, Any], _: set[int]) -> None:
    limits = request["min_score"], request["min_area"]
    image.labels[np.isin(image.labels, [*image.hidden(np.float32(limits[0]), limits[1])])] = 0
    image.min_score, image.min_area = limits


DOES = {
    "delete": delete,
    "delete_rect": delete_rect,
    "draw": draw_outline,
    "brush": brush,
    "erase": erase,
    "merge": merge,
    "fill_holes": fill_holes,
    "smooth": smooth,
    "set_class": set_class,
    "ignore_region": ignore,
    "unignore": unignore,
    "filter": filter_,
}


def check_boxes(applied: Applied, before: np.ndarray, after: np.ndarray) -> None:
    """What is answered covers what has changed, and each box is tight."""
    covered = np.zeros(HW, bool)
    for box in applied.boxes:
        part = box.within(Box(0, 0, *HW))
        covered[part] = True
    assert not (covered < (before != after)).any()


def run_all(path: Path, seed: int, sequence: list[dict[str, Any] | None]) -> None:
    start = start_from(drawn(seed), 0.3)
    annotation = Annotation(path, HW, lambda: start)
    image = slow_image(start, whole(annotation))
    done, undone = [], []
    for request in sequence:
        before = whole(annotation)
        if request is None:
            if done:
                undone.append(image)
                image = done.pop()
                annotation.undo()
        elif request == {"op": "redo"}:
            if undone:
                done.append(image)
                image = undone.pop()
                annotation.redo()
        else:
            hidden = image.hidden(np.float32(image.min_score), image.min_area)
            expected = image.copied()
            DOES[request["op"]](expected, request, hidden)
            expected.settle(image, hidden)
            rev = annotation.rev
            try:
                applied = make(annotation, Edit.model_validate(request), CLASSES)
            except UsageError:
                assert np.array_equal(expected.labels, image.labels), request
            else:
                check_boxes(applied, before, whole(annotation))
            if annotation.rev > rev:
                done.append(image)
                undone.clear()
                image = expected
        image.next_id = annotation.table.next_id
    check(annotation, image)
    rev = annotation.rev
    annotation.close()
    again = Annotation(path, HW, lambda: start)
    check(again, image)
    assert again.rev == rev
    for _ in done:
        again.undo()
    check(again, done[0] if done else image)
    again.close()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that edits of a small image reach over several chunks and levels."""
    monkeypatch.setattr(layer, "CHUNK", 16)


steps = st.lists(requests() | st.none() | st.just({"op": "redo"}), min_size=2, max_size=7)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), steps)
def test_edits_are_those_of_slow_versions(tmp_path: Path, seed: int, sequence: list[dict[str, Any] | None]) -> None:
    path = tmp_path / "a.journal"
    path.unlink(missing_ok=True)
    run_all(path, seed, sequence)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000), steps)
def test_many_edits_are_those_of_slow_versions(
    tmp_path: Path, seed: int, sequence: list[dict[str, Any] | None]
) -> None:
    path = tmp_path / "a.journal"
    path.unlink(missing_ok=True)
    run_all(path, seed, sequence)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200), st.lists(places, min_size=2, max_size=4, unique=True))
def test_a_split_loses_no_pixel_and_separates_what_the_line_separates(
    seed: int, line: list[tuple[float, float]]
) -> None:
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: HW[0], : HW[1]]
    mask = (yy - 19) ** 2 / 200 + (xx - 24) ** 2 / 400 <= rng.uniform(0.3, 1.2)
    labels = np.where(mask, 7, np.where(yy < 5, 3, 0)).astype(np.uint32)
    result, n = split(labels, 7, line, 20)
    assert np.array_equal(result != 0, labels != 0)
    assert np.array_equal(result[labels != 7], labels[labels != 7])
    numbers, sizes = np.unique(result[mask], return_counts=True)
    assert numbers.tolist() == ([7, *range(20, 19 + n)] if n > 1 else [7])
    cut = mask & slow.near_path(line, 0.5, HW)
    parts = measure.label(mask & ~cut, connectivity=1)
    large = [k for k in range(1, parts.max() + 1) if (parts == k).sum() >= max(9, 0.01 * mask.sum())]
    if n > 1:
        assert n == len(large)
        assert [len({*result[parts == k].tolist()}) for k in large] == [1] * n
        assert sizes[0] == sizes.max() or sizes[0] >= sizes.max() - cut.sum()
    else:
        assert len(large) < 2


def test_an_edit_of_what_another_window_has_changed_is_refused(tmp_path: Path) -> None:
    start = start_from(drawn(1), 0.0)
    annotation = Annotation(tmp_path / "a.journal", HW, lambda: start)
    first, second = annotation.table.columns()["id"][:2].tolist()
    erased = [(annotation.table.rows([first])[0].y0 + 1.5, annotation.table.rows([first])[0].x0 + 4.5)]
    make(annotation, Edit(op="erase", path=erased, radius=6.0, rev=0), CLASSES)
    before = whole(annotation)
    for request in ({"op": "delete", "ids": [first]}, {"op": "undo"}, {"op": "merge", "ids": [second, first]}):
        with pytest.raises(Conflict):
            make(annotation, Edit.model_validate(request | {"rev": 0}), CLASSES)
    assert np.array_equal(whole(annotation), before)
    make(annotation, Edit(op="delete", ids=[second], rev=0), CLASSES)
    rev = make(annotation, Edit(op="accept", edit_id="x"), CLASSES).rev
    assert make(annotation, Edit(op="accept", edit_id="x"), CLASSES).rev == rev == annotation.rev
    annotation.close()
    annotation = Annotation(tmp_path / "a.journal", HW, lambda: start)
    assert make(annotation, Edit(op="accept", edit_id="x"), CLASSES).rev == rev  # sent again after the server ended
    annotation.close()
