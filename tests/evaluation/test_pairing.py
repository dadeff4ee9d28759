"""Pairing of predictions and ground truth: images by name, classes by name, thresholds by class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.data.identity import annotation_digest
from cellwright.evaluation.pairing import (
    PairedImages,
    pair_datasets,
    pair_in_order,
    seen_warnings,
    with_threshold,
)

Boxes = Callable[..., Instances]


def dataset_of(objects: dict[str, Instances], class_names: tuple[str, ...] = ("cell",), **info: object) -> Dataset:
    samples = [Sample(name, None, cells.image_hw, Loaded(cells)) for name, cells in objects.items()]
    return Dataset(tuple(samples), class_names, info=info)


@pytest.fixture
def classed(boxes: Boxes) -> Callable[..., Dataset]:
    """A dataset of one image with four objects of the given classes."""

    def build(names: tuple[str, ...], class_ids: Sequence[int], **info: object) -> Dataset:
        corners = [(20 * (k // 2), 20 * (k % 2)) for k in range(4)]
        cells = boxes(
            *((y, x, y + 10, x + 10) for y, x in corners),
            class_ids=np.array(class_ids),
            scores=np.array([0.1, 0.4, 0.7, 0.9]),
        )
        return dataset_of({"a": cells}, names, **info)

    return build


def test_classes_are_paired_by_name(classed: Callable[..., Dataset]) -> None:
    truth = classed(("live", "dead"), [0, 0, 1, 1])
    images = pair_datasets("p", classed(("dead", "live"), [1, 1, 0, 0], score_threshold=[0.2, 0.7]), truth)
    assert images.class_names == ("live", "dead")
    assert images.predicted[0].read_instances().class_ids.tolist() == [0, 0, 1, 1]
    assert images.score_threshold == (0.7, 0.2)
    extended = pair_datasets("p", classed(("dead", "live", "odd"), [1, 1, 0, 2]), truth)
    assert extended.class_names == ("live", "dead", "odd")
    assert "odd" in extended.notes[0]


def test_a_single_class_with_another_name_is_compared_without_classes(classed: Callable[..., Dataset]) -> None:
    truth = classed(("live", "dead"), [0, 0, 1, 1])
    images = pair_datasets("p", classed(("cell",), [0, 0, 0, 0], score_threshold=0.3), truth)
    assert images.class_names == ("object",)
    assert images.score_threshold == 0.3
    assert "classes are ignored" in images.notes[0]
    assert set(images.truth[0].read_instances().class_ids.tolist()) == {0}
    single = pair_datasets("p", classed(("nucleus",), [0, 0, 0, 0]), classed(("cell",), [0, 0, 0, 0]))
    assert single.class_names == ("cell",)
    assert single.notes == ()


def test_several_classes_without_a_common_name_are_refused(classed: Callable[..., Dataset]) -> None:
    truth = classed(("live", "dead"), [0, 0, 1, 1])
    with pytest.raises(UsageError, match=r"no class in common[\s\S]*`ignore_classes=True`"):
        pair_datasets("p", classed(("x", "y"), [0, 0, 1, 1]), truth)


def test_ignoring_classes_applies_thresholds_that_differ_by_class(classed: Callable[..., Dataset]) -> None:
    truth = classed(("live", "dead"), [0, 0, 1, 1])
    predicted = classed(("x", "y"), [0, 0, 1, 1], score_threshold=[0.0, 0.8])
    for images in (
        pair_datasets("p", predicted, truth, ignore_classes=True),
        pair_in_order(predicted, truth).without_classes(),
    ):
        assert images.predicted[0].read_instances().ids.tolist() == [1, 2, 4]
        assert images.score_threshold == 0.0
        assert images.class_names == ("object",)
    equal = pair_in_order(with_threshold(predicted, (0.5, 0.5)), truth).without_classes()
    assert len(equal.predicted[0].read_instances()) == 4
    assert equal.score_threshold == 0.5


def test_images_are_paired_by_the_last_part_of_their_name_if_it_is_unique(boxes: Boxes) -> None:
    cells = boxes((0, 0, 10, 10))
    truth = dataset_of({"a/x": cells, "b/x": cells})
    with pytest.raises(InputError, match="2 of 2 images have no prediction"):
        pair_datasets("p", dataset_of({"x": cells}), truth)
    deeper = dataset_of({"deep/er/a/x": cells, "deep/er/b/y": cells})
    assert len(pair_datasets("p", deeper, dataset_of({"x": cells, "y": cells})).truth) == 2


def test_predictions_without_ground_truth_are_refused(boxes: Boxes) -> None:
    cells = boxes((0, 0, 10, 10))
    predicted, truth = dataset_of(dict.fromkeys("xyz", cells)), dataset_of(dict.fromkeys("xy", cells))
    with pytest.raises(InputError, match="1 of 3 images with predictions have no ground truth") as caught:
        pair_datasets("p", predicted, truth)
    assert "got: z" in str(caught.value)


def test_part_of_the_ground_truth(boxes: Boxes) -> None:
    """Images that are annotated but not evaluated may have predictions."""
    cells = boxes((0, 0, 10, 10))
    everything = dataset_of(dict.fromkeys("xyz", cells))
    part = everything.with_samples(everything.samples[1:])
    images = pair_datasets("p", everything, everything, part)
    assert [sample.id for sample in images.predicted] == ["y", "z"]


def test_sequences_are_paired_in_order(boxes: Boxes) -> None:
    first, second = boxes((0, 0, 10, 10)), boxes((20, 20, 30, 30), class_ids=np.array([2]))
    images = pair_in_order([first, second], dataset_of({"x": second, "y": first}, ("a", "b", "c")))
    assert [sample.id for sample in images.predicted] == [sample.id for sample in images.truth] == ["x", "y"]
    assert images.class_names == ("a", "b", "c")
    assert images.predicted[1].read_instances() is second
    numbered = pair_in_order([first, second], [first, second])
    assert [sample.id for sample in numbered.truth] == ["0", "1"]
    assert numbered.class_names == ("0", "1", "2")
    assert pair_in_order([], []).class_names == ("0",)
    with pytest.raises(InputError, match=r"different numbers of images[\s\S]*got: 1 image\n[\s\S]*2 images"):
        pair_in_order([first], [first, second])
    with pytest.raises(InputError, match="image_ids"):
        pair_in_order([first], [first], image_ids=["x", "y"])


def test_a_digest_depends_on_the_objects_not_on_names(boxes: Boxes) -> None:
    cells, other = boxes((0, 0, 10, 10), (20, 20, 40, 30)), boxes((0, 0, 10, 10))
    assert annotation_digest(cells, "a") == annotation_digest(cells[::-1], "folder/b")
    assert annotation_digest(cells, "a") != annotation_digest(other, "a")
    none = Instances.empty((64, 64))
    assert annotation_digest(none, "x/a") == annotation_digest(none, "a") != annotation_digest(none, "b")


def test_warnings_if_the_model_was_trained_or_tuned_on_these_images(boxes: Boxes) -> None:
    cells, other = boxes((0, 0, 10, 10)), boxes((20, 20, 40, 30))
    samples = dataset_of({"x": cells, "y": other}).samples
    images = PairedImages("p", samples, samples, ("cell",))
    assert seen_warnings(images) == []
    tuned_on = {"split": "val", "images": [annotation_digest(other, "anything")]}
    trained_on = [annotation_digest(each, "x") for each in (cells, other)]
    trained, tuned = seen_warnings(dataclasses.replace(images, seen={"tuned_on": tuned_on, "trained_on": trained_on}))
    assert "trained on 2 of these 2 images" in trained
    assert "1 of these 2 images (split val)" in tuned
    for nothing in ({"tuned_on": {"images": []}}, {"tuned_on": 3, "trained_on": "abc"}, {"trained_on": [1, None]}):
        assert seen_warnings(dataclasses.replace(images, seen=nothing)) == []


def one_image(sample_id: str, image_hw: tuple[int, int] = (8, 9)) -> Dataset:
    return Dataset((Sample(sample_id, None, image_hw, Loaded(Instances.empty(image_hw))),), ("cell",))


@pytest.mark.parametrize("other", ["well_01.ome", "plate/well_01", "well_01.tif", "well_01.ome.tif"])
def test_names_may_differ_in_suffixes(other):
    for first, second in ((one_image("well_01"), one_image(other)), (one_image(other), one_image("well_01"))):
        images = pair_datasets("p", first, second)
        assert images.notes == ()
        assert [sample.id for sample in images.truth] == [second[0].id]


def test_two_single_images_always_pair():
    images = pair_datasets("p", one_image("img"), one_image("labels"))
    assert images.notes == (
        "img was paired with labels, the only image on the other side, although their names differ",
    )
    with pytest.raises(InputError, match="have no prediction"):
        pair_datasets("p", one_image("img", (9, 9)), one_image("labels"))
