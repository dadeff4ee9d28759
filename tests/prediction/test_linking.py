"""Objects joined through planes and time points, against a direct implementation and Cellpose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cellwright as cw
from cellwright.core.masks import MaskSet
from cellwright.prediction.linking import continued, divided, link_stack

VOLUMES = hnp.arrays(
    np.int64, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 7)), elements=st.integers(0, 4)
)


def overlaps(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """IoU of each label 1..n before (rows) and after (columns), from whole masks."""
    table = np.zeros((before.max() + 1, after.max() + 1))
    for i in range(1, len(table)):
        for j in range(1, table.shape[1]):
            union = ((before == i) | (after == j)).sum()
            table[i, j] = ((before == i) & (after == j)).sum() / union if union else 0
    return table[1:, 1:]


def joined_directly(planes: np.ndarray, iou: float) -> np.ndarray:
    """Every pair is compared; an object before has one object after, and takes the best of those that have none."""
    joined, n_ids = [], 0
    for labels in planes:
        values = [value for value in np.unique(labels) if value]
        plane = np.searchsorted([0, *values], labels)
        numbers = dict.fromkeys(range(1, len(values) + 1), 0)
        if joined and values:
            table = overlaps(joined[-1], plane)
            wanted: dict[int, list[tuple[float, int]]] = {}
            for i, row in enumerate(table):
                best = max(range(len(row)), key=lambda j: (row[j], -j))
                if row[best] >= iou:
                    wanted.setdefault(best, []).append((-row[best], i))
            numbers |= {j + 1: min(choices)[1] + 1 for j, choices in wanted.items()}
        for j, number in numbers.items():
            n_ids += number == 0
            numbers[j] = number or n_ids
        joined.append(np.array([0, *numbers.values()])[plane])
    return np.array(joined)


@given(VOLUMES, st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]))
@settings(max_examples=300, deadline=None)
def test_planes_are_joined_as_by_comparing_every_pair(planes: np.ndarray, iou: float) -> None:
    # Arrays with hardly any background would be refused as inverted masks.
    joined = cw.join_planes([cw.Instances.from_label_map(plane) for plane in planes], stitch=iou)
    np.testing.assert_array_equal(joined, joined_directly(planes, iou))
    assert joined.dtype == np.uint32
    assert set(np.unique(joined)) - {0} == set(range(1, int(joined.max(initial=0)) + 1))


def test_the_numbers_of_cellpose() -> None:
    """What ``cellpose.utils.stitch3D`` (3.1.1) returns for three planes of a row of pixels, at 0.25."""
    planes = [
        [1, 1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 3, 3, 3, 0, 4],
        [1, 1, 0, 2, 2, 2, 2, 2, 0, 3, 3, 4, 4, 4, 4, 0, 0],
        [0, 1, 1, 1, 2, 2, 3, 0, 0, 4, 4, 4, 4, 4, 4, 0, 5],
    ]
    cellpose = [
        [1, 1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 3, 3, 3, 0, 4],
        [1, 1, 0, 2, 2, 2, 2, 2, 0, 5, 5, 3, 3, 3, 3, 0, 0],
        [0, 1, 1, 1, 2, 2, 6, 0, 0, 3, 3, 3, 3, 3, 3, 0, 7],
    ]
    assert cw.join_planes(np.array(planes)[:, None])[:, 0].tolist() == cellpose


def test_of_equal_overlaps_one_counts() -> None:
    """Cellpose gives both parts the number 1: [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]."""
    planes = np.array([[[1, 1, 1, 1, 0]], [[1, 1, 2, 2, 0]]])
    assert cw.join_planes(planes)[:, 0].tolist() == [[1, 1, 1, 1, 0], [1, 1, 2, 2, 0]]


def test_planes_of_instances_and_bad_input() -> None:
    plane = np.zeros((5, 6), np.uint8)
    plane[1:3, 1:3] = 7
    np.testing.assert_array_equal(cw.join_planes([cw.Instances.from_label_map(plane)] * 2), [plane > 0] * 2)
    assert cw.join_planes([]).shape == (0, 0, 0)
    with pytest.raises(cw.InputError, match=r"one size(.|\n)*5 x 6 and 6 x 5"):
        cw.join_planes([plane, plane.T])
    for bad in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(cw.UsageError, match="invalid `stitch`"):
            cw.join_planes([plane], stitch=bad)


# --- time points ----------------------------------------------------------------------------------------------------


def linked(frames: np.ndarray, iou: float = 0.25):
    """Links of label arrays (T, Z, H, W), and the arrays with the numbers of tracks."""
    parts = [[MaskSet.from_label_map(plane)[0] for plane in frame] for frame in frames]
    links = link_stack(lambda t, z: parts[t][z], len(parts), len(parts[0]), iou)
    maps = [[part.to_label_map(links.ids[t, z]) for z, part in enumerate(row)] for t, row in enumerate(parts)]
    return links, np.array(maps)


@given(VOLUMES, st.sampled_from([0.25, 0.5]))
@settings(max_examples=200, deadline=None)
def test_time_points_are_joined_as_planes_are_where_nothing_divides(planes: np.ndarray, iou: float) -> None:
    links, tracks = linked(planes[:, None], iou)
    if not links.parents:
        np.testing.assert_array_equal(tracks[:, 0], joined_directly(planes, iou))
    assert links.n == tracks.max(initial=0)


def field(*discs: tuple[int, int, int]) -> np.ndarray:
    """Discs (y, x, radius), numbered from 1, in 60 x 80 pixels."""
    y, x = np.mgrid[:60, :80]
    labels = np.zeros((60, 80), int)
    for k, (cy, cx, radius) in enumerate(discs, start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = k
    return labels


def test_a_cell_divides_into_two_of_similar_size() -> None:
    frames = [field((20, 20, 9), (40, 60, 8)), field((15, 20, 6), (27, 20, 6), (40, 61, 8)), field((13, 20, 6), (40, 62, 8))]  # fmt: skip # noqa: E501
    links, tracks = linked(np.array(frames)[:, None])
    assert links.parents == {3: 1, 4: 1}
    assert [np.unique(frame)[1:].tolist() for frame in tracks] == [[1, 2], [2, 3, 4], [2, 3]]
    assert links.n == 4


@pytest.mark.parametrize(
    "after",
    [
        [(20, 20, 8), (9, 27, 3)],  # a small piece
        [(14, 20, 5), (26, 20, 5), (20, 28, 3)],  # three pieces
        [(10, 20, 6), (32, 20, 6)],  # both have moved out
        [(20, 20, 4)],  # it shrinks
    ],
)
def test_what_is_less_clear_is_no_division(after: list[tuple[int, int, int]]) -> None:
    links, _ = linked(np.array([field((20, 20, 9)), field(*after)])[:, None])
    assert links.parents == {}


def test_a_gap_ends_a_track() -> None:
    frames = [field((20, 20, 9)), field(), field((20, 20, 9))]
    links, tracks = linked(np.array(frames)[:, None])
    assert (links.n, tracks[0].max(), tracks[2].max()) == (2, 1, 2)


def test_objects_of_several_planes_are_linked_by_their_voxels() -> None:
    """The upper disc alone overlaps by .1 only; with the lower one, which stays, the object is the same."""
    low, high, moved = field((30, 30, 10)), field((30, 30, 10)), field((30, 40, 10))
    links, tracks = linked(np.array([[low, high, high * 0], [low, moved, moved]]), 0.25)
    assert links.n == 1
    assert tracks[1, 1].max() == 1
    share = ((low > 0).sum() + ((high > 0) & (moved > 0)).sum()) / ((low > 0).sum() + 3 * (high > 0).sum())
    assert share > 0.25
    assert linked(np.array([[low], [moved]]), 0.5)[0].n == 2


def test_at_most_two_planes_are_loaded_at_a_time() -> None:
    """The planes are asked for in an order in which a reader keeps two."""
    loads: list[tuple[int, int]] = []

    def load(t: int, z: int) -> MaskSet:
        loads.append((t, z))
        return MaskSet.from_label_map(field((20, 20, 9)))[0]

    links = link_stack(load, 1, 5, 0.25)
    assert loads == [(0, z) for z in range(5)]
    assert links.n == 1
    loads.clear()
    link_stack(load, 2, 2, 0.25)
    assert loads == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (1, 0), (0, 1), (1, 1)]


def test_nothing_anywhere() -> None:
    nothing = np.zeros(0, np.int64)
    assert continued(nothing, nothing, nothing, nothing, np.array([3, 4]), 0.5).tolist() == [-1, -1]
    assert divided(nothing, nothing, nothing, nothing, np.array([3, 4])).tolist() == [-1, -1]
    links, _ = linked(np.zeros((3, 2, 4, 4), int))
    assert (links.n, links.parents) == (0, {})
