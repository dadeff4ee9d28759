"""The segmenter suite accepts correct models and rejects each fault."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label

import cellwright as cw
from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.testing import check_segmenter, segmenter_checks
from cellwright.testing.segmenters import IMAGE_KINDS


class Good:
    """Connected bright regions, with their mean brightness as score."""

    def predict(self, images):
        return [self.objects(image.data) for image in images]

    def objects(self, pixels):
        grey = pixels.max(axis=2).astype(float) / np.iinfo(pixels.dtype).max
        labels = label(grey > 0.3 * max(grey.max(), 1e-6)) if grey.min() < grey.max() else np.zeros(grey.shape, int)
        masks, ids = MaskSet.from_label_map(labels)
        scores = np.array([grey[labels == i].mean() for i in ids])
        order = np.argsort(-scores, kind="stable")
        return Instances.from_masks(masks[order], scores=scores[order])


def test_a_correct_model_passes():
    check_segmenter(Good(), min_objects=12)


@pytest.mark.parametrize("name", ["classical", "nuclei"])
def test_bundled_models_pass(name):
    segmenter = cw.load_model(name, device="cpu")  # a model is itself a Segmenter
    check_segmenter(segmenter, kinds=["rgb"] if name == "nuclei" else IMAGE_KINDS, min_objects=6)


def changed(**methods):
    return type("Changed", (Good,), methods)()


def unsorted(self, pixels):
    return Good.objects(self, pixels)[::-1]


def without_scores(self, pixels):
    return Instances.from_masks(Good.objects(self, pixels).masks)


def of_another_size(self, pixels):
    return Instances.empty((5, 5), scored=True)


def empty_objects(self, pixels):
    return Instances.from_masks(MaskSet.from_dense(np.zeros((1, *pixels.shape[:2]), bool)), scores=[0.5])


def changing(self, pixels):
    pixels[0] = 0
    return Good.objects(self, pixels)


def random(self, pixels):
    masks = Good.objects(self, pixels).masks
    return Instances.from_masks(masks, scores=np.sort(np.random.default_rng().random(len(masks)))[::-1])


@pytest.mark.parametrize(
    ("methods", "check", "message"),
    [
        ({"objects": unsorted}, "gives_valid_objects", "descending order"),
        ({"objects": without_scores}, "gives_valid_objects", "expected a score"),
        ({"objects": of_another_size}, "gives_valid_objects", r"expected image_hw \(97, 128\), got \(5, 5\)"),
        ({"objects": empty_objects}, "gives_valid_objects", "at least one pixel"),
        ({"objects": changing}, "leaves_its_input_unchanged", "changed the pixels"),
        ({"objects": random}, "is_deterministic", "scores differ"),
        ({"objects": lambda self, pixels: [1]}, "gives_valid_objects", "expected Instances, got list"),
        (
            {"predict": lambda self, images: Good().predict(images[:1])},
            "keeps_the_order_of_images",
            "expected 6 results",
        ),
        ({"predict": lambda self, images: Good().predict(images)[::-1]}, "keeps_the_order_of_images", "image_hw"),
        ({"predict": lambda self, images: tuple(Good().predict(images))}, "accepts_no_images", "empty list"),
    ],
)
def test_a_fault_is_found(methods, check, message):
    with pytest.raises(AssertionError, match=message):
        segmenter_checks(changed(**methods))[check]()


def test_blank_images_must_be_handled():
    def predict(self, images):
        if any(image.data.min() == image.data.max() for image in images):
            raise ZeroDivisionError
        return Good().predict(images)

    with pytest.raises(ZeroDivisionError):
        segmenter_checks(changed(predict=predict))["accepts_blank_images"]()


def test_tiny_images_may_be_refused():
    def predict(self, images):
        if any(image.data.size < 9 for image in images):
            raise InputError("too small", remedy="use a larger image")
        return Good().predict(images)

    check_segmenter(changed(predict=predict))


def test_a_model_of_one_kind_of_image():
    def predict(self, images):
        assert all(image.n_channels == 3 for image in images)
        return Good().predict(images)

    check_segmenter(changed(predict=predict), kinds=["rgb"])
    with pytest.raises(AssertionError, match="unknown kinds"):
        check_segmenter(Good(), kinds=["hyperspectral"])
    with pytest.raises(AssertionError, match="a method `predict`"):
        check_segmenter(Good)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="at least 13 of 12 objects"):
        check_segmenter(Good(), min_objects=13)
