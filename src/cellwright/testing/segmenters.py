"""The conformance suite of models: what every `Segmenter` must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cellwright.core.errors import InputError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.models.contract import Segmenter
from cellwright.testing.objects import check_equal, check_prediction, expect

IMAGE_KINDS = ("rgb", "grey", "uint16")
N_DRAWN = 12


def check_segmenter(
    segmenter: Segmenter, *, kinds: Sequence[str] = IMAGE_KINDS, images: Sequence[Image] = (), min_objects: int = 0
) -> None:
    """Check that a model does what `cellwright.Segmenter` requires; `AssertionError` says what was expected.

    Args:
        segmenter: the model to check.
        kinds: the kinds of drawn images that the model accepts: "rgb" (uint8), "grey" (uint8, one channel), "uint16"
            (one channel). Bright cells on a dark background.
        images: images of your own to check it with, in addition.
        min_objects: the number of objects that the model must find at least in each drawn image, out of 12.

    >>> class Nothing:
    ...     def predict(self, images):
    ...         return [Instances.empty(image.image_hw, scored=True) for image in images]
    >>> check_segmenter(Nothing())
    >>> check_segmenter(Nothing(), min_objects=1)
    Traceback (most recent call last):
    AssertionError: rgb image: expected at least 1 of 12 objects, got 0
    """
    for check in segmenter_checks(segmenter, kinds=kinds, images=images, min_objects=min_objects).values():
        check()


def segmenter_checks(
    segmenter: Segmenter, *, kinds: Sequence[str] = IMAGE_KINDS, images: Sequence[Image] = (), min_objects: int = 0
) -> dict[str, Callable[[], None]]:
    """The checks of `check_segmenter` by name."""
    unknown = set(kinds) - set(IMAGE_KINDS)
    expect(not unknown, f"unknown kinds of images: {unknown}, expected some of {IMAGE_KINDS}")
    expect(kinds or images, "expected at least one kind of images, or images")
    has_predict = callable(getattr(segmenter, "predict", None)) and not isinstance(segmenter, type)
    expect(has_predict, f"expected an object with a method `predict`, got {segmenter!r}")
    suite = _Suite(segmenter, kinds, images, min_objects)
    checks = [suite.accepts_no_images, suite.gives_valid_objects, suite.accepts_blank_images, suite.handles_tiny_images]
    checks += [suite.keeps_the_order_of_images, suite.is_deterministic, suite.leaves_its_input_unchanged]
    return {check.__name__: check for check in checks}


class _Suite:
    """The checks, and the steps that they share."""

    def __init__(self, segmenter: Segmenter, kinds: Sequence[str], images: Sequence[Image], min_objects: int) -> None:
        self.segmenter, self.kinds, self.min_objects = segmenter, kinds, min_objects
        self.images = [*(draw_image(kind, k) for k, kind in enumerate(kinds)), *images]
        self.names = [*(f"{kind} image" for kind in kinds), *(f"images[{k}]" for k in range(len(images)))]

    def accepts_no_images(self) -> None:
        results = self.segmenter.predict([])
        expect(isinstance(results, list) and not results, f"no images: expected an empty list, got {results!r}")

    def gives_valid_objects(self) -> None:
        for k, (image, what) in enumerate(zip(self.images, self.names, strict=True)):
            (instances,) = self._predict([image], what)
            check_prediction(instances, image.image_hw, what)
            n_expected = self.min_objects if k < len(self.kinds) else 0
            expect(
                len(instances) >= n_expected,
                f"{what}: expected at least {n_expected} of {N_DRAWN} objects, got {len(instances)}",
            )

    def accepts_blank_images(self) -> None:
        for kind in self.kinds:
            pixels = draw_image(kind, 0).data
            for value in (0, np.iinfo(pixels.dtype).max):
                blank = Image.from_array(np.full((64, 80, pixels.shape[2]), value, pixels.dtype))
                what = f"{kind} image where every value is {value}"
                (instances,) = self._predict([blank], what)
                check_prediction(instances, (64, 80), what)

    def handles_tiny_images(self) -> None:
        """One pixel: a result, or `InputError`."""
        for kind in self.kinds:
            tiny, what = Image.from_array(draw_image(kind, 0).data[:1, :1]), f"{kind} image of one pixel"
            try:
                (instances,) = self._predict([tiny], what)
            except InputError:
                continue
            check_prediction(instances, (1, 1), what)

    def keeps_the_order_of_images(self) -> None:
        """Images of different sizes at once."""
        order = [*range(len(self.images)), *range(len(self.images))]
        results = self._predict([self.images[k] for k in order], "several images")
        for k, instances in zip(order, results, strict=True):
            what = f"{self.names[k]}, predicted together with others"
            check_prediction(instances, self.images[k].image_hw, what)

    def is_deterministic(self) -> None:
        for image, what in zip(self.images, self.names, strict=True):
            (first,), (second,) = (self._predict([image], what) for _ in range(2))
            check_equal(first, second, f"{what}, predicted twice")

    def leaves_its_input_unchanged(self) -> None:
        for image, what in zip(self.images, self.names, strict=True):
            before = image.data.copy()
            self._predict([image], what)
            expect(np.array_equal(image.data, before), f"{what}: predict changed the pixels of its input")

    def _predict(self, images: list[Image], what: str) -> list[Instances]:
        results = self.segmenter.predict(images)
        expect(isinstance(results, list), f"{what}: expected a list of Instances, got {type(results).__name__}")
        expect(len(results) == len(images), f"{what}: expected {len(images)} results, got {len(results)}")
        return results


def draw_image(kind: str, seed: int) -> Image:
    """An image of `N_DRAWN` separate bright discs on a dark, noisy background, of a size that depends on ``seed``."""
    rng = np.random.default_rng([8, seed])
    height, width = 97 + 8 * seed, 128 - 5 * seed
    grey = rng.normal(20, 4, (height, width))
    y, x = np.mgrid[:height, :width]
    for k in range(N_DRAWN):
        row, column = divmod(k, 4)
        distance = np.hypot(y - height * (2 * row + 1) / 6, x - width * (2 * column + 1) / 8)
        grey[distance <= rng.uniform(8, 12)] += rng.uniform(120, 200)
    grey = np.clip(grey, 0, 255)
    match kind:
        case "rgb":
            return Image.from_array(np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8))
        case "grey":
            return Image.from_array(grey.astype(np.uint8))
        case _:
            return Image.from_array((grey * 16).astype(np.uint16))
