"""Prediction with a PyTorch network: images are normalised, resized and padded as in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.input import InputConfig
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.memory import check_memory
from cellwright.core.notes import Note
from cellwright.data.network_input import ResizeRule, resampled, rescale, resize_for_network, to_network
from cellwright.data.value_range import TrainingValues, input_for
from cellwright.data.views import PLAIN, View
from cellwright.models.contract import DetectsViews, Explains, Network, Prunes
from cellwright.ops.batch import stack_images
from cellwright.prediction.diameter import Diameter, Estimate, estimate_diameter, estimate_notes, is_rounding
from cellwright.prediction.predictor import refuse_diameter, refuse_pruning
from cellwright.prediction.record import Prediction

SMALLER = "cut the image into parts that overlap by the size of an object, or reduce its size"


@dataclass(frozen=True, eq=False)
class NetworkPredictor:
    """A `Predictor` of all objects that a network finds, at the resolution of the image.

    network: it must be on ``device``; prediction puts it into evaluation mode and leaves it there.
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

    network: Network
    input_config: InputConfig
    resize_rule: ResizeRule = "torchvision"
    device: torch.device | str = "cpu"
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
        self.network.eval()
        predictions: list[Prediction] = []
        with torch.inference_mode():
            try:
                if self.views != PLAIN:
                    return [self._predict_views(image) for image in images]
                for start in range(0, len(images), self.batch_size):
                    predictions.extend(self._predict_batch(images[start : start + self.batch_size]))
            except torch.OutOfMemoryError as error:
                hw = max((image.image_hw for image in images), key=lambda hw: hw[0] * hw[1])
                raise InputError(
                    f"an image of {hw[0]} x {hw[1]} pixels does not fit in the memory of the GPU",
                    got=str(error).split(". ")[0],
                    remedy=f'{SMALLER}, or use `device="cpu"`',
                ) from error
        return predictions

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

    def explain(self, image: Image, near_xyxy: np.ndarray) -> Instances:
        """See `Predictor`."""
        if not isinstance(self.network, Explains):
            got = type(self.network).__name__
            raise UsageError("this network does not report its candidates", got=got, expected="a Mask R-CNN")
        self.network.eval()
        boxes = torch.as_tensor(near_xyxy, dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            resize, *_ = self._resizer(image)
            stacked, (input_hw,) = self._stack([resize(View())])
            return self.network.candidates(stacked, input_hw, image.image_hw, boxes)

    def _predict_batch(self, images: Sequence[Image]) -> list[Prediction]:
        inputs = [self._resizer(image) for image in images]
        shown = [k for k, (_, diameter, _) in enumerate(inputs) if diameter is None or not diameter.is_noise]
        results = [Instances.empty(image.image_hw, scored=True) for image in images]
        if shown:
            stacked, input_hws = self._stack([inputs[k][0](View()) for k in shown])
            detected = self.network.detect(stacked, input_hws, [images[k].image_hw for k in shown])
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

        def render(view: View) -> tuple[Tensor, tuple[int, int]]:
            if view.size not in resized:  # views of one size follow each other
                resized.clear()
                resized[view.size] = resize(view)
            stacked, (input_hw,) = self._stack([resized[view.size]])
            return turned(stacked, view), input_hw

        return self._prediction(self.network.detect_views(self.views, render, image.image_hw), diameter, notes)

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
        pixels, rounding, estimate = to_network(image, config), False, Estimate(self.diameter_px)
        estimated = self.diameter_px is None
        if estimated:
            data = image.without_alpha().data
            rounding = config.normalise == "percentile" and is_rounding(data.dtype, data.min(), data.max())
            estimate = Estimate(None, rounding)
            if not rounding:
                estimate = estimate_diameter(pixels, config.diameter_px, self.detect_input)
        px, is_noise = estimate.px, estimate.is_noise

        def resize(view: View) -> np.ndarray:
            # A view at a larger scale is an image with smaller objects; the same limits apply.
            of_view = None if px is None else Diameter.of(px / view.scale, image.image_hw, config, estimated=False)
            return rescale(pixels, view.scale if of_view is None else of_view.scale)

        diameter = Diameter.of(px, image.image_hw, config, estimated=estimated, is_noise=is_noise)
        return resize, diameter, (*notes, *estimate_notes(estimate, rounding=rounding))

    def detect_input(self, pixels: np.ndarray) -> Instances:
        """The objects of one network input (C, h, w), at its own size."""
        stacked, input_hws = self._stack([pixels])
        return self.network.detect(stacked, input_hws, input_hws)[0]

    def _stack(self, inputs: Sequence[np.ndarray]) -> tuple[Tensor, list[tuple[int, int]]]:
        stacked, input_hws = stack_images([torch.from_numpy(pixels) for pixels in inputs], self.network.stride)
        per_pixel = getattr(self.network, "bytes_per_pixel", None)
        if per_pixel is not None and torch.device(self.device).type == "cpu":
            (height, width), n_pixels = input_hws[0], stacked.shape[0] * stacked.shape[2] * stacked.shape[3]
            check_memory(per_pixel * n_pixels, f"the network at {height} x {width} pixels", remedy=SMALLER)
        return stacked.to(self.device), input_hws


def turned(images: Tensor, view: View) -> Tensor:
    """Images FloatTensor[B,C,H,W] in the orientation of a view."""
    return torch.rot90(images.flip(-1) if view.horizontal_flip else images, view.quarter_turns, (-2, -1)).contiguous()


def network_predictor(
    network: Network,
    recipe: Recipe,
    device: torch.device,
    *,
    training: TrainingValues | None = None,
    trained_channels: tuple[str, ...] = (),
    scale: float | None = None,
) -> NetworkPredictor:
    """The predictor of a network that was built from a recipe; the network is moved to ``device``."""
    network.to(device)
    cap = recipe.model.box_head.detections_per_image if isinstance(recipe.model, RCNNConfig) else None
    rule = CONVENTIONS[recipe.conventions].resize_rule
    facts = {"training": training, "trained_channels": trained_channels, "scale": scale}
    return NetworkPredictor(network, recipe.input, rule, device, model_cap=cap, **facts)
