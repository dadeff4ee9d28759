"""Prediction with a network, whatever computes it: images are normalised, resized and padded as in training.

`NetworkPredictor` gives its network NumPy arrays, as that of `models/dense/openvino_network.py` takes them;
`backends/torch.py` has the one that gives tensors to a network of PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.input import InputConfig
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import UsageError
from cellwright.core.geometry import padded_hw
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.memory import check_memory
from cellwright.core.notes import Note
from cellwright.data.network_input import ResizeRule, resampled, rescale, resize_for_network, to_network
from cellwright.data.value_range import MOST_OF_RANGE, OUTLIER_PERCENTILE, TrainingValues, input_for, outlier_notes
from cellwright.data.views import PLAIN, View
from cellwright.models.contract import DetectsViews, Explains, Prunes, SparesMasks, Wanted
from cellwright.prediction.diameter import Diameter, Estimate, estimate_diameter, estimate_notes, levels_of
from cellwright.prediction.predictor import refuse_diameter, refuse_pruning
from cellwright.prediction.record import Prediction

SMALLER = "cut the image into parts that overlap by the size of an object, or reduce its size"


@dataclass(frozen=True, eq=False)
class NetworkPredictor:
    """A `Predictor` of all objects that a network finds, at the resolution of the image.

    network: has the methods of a `Network` for prediction, and takes arrays where that takes tensors.
    input_config: channels, normalisation and size, as in training.
    resize_rule: "torchvision" or "detectron2" (the recipe's ``conventions``).
    batch_size: images per forward pass; it changes results by rounding only.
    model_cap: the network's limit on the number of objects per image; None if there is none.
    diameter_px: median diameter of the objects, px of the image, for a network with ``input.diameter_px``; None
        estimates it for each image.
    views: views of test-time augmentation. The plain view alone is prediction without it.
    training: the values of the images that the network was trained on; None if they are not known.
    trained_channels: see `Predictor`.
    scale: pixels of the input per pixel of the training images; None if it is not known.
    pixel_size_um: of the training images, see `resampled`; None if it is not known.
    pruned_to: the depth to which ``network`` was pruned; None if it was not.
    """

    network: Any
    input_config: InputConfig
    resize_rule: ResizeRule = "torchvision"
    device: Any = "cpu"
    batch_size: int = 1
    model_cap: int | None = None
    diameter_px: float | None = None
    views: tuple[View, ...] = PLAIN
    training: TrainingValues | None = None
    trained_channels: tuple[str, ...] = ()
    scale: float | None = None
    pixel_size_um: float | None = None
    pruned_to: int | None = None

    @property
    def uses_diameter(self) -> bool:
        """See `Predictor`."""
        return self.input_config.diameter_px is not None

    @property
    def explains(self) -> bool:
        """See `Predictor`."""
        return self.views == PLAIN and isinstance(self.network, Explains)

    @property
    def n_channels(self) -> int:
        """See `Predictor`."""
        return self.input_config.channels

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """See `Predictor`."""
        predictions: list[Prediction] = []
        with self.running([image.image_hw for image in images]):
            if self.views != PLAIN:
                return [self._predict_views(image) for image in images]
            for start in range(0, len(images), self.batch_size):
                predictions.extend(self._predict_batch(images[start : start + self.batch_size]))
        return predictions

    @contextmanager
    def running(self, image_hws: Sequence[tuple[int, int]] = ()) -> Iterator[None]:
        """Surrounds all that runs the network. image_hws: of the images, px, for messages."""
        yield

    def with_diameter(self, px: float) -> NetworkPredictor:
        """See `Predictor`."""
        if not (px > 0 and math.isfinite(px)):
            raise UsageError("invalid `diameter`", got=px, expected="pixels of the image, above 0")
        if not self.uses_diameter:
            refuse_diameter(px)
        return replace(self, diameter_px=px)

    def with_views(self, views: tuple[View, ...]) -> NetworkPredictor:
        """See `Predictor`."""
        if views != PLAIN and not isinstance(self.network, DetectsViews):
            got = type(self.network).__name__
            raise UsageError("this network does not support test-time augmentation", got=got, remedy="omit `views`")
        for view in views:
            view.input_config(self.input_config)  # raises for a view that does not fit
        return replace(self, views=views)

    def with_pruned_to(self, depth: int) -> NetworkPredictor:
        """See `Predictor`."""
        if not isinstance(self.network, Prunes):
            refuse_pruning(type(self.network).__name__)
        return replace(self, network=self.network.pruned(depth), pruned_to=depth)

    def with_masks_of(self, wanted: Wanted) -> NetworkPredictor:
        """See `SparesMasks`: of the network, if it can; test-time augmentation computes all masks."""
        if not isinstance(self.network, SparesMasks):
            return self
        return replace(self, network=self.network.with_masks_of(wanted))

    def explain(self, image: Image, near_xyxy: np.ndarray) -> Instances:
        """See `Predictor`."""
        if not isinstance(self.network, Explains):
            got = type(self.network).__name__
            raise UsageError("this network does not report its candidates", got=got, expected="a Mask R-CNN")
        with self.running([image.image_hw]):
            resize, *_ = self._resizer(image)
            stacked, (input_hw,) = self.stack([resize(View())])
            boxes = self.as_input(near_xyxy.astype(np.float32))
            return self.network.candidates(stacked, input_hw, image.image_hw, boxes)

    def _predict_batch(self, images: Sequence[Image]) -> list[Prediction]:
        inputs = [self._resizer(image) for image in images]
        shown = [k for k, (_, diameter, _) in enumerate(inputs) if diameter is None or not diameter.is_noise]
        results = [Instances.empty(image.image_hw, scored=True) for image in images]
        if shown:
            stacked, input_hws = self.stack([inputs[k][0](View()) for k in shown])
            zooms = self._zooms([diameter for _, diameter, _ in inputs if diameter is None or not diameter.is_noise])
            detected = self.network.detect(stacked, input_hws, [images[k].image_hw for k in shown], **zooms)
            for k, instances in zip(shown, detected, strict=True):
                results[k] = instances
        facts = [(diameter, notes) for _, diameter, notes in inputs]
        return [self._prediction(own, *of_image) for own, of_image in zip(results, facts, strict=True)]

    def _predict_views(self, image: Image) -> Prediction:
        assert isinstance(self.network, DetectsViews)  # checked by `with_views`
        resize, diameter, notes = self._resizer(image)
        if diameter is not None and diameter.is_noise:
            return self._prediction(Instances.empty(image.image_hw, scored=True), diameter, notes)
        resized: dict[object, np.ndarray] = {}

        def render(view: View) -> tuple[Any, tuple[int, int]]:
            if view.size not in resized:  # views of one size follow each other
                resized.clear()
                resized[view.size] = resize(view)
            return self.turned(resized[view.size], view)

        zooms = self._zooms([diameter])
        instances = self.network.detect_views(self.views, render, image.image_hw, **zooms)
        return self._prediction(instances, diameter, notes)

    def _zooms(self, diameters: Sequence[Diameter | None]) -> dict[str, list[float]]:
        """Pixels of the image per pixel of the network's input, for a network whose decoder needs them; else {}."""
        if not getattr(self.network, "needs_zooms", False):
            return {}
        return {"zooms": [1.0 if diameter is None else 1 / diameter.scale for diameter in diameters]}

    def _prediction(self, instances: Instances, diameter: Diameter | None, notes: tuple[Note, ...]) -> Prediction:
        reached = self.model_cap is not None and len(instances) >= self.model_cap
        cap = self.model_cap if reached else None
        return Prediction.of(instances.by_score(), model_cap=cap, diameter=diameter, views=self.views, notes=notes)

    def _resizer(self, image: Image) -> tuple[Callable[[View], np.ndarray], Diameter | None, tuple[Note, ...]]:
        """The function from a view to the input (C, h, w) at the view's size, not turned; diameter used; notes."""
        config, range_notes = input_for(image, self.input_config, self.training)
        config, size_notes = resampled(config, image.pixel_size_um, self.pixel_size_um)
        notes = (*range_notes, *size_notes)
        if config.diameter_px is None:
            return lambda view: resize_for_network(image, view.input_config(config), self.resize_rule), None, notes
        pixels, n_levels, estimate = to_network(image, config), math.inf, Estimate(self.diameter_px)
        if config.normalise == "percentile" and not self.cuts_off_values:
            notes = (*notes, *outlier_notes(_outlier_level(pixels, config)))
        estimated = self.diameter_px is None
        if estimated:
            data = image.without_alpha().data
            if config.normalise == "percentile":
                n_levels = levels_of(data.dtype, data.min(), data.max())
            estimate = estimate_diameter(pixels, config.diameter_px, self.detect_input, n_levels=n_levels)
        px, is_noise = estimate.px, estimate.is_noise

        def resize(view: View) -> np.ndarray:
            # A view at a larger scale is an image with smaller objects; the same limits apply.
            of_view = None if px is None else Diameter.of(px / view.scale, image.image_hw, config, estimated=False)
            return rescale(pixels, view.scale if of_view is None else of_view.scale, config.resampling)

        diameter = Diameter.of(px, image.image_hw, config, estimated=estimated, is_noise=is_noise)
        return resize, diameter, (*notes, *estimate_notes(estimate, n_levels=n_levels))

    @property
    def cuts_off_values(self) -> bool:
        """Whether the network cuts off values beyond those that were observed, so that outliers do not matter."""
        return getattr(self.network, "backend", None) == "openvino-int8"

    def detect_input(self, pixels: np.ndarray) -> Instances:
        """The objects of one network input (C, h, w), at its own size."""
        stacked, input_hws = self.stack([pixels])
        return self.network.detect(stacked, input_hws, input_hws)[0]

    def stack(self, inputs: Sequence[np.ndarray]) -> tuple[Any, list[tuple[int, int]]]:
        """Inputs (C, h, w) as the network takes them, (B, C, H, W), padded with zeros right and below; and each (h, w).

        Raises `InputError` if the network needs more memory than there is.
        """
        stacked, input_hws = self._padded(inputs)
        return self.as_input(stacked), input_hws

    def turned(self, pixels: np.ndarray, view: View) -> tuple[Any, tuple[int, int]]:
        """What `RenderView` returns of an input (C, h, w) of the size of a view."""
        stacked, (input_hw,) = self._padded([pixels])
        return self.as_input(view.turn(stacked)), input_hw

    def as_input(self, array: np.ndarray) -> Any:
        """An array as the network takes it."""
        return array

    @property
    def is_on_cpu(self) -> bool:
        """Whether the network needs the memory of this machine, and not that of a GPU."""
        return True

    def _padded(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, list[tuple[int, int]]]:
        input_hws = [(pixels.shape[1], pixels.shape[2]) for pixels in inputs]
        multiple = getattr(self.network, "input_multiple_px", self.network.stride)
        height, width = padded_hw(input_hws, multiple)
        per_pixel = getattr(self.network, "bytes_per_pixel", None)
        if per_pixel is not None and self.is_on_cpu:
            h, w = input_hws[0]
            n_bytes = per_pixel * len(inputs) * height * width
            check_memory(n_bytes, f"the network at {h} x {w} pixels", remedy=SMALLER)
        stacked = np.zeros((len(inputs), len(inputs[0]), height, width), np.float32)
        for target, pixels, (h, w) in zip(stacked, inputs, input_hws, strict=True):
            target[:, :h, :w] = pixels
            if getattr(self.network, "pad_mode", "constant") == "reflect":
                beyond = ((0, 0), (0, -h % multiple), (0, -w % multiple))
                target[:, : h + beyond[1][1], : w + beyond[2][1]] = np.pad(pixels, beyond, mode="reflect")
        return stacked, input_hws


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The fields of a `NetworkPredictor` that follow from the recipe of its network."""
    cap = recipe.model.box_head.detections_per_image if isinstance(recipe.model, RCNNConfig) else None
    rule = CONVENTIONS[recipe.conventions].resize_rule
    given = recipe.input.default_diameter_px
    return {"input_config": recipe.input, "resize_rule": rule, "model_cap": cap, "diameter_px": given}


def _outlier_level(pixels: np.ndarray, config: InputConfig) -> float:
    """How far the pixels of an input (C, H, W) reach beyond its range of 0 to 1, but for one in 10,000.

    Below it as well where images may have been inverted. 0 without reading percentiles where no pixel reaches far.
    """
    ends = [(float(pixels.max()), OUTLIER_PERCENTILE, 1)]
    if config.background == "dark":
        ends.append((-float(pixels.min()), 100 - OUTLIER_PERCENTILE, -1))
    far = [(percent, sign) for end, percent, sign in ends if end > MOST_OF_RANGE]
    return max(
        (float((sign * np.percentile(pixels, percent, axis=(1, 2))).max()) for percent, sign in far), default=0.0
    )
